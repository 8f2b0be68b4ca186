package main

import (
	"context"
	"fmt"
	"io"
	"slices"
	"strings"
	"time"

	"cagefs.dev/cage/cmd/internal/cli"
	"cagefs.dev/cage/cmd/internal/control"
	"cagefs.dev/cage/remote/auth"
	"cagefs.dev/cage/remote/status"
)

// client is what clients --json prints of a client or an invitation.
type client struct {
	Kind        string           `json:"kind"` // client, invitation
	Name        string           `json:"name"`
	Fingerprint auth.Fingerprint `json:"fingerprint"` // "" of an invitation
	Local       bool             `json:"local"`       // of a user of the server's machine
	Exports     []string         `json:"exports"`     // empty: all
	ReadOnly    bool             `json:"read_only"`
	TrustIDs    bool             `json:"trust_ids"`
	ActsAs      string           `json:"acts_as"`
	Joined      time.Time        `json:"joined,omitzero"`
	LastSeen    time.Time        `json:"last_seen,omitzero"`
	Sessions    int              `json:"sessions"` // with a connection, now
	Expires     time.Time        `json:"expires,omitzero"`
}

func newClients() *cli.Command {
	c := cli.New("clients", "[--json]", "list admitted clients and open invitations")
	c.Example = "cageserverd clients"
	var state stateFlag
	state.register(c)
	asJSON := c.Flags.Bool("json", false, "one object a line")
	c.Run = func(ctx context.Context, args []string, std cli.Std) error {
		if err := c.NArgs(args, 0, 0); err != nil {
			return err
		}
		return state.withState(func(_ string, s *auth.ServerState) error {
			list, err := listClients(s)
			if err != nil {
				return err
			}
			served, err := state.served(ctx)
			if err == nil {
				countSessions(list, served.Sessions)
			} else if status.Of(err) != status.Unreachable {
				return err
			}
			for _, one := range list {
				if *asJSON {
					err = cli.JSON(std.Out, one)
				} else {
					err = printClient(std.Out, one)
				}
				if err != nil {
					return err
				}
			}
			return nil
		})
	}
	return c
}

// listClients lists the clients, by name, then the open invitations.
func listClients(s *auth.ServerState) ([]client, error) {
	clients, err := s.Clients()
	if err != nil {
		return nil, err
	}
	seen, err := s.Seen()
	if err != nil {
		return nil, err
	}
	open, err := s.OpenInvitations(time.Now())
	if err != nil {
		return nil, err
	}
	var out []client
	for _, k := range clients {
		c := clientOf(k)
		c.Kind, c.LastSeen = "client", seen[k.Fingerprint]
		out = append(out, c)
	}
	for _, i := range open {
		c := clientOf(i.Client)
		c.Kind, c.Expires = "invitation", i.Expires
		out = append(out, c)
	}
	slices.SortStableFunc(out, func(a, b client) int {
		if a.Kind != b.Kind {
			return strings.Compare(a.Kind, b.Kind)
		}
		return strings.Compare(a.Name, b.Name)
	})
	return out, nil
}

func clientOf(k auth.ClientKey) client {
	return client{
		Name: k.Name, Fingerprint: k.Fingerprint, Local: k.LocalUID != nil, Exports: append([]string{}, k.Exports...),
		ReadOnly: k.ReadOnly, TrustIDs: k.TrustIDs, ActsAs: k.ActsAs(), Joined: k.Joined,
	}
}

// countSessions adds what the running server knows.
func countSessions(list []client, sessions []control.Session) {
	for i := range list {
		for _, s := range sessions {
			if s.Fingerprint == string(list[i].Fingerprint) && s.Peer != "" {
				list[i].Sessions++
				list[i].LastSeen = time.Now()
			}
		}
	}
}

func printClient(w io.Writer, c client) error {
	exports, mode := "all", "read-write"
	if len(c.Exports) > 0 {
		exports = strings.Join(c.Exports, " ")
	}
	if c.ReadOnly {
		mode = "read-only"
	}
	lines := [][2]string{{"exports", exports + ", " + mode}, {"acts as", c.ActsAs}}
	if c.Kind == "invitation" {
		return fields(w, c.Name+"  invited until "+when(c.Expires), lines...)
	}
	lines = append(lines, [2]string{"fingerprint", string(c.Fingerprint)}, [2]string{"joined", when(c.Joined)},
		[2]string{"last seen", fmt.Sprintf("%s, %d sessions now", when(c.LastSeen), c.Sessions)})
	head := c.Name
	if c.Local {
		head += "  user of this machine"
	}
	return fields(w, head, lines...)
}

func newRevoke() *cli.Command {
	c := cli.New("revoke", "CLIENT|FINGERPRINT [--json]", "take a client's access away, at once")
	c.Long = `Takes a client off the list, with open invitations of its name, and ends its
sessions: its connections are cut, its open files dropped. It may come back only
with a new invitation.`
	c.Example = "cageserverd revoke laptop"
	var state stateFlag
	state.register(c)
	asJSON := c.Flags.Bool("json", false, "one object on one line")
	c.Run = func(ctx context.Context, args []string, std cli.Std) error {
		if err := c.NArgs(args, 1, 1); err != nil {
			return err
		}
		return state.withState(func(dir string, s *auth.ServerState) error {
			gone, withdrawn, err := s.Revoke(args[0])
			if err != nil {
				return err
			}
			ended, err := dropRevoked(ctx, dir)
			if err != nil {
				return status.Wrap(err, "revoked, but the server has not been told, and ends the sessions within seconds", "")
			}
			for _, k := range gone {
				if k.LocalUID != nil {
					fmt.Fprintf(std.Err, "cageserverd: %s is admitted again when that user starts the server\n", k.Name)
				}
			}
			r := revoked{Fingerprints: []auth.Fingerprint{}, Invitations: len(withdrawn), Sessions: ended}
			for _, k := range gone {
				r.Fingerprints = append(r.Fingerprints, k.Fingerprint)
			}
			if *asJSON {
				return cli.JSON(std.Out, r)
			}
			_, err = fmt.Fprintf(std.Out, "revoked %s: %d keys, %d invitations; %d sessions ended\n", args[0], len(gone), len(withdrawn), ended)
			return err
		})
	}
	return c
}

// revoked is what revoke --json prints.
type revoked struct {
	Fingerprints []auth.Fingerprint `json:"fingerprints"`
	Invitations  int                `json:"invitations_withdrawn"`
	Sessions     int                `json:"sessions_ended"`
}

// dropRevoked lets the server that runs, if one does, end what is revoked.
func dropRevoked(ctx context.Context, dir string) (ended int, err error) {
	a, err := control.DialAdmin(ctx, dir)
	if status.Of(err) == status.Unreachable {
		return 0, nil
	}
	if err != nil {
		return 0, err
	}
	defer a.Close()
	return a.DropRevoked(ctx)
}

package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/user"
	"slices"
	"strings"
	"time"

	"cagefs.dev/cage/cmd/internal/cli"
	"cagefs.dev/cage/cmd/internal/control"
	"cagefs.dev/cage/remote/auth"
	"cagefs.dev/cage/remote/status"
)

// inviteFlags are the flags of invite.
type inviteFlags struct {
	state     stateFlag
	exports   []string
	readOnly  bool
	trustIDs  bool
	as        string
	addresses []string
	valid     time.Duration
}

func newInvite() *cli.Command {
	c := cli.New("invite", "CLIENT [--export NAME]… [--ro] [--as USER | --trust-ids]", "print a code with which another machine can join")
	c.Long = `Prints a code that admits one client, once: "cagefs join CODE" there makes a key
and has it admitted under the name CLIENT, which the journal shows with its
changes. Whoever has the code can join, so send it over a channel you trust.
All users of the client act as one user of this machine, nobody unless --as says
another, or the server's own user where it is not root; with --trust-ids they act
as whoever they are there, root included. A client that has the name already is
replaced when the new one joins.`
	c.Example = "cageserverd invite laptop --export data --as anna"
	var f inviteFlags
	f.state.register(c)
	c.Flags.StringArrayVar(&f.exports, "export", nil, "what it may mount (default: all); repeatable")
	c.Flags.BoolVar(&f.readOnly, "ro", false, "it may change nothing")
	c.Flags.BoolVar(&f.trustIDs, "trust-ids", false, "believe it who its users are")
	c.Flags.StringVar(&f.as, "as", "", "the user of this machine as whom it acts")
	c.Flags.StringArrayVar(&f.addresses, "address", nil, "HOST[:PORT] at which it reaches this server (default: this host's name); repeatable")
	c.Flags.DurationVar(&f.valid, "valid", 24*time.Hour, "how long the code may be used")
	c.Run = func(ctx context.Context, args []string, std cli.Std) error {
		if err := c.NArgs(args, 1, 1); err != nil {
			return err
		}
		return f.run(ctx, args[0], std)
	}
	return c
}

func (f *inviteFlags) run(ctx context.Context, name string, std cli.Std) error {
	if f.valid <= 0 {
		return cli.Usage("invite: --valid %v: use a time from now, as 24h", f.valid)
	}
	client := auth.ClientKey{Name: name, Exports: f.exports, ReadOnly: f.readOnly, TrustIDs: f.trustIDs}
	var err error
	if client.User, err = f.user(); err != nil {
		return err
	}
	return f.state.withState(func(_ string, state *auth.ServerState) error {
		served, err := f.state.served(ctx)
		running := err == nil
		if !running && status.Of(err) != status.Unreachable {
			return err
		}
		if running {
			if err := checkNames(f.exports, served.Exports); err != nil {
				return err
			}
		}
		addresses, err := f.reachedAt(served, running)
		if err != nil {
			return err
		}
		clients, err := state.Clients()
		if err != nil {
			return err
		}
		secret, err := state.Invite(client, time.Now(), f.valid)
		if err != nil {
			return err
		}
		f.hints(std, name, addresses, clients)
		_, err = fmt.Fprintln(std.Out, auth.Code{Addresses: addresses, Server: state.Fingerprint(), Secret: secret})
		return err
	})
}

// user is as whom the client acts, "" for nobody.
func (f *inviteFlags) user() (string, error) {
	switch {
	case f.trustIDs && f.as != "":
		return "", cli.Usage("invite: --as and --trust-ids exclude each other")
	case f.trustIDs:
		return "", nil
	case f.as == "" && os.Geteuid() == 0:
		return "", nil
	}
	own, err := user.Current()
	if err != nil {
		return "", status.Wrap(err, "invite", "")
	}
	if f.as == "" {
		return own.Username, nil
	}
	u, err := user.Lookup(f.as)
	var unknown user.UnknownUserError
	switch {
	case errors.As(err, &unknown):
		return "", status.Newf(status.NotFound, "invite", "", "this machine has no user %q", f.as)
	case err != nil:
		return "", status.Wrap(err, "invite", f.as)
	case u.Uid == "0":
		return "", cli.Usage("invite: only a client with --trust-ids can act as root")
	case os.Geteuid() != 0 && u.Uid != own.Uid:
		return "", cli.Usage("invite: a server that is not root's acts as its own user, %s, only", own.Username)
	}
	return f.as, nil
}

func checkNames(names []string, exports []control.Export) error {
	for _, n := range names {
		if !slices.ContainsFunc(exports, func(e control.Export) bool { return e.Name == n }) {
			var have []string
			for _, e := range exports {
				have = append(have, e.Name)
			}
			return status.Newf(status.UnknownExport, "invite", "", "no export named %q; there are: %s", n, strings.Join(have, ", "))
		}
	}
	return nil
}

// reachedAt is where the client is to look for the server.
func (f *inviteFlags) reachedAt(served control.Served, running bool) ([]string, error) {
	host, port := "", ""
	if running {
		var err error
		if host, port, err = net.SplitHostPort(served.Addr); err != nil {
			return nil, err
		}
	}
	given := f.addresses
	if len(given) == 0 {
		if !running {
			return nil, status.Newf(status.Unreachable, "invite", "", "no server runs with this state directory, so it is not known where it listens: start it, or use --address HOST:PORT")
		}
		if ip := net.ParseIP(host); ip != nil && ip.IsUnspecified() {
			name, err := os.Hostname()
			if err != nil {
				return nil, status.Wrap(err, "invite", "")
			}
			host = name
		}
		given = []string{net.JoinHostPort(host, port)}
	}
	if len(given) > auth.MaxAddresses {
		return nil, cli.Usage("invite: %d addresses, a code has at most %d", len(given), auth.MaxAddresses)
	}
	if port == "" {
		port = cli.DefaultPort
	}
	var out []string
	for _, a := range given {
		if !auth.ValidAddress(a) {
			a = net.JoinHostPort(strings.Trim(a, "[]"), port)
		}
		if !auth.ValidAddress(a) {
			return nil, cli.Usage("invite: --address %s: use HOST[:PORT]", a)
		}
		out = append(out, a)
	}
	return out, nil
}

// hints says on stderr what may surprise.
func (f *inviteFlags) hints(std cli.Std, name string, addresses []string, clients []auth.ClientKey) {
	if slices.ContainsFunc(clients, func(c auth.ClientKey) bool { return c.Name == name }) {
		fmt.Fprintf(std.Err, "cageserverd: %s is admitted already; whoever joins with this code takes its place\n", name)
	}
	local := func(a string) bool {
		host, _, _ := net.SplitHostPort(a)
		ip := net.ParseIP(host)
		return host == "localhost" || ip != nil && ip.IsLoopback()
	}
	if !slices.ContainsFunc(addresses, func(a string) bool { return !local(a) }) {
		fmt.Fprintf(std.Err, "cageserverd: the code is of use on this machine only (%s); see --address\n", strings.Join(addresses, ", "))
	}
}

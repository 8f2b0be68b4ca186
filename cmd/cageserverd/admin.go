package main

import (
	"cmp"
	"context"
	"fmt"
	"io"
	"os"
	"slices"

	"cagefs.dev/cage/cmd/internal/cli"
	"cagefs.dev/cage/cmd/internal/control"
	"cagefs.dev/cage/serverd"
)

// admin answers the admin socket of a server.
type admin struct {
	// Set at construction.
	*serverd.Server
	exports   []serverd.Export
	dataPorts int
}

// Served implements control.AdminHandler.
func (a *admin) Served() control.Served {
	out := control.Served{
		Addr: a.Addr().String(), DataPorts: a.dataPorts, Software: cli.Software("cageserverd"), PID: os.Getpid(), Since: a.Since(),
		Exports: []control.Export{}, Sessions: []control.Session{},
	}
	count := map[string]int{}
	for _, s := range a.Status() {
		count[s.Export]++
		out.Sessions = append(out.Sessions, control.Session{
			ID: cli.SessionText(s.ID), Export: s.Export, Client: s.Client, Key: s.Key.Name, Fingerprint: string(s.Key.Fingerprint),
			ActsAs: s.Key.ActsAs(), ReadOnly: s.ReadOnly, Peer: s.Peer, Since: s.Since, Lost: s.Lost, OpenFiles: s.OpenFiles, Locks: s.Locks, Leases: s.Leases, Writing: s.Writing, DataConns: s.DataConns,
		})
	}
	slices.SortFunc(out.Sessions, func(a, b control.Session) int {
		return cmp.Or(a.Since.Compare(b.Since), cmp.Compare(a.ID, b.ID))
	})
	for _, e := range a.exports {
		x := control.Export{Name: e.Name, Dir: e.Dir, ReadOnly: e.ReadOnly, Newest: e.Journal.Last(), Sessions: count[e.Name]}
		if err := e.Journal.Failed(); err != nil {
			x.Failed = err.Error()
		}
		out.Exports = append(out.Exports, x)
	}
	return out
}

func newExports() *cli.Command {
	return newServed("exports", "list what the running server exports", func(w io.Writer, s control.Served, asJSON bool) error {
		for _, e := range s.Exports {
			if asJSON {
				if err := cli.JSON(w, e); err != nil {
					return err
				}
				continue
			}
			mode, state := "read-write", "in order"
			if e.ReadOnly {
				mode = "read-only"
			}
			if e.Failed != "" {
				state = "takes no changes: " + e.Failed
			}
			err := fields(w, e.Name, [2]string{"directory", cli.Printable(e.Dir) + ", " + mode},
				[2]string{"journal", fmt.Sprintf("%s, newest change @%d", state, e.Newest)},
				[2]string{"sessions", fmt.Sprint(e.Sessions)}, [2]string{"server", s.Addr + " since " + when(s.Since)})
			if err != nil {
				return err
			}
		}
		return nil
	})
}

func newSessions() *cli.Command {
	return newServed("sessions", "list who is connected to the running server", func(w io.Writer, s control.Served, asJSON bool) error {
		for _, c := range s.Sessions {
			if asJSON {
				if err := cli.JSON(w, c); err != nil {
					return err
				}
				continue
			}
			peer, mode := c.Peer, "read-write"
			if peer == "" {
				peer = "no connection since " + when(c.Lost)
			}
			if c.ReadOnly {
				mode = "read-only"
			}
			err := fields(w, c.Key+"  "+c.Export+", "+mode, [2]string{"address", peer}, [2]string{"since", when(c.Since)},
				[2]string{"acts as", c.ActsAs}, [2]string{"open files", fmt.Sprintf("%d, %d locks", c.OpenFiles, c.Locks)},
				[2]string{"leases", fmt.Sprintf("%d, %d of them for writing", c.Leases, c.Writing)},
				[2]string{"data ports", fmt.Sprintf("%d connections", c.DataConns)}, [2]string{"session", c.ID + " of " + cli.Printable(c.Client)})
			if err != nil {
				return err
			}
		}
		return nil
	})
}

// newServed is a command that prints something of what the running server says.
func newServed(name, short string, print func(w io.Writer, s control.Served, asJSON bool) error) *cli.Command {
	c := cli.New(name, "[--json]", short)
	c.Example = "cageserverd " + name + " --json"
	var state stateFlag
	state.register(c)
	asJSON := c.Flags.Bool("json", false, "one object a line")
	c.Run = func(ctx context.Context, args []string, std cli.Std) error {
		if err := c.NArgs(args, 0, 0); err != nil {
			return err
		}
		served, err := state.served(ctx)
		if err != nil {
			return err
		}
		return print(std.Out, served, *asJSON)
	}
	return c
}

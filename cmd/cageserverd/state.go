package main

import (
	"context"
	"fmt"
	"io"
	"time"

	"cagefs.dev/cage/cmd/internal/cli"
	"cagefs.dev/cage/cmd/internal/control"
	"cagefs.dev/cage/remote/auth"
)

// stateFlag is --state of the commands that look after a server.
type stateFlag struct{ dir string }

func (f *stateFlag) register(c *cli.Command) {
	c.Flags.StringVar(&f.dir, "state", "", "the server's keys and clients (default /var/lib/cage for root, else $XDG_STATE_HOME/cage)")
}

// path is the directory.
func (f *stateFlag) path() (string, error) {
	if f.dir != "" {
		return f.dir, nil
	}
	return defaultState()
}

// withState calls f with the state of a server that was started before.
func (f *stateFlag) withState(do func(dir string, state *auth.ServerState) error) error {
	dir, err := f.path()
	if err != nil {
		return err
	}
	state, err := auth.FindServerState(dir)
	if err != nil {
		return err
	}
	defer state.Close()
	return do(dir, state)
}

// served asks the running server what it serves, and whom.
func (f *stateFlag) served(ctx context.Context) (control.Served, error) {
	dir, err := f.path()
	if err != nil {
		return control.Served{}, err
	}
	a, err := control.DialAdmin(ctx, dir)
	if err != nil {
		return control.Served{}, err
	}
	defer a.Close()
	return a.Served(ctx)
}

// when is a time for people, "-" for none.
func when(t time.Time) string {
	if t.IsZero() {
		return "-"
	}
	return t.Local().Format(time.DateTime)
}

// fields prints the lines of a thing: its name, then what there is to say.
func fields(w io.Writer, head string, lines ...[2]string) error {
	if _, err := fmt.Fprintln(w, head); err != nil {
		return err
	}
	for _, l := range lines {
		if _, err := fmt.Fprintf(w, "  %-12s %s\n", l[0], l[1]); err != nil {
			return err
		}
	}
	return nil
}

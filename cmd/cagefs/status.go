package main

import (
	"context"
	"fmt"
	"io"
	"time"

	"cagefs.dev/cage/cmd/internal/cli"
	"cagefs.dev/cage/cmd/internal/control"
)

// ask connects to the mount at a mountpoint and calls f with it.
func ask(ctx context.Context, mountpoint string, f func(*control.Client) error) error {
	m, err := control.At(mountpoint)
	if err != nil {
		return err
	}
	c, err := control.Dial(ctx, m)
	if err != nil {
		return err
	}
	defer c.Close()
	return f(c)
}

func newStatus() *cli.Command {
	c := cli.New("status", "MOUNTPOINT [--json]", "show a mount: its server, what is not delivered")
	c.Example = "cagefs status /mnt/data"
	asJSON := c.Flags.Bool("json", false, "one object on one line")
	c.Run = func(ctx context.Context, args []string, std cli.Std) error {
		if err := c.NArgs(args, 1, 1); err != nil {
			return err
		}
		return ask(ctx, args[0], func(m *control.Client) error {
			s, err := m.Status(ctx)
			if err != nil {
				return err
			}
			if *asJSON {
				return cli.JSON(std.Out, s)
			}
			return printStatus(std.Out, s)
		})
	}
	return c
}

func printStatus(w io.Writer, s control.Status) error {
	mode := "read-write"
	if s.At != 0 {
		mode = fmt.Sprintf("read-only, as of @%d", s.At)
	} else if s.ReadOnly {
		mode = "read-only"
	}
	left := "nothing: all is on the server"
	if s.Unapplied > 0 {
		left = fmt.Sprintf("%d changes, %s of data", s.Unapplied, cli.Size(s.Bytes).Short())
	}
	_, err := fmt.Fprintf(w, "%s on %s (%s)\nserver       %s, %s since %s, %d data connections, resumed %d times\nundelivered  %s\nprocess      %d, %s, mounted %s\n",
		s.Source, cli.Printable(s.Mountpoint), mode, s.Addr, s.State, s.Since.Local().Format(time.DateTime), s.DataConns, s.Resumes,
		left, s.PID, s.Software, s.Mounted.Local().Format(time.DateTime))
	if err == nil && s.LastError != "" {
		_, err = fmt.Fprintf(w, "last error   %s\n", s.LastError)
	}
	return err
}

func newStats() *cli.Command {
	c := cli.New("stats", "MOUNTPOINT [--json]", "show counters of a mount's cache")
	c.Example = "cagefs stats /mnt/data"
	asJSON := c.Flags.Bool("json", false, "one object on one line")
	c.Run = func(ctx context.Context, args []string, std cli.Std) error {
		if err := c.NArgs(args, 1, 1); err != nil {
			return err
		}
		return ask(ctx, args[0], func(m *control.Client) error {
			s, err := m.Stats(ctx)
			if err != nil {
				return err
			}
			if *asJSON {
				return cli.JSON(std.Out, s)
			}
			_, err = fmt.Fprintf(std.Out, "pages   %d, %s of %s, of %d files\nreads   %d hits, %d misses, %d read ahead\nevicted %d\n",
				s.Pages, cli.Size(s.Bytes).Short(), cli.Size(s.Budget).Short(), s.Files, s.Hits, s.Misses, s.ReadAheads, s.Evictions)
			return err
		})
	}
	return c
}

func newSync() *cli.Command {
	c := cli.New("sync", "MOUNTPOINT", "make everything changed so far durable on the server")
	c.Long = `Returns when everything that was changed in the mount so far is durable on the
server, or says what is not. Failures that no program has been told of are told here.`
	c.Example = "cagefs sync /mnt/data"
	c.Run = func(ctx context.Context, args []string, std cli.Std) error {
		if err := c.NArgs(args, 1, 1); err != nil {
			return err
		}
		return ask(ctx, args[0], func(m *control.Client) error { return m.Sync(ctx) })
	}
	return c
}

package main

import (
	"context"
	"fmt"
	"io"
	"strings"
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
	c := cli.New("status", "MOUNTPOINT [--json]", "show a mount: its servers, what is not delivered")
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
	var b strings.Builder
	process := fmt.Sprintf("process      %d, %s, mounted %s\n", s.PID, s.Software, s.Mounted.Local().Format(time.DateTime))
	if s.Sources[0].Name == "" {
		fmt.Fprintf(&b, "%s on %s (%s)\n", s.Source.Source, cli.Printable(s.Mountpoint), mode(s.Source))
		printSource(&b, "", s.Source, process)
	} else {
		fmt.Fprintf(&b, "%d sources on %s\n%s", len(s.Sources), cli.Printable(s.Mountpoint), process)
		for _, src := range s.Sources {
			fmt.Fprintf(&b, "%s: %s (%s)\n", src.Name, src.Source, mode(src))
			printSource(&b, "  ", src, "")
		}
	}
	_, err := io.WriteString(w, b.String())
	return err
}

func mode(s control.Source) string {
	switch {
	case s.At != 0:
		return fmt.Sprintf("read-only, as of @%d", s.At)
	case s.ReadOnly:
		return "read-only"
	}
	return "read-write"
}

// noticeable is how long a server may think before the status says so.
const noticeable = 2 * time.Second

func printSource(w io.Writer, indent string, s control.Source, process string) {
	delivered := "yes"
	if !s.Delivered {
		delivered = fmt.Sprintf("no: %d changes, %s of data", s.Unapplied, cli.Size(s.Bytes).Short())
	}
	silent := ""
	if d := time.Duration(s.SilentMS) * time.Millisecond; d >= noticeable {
		silent = fmt.Sprintf(", no answer for %v", d.Truncate(time.Second))
	}
	fmt.Fprintf(w, "%sserver       %s, %s since %s%s, %d data connections, resumed %d times\n%sleases       %d, %d of them for writing\n%severything is on the server: %s\n",
		indent, s.Addr, s.State, s.Since.Local().Format(time.DateTime), silent, s.DataConns, s.Resumes, indent, s.Leases, s.Writing, indent, delivered)
	for _, o := range s.Owed {
		fmt.Fprintf(w, "%s  %s of %s\n", indent, cli.Size(o.Bytes).Short(), fileName(o.File))
	}
	if s.MoreOwed > 0 {
		fmt.Fprintf(w, "%s  and of %d more\n", indent, s.MoreOwed)
	}
	if r := s.Refused; r != nil {
		fmt.Fprintf(w, "%srefused      %s, %s: %s\n", indent, fileName(r.File), r.When.Local().Format(time.DateTime), cli.Printable(r.Why))
	}
	fmt.Fprint(w, process)
	if s.LastError != "" {
		fmt.Fprintf(w, "%slast error   %s\n", indent, cli.Printable(s.LastError))
	}
}

// fileName is a file for people.
func fileName(f control.File) string {
	switch {
	case f.Path == "":
		return f.FID.String()
	case f.PathB64 != nil:
		return cli.Printable(string(f.PathB64))
	}
	return cli.Printable(f.Path)
}

func newStats() *cli.Command {
	c := cli.New("stats", "MOUNTPOINT [--json]", "show budgets and counters of a mount")
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
			return printStats(std.Out, s)
		})
	}
	return c
}

func printStats(w io.Writer, s control.Stats) error {
	size := func(n int64) string { return cli.Size(n).Short() }
	var b strings.Builder
	fmt.Fprintf(&b, "pages   %d of up to %s, %s of %s, of %d files\nreads   %d hits, %d misses, %d read ahead\nevicted %d, policy %s\n",
		s.Pages, size(s.PageSize), size(s.Bytes), size(s.Budget), s.Files, s.Hits, s.Misses, s.ReadAheads, s.Evictions, s.Policy)
	fmt.Fprintf(&b, "inodes  %d of %d\n", s.Inodes, s.InodeBudget)
	if s.KnownBudget > 0 {
		fmt.Fprintf(&b, "known   %d files and names of %d\n", s.Known, s.KnownBudget)
	}
	for _, src := range s.Sources {
		to := ""
		if src.Name != "" {
			to = " to " + src.Name
		}
		fmt.Fprintf(&b, "writes%s  %s of %s not applied yet\n", to, size(src.Dirty), size(s.DirtyBudget))
	}
	fmt.Fprintf(&b, "memory  limit %s\n", size(s.MemoryLimit))
	_, err := io.WriteString(w, b.String())
	return err
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
		return ask(ctx, args[0], func(m *control.Client) error { return m.Sync(ctx, "") })
	}
	return c
}

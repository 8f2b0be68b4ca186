package main

import (
	"context"
	"fmt"

	"cagefs.dev/cage/cmd/internal/cli"
)

func newVerify() *cli.Command {
	c := cli.New("verify", "[PATH] [--full] [--json]", "check a journal")
	c.Long = `Checks the log of the export of PATH (default: of the current directory): its
checksums, chains and numbers; with --full also the files against it. Ends with
exit code 5 if something is damaged.`
	c.Example = "cagejournal verify --full /mnt/data"
	var p place
	p.register(c.Flags)
	full := c.Flags.Bool("full", false, "also check the files against the log")
	asJSON := c.Flags.Bool("json", false, "one object on one line")
	c.Run = func(ctx context.Context, args []string, std cli.Std) error {
		if err := c.NArgs(args, 0, 1); err != nil {
			return err
		}
		t, err := p.open(ctx, p.optional(args), false)
		if err != nil {
			return err
		}
		defer t.Close(ctx)
		r, err := t.Verify(ctx, *full)
		if err != nil {
			return err
		}
		if *asJSON {
			err = cli.JSON(std.Out, struct {
				Segments uint64   `json:"segments"`
				Frames   uint64   `json:"frames"`
				Records  uint64   `json:"records"`
				Bytes    uint64   `json:"bytes"`
				Full     bool     `json:"full"`
				Problems []string `json:"problems"`
			}{r.Segments, r.Frames, r.Records, r.Bytes, *full, append([]string{}, r.Problems...)})
		} else {
			for _, problem := range r.Problems {
				fmt.Fprintln(std.Out, cli.Printable(problem))
			}
			_, err = fmt.Fprintf(std.Out, "%d records in %d frames of %d segments, %s: %d problems\n",
				r.Records, r.Frames, r.Segments, cli.Size(r.Bytes).Short(), len(r.Problems))
		}
		if err == nil && len(r.Problems) > 0 {
			return cli.ExitDamage
		}
		return err
	}
	return c
}

func newUsage() *cli.Command {
	c := cli.New("usage", "[PATH] [--json]", "show what history takes and how far it reaches")
	c.Example = "cagejournal usage /mnt/data"
	var p place
	p.register(c.Flags)
	asJSON := c.Flags.Bool("json", false, "one object on one line")
	c.Run = func(ctx context.Context, args []string, std cli.Std) error {
		if err := c.NArgs(args, 0, 1); err != nil {
			return err
		}
		t, err := p.open(ctx, p.optional(args), false)
		if err != nil {
			return err
		}
		defer t.Close(ctx)
		u, err := t.Usage(ctx)
		if err != nil {
			return err
		}
		if *asJSON {
			return cli.JSON(std.Out, struct {
				Oldest     uint64 `json:"oldest_lsn"`
				OldestTime string `json:"oldest_time"`
				Newest     uint64 `json:"newest_lsn"`
				LogBytes   uint64 `json:"log_bytes"`
				GraveBytes uint64 `json:"grave_bytes"`
				GraveFiles uint64 `json:"grave_files"`
				CapBytes   uint64 `json:"cap_bytes"`
			}{uint64(u.Oldest), cli.JSONTime(u.OldestTime), uint64(u.Newest), u.LogBytes, u.GraveBytes, u.GraveFiles, u.CapBytes})
		}
		_, err = fmt.Fprintf(std.Out, "history  @%d (%s) to @%d\nlog      %s\ngraves   %s in %d files\nlimit    %s\n",
			u.Oldest, u.OldestTime, u.Newest, cli.Size(u.LogBytes).Short(), cli.Size(u.GraveBytes).Short(), u.GraveFiles, cli.Size(u.CapBytes).Short())
		return err
	}
	return c
}

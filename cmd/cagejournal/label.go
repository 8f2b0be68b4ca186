package main

import (
	"context"
	"fmt"

	"cagefs.dev/cage/cmd/internal/cli"
	"cagefs.dev/cage/remote/proto"
)

func newLabel() *cli.Command {
	c := cli.New("label", "NAME [PATH] [--json]", "give the present moment a name")
	c.Long = `Marks the present moment in the export of PATH (default: of the current
directory). It is @label:NAME from then on. Names are of letters, digits and . _ -,
and each is used once.`
	c.Example = "cagejournal label before-merge /mnt/data"
	var p place
	p.register(c.Flags)
	asJSON := c.Flags.Bool("json", false, "one object on one line")
	var dryRun bool
	c.Flags.BoolVarP(&dryRun, "dry-run", "n", false, "check only")
	c.Run = func(ctx context.Context, args []string, std cli.Std) error {
		if err := c.NArgs(args, 1, 2); err != nil {
			return err
		}
		name := args[0]
		if !proto.ValidLabel(name) {
			return cli.Usage("label %s: a name is of letters, digits and . _ -, at most %d of them", name, proto.MaxLabel)
		}
		t, err := p.open(ctx, p.optional(args[1:]), !dryRun)
		if err != nil {
			return err
		}
		defer t.Close(ctx)
		if dryRun {
			return nil
		}
		r, err := t.Change(ctx, &proto.Label{Name: name})
		if err != nil {
			return err
		}
		if *asJSON {
			return cli.JSON(std.Out, struct {
				Label string    `json:"label"`
				LSN   proto.LSN `json:"lsn"`
			}{name, r.LSN})
		}
		_, err = fmt.Fprintf(std.Out, "@label:%s is @%d\n", name, r.LSN)
		return err
	}
	return c
}

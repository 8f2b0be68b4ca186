package main

import (
	"context"
	"fmt"
	"strings"
	"time"

	"github.com/spf13/pflag"

	"cagefs.dev/cage/cmd/internal/cli"
	"cagefs.dev/cage/remote/proto"
)

// changing are the flags and the way of the commands that take changes back:
// plan, question, change, and what undoes it.
type changing struct {
	dryRun, yes, json bool
}

func (c *changing) register(fs *pflag.FlagSet) {
	fs.BoolVarP(&c.dryRun, "dry-run", "n", false, "show the plan, change nothing")
	fs.BoolVarP(&c.yes, "yes", "y", false, "do not ask")
	fs.BoolVar(&c.json, "json", false, "one object a line: the steps, then the result")
}

// allowed fails where nobody can be asked and nothing was said.
func (c *changing) allowed(std cli.Std, command string) error {
	if !c.dryRun && !c.yes && !std.Interactive() {
		return cli.Usage("%s: nobody to ask: use -y to do it, -n to see the plan", command)
	}
	return nil
}

// resultJSON is the last line of --json.
type resultJSON struct {
	LSN    proto.LSN `json:"lsn"` // 0: nothing had to change, or a dry run
	Steps  int       `json:"steps"`
	DryRun bool      `json:"dry_run"`
	Undo   string    `json:"undo,omitempty"` // command that takes it back
}

// do runs a change; op makes it, as a dry run or for good.
func (c *changing) do(ctx context.Context, t *target, std cli.Std, op func(dryRun bool) proto.Op) error {
	if c.dryRun || !c.yes {
		r, err := c.attempt(ctx, t, std, op(true))
		if err != nil {
			return err
		}
		if c.dryRun {
			return c.report(t, std, proto.Result{Plan: r.Plan})
		}
		if len(r.Plan) == 0 {
			return c.report(t, std, r)
		}
		if !std.Ask("go on?") {
			fmt.Fprintln(std.Err, "nothing was changed")
			return cli.ExitInterrupted
		}
		r, err = t.Change(ctx, op(false))
		if err != nil {
			return err
		}
		return c.report(t, std, r)
	}
	r, err := c.attempt(ctx, t, std, op(false))
	if err != nil {
		return err
	}
	return c.report(t, std, r)
}

// attempt runs a change and prints its plan, also that of a failure, which
// names what is in the way.
func (c *changing) attempt(ctx context.Context, t *target, std cli.Std, op proto.Op) (proto.Result, error) {
	r, err := t.Change(ctx, op)
	if perr := printPlan(std.Out, t, r.Plan, c.json); perr != nil && err == nil {
		err = perr
	}
	return r, err
}

// report tells the outcome and what takes it back.
func (c *changing) report(t *target, std cli.Std, r proto.Result) error {
	undo := ""
	if r.LSN != 0 && !c.dryRun {
		undo = fmt.Sprintf("cagejournal undo @%d %s", r.LSN, t.hint)
	}
	switch {
	case c.json:
		return cli.JSON(std.Out, resultJSON{LSN: r.LSN, Steps: len(r.Plan), DryRun: c.dryRun, Undo: undo})
	case undo != "":
		fmt.Fprintf(std.Err, "done as @%d; undo with: %s\n", r.LSN, undo)
	case len(r.Plan) == 0:
		fmt.Fprintln(std.Err, "nothing has to be changed")
	}
	return nil
}

// newFilesFlag is --new=remove|keep.
type newFilesFlag proto.NewFiles

func (f *newFilesFlag) Set(s string) error {
	switch s {
	case "remove":
		*f = newFilesFlag(proto.NewRemove)
	case "keep":
		*f = newFilesFlag(proto.NewKeep)
	default:
		return fmt.Errorf("use remove or keep")
	}
	return nil
}

func (f *newFilesFlag) Type() string { return "remove|keep" }

func (f *newFilesFlag) String() string {
	if proto.NewFiles(*f) == proto.NewKeep {
		return "keep"
	}
	return "remove"
}

func newRollback() *cli.Command {
	c := cli.New("rollback", "PATH… --to MOMENT [--new=remove|keep] [-n] [-y]", "bring files and trees back to a moment")
	c.Long = `Brings each PATH back to what it was at the moment, in one step that can itself be
undone. Files that are newer go, or stay with --new=keep. On a terminal the plan
is shown and a question asked; elsewhere -y or -n must be given.`
	c.Example = "cagejournal rollback /mnt/data/src --to @-10m -n"
	var (
		p     place
		ch    changing
		newer newFilesFlag
	)
	to := c.Flags.String("to", "", "the moment: @LSN, @-5m, @14:02, @2026-11-21T14:02:03, @label:NAME")
	c.Flags.Var(&newer, "new", "what becomes of files that did not exist then")
	ch.register(c.Flags)
	p.register(c.Flags)
	c.Run = func(ctx context.Context, args []string, std cli.Std) error {
		if err := c.NArgs(args, 1, -1); err != nil {
			return err
		}
		if *to == "" {
			return cli.Usage("rollback: --to MOMENT is missing")
		}
		now := time.Now()
		if _, err := parseMoment(*to, now); err != nil {
			return err
		}
		if err := ch.allowed(std, "rollback"); err != nil {
			return err
		}
		t, paths, err := openAll(ctx, &p, args, !ch.dryRun)
		if err != nil {
			return err
		}
		defer t.Close(ctx)
		m, err := t.moment(ctx, *to, now)
		if err != nil {
			return err
		}
		fmt.Fprintf(std.Err, "to %s\n", m)
		return ch.do(ctx, t, std, func(dryRun bool) proto.Op {
			return &proto.Rollback{Paths: paths, To: m.lsn, New: proto.NewFiles(newer), DryRun: dryRun}
		})
	}
	return c
}

// openAll opens the one export that all arguments are in.
func openAll(ctx context.Context, p *place, args []string, write bool) (*target, []string, error) {
	if p.dir != "" {
		t, err := p.open(ctx, args[0], write)
		if err != nil {
			return nil, nil, err
		}
		var paths []string
		for _, a := range args {
			paths = append(paths, clean(a))
		}
		return t, paths, nil
	}
	var first *target
	var paths []string
	for _, arg := range args {
		t, err := p.open(ctx, arg, write)
		if err == nil && first != nil && t.key != first.key {
			t.Close(ctx)
			err = cli.Usage("%s is in another export than %s: roll them back one after the other", arg, args[0])
		}
		if err != nil {
			if first != nil {
				first.Close(ctx)
			}
			return nil, nil, err
		}
		paths = append(paths, t.path)
		if first == nil {
			first = t
			continue
		}
		if err := t.Close(ctx); err != nil {
			first.Close(ctx)
			return nil, nil, err
		}
	}
	return first, paths, nil
}

func newUndo() *cli.Command {
	return newTakeBack("undo", "take changes back", false,
		`Takes back the changes with the given numbers, whole transactions by any of their
numbers; without one, the newest change of this client and user under PATH
(default: the current directory). Repeated, it goes further back. An undo can be
undone, too.`, "cagejournal undo @123 /mnt/data")
}

func newRedo() *cli.Command {
	return newTakeBack("redo", "take undos back", true,
		`Takes back the newest undo of this client and user under PATH (default: the
current directory) that is not taken back yet. Repeated, it goes further.`, "cagejournal redo /mnt/data/src")
}

// newTakeBack makes undo and redo, which differ in direction only.
func newTakeBack(name, short string, redo bool, long, example string) *cli.Command {
	c := cli.New(name, "[@LSN…] [PATH] [-n] [-y]", short)
	c.Long, c.Example = long, example
	var (
		p  place
		ch changing
	)
	ch.register(c.Flags)
	p.register(c.Flags)
	c.Run = func(ctx context.Context, args []string, std cli.Std) error {
		var lsns []proto.LSN
		for len(args) > 0 && strings.HasPrefix(args[0], "@") {
			lsn, ok := parseLSN(args[0])
			if !ok {
				return cli.Usage("%s %s: not @LSN", name, args[0])
			}
			lsns, args = append(lsns, lsn), args[1:]
		}
		if err := c.NArgs(args, 0, 1); err != nil {
			return err
		}
		if err := ch.allowed(std, name); err != nil {
			return err
		}
		t, err := p.open(ctx, p.optional(args), !ch.dryRun)
		if err != nil {
			return err
		}
		defer t.Close(ctx)
		return ch.do(ctx, t, std, func(dryRun bool) proto.Op {
			return &proto.Undo{LSNs: lsns, Path: t.path, Redo: redo, DryRun: dryRun}
		})
	}
	return c
}

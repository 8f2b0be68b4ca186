package main

import (
	"context"
	"slices"

	"cagefs.dev/cage/cmd/internal/cli"
	"cagefs.dev/cage/remote/proto"
	"cagefs.dev/cage/remote/status"
	"cagefs.dev/cage/remote/wire"
)

func newLog() *cli.Command {
	c := cli.New("log", "[PATH] [-n N] [--follow] [--records] [--json]", "list changes, newest first")
	c.Long = `Lists the changes of a file or tree, newest first: number, local time, client,
user, command, what was done, path. A rollback, undo or redo is one line unless
--records is given. Without PATH: of the current directory.

With --follow the last 10, or N, are printed oldest first, and then each change
as it is made, until Ctrl-C.`
	c.Example = "cagejournal log -n 20 /mnt/data/src"
	var p place
	p.register(c.Flags)
	limit := c.Flags.UintP("limit", "n", 0, "at most so many (default all)")
	before := c.Flags.String("before", "", "only those before this @LSN")
	follow := c.Flags.BoolP("follow", "f", false, "print changes as they are made, oldest first")
	records := c.Flags.Bool("records", false, "each record of transactions")
	asJSON := c.Flags.Bool("json", false, "one object a line")
	c.Run = func(ctx context.Context, args []string, std cli.Std) error {
		if err := c.NArgs(args, 0, 1); err != nil {
			return err
		}
		q := wire.LogReq{Records: *records}
		if *before != "" {
			lsn, ok := parseLSN(*before)
			if !ok {
				return cli.Usage("--before %s: not @LSN", *before)
			}
			q.Before = lsn
		}
		if *follow && q.Before != 0 {
			return cli.Usage("--before and --follow exclude each other")
		}
		if *follow && !c.Flags.Changed("limit") {
			*limit = followed
		}
		t, err := p.open(ctx, p.optional(args), false)
		if err != nil {
			return err
		}
		defer t.Close(ctx)
		q.Path = t.path
		out := newEntryPrinter(std.Out, t, *asJSON)
		if *follow {
			return followHistory(ctx, t, q, int(min(*limit, pageEntries)), out)
		}
		n, err := printHistory(ctx, t, q, int(*limit), out)
		if err == nil && n == 0 && q.Before == 0 && t.path != "" {
			return status.Newf(status.NotFound, "", t.name(t.path), "no change of it in the history")
		}
		return err
	}
	return c
}

// followed is how many changes from before --follow shows, unless told otherwise.
const followed = 10

// followHistory prints the last changes that q asks for, and then those that are
// made, until ctx ends.
func followHistory(ctx context.Context, h history, q wire.LogReq, last int, out *entryPrinter) error {
	now, err := h.Moment(ctx, proto.Moment{Kind: proto.MomentNow})
	if err != nil {
		return err
	}
	if last > 0 {
		before := q
		before.Before, before.Limit = now.LSN+1, uint32(last)
		rep, err := h.Log(ctx, before)
		if err != nil {
			return err
		}
		for _, e := range slices.Backward(rep.Entries) {
			if err := out.print(&e); err != nil {
				return err
			}
		}
	}
	q.After = now.LSN
	err = h.Follow(ctx, q, func(e proto.Entry) error { return out.print(&e) })
	if ctx.Err() != nil {
		return nil // that is how it ends
	}
	return err
}

// printHistory prints the history that q asks for, at most limit entries (0:
// all), and returns how many it were.
func printHistory(ctx context.Context, h history, q wire.LogReq, limit int, out *entryPrinter) (n int, err error) {
	for {
		q.Limit = pageEntries
		if limit > 0 {
			q.Limit = uint32(min(limit-n, pageEntries))
		}
		rep, err := h.Log(ctx, q)
		if err != nil {
			return n, err
		}
		for i := range rep.Entries {
			if err := out.print(&rep.Entries[i]); err != nil {
				return n, err
			}
			n++
		}
		if !rep.More || len(rep.Entries) == 0 || (limit > 0 && n >= limit) {
			return n, nil
		}
		q.Before = rep.Entries[len(rep.Entries)-1].LSN
	}
}

func newShow() *cli.Command {
	c := cli.New("show", "@LSN [PATH] [--json]", "show one change, record by record")
	c.Long = `Shows a change, and all records of the transaction that it belongs to. PATH tells
in which export; without it that of the current directory.`
	c.Example = "cagejournal show @123 /mnt/data"
	var p place
	p.register(c.Flags)
	asJSON := c.Flags.Bool("json", false, "one object a line")
	c.Run = func(ctx context.Context, args []string, std cli.Std) error {
		if err := c.NArgs(args, 1, 2); err != nil {
			return err
		}
		lsn, ok := parseLSN(args[0])
		if !ok {
			return cli.Usage("show %s: not @LSN", args[0])
		}
		t, err := p.open(ctx, p.optional(args[1:]), false)
		if err != nil {
			return err
		}
		defer t.Close(ctx)
		out := newEntryPrinter(std.Out, t, *asJSON)
		out.long = true
		n, err := printHistory(ctx, t, wire.LogReq{LSN: lsn, Records: true}, 0, out)
		if err == nil && n == 0 {
			return status.Newf(status.NotFound, "", args[0], "no such change in the history")
		}
		return err
	}
	return c
}

// parseLSN reads @123 or 123.
func parseLSN(s string) (proto.LSN, bool) {
	var n uint64
	digits := s
	if len(s) > 0 && s[0] == '@' {
		digits = s[1:]
	}
	if len(digits) == 0 || len(digits) > 19 {
		return 0, false
	}
	for _, c := range []byte(digits) {
		if c < '0' || c > '9' {
			return 0, false
		}
		n = n*10 + uint64(c-'0')
	}
	return proto.LSN(n), n > 0
}

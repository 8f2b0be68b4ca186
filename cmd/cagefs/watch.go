package main

import (
	"context"
	"time"

	"github.com/rs/zerolog"

	"cagefs.dev/cage/cmd/internal/cli"
	"cagefs.dev/cage/cmd/internal/control"
	"cagefs.dev/cage/remote"
	"cagefs.dev/cage/remote/auth"
	"cagefs.dev/cage/remote/proto"
	"cagefs.dev/cage/remote/wire"
)

func newWatch() *cli.Command {
	c := cli.New("watch", "PATH", "print changes by others as they are made")
	c.Long = `Prints each change that another client, or a program on the server, makes to a
file or tree of a mount, as one JSON object a line, as "cagejournal log --json"
prints it, until Ctrl-C. Changes of the mount itself are left out. While the server
is away it waits, and goes on where it was.`
	c.Example = "cagefs watch /mnt/data/inbox"
	c.Run = func(ctx context.Context, args []string, std cli.Std) error {
		if err := c.NArgs(args, 1, 1); err != nil {
			return err
		}
		p, err := control.Find(args[0])
		if err != nil {
			return err
		}
		m, err := control.Dial(ctx, p.Mount)
		if err != nil {
			return err
		}
		defer m.Close()
		where, err := m.Where(ctx, p.Below)
		if err != nil {
			return err
		}
		if where.At != 0 {
			return cli.Usage("%s is of a moment of the past, where nothing changes", args[0])
		}
		err = watch(ctx, where, p.Below, func(e proto.Entry) error {
			if cli.SessionText(e.Session) == where.Session {
				return nil
			}
			return cli.EntryJSON(std.Out, &e)
		})
		if ctx.Err() != nil {
			return nil // that is how it ends
		}
		return err
	}
	return c
}

// watchPatience is how long it waits for a server that is not there when it begins.
const watchPatience = 30 * time.Second

// watch calls f for the changes of a path, in a session of its own.
func watch(ctx context.Context, where control.Where, below string, f func(proto.Entry) error) error {
	dir, err := auth.DefaultKeyringDir()
	if err != nil {
		return err
	}
	s, err := remote.Dial(ctx, remote.Options{
		Addr: where.Addr, Export: where.Export, Keys: auth.OpenKeyring(dir), Software: cli.Software("cagefs"),
		Patience: watchPatience, Log: zerolog.Nop(),
	})
	if err != nil {
		return err
	}
	defer s.Close(context.WithoutCancel(ctx))
	return s.Follow(ctx, wire.LogReq{Ident: cli.OwnIdent("cagefs"), Path: where.Path(below)}, f)
}

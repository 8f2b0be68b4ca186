package main

import (
	"context"
	"time"

	"github.com/rs/zerolog"

	"cagefs.dev/cage/cmd/internal/cli"
	"cagefs.dev/cage/remote"
	"cagefs.dev/cage/remote/auth"
	"cagefs.dev/cage/remote/proto"
	"cagefs.dev/cage/remote/wire"
)

// online is an export's history as its server tells it.
type online struct {
	s     *remote.Session
	ident proto.Ident
}

// patience is how long a command waits for a server that is gone.
const patience = 30 * time.Second

// dialHistory opens a session for an export.
func dialHistory(ctx context.Context, addr, export string) (*online, error) {
	dir, err := auth.DefaultKeyringDir()
	if err != nil {
		return nil, err
	}
	s, err := remote.Dial(ctx, remote.Options{
		Addr: addr, Export: export, Keys: auth.OpenKeyring(dir), Software: cli.Software("cagejournal"),
		Patience: patience, DataPort: true, Log: zerolog.Nop(),
	})
	if err != nil {
		return nil, err
	}
	return &online{s: s, ident: cli.OwnIdent("cagejournal")}, nil
}

func (o *online) header(at proto.LSN) wire.ReqHeader { return wire.ReqHeader{At: at, Ident: o.ident} }

func (o *online) Log(ctx context.Context, q wire.LogReq) (wire.LogRep, error) {
	q.Ident = o.ident
	return o.s.History(ctx, q)
}

func (o *online) Follow(ctx context.Context, q wire.LogReq, f func(proto.Entry) error) error {
	q.Ident = o.ident
	return o.s.Follow(ctx, q, f)
}

func (o *online) Moment(ctx context.Context, m proto.Moment) (wire.MomentRep, error) {
	return o.s.Moment(ctx, m)
}

func (o *online) Resolve(ctx context.Context, at proto.LSN, path string) (proto.Attr, error) {
	return o.s.Resolve(ctx, o.header(at), path)
}

func (o *online) Readlink(ctx context.Context, at proto.LSN, id proto.FileID) (string, error) {
	return o.s.Readlink(ctx, o.header(at), id)
}

func (o *online) ReadAt(ctx context.Context, at proto.LSN, id proto.FileID, p []byte, off int64) (int, error) {
	n, _, _, err := o.s.ReadAt(ctx, o.header(at), id, p, off)
	return n, err
}

func (o *online) ReadDir(ctx context.Context, at proto.LSN, id proto.FileID, cookie uint64) ([]proto.DirEntry, error) {
	rep, err := o.s.ReadDir(ctx, o.header(at), id, cookie, pageEntries, true)
	return rep.Entries, err
}

func (o *online) Attr(ctx context.Context, id proto.FileID) (proto.Attr, error) {
	return o.s.GetAttr(ctx, o.header(0), id)
}

func (o *online) Branches(ctx context.Context) ([]proto.BranchInfo, error) {
	return o.s.Branches(ctx, o.ident)
}

func (o *online) ReadBranch(ctx context.Context, branch proto.SessionID, p []byte, off int64) (int, error) {
	return o.s.ReadBranch(ctx, o.ident, branch, p, off)
}

func (o *online) Session() proto.SessionID { return o.s.Status().Session }

func (o *online) Change(ctx context.Context, op proto.Op) (proto.Result, error) {
	return o.s.Do(ctx, o.ident, op)
}

func (o *online) Verify(ctx context.Context, full bool) (wire.VerifyRep, error) {
	return o.s.Verify(ctx, full)
}

func (o *online) Usage(ctx context.Context) (wire.UsageRep, error) { return o.s.Usage(ctx) }

func (o *online) Close(ctx context.Context) error { return o.s.Close(ctx) }

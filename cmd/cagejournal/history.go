package main

import (
	"context"

	"cagefs.dev/cage/remote/proto"
	"cagefs.dev/cage/remote/wire"
)

// history is an export as the commands need it. It is implemented by online
// (over a session) and offline (on the server's disk).
type history interface {
	Log(ctx context.Context, q wire.LogReq) (wire.LogRep, error)
	// Follow is remote.Session's: status.Usage offline.
	Follow(ctx context.Context, q wire.LogReq, f func(proto.Entry) error) error
	Moment(ctx context.Context, m proto.Moment) (wire.MomentRep, error)

	// Reading at a record, 0 for now.
	Resolve(ctx context.Context, at proto.LSN, path string) (proto.Attr, error)
	Readlink(ctx context.Context, at proto.LSN, id proto.FileID) (string, error)
	// ReadAt returns less than len(p) only at the end of the file.
	ReadAt(ctx context.Context, at proto.LSN, id proto.FileID, p []byte, off int64) (int, error)
	// ReadDir returns entries with attributes after a cookie; none at the end.
	ReadDir(ctx context.Context, at proto.LSN, id proto.FileID, cookie uint64) ([]proto.DirEntry, error)

	// Change makes a Label, Rollback or Undo. A result may come with an error:
	// its plan then tells what is in the way.
	Change(ctx context.Context, op proto.Op) (proto.Result, error)

	Verify(ctx context.Context, full bool) (wire.VerifyRep, error)
	Usage(ctx context.Context) (wire.UsageRep, error)
	Close(ctx context.Context) error
}

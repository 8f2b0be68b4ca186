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

	Attr(ctx context.Context, id proto.FileID) (proto.Attr, error) // now

	// What sessions could not deliver. ReadBranch reads a branch's file, at most proto.MaxXattr bytes, none at its end.
	Branches(ctx context.Context) ([]proto.BranchInfo, error)
	ReadBranch(ctx context.Context, branch proto.SessionID, p []byte, off int64) (int, error)
	Session() proto.SessionID // in which this command makes its changes

	// Change makes a Label, Rollback, Undo or Branch, or keeps a Write that is Lost. A result may come with an error:
	// its plan then tells what is in the way.
	Change(ctx context.Context, op proto.Op) (proto.Result, error)

	Verify(ctx context.Context, full bool) (wire.VerifyRep, error)
	Usage(ctx context.Context) (wire.UsageRep, error)
	Close(ctx context.Context) error
}

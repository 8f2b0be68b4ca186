// Package replay plans and applies rollback, undo and redo on an open journal,
// each as one transaction. It must not know the wire.
package replay

import (
	"context"

	"cagefs.dev/cage/journal"
	"cagefs.dev/cage/remote/proto"
)

// Rollback brings paths back to the state that record op.To left. Errors:
// status.NotFound (a path that is neither now nor was then), NoHistory, Busy, NoSpace.
func Rollback(ctx context.Context, j *journal.Journal, s *journal.Submission, op *proto.Rollback) (proto.Result, error) {
	panic("replay: being written")
}

// Undo takes records back: status.Conflict with the plan naming what is in the way.
func Undo(ctx context.Context, j *journal.Journal, s *journal.Submission, op *proto.Undo) (proto.Result, error) {
	panic("replay: being written")
}

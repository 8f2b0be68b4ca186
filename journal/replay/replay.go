// Package replay plans and applies rollback, undo and redo on an open journal,
// each as one transaction. It must not know the wire.
//
// There is one engine (engine.go). It is given a past state, the names that are
// to lead where they led in it, and the files that are to be as they were in it; it
// compares them with the present and writes the difference. A rollback (rollback.go)
// takes the state that a record left and what changed since below some paths; an
// undo (undo.go) takes the present without some records and what these changed.
package replay

import (
	"context"

	"cagefs.dev/cage/journal"
	"cagefs.dev/cage/remote/proto"
	"cagefs.dev/cage/remote/status"
)

// Rollback brings paths back to the state that record op.To left: names,
// contents, modes, owners, times of modification and extended attributes. A file that
// was moved out of the paths and lives elsewhere comes back as a copy. Errors:
// status.NotFound (a path that is neither now nor was then), NoHistory, Conflict (a
// file to be changed has a name outside of the paths as well), NoSpace. With
// Conflict nothing is changed and the plan says what is in the way.
func Rollback(ctx context.Context, j *journal.Journal, s *journal.Submission, op *proto.Rollback) (proto.Result, error) {
	if len(op.Paths) == 0 {
		return proto.Result{}, status.Newf(status.Invalid, "roll back", "", "no path")
	}
	past, failed := j.At(op.To) // what fails is told in the transaction: the answer may be known already
	r := &rollback{engine: newEngine(ctx, j, past), keep: op.New == proto.NewKeep, within: map[proto.FileID]bool{}}
	res, err := j.Transact(ctx, s, journal.KindRollback, rollbackArgs(op), op.DryRun, func(tx *journal.Tx) error {
		if r.tx = tx; failed != nil {
			return failed
		}
		return r.run(op.Paths)
	})
	res.Plan = r.steps
	return res, err
}

// Undo takes records back, and whole transactions by any of their records:
// status.NotFound (there is nothing to undo), Invalid (a record that changed
// nothing), NoHistory, or Conflict, when something else has changed the same names,
// bytes or attributes since; then nothing is changed and the plan says what is in the way.
func Undo(ctx context.Context, j *journal.Journal, s *journal.Submission, op *proto.Undo) (proto.Result, error) {
	set, failed := chosen(j, s, op)
	kind := journal.KindUndo
	if op.Redo {
		kind = journal.KindRedo
	}
	u := &undo{engine: newEngine(ctx, j, j.Without(set.lsns)), set: set}
	u.keepTime = map[proto.FileID]bool{}
	res, err := j.Transact(ctx, s, kind, set.String(), op.DryRun, func(tx *journal.Tx) error {
		if u.tx = tx; failed != nil {
			return failed
		}
		return u.run()
	})
	res.Plan = u.steps
	return res, err
}

// conflict is the error for a plan whose steps say what is in the way.
func (e *engine) conflict() error { return conflict(e.steps) }

func conflict(steps []proto.PlanStep) error {
	for _, s := range steps {
		if s.Action == "conflict" {
			return status.Newf(status.Conflict, "", s.Path, "%s", s.Detail)
		}
	}
	return nil
}

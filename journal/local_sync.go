package journal

import (
	"context"

	"cagefs.dev/cage/journal/record"
	"cagefs.dev/cage/remote/proto"
	"cagefs.dev/cage/remote/status"
)

// After a power cut recovery does the records since the checkpoint again. That must
// not undo what a process of the server has made durable in the same file since. So
// a file that such a process changed, and that those records are about as well, is
// synced, and a Synced record with FlagLocal says up to where the log is not needed for it.
// A process that calls fsync and a power cut within the time that this takes, half
// a second on an idle disk, still lose.

// maxUnsynced bounds the files that wait for syncLocal; those beyond wait for the checkpoint.
const maxUnsynced = 4096

// toBeSynced takes in a record of what a process of the server did. It does not block.
func (j *Journal) toBeSynced(r *record.Record) {
	if r.Kind != record.Local || r.New.Mode&proto.ModeType != proto.ModeRegular {
		return
	}
	l := &j.local
	l.mu.Lock()
	defer l.mu.Unlock()
	if len(l.unsynced) < maxUnsynced {
		l.unsynced[r.ID] = true
	}
}

// syncLocal makes the files durable that toBeSynced has taken in. Only localLoop calls it.
func (j *Journal) syncLocal(ctx context.Context) error {
	l := &j.local
	l.mu.Lock()
	files := l.unsynced
	l.unsynced = map[proto.FileID]bool{}
	l.mu.Unlock()
	noted := false
	for id := range files {
		if uint64(j.hist.ours(id)) <= j.ckpt.lsn.Load() {
			continue // recovery has nothing to do with it
		}
		if err := ctx.Err(); err != nil {
			return err
		}
		upto, err := j.syncWhole(id)
		if status.Of(err) == status.Stale || gone(err) {
			continue
		}
		if err == nil {
			err = j.log.Append(&record.Record{Kind: record.Synced, Flag: record.FlagLocal, ID: id, Upto: upto})
		}
		if err != nil {
			return err
		}
		noted = true
	}
	if !noted {
		return nil
	}
	return j.log.Commit()
}

// syncWhole makes a file durable with its attributes, and returns up to where the
// records about it were applied before. An error of the sync is final.
func (j *Journal) syncWhole(id proto.FileID) (upto proto.LSN, err error) {
	var h *handle
	err = j.viewed(func() error {
		h, err = j.tree.file(id, false)
		return err
	})
	if err != nil {
		return 0, err
	}
	defer h.release()
	upto = j.appliedLSN()
	if err := h.file.Sync(); err != nil {
		err = status.Newf(status.IO, "sync", id.String(), "%w", err)
		j.fail(err)
		return 0, err
	}
	return upto, nil
}

package journal

import (
	"time"

	"cagefs.dev/cage/remote/proto"
)

// What a session holds open stays, also when its last name is gone and history
// gives up its grave. Holds are in memory: after a start nobody knows what the
// sessions from before held, until each has come back and said so. Until then,
// but not for ever, no file is removed from a grave.

// holds are the open files. Guarded by holdMu.
type holds struct {
	files  map[proto.FileID]int
	absent map[proto.SessionID]struct{} // sessions from before the start that have not said yet what they hold
	until  time.Time                    // when they are no longer waited for
}

// hold counts an open of a file, so that pruning leaves its graves alone.
func (j *Journal) hold(id proto.FileID) error {
	if _, ok := j.tree.get(id); !ok {
		return j.tree.missing(id)
	}
	j.holdMu.Lock()
	defer j.holdMu.Unlock()
	j.holds.files[id]++
	return nil
}

func (j *Journal) unhold(id proto.FileID, n int) {
	j.holdMu.Lock()
	defer j.holdMu.Unlock()
	if j.holds.files[id] -= n; j.holds.files[id] <= 0 {
		delete(j.holds.files, id)
	}
}

// awaitSessions begins to wait for the sessions that recovery has found.
func (j *Journal) awaitSessions() {
	j.holdMu.Lock()
	defer j.holdMu.Unlock()
	j.holds.until = time.Now().Add(j.opts.Grace)
	for id := range j.sessions {
		j.holds.absent[id] = struct{}{}
	}
}

// returned says that a session holds what it has open, or is over.
func (j *Journal) returned(id proto.SessionID) {
	j.holdMu.Lock()
	defer j.holdMu.Unlock()
	delete(j.holds.absent, id)
}

// awaiting reports whether some session may hold files that it has not named yet.
func (j *Journal) awaiting() bool {
	j.holdMu.Lock()
	defer j.holdMu.Unlock()
	return len(j.holds.absent) > 0 && time.Now().Before(j.holds.until)
}

// held reports whether a file, or of a directory something in it, is held or may be.
func (j *Journal) held(id proto.FileID) bool {
	if j.awaiting() {
		return true
	}
	n, _ := j.tree.get(id)
	j.holdMu.Lock()
	defer j.holdMu.Unlock()
	if j.holds.files[id] > 0 {
		return true
	}
	if n.typ != proto.ModeDir {
		return false
	}
	for open := range j.holds.files {
		if j.tree.within(open, id) {
			return true
		}
	}
	return false
}

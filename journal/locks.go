package journal

import (
	"cagefs.dev/cage/journal/record"
	"cagefs.dev/cage/journal/vfs"
	"cagefs.dev/cage/remote/proto"
	"cagefs.dev/cage/remote/status"
)

// The server keeps locks and modes in memory. What has to outlive it is in the log:
// who may come back and say what he had, and who may not any more, since it went to
// others, although they may be done with it (RFC 8881, section 8.4.3: the edge conditions).

// LockState is what the log says of the locks of a session.
type LockState struct {
	Lost  bool // what it had is not its own any more, and it may not have heard of that
	Modes bool // it may have modes
}

// What a Locks record says, in its Count.
const (
	locksLost  = iota // the session's locks and modes may be others' from here on
	locksTold         // it knows that, and what it has it got since
	locksModes        // it may have modes
)

// SessionLocks says so of all sessions of which there is something to say. For the start of the server.
func (j *Journal) SessionLocks() map[proto.SessionID]LockState {
	j.planMu.Lock()
	defer j.planMu.Unlock()
	out := make(map[proto.SessionID]LockState)
	for id, ses := range j.sessions {
		if ses.locks != (LockState{}) {
			out[id] = ses.locks
		}
	}
	return out
}

// LoseLocks records, durably, that sessions have lost their locks and modes. It blocks
// for a sync of the log. Sessions of which the log does not know are forgotten by a restart anyway.
func (j *Journal) LoseLocks(ids ...proto.SessionID) error {
	if err := j.recordLocks(locksLost, ids...); err != nil {
		return err
	}
	return j.log.Commit()
}

// ToldLocks records that a session has heard of that. It does not wait: a crash
// before it is durable takes from the session what it has locked since.
func (j *Journal) ToldLocks(id proto.SessionID) error { return j.recordLocks(locksTold, id) }

// SetModes records, durably, that a session may have modes. It blocks for a sync of the log.
func (j *Journal) SetModes(id proto.SessionID) error {
	if err := j.recordLocks(locksModes, id); err != nil {
		return err
	}
	return j.log.Commit()
}

func (j *Journal) recordLocks(what uint64, ids ...proto.SessionID) error {
	j.planMu.Lock()
	defer j.planMu.Unlock()
	if j.opts.ReadOnly {
		return nil
	}
	if err := j.usable(); err != nil {
		return err
	}
	for _, id := range ids {
		ses := j.sessions[id]
		if ses == nil || !ses.recorded {
			continue
		}
		r := &record.Record{Kind: record.Locks, Session: id, Count: what}
		if err := j.log.Append(r); err != nil {
			return err
		}
		ses.setLocks(r)
	}
	j.kick()
	return nil
}

// setLocks takes in what a record says.
func (ses *session) setLocks(r *record.Record) {
	switch r.Count {
	case locksLost:
		ses.locks = LockState{Lost: true}
	case locksTold:
		ses.locks.Lost = false
	case locksModes:
		ses.locks.Modes = true
	}
}

// LockFile opens a regular file to lock it for programs of the server: see vfs.Locker. The caller closes it. It is
// open for reading only where the server may not write it. Errors: status.Unsupported where files
// cannot be locked, and those of opening.
func (j *Journal) LockFile(id proto.FileID) (vfs.Locker, error) {
	j.viewMu.RLock()
	defer j.viewMu.RUnlock()
	n, ok := j.tree.get(id)
	switch {
	case !ok:
		return nil, j.tree.missing(id)
	case n.typ != proto.ModeRegular:
		return nil, status.Unsupported
	}
	var l vfs.Locker
	err := j.tree.atName(&n, func(d vfs.Dir, name string) error {
		f, err := openAs(&n, d, name, true)
		if err != nil && !notThere(err) {
			f, err = openAs(&n, d, name, false)
		}
		if err != nil {
			return err
		}
		if l, ok = f.(vfs.Locker); !ok {
			f.Close()
			return status.Unsupported
		}
		return nil
	})
	return l, err
}

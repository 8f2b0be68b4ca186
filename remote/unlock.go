package remote

import (
	"context"

	"cagefs.dev/cage/remote/lockset"
	"cagefs.dev/cage/remote/proto"
	"cagefs.dev/cage/remote/status"
	"cagefs.dev/cage/remote/wire"
)

// unlock is a range being given up.
type unlock struct {
	owner      LockOwner
	start, end uint64
	after      proto.Seq     // the last operation that may have been done under the lock
	done       chan struct{} // closed when err is set
	err        error
}

// Unlock gives up what an owner has of a range, once all that the session has
// logged so far is applied; it goes on where ctx ends first. Errors: NoLocks
// (nothing is given up), those of ctx and of waiting.
func (s *Session) Unlock(ctx context.Context, o LockOwner, start, end uint64) error {
	began := s.now()
	u := s.beginUnlock(o, start, end)
	if u == nil {
		return nil
	}
	if _, err := await(ctx, s, u.done, began, "unlock", o.ID.String()); err != nil {
		return err
	}
	return u.err
}

// DropLocks is Unlock of all that an owner has of a file, for who need not wait:
// the channel is closed when it is done, nil where there is nothing to do.
func (s *Session) DropLocks(o LockOwner) <-chan struct{} {
	if u := s.beginUnlock(o, 0, lockset.Max); u != nil {
		return u.done
	}
	return nil
}

func (s *Session) beginUnlock(o LockOwner, start, end uint64) *unlock {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.beginUnlockLocked(o, start, end)
}

func (s *Session) beginUnlockLocked(o LockOwner, start, end uint64) *unlock {
	if s.over || len(s.locks.held[o].Within(start, end)) == 0 {
		return nil
	}
	u := &unlock{owner: o, start: start, end: end, after: s.log.Last(), done: make(chan struct{})}
	s.locks.begin(o.file())
	if !s.sendUnlockLocked(u) {
		s.wg.Go(func() { s.finishUnlock(u) })
	}
	return u
}

// finishUnlock sends it when it may be.
func (s *Session) finishUnlock(u *unlock) {
	for {
		s.mu.Lock()
		sent, lighter := s.sendUnlockLocked(u), s.lighter
		s.mu.Unlock()
		if sent {
			return
		}
		select {
		case <-lighter:
		case <-s.ended:
			return
		}
	}
}

// sendUnlockLocked sends it if all before it is applied. From then on the lock is
// not held, whatever becomes of the request: it is sent again until it is
// answered, and a client that comes back does not name it.
func (s *Session) sendUnlockLocked(u *unlock) bool {
	if s.log.Acked() < u.after {
		return false
	}
	o := u.owner
	gone := s.locks.held[o].Within(u.start, u.end)
	if s.over || len(gone) == 0 { // lost meanwhile
		s.locks.end(o.file())
		close(u.done)
		return true
	}
	s.locks.set(o, s.locks.held[o].Cut(u.start, u.end))
	req := &wire.LockReq{Lock: o.wire(lockset.Lock{Start: u.start, End: u.end})}
	s.detachLocked(wire.OpUnlock, req, func(err error) {
		if status.Of(err) == status.NoLocks {
			s.locks.put(o, gone)
		}
		u.err = err
		s.locks.end(o.file())
		close(u.done)
	})
	return true
}

// TestLock returns a lock of somebody else that is in the way of one; held is
// false if there is none. Its PID is 0 if it is another client's.
func (s *Session) TestLock(ctx context.Context, o LockOwner, l lockset.Lock) (other lockset.Lock, held bool, err error) {
	if err := s.unlocked(ctx, o); err != nil {
		return other, false, err
	}
	for {
		var rep wire.TestLockRep
		err := s.roundTrip(ctx, wire.OpTestLock, &wire.LockReq{Lock: o.wire(l)}, &rep, o.ID.String())
		if err == nil && !rep.Later {
			if !rep.Mine {
				rep.Lock.PID = 0
			}
			if rep.Held && (rep.Lock.Start > rep.Lock.End || rep.Lock.End > lockset.Max) {
				err = nonsense("a lock from %d to %d", rep.Lock.Start, rep.Lock.End)
			}
			return rep.Lock, rep.Held, err
		}
		if err == nil {
			err = status.Wrap(s.pause(ctx, laterPause), "testlock", o.ID.String())
		}
		if err != nil {
			return other, false, err
		}
	}
}

// lostLocksLocked takes note of the locks that a server which goes on with the
// session does not: their places in the list that it was told. What their files
// were to get and the server has not applied is not applied any more.
func (s *Session) lostLocksLocked(list []wire.Lock, lost []uint32, applied proto.Seq) {
	owners := map[LockOwner]bool{}
	for _, i := range lost {
		l := &list[i]
		o := ownerOf(l)
		if have := s.locks.held[o]; len(have.Within(l.Start, l.End)) > 0 { // else it is given up meanwhile
			s.locks.set(o, have.Cut(l.Start, l.End))
			owners[o] = true
		}
	}
	for o := range owners {
		s.lostLockLocked(o, applied)
	}
}

// lostAllLocksLocked says that the session is lost, and all locks with it.
func (s *Session) lostAllLocksLocked() {
	for o := range s.locks.held {
		delete(s.locks.held, o)
		s.lostLockLocked(o, 0) // the new session has applied nothing
	}
}

func (s *Session) lostLockLocked(o LockOwner, applied proto.Seq) {
	if o.At == 0 {
		s.log.Fence(o.ID, applied, status.Newf(status.LostLock, "write", o.ID.String(), "it was written under a lock that is lost"))
	}
	s.o.Log.Warn().Stringer("file", o.ID).Uint8("kind", uint8(o.Kind)).Msg("a lock is lost")
	if s.o.LostLock != nil {
		s.o.LostLock(o)
	}
}

package remote

import (
	"context"
	"time"

	"cagefs.dev/cage/remote/oplog"
	"cagefs.dev/cage/remote/proto"
	"cagefs.dev/cage/remote/status"
	"cagefs.dev/cage/remote/wire"
)

// Do logs an operation and waits until it is applied. When ctx ends or patience
// is lost first, the error is status.Interrupted or Timeout. An operation that
// was sent by then stays logged: it may still be applied, and if it then fails,
// the error is sticky, see TakeError. One that was not never happens.
func (s *Session) Do(ctx context.Context, id proto.Ident, op proto.Op) (proto.Result, error) {
	return s.doCleared(ctx, func() (proto.Result, error) { return s.do(ctx, id, op) })
}

func (s *Session) do(ctx context.Context, id proto.Ident, op proto.Op) (proto.Result, error) {
	began := s.now()
	var t *oplog.Ticket
	err := s.append(ctx, op, began, nil, func() { t = s.log.AppendWaited(id, op) })
	if err != nil {
		return proto.Result{}, err
	}
	if err := s.watch(ctx, t, began, wire.ChangeOpcode(op).String()); err != nil {
		return proto.Result{}, err
	}
	res, err := t.Outcome()
	if err == nil {
		err = believeOutcome(op, &res)
	}
	return res, err
}

// Log appends an operation and returns its number without waiting for the
// server; it blocks while the budget is used up. The op's Data is copied.
// A Write directly after an unsent Write of the same file and identity that it continues may join it and get its number.
func (s *Session) Log(ctx context.Context, id proto.Ident, op proto.Op) (proto.Seq, error) {
	return s.LogIf(ctx, id, op, nil)
}

// LogIf is Log unless may, which is called with the session's lock held just
// before and must be quick, returns an error; see Options.LostLock. nil: Log.
func (s *Session) LogIf(ctx context.Context, id proto.Ident, op proto.Op, may func() error) (proto.Seq, error) {
	if w, ok := op.(*proto.Write); ok && s.first.Term > 0 && !w.Mapped && !w.Lost {
		return s.logLeased(ctx, id, w, may)
	}
	var seq proto.Seq
	err := s.append(ctx, op, s.now(), may, func() {
		seq = s.log.Append(id, op)
		if w, ok := op.(*proto.Write); ok && w.Mapped {
			s.stored = seq
		}
	})
	return seq, err
}

// mappedShare is which part of the budget is kept for what was stored through mappings. The kernel writes that back when it wants its
// pages, for sync(2), or for a recall: it is not to wait for programs that write as fast as they can.
const mappedShare = 8

// append calls add, with the lock, once op may enter the log.
func (s *Session) append(ctx context.Context, op proto.Op, began time.Duration, may func() error, add func()) error {
	if err := wire.CheckOp(op); err != nil {
		return err
	}
	name := wire.ChangeOpcode(op).String()
	for {
		lighter, err := s.tryAppend(op, name, may, add)
		if err != nil || lighter == nil {
			return err
		}
		if _, err := await(ctx, s, lighter, began, name, ""); err != nil {
			return err
		}
	}
}

// tryAppend calls add, or returns what is closed when the log is lighter.
func (s *Session) tryAppend(op proto.Op, name string, may func() error, add func()) (lighter <-chan struct{}, err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closing {
		return nil, closedError(name, "")
	}
	if w, ok := op.(*proto.Write); ok {
		room := s.o.Budget
		if !w.Mapped {
			room -= room / mappedShare
		}
		if weight := s.log.Weight(); weight > 0 && weight+int64(len(w.Data)) > room {
			return s.lighter, nil
		}
	}
	if may != nil {
		if err := may(); err != nil {
			return nil, err
		}
	}
	add()
	s.wakeMainLocked()
	return nil, nil
}

// watch waits for a ticket's outcome, and gives it back where that takes too long.
func (s *Session) watch(ctx context.Context, t *oplog.Ticket, began time.Duration, op string) error {
	_, err := await(ctx, s, t.Done(), began, op, "")
	if err == nil {
		return nil
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	select {
	case <-t.Done(): // answered meanwhile: who gave up still is the one to hear of it
		return nil
	default:
		s.log.Leave(t)
		return err
	}
}

// Wait blocks until the operation is applied (nil), has failed (its error), or
// ctx ends. It takes no sticky error away: the one who waits need not be the one
// who wrote. Of an operation that failed long ago, more than a thousand
// failures before, it returns nil.
func (s *Session) Wait(ctx context.Context, seq proto.Seq) error {
	s.mu.Lock()
	t, last := s.log.Watch(seq), s.log.Last()
	var failed error
	if t == nil {
		failed = s.log.Failed(seq)
	}
	s.mu.Unlock()
	switch {
	case seq > last:
		return status.Newf(status.Invalid, "wait", "", "operation %d was never logged, the last is %d", seq, last)
	case t == nil:
		return failed
	}
	if err := s.watch(ctx, t, s.now(), "wait"); err != nil {
		return err
	}
	_, err := t.Outcome()
	return err
}

// Applied is the newest operation up to which all are answered. It never blocks.
func (s *Session) Applied() proto.Seq {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.log.Acked()
}

// TakeError returns, once, the first failure on the file since the last call
// of an operation that was logged without waiting, or that nobody waited for
// any more (the sticky error of fsync and close); id 0: of any file. With
// more than a thousand files in that state, an error may be told for another file.
func (s *Session) TakeError(id proto.FileID) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.log.TakeError(id)
}

// Failures counts the operations so far that failed and nobody waited for; it is for FailedSince.
func (s *Session) Failures() uint64 {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.log.Failures()
}

// FailedSince returns the first failure on a file after so many Failures, of an
// operation that nobody waited for, and how many there are now. It takes nothing from TakeError, so that each who
// has the file open is told. Of more than a thousand failures since then only the latest thousand are known.
func (s *Session) FailedSince(id proto.FileID, n uint64) (uint64, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.log.Failures(), s.log.FailedSince(id, n)
}

// Sync waits until everything logged so far is applied and durable on the
// server. If that is so already, the server is not asked.
func (s *Session) Sync(ctx context.Context, id proto.Ident) error {
	s.mu.Lock()
	last, clean := s.log.Last(), s.log.Last() == s.synced
	s.mu.Unlock()
	if clean {
		return nil
	}
	if _, err := s.Do(ctx, id, &proto.Sync{ID: proto.RootID, All: true}); err != nil {
		return err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.synced = max(s.synced, last+1) // the number of the Sync, if nothing came between; else there is more to sync
	return nil
}

// answeredLocked gives a change its outcome.
func (s *Session) answeredLocked(seq proto.Seq, res proto.Result, err error) {
	if f, sticky := s.log.Answer(seq, res, err); sticky {
		s.failedLocked(f)
	}
	s.lighterLocked()
}

func (s *Session) failedLocked(f oplog.Failure) {
	if f.Err != nil {
		s.opErr = f.Err.Error()
	}
	s.upcalls.failed(f)
}

// lighterLocked wakes who waits for room in the log or for its end.
func (s *Session) lighterLocked() {
	close(s.lighter)
	s.lighter = make(chan struct{})
}

// maxCopies is how many operations of a copy are on their way at once.
const maxCopies = 16

// Copy copies n bytes from one file to another at the server, in order with all
// other operations. It returns how many: fewer at the end of the source, or
// where an operation failed after others had not; after an error more may have
// been copied than it says. The result is that of the last operation.
func (s *Session) Copy(ctx context.Context, id proto.Ident, op proto.Copy, n uint64) (done uint64, last proto.Result, err error) {
	var flying []*oplog.Ticket
	began, asked := s.now(), n
	for short := false; len(flying) > 0 || !short && n > 0; {
		for !short && n > 0 && len(flying) < maxCopies {
			part := op
			part.Len = uint32(min(n, proto.MaxIO))
			op.Off, op.SrcOff, n = op.Off+uint64(part.Len), op.SrcOff+uint64(part.Len), n-uint64(part.Len)
			var t *oplog.Ticket
			if err := s.append(ctx, &part, s.now(), nil, func() { t = s.log.AppendWaited(id, &part) }); err != nil {
				return done, last, err
			}
			flying = append(flying, t)
		}
		res, failed := s.outcome(ctx, flying[0], began)
		flying = flying[1:]
		if failed != nil && err == nil {
			err = failed
		}
		if !short && failed == nil {
			done, last = done+res.N, res
		}
		short = short || failed != nil || res.N < proto.MaxIO
	}
	if done > asked {
		return 0, last, nonsense("%d bytes instead of %d", done, asked)
	}
	return done, last, err
}

// outcome waits for a ticket's outcome.
func (s *Session) outcome(ctx context.Context, t *oplog.Ticket, began time.Duration) (proto.Result, error) {
	if err := s.watch(ctx, t, began, "copy"); err != nil {
		return proto.Result{}, err
	}
	return t.Outcome()
}

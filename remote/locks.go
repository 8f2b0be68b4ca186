package remote

import (
	"context"
	"time"

	"cagefs.dev/cage/remote/lockset"
	"cagefs.dev/cage/remote/proto"
	"cagefs.dev/cage/remote/status"
	"cagefs.dev/cage/remote/wire"
)

// The server decides about locks; this side remembers which it has been given,
// so that it can say so when it comes back, and hears then which are lost. What
// is remembered changes when a grant arrives, and before a request that gives
// something up is sent: it is never more than the server has.

// LockOwner is who has a lock on which file.
type LockOwner struct {
	At   proto.LSN // 0: of the present; see wire.Lock
	ID   proto.FileID
	Kind lockset.Kind
	Num  uint64 // the caller's number of a process or of an open file
}

func (o LockOwner) wire(l lockset.Lock) wire.Lock {
	return wire.Lock{At: o.At, ID: o.ID, Owner: o.Num, Kind: o.Kind, Lock: l}
}

func ownerOf(l *wire.Lock) LockOwner {
	return LockOwner{At: l.At, ID: l.ID, Kind: l.Kind, Num: l.Owner}
}

// lockedFile is a file in one of its states.
type lockedFile struct {
	at proto.LSN
	id proto.FileID
}

func (o LockOwner) file() lockedFile { return lockedFile{o.At, o.ID} }

// locks is what a session knows of its locks. Guarded by Session.mu.
type locks struct {
	held   map[LockOwner]lockset.Set
	giving map[lockedFile]*giving
	waits  map[uint64]*lockWait
	last   uint64 // number of a wait
}

// giving is unlocks of a file that are not answered: who wants a lock there, or
// to know, waits for them, as they are before him.
type giving struct {
	n    int
	done chan struct{} // closed when n is 0
}

// lockWait is a request for a lock.
type lockWait struct {
	id    uint64 // 0: it does not wait
	owner LockOwner
	lock  lockset.Lock
	news  chan struct{} // holds one: the fields below have changed

	// Guarded by Session.mu.
	queued    bool // at the server of the present connection
	granted   bool
	abandoned bool // nobody waits any more
	err       error
	before    lockset.Set // what the owner had of the range before the grant
	lowered   lockset.Set // what is remembered as shared although the server has not said so yet
}

func newLocks() locks {
	return locks{held: map[LockOwner]lockset.Set{}, giving: map[lockedFile]*giving{}, waits: map[uint64]*lockWait{}}
}

// set replaces what an owner has.
func (k *locks) set(o LockOwner, s lockset.Set) {
	if len(s) == 0 {
		delete(k.held, o)
		return
	}
	k.held[o] = s
}

// put adds what an owner has after all.
func (k *locks) put(o LockOwner, more lockset.Set) {
	for _, l := range more {
		k.set(o, k.held[o].Put(l))
	}
}

// list is all that is held.
func (k *locks) list() (out []wire.Lock) {
	for o, set := range k.held {
		for _, l := range set {
			if len(out) < wire.MaxLocks {
				out = append(out, o.wire(l))
			}
		}
	}
	return out
}

// begin and end count an unlock of a file.
func (k *locks) begin(f lockedFile) {
	g := k.giving[f]
	if g == nil {
		g = &giving{done: make(chan struct{})}
		k.giving[f] = g
	}
	g.n++
}

func (k *locks) end(f lockedFile) {
	if g := k.giving[f]; g.n > 1 {
		g.n--
	} else {
		close(g.done)
		delete(k.giving, f)
	}
}

// leave says that nobody waits any more, but the server may still grant it. Until dismiss nobody
// of this session asks for a lock of the file: what becomes of it may have to be undone.
func (k *locks) leave(w *lockWait) {
	if !w.abandoned {
		w.abandoned = true
		k.begin(w.owner.file())
	}
}

// dismiss says that it is clear what became of a wait that was left; others are still waited for.
func (k *locks) dismiss(w *lockWait) {
	if w.abandoned && k.waits[w.id] == w {
		delete(k.waits, w.id)
		k.end(w.owner.file())
	}
}

func (w *lockWait) tell() {
	select {
	case w.news <- struct{}{}:
	default:
	}
}

// laterPause is how long this side waits before it asks a server again that
// gives no locks yet.
const laterPause = 100 * time.Millisecond

// Lock takes a lock on a file that the session has open. With wait it blocks
// until the lock is granted or ctx ends, without Patience while the server is
// there; a lock that is granted as ctx ends is granted. attr is the file's, from
// after the grant, without a number if the server did not say. Errors: status.Locked,
// Deadlock, NoLocks, Access (not open for that), those of any request.
func (s *Session) Lock(ctx context.Context, o LockOwner, l lockset.Lock, wait bool) (attr proto.Attr, err error) {
	w := s.newLockWait(o, l, wait)
	defer s.endLockWait(w)
	if err := s.beforeLock(ctx, w); err != nil {
		return attr, err
	}
	for {
		rep, err := s.askLock(ctx, w)
		switch {
		case err != nil:
			return attr, err
		case rep.Later:
			err = status.Wrap(s.pause(ctx, laterPause), "lock", o.ID.String())
		case !rep.Queued:
			if rep.Attr.ID != 0 {
				err = believeAttr(&rep.Attr, o.ID)
			}
			return rep.Attr, err
		default:
			granted, werr := s.awaitLock(ctx, w)
			if granted {
				return attr, nil
			}
			err = werr
		}
		if err != nil {
			return attr, err
		}
	}
}

// beforeLock waits until what the request gives up may be given up: all that was
// written so far is applied, and unlocks of the file are done.
func (s *Session) beforeLock(ctx context.Context, w *lockWait) error {
	o, l := w.owner, w.lock
	if err := s.unlocked(ctx, o); err != nil {
		return err
	}
	s.mu.Lock()
	weaker, last := s.locks.weaker(o, l), s.log.Last()
	s.mu.Unlock()
	if !weaker {
		return nil
	}
	if err := s.applied(ctx, last); err != nil {
		return err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	have := s.locks.held[o]
	switch {
	case o.Kind == lockset.Flock:
		s.locks.set(o, nil) // the server gives up the old one first
	case have.Covers(lockset.Lock{Start: l.Start, End: l.End}): // nobody can be in the way of that
		w.lowered = have.Within(l.Start, l.End)
		s.locks.set(o, have.Put(l))
	}
	return nil
}

// weaker reports whether a request gives something up that the owner has.
func (k *locks) weaker(o LockOwner, l lockset.Lock) bool {
	if o.Kind == lockset.Opens {
		return false
	}
	for _, have := range k.held[o].Within(l.Start, l.End) {
		if have.Exclusive != l.Exclusive && (have.Exclusive || o.Kind == lockset.Flock) {
			return true
		}
	}
	return false
}

// unlocked waits until unlocks of the file that came before are done.
func (s *Session) unlocked(ctx context.Context, o LockOwner) error {
	for began := s.now(); ; {
		s.mu.Lock()
		g := s.locks.giving[o.file()]
		s.mu.Unlock()
		if g == nil {
			return nil
		}
		if _, err := await(ctx, s, g.done, began, "lock", o.ID.String()); err != nil {
			return err
		}
	}
}

// applied waits until all operations up to a number are answered.
func (s *Session) applied(ctx context.Context, seq proto.Seq) error {
	for began := s.now(); ; {
		s.mu.Lock()
		done, lighter := s.log.Acked() >= seq, s.lighter
		s.mu.Unlock()
		if done {
			return nil
		}
		if _, err := await(ctx, s, lighter, began, "lock", ""); err != nil {
			return err
		}
	}
}

// pause waits. Errors: ctx's, and that of the session's end.
func (s *Session) pause(ctx context.Context, d time.Duration) error {
	select {
	case <-time.After(d):
		return nil
	case <-ctx.Done():
		return ctx.Err()
	case <-s.ended:
		return closedError("", "")
	}
}

func (s *Session) newLockWait(o LockOwner, l lockset.Lock, wait bool) *lockWait {
	w := &lockWait{owner: o, lock: l, news: make(chan struct{}, 1)}
	if !wait {
		return w
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.locks.last++
	w.id = s.locks.last
	s.locks.waits[w.id] = w
	return w
}

func (s *Session) endLockWait(w *lockWait) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if !w.abandoned {
		delete(s.locks.waits, w.id)
	}
}

// askLock sends the request and takes note of the answer when it arrives.
func (s *Session) askLock(ctx context.Context, w *lockWait) (rep wire.LockRep, err error) {
	object := w.owner.ID.String()
	k := newCall(wire.OpLock, &wire.LockReq{Lock: w.owner.wire(w.lock), Wait: w.id})
	k.answered = func(r reply) {
		var rep wire.LockRep
		switch err := wire.DecodeReply(r.h, r.payload, &rep); {
		case err != nil:
			s.locks.put(w.owner, w.lowered)
		case rep.Later:
		case rep.Queued:
			w.queued = !w.granted && w.err == nil // the end may have come before
		default:
			s.locks.grant(w)
		}
	}
	clear, waiting := false, false
	k.forgotten = func(err error) {
		if err == nil || status.Of(err) == status.Interrupted {
			s.undoLockLocked(w)
		}
		if clear = true; waiting {
			s.locks.end(w.owner.file())
		}
	}
	if err := s.start(k, object); err != nil {
		return rep, err
	}
	if err = s.finish(ctx, k, &rep, object, nil); err == nil {
		return rep, nil
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if k.abandoned && !clear { // who asks again waits until it is clear what became of this
		waiting = true
		s.locks.begin(w.owner.file())
	}
	return rep, err
}

// grant takes note of a grant.
func (k *locks) grant(w *lockWait) {
	if w.granted {
		return
	}
	have := k.held[w.owner]
	w.granted, w.before = true, have.Within(w.lock.Start, w.lock.End)
	if w.owner.Kind != lockset.Opens || !have.Covers(w.lock) { // as the server has it
		k.set(w.owner, have.Put(w.lock))
	}
}

// lockDone takes the end of a wait from the server.
func (s *Session) lockDone(c *conn, m *wire.LockDone) {
	s.mu.Lock()
	defer s.mu.Unlock()
	w := s.locks.waits[m.Wait]
	if w == nil || c.dead {
		return
	}
	w.queued = false
	if m.Code != status.OK {
		w.err = status.New(m.Code, "lock", w.owner.ID.String())
	} else {
		s.locks.grant(w)
	}
	if w.abandoned {
		s.undoLockLocked(w)
		s.locks.dismiss(w)
		return
	}
	w.tell()
}

// awaitLock waits for a queued lock. Neither granted nor an error: ask again.
func (s *Session) awaitLock(ctx context.Context, w *lockWait) (granted bool, err error) {
	refused := s.refusal.Load()
	for {
		select {
		case <-w.news:
			err = nil
		case <-ctx.Done():
			err = status.Wrap(ctx.Err(), "lock", w.owner.ID.String())
		case <-refused.done:
			err = status.Wrap(refused.err, "lock", w.owner.ID.String())
		case <-s.ended:
			return false, closedError("lock", w.owner.ID.String())
		}
		if err != nil {
			s.unwait(w)
		}
		s.mu.Lock()
		granted, queued := w.granted, w.queued
		if w.err != nil {
			err = w.err
		}
		if err != nil && !granted && queued {
			s.locks.leave(w)
		}
		s.mu.Unlock()
		if granted {
			return true, nil
		}
		if err != nil || !queued {
			return false, err
		}
	}
}

// unwaitTimeout is how long somebody who is interrupted waits to hear whether
// he has the lock.
const unwaitTimeout = time.Second

// unwait ends a wait at the server; afterwards it is not queued, or the server
// has not said so in time and what comes of it is undone.
func (s *Session) unwait(w *lockWait) {
	done := make(chan struct{})
	s.mu.Lock()
	if !w.queued || s.over {
		s.mu.Unlock()
		return
	}
	s.unwaitLocked(w, func() { close(done) })
	s.mu.Unlock()
	timer := time.NewTimer(unwaitTimeout)
	defer timer.Stop()
	select {
	case <-done:
	case <-timer.C:
	case <-s.ended:
	}
}

func (s *Session) unwaitLocked(w *lockWait, done func()) {
	s.detachLocked(wire.OpUnwait, &wire.UnwaitReq{Wait: w.id}, func(error) {
		w.queued = false
		s.locks.dismiss(w)
		done()
	})
}

// undoLockLocked gives a lock back that nobody waited for any more.
func (s *Session) undoLockLocked(w *lockWait) {
	if s.over {
		return
	}
	if w.queued {
		s.locks.waits[w.id] = w
		s.locks.leave(w)
		s.unwaitLocked(w, func() {})
		return
	}
	o, l := w.owner, w.lock
	if o.Kind == lockset.Opens { // it ends with the last open, who else has the file open may rely on it
		if s.opens[o.ID] == nil || s.opens[o.ID].count == 0 {
			s.beginUnlockLocked(o, 0, lockset.Max)
		}
		return
	}
	if w.granted {
		s.locks.set(o, s.locks.held[o].Cut(l.Start, l.End))
		s.locks.put(o, w.before)
		w.granted = false
	}
	again := func(op wire.Opcode, l lockset.Lock) {
		s.locks.begin(o.file())
		s.detachLocked(op, &wire.LockReq{Lock: o.wire(l)}, func(error) { s.locks.end(o.file()) })
	}
	have := s.locks.held[o]
	for _, b := range have.Within(l.Start, l.End) {
		again(wire.OpLock, b)
	}
	for _, gap := range have.Gaps(l.Start, l.End) {
		again(wire.OpUnlock, gap)
	}
}

// disconnected says that the server has ended all waits.
func (k *locks) disconnected() {
	for _, w := range k.waits {
		w.queued = false
		if w.abandoned {
			k.dismiss(w)
		} else {
			w.tell()
		}
	}
}

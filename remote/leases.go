package remote

import (
	"context"
	"errors"
	"math"
	"time"

	"cagefs.dev/cage/remote/boottime"
	"cagefs.dev/cage/remote/lease"
	"cagefs.dev/cage/remote/proto"
	"cagefs.dev/cage/remote/status"
	"cagefs.dev/cage/remote/wire"
)

// Leases are in package lease, under the session's lock, which also guards the
// log: what is logged under a lease is logged while it is held. Replies bring
// them; Acquire asks for more; the server recalls them, and is answered when the
// session's owner has made everybody forget (Options.Recalled).

// Pauses of the leases' clock.
const (
	leaseTick = 200 * time.Millisecond
	// idleWrites is how long a write lease is kept that is not used: then others
	// may read without asking.
	idleWrites = time.Second
	maxIdle    = 64 // write leases that are made read leases at a time
)

// Leasing reports whether the server's replies give this session leases. It never changes.
func (s *Session) Leasing() bool { return s.o.Leases && s.first.Term > 0 }

// Holds reports whether the session has a lease of a file that includes mode.
func (s *Session) Holds(id proto.FileID, mode proto.LeaseMode) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.leases.Holds(id, mode, boottime.Now())
}

// Tenure numbers the time for which the session has had a lease of a file
// without a break, 0 if it has none; left is how long it may rely on it if the
// server is not heard again.
func (s *Session) Tenure(id proto.FileID) (n uint64, left time.Duration) {
	now := boottime.Now()
	s.mu.Lock()
	defer s.mu.Unlock()
	if n = s.leases.Tenure(id, now); n == 0 {
		return 0, 0
	}
	return n, s.leases.Until() - now
}

// Acquire waits until the session has leases, all at once, and keeps them until
// release, which does not block and is to be called soon. A lease that is NoLease is a look, see
// wire.AcquireReq. Errors: those of ctx and of waiting, and the server's.
func (s *Session) Acquire(ctx context.Context, wants []proto.Want) (release func(), err error) {
	k := newCall(wire.OpAcquire, &wire.AcquireReq{Wants: wants})
	used := make([]bool, len(wants))
	k.answered = func(r reply) {
		var rep wire.AcquireRep
		if r.h.IsError() || wire.DecodeReply(r.h, r.payload, &rep) != nil || len(rep.Gens) != len(wants) || k.abandoned {
			return
		}
		now := boottime.Now()
		for i, w := range wants {
			if w.Mode != proto.NoLease {
				s.grantedLocked(w.ID, proto.Lease{Gen: rep.Gens[i], Mode: w.Mode})
				used[i] = s.leases.Use(w.ID, now)
			}
		}
	}
	if err := s.start(k, ""); err != nil {
		return nil, err
	}
	var rep wire.AcquireRep
	if err := s.finish(ctx, k, &rep, "", nil); err != nil {
		s.mu.Lock()
		defer s.mu.Unlock()
		s.unuseLocked(wants, used)
		return nil, err
	}
	return func() {
		s.mu.Lock()
		defer s.mu.Unlock()
		s.unuseLocked(wants, used)
	}, nil
}

func (s *Session) unuseLocked(wants []proto.Want, used []bool) {
	for i, w := range wants {
		if used[i] {
			used[i] = false
			if r, again := s.leases.Unuse(w.ID); again {
				s.recallLocked(r)
			}
		}
	}
}

// granted takes note of a lease that came with a reply, and says whether it is held.
func (s *Session) granted(a *proto.Attr) {
	if a.Lease.Mode == proto.NoLease {
		return
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if !s.grantedLocked(a.ID, a.Lease) {
		a.Lease = proto.Lease{}
	}
}

// grantedEntries is granted for a part of a listing.
func (s *Session) grantedEntries(entries []proto.DirEntry) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for i := range entries {
		a := &entries[i].Attr
		if a.Lease.Mode != proto.NoLease && !s.grantedLocked(a.ID, a.Lease) {
			a.Lease = proto.Lease{}
		}
	}
}

func (s *Session) grantedLocked(id proto.FileID, l proto.Lease) bool {
	ok, back := s.leases.Granted(id, l)
	if back && !s.over {
		s.sendReturnLocked(lease.Recall{ID: id, UpTo: l.Gen}, true)
	}
	return ok
}

// recalled takes a recall of the server.
func (s *Session) recalled(m *wire.Recall) {
	r := lease.Recall{ID: m.ID, UpTo: m.Gen, To: m.Mode}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.leases.Recalled(r) {
		s.recallLocked(r)
	}
}

// recallLocked answers a recall, or lets the session's owner do so who has to
// forget first.
func (s *Session) recallLocked(r lease.Recall) {
	if r.To != proto.NoLease || s.o.Recalled == nil {
		s.returnLocked(r)
		return
	}
	s.upcalls.recalled(r)
}

// Return answers a recall that Options.Recalled has told of: nothing is relied on any
// more that was known under the lease. It does not block.
func (s *Session) Return(r lease.Recall) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if !s.over {
		s.returnLocked(r)
	}
}

func (s *Session) returnLocked(r lease.Recall) {
	s.sendReturnLocked(r, s.leases.Returned(r))
}

// sendReturnLocked sends a return. logged: something may have been logged under the lease. What was
// stored through a mapping counts as well, whatever lease there was: the kernel gives back whole pages when it is
// made to forget them, and who gets the lease is not to write before these are applied.
func (s *Session) sendReturnLocked(r lease.Recall, logged bool) {
	m := &wire.ReturnReq{ID: r.ID, Gen: r.UpTo, Mode: r.To}
	if logged || s.stored > s.log.Acked() {
		m.Seq = s.log.WireLast()
	}
	s.urgentLocked(wire.OpReturn, m)
}

// urgentLocked queues an answer about leases. It waits for no other request's
// answer, for that may wait for it. What a lost connection leaves of it nobody
// misses: the server asks again.
func (s *Session) urgentLocked(op wire.Opcode, m wire.Message) {
	if s.main != nil {
		s.main.urgent = append(s.main.urgent, frame{wire.Header{Op: op}, m})
		s.main.wakeWriter()
	}
}

// looked answers a look of others: what is acknowledged by now is in the log.
func (s *Session) looked(m *wire.Peek) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.urgentLocked(wire.OpPeeked, &wire.PeekedReq{ID: m.ID, Num: m.Num, Seq: s.log.WireLast()})
}

// resetLocked tells the session's owner that nothing known is to be relied on.
func (s *Session) resetLocked() {
	s.resets++
	s.stale = false
	if s.o.Reset == nil {
		s.settled = s.resets
	} else if s.settling == nil {
		s.settling = make(chan struct{})
	}
	s.upcalls.reset()
}

// Resets counts the resets so far, also those that Options.Reset is still to be told.
func (s *Session) Resets() uint64 {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.resets
}

// Settled says that what was known before the first upTo resets is forgotten
// everywhere: only then does a server that was restarted stop waiting for this client. It does not block.
func (s *Session) Settled(upTo uint64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.settled = max(s.settled, upTo)
	if s.settled == s.resets && s.settling != nil {
		close(s.settling)
		s.settling = nil
	}
	s.sendSettledLocked()
}

// sendSettledLocked tells the server, if it is so.
func (s *Session) sendSettledLocked() {
	if !s.over && !s.stale && s.settled == s.resets {
		s.urgentLocked(wire.OpSettled, &wire.SettledReq{Seq: s.log.WireLast()})
	}
}

// keepLeases is the clock of the leases: it says when they are over, and makes
// those smaller that nobody writes under.
func (s *Session) keepLeases() {
	ticker := time.NewTicker(leaseTick)
	defer ticker.Stop()
	for {
		select {
		case <-ticker.C:
		case <-s.ctx.Done():
			return
		}
		now := boottime.Now()
		s.mu.Lock()
		s.expireLocked(now)
		if s.main != nil {
			for _, r := range s.leases.Idle(now-idleWrites, maxIdle) {
				if s.leases.Recalled(r) {
					s.returnLocked(r)
				}
			}
		}
		s.mu.Unlock()
	}
}

// resumedLeasesLocked takes what a server says of the leases when it goes on with the session.
func (s *Session) resumedLeasesLocked(req *wire.HelloReq, rep *wire.HelloRep) {
	claims := make([]lease.Claim, len(req.Claims))
	for i, c := range req.Claims {
		claims[i] = lease.Claim{ID: c.ID, Gen: c.Gen, First: c.First, Mode: c.Mode}
	}
	lost := make([]int, len(rep.Lost))
	for i, n := range rep.Lost {
		lost[i] = int(n)
		id := claims[n].ID
		if claims[n].Mode != proto.WriteLease {
			continue
		}
		s.o.Log.Warn().Stringer("file", id).Msg("a write lease is lost")
		s.log.Fence(id, rep.Applied, status.Newf(status.LostLock, "write", id.String(), "it was written under a lease that is lost"))
	}
	if gone := s.leases.Resumed(claims, lost, rep.Void); len(gone) > 0 || !s.Leasing() {
		s.resetLocked()
	} else {
		s.upcalls.missed()
	}
	s.sendSettledLocked()
}

// maxClearings is how often a change is begun again for which leases are needed.
const maxClearings = 1000

// doCleared is do, again and again until no lease is in its way.
func (s *Session) doCleared(ctx context.Context, do func() (proto.Result, error)) (res proto.Result, err error) {
	for range maxClearings {
		res, err = do()
		var need *wire.NeedLeases
		if !errors.As(err, &need) {
			return res, err
		}
		wants := make([]proto.Want, len(need.IDs))
		for i, id := range need.IDs {
			wants[i] = proto.Want{ID: id, Mode: proto.WriteLease}
		}
		release, aerr := s.Acquire(ctx, wants)
		if aerr != nil {
			return proto.Result{}, aerr
		}
		res, err = do()
		release()
		if !errors.As(err, &need) {
			return res, err
		}
	}
	return res, err
}

// errNeedLease keeps a write from being logged without the lease.
var errNeedLease = errors.New("it needs the write lease")

// logLeased logs a write under the write lease, for which it waits if need be.
func (s *Session) logLeased(ctx context.Context, id proto.Ident, op *proto.Write, may func() error) (seq proto.Seq, err error) {
	var gen proto.Gen
	held := func() error {
		ok := false
		if gen, ok = s.leases.Log(op.ID, boottime.Now()); !ok {
			return errNeedLease
		}
		if may != nil {
			return may()
		}
		return nil
	}
	release := func() {}
	for {
		err = s.append(ctx, op, s.now(), held, func() { seq = s.log.AppendUnder(id, op, gen) })
		release()
		if !errors.Is(err, errNeedLease) {
			return seq, err
		}
		if release, err = s.Acquire(ctx, []proto.Want{{ID: op.ID, Mode: proto.WriteLease}}); err != nil {
			return 0, err
		}
	}
}

// pingPause is how much silence there may be on a connection before a ping.
func (s *Session) pingPause() time.Duration {
	if s.first.Term == 0 { // it only lists exports
		return pingAfter
	}
	return min(pingAfter, max(time.Duration(s.first.Term)*time.Millisecond/4, time.Millisecond))
}

// term is that of the session's leases.
func term(rep *wire.HelloRep) time.Duration {
	return min(time.Duration(rep.Term)*time.Millisecond, math.MaxInt64/2)
}

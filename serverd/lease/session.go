package lease

import (
	"maps"
	"slices"
	"time"

	"cagefs.dev/cage/remote/proto"
)

// Heard says that a request of a session came: its term begins anew. If it is
// false the request must not be answered, and the connection is to end: the session has lost something.
func (t *Table) Heard(id proto.SessionID, now time.Duration) bool {
	s := t.sessions[id]
	if s == nil || !s.there {
		return false
	}
	s.heard = max(s.heard, now)
	return true
}

// Progress says that changes of a session were applied: it gets more time to
// give back what it is asked for.
func (t *Table) Progress(id proto.SessionID, now time.Duration) {
	if s := t.sessions[id]; s != nil {
		s.progress = now
	}
}

// Barred reports whether a session is to have no connection for now: what it
// has is being taken away.
func (t *Table) Barred(id proto.SessionID) bool {
	s := t.sessions[id]
	return s != nil && !s.ended && (s.condemned || s.fencing)
}

// Claim is a lease that a session which comes back says it has. First is since
// when it has been one for writing, as far as what was logged since is not known to be applied.
type Claim struct {
	ID         proto.FileID
	Gen, First proto.Gen
	Mode       proto.LeaseMode
	// Unasked: of a lease from before a restart, the file's newest change was made without asking anybody, and
	// the session may not have been told of that.
	Unasked bool
}

// Begin says that a session is there, anew or again; it is not Barred. lost are
// the claims that are not true: what was logged under these leases is refused. All other leases up to void,
// that is all that are not claimed, are void. A claim from before a restart holds only in the grace time after it,
// which goes on until Settled.
func (t *Table) Begin(id proto.SessionID, claims []Claim, now time.Duration) (lost []int, void proto.Gen, out []Action) {
	s := t.sessions[id]
	if s == nil {
		s = &session{id: id, holdings: make(map[proto.FileID]*holding)}
		t.sessions[id] = s
	}
	s.heard, s.there = max(s.heard, now), true
	claimed, unasked := make(map[proto.FileID]bool, len(claims)), make(map[proto.FileID]bool)
	for i, c := range claims {
		claimed[c.ID], unasked[c.ID] = t.claim(s, c), c.Unasked
		if !claimed[c.ID] {
			lost = append(lost, i)
		}
	}
	for _, h := range s.sorted() {
		switch h.sent = 0; { // what was asked of it may have been lost with its connection
		case claimed[h.id] && (t.revoked[h.id] || unasked[h.id]):
			t.recall(h, proto.NoLease, now)
		case claimed[h.id]:
		case h.mode == proto.WriteLease: // its grant got lost, or its return, and what was logged before that
			t.recall(h, proto.NoLease, now)
		default:
			t.drop(h, now)
			t.promote(h.id, now)
		}
	}
	return lost, proto.Gen{Boot: t.o.Boot, Counter: t.counter}, t.take()
}

// Settled says that a session relies on nothing from before a restart but what
// Begin left it, and that all that it had acknowledged is applied: the grace time does not wait for it any more.
func (t *Table) Settled(id proto.SessionID, now time.Duration) []Action {
	if s := t.sessions[id]; s != nil {
		s.void = nil // it knows
	}
	if t.absent[id] {
		t.returned(id, now)
	}
	return t.take()
}

// claim is one of Begin's.
func (t *Table) claim(s *session, c Claim) bool {
	if h := s.holdings[c.ID]; h != nil {
		return h.mode >= c.Mode && c.Gen.Compare(h.gen) <= 0
	}
	if !t.absent[s.id] || c.Gen.Boot >= t.o.Boot || c.Gen.Compare(s.void[c.ID]) <= 0 || c.Unasked && c.Mode == proto.ReadLease {
		return false
	}
	f := t.file(c.ID)
	if c.Mode == proto.NoLease || !f.allows(s.id, c.Mode) {
		t.tidy(c.ID)
		return false
	}
	h := &holding{id: c.ID, s: s, mode: c.Mode, gen: c.Gen}
	if c.Mode == proto.WriteLease {
		h.first = c.First
	}
	f.holders[s.id], s.holdings[c.ID] = h, h
	s.order = append(s.order, given{c.ID, c.Gen})
	return true
}

// returned says that a session of before the start is not waited for any more.
func (t *Table) returned(id proto.SessionID, now time.Duration) {
	delete(t.absent, id)
	if !t.Grace() {
		clear(t.revoked)
		for _, w := range t.waiting() {
			t.start(w, now)
		}
		for _, w := range t.waiting() {
			t.finish(w, now)
		}
	}
}

// End says that a session is over and will claim nothing. sure: its client
// relies on nothing any more; else its leases last as long as its term.
func (t *Table) End(id proto.SessionID, sure bool, now time.Duration) []Action {
	s := t.sessions[id]
	if s == nil {
		return nil
	}
	for _, w := range t.waiting() {
		if w.id.Session == id {
			t.cancel(w, now)
		}
	}
	if sure || len(s.holdings) == 0 || now >= s.heard+t.o.Term {
		t.remove(s, now)
	} else {
		s.condemned, s.ended, s.there = true, true, false
	}
	return t.take()
}

// remove forgets a session with all that it has.
func (t *Table) remove(s *session, now time.Duration) {
	t.strip(s, now)
	delete(t.sessions, s.id)
	if t.absent[s.id] {
		t.returned(s.id, now)
	}
}

// strip takes all leases of a session away.
func (t *Table) strip(s *session, now time.Duration) {
	for _, h := range s.sorted() {
		t.drop(h, now)
		t.promote(h.id, now)
	}
	s.order = nil
}

// Tick is to be called a few times a second while Busy: it sends again what was
// not answered, and takes away what nobody gives back.
func (t *Table) Tick(now time.Duration) []Action {
	grace := now - t.o.Now - t.o.Term/20
	for _, id := range slices.Sorted(maps.Keys(t.sessions)) {
		s := t.sessions[id]
		switch {
		case s.fencing:
		case t.absent[id] && (grace >= t.o.Term && !s.there || grace >= 3*t.o.Term):
			t.fence(s)
		case s.ended:
			if now >= s.heard+t.o.Term {
				t.remove(s, now)
			}
		case s.condemned || s.pressed > 0:
			t.tickSession(s, now)
		case now >= s.heard+t.o.Term && !t.absent[id] && s.onlyReads():
			t.fence(s) // nothing of it is pressed: all goes
		}
	}
	return t.take()
}

// tickSession is Tick for a session that is asked for something, or was. What it
// gives back meanwhile nobody takes from it: it only has to come back, and hear what it has.
func (t *Table) tickSession(s *session, now time.Duration) {
	if s.pressed == 0 {
		s.condemned = false
		return
	}
	if now >= s.heard+t.o.Term {
		t.fence(s)
		return
	}
	if s.condemned {
		return
	}
	for _, h := range s.sorted() {
		if !h.pressed() {
			continue
		}
		if now >= min(h.since+3*t.o.Term, max(h.since, s.progress)+t.o.Term) {
			s.condemned, s.there = true, false
			t.do(Action{Kind: Drop, Session: s.id})
			return
		}
		if now >= h.sent+Resend {
			t.ask(h, now)
		}
	}
}

// fence begins to take away what others want of a session, or all that one has
// which did not come back after a restart.
func (t *Table) fence(s *session) {
	s.fencing, s.there = true, false
	a := Action{Kind: Fence, Session: s.id, Gen: proto.Gen{Boot: t.o.Boot, Counter: t.counter}}
	if !t.absent[s.id] {
		for _, h := range s.sorted() {
			if h.pressed() {
				a.Files = append(a.Files, h.id)
			}
		}
	}
	t.do(a)
}

// Fenced says that a Fence is recorded, for ever. Read leases go with those of
// the Files: the session does not rely on any when its term is over.
func (t *Table) Fenced(f Action, now time.Duration) []Action {
	s := t.sessions[f.Session]
	if s == nil || !s.fencing {
		return nil
	}
	s.fencing, s.condemned = false, false
	for _, id := range f.Files {
		if s.void == nil {
			s.void = make(map[proto.FileID]proto.Gen)
		}
		s.void[id] = f.Gen
	}
	for _, h := range s.sorted() {
		if len(f.Files) == 0 || h.mode == proto.ReadLease || slices.Contains(f.Files, h.id) {
			t.drop(h, now)
			t.promote(h.id, now)
		}
	}
	if t.absent[f.Session] {
		t.returned(f.Session, now)
	}
	return t.take()
}

// Unfenced says that a Fence could not be recorded: the session keeps what it has, and who
// waits for that goes on to. The Fence comes again with a later Tick, if there is still reason for it.
func (t *Table) Unfenced(f Action) {
	if s := t.sessions[f.Session]; s != nil {
		s.fencing = false
	}
}

// Busy reports whether time changes anything.
func (t *Table) Busy() bool {
	if t.Grace() {
		return true
	}
	for _, s := range t.sessions {
		if s.pressed > 0 || s.condemned {
			return true
		}
	}
	return false
}

// Count is how many leases a session has, and how many of them for writing.
func (t *Table) Count(id proto.SessionID) (all, writing int) {
	s := t.sessions[id]
	if s == nil {
		return 0, 0
	}
	for _, h := range s.holdings {
		if h.mode == proto.WriteLease {
			writing++
		}
	}
	return len(s.holdings), writing
}

// onlyReads reports whether a session has leases, but none for writing.
func (s *session) onlyReads() bool {
	for _, h := range s.holdings {
		if h.mode == proto.WriteLease {
			return false
		}
	}
	return len(s.holdings) > 0
}

// sorted is a session's leases in the order of their files.
func (s *session) sorted() []*holding {
	out := make([]*holding, 0, len(s.holdings))
	for _, id := range slices.Sorted(maps.Keys(s.holdings)) {
		out = append(out, s.holdings[id])
	}
	return out
}

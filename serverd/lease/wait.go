package lease

import (
	"cmp"
	"maps"
	"slices"
	"time"

	"cagefs.dev/cage/remote/proto"
)

// Wait asks for leases on files, all of them at once, and for looks at others:
// NoLease means that what others have acknowledged of the file by now is to be
// applied. Ready follows, perhaps among the actions returned. What was asked
// for stays asked for when the wait is cancelled. id must be new.
func (t *Table) Wait(id WaitID, wants []proto.Want, now time.Duration) []Action {
	t.ticket++
	w := &waiter{id: id, ticket: t.ticket, wants: wants}
	t.waits[id] = w
	for _, x := range wants {
		if x.Mode != proto.NoLease {
			f := t.file(x.ID)
			if !slices.Contains(f.waiters, w) {
				f.waiters = append(f.waiters, w)
			}
		}
	}
	if !t.Grace() {
		t.start(w, now)
		t.finish(w, now)
	}
	return t.take()
}

// Cancel ends a wait, if it goes on still.
func (t *Table) Cancel(id WaitID, now time.Duration) []Action {
	if w := t.waits[id]; w != nil {
		t.cancel(w, now)
	}
	return t.take()
}

func (t *Table) cancel(w *waiter, now time.Duration) {
	t.leave(w)
	for _, x := range w.wants {
		t.promote(x.ID, now)
	}
}

// waiting is all who wait, in the order of coming.
func (t *Table) waiting() []*waiter {
	return slices.SortedFunc(maps.Values(t.waits), func(a, b *waiter) int { return cmp.Compare(a.ticket, b.ticket) })
}

// start asks for what is in the way of a waiter.
func (t *Table) start(w *waiter, now time.Duration) {
	for _, x := range w.wants {
		if x.Mode != proto.NoLease {
			t.press(x.ID, now)
			continue
		}
		f := t.files[x.ID]
		if f == nil {
			continue
		}
		for _, h := range f.others(w.id.Session) {
			if h.mode == proto.WriteLease {
				t.look(w, h, now)
			}
		}
	}
}

// looksBeforeRecall is how often a write lease is looked at that is not used
// meanwhile before its holder is asked to share it.
const looksBeforeRecall = 3

// look makes a waiter wait for an answer to a Peek.
func (t *Table) look(w *waiter, h *holding, now time.Duration) {
	t.peeks++
	if !h.pressed() {
		h.since = now
		h.s.pressed++
	}
	h.looks = t.peeks
	w.looks = append(w.looks, look{h, t.peeks})
	t.askLook(h, now)
	if h.idle++; h.idle > looksBeforeRecall {
		t.recall(h, proto.ReadLease, now)
	}
}

// Peeked says that all that a session had acknowledged of a file when it
// answered a Peek is applied.
func (t *Table) Peeked(id proto.SessionID, file proto.FileID, num uint64, now time.Duration) []Action {
	if s := t.sessions[id]; s != nil {
		s.progress = now
		if h := s.holdings[file]; h != nil {
			t.seen(h, num, now)
		}
	}
	return t.take()
}

// seen ends the looks up to a number at a lease.
func (t *Table) seen(h *holding, num uint64, now time.Duration) {
	looks := h.looks
	if looks != 0 && num >= looks {
		if h.looks = 0; !h.pressed() {
			h.s.pressed--
		}
	}
	t.unlook(h, min(num, looks), now)
}

// unlook is what the end of looks means for those who wait for it.
func (t *Table) unlook(h *holding, num uint64, now time.Duration) {
	if num == 0 {
		return
	}
	for _, w := range t.waiting() {
		n := len(w.looks)
		w.looks = slices.DeleteFunc(w.looks, func(l look) bool { return l.h == h && l.num <= num })
		if len(w.looks) < n {
			t.finish(w, now)
		}
	}
}

// press asks for what is in the way of those who wait first for a file.
func (t *Table) press(id proto.FileID, now time.Duration) {
	f := t.files[id]
	if f == nil || t.Grace() {
		return
	}
	for _, w := range f.waiters {
		mode := w.mode(id)
		for _, h := range f.others(w.id.Session) {
			if mode == proto.WriteLease {
				t.recall(h, proto.NoLease, now)
			} else {
				t.recall(h, proto.ReadLease, now)
			}
		}
		if mode == proto.WriteLease {
			return
		}
	}
}

// recall asks for a lease back, but for to.
func (t *Table) recall(h *holding, to proto.LeaseMode, now time.Duration) {
	if h.mode <= to || h.recalled && h.to <= to {
		return
	}
	if !h.pressed() {
		h.since = now
		h.s.pressed++
	}
	h.recalled, h.to = true, to
	t.askBack(h, now)
}

func (t *Table) askBack(h *holding, now time.Duration) {
	h.sent = now
	t.do(Action{Kind: Recall, Session: h.s.id, ID: h.id, Gen: h.gen, Mode: h.to})
}

func (t *Table) askLook(h *holding, now time.Duration) {
	h.sent = now
	t.do(Action{Kind: Peek, Session: h.s.id, ID: h.id, Num: h.looks})
}

// ask sends again what a session is asked for.
func (t *Table) ask(h *holding, now time.Duration) {
	if h.recalled {
		t.askBack(h, now)
	}
	if h.looks != 0 {
		t.askLook(h, now)
	}
}

// mode is what a waiter wants of a file, the most if it wants it twice.
func (w *waiter) mode(id proto.FileID) (mode proto.LeaseMode) {
	for _, x := range w.wants {
		if x.ID == id {
			mode = max(mode, x.Mode)
		}
	}
	return mode
}

// others is what all but one session have of a file, in order.
func (f *file) others(but proto.SessionID) []*holding {
	var out []*holding
	for _, id := range slices.Sorted(maps.Keys(f.holders)) {
		if id != but {
			out = append(out, f.holders[id])
		}
	}
	return out
}

// allows reports whether nothing but waiters is in the way of a lease.
func (f *file) allows(to proto.SessionID, mode proto.LeaseMode) bool {
	if f.changing > 0 {
		return false
	}
	for id, h := range f.holders {
		if id != to && (mode == proto.WriteLease || h.mode == proto.WriteLease) {
			return false
		}
	}
	return true
}

// finish ends a wait if nothing is in its way, and serves those behind it.
func (t *Table) finish(w *waiter, now time.Duration) {
	if t.waits[w.id] != w || t.Grace() || len(w.looks) > 0 || !t.turn(w) {
		return
	}
	t.leave(w)
	a := Action{Kind: Ready, Wait: w.id, Gens: make([]proto.Gen, len(w.wants))}
	s := t.sessions[w.id.Session]
	for i, x := range w.wants {
		if x.Mode != proto.NoLease && s != nil {
			a.Gens[i] = t.give(s, x.ID, w.mode(x.ID), now).gen
		}
	}
	t.do(a)
	for _, x := range w.wants {
		t.promote(x.ID, now)
	}
}

// turn reports whether no lease and nobody who came before is in a waiter's way.
func (t *Table) turn(w *waiter) bool {
	s := t.sessions[w.id.Session]
	for _, x := range w.wants {
		if x.Mode == proto.NoLease {
			continue
		}
		if s != nil && !s.there {
			return false
		}
		f, mode := t.files[x.ID], w.mode(x.ID)
		if !f.allows(w.id.Session, mode) {
			return false
		}
		for _, v := range f.waiters {
			if v == w {
				break
			}
			if mode == proto.WriteLease || v.mode(x.ID) == proto.WriteLease {
				return false
			}
		}
	}
	return true
}

// leave takes a waiter out of all queues.
func (t *Table) leave(w *waiter) {
	delete(t.waits, w.id)
	for _, x := range w.wants {
		if f := t.files[x.ID]; f != nil {
			f.waiters = slices.DeleteFunc(f.waiters, func(v *waiter) bool { return v == w })
			t.tidy(x.ID)
		}
	}
}

// promote serves those who wait for a file, and asks for what is in the way of
// the first of them.
func (t *Table) promote(id proto.FileID, now time.Duration) {
	if f := t.files[id]; f != nil {
		for _, w := range slices.Clone(f.waiters) {
			t.finish(w, now)
		}
		t.press(id, now)
		t.tidy(id)
	}
}

package lease

import (
	"slices"
	"time"

	"cagefs.dev/cage/remote/proto"
)

// Grant gives a session a lease if nothing is in the way: at most mode, less
// where others hold something, or none. What is read for the reply that carries
// it is to be read afterwards.
func (t *Table) Grant(id proto.SessionID, file proto.FileID, mode proto.LeaseMode, now time.Duration) (proto.Lease, []Action) {
	s := t.sessions[id]
	if s == nil || !s.there || t.Grace() {
		return proto.Lease{}, nil
	}
	if f := t.files[file]; f != nil {
		if h := f.holders[id]; h != nil && h.recalled {
			return proto.Lease{}, nil
		}
		for _, w := range f.waiters {
			if w.mode(file) == proto.WriteLease {
				return proto.Lease{}, nil
			}
			mode = min(mode, proto.ReadLease)
		}
		if !f.allows(id, mode) {
			if mode = proto.ReadLease; !f.allows(id, mode) {
				return proto.Lease{}, nil
			}
		}
	}
	if h := s.holdings[file]; h != nil && h.mode >= mode && !h.recalled {
		return proto.Lease{Gen: h.gen, Mode: h.mode}, nil
	}
	h := t.give(s, file, mode, now)
	return proto.Lease{Gen: h.gen, Mode: h.mode}, t.take()
}

// give makes a session hold a lease that nothing is in the way of, of a new
// generation even if it holds it: it would not ask if its return were not on the way, or lost.
func (t *Table) give(s *session, id proto.FileID, mode proto.LeaseMode, now time.Duration) *holding {
	h := s.holdings[id]
	if h == nil {
		h = &holding{id: id, s: s}
		t.file(id).holders[s.id], s.holdings[id] = h, h
	}
	h.gen = t.next()
	if mode == proto.WriteLease && h.mode != proto.WriteLease {
		h.first = h.gen
	}
	h.mode = max(h.mode, mode)
	if h.recalled { // that was for somebody who does not wait any more, or comes later
		if h.recalled = false; !h.pressed() {
			s.pressed--
		}
	}
	s.order = append(s.order, given{id, h.gen})
	t.thrift(s, now)
	return h
}

// thrift asks for the oldest leases of a session that has too many.
func (t *Table) thrift(s *session, now time.Duration) {
	for n := len(s.holdings) - t.o.Limit; n > 0 && len(s.order) > 0; {
		g := s.order[0]
		s.order = s.order[1:]
		if h := s.holdings[g.id]; h != nil && h.gen == g.gen && !h.recalled {
			t.recall(h, proto.NoLease, now)
			n--
		}
	}
	if len(s.order) > 2*len(s.holdings)+1024 {
		s.order = slices.DeleteFunc(s.order, func(g given) bool {
			h := s.holdings[g.id]
			return h == nil || h.gen != g.gen
		})
	}
}

// Return says that a session gave its lease of a file back, but for to, if it is
// no newer than upTo; everything that it acknowledged under it is applied.
func (t *Table) Return(id proto.SessionID, file proto.FileID, upTo proto.Gen, to proto.LeaseMode, now time.Duration) []Action {
	s := t.sessions[id]
	if s == nil {
		return nil
	}
	s.progress = now
	h := s.holdings[file]
	if h == nil || h.gen.Compare(upTo) > 0 || h.mode <= to {
		return nil
	}
	if to == proto.NoLease {
		t.drop(h, now)
	} else {
		t.share(h, now)
	}
	t.promote(file, now)
	return t.take()
}

// share makes a write lease one for reading.
func (t *Table) share(h *holding, now time.Duration) {
	h.mode, h.first = proto.ReadLease, proto.Gen{}
	if h.recalled && h.to == proto.ReadLease {
		if h.recalled = false; !h.pressed() {
			h.s.pressed--
		}
	}
	t.seen(h, h.looks, now)
}

// drop takes a lease away. The caller promotes the file.
func (t *Table) drop(h *holding, now time.Duration) {
	delete(h.s.holdings, h.id)
	delete(t.files[h.id].holders, h.s.id)
	if h.pressed() {
		h.s.pressed--
	}
	looks := h.looks
	h.recalled, h.looks = false, 0
	t.unlook(h, looks, now)
}

// Verdict is what becomes of a change that is to enter the journal.
type Verdict uint8

// The verdicts.
const (
	Admitted Verdict = iota // nothing is given of its files before Done
	Again                   // others have leases of its files: the session has to ask for them first
	Void                    // the lease that it was logged under is not held: it must not be done
)

// Admit decides on a change of files by a session. gen is of the write lease of
// the first of them under which the change was acknowledged; zero if it was not
// acknowledged. The call and the append to the journal are one critical section.
func (t *Table) Admit(id proto.SessionID, gen proto.Gen, files []proto.FileID) Verdict {
	s := t.sessions[id]
	if gen != (proto.Gen{}) {
		if s == nil || s.fencing {
			return Void
		}
		if t.owed(s, gen, files) {
			return t.admitted(files)
		}
		h := s.holdings[files[0]]
		if h == nil || h.mode != proto.WriteLease || gen.Compare(h.first) < 0 {
			return Void
		}
		h.idle = 0
	} else if t.Grace() {
		return Again
	}
	for _, file := range files {
		if f := t.files[file]; f != nil {
			for other := range f.holders {
				if other != id {
					return Again
				}
			}
		}
	}
	return t.admitted(files)
}

func (t *Table) admitted(files []proto.FileID) Verdict {
	for _, file := range files {
		t.file(file).changing++
	}
	return Admitted
}

// Owns reports whether a session has the write lease of a file.
func (t *Table) Owns(id proto.SessionID, file proto.FileID) bool {
	s := t.sessions[id]
	return s != nil && !s.fencing && s.holdings[file] != nil && s.holdings[file].mode == proto.WriteLease
}

// owed reports whether a change was logged under a lease of before the restart
// whose return was lost with the server: if it had been taken, the change would
// have been applied before. So nobody has had the lease since, as long as the grace time goes on.
func (t *Table) owed(s *session, gen proto.Gen, files []proto.FileID) bool {
	if !t.absent[s.id] || gen.Boot >= t.o.Boot || gen.Compare(s.void[files[0]]) <= 0 {
		return false
	}
	for _, id := range files {
		if f := t.files[id]; f != nil && len(f.others(s.id)) > 0 {
			return false
		}
	}
	return true
}

// Done says that a change that was admitted is applied, or will never be.
func (t *Table) Done(files []proto.FileID, now time.Duration) []Action {
	for _, file := range files {
		if f := t.files[file]; f != nil && f.changing > 0 {
			f.changing--
			t.promote(file, now)
		}
	}
	return t.take()
}

// Force is Admit for a change that nobody is asked about: others' leases are
// recalled, but the change does not wait for that.
func (t *Table) Force(id proto.SessionID, files []proto.FileID, now time.Duration) []Action {
	for _, file := range files {
		t.file(file).changing++
	}
	return t.Revoke(id, files, now)
}

// Holds reports whether a session has a lease of a file.
func (t *Table) Holds(id proto.SessionID, file proto.FileID) bool {
	f := t.files[file]
	return f != nil && f.holders[id] != nil
}

// Foreign reports whether others may have acknowledged changes of a file that
// are not applied: somebody has its write lease, or may come back with it.
func (t *Table) Foreign(id proto.SessionID, file proto.FileID) bool {
	f := t.files[file]
	if f != nil {
		for other, h := range f.holders {
			if other != id && h.mode == proto.WriteLease {
				return true
			}
		}
	}
	return t.Grace() && !t.Holds(id, file)
}

// Revoke says that files changed without anybody having been asked: all leases
// of them but those of one session are recalled.
func (t *Table) Revoke(but proto.SessionID, files []proto.FileID, now time.Duration) []Action {
	for _, file := range files {
		if t.Grace() {
			t.revoked[file] = true
		}
		if f := t.files[file]; f != nil {
			for _, h := range f.others(but) {
				t.recall(h, proto.NoLease, now)
			}
		}
	}
	return t.take()
}

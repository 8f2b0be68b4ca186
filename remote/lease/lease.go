// Package lease is the client's half of the leases: what a session may answer
// from memory, and until when.
//
// It promises that nothing is held longer than the server keeps it: the term
// counts from when the last answered request was sent; a lease that is recalled
// is not held from then on, and neither is one whose grant arrives after its
// recall. It is a pure state machine: no clock, no goroutine, no I/O. Its owner
// guards it with the lock that also guards the operation log, so that a change is
// logged under a lease or not, and nothing comes between. Times are on a clock
// that goes on while the machine sleeps. See serverd/lease for the whole protocol.
package lease

import (
	"maps"
	"slices"
	"time"

	"cagefs.dev/cage/remote/proto"
)

// Margin is the part of the term that a client does not use, for clocks that go
// differently: its 33rd.
const Margin = 33

// maxRecalls is how many recalls are remembered one by one.
const maxRecalls = 4096

// Table is all leases of a session.
type Table struct {
	term  time.Duration
	until time.Duration // the leases may be relied on before this
	held  map[proto.FileID]*held

	// recalled says which grants were overtaken by their recalls; of files that
	// are not in it, all up to floor.
	recalled map[proto.FileID]overtaken
	floor    proto.Gen
	tenures  uint64
	over     bool // Expire has been here since the last Answered that counts
	lapsed   bool // Expire is to say that something is over
}

type held struct {
	tenure uint64
	wrote  bool // it was once a write lease
	gen    proto.Gen
	first  proto.Gen // since when it has been a write lease, if it is one
	mode   proto.LeaseMode
	busy   int // Use, less Unuse
	// returning: recalled up to gen, but for to.
	returning bool
	to        proto.LeaseMode
	used      time.Duration // when a change was last logged under it
}

// New makes a table without leases. term is the server's.
func New(term time.Duration) *Table {
	return &Table{term: term, held: make(map[proto.FileID]*held), recalled: make(map[proto.FileID]overtaken)}
}

// Answered says that a request was answered which was sent at that time.
func (t *Table) Answered(sent, now time.Duration) {
	until := sent + t.term - t.term/Margin
	if until <= t.until {
		return
	}
	if now >= t.until && !t.over { // it was over meanwhile, and nobody looked
		t.lapsed = t.lapse()
	}
	t.until, t.over = until, false
}

// Until is when the leases end, if nothing more is answered.
func (t *Table) Until() time.Duration { return t.until }

// Heard is when the last answered request was sent.
func (t *Table) Heard() time.Duration { return t.until - (t.term - t.term/Margin) }

// Granted notes a lease that came with a reply. It reports whether the lease is
// held; one that is not was recalled before it came, or is not the newest. back: the
// server takes it for held nevertheless, and is to be told with a return.
func (t *Table) Granted(id proto.FileID, l proto.Lease) (ok, back bool) {
	if l.Mode == proto.NoLease {
		return false, false
	}
	if o, ok := t.recalled[id]; ok && l.Gen.Compare(o.whole) <= 0 {
		return false, false // the recall was answered
	} else if ok && l.Gen.Compare(o.write) <= 0 {
		l.Mode = min(l.Mode, proto.ReadLease)
	} else if !ok && l.Gen.Compare(t.floor) <= 0 && t.held[id] == nil {
		return false, true
	}
	h := t.held[id]
	switch {
	case h == nil:
		t.tenures++
		t.held[id] = &held{tenure: t.tenures, gen: l.Gen, first: l.Gen, mode: l.Mode, wrote: l.Mode == proto.WriteLease}
		return true, false
	case l.Gen.Compare(h.gen) > 0:
		if h.mode != proto.WriteLease {
			h.first = l.Gen
		}
		h.gen, h.mode, h.returning = l.Gen, l.Mode, false
		h.wrote = h.wrote || l.Mode == proto.WriteLease
		return true, false
	case h.returning || l.Gen != h.gen:
		return false, false
	}
	return true, false // the same again; if it was made smaller since, it stays smaller
}

// Holds reports whether a lease is held that includes mode.
func (t *Table) Holds(id proto.FileID, mode proto.LeaseMode, now time.Duration) bool {
	h := t.held[id]
	return h != nil && h.left() >= mode && now < t.until
}

// left is what of a lease is not being given back.
func (h *held) left() proto.LeaseMode {
	if h.returning {
		return min(h.mode, h.to)
	}
	return h.mode
}

// Tenure numbers the time for which a lease has been held without a break, 0 if
// it is not held.
func (t *Table) Tenure(id proto.FileID, now time.Duration) uint64 {
	if h := t.held[id]; h != nil && h.left() != proto.NoLease && now < t.until {
		return h.tenure
	}
	return 0
}

// Log returns the generation under which a change of a file may be acknowledged
// before the server has it; ok is false without the write lease. One that is
// recalled goes on as long as it is in Use.
func (t *Table) Log(id proto.FileID, now time.Duration) (gen proto.Gen, ok bool) {
	h := t.held[id]
	if h == nil || h.mode != proto.WriteLease || now >= t.until || h.left() != proto.WriteLease && h.busy == 0 {
		return proto.Gen{}, false
	}
	h.used = now
	return h.gen, true
}

// Use keeps a lease that is recalled from being given back before Unuse: a
// change that was let wait for it is to be made once before. It reports whether
// the lease is held.
func (t *Table) Use(id proto.FileID, now time.Duration) bool {
	h := t.held[id]
	if h == nil || h.returning || now >= t.until {
		return false
	}
	h.busy++
	return true
}

// Unuse takes a Use back; again reports whether a recall waited for it, which is to be
// handled now.
func (t *Table) Unuse(id proto.FileID) (r Recall, again bool) {
	h := t.held[id]
	if h == nil || h.busy == 0 {
		return Recall{}, false
	}
	if h.busy--; h.busy == 0 && h.returning {
		return Recall{ID: id, UpTo: h.gen, To: h.to}, true
	}
	return Recall{}, false
}

// Recall is what the server asks back: a lease up to a generation, but for To.
type Recall struct {
	ID   proto.FileID
	UpTo proto.Gen
	To   proto.LeaseMode
}

// Recalled takes a recall. From now on the lease is not held, but for To. now
// reports whether the recall is to be answered at once, that is after the kernel was made to
// forget; otherwise Unuse says when. It is answered also where nothing is held:
// the server believes it is.
func (t *Table) Recalled(r Recall) (now bool) {
	h := t.held[r.ID]
	t.remember(r)
	if h == nil || h.gen.Compare(r.UpTo) > 0 {
		return true
	}
	if h.returning && h.to <= r.To {
		return h.busy == 0
	}
	if h.mode <= r.To {
		return true
	}
	h.returning, h.to = true, r.To
	return h.busy == 0
}

// overtaken is up to which generations grants of a file were recalled before
// they came: the whole lease, or its being one for writing.
type overtaken struct{ whole, write proto.Gen }

// remember keeps grants from being believed that the recall overtook.
func (t *Table) remember(r Recall) {
	o, ok := t.recalled[r.ID]
	if !ok && len(t.recalled) >= maxRecalls {
		for _, o := range t.recalled {
			for _, gen := range []proto.Gen{o.whole, o.write} {
				if gen.Compare(t.floor) > 0 {
					t.floor = gen
				}
			}
		}
		clear(t.recalled)
	}
	if r.UpTo.Compare(o.write) > 0 {
		o.write = r.UpTo
	}
	if r.To == proto.NoLease && r.UpTo.Compare(o.whole) > 0 {
		o.whole = r.UpTo
	}
	t.recalled[r.ID] = o
}

// Returned says that a recall is answered with the return that is sent now.
// logged reports whether changes may have been logged under the lease.
func (t *Table) Returned(r Recall) (logged bool) {
	h := t.held[r.ID]
	if h == nil {
		return true // it was returned before, and nobody knows what that return says
	}
	if logged = h.wrote; h.gen.Compare(r.UpTo) > 0 || !h.returning {
		return logged
	}
	if r.To == proto.NoLease || h.to == proto.NoLease && r.To <= h.to {
		delete(t.held, r.ID)
		return logged
	}
	h.mode = min(h.mode, r.To)
	if h.to == r.To {
		h.returning = false
	}
	return logged
}

// Idle are the write leases that have not been used for a while: they may be
// made read leases, so that others need not ask. The caller answers for them as for recalls.
func (t *Table) Idle(before time.Duration, most int) (out []Recall) {
	for id, h := range t.held {
		if len(out) == most {
			break
		}
		if h.mode == proto.WriteLease && !h.returning && h.busy == 0 && h.used < before {
			out = append(out, Recall{ID: id, UpTo: h.gen, To: proto.ReadLease})
		}
	}
	return out
}

// Count is how many leases are held, and how many of them for writing.
func (t *Table) Count() (all, writing int) {
	for _, h := range t.held {
		if h.mode == proto.WriteLease {
			writing++
		}
	}
	return len(t.held), writing
}

// Claim is a lease to go on with after a reconnect. First is since when it has
// been one for writing, as far as that matters: what was logged since then counts.
type Claim struct {
	ID         proto.FileID
	Gen, First proto.Gen
	Mode       proto.LeaseMode
}

// Claims are the leases, at most so many, those for writing first, in order.
func (t *Table) Claims(most int) (out []Claim) {
	ids := slices.Sorted(maps.Keys(t.held))
	for _, mode := range []proto.LeaseMode{proto.WriteLease, proto.ReadLease} {
		for _, id := range ids {
			if h := t.held[id]; h.mode == mode && len(out) < most {
				out = append(out, Claim{id, h.gen, h.first, mode})
			}
		}
	}
	return out
}

// Resumed takes the answer to a reconnect: of the claims the server does not
// grant lost, and all other leases up to void are void. It returns what is held no longer.
func (t *Table) Resumed(claims []Claim, lost []int, void proto.Gen) (gone []proto.FileID) {
	kept := make(map[proto.FileID]bool, len(claims))
	for i, c := range claims {
		kept[c.ID] = !slices.Contains(lost, i)
	}
	for _, id := range slices.Sorted(maps.Keys(t.held)) {
		claimed, ok := kept[id]
		if ok && !claimed || !ok && t.held[id].gen.Compare(void) <= 0 {
			delete(t.held, id)
			gone = append(gone, id)
		}
	}
	if void.Compare(t.floor) > 0 {
		t.floor = void
	}
	return gone
}

// Expire gives up what is over at a time, and reports whether there was
// something. Write leases are kept to be claimed, and begin a new tenure.
func (t *Table) Expire(now time.Duration) bool {
	if t.lapsed {
		t.lapsed = false
		return true
	}
	if now < t.until || t.over {
		return false
	}
	t.over = true
	return t.lapse()
}

func (t *Table) lapse() bool {
	n := len(t.held)
	for id, h := range t.held {
		if h.mode == proto.WriteLease {
			t.tenures++
			h.tenure = t.tenures
		} else {
			delete(t.held, id)
		}
	}
	return n > 0
}

// Drop forgets all leases: the session is a new one, of which all up to void are void.
func (t *Table) Drop(void proto.Gen) {
	clear(t.held)
	clear(t.recalled)
	t.until, t.floor = 0, void
}

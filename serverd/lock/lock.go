// Package lock decides who has which lock on which file, each kind of locks among itself.
//
// It promises that no byte has two owners of which one is exclusive, that a
// waiter gets its lock as soon as nobody holds what is in its way, the first who
// came first, that a wait which closes a circle of owners of fcntl locks ends
// with Deadlock, and that nobody takes more room than the limits say. It is a
// pure state machine: no clock, no goroutine, no I/O. Its owner guards it, and
// tells waiters what the methods return.
package lock

import (
	"cmp"
	"maps"
	"slices"
	"sort"

	"cagefs.dev/cage/remote/lockset"
	"cagefs.dev/cage/remote/proto"
)

// File is what is locked: a file in one of its states. At 0 is the present;
// locks on the past are of their own.
type File struct {
	At proto.LSN
	ID proto.FileID
}

// Owner is to whom a lock belongs: a number that its session has chosen.
type Owner struct {
	Session proto.SessionID
	Num     uint64
}

// Request names a lock. The kind is less than lockset.Kinds.
type Request struct {
	File  File
	Owner Owner
	Kind  lockset.Kind
	lockset.Lock
}

// WaitID names a wait; its session has chosen the number.
type WaitID struct {
	Session proto.SessionID
	Num     uint64
}

// Outcome is what became of a request.
type Outcome uint8

// The outcomes.
const (
	Granted  Outcome = iota
	Held             // somebody else has a lock that is in the way
	Queued           // likewise, and a Done will come
	Deadlock         // waiting would never end
	NoRoom           // the limits do not allow it; nothing has changed
)

// Done is the end of a wait: Granted, Deadlock or NoRoom.
type Done struct {
	ID      WaitID
	Outcome Outcome
}

// Limits of a table.
type Limits struct {
	SessionLocks, SessionWaits int
	FileLocks, FileWaits       int
}

// Table is all locks of an export. The zero value is not usable; see New.
type Table struct {
	limits   Limits
	files    map[File]*file
	sessions map[proto.SessionID]*session
	waiting  map[Owner][]*waiter // of fcntl locks
	waits    map[WaitID]*waiter
}

// file is the locks of one file and who waits for some.
type file struct {
	held    [lockset.Kinds]map[Owner]lockset.Set
	n       int // locks
	waiters []*waiter
}

// session is what counts for a session's limits.
type session struct {
	locks, waits int
	files        map[File]int // owners that have locks there
}

type waiter struct {
	id WaitID
	r  Request
}

// New makes an empty table.
func New(l Limits) *Table {
	return &Table{
		limits: l, files: make(map[File]*file), sessions: make(map[proto.SessionID]*session),
		waiting: make(map[Owner][]*waiter), waits: make(map[WaitID]*waiter),
	}
}

func (t *Table) file(f File) *file {
	x := t.files[f]
	if x == nil {
		x = &file{held: [lockset.Kinds]map[Owner]lockset.Set{{}, {}, {}}}
		t.files[f] = x
	}
	return x
}

func (t *Table) session(id proto.SessionID) *session {
	x := t.sessions[id]
	if x == nil {
		x = &session{files: make(map[File]int)}
		t.sessions[id] = x
	}
	return x
}

// tidy forgets what is empty.
func (t *Table) tidy(f File, id proto.SessionID) {
	if x := t.files[f]; x != nil && x.n == 0 && len(x.waiters) == 0 {
		delete(t.files, f)
	}
	if x := t.sessions[id]; x != nil && x.locks == 0 && x.waits == 0 {
		delete(t.sessions, id)
	}
}

// Lock takes a lock, or says at once that it cannot be had: Granted, Held or
// NoRoom. Parts of the range that the owner has locked already change to the new
// kind; but of the kind Opens none becomes less. As with flock(2) everywhere, changing a lock of that sort gives the old one up first.
func (t *Table) Lock(r Request) (Outcome, []Done) {
	f := t.file(r.File)
	defer t.tidy(r.File, r.Owner.Session)
	if r.Kind == lockset.Opens && f.held[r.Kind][r.Owner].Covers(r.Lock) {
		return Granted, nil
	}
	t.giveUp(f, &r)
	if f.inTheWay(&r) {
		return Held, t.promote(r.File, nil)
	}
	if !t.set(f, &r, f.held[r.Kind][r.Owner].Put(r.Lock)) {
		return NoRoom, t.promote(r.File, nil)
	}
	return Granted, t.promote(r.File, &r.Owner)
}

// Wait is Lock that waits: Queued instead of Held, or Deadlock. A wait that is
// there already goes on.
func (t *Table) Wait(id WaitID, r Request) (Outcome, []Done) {
	if t.waits[id] != nil {
		return Queued, nil
	}
	outcome, done := t.Lock(r)
	if outcome != Held {
		return outcome, done
	}
	f, s := t.file(r.File), t.session(id.Session)
	defer t.tidy(r.File, id.Session)
	switch {
	case r.Kind == lockset.Ranges && t.circle(f, &r):
		return Deadlock, done
	case s.waits >= t.limits.SessionWaits, len(f.waiters) >= t.limits.FileWaits:
		return NoRoom, done
	}
	w := &waiter{id, r}
	t.waits[id] = w
	f.waiters = append(f.waiters, w)
	s.waits++
	if r.Kind == lockset.Ranges {
		t.waiting[r.Owner] = append(t.waiting[r.Owner], w)
	}
	return Queued, done
}

// Unlock gives a range up: Granted, or NoRoom where what is left of a lock would
// be two and there is no room for that.
func (t *Table) Unlock(r Request) (Outcome, []Done) {
	f := t.files[r.File]
	if f == nil {
		return Granted, nil
	}
	defer t.tidy(r.File, r.Owner.Session)
	if !t.set(f, &r, f.held[r.Kind][r.Owner].Cut(r.Start, r.End)) {
		return NoRoom, nil
	}
	return Granted, t.promote(r.File, nil)
}

// Test returns the first lock that is in the way of a request, if any.
func (t *Table) Test(r Request) (holder Request, held bool) {
	f := t.files[r.File]
	if f == nil {
		return Request{}, false
	}
	f.conflicts(&r, func(o Owner, l lockset.Lock) bool {
		if !held || l.Start < holder.Start || l.Start == holder.Start && less(o, holder.Owner) {
			holder, held = Request{File: r.File, Owner: o, Kind: r.Kind, Lock: l}, true
		}
		return true
	})
	return holder, held
}

func less(a, b Owner) bool {
	return a.Session < b.Session || a.Session == b.Session && a.Num < b.Num
}

// Cancel ends a wait, if there still is one.
func (t *Table) Cancel(id WaitID) {
	if w := t.waits[id]; w != nil {
		f := w.r.File
		t.unqueue(w)
		t.tidy(f, id.Session)
	}
}

// CancelAll ends a session's waits.
func (t *Table) CancelAll(id proto.SessionID) {
	for _, w := range t.waits {
		if w.id.Session == id {
			t.Cancel(w.id)
		}
	}
}

// Drop ends a session's waits and gives its locks up.
func (t *Table) Drop(id proto.SessionID) []Done {
	t.CancelAll(id)
	_, done := t.Keep(id, nil)
	return done
}

// Keep gives up what a session has locked besides a list, and returns which of
// the list it does not have (anymore), by their places in it. What it has
// exclusively stays so where the list says shared. Its waits have ended.
func (t *Table) Keep(id proto.SessionID, list []Request) (lost []int, done []Done) {
	type place struct {
		f    File
		kind lockset.Kind
		o    Owner
	}
	keep := make(map[place]lockset.Set)
	for i := range list {
		r := &list[i]
		r.Owner.Session = id
		var have lockset.Set
		if f := t.files[r.File]; f != nil {
			have = f.held[r.Kind][r.Owner]
		}
		if !have.Covers(r.Lock) {
			lost = append(lost, i)
			continue
		}
		p := place{r.File, r.Kind, r.Owner}
		for _, l := range have.Within(r.Start, r.End) {
			keep[p] = keep[p].Put(l)
		}
	}
	s := t.sessions[id]
	if s == nil {
		return lost, nil
	}
	changed := slices.SortedFunc(maps.Keys(s.files), func(a, b File) int {
		return cmp.Or(cmp.Compare(a.ID, b.ID), cmp.Compare(a.At, b.At))
	})
	for _, name := range changed {
		f := t.files[name]
		for k := range f.held {
			for o, have := range f.held[k] {
				if o.Session == id {
					t.replace(f, &Request{File: name, Owner: o, Kind: lockset.Kind(k)}, have, keep[place{name, lockset.Kind(k), o}])
				}
			}
		}
	}
	for _, name := range changed {
		done = append(done, t.promote(name, nil)...)
		t.tidy(name, id)
	}
	return lost, done
}

// Found says what is locked of a file outside of the table, whatever is in its way there. It gives nothing to anybody.
func (t *Table) Found(r Request) {
	f := t.file(r.File)
	t.replace(f, &r, f.held[r.Kind][r.Owner], f.held[r.Kind][r.Owner].Put(r.Lock))
}

// Revert makes what an owner has of a request's range what it had before that was granted. It gives nothing to anybody.
func (t *Table) Revert(r Request, had lockset.Set) {
	f := t.file(r.File)
	have := f.held[r.Kind][r.Owner]
	now := have.Cut(r.Start, r.End)
	for _, l := range had {
		now = now.Put(l)
	}
	t.replace(f, &r, have, now)
	t.tidy(r.File, r.Owner.Session)
}

// Held is what an owner has locked of a file. The caller does not change it.
func (t *Table) Held(f File, kind lockset.Kind, o Owner) lockset.Set {
	if x := t.files[f]; x != nil {
		return x.held[kind][o]
	}
	return nil
}

// Union is what all owners together have locked of a file, but those of session 0, whoever that is.
func (t *Table) Union(f File, kind lockset.Kind) (all lockset.Set) {
	x := t.files[f]
	if x == nil {
		return nil
	}
	for o, set := range x.held[kind] {
		for _, l := range set {
			if l.PID = 0; o.Session != 0 {
				all = all.Put(l)
			}
		}
	}
	return all
}

// Files are those of which a session has locked something, in no order.
func (t *Table) Files(id proto.SessionID) []File {
	if s := t.sessions[id]; s != nil {
		return slices.Collect(maps.Keys(s.files))
	}
	return nil
}

// Busy reports whether somebody has locked something of a file, or waits for that.
func (t *Table) Busy(f File) bool { return t.files[f] != nil }

// Locks is how many locks there are of a session.
func (t *Table) Locks(id proto.SessionID) int {
	if s := t.sessions[id]; s != nil {
		return s.locks
	}
	return 0
}

// giveUp is what a change of a flock lock begins with.
func (t *Table) giveUp(f *file, r *Request) {
	if have := f.held[r.Kind][r.Owner]; r.Kind == lockset.Flock && len(have) > 0 && have[0].Exclusive != r.Exclusive {
		t.replace(f, r, have, nil)
	}
}

// set replaces what an owner has locked, if the limits allow it.
func (t *Table) set(f *file, r *Request, now lockset.Set) bool {
	have := f.held[r.Kind][r.Owner]
	more := len(now) - len(have)
	if s := t.session(r.Owner.Session); more > 0 && (s.locks+more > t.limits.SessionLocks || f.n+more > t.limits.FileLocks) {
		return false
	}
	t.replace(f, r, have, now)
	return true
}

// replace does it and keeps count.
func (t *Table) replace(f *file, r *Request, have, now lockset.Set) {
	s, k := t.session(r.Owner.Session), r.Kind
	f.n += len(now) - len(have)
	s.locks += len(now) - len(have)
	switch {
	case len(have) == 0 && len(now) > 0:
		s.files[r.File]++
	case len(have) > 0 && len(now) == 0:
		if s.files[r.File]--; s.files[r.File] == 0 {
			delete(s.files, r.File)
		}
	}
	if len(now) == 0 {
		delete(f.held[k], r.Owner)
		return
	}
	f.held[k][r.Owner] = now
}

// inTheWay reports whether somebody else has what a request wants.
func (f *file) inTheWay(r *Request) (found bool) {
	f.conflicts(r, func(Owner, lockset.Lock) bool {
		found = true
		return false
	})
	return found
}

// conflicts calls yield with the first lock in the way of each owner, until it returns false.
func (f *file) conflicts(r *Request, yield func(Owner, lockset.Lock) bool) {
	for o, set := range f.held[r.Kind] {
		if o == r.Owner {
			continue
		}
		first := sort.Search(len(set), func(i int) bool { return set[i].End >= r.Start })
		for _, l := range set[first:] {
			if l.Start > r.End {
				break
			}
			if l.Exclusive || r.Exclusive {
				if !yield(o, l) {
					return
				}
				break
			}
		}
	}
}

// Package lease decides which session may rely on what it knows of a file, and
// who has to be asked before a file is read or changed.
//
// A session that holds a read lease answers for the file from its own memory: it
// is told before anything in it changes. With the write lease, which one session
// at a time may hold, it may acknowledge changes before the server has them. A
// directory is a file whose content is its names. The session gives a lease back
// when it is recalled, after it has made its kernel forget, and after everything
// that it acknowledged under the lease is applied.
//
// It promises (the tests and the simulation break without each):
//
//   - Exclusion. No session holds the write lease of a file while another holds any.
//   - Fencing. What was logged under a lease that is not held any more is refused,
//     for ever; and a change of a session that relies on no lease is refused while
//     another holds one.
//   - No stale lease. What a reader was given the lease for is not older than the
//     lease: none is given between the admission of a change and its end.
//   - Life. Who waits is served in the order of coming, within the term of the
//     leases if a holder is silent or dead, and never by a wait of the log: only
//     requests beside the log wait.
//
// A lease lasts as long as its session's term: the session may rely on it until
// 0.97 of the term after it sent the last request that was answered, and the
// server takes none away before a whole term after it got one (Gray and
// Cheriton 1989, with a margin for clocks that go differently). Taking it away
// is recorded first (Fence), so that no restart brings it back; what nobody else wants stays with
// a session that is silent, for it may have changes under it that it could not deliver. After a restart
// there is a grace time until each session that had leases came back and said
// what it holds, or a term has passed: meanwhile nothing is given and nobody reads.
//
// The package is a pure state machine: no clock, no goroutine, no I/O. Its owner
// guards it, tells it what happened and when, on a clock that goes on while the
// machine sleeps (CLOCK_BOOTTIME), and does what the actions say. Calls are in
// the order of the owner's lock; the order of the actions does not matter.
package lease

import (
	"time"

	"cagefs.dev/cage/remote/proto"
)

// WaitID names somebody who waits; the owner chooses the number.
type WaitID struct {
	Session proto.SessionID
	Num     uint64
}

// Kind says what an Action is.
type Kind uint8

// The actions.
const (
	// Recall asks a session to give back its lease of ID if it is no newer than
	// Gen, but for Mode. It may get lost: it comes again every Resend.
	Recall Kind = iota + 1
	// Peek asks a session up to where its log has to be applied before its
	// changes of ID so far can be read; the answer to it carries Num. It may get lost.
	Peek
	// Ready ends a Wait. Gens are the leases, one for each Want; zero where none was wanted.
	Ready
	// Fence asks to record that the session's leases of Files up to Gen are void; without Files, that all of
	// its leases are. Fenced follows.
	Fence
	// Drop asks to end the session's connection and to let it have none before
	// the Fence that follows: it does not give back what it is asked for.
	Drop
)

// Action is what the owner has to do.
type Action struct {
	Kind    Kind
	Session proto.SessionID
	ID      proto.FileID
	Gen     proto.Gen
	Mode    proto.LeaseMode
	Num     uint64
	Wait    WaitID
	Gens    []proto.Gen
	Files   []proto.FileID
}

// Resend is how often a recall that is not answered is sent.
const Resend = time.Second

// Options of a table.
type Options struct {
	Boot  uint32        // this start of the server; greater than all before
	Term  time.Duration // of a session's leases
	Limit int           // leases of a session; beyond, the oldest are recalled
	Now   time.Duration // the time of the start
	// Before are the sessions that may have had leases when the server ended,
	// with the files of which those up to a generation are void.
	Before map[proto.SessionID]map[proto.FileID]proto.Gen
}

// Table is all leases of an export.
type Table struct {
	o        Options
	counter  uint64
	peeks    uint64
	ticket   uint64
	sessions map[proto.SessionID]*session
	files    map[proto.FileID]*file
	waits    map[WaitID]*waiter
	absent   map[proto.SessionID]bool // of Before: not back yet, the grace time goes on
	revoked  map[proto.FileID]bool    // changed since the start without asking anybody: who is absent may have leases
	out      []Action
}

// session is what there is of a session.
type session struct {
	id       proto.SessionID
	heard    time.Duration // when its last request came
	holdings map[proto.FileID]*holding
	order    []given                    // as the leases were given, also such as are returned
	void     map[proto.FileID]proto.Gen // leases up to these are not its own any more
	pressed  int                        // holdings that are recalled or looked at
	progress time.Duration

	// there is from Begin until something is taken away: its client does not know of that
	// before the next Begin, and is to get no answer that makes it believe its leases.
	there bool

	condemned bool // it does not give back what it is asked for, or is ended
	ended     bool // it will not come back
	fencing   bool // a Fence is on its way
}

// given is a lease at a time, to find the oldest.
type given struct {
	id  proto.FileID
	gen proto.Gen
}

// file is what concerns a file.
type file struct {
	holders  map[proto.SessionID]*holding
	waiters  []*waiter // in the order of coming
	changing int       // changes that are admitted and not done
}

// holding is a lease that a session has.
type holding struct {
	id    proto.FileID
	s     *session
	mode  proto.LeaseMode
	gen   proto.Gen // the newest that the session was told
	first proto.Gen // since when it has had the write lease without a break

	recalled bool            // asked back, but for to
	to       proto.LeaseMode // of a recall
	looks    uint64          // the newest Peek that waits for an answer, 0: none
	since    time.Duration   // of the recall or the oldest such Peek
	sent     time.Duration   // of the last message about it
	idle     int             // looks since its last change
}

// pressed reports whether the session is asked for something.
func (h *holding) pressed() bool { return h.recalled || h.looks != 0 }

// waiter is somebody who waits.
type waiter struct {
	id     WaitID
	ticket uint64
	wants  []proto.Want
	looks  []look // what it waits for besides leases
}

// look is a Peek that has to be answered.
type look struct {
	h   *holding
	num uint64
}

// New makes a table, in its grace time if there were sessions with leases.
func New(o Options) *Table {
	t := &Table{
		o: o, sessions: make(map[proto.SessionID]*session), files: make(map[proto.FileID]*file),
		waits: make(map[WaitID]*waiter), absent: make(map[proto.SessionID]bool),
		revoked: make(map[proto.FileID]bool),
	}
	for id, void := range o.Before {
		t.absent[id] = true
		t.sessions[id] = &session{id: id, void: void, heard: o.Now, holdings: make(map[proto.FileID]*holding)}
	}
	return t
}

// Grace reports whether the grace time after a start goes on.
func (t *Table) Grace() bool { return len(t.absent) > 0 }

// do adds an action.
func (t *Table) do(a Action) { t.out = append(t.out, a) }

// take returns the actions of a call.
func (t *Table) take() []Action {
	out := t.out
	t.out = nil
	return out
}

// next is a new generation.
func (t *Table) next() proto.Gen {
	t.counter++
	return proto.Gen{Boot: t.o.Boot, Counter: t.counter}
}

func (t *Table) file(id proto.FileID) *file {
	f := t.files[id]
	if f == nil {
		f = &file{holders: make(map[proto.SessionID]*holding)}
		t.files[id] = f
	}
	return f
}

// tidy forgets a file that nothing concerns.
func (t *Table) tidy(id proto.FileID) {
	if f := t.files[id]; f != nil && len(f.holders) == 0 && len(f.waiters) == 0 && f.changing == 0 {
		delete(t.files, id)
	}
}

// Package oplog is a session's ordered list of changes as a state machine:
// numbers, what was sent, what was answered, what is to be sent again, and the
// one cursor of sticky errors.
//
// It promises that a number belongs to one immutable operation for ever, that
// operations leave in the order of their numbers on every connection, that
// each operation gets one outcome however often its answer arrives, and that
// the failure of an operation nobody waited for is reported once. It has no
// goroutines, no clock and no I/O, and knows nothing of connections: its owner
// tells it what happened. A synchronous operation is one for which somebody
// waits; there is no other way for a change.
//
//	            Append            Next               Answer
//	(nothing) ────────▶ waiting ────────▶ in flight ────────▶ answered ──▶ forgotten,
//	                       ▲                  │                            once all before
//	                       └──── Resume ──────┘                            it are as well
package oplog

import (
	"errors"
	"slices"

	"cagefs.dev/cage/remote/proto"
	"cagefs.dev/cage/remote/status"
	"cagefs.dev/cage/remote/wire"
)

// overhead is what an operation is taken to weigh besides its bytes of new data.
const overhead = 512

// Entry is an operation in its place, as it goes over the wire.
type Entry struct {
	Seq   proto.Seq // the caller's number
	Wire  proto.Seq // the number in the present session of the server
	Ident proto.Ident
	Gen   proto.Gen // of the lease that it was acknowledged under; zero: it was not
	Op    proto.Op  // owned by the log; immutable
}

// entry is an operation that is not forgotten yet.
type entry struct {
	ident    proto.Ident
	gen      proto.Gen
	op       proto.Op // nil once answered
	bytes    int      // of new data
	logged   bool     // appended by Append, not by AppendWaited: nobody expects the answer
	answered bool
	ticket   *Ticket // of those who wait; may be nil

	withdrawn bool  // see Leave; whoever waits no longer does
	fenced    error // see Fence: it failed already; what is sent under its number changes nothing
}

// Log is a session's operation log. Its owner guards it: no method may be
// called while another runs. No method blocks.
type Log struct {
	// entries[i] has number acked+1+i.
	entries []entry
	acked   proto.Seq // all up to this one are answered
	cursor  proto.Seq // the last that was sent on this connection; never below acked
	sent    proto.Seq // the last that was ever sent: immutable up to here
	base    proto.Seq // numbers of sessions that the server lost: wire number = number − base

	unanswered    int
	syncs         int   // of unanswered
	bytes         int64 // of new data, in unanswered entries
	inFlight      int   // sent on this connection and not answered
	inFlightBytes int64

	failures failures
}

// New makes an empty log whose first operation gets number 1.
func New() *Log { return &Log{failures: newFailures()} }

// Append logs an operation for whose outcome nobody waits yet. It keeps a copy
// of the operation's data. A Write that continues the last operation, if that is
// a Write that was appended in the same way for the same file and identity and
// was never sent, joins it up to proto.MaxIO bytes and gets its number.
func (l *Log) Append(id proto.Ident, op proto.Op) proto.Seq {
	return l.AppendUnder(id, op, proto.Gen{})
}

// AppendUnder is Append of an operation that is acknowledged under a lease.
func (l *Log) AppendUnder(id proto.Ident, op proto.Op, gen proto.Gen) proto.Seq {
	if w, ok := op.(*proto.Write); ok && l.join(&id, w, gen) {
		return l.Last()
	}
	seq := l.append(id, op, true)
	l.at(seq).gen = gen
	return seq
}

// AppendWaited logs an operation and takes a ticket for its outcome.
func (l *Log) AppendWaited(id proto.Ident, op proto.Op) *Ticket {
	return l.Watch(l.append(id, op, false))
}

func (l *Log) append(id proto.Ident, op proto.Op, logged bool) proto.Seq {
	op, n := own(op)
	l.entries = append(l.entries, entry{ident: l.ownIdent(id), op: op, bytes: n, logged: logged})
	l.count(&l.entries[len(l.entries)-1], 1)
	return l.Last()
}

// count adds an unanswered entry to the sums, or takes it away.
func (l *Log) count(e *entry, sign int) {
	l.unanswered += sign
	l.bytes += int64(sign * e.bytes)
	if _, ok := e.op.(*proto.Sync); ok {
		l.syncs += sign
	}
}

// join adds w to the last entry if it may.
func (l *Log) join(id *proto.Ident, w *proto.Write, gen proto.Gen) bool {
	if len(l.entries) == 0 || l.Last() <= l.sent {
		return false
	}
	e := &l.entries[len(l.entries)-1]
	last, ok := e.op.(*proto.Write)
	if !ok || !e.logged || e.fenced != nil || e.gen != gen || last.Mapped != w.Mapped || last.ID != w.ID || last.Append != w.Append || last.Off+uint64(len(last.Data)) != w.Off ||
		len(last.Data)+len(w.Data) > proto.MaxIO || !sameIdent(&e.ident, id) {
		return false
	}
	last.Data = append(last.Data, w.Data...)
	e.bytes += len(w.Data)
	l.bytes += int64(len(w.Data))
	return true
}

// Next takes the next operation to send, as long as no more than ops operations
// and bytes bytes of new data are then in flight on this connection. One alone
// may always go, however large. From here on the operation is immutable.
func (l *Log) Next(ops int, bytes int64) (Entry, bool) {
	for l.cursor < l.Last() {
		seq := l.cursor + 1
		e := l.at(seq)
		if e.answered {
			l.cursor = seq
			continue
		}
		if l.inFlight > 0 && (l.inFlight+1 > ops || l.inFlightBytes+int64(e.bytes) > bytes) {
			return Entry{}, false
		}
		l.cursor = seq
		l.sent = max(l.sent, seq)
		l.inFlight++
		l.inFlightBytes += int64(e.bytes)
		return Entry{Seq: seq, Wire: seq - l.base, Ident: e.ident, Gen: e.gen, Op: e.op}, true
	}
	return Entry{}, false
}

// Answer gives an operation its outcome. It returns the failure if that becomes
// a sticky one, and, as one without Err, an append that went elsewhere than
// its client took the end of the file to be. An answer to an operation that has one already, or that was
// never sent, is ignored: the first counts.
func (l *Log) Answer(seq proto.Seq, res proto.Result, err error) (Failure, bool) {
	if seq <= l.acked || seq > l.sent {
		return Failure{}, false
	}
	e := l.at(seq)
	if e.answered {
		return Failure{}, false
	}
	if seq <= l.cursor {
		l.inFlight--
		l.inFlightBytes -= int64(e.bytes)
	}
	f, sticky := l.settle(seq, e, res, err)
	l.forget()
	return f, sticky
}

// settle records the outcome of an unanswered entry and wakes who waits for it.
func (l *Log) settle(seq proto.Seq, e *entry, res proto.Result, err error) (Failure, bool) {
	switch {
	case e.fenced == nil:
	case err == nil:
		err = e.fenced
	default: // the server says where it is kept
		err = status.Newf(status.Of(e.fenced), "", "", "%w", err)
	}
	f := Failure{Seq: seq, ID: fileOf(e.op), Err: err}
	waited := e.ticket != nil && e.ticket.waiters > 0
	sticky := err != nil && (e.logged || !waited)
	if need := (*wire.NeedLeases)(nil); !e.logged && errors.As(err, &need) {
		sticky = false // it was not made, and who wanted it does not wait any more
	}
	w, write := e.op.(*proto.Write)
	moved := err == nil && write && w.Append && res.N != w.Off
	l.count(e, -1)
	e.answered, e.op, e.ident = true, nil, proto.Ident{}
	if err != nil {
		l.failures.add(f, sticky)
	}
	if e.ticket != nil {
		e.ticket.result, e.ticket.err = res, err
		close(e.ticket.done)
		e.ticket = nil
	}
	return f, sticky || moved
}

// forget drops what is answered without a gap.
func (l *Log) forget() {
	n := 0
	for n < len(l.entries) && l.entries[n].answered {
		n++
	}
	clear(l.entries[:n])
	l.entries = l.entries[n:]
	l.acked += proto.Seq(n)
	l.cursor = max(l.cursor, l.acked)
}

// Resume says that a new connection goes on with the session. All that is not
// answered is sent again, in order: also what the server has applied, for its
// answer got lost, and the server repeats it for the same number. applied is
// the last wire number that the server knows; if that was never sent, the
// server's session is not this one, and the error is status.LostSession.
func (l *Log) Resume(applied proto.Seq) error {
	if applied > l.sent-l.base {
		return status.Newf(status.LostSession, "resume session", "",
			"the server has operations up to %d, but only %d were sent", applied, l.sent-l.base)
	}
	l.rewind()
	return nil
}

// Fence makes all that changes the content of a file fail with err, but for what
// the server has applied already: up to a wire number. It follows Resume. The
// numbers are kept. Under them go the writes that were acknowledged, to be kept by the server instead of being
// applied (proto.Write.Lost), and nothing in place of the rest; the failure is told with the answer.
func (l *Log) Fence(id proto.FileID, applied proto.Seq, err error) {
	for i := range l.entries {
		e := &l.entries[i]
		if e.answered || l.acked+1+proto.Seq(i) <= l.base+applied || !changesContent(e.op, id) {
			continue
		}
		if l.lose(e, err) {
			continue
		}
		l.bytes -= int64(e.bytes)
		e.op, e.bytes, e.fenced = &proto.Write{ID: id, Lost: true}, 0, err
	}
}

// lose makes a write that was acknowledged fail, but be kept; false: it is none.
func (l *Log) lose(e *entry, err error) bool {
	w, ok := e.op.(*proto.Write)
	if !ok || !e.logged {
		return false
	}
	lost := *w
	lost.Lost = true
	e.op, e.fenced = &lost, err
	return true
}

func changesContent(op proto.Op, id proto.FileID) bool {
	switch o := op.(type) {
	case *proto.Write:
		return o.ID == id
	case *proto.SetAttr:
		return o.ID == id && o.Mask&proto.SetSize != 0
	case *proto.Allocate:
		return o.ID == id
	case *proto.Copy:
		return o.ID == id
	}
	return false
}

// Disconnected says that there is no connection: nothing is in flight.
func (l *Log) Disconnected() { l.rewind() }

func (l *Log) rewind() {
	l.cursor, l.inFlight, l.inFlightBytes = l.acked, 0, 0
}

// Lose says that the server has lost the session, and that a new one takes its
// place, in which wire numbers begin at 1 again; the caller's numbers go on.
// Whether an operation that was sent and not answered was applied cannot be
// known, and those after it may rely on it: sending any of them again could
// apply one twice or out of its place, so all of them fail with err; the new session keeps the
// writes that were acknowledged, and that failure is told with the answer. If there
// is none, what was never sent goes on in the new session. Lose returns the
// other failures that become sticky, and how many writes are to be kept.
func (l *Log) Lose(err error) (out []Failure, kept int) {
	if l.sent <= l.acked {
		l.base = l.acked
		l.rewind()
		return nil, 0
	}
	for i := range l.entries {
		e := &l.entries[i]
		if e.answered {
			continue
		}
		if l.lose(e, err) {
			kept++
			continue
		}
		if f, sticky := l.settle(l.acked+1+proto.Seq(i), e, proto.Result{}, err); sticky {
			out = append(out, f)
		}
	}
	l.forget()
	for i := range l.entries { // the new session has no number for what is left out
		if e := &l.entries[i]; e.answered {
			*e = entry{op: &proto.Sync{ID: proto.RootID}, withdrawn: true}
			l.count(e, 1)
		}
	}
	l.sent, l.base = l.acked, l.acked
	l.rewind()
	return out, kept
}

// Undelivered are the writes that were acknowledged and have no outcome, in order. Their data are the log's.
func (l *Log) Undelivered() (out []Entry) {
	for i := range l.entries {
		e := &l.entries[i]
		if w, ok := e.op.(*proto.Write); ok && e.logged && len(w.Data) > 0 {
			seq := l.acked + 1 + proto.Seq(i)
			out = append(out, Entry{Seq: seq, Wire: seq - l.base, Ident: e.ident, Gen: e.gen, Op: w})
		}
	}
	return out
}

// Owed is what of a file's new data has no outcome.
type Owed struct {
	ID    proto.FileID
	Bytes int64
}

// Owing are the files of the writes that were acknowledged and have no outcome, in the order of their first ones.
func (l *Log) Owing() (out []Owed) {
	at := map[proto.FileID]int{}
	for i := range l.entries {
		e := &l.entries[i]
		w, ok := e.op.(*proto.Write)
		if !ok || !e.logged || len(w.Data) == 0 {
			continue
		}
		n, ok := at[w.ID]
		if !ok {
			n = len(out)
			at[w.ID] = n
			out = append(out, Owed{ID: w.ID})
		}
		out[n].Bytes += int64(len(w.Data))
	}
	return out
}

// Last is the newest number given, 0 if there is none.
func (l *Log) Last() proto.Seq { return l.acked + proto.Seq(len(l.entries)) }

// Acked is the number up to which all operations are answered.
func (l *Log) Acked() proto.Seq { return l.acked }

// WireAcked is Acked as the server's present session counts.
func (l *Log) WireAcked() proto.Seq { return l.acked - l.base }

// Unanswered counts the changes without an outcome, and their bytes of new
// data. A Sync changes nothing.
func (l *Log) Unanswered() (ops int, bytes int64) { return l.unanswered - l.syncs, l.bytes }

// Weight is about what the unanswered operations take of memory.
func (l *Log) Weight() int64 { return l.bytes + int64(l.unanswered)*overhead }

// WireLast is Last as the server's present session counts.
func (l *Log) WireLast() proto.Seq { return l.Last() - l.base }

// InFlight counts the operations that were sent on this connection and are not answered.
func (l *Log) InFlight() int { return l.inFlight }

func (l *Log) at(seq proto.Seq) *entry { return &l.entries[seq-l.acked-1] }

// ownIdent copies what the identity refers to, or shares it with the last entry's.
func (l *Log) ownIdent(id proto.Ident) proto.Ident {
	if n := len(l.entries); n > 0 && slices.Equal(l.entries[n-1].ident.Groups, id.Groups) {
		id.Groups = l.entries[n-1].ident.Groups
		return id
	}
	id.Groups = slices.Clone(id.Groups)
	return id
}

func sameIdent(a, b *proto.Ident) bool {
	return a.UID == b.UID && a.GID == b.GID && a.PID == b.PID && a.PGID == b.PGID &&
		a.Comm == b.Comm && slices.Equal(a.Groups, b.Groups)
}

// own copies an operation with its data and counts the bytes of new data.
func own(op proto.Op) (proto.Op, int) {
	switch o := op.(type) {
	case *proto.Write:
		c := *o
		c.Data = slices.Clone(o.Data)
		return &c, len(c.Data)
	case *proto.SetXattr:
		c := *o
		c.Value = slices.Clone(o.Value)
		return &c, len(c.Value)
	case *proto.Rollback:
		c := *o
		c.Paths = slices.Clone(o.Paths)
		return &c, 0
	case *proto.Undo:
		c := *o
		c.LSNs = slices.Clone(o.LSNs)
		return &c, 0
	case *proto.Make:
		return ref(*o), 0
	case *proto.Link:
		return ref(*o), 0
	case *proto.Remove:
		return ref(*o), 0
	case *proto.Rename:
		return ref(*o), 0
	case *proto.SetAttr:
		return ref(*o), 0
	case *proto.RemoveXattr:
		return ref(*o), 0
	case *proto.Sync:
		return ref(*o), 0
	case *proto.Label:
		return ref(*o), 0
	case *proto.Allocate:
		return ref(*o), 0
	case *proto.Copy:
		return ref(*o), 0
	case *proto.Branch:
		return ref(*o), 0
	}
	return op, 0
}

func ref[T any](v T) *T { return &v }

// fileOf is the file on which a failure of an operation is reported: the one
// it changes, or the directory whose names it changes; 0 if there is none.
func fileOf(op proto.Op) proto.FileID {
	switch o := op.(type) {
	case *proto.Write:
		return o.ID
	case *proto.SetAttr:
		return o.ID
	case *proto.SetXattr:
		return o.ID
	case *proto.RemoveXattr:
		return o.ID
	case *proto.Sync:
		return o.ID
	case *proto.Make:
		return o.Dir
	case *proto.Link:
		return o.Dir
	case *proto.Remove:
		return o.Dir
	case *proto.Rename:
		return o.NewDir
	case *proto.Allocate:
		return o.ID
	case *proto.Copy:
		return o.ID
	}
	return 0
}

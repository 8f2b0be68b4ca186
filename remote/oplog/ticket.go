package oplog

import "cagefs.dev/cage/remote/proto"

// Ticket is a place where the outcome of an operation is waited for. All who
// wait for the same operation share one.
type Ticket struct {
	Seq     proto.Seq
	done    chan struct{}
	waiters int // guarded by the log's owner

	// Set before done is closed.
	result proto.Result
	err    error
}

// Done is closed when the operation has its outcome.
func (t *Ticket) Done() <-chan struct{} { return t.done }

// Outcome is the operation's result or error, once Done is closed.
func (t *Ticket) Outcome() (proto.Result, error) { return t.result, t.err }

// Watch takes a ticket for an operation; nil if it has its outcome already (see
// Failed) or its number was not given yet.
func (l *Log) Watch(seq proto.Seq) *Ticket {
	if seq <= l.acked || seq > l.Last() {
		return nil
	}
	e := l.at(seq)
	if e.answered {
		return nil
	}
	if e.ticket == nil {
		e.ticket = &Ticket{Seq: seq, done: make(chan struct{})}
	}
	e.ticket.waiters++
	return e.ticket
}

// Leave gives a ticket back without an outcome. An operation that was sent stays
// in the log, for it may have been applied. One that never was and that nobody
// waits for any more is withdrawn: who waited was told that it failed, and it
// must not happen a day later.
func (l *Log) Leave(t *Ticket) {
	t.waiters--
	if t.waiters > 0 || t.Seq <= l.sent {
		return
	}
	e := l.at(t.Seq)
	if e.logged {
		return
	}
	// Its number is given: later operations keep theirs. In its place goes one
	// that changes nothing, unless nothing comes after it.
	l.count(e, -1)
	e.op, e.bytes, e.withdrawn = &proto.Sync{ID: proto.RootID}, 0, true
	l.count(e, 1)
	for l.Last() > l.sent && l.at(l.Last()).withdrawn {
		l.count(l.at(l.Last()), -1)
		l.entries = l.entries[:len(l.entries)-1]
	}
}

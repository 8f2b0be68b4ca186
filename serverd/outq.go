package serverd

import (
	"sync"

	"cagefs.dev/cage/remote/proto"
	"cagefs.dev/cage/remote/wire"
)

// maxPushes is how many files a connection may be behind in hearing of their
// changes. Beyond it the connection is dropped, and the client, coming back,
// takes nothing it has cached for valid.
const maxPushes = 8192

// outq is what a connection's writer has to send. Answers are bounded by the
// gates through which their requests came; pushes are merged file by file.
type outq struct {
	overflow func()        // called once, from any goroutine, when pushes are too many; must not block
	wake     chan struct{} // holds one: something was added since the last take

	mu      sync.Mutex
	answers []answer                       // guarded by mu
	locks   []wire.LockDone                // guarded by mu; no more than the session has waits
	recalls map[proto.FileID]wire.Recall   // guarded by mu; no more than the session has leases
	peeks   map[proto.FileID]uint64        // guarded by mu; likewise
	pushes  map[proto.FileID]*wire.Changed // guarded by mu
	order   []proto.FileID                 // guarded by mu; the keys of pushes, oldest first
	drain   bool                           // guarded by mu; tell that the server stops
	closed  bool                           // guarded by mu; nothing more is taken in
}

// answer is an encoded frame, and whom to tell when it has been written.
type answer struct {
	head, tail []byte // sent one after the other
	from       *gate  // nil if no gate was entered
	cost       int64
}

// leave gives the room of the request back.
func (a *answer) leave() {
	if a.from != nil {
		a.from.leave(a.cost)
	}
}

// batch is what the writer takes at once, to be sent in the order of its fields.
type batch struct {
	pushes  []wire.Changed
	locks   []wire.LockDone
	recalls []wire.Recall
	peeks   []wire.Peek
	answers []answer
	drain   bool
}

func newOutq(overflow func()) *outq {
	return &outq{overflow: overflow, wake: make(chan struct{}, 1), pushes: make(map[proto.FileID]*wire.Changed),
		recalls: make(map[proto.FileID]wire.Recall), peeks: make(map[proto.FileID]uint64)}
}

// answer queues a frame. It does not block.
func (q *outq) answer(a answer) {
	q.mu.Lock()
	if !q.closed {
		q.answers = append(q.answers, a)
	}
	q.mu.Unlock()
	q.signal()
}

// push queues the news of a change. It does not block.
func (q *outq) push(c wire.Changed) {
	q.mu.Lock()
	full := false
	switch old := q.pushes[c.ID]; {
	case q.closed:
	case old != nil:
		merge(old, c)
	case len(q.pushes) >= maxPushes:
		q.closed = true
		full = true
	default:
		q.pushes[c.ID] = &c
		q.order = append(q.order, c.ID)
	}
	q.mu.Unlock()
	if full {
		q.overflow()
	}
	q.signal()
}

// lockDone queues the end of a wait, behind the news of all changes before it. It does not block.
func (q *outq) lockDone(d wire.LockDone) {
	q.mu.Lock()
	if !q.closed {
		q.locks = append(q.locks, d)
	}
	q.mu.Unlock()
	q.signal()
}

// recall queues a recall, in the place of an older one of the same file. It does not block.
func (q *outq) recall(r wire.Recall) {
	q.mu.Lock()
	if !q.closed {
		q.recalls[r.ID] = r
	}
	q.mu.Unlock()
	q.signal()
}

// peek queues a look. It does not block.
func (q *outq) peek(p wire.Peek) {
	q.mu.Lock()
	if !q.closed {
		q.peeks[p.ID] = max(q.peeks[p.ID], p.Num)
	}
	q.mu.Unlock()
	q.signal()
}

// announceDrain queues the news that the server stops.
func (q *outq) announceDrain() {
	q.mu.Lock()
	q.drain = !q.closed
	q.mu.Unlock()
	q.signal()
}

// close takes nothing more in; what is queued is still taken out.
func (q *outq) close() {
	q.mu.Lock()
	q.closed = true
	q.mu.Unlock()
	q.signal()
}

func (q *outq) signal() {
	select {
	case q.wake <- struct{}{}:
	default:
	}
}

// take waits for something to send; ok is false when the queue is closed and empty.
func (q *outq) take() (b batch, ok bool) {
	for {
		b, more := q.tryTake()
		if !b.empty() {
			return b, true
		}
		if !more {
			return batch{}, false
		}
		<-q.wake
	}
}

// tryTake empties the queue; more is false when nothing will come after that.
func (q *outq) tryTake() (b batch, more bool) {
	q.mu.Lock()
	defer q.mu.Unlock()
	b = batch{answers: q.answers, locks: q.locks, drain: q.drain}
	q.answers, q.locks, q.drain = nil, nil, false
	for _, id := range q.order {
		b.pushes = append(b.pushes, *q.pushes[id])
	}
	for _, r := range q.recalls {
		b.recalls = append(b.recalls, r)
	}
	for id, num := range q.peeks {
		b.peeks = append(b.peeks, wire.Peek{ID: id, Num: num})
	}
	clear(q.recalls)
	clear(q.peeks)
	clear(q.pushes)
	q.order = q.order[:0]
	return b, !q.closed
}

func (b *batch) empty() bool {
	return len(b.pushes) == 0 && len(b.locks) == 0 && len(b.recalls) == 0 && len(b.peeks) == 0 && len(b.answers) == 0 && !b.drain
}

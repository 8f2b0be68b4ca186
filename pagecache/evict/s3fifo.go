package evict

import "math"

const (
	smallShare = 10 // the small queue is one in so many of all
	maxUses    = 3  // uses saturate here: so many rounds an entry survives unused
)

// S3FIFO is two queues in the order of arrival (Yang et al., SOSP 2023). An
// entry arrives in the small one. Who reaches its end unused leaves, and its key
// is remembered; who was used goes on to the main one. There, who was used goes
// round again for each use. Who comes back while it is remembered arrives in the
// main queue.
//
//	Add ──▶ small ── was used ──▶ main ──┐ was used: round again
//	          │                    ▲ └───┘
//	          └── otherwise:       │  otherwise: Victim
//	              Victim, remembered, Add again
//
// An access costs no change of a list. A victim costs O(1) on the average, and
// one step for each pinned entry that is in the way.
type S3FIFO[K comparable] struct {
	small, main queue[K]
	full        int    // Len when a victim was last asked for
	now         uint64 // accesses
	ghosts      map[K]uint64
	order       []departure[K] // who left the small queue, oldest first; some are back, or here again further on
}

// queue is a ring, latest arrival first, pinned entries included.
type queue[K comparable] struct {
	root Entry[K]
	n    int
	free int // those that are not pinned
}

// NewS3FIFO makes an empty S3FIFO.
func NewS3FIFO[K comparable]() *S3FIFO[K] {
	l := &S3FIFO[K]{full: math.MaxInt, ghosts: make(map[K]uint64)}
	empty(&l.small.root)
	empty(&l.main.root)
	return l
}

// Len is the number of entries, pinned ones included.
func (l *S3FIFO[K]) Len() int { return l.small.n + l.main.n }

// Add takes an entry in.
func (l *S3FIFO[K]) Add(e *Entry[K]) {
	l.now++
	e.pins, e.count, e.counted = 0, 0, l.now
	e.home = young
	if _, ok := l.ghosts[e.Key]; ok {
		delete(l.ghosts, e.Key)
		e.home = old
	}
	l.put(e)
}

// Touch says that an entry is used. Uses that follow each other closely are one.
func (l *S3FIFO[K]) Touch(e *Entry[K]) {
	l.now++
	if l.now-e.counted > uint64(burst(l.Len())) {
		e.count = min(e.count+1, maxUses)
		e.counted = l.now
	}
}

// Pin keeps an entry from becoming a victim.
func (l *S3FIFO[K]) Pin(e *Entry[K]) {
	if e.pins++; e.pins == 1 {
		l.queue(e).free--
	}
}

// Unpin takes a Pin back.
func (l *S3FIFO[K]) Unpin(e *Entry[K]) {
	if e.pins--; e.pins == 0 {
		l.queue(e).free++
	}
}

// Remove takes an entry out and forgets it.
func (l *S3FIFO[K]) Remove(e *Entry[K]) {
	l.take(e)
	e.home, e.pins = out, 0
}

// Victim takes out the entry that is to leave next.
func (l *S3FIFO[K]) Victim() *Entry[K] {
	l.full = l.Len()
	for {
		var q *queue[K]
		switch {
		case l.small.free > 0 && (l.small.n > l.full/smallShare || l.main.free == 0):
			q = &l.small
		case l.main.free > 0:
			q = &l.main
		default:
			return nil
		}
		e := q.root.prev
		l.take(e)
		switch {
		case e.pins > 0:
		case e.count == 0:
			e.home = out
			if q == &l.small {
				l.remember(e.Key)
			}
			return e
		case q == &l.small:
			e.home, e.count = old, 0
		default:
			e.count--
		}
		l.put(e)
	}
}

func (l *S3FIFO[K]) queue(e *Entry[K]) *queue[K] {
	if e.home == young {
		return &l.small
	}
	return &l.main
}

// put makes an entry the latest of its queue.
func (l *S3FIFO[K]) put(e *Entry[K]) {
	q := l.queue(e)
	insert(&q.root, e)
	q.n++
	if e.pins == 0 {
		q.free++
	}
}

// take takes an entry off its queue.
func (l *S3FIFO[K]) take(e *Entry[K]) {
	q := l.queue(e)
	remove(e)
	q.n--
	if e.pins == 0 {
		q.free--
	}
}

// remember keeps the key of an entry that had to leave, and drops the oldest such.
func (l *S3FIFO[K]) remember(key K) {
	l.now++ // no two leave at the same access
	l.ghosts[key] = l.now
	l.order = append(l.order, departure[K]{key, l.now})
	for len(l.order) > max(l.full, minGhosts) {
		d := l.order[0]
		l.order = l.order[1:]
		if l.ghosts[d.key] == d.left {
			delete(l.ghosts, d.key)
		}
	}
}

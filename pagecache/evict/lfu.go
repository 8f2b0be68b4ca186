package evict

import "math"

const (
	maxCount  = 15 // counts saturate here: four halvings bring every count to 0
	agePeriod = 10 // counted accesses for each entry between two halvings
)

// LFU is least frequently used, with ageing.
//
// An entry arrives in the young list, in order of use. When the cache is full
// and the young are more than a small share of all, the least recent of them
// meets the least used of the old: who was used more often stays (the old one
// on a tie). So a page that is read once, or many times in one go, passes
// through the young list and displaces nobody. The counts of those who had to
// leave are remembered for a while, so that who comes back often gets in.
//
//	Add ──▶ young ── used more often than the least used of the old ──▶ old
//	          │                                                          │
//	          └────────────── otherwise: Victim ◀── the least used of them
//
// Every count is halved when there have been ten counted accesses for each
// entry; that is how a hot set of yesterday goes. Of equal counts the least
// recently used goes first.
//
// Costs: O(1) for an access, a pin, an arrival and a victim. Halving visits
// every entry, which is a tenth of a visit for each counted access.
type LFU[K comparable] struct {
	young    Entry[K]               // root of a ring, most recent first
	old      [maxCount + 1]Entry[K] // by count: roots of rings, most recent first
	n        int                    // entries, pinned ones included
	nYoung   int                    // those of them whose home is young
	full     int                    // n when a victim was last asked for
	now      uint64                 // accesses
	pace     int                    // counted accesses since the last halving
	halvings uint64
	ghosts   map[K]ghost
	order    []departure[K] // who left, oldest first; some are back, or here again further on
}

// ghost is what is remembered of an entry that had to leave.
type ghost struct {
	count    uint8
	halvings uint64
	left     uint64 // accesses when it left, never 0
}

// NewLFU makes an empty LFU.
func NewLFU[K comparable]() *LFU[K] {
	l := &LFU[K]{full: math.MaxInt, ghosts: make(map[K]ghost)}
	empty(&l.young)
	for i := range l.old {
		empty(&l.old[i])
	}
	return l
}

// Len is the number of entries, pinned ones included.
func (l *LFU[K]) Len() int { return l.n }

// Add takes an entry in; its arrival is its first access.
func (l *LFU[K]) Add(e *Entry[K]) {
	l.now++
	e.count, e.halvings = 1, l.halvings
	if g, ok := l.ghosts[e.Key]; ok {
		e.count = min(halved(g.count, l.halvings-g.halvings)+1, maxCount)
		delete(l.ghosts, e.Key)
	}
	e.home, e.pins, e.used, e.counted = young, 0, l.now, l.now
	l.n++
	l.nYoung++
	insert(&l.young, e)
	for l.nYoung > l.youngMax() && l.n < l.full { // there is room: nobody has to make it
		e := l.young.prev
		if e == &l.young {
			break
		}
		l.promote(e)
	}
	l.count()
}

// Touch says that an entry is used. Accesses to an entry that follow each other
// closely are one access to its count: a page read in small pieces was read once.
func (l *LFU[K]) Touch(e *Entry[K]) {
	l.now++
	l.unlink(e)
	if e.home == old && l.now-e.counted > uint64(l.youngMax()) {
		l.settle(e)
		e.count = min(e.count+1, maxCount)
		e.counted = l.now
		l.count()
	}
	l.link(e)
}

// Pin keeps an entry from becoming a victim until as many calls of Unpin.
func (l *LFU[K]) Pin(e *Entry[K]) {
	l.unlink(e)
	e.pins++
}

// Unpin takes a Pin back. The entry counts as used until now.
func (l *LFU[K]) Unpin(e *Entry[K]) {
	e.pins--
	l.link(e)
}

// Remove takes an entry out that is not wanted any more, pinned or not.
// Its count is forgotten.
func (l *LFU[K]) Remove(e *Entry[K]) {
	l.unlink(e)
	l.leave(e)
}

// Victim takes out the entry that is to leave next and returns it; nil when
// there is none that is not pinned. It is for a full cache only: from how often
// it is asked the LFU knows how many entries the cache can hold.
func (l *LFU[K]) Victim() *Entry[K] {
	l.full = l.n
	v := l.leastUsed()
	if c := l.young.prev; c != &l.young && (v == nil || l.nYoung > l.youngMax()) {
		if v != nil && l.settle(c) > l.settle(v) {
			l.promote(c)
		} else {
			v = c
		}
	}
	if v == nil {
		return nil
	}
	l.unlink(v)
	l.leave(v)
	l.remember(v)
	return v
}

// leastUsed is the entry of the lowest count, and of those the one not used for
// longest; nil when the old are none or all pinned.
func (l *LFU[K]) leastUsed() *Entry[K] {
	for i := range l.old {
		if e := l.old[i].prev; e != &l.old[i] {
			return e
		}
	}
	return nil
}

// youngMax is how many entries may be young in a full cache.
func (l *LFU[K]) youngMax() int { return burst(l.n) }

// promote makes a young, unpinned entry an old one, as if it had just been used.
func (l *LFU[K]) promote(e *Entry[K]) {
	remove(e)
	l.nYoung--
	e.home = old
	l.link(e)
}

// leave ends an entry's membership.
func (l *LFU[K]) leave(e *Entry[K]) {
	l.n--
	if e.home == young {
		l.nYoung--
	}
	e.home, e.pins = out, 0
}

// unlink takes an entry off its list, where it is on one.
func (l *LFU[K]) unlink(e *Entry[K]) {
	if e.pins == 0 {
		remove(e)
	}
}

// link puts an entry, just used, in front of its list, unless it is pinned.
func (l *LFU[K]) link(e *Entry[K]) {
	e.used = l.now
	switch {
	case e.pins > 0:
	case e.home == young:
		insert(&l.young, e)
	default:
		insert(&l.old[l.settle(e)], e)
	}
}

// settle brings an entry's count up to date with the halvings and returns it.
func (l *LFU[K]) settle(e *Entry[K]) uint8 {
	e.count = halved(e.count, l.halvings-e.halvings)
	e.halvings = l.halvings
	return e.count
}

// count notes a counted access and halves all counts when it is time.
func (l *LFU[K]) count() {
	l.pace++
	if l.pace < agePeriod*l.n {
		return
	}
	l.pace = 0
	l.halvings++ // young and pinned entries, and ghosts, are halved when they are looked at
	for i := range l.old {
		if i%2 == 0 {
			merge(&l.old[i/2], &l.old[i], &l.old[i+1])
		}
	}
}

// remember keeps the count of an entry that had to leave, and drops the oldest such.
func (l *LFU[K]) remember(e *Entry[K]) {
	l.ghosts[e.Key] = ghost{l.settle(e), l.halvings, l.now}
	l.order = append(l.order, departure[K]{e.Key, l.now})
	for len(l.order) > max(l.full, minGhosts) {
		d := l.order[0]
		l.order = l.order[1:]
		if l.ghosts[d.key].left == d.left {
			delete(l.ghosts, d.key)
		}
	}
}

func halved(count uint8, times uint64) uint8 { return count >> min(times, 8) }

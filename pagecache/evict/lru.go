package evict

// LRU keeps entries in the order of their last use. O(1) for everything.
type LRU[K comparable] struct {
	order Entry[K] // root of a ring, most recent first; pinned ones are not on it
	n     int
}

// NewLRU makes an empty LRU.
func NewLRU[K comparable]() *LRU[K] {
	l := &LRU[K]{}
	empty(&l.order)
	return l
}

// Len is the number of entries, pinned ones included.
func (l *LRU[K]) Len() int { return l.n }

// Add takes an entry in.
func (l *LRU[K]) Add(e *Entry[K]) {
	e.pins = 0
	l.n++
	insert(&l.order, e)
}

// Touch says that an entry is used.
func (l *LRU[K]) Touch(e *Entry[K]) {
	if e.pins == 0 {
		remove(e)
		insert(&l.order, e)
	}
}

// Pin keeps an entry from becoming a victim.
func (l *LRU[K]) Pin(e *Entry[K]) {
	if e.pins == 0 {
		remove(e)
	}
	e.pins++
}

// Unpin takes a Pin back.
func (l *LRU[K]) Unpin(e *Entry[K]) {
	if e.pins--; e.pins == 0 {
		insert(&l.order, e)
	}
}

// Remove takes an entry out.
func (l *LRU[K]) Remove(e *Entry[K]) {
	if e.pins == 0 {
		remove(e)
	}
	e.pins = 0
	l.n--
}

// Victim takes out the entry that was not used for longest.
func (l *LRU[K]) Victim() *Entry[K] {
	e := l.order.prev
	if e == &l.order {
		return nil
	}
	l.Remove(e)
	return e
}

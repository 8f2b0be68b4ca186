package evict

// Rings: doubly linked, closed through a root that is no entry.

// empty makes a root's ring an empty one.
func empty[K comparable](root *Entry[K]) { root.prev, root.next = root, root }

// insert puts e behind at, which is a root or on a ring.
func insert[K comparable](at, e *Entry[K]) {
	e.prev, e.next = at, at.next
	at.next.prev = e
	at.next = e
}

// remove takes e off its ring.
func remove[K comparable](e *Entry[K]) {
	e.prev.next, e.next.prev = e.next, e.prev
	e.prev, e.next = nil, nil
}

// merge makes dst the ring of all entries of a and b, which may include dst:
// all three are sorted by use, most recent first. Rings other than dst end empty.
func merge[K comparable](dst, a, b *Entry[K]) {
	var all Entry[K]
	empty(&all)
	for a.next != a || b.next != b {
		from := a
		if a.next == a || b.next != b && b.next.used > a.next.used {
			from = b
		}
		e := from.next
		remove(e)
		insert(all.prev, e)
	}
	if all.next == &all {
		return // dst is a, b or was emptied before
	}
	dst.next, dst.prev = all.next, all.prev
	dst.next.prev, dst.prev.next = dst, dst
}

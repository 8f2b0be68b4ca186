package pagecache

import (
	"math/bits"
	"sync"

	"cagefs.dev/cage/remote/page"
)

// buffer is the memory of a page or of a part of one: a power of two, so that
// the many small files of a tree do not take a page each.
type buffer struct {
	b []byte // set at construction: all of it

	// Guarded by Cache.mu. A buffer goes back to the pool when it has neither.
	owner *cached // the page whose bytes these are; nil once that has others or is gone
	holds int     // reads and views that rely on the bytes staying as they are
}

// pool keeps buffers for reuse, by size.
type pool struct{ sized [16]sync.Pool }

// class is the number of the pool for buffers of at least n bytes.
func class(n int) int {
	return max(0, bits.Len(uint(max(n, 1)-1))-bits.Len(uint(page.MinSize-1)))
}

// sizeFor is the size of the buffer that n bytes get.
func sizeFor(n int) int { return int(page.MinSize) << class(n) }

// get returns a buffer for n bytes, whose content is anything. The caller has reserved it.
func (p *pool) get(n int) *buffer {
	if b, ok := p.sized[class(n)].Get().(*buffer); ok {
		return b
	}
	return &buffer{b: make([]byte, sizeFor(n))}
}

func (p *pool) put(b *buffer) {
	if poison {
		for i := range b.b {
			b.b[i] = 0xCC
		}
	}
	p.sized[class(len(b.b))].Put(b)
}

// tryReserveLocked counts n bytes as used, pushing pages out for them; false,
// and nothing reserved, if there are not enough pages to push out.
func (c *Cache) tryReserveLocked(n int) bool {
	if int64(n) > c.budget || !c.makeRoomLocked(int64(n)) {
		return false
	}
	c.bytes += int64(n)
	return true
}

// reserveLocked is tryReserveLocked for those who cannot do without, which are
// the fills that a read waits for: it exceeds the budget when all that is
// cached is in use. What is over is given back as soon as that ends.
func (c *Cache) reserveLocked(n int) {
	c.makeRoomLocked(int64(n))
	c.bytes += int64(n)
}

// unreserveLocked takes a reservation back.
func (c *Cache) unreserveLocked(n int) { c.bytes -= int64(n) }

// makeRoomLocked pushes pages out until n more bytes are within the budget.
func (c *Cache) makeRoomLocked(n int64) bool {
	for c.bytes+n > c.budget {
		e := c.policy.Victim()
		if e == nil {
			return false
		}
		c.stats.Evictions++
		p := c.files[e.Key.id].pages[e.Key.no]
		delete(p.file.pages, p.no)
		p.leaveLocked()
	}
	return true
}

// freeLocked gives a buffer back that nobody uses.
func (c *Cache) freeLocked(b *buffer) {
	c.bytes -= int64(len(b.b))
	c.pool.put(b)
}

// holdLocked keeps a buffer as it is until unholdLocked.
func (c *Cache) holdLocked(b *buffer) {
	b.holds++
	if b.holds == 1 && b.owner != nil {
		c.policy.Pin(&b.owner.entry)
	}
}

// unholdLocked takes a hold back.
func (c *Cache) unholdLocked(b *buffer) {
	b.holds--
	switch {
	case b.holds > 0:
	case b.owner == nil:
		c.freeLocked(b)
	default:
		c.policy.Unpin(&b.owner.entry)
	}
	c.makeRoomLocked(0)
}

// disownLocked says that a buffer's page has others now or is gone.
func (c *Cache) disownLocked(b *buffer) {
	b.owner = nil
	if b.holds == 0 {
		c.freeLocked(b)
	}
}

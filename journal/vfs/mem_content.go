package vfs

import (
	"maps"
	"math/bits"
	"slices"
)

const (
	pageSize    = 4096
	sectorSize  = 512
	chunkPages  = 64
	chunkSize   = chunkPages * pageSize
	chunkSecs   = chunkSize / sectorSize
	maxFileSize = (1<<32 - 1) * pageSize // ext4's
)

// token marks who may change a node of a shared structure in place: whoever
// holds the same token. Sharing is copying the top and taking new tokens, so a
// copy of any size costs little until one of the two is changed.
type token struct{ _ byte }

// content is the bytes of a regular file: pages in chunks, holes left out.
// Bytes beyond size are zero.
type content struct {
	owner  *token
	size   int64
	chunks map[int64]*chunk
}

type chunk struct {
	owner *token
	pages [chunkPages]*page
}

type page struct {
	owner *token
	b     [pageSize]byte
}

// copy returns an independent content. It does not take away the right of c's
// holder to change c: if that goes on, it must call share.
func (c *content) copy() content {
	return content{owner: new(token), size: c.size, chunks: maps.Clone(c.chunks)}
}

// share returns an independent content of a c that will be changed further.
func (c *content) share() content {
	s := c.copy()
	c.owner = new(token)
	return s
}

// peek returns the page with the offset or nil.
func (c *content) peek(off int64) *page {
	ch := c.chunks[off/chunkSize]
	if ch == nil {
		return nil
	}
	return ch.pages[off%chunkSize/pageSize]
}

func (c *content) ownChunk(off int64) *chunk {
	ch := c.chunks[off/chunkSize]
	if ch == nil || ch.owner != c.owner {
		own := &chunk{owner: c.owner}
		if ch != nil {
			own.pages = ch.pages
		}
		if c.chunks == nil {
			c.chunks = make(map[int64]*chunk)
		}
		c.chunks[off/chunkSize], ch = own, own
	}
	return ch
}

// own returns the page with the offset to be changed.
func (c *content) own(off int64) *page {
	p := &c.ownChunk(off).pages[off%chunkSize/pageSize]
	if *p == nil {
		*p = &page{owner: c.owner}
	} else if (*p).owner != c.owner {
		*p = &page{owner: c.owner, b: (*p).b}
	}
	return *p
}

// read fills b; off+len(b) may lie beyond the size.
func (c *content) read(b []byte, off int64) {
	for len(b) > 0 {
		n := min(len(b), int(pageSize-off%pageSize))
		if p := c.peek(off); p != nil {
			copy(b[:n], p.b[off%pageSize:])
		} else {
			clear(b[:n])
		}
		b, off = b[n:], off+int64(n)
	}
}

func (c *content) write(b []byte, off int64) {
	c.size = max(c.size, off+int64(len(b)))
	for len(b) > 0 {
		n := copy(c.own(off).b[off%pageSize:], b)
		b, off = b[n:], off+int64(n)
	}
}

// zero makes [from, to) a hole as far as it is whole pages, zeros elsewhere.
func (c *content) zero(from, to int64) {
	for _, k := range slices.Sorted(maps.Keys(c.chunks)) {
		lo, hi := max(from, k*chunkSize), min(to, (k+1)*chunkSize)
		if hi-lo == chunkSize {
			delete(c.chunks, k)
			continue
		}
		for lo < hi {
			end := min(hi, lo-lo%pageSize+pageSize)
			switch {
			case c.peek(lo) == nil:
			case end-lo == pageSize:
				c.ownChunk(lo).pages[lo%chunkSize/pageSize] = nil
			default:
				clear(c.own(lo).b[lo%pageSize:][:end-lo])
			}
			lo = end
		}
	}
}

func (c *content) truncate(size int64) {
	if size < c.size {
		c.zero(size, maxFileSize)
	}
	c.size = size
}

// nextPage returns the first offset at or after off in a page that is there
// (data) or not, and the size at most.
func (c *content) nextPage(off int64, data bool) int64 {
	for off < c.size {
		ch := c.chunks[off/chunkSize]
		switch {
		case ch == nil && !data, ch != nil && (ch.pages[off%chunkSize/pageSize] != nil) == data:
			return off
		case ch != nil:
			off += pageSize - off%pageSize
		default: // on to the next chunk that is there
			next := c.size
			for k := range c.chunks {
				if start := k * chunkSize; start > off {
					next = min(next, start)
				}
			}
			off = next
		}
	}
	return c.size
}

// blocks counts the space in use, in 512 bytes.
func (c *content) blocks() uint64 {
	var n uint64
	for _, ch := range c.chunks {
		for _, p := range ch.pages {
			if p != nil {
				n += pageSize / sectorSize
			}
		}
	}
	return n
}

// sectors is a set of sectors of a file, as bits by chunk.
type sectors map[int64][chunkSecs / 64]uint64

// add puts in the sectors that [off, end) touches.
func (s *sectors) add(off, end int64) {
	if *s == nil {
		*s = make(sectors)
	}
	s.edit(off, end, func(word *uint64, mask uint64) { *word |= mask })
}

func (s *sectors) remove(off, end int64) {
	if len(*s) == 0 {
		return
	}
	s.edit(off, end, func(word *uint64, mask uint64) { *word &^= mask })
}

func (s *sectors) edit(off, end int64, f func(word *uint64, mask uint64)) {
	first, last := off/sectorSize, (end+sectorSize-1)/sectorSize
	for first < last {
		k := first / chunkSecs
		words := (*s)[k]
		for stop := min(last, (k+1)*chunkSecs); first < stop; {
			n := min(64-first%64, stop-first)
			f(&words[first%chunkSecs/64], ^uint64(0)>>(64-n)<<(first%64))
			first += n
		}
		(*s)[k] = words
	}
}

// each calls f with the offsets of the sectors, ascending.
func (s sectors) each(f func(off int64)) {
	for _, k := range slices.Sorted(maps.Keys(s)) {
		for i, word := range s[k] {
			for ; word != 0; word &= word - 1 {
				f((k*chunkSecs + int64(i*64+bits.TrailingZeros64(word))) * sectorSize)
			}
		}
	}
}

func (s sectors) union(t sectors) sectors {
	u := maps.Clone(s)
	if u == nil {
		u = make(sectors)
	}
	for k, words := range t {
		have := u[k]
		for i := range words {
			have[i] |= words[i]
		}
		u[k] = have
	}
	return u
}

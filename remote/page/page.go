// Package page is the geometry of pages: fixed-size aligned pieces of a file.
// Pure arithmetic on offsets; no I/O, no memory. It imports nothing of Cage.
//
// Offsets and lengths are bytes, never negative, and no sum of them is above
// MaxOffset, the largest file. Sizes are valid (Size.Valid): whoever takes one
// from outside checks it once.
package page

import (
	"iter"
	"math"
)

// Size is the bytes of a page: a power of two, 4 KiB to 4 MiB.
type Size int

const (
	// MinSize is the smallest page, one page of the kernel's cache.
	MinSize Size = 4 << 10
	// DefaultSize is what a cache begins with.
	DefaultSize Size = 128 << 10
	// MaxSize is the largest page.
	MaxSize Size = 4 << 20
)

// MaxOffset is the largest size of a file.
const MaxOffset = math.MaxInt64

// No is the number of a page in a file, from 0.
type No int64

// Piece is a part of one page.
type Piece struct {
	No  No
	Off int // from the page's start
	Len int
}

// Valid reports whether a page can have this size.
func (s Size) Valid() bool { return MinSize <= s && s <= MaxSize && s&(s-1) == 0 }

// No is the page that holds the byte at an offset.
func (s Size) No(off int64) No { return No(off / int64(s)) }

// Start is the offset of a page's first byte.
func (s Size) Start(no No) int64 { return int64(no) * int64(s) }

// In is the distance of an offset from its page's start.
func (s Size) In(off int64) int { return int(off % int64(s)) }

// Whole reports whether a piece is its whole page.
func (s Size) Whole(p Piece) bool { return p.Off == 0 && p.Len == int(s) }

// Range is the piece's place in the file.
func (s Size) Range(p Piece) Range {
	return Range{Off: s.Start(p.No) + int64(p.Off), Len: int64(p.Len)}
}

// Len is how many bytes of a page lie in a file of a size.
func (s Size) Len(no No, size int64) int {
	return int(max(0, min(size-s.Start(no), int64(s))))
}

// Count is the number of pages that have bytes in a range.
func (s Size) Count(off, n int64) int64 {
	if n <= 0 {
		return 0
	}
	return int64(s.No(off+n-1)-s.No(off)) + 1
}

// Split cuts a range of a file into pieces of pages, in order. They are never
// empty and cover the range exactly.
func (s Size) Split(off, n int64) iter.Seq[Piece] {
	return func(yield func(Piece) bool) {
		for n > 0 {
			p := Piece{No: s.No(off), Off: s.In(off)}
			p.Len = int(min(n, int64(s)-int64(p.Off)))
			if !yield(p) {
				return
			}
			off += int64(p.Len)
			n -= int64(p.Len)
		}
	}
}

// Around is the smallest range of whole pages that holds r; it is cut at
// MaxOffset. An empty range stays as it is.
func (s Size) Around(r Range) Range {
	if r.Empty() {
		return r
	}
	start := s.Start(s.No(r.Off))
	pages := s.Count(r.Off, r.Len)
	if pages > (MaxOffset-start)/int64(s) {
		return Range{Off: start, Len: MaxOffset - start}
	}
	return Range{Off: start, Len: pages * int64(s)}
}

// Inside is the largest range of whole pages within r. Where there is none it
// is empty.
func (s Size) Inside(r Range) Range {
	skip := int64(0)
	if in := s.In(r.Off); in != 0 {
		skip = int64(s) - int64(in)
	}
	if r.Len-skip < int64(s) {
		return Range{Off: r.Off}
	}
	return Range{Off: r.Off + skip, Len: (r.Len - skip) / int64(s) * int64(s)}
}

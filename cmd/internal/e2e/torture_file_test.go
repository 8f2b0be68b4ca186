package e2e

import (
	"fmt"
	"os"
	"slices"
	"strings"
)

// ownFile is what a worker of a torture knows of a file of its own. What an fsync has confirmed is
// certain; what was written since may be lost, in blocks, once its mount was away for longer than the term.
type ownFile struct {
	synced  contents   // when the last fsync returned
	pending []ownWrite // since then
	mode    os.FileMode
}

// ownWrite is a change of a file: a letter n times at off, or a cut at n.
type ownWrite struct {
	cut    bool
	letter byte
	off, n int
	doubt  bool // it may be lost
}

// atEnd is the off of a write that appends.
const atEnd = -1

// now returns what the file may have.
func (f *ownFile) now() contents {
	c := f.synced.clone()
	for _, o := range f.pending {
		c.change(o)
	}
	return c
}

// doubt says that what no fsync has confirmed may be lost.
func (f *ownFile) doubt() {
	for i := range f.pending {
		f.pending[i].doubt = true
	}
}

// confirm says that an fsync has returned of the open file by which all from the from-th pending write on was written.
func (f *ownFile) confirm(from int) {
	for i := range f.pending[from:] {
		f.pending[from+i].doubt = false
	}
	f.synced, f.pending = f.now(), nil
}

// settle reports whether a content is one that the file may have; if nothing is under way, it is what it stays.
func (f *ownFile) settle(b []byte) bool {
	if !f.now().have(b) {
		return false
	}
	if len(f.pending) == 0 {
		f.synced = exactly(b)
	}
	return true
}

// contents are those that a file may have.
type contents struct {
	sizes []int    // sorted, at least one
	bytes []uint32 // sets of letters, with '`' for 0; as many as the greatest size
}

// set is one letter, or 0, as a set.
func set(letter byte) uint32 {
	if letter == 0 {
		letter = '`'
	}
	return 1 << (letter - '`')
}

func exactly(b []byte) contents {
	c := contents{sizes: []int{len(b)}, bytes: make([]uint32, len(b))}
	for i, letter := range b {
		c.bytes[i] = set(letter)
	}
	return c
}

func (c contents) clone() contents {
	return contents{sizes: slices.Clone(c.sizes), bytes: slices.Clone(c.bytes)}
}

// certain reports whether there is only one.
func (c contents) certain() bool {
	return len(c.sizes) == 1 && !slices.ContainsFunc(c.bytes, func(s uint32) bool { return s&(s-1) != 0 })
}

// have reports whether b is one of them.
func (c contents) have(b []byte) bool {
	if !slices.Contains(c.sizes, len(b)) {
		return false
	}
	for i, letter := range b {
		if letter != 0 && (letter < 'a' || letter > 'z') || c.bytes[i]&set(letter) == 0 {
			return false
		}
	}
	return true
}

// change makes a change that is done, or, in doubt, may be done in part.
func (c *contents) change(o ownWrite) {
	var sizes []int
	for _, size := range c.sizes {
		if o.doubt {
			sizes = append(sizes, size)
		}
		switch {
		case o.cut:
			sizes = append(sizes, o.n)
		case o.off == atEnd:
			sizes = append(sizes, size+o.n)
		default:
			sizes = append(sizes, max(size, o.off+o.n))
		}
		for cut := (size/lostBlock + 1) * lostBlock; o.doubt && !o.cut && cut < sizes[len(sizes)-1]; cut += lostBlock {
			sizes = append(sizes, cut)
		}
	}
	slices.Sort(sizes)
	sizes = slices.Compact(sizes)
	old := c.sizes
	c.sizes = sizes
	c.bytes = slices.Grow(c.bytes, sizes[len(sizes)-1])
	c.bytes = append(c.bytes, make([]uint32, max(0, sizes[len(sizes)-1]-len(c.bytes)))...)
	c.bytes = c.bytes[:sizes[len(sizes)-1]]
	holes := old[0] // from there on there was nothing, perhaps
	if o.cut {
		holes = min(holes, o.n)
	}
	for i := holes; i < len(c.bytes); i++ {
		c.bytes[i] |= set(0)
	}
	if o.cut {
		return
	}
	for _, off := range old {
		if o.off != atEnd {
			off = o.off
		}
		for i := off; i < off+o.n; i++ {
			if o.doubt || o.off == atEnd && len(old) > 1 {
				c.bytes[i] |= set(o.letter)
			} else {
				c.bytes[i] = set(o.letter)
			}
		}
	}
}

// lostBlock is what a server that was killed loses as a whole of a write that it had not applied yet.
const lostBlock = 4096

func (c contents) String() string {
	var out strings.Builder
	fmt.Fprintf(&out, "%v bytes: ", c.sizes)
	for i := 0; i < len(c.bytes) && out.Len() < 300; {
		n := i
		for n < len(c.bytes) && c.bytes[n] == c.bytes[i] {
			n++
		}
		fmt.Fprintf(&out, "%d×", n-i)
		for bit := range 27 {
			if c.bytes[i]&(1<<bit) != 0 {
				fmt.Fprintf(&out, "%c", '`'+bit)
			}
		}
		out.WriteByte(' ')
		i = n
	}
	return out.String()
}

// brief is bytes as runs, for people.
func brief(b []byte) string {
	var out strings.Builder
	for i := 0; i < len(b) && out.Len() < 200; {
		n := i
		for n < len(b) && b[n] == b[i] {
			n++
		}
		fmt.Fprintf(&out, "%d×%q ", n-i, b[i])
		i = n
	}
	return fmt.Sprintf("%d bytes: %s", len(b), &out)
}

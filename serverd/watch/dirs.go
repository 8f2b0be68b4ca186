package watch

import (
	"math"
	"slices"
	"strings"

	"cagefs.dev/cage/journal/vfs"
)

// watched is a directory that has a watch. It takes about dirCost bytes.
type watched struct {
	wd     int32
	walk   uint32 // that met it last
	ident  vfs.Ident
	name   string
	tries  uint8  // in a row to list it that failed
	cookie uint64 // of its listing: where to go on
	tell   int64  // which of its entries are news when it is listed: those that were born then or later

	up, down, next, prev *watched // parent, one of the children, siblings
}

// dirCost is about what a directory takes in memory, with its place in the map.
const dirCost = 160

// What of a directory is told when it is listed: see watched.tell.
const (
	tellAll  = math.MinInt64
	tellNone = math.MaxInt64
)

// dirs are the directories that have a watch: a forest, most of which hangs below
// the root. It belongs to one goroutine.
type dirs struct{ byWatch map[int32]*watched }

func newDirs() dirs { return dirs{map[int32]*watched{}} }

func (s *dirs) add(wd int32, ident vfs.Ident) *watched {
	d := &watched{wd: wd, ident: ident, tell: tellNone}
	s.byWatch[wd] = d
	return d
}

// hang puts a directory under a name of another.
func (s *dirs) hang(d, up *watched, name string) {
	if d.up == up && d.name == name {
		return
	}
	for a := up; a != nil; a = a.up {
		if a == d { // its new parent was below it: where that is now its own event tells
			s.cut(up)
			break
		}
	}
	s.cut(d)
	d.up, d.name = up, strings.Clone(name)
	if d.next = up.down; d.next != nil {
		d.next.prev = d
	}
	up.down = d
}

// cut takes a directory from its parent.
func (s *dirs) cut(d *watched) {
	if d.prev != nil {
		d.prev.next = d.next
	} else if d.up != nil {
		d.up.down = d.next
	}
	if d.next != nil {
		d.next.prev = d.prev
	}
	d.up, d.next, d.prev = nil, nil, nil
}

// remove forgets a directory and all below it, and returns them.
func (s *dirs) remove(d *watched) []*watched {
	s.cut(d)
	gone := []*watched{d}
	for i := 0; i < len(gone); i++ {
		for c := gone[i].down; c != nil; c = c.next {
			gone = append(gone, c)
		}
	}
	for _, g := range gone {
		delete(s.byWatch, g.wd)
	}
	return gone
}

// names are those of the path of a directory.
func (d *watched) names() (out []string) {
	for ; d.up != nil; d = d.up {
		out = append(out, d.name)
	}
	slices.Reverse(out)
	return out
}

func (d *watched) path() string { return strings.Join(d.names(), "/") }

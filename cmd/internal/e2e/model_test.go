package e2e

import (
	"bytes"
	"fmt"
	"io/fs"
	"maps"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"
)

// kind says what a step of a load does.
type kind string

const (
	create   kind = "create"     // O_CREAT|O_EXCL
	write    kind = "write"      // pwrite
	appendTo kind = "append"     // O_APPEND
	truncate kind = "truncate"   // any size
	syncFile kind = "fsync"      // or fdatasync
	syncDir  kind = "fsync dir"  // of the directory of path
	syncAll  kind = "fsync root" // of the mount
	rename   kind = "rename"     // of a file, over a file or not; of a directory
	unlink   kind = "unlink"
	link     kind = "link"
	symlink  kind = "symlink" // path to the text in to
	mkdir    kind = "mkdir"
	rmdir    kind = "rmdir"
	chmod    kind = "chmod"
	hold     kind = "hold" // open path and keep the descriptor in slot
	drop     kind = "drop" // close slot
	readBack kind = "read" // and compare
	list     kind = "list" // the directory path, and compare
)

// step is one operation of a worker. Paths are below the worker's directory.
type step struct {
	kind     kind
	path, to string
	off, n   int64
	mode     uint32
	seed     uint64    // of the bytes
	slot     string    // append, fsync, read: through the descriptor held there
	at       time.Time // when it began
}

func (s step) String() string {
	out := string(s.kind) + " " + s.path
	switch s.kind {
	case rename, link, symlink:
		out += " " + s.to
	case write, appendTo:
		out += fmt.Sprintf(" [%d,+%d) #%x", s.off, s.n, s.seed)
	case truncate:
		out += fmt.Sprintf(" %d", s.n)
	case chmod, create, mkdir:
		out += fmt.Sprintf(" %o", s.mode)
	}
	if s.slot != "" {
		out += " (held as " + s.slot + ")"
	}
	return out
}

// data are the bytes that a step writes.
func (s step) data() []byte {
	b := make([]byte, s.n)
	rng := rand.NewChaCha8([32]byte{byte(s.seed), byte(s.seed >> 8), byte(s.seed >> 16), byte(s.seed >> 24), byte(s.seed >> 32)})
	rng.Read(b)
	return b
}

// ordered says that when the step has returned, it and all before it are
// committed, not only taken.
func (s step) ordered() bool {
	switch s.kind {
	case write, appendTo, hold, drop, readBack, list:
		return false
	}
	return true
}

// span is a range of bytes.
type span struct{ from, to int64 }

// inode is a file, directory or symlink of a model.
type inode struct {
	typ   fs.FileMode
	mode  uint32
	data  []byte // or a symlink's text
	loose []span // written since the file was last known to be durable
}

// model is what a worker's directory should contain, and what the worker holds open.
type model struct {
	tree map[string]*inode // by path below the worker's directory
	held map[string]*inode // by slot
}

func newModel() *model { return &model{tree: map[string]*inode{}, held: map[string]*inode{}} }

func (m *model) clone() *model {
	done := map[*inode]*inode{}
	copied := func(in map[string]*inode) map[string]*inode {
		out := make(map[string]*inode, len(in))
		for p, n := range in {
			if done[n] == nil {
				done[n] = &inode{typ: n.typ, mode: n.mode, data: bytes.Clone(n.data), loose: slices.Clone(n.loose)}
			}
			out[p] = done[n]
		}
		return out
	}
	return &model{tree: copied(m.tree), held: copied(m.held)}
}

// below returns the paths in a directory, at any depth.
func (m *model) below(dir string) (paths []string) {
	for p := range m.tree {
		if strings.HasPrefix(p, dir+"/") {
			paths = append(paths, p)
		}
	}
	return paths
}

// target is the inode that a step is about.
func (m *model) target(s step) *inode {
	if s.slot != "" && s.kind != hold {
		return m.held[s.slot]
	}
	return m.tree[s.path]
}

// apply does a step. durable says that what the step makes durable is so: it
// has returned, and did so before the power failed.
func (m *model) apply(s step, durable bool) {
	n := m.target(s)
	switch s.kind {
	case create:
		m.tree[s.path] = &inode{mode: s.mode}
	case write, appendTo:
		m.write(s, s.n)
	case truncate:
		if s.n <= int64(len(n.data)) {
			n.data = n.data[:s.n]
		} else {
			n.data = append(n.data, make([]byte, s.n-int64(len(n.data)))...)
		}
	case syncFile:
		n.durable(durable)
	case syncAll:
		for _, n := range m.tree {
			n.durable(durable)
		}
	case rename:
		m.rename(s, durable)
	case unlink, rmdir:
		delete(m.tree, s.path)
	case link:
		n.durable(durable)
		m.tree[s.to] = n
	case symlink:
		m.tree[s.path] = &inode{typ: fs.ModeSymlink, mode: 0o777, data: []byte(s.to)}
	case mkdir:
		m.tree[s.path] = &inode{typ: fs.ModeDir, mode: s.mode}
	case chmod:
		n.mode = s.mode
	case hold:
		m.held[s.slot] = n
	case drop:
		delete(m.held, s.slot)
	}
}

func (n *inode) durable(yes bool) {
	if yes {
		n.loose = nil
	}
}

// write does the first bytes of a write.
func (m *model) write(s step, part int64) {
	n, off := m.target(s), m.offset(s)
	if end := off + part; end > int64(len(n.data)) {
		n.data = append(n.data, make([]byte, end-int64(len(n.data)))...)
	}
	copy(n.data[off:], s.data()[:part])
	n.loose = append(n.loose, span{off, off + part})
}

// offset is where a write goes.
func (m *model) offset(s step) int64 {
	if s.kind == appendTo {
		return int64(len(m.target(s).data))
	}
	return s.off
}

func (m *model) rename(s step, durable bool) {
	n, old := m.tree[s.path], m.tree[s.to]
	if n == old { // two names of one file: both stay
		return
	}
	if old != nil {
		n.durable(durable) // a file replaces another only when its bytes are durable
	}
	for _, p := range m.below(s.path) {
		m.tree[s.to+strings.TrimPrefix(p, s.path)] = m.tree[p]
		delete(m.tree, p)
	}
	delete(m.tree, s.path)
	m.tree[s.to] = n
}

// found is what lies on a disk under a path.
type found struct {
	typ   fs.FileMode
	mode  uint32
	data  []byte
	ino   uint64
	nlink uint64
}

// readTree reads what lies below a directory.
func readTree(dir string) (map[string]*found, error) {
	out := map[string]*found{}
	err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil || path == dir {
			return err
		}
		info, err := d.Info()
		if err != nil {
			return err
		}
		st := info.Sys().(*syscall.Stat_t)
		f := &found{typ: info.Mode().Type(), mode: st.Mode & 0o7777, ino: st.Ino, nlink: uint64(st.Nlink)}
		switch f.typ {
		case 0:
			f.data, err = os.ReadFile(path)
		case fs.ModeSymlink:
			var text string
			text, err = os.Readlink(path)
			f.data = []byte(text)
		}
		rel, _ := filepath.Rel(dir, path)
		out[rel] = f
		return err
	})
	return out, err
}

// differences compares a disk with a model and returns at most a handful of
// lines. missing are the ranges, by path, that recovery said were lost: they
// excuse bytes that nobody had synced.
func (m *model) differences(got map[string]*found, missing map[string][]span) (lines []string) {
	bad := func(format string, args ...any) {
		if len(lines) < 6 {
			lines = append(lines, fmt.Sprintf(format, args...))
		}
	}
	lost := map[*inode][]span{}
	for p, spans := range missing {
		if n := m.tree[p]; n != nil {
			lost[n] = append(lost[n], spans...)
		}
	}
	inos := map[*inode]uint64{}
	for _, p := range slices.Sorted(maps.Keys(m.tree)) {
		n, g := m.tree[p], got[p]
		switch {
		case g == nil:
			bad("%s is missing", p)
			continue
		case g.typ != n.typ:
			bad("%s is a %v, want a %v", p, g.typ, n.typ)
			continue
		case n.typ != fs.ModeSymlink && g.mode != n.mode:
			bad("%s has mode %o, want %o", p, g.mode, n.mode)
		}
		if first, ok := inos[n]; ok && first != g.ino {
			bad("%s is no link of the same file any more", p)
		}
		inos[n] = g.ino
		for _, line := range n.compare(g.data, lost[n]) {
			bad("%s: %s", p, line)
		}
	}
	for _, p := range slices.Sorted(maps.Keys(got)) {
		if m.tree[p] == nil {
			bad("%s is there and should not be (%d bytes)", p, len(got[p].data))
		}
	}
	return lines
}

// compare returns where content differs from the model without an excuse.
func (n *inode) compare(got []byte, missing []span) (lines []string) {
	if len(missing) == 0 && bytes.Equal(got, n.data) {
		return nil
	}
	excused := make([]bool, len(n.data))
	mark := func(spans []span, value bool) {
		for _, s := range spans {
			for i := s.from; i < min(s.to, int64(len(excused))); i++ {
				excused[i] = value
			}
		}
	}
	// Only unsynced bytes may be missing; recovery counts in whole blocks.
	mark(n.loose, true)
	for _, m := range missing {
		for i := m.from; i < min(m.to, int64(len(excused))); i++ {
			if !excused[i] && !zeroOrSame(got, n.data, i) {
				return []string{fmt.Sprintf("recovery lists [%d,+%d) as missing, but byte %d was synced", m.from, m.to-m.from, i)}
			}
		}
	}
	listed := make([]bool, len(n.data))
	for _, m := range missing {
		for i := m.from; i < min(m.to, int64(len(listed))); i++ {
			listed[i] = true
		}
	}
	if len(got) > len(n.data) {
		return []string{fmt.Sprintf("size %d, want %d", len(got), len(n.data))}
	}
	for i := range n.data {
		switch {
		case i < len(got) && got[i] == n.data[i]:
		case excused[i] && listed[i] && (i >= len(got) || got[i] == 0):
		case i >= len(got):
			return []string{fmt.Sprintf("size %d, want %d; byte %d is not excused (unsynced %v, listed %v)", len(got), len(n.data), i, excused[i], listed[i])}
		default:
			return []string{fmt.Sprintf("byte %d of %d is %#x, want %#x (unsynced %v, listed %v)", i, len(n.data), got[i], n.data[i], excused[i], listed[i])}
		}
	}
	return nil
}

// zeroOrSame: a lost byte was zero anyway.
func zeroOrSame(got, want []byte, i int64) bool {
	return i < int64(len(got)) && got[i] == want[i]
}

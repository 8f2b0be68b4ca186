package e2e

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"maps"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"

	"golang.org/x/sys/unix"
)

// arenaOfAll is what the workers of a torture share, and what they found there.
type arenaOfAll struct {
	holders atomic.Int32 // of the token: those who renamed it away and have not yet put it back
	winners sync.Map     // of an exclusive name: how many made it, *atomic.Int32

	mu      sync.Mutex
	certain map[string]bool // appended lines that an fsync has confirmed
	maybe   map[string]bool // those whose fsync failed: there once or never
	counts  map[int]string  // values of the counter that an fsync has confirmed, and by whom
	unsure  int             // increments whose fsync failed
}

// ownFile is what a worker knows of a file of its own directory.
type ownFile struct {
	content []byte
	mode    os.FileMode
	dirty   bool // written since the last fsync
	doubt   bool // its mount was away for longer than the term while it was dirty
}

// tortured is a worker: it does things in a directory of its own, of which it
// knows exactly what must be there, and in one that all share.
type tortured struct {
	name   string
	point  string // the mount that it works through
	own    string // below point and export
	shared *arenaOfAll
	rand   *rand.Rand
	ops    int
	lost   int // operations that were told that an earlier write, or a lock, is lost

	mu    sync.Mutex
	files map[string]*ownFile
	dirs  map[string]bool
}

// away says that the worker's mount is away for longer than the term of its leases,
// or was until now: what it has written and not synced may be lost with the leases.
func (w *tortured) away() {
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, f := range w.files {
		f.doubt = f.doubt || f.dirty
	}
}

// forgivable reports whether an error says that something earlier is lost.
func forgivable(err error) bool { return errors.Is(err, unix.EIO) }

// run works until stop is closed. An error that nothing excuses ends it.
func (w *tortured) run(stop <-chan struct{}) error {
	for {
		select {
		case <-stop:
			return nil
		default:
		}
		what, err := w.step()
		if forgivable(err) {
			w.lost++
			err = nil
		}
		if err != nil {
			return fmt.Errorf("%s: %s: %w", w.name, what, err)
		}
		w.ops++
	}
}

func (w *tortured) step() (what string, err error) {
	switch n := w.rand.IntN(100); {
	case n < 30:
		return "write", w.write()
	case n < 40:
		return "rename", w.rename()
	case n < 48:
		return "remove", w.remove()
	case n < 55:
		return "mkdir", w.mkdir()
	case n < 62:
		return "chmod", w.chmod()
	case n < 70:
		return "read", w.read()
	case n < 82:
		return "append to the log", w.appendLine()
	case n < 90:
		return "count", w.count()
	case n < 95:
		return "make an exclusive name", w.exclusive()
	}
	return "take the token", w.token()
}

func (w *tortured) path(name string) string { return filepath.Join(w.point, w.own, name) }

func (w *tortured) pick() (string, *ownFile) {
	w.mu.Lock()
	defer w.mu.Unlock()
	names := slices.Sorted(maps.Keys(w.files))
	if len(names) == 0 {
		return "", nil
	}
	name := names[w.rand.IntN(len(names))]
	return name, w.files[name]
}

// note changes what is known, at once for away.
func (w *tortured) note(f func()) {
	w.mu.Lock()
	defer w.mu.Unlock()
	f()
}

// write makes a file, or writes into one: over, behind, at the end, cut off.
func (w *tortured) write() error {
	name, f := w.pick()
	if f == nil || len(w.files) < 20 && w.rand.IntN(2) == 0 {
		name = fmt.Sprintf("f%d", w.rand.IntN(40))
		if len(w.dirs) > 0 && w.rand.IntN(2) == 0 {
			name = slices.Sorted(maps.Keys(w.dirs))[0] + "/" + name
		}
		if f = w.files[name]; f == nil {
			f = &ownFile{mode: 0o644}
		}
	}
	fd, err := os.OpenFile(w.path(name), os.O_RDWR|os.O_CREATE, 0o644)
	if err != nil {
		return err
	}
	defer fd.Close()
	w.note(func() { w.files[name] = f })
	data := bytes.Repeat([]byte{byte('a' + w.rand.IntN(26))}, 1+w.rand.IntN(9000))
	off := w.rand.IntN(len(f.content) + 5000)
	switch w.rand.IntN(3) {
	case 0:
		off = len(f.content)
	case 1:
		off = 0
		w.note(func() { f.content, f.dirty, f.doubt = nil, true, false })
		if err := fd.Truncate(0); err != nil {
			w.note(func() { f.doubt = true })
			return err
		}
	}
	w.note(func() {
		f.dirty = true
		if end := off + len(data); end > len(f.content) {
			f.content = append(f.content, make([]byte, end-len(f.content))...)
		}
		copy(f.content[off:], data)
	})
	if _, err := fd.WriteAt(data, int64(off)); err != nil {
		w.note(func() { f.doubt = true })
		return err
	}
	if w.rand.IntN(2) == 0 {
		return nil
	}
	if err := fd.Sync(); err != nil {
		w.note(func() { f.doubt = true })
		return err
	}
	w.note(func() { f.dirty = false })
	return nil
}

func (w *tortured) rename() error {
	name, f := w.pick()
	if f == nil {
		return nil
	}
	to := fmt.Sprintf("r%d", w.rand.IntN(20))
	if err := os.Rename(w.path(name), w.path(to)); err != nil {
		return err
	}
	w.note(func() {
		delete(w.files, name)
		w.files[to] = f
	})
	return nil
}

func (w *tortured) remove() error {
	name, f := w.pick()
	if f == nil {
		return nil
	}
	if err := os.Remove(w.path(name)); err != nil {
		return err
	}
	w.note(func() { delete(w.files, name) })
	return nil
}

// mkdir makes a directory, or removes one that is empty; one that is not must stay.
func (w *tortured) mkdir() error {
	name := fmt.Sprintf("d%d", w.rand.IntN(4))
	if !w.dirs[name] {
		if err := os.Mkdir(w.path(name), 0o755); err != nil {
			return err
		}
		w.dirs[name] = true
		return nil
	}
	full := slices.ContainsFunc(slices.Collect(maps.Keys(w.files)), func(f string) bool { return strings.HasPrefix(f, name+"/") })
	err := unix.Rmdir(w.path(name))
	switch {
	case full && err == unix.ENOTEMPTY:
		return nil
	case full || err != nil:
		return fmt.Errorf("rmdir of a directory, full %v: %w", full, err)
	}
	delete(w.dirs, name)
	return nil
}

func (w *tortured) chmod() error {
	name, f := w.pick()
	if f == nil {
		return nil
	}
	mode := os.FileMode(0o600 + w.rand.IntN(0o100))
	if err := os.Chmod(w.path(name), mode); err != nil {
		return err
	}
	f.mode = mode
	return nil
}

// read compares a file with what is known of it.
func (w *tortured) read() error {
	name, f := w.pick()
	if f == nil {
		return nil
	}
	got, err := os.ReadFile(w.path(name))
	if err != nil {
		return err
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	if !f.doubt && !bytes.Equal(got, f.content) {
		return fmt.Errorf("%s has %s, not %s", name, brief(got), brief(f.content))
	}
	return nil
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

func (w *tortured) common(name string) string { return filepath.Join(w.point, "shared", name) }

// appendLine appends some lines to a file that all append to.
func (w *tortured) appendLine() error {
	fd, err := os.OpenFile(w.common("log"), os.O_WRONLY|os.O_APPEND, 0)
	if err != nil {
		return err
	}
	defer fd.Close()
	var lines []string
	for n := range 1 + w.rand.IntN(5) {
		line := fmt.Sprintf("%s-%d.%d", w.name, w.ops, n)
		lines = append(lines, line)
		if _, err = fd.WriteString(line + "\n"); err != nil {
			break
		}
	}
	if err == nil {
		err = fd.Sync()
	}
	w.shared.mu.Lock()
	defer w.shared.mu.Unlock()
	for _, line := range lines {
		if err == nil {
			w.shared.certain[line] = true
		} else {
			w.shared.maybe[line] = true
		}
	}
	return err
}

// count adds one to a number in a file, under a lock.
func (w *tortured) count() error {
	fd, err := os.OpenFile(w.common("counter"), os.O_RDWR, 0)
	if err != nil {
		return err
	}
	defer fd.Close()
	for {
		err = unix.FcntlFlock(fd.Fd(), unix.F_OFD_SETLKW, &unix.Flock_t{Type: unix.F_WRLCK})
		if err != unix.EINTR {
			break
		}
	}
	if err != nil {
		return err
	}
	b := make([]byte, 20)
	n, err := fd.ReadAt(b, 0)
	if err != nil && err != io.EOF {
		return err
	}
	value, err := strconv.Atoi(strings.TrimSpace(string(b[:n])))
	if err != nil {
		return fmt.Errorf("the counter is %q", b[:n])
	}
	value++
	if _, err = fd.WriteAt(fmt.Appendf(nil, "%10d", value), 0); err == nil {
		err = fd.Sync()
	}
	w.shared.mu.Lock()
	defer w.shared.mu.Unlock()
	if err != nil {
		w.shared.unsure++
		return err
	}
	if other := w.shared.counts[value]; other != "" {
		return fmt.Errorf("%s had counted to %d already", other, value)
	}
	w.shared.counts[value] = w.name
	return nil
}

// exclusive makes a name that all want to make.
func (w *tortured) exclusive() error {
	name := fmt.Sprintf("x%d", w.ops/8)
	fd, err := os.OpenFile(w.common(name), os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o644)
	if errors.Is(err, unix.EEXIST) {
		return nil
	}
	if err != nil {
		return err
	}
	n, _ := w.shared.winners.LoadOrStore(name, new(atomic.Int32))
	if n.(*atomic.Int32).Add(1) != 1 {
		err = fmt.Errorf("%s was made twice", name)
	}
	return errors.Join(err, fd.Close())
}

// token renames a file away and back, which at any time one can have done.
func (w *tortured) token() error {
	mine := w.common("token." + w.name)
	if err := os.Rename(w.common("token"), mine); errors.Is(err, unix.ENOENT) {
		return nil
	} else if err != nil {
		return err
	}
	n := w.shared.holders.Add(1)
	_, err := os.Lstat(w.common("token"))
	w.shared.holders.Add(-1)
	if !errors.Is(err, unix.ENOENT) {
		return fmt.Errorf("it was taken and is there: %v", err)
	}
	if err := os.Rename(mine, w.common("token")); err != nil {
		return fmt.Errorf("to put it back: %w", err)
	}
	if n != 1 {
		return fmt.Errorf("%d have it", n)
	}
	return nil
}

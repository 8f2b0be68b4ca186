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
	"time"

	"golang.org/x/sys/unix"
)

// arenaOfAll is what the workers of a torture share, and what they found there.
type arenaOfAll struct {
	holders atomic.Int32 // of the token: those who renamed it away and have not yet put it back

	mu      sync.Mutex
	certain map[string]bool // appended lines that an fsync has confirmed
	maybe   map[string]bool // those whose fsync failed, or whose writer was killed: there once or never
	counts  map[int]string  // values of the counter that an fsync has confirmed, and by whom
	unsure  int             // increments whose fsync failed
	names   map[string]int  // that all want to make and to remove: how often made, less how often removed
	links   int             // hard links of the token that were made and not removed
	vague   map[string]bool // names of which a call failed with EIO
}

// mayAppend says that a process that is to be killed appends its lines.
func (a *arenaOfAll) mayAppend(victim string) {
	a.mu.Lock()
	defer a.mu.Unlock()
	for n := range victimLines {
		a.maybe[fmt.Sprintf("%s.%d", victim, n+1)] = true
	}
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
	gone  time.Time           // when its mount was last known to be away
	files map[string]*ownFile // by names; the names of one file have the same
	dirs  map[string]bool
	syms  map[string]string // symlinks and where they lead
}

// away says that the worker's mount will be away for longer than the term of its leases, is, or
// was until now: what it has written and not synced may be lost with the leases.
func (w *tortured) away() {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.gone = time.Now()
	for _, f := range w.files {
		f.doubt()
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
		if forgivable(err) && w.excused() {
			w.lost++
			err = nil
		}
		if err != nil {
			return fmt.Errorf("%s: %s: %w", w.name, what, err)
		}
		w.ops++
	}
}

// excused reports whether the worker's mount is, or was just now, away for so long that it may have lost something.
func (w *tortured) excused() bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	return time.Since(w.gone) < 2*tortureAway
}

func (w *tortured) step() (what string, err error) {
	switch n := w.rand.IntN(100); {
	case n < 28:
		return "write", w.write()
	case n < 36:
		return "rename", w.rename()
	case n < 42:
		return "remove", w.remove()
	case n < 46:
		return "link", w.link()
	case n < 50:
		return "symlink", w.symlink()
	case n < 57:
		return "mkdir", w.mkdir()
	case n < 62:
		return "chmod", w.chmod()
	case n < 70:
		return "read", w.read()
	case n < 80:
		return "append to the log", w.appendLine()
	case n < 87:
		return "count", w.count()
	case n < 92:
		return "make an exclusive name", w.exclusive()
	case n < 96:
		return "link the token", w.linkToken()
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
			f = &ownFile{synced: exactly(nil), mode: 0o644}
		}
	}
	op := ownWrite{letter: byte('a' + w.rand.IntN(26)), n: 1 + w.rand.IntN(9000), off: w.rand.IntN(len(f.synced.bytes) + 5000)}
	flags, cut := os.O_RDWR|os.O_CREATE, false
	switch w.rand.IntN(4) {
	case 0:
		flags |= os.O_APPEND
		op.off = atEnd
	case 1:
		cut = true
	}
	fd, err := os.OpenFile(w.path(name), flags, 0o644)
	if err != nil {
		return err
	}
	defer fd.Close()
	w.note(func() { w.files[name] = f })
	mine := len(f.pending)
	if cut {
		w.note(func() { f.pending = append(f.pending, ownWrite{cut: true, n: w.rand.IntN(2) * w.rand.IntN(3000)}) })
		err = fd.Truncate(int64(f.pending[mine].n))
	}
	if err == nil {
		w.note(func() { f.pending = append(f.pending, op) })
		if data := bytes.Repeat([]byte{op.letter}, op.n); op.off == atEnd {
			_, err = fd.Write(data)
		} else {
			_, err = fd.WriteAt(data, int64(op.off))
		}
	}
	if err == nil && w.rand.IntN(2) == 0 {
		return nil
	}
	if err == nil {
		err = fd.Sync()
	}
	if err != nil {
		w.note(f.doubt)
		return err
	}
	w.note(func() { f.confirm(mine) })
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
	if w.files[to] == f { // two names of one file: nothing is to be done
		return nil
	}
	w.note(func() {
		delete(w.files, name)
		w.files[to] = f
	})
	return nil
}

// link gives a file one more name.
func (w *tortured) link() error {
	name, f := w.pick()
	to := fmt.Sprintf("l%d", w.rand.IntN(10))
	if f == nil {
		return nil
	}
	err := os.Link(w.path(name), w.path(to))
	if w.files[to] != nil {
		if !errors.Is(err, unix.EEXIST) {
			return fmt.Errorf("link to a name that is there: %w", err)
		}
		return nil
	}
	if err == nil {
		w.note(func() { w.files[to] = f })
	}
	return err
}

// symlink makes a symlink, or removes one that is there.
func (w *tortured) symlink() error {
	name := fmt.Sprintf("s%d", w.rand.IntN(6))
	if w.syms[name] != "" {
		err := os.Remove(w.path(name))
		if err == nil {
			delete(w.syms, name)
		}
		return err
	}
	target := fmt.Sprintf("to/%s/%d", w.name, w.ops)
	err := os.Symlink(target, w.path(name))
	if err == nil {
		w.syms[name] = target
	}
	return err
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
	if to := fmt.Sprintf("d%d", w.rand.IntN(4)); !w.dirs[to] {
		return w.renameDir(name, to)
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

func (w *tortured) renameDir(from, to string) error {
	if err := os.Rename(w.path(from), w.path(to)); err != nil {
		return err
	}
	w.note(func() {
		delete(w.dirs, from)
		w.dirs[to] = true
		for name, f := range maps.Clone(w.files) {
			if rest, below := strings.CutPrefix(name, from+"/"); below {
				delete(w.files, name)
				w.files[to+"/"+rest] = f
			}
		}
	})
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
	if !f.settle(got) {
		return fmt.Errorf("%s has %s, not %s", name, brief(got), f.now())
	}
	return nil
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

// exclusive makes a name that all want to make, or removes an earlier one.
func (w *tortured) exclusive() error {
	n, change := w.ops/8, 1
	if w.rand.IntN(3) == 0 {
		n, change = w.rand.IntN(n+1), -1
	}
	name := fmt.Sprintf("x%d", n)
	var err error
	switch path := w.common(name); {
	case change < 0:
		err = os.Remove(path)
	case n%4 == 0:
		err = os.Mkdir(path, 0o755)
	case n%4 == 1:
		err = os.Symlink("token", path)
	case n%4 == 2:
		err = unix.Mkfifo(path, 0o644)
	default:
		var fd *os.File
		if fd, err = os.OpenFile(path, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o644); err == nil {
			err = fd.Close()
		}
	}
	w.shared.mu.Lock()
	defer w.shared.mu.Unlock()
	switch {
	case err == nil:
		w.shared.names[name] += change
	case forgivable(err):
		w.shared.vague[name] = true
	case errors.Is(err, unix.EEXIST) || change < 0 && errors.Is(err, unix.ENOENT): // somebody else was first
		return nil
	}
	return err
}

// linkToken makes a hard link of what all rename, or removes it again.
func (w *tortured) linkToken() error {
	path := w.common("link." + w.name)
	change := 1
	err := os.Remove(path)
	if err == nil {
		change = -1
	} else if errors.Is(err, unix.ENOENT) {
		err = os.Link(w.common("token"), path)
		if errors.Is(err, unix.ENOENT) { // somebody has it
			return nil
		}
	}
	w.shared.mu.Lock()
	defer w.shared.mu.Unlock()
	if forgivable(err) {
		w.shared.vague["token"] = true
	} else if err == nil {
		w.shared.links += change
	}
	return err
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

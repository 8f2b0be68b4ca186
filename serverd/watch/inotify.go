package watch

import (
	"errors"
	"os"
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"cagefs.dev/cage/journal/vfs"
)

// inotify is a watch on each directory of a tree, as many as there may be. What
// this process does is told as well, and nothing is Sure.
//
// A directory is listed after it got its watch: what is in it by then has brought
// no event, what comes later will. At the start, and after events were lost, all
// of the tree is walked so, and then everything is to be compared.
type inotify struct {
	// Set at construction.
	o    Options
	file *os.File
	raw  syscall.RawConn // of file
	disk vfs.FS
	root vfs.Dir
	max  int // watches
	// rewalk is how often a tree of which not all is watched is walked: watches may
	// have become free meanwhile.
	rewalk time.Duration

	// Owned by run.
	dirs   dirs
	top    *watched         // the root
	todo   []*watched       // to be listed, the next one last
	walk   uint32           // number of the walk of all that is under way, or was the last
	since  time.Time        // a walk is under way, and nothing is missing from before; zero: none is
	lost   bool             // events were
	short  bool             // something could not be watched in this walk
	denied bool             // something was left out that this process may not read
	again  time.Time        // when to try that once more; zero: not
	moves  map[uint32]Place // where renamed names were, by cookie; those told since the queue was empty
	strays []*watched       // moved since the queue was empty
	missed []*watched       // to be listed, but not where they should be: the event of a move is on its way
}

const rewalk = 10 * time.Minute

// maxTries is how often a directory is looked for that should be there.
const maxTries = 10

// fileTick is more than what the clock of files is behind at most.
const fileTick = 20 * time.Millisecond

// listBatch is how many entries of a directory are taken in before events are read again.
const listBatch = 1024

const inMask = unix.IN_MODIFY | unix.IN_ATTRIB | unix.IN_CLOSE_WRITE | unix.IN_CREATE | unix.IN_DELETE | unix.IN_MOVED_FROM | unix.IN_MOVED_TO |
	unix.IN_MOVE_SELF | unix.IN_ONLYDIR | unix.IN_EXCL_UNLINK

func openInotify(o Options) (i *inotify, err error) {
	i = &inotify{o: o, max: maxWatches(o.MaxDirs), rewalk: rewalk, dirs: newDirs(), moves: map[uint32]Place{}}
	if i.disk, err = vfs.OS(o.Dir); err != nil {
		return nil, err
	}
	if i.root, err = i.disk.Root(); err != nil {
		i.disk.Close()
		return nil, err
	}
	fd, err := unix.InotifyInit1(unix.IN_CLOEXEC | unix.IN_NONBLOCK)
	if err == nil {
		i.file = os.NewFile(uintptr(fd), "inotify")
		i.raw, err = i.file.SyscallConn()
	}
	if err != nil {
		i.closeDirs()
		return nil, os.NewSyscallError("inotify_init", err)
	}
	return i, nil
}

// maxWatches is how many watches to take, at most so many: three quarters of what
// the user may have, whose other programs want some too.
func maxWatches(most int) int {
	b, err := os.ReadFile("/proc/sys/fs/inotify/max_user_watches")
	if err != nil {
		return most
	}
	n, err := strconv.Atoi(strings.TrimSpace(string(b)))
	if err != nil {
		return most
	}
	return min(most, n/4*3)
}

func (i *inotify) by() string { return "inotify" }

func (i *inotify) sure() bool { return false }

func (i *inotify) close() { i.file.Close() }

func (i *inotify) closeDirs() {
	i.root.Close()
	i.disk.Close()
}

// run reads events, and walks when there are none, until close.
func (i *inotify) run(w *Watcher) error {
	defer i.closeDirs()
	i.begin(w, time.Now())
	buf := make([]byte, 64<<10)
	for {
		if err := i.file.SetReadDeadline(i.again); err != nil && !errors.Is(err, os.ErrClosed) {
			return err
		}
		n, err := w.read(i.raw, buf, i.busy)
		switch {
		case errors.Is(err, os.ErrClosed):
			return nil
		case errors.Is(err, os.ErrDeadlineExceeded):
			i.begin(w, time.Now())
		case err != nil:
			return err
		case n == 0:
			i.idle()
		}
		if err := decodeInotify(buf[:n], func(e inEvent) { i.take(w, e) }); err != nil {
			return err
		}
		if last := len(i.todo) - 1; last >= 0 {
			d := i.todo[last]
			i.todo = i.todo[:last]
			i.list(w, d)
		} else if n == 0 && !i.since.IsZero() && len(i.missed) == 0 {
			i.walked(w)
		}
	}
}

// busy reports whether there is something to do when no events are there.
func (i *inotify) busy() bool {
	return len(i.todo)+len(i.strays)+len(i.moves) > 0 || !i.since.IsZero()
}

// idle is called when all events so far were taken: renames are whole.
func (i *inotify) idle() {
	clear(i.moves)
	for _, d := range i.strays {
		if dir, err := i.open(d); err == nil {
			dir.Close()
		} else {
			i.forget(d) // it is in the tree no more
		}
	}
	i.strays = i.strays[:0]
	i.todo = append(i.todo, i.missed...)
	i.missed = i.missed[:0]
}

// begin begins a walk of all that is there. Nothing is missing from before since.
func (i *inotify) begin(w *Watcher, since time.Time) {
	w.complete.Store(false)
	i.walk++
	i.short, i.denied, i.again = false, false, time.Time{}
	if i.since.IsZero() || since.Before(i.since) {
		i.since = since
	}
	i.watch(nil, "", i.root, tellNone)
}

// walked ends a walk: what it has not met is gone.
func (i *inotify) walked(w *Watcher) {
	for _, d := range i.dirs.byWatch {
		if d.walk != i.walk {
			i.forget(d)
		}
	}
	if i.short {
		i.again = time.Now().Add(i.rewalk)
	}
	w.complete.Store(!i.short)
	if i.lost {
		w.overflow(i.since)
	} else {
		w.unwatched()
	}
	i.since, i.lost = time.Time{}, false
	if i.o.Walked != nil {
		i.o.Walked(len(i.dirs.byWatch), !i.short)
	}
}

// watch gives a directory its watch and has it listed, unless that was done in this
// walk already. up is nil for the root; tell says which of its entries are news.
func (i *inotify) watch(up *watched, name string, dir vfs.Dir, tell int64) {
	info, err := dir.StatSelf()
	if err != nil {
		return
	}
	wd := -1
	err = vfs.AtPath(dir, func(path string) (err error) {
		cerr := i.raw.Control(func(fd uintptr) { wd, err = unix.InotifyAddWatch(int(fd), path, inMask) })
		return errors.Join(cerr, err)
	})
	if err != nil {
		i.short = true
		return
	}
	d, known := i.dirs.byWatch[int32(wd)]
	switch {
	case !known && len(i.dirs.byWatch) >= i.max:
		i.short = true
		i.drop(int32(wd))
		return
	case !known:
		d = i.dirs.add(int32(wd), info.Ident)
	}
	if up == nil {
		i.top = d
	} else {
		i.dirs.hang(d, up, name)
	}
	if known && d.walk == i.walk && tell >= d.tell {
		return
	}
	d.walk, d.tell, d.cookie = i.walk, tell, 0
	i.todo = append(i.todo, d)
}

// list takes in what is in a directory: its subdirectories, and what is news.
func (i *inotify) list(w *Watcher, d *watched) {
	if i.dirs.byWatch[d.wd] != d {
		return
	}
	dir, err := i.open(d)
	if err != nil {
		if d.tries++; d.tries > maxTries {
			i.short = true
			i.forget(d)
			return
		}
		i.missed = append(i.missed, d)
		return
	}
	defer dir.Close()
	d.tries = 0
	type entry struct {
		name string
		typ  uint32
	}
	batch := make([]entry, 0, 64)
	err = dir.ReadDir(d.cookie, func(name string, _ uint64, typ uint32, cookie uint64) bool {
		if d == i.top && name == i.o.Hidden {
			return true
		}
		if len(batch) == listBatch {
			return false
		}
		d.cookie = cookie
		batch = append(batch, entry{name, typ})
		return true
	})
	if err != nil {
		i.short = true
	}
	for _, e := range batch {
		var info vfs.Info
		if e.typ == 0 || d.tell != tellNone {
			if info, err = dir.Stat(e.name); err != nil {
				continue
			}
			e.typ = info.Mode & unix.S_IFMT
		}
		if d.tell != tellNone && info.Btime >= d.tell {
			w.add(Event{Place: Place{Dir: d.ident, Path: d.path(), Name: e.name}, What: In})
		}
		if e.typ == unix.S_IFDIR {
			i.enter(d, dir, e.name, d.tell)
		}
	}
	if len(batch) == listBatch {
		i.todo = append(i.todo, d)
		return
	}
	d.tell = tellNone
}

// enter watches a subdirectory.
func (i *inotify) enter(up *watched, dir vfs.Dir, name string, tell int64) {
	sub, err := dir.OpenDir(name)
	switch {
	case err == nil:
		i.watch(up, name, sub, tell)
		sub.Close()
	case errors.Is(err, unix.EACCES):
		i.denied = true
		if info, err := dir.Stat(name); err == nil && info.Mode&0o011 != 0 { // it cannot be listed, but what is in it be reached
			i.short = true
		}
	case errors.Is(err, unix.ENOENT), errors.Is(err, unix.ENOTDIR), errors.Is(err, unix.ELOOP), errors.Is(err, unix.EXDEV): // it is not in the tree
	default:
		i.short = true
	}
}

// open opens a directory where it should be, if it is there.
func (i *inotify) open(d *watched) (vfs.Dir, error) {
	dir, err := i.disk.Root()
	if err != nil {
		return nil, err
	}
	for _, name := range d.names() {
		sub, err := dir.OpenDir(name)
		dir.Close()
		if err != nil {
			return nil, err
		}
		dir = sub
	}
	info, err := dir.StatSelf()
	if err == nil && info.Ident != d.ident {
		err = unix.ESTALE
	}
	if err != nil {
		dir.Close()
		return nil, err
	}
	return dir, nil
}

// forget takes the watches of a directory and of what is below it back.
func (i *inotify) forget(d *watched) {
	for _, gone := range i.dirs.remove(d) {
		i.drop(gone.wd)
	}
}

// drop takes a watch back. The kernel may have done so already.
func (i *inotify) drop(wd int32) {
	i.raw.Control(func(fd uintptr) { unix.InotifyRmWatch(int(fd), uint32(wd)) })
}

// take handles one event.
func (i *inotify) take(w *Watcher, e inEvent) {
	if e.mask&unix.IN_Q_OVERFLOW != 0 {
		i.lost = true
		i.begin(w, w.emptied())
		return
	}
	d := i.dirs.byWatch[e.wd]
	switch {
	case d == nil: // of a watch that was taken back
		return
	case e.mask&unix.IN_IGNORED != 0:
		i.forget(d)
		return
	case e.mask&unix.IN_MOVE_SELF != 0:
		i.strays = append(i.strays, d)
		return
	case e.name == "" && d != i.top: // its parent tells
		return
	case e.name == i.o.Hidden && d == i.top:
		return
	}
	ev := Event{Place: Place{Dir: d.ident, Path: d.path(), Name: e.name}, What: inWhat(e.mask)}
	switch {
	case e.mask&unix.IN_MOVED_FROM != 0:
		i.moves[e.cookie] = ev.Place
	case e.mask&unix.IN_MOVED_TO != 0:
		if from, ok := i.moves[e.cookie]; ok {
			ev.From = &from
			delete(i.moves, e.cookie)
		}
	}
	w.add(ev)
	tell := int64(tellNone)
	switch {
	case e.mask&unix.IN_ISDIR == 0 || e.name == "":
		return
	case e.mask&unix.IN_CREATE != 0:
		tell = tellAll
	case e.mask&unix.IN_MOVED_TO != 0: // it was somewhere before
		tell = w.emptied().Add(-fileTick).UnixNano()
	case e.mask&unix.IN_ATTRIB == 0 || !i.short && !i.denied: // otherwise it may be readable by now
		return
	}
	if dir, err := i.open(d); err == nil {
		i.enter(d, dir, e.name, tell)
		dir.Close()
	}
}

func inWhat(mask uint32) (what What) {
	for _, b := range []struct {
		mask uint32
		what What
	}{
		{unix.IN_CREATE | unix.IN_MOVED_TO, In}, {unix.IN_DELETE | unix.IN_MOVED_FROM, Out},
		{unix.IN_MODIFY, Content}, {unix.IN_ATTRIB, Attr}, {unix.IN_CLOSE_WRITE, Closed},
	} {
		if mask&b.mask != 0 {
			what |= b.what
		}
	}
	return what
}

// Package watch sees what processes of the server do to a directory tree.
//
// It owns the descriptors of fanotify and inotify. It promises that what another
// process did below the root is told within a fifth of a second, as places to look at,
// with the process where the kernel says which; or that it is told that something was
// lost, and since when; or that not all is watched. It must not know file
// numbers, records or sessions: a place is a directory's inode, its path at that time, and a name.
//
// fanotify needs root and a file system with handles; one mark covers the whole file
// system, and what is outside of the tree is dropped by the directory's handle, which is
// looked up once. It never tells of what this process did. Where it is refused, each
// directory gets a watch of inotify. That tells neither who did it nor leaves out what
// this process did, and the kernel gives a user so many watches only.
// Stores through a mapping are told by neither before the file is closed.
package watch

import (
	"context"
	"errors"
	"os"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"cagefs.dev/cage/journal/vfs"
)

// What was seen of a name.
type What uint8

// In and Out are of the name, the others of the file that it led to.
const (
	In      What = 1 << iota // the name was given: made, linked, moved here
	Out                      // the name was taken
	Gone                     // with Out: it did not move to another place in the tree
	Content                  // content or size
	Attr                     // attributes
	Sure                     // another process did it
	Closed                   // it was closed by somebody who could write it
)

// Place is a name in a directory.
type Place struct {
	Dir  vfs.Ident
	Path string // of the directory below the root, when it was looked up last
	Name string // "": the directory itself
}

// Process is who did it, as far as it could be told: one that has ended by the
// time it is looked at has only its number.
type Process struct {
	PID, PGID, UID, GID uint32
	Comm                string
}

// Event is something that happened at a place. Several of one place, one process
// and a short time are one.
type Event struct {
	Place
	From *Place // of a name that was given by a rename inside the tree
	What What
	By   Process
}

// Options of a watcher. Seen and Lost are called with no lock held; each by one
// goroutine at a time, and may block: what comes meanwhile is kept, up to a bound.
type Options struct {
	Dir    string // the tree
	Hidden string // a name in its root of which nothing is told, with all below
	// Seen takes what happened. An error means that it has to be looked for: Lost follows.
	Seen func(context.Context, []Event) error
	// Lost says that events since a time may be missing.
	Lost func(ctx context.Context, since time.Time) error
	// Unwatched says that some of the tree was not watched from the start, or for a while, until just now.
	Unwatched func(context.Context) error
	// Walked says that a walk has given watches to so many directories, and whether those are all.
	// Called by inotify only. May be nil.
	Walked  func(dirs int, all bool)
	MaxDirs int // directories to watch at most, for inotify; each takes DirCost bytes
	// Failed takes errors of Seen and Lost, and what ends the watching. May be nil.
	Failed func(error)
}

// How events travel: a first one is told after settle, so that what belongs
// together comes together; while there are more, every pace.
const (
	settle     = 20 * time.Millisecond
	pace       = 100 * time.Millisecond
	retryLost  = time.Second
	maxPending = 8192 // places with events that are not told yet; beyond that they are lost
)

// Watcher watches a tree until it is closed. Safe for concurrent use.
type Watcher struct {
	// Set at construction.
	o      Options
	source source
	ctx    context.Context
	stop   context.CancelFunc
	wg     sync.WaitGroup
	wake   chan struct{} // something is pending
	lose   chan struct{} // something was lost, or not watched

	complete atomic.Bool // all of the tree is watched

	mu      sync.Mutex
	pending []Event
	index   map[placeKey]int // of pending
	lost    time.Time        // events since then are missing; zero: none
	gap     bool             // something was not watched
	told    time.Time        // when all that had been read was taken
	empty   time.Time        // when the kernel had no event
}

// source is where events come from.
type source interface {
	// run reads events until close.
	run(*Watcher) error
	close()
	// by is its name.
	by() string
	// sure says that its events are Sure.
	sure() bool
}

type placeKey struct {
	dir  vfs.Ident
	name string
	pid  uint32
}

// DirCost is about how many bytes of memory a directory takes that inotify watches.
const DirCost = dirCost

// Start watches a tree, with inotify where fanotify is refused. An error says why
// it cannot be watched at all.
func Start(o Options) (*Watcher, error) {
	fan, err := openFanotify(o)
	if err == nil {
		return start(o, fan), nil
	}
	in, inErr := openInotify(o)
	if inErr != nil {
		return nil, errors.Join(err, inErr)
	}
	return start(o, in), nil
}

func start(o Options, src source) *Watcher {
	now := time.Now()
	w := &Watcher{o: o, source: src, wake: make(chan struct{}, 1), lose: make(chan struct{}, 1), index: map[placeKey]int{}, told: now, empty: now}
	w.ctx, w.stop = context.WithCancel(context.Background())
	w.wg.Go(func() {
		if err := src.run(w); err != nil {
			w.complete.Store(false)
			w.failed(err)
		}
	})
	w.wg.Go(w.tell)
	w.wg.Go(w.recover)
	return w
}

// By is what the kernel tells it with: "fanotify" or "inotify".
func (w *Watcher) By() string { return w.source.by() }

// Sure reports whether only what other processes did is told, marked so.
func (w *Watcher) Sure() bool { return w.source.sure() }

// Complete reports whether all of the tree is watched at present.
func (w *Watcher) Complete() bool { return w.complete.Load() }

// Close stops watching and returns when no function of the options runs any more.
func (w *Watcher) Close() {
	w.stop()
	w.source.close()
	w.wg.Wait()
}

func (w *Watcher) failed(err error) {
	if w.o.Failed != nil && w.ctx.Err() == nil {
		w.o.Failed(err)
	}
}

func signal(c chan struct{}) {
	select {
	case c <- struct{}{}:
	default:
	}
}

// add takes an event in. It does not block.
func (w *Watcher) add(e Event) {
	w.mu.Lock()
	defer w.mu.Unlock()
	k := placeKey{e.Dir, e.Name, e.By.PID}
	if i, ok := w.index[k]; ok {
		old := &w.pending[i]
		old.What |= e.What
		if e.From != nil {
			old.From = e.From
		}
		if e.By.Comm != "" {
			old.By = e.By
		}
		return
	}
	if len(w.pending) >= maxPending {
		w.lostLocked(w.told)
		return
	}
	w.index[k] = len(w.pending)
	w.pending = append(w.pending, e)
	signal(w.wake)
}

// dry is called when the kernel had no more events at a time.
func (w *Watcher) dry(at time.Time) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.empty = at
}

// emptied is when the kernel had no more events: what is read is of later.
func (w *Watcher) emptied() time.Time {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.empty
}

// overflow is called when the kernel has dropped events since a time.
func (w *Watcher) overflow(since time.Time) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.lostLocked(since)
}

func (w *Watcher) lostLocked(since time.Time) {
	if w.lost.IsZero() || since.Before(w.lost) {
		w.lost = since
	}
	signal(w.lose)
}

// unwatched is called when something was not watched that is by now.
func (w *Watcher) unwatched() {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.gap = true
	signal(w.lose)
}

// read waits for events. When there are none and busy says that there is something
// else to do, it returns 0 instead.
func (w *Watcher) read(from syscall.RawConn, buf []byte, busy func() bool) (n int, err error) {
	closed := from.Read(func(fd uintptr) bool {
		began := time.Now()
		n, err = unix.Read(int(fd), buf)
		switch err {
		case unix.EINTR:
			n, err = 0, nil
		case unix.EAGAIN:
			n, err = 0, nil
			w.dry(began)
			return busy()
		}
		return true
	})
	if closed != nil {
		return 0, closed
	}
	return n, os.NewSyscallError("read", err)
}

// tell hands events on.
func (w *Watcher) tell() {
	var last time.Time
	for {
		select {
		case <-w.ctx.Done():
			return
		case <-w.wake:
		}
		if !w.sleep(max(settle, pace-time.Since(last))) {
			return
		}
		last = time.Now()
		w.mu.Lock()
		events := w.pending
		w.pending = nil
		clear(w.index)
		w.mu.Unlock()
		err := w.o.Seen(w.ctx, events)
		w.mu.Lock()
		if err == nil {
			w.told = last
		} else {
			w.lostLocked(w.told)
		}
		w.mu.Unlock()
		if err != nil {
			w.failed(err)
		}
	}
}

// recover has what was lost looked for, again while that fails.
func (w *Watcher) recover() {
	for {
		select {
		case <-w.ctx.Done():
			return
		case <-w.lose:
		}
		w.mu.Lock()
		since, gap := w.lost, w.gap
		w.lost, w.gap = time.Time{}, false
		w.mu.Unlock()
		var err error
		switch {
		case !since.IsZero():
			err = w.o.Lost(w.ctx, since)
		case gap:
			err = w.o.Unwatched(w.ctx)
		}
		if err == nil {
			continue
		}
		w.failed(err)
		w.mu.Lock()
		if !since.IsZero() {
			w.lostLocked(since)
		}
		w.gap = w.gap || gap
		w.mu.Unlock()
		if !w.sleep(retryLost) {
			return
		}
		signal(w.lose)
	}
}

func (w *Watcher) sleep(d time.Duration) bool {
	select {
	case <-w.ctx.Done():
		return false
	case <-time.After(d):
		return true
	}
}

// identOf describes an open directory.
func identOf(fd int) (vfs.Ident, uint32, error) {
	var st unix.Statx_t
	err := unix.Statx(fd, "", unix.AT_EMPTY_PATH, unix.STATX_INO|unix.STATX_BTIME|unix.STATX_NLINK, &st)
	return vfs.Ident{Ino: st.Ino, Btime: st.Btime.Sec*1e9 + int64(st.Btime.Nsec)}, st.Nlink, err
}

// openRoot opens the tree's root.
func openRoot(dir string) (int, error) {
	fd, err := unix.Open(dir, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return -1, &os.PathError{Op: "open", Path: dir, Err: err}
	}
	return fd, nil
}

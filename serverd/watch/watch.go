// Package watch sees what processes of the server do to a directory tree.
//
// It owns the descriptors of fanotify. It promises that what another
// process did below the root is told within a fifth of a second, as places to look at,
// with the process where the kernel says which; or that it is told that something was
// lost, and since when. It never tells of what this process did. It must not know file
// numbers, records or sessions: a place is a directory's inode, its path at that time, and a name.
//
// fanotify needs root and a file system with handles; one mark covers the whole file
// system, and what is outside of the tree is dropped by the directory's handle, which is
// looked up once. Where that is not possible Start fails, and the caller has to look by
// itself.
package watch

import (
	"context"
	"os"
	"sync"
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
	source *fanotify
	ctx    context.Context
	stop   context.CancelFunc
	wg     sync.WaitGroup
	wake   chan struct{} // something is pending
	lose   chan struct{} // something was lost

	mu      sync.Mutex
	pending []Event
	index   map[placeKey]int // of pending
	lost    time.Time        // events since then are missing; zero: none
	told    time.Time        // when all that had been read was taken
}

type placeKey struct {
	dir  vfs.Ident
	name string
	pid  uint32
}

// Start watches a tree. Errors: EPERM for who is not root, others for a file
// system that has no handles or cannot be marked.
func Start(o Options) (*Watcher, error) {
	src, err := openFanotify(o)
	if err != nil {
		return nil, err
	}
	w := &Watcher{o: o, source: src, wake: make(chan struct{}, 1), lose: make(chan struct{}, 1), index: map[placeKey]int{}, told: time.Now()}
	w.ctx, w.stop = context.WithCancel(context.Background())
	w.wg.Go(func() {
		if err := src.run(w); err != nil {
			w.failed(err)
		}
	})
	w.wg.Go(w.tell)
	w.wg.Go(w.recover)
	return w, nil
}

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
		w.lostLocked()
		return
	}
	w.index[k] = len(w.pending)
	w.pending = append(w.pending, e)
	signal(w.wake)
}

// overflow is called when the kernel has dropped events.
func (w *Watcher) overflow() {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.lostLocked()
}

func (w *Watcher) lostLocked() {
	if w.lost.IsZero() {
		w.lost = w.told
	}
	signal(w.lose)
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
			w.lostLocked()
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
		since := w.lost
		w.lost = time.Time{}
		w.mu.Unlock()
		if since.IsZero() {
			continue
		}
		if err := w.o.Lost(w.ctx, since); err != nil {
			w.failed(err)
			w.mu.Lock()
			w.lost = since
			w.mu.Unlock()
			if !w.sleep(retryLost) {
				return
			}
			signal(w.lose)
		}
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

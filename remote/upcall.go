package remote

import (
	"context"
	"sync"

	"cagefs.dev/cage/remote/lease"
	"cagefs.dev/cage/remote/oplog"
	"cagefs.dev/cage/remote/proto"
	"cagefs.dev/cage/remote/wire"
)

// maxChanged is how many changes of others may wait to be told, and maxChangedNames how many
// names in them. Beyond it they are forgotten together, and Reset is told instead.
const (
	maxChanged      = 4096
	maxChangedNames = 16 << 10
)

// upcalls tells the session's owner what happened, from one goroutine, in order.
type upcalls struct {
	o    *Options
	wake chan struct{} // holds one

	mu      sync.Mutex
	events  []event // guarded by mu
	changes int     // guarded by mu; Changed among events
	names   int     // guarded by mu; in these

	// For those that follow the history.
	pushes uint64        // guarded by mu; how often something was pushed, or may have been missed
	newest proto.LSN     // guarded by mu; of the changes pushed since the last of these
	fresh  chan struct{} // guarded by mu; closed with the next of these; nil: nobody waits
}

// event is exactly one of its fields; none: a reset.
type event struct {
	changed  *wire.Changed
	failed   *oplog.Failure
	written  *proto.Attr
	recalled *lease.Recall
}

func newUpcalls(o *Options) *upcalls { return &upcalls{o: o, wake: make(chan struct{}, 1)} }

func (u *upcalls) changed(c wire.Changed) {
	u.mu.Lock()
	defer u.mu.Unlock()
	u.pushedLocked(max(u.newest, c.Change))
	if u.changes == maxChanged || u.names+len(c.Names) > maxChangedNames {
		u.dropChangesLocked()
		u.addLocked(event{})
		return
	}
	u.changes++
	u.names += len(c.Names)
	u.addLocked(event{changed: &c})
}

// reset supersedes all changes that were not told yet.
func (u *upcalls) reset() {
	u.mu.Lock()
	defer u.mu.Unlock()
	u.pushedLocked(0)
	u.dropChangesLocked()
	u.addLocked(event{})
}

// missed says that pushes may have been missed, but none that anybody relies on
// who has leases.
func (u *upcalls) missed() {
	u.mu.Lock()
	defer u.mu.Unlock()
	u.pushedLocked(0)
}

func (u *upcalls) recalled(r lease.Recall) {
	u.mu.Lock()
	defer u.mu.Unlock()
	u.addLocked(event{recalled: &r})
}

func (u *upcalls) pushedLocked(newest proto.LSN) {
	u.pushes++
	u.newest = newest
	if u.fresh != nil {
		close(u.fresh)
		u.fresh = nil
	}
}

// seen is how often something was pushed, to be given to await.
func (u *upcalls) seen() uint64 {
	u.mu.Lock()
	defer u.mu.Unlock()
	return u.pushes
}

// await returns a channel that is closed once something was pushed after seen, and
// the newest change that was pushed.
func (u *upcalls) await(seen uint64) (fresh <-chan struct{}, newest proto.LSN) {
	u.mu.Lock()
	defer u.mu.Unlock()
	if u.pushes != seen {
		done := make(chan struct{})
		close(done)
		return done, u.newest
	}
	if u.fresh == nil {
		u.fresh = make(chan struct{})
	}
	return u.fresh, u.newest
}

func (u *upcalls) failed(f oplog.Failure) {
	u.mu.Lock()
	defer u.mu.Unlock()
	u.addLocked(event{failed: &f})
}

func (u *upcalls) written(a proto.Attr) {
	u.mu.Lock()
	defer u.mu.Unlock()
	if n := len(u.events); n > 0 && u.events[n-1].written != nil && u.events[n-1].written.ID == a.ID {
		u.events[n-1].written = &a
		return
	}
	u.addLocked(event{written: &a})
}

// dropChangesLocked keeps the failures and recalls only.
func (u *upcalls) dropChangesLocked() {
	kept := u.events[:0]
	for _, e := range u.events {
		if e.failed != nil || e.recalled != nil {
			kept = append(kept, e)
		}
	}
	clear(u.events[len(kept):])
	u.events, u.changes, u.names = kept, 0, 0
}

func (u *upcalls) addLocked(e event) {
	u.events = append(u.events, e)
	select {
	case u.wake <- struct{}{}:
	default:
	}
}

// run makes the upcalls until ctx ends.
func (u *upcalls) run(ctx context.Context) {
	for {
		select {
		case <-u.wake:
		case <-ctx.Done():
			return
		}
		u.mu.Lock()
		events := u.events
		u.events, u.changes, u.names = nil, 0, 0
		u.mu.Unlock()
		for _, e := range events {
			u.tell(e)
		}
	}
}

func (u *upcalls) tell(e event) {
	switch {
	case e.changed != nil:
		if u.o.Changed != nil {
			u.o.Changed(*e.changed)
		}
	case e.failed != nil:
		if u.o.Failed != nil {
			u.o.Failed(e.failed.ID, e.failed.Seq, e.failed.Err)
		}
	case e.written != nil:
		if u.o.Written != nil {
			u.o.Written(e.written.ID, e.written.Change)
		}
	case e.recalled != nil:
		u.o.Recalled(*e.recalled)
	case u.o.Reset != nil:
		u.o.Reset()
	}
}

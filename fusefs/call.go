package fusefs

import (
	"context"
	"sync"
	"syscall"
	"time"

	"github.com/hanwen/go-fuse/v2/fuse"
)

// signalSets are the signals of a thread, as bit sets: bit n-1 is signal n.
type signalSets struct{ pending, blocked, ignored, caught uint64 }

func set(signals ...syscall.Signal) (s uint64) {
	for _, n := range signals {
		s |= 1 << (n - 1)
	}
	return s
}

var (
	// harmless signals do not end a process that does not handle them.
	harmless = set(syscall.SIGCHLD, syscall.SIGCONT, syscall.SIGURG, syscall.SIGWINCH,
		syscall.SIGSTOP, syscall.SIGTSTP, syscall.SIGTTIN, syscall.SIGTTOU)
	// urging signals, where a process handles them, mean that it should stop
	// waiting. A timer's do not: most programs have timers for something else
	// than the call that happens to wait.
	urging = set(syscall.SIGHUP, syscall.SIGINT, syscall.SIGQUIT, syscall.SIGTERM)
)

// fatal reports whether the thread dies as soon as it stops waiting.
func (s signalSets) fatal() bool {
	if s.pending&set(syscall.SIGKILL) != 0 {
		return true
	}
	return s.pending&^s.blocked&^s.ignored&^s.caught&^harmless != 0
}

// urged reports whether the thread handles a signal that asks it to stop.
func (s signalSets) urged() bool {
	return s.pending&^s.blocked&s.caught&urging != 0
}

// How an interrupted request is watched: the kernel tells of the first signal
// only, so that one that kills a process later has to be looked for.
const (
	interruptPoll  = 50 * time.Millisecond
	interruptGrace = time.Second
)

// call is the context of one request. It ends when the process that made the
// request is being killed, or when the mount is gone; for one that can be
// taken back (no effect yet) also a second after a signal like SIGINT that the
// process handles. Other signals do not end it: Go's runtime and shells send
// them all the time, and no program expects EINTR of stat(2).
//
// Only a call that is waited for costs a goroutine.
type call struct {
	fs        *fileSystem     // set at construction
	cancel    <-chan struct{} // go-fuse's: closed by the first signal and when the mount is gone
	tid       uint32          // set at construction
	committed bool            // set at construction: the operation cannot be taken back

	mu   sync.Mutex
	done chan struct{} // guarded by mu: made by the first Done
	stop chan struct{} // guarded by mu: made with done, closed by end
	err  error         // guarded by mu
}

var _ context.Context = (*call)(nil)

// read begins a request without effects. The caller must end it.
func (s *fileSystem) read(cancel <-chan struct{}, h *fuse.InHeader) *call {
	return s.begin(cancel, h, false)
}

// change begins a request that stays in the session's log when it is interrupted. The caller must end it.
func (s *fileSystem) change(cancel <-chan struct{}, h *fuse.InHeader) *call {
	return s.begin(cancel, h, true)
}

func (s *fileSystem) begin(cancel <-chan struct{}, h *fuse.InHeader, committed bool) *call {
	return &call{fs: s, cancel: cancel, tid: h.Pid, committed: committed}
}

// end releases what the call holds. Once, when the request's work is done.
func (c *call) end() {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.stop != nil {
		close(c.stop)
	}
}

// Deadline implements context.Context: the session has its own patience.
func (c *call) Deadline() (time.Time, bool) { return time.Time{}, false }

// Value implements context.Context.
func (c *call) Value(any) any { return nil }

// Err implements context.Context.
func (c *call) Err() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.err
}

// Done implements context.Context.
func (c *call) Done() <-chan struct{} {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.done == nil {
		c.done, c.stop = make(chan struct{}), make(chan struct{})
		c.fs.tasks.Go(func() { c.watch(c.done, c.stop) })
	}
	return c.done
}

// watch ends the call when it has to. It owns the closing of done.
func (c *call) watch(done, stop chan struct{}) {
	select {
	case <-stop:
		return
	case <-c.cancel:
	}
	began := time.Now()
	tick := time.NewTicker(interruptPoll)
	defer tick.Stop()
	for !c.over(time.Since(began)) {
		select {
		case <-stop:
			return
		case <-tick.C:
		}
	}
	c.mu.Lock()
	c.err = context.Canceled
	c.mu.Unlock()
	close(done)
}

// over decides for a call that was interrupted so long ago.
func (c *call) over(since time.Duration) bool {
	if c.fs.gone() {
		return true
	}
	sig, err := c.fs.idents.signals(c.tid)
	if err != nil { // hidden from us: rather give up than make a process that cannot be killed
		return since >= interruptGrace
	}
	return sig.fatal() || !c.committed && since >= interruptGrace && sig.urged()
}

package fusefs

import (
	"context"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/hanwen/go-fuse/v2/fuse"

	"cagefs.dev/cage/remote"
	"cagefs.dev/cage/remote/lockset"
	"cagefs.dev/cage/remote/proto"
	"cagefs.dev/cage/remote/status"
)

// The server decides about the locks of all mounts. The kernel keeps none itself:
// it sends each request, says with FLUSH that a process has closed a file, whose
// fcntl locks on it then end, and with RELEASE that an open file is gone. Of the
// locks that belong to open files, those of flock(2) and F_OFD_SETLK, it tells no
// more than that, so who took locks through which handle is remembered here.

// lockers are the owners that took locks through handles. Safe for concurrent use;
// mu is a leaf, and taken with the session's lock held.
type lockers struct {
	mu sync.Mutex
	by map[proto.FileID]map[*openFile]map[remote.LockOwner]struct{} // guarded by mu
}

// add notes that an owner is about to lock through a handle.
func (l *lockers) add(f *openFile, o remote.LockOwner) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.by == nil {
		l.by = make(map[proto.FileID]map[*openFile]map[remote.LockOwner]struct{})
	}
	if l.by[o.ID] == nil {
		l.by[o.ID] = make(map[*openFile]map[remote.LockOwner]struct{})
	}
	if l.by[o.ID][f] == nil {
		l.by[o.ID][f] = make(map[remote.LockOwner]struct{})
	}
	l.by[o.ID][f][o] = struct{}{}
}

// forget says that an owner has no locks on a file any more.
func (l *lockers) forget(o remote.LockOwner) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for f, owners := range l.by[o.ID] {
		if delete(owners, o); len(owners) == 0 {
			l.dropLocked(o.ID, f)
		}
	}
}

// take forgets a handle, and returns its owners.
func (l *lockers) take(id proto.FileID, f *openFile) map[remote.LockOwner]struct{} {
	l.mu.Lock()
	defer l.mu.Unlock()
	owners := l.by[id][f]
	l.dropLocked(id, f)
	return owners
}

func (l *lockers) dropLocked(id proto.FileID, f *openFile) {
	if delete(l.by[id], f); len(l.by[id]) == 0 {
		delete(l.by, id)
	}
}

// poison makes the handles fail through which an owner took locks.
func (l *lockers) poison(o remote.LockOwner) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for f, owners := range l.by[o.ID] {
		if _, ok := owners[o]; ok {
			f.lost.Store(true)
		}
	}
}

// intact is the error of what is done through a handle whose lock is lost. Who
// has it open believes that nobody else changes the file.
func intact(lost *atomic.Bool) error {
	if lost != nil && lost.Load() {
		return status.Newf(status.LostLock, "use", "", "the file was open under a lock or mode that is lost: close it")
	}
	return nil
}

// lostLock takes the news that the server does not hold a lock any more.
func (s *fileSystem) lostLock(o remote.LockOwner) {
	s.lockers.poison(o)
	s.notify.put(o.ID, news{data: true}) // what the kernel has of it, it would go on to show
}

// lockOf is a request's owner and range.
func (s *fileSystem) lockOf(in *fuse.LkIn, f *openFile) (remote.LockOwner, lockset.Lock) {
	o := remote.LockOwner{At: s.at, ID: f.ino.id, Num: in.Owner}
	l := lockset.Lock{Start: in.Lk.Start, End: min(in.Lk.End, lockset.Max), Exclusive: in.Lk.Typ == syscall.F_WRLCK, PID: in.Lk.Pid}
	if in.LkFlags&fuse.LK_FLOCK != 0 {
		o.Kind = lockset.Flock
		l.Start, l.End = 0, lockset.Max
	}
	return o, l
}

// GetLk implements fuse.RawFileSystem.
func (s *fileSystem) GetLk(cancel <-chan struct{}, in *fuse.LkIn, out *fuse.LkOut) fuse.Status {
	h := s.files.borrow(in.Fh)
	if h == nil {
		return fuse.EBADF
	}
	defer h.give()
	ctx := s.read(cancel, &in.InHeader)
	defer ctx.end()
	o, l := s.lockOf(in, h.it)
	err := intact(&h.it.lost)
	var held bool
	if err == nil {
		l, held, err = s.session.TestLock(ctx, o, l)
	}
	if err != nil {
		return s.errors.status("getlk", err)
	}
	out.Lk = in.Lk
	out.Lk.Typ = syscall.F_UNLCK
	if held {
		out.Lk = fuse.FileLock{Start: l.Start, End: l.End, Typ: syscall.F_RDLCK, Pid: l.PID}
		if l.Exclusive {
			out.Lk.Typ = syscall.F_WRLCK
		}
	}
	return fuse.OK
}

// SetLk implements fuse.RawFileSystem.
func (s *fileSystem) SetLk(cancel <-chan struct{}, in *fuse.LkIn) fuse.Status {
	return s.setLock(cancel, in, false)
}

// SetLkw implements fuse.RawFileSystem. Unlike with other requests, any signal
// ends the waiting, as on a local file system: programs bound it with alarm(2).
// The kernel asks again where the signal's handler is not to be noticed.
func (s *fileSystem) SetLkw(cancel <-chan struct{}, in *fuse.LkIn) fuse.Status {
	return s.setLock(cancel, in, true)
}

func (s *fileSystem) setLock(cancel <-chan struct{}, in *fuse.LkIn, wait bool) fuse.Status {
	h := s.files.borrow(in.Fh)
	if h == nil {
		return fuse.EBADF
	}
	defer h.give()
	f := h.it
	o, l := s.lockOf(in, f)
	if in.Lk.Typ == syscall.F_UNLCK {
		ctx := s.change(cancel, &in.InHeader)
		defer ctx.end()
		return s.errors.status("unlock", s.session.Unlock(ctx, o, l.Start, l.End))
	}
	if err := intact(&f.lost); err != nil {
		return s.errors.status("lock", err)
	}
	s.lockers.add(f, o)
	var ctx context.Context
	if wait {
		w := waitFor(cancel)
		defer w.end()
		ctx = w
	} else {
		c := s.read(cancel, &in.InHeader)
		defer c.end()
		ctx = c
	}
	return s.errors.status("lock", s.lock(ctx, f, o, l, wait))
}

// lock takes a lock and makes sure that what is read after that is not older.
func (s *fileSystem) lock(ctx context.Context, f *openFile, o remote.LockOwner, l lockset.Lock, wait bool) error {
	if err := s.settled(ctx, f.ino); err != nil {
		return err
	}
	upto := s.session.Applied()
	a, err := s.session.Lock(ctx, o, l, wait)
	if err != nil || s.at != 0 {
		return err
	}
	if a.ID == 0 {
		upto = s.session.Applied()
		if a, err = s.session.GetAttr(ctx, f.back.header, o.ID); err != nil {
			s.cache.Forget(s.key(o.ID)) // it has the lock all the same
			s.kernel.data(f.ino.node)
			return intact(&f.lost)
		}
	}
	s.refresh(f, &a, upto)
	return intact(&f.lost)
}

// unlockTimeout is how long close(2) waits until others can have the locks. A process
// that is in it cannot be killed.
const unlockTimeout = time.Second

// closedBy ends the fcntl locks of a process on a file that it has closed.
func (s *fileSystem) closedBy(id proto.FileID, owner uint64) {
	o := remote.LockOwner{At: s.at, ID: id, Num: owner}
	s.lockers.forget(o) // a handle's RELEASE may come after the process has locked the file again
	done := s.session.DropLocks(o)
	if done == nil {
		return
	}
	timer := time.NewTimer(unlockTimeout)
	defer timer.Stop()
	select {
	case <-done:
	case <-timer.C:
	case <-s.life.Done():
	}
}

// unlockAll ends the locks that were taken through a handle and not ended with a close.
func (s *fileSystem) unlockAll(f *openFile) {
	for o := range s.lockers.take(f.ino.id, f) {
		if o.Kind != lockset.Opens { // a mode ends with the session's last open
			s.session.DropLocks(o)
		}
	}
}

// waiting is the context of a request that any signal ends.
type waiting struct {
	context.Context
	end context.CancelFunc
}

func waitFor(cancel <-chan struct{}) waiting {
	ctx, end := context.WithCancel(context.Background())
	go func() {
		select {
		case <-cancel:
			end()
		case <-ctx.Done():
		}
	}()
	return waiting{ctx, end}
}

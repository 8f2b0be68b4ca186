package fusefs

import (
	"sync"
	"unsafe"

	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"

	"cagefs.dev/cage/remote/lease"
	"cagefs.dev/cage/remote/proto"
)

// Bounds of the dispatcher.
const (
	notifiers  = 8    // goroutines; a notification blocks its own while requests hold the pages or the directory
	maxPending = 4096 // files with news that the kernel has not been told; beyond that everything is invalidated
)

// kernel is what the dispatcher tells the kernel. All calls may block until
// requests that are being handled are answered.
type kernel interface {
	attrs(node uint64) (known bool) // attributes are not valid any more; known: it has the inode, or is gone
	data(node uint64) (known bool)  // nor are the pages
	hole(node uint64, off, n int64) // pages of a range are written back and dropped; n 0: to the end
	epoch()                         // all names have to be looked up again, if expires
	expires() bool                  // names can be told in that way
}

// news is what the kernel is to be told of a file, coalesced until it is.
type news struct {
	data   bool          // pages are not valid any more
	failed bool          // a write of ours failed: what is cached was never there
	recall *lease.Recall // nothing of the file is to be relied on any more
}

// join adds what comes later.
func (n *news) join(m news) {
	n.data = n.data || m.data
	n.failed = n.failed || m.failed
	if m.recall != nil && (n.recall == nil || m.recall.UpTo.Compare(n.recall.UpTo) > 0) {
		n.recall = m.recall
	}
}

// dispatcher tells the kernel what it is not to believe any more. No request's handler ever
// notifies (but seek, and lostSetID, which waits for no lock), because the notification
// would wait for that request; handlers and upcalls put news here and go on. News of one file are told one after the
// other, and join while they wait. Safe for concurrent use.
type dispatcher struct {
	tell func(proto.FileID, news) // one file's news; set at construction
	all  func()                   // everything; set at construction
	wg   sync.WaitGroup

	mu     sync.Mutex
	wake   sync.Cond              // of mu
	queue  []proto.FileID         // guarded by mu: files with news and none being told, in order
	news   map[proto.FileID]*news // guarded by mu
	busy   map[proto.FileID]bool  // guarded by mu: being told
	reset  bool                   // guarded by mu: everything is to be invalidated
	closed bool                   // guarded by mu
}

// newDispatcher starts one; tell and all are called by its goroutines, with no lock held.
func newDispatcher(tell func(proto.FileID, news), all func()) *dispatcher {
	d := &dispatcher{tell: tell, all: all, news: make(map[proto.FileID]*news), busy: make(map[proto.FileID]bool)}
	d.wake.L = &d.mu
	for range notifiers {
		d.wg.Go(d.work)
	}
	return d
}

// put adds news. It never blocks.
func (d *dispatcher) put(id proto.FileID, n news) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.closed || d.reset {
		return
	}
	if old := d.news[id]; old != nil {
		old.join(n)
		return
	}
	if len(d.news) >= maxPending {
		d.resetLocked()
		return
	}
	d.news[id] = &n
	if !d.busy[id] {
		d.queue = append(d.queue, id)
		d.wake.Signal()
	}
}

// everything says that nothing the kernel has is known to be valid.
func (d *dispatcher) everything() {
	d.mu.Lock()
	defer d.mu.Unlock()
	if !d.closed {
		d.resetLocked()
	}
}

func (d *dispatcher) resetLocked() {
	clear(d.news)
	d.queue = nil
	d.reset = true
	d.wake.Signal()
}

// close drops what is waiting and returns when nothing is being told any more.
func (d *dispatcher) close() {
	d.mu.Lock()
	d.closed = true
	d.wake.Broadcast()
	d.mu.Unlock()
	d.wg.Wait()
}

func (d *dispatcher) work() {
	d.mu.Lock()
	defer d.mu.Unlock()
	for {
		switch {
		case d.closed:
			return
		case d.reset:
			d.reset = false
			d.outside(d.all)
		case len(d.queue) > 0:
			id := d.queue[0]
			d.queue = d.queue[1:]
			n := *d.news[id]
			delete(d.news, id)
			d.busy[id] = true
			d.outside(func() { d.tell(id, n) })
			delete(d.busy, id)
			if d.news[id] != nil {
				d.queue = append(d.queue, id)
				d.wake.Signal()
			}
		default:
			d.wake.Wait()
		}
	}
}

// outside calls f without the lock.
func (d *dispatcher) outside(f func()) {
	d.mu.Unlock()
	defer d.mu.Lock()
	f()
}

// tell brings one file's news to the cache and the kernel. The cache comes
// first, so that what the kernel reads again is new.
func (s *fileSystem) tell(id proto.FileID, n news) {
	if n.recall != nil {
		s.revoke(id, *n.recall)
		return
	}
	if n.failed {
		s.cache.Forget(s.key(id))
	}
	ino := s.inodes.known(id)
	node, ok := s.inodes.node(id)
	if ino == nil && (!ok || !s.inodes.mayKnow(id)) {
		return
	}
	s.notified.Add(1)
	if (n.data || n.failed) && (ino == nil || !ino.isDir()) {
		s.kernel.data(node)
	} else {
		s.kernel.attrs(node)
	}
}

// maxDrops is how many files' pages tellAll drops at a time: each waits for the reads of its file that are on their way.
const maxDrops = 64

// tellAll invalidates everything: what is known may be wrong. Of files that the table
// does not hold the kernel believes attributes until the leases end under which
// it was told, and their pages are compared when they are opened; all others of which it has pages are open.
// A read that waits for a server which is gone holds up its own file, and Settled, but no other file.
func (s *fileSystem) tellAll() {
	upTo := s.session.Resets()
	s.cache.Reset(s.tag)
	s.memory.reset()
	s.inodes.forgotten()
	var paged []*inode
	s.inodes.each(func(ino *inode) {
		ino.names.Add(1)
		ino.noCaps.Store(0)
		s.unbelieve(ino, s.dropAttrs)
		if ino.isDir() {
			s.listed(ino)
		}
		if ino.pages.Load() {
			paged = append(paged, ino)
		}
	})
	s.kernel.epoch()
	var drops sync.WaitGroup
	room := make(chan struct{}, maxDrops)
	for _, ino := range paged {
		room <- struct{}{}
		drops.Go(func() {
			s.kernel.data(ino.node)
			<-room
		})
	}
	drops.Wait()
	s.session.Settled(upTo)
}

// device notifies through the mount's descriptors: go-fuse's for what it can
// do, our own for what it cannot. Results are not looked at: ENOENT says that
// the kernel has nothing to invalidate, anything else that the mount is gone.
type device struct {
	server *fuse.Server // set at construction
	fd     int          // our own; set at construction, closed after the last notification
	epochs bool         // set at construction: the kernel knows INC_EPOCH (7.44)
}

var _ kernel = (*device)(nil)

func (d *device) attrs(node uint64) (known bool) {
	return d.server.InodeNotify(node, -1, 0) != fuse.ENOENT
}

func (d *device) data(node uint64) (known bool) {
	return d.server.InodeNotify(node, 0, 0) != fuse.ENOENT
}

func (d *device) hole(node uint64, off, n int64) { d.server.InodeNotify(node, off, n) }

// epoch makes all names of the mount expire, with no lock of the kernel's. The
// notification is a header without a request's number, whose status is the kind.
func (d *device) epoch() {
	if !d.epochs {
		return
	}
	head := fuse.OutHeader{Status: -fuse.NOTIFY_INC_EPOCH}
	head.Length = uint32(unsafe.Sizeof(head))
	for {
		if _, err := unix.Write(d.fd, unsafe.Slice((*byte)(unsafe.Pointer(&head)), head.Length)); err != unix.EINTR {
			return
		}
	}
}

func (d *device) expires() bool { return d.epochs }

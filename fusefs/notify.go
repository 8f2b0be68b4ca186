package fusefs

import (
	"sync"
	"unsafe"

	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"

	"cagefs.dev/cage/remote/lease"
	"cagefs.dev/cage/remote/proto"
	"cagefs.dev/cage/remote/wire"
)

// Bounds of the dispatcher.
const (
	notifiers  = 8    // goroutines; a notification blocks its own while requests hold the pages or the directory
	maxPending = 4096 // files with news that the kernel has not been told; beyond that everything is invalidated
	maxNames   = 64   // names of one directory that are kept apart
	fewNames   = 16   // up to here each name costs one notification; beyond, all entries of the mount expire at once
)

// kernel is what the dispatcher tells the kernel. All calls may block until
// requests that are being handled are answered.
type kernel interface {
	attrs(node uint64)              // attributes are not valid any more
	data(node uint64)               // nor are the pages
	hole(node uint64, off, n int64) // pages of a range are written back and dropped; n 0: to the end
	entry(node uint64, name string) // a name of a directory has to be looked up again
	epoch() (supported bool)        // all names have to
	expires() bool                  // epoch is supported
}

// news is what others changed in a file, coalesced until the kernel is told.
type news struct {
	change   proto.LSN
	data     bool                // content or size
	failed   bool                // a write of ours failed: what is cached was never there
	names    map[string]struct{} // of a directory
	allNames bool                // names that are not known, or too many
	recall   *lease.Recall       // nothing of the file is to be relied on any more
}

// join adds what another push says.
func (n *news) join(m news) {
	n.change = max(n.change, m.change)
	n.data = n.data || m.data
	n.failed = n.failed || m.failed
	n.allNames = n.allNames || m.allNames
	if m.recall != nil && (n.recall == nil || m.recall.UpTo.Compare(n.recall.UpTo) > 0) {
		n.recall = m.recall
	}
	for name := range m.names {
		n.add(name)
	}
}

func (n *news) add(name string) {
	if n.names == nil {
		n.names = make(map[string]struct{})
	}
	if len(n.names) < maxNames {
		n.names[name] = struct{}{}
	} else if _, ok := n.names[name]; !ok {
		n.allNames = true
	}
}

// dispatcher tells the kernel what others changed. No request's handler ever
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

// changed takes a push of the server: somebody else changed a file. The past
// stays as it is; and what is known under a lease was recalled before the change:
// to forget it once more would make the kernel throw away what it is just being told.
func (s *fileSystem) changed(c wire.Changed) {
	if s.at != 0 || s.leasing {
		return
	}
	n := news{change: c.Change, data: c.Data}
	ino := s.inodes.known(c.ID)
	if ino != nil { // answers that are on their way are not to be believed
		raise(&ino.changed, uint64(c.Change))
		ino.names.Add(1)
		ino.noCaps.Store(0)
		n.allNames = len(c.Names) == 0 && ino.isDir()
	} else {
		s.inodes.missed(c.Change)
		n.allNames = len(c.Names) == 0 && !c.Data
	}
	for _, name := range c.Names {
		n.add(name)
	}
	s.notify.put(c.ID, n)
}

// tell brings one file's news to the cache and the kernel. The cache comes
// first, so that what the kernel reads again is new.
func (s *fileSystem) tell(id proto.FileID, n news) {
	if n.recall != nil {
		s.revoke(id, *n.recall)
		return
	}
	switch {
	case n.failed:
		s.cache.Forget(s.key(id))
	case n.data:
		s.cache.Changed(s.key(id), n.change)
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
	if n.allNames || len(n.names) > fewNames {
		if s.kernel.epoch() {
			return
		}
	}
	for name := range n.names {
		s.kernel.entry(node, name)
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
	s.inodes.forgotten()
	s.kernel.epoch()
	var paged []*inode
	s.inodes.each(func(ino *inode) {
		ino.names.Add(1)
		ino.noCaps.Store(0)
		s.kernel.attrs(ino.node)
		if ino.pages.Load() {
			paged = append(paged, ino)
		}
	})
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
	expire bool         // set at construction: the kernel knows EXPIRE_ONLY
}

var _ kernel = (*device)(nil)

func (d *device) attrs(node uint64) { d.server.InodeNotify(node, -1, 0) }

func (d *device) data(node uint64) { d.server.InodeNotify(node, 0, 0) }

func (d *device) hole(node uint64, off, n int64) { d.server.InodeNotify(node, off, n) }

// entry lets a name expire where the kernel can do that. Otherwise its entry is
// dropped, which breaks getcwd(2) of those below until the name is used again.
func (d *device) entry(node uint64, name string) {
	if !d.expire {
		d.server.EntryNotify(node, name)
		return
	}
	out := fuse.NotifyInvalEntryOut{Parent: node, NameLen: uint32(len(name)), Flags: fuse.EXPIRE_ONLY}
	d.write(fuse.NOTIFY_INVAL_ENTRY, bytesOf(&out), append([]byte(name), 0))
}

// epoch makes all names of the mount expire, with no lock of the kernel's.
func (d *device) epoch() bool {
	if d.epochs {
		d.write(fuse.NOTIFY_INC_EPOCH)
	}
	return d.epochs
}

func (d *device) expires() bool { return d.epochs }

// write sends a notification: a header without a request's number, whose
// status is the kind.
func (d *device) write(kind int32, parts ...[]byte) {
	head := fuse.OutHeader{Length: uint32(unsafe.Sizeof(fuse.OutHeader{})), Status: -kind}
	for _, p := range parts {
		head.Length += uint32(len(p))
	}
	iov := append([][]byte{bytesOf(&head)}, parts...)
	for {
		if _, err := unix.Writev(d.fd, iov); err != unix.EINTR {
			return
		}
	}
}

// bytesOf is the memory of a message's fixed part.
func bytesOf[T any](v *T) []byte {
	return unsafe.Slice((*byte)(unsafe.Pointer(v)), unsafe.Sizeof(*v))
}

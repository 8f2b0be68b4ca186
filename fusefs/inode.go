package fusefs

import (
	"context"
	"sync"
	"sync/atomic"
	"time"

	"github.com/hanwen/go-fuse/v2/fuse"

	"cagefs.dev/cage/pagecache"
	"cagefs.dev/cage/remote/proto"
)

// inode is what is known of a file that the kernel knows or that is open.
type inode struct {
	id   proto.FileID // the server's number, without tag; set at construction
	node uint64       // set at construction: the kernel's number

	// Guarded by the lock of the inode's shard.
	lookups uint64 // replies that gave the kernel this inode, less what it forgot
	handles int    // open files and listings
	listed  bool   // in the table's list of inodes that wait for their writes

	// Guarded by mu, which is held over no call but those of pagecache.File that do no I/O.
	mu    sync.Mutex
	opens int             // handles that have file open
	file  *pagecache.File // while opens > 0

	// Atomic.
	mode    atomic.Uint32 // as last heard
	logged  atomic.Uint64 // proto.Seq of the newest write of ours
	changed atomic.Uint64 // proto.LSN of the newest change heard of, in a reply or pushed: older attributes are stale
	names   atomic.Uint64 // directory: counts beginnings and ends of changes of its names, by us and others
	pages   atomic.Bool   // the kernel may have pages of it
	stores  atomic.Int64  // handles through which it may be mapped to be written to
	noCaps  atomic.Int64  // fileSystem.now until which it is known to have no security.capability
}

// raise makes v at least n.
func raise(v *atomic.Uint64, n uint64) {
	for {
		old := v.Load()
		if old >= n || v.CompareAndSwap(old, n) {
			return
		}
	}
}

// opened notes that a handle has the cached file open.
func (ino *inode) opened(f *pagecache.File) {
	ino.mu.Lock()
	defer ino.mu.Unlock()
	ino.opens++
	ino.file = f
}

// closed takes an opened back.
func (ino *inode) closed() {
	ino.mu.Lock()
	defer ino.mu.Unlock()
	if ino.opens--; ino.opens == 0 {
		ino.file = nil
	}
}

// heard notes what a reply says of the file.
func (ino *inode) heard(a *proto.Attr) {
	ino.mode.Store(a.Mode)
	raise(&ino.changed, uint64(a.Change))
}

// written is the number of the newest write of ours, as the cached file tells
// it if it is open.
func (ino *inode) written() proto.Seq {
	ino.mu.Lock()
	defer ino.mu.Unlock()
	if ino.file != nil {
		raise(&ino.logged, uint64(ino.file.Logged()))
	}
	return proto.Seq(ino.logged.Load())
}

// own tells the cached file, if it is open, what a change of ours made of it.
// upto is what written said before the change.
func (ino *inode) own(a *proto.Attr, upto proto.Seq) {
	ino.heard(a)
	ino.mu.Lock()
	defer ino.mu.Unlock()
	if ino.file != nil {
		ino.file.Own(*a, upto)
	}
}

// number is the inode's st_ino.
func (ino *inode) number() uint64 {
	return uint64(ino.id.Tagged(proto.FileID(ino.node).Tag()))
}

// replaced is own for a change of ours whose bytes nobody here knows: what is
// cached of the range goes.
func (ino *inode) replaced(a *proto.Attr, upto proto.Seq, off, end int64) {
	ino.heard(a)
	ino.mu.Lock()
	defer ino.mu.Unlock()
	if ino.file != nil {
		ino.file.Replaced(*a, upto, off, end)
	}
}

// isDir reports whether the file is known to be a directory.
func (ino *inode) isDir() bool { return ino.mode.Load()&proto.ModeType == proto.ModeDir }

const shards = 64 // a power of two

// table is all inodes of a source, by the kernel's number. That is the tagged
// file id; but without a tag the source's root is the mount's, which the kernel
// calls 1 whatever directory of the export it is. Safe for concurrent use.
type table struct {
	tag     uint16           // set at construction
	root    *inode           // set at construction; never dropped
	applied func() proto.Seq // set at construction: see remote.Session

	shards [shards]shard

	mu      sync.Mutex
	waiting []*inode // guarded by mu: inodes that only their unapplied writes keep
}

type shard struct {
	mu     sync.Mutex
	inodes map[uint64]*inode // guarded by mu
}

func newTable(tag uint16, root proto.Attr, applied func() proto.Seq) *table {
	node := uint64(fuse.FUSE_ROOT_ID)
	if tag != 0 {
		node = uint64(root.ID.Tagged(tag))
	}
	t := &table{tag: tag, root: &inode{id: root.ID, node: node, lookups: 1}, applied: applied}
	t.root.heard(&root)
	for i := range t.shards {
		t.shards[i].inodes = make(map[uint64]*inode)
	}
	t.shard(t.root.node).inodes[t.root.node] = t.root
	return t
}

func (t *table) shard(node uint64) *shard { return &t.shards[node%shards] }

// node is the kernel's number of a file. The export's root is no inode of a
// mount of one of its directories, and what no server gives out is none at all:
// ok is then false.
func (t *table) node(id proto.FileID) (node uint64, ok bool) {
	if id == t.root.id {
		return t.root.node, true
	}
	return uint64(id.Tagged(t.tag)), id != proto.RootID && id <= proto.MaxFileID
}

// known returns the inode of a file, nil where the kernel does not know it and it is not open.
func (t *table) known(id proto.FileID) *inode {
	node, ok := t.node(id)
	if !ok {
		return nil
	}
	s := t.shard(node)
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.inodes[node]
}

// find returns the inode that a request names. One that the kernel should have
// forgotten, as after open_by_handle_at(2), gets an inode that the table does not hold.
func (t *table) find(node uint64) *inode {
	s := t.shard(node)
	s.mu.Lock()
	defer s.mu.Unlock()
	if ino := s.inodes[node]; ino != nil {
		return ino
	}
	return &inode{id: proto.FileID(node).Tagged(0), node: node}
}

// remember returns the inode for a reply that gives it to the kernel, and counts that.
func (t *table) remember(attr *proto.Attr) *inode {
	ino := t.hold(attr.ID, func(ino *inode) { ino.lookups++ })
	ino.heard(attr)
	return ino
}

// open returns the inode for a handle, which keeps it until close.
func (t *table) open(id proto.FileID) *inode {
	return t.hold(id, func(ino *inode) { ino.handles++ })
}

// hold finds or makes the inode of a file and changes its counts under the shard's lock.
func (t *table) hold(id proto.FileID, count func(*inode)) *inode {
	node, _ := t.node(id)
	s := t.shard(node)
	s.mu.Lock()
	defer s.mu.Unlock()
	ino := s.inodes[node]
	if ino == nil {
		ino = &inode{id: id, node: node}
		s.inodes[node] = ino
	}
	count(ino)
	return ino
}

// forget takes lookups back, as the kernel says.
func (t *table) forget(node, lookups uint64) {
	t.release(node, func(ino *inode) { ino.lookups -= min(lookups, ino.lookups) })
}

// close takes an open back.
func (t *table) close(ino *inode) {
	t.release(ino.node, func(ino *inode) { ino.handles-- })
}

// release changes the counts of an inode and drops it when nothing needs it. An
// inode whose writes are not applied stays, so that whoever looks the file up
// waits for them; it goes with a later release.
func (t *table) release(node uint64, count func(*inode)) {
	s := t.shard(node)
	s.mu.Lock()
	ino := s.inodes[node]
	if ino != nil {
		count(ino)
	}
	list := false
	if ino != nil && ino != t.root && ino.lookups == 0 && ino.handles == 0 {
		if proto.Seq(ino.logged.Load()) <= t.applied() {
			delete(s.inodes, node)
		} else if !ino.listed {
			ino.listed, list = true, true
		}
	}
	s.mu.Unlock()
	t.sweep(ino, list)
}

// sweep drops inodes that waited for writes which are applied now, and adds one that begins to.
func (t *table) sweep(add *inode, list bool) {
	t.mu.Lock()
	defer t.mu.Unlock()
	keep := t.waiting[:0]
	for _, ino := range t.waiting {
		if !t.settle(ino) {
			keep = append(keep, ino)
		}
	}
	clear(t.waiting[len(keep):])
	t.waiting = keep
	if list {
		t.waiting = append(t.waiting, add)
	}
}

// settle drops a listed inode if its writes are applied, and reports whether it
// is off the list. It stays in the table if it is in use again. t.mu is held;
// the order of locks is t.mu, then a shard's.
func (t *table) settle(ino *inode) bool {
	if proto.Seq(ino.logged.Load()) > t.applied() {
		return false
	}
	s := t.shard(ino.node)
	s.mu.Lock()
	defer s.mu.Unlock()
	ino.listed = false
	if ino.lookups == 0 && ino.handles == 0 && s.inodes[ino.node] == ino {
		delete(s.inodes, ino.node)
	}
	return true
}

// each calls f for all inodes, with no lock held.
func (t *table) each(f func(*inode)) {
	var all []*inode
	for i := range t.shards {
		s := &t.shards[i]
		s.mu.Lock()
		all = all[:0]
		for _, ino := range s.inodes {
			all = append(all, ino)
		}
		s.mu.Unlock()
		for _, ino := range all {
			f(ino)
		}
	}
}

// len is the number of inodes.
func (t *table) len() (n int) {
	for i := range t.shards {
		s := &t.shards[i]
		s.mu.Lock()
		n += len(s.inodes)
		s.mu.Unlock()
	}
	return n
}

// Forget implements fuse.RawFileSystem.
func (s *fileSystem) Forget(node, lookups uint64) { s.inodes.forget(node, lookups) }

// settled waits until the writes of a file that are logged are applied, so that
// the server's answer about it includes them. A write that failed is no longer
// waited for; its error belongs to fsync and close.
func (s *fileSystem) settled(ctx context.Context, ino *inode) error {
	seq := proto.Seq(ino.logged.Load())
	if seq <= s.session.Applied() {
		return nil
	}
	if err := s.session.Wait(ctx, seq); err != nil && seq > s.session.Applied() {
		return err
	}
	return nil
}

// now is the fileSystem's clock, for times that are compared with it only.
func (s *fileSystem) now() int64 { return int64(time.Since(s.began)) }

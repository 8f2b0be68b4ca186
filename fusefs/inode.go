package fusefs

import (
	"container/list"
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
	// Set at construction.
	id   proto.FileID // the server's number, without tag
	node uint64       // the kernel's number
	born int64        // table.now when the table began to hold it

	// Guarded by the lock of the inode's shard.
	recent  *list.Element // in the shard's list; nil for one that the table does not hold
	lookups uint64        // replies that gave the kernel this inode, less what it forgot
	handles int           // open files and listings
	listed  bool          // in the table's list of inodes that wait for their writes

	// Guarded by mu, which is held over no call but those of pagecache.File that do no I/O.
	mu      sync.Mutex
	opens   int                // handles that have file open
	pass    *pass              // a recall is being carried out
	began   chan struct{}      // closed when a pass begins; nil: nobody waits
	file    *pagecache.File    // while opens > 0
	dropped chan struct{}      // closed when a recall has made the kernel drop all pages; nil: none does
	memo    *memo              // of a directory
	lists   map[*listing]int64 // of a directory: with an answer on its way to the kernel, made at that fileSystem.now

	fresh    sync.Mutex // held while the cache compares its pages; over no request to the server, nor while the kernel is told
	dropping sync.Mutex // held while the kernel drops pages that are behind

	// Atomic.
	mode     atomic.Uint32 // as last heard
	logged   atomic.Uint64 // proto.Seq of the newest write of ours
	changed  atomic.Uint64 // proto.LSN of the newest change heard of, in a reply or pushed: older attributes are stale
	names    atomic.Uint64 // counts recalls; of a directory also beginnings and ends of changes of its names, by us and others
	pages    atomic.Bool   // the kernel may have pages of it
	paged    atomic.Bool   // it was given some since it was made to forget them
	told     atomic.Bool   // it may believe attributes that it was given since it was made to forget them
	altered  atomic.Int32  // changes of ours of its attributes that are on their way
	disputed atomic.Int64  // fileSystem.now of the newest recall; 0: none
	toldAt   atomic.Int64  // fileSystem.now of when it was told attributes last
	behind   atomic.Bool   // they may be older than what the cache was last compared with
	stores   atomic.Int64  // handles through which it may be mapped to be written to
	gone     atomic.Bool   // the table does not hold it any more: news of the file do not reach it
	tenure   atomic.Uint64 // of the lease under which its cached pages are; see remote.Session.Tenure
	mapped   atomic.Bool   // stores through a mapping were written that others were not asked about
	noCaps   atomic.Int64  // fileSystem.now until which it is known to have no security.capability
	place    atomic.Pointer[place]
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

// heard notes what a reply says of a file.
func (t *table) heard(ino *inode, a *proto.Attr) {
	ino.mode.Store(a.Mode)
	raise(&ino.changed, uint64(a.Change))
	if ino.gone.Load() {
		t.missed(a.Change)
	}
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
func (t *table) own(ino *inode, a *proto.Attr, upto proto.Seq) {
	t.heard(ino, a)
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
func (t *table) replaced(ino *inode, a *proto.Attr, upto proto.Seq, off, end int64) {
	t.heard(ino, a)
	ino.mu.Lock()
	defer ino.mu.Unlock()
	if ino.file != nil {
		ino.file.Replaced(*a, upto, off, end)
	}
}

// isDir reports whether the file is known to be a directory.
func (ino *inode) isDir() bool { return ino.mode.Load()&proto.ModeType == proto.ModeDir }

const shards = 64 // a power of two

// maxInodes is how many inodes of a source are held if Options do not say. The kernel may know many more: it is told of
// all news, and what it asks of others begins without memory.
const maxInodes = 1 << 16

// table is the inodes of a source, by the kernel's number. That is the tagged
// file id; but without a tag the source's root is the mount's, which the kernel
// calls 1 whatever directory of the export it is. Safe for concurrent use.
type table struct {
	tag     uint16           // set at construction
	root    *inode           // set at construction; never dropped
	applied func() proto.Seq // set at construction: see remote.Session
	began   time.Time        // set at construction
	most    int              // inodes of a shard; set at construction

	evicted atomic.Bool   // some inode was dropped that the kernel knows
	newest  atomic.Uint64 // the largest file number that the kernel was given

	shards [shards]shard

	floorMu sync.Mutex // a leaf lock
	floor   proto.LSN  // newest change heard of a file that is not held; guarded by floorMu
	raised  int64      // now of when it was raised; guarded by floorMu
	reset   int64      // now of when news were missed altogether; guarded by floorMu

	mu      sync.Mutex
	waiting []*inode // guarded by mu: inodes that only their unapplied writes keep
}

type shard struct {
	mu     sync.Mutex
	inodes map[uint64]*inode // guarded by mu
	recent list.List         // of *inode, the last used one in front; guarded by mu
}

func newTable(tag uint16, root proto.Attr, applied func() proto.Seq, most int) *table {
	node := uint64(fuse.FUSE_ROOT_ID)
	if tag != 0 {
		node = uint64(root.ID.Tagged(tag))
	}
	t := &table{tag: tag, root: &inode{id: root.ID, node: node}, applied: applied, began: time.Now(), most: max(1, most/shards), raised: -1, reset: -1}
	t.heard(t.root, &root)
	for i := range t.shards {
		t.shards[i].inodes = make(map[uint64]*inode)
	}
	s := t.shard(t.root.node)
	s.inodes[t.root.node], t.root.recent = t.root, s.recent.PushFront(t.root)
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

// given reports whether the kernel has an inode, or is about to have it, or to say that it has forgotten it.
func (t *table) given(ino *inode) bool {
	s := t.shard(ino.node)
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.inodes[ino.node] == ino && ino.lookups > 0
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
// forgotten, as after open_by_handle_at(2), gets an inode that the table does not
// hold; where the table has dropped some itself it holds it again.
func (t *table) find(node uint64) *inode {
	s := t.shard(node)
	s.mu.Lock()
	defer s.mu.Unlock()
	if ino := s.inodes[node]; ino != nil {
		s.recent.MoveToFront(ino.recent)
		return ino
	}
	ino := &inode{id: proto.FileID(node).Tagged(0), node: node}
	if t.evicted.Load() {
		t.addLocked(s, ino)
	}
	return ino
}

// addLocked makes the table hold an inode, and drop the one of its shard that
// was not used for longest if there are too many.
func (t *table) addLocked(s *shard, ino *inode) {
	ino.born = t.now()
	if t.evicted.Load() { // the kernel may have been told of it before
		ino.told.Store(true)
		ino.paged.Store(true)
	}
	s.inodes[ino.node], ino.recent = ino, s.recent.PushFront(ino)
	e := s.recent.Back()
	for range 8 {
		if len(s.inodes) <= t.most {
			return
		}
		old, before := e.Value.(*inode), e.Prev()
		if old == ino || before == nil {
			return
		}
		if old == t.root || old.handles > 0 || old.listed || proto.Seq(old.logged.Load()) > t.applied() {
			s.recent.MoveToFront(e)
		} else {
			t.evicted.Store(true)
			t.dropLocked(s, old)
		}
		e = before
	}
}

// dropLocked makes the table hold an inode no longer.
func (t *table) dropLocked(s *shard, ino *inode) {
	delete(s.inodes, ino.node)
	s.recent.Remove(ino.recent)
	ino.gone.Store(true)
	t.missed(proto.LSN(ino.changed.Load()))
}

// missed notes a change of a file that is not held.
func (t *table) missed(change proto.LSN) {
	t.floorMu.Lock()
	defer t.floorMu.Unlock()
	if change > t.floor {
		t.floor, t.raised = change, t.now()
	}
}

// newer reports whether a change may have been heard of that is newer than the
// attributes in a reply to a request which began at since (table.now). Of an inode
// that was held all the time the table knows; of others it only knows the newest change of all.
func (t *table) newer(ino *inode, change proto.LSN, since int64) bool {
	t.floorMu.Lock()
	floor, raised, reset := t.floor, t.raised, t.reset
	t.floorMu.Unlock()
	switch {
	case reset >= since, ino != nil && uint64(change) < ino.changed.Load():
		return true
	case ino != nil && ino.recent != nil && ino.born < since && !ino.gone.Load():
		return false
	}
	return change < floor && raised >= since
}

// forgotten notes that news were missed.
func (t *table) forgotten() {
	t.floorMu.Lock()
	defer t.floorMu.Unlock()
	t.reset = t.now()
}

// named counts a beginning or an end of a change of a directory's names.
func (t *table) named(dir *inode) {
	dir.names.Add(1)
	if dir.gone.Load() {
		if now := t.known(dir.id); now != nil {
			now.names.Add(1)
		}
	}
}

// mayKnow reports whether the kernel may know a file that the table does not hold.
func (t *table) mayKnow(id proto.FileID) bool {
	return t.evicted.Load() && uint64(id) <= t.newest.Load()
}

// now is the table's clock, for times that are compared with it only.
func (t *table) now() int64 { return int64(time.Since(t.began)) + 1 }

// remember returns the inode for a reply that gives it to the kernel, and counts that.
func (t *table) remember(attr *proto.Attr) *inode {
	raise(&t.newest, uint64(attr.ID))
	ino := t.hold(attr.ID, func(ino *inode) { ino.lookups++ })
	t.heard(ino, attr)
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
	if ino != nil {
		count(ino)
		s.recent.MoveToFront(ino.recent)
		return ino
	}
	ino = &inode{id: id, node: node}
	count(ino)
	t.addLocked(s, ino)
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
			t.dropLocked(s, ino)
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
		t.dropLocked(s, ino)
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

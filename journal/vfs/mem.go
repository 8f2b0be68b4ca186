package vfs

import (
	"maps"
	"slices"
	"sync"
	"syscall"
	"time"
)

// Mem is a disk in memory that behaves as OS on ext4 does for root, and that
// can lose what was not synced (Crash). Inode numbers are given out again soon
// after a file is gone, with another birth time. Its clock is its own: every
// change is later than the one before. Reading does not change access times.
// Safe for concurrent use.
type Mem struct {
	// OnSync, if set before first use, is called with 1, 2, … before each Sync,
	// Datasync and SyncFS takes effect, without any lock: it may call Crash.
	OnSync func(n int)

	seed uint64 // set at construction

	mu       sync.Mutex // guards what follows
	live     image      // names and attributes as callers see them
	disk     image      // as they surely are on the disk
	pending  []txn      // what leads from disk to live, in order
	seq      uint64     // number of the newest txn; pending ends with it
	data     map[nodeID]*filedata
	owner    *token             // of the filedata that may be changed in place
	refs     map[nodeID]int     // open handles
	locks    map[nodeID]*memDir // who holds Lock; not cloned
	lastID   nodeID
	nextIno  uint64   // above all numbers in use
	freeInos []uint64 // below nextIno, ascending
	clock    int64
	syncs    int
}

// nodeID names an inode for its life; it is never used again.
type nodeID uint64

const rootID nodeID = 1

const (
	rootIno  = 2
	firstIno = 11
	maxLinks = 65000
)

// attrs are an inode's attributes. Those of regular files leave out the size.
type attrs struct {
	Info
	target string            // of symlinks
	parent nodeID            // of directories
	xattrs map[string]string // replaced as a whole, never changed
}

// inode is a node of an image.
type inode struct {
	owner *token
	attrs
	entries []dirent // of directories, by cookie
}

// image is the names and attributes of a file system, shared as content is.
type image struct {
	owner *token
	nodes map[nodeID]*inode
}

func (g *image) share() image {
	s := image{owner: new(token), nodes: maps.Clone(g.nodes)}
	g.owner = new(token)
	return s
}

func (g *image) own(id nodeID) *inode {
	n := g.nodes[id]
	switch {
	case n == nil:
		n = &inode{owner: g.owner}
	case n.owner != g.owner:
		n = &inode{owner: g.owner, attrs: n.attrs, entries: slices.Clone(n.entries)}
	}
	g.nodes[id] = n
	return n
}

// txn is what one call changes in names and attributes, all or nothing: a
// redo record, never changed once it is committed.
type txn []delta

// delta is one inode's part of a txn.
type delta struct {
	id    nodeID
	attrs *attrs  // the attributes from now on; nil: as they were
	entry *dirent // to be put into directory id, or taken out if its id is 0
	gone  bool    // the inode is freed
}

func (g *image) apply(t txn) {
	for _, d := range t {
		if d.gone {
			delete(g.nodes, d.id)
			continue
		}
		n := g.own(d.id)
		if d.attrs != nil {
			n.attrs = *d.attrs
		}
		if d.entry != nil {
			n.entries = put(n.entries, *d.entry)
		}
	}
}

// NewMem makes an empty disk. The seed determines the order in directories and
// the file system's id; the same calls on the same seed do the same.
func NewMem(seed uint64) *Mem {
	m := &Mem{
		seed:    seed,
		live:    image{owner: new(token), nodes: make(map[nodeID]*inode)},
		data:    make(map[nodeID]*filedata),
		owner:   new(token),
		refs:    make(map[nodeID]int),
		lastID:  rootID,
		nextIno: firstIno,
		clock:   time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC).UnixNano(),
	}
	now := m.tickLocked()
	m.live.own(rootID).attrs = attrs{Info: Info{
		Ident: Ident{Ino: rootIno, Btime: now}, Mode: syscall.S_IFDIR | 0o755, Nlink: 2,
		Atime: now, Mtime: now, Ctime: now,
	}}
	m.disk = m.live.share()
	return m
}

// Root returns the root directory.
func (m *Mem) Root() (Dir, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.openDirLocked(rootID), nil
}

// StatFS counts what is in use against a disk of a terabyte.
func (m *Mem) StatFS() (StatFS, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	s := StatFS{
		ID: mix(m.seed), BlockSize: pageSize, NameMax: nameMax,
		Blocks: 1 << 28, Files: 1 << 24,
	}
	used := uint64(0)
	for _, d := range m.data {
		used += d.cur.blocks() * sectorSize / pageSize
	}
	s.BlocksFree = s.Blocks - used
	s.BlocksAvail = s.BlocksFree
	s.FilesFree = s.Files - uint64(len(m.live.nodes))
	return s, nil
}

// Quota knows no limits.
func (m *Mem) Quota(bool, uint32) (Quota, error) { return Quota{}, nil }

// Close does nothing.
func (m *Mem) Close() error { return nil }

// SyncFS makes everything durable.
func (m *Mem) SyncFS() error {
	m.aboutToSync()
	m.mu.Lock()
	defer m.mu.Unlock()
	m.settleLocked(m.seq)
	for id := range m.data {
		m.syncDataLocked(id)
	}
	return nil
}

// aboutToSync calls the hook.
func (m *Mem) aboutToSync() {
	m.mu.Lock()
	m.syncs++
	n := m.syncs
	m.mu.Unlock()
	if m.OnSync != nil {
		m.OnSync(n)
	}
}

// settleLocked makes names and attributes durable up to a txn.
func (m *Mem) settleLocked(to uint64) {
	first := m.seq - uint64(len(m.pending)) + 1
	if to < first {
		return
	}
	n := int(to - first + 1)
	for _, t := range m.pending[:n] {
		m.disk.apply(t)
		for _, d := range t {
			if d.gone {
				delete(m.data, d.id)
			}
		}
	}
	m.pending = slices.Clone(m.pending[n:])
}

// tickLocked returns the time of a change.
func (m *Mem) tickLocked() int64 {
	m.clock += int64(time.Microsecond)
	return m.clock
}

// change is a txn being built. It lives under m.mu.
type change struct {
	m      *Mem
	now    int64
	deltas txn
}

func (m *Mem) beginLocked() *change { return &change{m: m, now: m.tickLocked()} }

// attrs returns an inode's attributes to be changed.
func (c *change) attrs(id nodeID) *attrs {
	for _, d := range c.deltas {
		if d.id == id && d.attrs != nil {
			return d.attrs
		}
	}
	a := new(attrs)
	if n := c.m.live.nodes[id]; n != nil {
		*a = n.attrs
	}
	c.deltas = append(c.deltas, delta{id: id, attrs: a})
	return a
}

// touch changes an inode's ctime, modify also its mtime.
func (c *change) touch(id nodeID) *attrs {
	a := c.attrs(id)
	a.Ctime = c.now
	return a
}

func (c *change) modify(id nodeID) *attrs {
	a := c.touch(id)
	a.Mtime = c.now
	return a
}

// enter puts a name into a directory, replacing what it named; 0 takes it out.
func (c *change) enter(dir nodeID, name string, id nodeID) {
	entry := &dirent{cookie: c.m.cookie(c.m.live.nodes[dir].entries, name), name: name, id: id}
	c.deltas = append(c.deltas, delta{id: dir, entry: entry})
	c.modify(dir)
}

// adopt makes dir the parent of a directory that was entered there.
func (c *change) adopt(id, dir nodeID) {
	c.attrs(id).parent = dir
	c.attrs(dir).Nlink++
}

// dropLink takes n links from an inode and frees it with the last.
func (c *change) dropLink(id nodeID, n uint32) {
	a := c.touch(id)
	a.Nlink -= n
	if a.Nlink == 0 && c.m.refs[id] == 0 {
		c.free(id, a.Ino)
	}
}

func (c *change) free(id nodeID, ino uint64) {
	c.deltas = append(c.deltas, delta{id: id, gone: true})
	i, _ := slices.BinarySearch(c.m.freeInos, ino)
	c.m.freeInos = slices.Insert(c.m.freeInos, i, ino)
}

// commit makes the change visible.
func (c *change) commit() {
	m := c.m
	m.live.apply(c.deltas)
	m.seq++
	m.pending = append(m.pending, c.deltas)
	for _, d := range c.deltas {
		if d.attrs != nil && m.data[d.id] != nil {
			m.ownDataLocked(d.id).changed = m.seq
		}
	}
}

// newInode gives out an id and the lowest free number.
func (c *change) newInode(mode, rdev uint32, gid uint32, target string) nodeID {
	m := c.m
	m.lastID++
	ino := m.nextIno
	if len(m.freeInos) > 0 {
		ino = m.freeInos[0]
		m.freeInos = m.freeInos[1:]
	} else {
		m.nextIno++
	}
	a := c.modify(m.lastID)
	*a = attrs{target: target, Info: Info{
		Ident: Ident{Ino: ino, Btime: c.now}, Mode: mode, Nlink: 1, GID: gid, Rdev: rdev,
		Size: int64(len(target)), Atime: c.now, Mtime: c.now, Ctime: c.now,
	}}
	switch mode & syscall.S_IFMT {
	case syscall.S_IFDIR:
		a.Nlink, a.Size, a.Blocks = 2, pageSize, pageSize/sectorSize
	case syscall.S_IFREG:
		m.data[m.lastID] = &filedata{owner: m.owner, created: m.seq + 1}
	}
	return m.lastID
}

// unrefLocked ends an open handle's hold on an inode.
func (m *Mem) unrefLocked(id nodeID) {
	if m.refs[id]--; m.refs[id] > 0 {
		return
	}
	delete(m.refs, id)
	if n := m.live.nodes[id]; n.Nlink == 0 {
		c := m.beginLocked()
		c.free(id, n.Ino)
		c.commit()
	}
}

// infoLocked describes an inode.
func (m *Mem) infoLocked(id nodeID) Info {
	info := m.live.nodes[id].Info
	if d := m.data[id]; d != nil {
		info.Size, info.Blocks = d.cur.size, d.cur.blocks()
	}
	return info
}

// Now is the time on the disk's clock.
func (m *Mem) Now() int64 {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.clock
}

// Sleep lets the disk's clock go on.
func (m *Mem) Sleep(nanoseconds int64) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.clock += nanoseconds
}

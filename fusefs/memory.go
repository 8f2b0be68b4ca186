package fusefs

import (
	"container/list"
	"slices"
	"sync"

	"cagefs.dev/cage/remote/proto"
)

// memory is what a source was told of files under their leases, for when its
// server is silent: see known.go. It forgets a file when its lease is recalled
// or a change of ours concerns it, and the one that was not used for longest when there is
// too much. A nil memory remembers nothing. Safe for concurrent use.
type memory struct {
	most int // of all recollections' sizes; set at construction

	mu     sync.Mutex
	files  map[proto.FileID]*list.Element // guarded by mu; of recent
	recent list.List                      // guarded by mu; of *recollection, the last used one in front
	size   int                            // guarded by mu: the sum of their sizes

	// What was asked before a file was forgotten is not to be learnt after that.
	count  uint64                  // guarded by mu; how often something was forgotten
	forgot map[proto.FileID]uint64 // guarded by mu; count of when; of files that are not in it, at floor at the latest
	floor  uint64                  // guarded by mu
}

// maxForgot is how many forgotten files are remembered one by one.
const maxForgot = 4096

// recollection is what is remembered of a file.
type recollection struct {
	id      proto.FileID
	tenure  uint64 // of the lease under which all of it was told
	size    int    // as counted in memory.size
	attr    proto.Attr
	applied proto.Seq // operations of ours up to it are in attr
	readers []reader  // who may read it
	xattrs  map[string]xattr

	// Of a directory.
	names  map[string]proto.FileID // 0: there is none
	whole  []proto.DirEntry        // all names, in order, Attr has ID and Mode only; nil: they were not listed
	parent proto.FileID
}

// reader is on whose behalf the server let a file be opened or listed.
type reader struct {
	uid, gid uint32
	flags    uint32 // of openFlags
}

// xattr is an extended attribute, or that there is none.
type xattr struct {
	value []byte
	none  bool
}

// Bounds of what is remembered of one file. Longer values are not remembered.
const (
	maxReaders    = 8
	maxXattrs     = 8
	maxXattrValue = 1 << 10
)

// newMemory makes a memory of so many files and names; nil if that is 0.
func newMemory(most int) *memory {
	if most == 0 {
		return nil
	}
	return &memory{most: most, files: map[proto.FileID]*list.Element{}, forgot: map[proto.FileID]uint64{}}
}

// since is to be taken before something is asked that is then learnt.
func (m *memory) since() uint64 {
	if m == nil {
		return 0
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.count
}

// learn adds to what is remembered of a file what was told under a tenure of its
// lease (0: without), by an answer that was asked for at since.
func (m *memory) learn(id proto.FileID, tenure, since uint64, add func(*recollection)) {
	if m == nil || tenure == 0 {
		return
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	if since < m.floor || m.forgot[id] > since {
		return
	}
	e := m.files[id]
	if e == nil {
		e = m.recent.PushFront(&recollection{id: id, tenure: tenure})
		m.files[id] = e
	}
	r := e.Value.(*recollection)
	if r.tenure != tenure {
		*r = recollection{id: id, tenure: tenure, size: r.size}
	}
	add(r)
	m.size -= r.size
	r.size = 1 + len(r.xattrs) + len(r.names) + len(r.whole)
	m.size += r.size
	m.recent.MoveToFront(e)
	for m.size > m.most {
		m.dropLocked(m.recent.Back())
	}
}

func (m *memory) dropLocked(e *list.Element) {
	r := m.recent.Remove(e).(*recollection)
	m.size -= r.size
	delete(m.files, r.id)
}

// recall calls look for what is remembered of a file, which look must not keep, and
// returns the tenure under which it was told.
func (m *memory) recall(id proto.FileID, look func(*recollection)) (tenure uint64) {
	if m == nil {
		return 0
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	e := m.files[id]
	if e == nil {
		return 0
	}
	m.recent.MoveToFront(e)
	r := e.Value.(*recollection)
	look(r)
	return r.tenure
}

// forget forgets files.
func (m *memory) forget(ids ...proto.FileID) {
	if m == nil {
		return
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	for _, id := range ids {
		m.forgetLocked(id)
	}
}

func (m *memory) forgetLocked(id proto.FileID) {
	m.voidLocked(id)
	if e := m.files[id]; e != nil {
		m.dropLocked(e)
	}
}

// voidLocked makes learn refuse what was asked until now.
func (m *memory) voidLocked(id proto.FileID) {
	m.count++
	if len(m.forgot) >= maxForgot {
		clear(m.forgot)
		m.floor = m.count
	}
	m.forgot[id] = m.count
}

// forgetName forgets a directory and the file that has a name in it.
func (m *memory) forgetName(dir proto.FileID, name string) {
	if m == nil {
		return
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	if e := m.files[dir]; e != nil {
		if id := e.Value.(*recollection).names[name]; id != 0 {
			m.forgetLocked(id)
		}
	}
	m.forgetLocked(dir)
}

// wrote forgets the attributes from before a write.
func (m *memory) wrote(id proto.FileID, change proto.LSN) {
	if m == nil {
		return
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	m.voidLocked(id)
	if e := m.files[id]; e != nil {
		if r := e.Value.(*recollection); r.attr.Change < change {
			r.attr = proto.Attr{}
		}
	}
}

// reset forgets everything.
func (m *memory) reset() {
	if m == nil {
		return
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	m.count++
	m.floor = m.count
	clear(m.forgot)
	clear(m.files)
	m.recent.Init()
	m.size = 0
}

// used is how many files and names are remembered.
func (m *memory) used() int {
	if m == nil {
		return 0
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.size
}

// allow notes that somebody may open the file with these flags.
func (r *recollection) allow(who proto.Ident, flags uint32) {
	for i := range r.readers {
		if o := &r.readers[i]; o.uid == who.UID && o.gid == who.GID {
			o.flags |= flags
			return
		}
	}
	if len(r.readers) < maxReaders {
		r.readers = append(r.readers, reader{who.UID, who.GID, flags})
	}
}

// allows reports whether allow was called for it.
func (r *recollection) allows(who proto.Ident, flags uint32) bool {
	return slices.ContainsFunc(r.readers, func(o reader) bool {
		return o.uid == who.UID && o.gid == who.GID && o.flags&flags == flags
	})
}

// list notes all names of a directory.
func (r *recollection) list(all []proto.DirEntry, parent proto.FileID) {
	if all == nil {
		all = []proto.DirEntry{}
	}
	r.parent, r.whole = parent, all
	r.names = make(map[string]proto.FileID, len(all))
	for i := range all {
		r.names[all[i].Name] = all[i].Attr.ID
	}
}

// find is the file with a name, 0 if there is surely none.
func (r *recollection) find(name string) (id proto.FileID, ok bool) {
	id, ok = r.names[name]
	return id, ok || r.whole != nil
}

// name notes a name; where it belongs in a listing nobody has said.
func (r *recollection) name(name string, id proto.FileID) {
	if was, ok := r.find(name); !ok || was != id {
		r.whole = nil
		if r.names == nil {
			r.names = map[string]proto.FileID{}
		}
	}
	if r.whole == nil || id != 0 {
		r.names[name] = id
	}
}

// mark notes an extended attribute.
func (r *recollection) mark(name string, x xattr) {
	delete(r.xattrs, name)
	if len(r.xattrs) == maxXattrs || len(x.value) > maxXattrValue {
		return
	}
	if r.xattrs == nil {
		r.xattrs = map[string]xattr{}
	}
	r.xattrs[name] = x
}

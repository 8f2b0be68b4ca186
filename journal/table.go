package journal

import (
	"slices"
	"sync"
	"sync/atomic"

	"cagefs.dev/cage/journal/record"
	"cagefs.dev/cage/journal/runs"
	"cagefs.dev/cage/journal/vfs"
	"cagefs.dev/cage/remote/proto"
	"cagefs.dev/cage/remote/status"
)

// place is a name in a directory.
type place struct {
	dir  proto.FileID
	name string
}

// node is what the journal knows of a file: its inode and where it hangs.
type node struct {
	id     proto.FileID
	ident  vfs.Ident
	typ    uint32      // S_IF*
	names  []place     // in the tree; more than one: hard links
	graves []proto.LSN // graves that hold this inode, ascending
	change proto.LSN   // newest change of the file or of its entries
	ctime  int64       // inode's ctime after that change; 0: not looked at yet
}

// copy is a node that shares nothing with n.
func (n *node) copy() node {
	c := *n
	c.names = slices.Clone(n.names)
	c.graves = slices.Clone(n.graves)
	return c
}

// table is the truth about fid ↔ (inode, parent, name). A file that nobody
// asked for yet is not in it; it is adopted when it is first seen.
//
// It lies in sorted runs on disk; in memory is what has changed since the newest
// of them, up to a limit, and the blocks of runs that were used last. Reads of
// the disk are made without mu, or with it of blocks that were just read.
//
// A table that cannot be read or written has failed for good: from then on it
// says of what it does not find that it is not there, and failure says why. Who
// makes something of an absence asks it.
type table struct {
	store  *runs.Store // set by open, before anything else is called
	limit  int64       // of dirty's size, from which on it goes to disk; set by open
	failed atomic.Pointer[error]

	mu      sync.RWMutex
	dirty   *changes               // since the newest run, or frozen; guarded by mu
	found   map[place]proto.FileID // names that readers corrected and no record explains yet: what records left there, 0 for nothing; guarded by mu
	frozen  *changes               // on its way to disk, not changed any more; nil: none; guarded by mu
	full    bool                   // there was no space for frozen; guarded by mu
	stopped bool                   // guarded by mu
	wake    *sync.Cond             // of mu: any of these has changed
	spiller sync.WaitGroup
}

func newTable() *table {
	t := &table{dirty: newChanges(), found: map[place]proto.FileID{}}
	t.wake = sync.NewCond(&t.mu)
	return t
}

// get returns a copy of a node.
func (t *table) get(id proto.FileID) (node, bool) {
	t.mu.RLock()
	if n, known := t.changedLocked(id); known {
		defer t.mu.RUnlock()
		if n == nil {
			return node{}, false
		}
		return n.copy(), true
	}
	v := t.store.View()
	t.mu.RUnlock()
	defer v.Release()
	return t.stored(v, id)
}

// kid returns the file that the table has under a name, 0 if none.
func (t *table) kid(at place) proto.FileID {
	t.mu.RLock()
	if id, known := t.kidChangedLocked(at); known {
		defer t.mu.RUnlock()
		return id
	}
	v := t.store.View()
	t.mu.RUnlock()
	defer v.Release()
	return t.link(v, nameKey(at))
}

// under returns the file that the table has under a name, if it is the one with
// an inode number; 0 if not.
func (t *table) under(at place, ino uint64) proto.FileID {
	id := t.kid(at)
	if n, ok := t.get(id); id != 0 && ok && n.ident.Ino == ino {
		return id
	}
	return 0
}

// holder returns the file that has an inode, 0 if none.
func (t *table) holder(ident vfs.Ident) proto.FileID {
	t.mu.RLock()
	id, known := t.inodeChangedLocked(ident.Ino)
	v := t.store.View()
	t.mu.RUnlock()
	defer v.Release()
	if !known {
		id = t.link(v, key(keyInode, ident.Ino))
	}
	if n, ok := t.get(id); id != 0 && ok && n.ident == ident {
		return id
	}
	return 0
}

// find returns the number of the inode seen under a name, if it has one, and
// corrects names that a local process has moved.
func (t *table) find(at place, ident vfs.Ident) (proto.FileID, bool) {
	id := t.kid(at)
	if n, ok := t.get(id); id != 0 && ok && n.ident == ident {
		return id, true
	}
	if id == 0 && t.holder(ident) == 0 { // nobody's inode under a new name
		return 0, false
	}
	t.warm(at.dir)
	t.mu.Lock()
	defer t.unlock()
	if t.peekLocked(at.dir) == nil {
		return 0, false
	}
	if id := t.kidLocked(at); id != 0 {
		if n := t.peekLocked(id); n != nil && n.ident == ident {
			return id, true
		}
		t.correctingLocked(at)
		t.unnameLocked(id, at)
	}
	id = t.inodeLocked(ident.Ino)
	n := t.peekLocked(id)
	if n == nil || n.ident != ident {
		return 0, false
	}
	if n.typ == proto.ModeDir { // a directory has one name: it was moved
		for _, p := range slices.Clone(n.names) {
			t.correctingLocked(p)
			t.unnameLocked(id, p)
		}
	}
	t.correctingLocked(at)
	t.nameLocked(id, at)
	return id, true
}

// nameLocked gives a file a name in a directory that the table knows.
func (t *table) nameLocked(id proto.FileID, at place) {
	if t.peekLocked(at.dir) == nil {
		return
	}
	if old := t.kidLocked(at); old != id {
		if old != 0 {
			t.unnameLocked(old, at)
		}
		t.dirty.setKid(at, id)
	}
	if n := t.peekLocked(id); n != nil && !slices.Contains(n.names, at) {
		n = t.editLocked(id)
		n.names = append(n.names, at)
		t.dirty.size += int64(len(at.name))
	}
}

func (t *table) unnameLocked(id proto.FileID, at place) {
	if t.kidLocked(at) == id {
		t.dirty.setKid(at, 0)
	}
	if n := t.peekLocked(id); n != nil && slices.Contains(n.names, at) {
		n = t.editLocked(id)
		n.names = slices.DeleteFunc(n.names, func(p place) bool { return p == at })
	}
}

// buryLocked notes that a record's grave holds a file.
func (t *table) buryLocked(id proto.FileID, lsn proto.LSN) {
	n := t.editLocked(id)
	n.graves = append(n.graves, lsn)
	t.dirty.setGrave(lsn, id)
}

func (t *table) ungraveLocked(id proto.FileID, lsn proto.LSN) {
	n := t.editLocked(id)
	n.graves = slices.DeleteFunc(n.graves, func(g proto.LSN) bool { return g == lsn })
	t.dirty.setGrave(lsn, 0)
}

// name gives a file a name, if there is such a file.
func (t *table) name(id proto.FileID, at place) {
	t.warm(id, at.dir)
	t.mu.Lock()
	defer t.unlock()
	if t.peekLocked(id) != nil {
		t.nameLocked(id, at)
	}
}

// vanish forgets all places of a file that is in none of them.
func (t *table) vanish(id proto.FileID) {
	t.warm(id)
	t.mu.Lock()
	defer t.unlock()
	n := t.peekLocked(id)
	if n == nil {
		return
	}
	for _, p := range slices.Clone(n.names) {
		t.unnameLocked(id, p)
	}
	for _, g := range slices.Clone(n.graves) {
		t.ungraveLocked(id, g)
	}
}

// unname forgets a name that turned out not to lead to the file any more.
func (t *table) unname(id proto.FileID, at place) {
	t.warm(id)
	t.mu.Lock()
	defer t.unlock()
	if n := t.peekLocked(id); n != nil && slices.Contains(n.names, at) {
		t.correctingLocked(at)
	}
	t.unnameLocked(id, at)
}

// seen notes the state of a file after its change lsn was applied.
func (t *table) seen(id proto.FileID, ctime int64, lsn proto.LSN) {
	t.warm(id)
	t.mu.Lock()
	defer t.unlock()
	n := t.peekLocked(id)
	if n == nil || n.ctime == ctime && n.change >= lsn {
		return
	}
	n = t.editLocked(id)
	n.ctime = ctime
	n.change = max(n.change, lsn)
}

// setRoot enters the export's root directory, if it is not there yet.
func (t *table) setRoot(ident vfs.Ident) {
	t.mu.Lock()
	defer t.unlock()
	if t.peekLocked(proto.RootID) == nil {
		t.putLocked(node{id: proto.RootID, ident: ident, typ: proto.ModeDir})
	}
}

func (t *table) putLocked(n node) {
	t.dirty.setNode(n.id, &n)
	t.dirty.setInode(n.ident.Ino, n.id)
}

// reviveLocked gives a file another inode.
func (t *table) reviveLocked(id proto.FileID, ident vfs.Ident) {
	n := t.editLocked(id)
	if t.inodeLocked(n.ident.Ino) == id {
		t.dirty.setInode(n.ident.Ino, 0)
	}
	n.ident = ident
	t.dirty.setInode(ident.Ino, id)
}

// climb calls f for a file and what is above it, up to the root, with a name of
// each ("" for the root), until f returns false. ok is false where a name is
// missing or the names go round in a circle.
func (t *table) climb(id proto.FileID, f func(id proto.FileID, name string) bool) (ok bool) {
	mark, next := id, 1
	for step := 0; ; step++ {
		if id == proto.RootID {
			return f(id, "")
		}
		n, ok := t.get(id)
		if !ok || len(n.names) == 0 {
			f(id, "")
			return false
		}
		if !f(id, n.names[0].name) {
			return false
		}
		id = n.names[0].dir
		if id == mark {
			return false
		}
		if step == next {
			mark, next = id, 2*next
		}
	}
}

// path returns a path of a file through names the table knows, "" for the root.
func (t *table) path(id proto.FileID) (string, bool) {
	p := ""
	ok := t.climb(id, func(_ proto.FileID, name string) bool {
		if p == "" {
			p = name
		} else if name != "" {
			p = name + "/" + p
		}
		return true
	})
	if !ok {
		return "", false
	}
	return p, true
}

// within reports whether id is dir itself or hangs below it.
func (t *table) within(id, dir proto.FileID) (found bool) {
	t.climb(id, func(id proto.FileID, _ string) bool {
		found = id == dir
		return !found
	})
	return found
}

// lost counts names, of several, that are in removed directories.
func (t *table) lost(names []place) (n uint32) {
	if len(names) < 2 {
		return 0
	}
	for _, at := range names {
		if !t.within(at.dir, proto.RootID) {
			n++
		}
	}
	return n
}

// apply makes the table say what the tree says after a record. Recovery and
// the live way share it: the table after a replay is the table before the crash.
func (t *table) apply(r *record.Record) {
	if r.Kind != record.Adopt { // of an adoption, find has just asked
		t.warm(r.ID, r.Dir, r.NewDir, r.Victim)
	}
	t.mu.Lock()
	defer t.unlock()
	n := t.peekLocked(r.ID)
	at := place{r.Dir, r.Name}
	if len(t.found) > 0 && r.Kind != record.Adopt {
		delete(t.found, at)
		delete(t.found, place{r.NewDir, r.NewName})
	}
	switch r.Kind {
	case record.Adopt, record.Make:
		if n != nil && r.Flag&record.FlagRecovered != 0 { // recovery made it again
			t.reviveLocked(r.ID, vfs.Ident(r.Inode))
			break
		}
		if n == nil { // otherwise the table has it already
			t.putLocked(node{id: r.ID, ident: vfs.Ident(r.Inode), typ: r.New.Mode & proto.ModeType})
		}
		switch {
		case r.Name != "":
			t.nameLocked(r.ID, at)
		case n == nil: // made without a name
			t.buryLocked(r.ID, r.LSN)
		}
	case record.Link:
		if n != nil {
			t.nameLocked(r.ID, at)
		}
	case record.Remove:
		if n != nil {
			t.unnameLocked(r.ID, at)
			if r.Flag&record.FlagLocal == 0 { // what a process of the server took away nobody kept
				t.buryLocked(r.ID, r.LSN)
			}
		}
	case record.Restore:
		if n != nil {
			t.ungraveLocked(r.ID, r.Grave)
			t.nameLocked(r.ID, at)
		}
	case record.Rename:
		if n != nil {
			t.renameLocked(r)
		}
	}
	if r.Kind == record.Adopt {
		return
	}
	for _, id := range []proto.FileID{r.ID, r.Dir, r.NewDir, r.Victim} {
		if n := t.peekLocked(id); n != nil && n.change < r.LSN {
			t.editLocked(id).change = r.LSN
		}
	}
}

func (t *table) renameLocked(r *record.Record) {
	from, to := place{r.Dir, r.Name}, place{r.NewDir, r.NewName}
	victim := t.peekLocked(r.Victim) != nil
	t.unnameLocked(r.ID, from)
	if victim {
		t.unnameLocked(r.Victim, to)
	}
	t.nameLocked(r.ID, to)
	switch {
	case !victim:
	case r.Flag&record.FlagExchange != 0:
		t.nameLocked(r.Victim, from)
	default:
		if r.Flag&record.FlagLocal == 0 {
			t.buryLocked(r.Victim, r.LSN)
		}
	}
}

// dropGrave forgets a grave that history gave up, and the file with its last
// one, and what was only in it. It returns the files that are forgotten.
func (t *table) dropGrave(id proto.FileID, lsn proto.LSN) (gone []proto.FileID) {
	t.warm(id)
	t.mu.Lock()
	defer t.unlock()
	if t.peekLocked(id) == nil {
		return nil
	}
	t.ungraveLocked(id, lsn)
	if t.forgetLocked(id) {
		gone = append(gone, id)
	}
	for i := 0; i < len(gone); i++ {
		for _, k := range t.kidsLocked(gone[i]) {
			t.unnameLocked(k.id, k.at)
			if t.forgetLocked(k.id) {
				gone = append(gone, k.id)
			}
		}
	}
	return gone
}

// forgetLocked forgets a file that is nowhere.
func (t *table) forgetLocked(id proto.FileID) bool {
	n := t.peekLocked(id)
	if n == nil || len(n.graves) > 0 || len(n.names) > 0 {
		return false
	}
	if t.inodeLocked(n.ident.Ino) == id {
		t.dirty.setInode(n.ident.Ino, 0)
	}
	t.dirty.setNode(id, nil)
	return true
}

func stale(id proto.FileID) error { return status.New(status.Stale, "", id.String()) }

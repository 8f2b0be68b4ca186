package journal

import (
	"slices"
	"sync"

	"cagefs.dev/cage/journal/record"
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
// Guarded by table.mu.
type node struct {
	id     proto.FileID
	ident  vfs.Ident
	typ    uint32                  // S_IF*
	names  []place                 // in the tree; more than one: hard links
	graves []proto.LSN             // graves that hold this inode, ascending
	change proto.LSN               // newest change of the file or of its entries
	ctime  int64                   // inode's ctime after that change; 0: not looked at yet
	kids   map[string]proto.FileID // directories: the entries that have numbers
}

// table is the truth about fid ↔ (inode, parent, name). A file that nobody
// asked for yet is not in it; it is adopted when it is first seen.
type table struct {
	mu    sync.RWMutex
	nodes map[proto.FileID]*node
	byIno map[uint64]proto.FileID
}

func newTable() *table {
	return &table{nodes: map[proto.FileID]*node{}, byIno: map[uint64]proto.FileID{}}
}

// get returns a copy of a node without its kids.
func (t *table) get(id proto.FileID) (node, bool) {
	t.mu.RLock()
	defer t.mu.RUnlock()
	n := t.nodes[id]
	if n == nil {
		return node{}, false
	}
	return n.copy(), true
}

// copy is a node that shares nothing with n, without its kids.
func (n *node) copy() node {
	c := *n
	c.kids = nil
	c.names = slices.Clone(n.names)
	c.graves = slices.Clone(n.graves)
	return c
}

// each calls f with copies of all nodes, ascending, until it returns false. No
// lock is held meanwhile: changes during the call may be seen or not.
func (t *table) each(f func(*node) bool) {
	t.mu.RLock()
	ids := sortedIDs(t.nodes)
	t.mu.RUnlock()
	for _, id := range ids {
		if n, ok := t.get(id); ok && !f(&n) {
			return
		}
	}
}

// kid returns the file that the table has under a name, 0 if none.
func (t *table) kid(at place) proto.FileID {
	t.mu.RLock()
	defer t.mu.RUnlock()
	if dir := t.nodes[at.dir]; dir != nil {
		return dir.kids[at.name]
	}
	return 0
}

// under returns the file that the table has under a name, if it is the one with
// an inode number; 0 if not.
func (t *table) under(at place, ino uint64) proto.FileID {
	t.mu.RLock()
	defer t.mu.RUnlock()
	dir := t.nodes[at.dir]
	if dir == nil {
		return 0
	}
	if n := t.nodes[dir.kids[at.name]]; n != nil && n.ident.Ino == ino {
		return n.id
	}
	return 0
}

// holder returns the file that has an inode, 0 if none.
func (t *table) holder(ident vfs.Ident) proto.FileID {
	t.mu.RLock()
	defer t.mu.RUnlock()
	if n := t.nodes[t.byIno[ident.Ino]]; n != nil && n.ident == ident {
		return n.id
	}
	return 0
}

// graveOf is a grave with the file that it holds.
type graveOf struct {
	lsn proto.LSN
	id  proto.FileID
}

// gravesBelow lists the graves of records below one.
func (t *table) gravesBelow(lsn proto.LSN) (out []graveOf) {
	t.each(func(n *node) bool {
		for _, g := range n.graves {
			if g < lsn {
				out = append(out, graveOf{g, n.id})
			}
		}
		return true
	})
	return out
}

// setRoot enters the export's root directory.
func (t *table) setRoot(ident vfs.Ident) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.putLocked(&node{id: proto.RootID, ident: ident, typ: proto.ModeDir})
}

// load takes over the nodes of a checkpoint. The root stays the inode that it is.
func (t *table) load(nodes []*node) {
	t.mu.Lock()
	defer t.mu.Unlock()
	root := t.nodes[proto.RootID]
	for _, n := range nodes {
		if n.id == proto.RootID {
			root.change, root.ctime = n.change, n.ctime
			continue
		}
		t.putLocked(n)
	}
	for _, n := range nodes {
		for _, p := range n.names {
			t.nameLocked(n, p)
		}
	}
}

// find returns the number of the inode seen under a name, if it has one, and
// corrects names that a local process has moved.
func (t *table) find(at place, ident vfs.Ident) (proto.FileID, bool) {
	t.mu.Lock()
	defer t.mu.Unlock()
	dir := t.nodes[at.dir]
	if dir == nil {
		return 0, false
	}
	if id, ok := dir.kids[at.name]; ok {
		if n := t.nodes[id]; n != nil && n.ident == ident {
			return id, true
		}
		t.unnameLocked(id, at)
	}
	id, ok := t.byIno[ident.Ino]
	if !ok {
		return 0, false
	}
	n := t.nodes[id]
	if n == nil || n.ident != ident {
		return 0, false
	}
	if n.typ == proto.ModeDir { // a directory has one name: it was moved
		for _, p := range slices.Clone(n.names) {
			t.unnameLocked(id, p)
		}
	}
	t.nameLocked(n, at)
	return id, true
}

func (t *table) putLocked(n *node) {
	t.nodes[n.id] = n
	t.byIno[n.ident.Ino] = n.id
}

func (t *table) nameLocked(n *node, at place) {
	dir := t.nodes[at.dir]
	if dir == nil {
		return
	}
	if old, ok := dir.kids[at.name]; ok && old != n.id {
		t.unnameLocked(old, at)
	}
	if dir.kids == nil {
		dir.kids = map[string]proto.FileID{}
	}
	dir.kids[at.name] = n.id
	if !slices.Contains(n.names, at) {
		n.names = append(n.names, at)
	}
}

func (t *table) unnameLocked(id proto.FileID, at place) {
	if dir := t.nodes[at.dir]; dir != nil && dir.kids[at.name] == id {
		delete(dir.kids, at.name)
	}
	if n := t.nodes[id]; n != nil {
		n.names = slices.DeleteFunc(n.names, func(p place) bool { return p == at })
	}
}

// name gives a file a name, if there is such a file.
func (t *table) name(id proto.FileID, at place) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if n := t.nodes[id]; n != nil {
		t.nameLocked(n, at)
	}
}

// vanish forgets all places of a file that is in none of them.
func (t *table) vanish(id proto.FileID) {
	t.mu.Lock()
	defer t.mu.Unlock()
	n := t.nodes[id]
	if n == nil {
		return
	}
	for _, p := range slices.Clone(n.names) {
		t.unnameLocked(id, p)
	}
	n.graves = nil
}

// unname forgets a name that turned out not to lead to the file any more.
func (t *table) unname(id proto.FileID, at place) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.unnameLocked(id, at)
}

// seen notes the state of a file after its change lsn was applied.
func (t *table) seen(id proto.FileID, ctime int64, lsn proto.LSN) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if n := t.nodes[id]; n != nil {
		n.ctime = ctime
		n.change = max(n.change, lsn)
	}
}

// path returns a path of a file through names the table knows, "" for the root.
func (t *table) path(id proto.FileID) (string, bool) {
	t.mu.RLock()
	defer t.mu.RUnlock()
	p := ""
	for depth := 0; id != proto.RootID; depth++ {
		n := t.nodes[id]
		if n == nil || len(n.names) == 0 || depth > len(t.nodes) {
			return "", false
		}
		if p == "" {
			p = n.names[0].name
		} else {
			p = n.names[0].name + "/" + p
		}
		id = n.names[0].dir
	}
	return p, true
}

// within reports whether id is dir itself or hangs below it.
func (t *table) within(id, dir proto.FileID) bool {
	t.mu.RLock()
	defer t.mu.RUnlock()
	for range len(t.nodes) + 1 {
		if id == dir {
			return true
		}
		n := t.nodes[id]
		if n == nil || len(n.names) == 0 {
			return false
		}
		id = n.names[0].dir
	}
	return false
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
	t.mu.Lock()
	defer t.mu.Unlock()
	n := t.nodes[r.ID]
	at := place{r.Dir, r.Name}
	switch r.Kind {
	case record.Adopt, record.Make:
		if n != nil && r.Flag&record.FlagRecovered != 0 { // recovery made it again
			if t.byIno[n.ident.Ino] == n.id {
				delete(t.byIno, n.ident.Ino)
			}
			n.ident = vfs.Ident(r.Inode)
			t.putLocked(n)
			break
		}
		if n != nil { // a checkpoint has it already
			if r.Name != "" {
				t.nameLocked(n, at)
			}
			break
		}
		n = &node{id: r.ID, ident: vfs.Ident(r.Inode), typ: r.New.Mode & proto.ModeType}
		t.putLocked(n)
		if r.Kind == record.Make && r.Name == "" {
			n.graves = []proto.LSN{r.LSN}
		} else {
			t.nameLocked(n, at)
		}
	case record.Link:
		if n != nil {
			t.nameLocked(n, at)
		}
	case record.Remove:
		if n != nil {
			t.unnameLocked(r.ID, at)
			n.graves = append(n.graves, r.LSN)
		}
	case record.Restore:
		if n != nil {
			n.graves = slices.DeleteFunc(n.graves, func(g proto.LSN) bool { return g == r.Grave })
			t.nameLocked(n, at)
		}
	case record.Rename:
		t.renameLocked(r)
	}
	if r.Kind == record.Adopt {
		return
	}
	for _, id := range []proto.FileID{r.ID, r.Dir, r.NewDir, r.Victim} {
		if n := t.nodes[id]; n != nil {
			n.change = max(n.change, r.LSN)
		}
	}
}

func (t *table) renameLocked(r *record.Record) {
	n := t.nodes[r.ID]
	if n == nil {
		return
	}
	from, to := place{r.Dir, r.Name}, place{r.NewDir, r.NewName}
	v := t.nodes[r.Victim]
	t.unnameLocked(r.ID, from)
	if v != nil {
		t.unnameLocked(v.id, to)
	}
	t.nameLocked(n, to)
	switch {
	case v == nil:
	case r.Flag&record.FlagExchange != 0:
		t.nameLocked(v, from)
	default:
		v.graves = append(v.graves, r.LSN)
	}
}

// dropGrave forgets a grave that history gave up, and the file with its last
// one. It returns the files that are forgotten.
func (t *table) dropGrave(id proto.FileID, lsn proto.LSN) (gone []proto.FileID) {
	t.mu.Lock()
	defer t.mu.Unlock()
	n := t.nodes[id]
	if n == nil {
		return nil
	}
	n.graves = slices.DeleteFunc(n.graves, func(g proto.LSN) bool { return g == lsn })
	if len(n.graves) == 0 && len(n.names) == 0 {
		gone = t.forgetLocked(n, nil)
	}
	return gone
}

func (t *table) forgetLocked(n *node, gone []proto.FileID) []proto.FileID {
	for _, kid := range n.kids {
		if k := t.nodes[kid]; k != nil {
			k.names = slices.DeleteFunc(k.names, func(p place) bool { return p.dir == n.id })
			if len(k.names) == 0 && len(k.graves) == 0 {
				gone = t.forgetLocked(k, gone)
			}
		}
	}
	delete(t.nodes, n.id)
	if t.byIno[n.ident.Ino] == n.id {
		delete(t.byIno, n.ident.Ino)
	}
	return append(gone, n.id)
}

func stale(id proto.FileID) error { return status.New(status.Stale, "", id.String()) }

package journal

import (
	"container/list"
	"errors"
	"strconv"
	"sync"
	"syscall"

	"cagefs.dev/cage/journal/vfs"
	"cagefs.dev/cage/remote/proto"
	"cagefs.dev/cage/remote/status"
)

// maxHandles bounds the descriptors that the journal keeps open beside those in use.
const maxHandles = 2048

// tree reaches files by number: from held directory descriptors, by one name
// at a time, checking at each step that it is the inode the table means.
type tree struct {
	*table
	root  vfs.Dir // of the export
	cage  vfs.Dir // .cage
	grave vfs.Dir
	stage vfs.Dir
	runs  vfs.Dir // .cage/table

	hmu     sync.Mutex
	handles map[handleKey]*list.Element // of *handle; guarded by hmu
	lru     list.List                   // most recent in front; guarded by hmu
}

type handleKey struct {
	id    proto.FileID
	write bool
}

// handle is a descriptor in the cache. Directories have dir, files file.
type handle struct {
	t    *tree
	key  handleKey
	dir  vfs.Dir
	file vfs.File
	refs int  // guarded by hmu
	gone bool // out of the cache: closed with the last reference; guarded by hmu
}

// release gives a handle back.
func (h *handle) release() {
	h.t.hmu.Lock()
	h.refs--
	done := h.refs == 0 && h.gone
	h.t.hmu.Unlock()
	if done {
		h.closeAll()
	}
}

func (h *handle) closeAll() {
	if h.dir != nil {
		h.dir.Close()
	}
	if h.file != nil {
		h.file.Close()
	}
}

// cached returns a handle from the cache with a reference.
func (t *tree) cached(k handleKey) *handle {
	t.hmu.Lock()
	defer t.hmu.Unlock()
	e := t.handles[k]
	if e == nil {
		return nil
	}
	t.lru.MoveToFront(e)
	h := e.Value.(*handle)
	h.refs++
	return h
}

// insert puts a new handle into the cache, unless somebody was quicker.
func (t *tree) insert(h *handle) *handle {
	h.t, h.refs = t, 1
	var drop []*handle
	t.hmu.Lock()
	if e := t.handles[h.key]; e != nil {
		drop = append(drop, h)
		h = e.Value.(*handle)
		h.refs++
	} else {
		t.handles[h.key] = t.lru.PushFront(h)
	}
	for e := t.lru.Back(); e != nil && t.lru.Len() > maxHandles; {
		old, prev := e.Value.(*handle), e.Prev()
		if old.refs == 0 {
			t.lru.Remove(e)
			delete(t.handles, old.key)
			drop = append(drop, old)
		}
		e = prev
	}
	t.hmu.Unlock()
	for _, d := range drop {
		d.closeAll()
	}
	return h
}

// dropHandles closes the descriptors of files that are gone: as long as one is
// open the file takes its space.
func (t *tree) dropHandles(ids []proto.FileID) {
	var drop []*handle
	t.hmu.Lock()
	for _, id := range ids {
		for _, write := range []bool{false, true} {
			k := handleKey{id: id, write: write}
			e := t.handles[k]
			if e == nil {
				continue
			}
			h := e.Value.(*handle)
			t.lru.Remove(e)
			delete(t.handles, k)
			if h.gone = true; h.refs == 0 {
				drop = append(drop, h)
			}
		}
	}
	t.hmu.Unlock()
	for _, h := range drop {
		h.closeAll()
	}
}

// closeHandles empties the cache; handles in use are closed by their last release.
func (t *tree) closeHandles() {
	t.hmu.Lock()
	var drop []*handle
	for _, e := range t.handles {
		h := e.Value.(*handle)
		h.gone = true
		if h.refs == 0 {
			drop = append(drop, h)
		}
	}
	clear(t.handles)
	t.lru.Init()
	t.hmu.Unlock()
	for _, h := range drop {
		h.closeAll()
	}
}

// dir opens a directory by number: status.Stale, NotDir.
func (t *tree) dir(id proto.FileID) (*handle, error) {
	if id == proto.RootID {
		return &handle{t: t, dir: t.root, refs: 1}, nil
	}
	k := handleKey{id: id}
	if h := t.cached(k); h != nil {
		if h.dir == nil {
			h.release()
			return nil, status.NotDir
		}
		return h, nil
	}
	n, ok := t.get(id)
	if !ok {
		return nil, t.missing(id)
	}
	if n.typ != proto.ModeDir {
		return nil, status.NotDir
	}
	var h *handle
	err := t.atName(&n, func(d vfs.Dir, name string) error {
		sub, err := d.OpenDir(name)
		if err != nil {
			return err
		}
		info, err := sub.StatSelf()
		if err == nil && info.Ident != n.ident {
			err = syscall.ESTALE
		}
		if err != nil {
			sub.Close()
			return err
		}
		h = t.insert(&handle{key: k, dir: sub})
		return nil
	})
	if err != nil {
		return nil, err
	}
	return h, nil
}

// file opens a regular file by number.
func (t *tree) file(id proto.FileID, write bool) (*handle, error) {
	k := handleKey{id: id, write: write}
	if h := t.cached(k); h != nil {
		if h.file == nil {
			h.release()
			return nil, status.IsDir
		}
		return h, nil
	}
	n, ok := t.get(id)
	if !ok {
		return nil, t.missing(id)
	}
	switch n.typ {
	case proto.ModeRegular:
	case proto.ModeDir:
		return nil, status.IsDir
	default:
		return nil, status.Invalid
	}
	var h *handle
	err := t.atName(&n, func(d vfs.Dir, name string) error {
		f, err := openAs(&n, d, name, write)
		if err == nil {
			h = t.insert(&handle{key: k, file: f})
		}
		return err
	})
	if err != nil {
		return nil, err
	}
	return h, nil
}

// openAs opens a name as a file: ESTALE if it is another one's.
func openAs(n *node, d vfs.Dir, name string, write bool) (vfs.File, error) {
	f, err := d.Open(name, write)
	if err != nil {
		return nil, err
	}
	info, err := f.Stat()
	if err == nil && info.Ident != n.ident {
		err = syscall.ESTALE
	}
	if err != nil {
		f.Close()
		return nil, err
	}
	return f, nil
}

// atName calls f with the places of a file, names before graves, until one leads
// to its inode: f fails with ESTALE, ENOENT or a wrong type where it does not.
func (t *tree) atName(n *node, f func(d vfs.Dir, name string) error) error {
	for _, at := range n.names {
		d, err := t.dir(at.dir)
		if err != nil {
			continue
		}
		err = f(d.dir, at.name)
		d.release()
		if !notThere(err) {
			return err
		}
		t.unname(n.id, at)
	}
	for _, g := range n.graves {
		if err := f(t.grave, graveName(g)); !notThere(err) {
			return err
		}
	}
	return t.missing(n.id)
}

// notThere reports whether an error means that a name leads elsewhere by now.
func notThere(err error) bool {
	for _, e := range []syscall.Errno{syscall.ESTALE, syscall.ENOENT, syscall.ENOTDIR, syscall.ELOOP, syscall.EISDIR, syscall.ENXIO} {
		if errors.Is(err, e) {
			return true
		}
	}
	return false
}

// stat describes a file by number.
func (t *tree) stat(id proto.FileID) (node, vfs.Info, error) {
	n, ok := t.get(id)
	if !ok {
		return node{}, vfs.Info{}, t.missing(id)
	}
	if n.typ == proto.ModeDir { // through its descriptor: a moved directory is found at once
		h, err := t.dir(id)
		if err != nil {
			return n, vfs.Info{}, err
		}
		defer h.release()
		info, err := h.dir.StatSelf()
		return n, info, err
	}
	var info vfs.Info
	err := t.atName(&n, func(d vfs.Dir, name string) (err error) {
		if info, err = d.Stat(name); err == nil && info.Ident != n.ident {
			err = syscall.ESTALE
		}
		return err
	})
	return n, info, err
}

// at calls f with the place of a file, checked by identity; name is "" and d the
// directory itself for directories.
func (t *tree) at(id proto.FileID, f func(d vfs.Dir, name string) error) error {
	n, ok := t.get(id)
	if !ok {
		return t.missing(id)
	}
	if n.typ == proto.ModeDir {
		h, err := t.dir(id)
		if err != nil {
			return err
		}
		defer h.release()
		return f(h.dir, "")
	}
	return t.atName(&n, func(d vfs.Dir, name string) error {
		info, err := d.Stat(name)
		if err != nil {
			return err
		}
		if info.Ident != n.ident {
			return syscall.ESTALE
		}
		return f(d, name)
	})
}

func graveName(lsn proto.LSN) string { return strconv.FormatUint(uint64(lsn), 10) }

func stageName(id proto.FileID) string { return strconv.FormatUint(uint64(id), 10) }

package journal

import (
	"io"
	"strings"

	"cagefs.dev/cage/journal/record"
	"cagefs.dev/cage/journal/vfs"
	"cagefs.dev/cage/remote/proto"
	"cagefs.dev/cage/remote/status"
)

// Reads see applied state only: each holds viewMu for reading, which the commit
// loop holds for writing while it applies a record or a whole transaction.

func (j *Journal) lookup(dir proto.FileID, name string) (proto.Attr, error) {
	j.viewMu.RLock()
	defer j.viewMu.RUnlock()
	return j.lookupViewed(dir, name)
}

func (j *Journal) lookupViewed(dir proto.FileID, name string) (proto.Attr, error) {
	if err := checkName(name); err != nil {
		return proto.Attr{}, err
	}
	if hidden(dir, name) {
		return proto.Attr{}, status.NotFound
	}
	h, err := j.tree.dir(dir)
	if err != nil {
		return proto.Attr{}, err
	}
	defer h.release()
	info, err := h.dir.Stat(name)
	if err != nil {
		return proto.Attr{}, err
	}
	id, err := j.identify(place{dir, name}, info)
	if err != nil {
		return proto.Attr{}, err
	}
	return j.attrOf(id, info), nil
}

func (j *Journal) attr(id proto.FileID) (proto.Attr, error) {
	j.viewMu.RLock()
	defer j.viewMu.RUnlock()
	return j.attrViewed(id)
}

func (j *Journal) attrViewed(id proto.FileID) (proto.Attr, error) {
	_, info, err := j.tree.stat(id)
	if err != nil {
		return proto.Attr{}, err
	}
	return j.attrOf(id, info), nil
}

// attrOf makes the attributes that clients see of what the file system says,
// and notices when it says something that no record explains: then a process
// of the server has changed the file. The caller holds viewMu.
func (j *Journal) attrOf(id proto.FileID, info vfs.Info) proto.Attr {
	n, ok := j.tree.get(id)
	if !ok {
		n.id = id
	}
	if n.ctime != info.Ctime || n.typ == proto.ModeRegular && j.local.resized(id, n.change, info.Size) {
		n.change = j.noticeLocal(&n, info)
	}
	a := proto.Attr{
		ID: id, Mode: info.Mode, Nlink: info.Nlink, UID: info.UID, GID: info.GID, Rdev: info.Rdev,
		Size: uint64(info.Size), Blocks: info.Blocks,
		Atime: proto.Time(info.Atime), Mtime: proto.Time(info.Mtime), Ctime: proto.Time(info.Ctime), Btime: proto.Time(info.Btime),
		Change: n.change,
	}
	switch {
	case len(n.names) == 0 && id != proto.RootID:
		a.Nlink = 0
	case n.typ != proto.ModeDir:
		a.Nlink -= min(a.Nlink, uint32(len(n.graves)))
		if a.Nlink > 1 {
			a.Nlink -= min(a.Nlink, j.tree.lost(n.names))
		}
	case id == proto.RootID && a.Nlink > 2:
		a.Nlink-- // the journal's own directory
	}
	return a
}

// identify returns the number of the inode under a name, giving it one if it has none.
func (j *Journal) identify(at place, info vfs.Info) (proto.FileID, error) {
	if id, ok := j.tree.find(at, info.Ident); ok {
		return id, nil
	}
	j.adoptMu.Lock()
	defer j.adoptMu.Unlock()
	if id, ok := j.tree.find(at, info.Ident); ok {
		return id, nil
	}
	if err := j.tree.room(); err != nil { // also when it is not known because the table cannot be read
		return 0, err
	}
	id, err := j.newID()
	if err != nil {
		return 0, err
	}
	r := &record.Record{Kind: record.Adopt, ID: id, Dir: at.dir, Name: at.name,
		Inode: record.Inode(info.Ident), New: record.Attrs{Mode: info.Mode}}
	if !j.opts.ReadOnly {
		if err := j.log.Append(r); err != nil {
			return 0, err
		}
	}
	j.tree.apply(r)
	j.tree.seen(id, info.Ctime, 0)
	return id, nil
}

// readDirBatch bounds the entries that are held while attributes are looked up:
// those of the last batch that the caller does not take are looked up for nothing.
const readDirBatch = 256

func (j *Journal) readDir(dir proto.FileID, after uint64, plus bool, f func(proto.DirEntry) bool) error {
	type entry struct {
		proto.DirEntry
		ino uint64
	}
	batch := make([]entry, 0, readDirBatch)
	for more := true; more; {
		batch, more = batch[:0], false
		err := j.viewed(func() error {
			h, err := j.tree.dir(dir)
			if err != nil {
				return err
			}
			defer h.release()
			err = h.dir.ReadDir(after, func(name string, ino uint64, typ uint32, cookie uint64) bool {
				if len(batch) == readDirBatch {
					more = true
					return false
				}
				after = cookie
				if !hidden(dir, name) {
					batch = append(batch, entry{proto.DirEntry{Name: name, Cookie: cookie, Attr: proto.Attr{Mode: typ}}, ino})
				}
				return true
			})
			if err != nil {
				return err
			}
			for i := range batch {
				e := &batch[i]
				if !plus {
					if e.Attr.ID = j.tree.under(place{dir, e.Name}, e.ino); e.Attr.ID != 0 && e.Attr.Mode != 0 {
						continue
					}
				}
				info, err := h.dir.Stat(e.Name)
				if err != nil {
					continue // gone meanwhile, or another file system: a name without attributes
				}
				id, err := j.identify(place{dir, e.Name}, info)
				if err != nil {
					return err
				}
				if !plus {
					e.Attr = proto.Attr{ID: id, Mode: info.Mode & proto.ModeType}
					continue
				}
				e.Attr = j.attrOf(id, info)
			}
			return nil
		})
		if err != nil {
			return err
		}
		for i := range batch {
			if !f(batch[i].DirEntry) {
				return nil
			}
		}
	}
	return nil
}

func (j *Journal) viewed(f func() error) error {
	j.viewMu.RLock()
	defer j.viewMu.RUnlock()
	return f()
}

func (j *Journal) readlink(id proto.FileID) (target string, err error) {
	err = j.viewed(func() error {
		return j.tree.at(id, func(d vfs.Dir, name string) error {
			if name == "" {
				return status.Invalid
			}
			target, err = d.Readlink(name)
			return err
		})
	})
	return target, err
}

func (j *Journal) readAt(id proto.FileID, p []byte, off int64) (int, error) {
	j.viewMu.RLock()
	defer j.viewMu.RUnlock()
	return j.readAtViewed(id, p, off)
}

func (j *Journal) readAtViewed(id proto.FileID, p []byte, off int64) (int, error) {
	h, err := j.tree.file(id, false)
	if err != nil {
		return 0, err
	}
	defer h.release()
	n, err := h.file.ReadAt(p, off)
	if n == len(p) {
		err = nil
	}
	return n, err
}

func (j *Journal) getXattr(id proto.FileID, attr string) (v []byte, err error) {
	err = j.viewed(func() error {
		v, err = j.getXattrViewed(id, attr)
		return err
	})
	return v, err
}

func (j *Journal) getXattrViewed(id proto.FileID, attr string) (v []byte, err error) {
	err = j.tree.at(id, func(d vfs.Dir, name string) error {
		v, err = d.GetXattr(name, attr)
		return err
	})
	return v, err
}

func (j *Journal) listXattr(id proto.FileID) (names []string, err error) {
	err = j.viewed(func() error {
		names, err = j.listXattrViewed(id)
		return err
	})
	return names, err
}

func (j *Journal) listXattrViewed(id proto.FileID) (names []string, err error) {
	err = j.tree.at(id, func(d vfs.Dir, name string) error {
		names, err = d.ListXattr(name)
		return err
	})
	return names, err
}

func (j *Journal) path(id proto.FileID) (string, error) {
	p, ok := j.tree.path(id)
	if !ok {
		return "", status.New(status.NotFound, "", id.String())
	}
	return p, nil
}

// readFull reads a range of a file that must be there in full.
func readFull(f vfs.File, off, n int64) ([]byte, error) {
	b := make([]byte, n)
	m, err := f.ReadAt(b, off)
	if m == len(b) {
		return b, nil
	}
	if err == io.EOF {
		err = io.ErrUnexpectedEOF
	}
	return nil, err
}

// hidden reports whether a name is the journal's own.
func hidden(dir proto.FileID, name string) bool { return dir == proto.RootID && name == DirName }

// checkName refuses what is no name of a single entry.
func checkName(name string) error {
	switch {
	case name == "" || name == "." || name == ".." || strings.ContainsAny(name, "/\x00"):
		return status.Invalid
	case len(name) > proto.MaxName:
		return status.NameTooLong
	}
	return nil
}

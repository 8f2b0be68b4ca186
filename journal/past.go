package journal

import (
	"maps"
	"slices"
	"sync"

	"cagefs.dev/cage/journal/record"
	"cagefs.dev/cage/journal/vfs"
	"cagefs.dev/cage/remote/proto"
	"cagefs.dev/cage/remote/status"
)

// Past is the export as a record left it, or (Without) as it would be without
// some records. What it says is the present with records taken back: it reads
// without taking part in leases, and stays valid while history reaches back to it.
// Safe for concurrent use.
type Past struct {
	// Set at construction.
	j     *Journal
	lsn   proto.LSN   // what is above it is taken back,
	only  []proto.LSN // of it these alone, ascending, if not nil
	parts int         // maxPastParts, less in tests

	// mu is taken with viewMu held and kept while records are read: who asks for
	// the same file waits rather than reads them again.
	mu     sync.Mutex
	files  map[proto.FileID]*fileBefore // what is in it is not changed any more
	dirs   map[proto.FileID]*dirBefore  // likewise
	listed *pastListing                 // the directory that was listed last
	images [pastImages]pastImage
	next   int // of images, the next to give up
	weight int // of files and dirs: ranges, names and attributes in them
}

// Bounds of what a Past keeps in memory.
const (
	maxPastFiles = 4096
	maxPastDirs  = 1024
	maxPastParts = 1 << 18 // ranges, names and attributes of all of them together; one alone may have more
	pastImages   = 4
	pastBatch    = 256 // entries of a directory looked up at a time
)

type pastImage struct {
	lsn   proto.LSN
	bytes []byte
}

type pastListing struct {
	dir   proto.FileID
	names []string          // sorted
	types map[string]uint32 // S_IF*, where known
}

// At opens the state that record lsn left; 0 is the present: status.NoHistory, NoMoment.
func (j *Journal) At(lsn proto.LSN) (*Past, error) {
	newest := j.appliedLSN()
	if lsn == 0 {
		lsn = newest
	}
	if lsn > newest {
		return nil, status.Newf(status.NoMoment, "", "history", "record %d is not there yet, the newest is %d", lsn, newest)
	}
	p := &Past{j: j, lsn: lsn, parts: maxPastParts, files: map[proto.FileID]*fileBefore{}, dirs: map[proto.FileID]*dirBefore{}}
	return p, p.kept()
}

// Without opens the present as it would be had these records, which ascend, not been.
func (j *Journal) Without(recs []proto.LSN) *Past {
	p := &Past{j: j, only: recs, parts: maxPastParts, files: map[proto.FileID]*fileBefore{}, dirs: map[proto.FileID]*dirBefore{}}
	if len(recs) > 0 {
		p.lsn = recs[0] - 1
	}
	return p
}

// kept reports whether all records that the state needs are still there.
func (p *Past) kept() error {
	if oldest := p.j.oldest(); p.lsn+1 < oldest {
		return status.Newf(status.NoHistory, "", "history", "record %d is older than what is kept, which begins with %d", p.lsn, oldest)
	}
	return nil
}

// takesBack reports whether a record is not part of the state.
func (p *Past) takesBack(lsn proto.LSN) bool {
	if p.only == nil {
		return lsn > p.lsn
	}
	_, ok := slices.BinarySearch(p.only, lsn)
	return ok
}

// pick leaves of ascending records above p.lsn those that are taken back.
func (p *Past) pick(list []proto.LSN) []proto.LSN {
	if p.only == nil {
		return list
	}
	var out []proto.LSN
	for _, lsn := range list {
		if p.takesBack(lsn) {
			out = append(out, lsn)
		}
	}
	return out
}

// viewed runs f while the present stays as it is.
func (p *Past) viewed(f func() error) error {
	p.j.viewMu.RLock()
	defer p.j.viewMu.RUnlock()
	if err := p.kept(); err != nil {
		return err
	}
	return f()
}

func (p *Past) read(list []proto.LSN) ([]*record.Record, error) {
	out := make([]*record.Record, 0, len(list))
	for _, lsn := range list {
		r, err := p.j.hist.read(lsn)
		if err != nil {
			return nil, err
		}
		if r != nil {
			out = append(out, r)
		}
	}
	return out, nil
}

// file returns what the records that are taken back did to a file.
func (p *Past) file(id proto.FileID) (*fileBefore, error) {
	list := p.pick(p.j.hist.data(id, p.lsn))
	p.mu.Lock()
	defer p.mu.Unlock()
	b := &fileBefore{id: id}
	if old := p.files[id]; old != nil {
		*b = *old
	}
	part, ok := b.read.rest(list)
	if !ok {
		b = &fileBefore{id: id}
		part, _ = b.read.rest(list)
	}
	if len(part) == 0 {
		return b, nil
	}
	recs, err := p.read(part)
	if err != nil {
		return nil, err
	}
	b.xattrs = maps.Clone(b.xattrs)
	b.follow(recs)
	if len(p.files) >= maxPastFiles {
		p.forgetLocked()
	}
	p.weighLocked(b.weight())
	if old := p.files[id]; old != nil {
		p.weight -= old.weight()
	}
	p.files[id] = b
	return b, nil
}

// dir returns what they did to the entries of a directory.
func (p *Past) dir(id proto.FileID) (*dirBefore, error) {
	list := p.pick(p.j.hist.entries(id, p.lsn))
	p.mu.Lock()
	defer p.mu.Unlock()
	b := &dirBefore{}
	if old := p.dirs[id]; old != nil {
		*b = *old
	}
	part, ok := b.read.rest(list)
	if !ok {
		b = &dirBefore{}
		part, _ = b.read.rest(list)
	}
	if len(part) == 0 {
		return b, nil
	}
	recs, err := p.read(part)
	if err != nil {
		return nil, err
	}
	if b.names = maps.Clone(b.names); b.names == nil {
		b.names = map[string]proto.FileID{}
	}
	b.follow(id, recs, func(id proto.FileID) bool {
		n, ok := p.j.tree.get(id)
		return ok && n.typ == proto.ModeDir
	})
	if len(p.dirs) >= maxPastDirs {
		p.forgetLocked()
	}
	p.weighLocked(len(b.names))
	if old := p.dirs[id]; old != nil {
		p.weight -= len(old.names)
	}
	p.dirs[id] = b
	return b, nil
}

// weighLocked makes room for something that is kept.
func (p *Past) weighLocked(n int) {
	if p.weight+n > p.parts {
		p.forgetLocked()
	}
	p.weight += n
}

// forgetLocked drops what can be read again.
func (p *Past) forgetLocked() {
	clear(p.files)
	clear(p.dirs)
	p.weight = 0
}

// weight is how many parts a file's past has.
func (b *fileBefore) weight() int { return len(b.ranges) + len(b.xattrs) }

// existed reports whether a file had been made.
func (p *Past) existed(id proto.FileID) bool {
	made := p.j.hist.made(id)
	return made == 0 || !p.takesBack(made)
}

// The methods whose names end in Then are called with viewMu held.

func (p *Past) attrThen(id proto.FileID) (proto.Attr, error) {
	if !p.existed(id) {
		return proto.Attr{}, stale(id)
	}
	_, info, err := p.j.tree.stat(id)
	if err != nil && p.j.Gone(id) {
		return proto.Attr{}, errNotKept(id)
	}
	if err != nil {
		return proto.Attr{}, err
	}
	return p.attrOf(id, info)
}

// attrOf takes the changes of a file's attributes back.
func (p *Past) attrOf(id proto.FileID, info vfs.Info) (proto.Attr, error) {
	a := p.j.attrOf(id, info)
	b, err := p.file(id)
	if err != nil {
		return a, err
	}
	names, err := p.read(p.pick(p.j.hist.names(id, p.lsn)))
	if err != nil {
		return a, err
	}
	if b.has&hasMode != 0 {
		a.Mode = b.attrs.Mode
	}
	if b.has&hasUID != 0 {
		a.UID = b.attrs.UID
	}
	if b.has&hasGID != 0 {
		a.GID = b.attrs.GID
	}
	if b.has&hasAtime != 0 {
		a.Atime = b.attrs.Atime
	}
	if b.has&hasMtime != 0 {
		a.Mtime = b.attrs.Mtime
	}
	if b.gap && !b.sized {
		size, err := p.sizeLeft(id)
		if err != nil {
			return a, err
		}
		a.Size, a.Blocks = size, (size+511)/512
	}
	if b.sized {
		a.Size, a.Blocks = b.size, (b.size+511)/512
	}
	changed := b.read.n > 0 || len(names) > 0
	if a.IsDir() {
		d, err := p.dir(id)
		if err != nil {
			return a, err
		}
		p.dirAttrs(&a, info, b, d)
		changed = changed || d.read.n > 0
	} else {
		if a.Nlink, err = p.nlink(id, info, names); err != nil {
			return a, err
		}
	}
	if changed && p.only == nil {
		a.Change = p.j.hist.newest(id, p.lsn)
		a.Ctime = max(a.Mtime, a.Btime)
	}
	return a, nil
}

// dirAttrs takes the changes of a directory's entries back.
func (p *Past) dirAttrs(a *proto.Attr, info vfs.Info, b *fileBefore, d *dirBefore) {
	if d.timed != 0 && (b.timed == 0 || d.timed < b.timed) {
		a.Mtime = d.mtime
	}
	if info.Nlink < 2 { // a file system that does not count subdirectories
		return
	}
	n := int(info.Nlink) - d.subdirs
	if a.ID == proto.RootID {
		n-- // the journal's own directory
	}
	a.Nlink = uint32(max(2, n))
}

// nlink counts the names of a file then, of several those in removed directories not.
func (p *Past) nlink(id proto.FileID, info vfs.Info, changes []*record.Record) (uint32, error) {
	n, _ := p.j.tree.get(id)
	count := int(info.Nlink) - len(n.graves) - namesAdded(changes, id)
	if count < 2 {
		return uint32(max(0, count)), nil
	}
	places := placesBefore(n.names, changes, id)
	if len(places) < 2 {
		return uint32(count), nil
	}
	for _, at := range places {
		in, err := p.inTree(at.dir)
		if err != nil {
			return 0, err
		}
		if !in {
			count--
		}
	}
	return uint32(max(0, count)), nil
}

// inTree reports whether a directory hung below the root then.
func (p *Past) inTree(dir proto.FileID) (bool, error) {
	for range maxDepth {
		if dir == proto.RootID {
			return true, nil
		}
		up, err := p.placesThen(dir)
		if err != nil || len(up) == 0 {
			return false, err
		}
		dir = up[0].dir
	}
	return false, nil
}

// namesAdded counts the names that records gave a file, less those they took.
func namesAdded(recs []*record.Record, id proto.FileID) (n int) {
	for _, r := range recs {
		for _, c := range nameChanges(r) {
			if c.after == id {
				n++
			}
			if c.before == id {
				n--
			}
		}
	}
	return n
}

func (p *Past) isDirThen(id proto.FileID) error {
	n, ok := p.j.tree.get(id)
	switch {
	case !ok || !p.existed(id):
		return stale(id)
	case n.typ != proto.ModeDir:
		return status.NotDir
	}
	return nil
}

func (p *Past) lookupThen(dir proto.FileID, name string) (proto.Attr, error) {
	if err := checkName(name); err != nil {
		return proto.Attr{}, err
	}
	if hidden(dir, name) {
		return proto.Attr{}, status.NotFound
	}
	if err := p.isDirThen(dir); err != nil {
		return proto.Attr{}, err
	}
	d, err := p.dir(dir)
	if err != nil {
		return proto.Attr{}, err
	}
	if id, ok := d.names[name]; ok {
		if id == 0 {
			return proto.Attr{}, status.NotFound
		}
		return p.attrThen(id)
	}
	h, err := p.j.tree.dir(dir)
	if err != nil {
		return proto.Attr{}, err
	}
	defer h.release()
	info, err := h.dir.Stat(name)
	if err != nil {
		return proto.Attr{}, err
	}
	id, err := p.j.identify(place{dir, name}, info)
	if err != nil {
		return proto.Attr{}, err
	}
	if !p.existed(id) {
		return proto.Attr{}, status.NotFound
	}
	return p.attrOf(id, info)
}

// listThen lists the names of a directory, sorted.
func (p *Past) listThen(dir proto.FileID) (*pastListing, error) {
	if err := p.isDirThen(dir); err != nil {
		return nil, err
	}
	h, err := p.j.tree.dir(dir)
	if err != nil {
		return nil, err
	}
	defer h.release()
	d, err := p.dir(dir)
	if err != nil {
		return nil, err
	}
	l := &pastListing{dir: dir, types: map[string]uint32{}}
	err = h.dir.ReadDir(0, func(name string, _ uint64, typ uint32, _ uint64) bool {
		if _, changed := d.names[name]; !changed && !hidden(dir, name) {
			l.types[name] = typ
		}
		return true
	})
	if err != nil {
		return nil, err
	}
	for name, id := range d.names {
		if n, ok := p.j.tree.get(id); ok && id != 0 {
			l.types[name] = n.typ
		}
	}
	l.names = slices.Sorted(maps.Keys(l.types))
	return l, nil
}

// Lookup is Journal.Lookup, then.
func (p *Past) Lookup(dir proto.FileID, name string) (a proto.Attr, err error) {
	err = p.viewed(func() error {
		a, err = p.lookupThen(dir, name)
		return err
	})
	return a, err
}

// Attr is Journal.Attr, then: status.Stale for a file that had not been made.
func (p *Past) Attr(id proto.FileID) (a proto.Attr, err error) {
	err = p.viewed(func() error {
		a, err = p.attrThen(id)
		return err
	})
	return a, err
}

// ReadDir is Journal.ReadDir, then. Cookies are positions in the sorted list of names.
func (p *Past) ReadDir(dir proto.FileID, after uint64, plus bool, f func(proto.DirEntry) bool) error {
	l, err := p.listing(dir, after > 0)
	if err != nil {
		return err
	}
	for after < uint64(len(l.names)) {
		batch := l.names[after:min(after+pastBatch, uint64(len(l.names)))]
		entries := make([]proto.DirEntry, 0, len(batch))
		err := p.viewed(func() error {
			for _, name := range batch {
				after++
				e := proto.DirEntry{Name: name, Cookie: after, Attr: proto.Attr{Mode: l.types[name]}}
				a, err := p.lookupThen(dir, name)
				if c := status.Of(err); c == status.NotFound || c == status.Stale {
					continue // taken away by a process of the server
				} else if c == status.Gap { // its name is all that is known
					entries = append(entries, e)
					continue
				}
				if err != nil {
					return err
				}
				if e.Attr = a; !plus {
					e.Attr = proto.Attr{ID: a.ID, Mode: a.Mode & proto.ModeType}
				}
				entries = append(entries, e)
			}
			return nil
		})
		if err != nil {
			return err
		}
		for _, e := range entries {
			if !f(e) {
				return nil
			}
		}
	}
	return nil
}

// listing returns the listing of a directory, the last one where a reader goes on.
func (p *Past) listing(dir proto.FileID, again bool) (l *pastListing, err error) {
	p.mu.Lock()
	l = p.listed
	p.mu.Unlock()
	if again && l != nil && l.dir == dir {
		return l, p.kept()
	}
	err = p.viewed(func() error {
		l, err = p.listThen(dir)
		return err
	})
	if err != nil {
		return nil, err
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	p.listed = l
	return l, nil
}

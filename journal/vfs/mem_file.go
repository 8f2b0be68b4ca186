package vfs

import (
	"io"
	"maps"
	"slices"
	"syscall"
)

// filedata is what a regular file of Mem contains, now and on the disk. It is
// guarded by the Mem's lock and shared as content is.
type filedata struct {
	owner  *token
	cur    content // what readers see
	stable content // what the last sync made durable
	// epochs is what happened since, cut into pieces by truncations and holes.
	// A file that was not changed has none.
	epochs []epoch
	// lost are sectors that a failed sync left marked clean: readers see them,
	// no sync writes them, until they are written again.
	lost sectors
	// failures is how often that happened. Each open file is told of one, once,
	// at its next sync (Linux's errseq_t).
	failures uint64

	created, changed uint64 // the txns that made the inode and changed its attributes last
}

// epoch is a time in a file's life between two truncations, holes or syncs.
type epoch struct {
	seq   uint64 // the txn of the truncation or hole it began with; 0: it began with a sync
	cut   cut
	dirty sectors // written since
	final content // the file at its end; unset in the newest
}

// cut is a truncation, or a hole if size is negative.
type cut struct{ size, off, end int64 }

func (t cut) apply(c *content) {
	if t.size >= 0 {
		c.truncate(t.size)
	} else {
		end := t.end
		if end > c.size { // as ext4: to the end of the last page
			end = (c.size + pageSize - 1) / pageSize * pageSize
		}
		c.zero(t.off, end)
	}
}

// ownDataLocked returns a file's data to be changed.
func (m *Mem) ownDataLocked(id nodeID) *filedata {
	d := m.data[id]
	if d.owner != m.owner {
		own := *d
		own.owner = m.owner
		own.cur, own.stable = d.cur.copy(), d.stable.copy()
		own.epochs, own.lost = slices.Clone(d.epochs), maps.Clone(d.lost)
		if n := len(own.epochs); n > 0 {
			own.epochs[n-1].dirty = maps.Clone(d.epochs[n-1].dirty)
		}
		m.data[id], d = &own, &own
	}
	return d
}

func (d *filedata) write(b []byte, off int64) {
	if len(d.epochs) == 0 {
		d.epochs = []epoch{{}}
	}
	end := off + int64(len(b))
	d.cur.write(b, off)
	d.epochs[len(d.epochs)-1].dirty.add(off, end)
	d.lost.remove(off-off%pageSize, end+pageSize-1-(end+pageSize-1)%pageSize) // pages become dirty, not sectors
}

func (d *filedata) cut(seq uint64, t cut) {
	if n := len(d.epochs); n > 0 {
		d.epochs[n-1].final = d.cur.share()
	} else {
		d.epochs = []epoch{{final: d.cur.share()}}
	}
	t.apply(&d.cur)
	d.epochs = append(d.epochs, epoch{seq: seq, cut: t})
}

// syncDataLocked makes a file's content durable, but for what was lost.
func (m *Mem) syncDataLocked(id nodeID) {
	if len(m.data[id].epochs) == 0 {
		return
	}
	d := m.ownDataLocked(id)
	before := d.stable
	d.stable = d.cur.share()
	if len(d.lost) > 0 {
		for _, e := range d.epochs {
			if e.seq != 0 {
				e.cut.apply(&before)
			}
		}
		d.lost.each(func(off int64) {
			if n := min(sectorSize, d.stable.size-off); n > 0 {
				var old [sectorSize]byte
				before.read(old[:n], off)
				d.stable.write(old[:n], off)
			}
		})
	}
	d.epochs = nil
}

// lose marks what was not synced as clean, as Linux does when a sync failed.
func (d *filedata) lose() {
	d.failures++
	for i := range d.epochs {
		d.lost = d.lost.union(d.epochs[i].dirty)
		d.epochs[i].dirty = nil
	}
}

// memFile is an open regular file.
type memFile struct {
	m      *Mem
	id     nodeID
	write  bool   // set at construction
	closed bool   // guarded by m.mu
	told   uint64 // of filedata.failures; guarded by m.mu
}

func (m *Mem) openFileLocked(id nodeID, write bool) *memFile {
	m.refs[id]++
	f := &memFile{m: m, id: id, write: write}
	if d := m.data[id]; d != nil {
		f.told = d.failures
	}
	return f
}

// lock locks the disk. The caller unlocks, also on errors.
func (f *memFile) lock() (*filedata, error) {
	f.m.mu.Lock()
	if f.closed {
		return nil, syscall.EBADF
	}
	return f.m.data[f.id], nil
}

func (f *memFile) ReadAt(p []byte, off int64) (int, error) {
	defer f.m.mu.Unlock()
	d, err := f.lock()
	if err != nil {
		return 0, err
	}
	if off < 0 {
		return 0, syscall.EINVAL
	}
	n := max(0, min(int64(len(p)), d.cur.size-off))
	d.cur.read(p[:n], off)
	if n < int64(len(p)) {
		return int(n), io.EOF
	}
	return int(n), nil
}

func (f *memFile) WriteAt(p []byte, off int64) (int, error) {
	defer f.m.mu.Unlock()
	_, err := f.lock()
	switch {
	case err != nil:
		return 0, err
	case off < 0:
		return 0, syscall.EINVAL
	case len(p) == 0:
		return 0, nil
	case !f.write:
		return 0, syscall.EBADF
	}
	n := max(0, min(int64(len(p)), maxFileSize-off))
	if n > 0 {
		f.m.ownDataLocked(f.id).write(p[:n], off)
		// Times that only a write changed reach the disk with the next change of the inode.
		now := f.m.tickLocked()
		inode := f.m.live.own(f.id)
		inode.Mtime, inode.Ctime = now, now
	}
	if n < int64(len(p)) {
		return int(n), syscall.EFBIG
	}
	return int(n), nil
}

func (f *memFile) Append(p []byte) (at int64, n int, err error) {
	f.m.mu.Lock()
	d := f.m.data[f.id]
	if !f.closed {
		at = d.cur.size
	}
	f.m.mu.Unlock() // a Mem's users do not append beside each other
	n, err = f.WriteAt(p, at)
	return at, n, err
}

func (f *memFile) Truncate(size int64) error {
	defer f.m.mu.Unlock()
	_, err := f.lock()
	switch {
	case err != nil:
		return err
	case size < 0 || !f.write:
		return syscall.EINVAL
	case size > maxFileSize:
		return syscall.EFBIG
	}
	f.cutLocked(cut{size: size})
	return nil
}

// cutLocked begins an epoch with a truncation or hole.
func (f *memFile) cutLocked(t cut) {
	c := f.m.beginLocked()
	c.modify(f.id)
	c.commit()
	f.m.ownDataLocked(f.id).cut(f.m.seq, t)
}

func (f *memFile) PunchHole(off, n int64) error {
	defer f.m.mu.Unlock()
	_, err := f.lock()
	if err == nil {
		err = f.mayAllocate(off, n)
	}
	if err == nil {
		f.cutLocked(cut{size: -1, off: off, end: off + n})
	}
	return err
}

// mayAllocate has fallocate(2)'s errors.
func (f *memFile) mayAllocate(off, n int64) error {
	switch {
	case off < 0 || n <= 0:
		return syscall.EINVAL
	case !f.write:
		return syscall.EBADF
	case n > maxFileSize-off:
		return syscall.EFBIG
	}
	return nil
}

// Allocate implements File. Blocks that were reserved and not written are holes here.
func (f *memFile) Allocate(off, n int64, keepSize bool) error {
	defer f.m.mu.Unlock()
	d, err := f.lock()
	if err == nil {
		err = f.mayAllocate(off, n)
	}
	if err != nil {
		return err
	}
	if !keepSize && off+n > d.cur.size {
		f.cutLocked(cut{size: off + n})
		return nil
	}
	c := f.m.beginLocked()
	c.modify(f.id)
	c.commit()
	return nil
}

func (f *memFile) NextData(off int64) (start, end int64, ok bool, err error) {
	defer f.m.mu.Unlock()
	d, err := f.lock()
	if err != nil || off < 0 || off >= d.cur.size {
		return 0, 0, false, err
	}
	if start = d.cur.nextPage(off, true); start == d.cur.size {
		return 0, 0, false, nil
	}
	return start, d.cur.nextPage(start, false), true, nil
}

func (f *memFile) CopyTo(dst File, srcOff, dstOff, n int64) error {
	to, ok := dst.(*memFile)
	if !ok || to.m != f.m {
		return syscall.EXDEV
	}
	if srcOff < 0 || dstOff < 0 || n < 0 || f.id == to.id && srcOff < dstOff+n && dstOff < srcOff+n {
		return syscall.EINVAL
	}
	if !to.write {
		return syscall.EBADF
	}
	return copyBytes(f, to, srcOff, dstOff, n)
}

func (f *memFile) Stat() (Info, error) {
	defer f.m.mu.Unlock()
	if _, err := f.lock(); err != nil {
		return Info{}, err
	}
	return f.m.infoLocked(f.id), nil
}

func (f *memFile) Utimes(atime, mtime int64) error {
	defer f.m.mu.Unlock()
	if _, err := f.lock(); err != nil {
		return err
	}
	f.m.utimesLocked(f.id, atime, mtime)
	return nil
}

func (f *memFile) Datasync() error { return f.sync(func(d *filedata) uint64 { return d.created }) }
func (f *memFile) Sync() error     { return f.sync(func(d *filedata) uint64 { return d.changed }) }

// sync makes the content durable, and names and attributes up to a txn.
func (f *memFile) sync(upTo func(*filedata) uint64) error {
	f.m.aboutToSync()
	defer f.m.mu.Unlock()
	d, err := f.lock()
	if err != nil {
		return err
	}
	if f.told != d.failures {
		f.told = d.failures
		return syscall.EIO
	}
	f.m.settleLocked(upTo(d))
	f.m.syncDataLocked(f.id)
	return nil
}

// loseUnsynced is the disk's part of a sync that fails (LoseUnsynced).
func (f *memFile) loseUnsynced() {
	defer f.m.mu.Unlock()
	if _, err := f.lock(); err == nil {
		d := f.m.ownDataLocked(f.id)
		d.lose()
		f.told = d.failures
	}
}

func (m *Mem) loseUnsynced() {
	m.mu.Lock()
	defer m.mu.Unlock()
	for id, d := range m.data {
		if slices.ContainsFunc(d.epochs, func(e epoch) bool { return len(e.dirty) > 0 }) {
			m.ownDataLocked(id).lose()
		}
	}
}

func (f *memFile) Close() error {
	defer f.m.mu.Unlock()
	if _, err := f.lock(); err != nil {
		return err
	}
	f.closed = true
	f.m.unrefLocked(f.id)
	return nil
}

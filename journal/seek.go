package journal

import (
	"slices"

	"cagefs.dev/cage/journal/vfs"
	"cagefs.dev/cage/remote/proto"
	"cagefs.dev/cage/remote/status"
)

// Seek is lseek(2) on a regular file with SEEK_DATA or, with hole, SEEK_HOLE: where
// at or after off data, or a hole, begins. The end of the file is a hole.
// status.NoDevice beyond the end, and where no data follow.
func (j *Journal) Seek(id proto.FileID, off int64, hole bool) (at int64, err error) {
	err = j.viewed(func() error {
		return j.opened(id, func(f vfs.File, info vfs.Info) error {
			at, err = seek(f.NextData, off, info.Size, hole)
			return err
		})
	})
	return at, err
}

// Seek is Journal.Seek, then.
func (p *Past) Seek(id proto.FileID, off int64, hole bool) (at int64, err error) {
	err = p.dataThen(id, func(next nextData, size int64) error {
		at, err = seek(next, off, size, hole)
		return err
	})
	return at, err
}

// NextData returns the next range of a regular file with data at or after off;
// ok is false where there is none. Data may go on behind the range.
func (j *Journal) NextData(id proto.FileID, off int64) (from, to int64, ok bool, err error) {
	err = j.viewed(func() error {
		return j.opened(id, func(f vfs.File, _ vfs.Info) error {
			from, to, ok, err = f.NextData(off)
			return err
		})
	})
	return from, to, ok, err
}

// NextData is Journal.NextData, then.
func (p *Past) NextData(id proto.FileID, off int64) (from, to int64, ok bool, err error) {
	err = p.dataThen(id, func(next nextData, _ int64) error {
		from, to, ok, err = next(off)
		return err
	})
	return from, to, ok, err
}

// nextData is vfs.File.NextData; the range may end before the data do.
type nextData func(off int64) (from, to int64, ok bool, err error)

// seek is lseek(2) in a file of a size.
func seek(next nextData, off, size int64, hole bool) (int64, error) {
	if off < 0 || off >= size {
		return 0, status.NoDevice
	}
	for {
		from, to, ok, err := next(off)
		switch {
		case err != nil:
			return 0, err
		case !ok || from >= size:
			if hole {
				return off, nil
			}
			return 0, status.NoDevice
		case !hole:
			return from, nil
		case from > off:
			return off, nil
		case to >= size:
			return size, nil
		}
		off = to
	}
}

// opened calls f with a file and what it is now. The caller holds viewMu.
func (j *Journal) opened(id proto.FileID, f func(vfs.File, vfs.Info) error) error {
	h, err := j.tree.file(id, false)
	if err != nil {
		return err
	}
	defer h.release()
	info, err := h.file.Stat()
	if err != nil {
		return err
	}
	return f(h.file, info)
}

// dataThen calls f with where the data of a file were, and its size.
func (p *Past) dataThen(id proto.FileID, f func(next nextData, size int64) error) error {
	return p.viewed(func() error {
		if !p.existed(id) {
			return stale(id)
		}
		b, err := p.file(id)
		if err != nil {
			return err
		}
		return p.j.opened(id, func(live vfs.File, info vfs.Info) error {
			size := info.Size
			switch {
			case b.sized:
				size = int64(b.size)
			case b.gap:
				return errNotKept(id)
			}
			next := func(off int64) (int64, int64, bool, error) { return p.nextThen(b, live, off, size) }
			return f(next, size)
		})
	})
}

// nextThen looks for data in what records preserved of a file, and in the file
// where none of them touched it.
func (p *Past) nextThen(b *fileBefore, live vfs.File, pos, size int64) (from, to int64, ok bool, err error) {
	i, _ := slices.BinarySearchFunc(b.ranges, pos, func(r before, pos int64) int {
		if r.to <= pos {
			return -1
		}
		return 1
	})
	for pos < size {
		r := before{from: size, to: size}
		if i < len(b.ranges) && b.ranges[i].from < size {
			r = b.ranges[i]
		}
		if pos < r.from {
			if from, to, ok, err = live.NextData(pos); err != nil || ok && from < r.from {
				return from, min(to, r.from), ok, err
			}
			pos = r.from
			continue
		}
		i++
		end := min(r.to, size)
		switch r.kind {
		case beforeImage:
			return pos, end, true, nil
		case beforeGrave:
			if from, to, ok, err = p.nextInGrave(r.lsn, pos); err != nil || ok && from < end {
				return from, min(to, end), ok, err
			}
		}
		pos = end
	}
	return 0, 0, false, nil
}

func (p *Past) nextInGrave(lsn proto.LSN, pos int64) (from, to int64, ok bool, err error) {
	f, err := p.j.tree.grave.Open(graveName(lsn), false)
	if err != nil {
		return 0, 0, false, err
	}
	defer f.Close()
	return f.NextData(pos)
}

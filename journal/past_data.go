package journal

import (
	"io"
	"slices"

	"cagefs.dev/cage/journal/vfs"
	"cagefs.dev/cage/remote/proto"
	"cagefs.dev/cage/remote/status"
)

// Readlink is Journal.Readlink, then.
func (p *Past) Readlink(id proto.FileID) (string, error) {
	if !p.existed(id) {
		return "", stale(id)
	}
	return p.j.readlink(id)
}

// ReadAt is Journal.ReadAt, then.
func (p *Past) ReadAt(id proto.FileID, b []byte, off int64) (n int, err error) {
	err = p.viewed(func() error {
		n, err = p.readThen(id, b, off)
		return err
	})
	return n, err
}

func (p *Past) readThen(id proto.FileID, b []byte, off int64) (int, error) {
	if !p.existed(id) {
		return 0, stale(id)
	}
	h, err := p.j.tree.file(id, false)
	if err != nil {
		return 0, err
	}
	defer h.release()
	info, err := h.file.Stat()
	if err != nil {
		return 0, err
	}
	f, err := p.file(id)
	if err != nil {
		return 0, err
	}
	size := info.Size
	switch {
	case f.sized:
		size = int64(f.size)
	case f.gap:
		left, err := p.sizeLeft(id)
		if err != nil {
			return 0, err
		}
		size = int64(left)
	}
	if off >= size {
		return 0, io.EOF
	}
	short := error(nil)
	if int64(len(b)) > size-off {
		b, short = b[:size-off], io.EOF
	}
	if err := p.fill(f, h.file, b, off); err != nil {
		return 0, err
	}
	return len(b), short
}

// fill reads what records preserved of [off, off+len(b)) from them, and what no
// record touched from the file.
func (p *Past) fill(f *fileBefore, live vfs.File, b []byte, off int64) error {
	end := off + int64(len(b))
	i, _ := slices.BinarySearchFunc(f.ranges, off, func(r before, off int64) int {
		if r.to <= off {
			return -1
		}
		return 1
	})
	for pos := off; pos < end; {
		r := before{from: end, to: end}
		if i < len(f.ranges) && f.ranges[i].from < end {
			r = f.ranges[i]
			r = r.clip(max(r.from, pos), min(r.to, end))
			i++
		}
		if pos < r.from {
			if f.gap {
				return errNotKept(f.id)
			}
			if _, err := live.ReadAt(b[pos-off:r.from-off], pos); err != nil && err != io.EOF {
				return err
			}
		}
		if err := p.preserved(r, b[r.from-off:r.to-off]); err != nil {
			return err
		}
		pos = r.to
	}
	return nil
}

// preserved reads a range that a record preserved.
func (p *Past) preserved(r before, b []byte) error {
	if len(b) == 0 {
		return nil
	}
	switch r.kind {
	case beforeImage:
		img, err := p.image(r.lsn)
		if err != nil {
			return err
		}
		if r.img+int64(len(b)) > int64(len(img)) {
			return status.Newf(status.Damaged, "read", "history", "record %d has too few image bytes", r.lsn)
		}
		copy(b, img[r.img:])
	case beforeGrave:
		f, err := p.j.tree.grave.Open(graveName(r.lsn), false)
		if err != nil {
			return err
		}
		defer f.Close()
		if _, err := f.ReadAt(b, r.from); err != nil && err != io.EOF {
			return err
		}
	}
	return nil
}

// image returns the images of a record.
func (p *Past) image(lsn proto.LSN) ([]byte, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, i := range p.images {
		if i.lsn == lsn {
			return i.bytes, nil
		}
	}
	r, err := p.j.log.Read(lsn, true)
	if err != nil {
		return nil, err
	}
	p.images[p.next] = pastImage{lsn, r.Images}
	p.next = (p.next + 1) % pastImages
	return r.Images, nil
}

// GetXattr is Journal.GetXattr, then.
func (p *Past) GetXattr(id proto.FileID, name string) (v []byte, err error) {
	err = p.viewed(func() error {
		if !p.existed(id) {
			return stale(id)
		}
		f, err := p.file(id)
		if err != nil {
			return err
		}
		if x, ok := f.xattrs[name]; !ok {
			v, err = p.j.getXattrViewed(id, name)
		} else if v = slices.Clone(x.value); !x.has {
			err = status.NoAttr
		}
		if err == nil && name == aclAccess {
			v, err = p.accessThen(id, v)
		}
		return err
	})
	return v, err
}

// ListXattr is Journal.ListXattr, then.
func (p *Past) ListXattr(id proto.FileID) (names []string, err error) {
	err = p.viewed(func() error {
		if !p.existed(id) {
			return stale(id)
		}
		f, err := p.file(id)
		if err != nil {
			return err
		}
		if names, err = p.j.listXattrViewed(id); err != nil {
			return err
		}
		names = slices.DeleteFunc(names, func(n string) bool {
			_, changed := f.xattrs[n]
			return changed
		})
		for n, x := range f.xattrs {
			if x.has {
				names = append(names, n)
			}
		}
		slices.Sort(names)
		return nil
	})
	return names, err
}

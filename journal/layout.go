package journal

import (
	"context"
	"errors"
	"fmt"
	"hash/crc32"
	"slices"
	"syscall"

	"cagefs.dev/cage/journal/record"
	"cagefs.dev/cage/journal/vfs"
	"cagefs.dev/cage/remote/proto"
	"cagefs.dev/cage/remote/status"
)

// extent is a range of a file as the log says it must be. What no extent covers
// is as the checkpoint found it.
type extent struct {
	from, to int64
	kind     extentKind
	lsn      proto.LSN // exLogged, exSums
	img      int64     // exLogged: where its bytes begin in the record's images
	sums     []uint32  // exSums: of each block
	session  proto.SessionID
	seq      proto.Seq
}

type extentKind uint8

const (
	exLogged extentKind = iota // the bytes are in the log
	exSums                     // the bytes are in the file, if they reached the disk
	exZero                     // a hole
)

// layout is what a file must contain after the records since the checkpoint.
type layout struct {
	size     int64
	extents  []extent // ascending, apart
	reserved []span   // blocks that were allocated, ascending, apart
}

// put lays a range over what was there.
func (l *layout) put(e extent) {
	if e.from >= e.to {
		return
	}
	first, _ := slices.BinarySearchFunc(l.extents, e.from, func(x extent, from int64) int {
		if x.to <= from {
			return -1
		}
		return 1
	})
	last := first
	var out []extent
	for ; last < len(l.extents) && l.extents[last].from < e.to; last++ {
		out = append(out, l.extents[last].clip(l.extents[last].from, e.from)...)
	}
	out = append(out, e)
	if last > first {
		out = append(out, l.extents[last-1].clip(e.to, l.extents[last-1].to)...)
	}
	l.extents = slices.Replace(l.extents, first, last, out...)
}

// clip is the part of an extent in [from, to). Sums are kept for whole blocks
// only: a change of a part of one has put the rest into the log before.
func (e extent) clip(from, to int64) []extent {
	from, to = max(from, e.from), min(to, e.to)
	if e.kind == exSums {
		from, to = (from+block-1)/block*block, to/block*block
	}
	if from >= to {
		return nil
	}
	switch e.kind {
	case exLogged:
		e.img += from - e.from
	case exSums:
		e.sums = e.sums[(from-e.from)/block : (to-e.from)/block]
	}
	e.from, e.to = from, to
	return []extent{e}
}

// add follows a record.
func (l *layout) add(r *record.Record) {
	switch r.Kind {
	case record.Truncate:
		if size := int64(r.NewSize); size < l.size || r.NewSize < r.OldSize {
			l.put(extent{from: size, to: 1 << 62, kind: exZero})
		} else { // what a torn sector left behind the old end must not show
			l.put(extent{from: int64(r.OldSize), to: size, kind: exZero})
		}
		l.size = int64(r.NewSize)
		l.reserved = cutSpan(l.reserved, span{l.size, 1 << 62})
	case record.Allocate:
		l.put(extent{from: int64(r.OldSize), to: int64(r.NewSize), kind: exZero})
		l.size = max(l.size, int64(r.NewSize))
		l.reserved = addSpan(l.reserved, span{int64(r.Off), int64(r.Off + r.Len)})
	case record.Write, record.Data:
		if r.Flag&record.FlagHole != 0 {
			l.put(extent{from: int64(r.Off), to: int64(r.Off + r.Len), kind: exZero})
			l.reserved = cutSpan(l.reserved, span{int64(r.Off), int64(r.Off + r.Len)})
			return
		}
		if r.Kind == record.Write {
			l.put(extent{from: int64(r.OldSize), to: int64(r.Off), kind: exZero})
		}
		pos := int64(0)
		for _, p := range r.Pieces {
			e := extent{from: int64(p.Off), to: int64(p.Off + p.Len), lsn: r.LSN, session: r.Session, seq: r.Seq}
			switch {
			case p.Kind == record.PieceBlocks:
				e.kind, e.sums = exSums, p.Sums
			case p.Kind == record.PieceInline:
				e.kind, e.img = exLogged, pos
				pos += int64(p.Len)
			default:
				e.kind, e.img = exLogged, pos+int64(p.Len)
				pos += 2 * int64(p.Len)
			}
			l.put(e)
		}
		if r.Kind == record.Write {
			l.size = max(l.size, int64(r.NewSize))
		}
	case record.Synced:
		l.extents = slices.DeleteFunc(l.extents, func(e extent) bool { return e.kind == exSums && e.lsn <= r.Upto })
	}
}

// contents are the files whose content or attributes the records change.
type contents struct {
	layouts map[proto.FileID]*layout
	attrs   map[proto.FileID]*record.Attrs // what they must be; Mode 0: only the times count
	atime   map[proto.FileID]bool          // attrs' Atime counts
	mtime   map[proto.FileID]bool
	xattrs  map[proto.FileID]map[string]*record.Record
	newest  map[proto.FileID]proto.LSN // record of a client
}

// gather goes through the records for contents and attributes.
func (r *recovery) gather() (*contents, error) {
	c := &contents{layouts: map[proto.FileID]*layout{}, attrs: map[proto.FileID]*record.Attrs{},
		atime: map[proto.FileID]bool{}, mtime: map[proto.FileID]bool{}, xattrs: map[proto.FileID]map[string]*record.Record{}, newest: map[proto.FileID]proto.LSN{}}
	attrs := func(id proto.FileID) *record.Attrs {
		if c.attrs[id] == nil {
			c.attrs[id] = &record.Attrs{}
		}
		return c.attrs[id]
	}
	var rec *record.Record
	mtime := func(id proto.FileID, t proto.Time) {
		if rec.Flag&record.FlagRecovered == 0 && !(local(rec) && id == rec.Dir) { // an earlier recovery has left the times as they were
			attrs(id).Mtime, c.mtime[id] = t, true
		}
	}
	err := r.replay(func(now *record.Record) {
		rec = now
		switch {
		case local(rec) && r.kept(rec) && c.newest[rec.ID] <= rec.Upto:
			c.forget(rec.ID)
		case !local(rec):
			c.newest[rec.ID] = rec.LSN
		}
		if rec.Flag&record.FlagLocal != 0 {
			delete(c.mtime, rec.Dir) // the process gave them other times
			delete(c.mtime, rec.NewDir)
			if r.made[rec.ID] != rec.LSN {
				return
			}
		}
		switch rec.Kind {
		case record.Make:
			*attrs(rec.ID) = rec.New
			c.atime[rec.ID], c.mtime[rec.ID] = true, true
			if rec.Dir != 0 {
				mtime(rec.Dir, rec.Time)
			}
		case record.Link, record.Remove, record.Restore:
			mtime(rec.Dir, rec.Time)
		case record.Rename:
			mtime(rec.Dir, rec.Time)
			mtime(rec.NewDir, rec.Time)
		case record.SetAttr:
			a := attrs(rec.ID)
			a.Mode, a.UID, a.GID = rec.New.Mode, rec.New.UID, rec.New.GID
			if rec.New.Atime != rec.Old.Atime {
				a.Atime, c.atime[rec.ID] = rec.New.Atime, true
			}
			if rec.New.Mtime != rec.Old.Mtime {
				mtime(rec.ID, rec.New.Mtime)
			}
		case record.SetXattr:
			if c.xattrs[rec.ID] == nil {
				c.xattrs[rec.ID] = map[string]*record.Record{}
			}
			c.xattrs[rec.ID][rec.Name] = rec
		case record.Write, record.Truncate, record.Allocate, record.Data, record.Synced:
			if c.layouts[rec.ID] == nil {
				c.layouts[rec.ID] = &layout{size: -1}
			}
			l := c.layouts[rec.ID]
			r.j.lost.follow(rec, l)
			changes := rec.Kind != record.Data && rec.Kind != record.Synced
			if l.size < 0 && changes {
				l.size = int64(rec.OldSize)
			}
			l.add(rec)
			if changes {
				mtime(rec.ID, rec.Time)
			}
		}
	})
	return c, err
}

// restoreContents brings bytes, attributes and times to what the log says (step 10).
func (r *recovery) restoreContents(ctx context.Context) error {
	c, err := r.gather()
	if err != nil {
		return err
	}
	r.leaveChanged(c)
	t := r.j.tree
	for _, id := range sortedIDs(c.layouts) {
		if err := ctx.Err(); err != nil {
			return err
		}
		if _, ok := t.get(id); !ok {
			continue
		}
		if err := r.restoreContent(id, c.layouts[id]); err != nil {
			if status.Of(err) == status.Stale {
				r.report.Strangers = append(r.report.Strangers, fmt.Sprintf("%s (gone)", id))
				continue
			}
			return status.Wrap(err, "restore", id.String())
		}
	}
	for id, xs := range c.xattrs {
		for name, rec := range xs {
			if err := r.restoreXattr(id, name, rec); err != nil {
				return status.Wrap(err, "restore attribute of", id.String())
			}
		}
	}
	for id := range c.attrs {
		if err := r.restoreAttrs(id, c); err != nil {
			return status.Wrap(err, "restore attributes of", id.String())
		}
	}
	for id := range r.moved {
		c.mtime[id] = true
	}
	for _, m := range []map[proto.FileID]bool{c.mtime, c.atime} {
		for id := range m {
			if n, info, err := t.stat(id); err == nil {
				t.seen(id, info.Ctime, n.change)
			}
		}
	}
	return nil
}

func sortedIDs[V any](m map[proto.FileID]V) []proto.FileID {
	ids := make([]proto.FileID, 0, len(m))
	for id := range m {
		ids = append(ids, id)
	}
	slices.Sort(ids)
	return ids
}

func (r *recovery) restoreXattr(id proto.FileID, name string, rec *record.Record) error {
	err := r.j.tree.at(id, func(d vfs.Dir, n string) error {
		if rec.HasNew {
			return d.SetXattr(n, name, rec.Value, 0)
		}
		return d.RemoveXattr(n, name)
	})
	if errors.Is(err, syscall.ENODATA) || status.Of(err) == status.Stale {
		return nil
	}
	return err
}

func (r *recovery) restoreAttrs(id proto.FileID, c *contents) error {
	_, info, err := r.j.tree.stat(id)
	if status.Of(err) == status.Stale {
		return nil
	}
	if err != nil {
		return err
	}
	is := record.Attrs{Mode: info.Mode, UID: info.UID, GID: info.GID, Atime: proto.Time(info.Atime), Mtime: proto.Time(info.Mtime)}
	must := *c.attrs[id]
	if must.Mode == 0 {
		must.Mode, must.UID, must.GID = is.Mode, is.UID, is.GID
	}
	if !c.atime[id] {
		must.Atime = is.Atime
	}
	if !c.mtime[id] {
		must.Mtime = is.Mtime
	}
	return r.j.tree.at(id, func(d vfs.Dir, name string) error { return setAttrs(d, name, is, must) })
}

// restoreContent brings a file to its layout. New bytes that nobody had synced
// and that did not reach the disk are taken out of the file, by records of their own.
func (r *recovery) restoreContent(id proto.FileID, l *layout) error {
	h, err := r.j.tree.file(id, true)
	if err != nil {
		return err
	}
	defer h.release()
	info, err := h.file.Stat()
	if err != nil {
		return err
	}
	if l.size < 0 { // no record changed the size
		l.size = info.Size
	}
	if info.Size != l.size {
		if err := h.file.Truncate(l.size); err != nil {
			return err
		}
	}
	var lost []span
	for _, e := range l.extents {
		e.to = min(e.to, max(e.from, l.size))
		if e.from >= e.to {
			continue
		}
		switch e.kind {
		case exZero:
			err = vfs.Zero(h.file, e.from, e.to-e.from)
		case exLogged:
			err = r.writeLogged(h.file, e)
		case exSums:
			lost, err = checkSums(h.file, e, lost)
		}
		if err != nil {
			return err
		}
	}
	for _, s := range l.reserved {
		err := h.file.Allocate(s.from, s.to-s.from, true)
		if err != nil && !status.Full(err) && status.Of(err) != status.Unsupported {
			return err
		}
	}
	if err := r.dropLost(id, h.file, l.size, lost); err != nil {
		return err
	}
	for _, s := range lost {
		r.j.lost.add(id, l, s)
	}
	return nil
}

// writeLogged writes the bytes that the log holds of an extent.
func (r *recovery) writeLogged(f vfs.File, e extent) error {
	rec, err := r.j.log.Read(e.lsn, true)
	if err != nil {
		return err
	}
	if e.img+e.to-e.from > int64(len(rec.Images)) {
		return status.Newf(status.Damaged, "", "", "record %d has too few image bytes", e.lsn)
	}
	_, err = f.WriteAt(rec.Images[e.img:e.img+e.to-e.from], e.from)
	return err
}

// checkSums adds the blocks of an extent whose bytes are not what was written to lost.
func checkSums(f vfs.File, e extent, lost []span) ([]span, error) {
	buf := make([]byte, block)
	for i, b := 0, e.from; b < e.to; i, b = i+1, b+block {
		n, err := f.ReadAt(buf, b)
		if n < block && err == nil {
			return nil, status.IO
		}
		if n < block || crc32.Checksum(buf, castagnoli) != e.sums[i] {
			lost = addSpan(lost, span{b, b + block})
		}
	}
	return lost, nil
}

// dropLost cuts lost bytes off beyond the last ones that are there and punches
// them elsewhere. What was found in their place is kept in the records.
func (r *recovery) dropLost(id proto.FileID, f vfs.File, size int64, lost []span) error {
	if len(lost) == 0 {
		return nil
	}
	path, _ := r.j.tree.path(id)
	for _, s := range lost {
		r.report.Missing = append(r.report.Missing, Missing{ID: id, Path: path, Off: uint64(s.from), Len: uint64(s.to - s.from)})
	}
	end := size
	for i := len(lost) - 1; i >= 0 && lost[i].to >= end; i-- {
		end = lost[i].from
	}
	info, err := f.Stat()
	if err != nil {
		return err
	}
	var recs []*record.Record
	for _, s := range lost {
		if s.from >= end {
			break
		}
		for off := s.from; off < s.to; off += proto.MaxIO {
			n := min(proto.MaxIO, s.to-off)
			found, err := readFull(f, off, n)
			if err != nil {
				return err
			}
			recs = append(recs, &record.Record{Kind: record.Write, Flag: record.FlagHole | record.FlagRecovered, ID: id,
				Off: uint64(off), Len: uint64(n), OldSize: uint64(size), NewSize: uint64(size), OldMtime: proto.Time(info.Mtime),
				Pieces: []record.Piece{{Kind: record.PieceOver, Off: uint64(off), Len: uint64(n)}}, Images: found})
		}
	}
	for top := size; top > end; {
		from := max(end, top-proto.MaxIO)
		found, err := readFull(f, from, top-from)
		if err != nil {
			return err
		}
		recs = append(recs, &record.Record{Kind: record.Truncate, Flag: record.FlagRecovered, ID: id,
			OldSize: uint64(top), NewSize: uint64(from), OldMtime: proto.Time(info.Mtime), Images: found})
		top = from
	}
	return r.commitAndDo(recs)
}

// commitAndDo makes records of recovery's own durable, then applies them.
func (r *recovery) commitAndDo(recs []*record.Record) error {
	j := r.j
	for _, rec := range recs {
		if err := j.log.Append(rec); err != nil {
			return err
		}
		if j.log.Pending() > 8<<20 {
			if err := j.log.Commit(); err != nil {
				return err
			}
		}
	}
	if err := j.log.Commit(); err != nil {
		return err
	}
	for _, rec := range recs {
		if err := j.applyRecord(rec, nil); err != nil {
			return err
		}
		rec.Images = nil
		j.hist.add(rec)
	}
	return nil
}

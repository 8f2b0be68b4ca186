package journal

import (
	"cagefs.dev/cage/journal/record"
	"cagefs.dev/cage/journal/vfs"
	"cagefs.dev/cage/remote/proto"
	"cagefs.dev/cage/remote/status"
)

// maxPieces bounds the pieces of one record; a hole over more ranges of data is
// several records.
const maxPieces = 256

// mayWrite checks that the content of a file may be changed, and that no
// unapplied record concerns it, and returns what it is now.
func (j *Journal) mayWrite(p *pending, id proto.FileID) (vfs.Info, error) {
	if err := j.busy.file(id); err != nil {
		return vfs.Info{}, err
	}
	n, info, err := j.tree.stat(id)
	if err != nil {
		return info, err
	}
	if n.typ != proto.ModeRegular {
		return info, status.Invalid
	}
	a := infoAttr(id, info)
	if !p.sub.Opened {
		err = j.mayLocked(&a, &p.sub.Ident, MayWrite)
	}
	return info, err
}

// attrsOf are the attributes that a SetAttr record has.
func attrsOf(i vfs.Info) record.Attrs {
	return record.Attrs{Mode: i.Mode, UID: i.UID, GID: i.GID, Atime: proto.Time(i.Atime), Mtime: proto.Time(i.Mtime)}
}

// planAllocate plans fallocate(2). What becomes zeros is punched, and where
// blocks are wanted for it they are reserved again.
func (j *Journal) planAllocate(p *pending, op *proto.Allocate) error {
	switch {
	case op.Len == 0:
		return status.Invalid
	case op.Off > 1<<63-1 || op.Len > 1<<63-1-op.Off:
		return status.TooLarge
	}
	info, err := j.mayWrite(p, op.ID)
	if err != nil {
		return err
	}
	h, err := j.tree.file(op.ID, true)
	if err != nil {
		return err
	}
	defer h.release()
	p.id = op.ID
	planKill(p, op.ID, attrsOf(info))
	size, end := uint64(info.Size), op.Off+op.Len
	if op.Mode&(proto.AllocPunchHole|proto.AllocZeroRange) != 0 && op.Off < size {
		last := (size + block - 1) / block * block // a hole up to the end takes the last block along
		if err := j.planHole(p, h.file, info, int64(op.Off), int64(min(end, last))); err != nil {
			return err
		}
	}
	if op.Mode&proto.AllocPunchHole != 0 {
		if op.Off >= size { // there is nothing to punch, but it counts as a change
			old := attrsOf(info)
			upd := old
			upd.Mode, upd.Mtime = withoutSetID(&p.sub.Ident, &old), j.opts.Now()
			p.recs = []*record.Record{{Kind: record.SetAttr, ID: op.ID, Old: old, New: upd}}
		}
		return nil
	}
	r := &record.Record{Kind: record.Allocate, ID: op.ID, Off: op.Off, Len: op.Len,
		OldSize: size, NewSize: size, OldMtime: proto.Time(info.Mtime)}
	if op.Mode&proto.AllocKeepSize == 0 {
		r.NewSize = max(size, end)
	}
	p.recs = append(p.recs, r)
	return nil
}

// planHole makes a range of a file, up to its last block, a hole. The bytes that it
// destroys are in the records, or in a copy that prepareImage has made durable.
func (j *Journal) planHole(p *pending, f vfs.File, info vfs.Info, from, to int64) error {
	if err := j.supersede(p, p.id, f, from, to, uint64(info.Size)); err != nil {
		return err
	}
	p.ctime = info.Ctime
	hole := func(from, to int64) *record.Record {
		r := &record.Record{Kind: record.Write, Flag: record.FlagHole, ID: p.id, Off: uint64(from), Len: uint64(to - from),
			OldSize: uint64(info.Size), NewSize: uint64(info.Size), OldMtime: proto.Time(info.Mtime)}
		p.recs = append(p.recs, r)
		return r
	}
	ranges, bytes, err := dataRanges(f, from, to, j.inlineCut)
	if err != nil {
		return err
	}
	if bytes > j.inlineCut {
		return j.takeImage(hole(from, to), info, from, to)
	}
	for {
		n := min(len(ranges), maxPieces)
		end := to
		if n < len(ranges) {
			end = ranges[n].from
		}
		r := hole(from, end)
		for _, s := range ranges[:n] {
			b, err := readFull(f, s.from, s.to-s.from)
			if err != nil {
				return err
			}
			r.Pieces = append(r.Pieces, record.Piece{Kind: record.PieceOver, Off: uint64(s.from), Len: uint64(len(b))})
			r.Images = append(r.Images, b...)
		}
		if from, ranges = end, ranges[n:]; from == to {
			return nil
		}
	}
}

// takeImage makes the copy of a range that prepareImage has made the
// before-image of a record.
func (j *Journal) takeImage(r *record.Record, info vfs.Info, from, to int64) error {
	img, ok := j.images[r.ID]
	if !ok || img.ctime != info.Ctime || img.from > from || img.to < to {
		return needImage{id: r.ID, from: from, to: to}
	}
	delete(j.images, r.ID)
	r.Flag |= record.FlagGraveImage
	r.Inode = record.Inode(img.ident)
	r.Grave = proto.LSN(img.no)
	return nil
}

// dataRanges lists the data in a range, and counts their bytes; it ends when
// they are more than enough.
func dataRanges(f vfs.File, from, to, enough int64) (out []span, bytes int64, err error) {
	for from < to && bytes <= enough {
		s, e, ok, err := f.NextData(from)
		if err != nil || !ok || s >= to {
			return out, bytes, err
		}
		from = min(e, to)
		out = append(out, span{s, from})
		bytes += from - s
	}
	return out, bytes, nil
}

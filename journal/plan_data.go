package journal

import (
	"hash/crc32"

	"cagefs.dev/cage/journal/record"
	"cagefs.dev/cage/journal/vfs"
	"cagefs.dev/cage/remote/proto"
	"cagefs.dev/cage/remote/status"
)

const block = record.BlockSize

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// maxInlineCut is how many bytes a truncation or a hole may take away into the
// log itself; more are copied into a grave first.
const maxInlineCut = 1 << 20

// planTruncate plans a change of size. The bytes cut off are in the record, or
// in a copy that prepareImage has made durable.
func (j *Journal) planTruncate(p *pending, id proto.FileID, info vfs.Info, size uint64) error {
	old := uint64(info.Size)
	if size > 1<<63-1 {
		return status.TooLarge
	}
	h, err := j.tree.file(id, false)
	if err != nil {
		return err
	}
	defer h.release()
	r := &record.Record{Kind: record.Truncate, ID: id, OldSize: old, NewSize: size, OldMtime: proto.Time(info.Mtime)}
	if size < old {
		if err := j.supersede(p, id, h.file, int64(size), int64(size), old); err != nil {
			return err
		}
		cut, err := dataBytes(h.file, int64(size), int64(old))
		if err != nil {
			return err
		}
		switch {
		case cut == 0: // a hole: nothing is destroyed
		case old-size <= uint64(j.inlineCut):
			if r.Images, err = readFull(h.file, int64(size), int64(old-size)); err != nil {
				return err
			}
		default:
			if err := j.takeImage(r, info, int64(size), int64(old)); err != nil {
				return err
			}
		}
	}
	p.ctime = info.Ctime
	p.id, p.recs = id, append(p.recs, r)
	return nil
}

// dataBytes counts the bytes of a range that are not holes.
func dataBytes(f vfs.File, from, to int64) (n int64, err error) {
	for from < to {
		s, e, ok, err := f.NextData(from)
		if err != nil || !ok || s >= to {
			return n, err
		}
		n += min(e, to) - s
		from = e
	}
	return n, nil
}

func (j *Journal) planWrite(p *pending, op *proto.Write) error {
	switch {
	case len(op.Data) == 0:
		return nil
	case len(op.Data) > proto.MaxIO:
		return status.Invalid
	case op.Off > 1<<63-1-uint64(len(op.Data)):
		return status.TooLarge
	}
	if j.refills(p.sub) {
		return j.planRefill(p, op)
	}
	info, err := j.mayWrite(p, op.ID)
	if err != nil {
		return err
	}
	off := int64(op.Off)
	if op.Append {
		if off = info.Size; off > 1<<63-1-int64(len(op.Data)) {
			return status.TooLarge
		}
		p.n, p.append = uint64(off), true
	}
	return j.planBytes(p, op.ID, info, off, op.Data)
}

// planBytes plans that bytes are put at an offset of a file.
func (j *Journal) planBytes(p *pending, id proto.FileID, info vfs.Info, at int64, bytes []byte) error {
	h, err := j.tree.file(id, true)
	if err != nil {
		return err
	}
	defer h.release()
	off, data, err := widen(h.file, info.Size, at, bytes)
	if err != nil {
		return err
	}
	end := off + int64(len(data))
	if err := j.supersede(p, id, h.file, off, end, uint64(info.Size)); err != nil {
		return err
	}
	planKill(p, id, attrsOf(info))
	r := &record.Record{Kind: record.Write, ID: id, Off: uint64(off), Len: uint64(len(data)), Count: p.n,
		OldSize: uint64(info.Size), NewSize: max(uint64(info.Size), uint64(end)), OldMtime: proto.Time(info.Mtime)}
	if err := pieces(r, h.file, info.Size, data); err != nil {
		return err
	}
	switch {
	case p.append && off == at: // it goes to the end, wherever that is by then
	case p.append, r.Pieces[0].Kind == record.PieceOver, len(r.Pieces) > 1, len(data) != len(bytes): // zeros around it must not meet another's bytes
		p.ctime = info.Ctime
	}
	p.id, p.data, p.recs = id, data, append(p.recs, r)
	return nil
}

// widen extends a write that begins or ends inside a block of a hole by the
// zeros around it: a sector that is torn by a power cut would otherwise leave
// garbage in bytes that no record mentions.
func widen(f vfs.File, size, off int64, data []byte) (int64, []byte, error) {
	end := off + int64(len(data))
	lo, hi := off, end
	if b := off / block * block; b < off {
		switch hole, err := isHole(f, b, off); {
		case err != nil:
			return 0, nil, err
		case hole:
			lo = b
		case off > size:
			lo = size
		}
	}
	if b := (end + block - 1) / block * block; b > end && end < size {
		hole, err := isHole(f, end, b)
		if err != nil {
			return 0, nil, err
		}
		if hole {
			hi = min(b, size)
		}
	}
	if lo == off && hi == end {
		return off, data, nil
	}
	wide := make([]byte, hi-lo)
	copy(wide[off-lo:], data)
	return lo, wide, nil
}

// isHole reports whether a range has no data.
func isHole(f vfs.File, from, to int64) (bool, error) {
	s, _, ok, err := f.NextData(from)
	return err == nil && (!ok || s >= to), err
}

// pieces divides a write into what overwrites bytes, whose before-images it
// reads, and what is new.
func pieces(r *record.Record, f vfs.File, size int64, data []byte) error {
	off, end := int64(r.Off), int64(r.Off+r.Len)
	at := func(pos int64) []byte { return data[pos-off:] }
	for pos := off; pos < end; {
		s, e := end, end // next range that holds data
		if pos < size {
			ds, de, ok, err := f.NextData(pos)
			if err != nil {
				return err
			}
			if ok {
				s, e = min(ds, end), min(de, end, size)
			}
		}
		if s > pos {
			newPieces(r, pos, s, at(pos))
			pos = s
			continue
		}
		before, err := readFull(f, pos, e-pos)
		if err != nil {
			return err
		}
		r.Pieces = append(r.Pieces, record.Piece{Kind: record.PieceOver, Off: uint64(pos), Len: uint64(e - pos)})
		r.Images = append(append(r.Images, before...), at(pos)[:e-pos]...)
		pos = e
	}
	return nil
}

// newPieces describes new bytes [from, to): whole blocks by their checksums,
// the rest in the log itself.
func newPieces(r *record.Record, from, to int64, data []byte) {
	inline := func(a, b int64) {
		if a < b {
			r.Pieces = append(r.Pieces, record.Piece{Kind: record.PieceInline, Off: uint64(a), Len: uint64(b - a)})
			r.Images = append(r.Images, data[a-from:b-from]...)
		}
	}
	first, last := (from+block-1)/block*block, to/block*block
	if first >= last {
		inline(from, to)
		return
	}
	inline(from, first)
	p := record.Piece{Kind: record.PieceBlocks, Off: uint64(first), Len: uint64(last - first)}
	for b := first; b < last; b += block {
		p.Sums = append(p.Sums, crc32.Checksum(data[b-from:b-from+block], castagnoli))
	}
	r.Pieces = append(r.Pieces, p)
	inline(last, to)
}

// supersede puts into the log the blocks at the edges of [off, end) that an
// earlier record knows by checksum only and that this change alters in part:
// the checksum will not hold any more.
func (j *Journal) supersede(p *pending, id proto.FileID, f vfs.File, off, end int64, size uint64) error {
	l := j.loose[id]
	if l == nil {
		return nil
	}
	r := &record.Record{Kind: record.Data, ID: id}
	logged := int64(-1)
	for _, at := range []int64{off, end} {
		b := at / block * block
		if at == b || b == logged || !l.has(b) {
			continue
		}
		logged = b
		data, err := readFull(f, b, min(block, int64(size)-b))
		if err != nil {
			return err
		}
		r.Pieces = append(r.Pieces, record.Piece{Kind: record.PieceInline, Off: uint64(b), Len: uint64(len(data))})
		r.Images = append(r.Images, data...)
	}
	if len(r.Pieces) > 0 {
		p.recs = append(p.recs, r)
	}
	return nil
}

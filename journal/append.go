package journal

import (
	"fmt"

	"cagefs.dev/cage/journal/record"
	"cagefs.dev/cage/journal/vfs"
	"cagefs.dev/cage/remote/status"
)

// Appends. A process of the server may append between the plan of ours and its
// turn: the file system then puts our bytes behind its. The record said that
// they would be where the end was, so it is cancelled, and another one says where they are.

// movedTo is where an append went, if not where its record says.
type movedTo int64

func (at movedTo) Error() string { return fmt.Sprintf("the bytes went to %d", int64(at)) }

// applyAppend applies the Write record of an append: movedTo if a process of the
// server was there before.
func (j *Journal) applyAppend(r *record.Record, data []byte) error {
	h, err := j.tree.file(r.ID, true)
	if err != nil {
		return err
	}
	defer h.release()
	at, n, err := h.file.Append(data)
	if err != nil {
		if info, e := h.file.Stat(); e == nil && n > 0 && info.Size == at+int64(n) {
			_ = h.file.Truncate(at) // a part of it; what it leaves is listed as a change of the server's
			_ = h.file.Utimes(vfs.OmitTime, int64(r.OldMtime))
		}
		j.look(r)
		return err
	}
	if at != int64(r.Off) {
		return movedTo(at)
	}
	if err := h.file.Utimes(vfs.OmitTime, int64(mtimeAfter(r))); err != nil {
		return err
	}
	j.tree.apply(r)
	j.look(r)
	return nil
}

// moved makes the records of an append say where its bytes are.
func (j *Journal) moved(p *pending, at int64) error {
	if err := j.planMoved(p, at); err != nil {
		return err
	}
	j.viewMu.Lock()
	for _, r := range p.recs {
		if r.Kind != record.Write {
			if err := j.applyRecord(r, nil); err != nil {
				j.viewMu.Unlock()
				return err
			}
			continue
		}
		err := j.applyContent(r, func(vfs.File) error { return nil }) // they are there
		if err != nil {
			j.viewMu.Unlock()
			return err
		}
		j.tree.apply(r)
		j.look(r)
		j.noticeMoved(r.ID)
	}
	j.enter(p.recs)
	j.viewMu.Unlock()
	j.announce(p.recs)
	return nil
}

// planMoved replaces the records, durably.
func (j *Journal) planMoved(p *pending, at int64) error {
	j.planMu.Lock()
	defer j.planMu.Unlock()
	var fresh []*record.Record
	for _, r := range p.recs {
		j.busy.drop(r)
		j.looseCancel(r)
		n := &record.Record{Kind: r.Kind, ID: r.ID, Old: r.Old, New: r.New, Pieces: r.Pieces, Images: r.Images}
		if r.Kind == record.Write {
			*n = record.Record{Kind: r.Kind, ID: r.ID, Off: uint64(at), Len: r.Len, Count: uint64(at),
				OldSize: uint64(at), NewSize: uint64(at) + r.Len, OldMtime: r.OldMtime}
			newPieces(n, at, at+int64(r.Len), p.data)
		}
		who(n, p.sub)
		fresh = append(fresh, n)
	}
	if err := j.log.Append(append(j.cancelRecords(p, status.Again), fresh...)...); err != nil {
		for _, r := range p.recs { // its turn is not over
			j.busy.add(r)
		}
		return err
	}
	for _, r := range fresh {
		j.busy.add(r)
		j.looseAdd(r)
	}
	p.recs, p.n = fresh, uint64(at)
	return j.log.Commit()
}

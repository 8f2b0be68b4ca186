package journal

import (
	"errors"
	"slices"
	"syscall"

	"cagefs.dev/cage/journal/record"
	"cagefs.dev/cage/journal/vfs"
	"cagefs.dev/cage/remote/proto"
	"cagefs.dev/cage/remote/status"
)

// errChanged tells that a process of the server changed a file between the plan
// of a change and its turn: the before-image in the record is not what would be destroyed.
var errChanged = errors.New("changed by a process of the server")

// applyPending applies the records of a change, in view of nobody until all are done.
func (j *Journal) applyPending(p *pending) error {
	j.viewMu.Lock()
	if err := j.unchanged(p); err != nil {
		j.viewMu.Unlock()
		return err
	}
	j.noticeBefore(p.recs)
	for i, r := range p.recs {
		do := j.applyRecord
		if p.append && r.Kind == record.Write && r.Off == p.n {
			do = j.applyAppend
		}
		if err := do(r, p.data); err != nil {
			if !errors.As(err, new(movedTo)) {
				err = errors.Join(err, j.revert(p.recs[:i]))
			}
			j.viewMu.Unlock()
			return err
		}
	}
	j.enter(p.recs)
	j.viewMu.Unlock()
	j.announce(p.recs)
	return nil
}

// enter puts applied records into the index. The caller holds viewMu: who reads
// the past finds in it what the present already has.
func (j *Journal) enter(recs []*record.Record) {
	for _, r := range recs {
		r.Images = nil // the log has them
		j.hist.add(r)
	}
}

// announce tells whoever listens of applied records.
func (j *Journal) announce(recs []*record.Record) {
	for _, r := range recs {
		if f := j.opts.Changed; f != nil && r.ID != 0 {
			f(Applied{LSN: r.LSN, ID: r.ID, Dir: r.Dir, Name: r.Name, NewDir: r.NewDir, NewName: r.NewName,
				Data: changesData(r) || r.Kind == record.Local && r.HasNew, Made: local(r) && r.Kind == record.Make, Session: r.Session})
		}
	}
}

// changesData reports whether a record changes content or size of its file.
func changesData(r *record.Record) bool {
	switch r.Kind {
	case record.Write, record.Truncate:
		return true
	case record.Allocate:
		return r.NewSize != r.OldSize
	}
	return false
}

// applyRecord does what a record says, to the tree and to the table. It is
// called in LSN order with viewMu held.
func (j *Journal) applyRecord(r *record.Record, data []byte) error {
	var err error
	switch r.Kind {
	case record.Make:
		if r.Name == "" {
			err = j.tree.stage.Rename(stageName(r.ID), j.tree.grave, graveName(r.LSN), vfs.RenameNoReplace)
		} else {
			err = j.moveIn(j.tree.stage, stageName(r.ID), r)
		}
	case record.Restore:
		err = j.moveIn(j.tree.grave, graveName(r.Grave), r)
	case record.Link:
		err = j.applyLink(r)
	case record.Remove:
		err = j.applyRemove(r)
	case record.Rename:
		err = j.applyRename(r)
	case record.SetAttr:
		err = j.tree.at(r.ID, func(d vfs.Dir, name string) error { return setAttrs(d, name, r.Old, r.New) })
	case record.SetXattr:
		err = j.tree.at(r.ID, func(d vfs.Dir, name string) error {
			if r.HasNew {
				return d.SetXattr(name, r.Name, r.Value, 0)
			}
			return d.RemoveXattr(name, r.Name)
		})
	case record.Truncate:
		err = j.applyTruncate(r)
	case record.Write:
		err = j.applyWrite(r, data)
	case record.Allocate:
		err = j.applyAllocate(r)
	default:
		return nil
	}
	if err != nil {
		return err
	}
	j.tree.apply(r)
	j.look(r)
	return nil
}

// look notes the ctimes that an applied record left, so that a later change by
// somebody else shows.
func (j *Journal) look(r *record.Record) {
	for _, id := range []proto.FileID{r.ID, r.Victim, r.Dir, r.NewDir} {
		if id == 0 || id == r.Dir && r.Dir == r.NewDir && id != r.ID {
			continue
		}
		if n, info, err := j.tree.stat(id); err == nil {
			j.tree.seen(id, info.Ctime, r.LSN)
			j.noticeAfter(r, &n, info)
			j.duringGap(&n)
			j.countGrave(r, id, int64(info.Blocks)*512)
		}
	}
	if r.Dir != 0 && r.Dir == r.NewDir {
		if n, info, err := j.tree.stat(r.Dir); err == nil {
			j.tree.seen(r.Dir, info.Ctime, r.LSN)
			j.duringGap(&n)
		}
	}
}

// countGrave keeps the sum of what graves take, about: what a directory took
// along is not looked at.
func (j *Journal) countGrave(r *record.Record, id proto.FileID, bytes int64) {
	switch {
	case r.Kind == record.Remove && id == r.ID, r.Kind == record.Rename && id == r.Victim && r.Flag&record.FlagExchange == 0:
		j.graves.bytes.Add(bytes)
	case r.Kind == record.Restore && id == r.ID && r.Txn != 0: // a nameless file never counted
		j.graves.bytes.Add(-bytes)
	case (r.Kind == record.Truncate || r.Kind == record.Write) && r.Flag&record.FlagGraveImage != 0 && id == r.ID:
		if img, err := j.tree.grave.Stat(graveName(r.LSN)); err == nil {
			j.graves.bytes.Add(int64(img.Blocks) * 512)
		}
	}
}

// touchDir gives a directory the time of the record that changed its entries.
func touchDir(d vfs.Dir, t proto.Time) error { return d.Utimes("", vfs.OmitTime, int64(t)) }

// moveIn puts an inode from the stage or a grave into its place.
func (j *Journal) moveIn(from vfs.Dir, name string, r *record.Record) error {
	h, err := j.tree.dir(r.Dir)
	if err != nil {
		return err
	}
	defer h.release()
	if err := from.Rename(name, h.dir, r.Name, vfs.RenameNoReplace); err != nil {
		return err
	}
	return touchDir(h.dir, r.Time)
}

func (j *Journal) applyLink(r *record.Record) error {
	h, err := j.tree.dir(r.Dir)
	if err != nil {
		return err
	}
	defer h.release()
	if err := j.tree.at(r.ID, func(d vfs.Dir, name string) error { return d.Link(name, h.dir, r.Name) }); err != nil {
		return err
	}
	return touchDir(h.dir, r.Time)
}

// applyRemove moves a name into a grave, if it still is what the plan saw.
func (j *Journal) applyRemove(r *record.Record) error {
	h, err := j.tree.dir(r.Dir)
	if err != nil {
		return err
	}
	defer h.release()
	if err := sameInode(h.dir, r.Name, r.Inode); err != nil {
		return err
	}
	if r.Flag&record.FlagDir != 0 && r.Flag&record.FlagTree == 0 {
		if err := j.stillEmpty(r.ID); err != nil {
			return err
		}
	}
	if err := h.dir.Rename(r.Name, j.tree.grave, graveName(r.LSN), vfs.RenameNoReplace); err != nil {
		return err
	}
	return touchDir(h.dir, r.Time)
}

func (j *Journal) stillEmpty(id proto.FileID) error {
	h, err := j.tree.dir(id)
	if err != nil {
		return err
	}
	defer h.release()
	return dirEmpty(h.dir)
}

// sameInode checks that a name still leads to an inode: errChanged otherwise.
func sameInode(d vfs.Dir, name string, want record.Inode) error {
	info, err := d.Stat(name)
	switch {
	case errors.Is(err, syscall.ENOENT), err == nil && info.Ident != vfs.Ident(want):
		return errChanged
	}
	return err
}

// applyRename moves a name. A victim is replaced by an exchange, so that no
// moment is without the new name, and whatever stood there is in the grave.
func (j *Journal) applyRename(r *record.Record) error {
	from, err := j.tree.dir(r.Dir)
	if err != nil {
		return err
	}
	defer from.release()
	to, err := j.tree.dir(r.NewDir)
	if err != nil {
		return err
	}
	defer to.release()
	if err := sameInode(from.dir, r.Name, r.Inode); err != nil {
		return err
	}
	switch {
	case r.Flag&record.FlagExchange != 0:
		err = from.dir.Rename(r.Name, to.dir, r.NewName, vfs.RenameExchange)
	case r.Victim == 0:
		err = from.dir.Rename(r.Name, to.dir, r.NewName, vfs.RenameNoReplace)
	default:
		err = j.replace(r, from.dir, to.dir)
	}
	if err != nil {
		return err
	}
	if err := touchDir(from.dir, r.Time); err != nil {
		return err
	}
	return touchDir(to.dir, r.Time)
}

func (j *Journal) replace(r *record.Record, from, to vfs.Dir) error {
	if n, ok := j.tree.get(r.Victim); ok {
		if err := sameInode(to, r.NewName, record.Inode(n.ident)); err != nil {
			return err
		}
	}
	g := graveName(r.LSN)
	if err := from.Rename(r.Name, j.tree.grave, g, vfs.RenameNoReplace); err != nil {
		return err
	}
	err := j.tree.grave.Rename(g, to, r.NewName, vfs.RenameExchange)
	if err != nil { // back to where it was: the change is cancelled
		return errors.Join(err, j.tree.grave.Rename(g, from, r.Name, vfs.RenameNoReplace))
	}
	return nil
}

// setAttrs brings the attributes that differ to their new values.
func setAttrs(d vfs.Dir, name string, old, upd record.Attrs) error {
	if old.UID != upd.UID || old.GID != upd.GID {
		if err := d.Chown(name, upd.UID, upd.GID); err != nil {
			return err
		}
	}
	owned := old.UID != upd.UID || old.GID != upd.GID // chown may take setuid bits away
	isLink := upd.Mode&proto.ModeType == proto.ModeSymlink
	if (old.Mode != upd.Mode || owned && upd.Mode&0o6000 != 0) && !isLink {
		if err := d.Chmod(name, upd.Mode&proto.ModePerm); err != nil {
			return err
		}
	}
	at, mt := vfs.OmitTime, vfs.OmitTime
	if old.Atime != upd.Atime {
		at = int64(upd.Atime)
	}
	if old.Mtime != upd.Mtime {
		mt = int64(upd.Mtime)
	}
	if at == vfs.OmitTime && mt == vfs.OmitTime {
		return nil
	}
	return d.Utimes(name, at, mt)
}

func (j *Journal) applyTruncate(r *record.Record) error {
	return j.applyContent(r, func(f vfs.File) error { return f.Truncate(int64(r.NewSize)) })
}

// applyWrite writes the bytes of a record: data where the change still has
// them, otherwise (transactions) from the record's images, which hold all of them.
func (j *Journal) applyWrite(r *record.Record, data []byte) error {
	return j.applyContent(r, func(f vfs.File) error {
		switch {
		case r.Flag&record.FlagHole != 0 && (r.Txn != 0 || r.Flag&record.FlagRecovered != 0):
			return vfs.Zero(f, int64(r.Off), int64(r.Len))
		case r.Flag&record.FlagHole != 0: // asked for: whether there can be holes is told
			return f.PunchHole(int64(r.Off), int64(r.Len))
		case data != nil:
			_, err := f.WriteAt(data, int64(r.Off))
			return err
		}
		return writeImages(f, r)
	})
}

func (j *Journal) applyAllocate(r *record.Record) error {
	return j.applyContent(r, func(f vfs.File) error {
		return f.Allocate(int64(r.Off), int64(r.Len), r.NewSize < r.Off+r.Len)
	})
}

// applyContent changes the content of a record's file with do, after the copy of
// what that destroys, if there is one, is in its grave.
func (j *Journal) applyContent(r *record.Record, do func(vfs.File) error) error {
	h, err := j.tree.file(r.ID, true)
	if err != nil {
		return err
	}
	defer h.release()
	if r.Flag&record.FlagGraveImage != 0 {
		err := j.tree.stage.Rename(imageName(uint64(r.Grave)), j.tree.grave, graveName(r.LSN), vfs.RenameNoReplace)
		if err != nil {
			return err
		}
	}
	if err := do(h.file); err != nil {
		err = errors.Join(err, j.revertContent(h.file, r))
		j.look(r) // no process of the server did this
		return err
	}
	return h.file.Utimes(vfs.OmitTime, int64(mtimeAfter(r)))
}

// mtimeAfter is the time of a file after a change of its content. What recovery
// takes out of a file is no change of anybody's.
func mtimeAfter(r *record.Record) proto.Time {
	if r.Flag&record.FlagRecovered != 0 {
		return r.OldMtime
	}
	return r.Time
}

// revert takes applied records of a change back, the rest of which cannot be
// applied: it will be cancelled as a whole.
func (j *Journal) revert(recs []*record.Record) error {
	for _, r := range slices.Backward(recs) {
		var err error
		switch r.Kind {
		case record.SetAttr:
			err = j.tree.at(r.ID, func(d vfs.Dir, name string) error { return setAttrs(d, name, r.New, r.Old) })
		case record.Write, record.Truncate, record.Allocate:
			var h *handle
			if h, err = j.tree.file(r.ID, true); err == nil {
				err = j.revertContent(h.file, r)
				h.release()
			}
		}
		if err != nil {
			return err
		}
		j.look(r)
	}
	return nil
}

// revertContent takes a change of content back that was made in part (a full
// disk) or whole: its record will be cancelled, so nothing of it may stay.
func (j *Journal) revertContent(f vfs.File, r *record.Record) error {
	if r.NewSize != r.OldSize { // otherwise it may have grown by somebody else's doing
		if err := f.Truncate(int64(r.OldSize)); err != nil {
			return err
		}
	}
	for _, b := range rangesBefore(r) {
		var err error
		switch to := min(b.to, int64(r.OldSize)); {
		case b.kind == beforeImage:
			_, err = f.WriteAt(r.Images[b.img:b.img+b.to-b.from], b.from)
		case b.kind == beforeGrave:
			err = j.bringBack(f, r.LSN, b.from, to)
		case b.from < to:
			err = vfs.Zero(f, b.from, to-b.from)
		}
		if err != nil {
			return err
		}
	}
	return f.Utimes(vfs.OmitTime, int64(r.OldMtime))
}

// bringBack copies what is in a grave back into the file that it was taken
// from, and empties the grave.
func (j *Journal) bringBack(f vfs.File, grave proto.LSN, from, to int64) error {
	img, err := j.tree.grave.Open(graveName(grave), false)
	if err != nil {
		return err
	}
	defer img.Close()
	if err := copyRanges(img, f, from, to); err != nil {
		return err
	}
	return j.tree.grave.Remove(graveName(grave))
}

// writeImages writes the after-images of a Write or Data record without holes.
func writeImages(f vfs.File, r *record.Record) error {
	return eachAfter(r, func(off int64, b []byte) error {
		_, err := f.WriteAt(b, off)
		return err
	})
}

// eachAfter calls f for the pieces of a record whose after-image the record has.
func eachAfter(r *record.Record, f func(off int64, b []byte) error) error {
	pos := uint64(0)
	for _, p := range r.Pieces {
		if p.Kind == record.PieceBlocks {
			continue
		}
		if p.Kind == record.PieceOver { // the before-image
			pos += p.Len
		}
		end := pos + p.Len
		if end > uint64(len(r.Images)) {
			return status.Newf(status.Damaged, "apply", "", "record %d has too few image bytes", r.LSN)
		}
		if err := f(int64(p.Off), r.Images[pos:end]); err != nil {
			return err
		}
		pos = end
	}
	return nil
}

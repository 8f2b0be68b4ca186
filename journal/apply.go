package journal

import (
	"errors"
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
	for _, r := range p.recs {
		if err := j.applyRecord(r, p.data); err != nil {
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
				Data: r.Kind == record.Write || r.Kind == record.Truncate, Session: r.Session})
		}
	}
}

// unchanged compares a file with what its plan saw, where bytes are about to be destroyed.
func (j *Journal) unchanged(p *pending) error {
	if p.ctime == 0 {
		return nil
	}
	_, info, err := j.tree.stat(p.id)
	if err != nil {
		return err
	}
	if info.Ctime != p.ctime {
		return errChanged
	}
	return nil
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
		if _, info, err := j.tree.stat(id); err == nil {
			j.tree.seen(id, info.Ctime, r.LSN)
			j.countGrave(r, id, int64(info.Blocks)*512)
		}
	}
	if r.Dir != 0 && r.Dir == r.NewDir {
		if _, info, err := j.tree.stat(r.Dir); err == nil {
			j.tree.seen(r.Dir, info.Ctime, r.LSN)
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
	case r.Kind == record.Truncate && r.Flag&record.FlagGraveImage != 0:
		j.graves.bytes.Add(int64(r.OldSize - r.NewSize))
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
	if err := h.file.Truncate(int64(r.NewSize)); err != nil {
		return err
	}
	return h.file.Utimes(vfs.OmitTime, int64(mtimeAfter(r)))
}

// applyWrite writes the bytes of a record: data where the change still has
// them, otherwise (transactions) from the record's images, which hold all of them.
func (j *Journal) applyWrite(r *record.Record, data []byte) error {
	h, err := j.tree.file(r.ID, true)
	if err != nil {
		return err
	}
	defer h.release()
	if data != nil {
		_, err = h.file.WriteAt(data, int64(r.Off))
	} else {
		err = writeImages(h.file, r)
	}
	if err != nil {
		return errors.Join(err, revertWrite(h.file, r))
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

// revertWrite takes a write back that failed half-way (a full disk): its
// record will be cancelled, so nothing of it may stay.
func revertWrite(f vfs.File, r *record.Record) error {
	pos := uint64(0)
	for _, p := range r.Pieces {
		var err error
		switch p.Kind {
		case record.PieceOver:
			_, err = f.WriteAt(r.Images[pos:pos+p.Len], int64(p.Off))
			pos += 2 * p.Len
		case record.PieceInline:
			pos += p.Len
		}
		if p.Kind != record.PieceOver && p.Off < r.OldSize {
			err = vfs.Zero(f, int64(p.Off), int64(min(p.Len, r.OldSize-p.Off)))
		}
		if err != nil {
			return err
		}
	}
	if err := f.Truncate(int64(r.OldSize)); err != nil {
		return err
	}
	return f.Utimes(vfs.OmitTime, int64(r.OldMtime))
}

// writeImages writes the after-images of a Write or Data record.
func writeImages(f vfs.File, r *record.Record) error {
	return eachAfter(r, func(off int64, b []byte, n int64) error {
		if b == nil {
			return vfs.Zero(f, off, n)
		}
		_, err := f.WriteAt(b, off)
		return err
	})
}

// eachAfter calls f for the pieces of a Write or Data record whose after-image
// the record has; b is nil for a range that becomes a hole of n bytes.
func eachAfter(r *record.Record, f func(off int64, b []byte, n int64) error) error {
	pos := uint64(0)
	take := func(n uint64) ([]byte, error) {
		if pos+n > uint64(len(r.Images)) {
			return nil, status.Newf(status.Damaged, "apply", "", "record %d has too few image bytes", r.LSN)
		}
		pos += n
		return r.Images[pos-n : pos], nil
	}
	hole := r.Flag&record.FlagHole != 0
	for _, p := range r.Pieces {
		if p.Kind == record.PieceBlocks {
			continue
		}
		if p.Kind == record.PieceOver {
			if _, err := take(p.Len); err != nil {
				return err
			}
			if hole {
				if err := f(int64(p.Off), nil, int64(p.Len)); err != nil {
					return err
				}
				continue
			}
		}
		b, err := take(p.Len)
		if err != nil {
			return err
		}
		if err := f(int64(p.Off), b, int64(p.Len)); err != nil {
			return err
		}
	}
	return nil
}

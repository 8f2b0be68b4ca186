package journal

import (
	"cagefs.dev/cage/journal/record"
	"cagefs.dev/cage/remote/proto"
	"cagefs.dev/cage/remote/status"
)

// planCopy plans copy_file_range(2): a write of what the source holds now. No
// unapplied record concerns the source, and later ones come after this.
func (j *Journal) planCopy(p *pending, op *proto.Copy) error {
	n := uint64(op.Len)
	switch {
	case n > proto.MaxIO:
		return status.Invalid
	case op.Off > 1<<63-1-n || op.SrcOff > 1<<63-1-n:
		return status.TooLarge
	case op.ID == op.Src && op.Off < op.SrcOff+n && op.SrcOff < op.Off+n:
		return status.Invalid
	}
	if err := j.busy.file(op.Src); err != nil {
		return err
	}
	src, from, err := j.tree.stat(op.Src)
	if err != nil {
		return err
	}
	if src.typ != proto.ModeRegular {
		return status.Invalid
	}
	a := infoAttr(op.Src, from)
	if !p.sub.SrcOpened {
		if err := j.mayLocked(&a, &p.sub.Ident, MayRead); err != nil {
			return err
		}
	}
	info, err := j.mayWrite(p, op.ID)
	if err != nil {
		return err
	}
	p.id = op.ID
	n = min(n, uint64(from.Size)-min(op.SrcOff, uint64(from.Size)))
	if n == 0 {
		return nil
	}
	h, err := j.tree.file(op.Src, false)
	if err != nil {
		return err
	}
	defer h.release()
	data, err := readFull(h.file, int64(op.SrcOff), int64(n))
	if err != nil {
		return err
	}
	p.n = n
	return j.planBytes(p, op.ID, info, int64(op.Off), data)
}

// planKill takes setuid, and setgid as withoutSetID says, from a file whose
// content somebody but root changes, in the same change.
func planKill(p *pending, id proto.FileID, old record.Attrs) {
	upd := old
	if upd.Mode = withoutSetID(&p.sub.Ident, &old); upd != old {
		p.recs = append(p.recs, &record.Record{Kind: record.SetAttr, ID: id, Old: old, New: upd})
	}
}

// withoutSetID is the mode of a regular file after somebody changed its content.
func withoutSetID(who *proto.Ident, a *record.Attrs) uint32 {
	if who.UID == 0 || a.Mode&proto.ModeType != proto.ModeRegular {
		return a.Mode
	}
	return withoutSetgid(who, a) &^ proto.ModeSetuid
}

// withoutSetgid is a mode without its setgid bit, which stays only where the
// group may not execute the file and root or a member changes it.
func withoutSetgid(who *proto.Ident, a *record.Attrs) uint32 {
	if a.Mode&0o010 == 0 && (who.UID == 0 || inGroup(who, a.GID)) {
		return a.Mode
	}
	return a.Mode &^ proto.ModeSetgid
}

package journal

import (
	"errors"
	"strings"
	"syscall"

	"cagefs.dev/cage/journal/record"
	"cagefs.dev/cage/journal/vfs"
	"cagefs.dev/cage/remote/proto"
	"cagefs.dev/cage/remote/status"
)

func (j *Journal) planSetAttr(p *pending, op *proto.SetAttr) error {
	if err := j.busy.file(op.ID); err != nil {
		return err
	}
	if err := j.busy.entries(op.ID); err != nil { // its times are about to change
		return err
	}
	n, info, err := j.tree.stat(op.ID)
	if err != nil {
		return err
	}
	a := infoAttr(op.ID, info)
	if err := j.maySetAttr(&a, p.sub, op); err != nil {
		return err
	}
	p.id = op.ID
	if op.Mask&proto.SetSize != 0 {
		if err := j.planTruncate(p, op.ID, info, op.Size); err != nil {
			return err
		}
	}
	now := j.opts.Now()
	old := record.Attrs{Mode: info.Mode, UID: info.UID, GID: info.GID, Atime: proto.Time(info.Atime), Mtime: proto.Time(info.Mtime)}
	upd := newerAttrs(old, p.sub, op, now)
	if n.typ == proto.ModeSymlink && upd.Mode != old.Mode {
		return status.Unsupported
	}
	if len(p.recs) > 0 && op.Mask&(proto.SetMtime|proto.SetMtimeNow) == 0 {
		upd.Mtime = old.Mtime // the truncation sets it
	}
	if err := mayPrivilege(p.sub, &old, &upd); err != nil {
		return err
	}
	if upd != old {
		p.recs = append(p.recs, &record.Record{Kind: record.SetAttr, ID: op.ID, Old: old, New: upd})
	}
	return nil
}

// maySetAttr checks who may change which attribute, as chmod(2), chown(2),
// truncate(2) and utimensat(2) say.
func (j *Journal) maySetAttr(a *proto.Attr, s *Submission, op *proto.SetAttr) error {
	who := &s.Ident
	owner := who.UID == 0 || who.UID == a.UID
	if op.Mask&(proto.SetMode|proto.SetAtime|proto.SetMtime) != 0 && !owner {
		return status.NotOwner
	}
	if op.Mask&proto.SetUID != 0 && who.UID != 0 && !(owner && op.UID == a.UID) {
		return status.NotOwner
	}
	if op.Mask&proto.SetGID != 0 && who.UID != 0 && !(owner && (op.GID == a.GID || inGroup(who, op.GID))) {
		return status.NotOwner
	}
	if op.Mask&(proto.SetAtimeNow|proto.SetMtimeNow) != 0 && !owner {
		if err := j.mayLocked(a, who, MayWrite); err != nil {
			return err
		}
	}
	if op.Mask&proto.SetSize != 0 {
		switch {
		case a.IsDir():
			return status.IsDir
		case !a.IsRegular():
			return status.Invalid
		case !s.Opened:
			return j.mayLocked(a, who, MayWrite)
		}
	}
	return nil
}

// newerAttrs are the attributes after an operation. A change of owner takes the
// setuid and setgid bits of a file, a mode of a foreign group its setgid bit.
func newerAttrs(old record.Attrs, s *Submission, op *proto.SetAttr, now proto.Time) record.Attrs {
	upd := old
	isDir := old.Mode&proto.ModeType == proto.ModeDir
	if op.Mask&proto.SetUID != 0 {
		upd.UID = op.UID
	}
	if op.Mask&proto.SetGID != 0 {
		upd.GID = op.GID
	}
	if op.Mask&(proto.SetUID|proto.SetGID) != 0 && !isDir {
		upd.Mode = withoutSetgid(&s.Ident, &old) &^ proto.ModeSetuid
	}
	if op.Mask&proto.SetMode != 0 {
		upd.Mode = old.Mode&proto.ModeType | op.Mode&proto.ModePerm
		if s.Ident.UID != 0 && !isDir && !inGroup(&s.Ident, upd.GID) {
			upd.Mode &^= proto.ModeSetgid
		}
	}
	if op.Mask&proto.SetSize != 0 {
		upd.Mode = withoutSetID(&s.Ident, &upd)
	}
	switch {
	case op.Mask&proto.SetAtimeNow != 0:
		upd.Atime = now
	case op.Mask&proto.SetAtime != 0:
		upd.Atime = op.Atime
	}
	switch {
	case op.Mask&proto.SetMtimeNow != 0:
		upd.Mtime = now
	case op.Mask&proto.SetMtime != 0:
		upd.Mtime = op.Mtime
	}
	return upd
}

func (j *Journal) planXattr(p *pending, id proto.FileID, name string, value []byte, has bool, flags uint32) error {
	if name == "" || len(name) > proto.MaxName || strings.IndexByte(name, 0) >= 0 {
		return status.Range
	}
	if len(value) > proto.MaxXattr {
		return status.TooBig
	}
	if isACL(name) {
		return j.planACL(p, id, name, value)
	}
	if err := j.busy.file(id); err != nil {
		return err
	}
	_, info, err := j.tree.stat(id)
	if err != nil {
		return err
	}
	a := infoAttr(id, info)
	if err := j.mayXattr(&a, p.sub.Trusted, &p.sub.Ident, name); err != nil {
		return err
	}
	var old []byte
	err = j.tree.at(id, func(d vfs.Dir, n string) error {
		old, err = d.GetXattr(n, name)
		return err
	})
	hasOld := err == nil
	if err != nil && !errors.Is(err, syscall.ENODATA) {
		return err
	}
	switch {
	case !hasOld && (!has || flags&proto.XattrReplace != 0):
		return status.NoAttr
	case hasOld && flags&proto.XattrCreate != 0:
		return status.Exists
	}
	p.id = id
	p.recs = []*record.Record{{Kind: record.SetXattr, ID: id, Name: name,
		HasOld: hasOld, OldValue: old, HasNew: has, Value: value}}
	return nil
}

// mayXattr checks whether an identity may change an extended attribute, as
// xattr(7) says: user.* by permission and on files and directories only,
// trusted.* and security.* root alone.
func (j *Journal) mayXattr(a *proto.Attr, trusted bool, who *proto.Ident, name string) error {
	space, _, dot := strings.Cut(name, ".")
	if !dot {
		return status.Unsupported
	}
	switch space {
	case "user":
		if !a.IsRegular() && !a.IsDir() {
			return status.NotOwner
		}
		if a.IsDir() && a.Mode&proto.ModeSticky != 0 && who.UID != 0 && who.UID != a.UID {
			return status.NotOwner
		}
		return j.mayLocked(a, who, MayWrite)
	case "trusted", "security":
		if !trusted || who.UID != 0 {
			return status.NotOwner
		}
		return nil
	}
	return status.Unsupported
}

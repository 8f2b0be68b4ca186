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

// planLocked decides what a change does: it fills p with records that say it
// completely, or fails as the operation fails. It changes nothing but the stage.
// The caller holds planMu.
func (j *Journal) planLocked(p *pending) error {
	if err := j.reachLocked(p.sub); err != nil {
		return err
	}
	switch op := p.sub.Op.(type) {
	case *proto.Make:
		return j.planMake(p, op)
	case *proto.Link:
		return j.planLink(p, op)
	case *proto.Remove:
		return j.planRemove(p, op)
	case *proto.Rename:
		return j.planRename(p, op)
	case *proto.SetAttr:
		return j.planSetAttr(p, op)
	case *proto.SetXattr:
		return j.planXattr(p, op.ID, op.Name, op.Value, true, op.Flags)
	case *proto.RemoveXattr:
		return j.planXattr(p, op.ID, op.Name, nil, false, 0)
	case *proto.Write:
		return j.planWrite(p, op)
	case *proto.Allocate:
		return j.planAllocate(p, op)
	case *proto.Copy:
		return j.planCopy(p, op)
	case *proto.Label:
		return j.planLabel(p, op)
	}
	return status.Unsupported
}

// parent is a directory in which a plan changes a name.
type parent struct {
	*handle
	attr  proto.Attr
	mtime proto.Time // before the change, unapplied ones counted
}

// parentLocked opens a directory to change the entry name in it, and checks
// that the name may be one and that no unapplied record concerns it.
func (j *Journal) parentLocked(id proto.FileID, name string) (*parent, error) {
	if err := checkName(name); err != nil {
		return nil, err
	}
	if hidden(id, name) {
		return nil, status.NotOwner
	}
	if err := j.busy.name(place{id, name}); err != nil {
		return nil, err
	}
	return j.dirLocked(id)
}

// dirLocked opens a directory to make something in it, and checks that no
// unapplied record concerns it.
func (j *Journal) dirLocked(id proto.FileID) (*parent, error) {
	if err := j.busy.file(id); err != nil { // it may be on its way into a grave
		return nil, err
	}
	h, err := j.tree.dir(id)
	if err != nil {
		return nil, err
	}
	info, err := h.dir.StatSelf()
	if err != nil {
		h.release()
		return nil, err
	}
	if !j.tree.within(id, proto.RootID) { // removed, or below what was: nothing can be made in it
		h.release()
		return nil, status.NotFound
	}
	pa := &parent{handle: h, attr: infoAttr(id, info), mtime: proto.Time(info.Mtime)}
	if b, ok := j.busy.dirs[id]; ok {
		pa.mtime = b.mtime
	}
	return pa, nil
}

// infoAttr has what permission checks need.
func infoAttr(id proto.FileID, i vfs.Info) proto.Attr {
	return proto.Attr{ID: id, Mode: i.Mode, Nlink: i.Nlink, UID: i.UID, GID: i.GID, Size: uint64(i.Size), Ctime: proto.Time(i.Ctime)}
}

// child looks a name up for a plan.
func (j *Journal) child(pa *parent, name string) (vfs.Info, proto.FileID, error) {
	info, err := pa.dir.Stat(name)
	if err != nil {
		return info, 0, err
	}
	at := place{pa.attr.ID, name}
	id, err := j.identify(at, info)
	if err == nil && j.tree.isCorrected(at) {
		err = j.explainLocked(at)
	}
	return info, id, err
}

// vacantLocked checks that a name leads to nothing, and that no record says
// otherwise: a process of the server may have taken it.
func (j *Journal) vacantLocked(pa *parent, name string) error {
	if _, err := pa.dir.Stat(name); err == nil {
		return status.Exists
	} else if !errors.Is(err, syscall.ENOENT) {
		return err
	}
	if at := (place{pa.attr.ID, name}); j.tree.recorded(at) != 0 {
		return j.explainLocked(append(j.tree.corrected(), at)...)
	}
	return nil
}

func (j *Journal) planMake(p *pending, op *proto.Make) error {
	var pa *parent
	var err error
	if op.Name == "" {
		pa, err = j.planTmpfile(op)
	} else {
		pa, err = j.parentLocked(op.Dir, op.Name)
	}
	if err != nil {
		return err
	}
	defer pa.release()
	if op.Name != "" {
		if err := j.vacantLocked(pa, op.Name); err != nil {
			return err
		}
	}
	if err := j.mayLocked(&pa.attr, &p.sub.Ident, MayWrite|MayExec); err != nil {
		return err
	}
	if op.Propose != 0 {
		return status.Unsupported // no client has been given numbers yet
	}
	attrs, err := j.newAttrs(p.sub, pa, op)
	if err != nil {
		return err
	}
	j.adoptMu.Lock()
	id, err := j.newID()
	j.adoptMu.Unlock()
	if err != nil {
		return err
	}
	r := &record.Record{Kind: record.Make, ID: id, Dir: op.Dir, Name: op.Name, New: attrs,
		Rdev: op.Rdev, Target: op.Target, OldMtime: pa.mtime}
	if op.Name == "" {
		r.Dir, r.OldMtime = 0, 0
	}
	lists, err := j.inheritLocked(r, pa, op.Umask)
	if err != nil {
		return err
	}
	if err := j.stageInode(r); err != nil {
		return err
	}
	p.id, p.recs = id, append([]*record.Record{r}, lists...)
	for _, x := range lists { // here it may fail for want of space, and later not
		if err := j.tree.stage.SetXattr(stageName(id), x.Name, x.Value, 0); err != nil {
			j.unstage(p.recs)
			return err
		}
	}
	return nil
}

// newAttrs are the mode and owner of what is made in a directory.
func (j *Journal) newAttrs(s *Submission, pa *parent, op *proto.Make) (record.Attrs, error) {
	mode := op.Mode
	switch mode & proto.ModeType {
	case proto.ModeRegular, proto.ModeDir, proto.ModeFIFO, proto.ModeSocket:
	case proto.ModeSymlink:
		if op.Target == "" || len(op.Target) > proto.MaxTarget {
			return record.Attrs{}, status.Invalid
		}
		mode = proto.ModeSymlink | 0o777
	case proto.ModeChar, proto.ModeBlock:
		whiteout := mode&proto.ModeType == proto.ModeChar && op.Rdev == 0 // overlayfs marks a removed name so; it opens nothing
		if !whiteout && (!s.Trusted || s.Ident.UID != 0) {
			return record.Attrs{}, status.NotOwner
		}
	default:
		return record.Attrs{}, status.Invalid
	}
	a := record.Attrs{Mode: mode, UID: s.Ident.UID, GID: s.Ident.GID}
	if pa.attr.Mode&proto.ModeSetgid != 0 {
		a.GID = pa.attr.GID
		if mode&proto.ModeType == proto.ModeDir {
			a.Mode |= proto.ModeSetgid
		}
	}
	if privileges(a.Mode)&proto.ModeSetgid != 0 && s.Ident.UID != 0 && !inGroup(&s.Ident, a.GID) {
		a.Mode &^= proto.ModeSetgid
	}
	return a, mayPrivilege(s, &record.Attrs{}, &a)
}

// stageInode makes the inode of a Make record in the stage, so that its identity is
// known before it has a name, and completes the record with it.
func (j *Journal) stageInode(r *record.Record) error {
	st, name, perm := j.tree.stage, stageName(r.ID), r.New.Mode&proto.ModePerm
	var err error
	switch r.New.Mode & proto.ModeType {
	case proto.ModeRegular:
		var f vfs.File
		if f, err = st.Create(name, perm); err == nil {
			f.Close()
		}
	case proto.ModeDir:
		err = st.Mkdir(name, perm)
	case proto.ModeSymlink:
		err = st.Symlink(r.Target, name)
	default:
		err = st.Mknod(name, r.New.Mode, r.Rdev)
	}
	if err != nil {
		return err
	}
	info, err := st.Stat(name)
	if err == nil && (info.UID != r.New.UID || info.GID != r.New.GID) {
		if err = st.Chown(name, r.New.UID, r.New.GID); err == nil && perm&(proto.ModeSetuid|proto.ModeSetgid) != 0 {
			err = st.Chmod(name, perm)
		}
	}
	if err != nil {
		j.unstage([]*record.Record{r})
		return err
	}
	r.Inode = record.Inode(info.Ident)
	r.New.Atime, r.New.Mtime = proto.Time(info.Atime), proto.Time(info.Mtime)
	return nil
}

// unstage removes the inodes of plans that came to nothing.
func (j *Journal) unstage(recs []*record.Record) {
	for _, r := range recs {
		if r.Kind != record.Make {
			continue
		}
		name := stageName(r.ID)
		if r.New.Mode&proto.ModeType == proto.ModeDir {
			_ = j.tree.stage.RemoveDir(name) // what stays is removed by the next recovery
		} else {
			_ = j.tree.stage.Remove(name)
		}
	}
}

func (j *Journal) planLink(p *pending, op *proto.Link) error {
	pa, err := j.parentLocked(op.Dir, op.Name)
	if err != nil {
		return err
	}
	defer pa.release()
	if err := j.busy.file(op.ID); err != nil {
		return err
	}
	n, info, err := j.tree.stat(op.ID)
	if err != nil {
		return err
	}
	if n.typ == proto.ModeDir {
		return status.NotOwner
	}
	nameless := j.nameless(&n)
	if len(n.names) == 0 && !nameless {
		return status.NotFound
	}
	if err := j.vacantLocked(pa, op.Name); err != nil {
		return err
	}
	if err := j.mayLocked(&pa.attr, &p.sub.Ident, MayWrite|MayExec); err != nil {
		return err
	}
	a := infoAttr(op.ID, info)
	if err := j.mayLink(&a, p.sub); err != nil {
		return err
	}
	if j.loose[op.ID] != nil {
		return needSync{op.ID}
	}
	p.id = op.ID
	r := &record.Record{Kind: record.Link, ID: op.ID, Dir: op.Dir, Name: op.Name,
		Inode: record.Inode(info.Ident), OldMtime: pa.mtime}
	if nameless {
		r.Kind, r.Grave = record.Restore, n.graves[0]
	}
	p.recs = []*record.Record{r}
	return nil
}

func (j *Journal) planRemove(p *pending, op *proto.Remove) error {
	pa, err := j.parentLocked(op.Dir, op.Name)
	if err != nil {
		return err
	}
	defer pa.release()
	info, id, err := j.child(pa, op.Name)
	if err != nil {
		return err
	}
	a := infoAttr(id, info)
	if err := j.mayRemove(&pa.attr, &a, &p.sub.Ident); err != nil {
		return err
	}
	switch {
	case op.IsDir && !a.IsDir():
		return status.NotDir
	case !op.IsDir && a.IsDir():
		return status.IsDir
	}
	r := &record.Record{Kind: record.Remove, ID: id, Dir: op.Dir, Name: op.Name,
		Inode: record.Inode(info.Ident), OldMtime: pa.mtime}
	if a.IsDir() {
		r.Flag = record.FlagDir
		if err := j.emptyLocked(id); err != nil {
			return err
		}
	}
	p.id, p.recs = id, []*record.Record{r}
	return nil
}

// emptyLocked checks that a directory has no entries, also no unapplied ones.
func (j *Journal) emptyLocked(id proto.FileID) error {
	if err := j.busy.entries(id); err != nil {
		return err
	}
	h, err := j.tree.dir(id)
	if err != nil {
		return err
	}
	defer h.release()
	return dirEmpty(h.dir)
}

func dirEmpty(d vfs.Dir) error {
	empty := true
	err := d.ReadDir(0, func(string, uint64, uint32, uint64) bool {
		empty = false
		return false
	})
	if err == nil && !empty {
		err = status.NotEmpty
	}
	return err
}

func (j *Journal) planRename(p *pending, op *proto.Rename) error {
	if op.Flags&^(proto.RenameNoReplace|proto.RenameExchange) != 0 || op.Flags == proto.RenameNoReplace|proto.RenameExchange {
		return status.Invalid
	}
	from, err := j.parentLocked(op.Dir, op.Name)
	if err != nil {
		return err
	}
	defer from.release()
	to, err := j.parentLocked(op.NewDir, op.NewName)
	if err != nil {
		return err
	}
	defer to.release()
	info, id, err := j.child(from, op.Name)
	if err != nil {
		return err
	}
	a := infoAttr(id, info)
	who := &p.sub.Ident
	if err := j.mayRemove(&from.attr, &a, who); err != nil {
		return err
	}
	r := &record.Record{Kind: record.Rename, ID: id, Dir: op.Dir, Name: op.Name, NewDir: op.NewDir, NewName: op.NewName,
		Inode: record.Inode(info.Ident), OldMtime: from.mtime, OldNewMtime: to.mtime}
	if a.IsDir() {
		r.Flag |= record.FlagDir
	}
	vinfo, victim, err := j.child(to, op.NewName)
	switch {
	case errors.Is(err, syscall.ENOENT):
		if op.Flags&proto.RenameExchange != 0 {
			return status.NotFound
		}
		if err := j.vacantLocked(to, op.NewName); err != nil {
			return err
		}
		if err := j.mayLocked(&to.attr, who, MayWrite|MayExec); err != nil {
			return err
		}
	case err != nil:
		return err
	case op.Flags&proto.RenameNoReplace != 0:
		return status.Exists
	case victim == id:
		return nil // two names of one inode: nothing happens
	default:
		va := infoAttr(victim, vinfo)
		if err := j.planVictim(p, op, r, to, &a, &va); err != nil {
			return err
		}
	}
	if err := j.planDirMove(p, op, &a, r.Victim); err != nil {
		return err
	}
	p.id, p.recs = id, []*record.Record{r}
	return nil
}

// planVictim checks that what is under the new name may be replaced or exchanged.
func (j *Journal) planVictim(p *pending, op *proto.Rename, r *record.Record, to *parent, a, va *proto.Attr) error {
	if err := j.mayRemove(&to.attr, va, &p.sub.Ident); err != nil {
		return err
	}
	r.Victim = va.ID
	if op.Flags&proto.RenameExchange != 0 {
		r.Flag |= record.FlagExchange
		if va.IsDir() && op.Dir != op.NewDir && j.tree.within(op.Dir, va.ID) {
			return status.Invalid
		}
		return nil
	}
	switch {
	case a.IsDir() && !va.IsDir():
		return status.NotDir
	case !a.IsDir() && va.IsDir():
		return status.IsDir
	case va.IsDir():
		if err := j.emptyLocked(va.ID); err != nil {
			return err
		}
	}
	if j.loose[a.ID] != nil {
		return needSync{a.ID} // the old content must not go before the new is durable
	}
	return nil
}

// planDirMove refuses to move a directory below itself. Directories move one at
// a time, so that what is below what cannot change between plan and apply.
func (j *Journal) planDirMove(p *pending, op *proto.Rename, a *proto.Attr, victim proto.FileID) error {
	if !a.IsDir() || op.Dir == op.NewDir {
		return nil
	}
	if j.busy.dirMove != 0 {
		return waitFor{j.busy.dirMove}
	}
	if j.tree.within(op.NewDir, a.ID) {
		return status.Invalid
	}
	return j.mayLocked(a, &p.sub.Ident, MayWrite) // its ".." changes
}

func (j *Journal) planLabel(p *pending, op *proto.Label) error {
	if !validLabel(op.Name) {
		return status.Newf(status.Invalid, "label", op.Name, "a label is made of letters, digits, '.', '_' and '-', at most %d", proto.MaxLabel)
	}
	if j.busy.label != 0 { // it may be of that name, or the last that the user may set
		return waitFor{j.busy.label}
	}
	if _, ok := j.hist.label(op.Name); ok {
		return status.New(status.Exists, "label", op.Name)
	}
	if !j.hist.mayLabel(p.sub.Ident.UID) {
		return status.Newf(status.NoSpace, "label", op.Name, "the user has %d labels in the history that is kept", maxLabels)
	}
	p.recs = []*record.Record{{Kind: record.Label, Name: op.Name}}
	return nil
}

func validLabel(s string) bool {
	ok := func(c byte) bool {
		return c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' || c >= '0' && c <= '9' || slices.Contains([]byte("._-"), c)
	}
	for i := range len(s) {
		if !ok(s[i]) {
			return false
		}
	}
	return s != "" && len(s) <= proto.MaxLabel
}

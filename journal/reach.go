package journal

import (
	"cagefs.dev/cage/journal/record"
	"cagefs.dev/cage/remote/proto"
	"cagefs.dev/cage/remote/status"
)

// Numbers of files are no secrets: they are given in order, and anybody can try
// them. For who is not trusted they are therefore worth what a path to the file
// is worth: each directory from the root down to one of its names must let him
// search it. A file that was removed is where its last name was; one that never
// had a name, or whose removal is history no more, is its owner's alone.

// Reach checks whether an identity may come to a file on the way of its names:
// status.Access, Stale. That the session has it open is the caller's to know.
func (j *Journal) Reach(id proto.FileID, who *proto.Ident) error {
	return j.viewed(func() error {
		return j.reach(id, who, func(place) error { return nil })
	})
}

// reachLocked is Reach of the files that a change names, for who is not trusted
// and has them not open. The caller holds planMu.
func (j *Journal) reachLocked(s *Submission) error {
	if s.Trusted || s.Ident.UID == 0 || j.refills(s) {
		return nil
	}
	for _, id := range filesOf(s.Op) {
		if id == 0 || s.Holds != nil && s.Holds(id) {
			continue
		}
		if err := j.reach(id, &s.Ident, j.busy.name); err != nil {
			return err
		}
	}
	return nil
}

// filesOf lists the files that a change names by number.
func filesOf(op proto.Op) []proto.FileID {
	switch op := op.(type) {
	case *proto.Make:
		return []proto.FileID{op.Dir}
	case *proto.Link:
		return []proto.FileID{op.ID, op.Dir}
	case *proto.Remove:
		return []proto.FileID{op.Dir}
	case *proto.Rename:
		return []proto.FileID{op.Dir, op.NewDir}
	case *proto.SetAttr:
		return []proto.FileID{op.ID}
	case *proto.SetXattr:
		return []proto.FileID{op.ID}
	case *proto.RemoveXattr:
		return []proto.FileID{op.ID}
	case *proto.Write:
		return []proto.FileID{op.ID}
	case *proto.Allocate:
		return []proto.FileID{op.ID}
	case *proto.Copy:
		return []proto.FileID{op.ID, op.Src}
	}
	return nil
}

// reach walks up from a file. settled says, for a planner, whether a record that
// is not applied yet concerns a name (then its error); a reader holds viewMu.
func (j *Journal) reach(id proto.FileID, who *proto.Ident, settled func(place) error) error {
	for range maxDepth {
		if id == proto.RootID {
			return nil
		}
		n, ok := j.tree.get(id)
		if !ok {
			return stale(id)
		}
		places := n.names
		if len(places) == 0 {
			at, err := j.lastPlace(&n)
			if err != nil {
				return err
			}
			if at.dir == 0 {
				return j.ownedBy(id, who)
			}
			id = at.dir
			if err := j.maySearch(id, who); err != nil {
				return err
			}
			continue
		}
		dir, err := j.wayUp(&n, who, settled)
		if err != nil {
			return err
		}
		if dir == 0 { // one of several links leads up to the root
			return nil
		}
		id = dir
	}
	return status.New(status.Access, "", id.String())
}

// wayUp returns the directory that a file hangs in, which the identity may
// search; 0 if the file has several names and it reaches one of them.
func (j *Journal) wayUp(n *node, who *proto.Ident, settled func(place) error) (proto.FileID, error) {
	err := stale(n.id)
	for _, at := range n.names {
		if err := settled(at); err != nil {
			return 0, err
		}
		e := j.isThere(n, at, who)
		if e == nil && len(n.names) == 1 {
			return at.dir, nil
		}
		if e == nil {
			e = j.reach(at.dir, who, settled)
		}
		if e == nil || internal(e) {
			return 0, e
		}
		err = e
	}
	return 0, err
}

// isThere checks that a name, in a directory that the identity may search, still
// leads to an inode: a process of the server may have moved it.
func (j *Journal) isThere(n *node, at place, who *proto.Ident) error {
	h, err := j.tree.dir(at.dir)
	if err != nil {
		return err
	}
	defer h.release()
	self, err := h.dir.StatSelf()
	if err != nil {
		return err
	}
	a := infoAttr(at.dir, self)
	if err := j.mayLocked(&a, who, MayExec); err != nil {
		return err
	}
	if info, err := h.dir.Stat(at.name); err != nil || info.Ident != n.ident {
		return stale(n.id)
	}
	return nil
}

func (j *Journal) maySearch(dir proto.FileID, who *proto.Ident) error {
	_, info, err := j.tree.stat(dir)
	if err != nil {
		return err
	}
	a := infoAttr(dir, info)
	return j.mayLocked(&a, who, MayExec)
}

func (j *Journal) ownedBy(id proto.FileID, who *proto.Ident) error {
	_, info, err := j.tree.stat(id)
	if err == nil && who.UID != 0 && who.UID != info.UID {
		err = status.New(status.Access, "", id.String())
	}
	return err
}

// lastPlace is where a removed file had its last name; none (dir 0) where it
// never had one or history does not know it any more.
func (j *Journal) lastPlace(n *node) (place, error) {
	if len(n.graves) == 0 {
		return place{}, stale(n.id)
	}
	r, err := j.hist.read(n.graves[len(n.graves)-1])
	switch {
	case err != nil:
		return place{}, err
	case r == nil:
		return place{}, nil
	case r.Kind == record.Remove && r.ID == n.id:
		return place{r.Dir, r.Name}, nil
	case r.Kind == record.Rename && r.Victim == n.id:
		return place{r.NewDir, r.NewName}, nil
	}
	return place{}, nil
}

package journal

import (
	"context"

	"cagefs.dev/cage/journal/record"
	"cagefs.dev/cage/journal/vfs"
	"cagefs.dev/cage/remote/proto"
	"cagefs.dev/cage/remote/status"
)

// file compares a file, or what a directory is beside its names.
func (c *compare) file(ctx context.Context, id proto.FileID, e LocalEvent) error {
	return c.planned(ctx, func() error { return c.fileLocked(id, e, node{}) })
}

// fileLocked records a change of a file's content or attributes. before is what was
// known of the file before records of its names were made; zero where nothing was.
// No change of a client is half done when it looks.
func (c *compare) fileLocked(id proto.FileID, e LocalEvent, before node) error {
	j := c.j
	return j.viewed(func() error {
		n, info, err := j.tree.stat(id)
		if gone(err) || status.Of(err) == status.Stale {
			return nil
		}
		if err != nil {
			return err
		}
		what := c.changed(&n, info, &e, &before)
		if what == 0 {
			if n.typ == proto.ModeDir && n.ctime != 0 && n.ctime != info.Ctime && !j.told() { // no event will tell of its names
				j.suspect(&n)
				return nil
			}
			j.tree.seen(id, info.Ctime, n.change)
			return nil
		}
		r := j.localRecord(&n, info, what)
		if err := c.flagGap(r); err != nil {
			return err
		}
		c.emitted = true
		if err := j.emitSeen(r, e.by(doneBy[r.Kind]), info.Ctime); err != nil {
			return err
		}
		j.local.lookOn(id, r.LSN)
		j.countLocal(r.LSN)
		return nil
	})
}

// changed says which of LocalContent and LocalAttr a process of the server changed
// that no record tells yet.
//
// Events that are not sure may be of what clients did. Then a ctime that no record
// left tells, and the newest record of the file: a client's has seen all that was
// before it (noticeBefore); one of a name, or of attributes, may have found the
// file written already, and what it found is its ctime now.
func (c *compare) changed(n *node, info vfs.Info, e *LocalEvent, before *node) LocalWhat {
	j := c.j
	told := e.What & (LocalContent | LocalAttr)
	differs := n.ctime != info.Ctime || n.typ == proto.ModeRegular && j.local.resized(n.id, n.change, info.Size)
	switch {
	case told != 0 && !differs && e.What&LocalIn != 0 && n.change == j.hist.made(n.id) && (before.ctime == 0 || before.ctime == info.Ctime):
		return 0 // its making has told
	case e.What&LocalSure != 0 && told != 0:
		return told
	case n.typ == proto.ModeDir:
		if !differs {
			return 0
		}
		return told & LocalAttr
	case differs && n.ctime == 0 && !j.afterLastRun(info):
		return 0
	case differs && told == LocalAttr && e.What&LocalClosed == 0 && j.unwritten(n, info):
		return LocalAttr
	case differs:
		return told | LocalContent
	case e.What&(LocalClosed|LocalContent) == LocalClosed && j.local.takeLook(n):
		return told | LocalContent
	case told != 0:
		return told &^ j.toldBy(n)
	case e.What&LocalSure == 0 && before.ctime != 0 && before.ctime != info.Ctime && !c.written[n.id] && !j.unwritten(before, info): // written, and then renamed
		return LocalContent
	}
	return 0
}

// unwritten reports whether a file's time of modification is from before it was
// last looked at, or is what a client's newest change left, which the clock of the
// kernel may be behind.
func (j *Journal) unwritten(known *node, info vfs.Info) bool {
	if info.Mtime <= known.ctime {
		return true
	}
	list := j.hist.data(known.id, 0)
	if len(list) == 0 {
		return false
	}
	r, err := j.hist.read(list[len(list)-1])
	if err != nil || r == nil {
		return false
	}
	switch r.Kind {
	case record.Write, record.Truncate, record.Allocate:
		return int64(mtimeAfter(r)) == info.Mtime
	case record.SetAttr:
		return int64(r.New.Mtime) == info.Mtime
	}
	return false
}

// toldBy says what of an event that is not sure a file's newest record has told.
func (j *Journal) toldBy(n *node) LocalWhat {
	const all = LocalContent | LocalAttr
	if n.change == 0 {
		return 0
	}
	if j.hist.cancelled(n.change) {
		return all
	}
	r, err := j.hist.read(n.change)
	switch {
	case err != nil || r == nil: // not committed yet: one of what a reader noticed
		return 0
	case !local(r), r.Kind == record.Local && r.HasNew:
		return all
	case r.Kind == record.Local, r.Kind == record.Make:
		return LocalAttr
	}
	return 0
}

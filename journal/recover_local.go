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

// Recovery and processes of the server. What they did is not the log's to do
// again: a record of it moves the table, and only says where an inode is to be looked
// for that a client's record is about as well.
//
// A server that died while the export stayed mounted has lost nothing that was
// applied. What differs from the log then, and changed after the last record, was
// done by such a process after the server's end, and stays; it is found by the
// comparison that follows every start (local_scan.go). A recovery that was cut
// changes files as well, so after one the log alone counts again.

// lateApply is how long after the newest record a dying server may still have applied it.
const lateApply = proto.Time(2e9)

// collectLocal follows a record of what a process of the server did.
func (r *recovery) collectLocal(rec *record.Record, touch func(proto.FileID)) {
	known := func(id proto.FileID) {
		if r.moved[id] {
			touch(id)
		}
	}
	known(rec.ID)
	known(rec.Victim)
	r.j.tree.apply(rec)
	known(rec.ID)
	known(rec.Victim)
	if rec.Kind == record.Make {
		r.found[rec.ID] = rec.LSN
	}
}

// adoptLocal makes a file that a process of the server made and a client wrote as
// good as one that a client made: what was synced of it must be there.
func (r *recovery) adoptLocal(rec *record.Record, touch func(proto.FileID)) {
	switch rec.Kind {
	case record.Write, record.Truncate, record.Data, record.SetAttr, record.SetXattr:
		if made := r.found[rec.ID]; made != 0 {
			r.made[rec.ID] = made
			touch(rec.ID)
		}
	}
}

// changedSince reports whether a process of the server changed an inode after
// the last server's end, on a mount that has lasted since.
func (r *recovery) changedSince(info vfs.Info) bool {
	return r.sameRun && proto.Time(info.Ctime) > r.lastTime+lateApply
}

// kept reports whether a record says that what was applied to a file before is there, with
// what processes of the server did to it: on a mount that lasted, or because it was
// synced. An inode that was made again has nothing of it.
func (r *recovery) kept(rec *record.Record) bool {
	switch rec.Kind {
	case record.Local:
		return r.sameRun
	case record.Synced:
		return !r.remade[rec.ID]
	}
	return false
}

// recoveringName is in the journal's directory while a recovery relies on the
// mount having lasted; it need not be durable, for a cut ends the mount.
const recoveringName = "recovering"

// lastRun finds out when the journal was open before, and whether its mount lasted.
func (r *recovery) lastRun() error {
	if last := r.j.log.Last(); last != 0 {
		rec, err := r.j.log.Read(last, false)
		if err != nil {
			return err
		}
		r.lastTime = rec.Time
	}
	if r.j.opts.Mount == "" || r.mount != r.j.opts.Mount {
		return nil
	}
	f, err := r.j.tree.cage.Create(recoveringName, 0o600)
	if err == nil {
		r.sameRun = true
		return f.Close()
	}
	return nil // one before was cut, or the disk is full: the log alone counts
}

// ended notes that the recovery is through.
func (r *recovery) ended() error {
	err := r.j.tree.cage.Remove(recoveringName)
	if errors.Is(err, syscall.ENOENT) {
		return nil
	}
	return status.Wrap(err, "remove", recoveringName)
}

// leaveChanged takes out of what is to be restored the files that a process of
// the server changed since.
func (r *recovery) leaveChanged(c *contents) {
	if !r.sameRun {
		return
	}
	ids := slices.Concat(sortedIDs(c.layouts), sortedIDs(c.attrs), sortedIDs(c.xattrs), sortedIDs(r.moved))
	slices.Sort(ids)
	for _, id := range slices.Compact(ids) {
		if _, info, err := r.j.tree.stat(id); err != nil || r.placed[id] || !r.changedSince(info) {
			continue
		}
		c.forget(id)
		delete(r.moved, id)
	}
}

// forget leaves a file as it is.
func (c *contents) forget(id proto.FileID) {
	delete(c.layouts, id)
	delete(c.attrs, id)
	delete(c.xattrs, id)
	delete(c.mtime, id)
	delete(c.atime, id)
}

// beginGap notes until when the journal was open before.
func (r *recovery) beginGap() {
	g := &r.j.local.gap
	g.since, g.clean, g.started = r.lastTime, r.report.Clean, r.j.opts.Now()
	g.open.Store(g.since != 0)
}

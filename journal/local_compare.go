package journal

import (
	"context"
	"errors"
	"strings"

	"cagefs.dev/cage/journal/record"
	"cagefs.dev/cage/journal/vfs"
	"cagefs.dev/cage/remote/proto"
	"cagefs.dev/cage/remote/status"
)

// compare brings what is on disk into the journal, name by name and file by file.
// Names that lead nowhere any more wait until all others were looked at: what was
// under them may have moved there. It belongs to one goroutine.
type compare struct {
	j       *Journal
	gap     bool    // what is found happened while no server ran
	gentle  *gentle // nil: as fast as it goes
	gone    []placed
	listed  []listedDir
	emitted bool                   // records that are not committed yet
	named   map[proto.FileID]bool  // directories in which a name was recorded
	events  func(place) LocalEvent // what was seen at a place, if there are events
	early   map[place]LocalEvent   // of names that were given and are gone already, though nobody has told
	done    map[place]bool         // places whose events were looked at
	written map[proto.FileID]bool  // files of which a record says already that their content changed
}

// placed is an event with its place.
type placed struct {
	at place
	e  LocalEvent
}

// listedDir is a directory that was compared name by name.
type listedDir struct {
	id    proto.FileID
	ctime int64 // before it was listed
}

func (j *Journal) newCompare() *compare {
	return &compare{j: j, named: map[proto.FileID]bool{}, early: map[place]LocalEvent{}, done: map[place]bool{}, written: map[proto.FileID]bool{},
		events: func(place) LocalEvent { return LocalEvent{} }}
}

// planned runs f under planMu, again when it depends on a change that is still to be applied.
func (c *compare) planned(ctx context.Context, f func() error) error {
	for {
		c.j.planMu.Lock()
		err := c.j.usable()
		if err == nil {
			err = f()
		}
		c.j.planMu.Unlock()
		var w waitFor
		if !errors.As(err, &w) {
			return err
		}
		if err := c.j.waitApplied(ctx, w.lsn); err != nil {
			return err
		}
	}
}

// event compares what one tells of, after the directories that it is in.
func (c *compare) event(ctx context.Context, p placed) error {
	if p.at.name == "" {
		return c.file(ctx, p.at.dir, p.e)
	}
	if c.done[p.at] {
		return nil
	}
	c.done[p.at] = true
	n, ok := c.j.tree.get(p.at.dir)
	if ok && len(n.names) > 0 && c.j.unrecorded(n.id) {
		if e := c.events(n.names[0]); e.What&LocalIn != 0 { // it is as new, and the log names it first
			if err := c.event(ctx, placed{n.names[0], e}); err != nil {
				return err
			}
		}
	}
	return c.name(ctx, p.at, p.e)
}

// name compares what is under a name.
func (c *compare) name(ctx context.Context, at place, e LocalEvent) error {
	from := place{}
	if e.From != nil {
		dir, err := c.j.dirOf(*e.From)
		if err != nil {
			return err
		}
		from = place{dir, e.From.Name}
	}
	return c.planned(ctx, func() error { return c.nameLocked(at, from, e, false) })
}

// finish records the names that lead nowhere, and what there is to say of
// directories beside their names.
func (c *compare) finish(ctx context.Context) error {
	for _, g := range c.gone {
		err := c.planned(ctx, func() error { return c.nameLocked(g.at, place{}, g.e, true) })
		if err != nil {
			return err
		}
	}
	for _, d := range c.listed {
		if err := c.planned(ctx, func() error { return c.listedLocked(d) }); err != nil {
			return err
		}
	}
	c.gone, c.listed = nil, nil
	if !c.emitted {
		return nil
	}
	c.emitted = false
	if err := c.j.log.Commit(); err != nil { // the past knows committed records only
		c.j.fail(err)
		return c.j.failedErr()
	}
	return nil
}

func (c *compare) nameLocked(at, from place, e LocalEvent, last bool) error {
	j := c.j
	if hidden(at.dir, at.name) || !j.tree.within(at.dir, proto.RootID) {
		j.tree.settle(at, j.tree.recorded(at))
		return nil
	}
	if err := j.busy.name(at); err != nil {
		return err
	}
	was := j.tree.recorded(at)
	h, err := j.tree.dir(at.dir)
	if gone(err) || status.Of(err) == status.Stale { // with its directory, which is told by itself
		j.tree.settle(at, was)
		return nil
	}
	if err != nil {
		return err
	}
	defer h.release()
	info, err := h.dir.Stat(at.name)
	if gone(err) {
		return c.absentLocked(at, was, e, last)
	}
	if err != nil {
		return err
	}
	id := j.tree.holder(info.Ident)
	before, _ := j.tree.get(id)
	switch {
	case id != 0 && id == was:
		j.tree.settle(at, id)
		if e.What&LocalIn == 0 || !j.unrecorded(id) {
			break
		}
		// somebody looked at it before this came
		if from.dir != 0 && from != at && j.tree.recorded(from) == 0 {
			err = c.renamedLocked(from, at, 0, id, info, e)
		} else {
			err = c.madeLocked(at, id, info, c.target(h.dir, at.name, info), e)
		}
		if err != nil {
			return err
		}
	case id == 0 && was == 0 && e.What&LocalIn == 0 && from.dir == 0:
		if e.What&(LocalContent|LocalAttr) == 0 { // it was there before and nobody has asked for it yet
			j.tree.settle(at, 0)
			return nil
		}
		if id, err = j.identify(at, info); err != nil {
			return err
		}
		j.tree.settle(at, id)
		e.What |= LocalSure // clients change only what has a number
	default:
		if id, err = c.arrivedLocked(at, from, was, id, info, h.dir, e); err != nil {
			return err
		}
	}
	return c.fileLocked(id, e, before)
}

// unrecorded reports whether no record says where a file has its names from.
func (j *Journal) unrecorded(id proto.FileID) bool {
	return j.hist.made(id) == 0 && len(j.hist.names(id, 0)) == 0
}

// absentLocked handles a name that leads to nothing.
func (c *compare) absentLocked(at place, was proto.FileID, e LocalEvent, last bool) error {
	j := c.j
	if !last {
		if was != 0 && e.What&LocalContent != 0 && !(e.What&LocalIn != 0 && j.unrecorded(was)) { // it was written, and has moved since
			if err := c.emitLocked(&record.Record{Kind: record.Local, ID: was, HasNew: true}, e); err != nil {
				return err
			}
			c.written[was] = true
		}
		if e.What&LocalIn != 0 && e.What&LocalOut == 0 { // the event that took it is on its way
			if len(c.early) < maxEarly {
				c.early[at] = e
			}
			return nil
		}
		if e.What == 0 || e.What&(LocalIn|LocalOut) != 0 { // otherwise another event tells
			c.gone = append(c.gone, placed{at, e})
		}
		return nil
	}
	known := j.local.left.take(at)
	if was == 0 && (known || e.What&LocalGone == 0 || e.What&LocalIn != 0) { // or it came and went
		j.tree.settle(at, 0)
		return nil
	}
	r := &record.Record{Kind: record.Remove, ID: was, Dir: at.dir, Name: at.name}
	if n, ok := j.tree.get(was); ok {
		r.Inode = record.Inode(n.ident)
		if n.typ == proto.ModeDir {
			r.Flag |= record.FlagDir
		}
		if first := c.events(at); first.What&LocalIn != 0 && j.unrecorded(was) { // somebody looked at it between its making and its end
			info := vfs.Info{Ident: n.ident, Mode: n.typ}
			if err := c.madeLocked(at, was, info, "", first); err != nil {
				return err
			}
		}
	} else { // nobody had asked for it
		j.adoptMu.Lock()
		id, err := j.newID()
		j.adoptMu.Unlock()
		if err != nil {
			return err
		}
		r.ID = id
	}
	return c.emitNameLocked(r, e)
}

// arrivedLocked records how a file came under a name where records left
// another, or nothing. id is 0 for a file without a number.
func (c *compare) arrivedLocked(at, from place, was, id proto.FileID, info vfs.Info, d vfs.Dir, e LocalEvent) (proto.FileID, error) {
	j := c.j
	switch {
	case id != 0:
		left, err := c.leftLocked(id, info.Ident)
		if err != nil {
			return 0, err
		}
		from = left
	case from.dir != 0 && j.tree.recorded(from) == 0 && from != at: // it moved before anybody had asked for it
		if err := j.busy.name(from); err != nil {
			return 0, err
		}
		var err error
		if id, err = j.identify(from, info); err != nil {
			return 0, err
		}
	default:
		from = place{}
	}
	if from.dir != 0 {
		return id, c.renamedLocked(from, at, was, id, info, e)
	}
	if was != 0 {
		r := &record.Record{Kind: record.Remove, ID: was, Dir: at.dir, Name: at.name}
		if n, ok := j.tree.get(was); ok {
			r.Inode = record.Inode(n.ident)
			if n.typ == proto.ModeDir {
				r.Flag |= record.FlagDir
			}
		}
		if err := c.emitNameLocked(r, e); err != nil {
			return 0, err
		}
	}
	if id == 0 || j.unrecorded(id) {
		if id == 0 {
			j.adoptMu.Lock()
			n, err := j.newID()
			j.adoptMu.Unlock()
			if err != nil {
				return 0, err
			}
			id = n
		}
		return id, c.madeLocked(at, id, info, c.target(d, at.name, info), e)
	}
	return id, c.emitNameLocked(&record.Record{Kind: record.Link, ID: id, Dir: at.dir, Name: at.name, Inode: record.Inode(info.Ident)}, e)
}

// leftLocked finds a name that records left a file and that does not lead to it
// any more; zero if there is none.
func (c *compare) leftLocked(id proto.FileID, ident vfs.Ident) (place, error) {
	j := c.j
	for _, p := range j.tree.recordedNames(id) {
		if err := j.busy.name(p); err != nil {
			return place{}, err
		}
		h, err := j.tree.dir(p.dir)
		if gone(err) || status.Of(err) == status.Stale {
			return p, nil
		}
		if err != nil {
			return place{}, err
		}
		info, err := h.dir.Stat(p.name)
		h.release()
		if gone(err) || err == nil && info.Ident != ident {
			return p, nil
		}
		if err != nil {
			return place{}, err
		}
	}
	return place{}, nil
}

func (c *compare) renamedLocked(from, at place, was, id proto.FileID, info vfs.Info, e LocalEvent) error {
	j := c.j
	if err := j.busy.name(from); err != nil {
		return err
	}
	if first := c.events(from); first.What&LocalIn != 0 && j.unrecorded(id) { // it was made there in the same moment
		if err := c.madeLocked(from, id, info, "", first); err != nil {
			return err
		}
	}
	r := &record.Record{Kind: record.Rename, ID: id, Dir: from.dir, Name: from.name, NewDir: at.dir, NewName: at.name,
		Victim: was, Inode: record.Inode(info.Ident)}
	if info.Mode&proto.ModeType == proto.ModeDir {
		r.Flag |= record.FlagDir
	}
	if n, ok := j.tree.get(was); ok && was != 0 { // the two may have changed places
		if h, err := j.tree.dir(from.dir); err == nil {
			other, err := h.dir.Stat(from.name)
			h.release()
			if err == nil && other.Ident == n.ident {
				r.Flag |= record.FlagExchange
			}
		}
	}
	return c.emitNameLocked(r, e)
}

// target is where a symlink points to, "" for other files and for one that is gone again.
func (c *compare) target(d vfs.Dir, name string, info vfs.Info) string {
	if info.Mode&proto.ModeType != proto.ModeSymlink {
		return ""
	}
	t, _ := d.Readlink(name)
	return t
}

// madeLocked records that a file was made under a name.
func (c *compare) madeLocked(at place, id proto.FileID, info vfs.Info, target string, e LocalEvent) error {
	r := &record.Record{Kind: record.Make, ID: id, Dir: at.dir, Name: at.name, Inode: record.Inode(info.Ident),
		New: attrsOf(info), Rdev: info.Rdev, Target: target}
	if info.Mode&proto.ModeType == proto.ModeRegular {
		r.NewSize = uint64(info.Size)
	}
	if err := c.emitNameLocked(r, e); err != nil {
		return err
	}
	c.j.tree.seen(id, info.Ctime, r.LSN)
	return nil
}

// emitNameLocked records what happened to a name.
func (c *compare) emitNameLocked(r *record.Record, e LocalEvent) error {
	j := c.j
	r.OldMtime = j.dirTime(r.Dir)
	if r.NewDir != 0 {
		r.OldNewMtime = j.dirTime(r.NewDir)
	}
	if err := c.emitLocked(r, e); err != nil {
		return err
	}
	for _, id := range []proto.FileID{r.ID, r.Victim, r.Dir, r.NewDir} {
		if id == 0 {
			continue
		}
		if n, info, err := j.tree.stat(id); err == nil {
			j.tree.seen(id, info.Ctime, r.LSN)
			j.duringGap(&n)
		}
	}
	if r.Kind == record.Remove || r.Kind == record.Rename {
		j.local.left.add(place{r.Dir, r.Name})
	}
	c.named[r.Dir] = true
	c.named[r.NewDir] = true
	return nil
}

// dirTime is a directory's time of modification before the change that is being
// noticed, about: when its entries were changed last, or somebody looked at it.
func (j *Journal) dirTime(dir proto.FileID) proto.Time {
	n, _ := j.tree.get(dir)
	if list := j.hist.entries(dir, 0); len(list) > 0 && list[len(list)-1] == n.change {
		if r, err := j.hist.read(n.change); err == nil && r != nil && !local(r) {
			return r.Time
		}
	}
	return proto.Time(n.ctime)
}

// doneBy says which of the things that were seen at a place makes a record.
var doneBy = map[record.Kind]LocalWhat{
	record.Make: LocalIn, record.Link: LocalIn, record.Rename: LocalIn, record.Remove: LocalOut, record.Local: LocalContent | LocalAttr,
}

func (c *compare) emitLocked(r *record.Record, e LocalEvent) error {
	if err := c.flagGap(r); err != nil {
		return err
	}
	c.emitted = true
	return c.j.emitLocked(r, e.by(doneBy[r.Kind]))
}

// flagGap marks what is found of the time when no server ran.
func (c *compare) flagGap(r *record.Record) error {
	if c.gap {
		r.Flag |= record.FlagGap
	}
	if r.Flag&record.FlagGap != 0 {
		return c.j.tellGap()
	}
	return nil
}

// dir compares a directory name by name. A name that has no number counts as
// new when the file was born after somebody last looked at the directory,
// at ctime.
func (c *compare) dir(ctx context.Context, id proto.FileID, ctime int64) error {
	j := c.j
	if c.gap && ctime == 0 {
		ctime = int64(j.local.gap.since)
	}
	var fresh, changed []string
	err := j.viewed(func() error {
		h, err := j.tree.dir(id)
		if err != nil {
			return err
		}
		defer h.release()
		info, err := h.dir.StatSelf()
		if err != nil {
			return err
		}
		kids := j.tree.children(id)
		err = h.dir.ReadDir(0, func(name string, _ uint64, _ uint32, _ uint64) bool {
			if hidden(id, name) {
				return true
			}
			kid, known := kids[name]
			delete(kids, name)
			ki, err := h.dir.Stat(name)
			switch {
			case err != nil:
			case known && j.tree.holder(ki.Ident) != kid:
				changed = append(changed, name)
			case !known && (j.tree.holder(ki.Ident) != 0 || ctime != 0 && ki.Btime > ctime):
				fresh = append(fresh, name)
			}
			return ctx.Err() == nil
		})
		for name := range kids {
			changed = append(changed, name)
		}
		c.listed = append(c.listed, listedDir{id, info.Ctime})
		return err
	})
	if err == nil {
		err = ctx.Err()
	}
	if gone(err) || status.Of(err) == status.Stale || status.Of(err) == status.NotDir {
		return nil
	}
	for _, name := range fresh {
		if err == nil {
			err = c.name(ctx, place{id, name}, LocalEvent{What: LocalIn})
		}
	}
	for _, name := range changed {
		if err == nil {
			err = c.name(ctx, place{id, name}, LocalEvent{})
		}
	}
	return err
}

// listedLocked notes that a directory is as the journal knows it. Where no name
// explains its ctime, its attributes changed, or names that nobody had asked for.
func (c *compare) listedLocked(d listedDir) error {
	j := c.j
	n, ok := j.tree.get(d.id)
	if !ok || n.ctime == d.ctime {
		return nil
	}
	if n.ctime != 0 && n.ctime < d.ctime && !c.named[d.id] {
		_, info, err := j.tree.stat(d.id)
		if err != nil {
			return nil
		}
		if err := c.emitLocked(j.localRecord(&n, info, LocalAttr), LocalEvent{}); err != nil {
			return err
		}
	}
	j.tree.seen(d.id, d.ctime, n.change)
	return nil
}

// pathNames are the names of a path.
func pathNames(path string) func(func(string) bool) {
	return func(yield func(string) bool) {
		for name := range strings.SplitSeq(path, "/") {
			if name != "" && !yield(name) {
				return
			}
		}
	}
}

package journal

import (
	"context"
	"errors"
	"slices"
	"sync"
	"syscall"
	"time"

	"cagefs.dev/cage/journal/record"
	"cagefs.dev/cage/journal/vfs"
	"cagefs.dev/cage/remote/proto"
	"cagefs.dev/cage/remote/status"
)

// Processes of the server change the export as they like. What they did is
// recorded when it is noticed, as changes of the client "local", and is done
// then: such a record moves the table, enters the index, and is announced, but
// touches no disk. Notice is told what somebody saw; a file whose ctime no record
// explains is noticed by whoever looks at it; names that a reader found changed,
// and directories that it found changed, are compared by localLoop.
//
// A record of a name is made by a planner: under planMu, and not while a record of
// the same name is still to be applied, so that in the order of the log each name is
// what the disk had. docs/journal.md says what the past knows of such changes.

// LocalClient is the name of the client that processes of the server are.
const LocalClient = "local"

// Process is who made a change, as far as it could be told; zero is nobody known.
type Process struct {
	PID, PGID, UID, GID uint32
	Comm                string
}

// LocalWhat says what was seen of a name.
type LocalWhat uint8

// What was seen.
const (
	LocalIn      LocalWhat = 1 << iota // the name was given: made, linked, moved here
	LocalOut                           // the name was taken: removed, moved away
	LocalGone                          // with LocalOut: and the file has no other name in the export
	LocalContent                       // content or size of what is under the name changed
	LocalAttr                          // its attributes or extended attributes changed
	LocalSure                          // another process did it; otherwise it may have been this one
	LocalClosed                        // it was closed by somebody who could write it
)

// LocalPlace is a name in a directory that is known by its inode.
type LocalPlace struct {
	Dir  vfs.Ident
	Path string // of the directory below the export, when it was seen: for one that has no number yet
	Name string // "": the directory itself
}

// LocalEvent is what somebody saw happen in the export. It need not be true any
// more: the disk is looked at.
type LocalEvent struct {
	LocalPlace
	From *LocalPlace // where it was, of a name that was given by a rename; nil: not known
	What LocalWhat
	By   Process

	parts []LocalEvent // of several that were merged; nil: it is one
}

// by returns who did the last of these things.
func (e *LocalEvent) by(what LocalWhat) Process {
	for _, p := range slices.Backward(e.parts) {
		if p.What&what != 0 {
			return p.By
		}
	}
	return e.By
}

// merge adds a later event at the same place.
func (e *LocalEvent) merge(o LocalEvent) {
	if e.parts == nil {
		e.parts = []LocalEvent{*e}
	}
	e.parts = append(e.parts, o)
	e.What |= o.What
	e.By = o.By
	if o.From != nil {
		e.From = o.From
	}
}

// Notice compares the places of events with what the journal knows and records
// the differences as changes of processes of the server. All that happened until
// now should be in one call: what has left a name is looked for under the others.
// It waits for changes of clients to the same names. Errors: those of the log,
// status.Draining; then what was not noticed is when somebody looks.
func (j *Journal) Notice(ctx context.Context, events []LocalEvent) error {
	return j.notice(ctx, events)
}

// Rescan compares everything that the journal knows with the disk: events since a
// time may have been missed, so that a file changed since then counts as changed by a
// process of the server, and is only known to be so with one that no record explains.
// Without Options.Sure it is only the latter. It works beside changes and reads; it returns when it is done.
func (j *Journal) Rescan(ctx context.Context, since proto.Time) error {
	return j.rescan(ctx, since)
}

// Poll is Rescan where nobody tells of changes: it takes a tenth of the time, so
// that it can be called again and again.
func (j *Journal) Poll(ctx context.Context) error { return j.poll(ctx) }

// localState is what localLoop has to do, and what it did.
type localState struct {
	done chan struct{} // closed when localLoop has ended

	mu       sync.Mutex                // a leaf
	suspects map[proto.FileID]int64    // directories to be compared, with the ctime that was known of them; guarded by mu
	unsynced map[proto.FileID]bool     // regular files that they changed, until syncLocal looks; guarded by mu
	looked   map[proto.FileID]sighting // files that somebody found changed; guarded by mu
	sizes    map[proto.FileID]sizeAt   // of files that they changed lately; guarded by mu
	missed   bool                      // they were too many: everything is to be compared; guarded by mu

	newest     proto.LSN            // newest record of what they did; guarded by queueMu
	replanning bool                 // a change whose turn it is is planned anew; guarded by planMu
	left       leftNames            // guarded by planMu
	early      map[place]LocalEvent // names given according to the last events, and taken by what the next will tell; guarded by planMu
	gap        gapState
}

// leftNames are names that records of processes of the server took away lately: an
// event that comes after somebody else noticed tells nothing new. Its zero value is empty.
type leftNames map[place]struct{}

// Bounds of what is remembered of events.
const (
	maxLeftNames = 4096
	maxEarly     = 4096
)

func (l *leftNames) add(at place) {
	if *l == nil || len(*l) >= maxLeftNames {
		*l = leftNames{}
	}
	(*l)[at] = struct{}{}
}

// take reports, once, whether a name is among them.
func (l leftNames) take(at place) bool {
	_, ok := l[at]
	delete(l, at)
	return ok
}

// maxLocalDirs bounds the directories that wait to be compared.
const maxLocalDirs = 4096

func newLocalState() localState {
	return localState{done: make(chan struct{}), suspects: map[proto.FileID]int64{}, unsynced: map[proto.FileID]bool{}, looked: map[proto.FileID]sighting{}, sizes: map[proto.FileID]sizeAt{}}
}

// suspect asks for a directory to be compared. It does not block.
func (j *Journal) suspect(n *node) {
	l := &j.local
	l.mu.Lock()
	defer l.mu.Unlock()
	if _, ok := l.suspects[n.id]; ok {
		return
	}
	if len(l.suspects) < maxLocalDirs {
		l.suspects[n.id] = n.ctime
	} else {
		l.missed = true
	}
}

// localTick is how often what readers found changed is compared, when it was found
// before the last time: somebody may be about to tell who did it. Comparing takes
// at most a fifth of the time.
const localTick = 250 * time.Millisecond

// localLoop compares what readers found changed, until the journal is closed.
func (j *Journal) localLoop(ctx context.Context) {
	defer close(j.local.done)
	tick := time.NewTicker(localTick)
	defer tick.Stop()
	if err := j.sinceLastRun(ctx); err != nil {
		j.localFailed(err)
	}
	var older found
	for {
		select {
		case <-j.stop:
			return
		case <-tick.C:
		}
		began := time.Now()
		newer := j.takeFound()
		if err := j.newCompare().found(ctx, older); err != nil {
			j.localFailed(err)
			j.putBack(older)
		}
		older = newer
		if err := j.syncLocal(ctx); err != nil {
			j.localFailed(err)
		}
		tick.Reset(max(localTick, 4*time.Since(began)))
	}
}

func (j *Journal) localFailed(err error) {
	switch {
	case status.Of(err) == status.Draining, errors.Is(err, context.Canceled), j.failedErr() != nil:
	default:
		j.opts.Log.Warn().Err(err).Msg("changes by processes of the server could not be recorded")
	}
}

// found is what readers found changed.
type found struct {
	names  []place
	dirs   map[proto.FileID]int64
	missed bool
}

func (j *Journal) takeFound() found {
	l := &j.local
	f := found{names: j.tree.corrected()}
	l.mu.Lock()
	defer l.mu.Unlock()
	f.dirs, f.missed = l.suspects, l.missed
	l.suspects, l.missed = map[proto.FileID]int64{}, false
	return f
}

// putBack takes in again what could not be compared. Names are still corrected.
func (j *Journal) putBack(f found) {
	for dir, ctime := range f.dirs {
		j.suspect(&node{id: dir, ctime: ctime})
	}
	j.local.mu.Lock()
	defer j.local.mu.Unlock()
	j.local.missed = j.local.missed || f.missed
}

// leaveSuspects is called at the end: the next start finds the directories that wait
// to be compared as they were known, whatever clients have done in them since.
func (j *Journal) leaveSuspects() {
	for dir, ctime := range j.takeFound().dirs {
		j.tree.seen(dir, ctime, 0)
	}
}

// found compares what readers found changed.
func (c *compare) found(ctx context.Context, f found) error {
	if f.missed {
		return c.all(ctx, 0, 0)
	}
	for _, at := range f.names {
		if err := c.name(ctx, at, LocalEvent{}); err != nil {
			return err
		}
	}
	for dir, ctime := range f.dirs {
		if err := c.dir(ctx, dir, ctime); err != nil {
			return err
		}
	}
	return c.finish(ctx)
}

// explainLocked records what readers corrected under a name, or under all, before a
// plan builds upon it. A change whose turn it is cannot wait for others: it goes
// on where the explanation would. The caller holds planMu.
func (j *Journal) explainLocked(places ...place) error {
	c := j.newCompare()
	for _, at := range places {
		err := c.nameLocked(at, place{}, LocalEvent{}, false)
		if err == nil && len(c.gone) > 0 {
			c.gone = nil
			err = c.nameLocked(at, place{}, LocalEvent{}, true)
		}
		if internal(err) && j.local.replanning {
			continue
		}
		if err != nil {
			return err
		}
	}
	return nil
}

func (j *Journal) notice(ctx context.Context, events []LocalEvent) error {
	if j.opts.ReadOnly {
		return status.New(status.ReadOnly, "", "journal")
	}
	merged := map[place]int{} // position in list
	list := make([]placed, 0, len(events))
	for _, e := range events {
		dir, err := j.dirOf(e.LocalPlace)
		if err != nil {
			return err
		}
		if dir == 0 { // gone, or not in the export any more
			continue
		}
		at := place{dir, e.Name}
		if i, ok := merged[at]; ok {
			list[i].e.merge(e)
			continue
		}
		merged[at] = len(list)
		list = append(list, placed{at, e})
	}
	c := j.newCompare()
	j.planMu.Lock()
	early := j.local.early
	j.planMu.Unlock()
	c.events = func(at place) (e LocalEvent) {
		if i, ok := merged[at]; ok && list[i].e.What&LocalIn != 0 {
			return list[i].e
		}
		return early[at]
	}
	for _, p := range list {
		if err := c.event(ctx, p); err != nil {
			return err
		}
	}
	err := c.finish(ctx)
	j.planMu.Lock()
	j.local.early = c.early
	j.planMu.Unlock()
	return err
}

// dirOf returns the number of a directory, 0 if it is not to be found. One that
// nobody has asked for yet gets one, with those above it.
func (j *Journal) dirOf(p LocalPlace) (proto.FileID, error) {
	if id := j.tree.holder(p.Dir); id != 0 {
		return id, nil
	}
	id := proto.RootID
	err := j.viewed(func() error {
		for name := range pathNames(p.Path) {
			a, err := j.lookupViewed(id, name)
			if err != nil {
				return err
			}
			id = a.ID
		}
		return nil
	})
	switch status.Of(err) {
	case status.OK:
		if n, ok := j.tree.get(id); !ok || n.ident != p.Dir {
			return 0, nil
		}
		return id, nil
	case status.NotFound, status.NotDir, status.Stale, status.CrossDevice:
		return 0, nil
	}
	return 0, err
}

// emitLocked records what a process of the server has done, and lets the table
// and those who listen know. The caller holds planMu.
func (j *Journal) emitLocked(r *record.Record, by Process) error {
	stamp(r, by)
	if err := j.log.Append(r); err != nil {
		return err
	}
	j.toBeSynced(r)
	j.viewMu.Lock()
	j.tree.apply(r)
	j.hist.add(r)
	j.viewMu.Unlock()
	j.countLocal(r.LSN)
	j.announce([]*record.Record{r})
	return nil
}

// countLocal counts a record of processes of the server as the newest of them.
func (j *Journal) countLocal(lsn proto.LSN) {
	j.queueMu.Lock()
	defer j.queueMu.Unlock()
	j.local.newest = max(j.local.newest, lsn)
	j.localAppliedLocked()
}

// localAppliedLocked counts the records of processes of the server as applied
// when no change before them is on its way. The caller holds queueMu.
func (j *Journal) localAppliedLocked() {
	if j.applied >= j.appended && j.local.newest > j.applied {
		j.applied = j.local.newest
	}
}

// noticeLocal notes that an inode's ctime is not the one its last record left.
// The first look at a file after its adoption explains itself. A directory is
// compared name by name, later; a file's content may be another. The caller holds viewMu.
func (j *Journal) noticeLocal(n *node, info vfs.Info) proto.LSN {
	switch {
	case n.ctime == 0 && !j.afterLastRun(info):
		j.tree.seen(n.id, info.Ctime, n.change)
		return n.change
	case j.opts.ReadOnly:
		return n.change
	case n.typ == proto.ModeDir:
		if !j.told() || j.local.gap.open.Load() {
			j.suspect(n)
		}
		return n.change
	}
	r := j.localRecord(n, info, LocalContent)
	if err := j.emitSeen(r, Process{}, info.Ctime); err != nil {
		return n.change // the log is full or failed: changes are refused, reading goes on
	}
	j.local.look(n.id, r.LSN)
	return r.LSN
}

// maxLooked bounds the files of which is remembered that somebody found them changed.
const maxLooked = 4096

// sighting is of a file that somebody found changed, and nobody told: perhaps by a store
// through a mapping. Those that follow move no ctime until the pages are written
// back, so that the file may be another whenever one who could write closes it.
type sighting struct {
	lsn    proto.LSN // newest record of what processes of the server did to it
	closes int       // how many closes are still believed to be of whoever stored
}

// maxCloses bounds what that costs: the first close may be of an earlier writer,
// told late, and several may have the file open.
const maxCloses = 3

// sizeAt is the size of a file as of a record of what processes of the server did to it.
type sizeAt struct {
	lsn  proto.LSN
	size uint64
}

// sized notes what a record says of a file's size.
func (l *localState) sized(r *record.Record) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if len(l.sizes) >= maxLooked {
		clear(l.sizes)
	}
	l.sizes[r.ID] = sizeAt{r.LSN, r.NewSize}
}

// resized reports whether a file has another size than its newest record says: a write stamps a file
// before it makes it longer, and who looked in between has seen the one and not the other.
func (l *localState) resized(id proto.FileID, change proto.LSN, size int64) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	was, ok := l.sizes[id]
	return ok && was.lsn == change && was.size != uint64(size)
}

// look notes that a record says what somebody found.
func (l *localState) look(id proto.FileID, lsn proto.LSN) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if len(l.looked) >= maxLooked {
		clear(l.looked)
	}
	l.looked[id] = sighting{lsn, maxCloses}
}

// lookOn notes that a record says more of what such processes did.
func (l *localState) lookOn(id proto.FileID, lsn proto.LSN) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if k, ok := l.looked[id]; ok {
		l.looked[id] = sighting{lsn, k.closes}
	}
}

// takeLook reports whether a close may be of whoever stored: no client has changed the file since.
func (l *localState) takeLook(n *node) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	k, ok := l.looked[n.id]
	if k.closes--; ok && k.closes > 0 && k.lsn == n.change {
		l.looked[n.id] = k
	} else {
		delete(l.looked, n.id)
	}
	return ok && k.lsn == n.change
}

func (j *Journal) told() bool { return j.opts.Told != nil && j.opts.Told() }

// noticeBefore notices what processes of the server did to the files that a change
// is about to alter: afterwards their ctimes do not tell any more. Names tell by
// themselves. The caller holds viewMu.
func (j *Journal) noticeBefore(recs []*record.Record) {
	if j.opts.Sure {
		return
	}
	for _, r := range recs {
		for _, id := range []proto.FileID{r.ID, r.Victim, r.Dir, r.NewDir} {
			if id == 0 {
				continue
			}
			if n, info, err := j.tree.stat(id); err == nil && n.ctime != info.Ctime {
				j.noticeLocal(&n, info)
			}
		}
	}
}

// timeStep is coarser than what file systems keep of times.
const timeStep = 1000

// noticeAfter notices a write of a process of the server between the last step of a
// change and the look at what it left: the time of modification is not the change's.
// The caller holds viewMu.
func (j *Journal) noticeAfter(r *record.Record, n *node, info vfs.Info) {
	if j.opts.Sure || !changesData(r) || r.ID != n.id {
		return
	}
	if d := info.Mtime - int64(mtimeAfter(r)); d <= -timeStep || d >= timeStep {
		j.noticeLocal(n, info)
	}
}

// noticeMoved notices what a process of the server appended just before a client
// did: that the client's bytes did not go where they should shows it. The caller holds viewMu.
func (j *Journal) noticeMoved(id proto.FileID) {
	if j.opts.Sure {
		return
	}
	if n, info, err := j.tree.stat(id); err == nil {
		j.noticeLocal(&n, info)
	}
}

// emitSeen records what a process of the server did to a file's content or
// attributes, seen at a ctime. The caller holds viewMu, and with it what the file
// is like and what is known of it belong together.
func (j *Journal) emitSeen(r *record.Record, by Process, ctime int64) error {
	stamp(r, by)
	if err := j.log.Append(r); err != nil {
		return err
	}
	j.hist.add(r)
	j.toBeSynced(r)
	j.tree.seen(r.ID, ctime, r.LSN)
	if r.Kind == record.Local {
		j.local.sized(r)
	}
	j.announce([]*record.Record{r})
	return nil
}

// stamp writes into a record that a process of the server did it.
func stamp(r *record.Record, by Process) {
	r.Client, r.PID, r.PGID, r.UID, r.GID, r.Comm = record.LocalClient, by.PID, by.PGID, by.UID, by.GID, by.Comm
	if r.Kind != record.Local {
		r.Flag |= record.FlagLocal
	}
}

// localRecord describes a file as a process of the server left it.
func (j *Journal) localRecord(n *node, info vfs.Info, what LocalWhat) *record.Record {
	r := &record.Record{Kind: record.Local, ID: n.id, OldMtime: proto.Time(n.ctime), New: attrsOf(info), Upto: j.appliedLSN()}
	if n.typ == proto.ModeRegular {
		r.NewSize = uint64(info.Size)
		r.HasNew = what&LocalContent != 0
	}
	if j.inGap(info) {
		r.Flag |= record.FlagGap
	}
	return r
}

// gone reports whether an error says that a name leads to nothing in the export.
func gone(err error) bool { return errors.Is(err, syscall.EXDEV) || notThere(err) }

package journal

import (
	"context"
	"errors"
	"slices"
	"syscall"

	"cagefs.dev/cage/journal/record"
	"cagefs.dev/cage/journal/vfs"
	"cagefs.dev/cage/remote/proto"
	"cagefs.dev/cage/remote/status"
)

// Recovery never replays names. It computes from checkpoint and log where each
// inode belongs and what it contains, finds it by identity wherever the cut has left it, and
// brings it there. Doing that again after a cut in the middle of it does no harm.
// docs/journal.md numbers the steps; the comments here use its numbers.

// recovery is the state of one run.
type recovery struct {
	j      *Journal
	report *Report
	ck     *checkpointData
	recs   []*record.Record // that count, after the checkpoint, without images
	dead   map[proto.LSN]bool
	made   map[proto.FileID]*record.Record  // Make records
	places map[vfs.Ident]map[place]bool     // where an inode may be found
	want   map[vfs.Ident]map[place]bool     // where it belongs
	owner  map[vfs.Ident]proto.FileID       // 0: bytes that a truncation cut off
	moved  map[proto.FileID]bool            // files whose names changed
	dirs   map[proto.FileID]map[string]bool // names to look at in each directory
	opened map[proto.FileID]vfs.Dir         // directories that were found, by number; nil: not on disk
	parked map[vfs.Ident][]string           // names in the stage of inodes taken from wrong places
	number int                              // of the next parked name
}

// The journal's own directories, as directories of places. They have no file numbers.
const (
	graveDir = proto.MaxFileID - 1
	stageDir = proto.MaxFileID - 2
)

// recover brings table, tree and sessions to the end of the log.
func (j *Journal) recover(ctx context.Context, ck *checkpointData) (*Report, error) {
	r := &recovery{j: j, ck: ck, report: &Report{}, dead: map[proto.LSN]bool{}, made: map[proto.FileID]*record.Record{},
		places: map[vfs.Ident]map[place]bool{}, want: map[vfs.Ident]map[place]bool{}, owner: map[vfs.Ident]proto.FileID{},
		moved: map[proto.FileID]bool{}, dirs: map[proto.FileID]map[string]bool{}, opened: map[proto.FileID]vfs.Dir{},
		parked: map[vfs.Ident][]string{}}
	defer r.closeDirs()
	r.loadState()
	if err := r.readLog(); err != nil {
		return nil, err
	}
	r.report.Last = j.log.Last()
	r.report.Clean = ck.clean && r.report.Replayed == 0
	r.report.Boot = ck.boot + 1
	j.boot = r.report.Boot
	if j.opts.ReadOnly {
		for _, rec := range r.recs {
			j.tree.apply(rec)
		}
		j.applied = j.log.Durable()
		return r.report, nil
	}
	if err := r.restoreTree(ctx); err != nil {
		return nil, status.Wrap(err, "recover", "")
	}
	return r.report, r.finish()
}

// loadState takes over what the checkpoint holds (step 1).
func (r *recovery) loadState() {
	j, t := r.j, r.j.tree
	j.nextID, j.idLimit = r.ck.nextID, r.ck.nextID
	j.sessions = r.ck.sessions
	if j.sessions == nil {
		j.sessions = map[proto.SessionID]*session{}
	}
	for n, name := range r.ck.clients {
		j.setClient(n, name)
	}
	root := t.nodes[proto.RootID]
	for _, n := range r.ck.nodes {
		if n.id == proto.RootID {
			root.change, root.ctime = n.change, n.ctime
			continue
		}
		t.putLocked(n)
	}
	for _, n := range r.ck.nodes {
		for _, p := range n.names {
			t.nameLocked(n, p)
		}
	}
}

// readLog scans what history is kept: all of it for the index, what is after the
// checkpoint for the replay (steps 2 and 3). Cancelled records and transactions
// without an end never happened.
func (r *recovery) readLog() error {
	j := r.j
	var txn []*record.Record
	take := func(rec *record.Record) {
		j.hist.add(rec)
		if rec.LSN > r.ck.lsn {
			r.recs = append(r.recs, rec)
		}
	}
	err := j.log.Scan(j.log.Oldest(), false, func(rec *record.Record) error {
		if rec.LSN > r.ck.lsn {
			r.state(rec)
		}
		switch {
		case rec.Kind == record.Begin:
			txn = []*record.Record{rec}
		case rec.Kind == record.Cancel:
			r.dead[rec.Upto] = true
			j.hist.cancel(rec.Upto)
		case rec.Kind == record.Commit && len(txn) > 0 && txn[0].LSN == rec.Txn:
			for _, t := range txn {
				take(t)
			}
			take(rec)
			txn = nil
		case rec.Txn != 0:
			if len(txn) > 0 && txn[0].LSN == rec.Txn {
				txn = append(txn, rec)
			}
		default:
			take(rec)
		}
		return nil
	})
	r.recs = slices.DeleteFunc(r.recs, func(rec *record.Record) bool { return r.dead[rec.LSN] })
	for _, rec := range r.recs {
		switch rec.Kind {
		case record.Adopt, record.Local, record.Checkpoint, record.Boot, record.IDs, record.Client, record.Session:
		default:
			r.report.Replayed++
		}
	}
	return err
}

// state follows sessions, clients and file numbers.
func (r *recovery) state(rec *record.Record) {
	j := r.j
	switch rec.Kind {
	case record.Client:
		j.setClient(uint32(rec.Count), rec.Name)
	case record.IDs:
		j.idLimit = max(j.idLimit, proto.FileID(rec.Upto))
		j.nextID = j.idLimit
	case record.Boot:
		r.ck.boot = max(r.ck.boot, uint32(rec.Count))
	}
	j.sessionReplay(rec)
}

// restoreTree brings the tree to where table and log say it is (steps 4 to 8).
func (r *recovery) restoreTree(ctx context.Context) error {
	r.collect()
	if err := r.open(); err != nil {
		return err
	}
	if err := r.find(); err != nil {
		return err
	}
	if err := r.clearWrong(); err != nil {
		return err
	}
	if err := r.remakeMissing(); err != nil {
		return err
	}
	if err := r.fill(); err != nil {
		return err
	}
	if err := r.cleanStage(); err != nil {
		return err
	}
	return r.restoreContents(ctx)
}

// finish makes the recovered state the new beginning (step 9).
func (r *recovery) finish() error {
	j := r.j
	j.applied = j.log.Last()
	boot := &record.Record{Kind: record.Boot, Count: uint64(j.boot)}
	if err := j.log.Append(boot); err != nil {
		return err
	}
	if err := j.log.Commit(); err != nil {
		return err
	}
	j.applied = boot.LSN
	j.appended = boot.LSN
	return j.checkpoint(false)
}

func (r *recovery) closeDirs() {
	for _, d := range r.opened {
		if d != nil && d != r.j.tree.root && d != r.j.tree.grave && d != r.j.tree.stage {
			d.Close()
		}
	}
}

// collect goes through the records, moves the table forward, and notes for each
// inode that a name record concerns where it was on its way and where it belongs (step 4).
func (r *recovery) collect() {
	t := r.j.tree
	touch := func(id proto.FileID) {
		n := t.nodes[id]
		if n == nil || id == proto.RootID {
			return
		}
		r.moved[id] = true
		for _, p := range n.names {
			r.mayBe(n.ident, p)
		}
		for _, g := range n.graves {
			r.mayBe(n.ident, place{graveDir, graveName(g)})
		}
	}
	for _, rec := range r.recs {
		switch rec.Kind {
		case record.Make:
			r.made[rec.ID] = rec
			r.mayBe(vfs.Ident(rec.Inode), place{stageDir, stageName(rec.ID)})
		case record.Remove:
			r.mayBe(vfs.Ident(rec.Inode), place{graveDir, graveName(rec.LSN)})
		case record.Rename: // on its way through the grave
			r.mayBe(vfs.Ident(rec.Inode), place{graveDir, graveName(rec.LSN)})
		case record.Truncate:
			if rec.Flag&record.FlagGraveImage != 0 {
				img, at := vfs.Ident(rec.Inode), place{graveDir, graveName(rec.LSN)}
				r.mayBe(img, at)
				r.mayBe(img, place{stageDir, imageName(uint64(rec.Grave))})
				r.want[img] = map[place]bool{at: true}
				r.owner[img] = 0
			}
		}
		touch(rec.ID)
		touch(rec.Victim)
		t.apply(rec)
		touch(rec.ID)
		touch(rec.Victim)
	}
	for id := range r.moved {
		n := t.nodes[id]
		if n == nil {
			continue
		}
		w := map[place]bool{}
		for _, p := range n.names {
			w[p] = true
		}
		for _, g := range n.graves {
			w[place{graveDir, graveName(g)}] = true
		}
		r.want[n.ident], r.owner[n.ident] = w, id
	}
}

func (r *recovery) mayBe(i vfs.Ident, p place) {
	if r.places[i] == nil {
		r.places[i] = map[place]bool{}
	}
	r.places[i][p] = true
	if r.dirs[p.dir] == nil {
		r.dirs[p.dir] = map[string]bool{}
	}
	r.dirs[p.dir][p.name] = true
}

// open finds the directories that hold any of these names, before anything is
// moved: a directory that was moved itself is looked for in all its places (step 5).
func (r *recovery) open() error {
	t := r.j.tree
	r.opened[proto.RootID], r.opened[graveDir], r.opened[stageDir] = t.root, t.grave, t.stage
	for id := range r.dirs {
		if _, err := r.openDir(id, nil); err != nil {
			return err
		}
	}
	return nil
}

// openDir returns a directory that is on disk somewhere, nil if it is not.
func (r *recovery) openDir(id proto.FileID, path []proto.FileID) (vfs.Dir, error) {
	if d, ok := r.opened[id]; ok {
		return d, nil
	}
	if slices.Contains(path, id) { // in none of the places that go through itself
		return nil, nil
	}
	n := r.j.tree.nodes[id]
	if n == nil {
		return nil, nil
	}
	candidates := map[place]bool{}
	for _, p := range n.names {
		candidates[p] = true
	}
	for _, g := range n.graves {
		candidates[place{graveDir, graveName(g)}] = true
	}
	for p := range r.places[n.ident] {
		candidates[p] = true
	}
	for p := range r.stagePlaces() {
		candidates[p] = true
	}
	path = append(path, id)
	for p := range candidates {
		parent, err := r.openDir(p.dir, path)
		if err != nil {
			return nil, err
		}
		if parent == nil {
			continue
		}
		d, err := parent.OpenDir(p.name)
		if notThere(err) {
			continue
		}
		if err != nil {
			return nil, err
		}
		info, err := d.StatSelf()
		if err == nil && info.Ident == n.ident {
			r.opened[id] = d
			return d, nil
		}
		d.Close()
		if err != nil {
			return nil, err
		}
	}
	if len(path) == 1 { // not cut short by a cycle: it is nowhere
		r.opened[id] = nil
	}
	return nil, nil
}

// stagePlaces are the names in the stage: an earlier recovery that was cut may
// have left anything there.
func (r *recovery) stagePlaces() map[place]bool {
	out := map[place]bool{}
	_ = r.j.tree.stage.ReadDir(0, func(name string, _ uint64, _ uint32, _ uint64) bool {
		out[place{stageDir, name}] = true
		return true
	})
	return out
}

// find looks at all these names and keeps, of the places where an inode may be,
// those where it is (step 5).
func (r *recovery) find() error {
	for p := range r.stagePlaces() {
		if r.dirs[stageDir] == nil {
			r.dirs[stageDir] = map[string]bool{}
		}
		r.dirs[stageDir][p.name] = true
	}
	found := map[vfs.Ident]map[place]bool{}
	for id, names := range r.dirs {
		d := r.opened[id]
		if d == nil {
			continue
		}
		for name := range names {
			info, err := d.Stat(name)
			if notThere(err) {
				continue
			}
			if err != nil {
				return err
			}
			if _, ok := r.want[info.Ident]; !ok {
				continue
			}
			if found[info.Ident] == nil {
				found[info.Ident] = map[place]bool{}
			}
			found[info.Ident][place{id, name}] = true
		}
	}
	r.places = found
	return nil
}

// clearWrong parks in the stage what is where it does not belong (step 6).
func (r *recovery) clearWrong() error {
	for _, ident := range sortedIdents(r.want) {
		for p := range r.places[ident] {
			if r.want[ident][p] {
				continue
			}
			delete(r.places[ident], p)
			if p.dir == stageDir {
				r.parked[ident] = append(r.parked[ident], p.name)
				continue
			}
			name := r.parkName()
			if err := r.opened[p.dir].Rename(p.name, r.j.tree.stage, name, vfs.RenameNoReplace); err != nil {
				return err
			}
			r.parked[ident] = append(r.parked[ident], name)
			r.report.Moved++
		}
	}
	return nil
}

// parkName is a free name in the stage.
func (r *recovery) parkName() string {
	for {
		r.number++
		name := "r" + graveName(proto.LSN(r.number))
		if _, err := r.j.tree.stage.Stat(name); errors.Is(err, syscall.ENOENT) {
			return name
		}
	}
}

func sortedIdents(m map[vfs.Ident]map[place]bool) []vfs.Ident {
	out := make([]vfs.Ident, 0, len(m))
	for i := range m {
		out = append(out, i)
	}
	slices.SortFunc(out, func(a, b vfs.Ident) int {
		switch {
		case a.Ino < b.Ino:
			return -1
		case a.Ino > b.Ino:
			return 1
		}
		return 0
	})
	return out
}

// fill puts every inode into the places where it belongs and is missing,
// directories before what is in them, making again what never reached the disk (step 7).
func (r *recovery) fill() error {
	busy := map[proto.FileID]bool{}
	for _, ident := range sortedIdents(r.want) {
		if err := r.fillInode(ident, busy); err != nil {
			return err
		}
	}
	return nil
}

func (r *recovery) fillInode(ident vfs.Ident, busy map[proto.FileID]bool) error {
	id := r.owner[ident]
	if id != 0 {
		if busy[id] {
			return nil
		}
		busy[id] = true
	}
	wanted := r.want[ident]
	for p := range wanted {
		if err := r.needDir(p.dir, busy); err != nil {
			return err
		}
	}
	for p := range wanted {
		if err := r.fillPlace(ident, p); err != nil {
			return err
		}
	}
	return nil
}

// needDir makes sure that a directory is there to put something into.
func (r *recovery) needDir(id proto.FileID, busy map[proto.FileID]bool) error {
	if r.opened[id] != nil {
		return nil
	}
	n := r.j.tree.nodes[id]
	if n == nil {
		return nil
	}
	if r.moved[id] {
		if err := r.fillInode(n.ident, busy); err != nil {
			return err
		}
		n = r.j.tree.nodes[id]
	}
	delete(r.opened, id)
	_, err := r.openDir(id, nil)
	return err
}

// fillPlace puts an inode under a name. What stands there and is not known to
// the journal is a stranger's: it goes to a grave of its own.
func (r *recovery) fillPlace(ident vfs.Ident, p place) error {
	if r.places[ident][p] {
		return nil
	}
	d := r.opened[p.dir]
	if d == nil {
		return status.Newf(status.Damaged, "", "", "directory %d, which the log puts files into, is not on disk", p.dir)
	}
	if info, err := d.Stat(p.name); err == nil {
		if err := r.bury(p, info); err != nil {
			return err
		}
	} else if !errors.Is(err, syscall.ENOENT) {
		return err
	}
	if names := r.parked[ident]; len(names) > 0 {
		r.parked[ident] = names[1:]
		if err := r.j.tree.stage.Rename(names[0], d, p.name, vfs.RenameNoReplace); err != nil {
			return err
		}
	} else if err := r.linkFrom(ident, d, p.name); err != nil {
		return err
	}
	if r.places[ident] == nil {
		r.places[ident] = map[place]bool{}
	}
	r.places[ident][p] = true
	r.report.Moved++
	return nil
}

// linkFrom gives an inode one more name from any that it has.
func (r *recovery) linkFrom(ident vfs.Ident, to vfs.Dir, name string) error {
	for p := range r.places[ident] {
		return r.opened[p.dir].Link(p.name, to, name)
	}
	return status.Newf(status.Damaged, "", "", "no name left to link inode %d from", ident.Ino)
}

// bury moves what the journal does not know out of the way, as a record says.
func (r *recovery) bury(p place, info vfs.Info) error {
	j := r.j
	j.adoptMu.Lock()
	id, err := j.newID()
	j.adoptMu.Unlock()
	if err != nil {
		return err
	}
	recs := []*record.Record{
		{Kind: record.Adopt, ID: id, Dir: p.dir, Name: p.name, Inode: record.Inode(info.Ident), New: record.Attrs{Mode: info.Mode}},
		{Kind: record.Remove, Flag: record.FlagRecovered, ID: id, Dir: p.dir, Name: p.name, Inode: record.Inode(info.Ident)},
	}
	if err := j.log.Append(recs...); err != nil {
		return err
	}
	if err := j.log.Commit(); err != nil {
		return err
	}
	if err := r.opened[p.dir].Rename(p.name, j.tree.grave, graveName(recs[1].LSN), vfs.RenameNoReplace); err != nil {
		return err
	}
	keep := j.tree.nodes[p.dir].kids[p.name]
	for _, rec := range recs {
		j.tree.apply(rec)
		j.hist.add(rec)
	}
	if n := j.tree.nodes[keep]; n != nil {
		j.tree.nameLocked(n, p)
	}
	path, _ := j.tree.path(p.dir)
	r.report.Strangers = append(r.report.Strangers, path+"/"+p.name)
	return nil
}

// remakeMissing makes the inodes again that Make records made and the cut has
// taken, in the stage; the log has their new identities before they get their
// names (step 7).
func (r *recovery) remakeMissing() error {
	for _, ident := range sortedIdents(r.want) {
		if len(r.places[ident]) > 0 || len(r.parked[ident]) > 0 {
			continue
		}
		id := r.owner[ident]
		if r.made[id] == nil { // a process of the server removed it
			delete(r.want, ident)
			r.vanished(id)
			continue
		}
		if err := r.remake(id, ident); err != nil {
			return err
		}
	}
	return r.j.log.Commit()
}

func (r *recovery) remake(id proto.FileID, old vfs.Ident) error {
	t := r.j.tree
	fresh := *r.made[id]
	if info, err := t.stage.Stat(stageName(id)); err == nil { // of a recovery that was cut before it logged it
		if err := removeTree(t.stage, stageName(id), info); err != nil {
			return err
		}
	}
	if err := r.j.stageInode(&fresh); err != nil {
		return err
	}
	rec := &record.Record{Kind: record.Adopt, Flag: record.FlagRecovered, ID: id, Inode: fresh.Inode}
	if err := r.j.log.Append(rec); err != nil {
		return err
	}
	t.apply(rec)
	ident := vfs.Ident(fresh.Inode)
	r.parked[ident] = []string{stageName(id)}
	r.want[ident], r.owner[ident] = r.want[old], id
	delete(r.want, old)
	if fresh.New.Mode&proto.ModeType == proto.ModeDir {
		d, err := t.stage.OpenDir(stageName(id))
		if err != nil {
			return err
		}
		r.opened[id] = d
	}
	r.report.Remade++
	return nil
}

// vanished forgets a file that was there at the checkpoint and is nowhere now.
func (r *recovery) vanished(id proto.FileID) {
	if id == 0 {
		return
	}
	t := r.j.tree
	path, _ := t.path(id)
	r.report.Strangers = append(r.report.Strangers, path+" (gone)")
	if n := t.nodes[id]; n != nil {
		for _, p := range slices.Clone(n.names) {
			t.unnameLocked(id, p)
		}
		n.graves = nil
	}
	delete(r.moved, id)
}

// cleanStage removes what no record mentions: inodes of changes that were never
// acknowledged, and spare names of inodes that are in all their places (step 8).
func (r *recovery) cleanStage() error {
	for p := range r.stagePlaces() {
		info, err := r.j.tree.stage.Stat(p.name)
		if err != nil {
			return err
		}
		if err := removeTree(r.j.tree.stage, p.name, info); err != nil {
			return err
		}
	}
	return nil
}

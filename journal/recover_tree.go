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

// open finds the directories that hold any of these names, before anything is
// moved: a directory that was moved itself is looked for in all its places (step 5).
func (r *recovery) open() error {
	t := r.j.tree
	r.opened[proto.RootID], r.opened[graveDir], r.opened[stageDir] = t.root, t.grave, t.stage
	r.staged = r.stagePlaces()
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
	n, ok := r.j.tree.get(id)
	if !ok {
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
	for p := range r.staged {
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
			if info, err := r.opened[p.dir].Stat(p.name); err == nil && p.dir != graveDir && r.changedSince(info) { // it was moved here since
				delete(r.want, ident)
				delete(r.moved, r.owner[ident])
				break
			}
			r.placed[p.dir], r.placed[r.owner[ident]] = true, true
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
// directories before what is in them (step 8).
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
	n, ok := r.j.tree.get(id)
	if !ok {
		return nil
	}
	if r.moved[id] {
		if err := r.fillInode(n.ident, busy); err != nil {
			return err
		}
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
		return r.orphan(ident, p)
	}
	if info, err := d.Stat(p.name); err == nil {
		if r.sameRun { // it came there since, and stays
			return r.orphan(ident, p)
		}
		if err := r.bury(p, info); err != nil {
			return err
		}
	} else if !errors.Is(err, syscall.ENOENT) {
		return err
	}
	r.placed[p.dir], r.placed[r.owner[ident]] = true, true
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

// orphan records that a name is gone with its directory, which a process of the
// server has removed while no server ran. The inode goes to a grave.
func (r *recovery) orphan(ident vfs.Ident, p place) error {
	j, id := r.j, r.owner[ident]
	if id == 0 {
		return nil
	}
	rec := &record.Record{Kind: record.Remove, Flag: record.FlagRecovered, ID: id, Dir: p.dir, Name: p.name, Inode: record.Inode(ident)}
	if err := j.log.Append(rec); err != nil {
		return err
	}
	if err := j.log.Commit(); err != nil {
		return err
	}
	path, _ := j.tree.path(id)
	r.report.Strangers = append(r.report.Strangers, path+" (its place is gone)")
	j.tree.apply(rec)
	j.hist.add(rec)
	if names := r.parked[ident]; len(names) > 0 {
		r.parked[ident] = names[1:]
		return j.tree.stage.Rename(names[0], j.tree.grave, graveName(rec.LSN), vfs.RenameNoReplace)
	}
	return r.linkFrom(ident, j.tree.grave, graveName(rec.LSN))
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
	keep := j.tree.kid(p)
	for _, rec := range recs {
		j.tree.apply(rec)
		j.hist.add(rec)
	}
	j.tree.name(keep, p)
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
		if r.made[id] == 0 || r.sameRun { // a process of the server removed it
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
	fresh, err := r.j.log.Read(r.made[id], false)
	if err != nil {
		return err
	}
	if info, err := t.stage.Stat(stageName(id)); err == nil { // of a recovery that was cut before it logged it
		if err := removeTree(t.stage, stageName(id), info, nil); err != nil {
			return err
		}
	}
	if err := r.j.stageInode(fresh); err != nil {
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
	r.remade[id] = true
	r.report.Remade++
	return nil
}

// vanished reports a file that was there at the checkpoint and is nowhere now.
// Its names stay in the table until the comparison that follows records that they are gone.
func (r *recovery) vanished(id proto.FileID) {
	if id == 0 {
		return
	}
	path, _ := r.j.tree.path(id)
	r.report.Strangers = append(r.report.Strangers, path+" (gone)")
	if n, ok := r.j.tree.get(id); ok && len(n.names) == 0 {
		r.j.tree.vanish(id)
	}
	delete(r.moved, id)
}

// cleanStage removes what no record mentions: inodes of changes that were never
// acknowledged, and spare names of inodes that are in all their places (step 9).
func (r *recovery) cleanStage() error {
	for p := range r.stagePlaces() {
		info, err := r.j.tree.stage.Stat(p.name)
		if err != nil {
			return err
		}
		if err := removeTree(r.j.tree.stage, p.name, info, nil); err != nil {
			return err
		}
	}
	return nil
}

package replay

import (
	"slices"
	"strconv"

	"cagefs.dev/cage/journal"
	"cagefs.dev/cage/journal/record"
	"cagefs.dev/cage/remote/proto"
	"cagefs.dev/cage/remote/status"
)

// undo fills in an engine for a set of records. What others have changed since
// is compared name by name, attribute by attribute and byte by byte; a change that was
// taken back itself, and what took it back, do not count.
type undo struct {
	*engine
	set   *target
	gone  map[proto.FileID]bool // files that the set made
	first map[place]proto.LSN   // names that it changed, by their first record
}

func lsnText(lsn proto.LSN) string { return "@" + strconv.FormatUint(uint64(lsn), 10) }

func (u *undo) run() error {
	if err := u.notUndone(); err != nil {
		return err
	}
	u.timed = func(dir proto.FileID) bool {
		names, err := u.past.Names(dir)
		return err == nil && len(names) > 0
	}
	dirs, files := map[proto.FileID]bool{}, map[proto.FileID]bool{}
	u.gone, u.first = map[proto.FileID]bool{}, map[place]proto.LSN{}
	for _, r := range u.set.recs {
		switch r.Kind {
		case record.SetAttr, record.Truncate, record.Write, record.Allocate, record.SetXattr:
			files[r.ID] = true
			continue
		case record.Make:
			if u.gone[r.ID] = true; r.Name == "" {
				continue
			}
		}
		dirs[r.Dir] = true
		if r.NewDir != 0 {
			dirs[r.NewDir] = true
		}
	}
	for _, dir := range sorted(dirs) {
		if err := u.wantNames(dir); err != nil {
			return err
		}
	}
	for _, id := range sorted(files) {
		if err := u.wantFile(id); err != nil {
			return err
		}
	}
	if err := u.checkRemovals(); err != nil {
		return err
	}
	if err := u.checkSources(); err != nil {
		return err
	}
	if err := u.conflict(); err != nil {
		return err
	}
	return u.apply()
}

func sorted(set map[proto.FileID]bool) []proto.FileID {
	out := make([]proto.FileID, 0, len(set))
	for id := range set {
		out = append(out, id)
	}
	slices.Sort(out)
	return out
}

// notUndone refuses what is taken back already.
func (u *undo) notUndone() error {
	for _, r := range u.set.recs {
		if by := u.j.Undone(r); by != 0 {
			u.step(proto.PlanStep{Action: "conflict", Path: lsnText(r.LSN), Detail: "is taken back already, by " + lsnText(by)})
			return u.conflict()
		}
	}
	return u.ctx.Err()
}

// stands reports whether a record that is not in the set stands between it and
// the present: it was not taken back, nor does it only take back what came after oldest.
func (u *undo) stands(r *record.Record, oldest proto.LSN) bool {
	if u.set.has(r.LSN) || u.j.Undone(r) != 0 {
		return false
	}
	if r.Txn == 0 {
		return true
	}
	t, _ := u.j.Transaction(r.Txn)
	return t.Oldest == 0 || t.Oldest < oldest
}

func (u *undo) clash(path string, r *record.Record) {
	u.step(proto.PlanStep{Action: "conflict", Path: path, Detail: "was changed again by " + lsnText(r.LSN)})
}

// later calls f for the records of a list that stand.
func (u *undo) later(list []proto.LSN, oldest proto.LSN, f func(*record.Record)) error {
	for _, lsn := range list {
		if u.set.has(lsn) {
			continue
		}
		r, err := u.j.Happened(lsn)
		if err != nil {
			return err
		}
		if r != nil && u.stands(r, oldest) {
			f(r)
		}
	}
	return u.ctx.Err()
}

// wantNames wants the names of a directory that the set has changed.
func (u *undo) wantNames(dir proto.FileID) error {
	names, err := u.past.Names(dir)
	if err != nil {
		return err
	}
	first, last := map[string]proto.LSN{}, map[string]proto.FileID{} // by the set's records; what any record left
	oldest := proto.LSN(0)                                           // of the set, here
	for _, lsn := range u.j.DirRecords(dir, u.set.lsns[0]-1) {
		r, err := u.j.Happened(lsn)
		if err != nil {
			return err
		}
		if r == nil {
			continue
		}
		in := u.set.has(lsn)
		switch {
		case in && oldest == 0:
			oldest = lsn
		case !in && oldest != 0 && u.stands(r, oldest):
			u.keepTime[dir] = true
		}
		for _, c := range journal.NameChanges(r) {
			if c.Dir != dir {
				continue
			}
			if first[c.Name] == 0 {
				if !in {
					continue
				}
				first[c.Name] = lsn
			} else if !in && u.stands(r, first[c.Name]) {
				u.clash(u.pathNow(c.Place), r)
			}
			last[c.Name] = c.After
		}
	}
	if !u.gone[dir] {
		u.files = append(u.files, dir) // its time
	}
	for name, then := range names {
		p := place{Dir: dir, Name: name}
		if u.gone[dir] { // the directory itself goes
			then = 0
		}
		now, err := u.occupant(p)
		if err != nil {
			return err
		}
		if now != last[name] {
			u.step(proto.PlanStep{Action: "conflict", Path: u.pathNow(p), Detail: "was changed by a process of the server"})
		}
		u.want[p], u.first[p] = then, first[name]
	}
	return nil
}

// wantFile wants content and attributes of a file that the set has changed.
func (u *undo) wantFile(id proto.FileID) error {
	if u.gone[id] {
		return nil
	}
	u.files = append(u.files, id)
	t := &touches{}
	var first proto.LSN
	_, list := u.j.FileRecords(id, u.set.lsns[0]-1)
	for _, lsn := range list {
		r, err := u.j.Happened(lsn)
		if err != nil {
			return err
		}
		if r == nil {
			continue
		}
		if u.set.has(lsn) {
			if first == 0 {
				first = lsn
			}
			t.add(r)
			continue
		}
		if first == 0 || !u.stands(r, first) {
			continue
		}
		if timeChanges(r) {
			u.keepTime[id] = true
		}
		if t.meets(r) {
			u.clash(u.filePath(id), r)
		}
	}
	return u.ctx.Err()
}

// checkRemovals refuses to take files away that others have changed, and
// directories with what others have put into them.
func (u *undo) checkRemovals() error {
	wanted := map[proto.FileID]bool{}
	for _, id := range u.want {
		wanted[id] = true
	}
	for p, then := range u.want {
		now, err := u.occupant(p)
		if err != nil {
			return err
		}
		if now == 0 || now == then || wanted[now] {
			continue
		}
		if err := u.checkRemoval(p, now, wanted); err != nil {
			return err
		}
	}
	return nil
}

func (u *undo) checkRemoval(p place, id proto.FileID, wanted map[proto.FileID]bool) error {
	if err := u.ctx.Err(); err != nil {
		return err
	}
	a, err := u.j.Attr(id)
	if err != nil {
		return err
	}
	if !a.IsDir() && a.Nlink > 1 { // another name keeps it
		return nil
	}
	oldest := u.set.lsns[0]
	_, data := u.j.FileRecords(id, oldest-1)
	if err := u.later(data, oldest, func(r *record.Record) { u.clash(u.pathNow(p), r) }); err != nil || !a.IsDir() {
		return err
	}
	var kids []proto.DirEntry
	err = u.j.ReadDir(id, 0, true, func(d proto.DirEntry) bool {
		kids = append(kids, d)
		return true
	})
	if err != nil {
		return err
	}
	for _, k := range kids {
		q := place{Dir: id, Name: k.Name}
		if then, changes := u.want[q]; changes && then != k.Attr.ID {
			continue // it is looked at by itself
		}
		if wanted[k.Attr.ID] {
			continue
		}
		if u.gone[id] {
			u.step(proto.PlanStep{Action: "conflict", Path: u.pathNow(q), Detail: "was put there by somebody else"})
			continue
		}
		names, _ := u.j.FileRecords(k.Attr.ID, oldest-1)
		if err := u.later(names, oldest, func(r *record.Record) { u.clash(u.pathNow(q), r) }); err != nil {
			return err
		}
		if err := u.checkRemoval(q, k.Attr.ID, wanted); err != nil {
			return err
		}
	}
	return nil
}

// checkSources refuses to bring back what lives elsewhere, and into directories
// that are gone.
func (u *undo) checkSources() error {
	wanted := map[proto.FileID]bool{}
	leaving := map[proto.FileID]bool{}
	for p, id := range u.want {
		wanted[id] = true
		now, err := u.occupant(p)
		if err != nil {
			return err
		}
		if now != id {
			leaving[now] = true
		}
	}
	for p, id := range u.want {
		now, err := u.occupant(p)
		if err != nil {
			return err
		}
		if id == 0 || now == id {
			continue
		}
		lost, err := u.lost(p, wanted)
		if err != nil {
			return err
		}
		if lost {
			u.step(proto.PlanStep{Action: "conflict", Path: u.pathNow(p), Detail: "its directory was removed by something else"})
			continue
		}
		a, err := u.j.Attr(id)
		if err != nil {
			return status.Wrap(u.notKept(id), "", u.pathNow(p))
		}
		if a.IsDir() && !leaving[id] && len(u.j.Graves(id)) == 0 && u.where(id) == inside {
			u.step(proto.PlanStep{Action: "conflict", Path: u.pathNow(p), Detail: "is elsewhere now"})
		}
	}
	return nil
}

// lost reports whether a name is in a directory that is gone, will not be back,
// and was not gone when the set changed the name.
func (u *undo) lost(p place, wanted map[proto.FileID]bool) (bool, error) {
	if u.where(p.Dir) != dead {
		return false, nil
	}
	top, _ := climb(p.Dir, func(id proto.FileID) ([]place, error) { return u.j.Places(id), nil })
	if wanted[top] {
		return false, nil
	}
	then, err := u.j.At(u.first[p] - 1)
	if err != nil {
		return false, err
	}
	top, err = climb(p.Dir, then.Places)
	return top == proto.RootID, err
}

// climb returns the topmost directory above one: the root, or one in a grave.
func climb(dir proto.FileID, places func(proto.FileID) ([]place, error)) (proto.FileID, error) {
	for range maxDepth {
		up, err := places(dir)
		if err != nil || len(up) == 0 {
			return dir, err
		}
		dir = up[0].Dir
	}
	return dir, nil
}

// touches is what records changed of one file.
type touches struct {
	mode, owner, size bool
	xattrs            map[string]bool
	ranges            []span // as they came
}

type span struct{ from, to uint64 }

func (t *touches) add(r *record.Record) {
	switch r.Kind {
	case record.SetAttr:
		t.mode = t.mode || r.Old.Mode != r.New.Mode
		t.owner = t.owner || r.Old.UID != r.New.UID || r.Old.GID != r.New.GID
	case record.SetXattr:
		if t.xattrs == nil {
			t.xattrs = map[string]bool{}
		}
		t.xattrs[r.Name] = true
	case record.Write, record.Truncate, record.Allocate:
		t.size = t.size || r.OldSize != r.NewSize
		s := spanOf(r)
		if s.from == s.to {
			return
		}
		if n := len(t.ranges); n > 0 && t.ranges[n-1].from <= s.from && s.from <= t.ranges[n-1].to {
			t.ranges[n-1].to = max(t.ranges[n-1].to, s.to)
			return
		}
		t.ranges = append(t.ranges, s)
	}
}

// spanOf is the range of bytes that a record changed.
func spanOf(r *record.Record) span {
	if r.Kind == record.Write {
		return span{r.Off, r.Off + r.Len}
	}
	return span{min(r.OldSize, r.NewSize), max(r.OldSize, r.NewSize)}
}

// meets reports whether a record changed some of the same.
func (t *touches) meets(r *record.Record) bool {
	switch r.Kind {
	case record.SetAttr:
		return t.mode && r.Old.Mode != r.New.Mode || t.owner && (r.Old.UID != r.New.UID || r.Old.GID != r.New.GID)
	case record.SetXattr:
		return t.xattrs[r.Name]
	case record.Local:
		return t.size || len(t.ranges) > 0
	case record.Write, record.Truncate, record.Allocate:
		if t.size && r.OldSize != r.NewSize {
			return true
		}
		s := spanOf(r)
		return s.from < s.to && slices.ContainsFunc(t.ranges, func(x span) bool { return x.from < s.to && s.from < x.to })
	}
	return false
}

// timeChanges reports whether a record changes a file's time of modification.
func timeChanges(r *record.Record) bool {
	switch r.Kind {
	case record.Write, record.Truncate, record.Allocate:
		return true
	}
	return r.Kind == record.SetAttr && r.Old.Mtime != r.New.Mtime
}

package replay

import (
	"context"
	"fmt"
	"slices"
	"strings"

	"cagefs.dev/cage/journal"
	"cagefs.dev/cage/journal/record"
	"cagefs.dev/cage/remote/proto"
	"cagefs.dev/cage/remote/status"
)

type place = journal.Place

// where a directory is now.
type where uint8

const (
	dead    where = iota + 1 // in a grave, or below one that is
	inside                   // in the scope of what is done
	outside                  // elsewhere in the tree
)

// engine brings names and files to where they were in a past state. It belongs
// to the goroutine that runs the transaction; nothing else changes the export meanwhile.
type engine struct {
	ctx  context.Context
	j    *journal.Journal
	tx   *journal.Tx
	past *journal.Past

	// What is to be, filled in by rollback or undo.
	want     map[place]proto.FileID      // 0: nothing
	files    []proto.FileID              // whose content and attributes are to be as they were
	clear    map[place]proto.FileID      // names to take away before any is given, with what they lead to
	keepTime map[proto.FileID]bool       // whose time of modification is left alone
	inScope  func(dir proto.FileID) bool // whether a present directory is the scope's top; nil: everything is inside
	top      map[place]bool              // present names at the scope's top
	timed    func(dir proto.FileID) bool // whether a directory's time is to be as it was when its entries are

	// Copies of files that live outside of the scope now have numbers above
	// proto.MaxFileID until they are made.
	copyOf map[proto.FileID]proto.FileID
	copyAt map[proto.FileID]place // where a copy will be
	made   map[proto.FileID]proto.FileID

	parked  map[proto.FileID][]proto.LSN // graves into which this transaction put a file
	from    map[proto.FileID]string      // where it was then
	used    map[proto.LSN]bool           // graves that it emptied
	touched map[proto.FileID]bool        // directories whose entries it changed
	at      map[proto.FileID]where
	steps   []proto.PlanStep
}

func newEngine(ctx context.Context, j *journal.Journal, past *journal.Past) *engine {
	return &engine{ctx: ctx, j: j, past: past,
		top: map[place]bool{}, want: map[place]proto.FileID{}, clear: map[place]proto.FileID{},
		copyOf: map[proto.FileID]proto.FileID{}, made: map[proto.FileID]proto.FileID{},
		parked: map[proto.FileID][]proto.LSN{}, used: map[proto.LSN]bool{},
		copyAt: map[proto.FileID]place{}, from: map[proto.FileID]string{},
		touched: map[proto.FileID]bool{}, at: map[proto.FileID]where{}}
}

func (e *engine) step(s proto.PlanStep) { e.steps = append(e.steps, s) }

// where tells where a directory is now.
func (e *engine) where(dir proto.FileID) where {
	if w, ok := e.at[dir]; ok {
		return w
	}
	w := dead
	switch places := e.j.Places(dir); {
	case dir > proto.MaxFileID: // a copy that will be
		w = inside
	case e.inScope != nil && e.inScope(dir):
		w = inside
	case dir == proto.RootID && e.inScope == nil:
		w = inside
	case dir == proto.RootID:
		w = outside
	case len(places) > 0:
		e.at[dir] = dead // ends a circle
		w = e.where(places[0].Dir)
	}
	e.at[dir] = w
	return w
}

// placeIs tells where a present name is.
func (e *engine) placeIs(p place) where {
	if e.top[p] {
		return inside
	}
	return e.where(p.Dir)
}

// occupant returns what is under a name now, 0 for nothing.
func (e *engine) occupant(p place) (proto.FileID, error) {
	if p.Dir > proto.MaxFileID {
		return 0, nil
	}
	a, err := e.j.Lookup(p.Dir, p.Name)
	if c := status.Of(err); c == status.NotFound || c == status.Stale {
		return 0, nil
	}
	return a.ID, err
}

// copy gives a file that lives elsewhere a number for its copy.
func (e *engine) copy(id proto.FileID, to place) proto.FileID {
	n := proto.MaxFileID + 1 + proto.FileID(len(e.copyOf))
	e.copyOf[n], e.copyAt[n] = id, to
	return n
}

// apply writes the transaction: what is in the way goes, what is missing comes,
// contents and attributes follow, times of directories are last.
func (e *engine) apply() error {
	wanted := map[proto.FileID]bool{}
	for p, id := range e.want {
		now, err := e.occupant(p)
		if err != nil {
			return err
		}
		if now == id {
			delete(e.want, p)
			continue
		}
		if now != 0 {
			e.clear[p] = now
		}
		wanted[id] = id != 0
	}
	if err := e.takeOut(wanted); err != nil {
		return err
	}
	if err := e.removeNames(wanted); err != nil {
		return err
	}
	if err := e.placeNames(); err != nil {
		return err
	}
	return e.restoreFiles()
}

// takeOut finds what is wanted and only in directories that are in a grave
// themselves. A name there that will be right when its directory is back stays.
func (e *engine) takeOut(wanted map[proto.FileID]bool) error {
	for id := range wanted {
		if id == 0 || id > proto.MaxFileID || len(e.j.Graves(id)) > 0 {
			continue
		}
		then, err := e.past.Places(id)
		if err != nil {
			return err
		}
		now := e.j.Places(id)
		reachable := slices.ContainsFunc(now, func(q place) bool {
			_, going := e.clear[q]
			return going || e.where(q.Dir) != dead || slices.Contains(then, q)
		})
		if !reachable && len(now) > 0 {
			e.clear[now[0]] = id
		}
	}
	return nil
}

// going reports whether a directory goes away inside of one that is taken away as a whole.
func (e *engine) going(dir proto.FileID, wanted map[proto.FileID]bool) bool {
	for range maxDepth {
		places := e.j.Places(dir)
		if len(places) == 0 {
			return false
		}
		if e.clear[places[0]] == dir {
			return !wanted[dir]
		}
		dir = places[0].Dir
	}
	return false
}

// maxDepth ends a walk up.
const maxDepth = 1 << 12

// removeNames takes names away, the deepest first. What is in a directory that
// goes as a whole goes with it.
func (e *engine) removeNames(wanted map[proto.FileID]bool) error {
	type removal struct {
		place
		id   proto.FileID
		path string
	}
	var list []removal
	for p, id := range e.clear {
		if !wanted[id] && e.want[p] == 0 && e.going(p.Dir, wanted) {
			continue
		}
		list = append(list, removal{p, id, e.pathNow(p)})
	}
	slices.SortFunc(list, func(a, b removal) int {
		if d := strings.Count(b.path, "/") - strings.Count(a.path, "/"); d != 0 {
			return d
		}
		return strings.Compare(a.path, b.path)
	})
	for _, r := range list {
		if err := e.ctx.Err(); err != nil {
			return err
		}
		e.parked[r.id] = append(e.parked[r.id], e.tx.Remove(r.Dir, r.Name, r.id))
		e.touched[r.Dir] = true
		if e.where(r.Dir) != dead {
			e.from[r.id] = r.path
		}
		if !wanted[r.id] {
			e.step(proto.PlanStep{Action: "remove", Path: r.path})
		}
	}
	return nil
}

// placeNames gives the names that are missing, from the top down.
func (e *engine) placeNames() error {
	type placement struct {
		place
		id   proto.FileID
		path string
	}
	paths := map[proto.FileID]string{}
	var list []placement
	for p, id := range e.want {
		if id != 0 {
			list = append(list, placement{p, id, e.pathThen(p, paths)})
		}
	}
	slices.SortFunc(list, func(a, b placement) int {
		if d := strings.Count(a.path, "/") - strings.Count(b.path, "/"); d != 0 {
			return d
		}
		return strings.Compare(a.path, b.path)
	})
	for _, p := range list {
		if err := e.ctx.Err(); err != nil {
			return err
		}
		if err := e.placeName(p.place, p.id, p.path); err != nil {
			return err
		}
	}
	return nil
}

func (e *engine) placeName(p place, id proto.FileID, path string) error {
	dir := p.Dir
	if dir > proto.MaxFileID {
		dir = e.made[dir]
	} else {
		e.touched[dir] = true
	}
	if id > proto.MaxFileID {
		return e.placeCopy(dir, p.Name, id, path)
	}
	s := proto.PlanStep{Action: "restore", Path: path}
	grave, ok, err := e.grave(id)
	switch {
	case err != nil:
		return status.Wrap(err, "", path)
	case ok:
		if from := e.from[id]; from != "" {
			s.Action, s.From = "move", from
		}
		e.tx.Restore(grave, dir, p.Name, id)
	default:
		e.tx.Link(id, dir, p.Name)
		s.Detail = "hard link"
	}
	e.step(s)
	return nil
}

// grave takes the next grave of a file; without one, ok is false and the file is
// to be linked from another name.
func (e *engine) grave(id proto.FileID) (g proto.LSN, ok bool, err error) {
	if list := e.parked[id]; len(list) > 0 {
		e.parked[id] = list[1:]
		return list[0], true, nil
	}
	for _, g := range slices.Backward(e.j.Graves(id)) {
		if !e.used[g] {
			e.used[g] = true
			return g, true, nil
		}
	}
	a, err := e.j.Attr(id)
	if err != nil || a.IsDir() {
		return 0, false, e.notKept(id)
	}
	return 0, false, nil
}

// notKept is the error for a file that cannot come back.
func (e *engine) notKept(id proto.FileID) error {
	if e.j.Gone(id) {
		return status.Newf(status.Gap, "", "", "a program on the server removed it, and nobody kept it")
	}
	return status.Newf(status.NoHistory, "", "", "it is not kept any more")
}

// placeCopy makes a file again that lives elsewhere now, or links what it has made.
func (e *engine) placeCopy(dir proto.FileID, name string, id proto.FileID, path string) error {
	if n := e.made[id]; n != 0 {
		e.tx.Link(n, dir, name)
		e.step(proto.PlanStep{Action: "restore", Path: path, Detail: "hard link"})
		return nil
	}
	orig := e.copyOf[id]
	a, err := e.past.Attr(orig)
	if err != nil {
		return err
	}
	target := ""
	if a.Type() == proto.ModeSymlink {
		if target, err = e.past.Readlink(orig); err != nil {
			return err
		}
	}
	e.made[id] = e.tx.Make(dir, name, record.Attrs{Mode: a.Mode, UID: a.UID, GID: a.GID}, a.Rdev, target)
	from, _ := e.j.Path(orig)
	e.step(proto.PlanStep{Action: "copy", Path: path, From: from})
	return nil
}

// pathNow is the path of a name in the present, or where it was in a grave.
func (e *engine) pathNow(p place) string {
	path := p.Name
	for dir := p.Dir; dir != proto.RootID && len(path) < proto.MaxPath; {
		places := e.j.Places(dir)
		if len(places) == 0 {
			return "(removed)/" + path
		}
		path, dir = places[0].Name+"/"+path, places[0].Dir
	}
	return path
}

// pathThen is the path of a name when it will be back. paths keeps those of directories.
func (e *engine) pathThen(p place, paths map[proto.FileID]string) string {
	if p.Dir == proto.RootID {
		return p.Name
	}
	if dir, ok := paths[p.Dir]; ok {
		return dir + "/" + p.Name
	}
	paths[p.Dir] = fmt.Sprintf("(%s)", p.Dir) // ends a circle
	up, ok := e.placeOfDir(p.Dir)
	if ok {
		paths[p.Dir] = e.pathThen(up, paths)
	}
	return paths[p.Dir] + "/" + p.Name
}

// placeOfDir is where a directory will be.
func (e *engine) placeOfDir(dir proto.FileID) (place, bool) {
	if p, ok := e.copyAt[dir]; ok {
		return p, true
	}
	places, err := e.past.Places(dir)
	if err != nil || len(places) == 0 {
		places = e.j.Places(dir)
	}
	if len(places) == 0 {
		return place{}, false
	}
	return places[0], true
}

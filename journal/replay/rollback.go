package replay

import (
	"fmt"
	"strings"

	"cagefs.dev/cage/remote/proto"
	"cagefs.dev/cage/remote/status"
)

// rollback fills in an engine for paths.
type rollback struct {
	*engine
	keep   bool
	all    bool                  // a root is the whole export
	roots  []root                // otherwise
	within map[proto.FileID]bool // directories that were in scope then, and others
}

// root is a path that is rolled back.
type root struct {
	path      string
	then, now proto.FileID // what is there, 0: nothing
	thenAt    place        // its name then
	nowAt     place        // and now; the directory may be one that is to be restored
}

// rollbackArgs is what history shows of a rollback.
func rollbackArgs(op *proto.Rollback) string {
	var b strings.Builder
	fmt.Fprintf(&b, "to @%d", uint64(op.To))
	if op.New == proto.NewKeep {
		b.WriteString(", newer files kept")
	}
	b.WriteByte(':')
	for i, p := range op.Paths {
		if b.Len()+len(p) > maxArgs {
			fmt.Fprintf(&b, " and %d more", len(op.Paths)-i)
			break
		}
		if p = clean(p); p == "" {
			p = "."
		}
		b.WriteString(" " + p)
	}
	return b.String()
}

// maxArgs bounds what history shows of the arguments of a rollback.
const maxArgs = 4 << 10

func clean(path string) string {
	if path = strings.Trim(path, "/"); path == "." {
		return ""
	}
	return path
}

func (r *rollback) run(paths []string) error {
	r.inScope, r.timed = r.isTop, r.wasIn
	for _, p := range paths {
		if err := r.addRoot(clean(p)); err != nil {
			return err
		}
	}
	files, dirs := r.past.Changed()
	for _, dir := range dirs {
		if err := r.wantNames(dir); err != nil {
			return err
		}
	}
	if err := r.expand(); err != nil {
		return err
	}
	copied, err := r.copyFiles()
	if err != nil {
		return err
	}
	for _, id := range files {
		if err := r.wantFile(id, copied); err != nil {
			return err
		}
	}
	return r.apply()
}

// isTop reports whether a present directory is at the top of the scope.
func (r *rollback) isTop(dir proto.FileID) bool {
	if r.all && dir == proto.RootID {
		return true
	}
	for _, root := range r.roots {
		if root.now == dir {
			return true
		}
	}
	return false
}

// wasIn reports whether a directory was in the scope then.
func (r *rollback) wasIn(dir proto.FileID) bool {
	if in, ok := r.within[dir]; ok {
		return in
	}
	r.within[dir] = false // ends a circle
	in := dir == proto.RootID && r.all
	for _, root := range r.roots {
		in = in || root.then == dir
	}
	if !in && dir != proto.RootID {
		places, err := r.past.Places(dir)
		in = err == nil && len(places) > 0 && r.wasIn(places[0].Dir)
	}
	r.within[dir] = in
	return in
}

// placeWasIn reports whether a name of then was in the scope.
func (r *rollback) placeWasIn(p place) bool {
	for _, root := range r.roots {
		if root.thenAt == p {
			return true
		}
	}
	return r.wasIn(p.Dir)
}

// addRoot finds what is and was at a path. Directories on the way that are not
// there any more are wanted too, but not what else is in them.
func (r *rollback) addRoot(path string) error {
	if path == "" {
		r.all = true
		return nil
	}
	names := strings.Split(path, "/")
	root := root{path: path, nowAt: place{Dir: proto.RootID}}
	then, was := proto.RootID, true
	for i, name := range names {
		if was {
			root.thenAt = place{Dir: then, Name: name}
			a, err := r.past.Lookup(then, name)
			if err != nil && !missing(err) {
				return err
			}
			then, was = a.ID, err == nil
		}
		now, err := r.occupantOf(root.nowAt.Dir, name)
		if err != nil {
			return err
		}
		root.nowAt.Name = name
		if i == len(names)-1 {
			root.now = now.ID
			break
		}
		switch {
		case now.IsDir():
			root.nowAt.Dir = now.ID
		case !was:
			return status.New(status.NotFound, "", path)
		case now.ID != 0:
			r.step(proto.PlanStep{Action: "conflict", Path: strings.Join(names[:i+1], "/"), Detail: "is not a directory now"})
			return r.conflict()
		default:
			root.nowAt.Dir = r.wantParent(root.nowAt, then)
		}
	}
	if was {
		root.then = then
	}
	if root.then == 0 && root.now == 0 {
		return status.New(status.NotFound, "", path)
	}
	r.roots = append(r.roots, root)
	r.top[root.nowAt] = true
	if root.then != root.now && (root.then != 0 || !r.keep) {
		r.want[root.nowAt] = root.then
	}
	return nil
}

// wantParent wants a directory on the way to a path, by itself: what it was, or
// a copy of it if that lives elsewhere.
func (r *rollback) wantParent(p place, id proto.FileID) proto.FileID {
	if have := r.want[p]; have != 0 {
		return have
	}
	if path, err := r.j.Path(id); err == nil && path != "" {
		id = r.copy(id, p)
	}
	r.want[p] = id
	return id
}

func missing(err error) bool {
	switch status.Of(err) {
	case status.NotFound, status.NotDir, status.Stale:
		return true
	}
	return false
}

func (r *rollback) occupantOf(dir proto.FileID, name string) (proto.Attr, error) {
	if dir > proto.MaxFileID {
		return proto.Attr{}, nil
	}
	a, err := r.j.Lookup(dir, name)
	if err != nil && missing(err) {
		return proto.Attr{}, nil
	}
	return a, err
}

// wantNames wants the names of a directory that have changed since.
func (r *rollback) wantNames(dir proto.FileID) error {
	if !r.wasIn(dir) || r.where(dir) == outside {
		return nil
	}
	names, err := r.past.Names(dir)
	if err != nil {
		return err
	}
	r.files = append(r.files, dir) // its time
	for name, then := range names {
		p := place{Dir: dir, Name: name}
		now, err := r.occupant(p)
		if err != nil {
			return err
		}
		if now == then {
			continue
		}
		if then == 0 && r.keep {
			old, err := r.fileWasIn(now)
			if err != nil {
				return err
			}
			if !old {
				continue
			}
		}
		r.want[p] = then
	}
	return r.ctx.Err()
}

// fileWasIn reports whether a file had a name in the scope then.
func (r *rollback) fileWasIn(id proto.FileID) (bool, error) {
	places, err := r.past.Places(id)
	if err != nil {
		return false, err
	}
	for _, p := range places {
		if r.placeWasIn(p) {
			return true, nil
		}
	}
	return false, nil
}

// expand turns wanted directories that live outside of the scope now into copies.
func (r *rollback) expand() error {
	var todo []place
	for p := range r.want {
		todo = append(todo, p)
	}
	for len(todo) > 0 {
		p := todo[len(todo)-1]
		todo = todo[:len(todo)-1]
		id := r.want[p]
		if id == 0 || id > proto.MaxFileID || r.where(id) != outside {
			continue
		}
		a, err := r.past.Attr(id)
		if err != nil {
			return err
		}
		if !a.IsDir() || id == proto.RootID {
			continue
		}
		to := r.copy(id, p)
		r.want[p] = to
		err = r.past.ReadDir(id, 0, true, func(d proto.DirEntry) bool {
			kid := place{Dir: to, Name: d.Name}
			r.want[kid] = d.Attr.ID
			todo = append(todo, kid)
			return true
		})
		if err != nil {
			return err
		}
	}
	return r.ctx.Err()
}

// copyFiles turns wanted files that were moved out of the scope into copies and
// returns which.
func (r *rollback) copyFiles() (map[proto.FileID]bool, error) {
	wanted := map[proto.FileID][]place{}
	for p, id := range r.want {
		if id != 0 && id <= proto.MaxFileID {
			wanted[id] = append(wanted[id], p)
		}
	}
	copied := map[proto.FileID]bool{}
	for id, to := range wanted {
		out, err := r.movedOut(id)
		if err != nil {
			return nil, err
		}
		if !out {
			continue
		}
		n := r.copy(id, to[0])
		copied[id] = true
		for _, p := range to {
			r.want[p] = n
		}
	}
	return copied, nil
}

// movedOut reports whether a file has names outside of the scope alone, and had
// none there then.
func (r *rollback) movedOut(id proto.FileID) (bool, error) {
	out := false
	for _, q := range r.j.Places(id) {
		switch r.placeIs(q) {
		case outside:
			out = true
		case inside:
			if _, changes := r.want[q]; !changes && r.wasIn(q.Dir) { // it stays
				return false, nil
			}
		}
	}
	if !out {
		return false, nil
	}
	places, err := r.past.Places(id)
	if err != nil {
		return false, err
	}
	for _, p := range places {
		if !r.placeWasIn(p) {
			return false, nil
		}
	}
	return true, nil
}

// wantFile wants the content and attributes of a changed file, and takes its
// names out of directories that were not in the scope.
func (r *rollback) wantFile(id proto.FileID, copied map[proto.FileID]bool) error {
	if !r.past.Existed(id) || copied[id] {
		return nil
	}
	in, err := r.fileWasIn(id)
	if id == proto.RootID {
		in = r.all
	}
	if err != nil || !in {
		return err
	}
	if a, err := r.j.Attr(id); err != nil {
		if status.Of(err) == status.Stale {
			return nil
		}
		return err
	} else if a.IsDir() && r.where(id) == outside {
		return nil
	}
	for _, q := range r.j.Places(id) {
		if r.placeIs(q) == inside && !r.placeWasIn(q) && q.Dir <= proto.MaxFileID {
			if _, wanted := r.want[q]; !wanted {
				r.clear[q] = id
			}
		}
	}
	if r.past.DataChanged(id) {
		r.files = append(r.files, id)
	}
	return nil
}

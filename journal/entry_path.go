package journal

import (
	"slices"

	"cagefs.dev/cage/journal/record"
	"cagefs.dev/cage/remote/proto"
)

// paths answers where files were. It keeps the records that it has read, what names
// files had, and where directories were: one is used for one query, and is at its
// best where that goes from the newest record to older ones.
type paths struct {
	j      *Journal
	scope  proto.FileID
	recs   map[proto.LSN]*record.Record
	names  map[proto.FileID]namesAt
	held   int // how many names that are
	aboves map[proto.FileID]above
	bytes  int // of the paths in aboves
	looked int // records looked at for names: what the time of a query depends on
}

// namesAt is what names a file had when a record had been made.
type namesAt struct {
	at     proto.LSN
	places []place
}

// Bounds of what a paths keeps: it forgets all of a kind then.
const (
	maxPathRecords = 1 << 14
	maxNamed       = 1 << 13 // files; more than maxDepth
	maxHeld        = 1 << 14 // names of files; one alone may have more
)

func newPaths(j *Journal, scope proto.FileID) *paths {
	return &paths{j: j, scope: scope, recs: map[proto.LSN]*record.Record{},
		names: map[proto.FileID]namesAt{}, aboves: map[proto.FileID]above{}}
}

func (p *paths) read(lsn proto.LSN) (*record.Record, error) {
	p.looked++
	if r, ok := p.recs[lsn]; ok {
		return r, nil
	}
	r, err := p.j.hist.read(lsn)
	if err != nil {
		return nil, err
	}
	if len(p.recs) >= maxPathRecords {
		clear(p.recs)
	}
	p.recs[lsn] = r
	return r, nil
}

// places returns the names that a file had when a record had been made, valid until
// the next call. Those that it had later are gone on from where they are known, so that
// a query looks at each record of a name once, not once for each older entry.
func (p *paths) places(id proto.FileID, at proto.LSN) ([]place, error) {
	later := p.j.hist.names(id, at)
	known, ok := p.names[id]
	if ok = ok && at <= known.at; ok {
		later = later[:len(later)-len(after(later, known.at))]
	} else {
		n, _ := p.j.tree.get(id)
		known.places = n.names
	}
	var recs []*record.Record
	for _, lsn := range later {
		r, err := p.read(lsn)
		if err != nil {
			return nil, err
		}
		if r != nil {
			recs = append(recs, r)
		}
	}
	// From here on what is kept of the file is out of date: its list is changed in place.
	p.held -= len(p.names[id].places)
	delete(p.names, id)
	known = namesAt{at, placesBefore(known.places, recs, id)}
	if p.held += len(known.places); len(p.names) == maxNamed || p.held > maxHeld {
		clear(p.names)
		p.held = len(known.places)
	}
	p.names[id] = known
	return known.places, nil
}

// place returns a name of a file then, or the last that it had before, or the
// first that it got later: what a process of the server does with a new file may
// be recorded before that it made it.
func (p *paths) place(id proto.FileID, at proto.LSN) (place, bool, error) {
	places, err := p.places(id, at)
	if err != nil || len(places) > 0 {
		return first(places), len(places) > 0, err
	}
	before, later := []proto.LSN(nil), p.j.hist.names(id, at)
	if all := p.j.hist.names(id, 0); len(all) > len(later) {
		before = slices.Clone(all[:len(all)-len(later)])
		slices.Reverse(before)
	}
	for n, lsn := range append(before, later...) {
		r, err := p.read(lsn)
		if err != nil {
			return place{}, false, err
		}
		if r == nil {
			continue
		}
		for _, c := range nameChanges(r) {
			if n < len(before) && c.before == id || n >= len(before) && c.after == id {
				return c.at, true, nil
			}
		}
	}
	return place{}, false, nil
}

func first(list []place) place {
	if len(list) == 0 {
		return place{}
	}
	return list[0]
}

// maxDepth ends a walk up from a directory that was inside itself.
const maxDepth = 1 << 12

// above is where a directory was while none of the records between from and to
// (without to, 0: none yet) had moved it or a directory above it.
type above struct {
	path     string // "" of the root; of one that is longer the first proto.MaxPath bytes
	scoped   bool   // it is paths.scope or below it
	from, to proto.LSN
}

// Bounds of the places that a paths keeps: it forgets all of them then.
const (
	maxAboves     = 1 << 12
	maxAboveBytes = 1 << 20 // of paths made; those of directories above one are parts of its path
)

// dir returns where a directory was then.
func (p *paths) dir(id proto.FileID, lsn proto.LSN) (above, error) {
	type step struct {
		id    proto.FileID
		name  string
		above // without path
	}
	var up []step
	top := above{scoped: p.scope == proto.RootID}
	for at := id; at != proto.RootID; {
		if a, ok := p.aboves[at]; ok && a.from <= lsn && (a.to == 0 || lsn < a.to) {
			top = a
			break
		}
		if len(up) == maxDepth {
			break
		}
		s := step{id: at}
		s.from, s.to = p.span(at, lsn)
		place, ok, err := p.place(at, lsn)
		if err != nil {
			return above{}, err
		}
		if s.name = place.name; !ok {
			s.name = at.String()
		}
		s.scoped = at == p.scope
		up = append(up, s)
		if !ok {
			top = above{}
			break
		}
		at = place.dir
	}
	if len(up) == 0 {
		return top, nil
	}
	path, ends := []byte(top.path), make([]int, len(up))
	for i, s := range slices.Backward(up) {
		path = appendName(path, s.name)
		ends[i] = len(path)
	}
	if p.bytes += len(path); len(p.aboves)+len(up) > maxAboves || p.bytes > maxAboveBytes {
		clear(p.aboves)
		p.bytes = len(path)
	}
	whole := string(path)
	for i, s := range slices.Backward(up) {
		top = above{path: whole[:ends[i]], scoped: top.scoped || s.scoped, from: max(top.from, s.from), to: top.to}
		if s.to != 0 && (top.to == 0 || s.to < top.to) {
			top.to = s.to
		}
		p.aboves[s.id] = top
	}
	return top, nil
}

// span returns the records between which no name of a file changed, as in above.
func (p *paths) span(id proto.FileID, lsn proto.LSN) (from, to proto.LSN) {
	all := p.j.hist.names(id, 0)
	later := after(all, lsn)
	if n := len(all) - len(later); n > 0 {
		from = all[n-1]
	}
	if len(later) > 0 {
		to = later[0]
	}
	return from, to
}

// appendName adds a name to a path, as far as it has room.
func appendName(path []byte, name string) []byte {
	if len(path) > 0 {
		path = append(path, '/')
	}
	path = append(path, name...)
	return path[:min(len(path), proto.MaxPath)]
}

// of returns the path of a name then.
func (p *paths) of(at place, lsn proto.LSN) (string, error) {
	up, err := p.dir(at.dir, lsn)
	if err != nil {
		return "", err
	}
	return string(appendName([]byte(up.path), at.name)), nil
}

// file returns a path of a file then, or the last that it had, "" for the root.
func (p *paths) file(id proto.FileID, lsn proto.LSN) (string, error) {
	if id == proto.RootID {
		return "", nil
	}
	at, ok, err := p.place(id, lsn)
	if err != nil {
		return "", err
	}
	if !ok {
		return id.String(), nil
	}
	return p.of(at, lsn)
}

// inScope reports whether a directory was the scope itself or hung below it.
func (p *paths) inScope(id proto.FileID, lsn proto.LSN) (bool, error) {
	up, err := p.dir(id, lsn)
	return up.scoped, err
}

package journal

import (
	"slices"

	"cagefs.dev/cage/journal/record"
	"cagefs.dev/cage/remote/proto"
)

// paths answers where files were. It keeps the records that it has read: one is
// used for one query.
type paths struct {
	j    *Journal
	recs map[proto.LSN]*record.Record
}

// maxPathRecords bounds what a paths keeps.
const maxPathRecords = 1 << 16

func newPaths(j *Journal) *paths { return &paths{j: j, recs: map[proto.LSN]*record.Record{}} }

func (p *paths) read(lsn proto.LSN) (*record.Record, error) {
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

// places returns the names that a file had when a record had been made.
func (p *paths) places(id proto.FileID, at proto.LSN) ([]place, error) {
	n, _ := p.j.tree.get(id)
	var recs []*record.Record
	for _, lsn := range p.j.hist.names(id, at) {
		r, err := p.read(lsn)
		if err != nil {
			return nil, err
		}
		if r != nil {
			recs = append(recs, r)
		}
	}
	return placesBefore(n.names, recs, id), nil
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

// of returns the path of a name then.
func (p *paths) of(at place, lsn proto.LSN) (string, error) {
	path := at.name
	for depth := 0; at.dir != proto.RootID && depth < maxDepth; depth++ {
		up, ok, err := p.place(at.dir, lsn)
		if err != nil {
			return "", err
		}
		if !ok {
			return at.dir.String() + "/" + path, nil
		}
		path, at = up.name+"/"+path, up
	}
	return path, nil
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

// within reports whether a directory was dir itself or hung below it.
func (p *paths) within(id, dir proto.FileID, lsn proto.LSN) (bool, error) {
	for range maxDepth {
		if id == dir {
			return true, nil
		}
		if id == proto.RootID {
			return false, nil
		}
		up, ok, err := p.place(id, lsn)
		if err != nil || !ok {
			return false, err
		}
		id = up.dir
	}
	return false, nil
}

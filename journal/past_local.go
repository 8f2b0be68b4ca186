package journal

import (
	"slices"

	"cagefs.dev/cage/journal/record"
	"cagefs.dev/cage/remote/proto"
	"cagefs.dev/cage/remote/status"
)

// What processes of the server destroyed nobody kept. The past knows of it what
// records of before say: names, and the size that the last of them left.

// errNotKept says that a past content, or file, is not known.
func errNotKept(id proto.FileID) error {
	return status.Newf(status.Gap, "", id.String(), "a program on the server changed it, and what was there before is not known")
}

// Gone reports whether a file is known only by records: a process of the server
// removed it, so that nobody kept it.
func (j *Journal) Gone(id proto.FileID) bool {
	n, ok := j.tree.get(id)
	return ok && id != proto.RootID && len(n.names) == 0 && len(n.graves) == 0
}

// sizeLeft is the size that the newest record of the state left a file:
// status.Gap where none tells.
func (p *Past) sizeLeft(id proto.FileID) (uint64, error) {
	for _, lsn := range slices.Backward(p.j.hist.data(id, 0)) {
		if lsn > p.lsn {
			continue
		}
		r, err := p.j.hist.read(lsn)
		if err != nil {
			return 0, err
		}
		if r == nil {
			continue
		}
		switch {
		case r.Kind == record.Write, r.Kind == record.Truncate, r.Kind == record.Allocate, r.Kind == record.Local && r.New.Mode != 0:
			return r.NewSize, nil
		}
	}
	if made := p.j.hist.made(id); made != 0 && made <= p.lsn {
		r, err := p.j.hist.read(made)
		if err == nil && r != nil {
			return r.NewSize, nil
		}
		return 0, err
	}
	return 0, errNotKept(id)
}

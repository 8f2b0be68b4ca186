package journal

import (
	"slices"

	"cagefs.dev/cage/journal/record"
	"cagefs.dev/cage/remote/proto"
)

// Place is a name in a directory.
type Place struct {
	Dir  proto.FileID
	Name string
}

// placesBefore takes records, ascending, back from the names of a file.
func placesBefore(now []place, recs []*record.Record, id proto.FileID) []place {
	for _, r := range slices.Backward(recs) {
		for _, c := range nameChanges(r) {
			if c.after == id {
				now = slices.DeleteFunc(now, func(p place) bool { return p == c.at })
			}
		}
		for _, c := range nameChanges(r) {
			if c.before == id && !slices.Contains(now, c.at) {
				now = append(now, c.at)
			}
		}
	}
	return now
}

func exported(list []place) []Place {
	out := make([]Place, len(list))
	for i, p := range list {
		out[i] = Place{p.dir, p.name}
	}
	return out
}

// Places returns the names that the journal knows of a file now, also those in
// removed directories. The root has none.
func (j *Journal) Places(id proto.FileID) []Place {
	n, _ := j.tree.get(id)
	return exported(n.names)
}

// Graves returns the graves that hold a file now, by the records that put it there.
func (j *Journal) Graves(id proto.FileID) []proto.LSN {
	n, _ := j.tree.get(id)
	return n.graves
}

// Places returns the names that a file had then.
func (p *Past) Places(id proto.FileID) (out []Place, err error) {
	err = p.viewed(func() error {
		places, err := p.placesThen(id)
		out = exported(places)
		return err
	})
	return out, err
}

func (p *Past) placesThen(id proto.FileID) ([]place, error) {
	if !p.existed(id) {
		return nil, nil
	}
	recs, err := p.read(p.pick(p.j.hist.names(id, p.lsn)))
	if err != nil {
		return nil, err
	}
	n, _ := p.j.tree.get(id)
	return placesBefore(n.names, recs, id), nil
}

// Existed reports whether a file had been made then.
func (p *Past) Existed(id proto.FileID) bool { return p.existed(id) }

// Changed lists the files, and the directories whose entries, records above the
// state's have changed.
func (p *Past) Changed() (files, dirs []proto.FileID) { return p.j.hist.changed(p.lsn) }

// Names returns the names of a directory that records have changed since: what
// they led to then, 0 for nothing. The map is the caller's to read only.
func (p *Past) Names(dir proto.FileID) (names map[string]proto.FileID, err error) {
	err = p.viewed(func() error {
		d, err := p.dir(dir)
		if err == nil {
			names = d.names
		}
		return err
	})
	return names, err
}

// DataChanged reports whether records have changed a file's content, attributes
// or, of a directory, its times since.
func (p *Past) DataChanged(id proto.FileID) bool {
	return len(p.pick(p.j.hist.data(id, p.lsn))) > 0
}

// Range is a range of a file's content.
type Range struct{ From, To int64 }

// Touched returns the ranges of a file's content that records have changed since, ascending.
func (p *Past) Touched(id proto.FileID) (out []Range, err error) {
	err = p.viewed(func() error {
		f, err := p.file(id)
		if err != nil {
			return err
		}
		if f.gap { // nobody knows
			out = []Range{{0, 1 << 62}}
			return nil
		}
		for _, r := range f.ranges {
			if n := len(out); n > 0 && out[n-1].To == r.from {
				out[n-1].To = r.to
			} else {
				out = append(out, Range{r.from, r.to})
			}
		}
		return nil
	})
	return out, err
}

// FileRecords returns the records above lsn that concern a file, ascending: those
// of its names, and those of its content and attributes.
func (j *Journal) FileRecords(id proto.FileID, lsn proto.LSN) (names, data []proto.LSN) {
	return j.hist.names(id, lsn), j.hist.data(id, lsn)
}

// DirRecords returns the records above lsn that changed a directory's entries, ascending.
func (j *Journal) DirRecords(dir proto.FileID, lsn proto.LSN) []proto.LSN {
	return j.hist.entries(dir, lsn)
}

// Happened returns the skeleton of a record, nil if it was cancelled or is not committed.
func (j *Journal) Happened(lsn proto.LSN) (*record.Record, error) { return j.hist.read(lsn) }

// Undone returns the undo or redo that took a record back, 0 if it stands.
func (j *Journal) Undone(r *record.Record) proto.LSN { return j.hist.undone(r.LSN, r.Txn) }

// Transaction is a complete transaction: its records are between Begin and
// Commit, together with others that are not its own.
type Transaction struct {
	Begin, Commit proto.LSN
	Kind          string
	Oldest        proto.LSN // undo, redo: the oldest record that it takes back
}

// Transaction returns the transaction with a Begin record.
func (j *Journal) Transaction(begin proto.LSN) (Transaction, bool) {
	t, ok := j.hist.transaction(begin)
	out := Transaction{Begin: t.begin, Commit: t.end, Kind: t.kind}
	if len(t.targets) > 0 {
		out.Oldest = t.targets[0].from
	}
	return out, ok
}

// NameChange is what a record does to a name: which file it leads to before and
// after, 0 for none.
type NameChange struct {
	Place
	Before, After proto.FileID
}

// NameChanges lists what a record does to names.
func NameChanges(r *record.Record) (out []NameChange) {
	for _, c := range nameChanges(r) {
		out = append(out, NameChange{Place{c.at.dir, c.at.name}, c.before, c.after})
	}
	return out
}

// Attrs are a file's attributes in the course of a transaction, as SetAttr
// wants to know them: those of the tree, of what the transaction made, and times
// that its records so far have set.
func (tx *Tx) Attrs(id proto.FileID) (a record.Attrs, err error) {
	if r := tx.made[id]; r != nil {
		a = r.New
	} else {
		_, info, err := tx.j.tree.stat(id)
		if err != nil {
			return a, err
		}
		a = record.Attrs{Mode: info.Mode, UID: info.UID, GID: info.GID, Atime: proto.Time(info.Atime), Mtime: proto.Time(info.Mtime)}
	}
	if t, ok := tx.mtimes[id]; ok {
		a.Mtime = t
	}
	return a, nil
}

package replay

import (
	"slices"

	"cagefs.dev/cage/journal"
	"cagefs.dev/cage/journal/record"
	"cagefs.dev/cage/remote/proto"
	"cagefs.dev/cage/remote/status"
)

// groupGap is the pause that separates two changes of one process group.
const groupGap = proto.Time(2e9)

// target is a set of records that an undo takes back.
type target struct {
	lsns []proto.LSN      // ascending, without Begin and Commit records
	recs []*record.Record // of lsns, without images
	text string
}

func (t *target) String() string { return t.text }

// has reports whether a record is in the set.
func (t *target) has(lsn proto.LSN) bool {
	_, ok := slices.BinarySearch(t.lsns, lsn)
	return ok
}

// changes reports whether a record changes the export, so that it can be undone.
func changes(r *record.Record) bool {
	switch r.Kind {
	case record.Make, record.Link, record.Remove, record.Rename, record.Restore,
		record.SetAttr, record.Truncate, record.Write, record.Allocate, record.SetXattr:
		return true
	}
	return false
}

// chosen finds the records that an undo or redo is about; with an error the target is of no use.
func chosen(j *journal.Journal, s *journal.Submission, op *proto.Undo) (*target, error) {
	c := &chooser{j: j, names: map[proto.LSN]bool{}}
	var err error
	if len(op.LSNs) > 0 {
		for _, lsn := range op.LSNs {
			if err = c.add(lsn); err != nil {
				return &target{}, err
			}
		}
	} else if err = c.newest(s, op); err != nil {
		return &target{}, err
	}
	return c.target()
}

// chooser collects records and the names under which history will show them:
// numbers of records and of whole transactions.
type chooser struct {
	j     *journal.Journal
	recs  []*record.Record
	names map[proto.LSN]bool
}

// add takes a record in, or the transaction that it is part of.
func (c *chooser) add(lsn proto.LSN) error {
	r, err := c.j.Record(lsn, false)
	if err != nil {
		return err
	}
	begin := r.Txn
	if r.Kind == record.Begin {
		begin = lsn
	}
	if begin != 0 {
		return c.addTransaction(begin)
	}
	if r, err = c.j.Happened(lsn); err != nil {
		return err
	}
	if r != nil && r.Kind == record.Local {
		return status.Newf(status.Gap, "undo", lsnText(lsn), "a program on the server did this, and what was there before is not known")
	}
	if r == nil || !changes(r) || lsn > c.j.Last() {
		return status.Newf(status.Invalid, "undo", lsnText(lsn), "this record changed nothing that could be taken back")
	}
	c.addRecord(r)
	if r.Kind == record.Make {
		return c.addLists(r)
	}
	return nil
}

// addLists takes in the access control lists with which a file was made: they
// are records of the same change.
func (c *chooser) addLists(m *record.Record) error {
	for lsn := m.LSN + 1; m.Session != 0 && lsn <= c.j.Last(); lsn++ {
		r, err := c.j.Happened(lsn)
		if err != nil {
			return err
		}
		if r == nil || r.Session != m.Session || r.Seq != m.Seq {
			return nil
		}
		c.addRecord(r)
	}
	return nil
}

func (c *chooser) addRecord(r *record.Record) {
	if !c.names[r.LSN] {
		c.names[r.LSN] = true
		c.recs = append(c.recs, r)
	}
}

func (c *chooser) addTransaction(begin proto.LSN) error {
	if c.names[begin] {
		return nil
	}
	t, ok := c.j.Transaction(begin)
	if !ok {
		if _, err := c.j.At(begin - 1); err != nil { // history has given it up
			return err
		}
		return status.Newf(status.Invalid, "undo", lsnText(begin), "this transaction was never completed")
	}
	c.names[begin] = true
	for lsn := t.Begin + 1; lsn < t.Commit; lsn++ {
		r, err := c.j.Happened(lsn)
		if err != nil {
			return err
		}
		if r != nil && r.Txn == begin && changes(r) {
			c.recs = append(c.recs, r)
		}
	}
	return nil
}

// newest takes in what the caller did last under a path: a transaction, or what
// one process group did without a pause. Undone changes are skipped; so are undos
// and redos, which a redo alone looks for.
func (c *chooser) newest(s *journal.Submission, op *proto.Undo) error {
	scope := proto.FileID(0)
	if op.Path = clean(op.Path); op.Path != "" {
		id, err := c.j.FileAt(op.Path)
		if err != nil {
			return err
		}
		scope = id
	}
	var group *record.Record // the last record of the group so far
	err := c.j.Newest(scope, func(r *record.Record) (bool, error) {
		if group != nil && group.Time-r.Time >= groupGap {
			return false, nil
		}
		mine := r.Client == s.Client && r.UID == s.Ident.UID && (r.Session != s.Session || r.Seq != s.Seq)
		if !mine || c.j.Undone(r) != 0 {
			return true, nil
		}
		begin := r.Txn
		if r.Kind == record.Begin {
			begin = r.LSN
		}
		if begin != 0 {
			if group != nil {
				return true, nil
			}
			t, ok := c.j.Transaction(begin)
			if takesBack := t.Kind == journal.KindUndo || t.Kind == journal.KindRedo; !ok || takesBack != op.Redo || op.Redo && t.Kind != journal.KindUndo {
				return true, nil
			}
			return false, c.addTransaction(begin)
		}
		if op.Redo || !changes(r) || group != nil && !sameGroup(r, group) {
			return true, nil
		}
		group = r
		c.addRecord(r)
		return true, nil
	})
	if err == nil && len(c.names) == 0 {
		what := "undo"
		if op.Redo {
			what = "redo"
		}
		return status.Newf(status.NotFound, "", op.Path, "nothing of yours to %s here", what)
	}
	return err
}

// sameGroup reports whether two records are of one process group, or of one
// process where groups are not known.
func sameGroup(a, b *record.Record) bool {
	if a.PGID != 0 || b.PGID != 0 {
		return a.PGID == b.PGID
	}
	return a.Session == b.Session && a.PID == b.PID
}

// maxTargets bounds the text that names what an undo takes back: it is a value of a record.
const maxTargets = record.MaxValue - 1<<10

// target completes the set.
func (c *chooser) target() (*target, error) {
	slices.SortFunc(c.recs, func(a, b *record.Record) int { return int(int64(a.LSN) - int64(b.LSN)) })
	t := &target{recs: c.recs}
	for _, r := range c.recs {
		t.lsns = append(t.lsns, r.LSN)
	}
	if len(t.lsns) == 0 {
		return t, status.Newf(status.Invalid, "undo", "", "these records changed nothing that could be taken back")
	}
	ranges, err := c.ranges()
	if err != nil {
		return t, err
	}
	if t.text = journal.FormatTargets(ranges); len(t.text) > maxTargets {
		return t, status.Newf(status.Invalid, "undo", "", "%d records among those of others are too many for one undo; use rollback", len(t.recs))
	}
	return t, nil
}

// ranges joins names between which there is no other change.
func (c *chooser) ranges() (out [][2]proto.LSN, err error) {
	list := make([]proto.LSN, 0, len(c.names))
	for lsn := range c.names {
		list = append(list, lsn)
	}
	slices.Sort(list)
	for i, lsn := range list {
		if _, txn := c.j.Transaction(lsn); i > 0 && !txn {
			joined, err := c.nothingBetween(list[i-1], lsn)
			if err != nil {
				return nil, err
			}
			if joined {
				out[len(out)-1][1] = lsn
				continue
			}
		}
		out = append(out, [2]proto.LSN{lsn, lsn})
	}
	return out, nil
}

// maxBetween is how far two records of a range may be apart.
const maxBetween = 64

func (c *chooser) nothingBetween(a, b proto.LSN) (bool, error) {
	if b-a > maxBetween {
		return false, nil
	}
	if _, txn := c.j.Transaction(a); txn {
		return false, nil
	}
	for lsn := a + 1; lsn < b; lsn++ {
		r, err := c.j.Happened(lsn)
		if err != nil {
			return false, err
		}
		if r != nil && (changes(r) || r.Kind == record.Begin) {
			return false, nil
		}
	}
	return true, nil
}

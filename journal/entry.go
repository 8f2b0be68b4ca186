package journal

import (
	"fmt"
	"slices"
	"strings"

	"cagefs.dev/cage/journal/record"
	"cagefs.dev/cage/remote/proto"
	"cagefs.dev/cage/remote/status"
)

// Query asks for entries of the history.
type Query struct {
	Path    string    // file or tree below the export, as it is or was; "" everything
	LSN     proto.LSN // only this record or transaction
	Before  proto.LSN // only older than this; 0 from the newest
	After   proto.LSN // only newer than this, oldest first; excludes Before
	Limit   int       // 0: no limit but that of maxEntryBytes
	Records bool      // transactions record by record
}

// Listing is an answer to a query.
type Listing struct {
	Entries []proto.Entry
	More    bool
	Oldest  proto.LSN // the oldest record that is kept
	Upto    proto.LSN // of a query with After: what comes next has newer ones
}

// maxEntryBytes is how much the texts of entries take before no more are returned:
// in a deep tree each path is long.
const maxEntryBytes = 1 << 20

// Entries returns history, newest first unless After is given. Paths are
// as they were. The server's own records are shown only when asked for by number.
// Errors: status.NotFound (a path that never was, a record to come), NoHistory.
func (j *Journal) Entries(q Query) (Listing, error) {
	l := lister{j: j, q: q, oldest: j.oldest(), paths: newPaths(j, 0)}
	if q.LSN != 0 {
		more, err := l.one(q.LSN)
		return Listing{Entries: l.out, More: more, Oldest: l.oldest}, err
	}
	if path := strings.Trim(q.Path, "/"); path != "" && path != "." {
		id, err := j.pathOnce(path)
		if err != nil {
			return Listing{}, err
		}
		l.scope, l.paths.scope = id, id
	}
	if q.After != 0 {
		if q.After+1 < l.oldest {
			return Listing{}, status.Newf(status.NoHistory, "", "history", "record %d is older than what is kept", q.After+1)
		}
		l.upto = max(q.After, min(j.appliedLSN(), j.log.Durable())) // what processes of the server did is applied first
	}
	more, err := l.all()
	return Listing{Entries: l.out, More: more, Oldest: l.oldest, Upto: l.upto}, err
}

// Newest calls f with the newest records that happened under a file or tree (0:
// everywhere), from the newest on, until it returns false.
func (j *Journal) Newest(scope proto.FileID, f func(*record.Record) (bool, error)) error {
	l := lister{j: j, oldest: j.oldest(), scope: scope, paths: newPaths(j, scope)}
	return l.each(func(r *record.Record) (bool, error) { return f(r) })
}

// FileAt returns the file that is at a path, or was there last: status.NotFound.
func (j *Journal) FileAt(path string) (proto.FileID, error) {
	if path = strings.Trim(path, "/"); path == "" || path == "." {
		return proto.RootID, nil
	}
	return j.pathOnce(path)
}

// pathOnce follows a path through names that are or were.
func (j *Journal) pathOnce(path string) (proto.FileID, error) {
	dir := proto.RootID
	for _, name := range strings.Split(path, "/") {
		a, err := j.lookup(dir, name)
		switch status.Of(err) {
		case status.OK:
			dir = a.ID
			continue
		case status.NotFound, status.NotDir, status.Stale:
		default:
			return 0, err
		}
		id, err := j.lastUnder(dir, name)
		if err != nil {
			return 0, err
		}
		if id == 0 {
			return 0, status.New(status.NotFound, "", path)
		}
		dir = id
	}
	return dir, nil
}

// lastUnder returns the file that a name led to last, 0 if history knows none.
func (j *Journal) lastUnder(dir proto.FileID, name string) (proto.FileID, error) {
	for _, lsn := range slices.Backward(j.hist.entries(dir, 0)) {
		r, err := j.hist.read(lsn)
		if err != nil {
			return 0, err
		}
		if r == nil {
			continue
		}
		for _, c := range nameChanges(r) {
			if c.at == (place{dir, name}) && max(c.after, c.before) != 0 {
				if c.after != 0 {
					return c.after, nil
				}
				return c.before, nil
			}
		}
	}
	return 0, nil
}

// lister makes the answer to a query.
type lister struct {
	j      *Journal
	q      Query
	oldest proto.LSN
	scope  proto.FileID // file or tree; 0: everything
	upto   proto.LSN    // of a query with After: the newest to look at
	paths  *paths
	out    []proto.Entry
	bytes  int // of the texts in out
}

// visible reports whether a record is one that users see.
func visible(r *record.Record) bool {
	switch r.Kind {
	case record.Make, record.Link, record.Remove, record.Rename, record.Restore, record.SetAttr,
		record.Truncate, record.Write, record.Allocate, record.SetXattr, record.Label, record.Local, record.Gap, record.Begin:
		return true
	}
	return false
}

// each calls f for the records that happened in scope, in the query's order, until it
// returns false. Of a transaction it gets all records, the Begin record at last, or first.
func (l *lister) each(f func(*record.Record) (bool, error)) error {
	next := l.walker()
	for {
		lsn, ok := next()
		if !ok {
			return nil
		}
		r, err := l.happened(lsn)
		if err != nil {
			return err
		}
		if r == nil || !visible(r) {
			continue
		}
		in, err := l.inScope(r)
		if err != nil {
			return err
		}
		if !in {
			continue
		}
		if more, err := f(r); err != nil || !more {
			return err
		}
	}
}

// walker returns the numbers to look at, in the query's order: of a single file its
// own, otherwise all.
func (l *lister) walker() func() (proto.LSN, bool) {
	if l.q.After != 0 {
		return l.onward()
	}
	top := l.j.log.Durable() + 1
	if l.q.Before != 0 {
		top = min(top, l.q.Before)
	}
	if n, ok := l.j.tree.get(l.scope); l.scope == 0 || !ok || n.typ == proto.ModeDir {
		return func() (proto.LSN, bool) {
			top--
			return top, top >= l.oldest && top > 0
		}
	}
	list := slices.Concat(l.j.hist.names(l.scope, 0), l.j.hist.data(l.scope, 0))
	slices.Sort(list)
	i, _ := slices.BinarySearch(list, top)
	return func() (proto.LSN, bool) {
		if i--; i < 0 {
			return 0, false
		}
		return list[i], list[i] >= l.oldest
	}
}

// onward is walker where the order is ascending.
func (l *lister) onward() func() (proto.LSN, bool) {
	at := l.q.After
	if n, ok := l.j.tree.get(l.scope); l.scope == 0 || !ok || n.typ == proto.ModeDir {
		return func() (proto.LSN, bool) {
			at++
			return at, at <= l.upto
		}
	}
	list := slices.Concat(l.j.hist.names(l.scope, at), l.j.hist.data(l.scope, at))
	slices.Sort(list)
	return func() (proto.LSN, bool) {
		if len(list) == 0 || list[0] > l.upto {
			return 0, false
		}
		at, list = list[0], list[1:]
		return at, true
	}
}

// happened returns a record that is applied, nil for others.
func (l *lister) happened(lsn proto.LSN) (*record.Record, error) {
	r, err := l.j.hist.read(lsn)
	if err != nil || r == nil {
		return nil, err
	}
	if !local(r) && r.Kind != record.Gap && lsn > l.j.appliedLSN() {
		return nil, nil
	}
	in := r.Txn
	if r.Kind == record.Begin {
		in = r.LSN
	}
	if in != 0 {
		if _, ok := l.j.hist.transaction(in); !ok {
			return nil, nil
		}
	}
	return r, nil
}

// inScope reports whether a record concerns the scope, as names were then.
func (l *lister) inScope(r *record.Record) (bool, error) {
	if l.scope == 0 {
		return true, nil
	}
	if r.ID == 0 { // labels and the like are nobody's
		return false, nil
	}
	if r.ID == l.scope || r.Victim == l.scope {
		return true, nil
	}
	dirs := []proto.FileID{r.Dir, r.NewDir}
	if r.Dir == 0 {
		places, err := l.paths.places(r.ID, r.LSN)
		if err != nil {
			return false, err
		}
		for _, p := range places {
			dirs = append(dirs, p.dir)
		}
	}
	for _, d := range dirs {
		if d == 0 {
			continue
		}
		if in, err := l.paths.inScope(d, r.LSN); in || err != nil {
			return in, err
		}
	}
	return false, nil
}

// full reports whether the answer has no room for more.
func (l *lister) full() bool {
	return l.q.Limit > 0 && len(l.out) == l.q.Limit || l.bytes >= maxEntryBytes
}

// one shows a record or transaction by number.
func (l *lister) one(lsn proto.LSN) (more bool, err error) {
	switch {
	case lsn > l.j.appliedLSN():
		return false, status.Newf(status.NotFound, "", "history", "record %d is not there yet", lsn)
	case lsn < l.oldest:
		return false, status.Newf(status.NoHistory, "", "history", "record %d is older than what is kept", lsn)
	}
	r, err := l.j.log.Read(lsn, false)
	if err != nil {
		return false, err
	}
	if t, ok := l.j.hist.transaction(lsn); ok && l.q.Records {
		top := t.end
		if l.q.Before != 0 {
			top = min(top, l.q.Before-1)
		}
		for at := top; at > t.begin; at-- {
			rec, err := l.happened(at)
			if err != nil {
				return false, err
			}
			if rec == nil || rec.Txn != lsn || rec.Kind == record.Commit {
				continue
			}
			if l.full() {
				return true, nil
			}
			if err := l.show(rec); err != nil {
				return false, err
			}
		}
	}
	if l.q.Before != 0 && l.q.Before <= lsn {
		return false, nil
	}
	if l.full() {
		return true, nil
	}
	return false, l.show(r)
}

// all collects entries up to the limit.
func (l *lister) all() (more bool, err error) {
	shown := proto.LSN(0) // transaction that has its line already
	err = l.each(func(r *record.Record) (bool, error) {
		in, at := r.Txn, r.LSN
		if r.Kind == record.Begin {
			in = r.LSN
		}
		if in != 0 && !l.q.Records {
			if in == shown {
				return true, nil
			}
			begin, err := l.j.hist.read(in)
			if err != nil {
				return false, err
			}
			r, shown = begin, in
		}
		if r == nil || l.q.Before != 0 && r.LSN >= l.q.Before {
			return true, nil
		}
		if more = l.full(); more {
			if l.upto != 0 {
				l.upto = at - 1
			}
			return false, nil
		}
		return true, l.show(r)
	})
	return more, err
}

// show appends the entry of a record.
func (l *lister) show(r *record.Record) error {
	e := proto.Entry{LSN: r.LSN, Time: r.Time, Kind: kindName(r), ID: r.ID, Client: l.j.ClientName(r.Client),
		Session: r.Session, UID: r.UID, GID: r.GID, PID: r.PID, PGID: r.PGID, Comm: r.Comm,
		Off: r.Off, Txn: r.Txn, Detail: detail(r), Undone: l.j.hist.undone(r.LSN, r.Txn)}
	switch r.Kind {
	case record.Write, record.Allocate:
		e.Bytes = r.Len
	case record.Truncate:
		e.Off, e.Bytes = r.NewSize, r.NewSize
	case record.Begin:
		e.Txn = r.LSN
		if t, ok := l.j.hist.transaction(r.LSN); ok {
			e.Records = uint32(t.count)
		}
	}
	var err error
	if r.Dir != 0 {
		e.Path, err = l.paths.of(place{r.Dir, r.Name}, r.LSN)
		if err == nil && r.NewDir != 0 {
			e.NewPath, err = l.paths.of(place{r.NewDir, r.NewName}, r.LSN)
		}
	} else if r.ID != 0 {
		e.Path, err = l.paths.file(r.ID, r.LSN)
	}
	l.out = append(l.out, e)
	l.bytes += len(e.Path) + len(e.NewPath) + len(e.Detail)
	return err
}

var kindNames = map[record.Kind]string{
	record.Make: "make", record.Link: "link", record.Remove: "remove", record.Rename: "rename", record.Restore: "restore",
	record.SetAttr: "setattr", record.Truncate: "truncate", record.Write: "write", record.Allocate: "allocate", record.Data: "data",
	record.Synced: "synced", record.Local: "local", record.Adopt: "adopt", record.Result: "result", record.Cancel: "cancel",
	record.Commit: "commit", record.Label: "label", record.IDs: "ids", record.Boot: "boot", record.Client: "client",
	record.Session: "session", record.Checkpoint: "checkpoint", record.Gap: "gap", record.Locks: "locks", record.Leases: "leases",
}

func kindName(r *record.Record) string {
	switch r.Kind {
	case record.Begin:
		return r.Name
	case record.Restore:
		if r.Txn == 0 { // a file without a name got its first one
			return "link"
		}
	case record.SetXattr:
		if r.HasNew {
			return "setxattr"
		}
		return "removexattr"
	}
	return kindNames[r.Kind]
}

// detail says what else there is to know of a record.
func detail(r *record.Record) string {
	if r.Flag&record.FlagGap != 0 {
		return "while no server ran"
	}
	switch r.Kind {
	case record.Gap:
		return "no server ran since " + r.OldMtime.String()
	case record.Local:
		if !r.HasNew {
			return "attributes"
		}
	case record.Label, record.Client, record.SetXattr:
		return r.Name
	case record.Begin:
		return string(r.Value)
	case record.Make:
		if r.Name == "" {
			return "without a name"
		}
		switch r.New.Mode & proto.ModeType {
		case proto.ModeDir:
			return "directory"
		case proto.ModeSymlink:
			return "-> " + r.Target
		}
	case record.Rename:
		switch {
		case r.Flag&record.FlagExchange != 0:
			return "exchange"
		case r.Victim != 0:
			return "replaced " + r.Victim.String()
		}
	case record.Allocate:
		if r.NewSize != r.OldSize {
			return fmt.Sprintf("size %d, was %d", r.NewSize, r.OldSize)
		}
	case record.Truncate:
		return fmt.Sprintf("size %d, was %d", r.NewSize, r.OldSize)
	case record.Write:
		if r.Flag&record.FlagHole != 0 {
			return "hole"
		}
	case record.SetAttr:
		return attrDetail(r.Old, r.New)
	}
	return ""
}

// attrDetail says what a change of attributes changed.
func attrDetail(old, upd record.Attrs) string {
	var out []string
	if old.Mode != upd.Mode {
		out = append(out, fmt.Sprintf("mode %04o, was %04o", upd.Mode&proto.ModePerm, old.Mode&proto.ModePerm))
	}
	if old.UID != upd.UID || old.GID != upd.GID {
		out = append(out, fmt.Sprintf("owner %d:%d, was %d:%d", upd.UID, upd.GID, old.UID, old.GID))
	}
	if old.Atime != upd.Atime || old.Mtime != upd.Mtime {
		out = append(out, "times")
	}
	return strings.Join(out, "; ")
}

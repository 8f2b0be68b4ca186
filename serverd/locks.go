package serverd

import (
	"maps"
	"slices"
	"sync"
	"time"

	"cagefs.dev/cage/journal"
	"cagefs.dev/cage/remote/lockset"
	"cagefs.dev/cage/remote/proto"
	"cagefs.dev/cage/remote/status"
	"cagefs.dev/cage/remote/wire"
	"cagefs.dev/cage/serverd/lock"
)

// Locks are in memory, and belong to sessions. One that is without connection
// keeps them for a while (Options.Locks); its waits end with the connection, and
// the client asks again. When it comes back it says what it holds, and hears what
// of that is lost. After a restart the sessions from before have as long to
// come back and take what they had, and until then nobody else gets anything. Before
// somebody gets what an absent session had, the journal knows that this one has lost it.

// maxFileLocks and the waits are bounds that no use of locks comes near. A
// session's locks are bounded by what its client can name when it comes back.
const (
	maxFileLocks    = 8192
	maxSessionWaits = 1024
	maxFileWaits    = 2048
)

// locks is the locks of an export, and where to tell of the ends of waits. Safe
// for concurrent use.
type locks struct {
	until   time.Time // sessions from before the start are waited for; set at construction
	journal *journal.Journal

	opening sync.Mutex // orders opens and modes, see modes.go; above mu and session.mu

	mu     sync.Mutex                   // a leaf but for outq's
	table  *lock.Table                  // guarded by mu
	out    map[proto.SessionID]*outq    // guarded by mu; of the sessions that have a connection
	absent map[proto.SessionID]struct{} // guarded by mu; sessions from before the start that are not back
	lost   map[proto.SessionID]bool     // guarded by mu; have lost their locks, and have perhaps not heard of it
	modes  map[proto.SessionID]bool     // guarded by mu; the journal knows that they may have modes

	mentions map[mention]time.Time // guarded by mu; when the log said so

	mirrors map[proto.FileID]*mirror // guarded by mu
	asked   map[lock.WaitID]asked    // guarded by mu; of waits
	found   chan struct{}            // holds one: a program of the server has something that a client wants
}

// newLocks waits for the sessions of an export until a time.
func newLocks(j *journal.Journal, until time.Time) *locks {
	l := &locks{
		until: until, journal: j, out: make(map[proto.SessionID]*outq),
		absent: make(map[proto.SessionID]struct{}), lost: make(map[proto.SessionID]bool), modes: make(map[proto.SessionID]bool), mentions: make(map[mention]time.Time),
		mirrors: make(map[proto.FileID]*mirror), asked: make(map[lock.WaitID]asked), found: make(chan struct{}, 1),
		table: lock.New(lock.Limits{
			SessionLocks: wire.MaxLocks, SessionWaits: maxSessionWaits, FileLocks: maxFileLocks, FileWaits: maxFileWaits,
		}),
	}
	for _, id := range j.Sessions() {
		l.absent[id] = struct{}{}
	}
	for id, s := range j.SessionLocks() {
		l.lost[id], l.modes[id] = s.Lost, s.Modes
	}
	return l
}

// graceLocked reports whether sessions from before the start may still come for their locks.
func (l *locks) graceLocked() bool {
	return len(l.absent) > 0 && time.Now().Before(l.until)
}

// tellLocked tells of the ends of waits.
func (l *locks) tellLocked(done []lock.Done) {
	for len(done) > 0 {
		d := done[0]
		done = done[1:]
		if d.Outcome == lock.Granted {
			done = append(done, l.grantedLocked(&d)...)
		}
		if d.Outcome == lock.Queued {
			continue
		}
		delete(l.asked, d.ID)
		if q := l.out[d.ID.Session]; q != nil {
			q.lockDone(wire.LockDone{Wait: d.ID.Num, Code: codes[d.Outcome]})
		}
	}
}

// codes are the outcomes as the wire has them.
var codes = map[lock.Outcome]status.Code{
	lock.Granted: status.OK, lock.Held: status.Locked, lock.Deadlock: status.Deadlock, lock.NoRoom: status.NoLocks,
}

// resume makes a session's connection hear of its waits, and the client's list
// the truth about what it has locked. It returns the places in the list of what
// is lost. known says that the session had a connection in this run of the server.
func (l *locks) resume(id proto.SessionID, q *outq, list []lock.Request, known bool) (lost []uint32) {
	for i := range list {
		defer l.mirror(&list[i])()
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	l.out[id] = q
	switch {
	case known:
		files := l.table.Files(id)
		gone, done := l.table.Keep(id, list)
		l.tellLocked(done)
		l.alignAllLocked(files)
		for _, i := range gone {
			lost = append(lost, uint32(i))
		}
	default:
		reclaim := l.graceLocked() && !l.lost[id]
		for i, r := range list {
			if reclaim && l.takeLocked(&r) {
				if outcome, _ := l.table.Lock(r); outcome == lock.Granted {
					continue
				}
			}
			lost = append(lost, uint32(i))
			l.alignLocked(r.File, r.Kind, r.Start, r.End)
		}
	}
	delete(l.absent, id)
	return lost
}

// leave ends the waits of a session with its connection. Idempotent.
func (l *locks) leave(id proto.SessionID, q *outq) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.out[id] == q {
		delete(l.out, id)
		l.table.CancelAll(id)
		maps.DeleteFunc(l.asked, func(w lock.WaitID, _ asked) bool { return w.Session == id })
	}
}

// count is how many locks a session has.
func (l *locks) count(id proto.SessionID) int {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.table.Locks(id)
}

// lose takes its locks from a session that is away, and returns how many there
// were. It blocks for a sync of the journal. Where that fails, the session keeps them.
func (l *locks) lose(id proto.SessionID) (int, error) {
	n := l.count(id)
	if n == 0 {
		return 0, nil
	}
	if err := l.journal.LoseLocks(id); err != nil {
		return 0, err
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	l.lost[id], l.modes[id] = true, false
	l.dropLocked(id)
	return n, nil
}

// dropLocked takes all that it has from a session.
func (l *locks) dropLocked(id proto.SessionID) {
	files := l.table.Files(id)
	l.tellLocked(l.table.Drop(id))
	l.alignAllLocked(files)
}

// end is for a session that does not come back.
func (l *locks) end(id proto.SessionID) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.dropLocked(id)
	delete(l.absent, id)
	delete(l.lost, id)
	delete(l.modes, id)
}

// loseAbsent gives up the sessions from before the start that did not come back
// in time: they have lost what they had. It blocks for a sync of the journal.
func (l *locks) loseAbsent() error {
	l.mu.Lock()
	ids := slices.Collect(maps.Keys(l.absent))
	l.mu.Unlock()
	if len(ids) == 0 {
		return nil
	}
	if err := l.journal.LoseLocks(ids...); err != nil {
		return err
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, id := range ids {
		delete(l.absent, id)
		l.lost[id], l.modes[id] = true, false
	}
	return nil
}

// resumeLocks gives the connection's session its locks; see locks.resume.
func (c *conn) resumeLocks(m *wire.HelloReq, rep *wire.HelloRep) []uint32 {
	known := c.sess.wasHere()
	list, places := make([]lock.Request, 0, len(m.Locks)), make([]uint32, 0, len(m.Locks))
	var lost []uint32
	if rep.Resumed {
		for i, l := range m.Locks {
			if checkMode(&l) != nil || !known && !c.mayReclaim(&l) {
				lost = append(lost, uint32(i))
				continue
			}
			list, places = append(list, c.sess.lockRequest(&l)), append(places, uint32(i))
		}
	}
	for _, i := range c.sess.exp.locks.resume(c.sess.id, c.out, list, known) {
		lost = append(lost, places[i])
	}
	return lost
}

// mayReclaim reports whether a client may have had a lock before the restart. Its
// file may be closed already, while what was written under the lock is on its way.
func (c *conn) mayReclaim(l *wire.Lock) bool {
	if l.At != 0 || c.sess.openFlags(l.ID)&lockFlags(l) == lockFlags(l) && c.sess.holds(l.ID) {
		return true
	}
	a, err := c.sess.exp.Journal.Attr(l.ID)
	if err != nil {
		return false
	}
	flags, ok := c.grant(&a)
	return ok && flags&lockFlags(l) == lockFlags(l)
}

// checkLock refuses what is no lock, and, as giving one up names any range, checkMode what is no mode.
func checkLock(l *wire.Lock) error {
	switch {
	case l.ID == 0 || l.ID > proto.MaxFileID, l.Start > l.End, l.End > lockset.Max,
		l.Kind == lockset.Flock && (l.Start != 0 || l.End != lockset.Max),
		l.Kind == lockset.Opens && (l.Owner != 0 || l.At != 0):
		return status.Invalid
	}
	return nil
}

func checkMode(l *wire.Lock) error {
	if l.Kind == lockset.Opens && lockset.ModeOf(l.Lock) == lockset.NoMode {
		return status.Invalid
	}
	return checkLock(l)
}

// lockFlags is how a file must be open to be locked: as fcntl(2) and flock(2) want it; to keep
// others from opening it at all, as for the first exclusively.
func lockFlags(l *wire.Lock) uint32 {
	switch {
	case l.Kind == lockset.Flock, l.Kind == lockset.Opens && !l.Exclusive, l.At != 0: // an open of the past grants nothing in the present
		return 0
	case l.Exclusive:
		return wire.OpenWrite
	}
	return wire.OpenRead
}

func (s *session) lockRequest(l *wire.Lock) lock.Request {
	return lock.Request{File: lock.File{At: l.At, ID: l.ID}, Owner: lock.Owner{Session: s.id, Num: l.Owner}, Kind: l.Kind, Lock: l.Lock}
}

// lockFile takes a lock, or begins to wait for it.
func lockFile(c *call, m *wire.LockReq) (wire.Message, error) {
	if err := checkMode(&m.Lock); err != nil {
		return nil, err
	}
	mode := m.Lock.Kind == lockset.Opens
	if mode && m.Wait != 0 {
		return nil, status.Invalid
	}
	if !c.sess.holds(m.Lock.ID) || c.sess.openFlags(m.Lock.ID)&lockFlags(&m.Lock) != lockFlags(&m.Lock) {
		return nil, status.Newf(status.Access, "lock", m.Lock.ID.String(), "it is not open for that")
	}
	rep := &wire.LockRep{}
	ready, err := c.exp.locks.ready(c.sess.id)
	if !ready || err != nil {
		rep.Later = true
		return rep, status.Wrap(err, "lock", m.Lock.ID.String())
	}
	r := c.sess.lockRequest(&m.Lock)
	var outcome lock.Outcome
	if mode {
		outcome, err = c.takeMode(r)
	} else {
		outcome = c.exp.locks.lock(r, m.Wait)
	}
	switch {
	case err != nil:
		return nil, err
	case outcome == lock.Queued:
		rep.Queued = true
	case outcome != lock.Granted:
		return nil, status.New(codes[outcome], "lock", m.Lock.ID.String())
	case m.Lock.At == 0:
		// The client compares its pages with this, as at an open.
		a, err := c.exp.Journal.Attr(m.Lock.ID)
		if err == nil {
			rep.Attr = a
		}
	}
	return rep, nil
}

// ready reports whether sessions from before a restart have what they had, so that
// others may be given locks. It may block for a sync of the journal.
func (l *locks) ready(id proto.SessionID) (bool, error) {
	l.mu.Lock()
	grace, lost := l.graceLocked(), l.lost[id]
	l.mu.Unlock()
	if grace {
		return false, nil
	}
	if err := l.loseAbsent(); err != nil || !lost {
		return true, err
	}
	// It would not ask for more if it had not heard of that.
	err := l.journal.ToldLocks(id)
	if err == nil {
		l.mu.Lock()
		defer l.mu.Unlock()
		delete(l.lost, id)
	}
	return true, err
}

// lock is lock.Table's Lock or Wait.
func (l *locks) lock(r lock.Request, wait uint64) (outcome lock.Outcome) {
	defer l.mirror(&r)()
	l.mu.Lock()
	defer l.mu.Unlock()
	l.askLocked(&r)
	had := l.table.Held(r.File, r.Kind, r.Owner).Within(r.Start, r.End)
	var done []lock.Done
	if wait == 0 {
		outcome, done = l.table.Lock(r)
	} else {
		id := lock.WaitID{Session: r.Owner.Session, Num: wait}
		if outcome, done = l.table.Wait(id, r); outcome == lock.Queued {
			l.asked[id] = asked{r, had}
		}
	}
	l.tellLocked(done)
	l.alignLocked(r.File, r.Kind, r.Start, r.End)
	return outcome
}

// testLock tells what is in the way of a lock to who has the file open.
func testLock(c *call, m *wire.LockReq) (wire.Message, error) {
	if err := checkLock(&m.Lock); err != nil {
		return nil, err
	}
	if !c.sess.holds(m.Lock.ID) {
		return nil, status.Newf(status.Access, "testlock", m.Lock.ID.String(), "it is not open")
	}
	l, r := c.exp.locks, c.sess.lockRequest(&m.Lock)
	defer l.mirror(&r)()
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.graceLocked() {
		return &wire.TestLockRep{Later: true}, nil
	}
	if m := l.mirrors[r.File.ID]; m != nil && mirrored(&r) && m.theirs[r.Kind] {
		l.lookLocked(r.File, m, r.Kind)
	}
	h, held := l.table.Test(r)
	if !held {
		h.Lock, held = l.inTheWayLocked(&r)
	}
	return &wire.TestLockRep{Held: held, Mine: h.Owner.Session == c.sess.id, Lock: h.Lock}, nil
}

// unlockFile gives up what the session has of a range.
func unlockFile(c *call, m *wire.LockReq) (wire.Message, error) {
	if err := checkLock(&m.Lock); err != nil {
		return nil, err
	}
	l := c.exp.locks
	l.mu.Lock()
	defer l.mu.Unlock()
	r := c.sess.lockRequest(&m.Lock)
	outcome, done := l.table.Unlock(r)
	l.tellLocked(done)
	l.alignLocked(r.File, r.Kind, r.Start, r.End)
	if outcome != lock.Granted {
		return nil, status.New(codes[outcome], "unlock", m.Lock.ID.String())
	}
	return &wire.Empty{}, nil
}

// unwait ends a wait.
func unwait(c *call, m *wire.UnwaitReq) (wire.Message, error) {
	l := c.exp.locks
	l.mu.Lock()
	defer l.mu.Unlock()
	id := lock.WaitID{Session: c.sess.id, Num: m.Wait}
	l.table.Cancel(id)
	delete(l.asked, id)
	return &wire.Empty{}, nil
}

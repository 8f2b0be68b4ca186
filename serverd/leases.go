package serverd

import (
	"context"
	"sync"
	"time"

	"github.com/rs/zerolog"

	"cagefs.dev/cage/journal"
	"cagefs.dev/cage/remote/boottime"
	"cagefs.dev/cage/remote/proto"
	"cagefs.dev/cage/remote/status"
	"cagefs.dev/cage/remote/wire"
	"cagefs.dev/cage/serverd/lease"
)

// maxLeases is how many leases a session may have, about: as many as it can name when it comes back.
const maxLeases = wire.MaxClaims

// leaseTick is how often time is looked at while somebody waits, leaseLook how
// many of these pass else.
const (
	leaseTick = 100 * time.Millisecond
	leaseLook = 10
)

// Leases is the leases of an export: package lease with its clock, its journal
// and its connections. Its journal asks it before each change
// (journal.Options.Leases) and tells it what programs of the server did
// (Changed). Before a server begins to use it, it allows everything. Safe for
// concurrent use.
type Leases struct {
	journal *journal.Journal // set by begin, as all up to mu
	term    time.Duration
	drop    func(proto.SessionID) // ends a session's connection; must not block
	log     zerolog.Logger
	tasks   sync.WaitGroup

	mu         sync.Mutex // a leaf but for outq's
	table      *lease.Table
	out        map[proto.SessionID]*outq
	known      map[proto.SessionID]bool // the journal says that they may have leases
	waits      map[lease.WaitID]func([]proto.Gen)
	last       uint64
	changes    uint64         // of any file, beginnings and ends
	unrecorded bool           // this has been logged
	early      []proto.FileID // changed by programs of the server, before begin
}

var _ journal.Leases = (*Leases)(nil)

// NewLeases makes leases that nobody can have yet.
func NewLeases() *Leases { return &Leases{} }

// begin gives leases from now on, in the grace time first if sessions from
// before the start may have some.
func (l *Leases) begin(j *journal.Journal, term time.Duration, drop func(proto.SessionID), log zerolog.Logger) {
	before := j.SessionLeases() // takes the journal's lock, under which Changed takes this one
	l.mu.Lock()
	defer l.mu.Unlock()
	l.journal, l.term, l.drop, l.log = j, term, drop, log
	l.out, l.waits, l.known = make(map[proto.SessionID]*outq), make(map[lease.WaitID]func([]proto.Gen)), make(map[proto.SessionID]bool)
	for id := range before {
		l.known[id] = true
	}
	l.table = lease.New(lease.Options{Boot: j.Boot(), Term: term, Limit: maxLeases, Now: boottime.Now(), Before: before})
	l.doLocked(l.table.Revoke(0, l.early, boottime.Now()))
	l.early = nil
}

// run is the passing of time, until ctx ends.
func (l *Leases) run(ctx context.Context) {
	ticker := time.NewTicker(leaseTick)
	defer ticker.Stop()
	for n := 0; ; n++ {
		select {
		case <-ticker.C:
			l.mu.Lock()
			if l.table.Busy() || n%leaseLook == 0 {
				l.doLocked(l.table.Tick(boottime.Now()))
			}
			l.mu.Unlock()
		case <-ctx.Done():
			l.tasks.Wait()
			return
		}
	}
}

// doLocked does what the table wants done.
func (l *Leases) doLocked(actions []lease.Action) {
	for _, a := range actions {
		switch a.Kind {
		case lease.Recall:
			if q := l.out[a.Session]; q != nil {
				q.recall(wire.Recall{ID: a.ID, Gen: a.Gen, Mode: a.Mode})
			}
		case lease.Peek:
			if q := l.out[a.Session]; q != nil {
				q.peek(wire.Peek{ID: a.ID, Num: a.Num})
			}
		case lease.Ready:
			if then := l.waits[a.Wait]; then != nil {
				delete(l.waits, a.Wait)
				then(a.Gens)
			}
		case lease.Fence:
			l.drop(a.Session) // it hears of it when it comes back
			l.tasks.Go(func() { l.fence(a) })
		case lease.Drop:
			l.log.Warn().Str("session", sessionText(a.Session)).Msg("it does not give back leases, and loses them")
			l.drop(a.Session)
		}
	}
}

// fence records that leases of a session are void and then takes them away. Where
// it cannot be recorded, they stay, and who waits for them does: the export takes no more changes then.
func (l *Leases) fence(a lease.Action) {
	var err error
	if len(a.Files) > 0 {
		err = l.journal.VoidLeases(a.Session, a.Files, a.Gen)
	} else {
		err = l.journal.NoLeases(a.Session)
	}
	if err != nil && status.Of(err) != status.LostSession && status.Of(err) != status.Unsupported {
		l.mu.Lock()
		defer l.mu.Unlock()
		l.table.Unfenced(a)
		if !l.unrecorded { // it comes again, many times a second
			l.unrecorded = true
			l.log.Error().Err(err).Str("session", sessionText(a.Session)).Msg("the end of its leases cannot be recorded")
		}
		return
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if len(a.Files) == 0 {
		delete(l.known, a.Session)
	}
	l.log.Info().Str("session", sessionText(a.Session)).Int("files", len(a.Files)).Msg("leases of a silent session are void")
	l.doLocked(l.table.Fenced(a, boottime.Now()))
}

// barred reports whether a session has to wait before it gets a connection.
func (l *Leases) barred(id proto.SessionID) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.table.Barred(id)
}

// enter is the beginning of a session's connection. uses says that its replies
// may give leases. It blocks for a sync of the journal the first time.
func (l *Leases) enter(id proto.SessionID, uses bool, q *outq, claims []wire.Claim) (lost []uint32, void proto.Gen, err error) {
	if uses {
		if err := l.record(id); err != nil {
			return nil, void, err
		}
	}
	list := make([]lease.Claim, len(claims))
	for i, c := range claims {
		list[i] = lease.Claim{ID: c.ID, Gen: c.Gen, First: c.First, Mode: c.Mode, Unasked: c.Gen.Boot < l.journal.Boot() && l.journal.Unasked(c.ID)}
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	l.out[id] = q
	places, void, actions := l.table.Begin(id, list, boottime.Now())
	l.doLocked(actions)
	for _, i := range places {
		lost = append(lost, uint32(i))
	}
	return lost, void, nil
}

// record makes sure that the journal knows that a session may have leases. It
// blocks for a sync of the journal the first time.
func (l *Leases) record(id proto.SessionID) error {
	l.mu.Lock()
	known := l.known[id]
	l.mu.Unlock()
	if known {
		return nil
	}
	if err := l.journal.SetLeases(id); err != nil {
		return err
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	l.known[id] = true
	return nil
}

// leave is the end of a session's connection. Idempotent.
func (l *Leases) leave(id proto.SessionID, q *outq) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.out[id] == q {
		delete(l.out, id)
	}
}

// end is the end of a session; sure: its client said so itself.
func (l *Leases) end(id proto.SessionID, sure bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	delete(l.known, id)
	l.doLocked(l.table.End(id, sure, boottime.Now()))
}

// heard says that a session's request came. If it is false, it must not be answered.
func (l *Leases) heard(id proto.SessionID) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.table.Heard(id, boottime.Now())
}

// progress says that changes of a session are done.
func (l *Leases) progress(id proto.SessionID) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.table.Progress(id, boottime.Now())
}

// wait asks for leases and looks, and returns when they are had, or with ctx's
// error. then, unless nil, is called at that moment, with the lock held: what it queues for the
// session is sent before the recall of what it has just got.
func (l *Leases) wait(ctx context.Context, id proto.SessionID, wants []proto.Want, then func([]proto.Gen)) error {
	ready := make(chan struct{})
	l.mu.Lock()
	l.last++
	w := lease.WaitID{Session: id, Num: l.last}
	l.waits[w] = func(gens []proto.Gen) {
		if then != nil {
			then(gens)
		}
		close(ready)
	}
	l.doLocked(l.table.Wait(w, wants, boottime.Now()))
	l.mu.Unlock()
	select {
	case <-ready:
		return nil
	case <-ctx.Done():
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.waits[w] == nil { // had at the same time
		return nil
	}
	delete(l.waits, w)
	l.doLocked(l.table.Cancel(w, boottime.Now()))
	return ctx.Err()
}

// look returns when what others have acknowledged of files by now is applied.
func (l *Leases) look(ctx context.Context, id proto.SessionID, files ...proto.FileID) error {
	var wants []proto.Want
	l.mu.Lock()
	for _, file := range files {
		if l.table.Foreign(id, file) {
			wants = append(wants, proto.Want{ID: file})
		}
	}
	l.mu.Unlock()
	if len(wants) == 0 {
		return nil
	}
	return l.wait(ctx, id, wants, nil)
}

// grant gives a lease if nothing is in the way; foreign says that somebody has
// the write lease instead.
func (l *Leases) grant(id proto.SessionID, file proto.FileID, mode proto.LeaseMode) (given proto.Lease, foreign bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.known[id] { // else a crash would make nobody wait for it
		var actions []lease.Action
		given, actions = l.table.Grant(id, file, mode, boottime.Now())
		l.doLocked(actions)
	}
	return given, given.Mode == proto.NoLease && l.table.Foreign(id, file)
}

// foreign reports whether others may have acknowledged changes of a file that are not applied.
func (l *Leases) foreign(id proto.SessionID, file proto.FileID) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.table.Foreign(id, file)
}

// back is a session's answer to a recall, of which everything is applied.
func (l *Leases) back(id proto.SessionID, m *wire.ReturnReq) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.doLocked(l.table.Return(id, m.ID, m.Gen, m.Mode, boottime.Now()))
}

// peeked is a session's answer to a look, of which everything is applied.
func (l *Leases) peeked(id proto.SessionID, m *wire.PeekedReq) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.doLocked(l.table.Peeked(id, m.ID, m.Num, boottime.Now()))
}

// settled says that a session relies on nothing from before its resume.
func (l *Leases) settled(id proto.SessionID) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.doLocked(l.table.Settled(id, boottime.Now()))
}

// count is how many leases a session has, and how many of them for writing.
func (l *Leases) count(id proto.SessionID) (all, writing int) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.table.Count(id)
}

// changed is how often changes have begun and ended.
func (l *Leases) changed() uint64 {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.changes
}

// errVoid is the answer to a change under a lease that its session has lost.
var errVoid = status.Newf(status.LostLock, "change", "", "it was acknowledged under a lease that is lost")

// Admit implements journal.Leases.
func (l *Leases) Admit(s *journal.Submission, files []proto.FileID) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.table == nil {
		return nil
	}
	if w, ok := s.Op.(*proto.Write); ok && w.Mapped {
		l.changes++
		l.doLocked(l.table.Force(s.Session, files, boottime.Now()))
		return nil
	}
	switch l.table.Admit(s.Session, s.Gen, files) {
	case lease.Again:
		return &wire.NeedLeases{IDs: files}
	case lease.Void:
		return errVoid
	}
	l.changes++
	return nil
}

// Refuse implements journal.Leases: an answer that tells of a file which others
// have changes of that are not applied would not be true.
func (l *Leases) Refuse(s *journal.Submission, files []proto.FileID) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.table == nil || s.Gen != (proto.Gen{}) {
		return nil
	}
	if w, ok := s.Op.(*proto.Write); ok && w.Mapped {
		return nil
	}
	for _, id := range files {
		if l.table.Foreign(s.Session, id) {
			return &wire.NeedLeases{IDs: files}
		}
	}
	return nil
}

// Done implements journal.Leases.
func (l *Leases) Done(files []proto.FileID) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.table != nil {
		l.changes++
		l.doLocked(l.table.Done(files, boottime.Now()))
	}
}

// Changed is told of each applied change; those by programs of the server are
// news to who has leases.
func (l *Leases) Changed(a journal.Applied) {
	if a.Session != 0 {
		return
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	l.changes++
	for _, id := range []proto.FileID{a.ID, a.Dir, a.NewDir} {
		switch {
		case id == 0:
		case l.table == nil: // found at the start
			l.early = append(l.early, id)
		default:
			l.doLocked(l.table.Revoke(0, []proto.FileID{id}, boottime.Now()))
		}
	}
}

package journal

import (
	"maps"
	"slices"

	"cagefs.dev/cage/journal/record"
	"cagefs.dev/cage/remote/proto"
	"cagefs.dev/cage/remote/status"
)

// maxResults bounds the results that a session keeps for repetitions; a client
// has fewer operations on their way.
const maxResults = 8192

// session is what the journal knows of a client's session: the results of its
// operations, so that each is applied once. Guarded by planMu.
//
// An operation without effect, one that failed or had nothing to do, leaves no
// record of its own, or clients that may change nothing could fill the log, and so
// take their history from the others. Its result is in memory, and goes into the log before the
// next record of the session. So after a restart either the result is known, or
// nothing that the session did after it took effect, and to decide it anew is as if
// it had come later.
type session struct {
	client   uint32
	key      string
	recorded bool                  // the log says that it began
	leased   bool                  // the log says that it may have leases
	void     map[proto.FileID]void // its leases of these up to there are void
	since    proto.LSN             // of the record that said whether it may have leases
	locks    LockState
	last     proto.Seq // newest operation that has a result, or is on its way to one
	acked    proto.Seq // results up to this one are dropped
	results  map[proto.Seq]result
	held     map[proto.Seq]struct{} // of results, those that are in no record
	pending  map[proto.Seq]*Ticket
}

// result is what a repeated operation is answered with.
type result struct {
	code status.Code
	lsn  proto.LSN
	id   proto.FileID
	n    uint64
}

func newSession(client uint32, key string) *session {
	return &session{client: client, key: key, results: map[proto.Seq]result{}, held: map[proto.Seq]struct{}{}, pending: map[proto.Seq]*Ticket{}}
}

// drop forgets results that the client has. It costs no more than there were:
// who acknowledges one by one, and late, holds nobody up.
func (ses *session) drop(acked proto.Seq) {
	acked = min(acked, ses.last)
	if acked <= ses.acked {
		return
	}
	if uint64(acked-ses.acked) <= uint64(len(ses.results)) {
		for seq := ses.acked + 1; seq <= acked; seq++ {
			delete(ses.results, seq)
			delete(ses.held, seq)
		}
	} else {
		maps.DeleteFunc(ses.results, func(seq proto.Seq, _ result) bool { return seq <= acked })
		maps.DeleteFunc(ses.held, func(seq proto.Seq, _ struct{}) bool { return seq <= acked })
	}
	ses.acked = acked
}

// repeatedLocked answers an operation that was submitted before.
func (j *Journal) repeatedLocked(s *Submission) (*Ticket, bool, error) {
	if s.Session == 0 {
		return nil, false, nil
	}
	ses := j.sessions[s.Session]
	if ses == nil {
		return nil, false, status.New(status.LostSession, "", "")
	}
	ses.drop(s.Acked)
	if t := ses.pending[s.Seq]; t != nil {
		return t, true, nil
	}
	if r, ok := ses.results[s.Seq]; ok {
		if r.code != status.OK {
			return answered(proto.Result{LSN: r.lsn}, status.New(r.code, "", "")), true, nil
		}
		if j.refills(s) {
			return nil, false, nil
		}
		res := proto.Result{LSN: r.lsn, ID: r.id, N: r.n}
		if a, err := j.attr(r.id); err == nil {
			res.Attr = a
			j.holdNameless(s, r.id)
		}
		return answered(res, nil), true, nil
	}
	if len(ses.results) >= maxResults {
		return nil, false, status.Newf(status.Invalid, "", "session", "more than %d results not acknowledged", maxResults)
	}
	return nil, false, nil
}

// withoutEffect answers an operation that changes nothing. The caller holds planMu.
func (j *Journal) withoutEffect(p *pending, err error) *Ticket {
	if ses := j.sessions[p.sub.Session]; ses != nil {
		r := result{code: status.Of(err)}
		if err == nil {
			r.id, r.n = p.id, p.n
		}
		if _, done := ses.results[p.sub.Seq]; !done || err != nil { // done: lost bytes need not be filled in any more
			ses.results[p.sub.Seq] = r
			ses.held[p.sub.Seq] = struct{}{}
		}
		ses.last = max(ses.last, p.sub.Seq)
	}
	if err != nil {
		return answered(proto.Result{}, err)
	}
	return answered(proto.Result{ID: p.id, N: p.n}, nil)
}

// appendFor appends records of a submission, and before them what the log does not
// say yet of its session. The caller holds planMu.
func (j *Journal) appendFor(s *Submission, recs ...*record.Record) error {
	ses := j.sessions[s.Session]
	if ses == nil || ses.recorded && len(ses.held) == 0 {
		return j.log.Append(recs...)
	}
	var before []*record.Record
	if !ses.recorded {
		before = append(before, beginOf(s.Session, ses))
	}
	held := slices.Sorted(maps.Keys(ses.held))
	for _, seq := range held {
		r := ses.results[seq]
		before = append(before, &record.Record{Kind: record.Result, Session: s.Session, Seq: seq, Client: ses.client,
			Status: uint16(r.code), ID: r.id, Count: r.n})
	}
	if err := j.log.Append(slices.Concat(before, recs)...); err != nil {
		return err
	}
	ses.recorded = true
	for i, rec := range before[len(before)-len(held):] {
		r := ses.results[held[i]]
		r.lsn = rec.LSN
		ses.results[held[i]] = r
	}
	clear(ses.held)
	return nil
}

// beginOf is the record of a session's beginning.
func beginOf(id proto.SessionID, ses *session) *record.Record {
	return &record.Record{Kind: record.Session, Session: id, Client: ses.client, Count: 1, Value: []byte(ses.key)}
}

// sessionPending notes a queued change. The caller holds planMu.
func (j *Journal) sessionPending(p *pending) {
	if ses := j.sessions[p.sub.Session]; ses != nil {
		ses.pending[p.sub.Seq] = p.Ticket
		ses.last = max(ses.last, p.sub.Seq)
	}
}

// sessionDone keeps a result. The caller holds planMu.
func (j *Journal) sessionDone(p *pending) {
	ses := j.sessions[p.sub.Session]
	if ses == nil {
		return
	}
	delete(ses.pending, p.sub.Seq)
	ses.results[p.sub.Seq] = result{code: status.Of(p.err), lsn: p.last().LSN, id: p.id, n: p.n}
}

// sessionReplay does the same from a record of the log.
func (j *Journal) sessionReplay(r *record.Record) {
	switch r.Kind {
	case record.Session:
		if r.Count != 1 {
			delete(j.sessions, r.Session)
		} else if j.sessions[r.Session] == nil { // not from the checkpoint
			j.sessions[r.Session] = newSession(r.Client, string(r.Value))
			j.sessions[r.Session].recorded = true
		}
		return
	case record.Adopt, record.Local:
		return
	case record.Leases:
		if ses := j.sessions[r.Session]; ses != nil {
			ses.setLeases(r)
		}
		return
	case record.Locks:
		if ses := j.sessions[r.Session]; ses != nil {
			ses.setLocks(r)
		}
		return
	}
	ses := j.sessions[r.Session]
	if ses == nil || r.Seq == 0 {
		return
	}
	res := result{lsn: r.LSN, id: r.ID}
	if r.Kind == record.Begin || r.Txn != 0 { // a transaction is done by its last record, and known by its first
		if r.Kind != record.Commit {
			return
		}
		res = result{lsn: r.Txn}
	}
	switch r.Kind {
	case record.Write:
		res.n = r.Count
	case record.Result:
		res.code, res.n = status.Code(r.Status), r.Count
	case record.Cancel:
		res.code, res.id = status.Code(r.Status), 0
	}
	ses.last = max(ses.last, r.Seq)
	ses.results[r.Seq] = res
}

func (j *Journal) openSession(id proto.SessionID, client uint32, key string, recorded bool) error {
	j.planMu.Lock()
	defer j.planMu.Unlock()
	if err := j.usable(); err != nil {
		return err
	}
	ses := newSession(client, key)
	if recorded {
		if err := j.log.Append(beginOf(id, ses)); err != nil {
			return err
		}
		ses.recorded = true
		j.kick()
	}
	j.sessions[id] = ses
	return nil
}

func (j *Journal) resumeSession(id proto.SessionID, key string) (proto.Seq, error) {
	j.planMu.Lock()
	defer j.planMu.Unlock()
	ses := j.sessions[id]
	if ses == nil || ses.key != key {
		return 0, status.New(status.LostSession, "", "")
	}
	return ses.last, nil
}

func (j *Journal) closeSession(id proto.SessionID) error {
	j.planMu.Lock()
	defer j.planMu.Unlock()
	ses := j.sessions[id]
	if ses == nil {
		return nil
	}
	delete(j.sessions, id)
	j.returned(id)
	j.lost.forget(j.sessions, j.tree.table)
	if !ses.recorded || j.usable() != nil {
		return nil // a session nobody can use any more need not be recorded as closed
	}
	r := &record.Record{Kind: record.Session, Session: id}
	if err := j.log.Append(r); err != nil {
		return err
	}
	j.kick()
	return nil
}

// Sessions lists the sessions that the journal keeps, so that the server can
// end those that nobody resumed.
func (j *Journal) Sessions() []proto.SessionID {
	j.planMu.Lock()
	defer j.planMu.Unlock()
	out := make([]proto.SessionID, 0, len(j.sessions))
	for id := range j.sessions {
		out = append(out, id)
	}
	return out
}

func (j *Journal) client(name string, max int) (uint32, error) {
	j.planMu.Lock()
	defer j.planMu.Unlock()
	if n, ok := j.clientNo[name]; ok {
		return n, nil
	}
	if err := j.usable(); err != nil {
		return 0, err
	}
	if len(j.clients) >= max {
		return 0, status.Newf(status.NoSpace, "", "journal", "it has the names of %d clients", len(j.clients))
	}
	n := uint32(len(j.clients) + 1)
	r := &record.Record{Kind: record.Client, Count: uint64(n), Name: name}
	if err := j.log.Append(r); err != nil {
		return 0, err
	}
	j.setClient(n, name)
	j.kick()
	return n, nil
}

// setClient enters a client into the dictionary. The caller holds planMu.
func (j *Journal) setClient(n uint32, name string) {
	j.clients[n] = name
	j.clientNo[name] = n
}

// ClientName returns the name of a client number, "" for the server itself.
func (j *Journal) ClientName(n uint32) string {
	j.planMu.Lock()
	defer j.planMu.Unlock()
	if n == record.LocalClient {
		return LocalClient
	}
	return j.clients[n]
}

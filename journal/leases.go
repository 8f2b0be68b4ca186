package journal

import (
	"encoding/binary"
	"slices"

	"cagefs.dev/cage/journal/record"
	"cagefs.dev/cage/remote/proto"
	"cagefs.dev/cage/remote/status"
)

// Leases decides whether a change may be made that others may have leases
// against. Its methods are called with the lock held that orders all changes,
// must be quick, and call nothing of the journal.
type Leases interface {
	// Admit is called before the change of files gets its place in the log; an
	// error, which is the change's answer and leaves no result, keeps it from that.
	// Without one, Done follows when it is applied, or never will be.
	Admit(s *Submission, files []proto.FileID) error
	// Refuse is called instead where the change would have no effect, err or nil
	// being its result, with the files it names. An error takes that one's place.
	Refuse(s *Submission, files []proto.FileID) error
	Done(files []proto.FileID)
}

// SessionLeases says which sessions may have leases, and of which files those up
// to a generation are void. For the start of the server.
func (j *Journal) SessionLeases() map[proto.SessionID]map[proto.FileID]proto.Gen {
	j.planMu.Lock()
	defer j.planMu.Unlock()
	out := make(map[proto.SessionID]map[proto.FileID]proto.Gen)
	for id, ses := range j.sessions {
		if ses.leased {
			out[id] = make(map[proto.FileID]proto.Gen, len(ses.void))
			for file, v := range ses.void {
				out[id][file] = v.upTo
			}
		}
	}
	return out
}

// SetLeases records, durably, that a session may have leases from now on. It
// blocks for a sync of the log. Errors: status.LostSession, Unsupported for a
// session of which the log does not know yet.
func (j *Journal) SetLeases(id proto.SessionID) error {
	return j.recordLeases(&record.Record{Kind: record.Leases, Session: id, Count: 1})
}

// NoLeases records, durably, that a session has no leases any more. It blocks for
// a sync of the log.
func (j *Journal) NoLeases(id proto.SessionID) error {
	return j.recordLeases(&record.Record{Kind: record.Leases, Session: id})
}

// VoidLeases records, durably, that a session's leases of files up to a
// generation are void for ever. It blocks for a sync of the log.
func (j *Journal) VoidLeases(id proto.SessionID, files []proto.FileID, upTo proto.Gen) error {
	for part := range slices.Chunk(files, maxVoid) {
		r := &record.Record{Kind: record.Leases, Session: id, Count: 2, Off: uint64(upTo.Boot), Len: upTo.Counter}
		for _, f := range part {
			r.Value = binary.AppendUvarint(r.Value, uint64(f))
		}
		if err := j.recordLeases(r); err != nil {
			return err
		}
	}
	return nil
}

// maxVoid is how many files a record names.
const maxVoid = 1024

func (j *Journal) recordLeases(r *record.Record) error {
	j.planMu.Lock()
	ses := j.sessions[r.Session]
	err := j.usable()
	switch {
	case err != nil:
	case ses == nil:
		err = status.New(status.LostSession, "", "")
	case !ses.recorded:
		err = status.Unsupported
	default:
		if err = j.log.Append(r); err == nil {
			ses.setLeases(r)
		}
	}
	j.planMu.Unlock()
	if err != nil {
		return err
	}
	return j.log.Commit()
}

// setLeases takes in what a record says.
func (ses *session) setLeases(r *record.Record) {
	if r.Count != 2 {
		ses.leased, ses.void, ses.since = r.Count == 1, nil, r.LSN
		return
	}
	d := decoder{b: r.Value}
	for len(d.b) > 0 {
		ses.voidLease(proto.FileID(d.num()), void{proto.Gen{Boot: uint32(r.Off), Counter: r.Len}, r.LSN})
	}
}

func (ses *session) voidLease(id proto.FileID, v void) {
	if ses.void == nil {
		ses.void = make(map[proto.FileID]void)
	}
	ses.void[id] = v
}

// void says that leases up to a generation do not count, since a record.
type void struct {
	upTo  proto.Gen
	since proto.LSN
}

// knew is up to which record a session knew a file when it lost the lease of it, 0 if nobody knows.
func (ses *session) knew(id proto.FileID) proto.LSN {
	if v, ok := ses.void[id]; ok {
		return v.since
	}
	if !ses.leased {
		return ses.since
	}
	return 0
}

// touched are the files that records change, the directories of names included,
// without those that they make.
func touched(recs []*record.Record) (out []proto.FileID) {
	made := map[proto.FileID]bool{}
	for _, r := range recs {
		if r.Kind == record.Make {
			made[r.ID] = true
		}
	}
	for _, r := range recs {
		for _, id := range []proto.FileID{r.ID, r.Dir, r.NewDir, r.Victim} {
			if id != 0 && !made[id] {
				made[id] = true // once
				out = append(out, id)
			}
		}
	}
	return out
}

// admitLocked asks whether a planned change may be made, and notes its files.
// The caller holds planMu.
func (j *Journal) admitLocked(p *pending, planned error) error {
	l := j.opts.Leases
	if l == nil || p.sub.Session == 0 {
		return nil
	}
	if planned != nil || len(p.recs) == 0 {
		return l.Refuse(p.sub, filesOf(p.sub.Op))
	}
	files := touched(p.recs)
	if len(files) == 0 { // a label
		return nil
	}
	if err := l.Admit(p.sub, files); err != nil {
		return err
	}
	p.files = files
	return nil
}

// admittedLocked ends what admitLocked began. The caller holds planMu.
func (j *Journal) admittedLocked(p *pending) {
	if p.files != nil {
		j.opts.Leases.Done(p.files)
		p.files = nil
	}
}

// Unasked reports whether the newest change of a file, or of a directory's names, is or may be one by a process of the
// server, of which nobody was asked before, so that who had a lease when the server ended may not know of it: the
// newest record says so, or the server died, and may not have recorded what was done to the file in its last moments.
func (j *Journal) Unasked(id proto.FileID) bool {
	if j.hist.byProcess(id) {
		return true
	}
	g := &j.local.gap
	if g.since == 0 || g.clean {
		return false
	}
	a, err := j.attr(id)
	return err != nil || a.Ctime > g.since-unnoticed
}

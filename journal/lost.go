package journal

import (
	"bytes"
	"maps"
	"slices"

	"cagefs.dev/cage/journal/record"
	"cagefs.dev/cage/remote/proto"
	"cagefs.dev/cage/remote/status"
)

// lost are the new bytes, by file, that the log knows by checksum and that a cut
// has kept from the disk: the record was committed, the bytes were not yet
// written, or not synced. Their session has either not heard of the write's
// success: then it sends it again, and the bytes are filled in. Or it has: then
// its next sync of the file tells that they are gone. Without this a sync would
// succeed and the bytes be missing. Guarded by planMu; a function of checkpoint and log.
type lost map[proto.FileID][]lostSpan

// lostSpan is a range of one write.
type lostSpan struct {
	span
	session proto.SessionID
	seq     proto.Seq
	// The syncs of the file, and of all files, that were told; 0: none yet. Not in checkpoints.
	told, toldAll proto.Seq
}

func (m lost) clone() lost {
	out := maps.Clone(m)
	for id, spans := range out {
		out[id] = slices.Clone(spans)
	}
	return out
}

// follow takes in a record. l is the file's layout before it; it is needed for
// records of recovery, which take lost bytes out of a file. All others bring
// bytes, or the end of the file, to where lost ones were.
func (m lost) follow(r *record.Record, l *layout) {
	switch {
	case r.Kind == record.Write && r.Flag&record.FlagRecovered != 0:
		m.add(r.ID, l, span{int64(r.Off), int64(r.Off + r.Len)})
	case r.Kind == record.Truncate && r.Flag&record.FlagRecovered != 0:
		m.add(r.ID, l, span{int64(r.NewSize), int64(r.OldSize)})
	case r.Kind == record.Write:
		m.cut(r.ID, span{int64(r.Off), int64(r.Off + r.Len)})
	case r.Kind == record.Truncate:
		m.cut(r.ID, span{int64(r.NewSize), 1 << 62})
	}
}

// applied takes in what has become of a change. A write's record may be wider
// than the write: the zeros around it are nobody's bytes.
func (m lost) applied(p *pending) {
	op, ok := p.sub.Op.(*proto.Write)
	switch {
	case p.err != nil:
	case ok && p.data != nil:
		at := int64(op.Off)
		if op.Append {
			at = int64(p.n)
		}
		m.cut(op.ID, span{at, at + int64(len(op.Data))})
	default:
		for _, r := range p.recs {
			m.follow(r, nil)
		}
	}
}

// add notes what a layout knows by checksum in a range.
func (m lost) add(id proto.FileID, l *layout, s span) {
	for _, e := range l.extents {
		if e.kind != exSums || e.session == 0 {
			continue
		}
		for _, part := range e.clip(s.from, s.to) {
			m[id] = append(m[id], lostSpan{span: span{part.from, part.to}, session: e.session, seq: e.seq})
		}
	}
}

// cut forgets a range.
func (m lost) cut(id proto.FileID, c span) {
	if len(m[id]) == 0 {
		return
	}
	var out []lostSpan
	for _, s := range m[id] {
		for _, rest := range cutSpan([]span{s.span}, c) {
			s.span = rest
			out = append(out, s)
		}
	}
	m.set(id, out)
}

func (m lost) set(id proto.FileID, spans []lostSpan) {
	if m[id] = spans; len(spans) == 0 {
		delete(m, id)
	}
}

// forget drops what nobody will ask for any more: of sessions that are not
// there, of files that are not.
func (m lost) forget(sessions map[proto.SessionID]*session, t *table) {
	for id, spans := range m {
		if _, ok := t.get(id); !ok {
			spans = nil
		}
		m.set(id, slices.DeleteFunc(spans, func(s lostSpan) bool { return sessions[s.session] == nil }))
	}
}

// of are the ranges of a file that one write has lost.
func (m lost) of(id proto.FileID, session proto.SessionID, seq proto.Seq) (out []span) {
	for _, s := range m[id] {
		if s.session == session && s.seq == seq {
			out = append(out, s.span)
		}
	}
	return out
}

// refills reports whether a repeated write brings bytes that were lost. The caller holds planMu.
func (j *Journal) refills(s *Submission) bool {
	op, ok := s.Op.(*proto.Write)
	if !ok || s.Session == 0 || len(j.lost.of(op.ID, s.Session, s.Seq)) == 0 {
		return false
	}
	_, ok = j.tree.get(op.ID)
	return ok
}

// planRefill plans the part of a repeated write that was lost. The bytes go
// into the log: they are not to be lost again.
func (j *Journal) planRefill(p *pending, op *proto.Write) error {
	if err := j.busy.file(op.ID); err != nil {
		return err
	}
	_, info, err := j.tree.stat(op.ID)
	if err != nil {
		return err
	}
	at := int64(op.Off)
	if op.Append { // where it went the first time
		p.n = j.sessions[p.sub.Session].results[p.sub.Seq].n
		at = int64(p.n)
	}
	h, err := j.tree.file(op.ID, true)
	if err != nil {
		return err
	}
	defer h.release()
	p.id = op.ID
	size := uint64(info.Size)
	gaps := j.lost.of(op.ID, p.sub.Session, p.sub.Seq)
	for _, s := range gaps { // of a block that somebody else has written meanwhile, a part is filled in
		if err := j.supersede(p, op.ID, h.file, s.from, s.to, size); err != nil {
			return err
		}
	}
	for _, s := range gaps {
		if end := min(s.to, int64(size)); s.from < end {
			there, err := readFull(h.file, s.from, end-s.from)
			if err != nil {
				return err
			}
			if len(bytes.TrimLeft(there, "\x00")) > 0 { // a process of the server has written there
				continue
			}
		}
		data := make([]byte, s.to-s.from) // the zeros that widened the write were lost, too
		from, to := max(s.from, at), min(s.to, at+int64(len(op.Data)))
		if from < to {
			copy(data[from-s.from:], op.Data[from-at:to-at])
		}
		r := &record.Record{Kind: record.Write, ID: op.ID, Off: uint64(s.from), Len: uint64(len(data)), Count: p.n,
			OldSize: size, NewSize: max(size, uint64(s.to)), OldMtime: proto.Time(info.Mtime), Images: data,
			Pieces: []record.Piece{{Kind: record.PieceInline, Off: uint64(s.from), Len: uint64(len(data))}}}
		size = r.NewSize
		p.recs = append(p.recs, r)
	}
	return nil
}

// reportLost fails the first sync of a session that would have made a file's lost
// bytes durable; repeated, it fails again, the next one does not. A sync of all
// files is told, too, but takes nothing away from those of single files: they
// come from other processes.
func (j *Journal) reportLost(s *Submission, op *proto.Sync) error {
	j.planMu.Lock()
	defer j.planMu.Unlock()
	n := int64(0)
	for id, spans := range j.lost {
		if id != op.ID && !op.All {
			continue
		}
		if f, _ := j.tree.get(id); op.All && len(f.names) == 0 { // nobody misses what was removed
			continue
		}
		spans = slices.DeleteFunc(spans, func(l lostSpan) bool {
			return !op.All && l.session == s.Session && l.told != 0 && l.told != s.Seq
		})
		for i := range spans {
			l := &spans[i]
			told := &l.told
			if op.All {
				told = &l.toldAll
			}
			if l.session == s.Session && (*told == 0 || *told == s.Seq) {
				*told = s.Seq
				n += l.to - l.from
			}
		}
		j.lost.set(id, spans)
	}
	if n == 0 {
		return nil
	}
	return status.Newf(status.IO, "sync", op.ID.String(), "%d bytes that were written and not synced before the server went down are gone", n)
}

package journal

import (
	"context"
	"slices"

	"cagefs.dev/cage/journal/record"
	"cagefs.dev/cage/journal/vfs"
	"cagefs.dev/cage/remote/proto"
	"cagefs.dev/cage/remote/status"
)

// Tx is a transaction being written: its records are in the log, applied is
// none of them before all are durable. It is planned by somebody who knows what
// the export looks like, while nothing else changes it: each method says what is
// to be, in an order in which it can be applied; what a method destroys it reads from
// the tree as it is now, so each byte, attribute and extended attribute may be changed once.
type Tx struct {
	j      *Journal
	sub    *Submission
	begin  *record.Record
	recs   []*record.Record // without images
	mtimes map[proto.FileID]proto.Time
	made   map[proto.FileID]*record.Record
	dry    bool
	err    error // the first failure; all later calls do nothing
}

// Transact runs f while nothing else changes the export, then commits what it
// has written and applies it, all at once for readers. kind is "rollback",
// "undo" or "redo", args what people see of it. With dry, nothing is written.
// An error of f abandons the transaction. The result's LSN is the Begin record's.
func (j *Journal) Transact(ctx context.Context, s *Submission, kind, args string, dry bool, f func(*Tx) error) (proto.Result, error) {
	for {
		if err := j.idle(ctx); err != nil {
			return proto.Result{}, err
		}
		j.planMu.Lock()
		if j.idleLocked() {
			break
		}
		j.planMu.Unlock()
	}
	defer j.planMu.Unlock()
	if err := j.usable(); err != nil && !(dry && j.opts.ReadOnly) {
		return proto.Result{}, err
	}
	if t, ok, err := j.repeatedLocked(s); err != nil {
		return proto.Result{}, err
	} else if ok {
		return t.wait(ctx)
	}
	if s.Guard != nil {
		if err := s.Guard(); err != nil {
			return proto.Result{}, err
		}
	}
	if !dry {
		if err := j.explainLocked(j.tree.corrected()...); err != nil {
			return proto.Result{}, err
		}
		if err := j.log.Commit(); err != nil { // what it explained belongs to the past that f looks at
			j.fail(err)
			return proto.Result{}, j.failedErr()
		}
		if err := j.settleLocked(); err != nil {
			return proto.Result{}, err
		}
	}
	tx := &Tx{j: j, sub: s, dry: dry, mtimes: map[proto.FileID]proto.Time{}, made: map[proto.FileID]*record.Record{}}
	tx.begin = &record.Record{Kind: record.Begin, Name: kind, Value: []byte(args)}
	tx.emit(tx.begin)
	err := f(tx)
	if err == nil {
		err = tx.err
	}
	if at := j.tree.corrected(); err == nil && !dry && len(at) > 0 { // the plan stands on names that no record explains
		err = status.Newf(status.Busy, "", at[0].name, "a process of the server has just changed it: try again")
	}
	if err != nil || dry || len(tx.recs) == 1 {
		j.unstage(tx.recs)
		return proto.Result{}, err
	}
	p := &pending{sub: s, recs: tx.recs}
	if err := j.admitLocked(p, nil); err != nil {
		j.unstage(tx.recs)
		return proto.Result{}, err
	}
	defer j.admittedLocked(p)
	return tx.commit()
}

// idle waits until no change is on its way.
func (j *Journal) idle(ctx context.Context) error {
	return j.await(ctx, func() bool { return j.applied >= j.appended })
}

func (j *Journal) idleLocked() bool {
	j.queueMu.Lock()
	defer j.queueMu.Unlock()
	return j.applied >= j.appended || j.failure != nil || j.stopped
}

// settleLocked makes the new bytes of all files durable, so that a transaction
// need not care which blocks the log knows by checksum only.
func (j *Journal) settleLocked() error {
	upto := j.log.Last()
	for id, l := range j.loose {
		h, err := j.tree.file(id, false)
		if err != nil {
			return err
		}
		err = h.file.Datasync()
		h.release()
		if err != nil {
			j.fail(err)
			return j.failedErr()
		}
		if err := j.log.Append(&record.Record{Kind: record.Synced, ID: id, Upto: upto}); err != nil {
			return err
		}
		l.spans, l.syncing = nil, nil
		if l.done == nil {
			delete(j.loose, id)
		}
	}
	return nil
}

// maxTxPending bounds the bytes of a transaction that are in memory.
const maxTxPending = 16 << 20

// emit appends a record; its images leave the memory with the next commit.
func (tx *Tx) emit(r *record.Record) {
	if tx.err != nil {
		return
	}
	if tx.dry {
		r.Images = nil
		tx.recs = append(tx.recs, r)
		return
	}
	who(r, tx.sub)
	if r != tx.begin {
		r.Txn = tx.begin.LSN
	}
	if tx.err = tx.j.appendFor(tx.sub, r); tx.err != nil {
		return
	}
	tx.recs = append(tx.recs, r)
	if tx.j.log.Pending() < maxTxPending {
		return
	}
	if tx.err = tx.j.log.Commit(); tx.err != nil {
		tx.j.fail(tx.err)
		return
	}
	for _, r := range tx.recs {
		r.Images = nil
	}
}

// commit makes the transaction durable and applies it, in nobody's view until it is done.
func (tx *Tx) commit() (proto.Result, error) {
	j := tx.j
	end := &record.Record{Kind: record.Commit, Count: uint64(len(tx.recs) - 1)}
	tx.emit(end)
	if tx.err != nil {
		j.unstage(tx.recs)
		return proto.Result{}, tx.err
	}
	if err := j.log.Commit(); err != nil {
		j.fail(err)
		return proto.Result{}, j.failedErr()
	}
	j.viewMu.Lock()
	err := tx.applyAll()
	j.enter(tx.recs)
	j.viewMu.Unlock()
	j.announce(tx.recs)
	p := &pending{Ticket: &Ticket{done: make(chan struct{})}, sub: tx.sub, recs: []*record.Record{tx.begin}}
	p.err = err
	j.sessionDone(p)
	j.queueMu.Lock()
	j.applied = max(j.applied, end.LSN)
	j.appended = max(j.appended, end.LSN)
	j.queueCond.Broadcast()
	j.queueMu.Unlock()
	return proto.Result{LSN: tx.begin.LSN}, err
}

// applyAll applies every record. One that cannot be applied (a process of the
// server was in the way) is cancelled, the others go on: the transaction is committed.
func (tx *Tx) applyAll() (first error) {
	j := tx.j
	kept := tx.recs[:0]
	for _, r := range tx.recs {
		err := error(nil)
		full := r
		if r.ImageLen > 0 && r.Images == nil {
			if full, err = j.log.Read(r.LSN, true); err != nil {
				full = r
			}
		}
		if err == nil {
			err = j.applyRecord(full, nil)
		}
		if err == nil {
			kept = append(kept, r)
			continue
		}
		if first == nil {
			first = status.Wrap(err, "apply", r.ID.String())
		}
		c := &record.Record{Kind: record.Cancel, Upto: r.LSN, Status: uint16(status.Of(err))}
		who(c, tx.sub)
		if err := j.log.AppendReserved(c); err != nil {
			j.fail(err)
		}
	}
	tx.recs = kept
	if first != nil {
		if err := j.log.Commit(); err != nil {
			j.fail(err)
		}
	}
	return first
}

// dirMtime is a directory's time before the next change of its entries.
func (tx *Tx) dirMtime(dir proto.FileID) (t proto.Time) {
	t, ok := tx.mtimes[dir]
	if !ok {
		if _, info, err := tx.j.tree.stat(dir); err == nil {
			t = proto.Time(info.Mtime)
		}
	}
	return t
}

func (tx *Tx) touched(dir proto.FileID, r *record.Record) { tx.mtimes[dir] = r.Time }

// inode is the identity of a file that is there, or made by this transaction.
func (tx *Tx) inode(id proto.FileID) (record.Inode, uint32) {
	if r := tx.made[id]; r != nil {
		return r.Inode, r.New.Mode & proto.ModeType
	}
	n, ok := tx.j.tree.get(id)
	if !ok && tx.err == nil {
		tx.err = stale(id)
	}
	return record.Inode(n.ident), n.typ
}

// Remove takes a name away: the file, or the directory with all that is in it,
// goes to the grave whose number is returned.
func (tx *Tx) Remove(dir proto.FileID, name string, id proto.FileID) proto.LSN {
	ino, typ := tx.inode(id)
	r := &record.Record{Kind: record.Remove, ID: id, Dir: dir, Name: name, Inode: ino, OldMtime: tx.dirMtime(dir)}
	if typ == proto.ModeDir {
		r.Flag = record.FlagDir | record.FlagTree
	}
	tx.emit(r)
	tx.touched(dir, r)
	return r.LSN
}

// Restore brings what is in a grave back under a name that is free then.
func (tx *Tx) Restore(grave proto.LSN, dir proto.FileID, name string, id proto.FileID) {
	ino, typ := tx.inode(id)
	r := &record.Record{Kind: record.Restore, ID: id, Dir: dir, Name: name, Grave: grave, Inode: ino, OldMtime: tx.dirMtime(dir)}
	if typ == proto.ModeDir {
		r.Flag = record.FlagDir | record.FlagTree
	}
	tx.emit(r)
	tx.touched(dir, r)
}

// Make makes a new file, for a copy of one that is elsewhere now.
func (tx *Tx) Make(dir proto.FileID, name string, a record.Attrs, rdev uint32, target string) proto.FileID {
	if tx.err != nil {
		return 0
	}
	tx.j.adoptMu.Lock()
	id, err := tx.j.newID()
	tx.j.adoptMu.Unlock()
	if err != nil {
		tx.err = err
		return 0
	}
	r := &record.Record{Kind: record.Make, ID: id, Dir: dir, Name: name, New: a, Rdev: rdev, Target: target, OldMtime: tx.dirMtime(dir)}
	if !tx.dry {
		if tx.err = tx.j.stageInode(r); tx.err != nil {
			return 0
		}
	}
	tx.made[id] = r
	tx.emit(r)
	tx.touched(dir, r)
	return id
}

// Link gives a file a further name.
func (tx *Tx) Link(id, dir proto.FileID, name string) {
	ino, _ := tx.inode(id)
	r := &record.Record{Kind: record.Link, ID: id, Dir: dir, Name: name, Inode: ino, OldMtime: tx.dirMtime(dir)}
	tx.emit(r)
	tx.touched(dir, r)
}

// SetAttr sets mode, owner and times; old is what they are before it: times of
// directories and of files written earlier in the transaction are the records' then.
func (tx *Tx) SetAttr(id proto.FileID, old, upd record.Attrs) {
	if t, ok := tx.mtimes[id]; ok {
		old.Mtime = t
	}
	if old != upd {
		tx.emit(&record.Record{Kind: record.SetAttr, ID: id, Old: old, New: upd})
	}
}

// SetXattr sets (has) or removes an extended attribute that is old (hadOld) now.
func (tx *Tx) SetXattr(id proto.FileID, name string, old []byte, hadOld bool, value []byte, has bool) {
	tx.emit(&record.Record{Kind: record.SetXattr, ID: id, Name: name, HasOld: hadOld, OldValue: old, HasNew: has, Value: value})
}

// Truncate changes a file's size from old. The bytes cut off, at most
// proto.MaxIO of them at a time, are read from the file; holes cost nothing.
func (tx *Tx) Truncate(id proto.FileID, old, size uint64) {
	cut := func(next uint64, image bool) {
		if tx.err != nil || next == old {
			return
		}
		r := &record.Record{Kind: record.Truncate, ID: id, OldSize: old, NewSize: next, OldMtime: tx.mtime(id)}
		if image {
			r.Images = tx.read(id, next, old-next)
		}
		tx.emit(r)
		tx.touched(id, r)
		old = next
	}
	if size < old {
		for _, s := range slices.Backward(tx.data(id, size, old)) {
			cut(uint64(s.to), false)
			for from := uint64(s.from); from < old; {
				cut(max(from, old-min(old, proto.MaxIO)), true)
			}
		}
	}
	cut(size, false)
}

// data lists where a file has data in a range now.
func (tx *Tx) data(id proto.FileID, from, to uint64) (out []span) {
	if tx.err != nil || tx.made[id] != nil {
		return nil
	}
	h, err := tx.j.tree.file(id, false)
	if err != nil {
		tx.err = err
		return nil
	}
	defer h.release()
	for pos := int64(from); pos < int64(to); {
		s, e, ok, err := h.file.NextData(pos)
		if err != nil {
			tx.err = err
		}
		if err != nil || !ok || s >= int64(to) {
			return out
		}
		pos = min(e, int64(to))
		out = addSpan(out, span{s, pos})
	}
	return out
}

// Write puts bytes over and beyond what a file of a size contains, at most
// proto.MaxIO of them; all are in the log.
func (tx *Tx) Write(id proto.FileID, size, off uint64, data []byte) {
	r := &record.Record{Kind: record.Write, ID: id, Off: off, Len: uint64(len(data)), OldSize: size,
		NewSize: max(size, off+uint64(len(data))), OldMtime: tx.mtime(id)}
	over := uint64(0)
	if off < size {
		over = min(size-off, uint64(len(data)))
		r.Pieces = append(r.Pieces, record.Piece{Kind: record.PieceOver, Off: off, Len: over})
		r.Images = append(append(r.Images, tx.read(id, off, over)...), data[:over]...)
	}
	if rest := data[over:]; len(rest) > 0 {
		r.Pieces = append(r.Pieces, record.Piece{Kind: record.PieceInline, Off: off + over, Len: uint64(len(rest))})
		r.Images = append(r.Images, rest...)
	}
	tx.emit(r)
	tx.touched(id, r)
}

// Punch makes a range of a file, inside its size and at most proto.MaxIO long, a hole.
func (tx *Tx) Punch(id proto.FileID, size, off, n uint64) {
	r := &record.Record{Kind: record.Write, Flag: record.FlagHole, ID: id, Off: off, Len: n, OldSize: size, NewSize: size,
		OldMtime: tx.mtime(id), Pieces: []record.Piece{{Kind: record.PieceOver, Off: off, Len: n}}, Images: tx.read(id, off, n)}
	tx.emit(r)
	tx.touched(id, r)
}

func (tx *Tx) mtime(id proto.FileID) proto.Time {
	if t, ok := tx.mtimes[id]; ok {
		return t
	}
	_, info, err := tx.j.tree.stat(id)
	if err != nil && tx.err == nil && tx.made[id] == nil {
		tx.err = err
	}
	return proto.Time(info.Mtime)
}

// read returns bytes of a file as it is now; zeros beyond its end (a file made
// or extended by this transaction).
func (tx *Tx) read(id proto.FileID, off, n uint64) []byte {
	b := make([]byte, n)
	if tx.err != nil || tx.made[id] != nil {
		return b
	}
	h, err := tx.j.tree.file(id, false)
	if err != nil {
		tx.err = err
		return b
	}
	defer h.release()
	if m, err := h.file.ReadAt(b, int64(off)); err != nil && m == 0 && off < tx.sizeOf(h.file) {
		tx.err = err
	}
	return b
}

func (tx *Tx) sizeOf(f vfs.File) uint64 {
	info, err := f.Stat()
	if err != nil {
		tx.err = err
	}
	return uint64(info.Size)
}

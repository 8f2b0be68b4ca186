package journal

import (
	"context"
	"fmt"
	"slices"
	"strconv"

	"cagefs.dev/cage/journal/record"
	"cagefs.dev/cage/journal/vfs"
	"cagefs.dev/cage/remote/proto"
	"cagefs.dev/cage/remote/status"
)

// span is a range of blocks, in bytes.
type span struct{ from, to int64 }

// loose are the blocks of a file whose bytes are in the file only and not
// known to be durable: the log has their checksums. Guarded by planMu.
type loose struct {
	spans   []span        // ascending, apart
	syncing []span        // being synced now
	done    chan struct{} // closed when that is over; nil: none
}

// maxLoose bounds the bytes of an export that are in files only; a checkpoint
// makes them durable.
const maxLoose = 256 << 20

// inlineSync is how many loose bytes an fsync copies into the log; more are
// synced in the file.
const inlineSync = 1 << 20

func (l *loose) has(b int64) bool {
	in := func(s span) bool { return s.from <= b && b < s.to }
	return slices.ContainsFunc(l.spans, in) || slices.ContainsFunc(l.syncing, in)
}

func (l *loose) bytes() (n int64) {
	for _, s := range l.spans {
		n += s.to - s.from
	}
	return n
}

// addSpan adds a range to ascending ranges.
func addSpan(spans []span, s span) []span {
	i := len(spans)
	for i > 0 && spans[i-1].to >= s.from {
		i--
	}
	k := i
	for k < len(spans) && spans[k].from <= s.to {
		s.from, s.to = min(s.from, spans[k].from), max(s.to, spans[k].to)
		k++
	}
	return slices.Replace(spans, i, k, s)
}

// cutSpan takes a range out of ascending ranges.
func cutSpan(spans []span, c span) []span {
	var out []span
	for _, s := range spans {
		if s.to <= c.from || s.from >= c.to {
			out = append(out, s)
			continue
		}
		if s.from < c.from {
			out = append(out, span{s.from, c.from})
		}
		if s.to > c.to {
			out = append(out, span{c.to, s.to})
		}
	}
	return out
}

// looseAdd follows an appended record. The caller holds planMu.
func (j *Journal) looseAdd(r *record.Record) {
	if r.Kind != record.Write && r.Kind != record.Truncate && r.Kind != record.Data {
		return
	}
	l := j.loose[r.ID]
	cut := func(from, to int64) { // what the log itself holds now, or what is gone
		if l != nil {
			c := span{from / block * block, (to + block - 1) / block * block}
			l.spans, l.syncing = cutSpan(l.spans, c), cutSpan(l.syncing, c)
		}
	}
	switch {
	case r.Kind == record.Truncate && r.NewSize < r.OldSize:
		cut(int64(r.NewSize), 1<<62)
	case r.Flag&record.FlagHole != 0:
		cut(int64(r.Off), int64(r.Off+r.Len))
	}
	for _, p := range r.Pieces {
		from, to := int64(p.Off), int64(p.Off+p.Len)
		if p.Kind != record.PieceBlocks {
			cut(from, to)
			continue
		}
		if l == nil {
			l = &loose{}
			j.loose[r.ID] = l
		}
		l.spans = addSpan(l.spans, span{from, to})
		j.looseBytes.Add(to - from)
	}
	if l != nil && len(l.spans) == 0 && l.done == nil {
		delete(j.loose, r.ID)
	}
}

// looseCancel takes back what looseAdd followed: the bytes that a cancelled record
// brought are not there, and what it would have put into the log is not in it.
// Blocks that were durable before count as loose then, which does no harm. The
// caller holds planMu.
func (j *Journal) looseCancel(r *record.Record) {
	l := j.loose[r.ID]
	add := func(from, to uint64) {
		if l == nil {
			l = &loose{}
			j.loose[r.ID] = l
		}
		l.spans = addSpan(l.spans, span{int64(from) / block * block, (int64(to) + block - 1) / block * block})
	}
	switch {
	case r.Kind == record.Truncate:
		if r.NewSize < r.OldSize {
			add(r.NewSize, r.OldSize)
		}
	case r.Flag&record.FlagHole != 0:
		add(r.Off, r.Off+r.Len)
	case r.Kind == record.Write, r.Kind == record.Data:
		for _, p := range r.Pieces {
			switch {
			case p.Kind == record.PieceOver || r.Kind == record.Data:
				add(p.Off, p.Off+p.Len)
			case p.Kind == record.PieceBlocks && l != nil:
				l.spans = cutSpan(l.spans, span{int64(p.Off), int64(p.Off + p.Len)})
			}
		}
	}
	if l != nil && len(l.spans) == 0 && l.done == nil {
		delete(j.loose, r.ID)
	}
}

// needSync tells that a plan has to wait until a file's new bytes are durable.
type needSync struct{ id proto.FileID }

func (needSync) Error() string { return "new bytes are to be synced first" }

// submitSync is fsync: what was submitted before is applied, the file's new
// bytes are durable. It leaves no record of its own: repeating it is harmless.
func (j *Journal) submitSync(ctx context.Context, s *Submission, op *proto.Sync) (*Ticket, error) {
	if err := j.usable(); err != nil {
		return nil, err
	}
	j.queueMu.Lock()
	before := j.appended
	j.queueMu.Unlock()
	if err := j.waitApplied(ctx, before); err != nil {
		return nil, err
	}
	if err := j.reportLost(s, op); err != nil {
		return answered(proto.Result{ID: op.ID}, err), nil
	}
	if !op.All {
		return answered(proto.Result{ID: op.ID}, j.syncFile(ctx, op.ID)), nil
	}
	for _, id := range j.looseFiles() {
		if err := j.syncFile(ctx, id); err != nil {
			return answered(proto.Result{}, err), nil
		}
	}
	return answered(proto.Result{}, j.log.Commit()), nil
}

func (j *Journal) looseFiles() []proto.FileID {
	j.planMu.Lock()
	defer j.planMu.Unlock()
	ids := make([]proto.FileID, 0, len(j.loose))
	for id := range j.loose {
		ids = append(ids, id)
	}
	slices.Sort(ids)
	return ids
}

// syncFile makes the new bytes of a file durable: few by copying them into the
// log, many by syncing the file.
func (j *Journal) syncFile(ctx context.Context, id proto.FileID) error {
	for {
		wait, err := j.syncStep(id)
		if err != nil || wait == nil {
			return err
		}
		if err := wait(ctx); err != nil {
			return err
		}
	}
}

// syncStep does what can be done now; it returns what to wait for before the
// next step, nil when there is nothing loose any more.
func (j *Journal) syncStep(id proto.FileID) (wait func(context.Context) error, err error) {
	j.planMu.Lock()
	defer j.planMu.Unlock()
	l := j.loose[id]
	if l == nil {
		return nil, nil
	}
	if err := j.usable(); err != nil {
		return nil, err
	}
	if lsn, ok := j.busy.files[id]; ok {
		return func(ctx context.Context) error { return j.waitApplied(ctx, lsn) }, nil
	}
	if l.done != nil {
		done := l.done
		return func(ctx context.Context) error {
			select {
			case <-done:
				return nil
			case <-ctx.Done():
				return ctx.Err()
			}
		}, nil
	}
	h, err := j.tree.file(id, false)
	if status.Of(err) == status.Stale {
		return func(context.Context) error { return j.syncUnreachable(id, l) }, nil
	}
	if err != nil {
		return nil, err
	}
	if l.bytes() < inlineSync {
		defer h.release()
		return j.syncInline(id, l, h.file)
	}
	l.syncing, l.spans, l.done = l.spans, nil, make(chan struct{})
	upto := j.log.Last()
	return func(context.Context) error {
		defer h.release()
		return j.syncInFile(id, l, h.file, upto)
	}, nil
}

// syncInline copies the loose bytes into the log. The caller holds planMu.
func (j *Journal) syncInline(id proto.FileID, l *loose, f vfs.File) (func(context.Context) error, error) {
	info, err := f.Stat()
	if err != nil {
		return nil, err
	}
	r := &record.Record{Kind: record.Data, ID: id}
	for _, s := range l.spans {
		if s.to = min(s.to, info.Size); s.from >= s.to {
			continue
		}
		data, err := readFull(f, s.from, s.to-s.from)
		if err != nil {
			return nil, err
		}
		r.Pieces = append(r.Pieces, record.Piece{Kind: record.PieceInline, Off: uint64(s.from), Len: uint64(len(data))})
		r.Images = append(r.Images, data...)
	}
	p := &pending{Ticket: &Ticket{done: make(chan struct{})}, sub: serverSubmission(), recs: []*record.Record{r}}
	if err := j.appendLocked(p); err != nil {
		return nil, err
	}
	delete(j.loose, id)
	return func(ctx context.Context) error {
		_, err := p.wait(ctx)
		return err
	}, nil
}

// syncInFile syncs the file, then notes it in the log, durably. An error of the sync is final.
func (j *Journal) syncInFile(id proto.FileID, l *loose, f vfs.File, upto proto.LSN) error {
	err := f.Datasync()
	if err != nil {
		err = status.Newf(status.IO, "sync", id.String(), "%w", err)
		j.fail(err)
	} else {
		err = j.log.Append(&record.Record{Kind: record.Synced, ID: id, Upto: upto})
	}
	if err == nil {
		err = j.log.Commit()
	}
	j.planMu.Lock()
	close(l.done)
	l.done, l.syncing = nil, nil
	if len(l.spans) == 0 {
		delete(j.loose, id)
	}
	j.planMu.Unlock()
	return err
}

// syncUnreachable makes the new bytes of a file durable that a process of the
// server has moved away or removed: wherever it is, with all others.
func (j *Journal) syncUnreachable(id proto.FileID, l *loose) error {
	if err := j.opts.FS.SyncFS(); err != nil {
		err = status.Newf(status.IO, "sync", "export", "%w", err)
		j.fail(err)
		return err
	}
	j.planMu.Lock()
	defer j.planMu.Unlock()
	if j.loose[id] == l && l.done == nil {
		delete(j.loose, id)
	}
	return nil
}

// serverSubmission is on whose behalf the server's own records are.
func serverSubmission() *Submission { return &Submission{Change: &proto.Change{}} }

// preparedImage is a durable copy of the bytes that a truncation or a hole will destroy.
type preparedImage struct {
	no       uint64 // its name in the stage: t<no>
	ident    vfs.Ident
	from, to int64 // the bytes that it holds, at their place
	ctime    int64 // of the file when it was copied
}

// needImage tells that a plan has to wait until a file's bytes are copied.
type needImage struct {
	id       proto.FileID
	from, to int64
}

func (needImage) Error() string { return "bytes are to be copied first" }

func imageName(no uint64) string { return "t" + strconv.FormatUint(no, 10) }

// prepareImage copies a range of a file into the stage, durably; blocks are shared
// where the file system can. It works outside of planMu: a change meanwhile shows
// in the ctime, and the copy is made again.
func (j *Journal) prepareImage(n needImage) error {
	_, info, err := j.tree.stat(n.id)
	if err != nil {
		return err
	}
	h, err := j.tree.file(n.id, false)
	if err != nil {
		return err
	}
	defer h.release()
	img := preparedImage{no: j.imageNo.Add(1), from: n.from, to: n.to, ctime: info.Ctime}
	name := imageName(img.no)
	f, err := j.tree.stage.Create(name, 0o600)
	if err != nil {
		return err
	}
	defer f.Close()
	err = copyData(h.file, f, n.from, n.to)
	if err == nil {
		err = f.Sync()
	}
	if err == nil {
		err = j.tree.stage.Sync()
	}
	if err == nil {
		info, err = f.Stat()
		img.ident = info.Ident
	}
	if err != nil {
		_ = j.tree.stage.Remove(name)
		return fmt.Errorf("keep the bytes that are taken away: %w", err)
	}
	j.planMu.Lock()
	defer j.planMu.Unlock()
	if old, ok := j.images[n.id]; ok {
		_ = j.tree.stage.Remove(imageName(old.no))
	}
	j.images[n.id] = img
	return nil
}

// copyData copies the data of a range to its place in another file, holes as holes.
func copyData(src, dst vfs.File, from, to int64) error {
	if err := dst.Truncate(to); err != nil {
		return err
	}
	return copyRanges(src, dst, from, to)
}

// copyRanges copies the data of a range to their place in another file.
func copyRanges(src, dst vfs.File, from, to int64) error {
	for from < to {
		s, e, ok, err := src.NextData(from)
		if err != nil {
			return err
		}
		if !ok || s >= to {
			return nil
		}
		e = min(e, to)
		if err := src.CopyTo(dst, s, s, e-s); err != nil {
			return err
		}
		from = e
	}
	return nil
}

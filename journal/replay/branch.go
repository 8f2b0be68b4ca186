package replay

import (
	"cmp"
	"context"
	"fmt"
	"io"
	"slices"

	"cagefs.dev/cage/journal"
	"cagefs.dev/cage/journal/record"
	"cagefs.dev/cage/remote/branch"
	"cagefs.dev/cage/remote/proto"
	"cagefs.dev/cage/remote/status"
)

// Branch applies a session's branch, or with op.Drop forgets it. What is applied is one transaction,
// which can be undone; then the branch is gone. Errors: status.NotFound; Damaged (what can be read of it stays readable);
// Conflict, where a file is gone or was changed since the session knew it: nothing is changed, and
// the plan says by whom. With op.Force its bytes go over what others wrote.
func Branch(ctx context.Context, j *journal.Journal, s *journal.Submission, op *proto.Branch) (proto.Result, error) {
	b, err := j.Branch(op.Session)
	if err != nil {
		return proto.Result{}, err
	}
	if op.Drop {
		steps := []proto.PlanStep{{Action: "drop", Path: journal.BranchName(op.Session), Detail: fmt.Sprintf("%d bytes for %d files", b.Bytes, b.Files)}}
		if !op.DryRun {
			err = j.DropBranch(op.Session, b.Size)
		}
		return proto.Result{Plan: steps}, err
	}
	m := &merge{ctx: ctx, j: j, op: op, file: branchFile{j, op.Session}, size: b.Size, last: map[int]proto.LSN{}}
	res, err := j.Transact(ctx, s, journal.KindBranch, branchArgs(&b), op.DryRun, func(tx *journal.Tx) error {
		m.tx = tx
		return m.run()
	})
	res.Plan = m.named()
	if status.Of(err) == status.Conflict {
		err = conflict(m.steps)
	}
	if err == nil && !op.DryRun {
		err = j.DropBranch(op.Session, b.Size)
	}
	return res, err
}

// branchArgs is what history shows of it.
func branchArgs(b *journal.Branch) string {
	return fmt.Sprintf("%s of %s, %d files", journal.BranchName(b.Session), b.Client, b.Files)
}

// merge is a branch being applied.
type merge struct {
	ctx   context.Context
	j     *journal.Journal
	tx    *journal.Tx
	op    *proto.Branch
	file  branchFile
	size  uint64 // of it; what comes later is not applied
	steps []proto.PlanStep
	last  map[int]proto.LSN // of steps: the newest change of the file, by others
}

// branchFile is a branch's file.
type branchFile struct {
	j  *journal.Journal
	id proto.SessionID
}

// ReadAt implements io.ReaderAt.
func (f branchFile) ReadAt(p []byte, off int64) (int, error) { return f.j.ReadBranch(f.id, p, off) }

func (m *merge) run() error {
	r, err := branch.NewReader(io.NewSectionReader(m.file, 0, int64(m.size)))
	if err != nil {
		return err
	}
	files, err := r.Files()
	if err != nil {
		return err
	}
	slices.SortFunc(files, func(a, b *branch.File) int { return cmp.Compare(a.ID, b.ID) })
	for _, f := range files {
		if err := m.ctx.Err(); err != nil {
			return err
		}
		a, detail := m.inTheWay(f)
		switch {
		case detail == "":
			m.step("content", f, fmt.Sprintf("%d bytes", f.Bytes))
		case a.ID == 0 && m.op.Force:
			m.step("leave out", f, detail)
			continue
		case m.op.Force:
			m.step("content", f, fmt.Sprintf("%d bytes, over what others wrote: %s", f.Bytes, detail))
		default:
			m.step("conflict", f, detail)
			continue
		}
		if err := m.write(f, &a); err != nil {
			return status.Wrap(err, "", m.path(f))
		}
	}
	return conflict(m.steps)
}

// inTheWay says why a file's writes cannot simply be made, "" if they can. a.ID is 0 where there is no file to write to.
func (m *merge) inTheWay(f *branch.File) (a proto.Attr, detail string) {
	a, err := m.j.Attr(f.ID)
	if err != nil || a.Type() != proto.ModeRegular || len(m.j.Places(f.ID)) == 0 {
		return proto.Attr{}, "the file was removed"
	}
	switch {
	case f.AppendsOnly(), f.Base != 0 && a.Change <= f.Base:
		return a, ""
	case f.Base == 0:
		return a, fmt.Sprintf("nobody knows whether the file was changed meanwhile; its last change is @%d", a.Change)
	}
	m.last[len(m.steps)] = a.Change
	return a, fmt.Sprintf("it was changed since, last by @%d", a.Change)
}

// named is the steps, with who made the changes that are in the way. The history is not to be asked in a transaction.
func (m *merge) named() []proto.PlanStep {
	for i, lsn := range m.last {
		list, err := m.j.Entries(journal.Query{LSN: lsn, Limit: 1})
		if err == nil && len(list.Entries) > 0 {
			m.steps[i].Detail += fmt.Sprintf(" of %s at %s", list.Entries[0].Client, list.Entries[0].Time)
		}
	}
	return m.steps
}

func (m *merge) step(action string, f *branch.File, detail string) {
	m.steps = append(m.steps, proto.PlanStep{Action: action, Path: m.path(f), Detail: detail})
}

// path is where a file is now, or was.
func (m *merge) path(f *branch.File) string {
	if p, err := m.j.Path(f.ID); err == nil {
		return p
	}
	return cmp.Or(f.Path, f.ID.String())
}

// write makes a file's writes.
func (m *merge) write(f *branch.File, a *proto.Attr) error {
	old, err := m.tx.Attrs(f.ID)
	if err != nil {
		return err
	}
	m.tx.SetAttr(f.ID, old, withoutSetID(old))
	size := a.Size
	for _, e := range f.Over(a.Size) {
		for from := uint64(0); from < e.Len; {
			data := make([]byte, min(e.Len-from, proto.MaxIO))
			if n, err := m.file.ReadAt(data, e.At+int64(from)); n < len(data) {
				return status.Newf(status.Damaged, "read", journal.BranchName(m.op.Session), "%w", cmp.Or(err, io.ErrUnexpectedEOF))
			}
			m.tx.Write(f.ID, size, e.Off+from, data)
			from += uint64(len(data))
			size = max(size, e.Off+from)
		}
	}
	return nil
}

// withoutSetID is what a write leaves of a file's attributes: no setuid bit, and no setgid bit where the group may execute.
func withoutSetID(a record.Attrs) record.Attrs {
	a.Mode &^= proto.ModeSetuid
	if a.Mode&0o010 != 0 {
		a.Mode &^= proto.ModeSetgid
	}
	return a
}

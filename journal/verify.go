package journal

import (
	"context"
	"fmt"

	"cagefs.dev/cage/journal/record"
	"cagefs.dev/cage/journal/vfs"
	"cagefs.dev/cage/remote/proto"
)

// VerifyReport is what Verify found; Problems is empty when all is well.
type VerifyReport struct {
	Segments, Frames, Records, Bytes uint64
	Problems                         []string
}

// Verify checks the log, and with full also the tree against it: that every file
// is where the table says, and every grave that a kept record needs is there.
// Changes go on meanwhile.
func (j *Journal) Verify(ctx context.Context, full bool) (VerifyReport, error) {
	l, err := j.log.Verify(full)
	rep := VerifyReport{Segments: l.Segments, Frames: l.Frames, Records: l.Records, Bytes: l.Bytes, Problems: l.Problems}
	if err != nil || !full {
		return rep, err
	}
	err = j.tree.each(func(n node) bool {
		rep.Problems = append(rep.Problems, j.verifyFile(n.id)...)
		return ctx.Err() == nil
	})
	if err == nil {
		err = ctx.Err()
	}
	if err != nil {
		return rep, err
	}
	problems, err := j.verifyImages(ctx)
	rep.Problems = append(rep.Problems, problems...)
	return rep, err
}

// verifyFile checks the places of a file.
func (j *Journal) verifyFile(id proto.FileID) (problems []string) {
	j.viewMu.RLock()
	defer j.viewMu.RUnlock()
	n, ok := j.tree.get(id)
	if !ok || id == proto.RootID {
		return nil
	}
	check := func(d vfs.Dir, name, where string) {
		info, err := d.Stat(name)
		if err == nil && info.Ident != n.ident {
			err = fmt.Errorf("another file is there")
		}
		if err != nil {
			problems = append(problems, fmt.Sprintf("%s should be %s: %v", id, where, err))
		}
	}
	for _, at := range n.names {
		where := at.name
		if path, ok := j.tree.path(at.dir); ok && path != "" {
			where = path + "/" + at.name
		}
		h, err := j.tree.dir(at.dir)
		if err != nil {
			problems = append(problems, fmt.Sprintf("%s should be %s: %v", id, where, err))
			continue
		}
		check(h.dir, at.name, where)
		h.release()
	}
	for _, g := range n.graves {
		check(j.tree.grave, graveName(g), "in grave "+graveName(g))
	}
	return problems
}

// verifyImages checks that the graves which hold cut off bytes are there.
func (j *Journal) verifyImages(ctx context.Context) (problems []string, err error) {
	var cuts []*record.Record
	err = j.log.Scan(j.oldest(), false, func(r *record.Record) error {
		if (r.Kind == record.Truncate || r.Kind == record.Write) && r.Flag&record.FlagGraveImage != 0 {
			cuts = append(cuts, r)
		}
		return ctx.Err()
	})
	for _, r := range cuts {
		list := j.hist.data(r.ID, r.LSN-1)
		if len(list) == 0 || list[0] != r.LSN { // of a transaction that was given up
			continue
		}
		if happened, e := j.hist.read(r.LSN); happened == nil || e != nil {
			continue
		}
		if _, e := j.tree.grave.Stat(graveName(r.LSN)); e != nil && r.LSN >= j.oldest() {
			problems = append(problems, fmt.Sprintf("bytes that record %d took away: %v", r.LSN, e))
		}
	}
	return problems, err
}

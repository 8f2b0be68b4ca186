package journal

import (
	"bytes"
	"io"

	"cagefs.dev/cage/journal/record"
	"cagefs.dev/cage/journal/vfs"
	"cagefs.dev/cage/remote/proto"
)

// unchanged compares a file with what its plan saw, where bytes are about to be
// destroyed: errChanged if they would not be those in the record. What a process of
// the server has changed elsewhere in the file is no hindrance. The caller holds viewMu.
func (j *Journal) unchanged(p *pending) error {
	if p.ctime == 0 {
		return nil
	}
	_, info, err := j.tree.stat(p.id)
	if err != nil || info.Ctime == p.ctime {
		return err
	}
	h, err := j.tree.file(p.id, false)
	if err != nil {
		return err
	}
	defer h.release()
	for _, r := range p.recs {
		same, err := stillSo(r, h.file, info)
		if err != nil {
			return err
		}
		if !same {
			return errChanged
		}
	}
	return nil
}

// stillSo reports whether what a record says of a file before it is so.
func stillSo(r *record.Record, f vfs.File, info vfs.Info) (bool, error) {
	switch r.Kind {
	case record.SetAttr: // of bits that go with a write
		return r.Old.Mode == info.Mode && r.Old.UID == info.UID && r.Old.GID == info.GID, nil
	case record.Data:
		same := true
		err := eachAfter(r, func(off int64, b []byte) (err error) {
			same, err = has(f, off, b, same)
			return err
		})
		return same, err
	case record.Write, record.Truncate:
	default:
		return false, nil
	}
	if size := uint64(info.Size); size != r.OldSize && (size < r.OldSize || r.NewSize != r.OldSize) {
		return false, nil
	}
	same := true
	for _, b := range rangesBefore(r) {
		var want []byte
		switch to := min(b.to, info.Size); {
		case b.kind == beforeGrave: // too much to compare
			return false, nil
		case b.from >= to:
			continue
		case b.kind == beforeImage:
			want = r.Images[b.img : b.img+to-b.from]
		default:
			want = make([]byte, to-b.from)
		}
		var err error
		if same, err = has(f, b.from, want, same); !same || err != nil {
			return false, err
		}
	}
	return same, nil
}

// has reports whether so far all was the same and a file has these bytes, too.
func has(f vfs.File, off int64, want []byte, so bool) (bool, error) {
	if !so {
		return false, nil
	}
	got, err := readFull(f, off, int64(len(want)))
	if err == io.ErrUnexpectedEOF {
		return false, nil
	}
	return err == nil && bytes.Equal(got, want), err
}

// maxReplans is how often a change is planned anew because a process of the server
// changes what it is about, each time before its turn.
const maxReplans = 8

// insist makes a change go on after that: it comes after what such a process has done,
// which is not kept. Only where it destroys nothing but the bytes that it is about.
func (p *pending) insist() bool {
	if p.ctime == 0 {
		return false
	}
	if op, ok := p.sub.Op.(*proto.Write); ok && (len(p.data) != len(op.Data) || op.Append) {
		return false
	}
	p.ctime = 0
	return true
}

package wal

import (
	"errors"
	"fmt"
	"math"

	"cagefs.dev/cage/journal/record"
	"cagefs.dev/cage/journal/vfs"
	"cagefs.dev/cage/remote/proto"
	"cagefs.dev/cage/remote/status"
)

// Report is what Verify found.
type Report struct {
	Segments, Frames, Records, Bytes uint64
	Problems                         []string
}

// Verify reads everything that is committed when it begins: frames, both chains,
// order, and with full also every record and image. It goes on after damage as
// far as it can: damage is in the report, an error is a disk that cannot be read.
func (l *Log) Verify(full bool) (Report, error) {
	segs, end := l.index.all()
	defer l.index.release(segs...)
	v := verifier{full: full, end: end}
	for i, seg := range segs {
		if err := v.segment(seg, i == len(segs)-1); err != nil {
			return v.report, err
		}
	}
	if len(segs) > 0 && v.next != end {
		v.problem("the log ends before LSN %d, records up to %d were committed", v.next, end-1)
	}
	return v.report, nil
}

// VerifyDir is Verify for a log that nobody has open, also for one that does not
// open any more. A torn tail is no problem.
func VerifyDir(dir vfs.Dir, full bool) (Report, error) {
	o := Options{Dir: dir, ReadOnly: true}
	names, err := listDir(o)
	if err != nil {
		return Report{}, err
	}
	v := verifier{full: full, end: math.MaxUint64}
	for i, name := range names.segments {
		seg, err := openSegment(o, name)
		if c := status.Of(err); c == status.Damaged || c == status.Version {
			v.problem("%v", err)
			continue
		}
		if err == nil {
			err = v.segment(seg, i == len(names.segments)-1)
			seg.file.Close()
		}
		if err != nil {
			return v.report, err
		}
	}
	return v.report, nil
}

type verifier struct {
	full   bool
	end    proto.LSN // beyond this nothing is looked at
	report Report

	// After the segments so far.
	next  proto.LSN
	heads record.Heads
}

func (v *verifier) problem(format string, args ...any) {
	v.report.Problems = append(v.report.Problems, fmt.Sprintf(format, args...))
}

func (v *verifier) segment(seg *segment, last bool) error {
	head := seg.head
	found, err := readHeader(seg.file, seg.name) // again: it may have changed since
	if c := status.Of(err); err != nil && c != status.Damaged && c != status.Version {
		return err
	}
	if err == nil && found != head {
		err = damaged("verify", seg.name, 0, errors.New("another header than when it was opened"))
	}
	if err != nil {
		v.problem("%v", err)
	}
	if v.report.Segments > 0 && (head.First != v.next || head.Heads != v.heads) {
		v.problem("segment %s follows one that ends before LSN %d", seg.name, v.next)
	}
	v.report.Segments++
	w := newWalker(seg, true)
	if err := v.frames(w, last); err != nil {
		return err
	}
	v.next, v.heads = w.next, w.heads
	return nil
}

// frames walks through a segment up to its end mark, or to v.end in the last one.
func (v *verifier) frames(w *walker, last bool) error {
	for !last || w.next < v.end {
		off := w.off
		f, err := w.frame()
		if err != nil && !isBad(err) {
			return err
		}
		if err != nil {
			if last && v.end == math.MaxUint64 {
				_, err = w.seg.readTail(off, w.next, err)
				if err == nil {
					return nil // a torn tail, or none
				}
				if status.Of(err) != status.Damaged {
					return err
				}
			}
			v.problem("segment %s at offset %d: %v", w.seg.name, off, err)
			if f, err = w.resume(); err != nil || f == nil {
				return err
			}
			off = w.off - f.Size()
		}
		v.report.Frames++
		v.report.Records += uint64(f.Records)
		v.report.Bytes += uint64(f.Size())
		if v.full {
			if err := v.records(w, f, off); err != nil {
				return err
			}
		}
		if f.Flags&record.FlagEnd != 0 {
			return nil
		}
	}
	return nil
}

// records checks every record of a frame.
func (v *verifier) records(w *walker, f *record.Frame, off int64) error {
	recs, err := f.Decode()
	if err != nil {
		v.problem("segment %s at offset %d: %v", w.seg.name, off, err)
		return nil
	}
	at := imagesAt(off, f)
	for _, r := range recs {
		err := w.seg.readImages(r, at)
		if c := status.Of(err); err != nil && c != status.Damaged {
			return err
		}
		if err != nil {
			v.problem("%v", err)
		}
		at += int64(r.ImageLen)
		w.time = r.Time
	}
	return nil
}

// resume goes on after a bad frame: behind it, if only its images or its place in
// the log are wrong, else behind the next good one. It returns the frame that it
// has gone behind, nil if there is none any more.
func (w *walker) resume() (*record.Frame, error) {
	for off := w.off; off+record.HeaderSize <= w.seg.size; {
		f, buf, err := w.seg.foundFrame(off, w.buf)
		w.buf = buf
		if err != nil {
			return nil, err
		}
		if f != nil {
			w.off = off
			w.skip(f)
			return f, nil
		}
		if off, err = w.seg.nextMagic(off + record.Align); err != nil {
			return nil, err
		}
	}
	return nil, nil
}

// nextMagic returns the next place at or after off where a frame may begin, the
// segment's size if there is none.
func (s *segment) nextMagic(off int64) (int64, error) {
	chunk := make([]byte, 64<<10)
	for ; off < s.size; off += int64(len(chunk)) {
		n, err := readFull(s.file, chunk[:min(int64(len(chunk)), s.size-off)], off)
		if err != nil {
			return 0, status.Wrap(err, "read", s.name)
		}
		for i := 0; i+record.Align <= n; i += record.Align {
			if record.MayBegin(chunk[i:]) {
				return off + int64(i), nil
			}
		}
	}
	return s.size, nil
}

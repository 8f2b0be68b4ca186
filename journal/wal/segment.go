package wal

import (
	"errors"
	"fmt"
	"io"
	"strconv"
	"strings"

	"cagefs.dev/cage/journal/record"
	"cagefs.dev/cage/journal/vfs"
	"cagefs.dev/cage/remote/proto"
	"cagefs.dev/cage/remote/status"
)

const (
	segmentSuffix = ".wal"
	tornSuffix    = ".torn"
	nameDigits    = 20
)

// segment is a file of the log, in use or prepared for it.
type segment struct {
	// Set at construction.
	file vfs.File
	size int64

	// Set before it enters the index; until then owned by the writer.
	name string
	head record.SegmentHeader

	// Guarded by index.mu.
	frames []entry
	last   proto.LSN // 0: in use
	refs   int       // the file is closed at 0
}

// entry is a frame with records, in the index.
type entry struct {
	first     proto.LSN
	time      proto.Time // of the first record
	off       uint32
	skeletons uint32 // bytes of the section
}

func segmentName(first proto.LSN) string {
	return fmt.Sprintf("%0*d%s", nameDigits, uint64(first), segmentSuffix)
}

// parseSegmentName returns the first LSN of a segment with that name.
func parseSegmentName(name string) (proto.LSN, bool) {
	digits, ok := strings.CutSuffix(name, segmentSuffix)
	if !ok || len(digits) != nameDigits {
		return 0, false
	}
	n, err := strconv.ParseUint(digits, 10, 64)
	return proto.LSN(n), err == nil && n > 0
}

// damaged is the status.Damaged for a place in the log.
func damaged(op, name string, off int64, why error) error {
	return status.Newf(status.Damaged, op, "log", "segment %s at offset %d: %w", name, off, why)
}

// isBad reports whether err is a decoder's verdict on bytes, not a failure to read them.
func isBad(err error) bool {
	return errors.Is(err, record.ErrEnd) || errors.Is(err, record.ErrTorn) || errors.Is(err, record.ErrRot)
}

// readFull reads len(b) bytes, or less where the file ends.
func readFull(f io.ReaderAt, b []byte, off int64) (int, error) {
	n, err := f.ReadAt(b, off)
	if err == io.EOF {
		err = nil
	}
	return n, err
}

// readFrame reads the frame at off without its images and checks its checksum and
// that it belongs to the segment. guess is the expected size of the skeleton
// section. The frame lies in buf, or in a larger one, which is returned.
func (s *segment) readFrame(off int64, guess int, buf []byte) (*record.Frame, []byte, error) {
	want := min(int64(record.HeaderSize+guess), s.size-off)
	for {
		if int64(cap(buf)) < want {
			buf = make([]byte, want)
		}
		n, err := readFull(s.file, buf[:want], off)
		if err != nil {
			return nil, buf, status.Wrap(err, "read", s.name)
		}
		f, need, err := record.DecodeFrame(buf[:n])
		if int64(need) > want && off+int64(need) <= s.size && int64(n) == want {
			want = int64(need)
			continue
		}
		if err == nil && (f.Segment != s.head.ID || off+f.Size() > s.size) {
			return nil, buf, fmt.Errorf("%w: frame of another segment", record.ErrRot)
		}
		return f, buf, err
	}
}

// readImages reads the images of a record that begin at off and checks them.
func (s *segment) readImages(r *record.Record, off int64) error {
	if r.ImageLen == 0 {
		return nil
	}
	images := make([]byte, r.ImageLen)
	n, err := readFull(s.file, images, off)
	if err != nil {
		return status.Wrap(err, "read", s.name)
	}
	if err := r.CheckImages(images[:n]); err != nil {
		return damaged("read", s.name, off, err)
	}
	r.Images = images
	return nil
}

// imagesAt is where the image section of a frame at off begins.
func imagesAt(off int64, f *record.Frame) int64 {
	return off + record.HeaderSize + int64(f.SkeletonLen)
}

// walker goes through the frames of a segment in order and checks all that can
// be checked on the way.
type walker struct {
	seg    *segment
	images bool // check the image sections, too

	// What the next frame has to continue.
	off   int64
	next  proto.LSN
	time  proto.Time // of the last record; with skipped damage, of the last frame
	heads record.Heads

	buf     []byte
	section []byte
}

func newWalker(seg *segment, images bool) *walker {
	return &walker{
		seg: seg, images: images, off: record.SegmentHeaderSize,
		next: seg.head.First, time: seg.head.Time, heads: seg.head.Heads,
	}
}

// guessedSkeletons is what is read with a header: most commits are small.
const guessedSkeletons = 4000

// frame returns the next frame; its bytes are good until the next call. Errors
// for which isBad holds say that there is no good frame here; the walker stays.
func (w *walker) frame() (*record.Frame, error) {
	f, buf, err := w.seg.readFrame(w.off, guessedSkeletons, w.buf)
	w.buf = buf
	if err != nil {
		return nil, err
	}
	switch {
	case f.First != w.next:
		return nil, fmt.Errorf("%w: LSN %d where %d is missing", record.ErrRot, f.First, w.next)
	case f.Time < w.time:
		return nil, fmt.Errorf("%w: time of record %d", record.ErrRot, f.First)
	}
	if err := f.CheckChain(w.heads); err != nil {
		return nil, err
	}
	if w.images {
		if err := w.checkImages(f); err != nil {
			return nil, err
		}
	}
	w.skip(f)
	return f, nil
}

func (w *walker) checkImages(f *record.Frame) error {
	if cap(w.section) < int(f.ImageLen) {
		w.section = make([]byte, f.ImageLen)
	}
	n, err := readFull(w.seg.file, w.section[:f.ImageLen], imagesAt(w.off, f))
	if err != nil {
		return status.Wrap(err, "read", w.seg.name)
	}
	return f.CheckImages(w.heads, w.section[:n])
}

// skip goes behind a frame that is at w.off.
func (w *walker) skip(f *record.Frame) {
	w.off += f.Size()
	w.next = f.Next()
	w.time = f.Time
	w.heads = f.Heads
}

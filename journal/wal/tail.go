package wal

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math"

	"cagefs.dev/cage/journal/record"
	"cagefs.dev/cage/journal/vfs"
	"cagefs.dev/cage/remote/proto"
	"cagefs.dev/cage/remote/status"
)

// tail is what lies in a segment behind its last good frame.
type tail struct {
	off int64
	end int64 // behind the last 8 bytes that are not zeros; off when there are none
}

// tailChunk is how much of a tail is read at once; a multiple of record.Align.
const tailChunk = 1 << 20

// readTail judges the place off where LSN next is missing, because of why. It is
// status.Damaged if a frame behind it proves that next was durable.
func (s *segment) readTail(off int64, next proto.LSN, why error) (tail, error) {
	t := tail{off: off, end: off}
	chunk := make([]byte, min(tailChunk, s.size-off))
	var frame []byte
	for at := off; at < s.size; at += tailChunk {
		n, err := readFull(s.file, chunk[:min(int64(len(chunk)), s.size-at)], at)
		if err != nil {
			return t, status.Wrap(err, "read", s.name)
		}
		for i := 0; i < n; i += record.Align {
			b := chunk[i:min(i+record.Align, n)]
			if isZero(b) {
				continue
			}
			t.end = at + int64(i+len(b))
			if at+int64(i) == off || len(b) < record.Align || !record.MayBegin(b) {
				continue
			}
			var f *record.Frame
			f, frame, err = s.foundFrame(at+int64(i), frame)
			if err != nil {
				return t, err
			}
			if f != nil && f.Synced >= next {
				return t, damaged("open", s.name, off, fmt.Errorf(
					"%w: the frame at offset %d says that LSN %d was durable", why, at+int64(i), next))
			}
		}
	}
	return t, nil
}

// foundFrame reads what looks like the start of a frame of the segment; nil if it
// is none.
func (s *segment) foundFrame(off int64, buf []byte) (*record.Frame, []byte, error) {
	var head [record.HeaderSize]byte
	n, err := readFull(s.file, head[:], off)
	if err != nil {
		return nil, buf, status.Wrap(err, "read", s.name)
	}
	// Before the skeletons are read: an image that is full of magics is cheap.
	h, newer, err := record.DecodeHeader(head[:n])
	if err != nil || newer == 0 && h.Segment != s.head.ID {
		return nil, buf, nil
	}
	f, buf, err := s.readFrame(off, int(h.SkeletonLen), buf)
	if err != nil && !isBad(err) {
		return nil, buf, status.Wrap(err, "read", s.name)
	}
	return f, buf, nil
}

func isZero(b []byte) bool {
	if len(b) == record.Align {
		return binary.NativeEndian.Uint64(b) == 0
	}
	for _, c := range b {
		if c != 0 {
			return false
		}
	}
	return true
}

// zero makes a tail zeros; the caller syncs.
func (s *segment) zero(t tail) error {
	zeros := make([]byte, min(tailChunk, t.end-t.off))
	for off := t.off; off < t.end; off += int64(len(zeros)) {
		if _, err := s.file.WriteAt(zeros[:min(int64(len(zeros)), t.end-off)], off); err != nil {
			return err
		}
	}
	return nil
}

// saveTail copies a tail to a new file NAME.torn, or NAME.torn.N where there are
// older ones, and makes it durable.
func (s *segment) saveTail(dir vfs.Dir, t tail) error {
	name, file, err := s.createTorn(dir)
	if err != nil {
		return err
	}
	err = copyRange(file, 0, s.file, t.off, t.end-t.off)
	if err == nil {
		err = file.Sync()
	}
	if err = errors.Join(err, file.Close()); err == nil {
		err = dir.Sync()
	}
	if err != nil {
		return errors.Join(err, dir.Remove(name))
	}
	return nil
}

func (s *segment) createTorn(dir vfs.Dir) (name string, file vfs.File, err error) {
	name = s.name + tornSuffix
	for n := 2; n < math.MaxInt16; n++ {
		file, err = dir.Create(name, 0o600)
		if status.Of(err) != status.Exists {
			break
		}
		name = fmt.Sprintf("%s%s.%d", s.name, tornSuffix, n)
	}
	return name, file, err
}

// copyRange copies bytes through memory: really written, never shared.
func copyRange(to vfs.File, toOff int64, from vfs.File, off, n int64) error {
	buf := make([]byte, min(tailChunk, n))
	for n > 0 {
		k, err := readFull(from, buf[:min(int64(len(buf)), n)], off)
		if err != nil {
			return err
		}
		if k == 0 {
			return io.ErrUnexpectedEOF
		}
		if _, err := to.WriteAt(buf[:k], toOff); err != nil {
			return err
		}
		off, toOff, n = off+int64(k), toOff+int64(k), n-int64(k)
	}
	return nil
}

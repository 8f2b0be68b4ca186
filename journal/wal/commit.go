package wal

import (
	"crypto/rand"
	"encoding/binary"
	"time"

	"github.com/rs/zerolog"

	"cagefs.dev/cage/journal/record"
	"cagefs.dev/cage/journal/vfs"
	"cagefs.dev/cage/remote/proto"
	"cagefs.dev/cage/remote/status"
)

// Commit writes all appended records and makes them durable (one fdatasync,
// more only when a segment ends). One call at a time does the work, others wait
// for one that began after their Append. After any failed write or sync nobody
// knows what is durable: nothing is tried again, and every call returns the failure.
func (l *Log) Commit() error {
	batches, err := l.takeBatches()
	if len(batches) == 0 {
		return err
	}
	if err = l.out.write(batches); err == nil {
		l.index.add(batches)
	} else {
		err = l.fail(err)
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	l.committing = false
	if err == nil {
		for _, b := range batches {
			l.durable = b.first + proto.LSN(b.records) - 1
			l.pending -= int(b.size)
			if len(l.planned) > 0 && l.planned[0] == b.seg {
				l.planned = l.planned[1:]
			}
		}
	}
	l.changed.Broadcast()
	return err
}

// takeBatches returns what the caller has to write, then l.committing is the
// caller's to end; or nothing, when all that had been appended is durable.
func (l *Log) takeBatches() ([]*batch, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for target := l.last; l.durable < target; l.changed.Wait() {
		if l.failed != nil {
			return nil, l.failed
		}
		if !l.committing {
			l.committing = true
			l.layout.endFrame()
			batches := l.batches
			l.batches = nil
			return batches, nil
		}
	}
	return nil, l.failed
}

// writer writes frames behind each other. Owned by the call that set
// Log.committing, then by Close.
type writer struct {
	dir vfs.Dir
	log zerolog.Logger

	seg    *segment
	off    int64 // behind the last frame
	ended  bool  // the segment has its end mark, durable
	closed bool  // the last frame marks an orderly end

	// With the last frame.
	next   proto.LSN
	time   proto.Time
	heads  record.Heads
	synced proto.LSN

	buf []byte
}

// write makes batches durable.
func (w *writer) write(batches []*batch) error {
	for _, b := range batches {
		if b.seg != w.seg {
			if err := w.enter(b.seg); err != nil {
				return err
			}
		}
		if b.off != w.off || b.first != w.next {
			return status.Newf(status.Internal, "write", w.seg.name, "frame %d planned for %d is at %d", b.first, b.off, w.off)
		}
		h := record.Header{First: b.first, Records: b.records, Time: b.time}
		if err := w.frame(&h, b.entries, b.images); err != nil {
			return err
		}
		w.time = b.end
	}
	return w.sync()
}

// frame writes one frame.
func (w *writer) frame(h *record.Header, entries []byte, images [][]byte) error {
	h.Segment, h.Synced = w.seg.head.ID, w.synced
	w.buf = record.AppendFrame(w.buf[:0], h, w.heads, entries, images)
	if _, err := w.seg.file.WriteAt(w.buf, w.off); err != nil {
		return status.Wrap(err, "write", w.seg.name)
	}
	w.off += h.Size()
	w.heads, w.next, w.closed = h.Heads, h.Next(), h.Flags&record.FlagClosed != 0
	if cap(w.buf) > record.MaxSkeletons {
		w.buf = nil
	}
	return nil
}

// mark writes a frame without records.
func (w *writer) mark(flag uint16) error {
	return w.frame(&record.Header{Flags: flag, First: w.next, Time: w.time}, nil, nil)
}

func (w *writer) sync() error {
	start := time.Now()
	if err := w.seg.file.Datasync(); err != nil {
		return status.Wrap(err, "sync", w.seg.name)
	}
	if d := time.Since(start); d > slowSync {
		w.log.Warn().Dur("took", d).Str("segment", w.seg.name).Msg("slow sync of the log")
	}
	w.synced = w.next - 1
	return nil
}

// enter ends the segment and goes on in a prepared one.
func (w *writer) enter(next *segment) error {
	if w.seg != nil && !w.ended {
		if err := w.mark(record.FlagEnd); err != nil {
			return err
		}
		if err := w.sync(); err != nil {
			return err
		}
		w.ended = true
	}
	if err := w.install(next); err != nil {
		return err
	}
	w.seg, w.off, w.ended = next, record.SegmentHeaderSize, false
	return nil
}

// install gives a prepared segment its header and its name. The header is durable
// before the name: a segment with a name and a bad header is damage.
func (w *writer) install(seg *segment) error {
	var id [8]byte
	rand.Read(id[:]) // never fails
	seg.head = record.SegmentHeader{
		ID: binary.LittleEndian.Uint64(id[:]), First: w.next, Size: seg.size, Time: w.time, Heads: w.heads,
	}
	name := segmentName(w.next)
	if _, err := seg.file.WriteAt(seg.head.Encode(), 0); err != nil {
		return status.Wrap(err, "write", name)
	}
	if err := seg.file.Datasync(); err != nil {
		return status.Wrap(err, "sync", name)
	}
	if err := w.dir.Rename(seg.name, w.dir, name, vfs.RenameNoReplace); err != nil {
		return status.Wrap(err, "rename", name)
	}
	seg.name = name
	return status.Wrap(w.dir.Sync(), "sync directory of", name)
}

// close marks the log as ended in order, where there is room for it.
func (w *writer) close() error {
	if w.closed || w.ended || w.off+2*record.HeaderSize > w.seg.size {
		return nil
	}
	if err := w.mark(record.FlagClosed); err != nil {
		return err
	}
	return w.sync()
}

package wal

import (
	"cagefs.dev/cage/journal/record"
	"cagefs.dev/cage/remote/status"
)

// Append gives the records their LSNs and times, in order and without gaps, and
// puts them into the open batch: all of them or, with an error, none. They are
// durable only after Commit. Images are referenced until they are written: the
// caller must not change them any more.
//
// It does not wait for the disk, except where the log has outrun the preparation of
// its next segment. When there is no space for that, it is status.NoSpace until
// there is; what was appended before can still be committed. A record over
// MaxRecord bytes is status.Invalid; after a failed write or sync every call
// returns that failure.
func (l *Log) Append(recs ...*record.Record) error {
	return l.append(max(l.o.SegmentSize/reservePart, minReserve), recs)
}

// AppendReserved is Append with the right to the last part of the space that is
// allocated already. It is for the few records about what is in the log (that
// something committed could not be done), which must not fail on a full disk.
func (l *Log) AppendReserved(recs ...*record.Record) error { return l.append(0, recs) }

func (l *Log) append(keep int64, recs []*record.Record) error {
	for _, r := range recs {
		if err := r.Seal(); err != nil {
			return err
		}
		if len(r.Images) > MaxRecord-record.MaxSkeleton {
			return status.Newf(status.Invalid, "append", "record", "%d bytes of images", len(r.Images))
		}
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	for {
		if err := l.usableLocked("append"); err != nil {
			return err
		}
		if err := l.numberLocked(recs); err != nil {
			return err
		}
		if l.roomLocked(recs, keep) {
			break
		}
		if err := l.awaitSegmentLocked(); err != nil {
			for _, r := range recs {
				r.LSN, r.Time = 0, 0
			}
			return err
		}
	}
	l.placeLocked(recs)
	if len(l.layout.free) == 0 && l.layout.used() > l.layout.seg.size/2 {
		l.prepareLocked()
	}
	return nil
}

// numberLocked gives the records the numbers that are next and encodes them into
// l.skeletons. l.mu is held; the numbers are taken only by placeLocked.
func (l *Log) numberLocked(recs []*record.Record) error {
	l.skeletons, l.ends = l.skeletons[:0], l.ends[:0]
	lsn, t, now := l.last, l.time, l.o.Now()
	for _, r := range recs {
		lsn, t = lsn+1, max(now, t+1)
		r.LSN, r.Time = lsn, t
		start := len(l.skeletons)
		l.skeletons = record.AppendSkeleton(l.skeletons, r)
		l.ends = append(l.ends, len(l.skeletons))
		need := frameSize(record.EntrySize(len(l.skeletons)-start, 0), len(r.Images))
		if need > l.o.SegmentSize-record.SegmentHeaderSize-record.HeaderSize {
			return status.Newf(status.Invalid, "append", "record", "%d bytes are more than a segment holds", need)
		}
	}
	return nil
}

// roomLocked reports whether the encoded records have a place, with keep bytes
// left behind them. l.mu is held.
func (l *Log) roomLocked(recs []*record.Record, keep int64) bool {
	try, t, start := l.layout, l.time, 0
	for i, r := range recs {
		if _, ok := try.add(l.ends[i]-start, uint64(r.Time-t), len(r.Images)); !ok {
			return false
		}
		t, start = r.Time, l.ends[i]
	}
	return try.left() >= keep
}

// placeLocked puts the encoded records into batches. l.mu is held and there is room.
func (l *Log) placeLocked(recs []*record.Record) {
	start := 0
	for i, r := range recs {
		skeleton := l.skeletons[start:l.ends[i]]
		start = l.ends[i]
		dt := uint64(r.Time - l.time)
		before := l.layout
		fresh, _ := l.layout.add(len(skeleton), dt, len(r.Images))
		if l.layout.seg != before.seg {
			l.planned = append(l.planned, l.layout.seg)
		}
		if fresh {
			dt = 0
			l.batches = append(l.batches, &batch{seg: l.layout.seg, off: l.layout.off, first: r.LSN, time: r.Time})
		}
		b := l.batches[len(l.batches)-1]
		b.entries = record.AppendEntry(b.entries, skeleton, dt)
		if len(r.Images) > 0 {
			b.images = append(b.images, r.Images)
		}
		b.records++
		b.end = r.Time
		size := l.layout.used() - l.layout.off
		l.pending += int(size - b.size)
		b.size = size
		l.last, l.time = r.LSN, r.Time
	}
	if cap(l.skeletons) > record.MaxSkeletons {
		l.skeletons = nil
	}
}

package wal

import (
	"slices"
	"sort"
	"sync"

	"cagefs.dev/cage/journal/record"
	"cagefs.dev/cage/remote/proto"
	"cagefs.dev/cage/remote/status"
)

// index tells where the committed frames are: 24 bytes of memory per frame.
type index struct {
	mu   sync.Mutex
	segs []*segment // oldest first; guarded by mu
	next proto.LSN  // after the last committed record; guarded by mu

	closed bool // guarded by mu
}

// add makes the frames of a commit known. A batch of a segment that is not the
// newest begins the next one.
func (x *index) add(batches []*batch) {
	x.mu.Lock()
	defer x.mu.Unlock()
	for _, b := range batches {
		x.enterLocked(b.seg, b.first)
		b.seg.frames = append(b.seg.frames, entry{
			first: b.first, time: b.time, off: uint32(b.off), skeletons: uint32(record.Pad(len(b.entries))),
		})
		x.next = b.first + proto.LSN(b.records)
	}
}

// enterLocked makes seg the segment in use. x.mu is held.
func (x *index) enterLocked(seg *segment, first proto.LSN) {
	if n := len(x.segs); n == 0 || x.segs[n-1] != seg {
		if n > 0 {
			x.segs[n-1].last = first - 1
		}
		x.segs = append(x.segs, seg)
	}
}

func (x *index) oldest() proto.LSN {
	x.mu.Lock()
	defer x.mu.Unlock()
	if len(x.segs) == 0 {
		return x.next
	}
	return x.segs[0].head.First
}

// find returns the frame that holds a committed record, with its segment, which
// the caller releases.
func (x *index) find(op string, lsn proto.LSN) (*segment, entry, error) {
	x.mu.Lock()
	defer x.mu.Unlock()
	if x.closed {
		return nil, entry{}, status.Newf(status.Draining, op, "log", "closed")
	}
	if lsn >= x.next {
		return nil, entry{}, status.Newf(status.NotFound, op, "log", "no record %d yet", lsn)
	}
	i := sort.Search(len(x.segs), func(i int) bool { return x.segs[i].head.First > lsn }) - 1
	if i < 0 {
		return nil, entry{}, status.Newf(status.NoHistory, op, "log", "record %d is no longer kept", lsn)
	}
	seg := x.segs[i]
	j := sort.Search(len(seg.frames), func(j int) bool { return seg.frames[j].first > lsn }) - 1
	seg.refs++
	return seg, seg.frames[j], nil
}

// atTime returns the first LSN of the newest frame that begins not after t, 0 if
// there is none.
func (x *index) atTime(t proto.Time) proto.LSN {
	x.mu.Lock()
	defer x.mu.Unlock()
	for _, seg := range slices.Backward(x.segs) {
		j := sort.Search(len(seg.frames), func(j int) bool { return seg.frames[j].time > t }) - 1
		if j >= 0 {
			return seg.frames[j].first
		}
	}
	return 0
}

func (x *index) segments() []Segment {
	x.mu.Lock()
	defer x.mu.Unlock()
	out := make([]Segment, len(x.segs))
	for i, seg := range x.segs {
		out[i] = Segment{Name: seg.name, First: seg.head.First, Last: seg.last, Bytes: seg.size}
	}
	return out
}

// all returns the segments, which the caller releases, and the LSN after the
// last committed record.
func (x *index) all() ([]*segment, proto.LSN) {
	x.mu.Lock()
	defer x.mu.Unlock()
	for _, seg := range x.segs {
		seg.refs++
	}
	return slices.Clone(x.segs), x.next
}

// dropOldest takes out the oldest segment if all its records are below lsn and
// it is not in use. The index's reference is the caller's.
func (x *index) dropOldest(lsn proto.LSN) *segment {
	x.mu.Lock()
	defer x.mu.Unlock()
	if len(x.segs) < 2 || x.segs[0].last >= lsn {
		return nil
	}
	seg := x.segs[0]
	x.segs = slices.Delete(x.segs, 0, 1)
	return seg
}

// putBack undoes dropOldest.
func (x *index) putBack(seg *segment) {
	x.mu.Lock()
	defer x.mu.Unlock()
	x.segs = slices.Insert(x.segs, 0, seg)
}

// release gives back a reference. The last one closes the file.
func (x *index) release(segs ...*segment) {
	x.mu.Lock()
	defer x.mu.Unlock()
	for _, seg := range segs {
		if seg.refs--; seg.refs == 0 {
			seg.file.Close() // everything that has to be durable was synced
		}
	}
}

// close forgets all segments.
func (x *index) close() {
	x.mu.Lock()
	segs := x.segs
	x.segs, x.closed = nil, true
	x.mu.Unlock()
	x.release(segs...)
}

package wal

import (
	"cagefs.dev/cage/journal/record"
	"cagefs.dev/cage/remote/proto"
)

// layout is where appended records will lie: plain arithmetic, so that a record
// gets its LSN only when there is a place for it on disk. A copy can be tried.
type layout struct {
	seg       *segment // nil: read-only
	off       int64    // where the open frame begins, or the next one will
	records   int      // of the open frame; 0: none is open
	skeletons int      // bytes of its sections, without padding
	images    int
	free      []*segment // prepared, in the order of use
}

// add places a record whose skeleton has n bytes and which comes dt after the
// record before. fresh says that it begins a frame. When it is not ok there is no
// space for it; the layout is of no use then.
func (y *layout) add(n int, dt uint64, images int) (fresh, ok bool) {
	if y.records > 0 {
		s, i := y.skeletons+record.EntrySize(n, dt), y.images+images
		if s <= record.MaxSkeletons && frameSize(s, i) <= maxFrame && y.fits(s, i) {
			y.records, y.skeletons, y.images = y.records+1, s, i
			return false, true
		}
		y.endFrame()
	}
	s := record.EntrySize(n, 0)
	if !y.fits(s, images) {
		if len(y.free) == 0 {
			return false, false
		}
		y.seg, y.free = y.free[0], y.free[1:]
		y.off = record.SegmentHeaderSize
	}
	y.records, y.skeletons, y.images = 1, s, images
	return true, y.fits(s, images)
}

// endFrame closes the open frame, if there is one.
func (y *layout) endFrame() {
	if y.records > 0 {
		y.off += frameSize(y.skeletons, y.images)
		y.records, y.skeletons, y.images = 0, 0, 0
	}
}

// fits reports whether a frame fits at off, with an end mark behind it.
func (y *layout) fits(skeletons, images int) bool {
	return y.off+frameSize(skeletons, images)+record.HeaderSize <= y.seg.size
}

// used is where the segment's next frame would begin.
func (y *layout) used() int64 {
	if y.records == 0 {
		return y.off
	}
	return y.off + frameSize(y.skeletons, y.images)
}

// left is the number of bytes for frames to come.
func (y *layout) left() int64 {
	n := max(0, y.seg.size-record.HeaderSize-y.used())
	for _, seg := range y.free {
		n += seg.size - record.SegmentHeaderSize - record.HeaderSize
	}
	return n
}

func frameSize(skeletons, images int) int64 {
	return record.HeaderSize + int64(record.Pad(skeletons)) + int64(record.Pad(images))
}

// batch is the content of a frame to be written.
type batch struct {
	seg     *segment
	off     int64
	first   proto.LSN
	records uint32
	time    proto.Time // of the first record
	end     proto.Time // of the last
	entries []byte     // the skeleton section
	images  [][]byte   // the callers'
	size    int64      // of the frame
}

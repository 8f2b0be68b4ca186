package wal

import (
	"slices"
	"strings"
	"time"

	"cagefs.dev/cage/journal/record"
	"cagefs.dev/cage/journal/vfs"
	"cagefs.dev/cage/remote/proto"
	"cagefs.dev/cage/remote/status"
)

// Open opens or creates the log in a directory. A torn tail is kept beside the
// segment (NAME.torn) and cut off durably; damage in the middle is
// status.Damaged with the place, a newer format is status.Version, and nothing is
// changed. Other errors are the disk's.
func Open(o Options) (*Log, error) {
	if o.SegmentSize == 0 {
		o.SegmentSize = defaultSegment
	}
	if o.SegmentSize < minSegment || o.SegmentSize > maxSegment || o.SegmentSize%record.SegmentHeaderSize != 0 {
		return nil, status.Newf(status.Invalid, "open", "log", "segments of %d bytes", o.SegmentSize)
	}
	if o.Now == nil {
		o.Now = func() proto.Time { return proto.Time(time.Now().UnixNano()) }
	}
	names, err := listDir(o)
	if err != nil {
		return nil, err
	}
	s := scan{o: o, out: writer{dir: o.Dir, log: o.Log, next: 1}}
	if err = s.segments(names.segments); err == nil {
		err = s.checkFloor()
	}
	if err == nil && !o.ReadOnly {
		err = s.repair(names.leftovers)
	}
	if err != nil {
		for _, seg := range append(s.segs, s.free...) {
			seg.file.Close()
		}
		return nil, err
	}
	return s.start(), nil
}

// dirNames are the names in a log's directory that mean something.
type dirNames struct {
	segments  []string // in order of their LSNs
	leftovers []string // of preparation
}

func listDir(o Options) (dirNames, error) {
	var n dirNames
	err := o.Dir.ReadDir(0, func(name string, _ uint64, _ uint32, _ uint64) bool {
		if _, ok := parseSegmentName(name); ok {
			n.segments = append(n.segments, name)
		} else if strings.HasSuffix(name, freeSuffix) || strings.HasSuffix(name, tmpSuffix) {
			n.leftovers = append(n.leftovers, name)
		}
		return true
	})
	slices.Sort(n.segments)
	return n, status.Wrap(err, "list", "log")
}

// scan is what opening finds out.
type scan struct {
	o    Options
	segs []*segment
	out  writer // with the last good frame
	tail tail   // of the last segment
	sure int64  // in the last segment all before this was durable when something behind it was written
	free []*segment
	no   uint64 // largest number of a prepared file
}

// segments reads all segments and finds the log's end.
func (s *scan) segments(names []string) error {
	for i, name := range names {
		seg, err := openSegment(s.o, name)
		if err != nil {
			return err
		}
		s.segs = append(s.segs, seg)
		if i > 0 {
			err = s.checkFollows(seg)
		}
		if err == nil {
			err = s.frames(seg, i == len(names)-1)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// openSegment opens a segment and reads its header.
func openSegment(o Options, name string) (*segment, error) {
	file, err := o.Dir.Open(name, !o.ReadOnly)
	if err != nil {
		return nil, status.Wrap(err, "open", name)
	}
	head, err := readHeader(file, name)
	if err != nil {
		file.Close()
		return nil, err
	}
	return &segment{file: file, size: head.Size, name: name, head: head, refs: 1}, nil
}

// readHeader reads the header of a segment and checks that it is that file's.
func readHeader(file vfs.File, name string) (record.SegmentHeader, error) {
	b := make([]byte, record.SegmentHeaderSize)
	n, err := readFull(file, b, 0)
	if err != nil {
		return record.SegmentHeader{}, status.Wrap(err, "read", name)
	}
	head, err := record.DecodeSegmentHeader(b[:n])
	if err != nil {
		if isBad(err) {
			return head, damaged("open", name, 0, err)
		}
		return head, status.Wrap(err, "open", name)
	}
	info, err := file.Stat()
	if err != nil {
		return head, status.Wrap(err, "stat", name)
	}
	if first, _ := parseSegmentName(name); first != head.First || info.Size < head.Size || head.Size > maxSegment {
		return head, status.Newf(status.Damaged, "open", "log", "segment %s: the header says first LSN %d and %d bytes, the file has %d",
			name, head.First, head.Size, info.Size)
	}
	return head, nil
}

// checkFollows reports whether seg goes on where the segment before ended.
func (s *scan) checkFollows(seg *segment) error {
	if seg.head.First != s.out.next || seg.head.Heads != s.out.heads {
		return status.Newf(status.Damaged, "open", "log", "segment %s follows one that ends before LSN %d", seg.name, s.out.next)
	}
	return nil
}

// frames reads a segment. All but the last one end with an end mark.
func (s *scan) frames(seg *segment, last bool) error {
	w := newWalker(seg, last)
	out := &s.out
	*out = writer{dir: out.dir, log: out.log, seg: seg}
	lastOff := int64(0)
	s.sure = w.off
	for !out.ended {
		off := w.off
		f, err := w.frame()
		if err != nil && !isBad(err) {
			return status.Wrap(err, "open", seg.name)
		}
		if err != nil {
			if !last {
				return damaged("open", seg.name, off, err)
			}
			if s.tail, err = seg.readTail(off, w.next, err); err != nil {
				return err
			}
			break
		}
		if f.Synced == f.First-1 {
			s.sure = off
		}
		if f.Records > 0 {
			seg.frames = append(seg.frames, entry{first: f.First, time: f.Time, off: uint32(off), skeletons: f.SkeletonLen})
			lastOff = off
		}
		out.ended, out.closed = f.Flags&record.FlagEnd != 0, f.Flags&record.FlagClosed != 0
	}
	out.off, out.next, out.heads, out.synced = w.off, w.next, w.heads, w.next-1
	out.time = seg.head.Time
	if lastOff > 0 {
		recs, err := seg.decodeAt(lastOff)
		if err != nil {
			return damaged("open", seg.name, lastOff, err)
		}
		out.time = recs[len(recs)-1].Time
	}
	return nil
}

// decodeAt decodes the records of the frame at off.
func (s *segment) decodeAt(off int64) ([]*record.Record, error) {
	f, _, err := s.readFrame(off, guessedSkeletons, nil)
	if err != nil {
		return nil, err
	}
	return f.Decode()
}

func (s *scan) checkFloor() error {
	floor := s.o.Floor
	if floor == 0 {
		return nil
	}
	if floor >= s.out.next {
		place := "no segment"
		if n := len(s.segs); n > 0 {
			place = "segment " + s.segs[n-1].name
		}
		return status.Newf(status.Damaged, "open", "log", "%s at offset %d: the log ends before LSN %d, which was durable", place, s.out.off, floor)
	}
	if first := s.segs[0].head.First; first > floor+1 {
		return status.Newf(status.Damaged, "open", "log", "segment %s: the log begins after LSN %d, which is needed", s.segs[0].name, floor+1)
	}
	return nil
}

// repair makes what was found durable and the end of the log clean, deals with
// the leftovers of preparation, and makes the first segment of a new log.
func (s *scan) repair(leftovers []string) (err error) {
	if len(s.segs) > 0 {
		if err = s.settle(s.segs[len(s.segs)-1]); err != nil {
			return err
		}
	}
	if s.free, s.no, err = adopt(s.o, leftovers); err != nil || len(s.segs) > 0 {
		return err
	}
	if len(s.free) == 0 {
		seg, err := prepare(s.o.Dir, s.no+1, s.o.SegmentSize, nil)
		if err != nil {
			return err
		}
		s.free, s.no = append(s.free, seg), s.no+1
	}
	if err = s.out.enter(s.free[0]); err != nil {
		return err
	}
	s.segs, s.free = append(s.segs, s.free[0]), s.free[1:]
	return nil
}

// settle cuts off the torn tail, and makes durable what was read before it and
// may be in the kernel's memory only: its process was killed before the sync.
// These bytes are written again, because a sync that failed may have left them
// there as clean.
func (s *scan) settle(seg *segment) error {
	t := s.tail
	if t.end > t.off {
		s.o.Log.Warn().Str("segment", seg.name).Int64("offset", t.off).Int64("bytes", t.end-t.off).
			Msg("torn tail of the log is cut off")
		if err := seg.saveTail(s.o.Dir, t); err != nil {
			return status.Wrap(err, "save", seg.name+tornSuffix)
		}
		if err := seg.zero(t); err != nil {
			return status.Wrap(err, "cut", seg.name)
		}
	}
	if err := copyRange(seg.file, s.sure, seg.file, s.sure, s.out.off-s.sure); err != nil {
		return status.Wrap(err, "write", seg.name)
	}
	if err := seg.file.Datasync(); err != nil {
		return status.Wrap(err, "sync", seg.name)
	}
	return status.Wrap(s.o.Dir.Sync(), "sync directory of", seg.name)
}

// start makes the log of what was found.
func (s *scan) start() *Log {
	l := &Log{
		o:     s.o,
		index: &index{next: s.out.next},
		cache: &cache{},
		stop:  make(chan struct{}),
		out:   s.out,
		last:  s.out.next - 1, durable: s.out.next - 1, time: s.out.time,
		layout: layout{seg: s.out.seg, off: s.out.off, free: s.free},
		prep:   preparation{no: s.no},
	}
	if s.out.ended {
		l.layout.off = s.out.seg.size
	}
	for _, seg := range s.segs {
		l.index.enterLocked(seg, seg.head.First)
	}
	l.changed.L = &l.mu
	return l
}

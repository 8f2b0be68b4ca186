package pagecache

import (
	"slices"

	"cagefs.dev/cage/remote/page"
)

// maxStreams is how many sequential readers of one file are told apart.
const maxStreams = 4

// stream is a sequential reader of a file. Guarded by Cache.mu. The window, how
// far it is read ahead of, doubles with each read that goes on where the last
// ended. Whoever reads anywhere gets a stream too, whose window stays 0.
type stream struct {
	used   uint64  // File.reads when it was last met; 0: none
	end    int64   // where its reads have come to
	window int     // pages
	issued page.No // pages before this one were looked at
	fills  []*fill // its reads ahead, those that are done too
}

// readAheadLocked notes a read from off to end and fetches what will follow.
func (f *File) readAheadLocked(b Backing, off, end int64) {
	c := f.c
	if c.ahead == 0 || f.doubtLocked() {
		return
	}
	f.reads++
	s := f.streamLocked(off, end)
	if s == nil {
		s = f.oldestStreamLocked()
		f.endStreamLocked(s)
		*s = stream{used: f.reads, end: end}
		return
	}
	s.used = f.reads
	if end <= s.end {
		return
	}
	s.end = end
	s.window = min(max(1, 2*s.window), c.ahead)
	next := c.size.No(end-1) + 1
	s.issued = max(s.issued, next)
	if int(s.issued-next) > s.window/2 {
		return // enough is on its way: in fewer, larger pieces
	}
	s.fills = slices.DeleteFunc(s.fills, func(fl *fill) bool { return fl.finished })
	f.issueLocked(s, b, next+page.No(s.window)-1)
}

// issueLocked fetches the absent ones of a stream's pages up to last.
func (f *File) issueLocked(s *stream, b Backing, last page.No) {
	c := f.c
	last = min(last, c.size.No(f.sizeLocked()-1))
	for s.issued <= last {
		count := f.absentLocked(s.issued, last)
		if count == 0 {
			s.issued++
			continue
		}
		if c.aheadFills >= maxAheadFills {
			return
		}
		fl := f.runLocked(b, s.issued, count, true)
		if fl == nil {
			return // no memory: what is there is in use
		}
		s.fills = append(s.fills, fl)
		s.issued += page.No(count)
	}
}

// streamLocked is the stream that a read continues. Reads of an established one
// may come in another order than they were made: the kernel sends several at a time.
func (f *File) streamLocked(off, end int64) *stream {
	for i := range f.streams {
		s := &f.streams[i]
		slack := int64(0)
		if s.window > 1 {
			slack = int64(s.window) * int64(f.c.size)
		}
		if s.used > 0 && off <= s.end+slack && off >= s.end-slack {
			return s
		}
	}
	return nil
}

// oldestStreamLocked is the stream that was met longest ago.
func (f *File) oldestStreamLocked() *stream {
	oldest := &f.streams[0]
	for i := range f.streams {
		if f.streams[i].used < oldest.used {
			oldest = &f.streams[i]
		}
	}
	return oldest
}

// endStreamLocked stops what was fetched ahead of a reader that has gone elsewhere,
// unless somebody waits for it.
func (f *File) endStreamLocked(s *stream) {
	for _, fl := range s.fills {
		if fl.finished || fl.waiters > 0 {
			continue
		}
		for i := range fl.slots {
			if p := fl.slots[i].page; p != nil {
				p.dropLocked()
			}
		}
		fl.cancel()
	}
	*s = stream{}
}

package pagecache

import (
	"container/list"

	"cagefs.dev/cage/remote/page"
	"cagefs.dev/cage/remote/proto"
)

// File is a file that is open through the cache.
type File struct {
	// Set at construction.
	c    *Cache
	id   proto.FileID
	src  *source
	turn chan struct{} // holds one token while somebody writes; see the locks in cache.go

	// Guarded by c.mu.
	b       Backing // of the newest Open
	opens   int
	idle    *list.Element // in c.idle
	pages   map[page.No]*cached
	streams [maxStreams]stream
	reads   uint64 // how many reads the streams have seen

	// What the pages are valid for; guarded by c.mu. All changes up to base are in
	// all pages. Changes of this session's up to own are too, for they were made here first;
	// one by others between base and own is perhaps not: its push is on the way, or
	// was missed if there is a reset. foreign is the newest change by others that was pushed: pages older than it are gone.
	base, own, foreign proto.LSN
	epoch              uint64 // of the source when the pages were last known to be valid; 0: never

	// The size; guarded by c.mu. It was heard with change number known; writes
	// that are perhaps not in it extend it.
	heard      int64
	known      proto.LSN
	heardEpoch uint64 // of the source then
	unsure     bool   // heard is perhaps wrong: a write that was to extend the file failed
	extensions []extension

	// This session's writes; guarded by c.mu.
	logged  proto.Seq             // the newest
	applied proto.Seq             // all up to this are known to be applied
	pending map[page.No]proto.Seq // the newest of pages that were not cached when written, or dropped since
	sweep   int                   // size of pending at which applied ones are thrown out
	writing span                  // pages of the write that has the turn
	drops   uint64                // times that pages were dropped because the file changed, other than by a write
}

// extension is a write that reaches beyond all later ones.
type extension struct {
	seq proto.Seq
	end int64
}

// span is a range of pages; without count it is none.
type span struct {
	first page.No
	count page.No
}

func (s span) has(no page.No) bool { return s.first <= no && no < s.first+s.count }

const minSweep = 64

func newFile(c *Cache, id proto.FileID, src *source) *File {
	return &File{
		c: c, id: id, src: src,
		turn:  make(chan struct{}, 1),
		pages: make(map[page.No]*cached),
		sweep: minSweep,
	}
}

// Logged is the number of the newest write of this file, 0 if there was none
// that may still be unapplied.
func (f *File) Logged() proto.Seq {
	f.c.mu.Lock()
	defer f.c.mu.Unlock()
	return f.logged
}

// Size is the size the cache knows: the server's, extended by logged writes.
func (f *File) Size() int64 {
	f.c.mu.Lock()
	defer f.c.mu.Unlock()
	return f.sizeLocked()
}

// Own tells the cache an attribute reply to this session's own change of the file (write, truncate): pages stay
// valid up to its change number; those beyond the size are dropped. upto as for Open:
// the change's own number, or, where only its attr came back (Session.Do), what Logged said before the change was logged.
// A truncate is to be told before the next write of the file.
func (f *File) Own(attr proto.Attr, upto proto.Seq) {
	f.c.mu.Lock()
	defer f.c.mu.Unlock()
	f.ownLocked(attr, upto)
}

// Replaced is Own for a change of this session's that gave the bytes from off to
// end values that nobody here knows (fallocate, a copy at the server): their pages are dropped.
func (f *File) Replaced(attr proto.Attr, upto proto.Seq, off, end int64) {
	f.c.mu.Lock()
	defer f.c.mu.Unlock()
	f.drops++
	for no, p := range f.pages {
		if start := f.c.size.Start(no); start < end && off < start+int64(f.c.size) {
			p.dropLocked()
		}
	}
	f.ownLocked(attr, upto)
}

func (f *File) ownLocked(attr proto.Attr, upto proto.Seq) {
	if f.epoch == f.src.epoch { // otherwise a change by others before this one may have been missed
		f.own = max(f.own, attr.Change)
	}
	f.applied = max(f.applied, upto)
	size := int64(attr.Size)
	if size < f.expectLocked(upto) {
		f.dropFromLocked(size, nil)
	}
	f.hearLocked(attr.Change, size, upto, 0) // the answer may be older than the last reset
}

// Seen tells the cache any other fresh attribute reply while the file is open, as Open does.
func (f *File) Seen(attr proto.Attr, upto proto.Seq) (kept bool) {
	f.c.mu.Lock()
	defer f.c.mu.Unlock()
	return f.freshLocked(attr, upto)
}

// Renew drops what is cached: the caller has just come to know that nobody else changes
// the file from now on, and what is here may be from before.
func (f *File) Renew() {
	f.c.mu.Lock()
	defer f.c.mu.Unlock()
	f.unsure = true
	f.dropFromLocked(0, nil)
}

// Close takes an Open back; the pages stay for the next.
func (f *File) Close() {
	f.c.mu.Lock()
	defer f.c.mu.Unlock()
	f.opens--
	if f.opens > 0 {
		return
	}
	for i := range f.streams {
		f.endStreamLocked(&f.streams[i])
	}
	f.c.idleLocked(f)
}

// freshLocked takes in what the server says of the file, and reports whether
// all that was ever read of it through this cache is still as it is.
func (f *File) freshLocked(attr proto.Attr, upto proto.Seq) (kept bool) {
	f.applied = max(f.applied, upto)
	valid := f.base
	if f.epoch == f.src.epoch {
		valid = max(f.base, f.own)
	}
	switch {
	case attr.Change > valid, attr.Change >= f.foreign && f.foreign > f.base:
		f.dropOlderLocked(attr.Change)
		f.base, f.epoch = attr.Change, f.src.epoch
	case attr.Change == valid && f.foreign <= f.base:
		kept = f.epoch > 0
		f.epoch = f.src.epoch
	default: // the reply was overtaken
		kept = f.epoch == f.src.epoch && f.foreign <= f.base
	}
	f.hearLocked(attr.Change, int64(attr.Size), upto, f.src.epoch)
	return kept
}

// dropOlderLocked drops the pages that a change by others is perhaps not in.
func (f *File) dropOlderLocked(change proto.LSN) {
	f.drops++
	for _, p := range f.pages {
		if p.fill != nil || max(p.base, f.base) < change {
			p.dropLocked()
		}
	}
}

// dropFromLocked drops the page that holds an offset and all after it, but for those of a fill.
func (f *File) dropFromLocked(off int64, but *fill) {
	f.drops++
	first := f.c.size.No(off)
	for no, p := range f.pages {
		if no >= first && (but == nil || p.fill != but) {
			p.dropLocked()
		}
	}
}

// sizeLocked is the size with the writes that extend it.
func (f *File) sizeLocked() int64 { return max(f.heard, f.extendedLocked()) }

// extendedLocked is how far the writes reach that the server's size perhaps does not include.
func (f *File) extendedLocked() int64 {
	if len(f.extensions) == 0 {
		return 0
	}
	return f.extensions[0].end
}

// expectLocked is the size that the server has, as far as known here, when the
// writes up to a number are applied.
func (f *File) expectLocked(upto proto.Seq) int64 {
	size := f.heard
	for _, e := range f.extensions {
		if e.seq <= upto {
			size = max(size, e.end)
		}
	}
	return size
}

// extendLocked notes that a write reaches up to end.
func (f *File) extendLocked(seq proto.Seq, end int64) {
	n := len(f.extensions)
	for n > 0 && f.extensions[n-1].end <= end {
		n--
	}
	f.extensions = append(f.extensions[:n], extension{seq, end})
}

// hearLocked takes in the size that the server says a file has at a change, with
// the writes up to a number in it, in an answer to a question of an epoch. Overtaken answers are ignored.
func (f *File) hearLocked(change proto.LSN, size int64, upto proto.Seq, epoch uint64) {
	if change < f.known {
		return
	}
	f.known, f.heard, f.heardEpoch, f.unsure = change, size, max(f.heardEpoch, epoch), false
	n := 0
	for n < len(f.extensions) && f.extensions[n].seq <= upto {
		n++
	}
	f.extensions = f.extensions[n:]
}

// doubtLocked reports whether the size may be another by now.
func (f *File) doubtLocked() bool {
	return f.unsure || f.foreign > f.known || f.heardEpoch != f.src.epoch
}

// pendLocked notes that a page which is not cached has a write that perhaps is not applied.
func (f *File) pendLocked(no page.No, seq proto.Seq) {
	if f.pending == nil {
		f.pending = make(map[page.No]proto.Seq)
	}
	f.pending[no] = max(f.pending[no], seq)
	if len(f.pending) < f.sweep {
		return
	}
	for no, seq := range f.pending {
		if seq <= f.applied {
			delete(f.pending, no)
		}
	}
	f.sweep = max(minSweep, 2*len(f.pending))
}

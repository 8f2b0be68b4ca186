package fusefs

import (
	"context"
	"math"

	"github.com/hanwen/go-fuse/v2/fuse"

	"cagefs.dev/cage/remote/lockset"
	"cagefs.dev/cage/remote/proto"
	"cagefs.dev/cage/remote/status"
	"cagefs.dev/cage/remote/wire"
)

// entriesAtOnce is how many entries are asked for with one request.
const entriesAtOnce = 1024

// Places in a listing, as the kernel knows them: 0 is the start, then come "."
// and "..", then the server's cookies, shifted. The largest cookie, which file
// systems use for the end, stays what it is.
const (
	offDot    = 1
	offDotDot = 2
	offLast   = math.MaxInt64
)

func cookieToOff(cookie uint64) uint64 {
	if cookie > offLast-offDotDot {
		return offLast
	}
	return cookie + offDotDot
}

func offToCookie(off uint64) uint64 {
	switch {
	case off <= offDotDot:
		return 0
	case off >= offLast:
		return offLast
	}
	return off - offDotDot
}

// batch is a piece of a listing with what has to be known to judge it later.
type batch struct {
	from    uint64 // cookie that it follows
	since   int64  // when it was asked for, see table.now
	entries []proto.DirEntry
	eof     bool
	parent  proto.FileID // of the directory, 0 if none
	names   uint64       // the directory's count of changes before it was asked for
	tenure  uint64       // of the directory's lease then
	applied proto.Seq    // newest operation of ours that its attributes surely include
	asked   remembering
	known   bool // it is from memory
}

// after is the index of the entry that follows a cookie, -1 where the batch cannot tell.
func (b *batch) after(cookie uint64) int {
	if b == nil {
		return -1
	}
	if cookie == b.from {
		return 0
	}
	for i := range b.entries {
		if b.entries[i].Cookie == cookie {
			return i + 1
		}
	}
	return -1
}

// fetched is what a prefetch found.
type fetched struct {
	batch *batch
	err   error
}

// listing is a directory that a process has open.
type listing struct {
	// Set at construction.
	ino  *inode
	head wire.ReqHeader
	ctx  context.Context // of prefetches; ends with the listing
	stop context.CancelFunc
	kept chan bool     // gets, once, whether the session has the directory open
	turn chan struct{} // holds one token; who has it owns the fields below

	now  *batch
	next chan fetched // a prefetch of what follows now, or nil
	loop loop

	onWay bool // the last answer told names, and the kernel may not have taken it in: see naming

	// What was listed from the beginning on, to be remembered.
	seen   []proto.DirEntry // Attr has ID and type only
	asked  remembering      // of the first of them
	tenure uint64           // of the directory's lease then
}

// loop notices that a server leads a listing in a circle, which would never end:
// Brent's algorithm on the cookies with which batches end. Its zero value is ready.
type loop struct {
	end          uint64 // of the last batch
	mark         uint64 // of an earlier one
	steps, limit int    // batches since the mark, and with how many it moves
}

// closed takes the next batch, and reports whether its end was one before.
func (l *loop) closed(b *batch) bool {
	if len(b.entries) == 0 || b.eof {
		return false
	}
	last := b.entries[len(b.entries)-1].Cookie
	if b.from == 0 || b.from != l.end { // somebody sought
		*l = loop{limit: 1}
	}
	if l.end = last; l.mark == last && l.limit > 1 {
		return true
	}
	if l.steps++; l.steps == l.limit {
		l.mark, l.steps, l.limit = last, 0, 2*l.limit
	}
	return false
}

// OpenDir implements fuse.RawFileSystem. It waits for no answer: the kernel
// has checked the permission bits, and the server checks each listing. The
// session opens the directory beside it, so that it stays when it is removed.
func (s *fileSystem) OpenDir(_ <-chan struct{}, in *fuse.OpenIn, out *fuse.OpenOut) fuse.Status {
	who := s.idents.full(&in.InHeader)
	ctx, stop := context.WithCancel(s.life)
	l := &listing{ino: s.inodes.open(s.inodes.find(in.NodeId).id), head: s.headerOf(who), ctx: ctx, stop: stop, kept: make(chan bool, 1), turn: make(chan struct{}, 1)}
	l.turn <- struct{}{}
	if s.at == 0 {
		s.tasks.Go(func() {
			_, err := s.session.Open(ctx, l.head, l.ino.id, wire.OpenRead, lockset.NoMode) // as open(2): what becomes of the mode does not matter
			l.kept <- err == nil
		})
	} else {
		l.kept <- false
	}
	out.Fh = s.dirs.add(&handle[*listing]{it: l, who: who, close: s.closeDir})
	return fuse.OK
}

func (s *fileSystem) closeDir(h *handle[*listing]) {
	l := h.it
	l.stop()
	l.arrived()
	s.inodes.close(l.ino)
	s.tasks.Go(func() {
		if <-l.kept {
			s.session.Release(l.ino.id)
		}
	})
}

// ReleaseDir implements fuse.RawFileSystem.
func (s *fileSystem) ReleaseDir(in *fuse.ReleaseIn) { s.dirs.release(in.Fh) }

// ReadDir implements fuse.RawFileSystem.
func (s *fileSystem) ReadDir(cancel <-chan struct{}, in *fuse.ReadIn, out *fuse.DirEntryList) fuse.Status {
	return s.list(cancel, in, false, func(e fuse.DirEntry, _ *listing, _ *proto.Attr) bool {
		return out.AddDirEntry(e)
	})
}

// ReadDirPlus implements fuse.RawFileSystem.
func (s *fileSystem) ReadDirPlus(cancel <-chan struct{}, in *fuse.ReadIn, out *fuse.DirEntryList) fuse.Status {
	dir := s.inodes.find(in.NodeId)
	return s.list(cancel, in, true, func(e fuse.DirEntry, l *listing, a *proto.Attr) bool {
		entry := out.AddDirLookupEntry(e)
		if entry == nil {
			return false
		}
		if a != nil && s.believable(dir, l.now, a) {
			s.naming(l)
			s.fillEntry(entry, a, s.nameTimeout(dir, l.now.tenure), l.now.since).seen(dir.id, e.Name)
		}
		return true
	})
}

// believable reports whether attributes that came with a listing may be given
// to the kernel, which takes their size for the file's: not if they are from
// before a change of the directory or of the file that the kernel knows of. The
// entry then goes without, and the kernel asks for it when it needs it.
func (s *fileSystem) believable(dir *inode, b *batch, a *proto.Attr) bool {
	if a.ID == 0 || a.Nlink == 0 || a.ID == s.inodes.root.id || dir.names.Load() != b.names || dir.gone.Load() {
		return false
	}
	if _, ok := s.inodes.node(a.ID); !ok {
		return false
	}
	ino := s.inodes.known(a.ID)
	return !s.inodes.newer(ino, a.Change, b.since) && (ino == nil || proto.Seq(ino.logged.Load()) <= b.applied && ino.shown() == nil)
}

// list gives the entries after in.Offset to add until it has no room.
func (s *fileSystem) list(cancel <-chan struct{}, in *fuse.ReadIn, plus bool, add func(fuse.DirEntry, *listing, *proto.Attr) bool) fuse.Status {
	h := s.dirs.borrow(in.Fh)
	if h == nil {
		return fuse.EBADF
	}
	defer h.give()
	ctx := s.read(cancel, &in.InHeader)
	defer ctx.end()
	l := h.it
	select {
	case <-l.turn:
		defer func() { l.turn <- struct{}{} }()
	case <-ctx.Done():
		return s.errors.status("readdir", ctx.Err())
	}
	l.arrived()
	if in.Offset == 0 {
		l.now, l.next = nil, nil // the start is the start of the present directory
	}
	dotted := in.Offset >= offDotDot
	for cookie, n := offToCookie(in.Offset), 0; n == 0; {
		rest, err := s.rest(ctx, l, cookie, plus)
		if err != nil {
			return s.errors.status("readdir", err)
		}
		if !dotted && !s.dots(l, in.Offset, func(e fuse.DirEntry) bool { return add(e, nil, nil) }) {
			return fuse.OK
		}
		dotted = true
		for i := range rest {
			e := &rest[i]
			de := fuse.DirEntry{Name: e.Name, Mode: e.Attr.Mode, Ino: s.ino(e.Attr.ID), Off: cookieToOff(e.Cookie)}
			if !add(de, l, &e.Attr) {
				return fuse.OK
			}
			cookie, n = e.Cookie, n+1
		}
		if l.now.eof {
			break
		}
	}
	return fuse.OK
}

// dots gives "." and "..", as far as they are not behind off, and reports whether
// there was room for them. A root is its own parent, as on any file system. The
// caller has the turn.
func (s *fileSystem) dots(l *listing, off uint64, add func(fuse.DirEntry) bool) bool {
	if off < offDot && !add(fuse.DirEntry{Name: ".", Mode: proto.ModeDir, Ino: l.ino.number(), Off: offDot}) {
		return false
	}
	up := l.ino.number()
	if l.now.parent != 0 && l.ino != s.inodes.root {
		up = s.ino(l.now.parent)
	}
	return add(fuse.DirEntry{Name: "..", Mode: proto.ModeDir, Ino: up, Off: offDotDot})
}

// rest returns the entries that follow a cookie, as far as one batch goes, and
// makes that batch the listing's. It is empty only at the end, or where the
// server had nothing to show but more to come. The caller has the turn.
func (s *fileSystem) rest(ctx context.Context, l *listing, cookie uint64, plus bool) ([]proto.DirEntry, error) {
	if i := l.now.after(cookie); i >= 0 && (i < len(l.now.entries) || l.now.eof) {
		return l.now.entries[i:], nil
	}
	b := l.prefetched(ctx, cookie)
	if b == nil {
		var err error
		if b, err = s.fetch(ctx, l, cookie, plus); err != nil {
			return nil, err
		}
	}
	l.now, l.next = b, nil
	s.learnListing(l, b)
	if l.loop.closed(b) {
		return nil, status.Newf(status.BadFrame, "readdir", l.ino.id.String(), "the server's listing goes in a circle")
	}
	if n := len(b.entries); n > 0 && !b.eof {
		next := make(chan fetched, 1)
		l.next = next
		s.tasks.Go(func() {
			b, err := s.fetch(l.ctx, l, b.entries[n-1].Cookie, plus)
			next <- fetched{b, err}
		})
	}
	return b.entries, nil
}

// prefetched returns the batch after a cookie if it was asked for ahead and
// came, nil otherwise. The caller has the turn.
func (l *listing) prefetched(ctx context.Context, cookie uint64) *batch {
	if l.next == nil || l.now.after(cookie) != len(l.now.entries) {
		return nil
	}
	select {
	case f := <-l.next:
		l.next = nil
		if f.err == nil {
			return f.batch
		}
	case <-ctx.Done():
	}
	return nil
}

// fetch asks the server for a batch, or gives what is known.
func (s *fileSystem) fetch(ctx context.Context, l *listing, cookie uint64, plus bool) (*batch, error) {
	return orKnown(ctx, s, func() (*batch, bool) { return s.knownListing(l, cookie) }, func(ctx context.Context) (*batch, error) {
		b := s.newBatch(l, cookie)
		rep, err := s.session.ReadDir(ctx, l.head, l.ino.id, cookie, entriesAtOnce, plus)
		if err != nil {
			return nil, err
		}
		b.entries, b.eof, b.parent = rep.Entries, rep.EOF, rep.Parent
		return b, nil
	})
}

// newBatch is a batch of which nothing is known but when it was asked for.
func (s *fileSystem) newBatch(l *listing, cookie uint64) *batch {
	r := s.remembering()
	return &batch{from: cookie, since: s.inodes.now(), names: l.ino.names.Load(), tenure: s.tenure(l.ino), applied: r.applied, asked: r}
}

package fusefs

import (
	"context"
	"time"

	"cagefs.dev/cage/pagecache"
	"cagefs.dev/cage/remote/proto"
)

// Programs of the server change files without anybody being asked before. What the kernel
// has of such a file is old until the recall comes, and old as a whole; but where it
// is told a new size meanwhile it shows the zeros with which it fills the last page behind the old end, which
// nobody has written. So attributes that may be newer than its pages are told when it has dropped these. That
// waits for reads of the file, none of which waits for who asks for attributes: he holds no page.
//
// Each size that it is told makes it zero what it has of the last page behind that. So an older one must not arrive
// when it has read the page anew: attributes that were overtaken are asked for again, and before it
// drops pages those that it was told last get the time to arrive.

// arrival is how long attributes take to arrive, once they are told, on a machine that is not overloaded.
const arrival = 5 * time.Millisecond

// compare takes in fresh attributes of a file that is open, upto being what was applied when they were asked for.
func (s *fileSystem) compare(ino *inode, f *pagecache.File, a *proto.Attr, upto proto.Seq) {
	seen := *a
	seen.ID = s.key(a.ID)
	ino.fresh.Lock()
	defer ino.fresh.Unlock()
	if !f.Seen(seen, upto) {
		ino.behind.Store(true)
	}
}

// catchUp makes the kernel drop pages that are older than what the cache was last compared
// with, and returns when there are none.
func (s *fileSystem) catchUp(ino *inode) {
	ino.dropping.Lock()
	defer ino.dropping.Unlock()
	if ino.behind.Swap(false) {
		time.Sleep(arrival - time.Duration(s.now()-ino.toldAt.Load()))
		s.kernel.data(ino.node)
	}
}

// shown is the cached file of an inode of which the kernel may show pages; nil if there is none. When
// it is not open, the kernel shows none before it is opened, and its pages are compared then.
func (ino *inode) shown() *pagecache.File {
	if !ino.paged.Load() {
		return nil
	}
	ino.mu.Lock()
	defer ino.mu.Unlock()
	return ino.file
}

// uncover returns when the kernel has no pages that are older than attributes which it is about to be
// told. again says that they were overtaken.
func (s *fileSystem) uncover(ctx context.Context, ino *inode, a *proto.Attr, upto proto.Seq) (again bool, err error) {
	if f := ino.shown(); f != nil && s.at == 0 {
		if uint64(a.Change) < ino.changed.Load() {
			return true, nil
		}
		s.compare(ino, f, a, upto)
		if err := s.caughtUp(ctx, ino); err != nil {
			return false, err
		}
	}
	ino.mu.Lock()
	dropped := ino.dropped
	ino.mu.Unlock()
	if dropped == nil {
		ino.toldAt.Store(s.now())
		return false, nil
	}
	select {
	case <-dropped:
		ino.toldAt.Store(s.now())
		return false, nil
	case <-ctx.Done():
		return false, ctx.Err()
	}
}

// drop notes that the kernel is made to drop all pages, until what it returns is called.
func (ino *inode) drop() (dropped func()) {
	done := make(chan struct{})
	ino.mu.Lock()
	defer ino.mu.Unlock()
	ino.dropped = done
	return func() {
		ino.mu.Lock()
		defer ino.mu.Unlock()
		ino.dropped = nil
		close(done)
	}
}

// caughtUp is catchUp, if that is needed, as long as ctx lasts.
func (s *fileSystem) caughtUp(ctx context.Context, ino *inode) error {
	if ino.dropping.TryLock() {
		behind := ino.behind.Load()
		ino.dropping.Unlock()
		if !behind {
			return nil
		}
	}
	done := make(chan struct{})
	s.tasks.Go(func() {
		s.catchUp(ino)
		close(done)
	})
	select {
	case <-done:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// refresh compares what the cache and the kernel have of an open file with fresh
// attributes, as an open does.
func (s *fileSystem) refresh(f *openFile, a *proto.Attr, upto proto.Seq) {
	s.inodes.heard(f.ino, a)
	s.compare(f.ino, f.file, a, upto)
	s.catchUp(f.ino)
}

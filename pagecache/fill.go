package pagecache

import (
	"context"
	"fmt"

	"cagefs.dev/cage/remote/page"
	"cagefs.dev/cage/remote/proto"
	"cagefs.dev/cage/remote/status"
)

// fill fetches a run of adjacent pages with one read of the backing, in a
// goroutine of its own. It outlives the contexts of those who wait for it; only
// Cache.Close, or the end of the stream that it reads ahead of, ends it early.
//
// It shows nothing older than what this cache has logged:
//
//	a writer                            a fill of the page
//	Log(w) = 7
//	page is absent: pending = 7
//	                                    after = 7
//	                                    Wait(7)           w is in what the server has
//	                                    ReadAt
//
// and where they overlap, the bytes of the fill are never kept:
//
//	a writer                            a fill of the page
//	                                    after = 0
//	writing = page                      ReadAt            perhaps without w
//	Log(w) = 7                          …
//	                                    done: a page that is being written is not kept; or
//	drops the page from the fill        …
//	pending = 7                         done: the page is not the fill's any more
type fill struct {
	// Set at construction.
	f      *File
	b      Backing
	first  page.No
	after  proto.Seq // newest logged write of the pages: to be applied before they are fetched
	want   int       // bytes to ask for: what the file is known to have in these pages
	epoch  uint64    // of the source
	ahead  bool      // nobody has asked for it
	ctx    context.Context
	cancel context.CancelFunc // nil unless ahead

	// Owned by the fill's goroutine until done.
	reserved int // bytes of buffers that are counted for it

	done chan struct{} // closed when all is set

	// Guarded by Cache.mu.
	finished bool
	waiters  int
	slots    []slot // one for each page

	// Set before done is closed.
	err error
}

// slot is a page's place in a fill. Guarded by Cache.mu.
type slot struct {
	page    *cached // nil when the result is not wanted in the table any more
	waiters int     // each gets a hold of buf when the fill is done
	piece           // the result
}

// piece is a page's bytes as a read sees them.
type piece struct {
	buf *buffer // held
	n   int     // bytes of it; those after them are zero
	end int64   // of the file when they were fetched
}

// runLocked starts a fill of count pages that are absent from the table. An ahead
// one is not started, and nil returned, if there is no memory for it.
func (f *File) runLocked(b Backing, first page.No, count int, ahead bool) *fill {
	c := f.c
	fl := &fill{
		f: f, b: b, first: first, epoch: f.src.epoch, ahead: ahead,
		want:  count * int(c.size),
		ctx:   c.ctx,
		done:  make(chan struct{}),
		slots: make([]slot, count),
	}
	last := first + page.No(count) - 1
	if !f.doubtLocked() {
		fl.want -= int(c.size) - c.size.Len(last, f.sizeLocked())
	}
	fl.reserved = fl.cost()
	if !ahead {
		c.reserveLocked(fl.reserved)
	} else if !c.tryReserveLocked(fl.reserved) {
		return nil
	} else {
		fl.ctx, fl.cancel = context.WithCancel(c.ctx)
		c.aheadFills++
		c.stats.ReadAheads += int64(count)
	}
	for i := range fl.slots {
		p := f.newPageLocked(first + page.No(i))
		p.fill, p.slot = fl, i
		fl.slots[i].page = p
		fl.after = max(fl.after, f.pending[p.no])
	}
	if c.closed {
		fl.err = context.Canceled
		c.finishLocked(fl, nil, reply{})
		return fl
	}
	c.fills.Go(fl.run)
	return fl
}

// cost is the memory that the fill needs: buffers for its pages, and one for all
// together if they are fetched in one piece and then cut.
func (fl *fill) cost() int {
	size := int(fl.f.c.size)
	n := 0
	for i := range fl.slots {
		n += sizeFor(min(fl.want-i*size, size))
	}
	if len(fl.slots) > 1 {
		n += sizeFor(fl.want)
	}
	return n
}

// reply is what the server said to a fill.
type reply struct {
	n       int
	change  proto.LSN
	size    int64
	applied proto.Seq // all writes up to this are in it
}

// run is the fill's goroutine.
func (fl *fill) run() {
	bufs, r, err := fl.fetch()
	c := fl.f.c
	c.mu.Lock()
	defer c.mu.Unlock()
	if err != nil {
		object := fmt.Sprintf("%v page %d", fl.f.id, fl.first)
		fl.err = status.Wrap(err, "read", object)
	}
	c.finishLocked(fl, bufs, r)
}

// fetch waits for the writes and reads the pages into buffers of their own. Without an error
// the buffers are what is reserved.
func (fl *fill) fetch() ([]*buffer, reply, error) {
	if fl.after > fl.b.Applied() {
		// Whether the write failed is not this reader's matter: it is answered, the server has what it has.
		_ = fl.b.Wait(fl.ctx, fl.after)
		if err := fl.ctx.Err(); err != nil {
			return nil, reply{}, err
		}
	}
	applied := max(fl.after, fl.b.Applied())
	all, r, err := fl.readAll()
	if err != nil {
		return nil, reply{}, err
	}
	r.applied = applied
	if len(fl.slots) == 1 {
		return []*buffer{all}, r, nil
	}
	return fl.cut(all, r.n), r, nil
}

// readAll reads the run into one buffer. If the file has become longer within
// the run it asks again, for whole pages.
func (fl *fill) readAll() (*buffer, reply, error) {
	c := fl.f.c
	for {
		all := c.pool.get(fl.want)
		r, err := fl.read(all.b[:fl.want])
		if err != nil {
			c.pool.put(all)
			return nil, reply{}, err
		}
		start := c.size.Start(fl.first)
		whole := len(fl.slots) * int(c.size)
		if r.n < fl.want && start+int64(r.n) < r.size {
			c.pool.put(all)
			return nil, reply{}, status.Newf(status.Internal, "", "", "%d bytes at %d of %d instead of %d", r.n, start, r.size, fl.want)
		}
		if fl.want == whole || start+int64(fl.want) >= r.size {
			return all, r, nil
		}
		c.pool.put(all)
		fl.want = whole
		fl.reserveMore()
	}
}

// reserveMore reserves what is needed since want has grown.
func (fl *fill) reserveMore() {
	c := fl.f.c
	c.mu.Lock()
	defer c.mu.Unlock()
	c.reserveLocked(fl.cost() - fl.reserved)
	fl.reserved = fl.cost()
}

// read reads p from the run's start, in several steps if it is more than the
// backing takes at once. The steps may see different states: the oldest counts.
func (fl *fill) read(p []byte) (r reply, err error) {
	start := fl.f.c.size.Start(fl.first)
	for first := true; first || r.n < len(p); first = false {
		step := p[r.n:min(len(p), r.n+proto.MaxIO)]
		n, change, size, err := fl.b.ReadAt(fl.ctx, step, start+int64(r.n))
		if err != nil {
			return reply{}, err
		}
		if first || change < r.change {
			r.change = change
		}
		r.n += n
		r.size = int64(size)
		if n < len(step) {
			break
		}
	}
	return r, nil
}

// cut copies what was read into a buffer for each page.
func (fl *fill) cut(all *buffer, n int) []*buffer {
	c := fl.f.c
	size := int(c.size)
	bufs := make([]*buffer, len(fl.slots))
	for i := range bufs {
		bufs[i] = c.pool.get(min(fl.want-i*size, size))
		if i*size < n {
			copy(bufs[i].b, all.b[i*size:min(n, (i+1)*size)])
		}
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	fl.reserved -= len(all.b)
	c.freeLocked(all)
	return bufs
}

// finishLocked hands a fill's result to the table and to those who wait.
func (c *Cache) finishLocked(fl *fill, bufs []*buffer, r reply) {
	f := fl.f
	fl.finished = true
	if fl.ahead {
		fl.cancel()
		c.aheadFills--
	}
	if fl.err != nil {
		c.unreserveLocked(fl.reserved)
	} else {
		f.repliedLocked(fl, r)
	}
	for i := range fl.slots {
		s := &fl.slots[i]
		if fl.err == nil {
			s.piece = piece{bufs[i], max(0, min(r.n-i*int(c.size), int(c.size))), r.size}
			s.buf.holds = s.waiters
		}
		keep := s.page != nil && fl.keepLocked(s.page, r)
		switch {
		case keep:
			s.page.base = r.change
			s.page.installLocked(s.buf, s.n)
			if f.pending[s.page.no] <= fl.after {
				delete(f.pending, s.page.no)
			}
		case s.page != nil:
			s.page.dropLocked()
		}
		if !keep && s.buf != nil && s.waiters == 0 {
			c.freeLocked(s.buf)
		}
		s.page = nil
	}
	c.makeRoomLocked(0)
	close(fl.done)
}

// keepLocked reports whether a fill's page, which is still its own, may stay in the table.
func (fl *fill) keepLocked(p *cached, r reply) bool {
	f := fl.f
	return fl.err == nil &&
		r.change >= max(f.base, f.foreign) && // nobody is known to have changed the file since
		!f.writing.has(p.no) &&
		f.c.size.Start(p.no) < f.sizeLocked()
}

// repliedLocked takes in what a fill has learned of the file's size. If that is
// not explained by this session's writes, somebody else has changed the file
// and the push is on its way: what was read at the former end is not valid.
func (f *File) repliedLocked(fl *fill, r reply) {
	former, expected := f.sizeLocked(), f.expectLocked(r.applied)
	if r.change < f.known {
		return
	}
	f.applied = max(f.applied, r.applied)
	f.hearLocked(r.change, r.size, r.applied, fl.epoch)
	switch {
	case r.size > former:
		f.dropFromLocked(former, fl)
	case r.size < expected:
		f.dropFromLocked(r.size, fl)
	}
}

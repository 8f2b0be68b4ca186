package pagecache

import (
	"context"

	"cagefs.dev/cage/remote/page"
	"cagefs.dev/cage/remote/proto"
	"cagefs.dev/cage/remote/status"
)

// WriteAt changes the cached bytes and logs the write; it returns when the log
// has it, not when the server has. All of p or an error.
// It blocks while the log's budget is used up, until ctx ends.
func (f *File) WriteAt(ctx context.Context, b Backing, p []byte, off int64) error {
	if off < 0 || off > page.MaxOffset-int64(len(p)) {
		return status.New(status.Invalid, "write", f.id.String())
	}
	for len(p) > 0 {
		n := min(len(p), proto.MaxIO)
		if _, err := f.write(ctx, b, p[:n], func() (int64, bool) { return off, true }); err != nil {
			return status.Wrap(err, "write", f.id.String())
		}
		p, off = p[n:], off+int64(n)
	}
	return nil
}

// Append is WriteAt at the end of the file as it is known here when its turn
// comes: ok is false, and nothing done, if that is in doubt; see Seen. p is at most proto.MaxIO bytes.
func (f *File) Append(ctx context.Context, b Backing, p []byte) (ok bool, err error) {
	ok, err = f.write(ctx, b, p, func() (int64, bool) {
		f.c.mu.Lock()
		defer f.c.mu.Unlock()
		return f.sizeLocked(), !f.doubtLocked()
	})
	return ok, status.Wrap(err, "write", f.id.String())
}

// write is WriteAt of at most what the log takes at once, where at says when its turn has come.
//
// Log first, pages second: what the log refuses must not be seen. In between the
// pages show the old bytes, as if the write came a little later. The turn keeps
// others from writing between the two:
//
//	a writer                            another one, without the turn
//	Log(x) = 7
//	                                    Log(y) = 8
//	                                    page := y
//	page := x                           the server ends with y, the page shows x
func (f *File) write(ctx context.Context, b Backing, p []byte, at func() (off int64, ok bool)) (bool, error) {
	select {
	case f.turn <- struct{}{}:
	case <-ctx.Done():
		return false, ctx.Err()
	}
	defer func() { <-f.turn }()
	off, ok := at()
	if !ok {
		return false, nil
	}

	w := writing{f: f, off: off, p: p}
	b = w.begin(b)
	seq, err := b.Log(ctx, p, off)
	if err != nil {
		w.abort()
		return false, err
	}
	w.copyWhole()
	w.finish(seq)
	return true, nil
}

// writing is a write that has the turn.
type writing struct {
	f     *File
	off   int64
	p     []byte
	drops uint64 // File.drops when it began
	epoch uint64 // of the source when it began
	whole []*buffer
}

// begin marks the pages: until the end of the write no fill of them is kept, for
// nobody could say whether the write is in it, or something that came after it.
func (w *writing) begin(b Backing) Backing {
	f, c := w.f, w.f.c
	c.mu.Lock()
	defer c.mu.Unlock()
	f.writing = span{c.size.No(w.off), page.No(c.size.Count(w.off, int64(len(w.p))))}
	w.drops, w.epoch = f.drops, f.src.epoch
	if b == nil {
		b = f.b
	}
	return b
}

// abort ends a write that was not logged.
func (w *writing) abort() {
	w.f.c.mu.Lock()
	defer w.f.c.mu.Unlock()
	w.f.writing = span{}
}

// copyWhole copies the pages that the write covers wholly into buffers of their own,
// so that it need not be done under the lock. Without memory it leaves that.
func (w *writing) copyWhole() {
	c := w.f.c
	for piece := range c.size.Split(w.off, int64(len(w.p))) {
		if !c.size.Whole(piece) {
			continue
		}
		b := c.tryBuffer(int(c.size))
		if b == nil {
			return
		}
		copy(b.b, w.p[c.size.Start(piece.No)-w.off:])
		w.whole = append(w.whole, b)
	}
}

// tryBuffer reserves and returns a buffer for n bytes; nil if there is no memory.
func (c *Cache) tryBuffer(n int) *buffer {
	c.mu.Lock()
	ok := c.tryReserveLocked(sizeFor(n))
	c.mu.Unlock()
	if !ok {
		return nil
	}
	return c.pool.get(n)
}

// finish makes the pages show the write that has got a number.
func (w *writing) finish(seq proto.Seq) {
	f, c := w.f, w.f.c
	c.mu.Lock()
	defer c.mu.Unlock()
	f.writing = span{}
	f.logged = max(f.logged, seq)
	// If somebody else's change came in between, nobody here knows which of the two is first.
	outdated := f.drops != w.drops || f.src.epoch != w.epoch
	size, doubt := f.sizeLocked(), f.doubtLocked()
	for piece := range c.size.Split(w.off, int64(len(w.p))) {
		start := c.size.Start(piece.No)
		data := w.p[start+int64(piece.Off)-w.off:][:piece.Len]
		var whole *buffer
		if len(w.whole) > 0 && c.size.Whole(piece) {
			whole, w.whole = w.whole[0], w.whole[1:]
		}
		p := f.pages[piece.No]
		if p != nil && (outdated || p.fill != nil || !p.usableLocked()) {
			p.dropLocked()
			p = nil
		}
		shown := false
		switch {
		case outdated:
		case whole != nil:
			f.putLocked(p, piece.No, whole, piece.Len)
			whole, shown = nil, true
		case p != nil:
			shown = p.changeLocked(piece.Off, data)
		case !doubt && (start >= size || piece.Off == 0 && start+int64(piece.Len) >= size):
			// Nothing else is in the page, or will be after this write.
			shown = f.makeLocked(piece.No, piece.Off, data)
		}
		if whole != nil {
			c.freeLocked(whole)
		}
		if p := f.pages[piece.No]; shown {
			p.seq = seq
			delete(f.pending, piece.No)
		} else {
			if p != nil {
				p.dropLocked()
			}
			f.pendLocked(piece.No, seq)
		}
	}
	f.extendLocked(seq, w.off+int64(len(w.p)))
}

// putLocked gives a page, which may be absent, wholly new bytes.
func (f *File) putLocked(p *cached, no page.No, b *buffer, n int) {
	if p == nil {
		f.newPageLocked(no).installLocked(b, n)
		return
	}
	f.c.policy.Touch(&p.entry)
	p.replaceLocked(b, n)
}

// makeLocked makes a page of which nothing but data is known to be not zero; false
// if there is no memory for it.
func (f *File) makeLocked(no page.No, off int, data []byte) bool {
	n := off + len(data)
	if !f.c.tryReserveLocked(sizeFor(n)) {
		return false
	}
	b := f.c.pool.get(n)
	clear(b.b[:off])
	copy(b.b[off:], data)
	f.newPageLocked(no).installLocked(b, n)
	return true
}

// changeLocked changes bytes of the page: in place, or in a copy if somebody views
// it or it grows out of its buffer; false if there is no memory for that.
func (p *cached) changeLocked(off int, data []byte) bool {
	c := p.file.c
	n := max(p.n, off+len(data))
	c.policy.Touch(&p.entry)
	if p.buf.holds > 0 || n > len(p.buf.b) {
		c.policy.Pin(&p.entry) // not to be pushed out by its own growth
		ok := c.tryReserveLocked(sizeFor(n))
		c.policy.Unpin(&p.entry)
		if !ok {
			return false
		}
		b := c.pool.get(n)
		copy(b.b, p.buf.b[:p.n])
		p.replaceLocked(b, p.n)
	}
	if off > p.n {
		clear(p.buf.b[p.n:off])
	}
	copy(p.buf.b[off:], data)
	p.n = n
	return true
}

package pagecache

import (
	"context"

	"cagefs.dev/cage/remote/page"
	"cagefs.dev/cage/remote/status"
)

// View is bytes of pages that stay as they are until Release.
type View struct {
	c      *Cache
	slices [][]byte
	held   []*buffer // released with the view
	n      int

	// Room for a read of two pages, each with zeros behind it, so that it allocates its view only.
	few     [4][]byte
	fewHeld [2]*buffer
	fewGot  [2]piece
}

// Slices are the bytes, in order. Not to be changed, not to be used after Release.
func (v *View) Slices() [][]byte { return v.slices }

// Len is their sum; less than what was asked for only at the end of the file.
func (v *View) Len() int { return v.n }

// Release gives the pages back. Once.
func (v *View) Release() {
	v.c.mu.Lock()
	defer v.c.mu.Unlock()
	for _, b := range v.held {
		v.c.unholdLocked(b)
	}
	v.held, v.slices = nil, nil
}

// Read returns up to n bytes at off without copying, filling what is missing.
// All of them are of one moment, unless the file is being changed meanwhile.
// It ends with ctx; fetches that were begun go on.
func (f *File) Read(ctx context.Context, b Backing, off int64, n int) (*View, error) {
	if off < 0 || n < 0 || off > page.MaxOffset-int64(n) {
		return nil, status.New(status.Invalid, "read", f.id.String())
	}
	r := reading{f: f, off: off, end: off + int64(n), view: &View{c: f.c}}
	if r.begin(b) {
		return r.view, nil
	}
	for _, j := range r.joins {
		select {
		case <-j.fill.done:
		case <-ctx.Done():
			r.abandon()
			return nil, status.Wrap(ctx.Err(), "read", f.id.String())
		}
	}
	return r.finish()
}

// reading is a Read under way. It looks at each page once: what it finds or
// waits for is held in got, so that it ends however small the cache is and
// whoever else drops pages.
type reading struct {
	f        *File
	off, end int64   // end is cut at size
	size     int64   // of the file at the beginning
	first    page.No // of got
	got      []piece // one for each page
	joins    []join
	view     *View // to be returned
}

// join is a page for which a read waits.
type join struct {
	fill *fill
	slot int
	at   int // in got
}

// begin holds what is there and starts fetching what is not. It reports whether
// nothing is missing: then the view is complete.
func (r *reading) begin(b Backing) bool {
	f, c := r.f, r.f.c
	c.mu.Lock()
	defer c.mu.Unlock()
	if b == nil {
		b = f.b
	}
	r.size = f.sizeLocked()
	if !f.doubtLocked() {
		r.end = min(r.end, r.size)
	}
	if r.end <= r.off {
		return true
	}
	r.first = c.size.No(r.off)
	last := c.size.No(r.end - 1)
	if pages := int(last - r.first + 1); pages <= len(r.view.fewGot) {
		r.got = r.view.fewGot[:pages]
	} else {
		r.got = make([]piece, pages)
	}
	for no := r.first; no <= last; {
		p := f.pages[no]
		switch {
		case p == nil:
			no += r.fetchLocked(b, no, last)
		case !p.usableLocked():
			p.dropLocked()
		case p.fill != nil:
			r.joinLocked(p.fill, p.slot)
			c.stats.Misses++
			no++
		default:
			c.policy.Touch(&p.entry)
			c.holdLocked(p.buf)
			r.got[no-r.first] = piece{p.buf, p.n, 0}
			c.stats.Hits++
			no++
		}
	}
	f.readAheadLocked(b, r.off, r.end)
	if len(r.joins) > 0 {
		return false
	}
	r.viewLocked()
	return true
}

// fetchLocked starts a fill of the pages from no on that are absent, at most up to
// last and as many as one fill may fetch, and returns how many.
func (r *reading) fetchLocked(b Backing, no, last page.No) page.No {
	f, c := r.f, r.f.c
	count := f.absentLocked(no, last)
	fl := f.runLocked(b, no, count, false)
	for i := range fl.slots {
		r.joinLocked(fl, i)
	}
	c.stats.Misses += int64(count)
	return page.No(count)
}

// absentLocked counts the adjacent absent pages from no to last, up to what one fill may fetch.
func (f *File) absentLocked(no, last page.No) int {
	n := 0
	for n < f.c.maxRun && no <= last && f.pages[no] == nil {
		n++
		no++
	}
	return n
}

// joinLocked waits for a page of a fill.
func (r *reading) joinLocked(fl *fill, slot int) {
	at := int(fl.first - r.first + page.No(slot))
	r.joins = append(r.joins, join{fl, slot, at})
	if fl.finished { // the cache is closed
		return
	}
	fl.waiters++
	fl.slots[slot].waiters++
}

// abandon gives back what the read holds and waits for.
func (r *reading) abandon() {
	c := r.f.c
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, j := range r.joins {
		if j.fill.finished {
			r.got[j.at] = j.fill.slots[j.slot].piece
			continue
		}
		j.fill.waiters--
		j.fill.slots[j.slot].waiters--
	}
	r.releaseLocked()
}

// releaseLocked gives back all that is held.
func (r *reading) releaseLocked() {
	for _, g := range r.got {
		if g.buf != nil {
			r.f.c.unholdLocked(g.buf)
		}
	}
}

// finish makes the view of what was there and what has come.
func (r *reading) finish() (*View, error) {
	f, c := r.f, r.f.c
	c.mu.Lock()
	defer c.mu.Unlock()
	var err error
	for _, j := range r.joins {
		if j.fill.err != nil {
			err = j.fill.err
		}
		r.got[j.at] = j.fill.slots[j.slot].piece
	}
	if err != nil {
		r.releaseLocked()
		return nil, err
	}
	// What is in the table now is newer than what this read holds, and all of one moment.
	for i := range r.got {
		g := &r.got[i]
		p := f.pages[r.first+page.No(i)]
		if p == nil || p.fill != nil || !p.usableLocked() {
			r.cutLocked(i, g)
			continue
		}
		if p.buf != g.buf {
			c.holdLocked(p.buf)
			c.unholdLocked(g.buf)
		}
		*g = piece{p.buf, p.n, 0}
	}
	r.viewLocked()
	return r.view, nil
}

// cutLocked ends the read at the end of the file, as the read knows it, if that is in a
// page that is not in the table any more. What comes after that is not known to
// be zero: the page may have been dropped because the file has grown.
func (r *reading) cutLocked(i int, g *piece) {
	if end := max(g.end, r.size); end < r.f.c.size.Start(r.first+page.No(i)+1) {
		r.end = min(r.end, end)
	}
}

// viewLocked completes the view with all pieces up to the end of the file, and hands the holds to it.
func (r *reading) viewLocked() {
	c := r.f.c
	end := min(r.end, r.f.sizeLocked())
	v := r.view
	v.slices, v.held = v.few[:0], v.fewHeld[:0]
	for i, g := range r.got {
		start := c.size.Start(r.first + page.No(i))
		from, to := int(max(r.off-start, 0)), int(min(end-start, int64(c.size)))
		if from >= to {
			c.unholdLocked(g.buf)
			continue
		}
		v.held = append(v.held, g.buf)
		if from < g.n {
			v.slices = append(v.slices, g.buf.b[from:min(g.n, to)])
		}
		if zero := max(from, g.n); zero < to {
			v.slices = append(v.slices, c.zeros[:to-zero])
		}
		v.n += to - from
	}
}

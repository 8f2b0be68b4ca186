package pagecache

import (
	"cagefs.dev/cage/pagecache/evict"
	"cagefs.dev/cage/remote/page"
	"cagefs.dev/cage/remote/proto"
)

// cached is a page in a file's table. Its states:
//
//		           a read misses               the fill is done
//		absent ─────────────────────▶ filling ──────────────────▶ clean ◀──────────┐
//		 ▲ │ ▲                           │                          │ │             │ Backing.Applied
//		 │ │ │       the fill failed,    │                          │ │ a write     │ has reached seq
//		 │ │ └─── or is outdated by a ───┘                          │ └──────────▶ dirty
//		 │ │      write or a change                                 │               │ ▲
//		 │ └──────── a write that leaves nothing unknown ───────────┼───────────────┼─┘
//		 └──── evicted, or dropped because somebody changed the file┴───────────────┘
//
//	  - filling: the goroutine of its fill owns the bytes, and nobody sees them before
//	    it is done. Readers wait for it; all get its error. What outdates a fill takes the page out of
//	    the table: the fill serves those who wait already, nobody can join any more, and nothing is kept.
//	  - clean: the bytes may be read and, under Cache.mu, changed.
//	  - dirty: a clean page with a logged write that is not applied yet. Nothing
//	    depends on it here but this: when it goes, its seq stays in File.pending.
//	  - viewed: a clean or dirty page whose buffer is held. Its bytes stay as they
//	    are; a write gives the page another buffer. It cannot be evicted. If it
//	    is dropped the buffer lives on until the last view is released.
//
// Dropping a page is always safe: its bytes are at the server or in the
// operation log. Wherever it is not certain that a page is up to date it is dropped.
type cached struct {
	// Set at construction.
	file  *File
	no    page.No
	entry evict.Entry[key]
	epoch uint64 // of the source then

	// Guarded by Cache.mu. While filling:
	fill *fill // nil otherwise
	slot int   // the page's place in it

	// Guarded by Cache.mu. Otherwise:
	buf  *buffer
	n    int       // bytes known; those after them, as far as the file goes, are zero
	seq  proto.Seq // newest write in them; 0: none since they were fetched
	base proto.LSN // changes by others up to this one are in them, if it is above File.base
}

// newPageLocked puts a page into the table, with neither fill nor buffer yet.
func (f *File) newPageLocked(no page.No) *cached {
	p := &cached{file: f, no: no, epoch: f.src.epoch}
	p.entry.Key = key{f.id, no}
	f.pages[no] = p
	return p
}

// usableLocked reports whether a page may be shown, or its fill be joined: no change by others was
// missed since the page was fetched, or since the file was last seen unchanged.
func (p *cached) usableLocked() bool {
	return max(p.epoch, p.file.epoch) == p.file.src.epoch
}

// installLocked gives the page its first bytes.
func (p *cached) installLocked(b *buffer, n int) {
	p.fill = nil
	p.buf, p.n = b, n
	b.owner = p
	c := p.file.c
	c.policy.Add(&p.entry)
	if b.holds > 0 {
		c.policy.Pin(&p.entry)
	}
}

// replaceLocked gives the page other bytes; views of the former ones keep them.
func (p *cached) replaceLocked(b *buffer, n int) {
	c := p.file.c
	former := p.buf
	p.buf, p.n = b, n
	b.owner = p
	if former.holds > 0 {
		c.policy.Unpin(&p.entry)
	}
	c.disownLocked(former)
}

// dropLocked takes the page out of the cache, or the fill's result away from it.
func (p *cached) dropLocked() {
	f := p.file
	delete(f.pages, p.no)
	if p.fill != nil {
		p.fill.slots[p.slot].page = nil
		f.c.idleLocked(f)
		return
	}
	f.c.policy.Remove(&p.entry)
	p.leaveLocked()
}

// leaveLocked ends a page that is neither in the table nor in the policy any more.
func (p *cached) leaveLocked() {
	f := p.file
	if p.seq > f.applied {
		f.pendLocked(p.no, p.seq)
	}
	f.c.disownLocked(p.buf)
	f.c.idleLocked(f)
}

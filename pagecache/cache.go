// Package pagecache keeps pages of open remote files: it finds, fills, changes
// and drops them, reads ahead, and hands writes to the session's operation log.
//
// It promises that its memory stays within its budget, that a read after a write
// through the same cache sees it, that a missing page is fetched once however
// many ask, and that a fetch never shows a state older than the writes this
// cache has logged. It must not know the wire, names, or the kernel.
//
// # Memory
//
// All buffers together stay within Options.Bytes. What exceeds it, and only
// while everything else is gone from the cache, is what reads in progress and
// views that were not released hold: at most what they asked for, rounded to
// pages, and once more while it is fetched. Bytes of writes that are not applied
// yet need no memory here: they are in the operation log, under its own budget,
// so a dirty page may be dropped like a clean one. What remains of it is the
// write's number, and a later fill waits for that (see File.pending).
//
// # Locks
//
// In this order:
//
//  1. File.turn, the turn to write: it makes the order of the writes in the pages
//     that of the log. It is held over Backing.Log, which may block: only other
//     writers of the file wait for it, as long as their contexts last.
//  2. Cache.mu guards everything else: pages, files, policy and budget. It is held
//     for table look-ups and for copying parts of pages, never over a call
//     of a Backing. One lock, because a page that comes to one file pushes one out of another.
package pagecache

import (
	"container/list"
	"context"
	"fmt"
	"sync"

	"cagefs.dev/cage/pagecache/evict"
	"cagefs.dev/cage/remote/page"
	"cagefs.dev/cage/remote/proto"
)

// Backing is where a file's bytes come from and its writes go: a remote file
// with the caller's identity bound to it. See remote.Session for the contracts.
type Backing interface {
	// ReadAt fills p, at most proto.MaxIO bytes; short only at the end of the file.
	ReadAt(ctx context.Context, p []byte, off int64) (n int, change proto.LSN, size uint64, err error)
	// Log appends a write to the operation log. It copies p. It blocks while the dirty budget is used up.
	Log(ctx context.Context, p []byte, off int64) (proto.Seq, error)
	// Wait blocks until a logged write is applied or has failed.
	Wait(ctx context.Context, seq proto.Seq) error
	// Applied is the newest number up to which all operations are answered.
	Applied() proto.Seq
}

// Options of a cache.
type Options struct {
	PageSize  page.Size // 0: 128 KiB
	Bytes     int64     // budget of all pages; 0: 256 MiB
	Policy    string    // one of Policies; "": the first
	ReadAhead int       // pages fetched ahead of a sequential reader at most; 0: 8, negative: none
}

// Policies are the names of what decides which page leaves a full cache; see package evict.
var Policies = []string{"lfu", "lru", "s3fifo"}

// policy is one of them; see package evict for the contracts.
type policy interface {
	Len() int
	Add(*evict.Entry[key])
	Touch(*evict.Entry[key])
	Pin(*evict.Entry[key])
	Unpin(*evict.Entry[key])
	Remove(*evict.Entry[key])
	Victim() *evict.Entry[key]
}

// newPolicy makes the policy with a name, nil if there is none.
func newPolicy(name string) policy {
	switch name {
	case "lfu":
		return evict.NewLFU[key]()
	case "lru":
		return evict.NewLRU[key]()
	case "s3fifo":
		return evict.NewS3FIFO[key]()
	}
	return nil
}

const (
	defaultBytes     = 256 << 20
	defaultReadAhead = 8
	maxAheadFills    = 8    // reads ahead in flight, of all files
	maxIdle          = 1024 // files remembered that are not open, have no pages and no unapplied writes
)

// key is a page's name in the eviction policy.
type key struct {
	id proto.FileID
	no page.No
}

// source is what the files of one session have in common: those with the same
// tag. Guarded by Cache.mu.
type source struct {
	epoch uint64 // resets so far, and one
}

// Cache is the pages of all files of a mount. Safe for concurrent use.
type Cache struct {
	// Set at construction.
	size   page.Size
	budget int64
	name   string          // of the policy
	ahead  int             // pages
	maxRun int             // pages fetched by one read of the backing
	zeros  []byte          // a page of them, for what is known to be zero
	ctx    context.Context // of fills; ends with Close
	stop   context.CancelFunc

	pool  pool
	fills sync.WaitGroup // goroutines; added to under mu, while not closed

	mu         sync.Mutex
	closed     bool
	files      map[proto.FileID]*File
	idle       *list.List // of *File: not open, without pages; longest so in front
	policy     policy
	bytes      int64 // of all buffers in use
	aheadFills int   // reads ahead in flight
	sources    map[uint16]*source
	stats      Stats // the counters
}

// New makes a cache. It panics when the page size is none, or the policy.
func New(o Options) *Cache {
	if o.PageSize == 0 {
		o.PageSize = page.DefaultSize
	}
	if !o.PageSize.Valid() {
		panic(fmt.Sprintf("pagecache: page size %d", o.PageSize))
	}
	if o.Policy == "" {
		o.Policy = Policies[0]
	}
	if o.Bytes == 0 {
		o.Bytes = defaultBytes
	}
	if o.ReadAhead == 0 {
		o.ReadAhead = defaultReadAhead
	}
	c := &Cache{
		size:   o.PageSize,
		budget: o.Bytes,
		name:   o.Policy,
		ahead:  max(o.ReadAhead, 0),
		// A run lies twice in memory while it is cut into pages: keep that small beside the budget.
		maxRun:  int(max(1, min(proto.MaxIO, o.Bytes/16)/int64(o.PageSize))),
		zeros:   make([]byte, o.PageSize),
		files:   make(map[proto.FileID]*File),
		idle:    list.New(),
		policy:  newPolicy(o.Policy),
		sources: make(map[uint16]*source),
	}
	if c.policy == nil {
		panic("pagecache: policy " + o.Policy)
	}
	c.ctx, c.stop = context.WithCancel(context.Background())
	return c
}

// Open returns the cached file with a number, counting an open; state belongs
// to the file, not to the opens. attr is fresh from the server, asked for after the last Reset of its tag: if its Change is
// newer than what the cached pages are known to be, clean pages are dropped, and kept is false.
// It is false too where nothing was known of the file.
// upto says how new attr is: all the session's operations up to this number are
// in it, so take Applied before asking for attr.
// b serves fills and writes of calls that name no other backing (nil).
func (c *Cache) Open(b Backing, attr proto.Attr, upto proto.Seq) (f *File, kept bool) {
	c.mu.Lock()
	f = c.files[attr.ID]
	if f == nil {
		f = newFile(c, attr.ID, c.sourceLocked(attr.ID.Tag()))
		c.files[attr.ID] = f
	} else if f.idle != nil {
		c.idle.Remove(f.idle)
		f.idle = nil
	}
	f.b = b
	f.opens++
	kept = f.freshLocked(attr, upto)
	c.mu.Unlock()

	c.tidy()
	return f, kept
}

// Changed drops what is cached of a file that somebody else changed (data), if it is older than change.
// Fills that are under way serve those who wait for them and are not kept.
func (c *Cache) Changed(id proto.FileID, change proto.LSN) {
	c.mu.Lock()
	defer c.mu.Unlock()
	f := c.files[id]
	if f == nil || change <= f.foreign || change <= f.base {
		return
	}
	f.foreign = change
	f.dropOlderLocked(change)
}

// Written says that a write of this session was applied and gave the file this
// change number: pages stay valid up to it. Every change by others before it has been told with Changed.
func (c *Cache) Written(id proto.FileID, change proto.LSN) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if f := c.files[id]; f != nil && f.epoch == f.src.epoch {
		f.own = max(f.own, change)
	}
}

// Forget drops all pages of a file, whatever their state (after a failed write),
// and doubts its size until the server is heard again.
func (c *Cache) Forget(id proto.FileID) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if f := c.files[id]; f != nil {
		f.unsure = true
		f.epoch = 0
		f.dropFromLocked(0, nil)
	}
}

// Reset says that changes by others may have been missed, of the files with a
// tag: their pages are not valid before the next Open says so. Reads through files that stay open fetch anew.
func (c *Cache) Reset(tag uint16) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.sourceLocked(tag).epoch++
}

// sourceLocked is the source with a tag.
func (c *Cache) sourceLocked(tag uint16) *source {
	src := c.sources[tag]
	if src == nil {
		src = &source{epoch: 1}
		c.sources[tag] = src
	}
	return src
}

// Stats counts.
type Stats struct {
	PageSize                 page.Size
	Policy                   string
	Pages, Bytes, Budget     int64
	Hits, Misses, ReadAheads int64 // pages asked for: found, or not; pages fetched ahead
	Evictions                int64
	Files                    int64
}

// Stats never blocks on I/O.
func (c *Cache) Stats() Stats {
	c.mu.Lock()
	defer c.mu.Unlock()
	s := c.stats
	s.Pages, s.Bytes, s.Budget = int64(c.policy.Len()), c.bytes, c.budget
	s.Files, s.PageSize, s.Policy = int64(len(c.files)), c.size, c.name
	return s
}

// Close stops fills, read-ahead included, and waits for their end. Files must
// not be used any more, but for Close; views may still be released.
func (c *Cache) Close() {
	c.mu.Lock()
	c.closed = true
	c.mu.Unlock()
	c.stop()
	c.fills.Wait()
}

// idleLocked puts a file that is not open and has no pages among those that may be forgotten.
func (c *Cache) idleLocked(f *File) {
	if f.opens == 0 && len(f.pages) == 0 && f.idle == nil {
		f.idle = c.idle.PushBack(f)
	}
}

// tidy forgets idle files beyond maxIdle. Those with unapplied writes stay: fills
// have to wait for these. They are bounded by the operation log.
func (c *Cache) tidy() {
	for range 4 { // more than the one that came
		f, b := c.tooMany()
		if f == nil {
			return
		}
		c.forgetIdle(f, b.Applied())
	}
}

// tooMany is the file that was idle longest, if there are too many.
func (c *Cache) tooMany() (*File, Backing) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.idle.Len() <= maxIdle {
		return nil, nil
	}
	f := c.idle.Front().Value.(*File)
	return f, f.b
}

// forgetIdle drops a file if it is still idle and all its writes are applied.
func (c *Cache) forgetIdle(f *File, applied proto.Seq) {
	c.mu.Lock()
	defer c.mu.Unlock()
	switch {
	case f.idle == nil: // it was opened meanwhile
	case f.logged > applied:
		c.idle.MoveToBack(f.idle)
	default:
		c.idle.Remove(f.idle)
		f.idle = nil
		delete(c.files, f.id)
	}
}

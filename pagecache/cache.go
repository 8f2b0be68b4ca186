// Package pagecache keeps pages of open remote files: it finds, fills, changes
// and drops them, reads ahead, and hands writes to the session's operation log.
//
// It promises that its memory stays within its budget, that a read after a write
// through the same cache sees it, that a missing page is fetched once however
// many ask, and that a fetch never shows a state older than the writes this
// cache has logged. It must not know the wire, names, or the kernel.
package pagecache

import (
	"context"

	"cagefs.dev/cage/remote/page"
	"cagefs.dev/cage/remote/proto"
)

// Backing is where a file's bytes come from and its writes go: a remote file
// with the caller's identity bound to it. See remote.Session for the contracts.
type Backing interface {
	// ReadAt fills p; short only at the end of the file.
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
	ReadAhead int       // pages fetched ahead of a sequential reader at most; 0: 8, negative: none
}

// New makes a cache.
func New(o Options) *Cache { panic("pagecache: being written") }

// Cache is the pages of all files of a mount. Safe for concurrent use.
type Cache struct{ unfinished struct{} }

// Open returns the cached file with a number, counting an open; state belongs
// to the file, not to the opens. attr is fresh from the server: if its Change is
// newer than what the cached pages are known to be, clean pages are dropped, and kept is false.
// upto says how new attr is: all the session's operations up to this number are
// in it, so take Applied before asking for attr.
// b serves fills and writes of calls that name no other backing (nil).
func (c *Cache) Open(b Backing, attr proto.Attr, upto proto.Seq) (f *File, kept bool) {
	panic("pagecache: being written")
}

// Changed drops what is cached of a file that somebody else changed (data), if it is older than change.
func (c *Cache) Changed(id proto.FileID, change proto.LSN) { panic("pagecache: being written") }

// Forget drops all clean pages of a file, whatever their state (after a failed write).
func (c *Cache) Forget(id proto.FileID) { panic("pagecache: being written") }

// Reset says that changes by others may have been missed: clean pages are not
// valid before the next Open says so.
func (c *Cache) Reset() { panic("pagecache: being written") }

// Stats counts.
type Stats struct {
	Pages, Bytes, Budget     int64
	Hits, Misses, ReadAheads int64
	Evictions                int64
	Files                    int64
}

// Stats never blocks on I/O.
func (c *Cache) Stats() Stats { panic("pagecache: being written") }

// Close stops read-ahead and waits for its end. Files must not be used any more.
func (c *Cache) Close() { panic("pagecache: being written") }

// File is a file that is open through the cache.
type File struct{ unfinished struct{} }

// View is bytes of pages that stay as they are until Release.
type View struct{ unfinished struct{} }

// Slices are the bytes, in order. Not to be changed, not to be used after Release.
func (v *View) Slices() [][]byte { panic("pagecache: being written") }

// Len is their sum; less than what was asked for only at the end of the file.
func (v *View) Len() int { panic("pagecache: being written") }

// Release gives the pages back. Once.
func (v *View) Release() { panic("pagecache: being written") }

// Read returns up to n bytes at off without copying, filling what is missing.
func (f *File) Read(ctx context.Context, b Backing, off int64, n int) (*View, error) {
	panic("pagecache: being written")
}

// WriteAt changes the cached bytes and logs the write; it returns when the log
// has it, not when the server has. All of p or an error.
func (f *File) WriteAt(ctx context.Context, b Backing, p []byte, off int64) error {
	panic("pagecache: being written")
}

// Logged is the number of the newest write of this file, 0 if there was none.
func (f *File) Logged() proto.Seq { panic("pagecache: being written") }

// Own tells the cache an attribute reply to this session's own change of the file (write, truncate): pages stay
// valid up to its change number; those beyond the size are dropped. upto as for Open:
// the change's own number, or, where only its attr came back (Session.Do), what Logged said before the change was logged.
func (f *File) Own(attr proto.Attr, upto proto.Seq) { panic("pagecache: being written") }

// Seen tells the cache any other fresh attribute reply while the file is open (getattr, lookup), as Open does.
func (f *File) Seen(attr proto.Attr, upto proto.Seq) { panic("pagecache: being written") }

// Size is the size the cache knows: the server's, extended by logged writes.
func (f *File) Size() int64 { panic("pagecache: being written") }

// Close takes an Open back; the pages stay for the next.
func (f *File) Close() { panic("pagecache: being written") }

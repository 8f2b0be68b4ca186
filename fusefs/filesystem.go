package fusefs

import (
	"context"
	"sync"
	"sync/atomic"
	"time"

	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"

	"cagefs.dev/cage/pagecache"
	"cagefs.dev/cage/remote"
	"cagefs.dev/cage/remote/lockset"
	"cagefs.dev/cage/remote/proto"
	"cagefs.dev/cage/remote/status"
	"cagefs.dev/cage/remote/wire"
)

// fileSystem answers the kernel's requests for one source: fuse.RawFileSystem
// in kernel terms above, session and cache below.
//
// The kernel's numbers, above, and the cache's have the source's tag; the
// session's and all within have not.
//
// Order of locks: table.mu, then a shard's, and none else while one of these is
// held. inode.mu is taken alone, but for inode.fresh before it; inode.dropping before no other. dispatcher.mu is taken alone.
type fileSystem struct {
	// Set at construction.
	tag       uint16 // 0: it is the whole mount
	session   *remote.Session
	cache     *pagecache.Cache
	at        proto.LSN
	readOnly  bool
	exclusive lockset.Mode
	leasing   bool // what is told is true until the server recalls it; else, of a past state, for ever
	nameValid time.Duration
	attrValid time.Duration
	began     time.Time
	fd        int             // our own descriptor of the mount, which is Mounted's
	life      context.Context // ends when the mount is gone
	kill      context.CancelFunc
	inodes    *table
	idents    *idents
	memory    *memory // nil without leases, or unless Options.Known
	known     int     // the most that it remembers

	// Set by the goroutine that mounts, before the first request is served.
	kernel kernel
	notify *dispatcher

	// Safe for concurrent use by themselves.
	errors   errorLog
	files    handles[*openFile]
	dirs     handles[*listing]
	lockers  lockers
	rootAttr remembered[proto.Attr]
	spaces   spaces
	tasks    sync.WaitGroup // goroutines of requests and prefetches
	notified atomic.Int64   // changes by others that the kernel was told
	changes  atomic.Uint64  // beginnings and ends of changes by us, writes not counted
	moves    atomic.Uint64  // of these: such as may move or remove a directory
	awaited  atomic.Int64   // how often a recall had to wait for an answer on its way
}

func newFileSystem(o *Options, src *Source, tag uint16, fd int) *fileSystem {
	s := &fileSystem{
		tag: tag, session: src.Session, cache: o.Cache, at: src.At, readOnly: o.ReadOnly || src.ReadOnly || src.At != 0,
		leasing: src.At == 0 && src.Session.Leasing(), nameValid: o.NameTimeout, attrValid: o.AttrTimeout, began: time.Now(), fd: fd,
		inodes: newTable(tag, src.Root, src.Session.Applied, o.Inodes),
		idents: newIdents("/proc", time.Now),
	}
	if s.leasing {
		s.known = o.Known
	}
	if s.at == 0 {
		s.exclusive = o.Exclusive
	}
	s.memory = newMemory(s.known)
	s.errors.log = o.Log
	s.life, s.kill = context.WithCancel(context.Background())
	s.rootAttr.remember(src.Root)
	s.spaces.newest = proto.StatFS{BlockSize: 4096, NameMax: proto.MaxName}
	return s
}

// key is a file's number in the cache.
func (s *fileSystem) key(id proto.FileID) proto.FileID { return id.Tagged(s.tag) }

// ino is a file's st_ino.
func (s *fileSystem) ino(id proto.FileID) uint64 { return uint64(s.key(id)) }

// openPages opens a file in the cache.
func (s *fileSystem) openPages(b pagecache.Backing, a proto.Attr, upto proto.Seq) (f *pagecache.File, kept bool) {
	a.ID = s.key(a.ID)
	return s.cache.Open(b, a, upto)
}

// header is that of a request which only reads.
func (s *fileSystem) header(h *fuse.InHeader) wire.ReqHeader {
	return s.headerOf(s.idents.brief(h))
}

func (s *fileSystem) headerOf(who proto.Ident) wire.ReqHeader {
	return wire.ReqHeader{At: s.at, Ident: who}
}

// do logs a change, waits until it is applied, and returns its result with the
// attributes of the file it names.
func (s *fileSystem) do(ctx context.Context, who proto.Ident, op proto.Op) (proto.Result, error) {
	if s.readOnly {
		return proto.Result{}, status.ReadOnly
	}
	s.mark(op)
	defer s.mark(op)
	res, err := s.session.Do(ctx, who, op)
	s.session.AwaitSettled(ctx)
	if err != nil || res.Attr.ID != 0 {
		return res, err
	}
	switch op.(type) {
	case *proto.Remove, *proto.Rename:
		return res, nil
	}
	res.Attr, err = s.session.GetAttr(ctx, s.headerOf(who), res.ID)
	res.Attr.Lease = proto.Lease{} // as in the results of changes: see onway.go
	return res, err
}

// gone reports whether the kernel has given the mount up, so that nobody waits
// for answers.
func (s *fileSystem) gone() bool {
	if s.life.Err() != nil {
		return true
	}
	fds := []unix.PollFd{{Fd: int32(s.fd), Events: unix.POLLOUT}}
	n, err := unix.Poll(fds, 0)
	return err == nil && n > 0 && fds[0].Revents&(unix.POLLERR|unix.POLLNVAL) != 0
}

// stop ends what the requests have left behind. All of them are answered.
func (s *fileSystem) stop() {
	s.kill()
	s.notify.close()
	s.files.releaseAll()
	s.dirs.releaseAll()
	s.tasks.Wait()
}

package fusefs

import (
	"context"
	"sync"
	"sync/atomic"
	"syscall"

	"github.com/hanwen/go-fuse/v2/fuse"

	"cagefs.dev/cage/pagecache"
	"cagefs.dev/cage/remote"
	"cagefs.dev/cage/remote/lockset"
	"cagefs.dev/cage/remote/proto"
	"cagefs.dev/cage/remote/status"
	"cagefs.dev/cage/remote/wire"
)

// backing binds a remote file to the identity that opened it.
type backing struct {
	session *remote.Session
	header  wire.ReqHeader
	id      proto.FileID
	append  bool         // what is written goes to the end of the file, wherever that is
	mapped  bool         // it was stored through a mapping
	lost    *atomic.Bool // the handle's; nil: of no handle
}

var _ pagecache.Backing = (*backing)(nil)

// ReadAt implements pagecache.Backing.
func (b *backing) ReadAt(ctx context.Context, p []byte, off int64) (int, proto.LSN, uint64, error) {
	return b.session.ReadAt(ctx, b.header, b.id, p, off)
}

// Log implements pagecache.Backing.
func (b *backing) Log(ctx context.Context, p []byte, off int64) (proto.Seq, error) {
	op := &proto.Write{ID: b.id, Off: uint64(off), Append: b.append, Mapped: b.mapped, Data: p}
	return b.session.LogIf(ctx, b.header.Ident, op, func() error { return intact(b.lost) })
}

// Wait implements pagecache.Backing.
func (b *backing) Wait(ctx context.Context, seq proto.Seq) error { return b.session.Wait(ctx, seq) }

// Applied implements pagecache.Backing.
func (b *backing) Applied() proto.Seq { return b.session.Applied() }

// handles numbers what processes have open. A handle is borrowed for each
// request and goes when the kernel has released it and the last request that
// uses it is done. Safe for concurrent use.
type handles[T any] struct {
	last atomic.Uint64

	mu   sync.RWMutex
	open map[uint64]*handle[T] // guarded by mu
}

// handle is one open.
type handle[T any] struct {
	it    T                // set at construction
	who   proto.Ident      // who opened it; set at construction
	close func(*handle[T]) // set at construction; called once

	users atomic.Int64 // requests that use it, and one for the kernel
}

// add gives a new handle its number, which is never 0.
func (hs *handles[T]) add(h *handle[T]) uint64 {
	h.users.Store(1)
	n := hs.last.Add(1)
	hs.mu.Lock()
	defer hs.mu.Unlock()
	if hs.open == nil {
		hs.open = make(map[uint64]*handle[T])
	}
	hs.open[n] = h
	return n
}

// borrow returns a handle, nil where there is none with that number. The
// caller gives it back.
func (hs *handles[T]) borrow(n uint64) *handle[T] {
	hs.mu.RLock()
	defer hs.mu.RUnlock()
	h := hs.open[n]
	if h != nil {
		h.users.Add(1)
	}
	return h
}

// give ends the use of a borrowed handle.
func (h *handle[T]) give() {
	if h.users.Add(-1) == 0 {
		h.close(h)
	}
}

// release takes the kernel's hold of a handle away.
func (hs *handles[T]) release(n uint64) {
	hs.mu.Lock()
	h := hs.open[n]
	delete(hs.open, n)
	hs.mu.Unlock()
	if h != nil {
		h.give()
	}
}

// releaseAll is for the end of the mount.
func (hs *handles[T]) releaseAll() {
	hs.mu.Lock()
	all := hs.open
	hs.open = nil
	hs.mu.Unlock()
	for _, h := range all {
		h.give()
	}
}

// len is the number of open handles.
func (hs *handles[T]) len() int {
	hs.mu.RLock()
	defer hs.mu.RUnlock()
	return len(hs.open)
}

// openFile is a regular file that a process has open. All fields but lost are set at construction.
type openFile struct {
	ino  *inode
	file *pagecache.File
	back *backing
	ends *backing    // back, for what is appended
	maps bool        // open for reading and writing: it can be mapped to be written to
	held bool        // the session has it open
	past bool        // writes go past the kernel's pages, which does not sync them by itself
	tell bool        // it is open for writing: its close tells what failed
	lost atomic.Bool // a lock that was taken through it is lost: nothing goes any more

	told  atomic.Uint64 // of the session's Failures: those that who has it open has been told of
	heard atomic.Bool   // a close told of a failure; the last one was heard
}

// fmodeExec is in the flags of an open by execve(2): permission to execute was
// checked, permission to read is not needed.
const fmodeExec = 0x20

// openFlags are the wire's flags for those of open(2).
func openFlags(flags uint32) uint32 {
	if flags&fmodeExec != 0 {
		return 0
	}
	switch flags & syscall.O_ACCMODE {
	case syscall.O_WRONLY:
		return wire.OpenWrite
	case syscall.O_RDWR:
		return wire.OpenRead | wire.OpenWrite
	}
	return wire.OpenRead
}

// Open implements fuse.RawFileSystem.
func (s *fileSystem) Open(cancel <-chan struct{}, in *fuse.OpenIn, out *fuse.OpenOut) fuse.Status {
	ctx := s.begin(cancel, &in.InHeader, in.Flags&syscall.O_TRUNC != 0)
	defer ctx.end()
	ino := s.inodes.find(in.NodeId)
	writes := in.Flags&(syscall.O_ACCMODE|syscall.O_TRUNC) != 0
	if writes && s.readOnly {
		return fuse.EROFS
	}
	if err := s.settled(ctx, ino); err != nil {
		return s.errors.status("open", err)
	}
	who := s.idents.full(&in.InHeader)
	news := ino.names.Load()
	op, err := s.open(ctx, s.headerOf(who), ino.id, openFlags(in.Flags), !writes)
	if err != nil {
		return s.errors.status("open", err)
	}
	if in.Flags&syscall.O_TRUNC != 0 {
		mode := op.attr.Mode
		op.attr, err = s.truncate(ctx, who, ino, &op.attr, in.Mode&fuse.OPEN_KILL_SUIDGID != 0)
		if err != nil {
			s.session.Release(ino.id)
			return s.errors.status("open", err)
		}
		if op.attr.Mode != mode {
			s.lostSetID(ino)
		}
	}
	if s.opened(op, news, who, in.Flags, out) {
		out.OpenFlags |= fuse.FOPEN_KEEP_CACHE
	}
	return fuse.OK
}

// truncate is what open(2) with O_TRUNC does besides opening.
func (s *fileSystem) truncate(ctx context.Context, who proto.Ident, ino *inode, a *proto.Attr, kill bool) (proto.Attr, error) {
	op := &proto.SetAttr{ID: ino.id, Mask: proto.SetSize}
	if mode, differs := withoutSetID(a.Mode); kill && differs && who.UID == 0 { // otherwise the server knows
		op.Mask |= proto.SetMode
		op.Mode = mode
	}
	return s.setAttr(ctx, who, ino, op)
}

// opened makes a handle for a file that was opened, and reports
// whether the pages that the kernel has of it are still good. News
// is the inode's count from before its attributes were asked for.
func (s *fileSystem) opened(op opening, news uint64, who proto.Ident, flags uint32, out *fuse.OpenOut) (kept bool) {
	a := &op.attr
	ino := s.inodes.open(a.ID)
	s.inodes.heard(ino, a)
	f := &openFile{ino: ino, held: op.held, back: &backing{session: s.session, header: s.headerOf(who), id: a.ID}}
	f.told.Store(s.session.Failures())
	f.back.lost, f.tell = &f.lost, flags&syscall.O_ACCMODE != syscall.O_RDONLY
	ends := *f.back
	ends.append, f.ends = true, &ends
	if f.maps = flags&syscall.O_ACCMODE == syscall.O_RDWR; f.maps {
		ino.stores.Add(1)
	}
	ino.fresh.Lock()
	f.file, kept = s.openPages(f.back, *a, op.upto)
	ino.opened(f.file)
	kept = s.underLease(f, a, news) && kept
	// Pages that were dropped from the cache because the file had changed go
	// from the kernel with this reply, if it has any; who needs that before it is there tells the kernel himself.
	if !kept && (ino.paged.Load() || !s.leasing) {
		ino.behind.Store(true)
	}
	ino.fresh.Unlock()
	if f.tell || s.leasing && s.isDisputed(ino) {
		// Past its own pages, for the kernel locks these while it sends a write, which may
		// have to wait until others have given a lease back, and they for ours: nobody
		// could make the kernel forget them then. And an append would go as several
		// writes where it begins in a page that the kernel does not have.
		out.OpenFlags |= fuse.FOPEN_DIRECT_IO
		f.past = true
	}
	ino.pages.Store(true)
	if op.mode != lockset.NoMode {
		s.lockers.add(f, remote.LockOwner{ID: a.ID, Kind: lockset.Opens})
		f.lost.Store(!s.session.Reserved(a.ID)) // it may have been lost before
	}
	out.Fh = s.files.add(&handle[*openFile]{it: f, who: who, close: s.closeFile})
	return kept
}

// closeFile ends a handle.
func (s *fileSystem) closeFile(h *handle[*openFile]) {
	if h.it.heard.Load() {
		s.session.TakeError(h.it.ino.id)
	}
	f := h.it
	raise(&f.ino.logged, uint64(f.file.Logged()))
	s.unlockAll(f)
	if f.maps {
		f.ino.stores.Add(-1)
	}
	f.ino.closed()
	f.file.Close()
	if f.held {
		s.session.Release(f.ino.id)
	}
	s.inodes.close(f.ino)
}

// Create implements fuse.RawFileSystem.
func (s *fileSystem) Create(cancel <-chan struct{}, in *fuse.CreateIn, name string, out *fuse.CreateOut) fuse.Status {
	ctx := s.change(cancel, &in.InHeader)
	defer ctx.end()
	a, err := s.make(ctx, &in.InHeader, &proto.Make{Name: name, Mode: proto.ModeRegular | in.Mode&proto.ModePerm, Umask: in.Umask & 0o777}, &out.EntryOut)
	if status.Of(err) == status.Exists && in.Flags&syscall.O_EXCL == 0 {
		// Somebody else made it since the kernel looked: let it look again and open what is there.
		return fuse.Status(syscall.ESTALE)
	}
	if err == nil {
		err = s.openMade(ctx, in, a.ID, out)
	}
	return s.errors.status("create", err)
}

// openMade opens a file that was just made, whose entry is in the reply already.
func (s *fileSystem) openMade(ctx context.Context, in *fuse.CreateIn, id proto.FileID, out *fuse.CreateOut) error {
	who := s.idents.full(&in.InHeader)
	var news uint64
	if ino := s.inodes.known(id); ino != nil {
		news = ino.names.Load()
	}
	op, err := s.open(ctx, s.headerOf(who), id, openFlags(in.Flags), false)
	if err != nil {
		s.inodes.forget(out.NodeId, 1) // the kernel gets an error, and no inode
		return err
	}
	s.opened(op, news, who, in.Flags, &out.OpenOut)
	return nil
}

// Release implements fuse.RawFileSystem.
func (s *fileSystem) Release(_ <-chan struct{}, in *fuse.ReleaseIn) { s.files.release(in.Fh) }

// Read implements fuse.RawFileSystem. The reply is written from the cache's
// pages; they and the handle are held until then.
func (s *fileSystem) Read(cancel <-chan struct{}, in *fuse.ReadIn, _ []byte) (fuse.ReadResult, fuse.Status) {
	h := s.files.borrow(in.Fh)
	if h == nil {
		return nil, fuse.EBADF
	}
	ctx := s.read(cancel, &in.InHeader)
	defer ctx.end()
	view, err := s.readPages(ctx, h.it, int64(in.Offset), int(in.Size), in.ReadFlags&fuse.READ_LOCKOWNER == 0)
	if err != nil {
		h.give()
		return nil, s.errors.status("read", err)
	}
	if view.Len() == 0 { // go-fuse calls Done of no empty result
		view.Release()
		h.give()
		return fuse.ReadResultData(nil), fuse.OK
	}
	return &readResult{view, h}, fuse.OK
}

// readPages reads when that may be. keeps: it is for the kernel's pages. What it finds is not both from
// before and from after a time without the server.
func (s *fileSystem) readPages(ctx context.Context, f *openFile, off int64, n int, keeps bool) (*pagecache.View, error) {
	for {
		if err := intact(&f.lost); err != nil {
			return nil, err
		}
		stale, err := s.mayRead(ctx, f, off, int64(n), keeps)
		if err != nil {
			return nil, err
		}
		view, err := f.file.Read(ctx, f.back, off, n)
		if err != nil || !stale || s.session.Stale() {
			return view, err
		}
		view.Release()
	}
}

// readResult hands pages to go-fuse, which writes them to the kernel and calls Done.
type readResult struct {
	view *pagecache.View
	h    *handle[*openFile]
}

// Slices makes go-fuse write the pages as they are.
func (r *readResult) Slices() ([][]byte, fuse.Status) { return r.view.Slices(), fuse.OK }

// Size implements fuse.ReadResult.
func (r *readResult) Size() int { return r.view.Len() }

// Bytes implements fuse.ReadResult.
func (r *readResult) Bytes(buf []byte) ([]byte, fuse.Status) {
	buf = buf[:0]
	for _, p := range r.view.Slices() {
		buf = append(buf, p...)
	}
	return buf, fuse.OK
}

// Done implements fuse.ReadResult.
func (r *readResult) Done() {
	r.view.Release()
	r.h.give()
}

// Write implements fuse.RawFileSystem. It is answered when the session's log
// has the bytes.
func (s *fileSystem) Write(cancel <-chan struct{}, in *fuse.WriteIn, data []byte) (uint32, fuse.Status) {
	h := s.files.borrow(in.Fh)
	if h == nil {
		return 0, fuse.EBADF
	}
	defer h.give()
	ctx := s.read(cancel, &in.InHeader) // nothing has happened while it waits for room in the log
	defer ctx.end()
	f := h.it
	killed := false
	if in.WriteFlags&fuse.WRITE_KILL_SUIDGID != 0 {
		var err error
		if killed, err = s.killSetID(ctx, h.who, f.ino); err != nil {
			return 0, s.errors.status("write", err)
		}
	}
	back := f.back
	switch {
	case in.WriteFlags&fuse.WRITE_CACHE != 0: // stored through a mapping, perhaps of another handle
		back = &backing{session: s.session, header: back.header, id: back.id, mapped: true}
		f.ino.mapped.Store(true)
	case in.Flags&syscall.O_APPEND != 0:
		back = f.ends // the kernel only knows where the end was
	}
	var err error
	if !back.mapped {
		err = s.mayWrite(ctx, f)
	}
	switch {
	case err != nil:
	case back.append && s.leasing:
		err = s.append(ctx, f, back, data)
	default:
		err = f.file.WriteAt(ctx, back, data, int64(in.Offset))
	}
	raise(&f.ino.logged, uint64(f.file.Logged()))
	if killed {
		s.lostSetID(f.ino)
	}
	if err == nil {
		err = s.whenTight(ctx, s.headerOf(h.who), f)
	}
	if err == nil && f.past && in.Flags&syscall.O_DSYNC != 0 {
		err = s.sync(ctx, &in.InHeader, f.ino.id, func() error { return s.failed(f) })
	}
	if err != nil {
		return 0, s.errors.status("write", err)
	}
	return uint32(len(data)), fuse.OK
}

// tightSpace is the free space on the server below which writes are waited for:
// more than a mount has on its way, and writes in the second that statFS may be old.
const tightSpace = 1 << 30

// whenTight waits for a logged write where the server's disk is nearly full, so
// that it is the writer who is told that it did not fit, not only a later fsync.
func (s *fileSystem) whenTight(ctx context.Context, h wire.ReqHeader, f *openFile) error {
	st, err := s.freeSpace(ctx, h)
	if err != nil || st.BlocksAvail*uint64(st.BlockSize) >= tightSpace {
		return nil
	}
	err = s.session.Wait(ctx, f.file.Logged())
	if silence(err) {
		return nil // it is logged and may still be applied
	}
	if err != nil {
		s.failed(f) // told now
	}
	return err
}

// failed returns what has failed of a file since it was told through this handle,
// or since anybody was told.
func (s *fileSystem) failed(f *openFile) error {
	anybody := s.session.TakeError(f.ino.id)
	n, err := s.session.FailedSince(f.ino.id, f.told.Load())
	f.told.Store(n)
	if err == nil {
		err = anybody
	}
	return err
}

// killSetID reports whether a write by somebody without CAP_FSETID takes setuid
// and setgid bits away. The server does that with the write itself, unless it
// was root who opened the file.
func (s *fileSystem) killSetID(ctx context.Context, who proto.Ident, ino *inode) (killed bool, err error) {
	mode, differs := withoutSetID(ino.mode.Load())
	if !differs { // a setgid bit without execution goes if the writer is not in the group: the server knows
		return mode&proto.ModeSetgid != 0, nil
	}
	if who.UID == 0 {
		_, err = s.setAttr(ctx, who, ino, &proto.SetAttr{ID: ino.id, Mask: proto.SetMode, Mode: mode})
		return true, err
	}
	ino.mode.Store(ino.mode.Load()&proto.ModeType | mode)
	return true, nil
}

// lostSetID lets the kernel know that a request that it is waiting for took setuid
// or setgid away: no reply but that to a lookup makes it forget the mode from before,
// by which it also judges who may link the file.
func (s *fileSystem) lostSetID(ino *inode) {
	s.notify.put(ino.id, news{})
	s.kernel.epoch()
}

// Flush implements fuse.RawFileSystem: close(2). It reports to who could write what is known to
// have failed and does not wait, but for the end of locks, shortly: a process in it cannot be killed.
func (s *fileSystem) Flush(_ <-chan struct{}, in *fuse.FlushIn) fuse.Status {
	id := s.inodes.find(in.NodeId).id
	s.closedBy(id, in.LockOwner)
	h := s.files.borrow(in.Fh)
	if h == nil {
		return fuse.OK
	}
	defer h.give()
	if !h.it.tell {
		return fuse.OK
	}
	// The child of a fork closes as well when it starts a program, and hears nothing: whoever has it
	// open still is told again.
	_, err := s.session.FailedSince(id, h.it.told.Load())
	if err != nil {
		h.it.heard.Store(true)
	}
	return s.errors.status("close", err)
}

// Fsync implements fuse.RawFileSystem. The session's log keeps the order, so
// that the Sync is applied after all writes that were logged before it. It is not
// given up for a signal: programs take an fsync that failed for lost data.
func (s *fileSystem) Fsync(cancel <-chan struct{}, in *fuse.FsyncIn) fuse.Status {
	ctx := s.change(cancel, &in.InHeader)
	defer ctx.end()
	id := s.inodes.find(in.NodeId).id
	failed := func() error { return s.session.TakeError(id) }
	if h := s.files.borrow(in.Fh); h != nil {
		defer h.give()
		failed = func() error { return s.failed(h.it) }
	}
	return s.errors.status("fsync", s.sync(ctx, &in.InHeader, id, failed))
}

// sync makes one file durable and returns what failed of it, the oldest first.
func (s *fileSystem) sync(ctx context.Context, h *fuse.InHeader, id proto.FileID, failed func() error) error {
	if s.readOnly {
		return nil
	}
	release, err := s.ordered(ctx, id)
	if err != nil {
		return err
	}
	_, err = s.session.Do(ctx, s.idents.full(h), &proto.Sync{ID: id})
	release()
	if sticky := failed(); sticky != nil {
		return sticky
	}
	return err
}

// FsyncDir implements fuse.RawFileSystem: of a directory, everything logged so
// far is committed; of the mount's root it is durable, the bytes of new files as well.
func (s *fileSystem) FsyncDir(cancel <-chan struct{}, in *fuse.FsyncIn) fuse.Status {
	ctx := s.change(cancel, &in.InHeader)
	defer ctx.end()
	ino := s.inodes.find(in.NodeId)
	if ino != s.inodes.root || s.readOnly {
		return s.errors.status("fsync", s.sync(ctx, &in.InHeader, ino.id, func() error { return s.session.TakeError(ino.id) }))
	}
	err := s.session.Sync(ctx, s.idents.full(&in.InHeader))
	if sticky := s.session.TakeError(0); sticky != nil {
		err = sticky
	}
	return s.errors.status("fsync", err)
}

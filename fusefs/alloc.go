package fusefs

import (
	"context"

	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"

	"cagefs.dev/cage/remote/proto"
	"cagefs.dev/cage/remote/status"
)

// Lseek implements fuse.RawFileSystem: SEEK_DATA and SEEK_HOLE; the kernel
// answers the others.
func (s *fileSystem) Lseek(cancel <-chan struct{}, in *fuse.LseekIn, out *fuse.LseekOut) fuse.Status {
	h := s.files.borrow(in.Fh)
	if h == nil {
		return fuse.EBADF
	}
	defer h.give()
	ctx := s.read(cancel, &in.InHeader)
	defer ctx.end()
	f := h.it
	if in.Whence != unix.SEEK_DATA && in.Whence != unix.SEEK_HOLE {
		return fuse.EINVAL
	}
	off, err := s.seek(ctx, f, int64(in.Offset), in.Whence == unix.SEEK_HOLE)
	if err != nil {
		return s.errors.status("lseek", err)
	}
	out.Offset = uint64(off)
	return fuse.OK
}

// seek asks the server, with all writes of ours in its answer, also those that
// were stored through a mapping: the kernel does not write its pages back for
// this request. So those of the hole that is jumped over are, and if there were
// any, the server is asked again. A hole that is told although something is
// stored in it does no harm: whoever looks for data next finds that. The
// notification waits for no request that waits for this one: the kernel holds
// the inode for it, but none of its pages.
func (s *fileSystem) seek(ctx context.Context, f *openFile, from int64, hole bool) (int64, error) {
	for {
		if err := s.settled(ctx, f.ino); err != nil {
			return 0, err
		}
		off, err := s.session.Seek(ctx, f.back.header, f.back.id, from, hole)
		none := status.Of(err) == status.NoDevice
		if hole || err != nil && !none || err == nil && off == from || f.ino.stores.Load() == 0 {
			return off, err
		}
		before := f.ino.logged.Load()
		if none {
			off = from // to the end
		}
		s.kernel.hole(f.ino.node, from, off-from)
		if f.ino.logged.Load() == before {
			return off, err
		}
	}
}

// Fallocate implements fuse.RawFileSystem: modes 0 and KEEP_SIZE reserve,
// PUNCH_HOLE with KEEP_SIZE and ZERO_RANGE make zeros. The kernel passes no
// other: fallocate(2) itself says EOPNOTSUPP then. It writes its pages of the range
// back before and drops them after that.
func (s *fileSystem) Fallocate(cancel <-chan struct{}, in *fuse.FallocateIn) fuse.Status {
	h := s.files.borrow(in.Fh)
	if h == nil {
		return fuse.EBADF
	}
	defer h.give()
	ctx := s.change(cancel, &in.InHeader)
	defer ctx.end()
	f := h.it
	upto := f.ino.written()
	var res proto.Result
	err := intact(&f.lost)
	if err == nil {
		res, err = s.do(ctx, h.who, &proto.Allocate{ID: f.back.id, Mode: in.Mode, Off: in.Offset, Len: in.Length})
	}
	if err != nil {
		return s.errors.status("fallocate", err)
	}
	s.replaced(f.ino, &res.Attr, upto, in.Offset, in.Length)
	return fuse.OK
}

// maxCopy bounds the bytes of one copy_file_range(2): others wait that long for the
// leases that it needs; the caller goes on, and may be
// interrupted in between.
const maxCopy = 64 << 20

// CopyFileRange implements fuse.RawFileSystem: the server copies. The kernel
// writes pages of both ranges back before, and drops those of the target after that.
func (s *fileSystem) CopyFileRange(cancel <-chan struct{}, in *fuse.CopyFileRangeIn) (uint32, fuse.Status) {
	from := s.files.borrow(in.FhIn)
	if from == nil {
		return 0, fuse.EBADF
	}
	defer from.give()
	to := s.files.borrow(in.FhOut)
	if to == nil {
		return 0, fuse.EBADF
	}
	defer to.give()
	if in.Flags != 0 {
		return 0, fuse.EINVAL
	}
	if s.readOnly {
		return 0, fuse.EROFS
	}
	ctx := s.change(cancel, &in.InHeader)
	defer ctx.end()
	src, dst := from.it, to.it
	op := proto.Copy{ID: dst.back.id, Off: in.OffOut, Src: src.back.id, SrcOff: in.OffIn}
	n := min(in.Len, maxCopy)
	upto := dst.ino.written()
	if intact(&src.lost) != nil || intact(&dst.lost) != nil {
		return 0, fuse.EIO
	}
	release, err := s.session.Acquire(ctx, []proto.Want{{ID: op.ID, Mode: proto.WriteLease}, {ID: op.Src, Mode: proto.ReadLease}})
	if err != nil {
		return 0, s.errors.status("copy", err)
	}
	done, last, err := s.session.Copy(ctx, to.who, op, n)
	release()
	if last.Attr.ID != 0 {
		s.replaced(dst.ino, &last.Attr, upto, in.OffOut, n)
	}
	if err != nil {
		s.notify.put(dst.ino.id, news{failed: true}) // nobody knows how much was copied
		if done == 0 {
			return 0, s.errors.status("copy", err)
		}
	}
	return uint32(done), fuse.OK
}

// replaced takes in that a change of ours has replaced n bytes of a file, which
// nobody here knows.
func (s *fileSystem) replaced(ino *inode, a *proto.Attr, upto proto.Seq, off, n uint64) {
	mode := ino.mode.Load()
	s.memory.forget(ino.id)
	s.inodes.replaced(ino, a, upto, int64(off), int64(off+n))
	if mode != a.Mode {
		s.lostSetID(ino)
	}
}

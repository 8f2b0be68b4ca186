package fusefs

import (
	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"

	"cagefs.dev/cage/remote/proto"
)

// Lseek implements fuse.RawFileSystem: SEEK_DATA and SEEK_HOLE; the kernel
// answers the others. What was stored through a mapping and not written back
// (msync) is not seen: the kernel does not write pages back for this request.
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
	if err := s.settled(ctx, f.ino); err != nil {
		return s.errors.status("lseek", err)
	}
	off, err := s.session.Seek(ctx, f.back.header, f.back.id, int64(in.Offset), in.Whence == unix.SEEK_HOLE)
	if err != nil {
		return s.errors.status("lseek", err)
	}
	out.Offset = uint64(off)
	return fuse.OK
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
	res, err := s.do(ctx, h.who, &proto.Allocate{ID: f.back.id, Mode: in.Mode, Off: in.Offset, Len: in.Length})
	if err != nil {
		return s.errors.status("fallocate", err)
	}
	f.ino.replaced(&res.Attr, upto, int64(in.Offset), int64(in.Offset+in.Length))
	return fuse.OK
}

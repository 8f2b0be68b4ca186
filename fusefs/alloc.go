package fusefs

import (
	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"
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

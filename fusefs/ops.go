package fusefs

import (
	"syscall"

	"github.com/hanwen/go-fuse/v2/fuse"
)

// What the kernel can ask, and where it is answered: inode.go (forget),
// attr.go, names.go, handle.go, tmpfile.go, alloc.go, locks.go, dir.go, xattr.go. Below is what is not done,
// with the reason, and what the answer makes the kernel do.
var _ fuse.RawFileSystem = (*fileSystem)(nil)

// String implements fuse.RawFileSystem.
func (s *fileSystem) String() string { return "cage" }

// SetDebug implements fuse.RawFileSystem; Options.Debug decides.
func (s *fileSystem) SetDebug(bool) {}

// Init implements fuse.RawFileSystem; Mount has what it needs.
func (s *fileSystem) Init(*fuse.Server) {}

// OnUnmount implements fuse.RawFileSystem; Mount tidies up.
func (s *fileSystem) OnUnmount() {}

// Access is the kernel's work with default_permissions; ENOSYS: it asks no more.
func (s *fileSystem) Access(<-chan struct{}, *fuse.AccessIn) fuse.Status { return fuse.ENOSYS }

// Ioctl has nothing to offer yet.
func (s *fileSystem) Ioctl(<-chan struct{}, *fuse.IoctlIn, []byte, *fuse.IoctlOut, []byte) fuse.Status {
	return fuse.Status(syscall.ENOTTY)
}

// Writev is for requests that arrive in pieces, which /dev/fuse never gives.
// ENOSYS: go-fuse calls Write.
func (s *fileSystem) Writev(<-chan struct{}, *fuse.WriteIn, [][]byte) (uint32, fuse.Status) {
	return 0, fuse.ENOSYS
}

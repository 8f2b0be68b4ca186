package fusefs

import (
	"syscall"

	"github.com/hanwen/go-fuse/v2/fuse"

	"cagefs.dev/cage/remote"
	"cagefs.dev/cage/remote/proto"
)

// sources answers for a mount of named sources: each request goes to the source
// whose tag its node has, and to top where that is the root. What would need two
// sources is refused as between two file systems. All fields are set at
// construction. Safe for concurrent use.
type sources struct {
	top *top
	fs  []*fileSystem // by tag, less one
}

var _ fuse.RawFileSystem = (*sources)(nil)

func newSources(o *Options, fs []*fileSystem) *sources { return &sources{newTop(o, fs), fs} }

// of is who answers for a node.
func (s *sources) of(node uint64) fuse.RawFileSystem {
	if tag := int(proto.FileID(node).Tag()); tag > 0 && tag <= len(s.fs) {
		return s.fs[tag-1]
	}
	return s.top
}

// apart reports whether two nodes are of different sources.
func apart(a, b uint64) bool { return proto.FileID(a).Tag() != proto.FileID(b).Tag() }

// String implements fuse.RawFileSystem.
func (s *sources) String() string { return "cage" }

// SetDebug implements fuse.RawFileSystem; Options.Debug decides.
func (s *sources) SetDebug(bool) {}

// Init implements fuse.RawFileSystem; Mount has what it needs.
func (s *sources) Init(*fuse.Server) {}

// OnUnmount implements fuse.RawFileSystem; Mount tidies up.
func (s *sources) OnUnmount() {}

// Rename implements fuse.RawFileSystem.
func (s *sources) Rename(cancel <-chan struct{}, in *fuse.RenameIn, name, newName string) fuse.Status {
	if apart(in.NodeId, in.Newdir) {
		return fuse.EXDEV
	}
	return s.of(in.NodeId).Rename(cancel, in, name, newName)
}

// Link implements fuse.RawFileSystem.
func (s *sources) Link(cancel <-chan struct{}, in *fuse.LinkIn, name string, out *fuse.EntryOut) fuse.Status {
	if apart(in.NodeId, in.Oldnodeid) {
		return fuse.EXDEV
	}
	return s.of(in.NodeId).Link(cancel, in, name, out)
}

// CopyFileRange implements fuse.RawFileSystem. EXDEV: the kernel reads and writes.
func (s *sources) CopyFileRange(cancel <-chan struct{}, in *fuse.CopyFileRangeIn) (uint32, fuse.Status) {
	if apart(in.NodeId, in.NodeIdOut) {
		return 0, fuse.Status(syscall.EXDEV)
	}
	return s.of(in.NodeId).CopyFileRange(cancel, in)
}

// GetXAttr implements fuse.RawFileSystem.
func (s *sources) GetXAttr(cancel <-chan struct{}, h *fuse.InHeader, name string, dest []byte) (uint32, fuse.Status) {
	if s.absent(h.NodeId) {
		return 0, fuse.Status(syscall.ETIMEDOUT)
	}
	return s.of(h.NodeId).GetXAttr(cancel, h, name, dest)
}

// ListXAttr implements fuse.RawFileSystem.
func (s *sources) ListXAttr(cancel <-chan struct{}, h *fuse.InHeader, dest []byte) (uint32, fuse.Status) {
	if s.absent(h.NodeId) {
		return 0, fuse.Status(syscall.ETIMEDOUT)
	}
	return s.of(h.NodeId).ListXAttr(cancel, h, dest)
}

// absent reports whether a node is the root of a source whose server is gone.
// Programs that list the mount's root (ls -l) ask for attributes of what is in
// it; they get an error at once instead of waiting for the sake of one source.
func (s *sources) absent(node uint64) bool {
	of, ok := s.of(node).(*fileSystem)
	return ok && of.inodes.root.node == node && of.session.State() != remote.Online
}

// What follows implements fuse.RawFileSystem for one node each.

func (s *sources) Lookup(cancel <-chan struct{}, h *fuse.InHeader, name string, out *fuse.EntryOut) fuse.Status {
	return s.of(h.NodeId).Lookup(cancel, h, name, out)
}

func (s *sources) Forget(node, lookups uint64) { s.of(node).Forget(node, lookups) }

func (s *sources) GetAttr(cancel <-chan struct{}, in *fuse.GetAttrIn, out *fuse.AttrOut) fuse.Status {
	return s.of(in.NodeId).GetAttr(cancel, in, out)
}

func (s *sources) Statx(cancel <-chan struct{}, in *fuse.StatxIn, out *fuse.StatxOut) fuse.Status {
	return s.of(in.NodeId).Statx(cancel, in, out)
}

func (s *sources) SetAttr(cancel <-chan struct{}, in *fuse.SetAttrIn, out *fuse.AttrOut) fuse.Status {
	return s.of(in.NodeId).SetAttr(cancel, in, out)
}

func (s *sources) Mknod(cancel <-chan struct{}, in *fuse.MknodIn, name string, out *fuse.EntryOut) fuse.Status {
	return s.of(in.NodeId).Mknod(cancel, in, name, out)
}

func (s *sources) Mkdir(cancel <-chan struct{}, in *fuse.MkdirIn, name string, out *fuse.EntryOut) fuse.Status {
	return s.of(in.NodeId).Mkdir(cancel, in, name, out)
}

func (s *sources) Unlink(cancel <-chan struct{}, h *fuse.InHeader, name string) fuse.Status {
	return s.of(h.NodeId).Unlink(cancel, h, name)
}

func (s *sources) Rmdir(cancel <-chan struct{}, h *fuse.InHeader, name string) fuse.Status {
	return s.of(h.NodeId).Rmdir(cancel, h, name)
}

func (s *sources) Symlink(cancel <-chan struct{}, h *fuse.InHeader, target, name string, out *fuse.EntryOut) fuse.Status {
	return s.of(h.NodeId).Symlink(cancel, h, target, name, out)
}

func (s *sources) Readlink(cancel <-chan struct{}, h *fuse.InHeader) ([]byte, fuse.Status) {
	return s.of(h.NodeId).Readlink(cancel, h)
}

func (s *sources) Access(cancel <-chan struct{}, in *fuse.AccessIn) fuse.Status {
	return s.of(in.NodeId).Access(cancel, in)
}

func (s *sources) SetXAttr(cancel <-chan struct{}, in *fuse.SetXAttrIn, name string, value []byte) fuse.Status {
	return s.of(in.NodeId).SetXAttr(cancel, in, name, value)
}

func (s *sources) RemoveXAttr(cancel <-chan struct{}, h *fuse.InHeader, name string) fuse.Status {
	return s.of(h.NodeId).RemoveXAttr(cancel, h, name)
}

func (s *sources) Create(cancel <-chan struct{}, in *fuse.CreateIn, name string, out *fuse.CreateOut) fuse.Status {
	return s.of(in.NodeId).Create(cancel, in, name, out)
}

func (s *sources) Tmpfile(cancel <-chan struct{}, in *fuse.CreateIn, out *fuse.CreateOut) fuse.Status {
	return s.of(in.NodeId).Tmpfile(cancel, in, out)
}

func (s *sources) Open(cancel <-chan struct{}, in *fuse.OpenIn, out *fuse.OpenOut) fuse.Status {
	return s.of(in.NodeId).Open(cancel, in, out)
}

func (s *sources) Read(cancel <-chan struct{}, in *fuse.ReadIn, buf []byte) (fuse.ReadResult, fuse.Status) {
	return s.of(in.NodeId).Read(cancel, in, buf)
}

func (s *sources) Lseek(cancel <-chan struct{}, in *fuse.LseekIn, out *fuse.LseekOut) fuse.Status {
	return s.of(in.NodeId).Lseek(cancel, in, out)
}

func (s *sources) GetLk(cancel <-chan struct{}, in *fuse.LkIn, out *fuse.LkOut) fuse.Status {
	return s.of(in.NodeId).GetLk(cancel, in, out)
}

func (s *sources) SetLk(cancel <-chan struct{}, in *fuse.LkIn) fuse.Status {
	return s.of(in.NodeId).SetLk(cancel, in)
}

func (s *sources) SetLkw(cancel <-chan struct{}, in *fuse.LkIn) fuse.Status {
	return s.of(in.NodeId).SetLkw(cancel, in)
}

func (s *sources) Release(cancel <-chan struct{}, in *fuse.ReleaseIn) {
	s.of(in.NodeId).Release(cancel, in)
}

func (s *sources) Write(cancel <-chan struct{}, in *fuse.WriteIn, data []byte) (uint32, fuse.Status) {
	return s.of(in.NodeId).Write(cancel, in, data)
}

func (s *sources) Writev(cancel <-chan struct{}, in *fuse.WriteIn, data [][]byte) (uint32, fuse.Status) {
	return s.of(in.NodeId).Writev(cancel, in, data)
}

func (s *sources) Ioctl(cancel <-chan struct{}, in *fuse.IoctlIn, inbuf []byte, out *fuse.IoctlOut, outbuf []byte) fuse.Status {
	return s.of(in.NodeId).Ioctl(cancel, in, inbuf, out, outbuf)
}

func (s *sources) Flush(cancel <-chan struct{}, in *fuse.FlushIn) fuse.Status {
	return s.of(in.NodeId).Flush(cancel, in)
}

func (s *sources) Fsync(cancel <-chan struct{}, in *fuse.FsyncIn) fuse.Status {
	return s.of(in.NodeId).Fsync(cancel, in)
}

func (s *sources) Fallocate(cancel <-chan struct{}, in *fuse.FallocateIn) fuse.Status {
	return s.of(in.NodeId).Fallocate(cancel, in)
}

func (s *sources) OpenDir(cancel <-chan struct{}, in *fuse.OpenIn, out *fuse.OpenOut) fuse.Status {
	return s.of(in.NodeId).OpenDir(cancel, in, out)
}

func (s *sources) ReadDir(cancel <-chan struct{}, in *fuse.ReadIn, out *fuse.DirEntryList) fuse.Status {
	return s.of(in.NodeId).ReadDir(cancel, in, out)
}

func (s *sources) ReadDirPlus(cancel <-chan struct{}, in *fuse.ReadIn, out *fuse.DirEntryList) fuse.Status {
	return s.of(in.NodeId).ReadDirPlus(cancel, in, out)
}

func (s *sources) ReleaseDir(in *fuse.ReleaseIn) { s.of(in.NodeId).ReleaseDir(in) }

func (s *sources) FsyncDir(cancel <-chan struct{}, in *fuse.FsyncIn) fuse.Status {
	return s.of(in.NodeId).FsyncDir(cancel, in)
}

func (s *sources) StatFs(cancel <-chan struct{}, h *fuse.InHeader, out *fuse.StatfsOut) fuse.Status {
	return s.of(h.NodeId).StatFs(cancel, h, out)
}

package fusefs

import (
	"syscall"

	"github.com/hanwen/go-fuse/v2/fuse"

	"cagefs.dev/cage/remote/proto"
	"cagefs.dev/cage/remote/status"
)

// capability is the attribute that the kernel asks for before the first write
// to a file and at each exec.
const capability = "security.capability"

// GetXAttr implements fuse.RawFileSystem. A dest without length asks for the size.
func (s *fileSystem) GetXAttr(cancel <-chan struct{}, h *fuse.InHeader, name string, dest []byte) (uint32, fuse.Status) {
	ctx := s.read(cancel, h)
	defer ctx.end()
	ino := s.inodes.find(h.NodeId)
	if name == capability && s.now() < ino.noCaps.Load() {
		return 0, fuse.ENODATA
	}
	value, err := s.xattr(ctx, s.header(h), ino.id, name)
	if name == capability && status.Of(err) == status.NoAttr {
		ino.noCaps.Store(s.now() + int64(s.attrValid))
	}
	if err != nil {
		return 0, s.errors.status("getxattr", err)
	}
	return answer(value, dest)
}

// ListXAttr implements fuse.RawFileSystem.
func (s *fileSystem) ListXAttr(cancel <-chan struct{}, h *fuse.InHeader, dest []byte) (uint32, fuse.Status) {
	ctx := s.read(cancel, h)
	defer ctx.end()
	if s.session.Stale() { // as in xattr
		return 0, fuse.Status(syscall.ETIMEDOUT)
	}
	names, err := s.session.ListXattr(ctx, s.header(h), s.inodes.find(h.NodeId).id)
	if err != nil {
		return 0, s.errors.status("listxattr", err)
	}
	var list []byte
	for _, name := range names {
		list = append(append(list, name...), 0)
	}
	return answer(list, dest)
}

// answer copies a value to where the caller wants it, or tells its size.
func answer(value, dest []byte) (uint32, fuse.Status) {
	n := uint32(len(value))
	if len(dest) == 0 {
		return n, fuse.OK
	}
	if copy(dest, value) < len(value) {
		return n, fuse.ERANGE
	}
	return n, fuse.OK
}

// SetXAttr implements fuse.RawFileSystem.
func (s *fileSystem) SetXAttr(cancel <-chan struct{}, in *fuse.SetXAttrIn, name string, value []byte) fuse.Status {
	if in.Flags&^(proto.XattrCreate|proto.XattrReplace) != 0 {
		return fuse.EINVAL
	}
	ino := s.inodes.find(in.NodeId)
	op := &proto.SetXattr{ID: ino.id, Name: name, Value: append([]byte(nil), value...), Flags: in.Flags}
	return s.changeXattr(cancel, &in.InHeader, ino, op)
}

// RemoveXAttr implements fuse.RawFileSystem.
func (s *fileSystem) RemoveXAttr(cancel <-chan struct{}, h *fuse.InHeader, name string) fuse.Status {
	ino := s.inodes.find(h.NodeId)
	return s.changeXattr(cancel, h, ino, &proto.RemoveXattr{ID: ino.id, Name: name})
}

func (s *fileSystem) changeXattr(cancel <-chan struct{}, h *fuse.InHeader, ino *inode, op proto.Op) fuse.Status {
	ctx := s.change(cancel, h)
	defer ctx.end()
	defer ino.noCaps.Store(0)
	ino.locked()
	upto := ino.written()
	res, err := s.do(ctx, s.idents.full(h), op)
	if err != nil {
		return s.errors.status("xattr", err)
	}
	s.inodes.own(ino, &res.Attr, upto)
	return fuse.OK
}

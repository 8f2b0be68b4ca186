package fusefs

import (
	"github.com/hanwen/go-fuse/v2/fuse"

	"cagefs.dev/cage/remote/proto"
)

// Tmpfile implements fuse.RawFileSystem: open(2) with O_TMPFILE. The kernel lets
// the file be linked, once, unless it was opened with O_EXCL.
func (s *fileSystem) Tmpfile(cancel <-chan struct{}, in *fuse.CreateIn, out *fuse.CreateOut) fuse.Status {
	ctx := s.change(cancel, &in.InHeader)
	defer ctx.end()
	since := s.inodes.now()
	op := &proto.Make{Dir: s.inodes.find(in.NodeId).id, Mode: proto.ModeRegular | in.Mode&proto.ModePerm, Umask: in.Umask & 0o777}
	res, err := s.do(ctx, s.idents.full(&in.InHeader), op)
	if err == nil {
		err = s.given(&res.Attr)
	}
	if err == nil {
		s.fillEntry(&out.EntryOut, &res.Attr, 0, since)
		err = s.openMade(ctx, in, res.ID, out)
	}
	return s.errors.status("tmpfile", err)
}

package fusefs

import (
	"context"
	"syscall"
	"time"

	"github.com/hanwen/go-fuse/v2/fuse"

	"cagefs.dev/cage/remote/proto"
	"cagefs.dev/cage/remote/status"
)

// fillEntry makes a reply that gives a file to the kernel, and counts it. named
// is how long the name may be believed; since is when the request began
// that the attributes answer.
func (s *fileSystem) fillEntry(out *fuse.EntryOut, a *proto.Attr, named time.Duration, since int64) *inode {
	ino := s.inodes.remember(a)
	out.NodeId = ino.node
	out.Generation = 0 // file ids are never reused
	s.fillAttr(&out.Attr, a)
	out.SetAttrTimeout(s.attrTimeout(ino, a, since))
	out.SetEntryTimeout(named)
	return ino
}

// Lookup implements fuse.RawFileSystem.
func (s *fileSystem) Lookup(cancel <-chan struct{}, h *fuse.InHeader, name string, out *fuse.EntryOut) fuse.Status {
	ctx := s.read(cancel, h)
	defer ctx.end()
	since := s.inodes.now()
	dir := s.inodes.find(h.NodeId)
	switch name {
	case ".": // open_by_handle_at(2) of a file that the kernel has forgotten
		a, err := s.attr(ctx, h, dir)
		if err != nil {
			return s.errors.status("lookup", err)
		}
		s.fillEntry(out, &a, 0, since)
		return fuse.OK
	case "..": // … of a directory: its parent is not known here
		return fuse.Status(syscall.ESTALE)
	}
	names, tenure := dir.names.Load(), s.tenure(dir)
	changes, moves := s.changes.Load(), s.moves.Load()
	a, err := s.find(ctx, h, dir, name, tenure)
	valid := s.nameTimeout(dir, tenure)
	if dir.names.Load() != names || dir.gone.Load() {
		valid = 0 // the answer may be the one from before
	}
	if status.Of(err) == status.NotFound {
		out.SetEntryTimeout(valid)
		return fuse.OK // with NodeId 0: there is no such name
	}
	if err != nil {
		return s.errors.status("lookup", err)
	}
	ino := s.fillEntry(out, &a, valid, since)
	ino.seen(dir.id, name)
	if own := ino.names.Load(); s.changes.Load() == changes {
		s.memorize(ino, &a, own, moves)
	}
	return fuse.OK
}

// given checks that a file that the server gives may be one below the mount's
// root, or the kernel would find that in its own tree.
func (s *fileSystem) given(a *proto.Attr) error {
	if _, ok := s.inodes.node(a.ID); !ok || a.ID == s.inodes.root.id {
		return status.Newf(status.Internal, "lookup", a.ID.String(), "the server says that it is a root")
	}
	if a.ID == 0 { // gone again, or never there
		return status.New(status.Stale, "lookup", "")
	}
	return nil
}

// find asks for a name, or gives what is known of it. tenure is the directory's.
func (s *fileSystem) find(ctx context.Context, h *fuse.InHeader, dir *inode, name string, tenure uint64) (proto.Attr, error) {
	a, err := orKnown(ctx, s, func() (proto.Attr, bool) { return s.knownName(dir.id, name) }, func(ctx context.Context) (proto.Attr, error) {
		r := s.remembering()
		a, err := s.lookup(ctx, h, dir, name)
		switch {
		case err == nil:
			s.learnAttr(&a, r)
			s.learnName(dir, name, a.ID, tenure, r)
		case status.Of(err) == status.NotFound:
			s.learnName(dir, name, 0, tenure, r)
		}
		return a, err
	})
	if err == nil && a.ID == 0 {
		err = status.New(status.NotFound, "lookup", name)
	}
	return a, err
}

// lookup asks for a name. If writes of ours to the file may be missing in the
// answer, it asks again when they are applied.
func (s *fileSystem) lookup(ctx context.Context, h *fuse.InHeader, dir *inode, name string) (proto.Attr, error) {
	applied := s.session.Applied()
	a, err := s.session.Lookup(ctx, s.header(h), dir.id, name)
	if err != nil {
		return a, err
	}
	if err := s.given(&a); err != nil {
		return a, err
	}
	ino := s.inodes.known(a.ID)
	switch {
	case ino == nil:
		return a, nil
	case proto.Seq(ino.logged.Load()) <= applied:
		if again, err := s.uncover(ctx, ino, &a, applied); err != nil || !again {
			return a, err
		}
	}
	return s.attr(ctx, h, ino)
}

// changeNames does an operation that changes names of directories, and marks
// what was read of them meanwhile as not to be believed.
func (s *fileSystem) changeNames(ctx context.Context, h *fuse.InHeader, op proto.Op, dirs ...*inode) (proto.Result, error) {
	mark := func() {
		for _, d := range dirs {
			s.inodes.named(d)
		}
	}
	for _, d := range dirs {
		d.locked()
	}
	mark()
	defer mark()
	return s.do(ctx, s.idents.full(h), op)
}

// make creates a file and fills the reply.
func (s *fileSystem) make(ctx context.Context, h *fuse.InHeader, op *proto.Make, out *fuse.EntryOut) (proto.Attr, error) {
	since := s.inodes.now()
	dir := s.inodes.find(h.NodeId)
	tenure := s.tenure(dir)
	op.Dir = dir.id
	before, names := s.remembering(), dir.names.Load()
	res, err := s.changeNames(ctx, h, op, dir)
	if err != nil {
		return proto.Attr{}, err
	}
	s.learnAttr(&res.Attr, before)
	if after := s.remembering(); dir.names.Load() == names+2 { // nothing else has happened in it meanwhile
		s.learnName(dir, op.Name, res.Attr.ID, tenure, after)
	}
	if err := s.given(&res.Attr); err != nil {
		return proto.Attr{}, err
	}
	ino := s.fillEntry(out, &res.Attr, s.nameTimeout(dir, tenure), since)
	ino.seen(dir.id, op.Name)
	ino.noCaps.Store(s.now() + int64(s.attrValid)) // just made: it has none
	return res.Attr, nil
}

// Mknod implements fuse.RawFileSystem.
func (s *fileSystem) Mknod(cancel <-chan struct{}, in *fuse.MknodIn, name string, out *fuse.EntryOut) fuse.Status {
	ctx := s.change(cancel, &in.InHeader)
	defer ctx.end()
	_, err := s.make(ctx, &in.InHeader, &proto.Make{Name: name, Mode: in.Mode, Umask: in.Umask & 0o777, Rdev: in.Rdev}, out)
	return s.errors.status("mknod", err)
}

// Mkdir implements fuse.RawFileSystem.
func (s *fileSystem) Mkdir(cancel <-chan struct{}, in *fuse.MkdirIn, name string, out *fuse.EntryOut) fuse.Status {
	ctx := s.change(cancel, &in.InHeader)
	defer ctx.end()
	_, err := s.make(ctx, &in.InHeader, &proto.Make{Name: name, Mode: proto.ModeDir | in.Mode&proto.ModePerm, Umask: in.Umask & 0o777}, out)
	return s.errors.status("mkdir", err)
}

// Symlink implements fuse.RawFileSystem.
func (s *fileSystem) Symlink(cancel <-chan struct{}, h *fuse.InHeader, target, name string, out *fuse.EntryOut) fuse.Status {
	ctx := s.change(cancel, h)
	defer ctx.end()
	_, err := s.make(ctx, h, &proto.Make{Name: name, Mode: proto.ModeSymlink | 0o777, Target: target}, out)
	return s.errors.status("symlink", err)
}

// Readlink implements fuse.RawFileSystem. The kernel keeps the answer: a symlink never changes.
func (s *fileSystem) Readlink(cancel <-chan struct{}, h *fuse.InHeader) ([]byte, fuse.Status) {
	ctx := s.read(cancel, h)
	defer ctx.end()
	target, err := s.session.Readlink(ctx, s.header(h), s.inodes.find(h.NodeId).id)
	return []byte(target), s.errors.status("readlink", err)
}

// Link implements fuse.RawFileSystem.
func (s *fileSystem) Link(cancel <-chan struct{}, in *fuse.LinkIn, name string, out *fuse.EntryOut) fuse.Status {
	ctx := s.change(cancel, &in.InHeader)
	defer ctx.end()
	since := s.inodes.now()
	dir, ino := s.inodes.find(in.NodeId), s.inodes.find(in.Oldnodeid)
	tenure := s.tenure(dir)
	upto := ino.written()
	end := s.altering(ino)
	res, err := s.changeNames(ctx, &in.InHeader, &proto.Link{ID: ino.id, Dir: dir.id, Name: name}, dir)
	if err == nil {
		err = s.given(&res.Attr)
	}
	if err != nil {
		end()
		return s.errors.status("link", err)
	}
	s.inodes.own(ino, &res.Attr, upto)
	end()
	s.fillEntry(out, &res.Attr, s.nameTimeout(dir, tenure), since).seen(dir.id, name)
	return fuse.OK
}

// Unlink implements fuse.RawFileSystem.
func (s *fileSystem) Unlink(cancel <-chan struct{}, h *fuse.InHeader, name string) fuse.Status {
	return s.remove(cancel, h, name, false)
}

// Rmdir implements fuse.RawFileSystem.
func (s *fileSystem) Rmdir(cancel <-chan struct{}, h *fuse.InHeader, name string) fuse.Status {
	return s.remove(cancel, h, name, true)
}

func (s *fileSystem) remove(cancel <-chan struct{}, h *fuse.InHeader, name string, isDir bool) fuse.Status {
	ctx := s.change(cancel, h)
	defer ctx.end()
	dir := s.inodes.find(h.NodeId)
	_, err := s.changeNames(ctx, h, &proto.Remove{Dir: dir.id, Name: name, IsDir: isDir}, dir)
	return s.errors.status("remove", err)
}

// Rename implements fuse.RawFileSystem.
func (s *fileSystem) Rename(cancel <-chan struct{}, in *fuse.RenameIn, name, newName string) fuse.Status {
	ctx := s.change(cancel, &in.InHeader)
	defer ctx.end()
	if in.Flags&^(proto.RenameNoReplace|proto.RenameExchange) != 0 {
		return fuse.EINVAL // RENAME_WHITEOUT, or newer than this
	}
	from, to := s.inodes.find(in.NodeId), s.inodes.find(in.Newdir)
	op := &proto.Rename{Dir: from.id, Name: name, NewDir: to.id, NewName: newName, Flags: in.Flags}
	res, err := s.changeNames(ctx, &in.InHeader, op, from, to)
	if ino := s.inodes.known(res.ID); err == nil && ino != nil {
		ino.seen(to.id, newName)
	}
	return s.errors.status("rename", err)
}

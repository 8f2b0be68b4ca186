package fusefs

import (
	"context"
	"errors"
	"time"

	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"

	"cagefs.dev/cage/remote/proto"
	"cagefs.dev/cage/remote/status"
)

// blockSize is what stat(2) recommends for reads and writes: programs that go
// by it make requests of a size that is worth the way to the daemon.
const blockSize = 128 << 10

// fillAttr turns a source's attributes into the kernel's form.
func (s *fileSystem) fillAttr(out *fuse.Attr, a *proto.Attr) {
	fillAttr(out, a)
	out.Ino = s.ino(a.ID)
}

func fillAttr(out *fuse.Attr, a *proto.Attr) {
	*out = fuse.Attr{
		Ino: uint64(a.ID), Size: a.Size, Blocks: a.Blocks, Mode: a.Mode, Nlink: a.Nlink,
		Owner: fuse.Owner{Uid: a.UID, Gid: a.GID}, Rdev: a.Rdev, Blksize: blockSize,
	}
	out.Atime, out.Atimensec = splitTime(a.Atime)
	out.Mtime, out.Mtimensec = splitTime(a.Mtime)
	out.Ctime, out.Ctimensec = splitTime(a.Ctime)
}

// splitTime is seconds and nanoseconds; before 1970 the seconds are negative in two's complement.
func splitTime(t proto.Time) (sec uint64, nsec uint32) {
	s, n := int64(t)/1e9, int64(t)%1e9
	if n < 0 {
		s, n = s-1, n+1e9
	}
	return uint64(s), uint32(n)
}

// joinTime is the reverse. Times that a proto.Time cannot hold become the nearest that it can.
func joinTime(sec uint64, nsec uint32) proto.Time {
	const most = int64(1<<63-1) / 1e9
	s := int64(sec)
	if s >= most {
		return proto.Time(1<<63 - 1)
	}
	if s < -most {
		return proto.Time(-1 << 63)
	}
	return proto.Time(s*1e9 + int64(nsec))
}

// attrTimeout is how long the kernel may believe these attributes, of a reply to
// a request that began at since: not at all if a write of ours is on its way, or
// a newer change may have been heard of, or without a lease.
func (s *fileSystem) attrTimeout(ino *inode, a *proto.Attr, since int64) time.Duration {
	if s.inodes.newer(ino, a.Change, since) || proto.Seq(ino.logged.Load()) > s.session.Applied() {
		return 0
	}
	if !s.leasing {
		return s.attrValid
	}
	if a.Lease.Mode == proto.NoLease {
		return 0
	}
	if !ino.isDir() && s.isDisputed(ino) || ino.altered.Load() != 0 {
		return 0
	}
	ino.told.Store(true) // before the lease is looked at: see revoke
	_, left := s.session.Tenure(ino.id)
	return validFor(left)
}

// dispute is how long after a recall the kernel keeps neither attributes of a file nor, of
// who opens it, pages. To make it forget them also makes it throw away attributes that are on
// their way, and lseek(SEEK_END), and reads from its pages, then go by a size that is older than both.
const dispute = 2 * time.Second

func (s *fileSystem) isDisputed(ino *inode) bool {
	at := ino.disputed.Load()
	return at != 0 && time.Duration(s.now()-at) < dispute
}

// Bounds of how long the kernel may believe what it is told under a lease: the
// longest, and how much sooner than the lease that ends, for the way of the answer.
const (
	maxLeased  = 30 * time.Second
	leaseSlack = 500 * time.Millisecond
)

// validFor is a timeout for the kernel under a lease that lasts for so long.
func validFor(left time.Duration) time.Duration {
	return max(0, min(left-leaseSlack, maxLeased))
}

// tenure is that of a directory, to be compared by nameTimeout.
func (s *fileSystem) tenure(dir *inode) uint64 {
	n, _ := s.session.Tenure(dir.id)
	return n
}

// nameTimeout is how long the kernel may believe what it is told of a name, in
// an answer to a request that began when the directory's tenure was from.
func (s *fileSystem) nameTimeout(dir *inode, from uint64) time.Duration {
	if !s.leasing {
		return s.nameValid
	}
	n, left := s.session.Tenure(dir.id)
	if n == 0 || n != from || !s.kernel.expires() {
		return 0
	}
	return validFor(left)
}

// attr asks the server for attributes that include all writes of ours which
// the kernel has been told of.
func (s *fileSystem) attr(ctx context.Context, h *fuse.InHeader, ino *inode) (proto.Attr, error) {
	if ino == s.inodes.root {
		var l proto.Lease // what is given from memory has none
		a, err := s.rootAttr.get(ctx, s.session, func(ctx context.Context) (proto.Attr, error) {
			a, err := s.session.GetAttr(ctx, s.header(h), ino.id)
			l, a.Lease = a.Lease, proto.Lease{}
			return a, err
		})
		a.Lease = l
		return a, err
	}
	if s.leasing && ino.isDir() {
		return s.dirAttr(ctx, h, ino)
	}
	if err := s.settled(ctx, ino); err != nil {
		return proto.Attr{}, err
	}
	return orKnown(ctx, s, func() (proto.Attr, bool) { return s.knownAttr(ino.id) }, func(ctx context.Context) (proto.Attr, error) {
		for tries, again := 3, true; ; tries-- {
			r := s.remembering()
			a, err := s.session.GetAttr(ctx, s.header(h), ino.id)
			if err == nil {
				s.inodes.heard(ino, &a)
				s.learnAttr(&a, r)
				again, err = s.uncover(ctx, ino, &a, r.applied)
			}
			if err != nil || !again || tries == 1 {
				return a, err
			}
		}
	})
}

// GetAttr implements fuse.RawFileSystem.
func (s *fileSystem) GetAttr(cancel <-chan struct{}, in *fuse.GetAttrIn, out *fuse.AttrOut) fuse.Status {
	ctx := s.read(cancel, &in.InHeader)
	defer ctx.end()
	since := s.inodes.now()
	ino := s.inodes.find(in.NodeId)
	a, err := s.attr(ctx, &in.InHeader, ino)
	if err != nil {
		return s.errors.status("getattr", err)
	}
	s.fillAttr(&out.Attr, &a)
	out.SetTimeout(s.attrTimeout(ino, &a, since))
	return fuse.OK
}

// Statx implements fuse.RawFileSystem. The kernel asks for the time of birth only in this way.
func (s *fileSystem) Statx(cancel <-chan struct{}, in *fuse.StatxIn, out *fuse.StatxOut) fuse.Status {
	ctx := s.read(cancel, &in.InHeader)
	defer ctx.end()
	since := s.inodes.now()
	ino := s.inodes.find(in.NodeId)
	a, err := s.attr(ctx, &in.InHeader, ino)
	if err != nil {
		return s.errors.status("statx", err)
	}
	fillStatx(&out.Statx, &a)
	out.Ino = ino.number()
	out.SetTimeout(s.attrTimeout(ino, &a, since))
	return fuse.OK
}

func fillStatx(out *fuse.Statx, a *proto.Attr) {
	*out = fuse.Statx{
		Mask: unix.STATX_BASIC_STATS, Blksize: blockSize, Nlink: a.Nlink, Uid: a.UID, Gid: a.GID,
		Mode: uint16(a.Mode), Ino: uint64(a.ID), Size: a.Size, Blocks: a.Blocks,
		RdevMajor: unix.Major(uint64(a.Rdev)), RdevMinor: unix.Minor(uint64(a.Rdev)),
		Atime: statxTime(a.Atime), Mtime: statxTime(a.Mtime), Ctime: statxTime(a.Ctime),
	}
	if a.Btime != 0 {
		out.Mask |= unix.STATX_BTIME
		out.Btime = statxTime(a.Btime)
	}
}

func statxTime(t proto.Time) (out fuse.SxTime) {
	out.Sec, out.Nsec = splitTime(t)
	return out
}

// SetAttr implements fuse.RawFileSystem: chmod, chown, truncate, utimensat.
func (s *fileSystem) SetAttr(cancel <-chan struct{}, in *fuse.SetAttrIn, out *fuse.AttrOut) fuse.Status {
	ctx := s.change(cancel, &in.InHeader)
	defer ctx.end()
	since := s.inodes.now()
	ino := s.inodes.find(in.NodeId)
	ino.locked()
	who := s.idents.full(&in.InHeader)
	if in.Valid&fuse.FATTR_FH != 0 {
		if h := s.files.borrow(in.Fh); h != nil {
			who = h.who // ftruncate: permission was checked when the file was opened
			defer h.give()
			if err := intact(&h.it.lost); err != nil {
				return s.errors.status("setattr", err)
			}
		}
	}
	if ino.mode.Load() == 0 && killsSetID(in) {
		if _, err := s.attr(ctx, &in.InHeader, ino); err != nil { // which bits it has
			return s.errors.status("setattr", err)
		}
	}
	op := setAttrOp(in, ino, who.UID)
	if op.Mask == 0 {
		a, err := s.attr(ctx, &in.InHeader, ino)
		if err != nil {
			return s.errors.status("setattr", err)
		}
		if !dropSetID(op, &a, who.UID) {
			s.fillAttr(&out.Attr, &a)
			return fuse.OK
		}
	}
	a, err := s.setAttr(ctx, who, ino, op)
	if err != nil {
		return s.errors.status("setattr", err)
	}
	s.fillAttr(&out.Attr, &a)
	out.SetTimeout(s.attrTimeout(ino, &a, since))
	return fuse.OK
}

// setAttr does it and tells the cache of the result.
func (s *fileSystem) setAttr(ctx context.Context, who proto.Ident, ino *inode, op *proto.SetAttr) (proto.Attr, error) {
	upto := ino.written()
	defer s.altering(ino)()
	res, err := s.do(ctx, who, op)
	if err != nil {
		return proto.Attr{}, err
	}
	s.inodes.own(ino, &res.Attr, upto)
	return res.Attr, nil
}

// altering begins a change of ours of a file's attributes, and returns what ends it. Others see
// the change before the kernel has our answer: until then it is to believe nothing that it was told before.
func (s *fileSystem) altering(ino *inode) (end func()) {
	if !s.leasing {
		return func() {}
	}
	ino.altered.Add(1)
	if ino.told.Load() {
		s.kernel.attrs(ino.node)
	}
	return func() { ino.altered.Add(-1) }
}

// killsSetID reports whether a request may take setuid and setgid bits away.
func killsSetID(in *fuse.SetAttrIn) bool {
	return in.Valid&(fuse.FATTR_KILL_SUIDGID|fuse.FATTR_UID|fuse.FATTR_GID) != 0
}

// setAttrOp translates a request. A change of owner by anybody, and of size by
// those who lack CAP_FSETID, takes setuid and setgid bits away (the kernel
// leaves that to us with HANDLE_KILLPRIV_V2). The server does that itself, but
// for a change of size on behalf of root, uid.
func setAttrOp(in *fuse.SetAttrIn, ino *inode, uid uint32) *proto.SetAttr {
	op := &proto.SetAttr{
		ID: ino.id, Mode: in.Mode & proto.ModePerm, UID: in.Uid, GID: in.Gid, Size: in.Size,
		Atime: joinTime(in.Atime, in.Atimensec), Mtime: joinTime(in.Mtime, in.Mtimensec),
	}
	for _, bit := range []struct {
		valid uint32
		mask  proto.SetMask
	}{
		{fuse.FATTR_MODE, proto.SetMode},
		{fuse.FATTR_UID, proto.SetUID},
		{fuse.FATTR_GID, proto.SetGID},
		{fuse.FATTR_SIZE, proto.SetSize},
	} {
		if in.Valid&bit.valid != 0 {
			op.Mask |= bit.mask
		}
	}
	op.Mask |= timeMask(in.Valid, fuse.FATTR_ATIME, fuse.FATTR_ATIME_NOW, proto.SetAtime, proto.SetAtimeNow)
	op.Mask |= timeMask(in.Valid, fuse.FATTR_MTIME, fuse.FATTR_MTIME_NOW, proto.SetMtime, proto.SetMtimeNow)
	if in.Valid&fuse.FATTR_KILL_SUIDGID != 0 && uid == 0 {
		if mode, kill := withoutSetID(ino.mode.Load()); kill && op.Mask&proto.SetMode == 0 {
			op.Mask |= proto.SetMode
			op.Mode = mode
		}
	}
	return op
}

// dropSetID makes an operation that changes nothing take setuid and setgid
// bits away, and reports whether it does: it comes from a chown to the same
// owner, or from a write that is about to follow. Of the two a stranger may only
// write, and the server takes the bits with that.
func dropSetID(op *proto.SetAttr, a *proto.Attr, uid uint32) bool {
	mode, kill := withoutSetID(a.Mode)
	if !kill || a.IsDir() || uid != 0 && uid != a.UID {
		return false
	}
	op.Mask, op.Mode = proto.SetMode, mode
	return true
}

func timeMask(valid, given, now uint32, set, setNow proto.SetMask) proto.SetMask {
	switch {
	case valid&given == 0:
		return 0
	case valid&now != 0:
		return setNow
	}
	return set
}

// withoutSetID is a file's mode as a write by a stranger leaves it, and whether
// that differs. A setgid bit without group execution is no privilege.
func withoutSetID(mode uint32) (rest uint32, differs bool) {
	rest = mode & proto.ModePerm &^ proto.ModeSetuid
	if mode&0o010 != 0 {
		rest &^= proto.ModeSetgid
	}
	return rest, rest != mode&proto.ModePerm
}

// silence reports whether an error only says that the server did not answer.
func silence(err error) bool {
	switch status.Of(err) {
	case status.Timeout, status.Interrupted, status.Unreachable, status.Draining:
		return true
	}
	return errors.Is(err, context.DeadlineExceeded)
}

package fusefs

import (
	"os"
	"sync"
	"syscall"
	"time"

	"github.com/hanwen/go-fuse/v2/fuse"

	"cagefs.dev/cage/remote/proto"
)

// top is the root of a mount of named sources: a directory that lists them and
// never changes. It answers from memory; what it has to ask a source is asked of
// all at once, and a source whose server is gone delays nobody by more than
// patience. All fields are set at construction. Safe for concurrent use.
type top struct {
	// What is not a directory is never asked of it. Everything else is answered
	// below: ENOSYS would end that kind of request for the whole mount.
	fuse.RawFileSystem

	names []string
	fs    []*fileSystem
	index map[string]*fileSystem
	attr  proto.Attr
	valid time.Duration // of names and attributes
}

func newTop(o *Options, fs []*fileSystem) *top {
	now := proto.Time(time.Now().UnixNano())
	t := &top{
		RawFileSystem: fuse.NewDefaultRawFileSystem(),
		fs:            fs,
		index:         make(map[string]*fileSystem),
		attr: proto.Attr{
			ID: fuse.FUSE_ROOT_ID, Mode: proto.ModeDir | 0o555, Nlink: uint32(2 + len(fs)),
			UID: uint32(os.Geteuid()), GID: uint32(os.Getegid()), Atime: now, Mtime: now, Ctime: now,
		},
		valid: o.NameTimeout,
	}
	for i := range o.Sources {
		t.names = append(t.names, o.Sources[i].Name)
		t.index[o.Sources[i].Name] = fs[i]
	}
	return t
}

// Lookup implements fuse.RawFileSystem.
func (t *top) Lookup(cancel <-chan struct{}, h *fuse.InHeader, name string, out *fuse.EntryOut) fuse.Status {
	if h.NodeId != fuse.FUSE_ROOT_ID { // open_by_handle_at(2) of what is of no source
		return fuse.Status(syscall.ESTALE)
	}
	if s := t.index[name]; s != nil {
		return s.enter(cancel, h, out)
	}
	out.SetEntryTimeout(t.valid)
	return fuse.OK // with NodeId 0: there is no such name
}

// enter answers a lookup of the source's root in the mount's.
func (s *fileSystem) enter(cancel <-chan struct{}, h *fuse.InHeader, out *fuse.EntryOut) fuse.Status {
	ctx := s.read(cancel, h)
	defer ctx.end()
	since := s.inodes.now()
	a, err := s.attr(ctx, h, s.inodes.root)
	if err != nil {
		return s.errors.status("lookup", err)
	}
	s.fillEntry(out, &a, s.nameValid, since)
	return fuse.OK
}

// GetAttr implements fuse.RawFileSystem.
func (t *top) GetAttr(_ <-chan struct{}, _ *fuse.GetAttrIn, out *fuse.AttrOut) fuse.Status {
	fillAttr(&out.Attr, &t.attr)
	out.SetTimeout(t.valid)
	return fuse.OK
}

// Statx implements fuse.RawFileSystem.
func (t *top) Statx(_ <-chan struct{}, _ *fuse.StatxIn, out *fuse.StatxOut) fuse.Status {
	fillStatx(&out.Statx, &t.attr)
	out.SetTimeout(t.valid)
	return fuse.OK
}

// StatFs implements fuse.RawFileSystem: the sum of the sources.
func (t *top) StatFs(cancel <-chan struct{}, h *fuse.InHeader, out *fuse.StatfsOut) fuse.Status {
	each := make([]fuse.StatfsOut, len(t.fs))
	t.all(func(i int, s *fileSystem) fuse.Status { return s.StatFs(cancel, h, &each[i]) })
	*out = fuse.StatfsOut{Bsize: sumBlock, Frsize: sumBlock, NameLen: proto.MaxName}
	for i := range each {
		e := &each[i]
		out.Blocks += e.Blocks * uint64(e.Bsize) / sumBlock
		out.Bfree += e.Bfree * uint64(e.Bsize) / sumBlock
		out.Bavail += e.Bavail * uint64(e.Bsize) / sumBlock
		out.Files += e.Files
		out.Ffree += e.Ffree
	}
	return fuse.OK
}

// sumBlock is the unit in which the space of sources is added up.
const sumBlock = 4096

// FsyncDir implements fuse.RawFileSystem: it makes all sources durable. The
// error is the first source's that has one.
func (t *top) FsyncDir(cancel <-chan struct{}, in *fuse.FsyncIn) fuse.Status {
	return t.all(func(_ int, s *fileSystem) fuse.Status {
		of := *in
		of.NodeId = s.inodes.root.node
		return s.FsyncDir(cancel, &of)
	})
}

// all asks all sources at the same time and returns the first error in their order.
func (t *top) all(ask func(int, *fileSystem) fuse.Status) fuse.Status {
	answers := make([]fuse.Status, len(t.fs))
	var wg sync.WaitGroup
	for i, s := range t.fs {
		wg.Go(func() { answers[i] = ask(i, s) })
	}
	wg.Wait()
	for _, a := range answers {
		if a != fuse.OK {
			return a
		}
	}
	return fuse.OK
}

// OpenDir implements fuse.RawFileSystem.
func (t *top) OpenDir(<-chan struct{}, *fuse.OpenIn, *fuse.OpenOut) fuse.Status { return fuse.OK }

// ReleaseDir implements fuse.RawFileSystem.
func (t *top) ReleaseDir(*fuse.ReleaseIn) {}

// ReadDir implements fuse.RawFileSystem.
func (t *top) ReadDir(_ <-chan struct{}, in *fuse.ReadIn, out *fuse.DirEntryList) fuse.Status {
	t.list(in.Offset, out.AddDirEntry)
	return fuse.OK
}

// ReadDirPlus implements fuse.RawFileSystem. Entries come without attributes:
// the kernel asks for those it needs, so that no source holds up the listing.
func (t *top) ReadDirPlus(_ <-chan struct{}, in *fuse.ReadIn, out *fuse.DirEntryList) fuse.Status {
	t.list(in.Offset, func(e fuse.DirEntry) bool { return out.AddDirLookupEntry(e) != nil })
	return fuse.OK
}

// list gives the entries behind a place to add until it has no room.
func (t *top) list(off uint64, add func(fuse.DirEntry) bool) {
	for i := off; i < uint64(len(t.names)+2); i++ {
		e := fuse.DirEntry{Mode: proto.ModeDir, Ino: fuse.FUSE_ROOT_ID, Off: i + 1}
		switch i {
		case 0:
			e.Name = "."
		case 1:
			e.Name = ".."
		default:
			e.Name, e.Ino = t.names[i-2], t.fs[i-2].inodes.root.number()
		}
		if !add(e) {
			return
		}
	}
}

// GetXAttr implements fuse.RawFileSystem.
func (t *top) GetXAttr(<-chan struct{}, *fuse.InHeader, string, []byte) (uint32, fuse.Status) {
	return 0, fuse.ENODATA
}

// ListXAttr implements fuse.RawFileSystem.
func (t *top) ListXAttr(<-chan struct{}, *fuse.InHeader, []byte) (uint32, fuse.Status) {
	return 0, fuse.OK
}

// Ioctl implements fuse.RawFileSystem.
func (t *top) Ioctl(<-chan struct{}, *fuse.IoctlIn, []byte, *fuse.IoctlOut, []byte) fuse.Status {
	return fuse.Status(syscall.ENOTTY)
}

// Changes are refused.

func (t *top) SetAttr(<-chan struct{}, *fuse.SetAttrIn, *fuse.AttrOut) fuse.Status {
	return fuse.EROFS
}

func (t *top) Mknod(<-chan struct{}, *fuse.MknodIn, string, *fuse.EntryOut) fuse.Status {
	return fuse.EROFS
}

func (t *top) Mkdir(<-chan struct{}, *fuse.MkdirIn, string, *fuse.EntryOut) fuse.Status {
	return fuse.EROFS
}

func (t *top) Symlink(<-chan struct{}, *fuse.InHeader, string, string, *fuse.EntryOut) fuse.Status {
	return fuse.EROFS
}

func (t *top) Unlink(<-chan struct{}, *fuse.InHeader, string) fuse.Status { return fuse.EROFS }

func (t *top) Rmdir(<-chan struct{}, *fuse.InHeader, string) fuse.Status { return fuse.EROFS }

func (t *top) Rename(<-chan struct{}, *fuse.RenameIn, string, string) fuse.Status {
	return fuse.EROFS
}

func (t *top) Link(<-chan struct{}, *fuse.LinkIn, string, *fuse.EntryOut) fuse.Status {
	return fuse.EROFS
}

func (t *top) Create(<-chan struct{}, *fuse.CreateIn, string, *fuse.CreateOut) fuse.Status {
	return fuse.EROFS
}

func (t *top) Tmpfile(<-chan struct{}, *fuse.CreateIn, *fuse.CreateOut) fuse.Status {
	return fuse.EROFS
}

func (t *top) SetXAttr(<-chan struct{}, *fuse.SetXAttrIn, string, []byte) fuse.Status {
	return fuse.EROFS
}

func (t *top) RemoveXAttr(<-chan struct{}, *fuse.InHeader, string) fuse.Status { return fuse.EROFS }

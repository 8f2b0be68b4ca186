package fusefs

import (
	"os"
	"path/filepath"
	"syscall"
	"testing"
	"time"

	"github.com/hanwen/go-fuse/v2/fuse"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"cagefs.dev/cage/remote/proto"
)

// twoSources is what answers for a mount of two sources, a and b, without sessions.
func twoSources() *sources {
	o := &Options{Sources: []Source{{Name: "a"}, {Name: "b"}}, NameTimeout: time.Second}
	var fs []*fileSystem
	for i := range o.Sources {
		tag := uint16(i + 1)
		fs = append(fs, &fileSystem{tag: tag, inodes: newTable(tag, proto.Attr{ID: 9, Mode: proto.ModeDir}, func() proto.Seq { return 0 }, maxInodes)})
	}
	return newSources(o, fs)
}

func TestRequestsGoToTheirSource(t *testing.T) {
	s := twoSources()
	require.Same(t, s.top, s.of(fuse.FUSE_ROOT_ID))
	require.Same(t, s.fs[0], s.of(1<<48|5))
	require.Same(t, s.fs[1], s.of(2<<48|5))
	require.Same(t, s.top, s.of(3<<48|5), "no source has the tag")
	require.Equal(t, fuse.Status(syscall.ESTALE), s.Lookup(nil, &fuse.InHeader{NodeId: 3<<48 | 5}, ".", &fuse.EntryOut{}))

	var out fuse.EntryOut
	require.Equal(t, fuse.OK, s.Lookup(nil, &fuse.InHeader{NodeId: fuse.FUSE_ROOT_ID}, "c", &out))
	require.Zero(t, out.NodeId, "there is no c")

	in := fuse.InHeader{NodeId: 1<<48 | 5}
	require.Equal(t, fuse.EXDEV, s.Rename(nil, &fuse.RenameIn{InHeader: in, Newdir: 2<<48 | 5}, "x", "y"))
	require.Equal(t, fuse.EXDEV, s.Rename(nil, &fuse.RenameIn{InHeader: in, Newdir: fuse.FUSE_ROOT_ID}, "x", "y"))
	require.Equal(t, fuse.EXDEV, s.Link(nil, &fuse.LinkIn{InHeader: in, Oldnodeid: 2<<48 | 5}, "x", &fuse.EntryOut{}))
	_, code := s.CopyFileRange(nil, &fuse.CopyFileRangeIn{InHeader: in, NodeIdOut: 2<<48 | 5})
	require.Equal(t, fuse.EXDEV, code)
}

// The root is listed in any pieces, and each entry leads on to the next.
func TestListingOfTheRoot(t *testing.T) {
	top := twoSources().top
	type entry struct {
		name string
		ino  uint64
	}
	want := []entry{{".", 1}, {"..", 1}, {"a", 1<<48 | 9}, {"b", 2<<48 | 9}}
	for atOnce := 1; atOnce <= len(want)+1; atOnce++ {
		var got []entry
		for off, more := uint64(0), true; more; {
			n := 0
			top.list(off, func(e fuse.DirEntry) bool {
				if n == atOnce {
					return false
				}
				n++
				require.EqualValues(t, proto.ModeDir, e.Mode)
				got = append(got, entry{e.Name, e.Ino})
				off = e.Off
				return true
			})
			more = n == atOnce
		}
		require.Equal(t, want, got, "%d at once", atOnce)
	}
}

// ENOSYS for one directory would end that kind of request for all files of the mount.
func TestTheRootAnswersWhateverIsAskedOfADirectory(t *testing.T) {
	var top fuse.RawFileSystem = twoSources().top
	h := fuse.InHeader{NodeId: fuse.FUSE_ROOT_ID}
	_, get := top.GetXAttr(nil, &h, "user.x", nil)
	_, list := top.ListXAttr(nil, &h, nil)
	for what, tt := range map[string]struct{ got, want fuse.Status }{
		"getxattr":    {get, fuse.ENODATA},
		"listxattr":   {list, fuse.OK},
		"opendir":     {top.OpenDir(nil, &fuse.OpenIn{InHeader: h}, &fuse.OpenOut{}), fuse.OK},
		"getattr":     {top.GetAttr(nil, &fuse.GetAttrIn{InHeader: h}, &fuse.AttrOut{}), fuse.OK},
		"statx":       {top.Statx(nil, &fuse.StatxIn{InHeader: h}, &fuse.StatxOut{}), fuse.OK},
		"ioctl":       {top.Ioctl(nil, &fuse.IoctlIn{InHeader: h}, nil, &fuse.IoctlOut{}, nil), fuse.Status(syscall.ENOTTY)},
		"setattr":     {top.SetAttr(nil, &fuse.SetAttrIn{}, &fuse.AttrOut{}), fuse.EROFS},
		"mknod":       {top.Mknod(nil, &fuse.MknodIn{}, "x", &fuse.EntryOut{}), fuse.EROFS},
		"mkdir":       {top.Mkdir(nil, &fuse.MkdirIn{}, "x", &fuse.EntryOut{}), fuse.EROFS},
		"symlink":     {top.Symlink(nil, &h, "t", "x", &fuse.EntryOut{}), fuse.EROFS},
		"unlink":      {top.Unlink(nil, &h, "a"), fuse.EROFS},
		"rmdir":       {top.Rmdir(nil, &h, "a"), fuse.EROFS},
		"rename":      {top.Rename(nil, &fuse.RenameIn{}, "a", "x"), fuse.EROFS},
		"link":        {top.Link(nil, &fuse.LinkIn{}, "x", &fuse.EntryOut{}), fuse.EROFS},
		"create":      {top.Create(nil, &fuse.CreateIn{}, "x", &fuse.CreateOut{}), fuse.EROFS},
		"tmpfile":     {top.Tmpfile(nil, &fuse.CreateIn{}, &fuse.CreateOut{}), fuse.EROFS},
		"setxattr":    {top.SetXAttr(nil, &fuse.SetXAttrIn{}, "user.x", nil), fuse.EROFS},
		"removexattr": {top.RemoveXAttr(nil, &h, "user.x"), fuse.EROFS},
	} {
		require.Equal(t, tt.want, tt.got, what)
	}
}

// Two sources in a mount, of which the second is a directory of the first: what
// others change reaches the kernel through each, and one that is cut off leaves the other alone.
func TestTwoSources(t *testing.T) {
	d := startDaemon(t, "CAGE_TEST_SUB=:sub", "CAGE_TEST_PATIENCE=5s", "CAGE_TEST_TERM=2s")
	first, second := filepath.Join(d.b, "s1"), filepath.Join(d.b, "s2")
	change := func(content string) {
		require.NoError(t, os.WriteFile(filepath.Join(d.a, "sub", "f"), []byte(content), 0o644))
	}
	shows := func(path, content string) {
		t.Helper()
		require.Eventually(t, func() bool {
			b, err := os.ReadFile(path)
			return err == nil && string(b) == content
		}, 5*time.Second, 5*time.Millisecond)
	}
	byFirst, bySecond := filepath.Join(first, "sub", "f"), filepath.Join(second, "f")
	for _, content := range []string{"one", "two", "three and more"} {
		change(content)
		shows(byFirst, content)
		shows(bySecond, content)
	}
	var a, b unix.Stat_t
	require.NoError(t, unix.Stat(byFirst, &a))
	require.NoError(t, unix.Stat(bySecond, &b))
	require.EqualValues(t, 1, proto.FileID(a.Ino).Tag())
	require.EqualValues(t, 2, proto.FileID(b.Ino).Tag())
	require.Equal(t, proto.FileID(a.Ino).Tagged(0), proto.FileID(b.Ino).Tagged(0), "it is one file of the server")
	require.ErrorIs(t, os.Rename(bySecond, filepath.Join(first, "f")), unix.EXDEV)

	// A write in the one is seen in the other, as by any other mount.
	f, err := os.OpenFile(bySecond, os.O_WRONLY|os.O_TRUNC, 0)
	require.NoError(t, err)
	_, err = f.WriteString("by the second")
	require.NoError(t, err)
	require.NoError(t, f.Sync())
	shows(byFirst, "by the second")

	g, err := os.Create(filepath.Join(second, "g"))
	require.NoError(t, err)
	d.writeAway(g, "down-second b", "up b", "nobody looks at it", ", cut off")
	require.NoError(t, f.Close())
	require.NoError(t, g.Close())
	change("four") // when the leases of the second are over
	shows(byFirst, "four")
	list, err := os.ReadDir(d.b)
	require.NoError(t, err)
	require.Len(t, list, 2)
	_, err = os.ReadDir(second)
	require.ErrorIs(t, err, unix.ETIMEDOUT)
	d.ask("up b")
	shows(bySecond, "four")
	shows(filepath.Join(first, "sub", "g"), "nobody looks at it, cut off")
	shows(filepath.Join(second, "g"), "nobody looks at it, cut off")
}

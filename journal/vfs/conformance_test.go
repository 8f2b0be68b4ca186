package vfs

import (
	"io"
	"maps"
	"os"
	"slices"
	"strings"
	"syscall"
	"testing"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"
)

// disks are the implementations that must behave alike.
func disks() map[string]func(t *testing.T) FS {
	openOS := func(t *testing.T, plain bool) FS {
		fs, err := OS(ext4Dir(t))
		require.NoError(t, err)
		if plain {
			fs.(*osFS).plain = true
		}
		t.Cleanup(func() { fs.Close() })
		return fs
	}
	return map[string]func(t *testing.T) FS{
		"OS":                 func(t *testing.T) FS { return openOS(t, false) },
		"OS without openat2": func(t *testing.T) FS { return openOS(t, true) },
		"Mem":                func(t *testing.T) FS { return NewMem(1) },
		"Inject":             func(t *testing.T) FS { return Inject(NewMem(1), func(Op) error { return nil }) },
	}
}

// ext4Dir returns a directory on the file system that the tables describe:
// others count links of directories and limit sizes in other ways.
func ext4Dir(t *testing.T) string {
	var st unix.Statfs_t
	dir := t.TempDir()
	require.NoError(t, unix.Statfs(dir, &st))
	if st.Type != unix.EXT4_SUPER_MAGIC || os.Getuid() != 0 {
		t.Skip("the expectations are those of root on ext4; set TMPDIR")
	}
	return dir
}

func rootOf(t testing.TB, fs FS) Dir {
	root, err := fs.Root()
	require.NoError(t, err)
	t.Cleanup(func() { root.Close() })
	return root
}

func subdir(t testing.TB, d Dir, name string) Dir {
	require.NoError(t, d.Mkdir(name, 0o755))
	return openDir(t, d, name)
}

func openDir(t testing.TB, d Dir, name string) Dir {
	sub, err := d.OpenDir(name)
	require.NoError(t, err)
	t.Cleanup(func() { sub.Close() })
	return sub
}

func create(t testing.TB, d Dir, name, content string) File {
	f, err := d.Create(name, 0o644)
	require.NoError(t, err)
	t.Cleanup(func() { f.Close() })
	write(t, f, content, 0)
	return f
}

func write(t testing.TB, f File, content string, off int64) {
	n, err := f.WriteAt([]byte(content), off)
	require.NoError(t, err)
	require.Equal(t, len(content), n)
}

func contentOf(t testing.TB, f File) string {
	info, err := f.Stat()
	require.NoError(t, err)
	b := make([]byte, info.Size)
	n, err := f.ReadAt(b, 0)
	require.NoError(t, err)
	return string(b[:n])
}

func contentAt(t testing.TB, d Dir, name string) string {
	f, err := d.Open(name, false)
	require.NoError(t, err, name)
	defer f.Close()
	return contentOf(t, f)
}

func stat(t testing.TB, d Dir, name string) Info {
	info, err := d.Stat(name)
	require.NoError(t, err, name)
	return info
}

func names(t testing.TB, d Dir) []string {
	var list []string
	require.NoError(t, d.ReadDir(0, func(name string, _ uint64, _ uint32, _ uint64) bool {
		list = append(list, name)
		return true
	}))
	slices.Sort(list)
	return list
}

func TestConformance(t *testing.T) {
	for name, open := range disks() {
		t.Run(name, func(t *testing.T) {
			for _, c := range conformance {
				t.Run(c.name, func(t *testing.T) {
					fs := open(t)
					c.test(t, fs, rootOf(t, fs))
				})
			}
		})
	}
}

var conformance = []struct {
	name string
	test func(t *testing.T, fs FS, root Dir)
}{
	{"names", testNames},
	{"kinds", testKinds},
	{"permissions", testPermissions},
	{"links", testLinks},
	{"removal", testRemoval},
	{"rename", testRename},
	{"rename directories", testRenameDirs},
	{"rename flags", testRenameFlags},
	{"symlinks", testSymlinks},
	{"readdir", testReadDir},
	{"readdir while deleting", testReadDirDeleting},
	{"dead directory", testDeadDir},
	{"attributes", testAttributes},
	{"xattrs", testXattrs},
	{"content", testContent},
	{"sparse", testSparse},
	{"append", testAppend},
	{"allocate", testAllocate},
	{"copy", testCopy},
	{"unlinked file", testUnlinked},
	{"closed", testClosed},
	{"whole file system", testWhole},
	{"other file system", testOther},
}

func testNames(t *testing.T, fs FS, root Dir) {
	create(t, root, "f", "")
	for _, c := range []struct {
		name string
		want error
	}{
		{"", syscall.EINVAL}, {".", syscall.EINVAL}, {"..", syscall.EINVAL}, {"a/b", syscall.EINVAL},
		{"/", syscall.EINVAL}, {"f/", syscall.EINVAL}, {"../f", syscall.EINVAL}, {"a\x00b", syscall.EINVAL},
		{strings.Repeat("x", 256), syscall.ENAMETOOLONG},
	} {
		calls := map[string]func() error{
			"OpenDir":   func() error { _, err := root.OpenDir(c.name); return err },
			"Open":      func() error { _, err := root.Open(c.name, false); return err },
			"Create":    func() error { _, err := root.Create(c.name, 0o600); return err },
			"Mkdir":     func() error { return root.Mkdir(c.name, 0o700) },
			"Mknod":     func() error { return root.Mknod(c.name, syscall.S_IFIFO|0o600, 0) },
			"Symlink":   func() error { return root.Symlink("x", c.name) },
			"Readlink":  func() error { _, err := root.Readlink(c.name); return err },
			"Link":      func() error { return root.Link(c.name, root, "new") },
			"Link to":   func() error { return root.Link("f", root, c.name) },
			"Remove":    func() error { return root.Remove(c.name) },
			"RemoveDir": func() error { return root.RemoveDir(c.name) },
			"Rename":    func() error { return root.Rename(c.name, root, "new", 0) },
			"Rename to": func() error { return root.Rename("f", root, c.name, 0) },
			"Stat":      func() error { _, err := root.Stat(c.name); return err },
		}
		if c.name != "" {
			maps.Copy(calls, map[string]func() error{
				"Chmod":       func() error { return root.Chmod(c.name, 0o600) },
				"Chown":       func() error { return root.Chown(c.name, 1, 1) },
				"Utimes":      func() error { return root.Utimes(c.name, 1, 1) },
				"GetXattr":    func() error { _, err := root.GetXattr(c.name, "user.a"); return err },
				"SetXattr":    func() error { return root.SetXattr(c.name, "user.a", nil, 0) },
				"RemoveXattr": func() error { return root.RemoveXattr(c.name, "user.a") },
				"ListXattr":   func() error { _, err := root.ListXattr(c.name); return err },
			})
		}
		for call, do := range calls {
			require.ErrorIs(t, do(), c.want, "%s of %.20q", call, c.name)
		}
	}
	require.Equal(t, []string{"f"}, names(t, root))

	odd := []string{"\xff\xfe", " ", "...", "-rf", "a\nb", "ä", strings.Repeat("x", 255), "\x01", "*"}
	for _, name := range odd {
		create(t, root, name, name).Close()
	}
	require.ElementsMatch(t, append(odd, "f"), names(t, root))
	for _, name := range odd {
		require.Equal(t, name, contentAt(t, root, name))
	}
}

func testKinds(t *testing.T, fs FS, root Dir) {
	create(t, root, "file", "")
	subdir(t, root, "dir")
	require.NoError(t, root.Symlink("file", "link"))
	require.NoError(t, root.Symlink("dir", "dirlink"))
	require.NoError(t, root.Mknod("fifo", syscall.S_IFIFO|0o640, 0))
	require.NoError(t, root.Mknod("sock", syscall.S_IFSOCK|0o640, 0))
	require.NoError(t, root.Mknod("char", syscall.S_IFCHR|0o640, 1<<8|3))
	require.NoError(t, root.Mknod("block", syscall.S_IFBLK|0o640, 0x12345678))
	for _, c := range []struct {
		name      string
		typ       uint32
		rdev      uint32
		open, dir error
	}{
		{"file", syscall.S_IFREG, 0, nil, syscall.ENOTDIR},
		{"dir", syscall.S_IFDIR, 0, syscall.EISDIR, nil},
		{"link", syscall.S_IFLNK, 0, syscall.ELOOP, syscall.ENOTDIR},
		{"dirlink", syscall.S_IFLNK, 0, syscall.ELOOP, syscall.ENOTDIR},
		{"fifo", syscall.S_IFIFO, 0, syscall.ENXIO, syscall.ENOTDIR},
		{"sock", syscall.S_IFSOCK, 0, syscall.ENXIO, syscall.ENOTDIR},
		{"char", syscall.S_IFCHR, 1<<8 | 3, syscall.ENXIO, syscall.ENOTDIR},
		{"block", syscall.S_IFBLK, 0x12345678, syscall.ENXIO, syscall.ENOTDIR},
		{"none", 0, 0, syscall.ENOENT, syscall.ENOENT},
	} {
		for _, write := range []bool{false, true} {
			f, err := root.Open(c.name, write)
			require.Equal(t, c.open, err, "Open %s, write %v", c.name, write)
			if err == nil {
				f.Close()
			}
		}
		d, err := root.OpenDir(c.name)
		require.Equal(t, c.dir, err, "OpenDir %s", c.name)
		if err == nil {
			d.Close()
		}
		if c.typ == 0 {
			continue
		}
		info := stat(t, root, c.name)
		require.Equal(t, c.typ, info.Mode&syscall.S_IFMT, c.name)
		require.Equal(t, c.rdev, info.Rdev, c.name)
		require.NotZero(t, info.Btime, c.name)
		_, err = root.Create(c.name, 0o600)
		require.Equal(t, syscall.EEXIST, err)
		require.Equal(t, syscall.EEXIST, root.Mkdir(c.name, 0o600))
		require.Equal(t, syscall.EEXIST, root.Symlink("x", c.name))
		require.Equal(t, syscall.EEXIST, root.Mknod(c.name, syscall.S_IFIFO, 0))
		require.Equal(t, syscall.EEXIST, root.Link("file", root, c.name))
	}
	for _, typ := range []uint32{0, syscall.S_IFREG, syscall.S_IFDIR, syscall.S_IFLNK} {
		require.Equal(t, syscall.EINVAL, root.Mknod("new", typ|0o600, 0))
	}
	require.NoError(t, root.ReadDir(0, func(name string, ino uint64, typ uint32, _ uint64) bool {
		info := stat(t, root, name)
		require.Equal(t, info.Ino, ino, name)
		require.Equal(t, info.Mode&syscall.S_IFMT, typ, name)
		return true
	}))
}

func testPermissions(t *testing.T, fs FS, root Dir) {
	shared := subdir(t, root, "shared")
	require.NoError(t, shared.Chown("", 0, 7))
	require.NoError(t, shared.Chmod("", 0o2777))
	for _, d := range []Dir{root, shared} {
		for _, perm := range []uint32{0, 0o777, 0o666, 0o4755, 0o2711, 0o2745, 0o6777, 0o1777, syscall.S_IFREG | 0o600} {
			f, err := d.Create("f", perm)
			require.NoError(t, err)
			write(t, f, "content", 0)
			f.Close()
			require.NoError(t, d.Mkdir("d", perm))
			require.NoError(t, d.Mknod("n", syscall.S_IFIFO|perm&0o7777, 0))
			for name, typ := range map[string]uint32{"f": syscall.S_IFREG, "d": syscall.S_IFDIR, "n": syscall.S_IFIFO} {
				require.Equal(t, typ|perm&0o7777, stat(t, d, name).Mode, "%s with %o", name, perm)
				require.NoError(t, d.Chmod(name, 0o600))
				require.NoError(t, d.Chmod(name, perm))
				require.Equal(t, typ|perm&0o7777, stat(t, d, name).Mode, "chmod of %s to %o", name, perm)
			}
			require.NoError(t, d.Remove("f"))
			require.NoError(t, d.RemoveDir("d"))
			require.NoError(t, d.Remove("n"))
		}
	}
	create(t, shared, "f", "")
	require.EqualValues(t, 7, stat(t, shared, "f").GID, "setgid directories give their group")
	create(t, root, "f", "")
	require.EqualValues(t, 0, stat(t, root, "f").GID)
}

func testLinks(t *testing.T, fs FS, root Dir) {
	sub := subdir(t, root, "sub")
	f := create(t, root, "a", "one")
	require.NoError(t, root.Link("a", sub, "b"))
	require.Equal(t, stat(t, root, "a").Ident, stat(t, sub, "b").Ident)
	require.EqualValues(t, 2, stat(t, root, "a").Nlink)
	write(t, f, "two", 0)
	require.Equal(t, "two", contentAt(t, sub, "b"))
	require.Equal(t, syscall.EEXIST, root.Link("a", sub, "b"))
	require.Equal(t, syscall.EEXIST, root.Link("sub", sub, "b"))
	require.Equal(t, syscall.EPERM, root.Link("sub", root, "c"))
	require.Equal(t, syscall.ENOENT, root.Link("none", root, "c"))
	require.Equal(t, syscall.ENOENT, root.Link("none", sub, "b"))
	require.NoError(t, root.Symlink("a", "l"))
	require.NoError(t, root.Link("l", sub, "l2"))
	require.EqualValues(t, syscall.S_IFLNK|0o777, stat(t, sub, "l2").Mode)
	require.NoError(t, root.Remove("a"))
	info, err := f.Stat()
	require.NoError(t, err)
	require.EqualValues(t, 1, info.Nlink)
	require.Equal(t, "two", contentAt(t, sub, "b"))
}

func testRemoval(t *testing.T, fs FS, root Dir) {
	sub := subdir(t, root, "sub")
	create(t, sub, "f", "")
	self, err := root.StatSelf()
	require.NoError(t, err)
	require.EqualValues(t, 3, self.Nlink)
	require.Equal(t, syscall.ENOTEMPTY, root.RemoveDir("sub"))
	require.Equal(t, syscall.EISDIR, root.Remove("sub"))
	require.Equal(t, syscall.ENOTDIR, sub.RemoveDir("f"))
	require.Equal(t, syscall.ENOENT, sub.RemoveDir("g"))
	require.Equal(t, syscall.ENOENT, sub.Remove("g"))
	require.NoError(t, sub.Remove("f"))
	require.Equal(t, syscall.ENOENT, sub.Remove("f"))
	require.NoError(t, root.RemoveDir("sub"))
	self, err = root.StatSelf()
	require.NoError(t, err)
	require.EqualValues(t, 2, self.Nlink)
	require.Empty(t, names(t, root))
}

func testRename(t *testing.T, fs FS, root Dir) {
	sub := subdir(t, root, "sub")
	create(t, root, "a", "a")
	create(t, sub, "b", "b")
	a := stat(t, root, "a").Ident
	require.NoError(t, root.Rename("a", root, "a", 0), "onto itself")
	require.NoError(t, root.Rename("a", sub, "b", 0))
	require.Equal(t, a, stat(t, sub, "b").Ident)
	require.Equal(t, "a", contentAt(t, sub, "b"))
	require.Equal(t, []string{"sub"}, names(t, root))
	require.Equal(t, syscall.ENOENT, root.Rename("a", sub, "c", 0))
	require.Equal(t, syscall.EISDIR, sub.Rename("b", subParent(t, root), "empty", 0))
	require.NoError(t, sub.Link("b", root, "a"))
	require.NoError(t, sub.Rename("b", root, "a", 0), "a name of the same inode")
	require.Equal(t, []string{"b"}, names(t, sub), "stays")
	require.Equal(t, []string{"a", "empty", "sub"}, names(t, root))
}

func subParent(t *testing.T, root Dir) Dir {
	require.NoError(t, root.Mkdir("empty", 0o755))
	return root
}

func testRenameDirs(t *testing.T, fs FS, root Dir) {
	a, b := subdir(t, root, "a"), subdir(t, root, "b")
	inner := subdir(t, a, "inner")
	create(t, inner, "f", "f")
	create(t, root, "file", "")
	require.Equal(t, syscall.EINVAL, root.Rename("a", a, "x", 0), "into itself")
	require.Equal(t, syscall.EINVAL, root.Rename("a", inner, "x", 0), "below itself")
	require.Equal(t, syscall.ENOTEMPTY, a.Rename("inner", root, "a", 0), "onto its parent")
	require.Equal(t, syscall.ENOTEMPTY, inner.Rename("f", root, "a", 0), "a file onto its ancestor")
	require.Equal(t, syscall.ENOTDIR, root.Rename("a", root, "file", 0))
	require.Equal(t, syscall.ENOTEMPTY, root.Rename("b", root, "a", 0))
	require.NoError(t, a.Rename("inner", root, "b", 0), "onto an empty directory")
	require.Equal(t, []string{"f"}, names(t, openDir(t, root, "b")))
	require.Empty(t, names(t, a))
	require.EqualValues(t, 2, stat(t, root, "a").Nlink)
	self, err := root.StatSelf()
	require.NoError(t, err)
	require.EqualValues(t, 4, self.Nlink)
	_, err = b.Create("x", 0o600)
	require.Equal(t, syscall.ENOENT, err, "the old b is gone")
	require.Equal(t, syscall.ENOENT, root.Rename("file", b, "x", 0))
	require.Equal(t, syscall.ENOENT, root.Link("file", b, "x"))
	require.NoError(t, root.Rename("b", a, "b", 0))
	require.EqualValues(t, 3, stat(t, root, "a").Nlink)
	require.Equal(t, "f", contentAt(t, inner, "f"))
}

func testRenameFlags(t *testing.T, fs FS, root Dir) {
	sub := subdir(t, root, "sub")
	d := subdir(t, root, "d")
	create(t, d, "in", "")
	create(t, root, "f", "f")
	create(t, sub, "g", "g")
	require.NoError(t, root.Link("f", root, "f2"))
	for _, c := range []struct {
		name    string
		to      Dir
		newname string
		flags   uint
		want    error
	}{
		{"f", root, "f", RenameNoReplace, syscall.EEXIST},
		{"f", root, "f2", RenameNoReplace, syscall.EEXIST},
		{"f", root, "sub", RenameNoReplace, syscall.EEXIST},
		{"x", root, "f", RenameNoReplace, syscall.ENOENT},
		{"f", root, "x", RenameExchange, syscall.ENOENT},
		{"x", root, "f", RenameExchange, syscall.ENOENT},
		{"f", root, "g", RenameExchange | RenameNoReplace, syscall.EINVAL},
		{"f", root, "g", 8, syscall.EINVAL},
		{"sub", sub, "g", RenameExchange, syscall.EINVAL},
		{"f", root, "f", RenameExchange, nil},
		{"f", root, "f2", RenameExchange, nil},
	} {
		require.Equal(t, c.want, root.Rename(c.name, c.to, c.newname, c.flags), "%s to %s with %d", c.name, c.newname, c.flags)
	}
	require.Equal(t, syscall.EINVAL, sub.Rename("g", root, "sub", RenameExchange), "with its parent")
	fi, di := stat(t, root, "f").Ident, stat(t, root, "d").Ident
	require.NoError(t, root.Rename("f", sub, "new", RenameNoReplace))
	require.NoError(t, sub.Rename("new", root, "d", RenameExchange), "a file with a directory that has entries")
	require.Equal(t, di, stat(t, sub, "new").Ident)
	require.Equal(t, fi, stat(t, root, "d").Ident)
	require.Equal(t, []string{"in"}, names(t, openDir(t, sub, "new")))
	require.EqualValues(t, 3, stat(t, root, "sub").Nlink)
	self, err := root.StatSelf()
	require.NoError(t, err)
	require.EqualValues(t, 3, self.Nlink)
	require.NoError(t, root.Rename("d", sub, "g", RenameExchange))
	require.Equal(t, "g", contentAt(t, root, "d"))
	require.Equal(t, "f", contentAt(t, sub, "g"))
}

func testSymlinks(t *testing.T, fs FS, root Dir) {
	for _, target := range []string{"a", "/etc/passwd", "../..", "\xff\n", strings.Repeat("t", targetMax)} {
		require.NoError(t, root.Symlink(target, "l"))
		got, err := root.Readlink("l")
		require.NoError(t, err)
		require.Equal(t, target, got)
		require.EqualValues(t, len(target), stat(t, root, "l").Size)
		require.NoError(t, root.Remove("l"))
	}
	require.Equal(t, syscall.ENOENT, root.Symlink("", "l"))
	require.Equal(t, syscall.EINVAL, root.Symlink("a\x00", "l"))
	require.Equal(t, syscall.ENAMETOOLONG, root.Symlink(strings.Repeat("t", targetMax+1), "l"))
	create(t, root, "f", "")
	_, err := root.Readlink("f")
	require.Equal(t, syscall.EINVAL, err)
	_, err = root.Readlink("none")
	require.Equal(t, syscall.ENOENT, err)
}

func testReadDir(t *testing.T, fs FS, root Dir) {
	const many = 1500 // several buffers of getdents64
	want := make(map[string]bool)
	for i := range many {
		name := strings.Repeat("n", i%100) + string(rune('a'+i%26)) + strings.Repeat("0", i/100) + "x"
		if !want[name] {
			want[name] = true
			require.NoError(t, root.Symlink("t", name))
		}
	}
	type entry struct {
		name   string
		cookie uint64
	}
	var all []entry
	list := func(after uint64, limit int) (got []entry) {
		require.NoError(t, root.ReadDir(after, func(name string, _ uint64, typ uint32, cookie uint64) bool {
			require.Contains(t, []uint32{0, syscall.S_IFLNK}, typ)
			got = append(got, entry{name, cookie})
			return len(got) < limit
		}))
		return got
	}
	all = list(0, many*2)
	require.Len(t, all, len(want))
	for _, e := range all {
		require.True(t, want[e.name], e.name)
	}
	for _, i := range []int{0, 1, 63, 64, 700, len(all) - 2} {
		require.Equal(t, all[i+1:], list(all[i].cookie, many*2), "after entry %d", i)
		require.Equal(t, all[i+1:i+2], list(all[i].cookie, 1))
	}
	require.Empty(t, list(all[len(all)-1].cookie, many*2))
	// Concurrent and nested listings have their own positions.
	require.NoError(t, root.ReadDir(0, func(string, uint64, uint32, uint64) bool {
		require.Equal(t, all[:3], list(0, 3))
		return false
	}))
}

func testReadDirDeleting(t *testing.T, fs FS, root Dir) {
	for i := range 300 {
		create(t, root, strings.Repeat("z", 1+i%50)+strings.Repeat("y", i/50), "").Close()
	}
	seen := make(map[string]bool)
	for after := uint64(0); ; {
		var batch []string
		require.NoError(t, root.ReadDir(after, func(name string, _ uint64, _ uint32, cookie uint64) bool {
			require.False(t, seen[name], "%s twice", name)
			seen[name] = true
			batch, after = append(batch, name), cookie
			return len(batch) < 7
		}))
		if len(batch) == 0 {
			break
		}
		for _, name := range batch {
			require.NoError(t, root.Remove(name))
		}
	}
	require.Len(t, seen, 300)
	require.Empty(t, names(t, root))
}

func testDeadDir(t *testing.T, fs FS, root Dir) {
	d := subdir(t, root, "d")
	require.NoError(t, root.RemoveDir("d"))
	_, err := d.Create("f", 0o600)
	require.Equal(t, syscall.ENOENT, err)
	require.Equal(t, syscall.ENOENT, d.Mkdir("f", 0o600))
	require.Equal(t, syscall.ENOENT, d.Symlink("t", "f"))
	_, err = d.Stat("f")
	require.Equal(t, syscall.ENOENT, err)
	require.Equal(t, syscall.ENOENT, d.ReadDir(0, nil))
	info, err := d.StatSelf()
	require.NoError(t, err)
	require.Zero(t, info.Nlink)
	require.NoError(t, d.Chmod("", 0o700))
	create(t, root, "f", "")
	require.Equal(t, syscall.ENOENT, root.Rename("f", d, "f", 0))
	require.Equal(t, syscall.ENOENT, root.Rename("f", d, "f", RenameNoReplace))
	require.Equal(t, syscall.ENOENT, d.Rename("f", root, "g", 0))
}

func testAttributes(t *testing.T, fs FS, root Dir) {
	create(t, root, "f", "f")
	subdir(t, root, "d")
	require.NoError(t, root.Symlink("f", "l"))
	require.NoError(t, root.Mknod("p", syscall.S_IFIFO|0o600, 0))
	before := stat(t, root, "f")
	require.Equal(t, syscall.EOPNOTSUPP, root.Chmod("l", 0o600))
	require.Equal(t, syscall.ENOENT, root.Chmod("none", 0o600))
	for _, name := range []string{"f", "d", "l", "p"} {
		require.NoError(t, root.Chown(name, 12, 34), name)
		require.NoError(t, root.Chown(name, ^uint32(0), 56), name)
		require.NoError(t, root.Utimes(name, 1_500_000_000_123_456_789, -1), name)
		info := stat(t, root, name)
		require.Equal(t, []uint32{12, 56}, []uint32{info.UID, info.GID}, name)
		require.Equal(t, []int64{1_500_000_000_123_456_789, -1}, []int64{info.Atime, info.Mtime}, name)
		require.NoError(t, root.Utimes(name, OmitTime, 7), name)
		require.NoError(t, root.Utimes(name, OmitTime, OmitTime), name)
		info = stat(t, root, name)
		require.Equal(t, []int64{1_500_000_000_123_456_789, 7}, []int64{info.Atime, info.Mtime}, name)
	}
	require.Equal(t, before.Ident, stat(t, root, "f").Ident)
	require.Equal(t, before.Mode, stat(t, root, "f").Mode, "not through the symlink")
	require.Greater(t, stat(t, root, "f").Ctime, before.Ctime)

	for perm, want := range map[uint32]uint32{0o6755: 0o755, 0o6745: 0o2745, 0o1644: 0o1644} {
		require.NoError(t, root.Chmod("f", perm))
		require.NoError(t, root.Chown("f", 1, 1))
		require.Equal(t, want, stat(t, root, "f").Mode&0o7777, "%o after chown", perm)
		require.NoError(t, root.Chmod("d", perm))
		require.NoError(t, root.Chown("d", 1, 1))
		require.Equal(t, perm, stat(t, root, "d").Mode&0o7777)
	}

	require.NoError(t, root.Chmod("", 0o711))
	require.NoError(t, root.Chown("", 5, 6))
	require.NoError(t, root.Utimes("", 1e9, 2e9))
	self, err := root.StatSelf()
	require.NoError(t, err)
	require.Equal(t, Info{
		Ident: self.Ident, Mode: syscall.S_IFDIR | 0o711, Nlink: 3, UID: 5, GID: 6,
		Size: self.Size, Blocks: self.Blocks, Atime: 1e9, Mtime: 2e9, Ctime: self.Ctime,
	}, self)

	f, err := root.Open("f", false)
	require.NoError(t, err)
	require.NoError(t, f.Utimes(3e9, OmitTime))
	require.NoError(t, f.Close())
	require.EqualValues(t, 3e9, stat(t, root, "f").Atime)
}

func testXattrs(t *testing.T, fs FS, root Dir) {
	create(t, root, "f", "")
	subdir(t, root, "d")
	require.NoError(t, root.Symlink("f", "l"))
	require.NoError(t, root.Mknod("p", syscall.S_IFIFO|0o600, 0))
	get := func(name, attr string) string {
		v, err := root.GetXattr(name, attr)
		require.NoError(t, err, "%s of %s", attr, name)
		return string(v)
	}
	for _, name := range []string{"f", "d", "l", "p", ""} {
		require.NoError(t, root.SetXattr(name, "trusted.a", []byte("1"), 0), name)
		require.Equal(t, "1", get(name, "trusted.a"))
		list, err := root.ListXattr(name)
		require.NoError(t, err)
		require.Equal(t, []string{"trusted.a"}, list, name)
		want, wantGet := error(nil), error(syscall.ENODATA)
		if name == "l" || name == "p" {
			want = syscall.EPERM
		}
		_, err = root.GetXattr(name, "user.b")
		require.Equal(t, wantGet, err, name)
		require.Equal(t, want, root.SetXattr(name, "user.b", []byte("2"), 0), name)
	}
	binary := strings.Repeat("\x00\xff", 1000)
	require.NoError(t, root.SetXattr("f", "user.b", []byte(binary), xattrReplace))
	require.Equal(t, binary, get("f", "user.b"))
	require.NoError(t, root.SetXattr("f", "user.empty", nil, xattrCreate))
	require.Equal(t, "", get("f", "user.empty"))
	list, err := root.ListXattr("f")
	require.NoError(t, err)
	require.ElementsMatch(t, []string{"trusted.a", "user.b", "user.empty"}, list)
	require.NoError(t, root.RemoveXattr("f", "user.b"))

	for _, c := range []struct {
		attr  string
		size  int
		flags int
		want  error
	}{
		{"user.empty", 0, xattrCreate, syscall.EEXIST},
		{"user.none", 0, xattrReplace, syscall.ENODATA},
		{"user.none", 0, xattrReplace | xattrCreate, syscall.ENODATA},
		{"user.none", 0, 8, syscall.EINVAL},
		{"user.none", xattrValueMax + 1, 0, syscall.E2BIG},
		{"user.", 0, 0, syscall.EINVAL},
		{"none.a", 0, 0, syscall.EOPNOTSUPP},
		{"nodot", 0, 0, syscall.EOPNOTSUPP},
		{"", 0, 0, syscall.ERANGE},
		{"user." + strings.Repeat("a", 251), 0, 0, syscall.ERANGE},
		{"user." + strings.Repeat("a", 250), 0, 0, nil},
		{"user.\x00", 0, 0, syscall.EINVAL},
	} {
		require.Equal(t, c.want, root.SetXattr("f", c.attr, make([]byte, c.size), c.flags), "set %q", c.attr)
	}
	for attr, want := range map[string]error{
		"user.none": syscall.ENODATA, "none.a": syscall.EOPNOTSUPP, "": syscall.ERANGE, "user.": syscall.EINVAL,
	} {
		_, err := root.GetXattr("f", attr)
		require.Equal(t, want, err, "get %q", attr)
		require.Equal(t, want, root.RemoveXattr("f", attr), "remove %q", attr)
	}
	require.Equal(t, syscall.EPERM, root.RemoveXattr("l", "user.none"))
	_, err = root.ListXattr("none")
	require.Equal(t, syscall.ENOENT, err)
}

func testContent(t *testing.T, fs FS, root Dir) {
	f := create(t, root, "f", "hello world")
	b := make([]byte, 20)
	n, err := f.ReadAt(b, 6)
	require.Equal(t, io.EOF, err)
	require.Equal(t, "world", string(b[:n]))
	n, err = f.ReadAt(b[:5], 6)
	require.NoError(t, err)
	require.Equal(t, 5, n)
	n, err = f.ReadAt(b, 100)
	require.Equal(t, io.EOF, err)
	require.Zero(t, n)
	n, err = f.ReadAt(nil, 100)
	require.NoError(t, err)
	require.Zero(t, n)
	_, err = f.ReadAt(b, -1)
	require.Equal(t, syscall.EINVAL, err)
	_, err = f.WriteAt(b, -1)
	require.Equal(t, syscall.EINVAL, err)
	_, err = f.WriteAt(b, maxFileSize)
	require.Equal(t, syscall.EFBIG, err)
	n, err = f.WriteAt([]byte("abc"), maxFileSize-2)
	require.Equal(t, syscall.EFBIG, err)
	require.Equal(t, 2, n)

	require.NoError(t, f.Truncate(4))
	require.Equal(t, "hell", contentOf(t, f))
	require.NoError(t, f.Truncate(6))
	require.Equal(t, "hell\x00\x00", contentOf(t, f))
	require.Equal(t, syscall.EINVAL, f.Truncate(-1))
	require.Equal(t, syscall.EFBIG, f.Truncate(maxFileSize+1))
	write(t, f, strings.Repeat("x", 3*pageSize), pageSize-1)
	require.NoError(t, f.Truncate(pageSize+1))
	require.NoError(t, f.Truncate(2*pageSize))
	require.Equal(t, "hell"+strings.Repeat("\x00", pageSize-5)+"xx"+strings.Repeat("\x00", pageSize-1), contentOf(t, f))

	r, err := root.Open("f", false)
	require.NoError(t, err)
	defer r.Close()
	_, err = r.WriteAt(b, 0)
	require.Equal(t, syscall.EBADF, err)
	require.Equal(t, syscall.EINVAL, r.Truncate(0))
	require.Equal(t, syscall.EBADF, r.PunchHole(0, 1))
	require.Equal(t, syscall.EBADF, r.Allocate(0, 1, false))
	require.NoError(t, r.Datasync())
	require.NoError(t, r.Sync())
	require.Equal(t, contentOf(t, f), contentOf(t, r))
}

func testSparse(t *testing.T, fs FS, root Dir) {
	const far = int64(1) << 40
	f := create(t, root, "f", "")
	data := func() (ranges [][2]int64) {
		for off := int64(0); ; {
			start, end, ok, err := f.NextData(off)
			require.NoError(t, err)
			if !ok {
				return ranges
			}
			ranges = append(ranges, [2]int64{start, end})
			off = end
		}
	}
	require.Empty(t, data())
	write(t, f, "x", 0)
	write(t, f, "y", 2*pageSize)
	write(t, f, "z", far)
	require.Equal(t, [][2]int64{{0, pageSize}, {2 * pageSize, 3 * pageSize}, {far, far + 1}}, data())
	start, end, ok, err := f.NextData(2*pageSize + 5)
	require.NoError(t, err)
	require.True(t, ok)
	require.Equal(t, []int64{2*pageSize + 5, 3 * pageSize}, []int64{start, end})
	for _, off := range []int64{-1, far + 1, far + 2} {
		_, _, ok, err = f.NextData(off)
		require.NoError(t, err)
		require.False(t, ok)
	}
	require.NoError(t, f.Truncate(3*pageSize+1))
	require.Equal(t, [][2]int64{{0, pageSize}, {2 * pageSize, 3 * pageSize}}, data())
	write(t, f, strings.Repeat("w", 4*pageSize), 0)
	require.NoError(t, f.PunchHole(pageSize-1, pageSize+2))
	require.Equal(t, [][2]int64{{0, pageSize}, {2 * pageSize, 4 * pageSize}}, data())
	want := strings.Repeat("w", pageSize-1) + strings.Repeat("\x00", pageSize+2) + strings.Repeat("w", 2*pageSize-1)
	require.Equal(t, want, contentOf(t, f))
	require.NoError(t, f.PunchHole(3*pageSize, far), "beyond the end")
	require.Equal(t, want[:3*pageSize]+strings.Repeat("\x00", pageSize), contentOf(t, f))
	require.NoError(t, f.PunchHole(far, 5))
	require.Equal(t, syscall.EINVAL, f.PunchHole(0, 0))
	require.Equal(t, syscall.EINVAL, f.PunchHole(-1, 5))
	require.Equal(t, syscall.EFBIG, f.PunchHole(1, maxFileSize))

	g := create(t, root, "g", strings.Repeat("v", pageSize+10))
	require.NoError(t, g.PunchHole(0, pageSize+10))
	require.Equal(t, strings.Repeat("\x00", pageSize+10), contentOf(t, g))
}

func testAppend(t *testing.T, fs FS, root Dir) {
	f := create(t, root, "f", "0123456789")
	at, n, err := f.Append([]byte("abc"))
	require.NoError(t, err)
	require.EqualValues(t, 10, at)
	require.Equal(t, 3, n)
	require.NoError(t, f.Truncate(5))
	at, _, err = f.Append([]byte("xyz"))
	require.NoError(t, err)
	require.EqualValues(t, 5, at)
	require.Equal(t, "01234xyz", contentOf(t, f))
	r, err := root.Open("f", false)
	require.NoError(t, err)
	defer r.Close()
	_, _, err = r.Append([]byte("no"))
	require.Equal(t, syscall.EBADF, err)
}

func testAllocate(t *testing.T, fs FS, root Dir) {
	f := create(t, root, "f", "content")
	size := func() int64 {
		info, err := f.Stat()
		require.NoError(t, err)
		return info.Size
	}
	require.NoError(t, f.Allocate(0, 3*pageSize, true))
	require.EqualValues(t, 7, size())
	require.NoError(t, f.Allocate(3, 1, false))
	require.EqualValues(t, 7, size(), "inside of the size")
	require.NoError(t, f.Allocate(pageSize, 100, false))
	require.EqualValues(t, pageSize+100, size())
	_, end, ok, err := f.NextData(0)
	require.NoError(t, err)
	require.True(t, ok)
	require.EqualValues(t, pageSize, end, "what is reserved and neither written nor read is no data")
	require.Equal(t, "content"+strings.Repeat("\x00", pageSize+93), contentOf(t, f))
	require.NoError(t, f.Datasync())
	require.Equal(t, "content", contentOf(t, f)[:7])
	require.Equal(t, syscall.EINVAL, f.Allocate(0, 0, false))
	require.Equal(t, syscall.EINVAL, f.Allocate(-1, 5, true))
	require.Equal(t, syscall.EFBIG, f.Allocate(1, maxFileSize, true))
}

func testCopy(t *testing.T, fs FS, root Dir) {
	a := create(t, root, "a", strings.Repeat("0123456789", 1000))
	b := create(t, root, "b", "start")
	require.NoError(t, a.CopyTo(b, 10, 3, 7000))
	require.Equal(t, "sta"+strings.Repeat("0123456789", 700), contentOf(t, b))
	require.Equal(t, io.ErrUnexpectedEOF, a.CopyTo(b, 9999, 0, 2))
	require.Equal(t, "9ta", contentOf(t, b)[:3])
	require.Equal(t, io.ErrUnexpectedEOF, a.CopyTo(b, 20000, 0, 1))
	require.Equal(t, syscall.EINVAL, a.CopyTo(a, 0, 5, 10))
	require.NoError(t, a.CopyTo(a, 0, 10, 10))
	require.NoError(t, a.CopyTo(b, 0, 0, 0))
	require.Equal(t, syscall.EINVAL, a.CopyTo(b, -1, 0, 1))
	require.Equal(t, syscall.EINVAL, a.CopyTo(b, 0, 0, -1))
	r, err := root.Open("b", false)
	require.NoError(t, err)
	defer r.Close()
	require.Equal(t, syscall.EBADF, a.CopyTo(r, 0, 0, 1))
}

func testUnlinked(t *testing.T, fs FS, root Dir) {
	f := create(t, root, "f", "content")
	require.NoError(t, root.Remove("f"))
	require.Equal(t, "content", contentOf(t, f))
	write(t, f, "C", 0)
	require.NoError(t, f.Sync())
	info, err := f.Stat()
	require.NoError(t, err)
	require.Zero(t, info.Nlink)
	g := create(t, root, "f", "other")
	other, err := g.Stat()
	require.NoError(t, err)
	require.NotEqual(t, info.Ident, other.Ident)
	require.Equal(t, "Content", contentOf(t, f))
}

func testClosed(t *testing.T, fs FS, root Dir) {
	f := create(t, root, "f", "content")
	d := subdir(t, root, "d")
	require.NoError(t, f.Close())
	require.NoError(t, d.Close())
	_, statErr := f.Stat()
	_, readErr := f.ReadAt(make([]byte, 1), 0)
	_, writeErr := f.WriteAt(make([]byte, 1), 0)
	_, selfErr := d.StatSelf()
	_, openErr := d.Open("f", false)
	for _, err := range []error{
		statErr, readErr, writeErr, f.Truncate(0), f.Sync(), f.Datasync(), f.Utimes(0, 0), f.Close(),
		selfErr, openErr, d.Mkdir("x", 0o700), d.Sync(), d.ReadDir(0, nil), d.Close(),
		root.Rename("f", d, "x", 0),
	} {
		require.Equal(t, syscall.EBADF, err)
	}
}

func testWhole(t *testing.T, fs FS, root Dir) {
	s, err := fs.StatFS()
	require.NoError(t, err)
	require.NotZero(t, s.ID)
	require.EqualValues(t, nameMax, s.NameMax)
	require.EqualValues(t, 4096, s.BlockSize)
	require.LessOrEqual(t, s.BlocksFree, s.Blocks)
	require.LessOrEqual(t, s.BlocksAvail, s.BlocksFree)
	require.Less(t, s.FilesFree, s.Files)
	again, err := fs.StatFS()
	require.NoError(t, err)
	require.Equal(t, s.ID, again.ID)
	for _, group := range []bool{false, true} {
		q, err := fs.Quota(group, 1<<30+7)
		require.NoError(t, err, "also where the file system has no quotas")
		require.Zero(t, q, "a user who has nothing and no limit")
	}
	require.NoError(t, fs.SyncFS())
	require.NoError(t, root.Sync())
	require.NoError(t, fs.Close())
	create(t, root, "f", "open directories stay open")
}

func testOther(t *testing.T, fs FS, root Dir) {
	other := rootOf(t, NewMem(2))
	f := create(t, root, "f", "f")
	require.Equal(t, syscall.EXDEV, root.Link("f", other, "f"))
	require.Equal(t, syscall.EXDEV, root.Rename("f", other, "f", 0))
	require.Equal(t, syscall.EXDEV, f.CopyTo(create(t, other, "g", ""), 0, 0, 1))
}

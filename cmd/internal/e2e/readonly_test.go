package e2e

import (
	"os"
	"path/filepath"
	"sort"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"
)

// changes are all ways to change something in a directory that has a file f, an
// empty directory d, a symlink l and a file x with an attribute.
var changes = map[string]func(dir string) error{
	"create": func(dir string) error { return os.WriteFile(filepath.Join(dir, "new"), nil, 0o644) },
	"create exclusively": func(dir string) error {
		return opened(filepath.Join(dir, "new"), unix.O_CREAT|unix.O_EXCL|unix.O_RDWR)
	},
	"nameless file":    func(dir string) error { return opened(dir, unix.O_TMPFILE|unix.O_RDWR) },
	"open to write":    func(dir string) error { return opened(filepath.Join(dir, "f"), unix.O_WRONLY) },
	"open to both":     func(dir string) error { return opened(filepath.Join(dir, "f"), unix.O_RDWR) },
	"open to append":   func(dir string) error { return opened(filepath.Join(dir, "f"), unix.O_WRONLY|unix.O_APPEND) },
	"open to truncate": func(dir string) error { return opened(filepath.Join(dir, "f"), unix.O_RDONLY|unix.O_TRUNC) },
	"truncate":         func(dir string) error { return unix.Truncate(filepath.Join(dir, "f"), 1) },
	"mkdir":            func(dir string) error { return unix.Mkdir(filepath.Join(dir, "new"), 0o755) },
	"mkfifo":           func(dir string) error { return unix.Mkfifo(filepath.Join(dir, "new"), 0o644) },
	"mknod":            func(dir string) error { return unix.Mknod(filepath.Join(dir, "new"), unix.S_IFCHR|0o644, 0x103) },
	"symlink":          func(dir string) error { return unix.Symlink("x", filepath.Join(dir, "new")) },
	"link":             func(dir string) error { return unix.Link(filepath.Join(dir, "f"), filepath.Join(dir, "new")) },
	"unlink":           func(dir string) error { return unix.Unlink(filepath.Join(dir, "f")) },
	"rmdir":            func(dir string) error { return unix.Rmdir(filepath.Join(dir, "d")) },
	"rename":           func(dir string) error { return unix.Rename(filepath.Join(dir, "f"), filepath.Join(dir, "new")) },
	"rename over":      func(dir string) error { return unix.Rename(filepath.Join(dir, "f"), filepath.Join(dir, "x")) },
	"rename into":      func(dir string) error { return unix.Rename(filepath.Join(dir, "f"), filepath.Join(dir, "d", "f")) },
	"exchange": func(dir string) error {
		return unix.Renameat2(unix.AT_FDCWD, filepath.Join(dir, "f"), unix.AT_FDCWD, filepath.Join(dir, "x"), unix.RENAME_EXCHANGE)
	},
	"chmod":             func(dir string) error { return unix.Chmod(filepath.Join(dir, "f"), 0o600) },
	"chmod a directory": func(dir string) error { return unix.Chmod(dir, 0o700) },
	"chown":             func(dir string) error { return unix.Lchown(filepath.Join(dir, "l"), 7, 7) },
	"utimes":            func(dir string) error { return os.Chtimes(filepath.Join(dir, "f"), time.Unix(1, 0), time.Unix(1, 0)) },
	"setxattr":          func(dir string) error { return unix.Setxattr(filepath.Join(dir, "f"), "user.a", []byte("a"), 0) },
	"removexattr":       func(dir string) error { return unix.Removexattr(filepath.Join(dir, "x"), "user.x") },
}

// opened opens and closes a file.
func opened(path string, flags int) error {
	fd, err := unix.Open(path, flags, 0o644)
	if err == nil {
		unix.Close(fd)
	}
	return err
}

// TestReadOnly tries all changes where none is allowed: in a read-only mount, in
// a mount of a read-only export, of a past state, and, where the kernel lets them
// come to us, in such directories of a mount that is not read-only as a whole.
func TestReadOnly(t *testing.T) {
	needRoot(t)
	t.Parallel()
	l := newLab(t, "")
	export := l.mkdir("export")
	rw := l.newServer(export)
	rw.start()
	prepared := l.mount(rw)
	for _, name := range []string{"f", "x"} {
		writeFile(t, filepath.Join(prepared, name), name)
	}
	require.NoError(t, unix.Setxattr(filepath.Join(prepared, "x"), "user.x", []byte("x"), 0))
	require.NoError(t, os.Mkdir(filepath.Join(prepared, "d"), 0o755))
	require.NoError(t, os.Symlink("f", filepath.Join(prepared, "l")))
	l.run("cagejournal", "label", "then", prepared)
	l.umount(prepared)
	rw.stop()

	other := l.mkdir("other")
	ro := l.newServer(export+",ro", "--export", "other="+other)
	ro.start()
	data, past := ro.addr+":/data", ro.addr+":/data@label:then"
	whole := map[string]string{
		"export":         l.mountSources([]string{data}),
		"past":           l.mountSources([]string{past}),
		"mount":          l.mountSources([]string{data}, "-o", "ro"),
		"all of several": filepath.Join(l.mountSources([]string{"a=" + data, "b=" + past}), "a"),
	}
	mixed := l.mountSources([]string{data, "past=" + past, ro.addr + ":/other"})
	dirs := map[string]string{"export of several": filepath.Join(mixed, "data"), "past of several": filepath.Join(mixed, "past")}
	for name, dir := range whole {
		dirs[name] = dir
	}
	for name, dir := range dirs {
		t.Run(name, func(t *testing.T) {
			for what, change := range changes {
				require.ErrorIs(t, change(dir), unix.EROFS, what)
			}
			list, err := os.ReadDir(dir)
			require.NoError(t, err)
			var names []string
			for _, e := range list {
				names = append(names, e.Name())
			}
			sort.Strings(names)
			require.Equal(t, []string{"d", "f", "l", "x"}, names)
			require.Equal(t, "f", readFile(t, filepath.Join(dir, "f")))
			require.NoError(t, fsync(filepath.Join(dir, "f")))
			require.NoError(t, fsync(dir))
			l.run("cagejournal", "cat", filepath.Join(dir, "f"))
			var st unix.Statfs_t
			require.NoError(t, unix.Statfs(dir, &st))
			_, isWhole := whole[name]
			require.Equal(t, isWhole, st.Flags&unix.ST_RDONLY != 0, "the mount shows ro")
			if !isWhole {
				require.NoError(t, unix.Access(dir, unix.R_OK))
			}
		})
	}
	writeFile(t, filepath.Join(mixed, "other", "f"), "the others may be changed")
	l.run("cagefs", "sync", mixed)
	require.Equal(t, "the others may be changed", readFile(t, filepath.Join(other, "f")))
	require.Contains(t, l.run("cagefs", "status", whole["mount"]), "(read-only)")
	_, err := l.try("cagejournal", "rollback", filepath.Join(mixed, "data", "f"), "--to", "@label:then", "-y")
	require.ErrorContains(t, err, "exit status 8")
	require.ErrorContains(t, err, "rollback: read-only")
}

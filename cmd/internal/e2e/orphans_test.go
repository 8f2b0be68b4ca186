package e2e

import (
	"bytes"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"
)

// orphans are files and directories that are open and have no name.
type orphans struct {
	t                  *testing.T
	file, bare, linked *os.File // removed; made without a name; likewise, to be linked
	dir, lost          *os.File // removed; removed by another mount
	content            []byte
}

// newOrphans makes them in a mount; other is a second mount of the same.
func newOrphans(t *testing.T, mount, other string) *orphans {
	t.Helper()
	o := &orphans{t: t, content: bytes.Repeat([]byte("orphan"), 10000)}
	open := func(name string, flags int) *os.File {
		f, err := os.OpenFile(filepath.Join(mount, name), flags, 0o644)
		require.NoError(t, err)
		t.Cleanup(func() { f.Close() })
		return f
	}
	for _, name := range []string{"dir", "lost"} {
		require.NoError(t, os.Mkdir(filepath.Join(mount, name), 0o755))
	}
	o.file = open("file", os.O_RDWR|os.O_CREATE)
	o.bare, o.linked = open("", unix.O_TMPFILE|os.O_RDWR), open("", unix.O_TMPFILE|os.O_RDWR)
	o.dir, o.lost = open("dir", os.O_RDONLY), open("lost", os.O_RDONLY)
	for _, f := range []*os.File{o.file, o.bare, o.linked} {
		_, err := f.WriteAt(o.content, 0)
		require.NoError(t, err)
	}
	require.NoError(t, os.Remove(filepath.Join(mount, "file")))
	require.NoError(t, os.Remove(filepath.Join(mount, "dir")))
	require.Eventually(t, func() bool { return os.Remove(filepath.Join(other, "lost")) == nil }, 5*time.Second, 10*time.Millisecond)
	return o
}

// check uses them as any other files.
func (o *orphans) check() {
	t := o.t
	t.Helper()
	for _, f := range []*os.File{o.file, o.bare} {
		st := stat(t, f)
		require.Zero(t, st.Nlink)
		require.EqualValues(t, len(o.content), st.Size)
		got := make([]byte, len(o.content))
		_, err := f.ReadAt(got, 0)
		require.NoError(t, err)
		require.True(t, bytes.Equal(o.content, got), "the content is another")
	}
	o.content = append(bytes.Repeat([]byte("more"), 2000), o.content[8000:]...)
	o.content = o.content[:len(o.content)-1000]
	for _, f := range []*os.File{o.file, o.bare, o.linked} {
		_, err := f.WriteAt(o.content[:8000], 0)
		require.NoError(t, err)
		require.NoError(t, f.Truncate(int64(len(o.content))))
		require.NoError(t, f.Chmod(0o600))
		require.NoError(t, unix.Fsetxattr(int(f.Fd()), "user.name", []byte("value"), 0))
		require.NoError(t, f.Sync())
		require.EqualValues(t, unix.S_IFREG|0o600, stat(t, f).Mode)
	}
	for _, d := range []*os.File{o.dir, o.lost} {
		require.NoError(t, d.Chmod(0o700))
		require.NoError(t, unix.Fsetxattr(int(d.Fd()), "user.name", []byte("value"), 0))
		require.Eventually(t, func() bool { return stat(t, d).Nlink == 0 }, 5*time.Second, 10*time.Millisecond)
		_, err := d.Seek(0, 0)
		require.NoError(t, err)
		es, err := d.ReadDir(-1)
		require.Empty(t, es)
		if d == o.lost {
			require.NoError(t, err)
		} else {
			require.ErrorIs(t, err, unix.ENOENT, "the kernel itself says so of what it has removed, on any file system")
		}
		require.ErrorIs(t, unix.Mkdirat(int(d.Fd()), "x", 0o755), unix.ENOENT)
	}
}

func stat(t *testing.T, f *os.File) (st unix.Stat_t) {
	t.Helper()
	require.NoError(t, unix.Fstat(int(f.Fd()), &st), f.Name())
	return st
}

// TestOrphans: files and directories that are open and have no name work like
// all others, also after the server was stopped and after it was killed.
func TestOrphans(t *testing.T) {
	t.Parallel()
	l := newLab(t, "")
	s := l.newServer(l.mkdir("export"))
	s.start()
	m, other := l.mount(s), l.mount(s)
	o := newOrphans(t, m, other)
	o.check()
	s.kill()
	s.start()
	o.check()
	s.stop()
	s.start()
	o.check()
	require.NoError(t, unix.Linkat(unix.AT_FDCWD, fmt.Sprintf("/proc/self/fd/%d", o.linked.Fd()), unix.AT_FDCWD, m+"/linked", unix.AT_SYMLINK_FOLLOW))
	got, err := os.ReadFile(other + "/linked")
	require.NoError(t, err)
	require.True(t, bytes.Equal(o.content, got))
	require.EqualValues(t, 1, stat(t, o.linked).Nlink)
	require.ErrorIs(t, unix.Linkat(unix.AT_FDCWD, fmt.Sprintf("/proc/self/fd/%d", o.file.Fd()), unix.AT_FDCWD, m+"/file", unix.AT_SYMLINK_FOLLOW), unix.ENOENT)
	for _, f := range []*os.File{o.file, o.bare, o.linked, o.dir, o.lost} {
		require.NoError(t, f.Close())
	}
	l.umount(m)
	l.umount(other)
	s.stop()
	require.NoError(t, l.verify(l.path("export")))
}

// TestOrphansOutliveHistory: the disk is nearly full and history is given up,
// while the client that has the files open cannot say so to the new server.
func TestOrphansOutliveHistory(t *testing.T) {
	t.Parallel()
	l := newLab(t, "")
	disk := l.ext4(96 << 20)
	require.NoError(t, os.Mkdir(disk+"/export", 0o755))
	s := l.newServer(disk + "/export")
	s.start()
	p := newProxy(t, s.addr)
	m, other := l.through(s, p, "-o", "hard"), l.mount(s)
	o := newOrphans(t, m, other)
	require.NoError(t, o.file.Sync())
	removed := l.usage(other).Newest

	p.refuse()
	s.kill()
	var st unix.Statfs_t
	require.NoError(t, unix.Statfs(disk, &st))
	ballast, err := os.Create(disk + "/ballast")
	require.NoError(t, err)
	require.NoError(t, unix.Fallocate(int(ballast.Fd()), 0, 0, int64(st.Bavail-st.Blocks/50)*st.Bsize))
	require.NoError(t, ballast.Close())
	s.start()
	require.Eventually(t, func() bool {
		_ = os.WriteFile(other+"/filler", make([]byte, 4<<10), 0o644) // there may be no room
		_ = os.Remove(other + "/filler")
		return l.usage(other).Oldest > removed
	}, 30*time.Second, 100*time.Millisecond, "history is not given up")
	require.NoError(t, os.Remove(disk+"/ballast"))
	p.accept(t)
	o.check()
	require.NoError(t, unix.Linkat(unix.AT_FDCWD, fmt.Sprintf("/proc/self/fd/%d", o.linked.Fd()), unix.AT_FDCWD, m+"/linked", unix.AT_SYMLINK_FOLLOW))
	for _, f := range []*os.File{o.file, o.bare, o.linked, o.dir, o.lost} {
		require.NoError(t, f.Close())
	}
	l.umount(m)
	l.umount(other)
	s.stop()
	require.NoError(t, l.verify(disk+"/export"))
}

// usage is what cagejournal usage says of a mount.
func (l *lab) usage(point string) (u struct {
	Oldest uint64 `json:"oldest_lsn"`
	Newest uint64 `json:"newest_lsn"`
}) {
	l.t.Helper()
	require.NoError(l.t, json.Unmarshal([]byte(l.run("cagejournal", "usage", "--json", point)), &u))
	require.NotZero(l.t, u.Newest)
	return u
}

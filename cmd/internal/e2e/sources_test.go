package e2e

import (
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"
)

// pair starts two servers in a lab, each with its export.
func (l *lab) pair() (a, b *server) {
	l.t.Helper()
	a = l.newServer(l.mkdir("export-a"))
	b = l.newServer(l.mkdir("export-b"), "--state", l.path("server-b"))
	a.start()
	b.start()
	return a, b
}

// sourceState is a source as `cagefs status --json` tells of it.
type sourceState struct {
	Name     string `json:"name"`
	State    string `json:"state"`
	ReadOnly bool   `json:"read_only"`
	Ops      int    `json:"unapplied_operations"`
}

// sources asks a mount for the status of its sources.
func (l *lab) sources(point string) []sourceState {
	l.t.Helper()
	var st struct {
		Sources []sourceState `json:"sources"`
	}
	require.NoError(l.t, json.Unmarshal([]byte(l.run("cagefs", "status", "--json", point)), &st))
	return st.Sources
}

func writeFile(t testing.TB, path, data string) {
	t.Helper()
	require.NoError(t, os.WriteFile(path, []byte(data), 0o644))
}

func readFile(t testing.TB, path string) string {
	t.Helper()
	b, err := os.ReadFile(path)
	require.NoError(t, err)
	return string(b)
}

// TestSources mounts two servers, and a past state of one, in one mount.
func TestSources(t *testing.T) {
	needRoot(t)
	t.Parallel()
	l := newLab(t, "")
	a, b := l.pair()
	writeFile(t, l.path("export-a", "old"), "old")
	only := l.mount(a)
	writeFile(t, filepath.Join(only, "old"), "older")
	l.run("cagejournal", "label", "before", only)
	writeFile(t, filepath.Join(only, "old"), "new")

	m := l.mountSources([]string{"a=" + a.addr + ":/data", "b=" + b.addr + ":/data", "then=" + a.addr + ":/data@label:before"})
	ma, mb, then := filepath.Join(m, "a"), filepath.Join(m, "b"), filepath.Join(m, "then")

	t.Run("root", func(t *testing.T) {
		list, err := os.ReadDir(m)
		require.NoError(t, err)
		require.Len(t, list, 3)
		inodes := map[uint64]string{}
		for i, path := range []string{m, ma, mb, then} {
			var st unix.Stat_t
			require.NoError(t, unix.Stat(path, &st))
			require.Empty(t, inodes[st.Ino], "%s has the number of %s", path, inodes[st.Ino])
			inodes[st.Ino] = path
			require.EqualValues(t, unix.S_IFDIR, st.Mode&unix.S_IFMT)
			if i > 0 {
				require.Equal(t, filepath.Base(path), list[i-1].Name())
				require.True(t, list[i-1].IsDir())
			}
		}
		_, err = os.Stat(filepath.Join(m, "c"))
		require.ErrorIs(t, err, os.ErrNotExist)
		for _, err := range []error{
			os.Mkdir(filepath.Join(m, "c"), 0o755),
			os.WriteFile(filepath.Join(m, "c"), nil, 0o644),
			os.Symlink("x", filepath.Join(m, "c")),
			unix.Mkfifo(filepath.Join(m, "c"), 0o644),
			os.Rename(ma, filepath.Join(m, "c")),
			unix.Rmdir(ma),
			os.Chmod(m, 0o700),
			unix.Setxattr(m, "user.x", []byte("x"), 0),
		} {
			require.ErrorIs(t, err, unix.EROFS)
		}
		_, err = unix.Getxattr(m, "user.x", nil)
		require.ErrorIs(t, err, unix.ENODATA)
		require.NoError(t, unix.Setxattr(ma, "user.x", []byte("x"), 0), "what the root has not, its directories have")
		var whole, part unix.Statfs_t
		require.NoError(t, unix.Statfs(m, &whole))
		require.NoError(t, unix.Statfs(ma, &part))
		require.GreaterOrEqual(t, whole.Blocks*uint64(whole.Bsize), part.Blocks*uint64(part.Bsize))
		require.Contains(t, readFile(t, "/proc/mounts"), fmt.Sprintf("127.0.0.1:/data,127.0.0.1:/data,127.0.0.1:/data@label:before %s fuse.cage rw,", m))
		require.NoError(t, fsync(m))
	})

	t.Run("work in both", func(t *testing.T) {
		for _, dir := range []string{ma, mb} {
			command(t, "cp", "-a", "../cli", dir)
			command(t, "mv", filepath.Join(dir, "cli"), filepath.Join(dir, "cmd"))
			command(t, "sh", "-c", "cd "+dir+" && for i in 1 2 3; do echo $i >> lines; done && mkdir d && ln lines d/link && tar cf d/t.tar cmd && rm d/link")
		}
		l.run("cagefs", "sync", m)
		for _, dir := range []string{"export-a", "export-b"} {
			command(t, "diff", "-r", "../cli", l.path(dir, "cmd"))
			require.Equal(t, "1\n2\n3\n", readFile(t, l.path(dir, "lines")))
		}
		require.NoFileExists(t, l.path("export-b", "old"))
	})

	t.Run("the past", func(t *testing.T) {
		require.Equal(t, "older", readFile(t, filepath.Join(then, "old")))
		require.Equal(t, "new", readFile(t, filepath.Join(ma, "old")))
		require.ErrorIs(t, os.WriteFile(filepath.Join(then, "x"), nil, 0o644), unix.EROFS)
		require.Equal(t, []sourceState{{"a", "online", false, 0}, {"b", "online", false, 0}, {"then", "online", true, 0}}, l.sources(m))
	})

	t.Run("between them", func(t *testing.T) {
		x, y := filepath.Join(ma, "x"), filepath.Join(mb, "y")
		writeFile(t, x, "from a")
		require.ErrorIs(t, os.Rename(x, y), unix.EXDEV)
		require.ErrorIs(t, os.Link(x, y), unix.EXDEV)
		from, err := os.Open(x)
		require.NoError(t, err)
		defer from.Close()
		to, err := os.Create(y)
		require.NoError(t, err)
		defer to.Close()
		n, err := unix.CopyFileRange(int(from.Fd()), nil, int(to.Fd()), nil, 100, 0)
		require.NoError(t, err)
		require.Equal(t, len("from a"), n)
		require.Equal(t, "from a", readFile(t, y))
		command(t, "mv", x, filepath.Join(mb, "x"))
		require.NoFileExists(t, x)
		require.Equal(t, "from a", readFile(t, filepath.Join(mb, "x")))
	})

	t.Run("changes by others", func(t *testing.T) {
		other := l.mount(b)
		writeFile(t, filepath.Join(ma, "same"), "a")
		writeFile(t, filepath.Join(mb, "same"), "b")
		writeFile(t, filepath.Join(other, "same"), "b changed")
		assert.Eventually(t, func() bool { return readFile(t, filepath.Join(mb, "same")) == "b changed" }, 5*time.Second, 10*time.Millisecond)
		require.Equal(t, "a", readFile(t, filepath.Join(ma, "same")))
	})

	t.Run("journal", func(t *testing.T) {
		writeFile(t, filepath.Join(ma, "j"), "in a")
		writeFile(t, filepath.Join(mb, "j"), "in b")
		require.NoError(t, os.Remove(filepath.Join(mb, "j")))
		out := l.run("cagejournal", "log", "-n", "1", mb)
		require.Contains(t, out, filepath.Join(filepath.Base(m), "b", "j"))
		require.Contains(t, out, "remove")
		l.run("cagejournal", "undo", "-y", strings.Fields(out)[0], filepath.Join(mb, "j"))
		require.Eventually(t, func() bool {
			b, _ := os.ReadFile(filepath.Join(mb, "j"))
			return string(b) == "in b"
		}, 5*time.Second, 10*time.Millisecond)
		require.Equal(t, "in a", readFile(t, filepath.Join(ma, "j")))
		require.Equal(t, "older", l.run("cagejournal", "cat", filepath.Join(then, "old")))
		l.expect(failure{args: []string{"cagejournal", "log", m}, code: 2, text: "name a path in one of them (a, b, then)"})
		l.expect(failure{args: []string{"cagejournal", "log", filepath.Join(m, "c")}, code: 3, text: "it shows no c"})
	})

	l.umount(m)
	l.umount(only)
}

// fsync is fsync(2) of a file or directory.
func fsync(path string) error {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	defer f.Close()
	return f.Sync()
}

// soon calls f, which must not wait for a server that is gone: it would for 6 s.
func soon(t *testing.T, what string, f func() error) {
	t.Helper()
	began := time.Now()
	require.NoError(t, f(), what)
	require.Less(t, time.Since(began), 4*time.Second, what)
}

// TestOneSourceGone kills one of two servers while something is on its way to
// it. Only its directory fails, nothing is lost, and it is told what is not there.
func TestOneSourceGone(t *testing.T) {
	needRoot(t)
	t.Parallel()
	l := newLab(t, "")
	a, b := l.pair()
	m := l.mountSources([]string{"a=" + a.addr + ":/data", "b=" + b.addr + ":/data"}, "-o", "soft=6s")
	ma, mb := filepath.Join(m, "a"), filepath.Join(m, "b")
	writeFile(t, filepath.Join(ma, "f"), "a")
	writeFile(t, filepath.Join(mb, "f"), "b")
	f, err := os.Create(filepath.Join(mb, "late"))
	require.NoError(t, err)
	writeAway(t, func() {
		_, err := f.WriteAt([]byte("-"), 0)
		require.NoError(t, err)
		l.run("cagefs", "sync", m)
	}, b.kill, b.start, func() error {
		_, err := f.WriteAt([]byte("written while the server is gone"), 0)
		return err
	})
	require.NoError(t, f.Close())

	soon(t, "list the root", func() error {
		list, err := os.ReadDir(m)
		require.Len(t, list, 2)
		return err
	})
	soon(t, "ls -l", func() error {
		out, _ := exec.Command("ls", "-l", m).Output() // it may complain of what it does not get of b
		require.Regexp(t, `(?m) a$(.|\n)* b$`, string(out))
		return nil
	})
	soon(t, "statfs", func() error { return unix.Statfs(m, new(unix.Statfs_t)) })
	soon(t, "write to the other", func() error { return os.WriteFile(filepath.Join(ma, "g"), []byte("g"), 0o644) })
	soon(t, "sync the other", func() error { return fsync(filepath.Join(ma, "g")) })
	soon(t, "the other's journal", func() error {
		_, err := l.try("cagejournal", "log", ma)
		return err
	})
	_, err = os.ReadDir(mb)
	require.ErrorIs(t, err, unix.ETIMEDOUT)
	require.ErrorIs(t, fsync(m), unix.ETIMEDOUT, "not everything is durable")
	require.Equal(t, []sourceState{{"a", "online", false, 0}, {"b", "reconnecting", false, 1}}, l.sources(m))
	require.Equal(t, "reconnecting", l.state(m).State)
	l.expect(failure{args: []string{"cagefs", "sync", m}, code: 10, text: "b (127.0.0.1:/data): 1 change is not delivered"})
	l.expect(failure{args: []string{"cagefs", "umount", m}, code: 10, text: "still mounted: b (127.0.0.1:/data): 1 change is not delivered"})

	b.start()
	require.Eventually(t, func() bool { return l.sources(m)[1].State == "online" }, 10*time.Second, 10*time.Millisecond)
	require.Equal(t, "b", readFile(t, filepath.Join(mb, "f")))
	l.umount(m)
	require.Equal(t, "written while the server is gone", readFile(t, l.path("export-b", "late")))
	require.Equal(t, "g", readFile(t, l.path("export-a", "g")))

	m = l.mountSources([]string{"a=" + a.addr + ":/data", "b=" + b.addr + ":/data"}, "-o", "soft=6s")
	writeFile(t, filepath.Join(m, "b", "last"), "last")
	l.run("cagefs", "sync", m)
	b.kill()
	l.umount(m) // nothing is owed to it
	a.stop()
	b.start()
	b.stop()
	require.NoError(t, l.verify(l.path("export-a")))
	require.NoError(t, l.verify(l.path("export-b")))
}

// TestSourcesThatCannotBeMounted mounts all or nothing.
func TestSourcesThatCannotBeMounted(t *testing.T) {
	needRoot(t)
	t.Parallel()
	l := newLab(t, "")
	a := l.newServer(l.mkdir("export"))
	a.start()
	mnt := l.mkdir("mnt")
	nobody := freeAddr(t)
	good := "good=" + a.addr + ":/data"
	for _, f := range []failure{
		{args: []string{"cagefs", "mount", good, "gone=" + nobody + ":/data", mnt}, code: 10, text: "gone (127.0.0.1:/data): "},
		{args: []string{"cagefs", good, a.addr + ":/none", mnt}, code: 3, text: `none (127.0.0.1:/none): `},
		{args: []string{"cagefs", good, "x=" + a.addr + ":/data/none", mnt}, code: 3, text: "x (127.0.0.1:/data/none): "},
		{args: []string{"cagefs", good, "x=" + a.addr + ":/data@label:none", mnt}, code: 3, text: "x (127.0.0.1:/data@label:none): "},
		{args: []string{"cagefs", "x=" + nobody + ":/data", mnt}, code: 10, text: "x (127.0.0.1:/data): "},
		{args: []string{"cagefs", good, good, mnt}, code: 2, text: "two sources are called good"},
	} {
		l.expect(f)
	}
	m := l.mountSources([]string{"only=" + a.addr + ":/data"})
	list, err := os.ReadDir(m)
	require.NoError(t, err)
	require.Len(t, list, 1)
	writeFile(t, filepath.Join(m, "only", "x"), strings.Repeat("x", 1<<20))
	l.umount(m)
	fi, err := os.Stat(l.path("export", "x"))
	require.NoError(t, err)
	require.EqualValues(t, 1<<20, fi.Size())
}

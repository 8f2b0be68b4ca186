package e2e

import (
	"bytes"
	"crypto/sha256"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"runtime"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"
)

// TestTree takes a real tree, and one of everything odd that a tree can have,
// through its whole life: copied in, deleted, rolled back, that undone, and the
// undo undone. It is looked at in the mount, in a second mount and in the
// exported directory.
func TestTree(t *testing.T) {
	quickly(t)
	needRoot(t)
	l := newLab(t, "")
	src, export := l.mkdir("src"), l.mkdir("export")
	l.mkdir("src/go")
	parts := []string{"net", "encoding"}
	if accept {
		parts = []string{"."}
	}
	for _, p := range parts {
		command(t, "cp", "-a", filepath.Join(goSource(t), p), src+"/go")
	}
	makeOddities(t, filepath.Join(src, "odd"))
	want := survey(t, src)
	t.Logf("%d files and directories", len(want))

	s := l.newServer(export)
	s.start()
	one, two := l.mount(s), l.mount(s)
	everywhere := []string{one, two, export}
	there := func() {
		t.Helper()
		for _, root := range everywhere {
			requireSame(t, want, filepath.Join(root, "tree"))
		}
		command(t, "diff", "-r", "--no-dereference", src+"/go", one+"/tree/go")
	}
	gone := func() {
		t.Helper()
		for _, root := range everywhere {
			require.Eventually(t, func() bool { return len(names(t, root)) == 0 }, 2*time.Second, 20*time.Millisecond, root)
		}
	}

	command(t, "cp", "-a", src, one+"/tree")
	l.run("cagefs", "sync", one)
	there()
	require.Less(t, blocks(t, export+"/tree/odd/sparse"), int64(64<<10), "holes are holes on the server")

	l.run("cagejournal", "label", "before", one)
	command(t, "rm", "-rf", one+"/tree")
	gone()
	undo := l.changing("cagejournal", "rollback", one+"/tree", "--to", "@label:before", "-y")
	there()
	undo = l.changing(append(undo, "-y")...)
	gone()
	l.changing(append(undo, "-y")...)
	there()

	l.run("cagejournal", "verify", "--full", one)
	l.umount(two)
	l.umount(one)
	s.stop()
	requireSame(t, want, export+"/tree")
	l.run("cagejournal", "verify", "--full", "--dir", export)

	// What the journal holds is enough to go back without a server, too.
	l.changing("cagejournal", "rollback", "tree", "--to", "@label:before", "--dir", export, "-y")
	requireSame(t, want, export+"/tree")
}

// changing runs a command that changes history, and returns the command that it
// prints to take it back.
func (l *lab) changing(args ...string) (undo []string) {
	l.t.Helper()
	cmd := l.command(args[0], args[1:]...)
	var out, errs bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &errs
	require.NoError(l.t, cmd.Run(), "%s: %s", args, &errs)
	m := regexp.MustCompile(`(?m)undo with: (.*)$`).FindStringSubmatch(errs.String())
	if m == nil {
		require.Contains(l.t, errs.String(), "nothing has to be changed", "%s", args)
		return nil
	}
	return strings.Fields(m[1])
}

// command runs a tool of the system, which must succeed.
func command(t testing.TB, args ...string) string {
	t.Helper()
	out, err := exec.Command(args[0], args[1:]...).CombinedOutput()
	require.NoError(t, err, "%s\n%s", strings.Join(args, " "), out[:min(len(out), 2000)])
	return string(out)
}

// goSource is Go's own source tree.
func goSource(t testing.TB) string {
	t.Helper()
	return filepath.Join(strings.TrimSpace(command(t, "go", "env", "GOROOT")), "src")
}

// entry is all that a copy of a file has to keep.
type entry struct {
	Mode       fs.FileMode
	UID, GID   uint32
	Size       int64 // 0 of directories
	Mtime      string
	Rdev       uint64
	Target     string // of a symlink
	Sum        string // of the content
	Links      uint64 // 0 of directories
	LinkedWith string // the first of its names
	Xattrs     string
}

// survey describes a tree, by paths relative to its root.
func survey(t testing.TB, root string) map[string]entry {
	t.Helper()
	all, err := trySurvey(root)
	require.NoError(t, err)
	return all
}

func trySurvey(root string) (map[string]entry, error) {
	all := map[string]entry{}
	first := map[uint64]string{}
	err := filepath.WalkDir(root, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		info, err := d.Info()
		if err != nil {
			return err
		}
		rel, err := filepath.Rel(root, path)
		if err != nil {
			return err
		}
		st := info.Sys().(*syscall.Stat_t)
		e := entry{Mode: info.Mode(), UID: st.Uid, GID: st.Gid, Mtime: info.ModTime().UTC().Format(time.RFC3339Nano), Xattrs: xattrs(path)}
		if !info.IsDir() {
			if first[st.Ino] == "" {
				first[st.Ino] = rel
			}
			e.Size, e.Rdev, e.Links, e.LinkedWith = st.Size, st.Rdev, uint64(st.Nlink), first[st.Ino]
		}
		switch {
		case info.Mode().IsRegular():
			b, err := os.ReadFile(path)
			if err != nil {
				return err
			}
			e.Sum = fmt.Sprintf("%x", sha256.Sum256(b))
		case info.Mode()&fs.ModeSymlink != 0:
			if e.Target, err = os.Readlink(path); err != nil {
				return err
			}
		}
		all[rel] = e
		return nil
	})
	return all, err
}

// xattrs lists the extended attributes of a file with their values.
func xattrs(path string) string {
	buf := make([]byte, 64<<10)
	n, err := unix.Llistxattr(path, buf)
	if err != nil {
		return err.Error()
	}
	var out []string
	for name := range strings.SplitSeq(strings.TrimSuffix(string(buf[:n]), "\x00"), "\x00") {
		if name == "" || name == "security.selinux" {
			continue
		}
		value := make([]byte, 64<<10)
		n, err := unix.Lgetxattr(path, name, value)
		if err != nil {
			return err.Error()
		}
		out = append(out, fmt.Sprintf("%s=%q", name, value[:n]))
	}
	slices.Sort(out)
	return strings.Join(out, " ")
}

// requireSame compares a tree with what a survey found elsewhere; less leaves
// out what need not be the same. Another client may be a second behind.
func requireSame(t testing.TB, want map[string]entry, root string, less ...func(map[string]entry) map[string]entry) {
	t.Helper()
	var got map[string]entry
	var err error
	for until := time.Now().Add(3 * time.Second); ; {
		got, err = trySurvey(root)
		for _, f := range less {
			got = f(got)
		}
		diffs := differences(want, got)
		if err == nil && len(diffs) == 0 {
			return
		}
		if time.Now().After(until) {
			assert.NoError(t, err)
			require.Fail(t, root+" differs", "%d of %d:\n%s", len(diffs), len(want), strings.Join(diffs[:min(len(diffs), 10)], "\n"))
		}
	}
}

func differences(want, got map[string]entry) (diffs []string) {
	for path, w := range want {
		if g, ok := got[path]; !ok {
			diffs = append(diffs, fmt.Sprintf("%q is missing", path))
		} else if w != g {
			diffs = append(diffs, fmt.Sprintf("%q\n\twant %+v\n\tgot  %+v", path, w, g))
		}
	}
	for path := range got {
		if _, ok := want[path]; !ok {
			diffs = append(diffs, fmt.Sprintf("%q is too much", path))
		}
	}
	slices.Sort(diffs)
	return diffs
}

// names lists a directory without the journal of an export.
func names(t testing.TB, dir string) (out []string) {
	t.Helper()
	list, err := os.ReadDir(dir)
	require.NoError(t, err)
	for _, e := range list {
		if e.Name() != ".cage" {
			out = append(out, e.Name())
		}
	}
	return out
}

// blocks is the space that a file takes, in bytes.
func blocks(t testing.TB, path string) int64 {
	t.Helper()
	var st unix.Stat_t
	require.NoError(t, unix.Lstat(path, &st))
	return st.Blocks * 512
}

// makeOddities fills a new directory with everything that is rare in trees.
func makeOddities(t testing.TB, dir string) {
	t.Helper()
	must := func(err error) {
		t.Helper()
		if err != nil {
			_, _, line, _ := runtime.Caller(1)
			require.NoError(t, err, "line %d", line)
		}
	}
	at := func(name string) string { return filepath.Join(dir, name) }
	file := func(name string, size int) {
		t.Helper()
		must(os.WriteFile(at(name), bytes.Repeat([]byte("0123456789abcdef\n"), size/17+1)[:size], 0o644))
	}
	directory := func(name string) {
		t.Helper()
		must(os.MkdirAll(at(name), 0o755))
	}

	for _, size := range []int{0, 1, 4095, 4096, 4097, 128<<10 - 1, 128 << 10, 128<<10 + 1, 1<<20 + 3} {
		directory("sizes")
		file(fmt.Sprintf("sizes/%d", size), size)
	}
	for _, mode := range []uint32{0, 0o444, 0o200, 0o755, 0o4755, 0o2755, 0o6711, 0o7777} {
		directory("modes")
		name := fmt.Sprintf("modes/%04o", mode)
		file(name, 10)
		must(unix.Chmod(at(name), mode))
		directory(name + ".d")
		must(unix.Chmod(at(name+".d"), mode))
	}
	file("owned", 10)
	must(os.Chown(at("owned"), 1234, 5678))
	directory("owned.d")
	must(os.Chown(at("owned.d"), 4321, 0))

	directory("deep/" + strings.Repeat("d/", 60))
	file("deep/"+strings.Repeat("d/", 60)+"leaf", 100)
	directory("empty/inner")
	directory(".cage/wal") // means nothing below the root
	file(".cage/wal/0", 5)
	file("back\\slash \"quoted\" $x `y` *?", 3)
	file("-rf", 3)
	file(" ", 3)
	file("new\nline", 3)
	file("ünïcödé-日本語-🙂", 3)
	file("not\xff\xfeutf8", 3)
	file(strings.Repeat("n", 255), 3)
	directory("many")
	for i := range 300 {
		file(fmt.Sprintf("many/%03d", i), i)
	}

	file("linked", 5000)
	must(os.Link(at("linked"), at("linked2")))
	must(os.Link(at("linked"), at("many/linked3")))
	must(os.Symlink("linked", at("symlink")))
	must(os.Link(at("symlink"), at("symlink2")))
	must(os.Symlink("/no/such/place", at("dangling")))
	must(os.Symlink(strings.Repeat("x/", 1500)+"end", at("long-symlink")))
	must(os.Symlink("empty", at("symlink-to-dir")))
	must(os.Lchown(at("dangling"), 99, 98))
	must(unix.Mkfifo(at("fifo"), 0o600))
	must(unix.Mknod(at("socket"), unix.S_IFSOCK|0o640, 0))
	must(unix.Mknod(at("null"), unix.S_IFCHR|0o666, int(unix.Mkdev(1, 3))))
	must(unix.Mknod(at("block"), unix.S_IFBLK|0o660, int(unix.Mkdev(7, 99))))

	f, err := os.Create(at("sparse"))
	must(err)
	_, err = f.WriteAt([]byte("in the middle"), 3<<20+5)
	must(err)
	must(f.Truncate(8 << 20))
	must(f.Close())

	must(unix.Setxattr(at("linked"), "user.note", []byte("a value\x00with zero"), 0))
	must(unix.Setxattr(at("linked"), "user.empty", nil, 0))
	must(unix.Setxattr(at("empty"), "user.on.dir", bytes.Repeat([]byte("v"), 1000), 0))

	// Last, and directories after what is in them.
	stamp := func(name string, sec, nsec int64) {
		t.Helper()
		ts := []unix.Timespec{{Sec: sec, Nsec: nsec}, {Sec: sec, Nsec: nsec}}
		must(unix.UtimesNanoAt(unix.AT_FDCWD, at(name), ts, unix.AT_SYMLINK_NOFOLLOW))
	}
	stamp("sizes/1", 1_000_000_000, 123_456_789)
	stamp("sizes/4095", 0, 0)
	stamp("sizes/4096", -86400, 999_999_999)
	stamp("sizes/4097", 4_102_444_800, 1)
	stamp("dangling", 981_173_106, 7)
	stamp("fifo", 981_173_107, 8)
	stamp("sizes", 981_173_108, 9)
	stamp("empty/inner", 981_173_109, 10)
	stamp("empty", 981_173_110, 11)
	stamp("", 981_173_111, 12)
}

package fusefs

import (
	"encoding/binary"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"
)

// direntInos lists a directory as getdents(2) does: names with d_ino.
func direntInos(t *testing.T, dir string) map[string]uint64 {
	t.Helper()
	d, err := os.Open(dir)
	require.NoError(t, err)
	defer d.Close()
	inos := map[string]uint64{}
	for buf := make([]byte, 8<<10); ; {
		n, err := unix.Getdents(int(d.Fd()), buf)
		require.NoError(t, err)
		if n == 0 {
			return inos
		}
		for b := buf[:n]; len(b) > 0; b = b[binary.NativeEndian.Uint16(b[16:]):] {
			name, _, _ := strings.Cut(string(b[19:binary.NativeEndian.Uint16(b[16:])]), "\x00")
			require.NotContains(t, inos, name)
			inos[name] = binary.NativeEndian.Uint64(b)
		}
	}
}

func lstat(t *testing.T, path string) (st unix.Stat_t) {
	t.Helper()
	require.NoError(t, unix.Lstat(path, &st))
	return st
}

// TestListedNumbers: d_ino is st_ino, of what the journal knows and of what it
// has not seen yet, with attributes asked for or not.
func TestListedNumbers(t *testing.T) {
	const n = 3 * entriesAtOnce
	d := prepareDaemon(t)
	require.NoError(t, os.MkdirAll(filepath.Join(d.export, "sub/dir"), 0o755))
	for i := range n {
		require.NoError(t, os.WriteFile(filepath.Join(d.export, fmt.Sprintf("sub/file-%04d", i)), nil, 0o644))
	}
	d.start()
	require.NoError(t, os.Symlink("x", filepath.Join(d.a, "sub/link")))
	for _, m := range []string{d.a, d.b} { // the first listing names all files, the second finds them named
		sub := filepath.Join(m, "sub")
		inos := direntInos(t, sub)
		require.Len(t, inos, n+4)
		for name, ino := range inos {
			require.Equal(t, lstat(t, filepath.Join(sub, name)).Ino, ino, name)
		}
		inos = direntInos(t, m)
		require.Equal(t, lstat(t, m).Ino, inos["."])
		require.Equal(t, inos["."], inos[".."], "the root of a mount is its own parent")
	}
}

// TestHardLinks: names of one file have one number and count, in both mounts and
// whatever becomes of them.
func TestHardLinks(t *testing.T) {
	d := startDaemon(t)
	at := func(m, name string) string { return filepath.Join(m, name) }
	require.NoError(t, os.WriteFile(at(d.a, "one"), []byte("content"), 0o644))
	require.NoError(t, os.WriteFile(at(d.a, "other"), nil, 0o644))
	f, err := os.Open(at(d.a, "one"))
	require.NoError(t, err)
	defer f.Close()
	ino := fstat(t, f).Ino
	check := func(links uint64, names ...string) {
		t.Helper()
		require.EqualValues(t, links, fstat(t, f).Nlink)
		for _, m := range []string{d.a, d.b} {
			for _, name := range names {
				soon(t, name, func() bool {
					var st unix.Stat_t
					return unix.Lstat(at(m, name), &st) == nil && st.Ino == ino && uint64(st.Nlink) == links
				})
			}
			inos := direntInos(t, m)
			for _, name := range names {
				require.Equal(t, ino, inos[name])
			}
		}
	}
	check(1, "one")
	require.NoError(t, os.Link(at(d.a, "one"), at(d.a, "two")))
	check(2, "one", "two")
	require.NoError(t, os.Link(at(d.b, "two"), at(d.b, "sub/three")))
	soon(t, "a link by the other mount", func() bool { return fstat(t, f).Nlink == 3 })
	check(3, "one", "two")
	require.NoError(t, os.Rename(at(d.a, "one"), at(d.a, "two")), "names of one file")
	check(3, "one", "two")
	require.NoError(t, os.Rename(at(d.a, "other"), at(d.a, "two")), "over one of its names")
	check(2, "one")
	require.NoError(t, unix.Renameat2(unix.AT_FDCWD, at(d.a, "one"), unix.AT_FDCWD, at(d.a, "two"), unix.RENAME_EXCHANGE))
	check(2, "two")
	require.NoError(t, os.Remove(at(d.a, "sub/three")))
	check(1, "two")
	require.NoError(t, os.Remove(at(d.b, "two")))
	soon(t, "no name is left", func() bool { return fstat(t, f).Nlink == 0 })
	got := make([]byte, 7)
	_, err = f.ReadAt(got, 0)
	require.NoError(t, err)
	require.Equal(t, "content", string(got))
}

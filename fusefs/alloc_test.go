package fusefs

import (
	"bytes"
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"
)

// extents lists the ranges of data of a file, as lseek(2) tells.
func extents(t *testing.T, f *os.File) (out [][2]int64) {
	t.Helper()
	for end := int64(0); ; {
		from, err := unix.Seek(int(f.Fd()), end, unix.SEEK_DATA)
		if err == unix.ENXIO {
			return out
		}
		require.NoError(t, err)
		end, err = unix.Seek(int(f.Fd()), from, unix.SEEK_HOLE)
		require.NoError(t, err)
		out = append(out, [2]int64{from, end})
	}
}

func openAt(t *testing.T, path string, flags int) *os.File {
	t.Helper()
	f, err := os.OpenFile(path, flags, 0o644)
	require.NoError(t, err)
	t.Cleanup(func() { f.Close() })
	return f
}

// blocksOf is what a file takes on the disk, in bytes.
func blocksOf(t *testing.T, path string) int64 {
	t.Helper()
	var st unix.Stat_t
	require.NoError(t, unix.Stat(path, &st))
	return st.Blocks * 512
}

func TestHoles(t *testing.T) {
	d := startDaemon(t)
	p := filepath.Join(d.a, "f")
	f := openAt(t, p, os.O_RDWR|os.O_CREATE)
	const size = 8 << 20
	require.NoError(t, f.Truncate(size))
	_, err := f.WriteAt(bytes.Repeat([]byte("x"), 10_000), 3<<20)
	require.NoError(t, err)
	want := [][2]int64{{3 << 20, 3<<20 + 12288}}
	require.Equal(t, want, extents(t, f), "the write is seen, although nobody waited for it")
	require.Equal(t, want, extents(t, openAt(t, filepath.Join(d.b, "f"), os.O_RDONLY)))
	for _, off := range []int64{size, size + 1} {
		_, err = unix.Seek(int(f.Fd()), off, unix.SEEK_DATA)
		require.ErrorIs(t, err, unix.ENXIO)
		_, err = unix.Seek(int(f.Fd()), off, unix.SEEK_HOLE)
		require.ErrorIs(t, err, unix.ENXIO)
	}
	_, err = unix.Seek(int(f.Fd()), 5<<20, unix.SEEK_DATA)
	require.ErrorIs(t, err, unix.ENXIO)

	whole, err := os.ReadFile(p)
	require.NoError(t, err)
	require.Len(t, whole, size)
	require.EqualValues(t, 12288, blocksOf(t, filepath.Join(d.export, "f")), "reading a hole takes no space")
	require.EqualValues(t, 12288, blocksOf(t, p))

	// Tools that look for holes keep them, and the bytes.
	tar := filepath.Join(d.dir, "f.tar")
	for _, cmd := range [][]string{
		{"cp", "--sparse=auto", "--reflink=never", p, filepath.Join(d.a, "g")},
		{"tar", "-C", d.a, "-Scf", tar, "f"},
		{"tar", "-C", filepath.Join(d.a, "sub"), "-Sxf", tar},
	} {
		out, err := exec.Command(cmd[0], cmd[1:]...).CombinedOutput()
		require.NoError(t, err, "%v: %s", cmd, out)
	}
	info, err := os.Stat(tar)
	require.NoError(t, err)
	require.Less(t, info.Size(), int64(64<<10))
	for _, name := range []string{"g", "sub/f"} {
		got, err := os.ReadFile(filepath.Join(d.b, name))
		require.NoError(t, err)
		require.True(t, bytes.Equal(whole, got), name)
		require.EqualValues(t, 12288, blocksOf(t, filepath.Join(d.export, name)), name)
	}
	out, err := exec.Command("du", "-k", p).Output()
	require.NoError(t, err)
	require.Equal(t, "12\t"+p+"\n", string(out))
}

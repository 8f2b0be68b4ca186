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

func TestFallocate(t *testing.T) {
	d := startDaemon(t)
	const hole, zero = unix.FALLOC_FL_PUNCH_HOLE | unix.FALLOC_FL_KEEP_SIZE, unix.FALLOC_FL_ZERO_RANGE
	p, other, plain := filepath.Join(d.a, "f"), filepath.Join(d.b, "f"), filepath.Join(d.export, "f")
	f := openAt(t, p, os.O_RDWR|os.O_CREATE)
	fd := int(f.Fd())
	want := bytes.Repeat([]byte("0123456789abcdef"), 1<<20/16)
	_, err := f.Write(want)
	require.NoError(t, err)
	g := openAt(t, other, os.O_RDWR)
	same := func() {
		t.Helper()
		for _, path := range []string{p, other, plain} {
			path := path
			soon(t, path, func() bool {
				got, err := os.ReadFile(path)
				return err == nil && bytes.Equal(want, got)
			})
		}
	}
	same()
	clearRange := func(from, to int) { clear(want[from:to]) }

	require.NoError(t, unix.Fallocate(fd, hole, 100, 300_000))
	clearRange(100, 300_100)
	same()
	require.EqualValues(t, 1<<20-72*4096, blocksOf(t, plain), "the blocks are free")
	require.NoError(t, unix.Fallocate(fd, zero|unix.FALLOC_FL_KEEP_SIZE, 500_000, 10_000))
	clearRange(500_000, 510_000)
	same()
	_, err = f.WriteAt([]byte("over"), 200) // into the hole, then a hole again, nobody waits
	require.NoError(t, err)
	require.NoError(t, unix.Fallocate(int(g.Fd()), hole, 600_000, 5000))
	clearRange(600_000, 605_000)
	copy(want[200:], "over")
	same()
	require.NoError(t, unix.Fallocate(fd, 0, 1<<20-10, 5000))
	want = append(want, make([]byte, 4990)...)
	same()
	var st unix.Stat_t
	require.NoError(t, unix.Fstat(fd, &st))
	require.EqualValues(t, len(want), st.Size)
	require.NoError(t, unix.Fallocate(fd, unix.FALLOC_FL_KEEP_SIZE, 4<<20, 1<<20))
	same()
	require.Greater(t, blocksOf(t, plain), int64(1<<20), "reserved behind the end")
	require.NoError(t, unix.Fallocate(fd, zero, 1<<20, 10_000))
	want = append(want[:1<<20], make([]byte, 10_000)...)
	same()

	require.ErrorIs(t, unix.Fallocate(fd, unix.FALLOC_FL_COLLAPSE_RANGE, 0, 4096), unix.EOPNOTSUPP)
	require.ErrorIs(t, unix.Fallocate(fd, 0, 0, 1<<50), unix.EFBIG)
	same()
	require.ErrorIs(t, unix.Fallocate(int(openAt(t, p, os.O_RDONLY).Fd()), 0, 0, 1), unix.EBADF)
}

// What is stored through a mapping and not written back is data as well.
func TestHolesBehindAMapping(t *testing.T) {
	d := startDaemon(t)
	p := filepath.Join(d.a, "f")
	f := openAt(t, p, os.O_RDWR|os.O_CREATE)
	const size = 4 << 20
	require.NoError(t, f.Truncate(size))
	m, err := unix.Mmap(int(f.Fd()), 0, size, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
	require.NoError(t, err)
	defer unix.Munmap(m)
	require.NoError(t, f.Close())
	for _, at := range []int{1 << 20, 3 << 20} {
		copy(m[at:], "stored")
		copied := filepath.Join(d.a, "copy")
		out, err := exec.Command("cp", "--sparse=auto", "--reflink=never", p, copied).CombinedOutput()
		require.NoError(t, err, "%s", out)
		got, err := os.ReadFile(copied)
		require.NoError(t, err)
		require.Equal(t, len(m), len(got))
		require.Equal(t, "stored", string(got[at:at+6]), "at %d", at)
		require.True(t, bytes.Equal(m, got))
		require.Less(t, blocksOf(t, copied), int64(64<<10))
	}
	r := openAt(t, p, os.O_RDONLY)
	require.Equal(t, [][2]int64{{1 << 20, 1<<20 + 4096}, {3 << 20, 3<<20 + 4096}}, extents(t, r))
}

package fusefs

import (
	"bytes"
	"os"
	"path/filepath"
	"testing"
	"unsafe"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"
)

// Files of terabytes, nearly all of them holes.
func TestLargeOffsets(t *testing.T) {
	d := startDaemon(t)
	const tib = int64(1) << 40
	p := filepath.Join(d.a, "f")
	f := openAt(t, p, os.O_RDWR|os.O_CREATE)
	for _, at := range []int64{tib, 8*tib - 1} {
		data := bytes.Repeat([]byte{byte(at >> 40), 'x'}, 5000)
		_, err := f.WriteAt(data, at)
		require.NoError(t, err)
		got := make([]byte, len(data))
		_, err = f.ReadAt(got, at)
		require.NoError(t, err)
		require.Equal(t, data, got)
		require.NoError(t, f.Sync())
		_, err = openAt(t, filepath.Join(d.b, "f"), os.O_RDONLY).ReadAt(got, at)
		require.NoError(t, err)
		require.Equal(t, data, got)
	}
	_, err := f.ReadAt(make([]byte, 10), 4*tib)
	require.NoError(t, err)
	info, err := f.Stat()
	require.NoError(t, err)
	require.EqualValues(t, 8*tib-1+10_000, info.Size())
	ext := extents(t, f)
	require.Len(t, ext, 2)
	require.Equal(t, tib, ext[0][0])
	require.Less(t, blocksOf(t, p), int64(1<<20))

	m, err := unix.Mmap(int(f.Fd()), tib, 8192, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
	require.NoError(t, err)
	copy(m[100:], "mapped")
	require.NoError(t, unix.Msync(m, unix.MS_SYNC))
	require.NoError(t, unix.Munmap(m))
	got := make([]byte, 6)
	_, err = openAt(t, filepath.Join(d.export, "f"), os.O_RDONLY).ReadAt(got, tib+100)
	require.NoError(t, err)
	require.Equal(t, "mapped", string(got))

	require.NoError(t, f.Truncate(2*tib))
	require.Len(t, extents(t, f), 1)
	require.NoError(t, f.Truncate(10*tib))
	info, err = os.Stat(filepath.Join(d.export, "f"))
	require.NoError(t, err)
	require.Equal(t, 10*tib, info.Size())
	// The server's file system ends before the kernel's idea of a file does.
	require.ErrorIs(t, f.Truncate(1<<62), unix.EFBIG)
	_, err = f.WriteAt([]byte("x"), 1<<60)
	if err == nil { // it was taken on trust: whoever syncs is told
		err = f.Sync()
	}
	require.ErrorIs(t, err, unix.EFBIG)
	info, err = f.Stat()
	require.NoError(t, err)
	require.Equal(t, 10*tib, info.Size())
	require.NoError(t, f.Truncate(0))
}

// pages are bytes that O_DIRECT takes.
func pages(n int, with byte) []byte {
	b := make([]byte, n+4096)
	skip := int(-uintptr(unsafe.Pointer(&b[0])) & 4095)
	copy(b[skip:], bytes.Repeat([]byte{with}, n))
	return b[skip : skip+n : skip+n]
}

func TestDirectIO(t *testing.T) {
	d := startDaemon(t)
	p := filepath.Join(d.a, "f")
	f := openAt(t, p, os.O_RDWR|os.O_CREATE|unix.O_DIRECT)
	cached := openAt(t, p, os.O_RDWR)
	want := make([]byte, 3<<20)
	put := func(f *os.File, b []byte, off int64) {
		t.Helper()
		n, err := f.WriteAt(b, off)
		require.NoError(t, err)
		require.Len(t, b, n)
		copy(want[off:], b)
	}
	put(f, pages(2<<20, 'a'), 0)
	put(f, pages(1<<20, 'b'), 2<<20)
	put(cached, []byte("cached"), 5000)
	put(f, pages(4096, 'c'), 8192)
	put(f, pages(1000, 'd')[3:777], 100_001) // neither memory, offset nor length aligned
	put(cached, []byte("again"), 100_003)
	require.NoError(t, f.Sync())
	for _, path := range []string{p, filepath.Join(d.b, "f")} {
		got := pages(len(want), 0)
		n, err := openAt(t, path, os.O_RDONLY|unix.O_DIRECT).ReadAt(got, 0)
		require.NoError(t, err)
		require.Equal(t, len(want), n)
		require.True(t, bytes.Equal(want, got), path)
		got, err = os.ReadFile(path)
		require.NoError(t, err)
		require.True(t, bytes.Equal(want, got), path)
	}
	n, err := f.ReadAt(pages(4096, 0)[7:100], int64(len(want)-50))
	require.Equal(t, 50, n)
	require.Error(t, err)
}

func TestSharedMapping(t *testing.T) {
	d := startDaemon(t)
	p := filepath.Join(d.a, "f")
	require.NoError(t, os.WriteFile(p, make([]byte, 3*4096), 0o644))
	mapped := func() ([]byte, *os.File) {
		f := openAt(t, p, os.O_RDWR)
		m, err := unix.Mmap(int(f.Fd()), 0, 3*4096, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
		require.NoError(t, err)
		return m, f
	}
	a, fa := mapped()
	b, fb := mapped()
	require.NoError(t, fa.Close())
	copy(a[10:], "from a")
	require.Equal(t, "from a", string(b[10:16]), "one page for all of the machine")
	copy(b[4096:], "from b")
	got := make([]byte, 6)
	_, err := fb.ReadAt(got, 10)
	require.NoError(t, err)
	require.Equal(t, "from a", string(got))
	_, err = fb.WriteAt([]byte("write"), 2*4096)
	require.NoError(t, err)
	require.Equal(t, "write", string(a[2*4096:2*4096+5]))
	require.NoError(t, unix.Msync(a, unix.MS_SYNC))
	plain, err := os.ReadFile(filepath.Join(d.export, "f"))
	require.NoError(t, err)
	require.True(t, bytes.Equal(a, plain), "msync waits for the server")
	copy(b[100:], "after the close")
	require.NoError(t, fb.Close())
	require.NoError(t, unix.Munmap(b))
	require.NoError(t, unix.Munmap(a))
	soon(t, "what was stored is written back when nobody maps it", func() bool {
		plain, err := os.ReadFile(filepath.Join(d.export, "f"))
		return err == nil && string(plain[100:115]) == "after the close"
	})
}

// open(2) with O_TRUNC is one request; a file that cannot be opened is not cut.
func TestOpenTruncates(t *testing.T) {
	d := startDaemon(t)
	p := filepath.Join(d.a, "f")
	require.NoError(t, os.WriteFile(p, bytes.Repeat([]byte("x"), 100_000), 0o600))
	require.ErrorIs(t, as(t, 1234, func() error {
		_, err := os.OpenFile(p, os.O_WRONLY|os.O_TRUNC, 0)
		return err
	}), unix.EACCES)
	info, err := os.Stat(p)
	require.NoError(t, err)
	require.EqualValues(t, 100_000, info.Size())
	reader := openAt(t, p, os.O_RDONLY)
	buf := make([]byte, 10)
	_, err = reader.ReadAt(buf, 50_000)
	require.NoError(t, err)
	f := openAt(t, p, os.O_RDWR|os.O_TRUNC)
	n, _ := reader.ReadAt(buf, 0)
	require.Zero(t, n, "nothing is left in any cache")
	_, err = f.WriteAt([]byte("new"), 50_000)
	require.NoError(t, err)
	n, _ = reader.ReadAt(buf, 49_995)
	require.Equal(t, "\x00\x00\x00\x00\x00new", string(buf[:n]))
	require.NoError(t, f.Sync())
	other, err := os.ReadFile(filepath.Join(d.b, "f"))
	require.NoError(t, err)
	require.Equal(t, append(make([]byte, 50_000), "new"...), other)
}

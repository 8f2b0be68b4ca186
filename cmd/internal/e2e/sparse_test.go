package e2e

import (
	"bytes"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"
)

// extent is a range of a file that has data.
type extent struct{ from, to int64 }

// extents asks for a file's data as cp(1) does.
func extents(t testing.TB, f *os.File) (out []extent) {
	t.Helper()
	for at := int64(0); ; {
		from, err := unix.Seek(int(f.Fd()), at, unix.SEEK_DATA)
		if err == unix.ENXIO {
			return out
		}
		require.NoError(t, err)
		at, err = unix.Seek(int(f.Fd()), from, unix.SEEK_HOLE)
		require.NoError(t, err)
		out = append(out, extent{from, at})
	}
}

// TestSparseBeyondATebibyte: files of 3 TiB with little in them cost what is in them, in
// every operation and in the journal, and come back as they were.
func TestSparseBeyondATebibyte(t *testing.T) {
	t.Parallel()
	const tib, block = int64(1) << 40, 4096
	l := newLab(t, "")
	s := l.newServer(l.mkdir("export"))
	s.start()
	mnt := l.mount(s)
	word := bytes.Repeat([]byte("word"), block/4)
	f, err := os.Create(filepath.Join(mnt, "f"))
	require.NoError(t, err)
	defer f.Close()
	places := []int64{0, tib + 5*block, 3*tib - block}
	for _, off := range places {
		_, err := f.WriteAt(word, off)
		require.NoError(t, err)
	}
	require.NoError(t, f.Sync())
	var want []extent
	for _, off := range places {
		want = append(want, extent{off, off + block})
	}
	whole := func(path string) {
		t.Helper()
		f, err := os.Open(path)
		require.NoError(t, err)
		defer f.Close()
		info, err := f.Stat()
		require.NoError(t, err)
		require.Equal(t, 3*tib, info.Size(), path)
		require.Equal(t, want, extents(t, f), path)
		got := make([]byte, 3*block)
		for _, off := range places {
			from := max(off-block, 0)
			n, _ := f.ReadAt(got, from)
			plain := bytes.ReplaceAll(got[:n], []byte("word"), nil)
			require.Len(t, plain, n-block, "%s at %d", path, off)
			require.Empty(t, bytes.Trim(plain, "\x00"), "%s at %d: holes are zeros", path, off)
		}
	}
	whole(f.Name())
	whole(l.path("export", "f"))

	m, err := unix.Mmap(int(f.Fd()), tib, 8*block, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
	require.NoError(t, err)
	require.Equal(t, word, m[5*block:6*block])
	copy(m[5*block:], "WORD")
	require.NoError(t, unix.Msync(m, unix.MS_SYNC))
	copy(m[5*block:], "word")
	require.NoError(t, unix.Munmap(m))
	require.NoError(t, f.Sync())

	out, err := exec.Command("cp", "--sparse=auto", f.Name(), filepath.Join(mnt, "copy")).CombinedOutput()
	require.NoError(t, err, "%s", out)
	whole(filepath.Join(mnt, "copy"))
	l.run("cagejournal", "label", "before", mnt)

	require.NoError(t, unix.Fallocate(int(f.Fd()), unix.FALLOC_FL_PUNCH_HOLE|unix.FALLOC_FL_KEEP_SIZE, block, 3*tib-2*block))
	require.Equal(t, []extent{want[0], want[2]}, extents(t, f))
	require.NoError(t, f.Truncate(100))
	require.NoError(t, f.Truncate(3*tib))
	require.Equal(t, want[:1], extents(t, f))
	require.NoError(t, os.Truncate(filepath.Join(mnt, "copy"), 0))
	_, err = f.WriteAt(word, 4*tib)
	require.NoError(t, err)
	require.NoError(t, os.Remove(filepath.Join(mnt, "copy")))
	l.changing("cagejournal", "rollback", mnt, "--to", "@label:before", "-y")
	whole(f.Name())
	whole(filepath.Join(mnt, "copy"))
	whole(l.path("export", "copy"))

	require.NoError(t, f.Close())
	l.umount(mnt)
	s.stop()
	require.NoError(t, l.verify(l.path("export")))
	out, err = exec.Command("du", "-sm", l.dir).Output()
	require.NoError(t, err)
	var mib int
	_, err = fmt.Sscan(string(out), &mib)
	require.NoError(t, err)
	require.Less(t, mib, 256, "MiB on the disk, with segments of the log that are prepared")
}

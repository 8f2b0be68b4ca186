package fusefs

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"cagefs.dev/cage/remote"
)

// Whoever gets a lock reads what was written before, whatever his mount has
// heard of it: content, size, and what he has mapped.
func TestGrantShowsWhatIsNew(t *testing.T) {
	d := startDaemon(t)
	require.NoError(t, os.WriteFile(filepath.Join(d.export, "f"), []byte("old"), 0o644))
	ours, err := os.OpenFile(filepath.Join(d.a, "f"), os.O_RDWR, 0)
	require.NoError(t, err)
	defer ours.Close()
	theirs, err := os.OpenFile(filepath.Join(d.b, "f"), os.O_RDWR, 0)
	require.NoError(t, err)
	defer theirs.Close()
	pages, err := unix.Mmap(int(theirs.Fd()), 0, 3, unix.PROT_READ, unix.MAP_SHARED)
	require.NoError(t, err)
	defer unix.Munmap(pages)
	read := func() string {
		t.Helper()
		b := make([]byte, 100)
		n, _ := theirs.ReadAt(b, 0)
		require.Equal(t, string(b[:3]), string(pages))
		return string(b[:n])
	}
	require.Equal(t, "old", read())
	for _, kind := range []struct {
		name string
		lock func(f *os.File, how int16) error
	}{
		{"flock", func(f *os.File, how int16) error {
			return unix.Flock(int(f.Fd()), map[int16]int{unix.F_RDLCK: unix.LOCK_SH, unix.F_WRLCK: unix.LOCK_EX, unix.F_UNLCK: unix.LOCK_UN}[how])
		}},
		{"ofd", func(f *os.File, how int16) error {
			return unix.FcntlFlock(f.Fd(), unix.F_OFD_SETLKW, &unix.Flock_t{Type: how, Start: 7, Len: 2})
		}},
	} {
		t.Run(kind.name, func(t *testing.T) {
			for _, now := range []string{"new and longer", "cut", "long again"} {
				require.NoError(t, kind.lock(ours, unix.F_WRLCK))
				require.NoError(t, ours.Truncate(int64(len(now))))
				_, err := ours.WriteAt([]byte(now), 0)
				require.NoError(t, err)
				waited := make(chan error, 1)
				go func() { waited <- kind.lock(theirs, unix.F_RDLCK) }()
				require.NoError(t, kind.lock(ours, unix.F_UNLCK))
				require.NoError(t, <-waited)
				require.Equal(t, now, read())
				info, err := theirs.Stat()
				require.NoError(t, err)
				require.EqualValues(t, len(now), info.Size())
				require.NoError(t, kind.lock(theirs, unix.F_UNLCK))
			}
		})
	}
}

func TestLockers(t *testing.T) {
	var l lockers
	one, two := &openFile{}, &openFile{}
	process, file := remote.LockOwner{ID: 5, Num: 1}, remote.LockOwner{ID: 5, Num: 2}
	l.add(one, process)
	l.add(two, process)
	l.add(two, file)
	l.forget(process)
	require.Empty(t, l.take(5, one), "its locks ended with a close of any handle")
	l.poison(file)
	require.True(t, two.lost.Load())
	require.False(t, one.lost.Load())
	require.Len(t, l.take(5, two), 1)
	require.Empty(t, l.take(5, two))
	require.Empty(t, l.by)
}

package vfs

import (
	"math"
	"os"
	"path/filepath"
	"syscall"
	"testing"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"
)

// Locks of two Files exclude each other as those of two processes do, by range and as a whole, and end with the File.
func TestLocker(t *testing.T) {
	name := filepath.Join(t.TempDir(), "f")
	require.NoError(t, os.WriteFile(name, nil, 0o644))
	open := func(flags int) *osFile {
		fd, err := unix.Open(name, flags, 0)
		require.NoError(t, err)
		return &osFile{newHandle(fd, name)}
	}
	a, b, reader := open(unix.O_RDWR), open(unix.O_RDWR), open(unix.O_RDONLY)
	defer b.Close()
	defer reader.Close()

	require.NoError(t, a.LockRange(0, 9, Exclusive))
	require.NoError(t, a.LockRange(5, 9, Shared))
	require.NoError(t, a.LockRange(100, math.MaxInt64, Exclusive))
	require.ErrorIs(t, b.LockRange(4, 4, Shared), syscall.EAGAIN)
	require.ErrorIs(t, b.LockRange(9, 10, Exclusive), syscall.EAGAIN)
	require.NoError(t, b.LockRange(5, 99, Shared))
	for _, tt := range []struct {
		start, end uint64
		how        Hold
		held       bool
		want       RangeLock
	}{
		{0, 20, Shared, true, RangeLock{0, 4, Exclusive}},
		{5, 20, Shared, false, RangeLock{}},
		{5, 20, Exclusive, true, RangeLock{5, 9, Shared}},
		{1000, math.MaxInt64, Shared, true, RangeLock{100, math.MaxInt64, Exclusive}},
	} {
		got, held, err := b.RangeLocked(tt.start, tt.end, tt.how)
		require.NoError(t, err)
		require.Equal(t, tt.held, held, "%+v", tt)
		if held {
			require.Equal(t, tt.want, got)
		}
	}
	require.ErrorIs(t, reader.LockRange(50, 50, Exclusive), syscall.EBADF)

	require.NoError(t, a.LockWhole(Shared))
	require.NoError(t, reader.LockWhole(Shared))
	require.ErrorIs(t, b.LockWhole(Exclusive), syscall.EAGAIN)
	require.NoError(t, reader.LockWhole(Unlocked))
	require.NoError(t, a.Close())
	require.NoError(t, b.LockWhole(Exclusive))
	require.NoError(t, b.LockRange(0, math.MaxInt64, Exclusive))
}

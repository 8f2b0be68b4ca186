package fusefs

import (
	"fmt"
	"os"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"
)

// linkFD gives an open file a name.
func linkFD(f *os.File, path string) error {
	return unix.Linkat(unix.AT_FDCWD, fmt.Sprintf("/proc/self/fd/%d", f.Fd()), unix.AT_FDCWD, path, unix.AT_SYMLINK_FOLLOW)
}

func fstat(t *testing.T, f *os.File) (st unix.Stat_t) {
	t.Helper()
	require.NoError(t, unix.Fstat(int(f.Fd()), &st))
	return st
}

func TestTmpfile(t *testing.T) {
	d := startDaemon(t)
	dir := filepath.Join(d.a, "sub")
	f, err := os.OpenFile(dir, unix.O_TMPFILE|os.O_RDWR, 0o640)
	require.NoError(t, err)
	defer f.Close()
	_, err = f.WriteString("content")
	require.NoError(t, err)
	st := fstat(t, f)
	require.Zero(t, st.Nlink)
	require.EqualValues(t, unix.S_IFREG|0o640, st.Mode)
	require.EqualValues(t, len("content"), st.Size)
	es, err := os.ReadDir(dir)
	require.NoError(t, err)
	require.Empty(t, es)

	require.NoError(t, linkFD(f, filepath.Join(dir, "f")))
	require.EqualValues(t, 1, fstat(t, f).Nlink)
	got, err := os.ReadFile(filepath.Join(d.b, "sub/f"))
	require.NoError(t, err)
	require.Equal(t, "content", string(got))
	require.ErrorIs(t, linkFD(f, filepath.Join(dir, "f")), unix.EEXIST)
	require.NoError(t, linkFD(f, filepath.Join(dir, "g")))
	require.EqualValues(t, 2, fstat(t, f).Nlink)
	require.NoError(t, os.Remove(filepath.Join(dir, "f")))
	require.NoError(t, os.Remove(filepath.Join(dir, "g")))
	require.Zero(t, fstat(t, f).Nlink)
	require.ErrorIs(t, linkFD(f, filepath.Join(dir, "h")), unix.ENOENT)

	x, err := os.OpenFile(dir, unix.O_TMPFILE|os.O_RDWR|os.O_EXCL, 0o600)
	require.NoError(t, err)
	defer x.Close()
	require.ErrorIs(t, linkFD(x, filepath.Join(dir, "x")), unix.ENOENT)
	_, err = os.OpenFile(filepath.Join(dir, "none"), unix.O_TMPFILE|os.O_RDWR, 0o600)
	require.ErrorIs(t, err, unix.ENOENT)
}

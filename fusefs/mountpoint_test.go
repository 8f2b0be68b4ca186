package fusefs

import (
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"cagefs.dev/cage/remote/status"
)

const mountinfoSample = `23 28 0:22 / /proc rw,nosuid - proc proc rw
40 28 0:50 / /mnt/a rw - ext4 /dev/vda rw
41 40 0:51 / /mnt/a rw,nosuid shared:3 master:1 - fuse.cage host:/x\040y rw
42 28 0:52 / /mnt/with\040blank rw - fuse.cage host:/z rw
bad line
43 28
`

func TestFindMount(t *testing.T) {
	m, ok := findMount([]byte(mountinfoSample), "/mnt/a")
	require.True(t, ok)
	require.Equal(t, mountInfo{dev: "0:51", point: "/mnt/a", fsType: "fuse.cage", source: "host:/x y"}, m, "the topmost counts")
	m, ok = findMount([]byte(mountinfoSample), "/mnt/with blank")
	require.True(t, ok)
	require.Equal(t, "0:52", m.dev)
	_, ok = findMount([]byte(mountinfoSample), "/mnt")
	require.False(t, ok)
}

func TestUnescape(t *testing.T) {
	require.Equal(t, "a b\\c\td", unescape(`a\040b\134c\011d`))
	require.Equal(t, `a\9x`, unescape(`a\9x`))
	require.Equal(t, `a\04`, unescape(`a\04`))
}

func TestMountpoint(t *testing.T) {
	dir, err := filepath.EvalSymlinks(t.TempDir())
	require.NoError(t, err)
	f := filepath.Join(dir, "file")
	require.NoError(t, os.WriteFile(f, nil, 0o666))
	link := filepath.Join(dir, "link")
	require.NoError(t, os.Symlink(".", link))

	got, err := mountpoint(link)
	require.NoError(t, err)
	require.Equal(t, dir, got)
	for path, want := range map[string]status.Code{
		filepath.Join(dir, "missing"): status.NotFound,
		f:                             status.NotDir,
		filepath.Join(f, "below"):     status.NotDir,
	} {
		_, err := mountpoint(path)
		require.ErrorIs(t, err, want, path)
	}
}

func TestHelperTexts(t *testing.T) {
	busy := []byte("fusermount3: failed to unmount /mnt/a: Device or resource busy\n")
	require.Equal(t, status.Busy, helperCode(busy))
	require.Equal(t, "failed to unmount /mnt/a: Device or resource busy", helperText(busy, nil))
	require.Equal(t, status.NotOwner, helperCode([]byte("fusermount3: user has no write access to mountpoint /x")))
	require.Equal(t, os.ErrNotExist.Error(), helperText(nil, os.ErrNotExist))
	require.Equal(t, `a\,b\\c`, escapeOption(`a,b\c`))
}

func TestMountingWithTheHelper(t *testing.T) {
	if _, err := exec.LookPath("fusermount3"); err != nil || os.Geteuid() != 0 {
		t.Skip("needs root and fusermount3")
	}
	point := t.TempDir()
	fd, err := attachHelped(point, &Options{Device: `[::1]:7400:/a,b\c d`, ReadOnly: true})
	require.NoError(t, err)
	defer unix.Close(fd)
	m, ok := mountedAt(point)
	require.True(t, ok)
	require.Equal(t, fsType, m.fsType)
	require.Equal(t, `[::1]:7400:/a,b\c d`, m.source)
	flags, err := unix.FcntlInt(uintptr(fd), unix.F_GETFD, 0)
	require.NoError(t, err)
	require.NotZero(t, flags&unix.FD_CLOEXEC, "children must not hold the mount")
	require.ErrorIs(t, unoccupied(point), status.Busy)
	require.NoError(t, detach(t.Context(), point, true)) // before anything looks at it, for nobody answers
	_, ok = mountedAt(point)
	require.False(t, ok)
	require.NoError(t, detach(t.Context(), point, false), "nothing to do")
	_, err = attachHelped(filepath.Join(point, "missing"), &Options{Device: "x"})
	require.ErrorIs(t, err, status.NotFound)
}

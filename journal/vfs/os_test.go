package vfs

import (
	"os"
	"path/filepath"
	"sync"
	"syscall"
	"testing"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"
)

func openOS(t *testing.T, path string, plain bool) Dir {
	fs, err := OS(path)
	require.NoError(t, err)
	t.Cleanup(func() { fs.Close() })
	require.False(t, fs.(*osFS).plain, "this kernel has openat2")
	fs.(*osFS).plain = plain
	return rootOf(t, fs)
}

func TestOSMissing(t *testing.T) {
	_, err := OS(filepath.Join(t.TempDir(), "none"))
	require.ErrorIs(t, err, syscall.ENOENT)
	file := filepath.Join(t.TempDir(), "file")
	require.NoError(t, os.WriteFile(file, nil, 0o600))
	_, err = OS(file)
	require.ErrorIs(t, err, syscall.ENOTDIR)
}

// TestOSConfinement: symlinks lead nowhere, whatever they point to.
func TestOSConfinement(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("owners and trusted attributes need root")
	}
	for _, plain := range []bool{false, true} {
		base := t.TempDir()
		require.NoError(t, os.MkdirAll(filepath.Join(base, "export"), 0o700))
		secret := filepath.Join(base, "secret")
		require.NoError(t, os.WriteFile(secret, []byte("secret"), 0o600))
		root := openOS(t, filepath.Join(base, "export"), plain)
		require.NoError(t, root.Symlink("../secret", "file"))
		require.NoError(t, root.Symlink("..", "dir"))
		require.NoError(t, root.Symlink("/proc/self/cwd", "magic"))
		for _, name := range []string{"file", "dir", "magic"} {
			_, err := root.Open(name, false)
			require.Equal(t, syscall.ELOOP, err)
			_, err = root.OpenDir(name)
			require.Equal(t, syscall.ENOTDIR, err)
			_, err = root.Create(name, 0o666)
			require.Equal(t, syscall.EEXIST, err)
			require.Equal(t, syscall.EOPNOTSUPP, root.Chmod(name, 0o777))
			require.NoError(t, root.Chown(name, 77, 77))
			require.NoError(t, root.Utimes(name, 1, 1))
			require.NoError(t, root.SetXattr(name, "trusted.mark", []byte("x"), 0))
			require.EqualValues(t, syscall.S_IFLNK|0o777, stat(t, root, name).Mode)
			require.EqualValues(t, 77, stat(t, root, name).UID)
		}
		var st unix.Stat_t
		for _, path := range []string{secret, base} {
			require.NoError(t, unix.Lstat(path, &st))
			require.Zero(t, st.Uid)
			require.NotEqualValues(t, 1, st.Mtim.Nano())
			_, err := unix.Getxattr(path, "trusted.mark", nil)
			require.Equal(t, unix.ENODATA, err)
		}
	}
}

// TestOSMountPoint: nothing below a mount point is reached or changed, a file
// system, a bind mount of the same one, or a bound file.
func TestOSMountPoint(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("mounting needs root")
	}
	base := t.TempDir()
	for _, dir := range []string{"export/tmpfs", "export/bind", "outside/sub"} {
		require.NoError(t, os.MkdirAll(filepath.Join(base, dir), 0o755))
	}
	for _, file := range []string{"export/bound", "outside/file"} {
		require.NoError(t, os.WriteFile(filepath.Join(base, file), nil, 0o644))
	}
	mount := func(source, target, typ string, flags uintptr) {
		target = filepath.Join(base, "export", target)
		if err := unix.Mount(source, target, typ, flags, ""); err != nil {
			t.Skip("cannot mount here: ", err)
		}
		t.Cleanup(func() { require.NoError(t, unix.Unmount(target, 0)) })
	}
	mount("tmpfs", "tmpfs", "tmpfs", 0)
	mount(filepath.Join(base, "outside"), "bind", "", unix.MS_BIND)
	mount(filepath.Join(base, "outside/file"), "bound", "", unix.MS_BIND)
	for _, plain := range []bool{false, true} {
		root := openOS(t, filepath.Join(base, "export"), plain)
		require.ElementsMatch(t, []string{"tmpfs", "bind", "bound"}, names(t, root))
		for _, name := range []string{"tmpfs", "bind", "bound"} {
			_, openErr := root.Open(name, false)
			_, dirErr := root.OpenDir(name)
			_, statErr := root.Stat(name)
			_, getErr := root.GetXattr(name, "user.a")
			_, listErr := root.ListXattr(name)
			if name == "bound" && dirErr == syscall.ENOTDIR {
				dirErr = syscall.EXDEV
			}
			for i, err := range []error{
				openErr, dirErr, statErr, getErr, listErr, root.Chmod(name, 0), root.Chown(name, 1, 1),
				root.Utimes(name, 1, 1), root.SetXattr(name, "user.a", nil, 0), root.RemoveXattr(name, "user.a"),
			} {
				require.Equal(t, syscall.EXDEV, err, "call %d of %s, plain %v", i, name, plain)
			}
			require.Error(t, root.Rename(name, root, "new", 0))
			require.Error(t, root.Remove(name))
			require.Error(t, root.RemoveDir(name))
			require.Error(t, root.Link(name, root, "new"))
		}
	}
}

// TestOSCloseUnderUse: a closed descriptor's number, given to another file at
// once, is never used by calls on the old one.
func TestOSCloseUnderUse(t *testing.T) {
	root := openOS(t, t.TempDir(), false)
	victim := create(t, root, "victim", "victim")
	create(t, root, "f", "")
	for range 200 {
		f, err := root.Open("f", true)
		require.NoError(t, err)
		var wg sync.WaitGroup
		for range 4 {
			wg.Go(func() {
				for {
					if _, err := f.WriteAt([]byte("x"), 0); err != nil {
						if err != syscall.EBADF {
							t.Error(err)
						}
						return
					}
				}
			})
		}
		require.NoError(t, f.Close())
		again, err := root.Open("victim", true)
		require.NoError(t, err)
		wg.Wait()
		require.NoError(t, again.Close())
	}
	require.Equal(t, "victim", contentOf(t, victim))
}

func TestOSLeaksNothing(t *testing.T) {
	root := openOS(t, t.TempDir(), false)
	require.NoError(t, root.Mkdir("d", 0o755))
	count := func() int {
		entries, err := os.ReadDir("/proc/self/fd")
		require.NoError(t, err)
		return len(entries)
	}
	before := count()
	for i := range 50 {
		root.Open("d", true)
		root.OpenDir("none")
		root.Create("d", 0o600)
		root.Chmod("d", 0o700)
		root.GetXattr("d", "user.a")
		names(t, root)
		if f, err := root.Create("f", 0o4000|uint32(i)); err == nil {
			f.Close()
		}
		root.Mkdir("e", 0o2777)
		root.RemoveDir("e")
		root.Remove("f")
	}
	require.Equal(t, before, count())
}

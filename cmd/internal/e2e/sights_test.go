package e2e

import (
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"slices"
	"testing"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"
)

// sights are what TestStaleness looks at.
var sights = slices.Concat(nameSights, listingSights, sizeSights, contentSights, attributeSights)

// lookAt looks at a path by lstat and tells what tell says, or the error.
func lookAt(path string, tell func(st *unix.Stat_t) string) func() (string, error) {
	return func() (string, error) {
		var st unix.Stat_t
		err := unix.Lstat(path, &st)
		if err != nil {
			return errno(err)
		}
		return tell(&st), nil
	}
}

// errno makes what a system call says of a missing name something to be seen.
func errno(err error) (string, error) {
	if errors.Is(err, unix.ENOENT) {
		return "ENOENT", nil
	}
	return "", err
}

func ino(st *unix.Stat_t) string   { return fmt.Sprint("inode ", st.Ino) }
func there(*unix.Stat_t) string    { return "there" }
func size(st *unix.Stat_t) string  { return fmt.Sprint("size ", st.Size) }
func mode(st *unix.Stat_t) string  { return fmt.Sprintf("mode %o", st.Mode&0o7777) }
func owner(st *unix.Stat_t) string { return fmt.Sprintf("owner %d:%d", st.Uid, st.Gid) }
func mtime(st *unix.Stat_t) string { return fmt.Sprint("mtime ", st.Mtim.Nano()) }
func links(st *unix.Stat_t) string { return fmt.Sprint("links ", st.Nlink) }

// says is for changes after which something known is to be seen.
func says(want string, change func() error) func(int) (string, error) {
	return func(int) (string, error) { return want, change() }
}

// touch makes an empty file.
func touch(path string) error {
	fd, err := unix.Open(path, unix.O_CREAT|unix.O_EXCL|unix.O_WRONLY|unix.O_CLOEXEC, 0o644)
	if err != nil {
		return err
	}
	return unix.Close(fd)
}

// twice is one change for both halves.
func twice(change func(round int) (string, error)) [2]func(int) (string, error) {
	return [2]func(int) (string, error){change, change}
}

var nameSights = []sight{
	{"name made, removed: lstat", func(t *testing.T, a, b string) view {
		return view{made(a + "/x"), lookAt(b+"/x", there)}
	}},
	{"name made, removed: open", func(t *testing.T, a, b string) view {
		return view{made(a + "/x"), func() (string, error) {
			fd, err := unix.Open(b+"/x", unix.O_RDONLY|unix.O_CLOEXEC, 0)
			if err != nil {
				return errno(err)
			}
			return "there", unix.Close(fd)
		}}
	}},
	{"name made, removed: O_EXCL refuses", func(t *testing.T, a, b string) view {
		return view{made(a + "/x"), func() (string, error) {
			err := unix.Mkdir(b+"/x", 0o755) // which the other takes for its own, and so it must go
			if errors.Is(err, unix.EEXIST) {
				return "there", nil
			} else if err == nil {
				err = unix.Rmdir(b + "/x")
			}
			return "ENOENT", err
		}}
	}},
	{"directory made, removed: access", func(t *testing.T, a, b string) view {
		return view{[2]func(int) (string, error){
			says("there", func() error { return unix.Mkdir(a+"/x", 0o755) }),
			says("ENOENT", func() error { return unix.Rmdir(a + "/x") }),
		}, func() (string, error) {
			if err := unix.Access(b+"/x", unix.F_OK); err != nil {
				return errno(err)
			}
			return "there", nil
		}}
	}},
	{"renamed away, back: lstat of the old name", func(t *testing.T, a, b string) view {
		require.NoError(t, touch(a+"/x"))
		return view{renamed(a, "ENOENT", "there"), lookAt(b+"/x", there)}
	}},
	{"renamed away, back: lstat of the new name", func(t *testing.T, a, b string) view {
		require.NoError(t, touch(a+"/x"))
		return view{renamed(a, "there", "ENOENT"), lookAt(b+"/y", there)}
	}},
	{"directory renamed: a path through it", func(t *testing.T, a, b string) view {
		require.NoError(t, unix.Mkdir(a+"/x", 0o755))
		require.NoError(t, touch(a+"/x/z"))
		return view{renamed(a, "ENOENT", "there"), lookAt(b+"/x/z", there)}
	}},
	{"another file renamed over it: lstat", func(t *testing.T, a, b string) view {
		return view{twice(func(int) (string, error) {
			if err := touch(a + "/new"); err != nil {
				return "", err
			}
			var st unix.Stat_t
			if err := unix.Lstat(a+"/new", &st); err != nil {
				return "", err
			}
			return ino(&st), unix.Rename(a+"/new", a+"/x")
		}), lookAt(b+"/x", ino)}
	}},
	{"another symlink renamed over it: readlink", func(t *testing.T, a, b string) view {
		return view{twice(func(round int) (string, error) {
			to := fmt.Sprint("to ", round)
			if err := unix.Symlink(to, a+"/new"); err != nil {
				return "", err
			}
			return to, unix.Rename(a+"/new", a+"/x")
		}), func() (string, error) {
			buf := make([]byte, 100)
			n, err := unix.Readlink(b+"/x", buf)
			if err != nil {
				return errno(err)
			}
			return string(buf[:n]), nil
		}}
	}},
}

func made(path string) [2]func(int) (string, error) {
	return [2]func(int) (string, error){
		says("there", func() error { return touch(path) }),
		says("ENOENT", func() error { return unix.Unlink(path) }),
	}
}

func renamed(dir, away, back string) [2]func(int) (string, error) {
	return [2]func(int) (string, error){
		says(away, func() error { return unix.Rename(dir+"/x", dir+"/y") }),
		says(back, func() error { return unix.Rename(dir+"/y", dir+"/x") }),
	}
}

var listingSights = []sight{
	{"name made, removed: open and getdents", func(t *testing.T, a, b string) view {
		return view{made(a + "/x"), func() (string, error) {
			fd, err := unix.Open(b, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
			if err != nil {
				return "", err
			}
			defer unix.Close(fd)
			return listed(fd)
		}}
	}},
	{"name made, removed: rewind and getdents", func(t *testing.T, a, b string) view {
		fd := keepOpen(t, b, unix.O_RDONLY|unix.O_DIRECTORY)
		return view{made(a + "/x"), func() (string, error) {
			if _, err := unix.Seek(fd, 0, unix.SEEK_SET); err != nil {
				return "", err
			}
			return listed(fd)
		}}
	}},
	{"renamed away, back: open and getdents", func(t *testing.T, a, b string) view {
		require.NoError(t, touch(a+"/x"))
		return view{renamed(a, "ENOENT", "there"), func() (string, error) {
			fd, err := unix.Open(b, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
			if err != nil {
				return "", err
			}
			defer unix.Close(fd)
			return listed(fd)
		}}
	}},
}

// listed reads some of a directory and says whether x is there.
func listed(fd int) (string, error) {
	buf := make([]byte, 4096)
	n, err := unix.ReadDirent(fd, buf)
	if err != nil {
		return "", err
	}
	if _, _, names := unix.ParseDirent(buf[:n], -1, nil); slices.Contains(names, "x") {
		return "there", nil
	}
	return "ENOENT", nil
}

// keepOpen opens a path until the end of the test. Through the mount that did not
// make it, it may come late.
func keepOpen(t *testing.T, path string, flags int) (fd int) {
	t.Helper()
	awaitSight(t, func() (_ string, err error) { fd, err = unix.Open(path, flags|unix.O_CLOEXEC, 0); return "", err }, "")
	t.Cleanup(func() { unix.Close(fd) })
	return fd
}

// bothOpen makes a file of one page of zeros and opens it through both mounts.
func bothOpen(t *testing.T, a, b string) (fa, fb int) {
	t.Helper()
	require.NoError(t, os.WriteFile(a+"/x", make([]byte, 4096), 0o644))
	fa, fb = keepOpen(t, a+"/x", unix.O_RDWR), keepOpen(t, b+"/x", unix.O_RDONLY)
	require.NoError(t, unix.Fsync(fa))
	return fa, fb
}

// resized makes a file longer and shorter in turn.
func resized(fa int) [2]func(int) (string, error) {
	return [2]func(int) (string, error){
		says("size 10000", func() error { _, err := unix.Pwrite(fa, []byte{1}, 9999); return err }),
		says("size 4096", func() error { return unix.Ftruncate(fa, 4096) }),
	}
}

var sizeSights = []sight{
	{"written beyond the end, truncated: lstat", func(t *testing.T, a, b string) view {
		fa, _ := bothOpen(t, a, b)
		return view{resized(fa), lookAt(b+"/x", size)}
	}},
	{"written beyond the end, truncated: fstat", func(t *testing.T, a, b string) view {
		fa, fb := bothOpen(t, a, b)
		return view{resized(fa), func() (string, error) {
			var st unix.Stat_t
			err := unix.Fstat(fb, &st)
			return size(&st), err
		}}
	}},
	{"written beyond the end, truncated: SEEK_END", func(t *testing.T, a, b string) view {
		fa, fb := bothOpen(t, a, b)
		return view{resized(fa), func() (string, error) {
			n, err := unix.Seek(fb, 0, unix.SEEK_END)
			return fmt.Sprint("size ", n), err
		}}
	}},
	{"written beyond the end, truncated: pread there", func(t *testing.T, a, b string) view {
		fa, fb := bothOpen(t, a, b)
		return view{resized(fa), func() (string, error) {
			buf := make([]byte, 1)
			if n, err := unix.Pread(fb, buf, 9999); err != nil || n == 0 {
				return "size 4096", err
			} else if buf[0] != 1 {
				return "zero", nil
			}
			return "size 10000", nil
		}}
	}},
}

// written writes the number of the round into a file.
func written(fa int, sync bool) [2]func(int) (string, error) {
	return twice(func(round int) (string, error) {
		var b [8]byte
		binary.LittleEndian.PutUint64(b[:], uint64(round+1))
		_, err := unix.Pwrite(fa, b[:], 128)
		if err == nil && sync {
			err = unix.Fsync(fa)
		}
		return fmt.Sprint(round + 1), err
	})
}

// readNumber reads it from another.
func readNumber(fb int) (string, error) {
	var b [8]byte
	_, err := unix.Pread(fb, b[:], 128)
	return fmt.Sprint(binary.LittleEndian.Uint64(b[:])), err
}

// openAndRead opens it for that.
func openAndRead(path string) func() (string, error) {
	return func() (string, error) {
		fd, err := unix.Open(path, unix.O_RDONLY|unix.O_CLOEXEC, 0)
		if err != nil {
			return "", err
		}
		defer unix.Close(fd)
		return readNumber(fd)
	}
}

var contentSights = []sight{
	{"written: pread of an open file", func(t *testing.T, a, b string) view {
		fa, fb := bothOpen(t, a, b)
		return view{written(fa, false), func() (string, error) { return readNumber(fb) }}
	}},
	{"written: a mapped page", func(t *testing.T, a, b string) view {
		fa, fb := bothOpen(t, a, b)
		m, err := unix.Mmap(fb, 0, 4096, unix.PROT_READ, unix.MAP_SHARED)
		require.NoError(t, err)
		t.Cleanup(func() { unix.Munmap(m) })
		return view{written(fa, false), func() (string, error) { return fmt.Sprint(binary.LittleEndian.Uint64(m[128:])), nil }}
	}},
	{"written: open and pread", func(t *testing.T, a, b string) view {
		fa, _ := bothOpen(t, a, b)
		return view{written(fa, false), openAndRead(b + "/x")}
	}},
	{"written, fsync: open and pread", func(t *testing.T, a, b string) view {
		fa, _ := bothOpen(t, a, b)
		return view{written(fa, true), openAndRead(b + "/x")}
	}},
	{"written: lstat's mtime", func(t *testing.T, a, b string) view {
		fa, _ := bothOpen(t, a, b)
		write := written(fa, false)[0]
		return view{twice(func(round int) (string, error) {
			if _, err := write(round); err != nil {
				return "", err
			}
			return lookAt(a+"/x", mtime)()
		}), lookAt(b+"/x", mtime)}
	}},
	{"another file renamed over it: open and pread", func(t *testing.T, a, b string) view {
		bothOpen(t, a, b)
		return view{twice(func(round int) (string, error) {
			buf := make([]byte, 136)
			binary.LittleEndian.PutUint64(buf[128:], uint64(round+1))
			if err := os.WriteFile(a+"/new", buf, 0o644); err != nil {
				return "", err
			}
			return fmt.Sprint(round + 1), unix.Rename(a+"/new", a+"/x")
		}), openAndRead(b + "/x")}
	}},
}

var attributeSights = []sight{
	{"chmod: lstat", func(t *testing.T, a, b string) view {
		bothOpen(t, a, b)
		return view{twoModes(a + "/x"), lookAt(b+"/x", mode)}
	}},
	{"chmod: fstat", func(t *testing.T, a, b string) view {
		_, fb := bothOpen(t, a, b)
		return view{twoModes(a + "/x"), func() (string, error) {
			var st unix.Stat_t
			err := unix.Fstat(fb, &st)
			return mode(&st), err
		}}
	}},
	{"utimensat: lstat", func(t *testing.T, a, b string) view {
		bothOpen(t, a, b)
		return view{twice(func(round int) (string, error) {
			at := unix.NsecToTimespec(1e18 + int64(round))
			return fmt.Sprint("mtime ", at.Nano()), unix.UtimesNanoAt(unix.AT_FDCWD, a+"/x", []unix.Timespec{at, at}, 0)
		}), lookAt(b+"/x", mtime)}
	}},
	{"setxattr: getxattr", func(t *testing.T, a, b string) view {
		bothOpen(t, a, b)
		require.NoError(t, unix.Setxattr(a+"/x", "user.x", []byte("none"), 0))
		return view{twice(func(round int) (string, error) {
			return fmt.Sprint(round), unix.Setxattr(a+"/x", "user.x", fmt.Append(nil, round), 0)
		}), func() (string, error) {
			buf := make([]byte, 100)
			n, err := unix.Getxattr(b+"/x", "user.x", buf)
			return string(buf[:max(n, 0)]), err
		}}
	}},
	{"link, unlink: lstat's nlink", func(t *testing.T, a, b string) view {
		bothOpen(t, a, b)
		return view{[2]func(int) (string, error){
			says("links 2", func() error { return unix.Link(a+"/x", a+"/y") }),
			says("links 1", func() error { return unix.Unlink(a + "/y") }),
		}, lookAt(b+"/x", links)}
	}},
	{"name made, removed: the directory's mtime", func(t *testing.T, a, b string) view {
		change := made(a + "/x")
		for i, c := range change {
			change[i] = func(round int) (string, error) {
				if _, err := c(round); err != nil {
					return "", err
				}
				return lookAt(a, mtime)()
			}
		}
		return view{change, lookAt(b, mtime)}
	}},
	{"chown: lstat", func(t *testing.T, a, b string) view {
		if os.Getuid() != 0 {
			return view{twoModes(a), lookAt(b, mode)}
		}
		bothOpen(t, a, b)
		return view{twice(func(round int) (string, error) {
			return fmt.Sprintf("owner %d:%d", round, round), unix.Lchown(a+"/x", round, round)
		}), lookAt(b+"/x", owner)}
	}},
}

// twoModes alternates between two.
func twoModes(path string) [2]func(int) (string, error) {
	return [2]func(int) (string, error){
		says("mode 600", func() error { return unix.Chmod(path, 0o600) }),
		says("mode 755", func() error { return unix.Chmod(path, 0o755) }),
	}
}

package vfs

import (
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// onInode runs a call on a path that leads to the inode under name and nowhere
// else: the entry in /proc of a descriptor that was opened with O_PATH. So the
// calls that take a path cannot be led through a symlink or a mount point, and
// work on symlinks themselves. "" is the directory.
func (d *osDir) onInode(name string, call func(path string) error) error {
	if name == "" {
		return d.h.do(func(fd int) error { return call(procPath(fd)) })
	}
	return d.at(name, func(dirfd int) error {
		fd, _, err := d.openInside(dirfd, name, unix.O_PATH)
		if err != nil {
			return err
		}
		defer unix.Close(fd)
		return retry(func() error { return call(procPath(fd)) })
	})
}

func procPath(fd int) string { return "/proc/self/fd/" + strconv.Itoa(fd) }

func (d *osDir) Chmod(name string, perm uint32) error {
	return d.onInode(name, func(path string) error {
		// Before Linux 6.6 some file systems changed a symlink's mode and failed.
		st, err := statx(unix.AT_FDCWD, path, 0)
		if err != nil {
			return err
		}
		if st.Mode&unix.S_IFMT == unix.S_IFLNK {
			return unix.EOPNOTSUPP
		}
		return unix.Chmod(path, perm&permBits)
	})
}

func (d *osDir) Chown(name string, uid, gid uint32) error {
	return d.onInode(name, func(path string) error {
		return unix.Chown(path, int(int32(uid)), int(int32(gid)))
	})
}

func (d *osDir) Utimes(name string, atime, mtime int64) error {
	return d.onInode(name, func(path string) error { return utimes(path, atime, mtime) })
}

func utimes(path string, atime, mtime int64) error {
	return unix.UtimesNanoAt(unix.AT_FDCWD, path, []unix.Timespec{timespec(atime), timespec(mtime)}, 0)
}

func timespec(t int64) unix.Timespec {
	if t == OmitTime {
		return unix.Timespec{Nsec: unix.UTIME_OMIT}
	}
	sec, nsec := t/1e9, t%1e9
	if nsec < 0 {
		sec, nsec = sec-1, nsec+1e9
	}
	return unix.Timespec{Sec: sec, Nsec: nsec}
}

func (d *osDir) GetXattr(name, attr string) (value []byte, err error) {
	err = d.onInode(name, func(path string) error {
		value, err = grow(func(buf []byte) (int, error) { return unix.Getxattr(path, attr, buf) })
		return err
	})
	return value, err
}

func (d *osDir) ListXattr(name string) (attrs []string, err error) {
	err = d.onInode(name, func(path string) error {
		list, err := grow(func(buf []byte) (int, error) { return unix.Listxattr(path, buf) })
		if err == nil && len(list) > 0 {
			attrs = strings.Split(strings.TrimSuffix(string(list), "\x00"), "\x00")
		}
		return err
	})
	return attrs, err
}

// grow calls with a larger buffer as long as it is ERANGE, up to the kernel's limit.
func grow(call func(buf []byte) (int, error)) ([]byte, error) {
	for size := 512; ; size *= 16 {
		buf := make([]byte, min(size, 64<<10))
		n, err := call(buf)
		if err == nil {
			return buf[:n:n], nil
		}
		if err != unix.ERANGE || size > 64<<10 {
			return nil, err
		}
	}
}

func (d *osDir) SetXattr(name, attr string, value []byte, flags int) error {
	return d.onInode(name, func(path string) error { return unix.Setxattr(path, attr, value, flags) })
}

func (d *osDir) RemoveXattr(name, attr string) error {
	return d.onInode(name, func(path string) error { return unix.Removexattr(path, attr) })
}

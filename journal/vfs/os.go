package vfs

import (
	"errors"
	"os"
	"syscall"

	"golang.org/x/sys/unix"
)

// permBits are what chmod(2) sets.
const permBits = 0o7777

// osFS is the operating system's file system below a directory.
type osFS struct {
	*confines
	root handle
}

// confines is what all descriptors of one OS share to stay inside. Set at
// construction.
type confines struct {
	major, minor uint32 // the device of the root
	// plain: openat2 is missing (before Linux 5.6) or forbidden by a sandbox.
	// Then O_NOFOLLOW and a look at the device of what was opened take its place.
	plain bool
}

// OS opens a directory of the operating system; path itself may lead over
// symlinks. It needs /proc mounted. A nested file system, btrfs subvolume or
// bind mount below it is EXDEV.
func OS(path string) (FS, error) {
	fd, err := open(unix.AT_FDCWD, path, unix.O_RDONLY|unix.O_DIRECTORY)
	if err != nil {
		return nil, &os.PathError{Op: "open", Path: path, Err: err}
	}
	root := newHandle(fd, path)
	c := &confines{}
	err = root.do(func(fd int) error {
		st, err := statx(fd, "", unix.AT_EMPTY_PATH)
		if err != nil {
			return err
		}
		c.major, c.minor = st.Dev_major, st.Dev_minor
		probe, err := c.openat(fd, ".", unix.O_PATH, 0)
		if err != nil {
			c.plain = true
			return nil
		}
		return unix.Close(probe)
	})
	if err != nil {
		root.Close()
		return nil, &os.PathError{Op: "stat", Path: path, Err: err}
	}
	return &osFS{confines: c, root: root}, nil
}

func (s *osFS) Root() (Dir, error) {
	var dir *osDir
	err := s.root.do(func(fd int) error {
		fd, err := open(fd, ".", unix.O_RDONLY|unix.O_DIRECTORY)
		if err == nil {
			dir = &osDir{confines: s.confines, h: newHandle(fd, ".")}
		}
		return err
	})
	if err != nil {
		return nil, err
	}
	return dir, nil
}

func (s *osFS) SyncFS() error { return s.root.do(syncfs) }

func (s *osFS) StatFS() (StatFS, error) {
	var st unix.Statfs_t
	if err := s.root.do(func(fd int) error { return unix.Fstatfs(fd, &st) }); err != nil {
		return StatFS{}, err
	}
	return StatFS{
		ID:        uint64(uint32(st.Fsid.Val[0])) | uint64(uint32(st.Fsid.Val[1]))<<32,
		BlockSize: uint32(st.Bsize), NameMax: uint32(st.Namelen),
		Blocks: st.Blocks, BlocksFree: st.Bfree, BlocksAvail: st.Bavail,
		Files: st.Files, FilesFree: st.Ffree,
	}, nil
}

func (s *osFS) Close() error { return s.root.Close() }

// openat opens one component, or makes it, without leaving the file system.
// The caller looks at what it got with inside.
func (c *confines) openat(dirfd int, name string, flags int, mode uint32) (fd int, err error) {
	flags |= unix.O_NOFOLLOW | unix.O_CLOEXEC
	how := unix.OpenHow{
		Flags: uint64(flags), Mode: uint64(mode),
		Resolve: unix.RESOLVE_BENEATH | unix.RESOLVE_NO_SYMLINKS | unix.RESOLVE_NO_XDEV | unix.RESOLVE_NO_MAGICLINKS,
	}
	err = retry(func() error {
		if c.plain {
			fd, err = unix.Openat(dirfd, name, flags, mode)
		} else {
			fd, err = unix.Openat2(dirfd, name, &how)
		}
		return err
	})
	return fd, err
}

// inside returns EXDEV for another file system's root. Subvolumes of btrfs
// are no mounts but have inode numbers of their own, hence the device; only
// directories are compared, as overlayfs shows several devices for files.
func (c *confines) inside(st *unix.Statx_t) error {
	other := st.Dev_major != c.major || st.Dev_minor != c.minor
	if st.Attributes&unix.STATX_ATTR_MOUNT_ROOT != 0 || other && st.Mode&unix.S_IFMT == unix.S_IFDIR {
		return unix.EXDEV
	}
	return nil
}

// stat describes what is under a name, itself.
func (c *confines) stat(dirfd int, name string) (unix.Statx_t, error) {
	st, err := statx(dirfd, name, unix.AT_SYMLINK_NOFOLLOW|unix.AT_NO_AUTOMOUNT)
	if err == nil {
		err = c.inside(&st)
	}
	return st, err
}

// handle is an open descriptor. It is an os.File because that counts the calls
// under way: Close takes effect for new calls at once, but the number is given
// back to the kernel only when the last running call has ended, so no call ever
// works on another file's descriptor. A finalizer closes what is forgotten.
type handle struct{ *os.File }

func newHandle(fd int, name string) handle { return handle{os.NewFile(uintptr(fd), name)} }

// do runs a system call, again when a signal interrupted it. EBADF after Close.
func (h handle) do(call func(fd int) error) error {
	raw, err := h.SyscallConn()
	if err != nil {
		return syscall.EBADF
	}
	cerr := raw.Control(func(fd uintptr) {
		err = retry(func() error { return call(int(fd)) })
	})
	if cerr != nil {
		return syscall.EBADF
	}
	return err
}

func (h handle) Close() error { return errnoOf(h.File.Close()) }

// errnoOf strips what os wraps around an errno.
func errnoOf(err error) error {
	var errno syscall.Errno
	switch {
	case errors.As(err, &errno):
		return errno
	case errors.Is(err, os.ErrClosed):
		return syscall.EBADF
	}
	return err
}

func retry(call func() error) error {
	for {
		if err := call(); err != unix.EINTR {
			return err
		}
	}
}

// open is for what was proved to be inside, or begins it.
func open(dirfd int, path string, flags int) (fd int, err error) {
	err = retry(func() error {
		fd, err = unix.Openat(dirfd, path, flags|unix.O_CLOEXEC, 0)
		return err
	})
	return fd, err
}

func statx(dirfd int, name string, flags int) (st unix.Statx_t, err error) {
	err = retry(func() error {
		return unix.Statx(dirfd, name, flags, unix.STATX_BASIC_STATS|unix.STATX_BTIME, &st)
	})
	return st, err
}

func infoOf(st *unix.Statx_t) Info {
	nano := func(t unix.StatxTimestamp) int64 { return t.Sec*1e9 + int64(t.Nsec) }
	i := Info{
		Ident: Ident{Ino: st.Ino},
		Mode:  uint32(st.Mode), Nlink: st.Nlink, UID: st.Uid, GID: st.Gid,
		Rdev: uint32(unix.Mkdev(st.Rdev_major, st.Rdev_minor)),
		Size: int64(st.Size), Blocks: st.Blocks,
		Atime: nano(st.Atime), Mtime: nano(st.Mtime), Ctime: nano(st.Ctime),
	}
	if st.Mask&unix.STATX_BTIME != 0 {
		i.Btime = nano(st.Btime)
	}
	return i
}

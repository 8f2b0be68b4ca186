package vfs

import (
	"bytes"
	"encoding/binary"
	"strconv"
	"sync"
	"syscall"

	"golang.org/x/sys/unix"
)

// osDir is an open directory descriptor. Set at construction.
type osDir struct {
	*confines
	h handle
}

// at runs a call on the descriptor with a checked name.
func (d *osDir) at(name string, call func(fd int) error) error {
	if err := checkName(name); err != nil {
		return err
	}
	return d.h.do(call)
}

func (d *osDir) OpenDir(name string) (Dir, error) {
	var sub *osDir
	err := d.at(name, func(fd int) error {
		fd, _, err := d.openInside(fd, name, unix.O_RDONLY|unix.O_DIRECTORY)
		if err == nil {
			sub = &osDir{confines: d.confines, h: newHandle(fd, name)}
		}
		return err
	})
	if err != nil {
		return nil, err
	}
	return sub, nil
}

// openInside opens an existing name and proves that it is inside.
func (d *osDir) openInside(dirfd int, name string, flags int) (int, unix.Statx_t, error) {
	fd, err := d.openat(dirfd, name, flags, 0)
	if err != nil {
		return -1, unix.Statx_t{}, err
	}
	st, err := statx(fd, "", unix.AT_EMPTY_PATH)
	if err == nil {
		err = d.inside(&st)
	}
	if err != nil {
		unix.Close(fd)
		return -1, st, err
	}
	return fd, st, nil
}

func (d *osDir) Open(name string, write bool) (File, error) {
	flags := unix.O_RDONLY
	if write {
		flags = unix.O_RDWR
	}
	var f *osFile
	err := d.at(name, func(fd int) error {
		// Looking first keeps drivers of devices asleep; O_NONBLOCK and the second
		// look are for what takes the file's place in between.
		st, err := d.stat(fd, name)
		if err == nil {
			err = checkRegular(uint32(st.Mode))
		}
		if err != nil {
			return err
		}
		file, st, err := d.openInside(fd, name, flags|unix.O_NONBLOCK|unix.O_NOCTTY|unix.O_LARGEFILE)
		if err != nil {
			return err
		}
		if err := checkRegular(uint32(st.Mode)); err != nil {
			unix.Close(file)
			return err
		}
		f = &osFile{newHandle(file, name)}
		return nil
	})
	if err != nil {
		return nil, err
	}
	return f, nil
}

func (d *osDir) Create(name string, perm uint32) (File, error) {
	perm &= permBits
	var f *osFile
	err := d.at(name, func(fd int) error {
		file, err := d.openat(fd, name, unix.O_RDWR|unix.O_CREAT|unix.O_EXCL|unix.O_LARGEFILE, perm)
		if err != nil {
			return err
		}
		// The umask, a default ACL or a missing right may have cut bits.
		st, err := statx(file, "", unix.AT_EMPTY_PATH)
		if err == nil && uint32(st.Mode)&permBits != perm {
			err = retry(func() error { return unix.Fchmod(file, perm) })
		}
		if err != nil {
			unix.Close(file)
			unix.Unlinkat(fd, name, 0)
			return err
		}
		f = &osFile{newHandle(file, name)}
		return nil
	})
	if err != nil {
		return nil, err
	}
	return f, nil
}

func (d *osDir) Mkdir(name string, perm uint32) error {
	perm &= permBits
	return d.at(name, func(fd int) error {
		if err := unix.Mkdirat(fd, name, perm); err != nil {
			return err
		}
		return d.exact(fd, name, perm, unix.AT_REMOVEDIR)
	})
}

func (d *osDir) Mknod(name string, mode, rdev uint32) error {
	if err := checkSpecial(mode); err != nil {
		return err
	}
	return d.at(name, func(fd int) error {
		if err := unix.Mknodat(fd, name, mode, int(rdev)); err != nil {
			return err
		}
		return d.exact(fd, name, mode&permBits, 0)
	})
}

// exact gives what was just made the permissions that the umask, a default
// ACL or the parent's setgid bit changed, or takes it away again.
func (d *osDir) exact(fd int, name string, perm uint32, removeFlag int) error {
	st, err := d.stat(fd, name)
	if err == nil && uint32(st.Mode)&permBits != perm {
		err = d.Chmod(name, perm)
	}
	if err != nil {
		unix.Unlinkat(fd, name, removeFlag)
	}
	return err
}

func (d *osDir) Symlink(target, name string) error {
	if err := checkTarget(target); err != nil {
		return err
	}
	return d.at(name, func(fd int) error { return unix.Symlinkat(target, fd, name) })
}

func (d *osDir) Readlink(name string) (target string, err error) {
	err = d.at(name, func(fd int) error {
		buf := make([]byte, targetMax+1)
		n, err := unix.Readlinkat(fd, name, buf)
		if err == nil {
			target = string(buf[:n])
		}
		return err
	})
	return target, err
}

// both runs a call on this directory's and another's descriptor.
func (d *osDir) both(name string, to Dir, newname string, call func(fd, tofd int) error) error {
	if err := checkName(newname); err != nil {
		return err
	}
	t, ok := to.(*osDir)
	if !ok {
		return syscall.EXDEV
	}
	return d.at(name, func(fd int) error {
		return t.h.do(func(tofd int) error { return call(fd, tofd) })
	})
}

func (d *osDir) Link(name string, to Dir, newname string) error {
	return d.both(name, to, newname, func(fd, tofd int) error {
		return unix.Linkat(fd, name, tofd, newname, 0)
	})
}

func (d *osDir) Rename(name string, to Dir, newname string, flags uint) error {
	return d.both(name, to, newname, func(fd, tofd int) error {
		return unix.Renameat2(fd, name, tofd, newname, flags)
	})
}

func (d *osDir) Remove(name string) error {
	return d.at(name, func(fd int) error { return unix.Unlinkat(fd, name, 0) })
}

func (d *osDir) RemoveDir(name string) error {
	return d.at(name, func(fd int) error { return unix.Unlinkat(fd, name, unix.AT_REMOVEDIR) })
}

func (d *osDir) Stat(name string) (info Info, err error) {
	err = d.at(name, func(fd int) error {
		st, err := d.stat(fd, name)
		if err == nil {
			info = infoOf(&st)
		}
		return err
	})
	return info, err
}

func (d *osDir) StatSelf() (Info, error) { return statSelf(d.h) }

func statSelf(h handle) (info Info, err error) {
	err = h.do(func(fd int) error {
		st, err := statx(fd, "", unix.AT_EMPTY_PATH)
		if err == nil {
			info = infoOf(&st)
		}
		return err
	})
	return info, err
}

func (d *osDir) Lock() error {
	return d.h.do(func(fd int) error { return unix.Flock(fd, unix.LOCK_EX|unix.LOCK_NB) })
}

func (d *osDir) Sync() error  { return d.h.do(fsync) }
func (d *osDir) Close() error { return d.h.Close() }

var direntBuffers = sync.Pool{New: func() any { return new([32 << 10]byte) }}

func (d *osDir) ReadDir(after uint64, f func(name string, ino uint64, typ uint32, cookie uint64) bool) error {
	var own handle
	err := d.h.do(func(fd int) error {
		// A second open file: dup would share the position.
		fd, err := open(fd, ".", unix.O_RDONLY|unix.O_DIRECTORY)
		if err == nil {
			own = newHandle(fd, ".")
		}
		return err
	})
	if err != nil {
		return err
	}
	defer own.Close()
	if after != 0 {
		if err := own.do(func(fd int) error {
			_, err := unix.Seek(fd, int64(after), unix.SEEK_SET)
			return err
		}); err != nil {
			return err
		}
	}
	buf := direntBuffers.Get().(*[32 << 10]byte)
	defer direntBuffers.Put(buf)
	for {
		var n int
		err := own.do(func(fd int) (err error) {
			n, err = unix.Getdents(fd, buf[:])
			return err
		})
		if err != nil || n == 0 {
			return err
		}
		if !eachDirent(buf[:n], f) {
			return nil
		}
	}
}

// eachDirent reads struct linux_dirent64:
//
//	0        8        16      18    19
//	| d_ino  | d_off  | reclen | typ | name, NUL, padding |
func eachDirent(b []byte, f func(name string, ino uint64, typ uint32, cookie uint64) bool) bool {
	for len(b) >= 19 {
		e := b[:binary.NativeEndian.Uint16(b[16:])]
		b = b[len(e):]
		name, _, _ := bytes.Cut(e[19:], []byte{0})
		if string(name) == "." || string(name) == ".." {
			continue
		}
		ino, off := binary.NativeEndian.Uint64(e), binary.NativeEndian.Uint64(e[8:])
		if !f(string(name), ino, uint32(e[18])<<12, off) {
			return false
		}
	}
	return true
}

// AtPath calls f with a path that leads to an open directory of OS while f runs,
// for system calls that take nothing else. EOPNOTSUPP for other directories.
func AtPath(d Dir, f func(path string) error) error {
	o, ok := d.(*osDir)
	if !ok {
		return syscall.EOPNOTSUPP
	}
	return o.h.do(func(fd int) error { return f("/proc/self/fd/" + strconv.Itoa(fd)) })
}

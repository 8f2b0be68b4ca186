package vfs

import (
	"io"
	"syscall"

	"golang.org/x/sys/unix"
)

// osFile is an open regular file. Set at construction.
type osFile struct{ h handle }

func (f *osFile) ReadAt(p []byte, off int64) (int, error) {
	if off < 0 {
		return 0, syscall.EINVAL
	}
	n, err := f.h.ReadAt(p, off)
	return n, errnoOf(err)
}

func (f *osFile) WriteAt(p []byte, off int64) (int, error) {
	if off < 0 {
		return 0, syscall.EINVAL
	}
	// Not os.File.WriteAt: that forgets what was written before an error.
	done := 0
	for done < len(p) {
		err := f.h.do(func(fd int) error {
			n, err := unix.Pwrite(fd, p[done:], off+int64(done))
			done += max(n, 0)
			return err
		})
		if err != nil {
			return done, err
		}
	}
	return done, nil
}

// Append opens the file once more: of a descriptor that appends the position
// tells where the bytes went.
func (f *osFile) Append(p []byte) (at int64, n int, err error) {
	err = f.h.do(func(own int) error {
		flags, err := unix.FcntlInt(uintptr(own), unix.F_GETFL, 0)
		if err != nil {
			return err
		}
		if flags&unix.O_ACCMODE == unix.O_RDONLY {
			return unix.EBADF
		}
		fd, err := unix.Open(procPath(own), unix.O_WRONLY|unix.O_APPEND|unix.O_CLOEXEC, 0)
		if err != nil {
			return err
		}
		defer unix.Close(fd)
		n, err = unix.Write(fd, p)
		if n = max(n, 0); n > 0 {
			at, _ = unix.Seek(fd, 0, unix.SEEK_CUR)
			at -= int64(n)
		}
		if err == nil && n < len(p) {
			err = unix.ENOSPC
		}
		return err
	})
	return at, n, err
}

func (f *osFile) Truncate(size int64) error {
	return f.h.do(func(fd int) error { return unix.Ftruncate(fd, size) })
}

func (f *osFile) PunchHole(off, n int64) error {
	return f.fallocate(unix.FALLOC_FL_PUNCH_HOLE|unix.FALLOC_FL_KEEP_SIZE, off, n)
}

func (f *osFile) Allocate(off, n int64, keepSize bool) error {
	mode := uint32(0)
	if keepSize {
		mode = unix.FALLOC_FL_KEEP_SIZE
	}
	return f.fallocate(mode, off, n)
}

func (f *osFile) fallocate(mode uint32, off, n int64) error {
	err := f.h.do(func(fd int) error { return unix.Fallocate(fd, mode, off, n) })
	if err == unix.ENOSYS {
		err = unix.EOPNOTSUPP
	}
	return err
}

func (f *osFile) NextData(off int64) (start, end int64, ok bool, err error) {
	// The position that these move is used by nothing else.
	err = f.h.do(func(fd int) (err error) {
		if start, err = unix.Seek(fd, off, unix.SEEK_DATA); err == nil {
			end, err = unix.Seek(fd, start, unix.SEEK_HOLE)
		}
		return err
	})
	if err == unix.ENXIO {
		return 0, 0, false, nil
	}
	if err != nil {
		return 0, 0, false, err
	}
	return start, end, true, nil
}

func (f *osFile) CopyTo(dst File, srcOff, dstOff, n int64) error {
	to, ok := dst.(*osFile)
	if !ok {
		return syscall.EXDEV
	}
	if srcOff < 0 || dstOff < 0 || n < 0 {
		return syscall.EINVAL
	}
	for n > 0 {
		var copied int
		err := f.h.do(func(fd int) error {
			return to.h.do(func(tofd int) (err error) {
				from, at := srcOff, dstOff
				copied, err = unix.CopyFileRange(fd, &from, tofd, &at, int(min(n, 1<<30)), 0)
				return err
			})
		})
		switch err {
		case nil:
		case unix.ENOSYS, unix.EOPNOTSUPP, unix.EXDEV:
			return copyBytes(f, to, srcOff, dstOff, n)
		default:
			return err
		}
		if copied == 0 {
			return io.ErrUnexpectedEOF
		}
		srcOff, dstOff, n = srcOff+int64(copied), dstOff+int64(copied), n-int64(copied)
	}
	return nil
}

// copyBytes copies through memory.
func copyBytes(src io.ReaderAt, dst io.WriterAt, srcOff, dstOff, n int64) error {
	buf := make([]byte, min(n, 128<<10))
	for n > 0 {
		r, err := src.ReadAt(buf[:min(n, int64(len(buf)))], srcOff)
		if err != nil && err != io.EOF {
			return err
		}
		if r == 0 {
			return io.ErrUnexpectedEOF
		}
		if _, err := dst.WriteAt(buf[:r], dstOff); err != nil {
			return err
		}
		srcOff, dstOff, n = srcOff+int64(r), dstOff+int64(r), n-int64(r)
	}
	return nil
}

func (f *osFile) Stat() (Info, error) { return statSelf(f.h) }

func (f *osFile) Utimes(atime, mtime int64) error {
	return f.h.do(func(fd int) error { return utimes(procPath(fd), atime, mtime) })
}

func (f *osFile) Datasync() error { return f.h.do(fdatasync) }
func (f *osFile) Sync() error     { return f.h.do(fsync) }
func (f *osFile) Close() error    { return f.h.Close() }

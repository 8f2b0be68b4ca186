package vfs

import (
	"errors"
	"syscall"
)

type injectFile struct {
	file File
	f    func(Op) error
	path string
}

func (f *injectFile) ask(kind string, off, n int64) error {
	return f.f(Op{Kind: kind, Path: f.path, Off: off, Len: n})
}

func (f *injectFile) ReadAt(p []byte, off int64) (int, error) {
	if err := f.ask("readat", off, int64(len(p))); err != nil {
		return 0, err
	}
	return f.file.ReadAt(p, off)
}

func (f *injectFile) WriteAt(p []byte, off int64) (int, error) {
	err := f.ask("writeat", off, int64(len(p)))
	if err == nil {
		return f.file.WriteAt(p, off)
	}
	var short *shortWrite
	if !errors.As(err, &short) {
		return 0, err
	}
	n, err := f.file.WriteAt(p[:min(short.n, len(p))], off)
	if err == nil {
		err = short.error
	}
	return n, err
}

func (f *injectFile) Append(p []byte) (at int64, n int, err error) {
	if err := f.ask("append", 0, int64(len(p))); err != nil {
		return 0, 0, err
	}
	return f.file.Append(p)
}

func (f *injectFile) Truncate(size int64) error {
	if err := f.ask("truncate", size, 0); err != nil {
		return err
	}
	return f.file.Truncate(size)
}

func (f *injectFile) PunchHole(off, n int64) error {
	if err := f.ask("punchhole", off, n); err != nil {
		return err
	}
	return f.file.PunchHole(off, n)
}

func (f *injectFile) Allocate(off, n int64, keepSize bool) error {
	if err := f.ask("allocate", off, n); err != nil {
		return err
	}
	return f.file.Allocate(off, n, keepSize)
}

func (f *injectFile) NextData(off int64) (start, end int64, ok bool, err error) {
	if err := f.ask("nextdata", off, 0); err != nil {
		return 0, 0, false, err
	}
	return f.file.NextData(off)
}

func (f *injectFile) CopyTo(dst File, srcOff, dstOff, n int64) error {
	to, ok := dst.(*injectFile)
	if !ok {
		return syscall.EXDEV
	}
	if err := f.f(Op{Kind: "copyto", Path: f.path, To: to.path, Off: srcOff, Len: n}); err != nil {
		return err
	}
	return f.file.CopyTo(to.file, srcOff, dstOff, n)
}

func (f *injectFile) Stat() (Info, error) {
	if err := f.ask("stat", 0, 0); err != nil {
		return Info{}, err
	}
	return f.file.Stat()
}

func (f *injectFile) Utimes(atime, mtime int64) error {
	if err := f.ask("utimes", 0, 0); err != nil {
		return err
	}
	return f.file.Utimes(atime, mtime)
}

func (f *injectFile) Datasync() error {
	if err := f.ask("datasync", 0, 0); err != nil {
		return failSync(f.file, err)
	}
	return f.file.Datasync()
}

func (f *injectFile) Sync() error {
	if err := f.ask("sync", 0, 0); err != nil {
		return failSync(f.file, err)
	}
	return f.file.Sync()
}

func (f *injectFile) Close() error { return f.file.Close() }

package vfs

import (
	"math"

	"golang.org/x/sys/unix"
)

var _ Locker = (*osFile)(nil)

// flockOf is a range as fcntl(2) has it: no length reaches to the end of the file, wherever that is.
func flockOf(start, end uint64, how Hold) *unix.Flock_t {
	l := &unix.Flock_t{Type: [...]int16{unix.F_UNLCK, unix.F_RDLCK, unix.F_WRLCK}[how], Start: int64(start)}
	if end < math.MaxInt64 {
		l.Len = int64(end - start + 1)
	}
	return l
}

func (f *osFile) LockRange(start, end uint64, how Hold) error {
	return f.h.do(func(fd int) error { return unix.FcntlFlock(uintptr(fd), unix.F_OFD_SETLK, flockOf(start, end, how)) })
}

func (f *osFile) RangeLocked(start, end uint64, how Hold) (other RangeLock, held bool, err error) {
	l := flockOf(start, end, how)
	if err := f.h.do(func(fd int) error { return unix.FcntlFlock(uintptr(fd), unix.F_OFD_GETLK, l) }); err != nil {
		return other, false, err
	}
	other = RangeLock{Start: uint64(l.Start), End: math.MaxInt64, How: Shared}
	if l.Len > 0 {
		other.End = uint64(l.Start + l.Len - 1)
	}
	if l.Type == unix.F_WRLCK {
		other.How = Exclusive
	}
	return other, l.Type != unix.F_UNLCK, nil
}

func (f *osFile) LockWhole(how Hold) error {
	op := [...]int{unix.LOCK_UN, unix.LOCK_SH, unix.LOCK_EX}[how]
	return f.h.do(func(fd int) error { return unix.Flock(fd, op|unix.LOCK_NB) })
}

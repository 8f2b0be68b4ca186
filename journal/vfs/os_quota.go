package vfs

import (
	"errors"
	"unsafe"

	"golang.org/x/sys/unix"
)

// What quotactl_fd(2) takes (linux/quota.h).
const (
	getQuota   = 0x800007
	userQuota  = 0
	groupQuota = 1

	quotaBlock = 1024 // unit of the limits in dqblk
)

// dqblk is struct if_dqblk. The limits of space are in quotaBlock, space is in bytes.
type dqblk struct {
	hardSpace, softSpace, space uint64
	hardFiles, softFiles, files uint64
	spaceTime, filesTime        uint64
	valid                       uint32
	_                           uint32
}

// Quota asks with quotactl_fd(2), which Linux has since 5.14; the user of the
// process and its groups may always be asked for, others need CAP_SYS_ADMIN.
func (s *osFS) Quota(group bool, id uint32) (Quota, error) {
	kind := uintptr(userQuota)
	if group {
		kind = groupQuota
	}
	var q dqblk
	err := s.root.do(func(fd int) error {
		_, _, errno := unix.Syscall6(unix.SYS_QUOTACTL_FD, uintptr(fd), getQuota<<8|kind, uintptr(id), uintptr(unsafe.Pointer(&q)), 0, 0)
		if errno != 0 {
			return errno
		}
		return nil
	})
	for _, none := range []error{unix.ENOSYS, unix.EOPNOTSUPP, unix.ESRCH, unix.EPERM, unix.EACCES} {
		if errors.Is(err, none) {
			return Quota{}, nil
		}
	}
	return Quota{
		Space: q.space, SpaceLimit: quotaBlock * lowerLimit(q.hardSpace, q.softSpace),
		Files: q.files, FilesLimit: lowerLimit(q.hardFiles, q.softFiles),
	}, err
}

// lowerLimit is the lower of two limits, of which 0 is none.
func lowerLimit(a, b uint64) uint64 {
	if a == 0 || b == 0 {
		return a | b
	}
	return min(a, b)
}

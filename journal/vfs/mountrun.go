package vfs

import (
	"fmt"
	"os"
	"strings"

	"golang.org/x/sys/unix"
)

// MountRun names the mount that a directory is in, from its beginning to its end:
// the run of the machine and the mount's number, which the kernel gives once
// (STATX_MNT_ID_UNIQUE, Linux 6.8); "" where either is not known. While it is the
// same, nothing that was written is lost: the file system has not been away.
func MountRun(dir string) string {
	boot, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	if err != nil {
		return ""
	}
	var st unix.Statx_t
	err = retry(func() error { return unix.Statx(unix.AT_FDCWD, dir, 0, unix.STATX_MNT_ID_UNIQUE, &st) })
	if err != nil || st.Mask&unix.STATX_MNT_ID_UNIQUE == 0 {
		return ""
	}
	return fmt.Sprintf("%s %d", strings.TrimSpace(string(boot)), st.Mnt_id)
}

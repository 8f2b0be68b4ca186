package main

import (
	"fmt"
	"os"
	"runtime"
	"syscall"

	"golang.org/x/sys/unix"
)

// dropQuotaPrivilege gives up CAP_SYS_RESOURCE, with which the limits of disk
// quotas do not count, neither root's own nor those of the users whom files
// belong to. All threads have to, and those of a program with C libraries cannot
// be reached, so the program runs itself again without it; then, and where it
// never had it, there is nothing to do. An error means that the
// server goes on with it.
func dropQuotaPrivilege() error {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	head := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	var caps [2]unix.CapUserData
	if err := unix.Capget(&head, &caps[0]); err != nil {
		return os.NewSyscallError("capget", err)
	}
	c := &caps[unix.CAP_SYS_RESOURCE/32]
	const bit = 1 << (unix.CAP_SYS_RESOURCE % 32)
	if (c.Effective|c.Permitted|c.Inheritable)&bit == 0 {
		return nil
	}
	program, err := os.Executable()
	if err != nil {
		return err
	}
	// From the bounding set first: root gets what is in it with each exec.
	if err := unix.Prctl(unix.PR_CAPBSET_DROP, unix.CAP_SYS_RESOURCE, 0, 0, 0); err != nil {
		return os.NewSyscallError("prctl", err)
	}
	c.Effective, c.Permitted, c.Inheritable = c.Effective&^bit, c.Permitted&^bit, c.Inheritable&^bit
	if err := unix.Capset(&head, &caps[0]); err != nil {
		return os.NewSyscallError("capset", err)
	}
	return fmt.Errorf("run %s again: %w", program, syscall.Exec(program, os.Args, os.Environ()))
}

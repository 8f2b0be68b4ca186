//go:build !cage_nosync

package vfs

import "golang.org/x/sys/unix"

// The system calls that make things durable.
func fdatasync(fd int) error { return unix.Fdatasync(fd) }
func fsync(fd int) error     { return unix.Fsync(fd) }
func syncfs(fd int) error    { return unix.Syncfs(fd) }

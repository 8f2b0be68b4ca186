package vfs

import (
	"strings"
	"syscall"
)

const (
	nameMax   = 255
	targetMax = 4095
)

// checkName refuses what is not one component of a path.
func checkName(name string) error {
	switch {
	case name == "" || name == "." || name == ".." || strings.ContainsAny(name, "/\x00"):
		return syscall.EINVAL
	case len(name) > nameMax:
		return syscall.ENAMETOOLONG
	}
	return nil
}

// checkTarget refuses what symlink(2) would.
func checkTarget(target string) error {
	switch {
	case target == "":
		return syscall.ENOENT
	case strings.Contains(target, "\x00"):
		return syscall.EINVAL
	case len(target) > targetMax:
		return syscall.ENAMETOOLONG
	}
	return nil
}

// checkSpecial refuses types that Mknod does not make.
func checkSpecial(mode uint32) error {
	switch mode & syscall.S_IFMT {
	case syscall.S_IFIFO, syscall.S_IFSOCK, syscall.S_IFCHR, syscall.S_IFBLK:
		return nil
	}
	return syscall.EINVAL
}

// checkRegular tells why what has this mode is not opened as a file.
func checkRegular(mode uint32) error {
	switch mode & syscall.S_IFMT {
	case syscall.S_IFREG:
		return nil
	case syscall.S_IFDIR:
		return syscall.EISDIR
	case syscall.S_IFLNK:
		return syscall.ELOOP
	}
	return syscall.ENXIO
}

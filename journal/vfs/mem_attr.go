package vfs

import (
	"maps"
	"slices"
	"strings"
	"syscall"
)

// Limits of xattrs, the kernel's; ext4 takes fewer bytes in all than this.
const (
	xattrNameMax  = 255
	xattrValueMax = 64 << 10
	xattrCreate   = 1
	xattrReplace  = 2
)

// findAttr is find, with "" for the directory itself.
func (d *memDir) findAttr(name string) (nodeID, *inode, error) {
	if name != "" {
		return d.find(name)
	}
	n, err := d.lock()
	return d.id, n, err
}

func (d *memDir) Chmod(name string, perm uint32) error {
	defer d.m.mu.Unlock()
	id, n, err := d.findAttr(name)
	if err != nil {
		return err
	}
	if n.Mode&syscall.S_IFMT == syscall.S_IFLNK {
		return syscall.EOPNOTSUPP
	}
	c := d.m.beginLocked()
	a := c.touch(id)
	a.Mode = a.Mode&syscall.S_IFMT | perm&permBits
	if list, ok := a.xattrs[memACLAccess]; ok {
		a.xattrs = maps.Clone(a.xattrs)
		a.xattrs[memACLAccess] = aclOfMode(list, perm)
	}
	c.commit()
	return nil
}

func (d *memDir) Chown(name string, uid, gid uint32) error {
	defer d.m.mu.Unlock()
	id, n, err := d.findAttr(name)
	if err != nil {
		return err
	}
	c := d.m.beginLocked()
	a := c.touch(id)
	if uid != ^uint32(0) {
		a.UID = uid
	}
	if gid != ^uint32(0) {
		a.GID = gid
	}
	if !n.isDir() { // as the kernel does it for root too
		a.Mode &^= syscall.S_ISUID
		if a.Mode&syscall.S_IXGRP != 0 {
			a.Mode &^= syscall.S_ISGID
		}
	}
	c.commit()
	return nil
}

func (d *memDir) Utimes(name string, atime, mtime int64) error {
	defer d.m.mu.Unlock()
	id, _, err := d.findAttr(name)
	if err != nil {
		return err
	}
	d.m.utimesLocked(id, atime, mtime)
	return nil
}

func (m *Mem) utimesLocked(id nodeID, atime, mtime int64) {
	if atime == OmitTime && mtime == OmitTime {
		return
	}
	c := m.beginLocked()
	a := c.touch(id)
	if atime != OmitTime {
		a.Atime = atime
	}
	if mtime != OmitTime {
		a.Mtime = mtime
	}
	c.commit()
}

// xattrs locks the disk and checks whether an inode may have an attribute;
// the errors are the kernel's, in its order.
func (d *memDir) xattrs(name, attr string, write bool) (nodeID, *inode, error) {
	id, n, err := d.findAttr(name)
	if err != nil {
		return 0, nil, err
	}
	space, rest, _ := strings.Cut(attr, ".")
	switch typ := n.Mode & syscall.S_IFMT; {
	case strings.Contains(attr, "\x00"):
		err = syscall.EINVAL
	case attr == "" || len(attr) > xattrNameMax:
		err = syscall.ERANGE
	case space == "user" && typ != syscall.S_IFREG && typ != syscall.S_IFDIR:
		err = syscall.ENODATA
		if write {
			err = syscall.EPERM
		}
	case isMemACL(attr) && typ != syscall.S_IFLNK:
	case space != "user" && space != "trusted" && space != "security":
		err = syscall.EOPNOTSUPP
	case rest == "":
		err = syscall.EINVAL
	}
	return id, n, err
}

func (d *memDir) GetXattr(name, attr string) ([]byte, error) {
	defer d.m.mu.Unlock()
	_, n, err := d.xattrs(name, attr, false)
	if err != nil {
		return nil, err
	}
	value, ok := n.xattrs[attr]
	if !ok {
		return nil, syscall.ENODATA
	}
	return []byte(value), nil
}

func (d *memDir) SetXattr(name, attr string, value []byte, flags int) error {
	defer d.m.mu.Unlock()
	id, n, err := d.xattrs(name, attr, true)
	if err != nil {
		return err
	}
	_, exists := n.xattrs[attr]
	switch {
	case flags&^(xattrCreate|xattrReplace) != 0:
		return syscall.EINVAL
	case len(value) > xattrValueMax:
		return syscall.E2BIG
	case exists && flags&xattrCreate != 0:
		return syscall.EEXIST
	case !exists && flags&xattrReplace != 0:
		return syscall.ENODATA
	}
	d.m.setXattrLocked(id, func(x map[string]string) { x[attr] = string(value) })
	return nil
}

func (d *memDir) RemoveXattr(name, attr string) error {
	defer d.m.mu.Unlock()
	id, n, err := d.xattrs(name, attr, true)
	if err != nil {
		return err
	}
	if _, ok := n.xattrs[attr]; !ok {
		return syscall.ENODATA
	}
	d.m.setXattrLocked(id, func(x map[string]string) { delete(x, attr) })
	return nil
}

func (m *Mem) setXattrLocked(id nodeID, edit func(map[string]string)) {
	c := m.beginLocked()
	a := c.touch(id)
	x := maps.Clone(a.xattrs)
	if x == nil {
		x = make(map[string]string)
	}
	edit(x)
	a.xattrs = x
	if list, ok := x[memACLAccess]; ok {
		a.Mode = modeOfACL(list, a.Mode)
	}
	c.commit()
}

func (d *memDir) ListXattr(name string) ([]string, error) {
	defer d.m.mu.Unlock()
	_, n, err := d.findAttr(name)
	if err != nil {
		return nil, err
	}
	return slices.Sorted(maps.Keys(n.xattrs)), nil
}

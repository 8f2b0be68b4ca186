package vfs

import (
	"encoding/binary"
	"strings"
)

// Access control lists are attributes that the file system keeps in step with
// the mode, as acl(5) says: its group bits are the list's mask, or without one
// the entry of the owning group.

const (
	memACLs      = "system.posix_acl_"
	memACLAccess = memACLs + "access"
)

func isMemACL(attr string) bool { return strings.HasPrefix(attr, memACLs) }

// aclClass calls f for the permissions in a list that the mode shows as well,
// with their place in the mode.
func aclClass(list []byte, f func(perm []byte, shift uint)) {
	shifts := map[uint16]uint{0x01: 6, 0x04: 3, 0x20: 0} // owner, owning group, others
	const mask = 0x10
	for i := 4; i+8 <= len(list); i += 8 {
		if binary.LittleEndian.Uint16(list[i:]) == mask {
			shifts[mask] = 3
			delete(shifts, 0x04)
		}
	}
	for i := 4; i+8 <= len(list); i += 8 {
		if shift, ok := shifts[binary.LittleEndian.Uint16(list[i:])]; ok {
			f(list[i+2:i+4], shift)
		}
	}
}

// modeOfACL is a mode with the permissions of a list.
func modeOfACL(list string, mode uint32) uint32 {
	aclClass([]byte(list), func(perm []byte, shift uint) {
		mode = mode&^(7<<shift) | uint32(binary.LittleEndian.Uint16(perm))<<shift
	})
	return mode
}

// aclOfMode is a list with the permissions of a mode.
func aclOfMode(list string, mode uint32) string {
	b := []byte(list)
	aclClass(b, func(perm []byte, shift uint) { binary.LittleEndian.PutUint16(perm, uint16(mode>>shift&7)) })
	return string(b)
}

package differ

import (
	"encoding/binary"
	"fmt"
	"strings"

	"golang.org/x/sys/unix"
)

// The kinds of steps.

func (g *generator) openStep() Step {
	s := Step{Op: "open", Slot: g.slot(), At: g.dirSlot(), Flags: pick(g, []int{unix.O_RDONLY, unix.O_WRONLY, unix.O_RDWR, unix.O_RDWR, unix.O_RDWR})}
	got := file
	switch g.IntN(10) {
	case 0, 1, 2:
		s.Flags |= unix.O_CREAT
		s.Path, s.Mode = g.newPath(file), g.fileMode()
	case 3:
		got, s.Flags, s.Path = dir, unix.O_DIRECTORY, g.path(dir)
		if g.IntN(3) == 0 {
			s.Path = "."
		}
	case 4:
		s.Flags |= unix.O_CREAT
		s.Path, s.Mode = g.path(file), g.fileMode()
	case 5:
		s.Flags |= unix.O_TMPFILE
		s.Path, s.Mode = g.path(dir), g.fileMode()
	default:
		s.Path = g.path(file)
	}
	for _, f := range []struct{ oneIn, bit int }{
		{8, unix.O_TRUNC}, {7, unix.O_APPEND}, {12, unix.O_EXCL}, {20, unix.O_SYNC}, {20, unix.O_DSYNC},
		{30, unix.O_DIRECTORY}, {15, unix.O_NOFOLLOW}, {30, unix.O_PATH},
	} {
		if g.IntN(f.oneIn) == 0 {
			s.Flags |= f.bit
		}
	}
	if s.Flags&unix.O_APPEND != 0 && g.sc.Mounts > 1 {
		s.Flags = s.Flags&^unix.O_ACCMODE | unix.O_WRONLY // see seekStep
	}
	made := g.then
	g.then = func() {
		if made != nil {
			made()
		}
		g.state[g.proc].open[s.Slot-1] = got
	}
	return s
}

func (g *generator) closeStep() Step {
	s := Step{Op: "close", Slot: g.held(whatever)}
	g.then = func() { g.state[g.proc].open[s.Slot-1] = whatever }
	return s
}

func (g *generator) dupStep() Step {
	s := Step{Op: "dup", Slot: g.held(whatever), ToSlot: g.slot()}
	open := &g.state[g.proc].open
	g.then = func() { open[s.ToSlot-1] = open[s.Slot-1] }
	return s
}

func (g *generator) readStep() Step {
	return Step{Op: pick(g, []string{"read", "pread", "pread", "readv"}), Slot: g.held(file), Off: g.offset(), Len: g.length() + 1}.without("pread")
}

func (g *generator) writeStep() Step {
	return Step{Op: pick(g, []string{"write", "write", "pwrite", "pwrite", "writev"}), Slot: g.held(file), Off: g.offset(), Len: g.length(), Fill: g.IntN(250)}.without("pwrite")
}

// without drops the offset of all calls but one, which use the position.
func (s Step) without(op string) Step {
	if s.Op != op {
		s.Off = 0
	}
	return s
}

// seekStep does not ask for the position, nor goes from there, where there are
// several mounts: after an append the kernel takes it to be the end that it
// knew of and what was written, whoever else appends. Nobody reads from there either.
func (g *generator) seekStep() Step {
	s := Step{Op: pick(g, []string{"lseek", "lseek", "seekdata", "seekhole"}), Slot: g.held(file), Off: g.offset()}
	if s.Op == "lseek" {
		s.Mode = uint32(g.IntN(3))
		if s.Mode == unix.SEEK_CUR && g.sc.Mounts > 1 {
			s.Mode = unix.SEEK_END
		}
		if g.IntN(4) == 0 {
			s.Off = -s.Off
		}
	}
	return s
}

func (g *generator) sizeStep() Step {
	switch g.IntN(5) {
	case 0:
		return Step{Op: "truncate", Path: g.path(file), Len: g.offset()}
	case 1, 2:
		return Step{Op: "ftruncate", Slot: g.held(file), Len: g.offset()}
	}
	// To move what follows (COLLAPSE_RANGE, INSERT_RANGE) is refused by FUSE.
	const keep, punch, zero = unix.FALLOC_FL_KEEP_SIZE, unix.FALLOC_FL_PUNCH_HOLE, unix.FALLOC_FL_ZERO_RANGE
	return Step{Op: "fallocate", Slot: g.held(file), Off: g.offset(), Len: g.length(),
		Flags: pick(g, []int{0, 0, keep, keep | punch, keep | punch, keep | punch, zero, zero, keep | zero, punch, punch | zero})}
}

func (g *generator) copyStep() Step {
	return Step{Op: "copyrange", Slot: g.held(file), ToSlot: g.held(file), Off: g.offset(), ToOff: g.offset(), Len: g.length()}
}

func (g *generator) mmapStep() Step {
	return Step{Op: "mmap", Slot: g.held(file), Off: g.offset(), Len: g.length(), Fill: g.IntN(250)}
}

func (g *generator) syncStep() Step {
	return Step{Op: pick(g, []string{"fsync", "fdatasync", "forget"}), Slot: g.held(file)}
}

func (g *generator) renameStep() Step {
	k := pick(g, []kind{file, file, dir})
	s := Step{Op: "rename", At: g.dirSlot(), Path: g.path(k), ToAt: g.dirSlot()}
	s.Flags = pick(g, []int{0, 0, 0, 0, unix.RENAME_NOREPLACE, unix.RENAME_EXCHANGE, unix.RENAME_EXCHANGE | unix.RENAME_NOREPLACE})
	switch {
	case s.Flags&unix.RENAME_EXCHANGE != 0:
		s.To = g.path(whatever)
	case g.IntN(3) == 0:
		s.To = g.path(k)
		g.then = func() { g.gone(s.Path) }
	default:
		s.To = g.newPath(k)
		made := g.then
		g.then = func() { g.gone(s.Path); made() }
	}
	return s
}

func (g *generator) linkStep() Step {
	switch g.IntN(6) {
	case 0:
		return Step{Op: "link", At: g.held(file), ToAt: g.dirSlot(), To: g.newPath(file), Flags: unix.AT_EMPTY_PATH}
	case 1:
		return Step{Op: "linkproc", Slot: g.held(file), ToAt: g.dirSlot(), To: g.newPath(file)}
	}
	return Step{Op: "link", At: g.dirSlot(), Path: g.path(file), ToAt: g.dirSlot(), To: g.newPath(file), Flags: pick(g, []int{0, 0, unix.AT_SYMLINK_FOLLOW})}
}

func (g *generator) removeStep() Step {
	s := Step{Op: pick(g, []string{"unlink", "unlink", "rmdir"}), At: g.dirSlot()}
	s.Path = g.path(file)
	if (s.Op == "rmdir") != (g.IntN(15) == 0) {
		s.Path = g.path(dir)
	}
	g.then = func() { g.gone(s.Path) }
	return s
}

func (g *generator) mkdirStep() Step {
	return Step{Op: "mkdir", At: g.dirSlot(), Path: g.newPath(dir), Mode: g.dirMode()}
}

func (g *generator) mknodStep() Step {
	s := Step{Op: "mknod", Path: g.newPath(file), Mode: g.fileMode() | pick(g, []uint32{unix.S_IFIFO, unix.S_IFSOCK, unix.S_IFREG, unix.S_IFCHR, unix.S_IFBLK, 0, unix.S_IFDIR})}
	if t := s.Mode & unix.S_IFMT; t == unix.S_IFCHR || t == unix.S_IFBLK {
		s.Rdev = int(unix.Mkdev(pick(g, []uint32{0, 1, 259}), pick(g, []uint32{0, 3, 70000})))
	}
	return s
}

func (g *generator) symlinkStep() Step {
	text := g.path(whatever)
	if g.IntN(4) == 0 {
		text = "../" + text
	}
	return Step{Op: "symlink", Path: text, ToAt: g.dirSlot(), To: g.newPath(file)}
}

func (g *generator) readlinkStep() Step {
	return Step{Op: "readlink", At: g.dirSlot(), Path: g.path(whatever)}
}

// noFollow is AT_SYMLINK_NOFOLLOW, now and then.
func (g *generator) noFollow() int {
	if g.IntN(3) == 0 {
		return unix.AT_SYMLINK_NOFOLLOW
	}
	return 0
}

func (g *generator) statStep() Step {
	if g.IntN(3) == 0 {
		return Step{Op: "fstat", Slot: g.held(file)}
	}
	return Step{Op: "stat", At: g.dirSlot(), Path: g.path(whatever), Flags: g.noFollow()}
}

func (g *generator) listStep() Step { return Step{Op: "list", Slot: g.held(dir)} }

func (g *generator) accessStep() Step {
	return Step{Op: "access", At: g.dirSlot(), Path: g.path(whatever), Mode: uint32(g.IntN(8)), Flags: pick(g, []int{0, unix.AT_EACCESS}) | g.noFollow()}
}

func (g *generator) cwdStep() Step {
	switch g.IntN(4) {
	case 0:
		return Step{Op: "getcwd"}
	case 1:
		g.then = func() { g.state[g.proc].away = true }
		return Step{Op: "fchdir", Slot: g.held(dir)}
	case 2:
		g.then = func() { g.state[g.proc].away = false }
		return Step{Op: "chdir", Path: "/"}
	}
	g.then = func() { g.state[g.proc].away = true }
	return Step{Op: "chdir", Path: pick(g, []string{g.path(dir), "..", g.path(whatever)})}
}

func (g *generator) chmodStep() Step {
	mode := g.fileMode()
	if g.IntN(2) == 0 {
		mode = g.dirMode()
	}
	if g.IntN(3) == 0 {
		return Step{Op: "fchmod", Slot: g.held(file), Mode: mode}
	}
	return Step{Op: "chmod", At: g.dirSlot(), Path: g.path(whatever), Mode: mode}
}

// chownStep always names an owner or a group: of chown(2) with two times -1 the
// kernel tells FUSE no more than of a write that may take setuid away.
func (g *generator) chownStep() Step {
	s := Step{Op: "chown", UID: g.uid(), GID: g.gid()}
	if s.UID == -1 && s.GID == -1 {
		s.GID = 62001
	}
	if g.IntN(3) == 0 {
		s.Op, s.Slot = "fchown", g.held(file)
		return s
	}
	s.At, s.Path, s.Flags = g.dirSlot(), g.path(whatever), g.noFollow()
	return s
}

func (g *generator) timesStep() Step {
	at := func() string {
		switch g.IntN(6) {
		case 0:
			return "now"
		case 1:
			return "omit"
		case 2:
			return fmt.Sprintf("-%d.%d", g.IntN(1<<30), g.IntN(1e9))
		}
		return fmt.Sprintf("%d.%d", g.IntN(1<<30), g.IntN(1e9))
	}
	if g.IntN(3) == 0 {
		return Step{Op: "futimens", Slot: g.held(file), Atime: at(), Mtime: at()}
	}
	return Step{Op: "utimens", At: g.dirSlot(), Path: g.path(whatever), Atime: at(), Mtime: at(), Flags: g.noFollow()}
}

func (g *generator) xattrStep() Step {
	s := Step{Name: pick(g, []string{"user.a", "user.a", "user.b", "user.", "trusted.t", "security.s", "nospace"})}
	value := pick(g, []string{"", "v", "\x00\xff", strings.Repeat("long", 100)})
	if g.sc.ACL && g.IntN(3) > 0 {
		s.Name, value = pick(g, []string{"system.posix_acl_access", "system.posix_acl_default"}), g.acl()
	}
	switch g.IntN(5) {
	case 0, 1:
		s.Op, s.Value = pick(g, []string{"setxattr", "setxattr", "lsetxattr", "fsetxattr"}), value
		s.Flags = pick(g, []int{0, 0, unix.XATTR_CREATE, unix.XATTR_REPLACE})
	case 2:
		s.Op = pick(g, []string{"getxattr", "fgetxattr"})
	case 3:
		s.Op, s.Name = pick(g, []string{"listxattr", "flistxattr"}), ""
	case 4:
		s.Op = pick(g, []string{"removexattr", "fremovexattr"})
	}
	if s.Op[0] == 'f' {
		s.Slot = g.held(file)
		return s
	}
	s.Path = g.path(whatever)
	if !strings.Contains(s.Op, "set") {
		s.Flags = g.noFollow()
	}
	return s
}

// lockStep leaves locks out where processes are spread over mounts: there is no
// promise that these see each other's.
func (g *generator) lockStep() Step {
	if g.sc.Mounts > 1 {
		return g.statStep()
	}
	if g.IntN(2) == 0 {
		return Step{Op: "flock", Slot: g.held(file), Flags: pick(g, []int{unix.LOCK_SH, unix.LOCK_EX, unix.LOCK_UN})}
	}
	return Step{Op: pick(g, []string{"setlk", "setlk", "getlk"}), Slot: g.held(file), Off: int64(g.IntN(10)), Len: int64(g.IntN(10)),
		Mode: uint32(pick(g, []int{unix.F_RDLCK, unix.F_WRLCK, unix.F_UNLCK}))}
}

func (g *generator) umaskStep() Step {
	if g.IntN(10) == 0 {
		return Step{Op: "umask", Mode: 0o777}
	}
	return Step{Op: "umask", Mode: g.mask()}
}

// acl is an access control list as the kernel has it in an attribute: version 2
// and entries of tag, permissions and id. Some say the same as a mode, few are wrong.
func (g *generator) acl() string {
	const userObj, user, groupObj, group, mask, other = 1, 2, 4, 8, 16, 32
	b := binary.LittleEndian.AppendUint32(nil, 2)
	entry := func(tag uint16, id uint32) {
		b = binary.LittleEndian.AppendUint16(b, tag)
		b = binary.LittleEndian.AppendUint16(b, uint16(pick(g, []int{7, 7, 6, 5, 4, 0, g.IntN(8)})))
		b = binary.LittleEndian.AppendUint32(b, id)
	}
	const none = ^uint32(0)
	entry(userObj, none)
	named := false
	for _, id := range []uint32{61001, 61002, 61003} {
		if g.IntN(3) == 0 {
			named = true
			entry(user, id)
		}
	}
	entry(groupObj, none)
	for _, id := range []uint32{62001, 62002, 62003} {
		if g.IntN(3) == 0 {
			named = true
			entry(group, id)
		}
	}
	if named != (g.IntN(12) == 0) {
		entry(mask, none)
	}
	if g.IntN(20) > 0 {
		entry(other, none)
	}
	return string(b)
}

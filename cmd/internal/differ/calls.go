package differ

import (
	"errors"
	"fmt"
	"strconv"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"
)

// calls are what steps can do.
var calls map[string]func(*worker, *Step) (string, error)

func init() { // a table in a var would refer to itself through Parse
	calls = map[string]func(*worker, *Step) (string, error){
		// descriptors: data.go
		"open": (*worker).open, "close": (*worker).close, "dup": (*worker).dup,
		"read": (*worker).read, "pread": (*worker).pread, "readv": (*worker).readv,
		"write": (*worker).write, "pwrite": (*worker).pwrite, "writev": (*worker).writev,
		"lseek": (*worker).lseek, "seekdata": (*worker).seekData, "seekhole": (*worker).seekHole,
		"ftruncate": (*worker).ftruncate, "fallocate": (*worker).fallocate,
		"copyrange": (*worker).copyRange, "mmap": (*worker).mmap,
		"fsync": (*worker).fsync, "fdatasync": (*worker).fdatasync, "forget": (*worker).forget,
		"flock": (*worker).flock, "setlk": (*worker).setlk, "getlk": (*worker).getlk,
		"held": (*worker).held,
		// names
		"rename": (*worker).rename, "link": (*worker).link, "linkproc": (*worker).linkProc,
		"unlink": (*worker).unlink, "rmdir": (*worker).rmdir, "mkdir": (*worker).mkdir, "mknod": (*worker).mknod,
		"symlink": (*worker).symlink, "readlink": (*worker).readlink, "list": (*worker).list,
		"chdir": (*worker).chdir, "fchdir": (*worker).fchdir, "getcwd": (*worker).getcwd, "umask": (*worker).umask,
		// attributes
		"stat": (*worker).stat, "fstat": (*worker).fstat, "access": (*worker).access,
		"truncate": (*worker).truncate, "chmod": (*worker).chmod, "fchmod": (*worker).fchmod,
		"chown": (*worker).chown, "fchown": (*worker).fchown, "utimens": (*worker).utimens, "futimens": (*worker).futimens,
		"setxattr": (*worker).setxattr, "lsetxattr": (*worker).lsetxattr, "getxattr": (*worker).getxattr, "listxattr": (*worker).listxattr, "removexattr": (*worker).removexattr,
		"fsetxattr": (*worker).fsetxattr, "fgetxattr": (*worker).fgetxattr, "flistxattr": (*worker).flistxattr, "fremovexattr": (*worker).fremovexattr,
	}
}

// at is the directory that a path is relative to.
func (w *worker) at(slot int) int {
	if slot == 0 {
		return unix.AT_FDCWD
	}
	return w.slots[slot]
}

// put makes a descriptor that of a slot; what it had is closed.
func (w *worker) put(slot, fd int) error {
	old := w.slots[slot]
	w.slots[slot] = fd
	if old < 0 {
		return nil
	}
	return unix.Close(old)
}

// open always asks not to block: the other end of a FIFO is opened by a later
// step or by none.
func (w *worker) open(s *Step) (string, error) {
	fd, err := unix.Openat(w.at(s.At), s.Path, s.Flags|unix.O_NONBLOCK|unix.O_CLOEXEC, s.Mode)
	if err != nil {
		return "", err
	}
	return "", w.put(s.Slot, fd)
}

func (w *worker) close(s *Step) (string, error) {
	fd := w.slots[s.Slot]
	w.slots[s.Slot] = -1
	return "", unix.Close(fd)
}

func (w *worker) dup(s *Step) (string, error) {
	fd, err := unix.FcntlInt(uintptr(w.slots[s.Slot]), unix.F_DUPFD_CLOEXEC, 0)
	if err != nil {
		return "", err
	}
	return "", w.put(s.ToSlot, fd)
}

func (w *worker) rename(s *Step) (string, error) {
	return "", unix.Renameat2(w.at(s.At), s.Path, w.at(s.ToAt), s.To, uint(s.Flags))
}

func (w *worker) link(s *Step) (string, error) {
	return "", unix.Linkat(w.at(s.At), s.Path, w.at(s.ToAt), s.To, s.Flags)
}

// linkProc gives a descriptor's file a name by its name in /proc. It looks at the
// file first: this name leads to the file without a lookup, and the kernel judges
// who may link it by the mode that it saw last, which a write may have changed
// (docs/consistency.md, known to differ).
func (w *worker) linkProc(s *Step) (string, error) {
	var st unix.Stat_t
	if err := unix.Fstat(w.slots[s.Slot], &st); err != nil {
		return "", err
	}
	return "", unix.Linkat(w.self, strconv.Itoa(w.slots[s.Slot]), w.at(s.ToAt), s.To, unix.AT_SYMLINK_FOLLOW)
}

func (w *worker) unlink(s *Step) (string, error) {
	return "", unix.Unlinkat(w.at(s.At), s.Path, 0)
}

func (w *worker) rmdir(s *Step) (string, error) {
	return "", unix.Unlinkat(w.at(s.At), s.Path, unix.AT_REMOVEDIR)
}

func (w *worker) mkdir(s *Step) (string, error) {
	return "", unix.Mkdirat(w.at(s.At), s.Path, s.Mode)
}

func (w *worker) mknod(s *Step) (string, error) {
	return "", unix.Mknodat(w.at(s.At), s.Path, s.Mode, s.Rdev)
}

// symlink makes To a symlink with the text in Path, as symlinkat(2) orders them.
func (w *worker) symlink(s *Step) (string, error) {
	return "", unix.Symlinkat(s.Path, w.at(s.ToAt), s.To)
}

func (w *worker) readlink(s *Step) (string, error) {
	buf := make([]byte, unix.PathMax)
	n, err := unix.Readlinkat(w.at(s.At), s.Path, buf)
	if err != nil {
		return "", err
	}
	return strconv.Quote(string(buf[:n])), nil
}

// list reads the directory of a slot from its beginning and goes back there:
// what the position is at the end is the file system's affair, and read(2) fails
// in one way or another depending on it.
func (w *worker) list(s *Step) (string, error) {
	fd := w.slots[s.Slot]
	if _, err := unix.Seek(fd, 0, unix.SEEK_SET); err != nil {
		return "", err
	}
	out, err := readNames(fd)
	if _, bad := unix.Seek(fd, 0, unix.SEEK_SET); err == nil {
		err = bad
	}
	return out, err
}

func (w *worker) chdir(s *Step) (string, error)  { return "", unix.Chdir(s.Path) }
func (w *worker) fchdir(s *Step) (string, error) { return "", unix.Fchdir(w.slots[s.Slot]) }

func (w *worker) getcwd(s *Step) (string, error) {
	buf := make([]byte, unix.PathMax)
	n, err := unix.Getcwd(buf)
	if err != nil {
		return "", err
	}
	return strconv.Quote(strings.TrimRight(string(buf[:n]), "\x00")), nil
}

func (w *worker) umask(s *Step) (string, error) {
	return fmt.Sprintf("%04o", syscall.Umask(int(s.Mode))), nil
}

func (w *worker) access(s *Step) (string, error) {
	return "", unix.Faccessat2(w.at(s.At), s.Path, s.Mode, s.Flags)
}

func (w *worker) truncate(s *Step) (string, error) { return "", unix.Truncate(s.Path, s.Len) }

func (w *worker) chmod(s *Step) (string, error) {
	return "", unix.Fchmodat(w.at(s.At), s.Path, s.Mode, s.Flags)
}

func (w *worker) fchmod(s *Step) (string, error) {
	return "", unix.Fchmod(w.slots[s.Slot], s.Mode)
}

func (w *worker) chown(s *Step) (string, error) {
	return "", unix.Fchownat(w.at(s.At), s.Path, s.UID, s.GID, s.Flags)
}

func (w *worker) fchown(s *Step) (string, error) {
	return "", unix.Fchown(w.slots[s.Slot], s.UID, s.GID)
}

func (w *worker) utimens(s *Step) (string, error) {
	times, err := timesOf(s)
	if err != nil {
		return "", err
	}
	return "", unix.UtimesNanoAt(w.at(s.At), s.Path, times, s.Flags)
}

func (w *worker) futimens(s *Step) (string, error) {
	times, err := timesOf(s)
	if err != nil {
		return "", err
	}
	return "", unix.UtimesNanoAt(w.slots[s.Slot], "", times, unix.AT_EMPTY_PATH)
}

func timesOf(s *Step) ([]unix.Timespec, error) {
	a, err := timeOf(s.Atime)
	if err != nil {
		return nil, err
	}
	m, err := timeOf(s.Mtime)
	return []unix.Timespec{a, m}, err
}

func timeOf(text string) (ts unix.Timespec, err error) {
	switch text {
	case "now":
		ts.Nsec = unix.UTIME_NOW
	case "omit", "":
		ts.Nsec = unix.UTIME_OMIT
	default:
		sec, nsec, _ := strings.Cut(text, ".")
		var bad error
		ts.Sec, err = strconv.ParseInt(sec, 10, 64)
		ts.Nsec, bad = strconv.ParseInt(nsec, 10, 64)
		err = errors.Join(err, bad)
	}
	return ts, err
}

func (w *worker) stat(s *Step) (string, error) {
	var st unix.Stat_t
	if err := unix.Fstatat(w.at(s.At), s.Path, &st, s.Flags); err != nil {
		return "", err
	}
	return describe(&st), nil
}

func (w *worker) fstat(s *Step) (string, error) {
	var st unix.Stat_t
	if err := unix.Fstat(w.slots[s.Slot], &st); err != nil {
		return "", err
	}
	return describe(&st), nil
}

func (w *worker) setxattr(s *Step) (string, error) {
	return "", unix.Setxattr(s.Path, s.Name, []byte(s.Value), s.Flags)
}

func (w *worker) lsetxattr(s *Step) (string, error) {
	return "", unix.Lsetxattr(s.Path, s.Name, []byte(s.Value), s.Flags)
}

func (w *worker) fsetxattr(s *Step) (string, error) {
	return "", unix.Fsetxattr(w.slots[s.Slot], s.Name, []byte(s.Value), s.Flags)
}

func (w *worker) getxattr(s *Step) (string, error) {
	get := unix.Getxattr
	if s.Flags&unix.AT_SYMLINK_NOFOLLOW != 0 {
		get = unix.Lgetxattr
	}
	buf := make([]byte, room(s))
	n, err := get(s.Path, s.Name, buf)
	return quoted(buf, n, err)
}

func (w *worker) fgetxattr(s *Step) (string, error) {
	buf := make([]byte, room(s))
	n, err := unix.Fgetxattr(w.slots[s.Slot], s.Name, buf)
	return quoted(buf, n, err)
}

// room is how many bytes there are for an attribute or a list: Len of them, none
// if that is negative, the most that it can be if it is 0.
func room(s *Step) int64 {
	if s.Len == 0 {
		return maxXattr
	}
	return max(s.Len, 0)
}

func quoted(buf []byte, n int, err error) (string, error) {
	if err != nil {
		return "", err
	}
	if len(buf) == 0 { // the question was how long it is
		return strconv.Itoa(n), nil
	}
	return strconv.Quote(string(buf[:n])), nil
}

func (w *worker) listxattr(s *Step) (string, error) {
	list := unix.Listxattr
	if s.Flags&unix.AT_SYMLINK_NOFOLLOW != 0 {
		list = unix.Llistxattr
	}
	buf := make([]byte, room(s))
	n, err := list(s.Path, buf)
	return nameList(buf, n, err)
}

func (w *worker) flistxattr(s *Step) (string, error) {
	buf := make([]byte, room(s))
	n, err := unix.Flistxattr(w.slots[s.Slot], buf)
	return nameList(buf, n, err)
}

func (w *worker) removexattr(s *Step) (string, error) {
	if s.Flags&unix.AT_SYMLINK_NOFOLLOW != 0 {
		return "", unix.Lremovexattr(s.Path, s.Name)
	}
	return "", unix.Removexattr(s.Path, s.Name)
}

func (w *worker) fremovexattr(s *Step) (string, error) {
	return "", unix.Fremovexattr(w.slots[s.Slot], s.Name)
}

// flock and fcntl never wait: who would end the waiting does nothing meanwhile.

func (w *worker) flock(s *Step) (string, error) {
	return "", unix.Flock(w.slots[s.Slot], s.Flags|unix.LOCK_NB)
}

func lockOf(s *Step) *unix.Flock_t {
	return &unix.Flock_t{Type: int16(s.Mode), Whence: unix.SEEK_SET, Start: s.Off, Len: s.Len}
}

func (w *worker) setlk(s *Step) (string, error) {
	return "", unix.FcntlFlock(uintptr(w.slots[s.Slot]), unix.F_SETLK, lockOf(s))
}

func (w *worker) getlk(s *Step) (string, error) {
	l := lockOf(s)
	if err := unix.FcntlFlock(uintptr(w.slots[s.Slot]), unix.F_GETLK, l); err != nil {
		return "", err
	}
	if l.Type == unix.F_UNLCK {
		return "free", nil
	}
	return fmt.Sprintf("held type=%d [%d,+%d)", l.Type, l.Start, l.Len), nil // by whom differs: the processes are others
}

// held describes what all slots hold; it ends every program.
func (w *worker) held(*Step) (string, error) {
	var out []string
	for slot, fd := range w.slots {
		if fd < 0 {
			continue
		}
		text, err := describeOpen(fd)
		if err != nil {
			return "", fmt.Errorf("slot %d: %w", slot, err)
		}
		out = append(out, fmt.Sprintf("%d: %s", slot, text))
	}
	return strings.Join(out, "; "), nil
}

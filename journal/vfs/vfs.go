// Package vfs is the one door to the server's disk: the exported tree and the
// journal beside it. The operating system's implementation is OS; Mem is a disk
// in memory that can lose what was not synced; Inject makes any of them fail.
//
// It promises that no call leads out of the directory that was opened as root:
// every access is relative to a directory that is held open, of one name, and
// never follows a symlink or enters another file system. It knows nothing of
// records, fids or sessions. Errors are errno values, wrapped or bare
// (errors.As to syscall.Errno works).
package vfs

import (
	"errors"
	"io"
	"syscall"
)

// FS is an opened export directory and the file system that it lies on.
type FS interface {
	// Root returns the root directory. The caller closes it.
	Root() (Dir, error)
	// SyncFS makes everything durable that was done before: names, attributes
	// and data of all files (syncfs(2)). An error means that nobody knows what
	// is durable; it is not to be retried.
	SyncFS() error
	// StatFS tells sizes, and the id of the file system, which stays the same
	// over mounts and machines (statfs f_fsid).
	StatFS() (StatFS, error)
	// Quota tells what a user, or with group a group, may use of the file system,
	// and uses. Without quotas, or where nobody may know, there is no limit.
	Quota(group bool, id uint32) (Quota, error)
	// Close releases the descriptors. Open Dirs and Files stay valid.
	Close() error
}

// StatFS describes the file system.
type StatFS struct {
	ID          uint64
	BlockSize   uint32
	NameMax     uint32
	Blocks      uint64
	BlocksFree  uint64
	BlocksAvail uint64
	Files       uint64
	FilesFree   uint64
}

// Quota is a share of the file system. A limit of 0 is none; where there is a
// soft and a hard one, it is the lower. More than the limit may be in use.
type Quota struct {
	Space, SpaceLimit uint64 // bytes
	Files, FilesLimit uint64
}

// Ident identifies an inode for its life: number and birth time. Inode numbers
// alone are used again.
type Ident struct {
	Ino   uint64
	Btime int64 // nanoseconds since the epoch; 0 where the file system knows none
}

// Info is what statx tells of an inode.
type Info struct {
	Ident
	Mode   uint32 // type and permissions, S_IF*
	Nlink  uint32
	UID    uint32
	GID    uint32
	Rdev   uint32
	Size   int64
	Blocks uint64 // of 512 bytes
	Atime  int64  // all times in nanoseconds since the epoch
	Mtime  int64
	Ctime  int64
}

// Dir is an open directory. Names are single components; anything else
// (empty, ".", "..", with a slash, over 255 bytes) is EINVAL or ENAMETOOLONG.
// No call follows a symlink in the last component. A directory that is a mount
// point of another file system is EXDEV. Of permissions 07777 count. After
// Close every call is EBADF. Safe for concurrent use.
type Dir interface {
	// OpenDir opens a subdirectory: ENOTDIR if it is none (also for symlinks).
	OpenDir(name string) (Dir, error)
	// Open opens a regular file for reading, with write for writing too.
	// EISDIR, ELOOP or ENXIO for other types.
	Open(name string, write bool) (File, error)
	// Create makes a regular file that must not exist, with exactly perm, and
	// opens it for reading and writing.
	Create(name string, perm uint32) (File, error)
	// Mkdir makes a directory with exactly perm.
	Mkdir(name string, perm uint32) error
	// Mknod makes a FIFO, socket or device (type and exactly these permissions in mode).
	Mknod(name string, mode, rdev uint32) error
	// Symlink makes a symlink.
	Symlink(target, name string) error
	// Readlink returns a symlink's target.
	Readlink(name string) (string, error)
	// Link gives the inode under name a further name in to (same FS). The last
	// component is not followed: symlinks can be linked.
	Link(name string, to Dir, newname string) error
	// Remove is unlink(2); RemoveDir is rmdir(2).
	Remove(name string) error
	RemoveDir(name string) error
	// Rename is renameat2(2) with flags RenameNoReplace, RenameExchange or 0.
	Rename(name string, to Dir, newname string, flags uint) error
	// Stat describes what is under name, symlinks themselves; StatSelf the directory itself.
	Stat(name string) (Info, error)
	StatSelf() (Info, error)
	// ReadDir calls f for each entry but "." and "..", in the file system's order,
	// beginning after the entry whose cookie is given (0: at the start), until f
	// returns false or the end. Cookies are the file system's (d_off) and stay
	// valid while the directory lives. typ is S_IF* or 0 where unknown. It uses a
	// descriptor or position of its own, so that concurrent listings do not meet.
	ReadDir(after uint64, f func(name string, ino uint64, typ uint32, cookie uint64) bool) error

	// The attributes of what is under name; symlinks themselves. name "" means
	// the directory itself, for all six.
	Chmod(name string, perm uint32) error // EOPNOTSUPP for symlinks
	Chown(name string, uid, gid uint32) error
	Utimes(name string, atime, mtime int64) error // OmitTime leaves one as it is
	GetXattr(name, attr string) ([]byte, error)
	SetXattr(name, attr string, value []byte, flags int) error
	RemoveXattr(name, attr string) error
	ListXattr(name string) ([]string, error)

	// Lock takes the directory for this Dir until it is closed or the process
	// ends: EWOULDBLOCK if another Dir, here or in another process, has it.
	Lock() error
	// Sync makes the names in this directory durable.
	Sync() error
	Close() error
}

// OmitTime as a time of Utimes leaves that time alone.
const OmitTime = int64(-1 << 63)

// Flags of Rename.
const (
	RenameNoReplace = 1
	RenameExchange  = 2
)

// File is an open regular file. Safe for concurrent use, as pread and pwrite are.
type File interface {
	io.ReaderAt // io.EOF at the end, as os.File
	io.WriterAt
	// Append writes at the end, wherever that is when its turn comes: two that
	// append do not meet, in whatever process. at is where its n bytes went.
	Append(p []byte) (at int64, n int, err error)
	Truncate(size int64) error
	// PunchHole makes a range read as zeros and frees its blocks; the size stays
	// (fallocate(2) with PUNCH_HOLE and KEEP_SIZE). EOPNOTSUPP where the file system
	// has no holes: see Zero.
	PunchHole(off, n int64) error
	// Allocate reserves blocks for a range, which goes on to read as it did; with
	// keepSize the file ends where it did, otherwise not before the range's end
	// (fallocate(2) with mode 0 or KEEP_SIZE). EOPNOTSUPP where the file system
	// cannot. After ENOSPC some of the blocks, and of the size, may be there.
	Allocate(off, n int64, keepSize bool) error
	// NextData returns the next range with data at or after off, as SEEK_DATA and
	// SEEK_HOLE tell; ok is false when there is none. A file system without holes
	// has data everywhere.
	NextData(off int64) (start, end int64, ok bool, err error)
	// CopyTo copies a range of this file to another of the same FS, sharing
	// blocks where the file system can (copy_file_range(2)). A source that ends
	// before is io.ErrUnexpectedEOF, after what there was; ranges of one file that
	// overlap are EINVAL.
	CopyTo(dst File, srcOff, dstOff, n int64) error
	Stat() (Info, error)
	Utimes(atime, mtime int64) error
	// Datasync makes content and size durable (fdatasync(2)); an error means that
	// nobody knows what is, and is not to be retried. Sync is fsync(2).
	Datasync() error
	Sync() error
	Close() error
}

// Locker is a File whose locks other processes of the machine respect. They belong to this File and end with it.
// Only files of an operating system are Lockers.
type Locker interface {
	File
	// LockRange locks the bytes from start to end, both included, or unlocks them, as
	// F_OFD_SETLK: EAGAIN where another process has a lock in the way, EBADF where the file is not open for that.
	LockRange(start, end uint64, how Hold) error
	// RangeLocked is a lock of another process that is in the way of one, as F_OFD_GETLK tells.
	RangeLocked(start, end uint64, how Hold) (other RangeLock, held bool, err error)
	// LockWhole does the same with flock(2). A change from Shared to Exclusive that fails may leave it unlocked.
	LockWhole(how Hold) error
}

// Hold is how something is locked.
type Hold uint8

// The kinds of locks, in the order of their strength.
const (
	Unlocked Hold = iota
	Shared
	Exclusive
)

// RangeLock is a lock of bytes from Start to End, both included.
type RangeLock struct {
	Start, End uint64
	How        Hold
}

// Zero makes a range of a file read as zeros: a hole where the file system has
// holes, otherwise zeros, up to the file's end.
func Zero(f File, off, n int64) error {
	err := f.PunchHole(off, n)
	if !errors.Is(err, syscall.EOPNOTSUPP) {
		return err
	}
	info, err := f.Stat()
	if err != nil {
		return err
	}
	zeros := make([]byte, 64<<10)
	for end := min(off+n, info.Size); off < end; {
		w, err := f.WriteAt(zeros[:min(end-off, int64(len(zeros)))], off)
		if err != nil {
			return err
		}
		off += int64(w)
	}
	return nil
}

// Package status is the closed list of what can go wrong, with the same number
// at both ends of the wire, and the error type that carries one.
//
// Codes are for programs: errno in a mount, exit codes of commands. Texts are
// for people. It imports nothing of Cage.
package status

import (
	"context"
	"errors"
	"fmt"
	"os"
	"syscall"
)

// Code is one kind of failure. The numbers are on the wire and in journals:
// append only, never renumber.
type Code uint16

// The codes. The comment says what usually causes one.
const (
	OK            Code = 0
	Internal      Code = 1  // a broken invariant, or an error nobody foresaw: EIO
	NotFound      Code = 2  // no such name
	Exists        Code = 3  // the name is taken
	NotDir        Code = 4  // a component of a path is not a directory
	IsDir         Code = 5  // a directory where a file is needed
	NotEmpty      Code = 6  // rmdir or rename over a directory with entries
	Access        Code = 7  // permission bits forbid it: EACCES
	NotOwner      Code = 8  // only the owner or root may: EPERM
	ReadOnly      Code = 9  // export, mount or journal is read-only: EROFS
	NoSpace       Code = 10 // file system, reserve or journal is full
	Quota         Code = 11 // the user's quota on the server is used up
	TooLarge      Code = 12 // beyond the largest file
	NameTooLong   Code = 13
	CrossDevice   Code = 14 // between exports or file systems
	TooManyLinks  Code = 15
	Invalid       Code = 16 // an argument that cannot be
	Stale         Code = 17 // the file is gone, or its number was never given
	Busy          Code = 18 // a mode, a lock or a mount is in the way
	NoAttr        Code = 19 // no such extended attribute
	Range         Code = 20 // the buffer is too small for the answer
	Unsupported   Code = 21 // this file system or this version cannot: EOPNOTSUPP
	IO            Code = 22 // the server's disk failed
	Timeout       Code = 23 // the deadline of the mount passed: ETIMEDOUT
	Interrupted   Code = 24 // the caller was interrupted before anything happened
	Unreachable   Code = 25 // no connection to the server
	Loop          Code = 26 // too many symlinks, or a symlink where none may be
	NoDevice      Code = 27 // ENXIO
	Again         Code = 28 // what the change relied on is gone: take a new number
	Conflict      Code = 29 // undo or rollback would destroy later changes
	Damaged       Code = 30 // a journal or dump whose checksums do not hold
	Gap           Code = 31 // history is not known there
	NoHistory     Code = 32 // older than what is kept
	Version       Code = 33 // the peer or the file is of a newer version
	BadFrame      Code = 34 // bytes that are no message
	UnknownExport Code = 35
	WrongKey      Code = 36 // key or pin does not match
	Draining      Code = 37 // the server is stopping: connect again soon
	LostSession   Code = 38 // the server does not know the session any more
	TextBusy      Code = 39
	TooBig        Code = 40 // E2BIG: an attribute's value
	TooManyFiles  Code = 41 // EMFILE, ENFILE at the server
	Usage         Code = 42 // a wrong flag or argument of a command
	NoMoment      Code = 43 // no such label, or a moment in the future
	Locked        Code = 44 // somebody else has the lock: EAGAIN
	Deadlock      Code = 45 // waiting for the lock would never end
	NoLocks       Code = 46 // no room for more locks
	LostLock      Code = 47 // a lock that the file was open under is lost
	maxCode       Code = 48
)

var texts = [...]string{
	OK: "ok", Internal: "internal error", NotFound: "no such file or directory", Exists: "file exists",
	NotDir: "not a directory", IsDir: "is a directory", NotEmpty: "directory not empty",
	Access: "permission denied", NotOwner: "operation not permitted", ReadOnly: "read-only",
	NoSpace: "no space left", Quota: "quota exceeded", TooLarge: "file too large",
	NameTooLong: "file name too long", CrossDevice: "crosses file systems", TooManyLinks: "too many links",
	Invalid: "invalid argument", Stale: "stale file number", Busy: "busy", NoAttr: "no such attribute",
	Range: "result too large for the buffer", Unsupported: "not supported", IO: "input/output error",
	Timeout: "timed out", Interrupted: "interrupted", Unreachable: "server unreachable",
	Loop: "too many levels of symbolic links", NoDevice: "no such device", Again: "try again",
	Conflict: "conflict", Damaged: "damaged", Gap: "history has a gap there",
	NoHistory: "no longer in history", Version: "unsupported version", BadFrame: "malformed message",
	UnknownExport: "no such export", WrongKey: "key not accepted", Draining: "server is stopping",
	LostSession: "session unknown to the server", TextBusy: "text file busy", TooBig: "value too big",
	TooManyFiles: "too many open files", Usage: "usage", NoMoment: "no such moment",
	Locked: "locked by somebody else", Deadlock: "waiting for the lock would never end",
	NoLocks: "too many locks", LostLock: "the lock was lost",
}

// String is a short text for people.
func (c Code) String() string {
	if int(c) < len(texts) {
		return texts[c]
	}
	return fmt.Sprintf("status %d", uint16(c))
}

// Codes returns all codes, for tests of tables.
func Codes() []Code {
	out := make([]Code, maxCode)
	for i := range out {
		out[i] = Code(i)
	}
	return out
}

// Error is a failure with its code: which operation, on what, and why.
type Error struct {
	Code   Code
	Op     string // "read", "rename", …; may be empty
	Object string // path, name or number; may be empty
	Err    error  // cause; may be nil
}

// Error is `op object: cause`, or the code's text where there is no cause.
func (e *Error) Error() string {
	s := e.Op
	if e.Object != "" {
		if s != "" {
			s += " "
		}
		s += e.Object
	}
	if s != "" {
		s += ": "
	}
	if e.Err != nil {
		return s + e.Err.Error()
	}
	return s + e.Code.String()
}

// Unwrap returns the cause.
func (e *Error) Unwrap() error { return e.Err }

// Is makes errors.Is(err, status.NotFound) work through Code's Error method.
func (e *Error) Is(target error) bool {
	c, ok := target.(Code)
	return ok && e.Code == c
}

// Error lets a bare Code be an error, as sentinel and as cause.
func (c Code) Error() string { return c.String() }

// New makes an error with a code.
func New(c Code, op, object string) error { return &Error{Code: c, Op: op, Object: object} }

// Newf makes an error whose text is the formatted cause; %w in it is kept.
func Newf(c Code, op, object, format string, args ...any) error {
	return &Error{Code: c, Op: op, Object: object, Err: fmt.Errorf(format, args...)}
}

// Wrap adds operation and object to err, keeping its code. nil stays nil.
func Wrap(err error, op, object string) error {
	if err == nil {
		return nil
	}
	return &Error{Code: Of(err), Op: op, Object: object, Err: err}
}

// Of returns the code of an error: its own, or that of the errno, context or os
// error in its chain; Internal for anything unknown, OK for nil.
func Of(err error) Code {
	if err == nil {
		return OK
	}
	var e *Error
	if errors.As(err, &e) {
		return e.Code
	}
	var c Code
	if errors.As(err, &c) {
		return c
	}
	var no syscall.Errno
	if errors.As(err, &no) {
		if c, ok := fromErrno[no]; ok {
			return c
		}
		return IO
	}
	switch {
	case errors.Is(err, context.DeadlineExceeded), errors.Is(err, os.ErrDeadlineExceeded):
		return Timeout
	case errors.Is(err, context.Canceled):
		return Interrupted
	case errors.Is(err, os.ErrNotExist):
		return NotFound
	}
	return Internal
}

// Full reports whether an error says that there is no space: on the file system,
// or in somebody's share of it.
func Full(err error) bool {
	c := Of(err)
	return c == NoSpace || c == Quota
}

// fromErrno turns what the server's kernel says into codes.
var fromErrno = map[syscall.Errno]Code{
	syscall.ENOENT: NotFound, syscall.EEXIST: Exists, syscall.ENOTDIR: NotDir, syscall.EISDIR: IsDir,
	syscall.ENOTEMPTY: NotEmpty, syscall.EACCES: Access, syscall.EPERM: NotOwner, syscall.EROFS: ReadOnly,
	syscall.ENOSPC: NoSpace, syscall.EDQUOT: Quota, syscall.EFBIG: TooLarge, syscall.ENAMETOOLONG: NameTooLong,
	syscall.EXDEV: CrossDevice, syscall.EMLINK: TooManyLinks, syscall.EINVAL: Invalid, syscall.ESTALE: Stale,
	syscall.EBUSY: Busy, syscall.ENODATA: NoAttr, syscall.ERANGE: Range, syscall.EOPNOTSUPP: Unsupported,
	syscall.ENOSYS: Unsupported, syscall.EIO: IO, syscall.ETIMEDOUT: Timeout, syscall.EINTR: Interrupted,
	syscall.ELOOP: Loop, syscall.ENXIO: NoDevice, syscall.EAGAIN: Again, syscall.ETXTBSY: TextBusy,
	syscall.E2BIG: TooBig, syscall.EMFILE: TooManyFiles, syscall.ENFILE: TooManyFiles,
	syscall.EHOSTUNREACH: Unreachable, syscall.ECONNREFUSED: Unreachable, syscall.ECONNRESET: Unreachable,
	syscall.EPIPE: Unreachable, syscall.ENOTCONN: Unreachable,
}

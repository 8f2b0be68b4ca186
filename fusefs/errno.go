package fusefs

import (
	"errors"
	"sync"
	"syscall"

	"github.com/hanwen/go-fuse/v2/fuse"
	"github.com/rs/zerolog"

	"cagefs.dev/cage/remote/status"
)

// errnos is what a process sees for each code. There is no ENOSYS in it: the
// kernel takes that as "never ask again", and fsync(2) would become a no-op
// that succeeds. Codes that only tools can meet are EIO.
var errnos = [...]syscall.Errno{
	status.OK:            0,
	status.Internal:      syscall.EIO,
	status.NotFound:      syscall.ENOENT,
	status.Exists:        syscall.EEXIST,
	status.NotDir:        syscall.ENOTDIR,
	status.IsDir:         syscall.EISDIR,
	status.NotEmpty:      syscall.ENOTEMPTY,
	status.Access:        syscall.EACCES,
	status.NotOwner:      syscall.EPERM,
	status.ReadOnly:      syscall.EROFS,
	status.NoSpace:       syscall.ENOSPC,
	status.Quota:         syscall.EDQUOT,
	status.TooLarge:      syscall.EFBIG,
	status.NameTooLong:   syscall.ENAMETOOLONG,
	status.CrossDevice:   syscall.EXDEV,
	status.TooManyLinks:  syscall.EMLINK,
	status.Invalid:       syscall.EINVAL,
	status.Stale:         syscall.ESTALE, // the kernel looks the name up again, once
	status.Busy:          syscall.EBUSY,
	status.NoAttr:        syscall.ENODATA,
	status.Range:         syscall.ERANGE,
	status.Unsupported:   syscall.EOPNOTSUPP,
	status.IO:            syscall.EIO,
	status.Timeout:       syscall.ETIMEDOUT,
	status.Interrupted:   syscall.EINTR,
	status.Unreachable:   syscall.ETIMEDOUT,
	status.Loop:          syscall.ELOOP,
	status.NoDevice:      syscall.ENXIO,
	status.Again:         syscall.EIO,
	status.Conflict:      syscall.EIO,
	status.Damaged:       syscall.EIO,
	status.Gap:           syscall.EIO,
	status.NoHistory:     syscall.ESTALE,
	status.Version:       syscall.EIO,
	status.BadFrame:      syscall.EIO,
	status.UnknownExport: syscall.ESTALE,
	status.WrongKey:      syscall.EACCES,
	status.Draining:      syscall.ETIMEDOUT,
	status.LostSession:   syscall.EIO,
	status.TextBusy:      syscall.ETXTBSY,
	status.TooBig:        syscall.E2BIG,
	status.TooManyFiles:  syscall.ENFILE,
	status.Usage:         syscall.EINVAL,
	status.NoMoment:      syscall.ENOENT,
	status.Locked:        syscall.EAGAIN,
	status.Deadlock:      syscall.EDEADLK,
	status.NoLocks:       syscall.ENOLCK,
	status.LostLock:      syscall.EIO,
}

// errnoOf is the table alone. known is false for an error that no layer below
// foresaw.
func errnoOf(err error) (errno fuse.Status, known bool) {
	if err == nil {
		return fuse.OK, true
	}
	code := status.Of(err)
	if int(code) >= len(errnos) || code == status.OK {
		return fuse.EIO, false
	}
	return fuse.Status(errnos[code]), code != status.Internal
}

// maxUnknown bounds how many texts of unforeseen errors are remembered.
const maxUnknown = 128

// errorLog logs each unforeseen error once. Safe for concurrent use.
type errorLog struct {
	log zerolog.Logger // set at construction

	mu   sync.Mutex
	seen map[string]struct{} // guarded by mu
}

// status turns the error of an operation into what the kernel is told.
func (l *errorLog) status(op string, err error) fuse.Status {
	errno, known := errnoOf(err)
	if !known && l.first(op+": "+err.Error()) {
		event := l.log.Error().Err(err).Str("op", op)
		var e *status.Error
		if errors.As(err, &e) {
			event = event.Uint16("code", uint16(e.Code))
		}
		event.Msg("unforeseen error, reported as EIO")
	}
	return errno
}

// first reports whether a text is seen for the first time.
func (l *errorLog) first(text string) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	if _, ok := l.seen[text]; ok || len(l.seen) >= maxUnknown {
		return false
	}
	if l.seen == nil {
		l.seen = make(map[string]struct{})
	}
	l.seen[text] = struct{}{}
	return true
}

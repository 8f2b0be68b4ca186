package record

import (
	"errors"
	"fmt"

	"cagefs.dev/cage/remote/status"
)

// What a decoder can say of bytes that are no frame. Whether a bad frame was
// acknowledged, only what comes after it in the log can tell. A frame or segment
// of a newer format is a status.Version.
var (
	// ErrEnd: zeros where a frame would begin. The log ends here, unless there is
	// something behind.
	ErrEnd = errors.New("end of the log")
	// ErrTorn: the bytes end before the frame does. Usually the last write of a
	// process or machine that died.
	ErrTorn = status.Newf(status.Damaged, "", "", "cut short")
	// ErrRot: the bytes are not what was written: a checksum does not hold, or
	// what it covers makes no sense. A write that reached the disk in part, or
	// a disk that forgets.
	ErrRot = status.Newf(status.Damaged, "", "", "damaged")
)

func rot(format string, args ...any) error {
	return fmt.Errorf("%w: %s", ErrRot, fmt.Sprintf(format, args...))
}

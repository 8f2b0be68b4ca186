package watch

import (
	"bytes"
	"encoding/binary"
	"errors"
)

// What the kernel writes into a read of inotify's descriptor, in the machine's
// byte order: events one after the other, each
//
//	 0  i32  watch, -1 when the queue has overflowed
//	 4  u32  mask
//	 8  u32  cookie, the same in both events of a rename
//	12  u32  bytes of the name with its padding
//	16       name and zeros; none for the directory itself

// inEvent is one of inotify's.
type inEvent struct {
	wd           int32
	mask, cookie uint32
	name         string
}

var errInEvent = errors.New("inotify: an event that makes no sense")

// decodeInotify calls f for each event in b.
func decodeInotify(b []byte, f func(inEvent)) error {
	for len(b) > 0 {
		if len(b) < 16 {
			return errInEvent
		}
		n := binary.NativeEndian.Uint32(b[12:])
		if uint64(n) > uint64(len(b)-16) {
			return errInEvent
		}
		name, _, _ := bytes.Cut(b[16:16+n], []byte{0})
		f(inEvent{wd: int32(binary.NativeEndian.Uint32(b)), mask: binary.NativeEndian.Uint32(b[4:]),
			cookie: binary.NativeEndian.Uint32(b[8:]), name: string(name)})
		b = b[16+n:]
	}
	return nil
}

package watch

import (
	"bytes"
	"encoding/binary"
	"errors"

	"golang.org/x/sys/unix"
)

// What the kernel writes into a read of fanotify's descriptor, in the machine's
// byte order: events one after the other, each
//
//	 0  u32  bytes of the event
//	 4  u8   version: 3
//	 5  u8   zero
//	 6  u16  bytes of this header: 24
//	 8  u64  mask
//	16  i32  descriptor, -1 here
//	20  i32  process
//	24       information records
//
// and an information record of a directory and a name
//
//	 0  u8   type: DFID_NAME, OLD_DFID_NAME, NEW_DFID_NAME
//	 1  u8   zero
//	 2  u16  bytes of the record
//	 4  [8]  id of the file system
//	12  u32  bytes of the handle
//	16  i32  type of the handle
//	20       handle, then the name and a zero

// event is one of fanotify's.
type event struct {
	mask      uint64
	pid       int32
	dir, old  handle // old: of a rename, where the name was
	name, was string
}

// handle is a directory's, as the kernel knows it: comparable, and all that is
// needed to open it.
type handle struct {
	typ   int32
	bytes string
}

var errEvent = errors.New("fanotify: an event that makes no sense")

// decode calls f for each event in b.
func decode(b []byte, f func(event)) error {
	for len(b) > 0 {
		if len(b) < 24 {
			return errEvent
		}
		n, head := binary.NativeEndian.Uint32(b), binary.NativeEndian.Uint16(b[6:])
		if n < 24 || uint64(n) > uint64(len(b)) || head < 24 || uint32(head) > n || b[4] != unix.FANOTIFY_METADATA_VERSION {
			return errEvent
		}
		e := event{mask: binary.NativeEndian.Uint64(b[8:]), pid: int32(binary.NativeEndian.Uint32(b[20:]))}
		if err := e.decodeInfo(b[head:n]); err != nil {
			return err
		}
		f(e)
		b = b[n:]
	}
	return nil
}

func (e *event) decodeInfo(b []byte) error {
	for len(b) > 0 {
		if len(b) < 4 {
			return errEvent
		}
		n := int(binary.NativeEndian.Uint16(b[2:]))
		if n < 4 || n > len(b) {
			return errEvent
		}
		typ, info := b[0], b[:n]
		b = b[n:]
		switch typ {
		case unix.FAN_EVENT_INFO_TYPE_DFID_NAME, unix.FAN_EVENT_INFO_TYPE_NEW_DFID_NAME, unix.FAN_EVENT_INFO_TYPE_OLD_DFID_NAME:
		default:
			continue
		}
		if n < 20 {
			return errEvent
		}
		size := binary.NativeEndian.Uint32(info[12:])
		if uint64(size) > uint64(n-20) {
			return errEvent
		}
		h := handle{typ: int32(binary.NativeEndian.Uint32(info[16:])), bytes: string(info[20 : 20+size])}
		name, _, _ := bytes.Cut(info[20+size:], []byte{0})
		if typ == unix.FAN_EVENT_INFO_TYPE_OLD_DFID_NAME {
			e.old, e.was = h, string(name)
		} else {
			e.dir, e.name = h, string(name)
		}
	}
	return nil
}

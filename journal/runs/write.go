package runs

import (
	"encoding/binary"

	"cagefs.dev/cage/journal/vfs"
)

// writeBuffer is how many bytes go into the file at once.
const writeBuffer = 256 << 10

// writer writes the file of a run. Owned by one goroutine.
type writer struct {
	f      vfs.File
	buf    []byte // what goes to at
	at     int64
	block  []byte
	starts []byte
	first  []byte // key of the block
	index  []byte
	blocks uint32
}

func newWriter(f vfs.File) *writer {
	w := &writer{f: f, buf: append(make([]byte, 0, writeBuffer+blockSize), magic...)}
	w.buf = binary.LittleEndian.AppendUint32(w.buf, version)
	w.buf = binary.LittleEndian.AppendUint32(w.buf, 0)
	return w
}

// add writes an entry, whose key must be above that of the one before.
func (w *writer) add(e Entry) error {
	size := len(e.Key) + len(e.Value) + 2*binary.MaxVarintLen32
	if len(w.starts) > 0 && len(w.block)+len(w.starts)+size+4 > blockSize {
		if err := w.endBlock(); err != nil {
			return err
		}
	}
	if len(w.starts) == 0 {
		w.first = append(w.first[:0], e.Key...)
	}
	w.starts = binary.LittleEndian.AppendUint16(w.starts, uint16(len(w.block)))
	w.block = appendEntry(w.block, e)
	return nil
}

func (w *writer) endBlock() error {
	if len(w.starts) == 0 {
		return nil
	}
	b := append(w.block, w.starts...)
	b = binary.LittleEndian.AppendUint16(b, uint16(len(w.starts)/2))
	w.index = appendIndex(w.index, w.first, len(b), checksum(b))
	w.blocks++
	w.buf = append(w.buf, b...)
	w.block, w.starts = b[:0], w.starts[:0]
	if len(w.buf) < writeBuffer {
		return nil
	}
	return w.flush()
}

func (w *writer) flush() error {
	_, err := w.f.WriteAt(w.buf, w.at)
	w.at += int64(len(w.buf))
	w.buf = w.buf[:0]
	return err
}

// finish ends the file and makes its content durable.
func (w *writer) finish() error {
	if err := w.endBlock(); err != nil {
		return err
	}
	at := w.at + int64(len(w.buf))
	w.buf = append(w.buf, w.index...)
	foot := len(w.buf)
	w.buf = binary.LittleEndian.AppendUint64(w.buf, uint64(at))
	w.buf = binary.LittleEndian.AppendUint32(w.buf, uint32(len(w.index)))
	w.buf = binary.LittleEndian.AppendUint32(w.buf, checksum(w.index))
	w.buf = binary.LittleEndian.AppendUint32(w.buf, w.blocks)
	w.buf = binary.LittleEndian.AppendUint32(w.buf, checksum(w.buf[foot:]))
	if err := w.flush(); err != nil {
		return err
	}
	return w.f.Sync()
}

// Package branch is the form of a branch: writes that a client had acknowledged
// to its programs and that could not be applied, in the order of its log. The
// server keeps one for each session that has such, in a file; a mount that ends
// without having reached its server leaves one in a file of its own.
//
// It promises that what was written whole is read whole, that a torn end is told from damage, and
// that no length in a file makes the reader take more memory than the largest write. It is
// bytes in, bytes out: it opens no file and knows no journal.
//
// A file is Magic and then frames: the length of the payload and its CRC-32C, each
// u32 little endian, and the payload, whose integers are varints. The first frame is
// the Head, all others are Writes.
package branch

import (
	"bufio"
	"encoding/binary"
	"hash/crc32"
	"io"

	"cagefs.dev/cage/remote/proto"
	"cagefs.dev/cage/remote/status"
)

// Magic begins a file, with the version of the form.
const Magic = "CAGEBR\x00\x01"

// Limits of what a file may say.
const (
	maxText  = proto.MaxPath
	maxFrame = proto.MaxIO + 2*maxText // larger than any payload
	frameLen = 8
)

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// Head says whose writes they are.
type Head struct {
	Session proto.SessionID
	Client  string
	Source  string // HOST:PORT:/EXPORT that they were for; "" in a server's file
	Began   proto.Time
}

// Write is one of them.
type Write struct {
	Seq  proto.Seq
	Time proto.Time // when it was put here
	UID  uint32
	PID  uint32
	Comm string
	ID   proto.FileID
	Path string // below the export at that time; "": not known
	// Base is up to which record the file is what the writer knew: all newer ones are
	// others'. 0: not known.
	Base   proto.LSN
	Off    uint64
	Append bool   // it was to go to the end of the file; Off is where the writer took that to be
	Data   []byte // not empty, at most proto.MaxIO
	At     int64  // where Data begins in the file; set by the Reader
}

// AppendHead appends the beginning of a file to b.
func AppendHead(b []byte, h *Head) []byte {
	return frame(append(b, Magic...), func(b []byte) []byte {
		b = binary.LittleEndian.AppendUint64(b, uint64(h.Session))
		b = binary.AppendVarint(b, int64(h.Began))
		return text(text(b, h.Client), h.Source)
	})
}

// AppendWrite appends a write to b.
func AppendWrite(b []byte, w *Write) []byte {
	return frame(b, func(b []byte) []byte {
		b = binary.AppendUvarint(b, uint64(w.Seq))
		b = binary.AppendVarint(b, int64(w.Time))
		b = binary.AppendUvarint(b, uint64(w.UID))
		b = binary.AppendUvarint(b, uint64(w.PID))
		b = text(b, w.Comm)
		b = binary.AppendUvarint(b, uint64(w.ID))
		b = text(b, w.Path)
		b = binary.AppendUvarint(b, uint64(w.Base))
		b = binary.AppendUvarint(b, w.Off)
		if w.Append {
			b = append(b, 1)
		} else {
			b = append(b, 0)
		}
		return append(b, w.Data...)
	})
}

func text(b []byte, s string) []byte {
	s = s[:min(len(s), maxText)]
	return append(binary.AppendUvarint(b, uint64(len(s))), s...)
}

func frame(b []byte, payload func([]byte) []byte) []byte {
	start := len(b)
	b = payload(append(b, make([]byte, frameLen)...))
	body := b[start+frameLen:]
	binary.LittleEndian.PutUint32(b[start:], uint32(len(body)))
	binary.LittleEndian.PutUint32(b[start+4:], crc32.Checksum(body, castagnoli))
	return b
}

// Reader reads a file from its beginning.
type Reader struct {
	Head Head
	r    *bufio.Reader
	pos  int64 // behind what was read whole
}

// NewReader reads the head: status.Damaged if it is none, with io.ErrUnexpectedEOF if it
// may be the torn beginning of one; Version of another version.
func NewReader(r io.Reader) (*Reader, error) {
	br := &Reader{r: bufio.NewReaderSize(r, 64<<10)}
	magic := make([]byte, len(Magic))
	switch _, err := io.ReadFull(br.r, magic); {
	case err == io.EOF || err == io.ErrUnexpectedEOF:
		return nil, headless()
	case err != nil:
		return nil, err
	case string(magic[:len(Magic)-1]) != Magic[:len(Magic)-1]:
		return nil, damaged("it is no branch")
	case string(magic) != Magic:
		return nil, status.Newf(status.Version, "read", "branch", "it is of version %d, this program reads %d", magic[len(Magic)-1], Magic[len(Magic)-1])
	}
	br.pos = int64(len(Magic))
	body, err := br.frame()
	if err != nil {
		if err == io.EOF {
			err = headless()
		}
		return nil, err
	}
	d := decoder{b: body}
	br.Head = Head{Session: proto.SessionID(d.fixed64()), Began: proto.Time(d.varint()), Client: d.text(), Source: d.text()}
	return br, d.err
}

// Next returns the next write, whose Data is the caller's; io.EOF behind the last whole one,
// status.Damaged where something else than a torn end follows.
func (br *Reader) Next() (*Write, error) {
	at := br.pos
	body, err := br.frame()
	if err != nil {
		return nil, err
	}
	d := decoder{b: body}
	w := &Write{Seq: proto.Seq(d.uvarint()), Time: proto.Time(d.varint()), UID: uint32(d.uvarint()), PID: uint32(d.uvarint()), Comm: d.text(),
		ID: proto.FileID(d.uvarint()), Path: d.text(), Base: proto.LSN(d.uvarint()), Off: d.uvarint(), Append: d.flag()}
	w.Data, w.At = d.b, at+frameLen+int64(len(body)-len(d.b))
	if n := len(w.Data); d.err == nil && (n == 0 || n > proto.MaxIO || w.Off > 1<<63-1-uint64(n) || w.ID == 0 || w.ID > proto.MaxFileID) {
		d.err = damaged("a write of it cannot be one")
	}
	return w, d.err
}

// Size is where the last whole frame ends that was read.
func (br *Reader) Size() int64 { return br.pos }

// frame reads a payload: io.EOF at the end of the file, also of a torn one.
func (br *Reader) frame() ([]byte, error) {
	var head [frameLen]byte
	if _, err := io.ReadFull(br.r, head[:]); err != nil {
		return nil, torn(err)
	}
	n := binary.LittleEndian.Uint32(head[:])
	if n > maxFrame {
		return nil, damaged("a length in it cannot be one")
	}
	body := make([]byte, n)
	if _, err := io.ReadFull(br.r, body); err != nil {
		return nil, torn(err)
	}
	if crc32.Checksum(body, castagnoli) != binary.LittleEndian.Uint32(head[4:]) {
		if _, err := br.r.Peek(1); err == io.EOF { // a power cut left the size, not the bytes
			return nil, io.EOF
		}
		return nil, damaged("a checksum of it is wrong")
	}
	br.pos += frameLen + int64(n)
	return body, nil
}

func torn(err error) error {
	if err == io.ErrUnexpectedEOF {
		return io.EOF
	}
	return err
}

func damaged(what string) error { return status.Newf(status.Damaged, "read", "branch", "%s", what) }

func headless() error {
	return status.Newf(status.Damaged, "read", "branch", "it is too short for a branch: %w", io.ErrUnexpectedEOF)
}

// decoder takes values from the front of a payload. It fails once and stays failed.
type decoder struct {
	b   []byte
	err error
}

func (d *decoder) fail() {
	d.b = nil
	if d.err == nil {
		d.err = damaged("a frame of it is too short")
	}
}

func (d *decoder) uvarint() uint64 {
	v, n := binary.Uvarint(d.b)
	if n <= 0 {
		d.fail()
		return 0
	}
	d.b = d.b[n:]
	return v
}

func (d *decoder) varint() int64 {
	v, n := binary.Varint(d.b)
	if n <= 0 {
		d.fail()
		return 0
	}
	d.b = d.b[n:]
	return v
}

func (d *decoder) fixed64() uint64 {
	if len(d.b) < 8 {
		d.fail()
		return 0
	}
	v := binary.LittleEndian.Uint64(d.b)
	d.b = d.b[8:]
	return v
}

func (d *decoder) text() string {
	n := d.uvarint()
	if n > uint64(len(d.b)) || n > maxText {
		d.fail()
		return ""
	}
	s := string(d.b[:n])
	d.b = d.b[n:]
	return s
}

func (d *decoder) flag() bool { return d.uvarint() == 1 }

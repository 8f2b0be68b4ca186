package wire

import (
	"bufio"
	"encoding/binary"
	"errors"
	"io"

	"cagefs.dev/cage/remote/proto"
	"cagefs.dev/cage/remote/status"
)

// Limits of frames and lists. Those of single words are in proto.
const (
	MaxFrame   = proto.MaxIO + 64<<10 // bytes of a payload
	MaxList    = proto.MaxIO          // bytes of a list that goes on in further replies or is cut
	MaxEntries = 1024                 // elements of a list, where nothing else is said
	MaxOpens   = 1 << 16              // files that a resuming client may list as open
	MaxLocks   = 8192                 // locks of a session
	MaxClaims  = 65536                // leases that a client which comes back can name
	MaxWants   = 1024                 // leases that are asked for at once
	MaxNeeds   = 16                   // leases that one change needs
	MaxSecret  = 64                   // bytes of a join's secret
	MaxWord    = 255                  // bytes of a host name, an export's name, an operation's name
	MaxText    = 4096                 // bytes of a text for people
)

// HeaderSize is the bytes of a frame header.
const HeaderSize = 16

// Flags say what a frame is. Without any it is a request.
type Flags uint16

// The flags. No other combinations than reply, reply|error and push occur.
const (
	FlagReply Flags = 1 << iota // the answer to the request with this id
	FlagError                   // with FlagReply: the payload is an ErrorRep
	FlagPush                    // sent unasked by the server; the id is 0
)

// Header is what stands in front of every payload.
type Header struct {
	Len   uint32 // bytes of the payload; set by AppendFrame and ReadFrame
	Op    Opcode
	Flags Flags
	ID    uint64 // the sender of a request chooses it, unique among those without a reply; never 0
}

// Request is the header of a request.
func Request(op Opcode, id uint64) Header { return Header{Op: op, ID: id} }

// Reply is the header of the reply to a request.
func (h Header) Reply() Header { return Header{Op: h.Op, Flags: FlagReply, ID: h.ID} }

// Push is the header of a push.
func Push(op Opcode) Header { return Header{Op: op, Flags: FlagPush} }

// IsReply reports whether the frame is a reply, also an error.
func (h Header) IsReply() bool { return h.Flags&FlagReply != 0 }

// IsError reports whether the frame is a reply with an ErrorRep.
func (h Header) IsError() bool { return h.Flags&FlagError != 0 }

// IsPush reports whether the frame is a push.
func (h Header) IsPush() bool { return h.Flags&FlagPush != 0 }

// check refuses what no version 1 sender sends.
func (h Header) check(limit int) error {
	var why string
	switch {
	case int64(h.Len) > int64(limit):
		return status.Newf(status.BadFrame, "read frame", h.Op.String(),
			"payload of %d bytes, at most %d allowed", h.Len, limit)
	case h.Flags != 0 && h.Flags != FlagReply && h.Flags != FlagReply|FlagError && h.Flags != FlagPush:
		why = "unknown flags"
	case h.Flags == FlagPush && h.ID != 0:
		why = "push with a request id"
	case h.Flags != FlagPush && h.ID == 0:
		why = "request or reply without an id"
	default:
		return nil
	}
	return status.Newf(status.BadFrame, "read frame", h.Op.String(), "%s", why)
}

func (h Header) put(b []byte) {
	binary.LittleEndian.PutUint32(b[0:], h.Len)
	binary.LittleEndian.PutUint16(b[4:], uint16(h.Op))
	binary.LittleEndian.PutUint16(b[6:], uint16(h.Flags))
	binary.LittleEndian.PutUint64(b[8:], h.ID)
}

func headerOf(b []byte) Header {
	return Header{
		Len:   binary.LittleEndian.Uint32(b[0:]),
		Op:    Opcode(binary.LittleEndian.Uint16(b[4:])),
		Flags: Flags(binary.LittleEndian.Uint16(b[6:])),
		ID:    binary.LittleEndian.Uint64(b[8:]),
	}
}

// tailed is a message that ends with bytes which need not be copied to be sent.
type tailed interface {
	appendHead(b []byte) []byte
	tail() []byte
}

// AppendFrame appends a whole frame. Of a message within the package's limits
// the payload is never above MaxFrame: CheckOp and the messages' comments say
// who keeps to them; lists that can be long are cut when they are encoded.
func AppendFrame(b []byte, h Header, m Message) []byte {
	b, tail := AppendFrameHead(b, h, m)
	return append(b, tail...)
}

// AppendFrameHead appends a frame up to the bytes at its end that can be sent
// from where they are: the data of a read's reply or a write. tail is nil where
// there are none; otherwise it aliases the message and must be sent next
// (net.Buffers, or a second Write under the same lock).
func AppendFrameHead(b []byte, h Header, m Message) (head, tail []byte) {
	start := len(b)
	var none [HeaderSize]byte
	b = append(b, none[:]...)
	if t, ok := m.(tailed); ok {
		b, tail = t.appendHead(b), t.tail()
	} else {
		b = m.Append(b)
	}
	h.Len = uint32(len(b) - start - HeaderSize + len(tail))
	h.put(b[start:])
	return b, tail
}

// AppendError appends the frame that answers a request with an error.
func AppendError(b []byte, request Header, m *ErrorRep) []byte {
	h := request.Reply()
	h.Flags |= FlagError
	return AppendFrame(b, h, m)
}

// ReadFrame reads one frame with a payload of at most limit bytes. The payload is in
// buf if that is large enough, otherwise in a new slice; it is the caller's.
// Errors: io.EOF where the connection ended between frames,
// io.ErrUnexpectedEOF within one, status.BadFrame for bytes that are no frame
// (the connection cannot go on), else the reader's.
func ReadFrame(r *bufio.Reader, limit int, buf []byte) (Header, []byte, error) {
	var raw [HeaderSize]byte
	if _, err := io.ReadFull(r, raw[:]); err != nil {
		return Header{}, nil, err
	}
	h := headerOf(raw[:])
	if err := h.check(limit); err != nil {
		return Header{}, nil, err
	}
	n := int(h.Len)
	if cap(buf) < n {
		buf = make([]byte, n)
	}
	buf = buf[:n]
	if _, err := io.ReadFull(r, buf); err != nil {
		if errors.Is(err, io.EOF) {
			err = io.ErrUnexpectedEOF
		}
		return Header{}, nil, err
	}
	return h, buf, nil
}

// Decode fills m from a payload: status.BadFrame, naming what, if that is not
// one. Bytes behind the fields that this version knows are ignored.
func Decode(what string, payload []byte, m Message) error {
	c := NewCursor(what, payload)
	m.Decode(c)
	return c.Err()
}

// DecodeRequest decodes the payload of a request: status.Unsupported if this
// version has no such request, BadFrame if the payload is none.
func DecodeRequest(op Opcode, payload []byte) (Message, error) {
	return decodeNew(op, " request", payload, Table[op].NewRequest)
}

// DecodePush decodes the payload of a push. Pushes with status.Unsupported are
// of a later version and may be ignored.
func DecodePush(op Opcode, payload []byte) (Message, error) {
	return decodeNew(op, " push", payload, Table[op].NewPush)
}

// DecodeReply decodes a reply's payload into m. A reply with the error flag
// gives that error and leaves m alone.
func DecodeReply(h Header, payload []byte, m Message) error {
	if h.IsError() {
		var e ErrorRep
		if err := Decode(h.Op.String()+" error", payload, &e); err != nil {
			return err
		}
		return e.ToError()
	}
	return Decode(h.Op.String()+" reply", payload, m)
}

func decodeNew(op Opcode, part string, payload []byte, fresh func() Message) (Message, error) {
	if fresh == nil {
		return nil, unsupported(op)
	}
	m := fresh()
	if err := Decode(op.String()+part, payload, m); err != nil {
		return nil, err
	}
	return m, nil
}

func unsupported(op Opcode) error { return status.New(status.Unsupported, "request", op.String()) }

package record

import (
	"crypto/sha256"
	"encoding/binary"
	"hash/crc32"
	"math"

	"cagefs.dev/cage/remote/proto"
	"cagefs.dev/cage/remote/status"
)

// Sizes and limits of a frame.
const (
	Version      = 2        // format of frames and segments that this program writes, and the newest it reads
	HeaderSize   = 96       // bytes of a frame's header, and of a mark
	Align        = 8        // frames and sections are multiples of it
	MaxSkeletons = 1 << 20  // bytes of a skeleton section
	MaxImages    = 16 << 20 // bytes of an image section

	frameMagic = 0x66676143 // "Cagf"
	chainEnd   = 80         // the header's bytes 8 to this are in the chain
	minEntry   = 4          // bytes of the shortest record in a section
)

// Flags of a frame. A frame without records is a mark and has one of them.
const (
	FlagEnd    = 1 << iota // the segment ends here; the log goes on in the next
	FlagClosed             // the log was closed in order
	knownFlags = FlagEnd | FlagClosed
)

// Sum is a link of a chain: a truncated SHA-256.
type Sum [16]byte

// Heads are the two chains up to some frame.
type Heads struct {
	Skeletons Sum
	Images    Sum
}

// Header is what a frame says of itself.
type Header struct {
	SkeletonLen uint32 // bytes of the sections, with padding
	ImageLen    uint32
	Flags       uint16
	Segment     uint64    // id of the segment that it was written to
	First       proto.LSN // of the first record; in a mark of the next one
	Synced      proto.LSN // all up to this were durable when the frame was built
	Time        proto.Time
	Records     uint32
	Heads       Heads // with this frame
}

// Size is the number of bytes of the whole frame.
func (h *Header) Size() int64 { return HeaderSize + int64(h.SkeletonLen) + int64(h.ImageLen) }

// Next is the LSN of the first record after the frame.
func (h *Header) Next() proto.LSN { return h.First + proto.LSN(h.Records) }

// Frame is a frame without its images.
type Frame struct {
	Header
	raw []byte // header and skeleton section, as they were read
}

// EntrySize is the number of bytes that a skeleton of n bytes takes in a
// section when it comes dt after the record before.
func EntrySize(n int, dt uint64) int {
	body := uvarintLen(dt) + n
	return uvarintLen(uint64(body)) + body
}

// AppendEntry appends a skeleton to an open section. dt is the time since the
// record before, 0 for the first of a section.
func AppendEntry(section, skeleton []byte, dt uint64) []byte {
	section = binary.AppendUvarint(section, uint64(uvarintLen(dt)+len(skeleton)))
	section = binary.AppendUvarint(section, dt)
	return append(section, skeleton...)
}

func uvarintLen(v uint64) int {
	n := 1
	for ; v >= 0x80; v >>= 7 {
		n++
	}
	return n
}

// Pad is n, rounded up to a multiple of Align.
func Pad(n int) int { return (n + Align - 1) &^ (Align - 1) }

// AppendFrame appends a frame to b. The entries and images are padded, the
// lengths in h set from them and h.Heads from the heads before. The caller sees
// to the limits.
func AppendFrame(b []byte, h *Header, before Heads, entries []byte, images [][]byte) []byte {
	start := len(b)
	b = append(b, make([]byte, HeaderSize)...)
	b = append(b, entries...)
	b = append(b, make([]byte, Pad(len(entries))-len(entries))...)
	mid := len(b)
	for _, image := range images {
		b = append(b, image...)
	}
	n := len(b) - mid
	b = append(b, make([]byte, Pad(n)-n)...)

	frame := b[start:]
	h.SkeletonLen = uint32(mid - start - HeaderSize)
	h.ImageLen = uint32(len(b) - mid)
	h.Heads.Images = imageSum(before, b[mid:])
	le := binary.LittleEndian
	le.PutUint32(frame[0:], frameMagic)
	le.PutUint16(frame[8:], Version)
	le.PutUint16(frame[10:], HeaderSize)
	le.PutUint32(frame[12:], h.SkeletonLen)
	le.PutUint32(frame[16:], h.ImageLen)
	le.PutUint16(frame[20:], h.Flags)
	le.PutUint64(frame[24:], h.Segment)
	le.PutUint64(frame[32:], uint64(h.First))
	le.PutUint64(frame[40:], uint64(h.Synced))
	le.PutUint64(frame[48:], uint64(h.Time))
	le.PutUint32(frame[56:], h.Records)
	copy(frame[64:], h.Heads.Images[:])
	h.Heads.Skeletons = skeletonSum(before, frame[:mid-start])
	copy(frame[80:], h.Heads.Skeletons[:])
	le.PutUint32(frame[4:], crc32.Checksum(frame[8:mid-start], castagnoli))
	return b
}

// skeletonSum is the skeleton chain with a frame whose header and skeletons are raw.
func skeletonSum(before Heads, raw []byte) (s Sum) {
	d := sha256.New()
	d.Write(before.Skeletons[:])
	d.Write(raw[8:chainEnd])
	d.Write(raw[HeaderSize:])
	copy(s[:], d.Sum(nil))
	return s
}

// imageSum is the image chain with an image section.
func imageSum(before Heads, images []byte) (s Sum) {
	if len(images) == 0 {
		return before.Images
	}
	d := sha256.New()
	d.Write(before.Images[:])
	d.Write(images)
	copy(s[:], d.Sum(nil))
	return s
}

// DecodeHeader reads a frame's header, for its lengths; nothing is checked but
// that they can be. The errors are ErrEnd, ErrTorn, ErrRot, and, for what seems
// to be of a newer format, newer with the bytes that its checksum covers.
func DecodeHeader(b []byte) (h Header, newer int, err error) {
	le := binary.LittleEndian
	if len(b) < HeaderSize {
		if allZero(b) {
			return h, 0, ErrEnd
		}
		return h, 0, ErrTorn
	}
	if le.Uint32(b) != frameMagic {
		if allZero(b[:HeaderSize]) {
			return h, 0, ErrEnd
		}
		return h, 0, rot("no frame")
	}
	size := int(le.Uint16(b[10:]))
	h = Header{
		SkeletonLen: le.Uint32(b[12:]),
		ImageLen:    le.Uint32(b[16:]),
		Flags:       le.Uint16(b[20:]),
		Segment:     le.Uint64(b[24:]),
		First:       proto.LSN(le.Uint64(b[32:])),
		Synced:      proto.LSN(le.Uint64(b[40:])),
		Time:        proto.Time(le.Uint64(b[48:])),
		Records:     le.Uint32(b[56:]),
		Heads:       Heads{Images: Sum(b[64:80]), Skeletons: Sum(b[80:96])},
	}
	switch v := le.Uint16(b[8:]); {
	case h.SkeletonLen > MaxSkeletons || h.ImageLen > MaxImages:
		return h, 0, rot("lengths of a frame")
	case v > Version && size >= HeaderSize:
		return h, size + int(h.SkeletonLen), nil
	case v != Version || size != HeaderSize:
		return h, 0, rot("format version of a frame")
	case h.SkeletonLen%Align != 0 || h.ImageLen%Align != 0 || h.Records > h.SkeletonLen/minEntry:
		return h, 0, rot("lengths of a frame")
	}
	return h, 0, nil
}

// DecodeFrame reads the header and the skeleton section at the front of b,
// which it keeps, and checks their checksum. Errors are ErrEnd; ErrTorn with need,
// the bytes that b would have to have, if the header tells; ErrRot;
// status.Version.
func DecodeFrame(b []byte) (f *Frame, need int, err error) {
	h, newer, err := DecodeHeader(b)
	if err != nil {
		return nil, 0, err
	}
	need = HeaderSize + int(h.SkeletonLen)
	if newer > 0 {
		need = newer
	}
	if len(b) < need {
		return nil, need, ErrTorn
	}
	raw := b[:need:need]
	le := binary.LittleEndian
	if crc32.Checksum(raw[8:], castagnoli) != le.Uint32(raw[4:]) {
		return nil, need, rot("checksum of a frame")
	}
	if newer > 0 {
		return nil, need, status.Newf(status.Version, "decode", "frame",
			"format version %d, this program knows %d", le.Uint16(b[8:]), Version)
	}
	f = &Frame{Header: h, raw: raw}
	switch {
	case le.Uint16(raw[22:]) != 0 || le.Uint32(raw[60:]) != 0 || h.Flags&^knownFlags != 0:
		return nil, need, rot("unknown bits in a frame")
	case (h.Records == 0) != (h.Flags != 0) || h.Records == 0 && h.SkeletonLen+h.ImageLen > 0:
		return nil, need, rot("frame without records")
	case h.First == 0 || h.Synced >= h.First || h.Records > 0 && uint64(h.First) > math.MaxUint64-uint64(h.Records):
		return nil, need, rot("numbers of a frame")
	}
	return f, need, nil
}

// CheckChain reports whether the frame continues the skeleton chain, as an ErrRot.
func (f *Frame) CheckChain(before Heads) error {
	if skeletonSum(before, f.raw) != f.Heads.Skeletons {
		return rot("chain of frame %d", f.First)
	}
	return nil
}

// CheckImages reports whether images are the frame's image section, continuing
// the image chain, as an ErrRot.
func (f *Frame) CheckImages(before Heads, images []byte) error {
	if len(images) != int(f.ImageLen) || imageSum(before, images) != f.Heads.Images {
		return rot("images of frame %d", f.First)
	}
	return nil
}

// Decode returns the frame's records, without images. The error is an ErrRot.
func (f *Frame) Decode() ([]*Record, error) {
	d := decoder{b: f.raw[HeaderSize:]}
	recs := make([]*Record, 0, f.Records)
	t, images := f.Time, uint64(0)
	for i := range f.Records {
		n := d.uvarint()
		e := decoder{b: d.take(n)}
		dt := e.uvarint()
		d.check(e.why == "", "cut short")
		d.check(i > 0 || dt == 0, "time of the first record")
		d.check(dt <= math.MaxInt64 && int64(t) <= math.MaxInt64-int64(dt), "time out of range")
		if d.why != "" {
			return nil, rot("record %d: %s", f.First+proto.LSN(i), d.why)
		}
		t += proto.Time(dt)
		r, err := DecodeSkeleton(e.b, f.First+proto.LSN(i), t)
		if err != nil {
			return nil, err
		}
		if r.ImageLen > uint64(f.ImageLen)-images {
			return nil, rot("record %d: more images than the frame has", r.LSN)
		}
		images += r.ImageLen
		recs = append(recs, r)
	}
	if len(d.b) >= Align || !allZero(d.b) {
		return nil, rot("frame %d: bytes after the last record", f.First)
	}
	if Pad(int(images)) != int(f.ImageLen) {
		return nil, rot("frame %d: images of no record", f.First)
	}
	return recs, nil
}

func allZero(b []byte) bool {
	for _, c := range b {
		if c != 0 {
			return false
		}
	}
	return true
}

// MayBegin reports whether b, of at least 4 bytes, begins as a frame does.
func MayBegin(b []byte) bool { return binary.LittleEndian.Uint32(b) == frameMagic }

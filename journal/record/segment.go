package record

import (
	"encoding/binary"
	"hash/crc32"

	"cagefs.dev/cage/remote/proto"
	"cagefs.dev/cage/remote/status"
)

// SegmentHeaderSize is the number of bytes before a segment's first frame.
const SegmentHeaderSize = 4096

const segmentMagic = "cagewal\n"

// SegmentHeader is what the first block of a log file says.
type SegmentHeader struct {
	ID    uint64
	First proto.LSN  // of the first record; all before it were durable
	Size  int64      // bytes of the file
	Time  proto.Time // of the record before the first; 0: there is none
	Heads Heads      // before the first frame
}

// Encode returns the block.
func (h *SegmentHeader) Encode() []byte {
	b := make([]byte, SegmentHeaderSize)
	le := binary.LittleEndian
	copy(b, segmentMagic)
	le.PutUint16(b[12:], Version)
	le.PutUint64(b[16:], h.ID)
	le.PutUint64(b[24:], uint64(h.First))
	le.PutUint64(b[32:], uint64(h.Size))
	le.PutUint64(b[40:], uint64(h.Time))
	copy(b[48:], h.Heads.Skeletons[:])
	copy(b[64:], h.Heads.Images[:])
	le.PutUint32(b[8:], crc32.Checksum(b[12:], castagnoli))
	return b
}

// DecodeSegmentHeader reads the block. Errors are ErrEnd for zeros, ErrTorn,
// ErrRot, status.Version.
func DecodeSegmentHeader(b []byte) (h SegmentHeader, err error) {
	if len(b) < SegmentHeaderSize {
		return h, ErrTorn
	}
	b = b[:SegmentHeaderSize]
	if allZero(b) {
		return h, ErrEnd
	}
	le := binary.LittleEndian
	if string(b[:8]) != segmentMagic || crc32.Checksum(b[12:], castagnoli) != le.Uint32(b[8:]) {
		return h, rot("segment header")
	}
	if v := le.Uint16(b[12:]); v > Version {
		return h, status.Newf(status.Version, "decode", "segment",
			"format version %d, this program knows %d", v, Version)
	}
	h = SegmentHeader{
		ID:    le.Uint64(b[16:]),
		First: proto.LSN(le.Uint64(b[24:])),
		Size:  int64(le.Uint64(b[32:])),
		Time:  proto.Time(le.Uint64(b[40:])),
		Heads: Heads{Skeletons: Sum(b[48:64]), Images: Sum(b[64:80])},
	}
	if le.Uint16(b[12:]) != Version || le.Uint16(b[14:]) != 0 || !allZero(b[80:]) ||
		h.First == 0 || h.Size < SegmentHeaderSize || h.Size%Align != 0 {
		return h, rot("segment header")
	}
	return h, nil
}

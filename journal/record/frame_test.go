package record

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"hash/crc32"
	"testing"

	"github.com/stretchr/testify/require"

	"cagefs.dev/cage/remote/proto"
	"cagefs.dev/cage/remote/status"
)

var before = Heads{Skeletons: Sum{1, 2, 3}, Images: Sum{4, 5, 6}}

// sample is a frame of two records, one with images.
func sample(t testing.TB) (Header, []*Record, []byte) {
	a := &Record{LSN: 41, Time: 5000, Kind: Remove, ID: 7, Dir: 1, Name: "a"}
	b := &Record{LSN: 42, Time: 5003, Kind: Write, ID: 8, Len: 5, Images: []byte("01234abcde"),
		Pieces: []Piece{{Kind: PieceOver, Len: 5}}}
	var entries []byte
	for i, r := range []*Record{a, b} {
		require.NoError(t, r.Seal())
		s := AppendSkeleton(nil, r)
		n := len(entries)
		entries = AppendEntry(entries, s, uint64(3*i))
		require.Equal(t, EntrySize(len(s), uint64(3*i)), len(entries)-n)
	}
	h := Header{Segment: 0x1122334455667788, First: 41, Synced: 40, Time: 5000, Records: 2}
	raw := AppendFrame(nil, &h, before, entries, [][]byte{b.Images})
	return h, []*Record{a, b}, raw
}

func TestFrameRoundTrip(t *testing.T) {
	h, recs, raw := sample(t)
	require.Zero(t, len(raw)%Align)
	require.EqualValues(t, len(raw), h.Size())
	require.True(t, MayBegin(raw))
	f, need, err := DecodeFrame(raw)
	require.NoError(t, err)
	require.Equal(t, HeaderSize+int(h.SkeletonLen), need)
	require.Equal(t, h, f.Header)
	require.Equal(t, proto.LSN(43), f.Next())
	require.NoError(t, f.CheckChain(before))
	require.NoError(t, f.CheckImages(before, raw[need:]))
	got, err := f.Decode()
	require.NoError(t, err)
	recs[1].Images = nil
	require.Equal(t, recs, got)
}

func TestMarkRoundTrip(t *testing.T) {
	h := Header{Flags: FlagEnd, Segment: 1, First: 43, Synced: 42, Time: 5003}
	raw := AppendFrame([]byte("x"), &h, before, nil, nil)[1:]
	require.Len(t, raw, HeaderSize)
	f, _, err := DecodeFrame(raw)
	require.NoError(t, err)
	require.NoError(t, f.CheckChain(before))
	require.NoError(t, f.CheckImages(before, nil))
	require.Equal(t, before.Images, f.Heads.Images)
	require.Equal(t, proto.LSN(43), f.Next())
}

func TestGoldenFrames(t *testing.T) {
	_, _, raw := sample(t)
	golden(t, "frame", raw)
	h := Header{Flags: FlagClosed, Segment: 1, First: 43, Synced: 42, Time: 5003}
	golden(t, "mark", AppendFrame(nil, &h, before, nil, nil))
	s := SegmentHeader{ID: 0x0102030405060708, First: 43, Size: 1 << 20, Time: 5003, Heads: before}
	golden(t, "segment", s.Encode()[:96])
}

// Every bit of a frame is covered by a checksum.
func TestEachBitOfFrameCounts(t *testing.T) {
	_, _, raw := sample(t)
	for bit := range 8 * len(raw) {
		b := bytes.Clone(raw)
		b[bit/8] ^= 1 << (bit % 8)
		f, need, err := DecodeFrame(b)
		if err == nil {
			err = f.CheckImages(before, b[need:])
		}
		require.Error(t, err, "bit %d", bit)
		require.NotErrorIs(t, err, ErrEnd)
	}
}

func TestFrameCutAnywhere(t *testing.T) {
	_, _, raw := sample(t)
	for n := range len(raw) {
		f, need, err := DecodeFrame(raw[:n])
		if err == nil {
			err = f.CheckImages(before, raw[need:n])
		}
		require.Error(t, err, "%d bytes", n)
		if n > 0 && n < HeaderSize {
			require.ErrorIs(t, err, ErrTorn)
		}
	}
	_, _, err := DecodeFrame(make([]byte, 4096))
	require.ErrorIs(t, err, ErrEnd)
	_, _, err = DecodeFrame(nil)
	require.ErrorIs(t, err, ErrEnd)
}

// resum makes a frame's checksum right again.
func resum(raw []byte) []byte {
	n := min(len(raw), HeaderSize+int(binary.LittleEndian.Uint32(raw[12:])))
	binary.LittleEndian.PutUint32(raw[4:], crc32.Checksum(raw[8:n], castagnoli))
	return raw
}

func TestFrameThatMakesNoSense(t *testing.T) {
	for name, spoil := range map[string]func(raw []byte){
		"first LSN 0":        func(raw []byte) { clear(raw[32:40]) },
		"LSNs overflow":      func(raw []byte) { copy(raw[32:40], bytes.Repeat([]byte{255}, 8)) },
		"promise beyond":     func(raw []byte) { raw[40] = 41 },
		"flag with records":  func(raw []byte) { raw[20] = FlagEnd },
		"unknown flag":       func(raw []byte) { raw[20] = 4 },
		"bits":               func(raw []byte) { raw[22] = 1 },
		"more bits":          func(raw []byte) { raw[60] = 1 },
		"no records":         func(raw []byte) { raw[56] = 0 },
		"too many records":   func(raw []byte) { raw[58] = 1 },
		"old version":        func(raw []byte) { raw[8] = 0 },
		"header length":      func(raw []byte) { raw[10]++ },
		"crooked length":     func(raw []byte) { raw[16]++ },
		"huge skeletons":     func(raw []byte) { raw[15] = 1 },
		"huge images":        func(raw []byte) { raw[19] = 2 },
		"fewer records":      func(raw []byte) { raw[56] = 1 },
		"more records":       func(raw []byte) { raw[56] = 3 },
		"more images":        func(raw []byte) { raw[16] += 8 },
		"fewer images":       func(raw []byte) { raw[16] -= 8 },
		"first dt":           func(raw []byte) { raw[HeaderSize+1] = 1 },
		"entry length":       func(raw []byte) { raw[HeaderSize]++ },
		"time out of range":  func(raw []byte) { copy(raw[48:56], "\xff\xff\xff\xff\xff\xff\xff\x7f") },
		"bytes in padding":   func(raw []byte) { raw[HeaderSize+binary.LittleEndian.Uint32(raw[12:])-1] = 1 },
		"segment of sums ok": nil,
	} {
		_, _, raw := sample(t)
		if spoil != nil {
			spoil(raw)
		}
		f, _, err := DecodeFrame(resum(raw))
		if err == nil {
			_, err = f.Decode()
		}
		if spoil == nil {
			require.NoError(t, err)
			continue
		}
		require.Error(t, err, name)
		require.Equal(t, status.Damaged, status.Of(err), name)
	}
}

func TestChainsNotice(t *testing.T) {
	_, _, raw := sample(t)
	f, need, err := DecodeFrame(raw)
	require.NoError(t, err)
	other := before
	other.Skeletons[15]++
	require.ErrorIs(t, f.CheckChain(other), ErrRot)
	require.NoError(t, f.CheckImages(other, raw[need:]))
	other = before
	other.Images[0]++
	require.NoError(t, f.CheckChain(other), "the skeleton chain holds without the images")
	require.ErrorIs(t, f.CheckImages(other, raw[need:]), ErrRot)
}

func TestNewerVersionsByName(t *testing.T) {
	_, _, raw := sample(t)
	raw[8] = Version + 1
	_, _, err := DecodeFrame(resum(raw))
	require.Equal(t, status.Version, status.Of(err))
	require.ErrorContains(t, err, fmt.Sprintf("format version %d", Version+1))
	raw[4]++
	_, _, err = DecodeFrame(raw)
	require.ErrorIs(t, err, ErrRot, "a number that came from rot is no version")

	h := SegmentHeader{ID: 1, First: 1, Size: 1 << 20}
	b := h.Encode()
	b[12] = Version + 1
	binary.LittleEndian.PutUint32(b[8:], crc32.Checksum(b[12:], castagnoli))
	_, err = DecodeSegmentHeader(b)
	require.Equal(t, status.Version, status.Of(err))
}

func TestSegmentHeader(t *testing.T) {
	h := SegmentHeader{ID: 7, First: 43, Size: 1 << 20, Time: 5003, Heads: before}
	b := h.Encode()
	require.Len(t, b, SegmentHeaderSize)
	got, err := DecodeSegmentHeader(b)
	require.NoError(t, err)
	require.Equal(t, h, got)
	for bit := range 8 * len(b) {
		b[bit/8] ^= 1 << (bit % 8)
		_, err := DecodeSegmentHeader(b)
		require.Error(t, err, "bit %d", bit)
		b[bit/8] ^= 1 << (bit % 8)
	}
	_, err = DecodeSegmentHeader(make([]byte, SegmentHeaderSize))
	require.ErrorIs(t, err, ErrEnd)
	_, err = DecodeSegmentHeader(b[:100])
	require.ErrorIs(t, err, ErrTorn)
}

func FuzzDecodeFrame(f *testing.F) {
	_, _, raw := sample(f)
	f.Add(raw)
	h := Header{Flags: FlagClosed, Segment: 1, First: 43, Synced: 42, Time: 5003}
	f.Add(AppendFrame(nil, &h, before, nil, nil))
	f.Fuzz(func(t *testing.T, b []byte) {
		if len(b) >= HeaderSize {
			resum(b) // else nothing gets past the checksum
		}
		frame, need, err := DecodeFrame(b)
		if err != nil {
			return
		}
		require.LessOrEqual(t, need, len(b))
		if _, err := frame.Decode(); err != nil {
			require.ErrorIs(t, err, ErrRot)
		}
	})
}

func FuzzDecodeSegmentHeader(f *testing.F) {
	h := SegmentHeader{ID: 7, First: 43, Size: 1 << 20, Time: 5003, Heads: before}
	f.Add(h.Encode())
	f.Fuzz(func(t *testing.T, b []byte) {
		if len(b) >= SegmentHeaderSize {
			binary.LittleEndian.PutUint32(b[8:], crc32.Checksum(b[12:SegmentHeaderSize], castagnoli))
		}
		if got, err := DecodeSegmentHeader(b); err == nil {
			require.Equal(t, b[:SegmentHeaderSize], got.Encode())
		}
	})
}

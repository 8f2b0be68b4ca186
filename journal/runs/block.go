package runs

import (
	"bytes"
	"encoding/binary"
	"hash/crc32"
	"sort"

	"cagefs.dev/cage/remote/status"
)

// Entry is a key with its value.
type Entry struct {
	Key   []byte
	Value []byte // nil: deleted; empty values are not nil
}

const (
	blockSize  = 16 << 10 // a block is not longer, unless it has one entry only
	headerSize = 16
	footerSize = 24
	magic      = "CAGERUN\n"
	version    = 1
)

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

func checksum(b []byte) uint32 { return crc32.Checksum(b, castagnoli) }

func damaged(why string) error { return status.Newf(status.Damaged, "", "", "%s", why) }

func appendEntry(b []byte, e Entry) []byte {
	b = binary.AppendUvarint(b, uint64(len(e.Key)))
	b = append(b, e.Key...)
	if e.Value == nil {
		return append(b, 0)
	}
	b = binary.AppendUvarint(b, uint64(len(e.Value))+1)
	return append(b, e.Value...)
}

// cutBytes takes n bytes from the front.
func cutBytes(b []byte, n uint64) (head, rest []byte, ok bool) {
	if n > uint64(len(b)) {
		return nil, nil, false
	}
	return b[:n:n], b[n:], true
}

func cutUvarint(b []byte) (v uint64, rest []byte, ok bool) {
	v, n := binary.Uvarint(b)
	if n <= 0 {
		return 0, nil, false
	}
	return v, b[n:], true
}

// block is a block as it is in the file. Its entries share its memory.
type block struct {
	entries []byte
	starts  []byte // 2 bytes each
}

// openBlock checks the outline of a block, not its entries.
func openBlock(b []byte) (block, error) {
	if len(b) < 2 {
		return block{}, damaged("a block is too short")
	}
	n := 2 * int(binary.LittleEndian.Uint16(b[len(b)-2:]))
	b = b[:len(b)-2]
	if n == 0 || n > len(b) {
		return block{}, damaged("a block has not as many entries as it says")
	}
	return block{entries: b[:len(b)-n], starts: b[len(b)-n:]}, nil
}

func (b block) len() int { return len(b.starts) / 2 }

// errEntry is made once: searching goes through at without end.
var errEntry = damaged("an entry of a block does not fit it")

// at returns an entry.
func (b block) at(i int) (e Entry, err error) {
	rest, ok := b.entries, false
	if _, rest, ok = cutBytes(rest, uint64(binary.LittleEndian.Uint16(b.starts[2*i:]))); !ok {
		return e, errEntry
	}
	var n uint64
	if n, rest, ok = cutUvarint(rest); !ok {
		return e, errEntry
	}
	if e.Key, rest, ok = cutBytes(rest, n); !ok {
		return e, errEntry
	}
	if n, rest, ok = cutUvarint(rest); !ok {
		return e, errEntry
	}
	if n > 0 {
		if e.Value, _, ok = cutBytes(rest, n-1); !ok {
			return e, errEntry
		}
	}
	return e, nil
}

// seek returns the index of the first entry whose key is not below key.
func (b block) seek(key []byte) (i int, err error) {
	i = sort.Search(b.len(), func(i int) bool {
		e, e2 := b.at(i)
		if e2 != nil {
			err = e2
		}
		return bytes.Compare(e.Key, key) >= 0
	})
	return i, err
}

// indexEntry is a block in the index, which is in memory while the run is open.
type indexEntry struct {
	first string
	off   int64
	len   uint32
	sum   uint32
}

func appendIndex(b []byte, first []byte, length int, sum uint32) []byte {
	b = binary.AppendUvarint(b, uint64(len(first)))
	b = append(b, first...)
	b = binary.AppendUvarint(b, uint64(length))
	return binary.LittleEndian.AppendUint32(b, sum)
}

// decodeIndex decodes the index of blocks that fill a file up to end.
func decodeIndex(b []byte, end int64) (out []indexEntry, err error) {
	off := int64(headerSize)
	for len(b) > 0 {
		n, rest, ok := cutUvarint(b)
		if !ok {
			return nil, damaged("the index is cut short")
		}
		first, rest, ok := cutBytes(rest, n)
		if !ok {
			return nil, damaged("the index is cut short")
		}
		n, rest, ok = cutUvarint(rest)
		if !ok || len(rest) < 4 || n > uint64(end-off) || n > 1<<31 {
			return nil, damaged("the index does not fit its file")
		}
		if i := len(out); i > 0 && string(first) <= out[i-1].first {
			return nil, damaged("the index is out of order")
		}
		out = append(out, indexEntry{first: string(first), off: off, len: uint32(n), sum: binary.LittleEndian.Uint32(rest)})
		off, b = off+int64(n), rest[4:]
	}
	if off != end {
		return nil, damaged("the index does not fit its file")
	}
	return out, nil
}

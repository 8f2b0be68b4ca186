package wire

import (
	"encoding/binary"
	"math"
	"unicode/utf8"

	"cagefs.dev/cage/remote/status"
)

// Cursor takes values from the front of a payload. It fails once and stays
// failed: later values are zero, and Err tells what was wrong first. No length
// read from the payload makes it allocate more than a small multiple of the
// bytes that are there.
type Cursor struct {
	what string // what is being decoded, for the error
	b    []byte // what is left
	err  error  // the first failure
}

// NewCursor starts at the beginning of b, which must not change while the
// cursor, or a message whose fields alias it, is in use. The error calls it what.
func NewCursor(what string, b []byte) *Cursor { return &Cursor{what: what, b: b} }

// Err is nil while all values were there and within their limits, otherwise
// status.BadFrame.
func (c *Cursor) Err() error { return c.err }

// fail keeps the first reason. What is left of the payload is dropped, so that
// loops over it end.
func (c *Cursor) fail(format string, args ...any) {
	if c.err == nil {
		c.err = status.Newf(status.BadFrame, "decode", c.what, format, args...)
	}
	c.b = nil
}

func (c *Cursor) uvarint() uint64 {
	v, n := binary.Uvarint(c.b)
	if n <= 0 {
		c.fail("integer cut off or longer than 64 bits")
		return 0
	}
	c.b = c.b[n:]
	return v
}

func (c *Cursor) varint() int64 {
	v, n := binary.Varint(c.b)
	if n <= 0 {
		c.fail("integer cut off or longer than 64 bits")
		return 0
	}
	c.b = c.b[n:]
	return v
}

// upTo reads an integer that must not exceed a limit.
func (c *Cursor) upTo(limit uint64) uint64 {
	v := c.uvarint()
	if v > limit {
		c.fail("integer %d above its limit %d", v, limit)
		return 0
	}
	return v
}

func (c *Cursor) u16() uint16 { return uint16(c.upTo(math.MaxUint16)) }
func (c *Cursor) u32() uint32 { return uint32(c.upTo(math.MaxUint32)) }
func (c *Cursor) flag() bool  { return c.upTo(1) == 1 }

// fixed64 reads 8 bytes, little endian.
func (c *Cursor) fixed64() uint64 {
	if len(c.b) < 8 {
		c.fail("cut off in a fixed integer")
		return 0
	}
	v := binary.LittleEndian.Uint64(c.b)
	c.b = c.b[8:]
	return v
}

// bytes reads a length of at most limit and that many bytes, which alias the payload.
func (c *Cursor) bytes(limit int) []byte {
	n := c.upTo(uint64(limit))
	if n > uint64(len(c.b)) {
		c.fail("%d bytes announced, %d there", n, len(c.b))
		return nil
	}
	v := c.b[:n:n]
	c.b = c.b[n:]
	return v
}

func (c *Cursor) str(limit int) string { return string(c.bytes(limit)) }

// count reads the length of a list whose elements take at least least bytes each.
func (c *Cursor) count(limit, least int) int {
	return c.fits(c.upTo(uint64(limit)), least)
}

// cutCount is count for a list written by appendCut.
func (c *Cursor) cutCount(limit, least int) int {
	if len(c.b) < 4 {
		c.fail("cut off in the length of a list")
		return 0
	}
	n := uint64(binary.LittleEndian.Uint32(c.b))
	c.b = c.b[4:]
	if n > uint64(limit) {
		c.fail("list of %d, at most %d allowed", n, limit)
		return 0
	}
	return c.fits(n, least)
}

func (c *Cursor) fits(n uint64, least int) int {
	if n*uint64(least) > uint64(len(c.b)) {
		c.fail("list of %d announced in %d bytes", n, len(c.b))
		return 0
	}
	return int(n)
}

// list reads n elements; nil if there are none.
func list[T any](c *Cursor, n int, elem func(*Cursor) T) []T {
	if n == 0 {
		return nil
	}
	out := make([]T, 0, n)
	for range n {
		v := elem(c)
		if c.err != nil {
			return nil
		}
		out = append(out, v)
	}
	return out
}

// strs reads a list of strings.
func (c *Cursor) strs(limit, each int) []string {
	return list(c, c.count(limit, 1), func(c *Cursor) string { return c.str(each) })
}

// integer is any unsigned integer of the protocol.
type integer interface {
	~uint8 | ~uint16 | ~uint32 | ~uint64
}

func appendInt[T integer](b []byte, v T) []byte { return binary.AppendUvarint(b, uint64(v)) }

func appendFixed64[T ~uint64](b []byte, v T) []byte {
	return binary.LittleEndian.AppendUint64(b, uint64(v))
}

func appendFlag(b []byte, v bool) []byte {
	if v {
		return append(b, 1)
	}
	return append(b, 0)
}

func appendBytes[T ~string | ~[]byte](b []byte, v T) []byte {
	return append(binary.AppendUvarint(b, uint64(len(v))), v...)
}

// appendText appends a string that is for people only, shortened to its limit.
func appendText(b []byte, s string, limit int) []byte {
	if len(s) > limit {
		for i := 0; i < utf8.UTFMax && limit > 0 && !utf8.RuneStart(s[limit]); i++ {
			limit--
		}
		s = s[:limit]
	}
	return appendBytes(b, s)
}

func appendList[T any](b []byte, list []T, elem func([]byte, T) []byte) []byte {
	b = binary.AppendUvarint(b, uint64(len(list)))
	for _, v := range list {
		b = elem(b, v)
	}
	return b
}

// appendCut appends as much of a list as a reply has room for (MaxList bytes,
// limit elements) and returns how many elements that was. No element is larger
// than MaxList, so that a list that goes on always advances.
func appendCut[T any](b []byte, list []T, limit int, elem func([]byte, *T) []byte) ([]byte, int) {
	start := len(b)
	b = append(b, 0, 0, 0, 0)
	n := 0
	for n < len(list) && n < limit {
		before := len(b)
		b = elem(b, &list[n])
		if len(b)-start > MaxList {
			b = b[:before]
			break
		}
		n++
	}
	binary.LittleEndian.PutUint32(b[start:], uint32(n))
	return b, n
}

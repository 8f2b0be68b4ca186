package record

import (
	"encoding/binary"
	"hash/crc32"
	"math"
	"slices"

	"cagefs.dev/cage/remote/proto"
	"cagefs.dev/cage/remote/status"
)

// Limits of a record, checked when it is sealed and when it is decoded.
const (
	MaxString   = 4 << 10   // bytes of Comm, Name, NewName, Target
	MaxValue    = 64 << 10  // bytes of OldValue, Value
	MaxSkeleton = 256 << 10 // bytes of a record without its images
)

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// Seal makes a record ready to be written: it sets ImageLen and ImageSum from
// Images, and returns status.Invalid for what a decoder would refuse.
func (r *Record) Seal() error {
	r.ImageLen = uint64(len(r.Images))
	r.ImageSum = crc32.Checksum(r.Images, castagnoli)
	if why := r.flaw(); why != "" {
		return status.Newf(status.Invalid, "seal", "record", "%s", why)
	}
	return nil
}

// flaw says what makes the record impossible to write, "" if nothing does.
func (r *Record) flaw() string {
	if r.Kind == 0 || r.Kind >= endKind {
		return "unknown kind"
	}
	for _, s := range []string{r.Comm, r.Name, r.NewName, r.Target} {
		if len(s) > MaxString {
			return "string too long"
		}
	}
	if len(r.OldValue) > MaxValue || len(r.Value) > MaxValue {
		return "value too long"
	}
	end, size := r.Off, len(r.Comm)+len(r.Name)+len(r.NewName)+len(r.Target)+len(r.OldValue)+len(r.Value)
	for i := range r.Pieces {
		p := &r.Pieces[i]
		switch {
		case p.Kind == 0 || p.Kind > PieceInline:
			return "unknown kind of piece"
		case p.Off < end || p.Len > math.MaxUint64-p.Off:
			return "pieces out of order"
		case p.Kind != PieceBlocks && len(p.Sums) > 0:
			return "checksums of a piece that is in the log"
		}
		end = p.Off + p.Len
		size += maxPiece + 4*len(p.Sums)
	}
	if size > MaxSkeleton-maxNumbers {
		return "record too long"
	}
	return ""
}

const (
	minPiece   = 3                           // bytes of the shortest piece
	maxPiece   = 1 + 3*binary.MaxVarintLen64 // bytes of the longest piece, without checksums
	maxNumbers = 1 << 10                     // more than all fields of fixed size take
)

// CheckImages reports whether images are what the record was sealed with, as
// an ErrRot.
func (r *Record) CheckImages(images []byte) error {
	if uint64(len(images)) != r.ImageLen || crc32.Checksum(images, castagnoli) != r.ImageSum {
		return rot("images of record %d", r.LSN)
	}
	return nil
}

// Clone returns a copy that shares nothing but Images.
func (r *Record) Clone() *Record {
	c := *r
	c.Pieces = slices.Clone(r.Pieces)
	for i := range c.Pieces {
		c.Pieces[i].Sums = slices.Clone(c.Pieces[i].Sums)
	}
	c.OldValue = slices.Clone(r.OldValue)
	c.Value = slices.Clone(r.Value)
	return &c
}

// AppendSkeleton appends the skeleton of a sealed record whose LSN and Time are
// set; they are not part of it.
func AppendSkeleton(b []byte, r *Record) []byte {
	for tag := 1; tag < len(fields); tag++ {
		b = fields[tag].append(b, byte(tag), r)
	}
	return b
}

// DecodeSkeleton decodes the skeleton of the record with that LSN and time.
// Nothing of b is kept. The error is an ErrRot.
func DecodeSkeleton(b []byte, lsn proto.LSN, t proto.Time) (*Record, error) {
	r := &Record{LSN: lsn, Time: t}
	if len(b) > MaxSkeleton {
		return nil, rot("record %d: too long", lsn)
	}
	d := decoder{b: b}
	before := byte(0)
	for len(d.b) > 0 && d.why == "" {
		tag := d.b[0]
		d.b = d.b[1:]
		switch {
		case int(tag) >= len(fields) || tag == 0:
			return nil, rot("record %d: unknown tag %d", lsn, tag)
		case tag <= before:
			return nil, rot("record %d: tag %d after %d", lsn, tag, before)
		}
		fields[tag].decode(&d, r)
		before = tag
	}
	if d.why == "" && (r.Kind == 0 || r.Kind >= endKind) {
		d.why = "unknown kind"
	}
	if d.why != "" {
		return nil, rot("record %d: tag %d: %s", lsn, before, d.why)
	}
	return r, nil
}

// field is how one field of a record is written and read. append writes nothing
// for a field that is zero.
type field struct {
	append func(b []byte, tag byte, r *Record) []byte
	decode func(d *decoder, r *Record)
}

// fields are all fields by tag; doc.go has the same table.
var fields = [...]field{
	1:  number(func(r *Record) *Kind { return &r.Kind }),
	2:  number(func(r *Record) *uint16 { return &r.Flag }),
	3:  sessionField,
	4:  number(func(r *Record) *proto.Seq { return &r.Seq }),
	5:  number(func(r *Record) *uint32 { return &r.Client }),
	6:  number(func(r *Record) *uint32 { return &r.UID }),
	7:  number(func(r *Record) *uint32 { return &r.GID }),
	8:  number(func(r *Record) *uint32 { return &r.PID }),
	9:  number(func(r *Record) *uint32 { return &r.PGID }),
	10: text(MaxString, func(r *Record) *string { return &r.Comm }),
	11: lsnRef(func(r *Record) *proto.LSN { return &r.Txn }),
	12: number(func(r *Record) *proto.FileID { return &r.ID }),
	13: number(func(r *Record) *proto.FileID { return &r.Dir }),
	14: text(MaxString, func(r *Record) *string { return &r.Name }),
	15: number(func(r *Record) *proto.FileID { return &r.NewDir }),
	16: text(MaxString, func(r *Record) *string { return &r.NewName }),
	17: number(func(r *Record) *proto.FileID { return &r.Victim }),
	18: lsnRef(func(r *Record) *proto.LSN { return &r.Grave }),
	19: number(func(r *Record) *uint64 { return &r.Inode.Ino }),
	20: instant(func(r *Record) *int64 { return &r.Inode.Btime }),
	21: instant(func(r *Record) *proto.Time { return &r.OldMtime }),
	22: instant(func(r *Record) *proto.Time { return &r.OldNewMtime }),
	23: number(func(r *Record) *uint32 { return &r.Old.Mode }),
	24: number(func(r *Record) *uint32 { return &r.Old.UID }),
	25: number(func(r *Record) *uint32 { return &r.Old.GID }),
	26: instant(func(r *Record) *proto.Time { return &r.Old.Atime }),
	27: instant(func(r *Record) *proto.Time { return &r.Old.Mtime }),
	28: number(func(r *Record) *uint32 { return &r.New.Mode }),
	29: number(func(r *Record) *uint32 { return &r.New.UID }),
	30: number(func(r *Record) *uint32 { return &r.New.GID }),
	31: instant(func(r *Record) *proto.Time { return &r.New.Atime }),
	32: instant(func(r *Record) *proto.Time { return &r.New.Mtime }),
	33: number(func(r *Record) *uint32 { return &r.Rdev }),
	34: text(MaxString, func(r *Record) *string { return &r.Target }),
	35: number(func(r *Record) *uint64 { return &r.Off }),
	36: number(func(r *Record) *uint64 { return &r.Len }),
	37: number(func(r *Record) *uint64 { return &r.OldSize }),
	38: number(func(r *Record) *uint64 { return &r.NewSize }),
	39: {appendPieces, decodePieces},
	40: set(func(r *Record) *bool { return &r.HasOld }),
	41: text(MaxValue, func(r *Record) *[]byte { return &r.OldValue }),
	42: set(func(r *Record) *bool { return &r.HasNew }),
	43: text(MaxValue, func(r *Record) *[]byte { return &r.Value }),
	44: lsnRef(func(r *Record) *proto.LSN { return &r.Upto }),
	45: number(func(r *Record) *uint64 { return &r.Count }),
	46: number(func(r *Record) *uint16 { return &r.Status }),
	47: number(func(r *Record) *uint64 { return &r.ImageLen }),
	48: imageSumField,
}

func number[T ~uint8 | ~uint16 | ~uint32 | ~uint64](at func(*Record) *T) field {
	return field{
		append: func(b []byte, tag byte, r *Record) []byte {
			if v := *at(r); v != 0 {
				b = binary.AppendUvarint(append(b, tag), uint64(v))
			}
			return b
		},
		decode: func(d *decoder, r *Record) {
			v := d.uvarint()
			d.check(v != 0, "zero is not written")
			d.check(uint64(T(v)) == v, "number too large")
			*at(r) = T(v)
		},
	}
}

func lsnRef(at func(*Record) *proto.LSN) field {
	return field{
		append: func(b []byte, tag byte, r *Record) []byte {
			if v := *at(r); v != 0 {
				b = binary.AppendVarint(append(b, tag), int64(r.LSN-v))
			}
			return b
		},
		decode: func(d *decoder, r *Record) {
			v := r.LSN - proto.LSN(d.zigzag())
			d.check(v != 0, "zero is not written")
			*at(r) = v
		},
	}
}

func instant[T ~int64](at func(*Record) *T) field {
	return field{
		append: func(b []byte, tag byte, r *Record) []byte {
			if v := *at(r); v != 0 {
				b = binary.AppendVarint(append(b, tag), int64(v)-int64(r.Time))
			}
			return b
		},
		decode: func(d *decoder, r *Record) {
			v := T(int64(r.Time) + d.zigzag())
			d.check(v != 0, "zero is not written")
			*at(r) = v
		},
	}
}

func text[T ~string | ~[]byte](limit int, at func(*Record) *T) field {
	return field{
		append: func(b []byte, tag byte, r *Record) []byte {
			if v := *at(r); len(v) > 0 {
				b = binary.AppendUvarint(append(b, tag), uint64(len(v)))
				b = append(b, v...)
			}
			return b
		},
		decode: func(d *decoder, r *Record) {
			n := d.uvarint()
			d.check(n != 0, "zero is not written")
			d.check(n <= uint64(limit), "too long")
			*at(r) = T(string(d.take(n))) // a copy for both
		},
	}
}

func set(at func(*Record) *bool) field {
	return field{
		append: func(b []byte, tag byte, r *Record) []byte {
			if *at(r) {
				b = append(b, tag)
			}
			return b
		},
		decode: func(_ *decoder, r *Record) { *at(r) = true },
	}
}

var sessionField = field{
	append: func(b []byte, tag byte, r *Record) []byte {
		if r.Session != 0 {
			b = binary.LittleEndian.AppendUint64(append(b, tag), uint64(r.Session))
		}
		return b
	},
	decode: func(d *decoder, r *Record) {
		if b := d.take(8); b != nil {
			r.Session = proto.SessionID(binary.LittleEndian.Uint64(b))
		}
		d.check(r.Session != 0, "zero is not written")
	},
}

var imageSumField = field{
	append: func(b []byte, tag byte, r *Record) []byte {
		if r.ImageSum != 0 {
			b = binary.LittleEndian.AppendUint32(append(b, tag), r.ImageSum)
		}
		return b
	},
	decode: func(d *decoder, r *Record) {
		if b := d.take(4); b != nil {
			r.ImageSum = binary.LittleEndian.Uint32(b)
		}
		d.check(r.ImageSum != 0, "zero is not written")
	},
}

func appendPieces(b []byte, tag byte, r *Record) []byte {
	if len(r.Pieces) == 0 {
		return b
	}
	b = binary.AppendUvarint(append(b, tag), uint64(len(r.Pieces)))
	end := r.Off
	for i := range r.Pieces {
		p := &r.Pieces[i]
		b = append(b, byte(p.Kind))
		b = binary.AppendUvarint(b, p.Off-end)
		b = binary.AppendUvarint(b, p.Len)
		end = p.Off + p.Len
		if p.Kind != PieceBlocks {
			continue
		}
		b = binary.AppendUvarint(b, uint64(len(p.Sums)))
		for _, s := range p.Sums {
			b = binary.LittleEndian.AppendUint32(b, s)
		}
	}
	return b
}

func decodePieces(d *decoder, r *Record) {
	n := d.uvarint()
	d.check(n != 0, "zero is not written")
	d.check(n <= uint64(len(d.b)/minPiece), "more pieces than bytes")
	if d.why != "" {
		return
	}
	r.Pieces = make([]Piece, n)
	end := r.Off
	for i := range r.Pieces {
		p := &r.Pieces[i]
		if b := d.take(1); b != nil {
			p.Kind = PieceKind(b[0])
		}
		gap := d.uvarint()
		p.Len = d.uvarint()
		p.Off = end + gap
		d.check(p.Kind != 0 && p.Kind <= PieceInline, "unknown kind of piece")
		d.check(p.Off >= end && p.Len <= math.MaxUint64-p.Off, "piece too long")
		end = p.Off + p.Len
		if p.Kind == PieceBlocks {
			p.Sums = d.sums()
		}
		if d.why != "" {
			return
		}
	}
}

// decoder reads from the front of b. It fails once and stays failed: why is the
// first failure, and everything read after it is zero.
type decoder struct {
	b   []byte
	why string
}

func (d *decoder) check(ok bool, why string) {
	if !ok && d.why == "" {
		d.why = why
		d.b = nil
	}
}

func (d *decoder) uvarint() uint64 {
	v, n := binary.Uvarint(d.b)
	if n <= 0 || n > 1 && d.b[n-1] == 0 {
		d.check(false, "bad number")
		return 0
	}
	d.b = d.b[n:]
	return v
}

func (d *decoder) zigzag() int64 {
	u := d.uvarint()
	return int64(u>>1) ^ -int64(u&1)
}

// take returns the next n bytes of the input itself, nil if there are not so many.
func (d *decoder) take(n uint64) []byte {
	if n > uint64(len(d.b)) {
		d.check(false, "cut short")
	}
	if d.why != "" {
		return nil
	}
	b := d.b[:n]
	d.b = d.b[n:]
	return b
}

func (d *decoder) sums() []uint32 {
	n := d.uvarint()
	d.check(n <= uint64(len(d.b)/4), "more checksums than bytes")
	if d.why != "" || n == 0 {
		return nil
	}
	sums := make([]uint32, n)
	for i := range sums {
		sums[i] = binary.LittleEndian.Uint32(d.b)
		d.b = d.b[4:]
	}
	return sums
}

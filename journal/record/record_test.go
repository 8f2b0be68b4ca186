package record

import (
	"encoding/hex"
	"flag"
	"fmt"
	"math"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"cagefs.dev/cage/remote/proto"
	"cagefs.dev/cage/remote/status"
)

var update = flag.Bool("update", false, "write the golden files anew")

// full returns a record of which every field is set, each to another value.
func full(kind Kind) *Record {
	n := uint64(100)
	r := &Record{}
	fill(reflect.ValueOf(r).Elem(), &n)
	r.Kind = kind
	r.LSN, r.Time = 1_000_000, 1_700_000_000_000_000_000
	r.Pieces = []Piece{
		{Kind: PieceOver, Off: r.Off, Len: 10},
		{Kind: PieceInline, Off: r.Off + 10, Len: 20},
		{Kind: PieceBlocks, Off: r.Off + 4096, Len: 2 * BlockSize, Sums: []uint32{1, math.MaxUint32}},
	}
	return r
}

func fill(v reflect.Value, n *uint64) {
	*n += 7
	switch v.Kind() {
	case reflect.Struct:
		for i := range v.NumField() {
			fill(v.Field(i), n)
		}
	case reflect.Uint8, reflect.Uint16, reflect.Uint32, reflect.Uint64:
		v.SetUint(*n)
	case reflect.Int64:
		v.SetInt(int64(*n))
	case reflect.Bool:
		v.SetBool(true)
	case reflect.String:
		v.SetString(fmt.Sprint("s", *n))
	case reflect.Slice:
		if v.Type().Elem().Kind() == reflect.Uint8 {
			v.SetBytes(fmt.Appendf(nil, "b%d", *n))
		}
	default:
		panic("a field of a new type: teach the codec and this test")
	}
}

// leaves calls f for each settable field of a record, however deep.
func leaves(v reflect.Value, path string, f func(path string, v reflect.Value)) {
	for i := range v.NumField() {
		p := path + "." + v.Type().Field(i).Name
		if v.Field(i).Kind() == reflect.Struct {
			leaves(v.Field(i), p, f)
		} else {
			f(p, v.Field(i))
		}
	}
}

func recode(t *testing.T, r *Record) *Record {
	t.Helper()
	got, err := DecodeSkeleton(AppendSkeleton(nil, r), r.LSN, r.Time)
	require.NoError(t, err)
	return got
}

func TestEveryKindWithEveryField(t *testing.T) {
	for kind := Make; kind < endKind; kind++ {
		r := full(kind)
		require.NoError(t, r.Seal())
		leaves(reflect.ValueOf(r).Elem(), "Record", func(path string, v reflect.Value) {
			require.False(t, v.IsZero(), "%s is not set by the test", path)
		})
		got := recode(t, r)
		require.NoError(t, got.CheckImages(r.Images))
		want := r.Clone()
		want.Images = nil
		require.Equal(t, want, got)
	}
}

// Each field alone makes a difference, and takes no space when it is zero.
func TestEachFieldAlone(t *testing.T) {
	bare := &Record{LSN: 1_000_000, Time: 1_700_000_000_000_000_000, Kind: Write}
	size := len(AppendSkeleton(nil, bare))
	require.Equal(t, 2, size)
	all := full(Write)
	require.NoError(t, all.Seal())
	paths := make(map[string]reflect.Value)
	leaves(reflect.ValueOf(all).Elem(), "", func(path string, v reflect.Value) { paths[path] = v })
	for path, v := range paths {
		switch path {
		case ".LSN", ".Time", ".Kind", ".Images": // not in the skeleton, or always there
			continue
		}
		r := bare.Clone()
		leaves(reflect.ValueOf(r).Elem(), "", func(p string, field reflect.Value) {
			if p == path {
				field.Set(v)
			}
		})
		require.Equal(t, r, recode(t, r), path)
		require.Greater(t, len(AppendSkeleton(nil, r)), size, path)
	}
}

func TestExtremes(t *testing.T) {
	r := full(Write)
	r.Pieces = nil
	leaves(reflect.ValueOf(r).Elem(), "", func(path string, v reflect.Value) {
		switch {
		case v.CanUint() && path != ".Kind":
			v.SetUint(math.MaxUint64 >> (64 - 8*v.Type().Size()))
		case v.CanInt():
			v.SetInt(math.MinInt64)
		}
	})
	require.Equal(t, r.LSN, proto.LSN(math.MaxUint64))
	got := recode(t, r)
	got.Images = r.Images
	require.Equal(t, r, got)
}

func TestSealRefuses(t *testing.T) {
	long := strings.Repeat("x", MaxString+1)
	for name, r := range map[string]*Record{
		"no kind":         {},
		"kind":            {Kind: endKind},
		"name":            {Kind: Make, Name: long},
		"target":          {Kind: Make, Target: long},
		"value":           {Kind: SetXattr, Value: make([]byte, MaxValue+1)},
		"piece kind":      {Kind: Write, Pieces: []Piece{{Kind: 9}}},
		"piece before":    {Kind: Write, Off: 5, Pieces: []Piece{{Kind: PieceOver, Off: 4, Len: 1}}},
		"pieces overlap":  {Kind: Write, Pieces: []Piece{{Kind: PieceOver, Len: 4}, {Kind: PieceOver, Off: 3}}},
		"piece too long":  {Kind: Write, Pieces: []Piece{{Kind: PieceOver, Off: 4, Len: math.MaxUint64}}},
		"sums":            {Kind: Write, Pieces: []Piece{{Kind: PieceOver, Len: 4, Sums: []uint32{1}}}},
		"too many sums":   {Kind: Write, Pieces: []Piece{{Kind: PieceBlocks, Len: 4, Sums: make([]uint32, MaxSkeleton/4)}}},
		"too many pieces": {Kind: Write, Pieces: make([]Piece, MaxSkeleton)},
	} {
		require.ErrorIs(t, r.Seal(), status.Invalid, name)
	}
}

func TestDecodeSkeletonRefuses(t *testing.T) {
	for name, bytes := range map[string]string{
		"nothing":           "",
		"tag 0":             "0000",
		"unknown tag":       "0101 31 01",
		"unknown kind":      "01 1d",
		"no kind":           "0201",
		"twice":             "0101 0101",
		"descending":        "0101 0501 0401",
		"zero":              "0101 0200",
		"long zero":         "0101 028000",
		"long number":       "0101 028100",
		"too large":         "0101 02808004",
		"number cut":        "0101 0280",
		"number overflows":  "0101 04ffffffffffffffffffff01",
		"string cut":        "0101 0a0341",
		"string length":     "0101 0affffffffffffffff7f",
		"empty string":      "0101 0a00",
		"session cut":       "0101 0301020304",
		"session zero":      "0101 030000000000000000",
		"time zero":         "0101 15c701", // of a record at time 100
		"lsn zero":          "0101 0b14",   // of LSN 10
		"no pieces":         "0101 2700",
		"too many pieces":   "0101 27ffffff7f 010101",
		"piece kind":        "0101 2701 040101",
		"piece end":         "0101 2701 0101ffffffffffffffffff01",
		"too many checksum": "0101 2701 020101 ff7f",
	} {
		b, err := hex.DecodeString(strings.ReplaceAll(bytes, " ", ""))
		require.NoError(t, err)
		_, err = DecodeSkeleton(b, 10, 100)
		require.ErrorIs(t, err, ErrRot, name)
		require.Equal(t, status.Damaged, status.Of(err))
	}
	_, err := DecodeSkeleton(make([]byte, MaxSkeleton+1), 1, 1)
	require.ErrorIs(t, err, ErrRot)
}

func TestCloneSharesNothing(t *testing.T) {
	r := full(Write)
	c := r.Clone()
	c.Pieces[2].Sums[0]++
	c.Value[0]++
	c.OldValue[0]++
	require.Equal(t, full(Write), r)
}

// golden compares with testdata/NAME.hex, a line per 16 bytes.
func golden(t *testing.T, name string, b []byte) {
	t.Helper()
	var text strings.Builder
	for i := 0; i < len(b); i += 16 {
		fmt.Fprintf(&text, "%04x  % x\n", i, b[i:min(i+16, len(b))])
	}
	path := filepath.Join("testdata", name+".hex")
	if *update {
		require.NoError(t, os.MkdirAll("testdata", 0o755))
		require.NoError(t, os.WriteFile(path, []byte(text.String()), 0o644))
	}
	want, err := os.ReadFile(path)
	require.NoError(t, err)
	require.Equal(t, string(want), text.String())
}

func TestGoldenRecords(t *testing.T) {
	for kind := Make; kind < endKind; kind++ {
		r := full(kind)
		require.NoError(t, r.Seal())
		golden(t, fmt.Sprintf("kind%02d", kind), AppendSkeleton(nil, r))
	}
}

func FuzzDecodeSkeleton(f *testing.F) {
	for kind := Make; kind < endKind; kind++ {
		r := full(kind)
		if err := r.Seal(); err != nil {
			f.Fatal(err)
		}
		f.Add(AppendSkeleton(nil, r), uint64(r.LSN), int64(r.Time))
	}
	f.Fuzz(func(t *testing.T, b []byte, lsn uint64, at int64) {
		r, err := DecodeSkeleton(b, proto.LSN(lsn), proto.Time(at))
		if err != nil {
			require.ErrorIs(t, err, ErrRot)
			return
		}
		require.Equal(t, b, AppendSkeleton(nil, r)) // one encoding for each record
	})
}

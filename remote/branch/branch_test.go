package branch

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"io"
	"math/rand/v2"
	"testing"

	"github.com/stretchr/testify/require"

	"cagefs.dev/cage/remote/proto"
	"cagefs.dev/cage/remote/status"
)

var head = Head{Session: 0xfeed, Client: "laptop", Source: "host:7400:/data", Began: 12345}

// sample is a file of a few writes, and where each of its frames ends.
func sample() (file []byte, writes []Write, ends []int) {
	writes = []Write{
		{Seq: 3, Time: -5, UID: 1000, PID: 7, Comm: "vi", ID: 9, Path: "a/b", Base: 44, Off: 10, Data: []byte("hello")},
		{Seq: 4, Time: 9, ID: proto.MaxFileID, Off: 1<<63 - 2, Append: true, Data: []byte("x")},
		{Seq: 9, Time: 10, ID: 9, Data: bytes.Repeat([]byte("z"), 3000)},
	}
	file = AppendHead(nil, &head)
	for i := range writes {
		file = AppendWrite(file, &writes[i])
		writes[i].At = int64(len(file) - len(writes[i].Data))
		ends = append(ends, len(file))
	}
	return file, writes, ends
}

func readAll(b []byte) (h Head, got []Write, size int64, err error) {
	r, err := NewReader(bytes.NewReader(b))
	if err != nil {
		return h, nil, 0, err
	}
	for {
		w, err := r.Next()
		if err != nil {
			return r.Head, got, r.Size(), err
		}
		got = append(got, *w)
	}
}

func TestRoundTrip(t *testing.T) {
	file, want, _ := sample()
	h, got, size, err := readAll(file)
	require.Equal(t, io.EOF, err)
	require.Equal(t, head, h)
	require.Equal(t, want, got)
	require.EqualValues(t, len(file), size)
	for _, w := range got {
		require.Equal(t, w.Data, file[w.At:w.At+int64(len(w.Data))])
	}
}

// A file that was cut anywhere, or whose last frame has its length and not its
// bytes, as after a power cut, has all that was written whole before.
func TestTornEnd(t *testing.T) {
	file, want, ends := sample()
	first := len(AppendHead(nil, &head))
	for n := range len(file) {
		whole, end := 0, first
		for i, e := range ends {
			if e <= n {
				whole, end = i+1, e
			}
		}
		_, got, size, err := readAll(file[:n])
		if n < first {
			require.Equal(t, status.Damaged, status.Of(err), "cut at %d", n)
			require.ErrorIs(t, err, io.ErrUnexpectedEOF)
			continue
		}
		require.Equal(t, io.EOF, err, "cut at %d", n)
		require.Len(t, got, whole, "cut at %d", n)
		require.EqualValues(t, end, size)
	}
	zeros := append(bytes.Clone(file[:ends[1]+frameLen]), make([]byte, len(file)-ends[1]-frameLen)...)
	_, got, size, err := readAll(zeros)
	require.Equal(t, io.EOF, err)
	require.Equal(t, want[:2], got)
	require.EqualValues(t, ends[1], size)
}

// One wrong bit anywhere before the last frame is told.
func TestDamage(t *testing.T) {
	file, _, ends := sample()
	for i := range ends[1] {
		for bit := range 8 {
			bad := bytes.Clone(file)
			bad[i] ^= 1 << bit
			_, got, _, err := readAll(bad)
			if err == io.EOF { // a length that leads behind the end looks as if it were torn
				require.Less(t, len(got), 3, "byte %d, bit %d", i, bit)
				continue
			}
			require.Contains(t, []status.Code{status.Damaged, status.Version}, status.Of(err), "byte %d, bit %d", i, bit)
		}
	}
}

// What a file says of itself is not believed.
func TestNonsense(t *testing.T) {
	for name, w := range map[string]Write{
		"no data":       {ID: 1},
		"too much data": {ID: 1, Data: make([]byte, proto.MaxIO+1)},
		"no file":       {Data: []byte("x")},
		"no such file":  {ID: proto.MaxFileID + 1, Data: []byte("x")},
		"beyond":        {ID: 1, Off: 1<<63 - 1, Data: []byte("x")},
	} {
		_, _, _, err := readAll(AppendWrite(AppendHead(nil, &head), &w))
		require.Equal(t, status.Damaged, status.Of(err), name)
	}
	long := binary.LittleEndian.AppendUint32(AppendHead(nil, &head), maxFrame+1)
	_, _, _, err := readAll(append(long, make([]byte, 100)...))
	require.Equal(t, status.Damaged, status.Of(err))
	_, _, _, err = readAll([]byte("#!/bin/sh\necho\n"))
	require.ErrorContains(t, err, "it is no branch")
	_, _, _, err = readAll([]byte("CAGEBR\x00\x02 and more"))
	require.Equal(t, status.Version, status.Of(err))
}

// The files of a branch have the bytes that its writes leave, one over the other.
func TestFiles(t *testing.T) {
	for seed := range uint64(200) {
		r := rand.New(rand.NewPCG(seed, 0))
		file := AppendHead(nil, &head)
		base := bytes.Repeat([]byte("."), r.IntN(60))
		want := bytes.Clone(base)
		var ends []byte
		for seq := range r.IntN(20) {
			w := Write{Seq: proto.Seq(seq + 1), ID: 5, Base: proto.LSN(3 + r.IntN(4)), Off: uint64(r.IntN(60)), Append: r.IntN(5) == 0,
				Data: bytes.Repeat([]byte{byte('a' + seq)}, 1+r.IntN(30))}
			file = AppendWrite(file, &w)
			if w.Append {
				ends = append(ends, w.Data...)
				continue
			}
			if end := int(w.Off) + len(w.Data); end > len(want) {
				want = append(want, make([]byte, end-len(want))...)
			}
			copy(want[w.Off:], w.Data)
		}
		want = append(want, ends...)
		br, err := NewReader(bytes.NewReader(file))
		require.NoError(t, err)
		files, err := br.Files()
		require.NoError(t, err)
		got := bytes.Clone(base)
		for _, f := range files {
			over := f.Over(uint64(len(base)))
			for i, e := range over {
				require.True(t, i == 0 || over[i-1].end() <= e.Off, "seed %d: apart and ascending: %v", seed, over)
				if end := int(e.end()); end > len(got) {
					got = append(got, make([]byte, end-len(got))...)
				}
				copy(got[e.Off:], file[e.At:e.At+int64(e.Len)])
			}
		}
		require.Equal(t, string(want), string(got), "seed %d", seed)
	}
}

// A base that one write of a file does not know, nobody knows.
func TestBaseOfFile(t *testing.T) {
	for want, bases := range map[proto.LSN][]proto.LSN{4: {9, 4, 7}, 0: {9, 0}} {
		file := AppendHead(nil, &head)
		for i, b := range bases {
			file = AppendWrite(file, &Write{Seq: proto.Seq(i), ID: 1, Base: b, Data: []byte("x")})
		}
		br, err := NewReader(bytes.NewReader(file))
		require.NoError(t, err)
		files, err := br.Files()
		require.NoError(t, err)
		require.Equal(t, want, files[0].Base, fmt.Sprint(bases))
	}
}

func FuzzReader(f *testing.F) {
	file, _, _ := sample()
	f.Add(file)
	f.Add(file[:len(file)-7])
	f.Add([]byte(Magic))
	f.Fuzz(func(t *testing.T, b []byte) {
		_, got, size, err := readAll(b)
		if err == nil || size > int64(len(b)) {
			t.Fatalf("read %d bytes of %d, error %v", size, len(b), err)
		}
		for _, w := range got {
			if !bytes.Equal(w.Data, b[w.At:w.At+int64(len(w.Data))]) {
				t.Fatal("the data are not where At says")
			}
		}
	})
}

package runs

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"slices"
	"testing"

	"github.com/rs/zerolog"
	"github.com/stretchr/testify/require"

	"cagefs.dev/cage/journal/vfs"
)

// BenchmarkGet looks keys up in a table of 200,000 in five runs that are in the cache.
func BenchmarkGet(b *testing.B) {
	const keys = 200_000
	key := func(i int) []byte {
		k := binary.BigEndian.AppendUint64([]byte("n"), uint64(i)*0x9E3779B97F4A7C15) // spread, each once
		return append(k, "name"...)
	}
	s, err := Open(Options{Dir: testDir(b, vfs.NewMem(1)), Cache: NewCache(64 << 20), Log: zerolog.Nop(), Failed: func(err error) { b.Error(err) }})
	require.NoError(b, err)
	defer s.Close()
	for from, n := 0, keys*16/31; n > keys/64; from, n = from+n, n/2 {
		var run Sorted
		for i := range n {
			run = append(run, Entry{key(from + i), make([]byte, 40)})
		}
		slices.SortFunc(run, func(a, b Entry) int { return bytes.Compare(a.Key, b.Key) })
		require.NoError(b, s.Add(run))
	}
	v := s.View()
	defer v.Release()
	require.Greater(b, len(v.Names()), 2)
	for _, there := range []bool{true, false} {
		b.Run(fmt.Sprint("there=", there), func(b *testing.B) {
			b.ReportAllocs()
			found, looked := 0, 0
			for i := 0; b.Loop(); i++ {
				at := i * 7919 % (keys / 4)
				if !there {
					at += 2 * keys
				}
				_, ok, err := v.Get(key(at))
				if err != nil {
					b.Fatal(err)
				}
				if looked++; ok {
					found++
				}
			}
			if want := map[bool]int{true: looked}[there]; found != want {
				b.Fatalf("%d of %d found, want %d", found, looked, want)
			}
		})
	}
}

package wal

import (
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"cagefs.dev/cage/journal/record"
	"cagefs.dev/cage/journal/vfs"
)

// BenchmarkCommit appends and commits a record of 200 bytes.
func BenchmarkCommit(b *testing.B) {
	disks := map[string]func(b *testing.B) vfs.FS{
		"mem": func(b *testing.B) vfs.FS { return vfs.NewMem(1) },
		"os": func(b *testing.B) vfs.FS {
			fs, err := vfs.OS(b.TempDir())
			require.NoError(b, err)
			return fs
		},
	}
	for name, disk := range disks {
		b.Run(name, func(b *testing.B) {
			o := options(b, disk(b))
			o.SegmentSize = 0
			l, err := Open(o)
			require.NoError(b, err)
			r := &record.Record{
				Kind: record.Write, Session: 1 << 60, Seq: 1 << 20, Client: 3, UID: 1000, GID: 1000, PID: 4711, PGID: 4711,
				Comm: "bench", ID: 123456, Off: 1 << 20, Len: 100, Images: []byte(strings.Repeat("x", 130)),
				Pieces: []record.Piece{{Kind: record.PieceInline, Off: 1 << 20, Len: 130}},
			}
			b.ReportAllocs()
			for b.Loop() {
				if err := l.Append(r); err != nil {
					b.Fatal(err)
				}
				if err := l.Commit(); err != nil {
					b.Fatal(err)
				}
				if l.Durable()%100_000 == 0 {
					if err := l.Drop(l.Durable()); err != nil {
						b.Fatal(err)
					}
				}
			}
			b.StopTimer()
			require.NoError(b, l.Close())
		})
	}
}

// BenchmarkAppend appends records, a thousand to a commit.
func BenchmarkAppend(b *testing.B) {
	o := options(b, vfs.NewMem(1))
	o.SegmentSize = 0
	l, err := Open(o)
	require.NoError(b, err)
	recs := numbered(1, 2)
	b.ReportAllocs()
	for n := 0; b.Loop(); n++ {
		if err := l.Append(recs...); err != nil {
			b.Fatal(err)
		}
		if n%500 == 0 {
			if err := l.Commit(); err != nil {
				b.Fatal(err)
			}
		}
	}
	b.StopTimer()
	require.NoError(b, l.Close())
}

package pagecache

import (
	"context"
	"testing"

	"github.com/stretchr/testify/require"

	"cagefs.dev/cage/remote/page"
	"cagefs.dev/cage/remote/proto"
)

func benchFile(tb testing.TB, size int) (*server, *Cache, *File) {
	s, c := newServer(), New(Options{ReadAhead: -1})
	tb.Cleanup(c.Close)
	f, _ := c.Open(s.file(id), s.put(id, pattern(1, size)), 0)
	v, err := f.Read(ctx, nil, 0, size)
	require.NoError(tb, err)
	v.Release()
	return s, c, f
}

func TestHitAllocatesTheViewOnly(t *testing.T) {
	_, _, f := benchFile(t, 1<<20)
	require.LessOrEqual(t, testing.AllocsPerRun(1000, func() {
		v, err := f.Read(ctx, nil, 3*int64(page.DefaultSize)-100, 4096) // over two pages
		if err != nil || v.Len() != 4096 {
			t.Error(v, err)
		}
		v.Release()
	}), 1.0)
}

func BenchmarkReadHit(b *testing.B) {
	for _, bm := range []struct {
		name string
		n    int
	}{{"4KiB", 4 << 10}, {"128KiB", 128 << 10}, {"1MiB", 1 << 20}} {
		b.Run(bm.name, func(b *testing.B) {
			_, _, f := benchFile(b, 16<<20)
			b.SetBytes(int64(bm.n))
			b.ReportAllocs()
			b.ResetTimer()
			for i := range b.N {
				v, err := f.Read(ctx, nil, int64(i*bm.n)%(15<<20), bm.n)
				if err != nil {
					b.Fatal(err)
				}
				v.Release()
			}
		})
	}
}

func BenchmarkReadHitParallel(b *testing.B) {
	_, _, f := benchFile(b, 16<<20)
	b.RunParallel(func(pb *testing.PB) {
		for off := int64(0); pb.Next(); off += 4 << 10 {
			v, err := f.Read(ctx, nil, off%(15<<20), 4<<10)
			if err != nil {
				b.Error(err)
				return
			}
			v.Release()
		}
	})
}

func BenchmarkReadMiss(b *testing.B) {
	_, c, f := benchFile(b, 16<<20)
	b.SetBytes(1 << 20)
	for i := range b.N {
		if i%16 == 0 {
			c.Forget(id)
		}
		v, err := f.Read(ctx, nil, int64(i%16)<<20, 1<<20)
		if err != nil {
			b.Fatal(err)
		}
		v.Release()
	}
}

func BenchmarkWrite(b *testing.B) {
	for _, bm := range []struct {
		name string
		n    int
	}{{"4KiB", 4 << 10}, {"128KiB", 128 << 10}, {"1MiB", 1 << 20}} {
		b.Run(bm.name, func(b *testing.B) {
			_, _, f := benchFile(b, 16<<20)
			p := pattern(2, bm.n)
			quick := noLog{f.b}
			b.SetBytes(int64(bm.n))
			b.ReportAllocs()
			b.ResetTimer()
			for i := range b.N {
				if err := f.WriteAt(ctx, quick, p, int64(i*bm.n)%(15<<20)); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}

// noLog is a backing whose log costs nothing.
type noLog struct{ Backing }

func (noLog) Log(context.Context, []byte, int64) (proto.Seq, error) { return 1, nil }

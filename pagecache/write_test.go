package pagecache

import (
	"bytes"
	"context"
	"testing"

	"github.com/stretchr/testify/require"

	"cagefs.dev/cage/remote/proto"
	"cagefs.dev/cage/remote/status"
)

// over is data with p at off; what is between them is zero.
func over(data []byte, off int, p []byte) []byte {
	out := make([]byte, max(len(data), off+len(p)))
	copy(out, data)
	copy(out[off:], p)
	return out
}

func TestReadAfterWrite(t *testing.T) {
	file := pattern(1, 3*ps+100)
	for _, tc := range []struct {
		name    string
		off     int
		n       int
		fetched bool // by the read of everything that follows, where nothing was cached
	}{
		{"part of a page", 10, 20, true},
		{"parts of two pages", ps - 10, 20, true},
		{"a whole page", ps, ps, true},
		{"all pages", 0, 4 * ps, false},
		{"to the end", 0, 3*ps + 100, false},
		{"last page up to its end", 3 * ps, 100, true},
		{"at the end", 3*ps + 100, 50, true},
		{"beyond the end, same page", 3*ps + 200, 50, true},
		{"beyond the end, other page", 5*ps + 7, 2 * ps, true},
	} {
		for _, cached := range []bool{false, true} {
			name := tc.name + ", not cached"
			if cached {
				name = tc.name + ", cached"
			}
			t.Run(name, func(t *testing.T) {
				x := setup(t, Options{ReadAhead: -1}, file)
				if cached {
					x.read(0, len(file))
					x.s.fetched()
				}
				p := pattern(100, tc.n)
				x.write(int64(tc.off), p)
				want := over(file, tc.off, p)
				require.EqualValues(t, len(want), x.f.Size())
				require.EqualValues(t, 1, x.f.Logged())

				got := make(chan []byte)
				go func() { got <- x.read(0, 1<<20) }()
				holes := cached && tc.off > len(file)+ps // pages that nobody has written
				if !tc.fetched || cached && !holes {
					equal(t, want, <-got, "without the server")
					require.Empty(t, x.s.fetched())
					x.s.drain()
				} else {
					x.s.drain() // the read waits for this
					equal(t, want, <-got)
				}
				equal(t, want, x.s.content(id))
				equal(t, want, x.read(0, 1<<20))
			})
		}
	}
}

func TestFillWaitsForTheWritesOfItsPages(t *testing.T) {
	file := pattern(1, 4*ps)
	x := setup(t, Options{ReadAhead: -1}, file)
	x.write(10, same(9, 10))
	require.Zero(t, x.c.Stats().Pages, "a partial write fetches nothing")
	equal(t, file[ps:2*ps], x.read(ps, ps), "other pages do not wait")
	got := make(chan []byte)
	go func() { got <- x.read(0, ps) }()
	eventually(t, "the fill has begun", func() bool { return x.c.Stats().Misses == 2 })
	require.Len(t, x.s.fetched(), 1)
	x.s.drain()
	equal(t, over(file, 10, same(9, 10))[:ps], <-got)
}

func TestFillAfterAFailedWrite(t *testing.T) {
	file := pattern(1, ps)
	x := setup(t, Options{ReadAhead: -1}, file)
	x.write(10, same(9, 10))
	x.s.log[0].err = status.NoSpace
	got := make(chan []byte)
	go func() { got <- x.read(0, ps) }()
	x.s.drain()
	equal(t, file, <-got, "the write's error is not the reader's")
}

func TestEvictedDirtyPage(t *testing.T) {
	file := pattern(1, 16*ps)
	x := setup(t, Options{Bytes: 4 * ps, ReadAhead: -1}, file)
	x.write(0, same(9, ps))
	x.read(ps, 8*ps)
	x.read(9*ps, 7*ps)
	got := make(chan []byte)
	go func() { got <- x.read(0, ps) }()
	x.s.drain()
	equal(t, same(9, ps), <-got)
}

// A fill that began before a write must not bring the old bytes back.
func TestWriteDuringAFill(t *testing.T) {
	file := pattern(1, 2*ps)
	for _, tc := range []struct {
		name string
		off  int
		p    []byte
	}{
		{"part", 10, same(9, 10)},
		{"whole", 0, same(9, ps)},
	} {
		t.Run(tc.name, func(t *testing.T) {
			x := setup(t, Options{ReadAhead: -1}, file)
			g := newGate()
			x.s.after = g.pass // it has the old bytes already
			got := make(chan []byte)
			go func() { got <- x.read(0, ps) }()
			<-g.came
			x.write(int64(tc.off), tc.p)
			later := make(chan []byte)
			go func() { later <- x.read(0, ps) }()
			x.s.drain()
			close(g.open)
			want := over(file, tc.off, tc.p)[:ps]
			if first := <-got; !bytes.Equal(first, file[:ps]) { // who waited before the write gets what was then, or now
				equal(t, want, first)
			}
			equal(t, want, <-later)
			equal(t, want, x.read(0, ps))
		})
	}
}

// The bytes up to a write that outdated a fill are not known to be zero.
func TestWriteDuringAFillOfUnknownLength(t *testing.T) {
	x := setup(t, Options{ReadAhead: -1}, same(1, 100))
	x.c.Forget(id)
	g := newGate()
	x.s.after = g.pass
	got := make(chan []byte)
	go func() { got <- x.read(0, ps) }()
	<-g.came
	x.write(200, same(9, 100))
	close(g.open)
	equal(t, same(1, 100), <-got)
}

// While a write is between log and pages no fill of its pages is kept.
func TestFillDuringAWrite(t *testing.T) {
	file := pattern(1, 2*ps)
	x := setup(t, Options{ReadAhead: -1}, file)
	g := newGate()
	x.s.logged = func(ctx context.Context, _ proto.Seq) error { return g.pass(ctx, extent{}) }
	wrote := make(chan error)
	go func() { wrote <- x.f.WriteAt(ctx, nil, same(9, 10), 10) }()
	<-g.came
	equal(t, file, x.read(0, 2*ps))
	require.EqualValues(t, 1, x.c.Stats().Pages, "only the page that is not being written")
	x.s.drain()
	x.s.foreign(id, 12, same(8, 4)) // after the write, before it is finished here
	close(g.open)
	require.NoError(t, <-wrote)
	want := over(over(file, 10, same(9, 10)), 12, same(8, 4))
	equal(t, want, x.read(0, 2*ps))
}

func TestChangedDuringAWrite(t *testing.T) {
	file := pattern(1, ps)
	x := setup(t, Options{ReadAhead: -1}, file)
	g := newGate()
	x.s.logged = func(ctx context.Context, _ proto.Seq) error { return g.pass(ctx, extent{}) }
	wrote := make(chan error)
	go func() { wrote <- x.f.WriteAt(ctx, nil, same(9, ps), 0) }()
	<-g.came
	x.s.drain()
	x.c.Changed(id, x.s.foreign(id, 0, same(8, ps)).Change)
	close(g.open)
	require.NoError(t, <-wrote)
	equal(t, same(8, ps), x.read(0, ps), "the write was first")
}

func TestWritersTakeTurns(t *testing.T) {
	x := setup(t, Options{}, same(0, ps))
	g := newGate()
	x.s.logged = func(ctx context.Context, _ proto.Seq) error { return g.pass(ctx, extent{}) }
	wrote := make(chan error)
	go func() { wrote <- x.f.WriteAt(ctx, nil, same(1, ps), 0) }()
	<-g.came
	c, cancel := context.WithCancel(ctx)
	impatient := make(chan error)
	go func() { impatient <- x.f.WriteAt(c, nil, same(2, ps), 0) }()
	equal(t, same(0, ps), x.read(0, ps), "readers do not wait")
	cancel()
	require.Equal(t, status.Interrupted, status.Of(<-impatient))
	close(g.open)
	require.NoError(t, <-wrote)
	equal(t, same(1, ps), x.read(0, ps))
}

func TestLargeWritesAreSplit(t *testing.T) {
	x := setup(t, Options{Bytes: 8 << 20, PageSize: 128 * kib}, nil)
	p := pattern(3, 3*proto.MaxIO+5)
	x.write(1, p)
	require.EqualValues(t, 4, x.f.Logged())
	equal(t, over(nil, 1, p), x.read(0, len(p)+100))
	require.Empty(t, x.s.fetched())
	x.s.drain()
	equal(t, over(nil, 1, p), x.s.content(id))
}

func TestAppendingInSmallPieces(t *testing.T) {
	x := setup(t, Options{}, nil)
	var want []byte
	for i := range 100 {
		p := pattern(byte(i), 777)
		x.write(int64(len(want)), p)
		want = append(want, p...)
		if i%7 == 0 {
			v, err := x.f.Read(ctx, nil, 0, len(want))
			require.NoError(t, err)
			defer func(n int) {
				equal(t, want[:n], gather(v))
				v.Release()
			}(len(want))
		}
	}
	equal(t, want, x.read(0, 1<<20))
	require.Empty(t, x.s.fetched())
	x.s.drain()
	equal(t, want, x.s.content(id))
}

func TestHole(t *testing.T) {
	x := setup(t, Options{ReadAhead: -1}, same(1, 100))
	x.read(0, 100)
	x.write(3*ps+50, same(2, 10))
	want := over(same(1, 100), 3*ps+50, same(2, 10))
	equal(t, want, x.read(0, 1<<20), "before the write is applied")
	x.s.drain()
	x.c.Forget(id)
	equal(t, want, x.read(0, 1<<20), "and after")
}

func TestWriteWithOtherIdentity(t *testing.T) {
	x := setup(t, Options{}, nil)
	other := x.s.file(8)
	x.s.put(8, nil)
	require.NoError(t, x.f.WriteAt(ctx, other, same(1, 3), 0))
	x.s.drain()
	equal(t, same(1, 3), x.s.content(8), "the backing of the call, not of the open")
	require.False(t, bytes.Equal(same(1, 3), x.s.content(id)))
}

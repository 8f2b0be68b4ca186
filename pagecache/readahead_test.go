package pagecache

import (
	"context"
	"sync/atomic"
	"testing"

	"github.com/stretchr/testify/require"

	"cagefs.dev/cage/remote/proto"
)

// settled waits until nothing is being fetched.
func (x *fixture) settled() {
	x.Helper()
	eventually(x, "nothing in flight", func() bool {
		x.c.mu.Lock()
		defer x.c.mu.Unlock()
		for _, p := range x.f.pages {
			if p.fill != nil {
				return false
			}
		}
		return x.c.aheadFills == 0
	})
}

func TestSequentialReaderIsReadAheadOf(t *testing.T) {
	const pages = 64
	data := pattern(1, pages*ps)
	x := setup(t, Options{ReadAhead: 8}, data)
	for off := int64(0); off < pages*ps; off += ps {
		equal(t, data[off:off+ps], x.read(off, ps))
		x.settled()
	}
	s := x.c.Stats()
	require.EqualValues(t, 2, s.Misses, "the reader waits for the first two pages only")
	require.EqualValues(t, pages-2, s.ReadAheads)
	require.EqualValues(t, pages-2, s.Hits)
	fetched := x.s.fetched()
	total := 0
	for _, e := range fetched {
		total += e.n
		require.LessOrEqual(t, e.n, 8*ps)
	}
	require.Equal(t, pages*ps, total, "each page once, nothing beyond the end")
	require.Less(t, len(fetched), pages/3, "in pieces of several pages")
}

func TestWindowGrows(t *testing.T) {
	x := setup(t, Options{ReadAhead: 8}, pattern(1, 64*ps))
	var ahead []int64
	for i := range int64(5) {
		x.read(i*16, 16) // within the first page
		x.settled()
		ahead = append(ahead, x.c.Stats().ReadAheads)
	}
	require.Equal(t, []int64{0, 1, 2, 4, 8}, ahead)
}

func TestWhoIsReadAheadOf(t *testing.T) {
	for _, tc := range []struct {
		name  string
		pages []int64
		ahead bool
	}{
		{"one read", []int64{0}, false},
		{"jumps", []int64{40, 3, 17, 55, 21, 9}, false},
		{"backwards", []int64{40, 39, 38, 37, 36}, false},
		{"forwards", []int64{40, 41}, true},
		{"two readers by turns", []int64{3, 40, 4, 41, 5, 42}, true},
		{"out of order once it runs", []int64{3, 4, 5, 7, 6, 9, 8}, true},
	} {
		t.Run(tc.name, func(t *testing.T) {
			data := pattern(1, 64*ps)
			x := setup(t, Options{ReadAhead: 4}, data)
			for _, no := range tc.pages {
				equal(t, data[no*ps:(no+1)*ps], x.read(no*ps, ps))
			}
			x.settled()
			require.Equal(t, tc.ahead, x.c.Stats().ReadAheads > 0)
		})
	}
}

func TestNoReadAhead(t *testing.T) {
	x := setup(t, Options{ReadAhead: -1}, pattern(1, 16*ps))
	for i := range int64(16) {
		x.read(i*ps, ps)
	}
	require.Zero(t, x.c.Stats().ReadAheads)
	require.EqualValues(t, 16, x.c.Stats().Misses)
}

// ahead sets up a reader of two pages whose read-ahead hangs, and counts what was cancelled.
func ahead(t *testing.T) (x *fixture, g *gate, cancelled *atomic.Int32) {
	x = setup(t, Options{ReadAhead: 8}, pattern(1, 64*ps))
	g, cancelled = newGate(), new(atomic.Int32)
	x.read(0, ps)
	x.s.before = func(ctx context.Context, e extent) error {
		if e.off != 2*ps {
			return nil
		}
		err := g.pass(ctx, e)
		if err != nil {
			cancelled.Add(1)
		}
		return err
	}
	x.read(ps, ps)
	<-g.came
	return x, g, cancelled
}

func TestReaderJoinsWhatIsReadAhead(t *testing.T) {
	x, g, _ := ahead(t)
	got := make(chan []byte)
	go func() { got <- x.read(2*ps, ps) }()
	eventually(t, "it waits", func() bool { return x.c.Stats().Misses == 3 })
	close(g.open)
	equal(t, pattern(1, 64*ps)[2*ps:3*ps], <-got)
	x.settled()
	n := 0
	for _, e := range x.s.fetched() {
		if e.off <= 2*ps && 2*ps < e.off+int64(e.n) {
			n++
		}
	}
	require.Equal(t, 1, n)
}

func TestReadAheadIsCancelled(t *testing.T) {
	for _, tc := range []struct {
		name string
		do   func(x *fixture)
	}{
		{"when the reader jumps about", func(x *fixture) {
			for _, no := range []int64{50, 40, 30, 20} {
				x.read(no*ps, ps)
			}
		}},
		{"when the file is closed", func(x *fixture) { x.f.Close() }},
		{"when the cache is closed", func(x *fixture) { x.c.Close() }},
	} {
		t.Run(tc.name, func(t *testing.T) {
			x, _, cancelled := ahead(t)
			tc.do(x)
			eventually(t, "cancelled", func() bool { return cancelled.Load() == 1 })
			x.settled()
		})
	}
}

func TestReadAheadThatSomebodyWaitsForIsNotCancelled(t *testing.T) {
	x, g, cancelled := ahead(t)
	got := make(chan []byte)
	go func() { got <- x.read(2*ps, ps) }()
	eventually(t, "it waits", func() bool { return x.c.Stats().Misses == 3 })
	for _, no := range []int64{50, 40, 30, 20, 10} {
		x.read(no*ps, ps)
	}
	close(g.open)
	equal(t, pattern(1, 64*ps)[2*ps:3*ps], <-got)
	require.Zero(t, cancelled.Load())
}

func TestReadAheadIsBounded(t *testing.T) {
	const files = 3 * maxAheadFills
	s, c := newServer(), New(Options{PageSize: ps, Bytes: 1 << 20})
	g := newGate()
	s.before = func(ctx context.Context, e extent) error {
		if e.off < 2*ps {
			return nil
		}
		return g.pass(ctx, e)
	}
	for i := range files {
		f, _ := c.Open(s.file(proto.FileID(i)), s.put(proto.FileID(i), pattern(1, 64*ps)), 0)
		for _, off := range []int64{0, ps} {
			v, err := f.Read(ctx, nil, off, ps)
			require.NoError(t, err)
			v.Release()
		}
	}
	c.mu.Lock()
	require.Equal(t, maxAheadFills, c.aheadFills)
	c.mu.Unlock()
	c.Close()
	c.check(t)
	c.Close()
}

func TestReadAheadStaysWithinTheBudget(t *testing.T) {
	data := pattern(1, 64*ps)
	x := setup(t, Options{Bytes: 4 * ps, ReadAhead: 8}, data)
	for off := int64(0); off < 64*ps; off += ps {
		equal(t, data[off:off+ps], x.read(off, ps))
		require.LessOrEqual(t, x.c.Stats().Bytes, int64(5*ps), "the page that is read may come on top of four in flight")
	}
}

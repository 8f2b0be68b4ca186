package pagecache

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"runtime"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"cagefs.dev/cage/remote/page"
	"cagefs.dev/cage/remote/proto"
	"cagefs.dev/cage/remote/status"
)

const (
	kib = 1 << 10
	ps  = 4 * kib // page size of most tests
	id  = proto.FileID(7)
)

var (
	ctx        = context.Background()
	errNoSpace = status.New(status.NoSpace, "write", "")
)

// fixture is a cache with one open file.
type fixture struct {
	*testing.T
	s *server
	c *Cache
	f *File
}

func setup(t *testing.T, o Options, data []byte) *fixture {
	t.Helper()
	if o.PageSize == 0 {
		o.PageSize = ps
	}
	if o.Bytes == 0 {
		o.Bytes = 1 << 20
	}
	x := &fixture{T: t, s: newServer(), c: New(o)}
	x.s.put(id, data)
	x.f, _ = x.open()
	t.Cleanup(func() {
		x.c.Close()
		x.c.check(t)
	})
	return x
}

func (x *fixture) open() (*File, bool) {
	attr, upto := x.s.attr(id)
	return x.c.Open(x.s.file(id), attr, upto)
}

func (x *fixture) read(off int64, n int) []byte {
	x.Helper()
	v, err := x.f.Read(ctx, nil, off, n)
	require.NoError(x, err)
	defer v.Release()
	return gather(v)
}

func (x *fixture) write(off int64, p []byte) {
	x.Helper()
	require.NoError(x, x.f.WriteAt(ctx, nil, p, off))
}

// truncate is a truncate of this client's.
func (x *fixture) truncate(size int64) {
	x.Helper()
	upto := x.f.Logged()
	done := make(chan *op)
	go func() { done <- x.s.truncate(id, size) }()
	for {
		x.s.step()
		select {
		case <-done:
			attr, _ := x.s.attr(id)
			x.f.Own(attr, upto)
			return
		default:
			runtime.Gosched()
		}
	}
}

// check looks at the accounts when nothing is under way.
func (c *Cache) check(t testing.TB) {
	t.Helper()
	c.mu.Lock()
	defer c.mu.Unlock()
	var sum int64
	pages := 0
	for _, f := range c.files {
		for no, p := range f.pages {
			require.Nil(t, p.fill)
			require.Equal(t, no, p.no)
			require.Same(t, p, p.buf.owner)
			require.Zero(t, p.buf.holds)
			require.LessOrEqual(t, p.n, len(p.buf.b))
			sum += int64(len(p.buf.b))
			pages++
		}
	}
	require.Equal(t, sum, c.bytes, "bytes accounted for")
	require.Equal(t, pages, c.policy.Len())
	require.LessOrEqual(t, c.bytes, c.budget)
	require.Zero(t, c.aheadFills)
}

// Each policy keeps the cache within its budget and its readers served.
func TestPolicies(t *testing.T) {
	for _, name := range Policies {
		t.Run(name, func(t *testing.T) {
			data := pattern(1, 40*ps)
			x := setup(t, Options{Bytes: 16 * ps, ReadAhead: -1, Policy: name}, data)
			for range 2 {
				for off := int64(0); off < int64(len(data)); off += 1000 {
					n := min(1000, int64(len(data))-off)
					equal(t, data[off:off+n], x.read(off, int(n)))
				}
			}
			x.c.check(t)
			s := x.c.Stats()
			require.Equal(t, name, s.Policy)
			require.EqualValues(t, ps, s.PageSize)
			require.EqualValues(t, 16*ps, s.Bytes)
			require.NotZero(t, s.Evictions)
		})
	}
	require.Panics(t, func() { New(Options{Policy: "best"}) })
}

func gather(v *View) []byte { return bytes.Join(v.Slices(), nil) }

// pattern is n bytes that differ from page to page, and by seed.
func pattern(seed byte, n int) []byte {
	p := make([]byte, n)
	for i := range p {
		p[i] = seed + byte(i/ps)*7 + byte(i)
	}
	return p
}

// equal compares contents; a failure says where they differ.
func equal(t testing.TB, want, got []byte, what ...any) {
	t.Helper()
	if bytes.Equal(want, got) {
		return
	}
	i := 0
	for i < min(len(want), len(got)) && want[i] == got[i] {
		i++
	}
	t.Fatalf("%v: differ at %d: want %d bytes, there % .8x…, got %d bytes, there % .8x…", what, i, len(want), want[i:], len(got), got[i:])
}

func same(b byte, n int) []byte { return bytes.Repeat([]byte{b}, n) }

// eventually waits for a condition that another goroutine brings about.
func eventually(t testing.TB, what string, cond func() bool) {
	t.Helper()
	for end := time.Now().Add(5 * time.Second); !cond(); runtime.Gosched() {
		if time.Now().After(end) {
			t.Fatalf("not reached: %s", what)
		}
	}
}

// gate stops calls until it is opened.
type gate struct{ came, open chan struct{} }

func newGate() *gate { return &gate{make(chan struct{}, 100), make(chan struct{})} }

func (g *gate) pass(ctx context.Context, _ extent) error {
	g.came <- struct{}{}
	select {
	case <-g.open:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

func TestRead(t *testing.T) {
	data := pattern(1, 5*ps+100)
	for _, size := range []page.Size{4 * kib, 16 * kib, 128 * kib} {
		for _, tc := range []struct {
			name string
			off  int64
			n    int
		}{
			{"all", 0, len(data)},
			{"more than there is", 0, 1 << 20},
			{"within a page", 10, 20},
			{"over pages", ps - 1, 2*ps + 2},
			{"the end", 5 * ps, ps},
			{"at the end", int64(len(data)), 1},
			{"beyond", 100 * ps, 10},
			{"nothing", 5, 0},
		} {
			t.Run(fmt.Sprintf("%s, pages of %d", tc.name, size), func(t *testing.T) {
				x := setup(t, Options{PageSize: size, ReadAhead: -1}, data)
				want := data[min(tc.off, int64(len(data))):min(tc.off+int64(tc.n), int64(len(data)))]
				for range 2 {
					v, err := x.f.Read(ctx, nil, tc.off, tc.n)
					require.NoError(t, err)
					equal(t, want, gather(v))
					require.Equal(t, len(want), v.Len())
					v.Release()
				}
				require.LessOrEqual(t, len(x.s.fetched()), 1, "adjacent pages come with one read, and once")
			})
		}
	}
}

func TestInvalidRanges(t *testing.T) {
	x := setup(t, Options{}, nil)
	_, err := x.f.Read(ctx, nil, -1, 1)
	require.ErrorIs(t, err, status.Invalid)
	_, err = x.f.Read(ctx, nil, page.MaxOffset, 1)
	require.ErrorIs(t, err, status.Invalid)
	require.ErrorIs(t, x.f.WriteAt(ctx, nil, []byte{1}, -1), status.Invalid)
}

func TestFetchedOnce(t *testing.T) {
	x := setup(t, Options{ReadAhead: -1}, pattern(1, 8*ps))
	g := newGate()
	x.s.before = g.pass
	const readers = 20
	got := make(chan []byte, readers)
	for range readers {
		go func() {
			v, err := x.f.Read(ctx, nil, ps, 2*ps)
			if err != nil {
				got <- nil
				return
			}
			defer v.Release()
			got <- gather(v)
		}()
	}
	eventually(t, "all wait", func() bool { return x.c.Stats().Misses == 2*readers })
	close(g.open)
	for range readers {
		equal(t, pattern(1, 8*ps)[ps:3*ps], <-got)
	}
	require.Equal(t, []extent{{id, ps, 2 * ps}}, x.s.fetched())
}

func TestHolesBetweenCachedPages(t *testing.T) {
	data := pattern(1, 8*ps)
	x := setup(t, Options{ReadAhead: -1}, data)
	x.read(2*ps, 1)
	x.read(5*ps, 1)
	x.s.fetched()
	equal(t, data, x.read(0, 8*ps))
	require.ElementsMatch(t, []extent{{id, 0, 2 * ps}, {id, 3 * ps, 2 * ps}, {id, 6 * ps, 2 * ps}}, x.s.fetched())
}

func TestErrorReachesAllWaitersAndIsNotCached(t *testing.T) {
	x := setup(t, Options{ReadAhead: -1}, pattern(1, 2*ps))
	g := newGate()
	broken := status.New(status.IO, "disk", "")
	x.s.before = func(ctx context.Context, e extent) error {
		if err := g.pass(ctx, e); err != nil {
			return err
		}
		return broken
	}
	const readers = 5
	errs := make(chan error, readers)
	for range readers {
		go func() {
			_, err := x.f.Read(ctx, nil, 0, 2*ps)
			errs <- err
		}()
	}
	eventually(t, "all wait", func() bool { return x.c.Stats().Misses == 2*readers })
	close(g.open)
	for range readers {
		err := <-errs
		require.ErrorIs(t, err, broken)
		require.ErrorContains(t, err, "read fid 7 page 0")
		require.Equal(t, status.IO, status.Of(err))
	}
	x.s.before = nil
	equal(t, pattern(1, 2*ps), x.read(0, 2*ps))
}

func TestAbandonedFillGoesOn(t *testing.T) {
	x := setup(t, Options{ReadAhead: -1}, pattern(1, ps))
	g := newGate()
	x.s.before = g.pass
	c, cancel := context.WithCancel(ctx)
	errs := make(chan error)
	go func() {
		_, err := x.f.Read(c, nil, 0, ps)
		errs <- err
	}()
	<-g.came
	cancel()
	require.Equal(t, status.Interrupted, status.Of(<-errs))
	close(g.open)
	eventually(t, "the page is there", func() bool { return x.c.Stats().Pages == 1 })
	equal(t, pattern(1, ps), x.read(0, ps))
	require.Len(t, x.s.fetched(), 1)
}

func TestCloseEndsFills(t *testing.T) {
	x := setup(t, Options{ReadAhead: -1}, pattern(1, ps))
	g := newGate()
	x.s.before = g.pass
	errs := make(chan error)
	go func() {
		_, err := x.f.Read(ctx, nil, 0, ps)
		errs <- err
	}()
	<-g.came
	x.c.Close()
	require.Equal(t, status.Interrupted, status.Of(<-errs))
	_, err := x.f.Read(ctx, nil, 0, ps)
	require.Error(t, err, "closed")
	x.f.Close()
}

func TestSmallFilesTakeSmallBuffers(t *testing.T) {
	x := setup(t, Options{PageSize: 128 * kib}, same(1, 3000))
	x.read(0, 3000)
	require.EqualValues(t, 4*kib, x.c.Stats().Bytes)
	x.write(3000, same(2, 6000))
	require.EqualValues(t, 16*kib, x.c.Stats().Bytes)
	equal(t, append(same(1, 3000), same(2, 6000)...), x.read(0, 1<<20))
}

func TestLongerThanKnown(t *testing.T) {
	x := setup(t, Options{PageSize: 128 * kib}, same(1, 3000))
	attr := x.s.foreign(id, 0, pattern(2, 40000))
	equal(t, pattern(2, 40000)[:3000], x.read(0, 3000), "not told yet: only what was asked for is shown")
	require.EqualValues(t, 40000, x.f.Size(), "but the reply tells the size")
	x.c.Changed(id, attr.Change)
	equal(t, pattern(2, 40000), x.read(0, 1<<20))
}

func TestBudget(t *testing.T) {
	const budget = 8 * ps
	data := pattern(1, 64*ps)
	x := setup(t, Options{Bytes: budget, ReadAhead: 4}, data)
	for i := range 200 {
		off := int64(i*37%60) * ps
		equal(t, data[off:off+2*ps], x.read(off, 2*ps))
		if i%3 == 0 {
			x.write(off+5, data[off+5:off+5+ps])
		}
		s := x.c.Stats()
		require.LessOrEqual(t, s.Bytes, s.Budget)
		if i%10 == 9 {
			x.s.drain()
		}
	}
	require.NotZero(t, x.c.Stats().Evictions)

	// Views pin more than the budget; what is over goes with them.
	var views []*View
	for i := range 16 {
		v, err := x.f.Read(ctx, nil, int64(i)*ps, ps)
		require.NoError(t, err)
		views = append(views, v)
	}
	require.LessOrEqual(t, x.c.Stats().Bytes, int64(16*ps))
	for i, v := range views {
		equal(t, data[i*ps:(i+1)*ps], gather(v), "pinned pages are not evicted")
		v.Release()
	}
	eventually(t, "within the budget", func() bool { return x.c.Stats().Bytes <= budget })
	x.write(0, pattern(9, 32*ps))
	require.LessOrEqual(t, x.c.Stats().Bytes, int64(budget), "a write larger than the cache")
}

func TestReadLargerThanCache(t *testing.T) {
	data := pattern(1, 64*ps)
	x := setup(t, Options{Bytes: 4 * ps}, data)
	equal(t, data, x.read(0, len(data)))
	require.LessOrEqual(t, x.c.Stats().Bytes, int64(4*ps))
}

func TestViewStays(t *testing.T) {
	data := pattern(1, 4*ps)
	for _, tc := range []struct {
		name string
		do   func(x *fixture)
		want []byte // what is read afterwards
	}{
		{"overwritten in part", func(x *fixture) { x.write(100, same(9, 50)) }, append(append(bytes.Clone(data[:100]), same(9, 50)...), data[150:]...)},
		{"overwritten wholly", func(x *fixture) { x.write(0, same(9, 4*ps)) }, same(9, 4*ps)},
		{"changed", func(x *fixture) { x.c.Changed(id, x.s.foreign(id, 0, same(8, ps)).Change) }, append(same(8, ps), data[ps:]...)},
		{"forgotten", func(x *fixture) { x.c.Forget(id) }, data},
		{"reset", func(x *fixture) { x.c.Reset(0) }, data},
		{"truncated", func(x *fixture) { x.truncate(0) }, nil},
		{"closed", func(x *fixture) { x.f.Close(); x.f, _ = x.open() }, data},
	} {
		t.Run(tc.name, func(t *testing.T) {
			x := setup(t, Options{}, data)
			v, err := x.f.Read(ctx, nil, 0, 4*ps)
			require.NoError(t, err)
			tc.do(x)
			x.s.drain()
			got := x.read(0, 4*ps)
			equal(t, tc.want, got)
			equal(t, data, gather(v))
			v.Release()
		})
	}
}

func TestReleasedBuffersArePoisoned(t *testing.T) {
	if !poison {
		t.Skip("not in this build")
	}
	x := setup(t, Options{ReadAhead: -1}, same(1, ps))
	v, err := x.f.Read(ctx, nil, 0, ps)
	require.NoError(t, err)
	late := v.Slices()[0]
	x.c.Forget(id)
	equal(t, same(1, ps), late)
	v.Release()
	equal(t, same(0xCC, ps), late)
}

func TestIdleFilesAreForgotten(t *testing.T) {
	s, c := newServer(), New(Options{PageSize: ps, Bytes: 1 << 20})
	defer c.Close()
	open := func(id proto.FileID) *File {
		f, _ := c.Open(s.file(id), s.put(id, nil), 0)
		return f
	}
	written := open(1)
	c.budget = 0 // nothing is kept
	require.NoError(t, written.WriteAt(ctx, nil, same(1, ps), 0))
	written.Close()
	for i := range proto.FileID(3 * maxIdle) {
		open(i + 2).Close()
	}
	require.LessOrEqual(t, c.Stats().Files, int64(maxIdle+1))
	f := open(1)
	require.Same(t, written, f, "it has an unapplied write")
	f.Close()
	s.drain()
	for i := range proto.FileID(3 * maxIdle) {
		open(i + 2).Close()
	}
	require.NotSame(t, written, open(1), "it has none any more")
}

func TestWriteThatTheLogRefuses(t *testing.T) {
	x := setup(t, Options{}, nil)
	full := errors.New("log is gone")
	x.s.logged = func(context.Context, proto.Seq) error { return full }
	err := x.f.WriteAt(ctx, nil, same(1, ps), 0)
	require.ErrorIs(t, err, full)
	require.Zero(t, x.f.Logged())
	require.Zero(t, x.f.Size())
	require.Empty(t, x.read(0, ps))
}

package pagecache

import (
	"bytes"
	"testing"

	"github.com/stretchr/testify/require"

	"cagefs.dev/cage/remote/proto"
)

func TestOpenAgain(t *testing.T) {
	data, other := pattern(1, 4*ps), pattern(50, 4*ps)
	for _, tc := range []struct {
		name    string
		between func(x *fixture)
		kept    bool
		want    []byte
		fetched bool
	}{
		{"nothing happened", func(*fixture) {}, true, data, false},
		{"changed by others, not told", func(x *fixture) { x.s.foreign(id, 0, other) }, false, other, true},
		{"changed by others, told", func(x *fixture) { x.c.Changed(id, x.s.foreign(id, 0, other).Change) }, false, other, true},
		{"changed by us, answer not seen", func(x *fixture) { x.write(0, other); x.s.drain() }, false, other, true},
		{"changed by us, answer seen", func(x *fixture) {
			x.write(0, other)
			x.s.drain()
			attr, _ := x.s.attr(id)
			x.f.Own(attr, 1)
		}, true, other, false},
		{"changed by us, told that it was written", func(x *fixture) {
			x.write(0, other)
			x.s.drain()
			attr, _ := x.s.attr(id)
			x.c.Written(id, attr.Change)
		}, true, other, false},
		{"changed by others, told, then by us, told that it was written", func(x *fixture) {
			foreign := x.s.foreign(id, 0, other)
			x.write(0, other[:ps])
			x.s.drain()
			attr, _ := x.s.attr(id)
			x.c.Changed(id, foreign.Change)
			x.c.Written(id, attr.Change)
		}, false, other, true},
		{"reset hides a change before ours that we are told was written", func(x *fixture) {
			x.s.foreign(id, 0, other)
			x.write(0, other[:ps])
			x.s.drain()
			x.c.Reset(0)
			attr, _ := x.s.attr(id)
			x.c.Written(id, attr.Change)
		}, false, other, true},
		{"reset, unchanged", func(x *fixture) { x.c.Reset(0) }, true, data, false},
		{"reset, changed", func(x *fixture) { x.s.foreign(id, 0, other); x.c.Reset(0) }, false, other, true},
		{"reset hides a change before ours", func(x *fixture) {
			x.s.foreign(id, 0, other)
			x.write(0, other[:ps])
			x.s.drain()
			x.c.Reset(0)
			attr, _ := x.s.attr(id)
			x.f.Own(attr, 1)
		}, false, other, true},
		{"reset hides a change before ours, whose answer came before", func(x *fixture) {
			x.s.foreign(id, 0, other)
			x.write(0, other[:ps])
			x.s.drain()
			attr, _ := x.s.attr(id)
			x.f.Own(attr, 1)
			x.c.Reset(0)
		}, false, other, true},
		{"told after an open of a change before ours", func(x *fixture) {
			foreign := x.s.foreign(id, 0, other)
			x.write(0, other[:ps])
			x.s.drain()
			attr, _ := x.s.attr(id)
			x.f.Own(attr, 1)
			x.f.Seen(attr, 1)
			x.c.Changed(id, foreign.Change)
		}, false, other, true},
		{"told late of a change before ours", func(x *fixture) {
			foreign := x.s.foreign(id, 0, other)
			x.write(0, other[:ps])
			x.s.drain()
			attr, _ := x.s.attr(id)
			x.f.Own(attr, 1)
			x.c.Changed(id, foreign.Change)
		}, false, other, true},
		{"forgotten", func(x *fixture) { x.c.Forget(id) }, false, data, true},
	} {
		t.Run(tc.name, func(t *testing.T) {
			x := setup(t, Options{}, data)
			x.read(0, 4*ps)
			tc.between(x)
			x.s.fetched()
			f, kept := x.open()
			require.Same(t, x.f, f)
			require.Equal(t, tc.kept, kept)
			equal(t, tc.want, x.read(0, 4*ps))
			require.Equal(t, tc.fetched, len(x.s.fetched()) > 0)
			_, kept = x.open()
			require.True(t, kept, "nothing since")
		})
	}
}

func TestFirstOpenKeepsNothing(t *testing.T) {
	s, c := newServer(), New(Options{})
	defer c.Close()
	attr := s.put(id, nil)
	attr.Change = 0 // it was there before the journal
	_, kept := c.Open(s.file(id), attr, 0)
	require.False(t, kept)
	_, kept = c.Open(s.file(id), attr, 0)
	require.True(t, kept)
}

func TestPagesStayAfterClose(t *testing.T) {
	data := pattern(1, 4*ps)
	x := setup(t, Options{}, data)
	x.read(0, 4*ps)
	x.f.Close()
	x.s.fetched()
	_, kept := x.open()
	require.True(t, kept)
	equal(t, data, x.read(0, 4*ps))
	require.Empty(t, x.s.fetched())
}

// What was fetched before a change by others may be shown to who asked before, and is not kept.
func TestChangedDuringAFill(t *testing.T) {
	data, other := pattern(1, ps), pattern(50, ps)
	for _, tc := range []struct {
		name string
		tell func(x *fixture)
	}{
		{"changed", func(x *fixture) { x.c.Changed(id, x.s.foreign(id, 0, other).Change) }},
		{"opened", func(x *fixture) { x.s.foreign(id, 0, other); x.open() }},
		{"seen", func(x *fixture) { x.f.Seen(x.s.foreign(id, 0, other), 0) }},
		{"reset", func(x *fixture) { x.s.foreign(id, 0, other); x.c.Reset(0) }},
		{"forgotten", func(x *fixture) { x.s.foreign(id, 0, other); x.c.Forget(id) }},
	} {
		t.Run(tc.name, func(t *testing.T) {
			x := setup(t, Options{}, data)
			g := newGate()
			x.s.after = g.pass
			got := make(chan []byte)
			go func() { got <- x.read(0, ps) }()
			<-g.came
			tc.tell(x)
			close(g.open)
			equal(t, data, <-got)
			equal(t, other, x.read(0, ps), "not kept")
		})
	}
}

// Who asks after a reset does not join a fill from before.
func TestResetDuringAFill(t *testing.T) {
	data, other := pattern(1, ps), pattern(50, ps)
	x := setup(t, Options{}, data)
	g := newGate()
	x.s.after = g.pass
	got := make(chan []byte, 2)
	go func() { got <- x.read(0, ps) }()
	<-g.came
	x.s.foreign(id, 0, other)
	x.c.Reset(0)
	go func() { got <- x.read(0, ps) }()
	<-g.came
	close(g.open)
	<-got
	<-got
	equal(t, other, x.read(0, ps))
	require.Len(t, x.s.fetched(), 2)
}

func TestOldNewsDropNothing(t *testing.T) {
	x := setup(t, Options{}, pattern(1, ps))
	attr := x.s.foreign(id, 0, pattern(2, ps))
	x.f.Seen(attr, 0)
	x.read(0, ps)
	x.s.fetched()
	x.c.Changed(id, attr.Change)
	x.c.Changed(id, attr.Change-1)
	x.c.Changed(99, 1000)
	x.read(0, ps)
	require.Empty(t, x.s.fetched())
}

func TestResetWhileOpen(t *testing.T) {
	data := pattern(1, ps)
	x := setup(t, Options{}, data)
	x.read(0, ps)
	x.s.foreign(id, 0, same(3, 2*ps))
	equal(t, data, x.read(0, 2*ps), "nobody has told us")
	x.c.Reset(0)
	equal(t, same(3, 2*ps), x.read(0, 2*ps), "longer, too")
	x.s.fetched()
	equal(t, same(3, 2*ps), x.read(0, 2*ps))
	require.Empty(t, x.s.fetched(), "what was fetched since is valid")
}

func TestResetOfOneSource(t *testing.T) {
	s, c := newServer(), New(Options{PageSize: ps, ReadAhead: -1})
	t.Cleanup(c.Close)
	var files []*File
	for _, tag := range []uint16{1, 2} { // the same number on two servers
		id := proto.FileID(9).Tagged(tag)
		f, kept := c.Open(s.file(id), s.put(id, same(byte(tag), ps)), 0)
		require.False(t, kept)
		files = append(files, f)
	}
	read := func(f *File) []byte {
		v, err := f.Read(ctx, nil, 0, ps)
		require.NoError(t, err)
		defer v.Release()
		return bytes.Join(v.Slices(), nil)
	}
	for range 2 {
		equal(t, same(1, ps), read(files[0]))
		equal(t, same(2, ps), read(files[1]))
	}
	require.Len(t, s.fetched(), 2)
	c.Reset(1)
	equal(t, same(1, ps), read(files[0]))
	equal(t, same(2, ps), read(files[1]))
	require.Equal(t, []extent{{proto.FileID(9).Tagged(1), 0, ps}}, s.fetched(), "of the other source nothing was missed")
}

func TestOwnAnswerFromBeforeAReset(t *testing.T) {
	x := setup(t, Options{}, pattern(1, ps))
	x.write(ps, same(2, ps))
	x.s.drain()
	attr, _ := x.s.attr(id)
	x.s.foreign(id, 2*ps, same(3, ps))
	x.c.Reset(0)
	x.f.Own(attr, 1)
	equal(t, x.s.content(id), x.read(0, 10*ps))
}

func TestChangedTellsOfAnotherSize(t *testing.T) {
	for _, tc := range []struct {
		name   string
		change func(s *server) proto.Attr
		want   []byte
	}{
		{"longer", func(s *server) proto.Attr { return s.foreign(id, ps, same(2, ps)) }, append(pattern(1, ps), same(2, ps)...)},
		{"shorter", func(s *server) proto.Attr { return s.foreign(id, 100, nil) }, pattern(1, 100)},
		{"empty", func(s *server) proto.Attr { return s.foreign(id, 0, nil) }, nil},
	} {
		t.Run(tc.name, func(t *testing.T) {
			x := setup(t, Options{}, pattern(1, ps))
			x.read(0, ps)
			x.c.Changed(id, tc.change(x.s).Change)
			equal(t, tc.want, x.read(0, 4*ps))
			require.EqualValues(t, len(tc.want), x.f.Size())
		})
	}
}

// A page that ended with the file is not padded with zeros because somebody else appended.
func TestNoZerosForWhatOthersAppended(t *testing.T) {
	x := setup(t, Options{ReadAhead: -1}, same(1, ps+100))
	x.read(ps, 100)
	x.s.foreign(id, ps+100, same(2, 3*ps))
	equal(t, same(1, ps), x.read(0, ps)) // brings the new size
	want := append(same(1, ps+100), same(2, 3*ps)...)
	equal(t, want, x.read(0, 10*ps))
}

func TestSizes(t *testing.T) {
	type step struct {
		name string
		do   func(x *fixture)
		want int64
	}
	var before proto.Attr // asked for before the writes were applied
	for _, tc := range []struct {
		name  string
		steps []step
	}{
		{"extended by writes", []step{
			{"write", func(x *fixture) { x.write(200, same(1, 50)) }, 250},
			{"write less far", func(x *fixture) { x.write(10, same(1, 50)) }, 250},
			{"attributes from before", func(x *fixture) { x.open() }, 250},
			{"applied", func(x *fixture) { x.s.drain() }, 250},
			{"attributes", func(x *fixture) { x.open() }, 250},
			{"shorter by others", func(x *fixture) { x.s.foreign(id, 30, nil); x.open() }, 30},
		}},
		{"attributes that were overtaken", []step{
			{"somebody else's chmod, asked for before the write", func(x *fixture) { before = x.s.foreign(id, 0, []byte{}) }, 100},
			{"write", func(x *fixture) { x.write(200, same(1, 50)); x.s.drain() }, 250},
			{"arrives late", func(x *fixture) { x.c.Open(x.s.file(id), before, 0) }, 250},
			{"later ones", func(x *fixture) { x.open() }, 250},
		}},
		{"own answer before later writes", []step{
			{"two writes", func(x *fixture) { x.write(100, same(1, 50)); x.write(150, same(1, 50)) }, 200},
			{"first is answered", func(x *fixture) {
				x.s.step()
				a, _ := x.s.attr(id)
				x.f.Own(a, 1)
			}, 200},
			{"second is answered", func(x *fixture) {
				x.s.step()
				a, _ := x.s.attr(id)
				x.f.Own(a, 2)
			}, 200},
		}},
		{"truncated by us", []step{
			{"write", func(x *fixture) { x.write(200, same(1, 50)) }, 250},
			{"shorter", func(x *fixture) { x.truncate(20) }, 20},
			{"longer", func(x *fixture) { x.truncate(3000) }, 3000},
			{"write", func(x *fixture) { x.write(3000, same(1, 1)) }, 3001},
		}},
		{"truncated to nothing after the write was applied", []step{
			{"write", func(x *fixture) { x.write(200, same(1, 50)); x.s.drain() }, 250},
			{"shorter", func(x *fixture) { x.truncate(0) }, 0},
		}},
		{"a failed write", []step{
			{"write", func(x *fixture) { x.write(200, same(1, 50)) }, 250},
			{"fails", func(x *fixture) { x.s.log[0].err = errNoSpace; x.s.drain(); x.c.Forget(id) }, 250},
			{"a read finds out", func(x *fixture) { x.read(0, 1000) }, 100},
		}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			x := setup(t, Options{}, same(7, 100))
			for _, s := range tc.steps {
				s.do(x)
				require.Equal(t, s.want, x.f.Size(), s.name)
			}
			x.s.drain()
			equal(t, x.s.content(id), x.read(0, 10*ps))
		})
	}
}

func TestTruncate(t *testing.T) {
	data := pattern(1, 4*ps)
	for _, tc := range []struct {
		name  string
		sizes []int64
	}{
		{"to nothing", []int64{0}},
		{"within a page", []int64{ps + 10}},
		{"to a page's end", []int64{2 * ps}},
		{"shorter and longer: zeros", []int64{ps + 10, 3 * ps}},
		{"longer: zeros", []int64{5*ps + 3}},
		{"nothing and longer", []int64{0, 4 * ps}},
	} {
		for _, dirty := range []bool{false, true} {
			name := tc.name
			if dirty {
				name += ", dirty"
			}
			t.Run(name, func(t *testing.T) {
				x := setup(t, Options{}, data)
				x.read(0, 4*ps)
				if dirty {
					x.write(0, pattern(90, 4*ps))
				}
				for _, size := range tc.sizes {
					x.truncate(size)
				}
				equal(t, x.s.content(id), x.read(0, 10*ps))
				x.write(2*ps+5, same(1, 5))
				x.s.drain()
				equal(t, x.s.content(id), x.read(0, 10*ps))
			})
		}
	}
}

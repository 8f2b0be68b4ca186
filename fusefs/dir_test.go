package fusefs

import (
	"fmt"
	"math"
	"testing"

	"github.com/hanwen/go-fuse/v2/fuse"
	"github.com/stretchr/testify/require"

	"cagefs.dev/cage/remote/proto"
)

func TestCookies(t *testing.T) {
	for _, cookie := range []uint64{1, 2, 3, 1 << 31, 0x7ffffffe_ffffffff, math.MaxInt64} {
		off := cookieToOff(cookie)
		require.Greater(t, off, uint64(offDotDot), "cookie %x must not look like a dot's place", cookie)
		require.LessOrEqual(t, off, uint64(math.MaxInt64), "cookie %x must stay positive for lseek(2)", cookie)
		require.Equal(t, cookie, offToCookie(off), "cookie %x", cookie)
	}
	for _, off := range []uint64{0, offDot, offDotDot} {
		require.Zero(t, offToCookie(off))
	}
}

func entries(n int) []proto.DirEntry {
	out := make([]proto.DirEntry, n)
	for i := range out {
		out[i] = proto.DirEntry{Name: fmt.Sprintf("file-%04d", i), Cookie: uint64(1000 - i), Attr: proto.Attr{ID: proto.FileID(100 + i), Mode: proto.ModeRegular | 0o644}}
	}
	return out
}

func TestBatchAfter(t *testing.T) {
	b := &batch{from: 0, entries: entries(3)}
	require.Equal(t, 0, b.after(0))
	require.Equal(t, 1, b.after(1000))
	require.Equal(t, 3, b.after(998))
	require.Equal(t, -1, b.after(5))
	require.Equal(t, -1, (*batch)(nil).after(0))
}

// opened makes a file system with one open directory whose listing is there.
func listed(t *testing.T, es []proto.DirEntry) (*fileSystem, *listing, uint64) {
	t.Helper()
	tab, _ := newTestTable(proto.RootID, 0)
	s := &fileSystem{inodes: tab}
	l := &listing{ino: tab.open(50), stop: func() {}, kept: make(chan bool, 1), turn: make(chan struct{}, 1), now: &batch{entries: es, eof: true}}
	l.kept <- false
	l.turn <- struct{}{}
	return s, l, s.dirs.add(&handle[*listing]{it: l, close: s.closeDir})
}

func TestListingGoesOnWhereTheBufferWasFull(t *testing.T) {
	s, l, fh := listed(t, entries(100))
	var names []string
	off := uint64(offDotDot) // behind the dots, which begin a new listing
	for rounds := 0; ; rounds++ {
		require.Less(t, rounds, 100)
		in := &fuse.ReadIn{Fh: fh, Offset: off}
		out := fuse.NewDirEntryList(make([]byte, 300), off)
		require.Equal(t, fuse.OK, s.ReadDir(nil, in, out))
		got, err := fuse.ParseDirEntries(out.Bytes())
		require.NoError(t, err)
		if len(got) == 0 {
			break
		}
		for _, e := range got {
			require.EqualValues(t, proto.ModeRegular, e.Mode&proto.ModeType)
			require.EqualValues(t, 100+len(names), e.Ino)
			names = append(names, e.Name)
		}
		off = got[len(got)-1].Off
	}
	require.Len(t, names, 100)
	require.Equal(t, "file-0000", names[0])
	require.Equal(t, "file-0099", names[99])

	in := &fuse.ReadIn{Fh: fh, Offset: cookieToOff(l.now.entries[50].Cookie)} // seekdir(3)
	out := fuse.NewDirEntryList(make([]byte, 4096), in.Offset)
	require.Equal(t, fuse.OK, s.ReadDir(nil, in, out))
	got, err := fuse.ParseDirEntries(out.Bytes())
	require.NoError(t, err)
	require.Equal(t, "file-0051", got[0].Name)

	s.dirs.release(fh)
	require.Equal(t, fuse.EBADF, s.ReadDir(nil, in, out))
	require.Nil(t, s.inodes.known(50))
}

func TestDots(t *testing.T) {
	s, l, _ := listed(t, nil)
	room := 1
	var names []string
	var inos []uint64
	add := func(e fuse.DirEntry) bool {
		if room == 0 {
			return false
		}
		room--
		names, inos = append(names, e.Name), append(inos, e.Ino)
		require.EqualValues(t, proto.ModeDir, e.Mode)
		return true
	}
	l.now = &batch{parent: 70}
	require.False(t, s.dots(l, 0, add))
	room = 5
	require.True(t, s.dots(l, offDot, add))
	require.Equal(t, []string{".", ".."}, names)
	require.Equal(t, []uint64{l.ino.number(), 70}, inos)
	l.ino = s.inodes.root
	require.True(t, s.dots(l, offDot, add))
	require.Equal(t, l.ino.number(), inos[2], "a root is its own parent")
}

func TestBelievableAttributes(t *testing.T) {
	tab, _ := newTestTable(70, 0)
	s := &fileSystem{inodes: tab}
	dir := tab.remember(&proto.Attr{ID: 9, Mode: proto.ModeDir})
	ino := tab.remember(file(5, 8))
	raise(&ino.logged, 20)
	dir.names.Store(3)
	fresh := batch{names: 3, applied: 20}
	for name, tc := range map[string]struct {
		b    batch
		a    *proto.Attr
		want bool
	}{
		"fresh":                          {fresh, file(5, 8), true},
		"newer than known":               {fresh, file(5, 9), true},
		"a file the kernel has not seen": {fresh, file(6, 1), true},
		"older than known":               {fresh, file(5, 7), false},
		"a write may be missing":         {batch{names: 3, applied: 19}, file(5, 9), false},
		"the names changed":              {batch{names: 2, applied: 20}, file(5, 9), false},
		"not looked up":                  {fresh, file(0, 0), false},
		"number and type alone":          {fresh, &proto.Attr{ID: 6, Mode: proto.ModeRegular}, false},
		"the mount's root":               {fresh, file(70, 9), false},
		"the export's root":              {fresh, file(proto.RootID, 9), false},
	} {
		t.Run(name, func(t *testing.T) { require.Equal(t, tc.want, s.believable(dir, &tc.b, tc.a)) })
	}
}

// A listing that comes back to where it was ends; a long one, and one that somebody
// seeks in, does not.
func TestListingInACircle(t *testing.T) {
	step := func(l *loop, from, to uint64) bool {
		return l.closed(&batch{from: from, entries: []proto.DirEntry{{Cookie: to}}})
	}
	for _, round := range []uint64{1, 2, 3, 7, 100} {
		var l loop
		n, at := uint64(0), uint64(0)
		for to := uint64(1); !step(&l, at, to); n++ {
			require.Less(t, n, 10*round+10)
			at, to = to, to%round+1
		}
	}
	var l loop
	for i := range uint64(10_000) {
		require.False(t, step(&l, i, i+1))
	}
	for range 100 { // rewinddir, or the same place again
		require.False(t, step(&l, 0, 1))
		require.False(t, step(&l, 77, 78))
		require.False(t, step(&l, 78, 79))
	}
}

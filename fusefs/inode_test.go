package fusefs

import (
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/hanwen/go-fuse/v2/fuse"
	"github.com/stretchr/testify/require"

	"cagefs.dev/cage/remote/proto"
)

func newTestTable(root proto.FileID, applied proto.Seq) (*table, *atomic.Uint64) {
	var at atomic.Uint64
	at.Store(uint64(applied))
	t := newTable(0, proto.Attr{ID: root, Mode: proto.ModeDir | 0o755}, func() proto.Seq { return proto.Seq(at.Load()) }, maxInodes)
	return t, &at
}

func file(id proto.FileID, change proto.LSN) *proto.Attr {
	return &proto.Attr{ID: id, Mode: proto.ModeRegular | 0o644, Nlink: 1, Change: change}
}

func TestNodesOfAMountedSubdirectory(t *testing.T) {
	tab, _ := newTestTable(77, 0)
	node, ok := tab.node(77)
	require.True(t, ok)
	require.EqualValues(t, fuse.FUSE_ROOT_ID, node)
	_, ok = tab.node(proto.RootID)
	require.False(t, ok, "the export's root is not in the mount")
	require.Nil(t, tab.known(proto.RootID))
	node, ok = tab.node(78)
	require.True(t, ok)
	require.EqualValues(t, 78, node)
	require.Equal(t, proto.FileID(77), tab.find(fuse.FUSE_ROOT_ID).id)
}

func TestNodesOfATaggedSource(t *testing.T) {
	const tag = 3
	tab := newTable(tag, proto.Attr{ID: 77, Mode: proto.ModeDir | 0o755}, func() proto.Seq { return 0 }, maxInodes)
	node, ok := tab.node(77)
	require.True(t, ok)
	require.EqualValues(t, tag<<48|77, node, "the mount's root is not this source's")
	_, ok = tab.node(proto.RootID)
	require.False(t, ok, "the export's root is not in the mount")
	_, ok = tab.node(proto.MaxFileID + 1)
	require.False(t, ok, "a number that no server gives would be another source's")

	ino := tab.remember(file(5, 1))
	require.EqualValues(t, tag<<48|5, ino.node)
	require.EqualValues(t, tag<<48|5, ino.number())
	require.Equal(t, proto.FileID(5), ino.id, "the tag does not cross the wire")
	require.Same(t, ino, tab.find(tag<<48|5))
	require.Equal(t, proto.FileID(6), tab.find(tag<<48|6).id)
	require.Same(t, tab.root, tab.find(tag<<48|77))
	tab.forget(tag<<48|77, 100)
	require.Same(t, tab.root, tab.known(77), "the source's root stays")
	tab.forget(tag<<48|5, 1)
	require.Nil(t, tab.known(5))
}

func TestLookupCounts(t *testing.T) {
	tab, _ := newTestTable(proto.RootID, 0)
	a := tab.remember(file(5, 1))
	require.Same(t, a, tab.remember(file(5, 2)))
	require.Same(t, a, tab.find(5))
	require.EqualValues(t, 2, a.changed.Load())

	tab.forget(5, 1)
	require.Same(t, a, tab.known(5), "the kernel still has one")
	tab.forget(5, 1)
	require.Nil(t, tab.known(5))
	require.Equal(t, proto.FileID(5), tab.find(5).id, "a request for it gets an inode all the same")
	require.Nil(t, tab.known(5))

	tab.forget(5, 3)
	tab.forget(fuse.FUSE_ROOT_ID, 100)
	require.Same(t, tab.root, tab.known(proto.RootID), "the root stays")
}

func TestAnOpenInodeStays(t *testing.T) {
	tab, _ := newTestTable(proto.RootID, 0)
	ino := tab.remember(file(5, 1))
	require.Same(t, ino, tab.open(5))
	tab.forget(5, 1)
	require.Same(t, ino, tab.known(5))
	tab.close(ino)
	require.Nil(t, tab.known(5))
}

func TestAnInodeWithUnappliedWritesStays(t *testing.T) {
	tab, applied := newTestTable(proto.RootID, 10)
	ino := tab.remember(file(5, 1))
	raise(&ino.logged, 12)
	tab.forget(5, 1)
	require.Same(t, ino, tab.known(5))
	tab.forget(99, 1)
	require.Same(t, ino, tab.known(5), "the write is still on its way")

	require.Same(t, ino, tab.remember(file(5, 2)), "looked up again meanwhile")
	applied.Store(12)
	tab.forget(99, 1)
	require.Same(t, ino, tab.known(5), "in use again")
	tab.forget(5, 1)
	require.Nil(t, tab.known(5))
	require.Empty(t, tab.waiting)
}

func TestTableConcurrently(t *testing.T) {
	tab, applied := newTestTable(proto.RootID, 0)
	var wg sync.WaitGroup
	for worker := range uint64(8) {
		wg.Go(func() {
			r := rand.New(rand.NewPCG(worker, 1))
			for range 2000 {
				id := proto.FileID(2 + r.Uint64N(50))
				ino := tab.remember(file(id, proto.LSN(r.Uint64N(100))))
				h := tab.open(id)
				if ino != h {
					t.Errorf("two inodes for %v", id)
				}
				raise(&h.logged, r.Uint64N(1000))
				applied.Add(1)
				tab.close(h)
				tab.forget(uint64(id), 1)
			}
		})
	}
	wg.Wait()
	applied.Store(1 << 40)
	tab.forget(99, 1)
	require.Equal(t, 1, tab.len(), "only the root is left")
	require.Empty(t, tab.waiting)
}

// smallTable holds one inode of each shard.
func smallTable() (*table, *atomic.Uint64) {
	t, applied := newTestTable(proto.RootID, 0)
	t.most = 1
	return t, applied
}

func TestInodesAreBounded(t *testing.T) {
	tab, applied := smallTable()
	open := tab.open(2)
	written := tab.remember(file(3, 1))
	raise(&written.logged, 7)
	for id := proto.FileID(4); id < 1000; id++ {
		tab.remember(file(id, 1))
	}
	require.LessOrEqual(t, tab.len(), shards+3)
	require.Same(t, open, tab.known(2), "an open one stays")
	require.Same(t, written, tab.known(3), "and one whose writes are on their way")
	require.Same(t, tab.root, tab.known(proto.RootID))
	applied.Store(7)
	tab.close(open)
	for id := proto.FileID(4); id < 1000; id++ {
		tab.find(uint64(id))
	}
	require.LessOrEqual(t, tab.len(), shards+1)
	require.Nil(t, tab.known(3))
	require.Same(t, tab.find(500), tab.find(500), "what the kernel asks for is held again")
	for id := uint64(2); id < 1000; id++ {
		tab.forget(id, 1)
	}
	require.LessOrEqual(t, tab.len(), shards+1)
}

// TestADroppedInodeBelievesNothingOld: what it knew of newer changes is not lost.
func TestADroppedInodeBelievesNothingOld(t *testing.T) {
	tab, _ := smallTable()
	before := tab.now()
	old := tab.remember(file(5, 8))
	raise(&old.changed, 9) // pushed
	require.True(t, tab.newer(old, 8, before))
	tab.remember(file(5+shards, 1))
	require.Nil(t, tab.known(5))
	require.True(t, old.gone.Load())

	again := tab.remember(file(5, 8)) // by a reply that was on its way
	require.True(t, tab.newer(again, 8, before), "an answer from before")
	require.False(t, tab.newer(again, 9, before))
	require.False(t, tab.newer(again, 8, tab.now()), "one that was asked for later is new")
	require.True(t, tab.newer(nil, 8, before), "the same in a listing")

	since := tab.now()
	tab.missed(20) // pushed, of a file that is not held
	held := tab.known(5)
	require.False(t, tab.newer(held, 8, since), "of one that is held everything is known")
	require.True(t, tab.newer(nil, 8, since))
	tab.heard(old, file(5, 30)) // a change of ours that began when it was still held
	require.True(t, tab.newer(nil, 20, since))

	tab.forgotten()
	require.True(t, tab.newer(held, 100, since), "news were missed")
	require.False(t, tab.newer(held, 100, tab.now()))
}

// TestNamesOfADroppedDirectory: who changes names counts that where others look.
func TestNamesOfADroppedDirectory(t *testing.T) {
	tab, _ := smallTable()
	dir := tab.remember(&proto.Attr{ID: 5, Mode: proto.ModeDir})
	tab.named(dir)
	tab.remember(file(5+shards, 1))
	again := tab.find(5)
	require.NotSame(t, dir, again)
	names := again.names.Load()
	tab.named(dir)
	require.NotEqual(t, names, again.names.Load())
}

// A path is told as it was last known, and not at all where a part of it is not known.
func TestPaths(t *testing.T) {
	tab := newTable(0, proto.Attr{ID: 100, Mode: proto.ModeDir}, func() proto.Seq { return 0 }, maxInodes)
	for _, p := range []struct {
		id, dir proto.FileID
		name    string
	}{{101, 100, "dir"}, {102, 101, "file"}, {103, 104, "elsewhere"}, {105, 106, "a"}, {106, 105, "circle"}} {
		tab.remember(&proto.Attr{ID: p.id}).seen(p.dir, p.name)
	}
	tab.remember(&proto.Attr{ID: 107})
	for id, want := range map[proto.FileID]string{100: "", 101: "dir", 102: "dir/file", 103: "", 105: "", 107: "", 108: ""} {
		require.Equal(t, want, tab.path(id), id)
	}
	tab.known(102).seen(100, "moved")
	require.Equal(t, "moved", tab.path(102))
}

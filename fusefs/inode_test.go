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
	t := newTable(0, proto.Attr{ID: root, Mode: proto.ModeDir | 0o755}, func() proto.Seq { return proto.Seq(at.Load()) })
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
	tab := newTable(tag, proto.Attr{ID: 77, Mode: proto.ModeDir | 0o755}, func() proto.Seq { return 0 })
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

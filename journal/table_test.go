package journal

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"cagefs.dev/cage/journal/record"
	"cagefs.dev/cage/journal/vfs"
	"cagefs.dev/cage/remote/proto"
	"cagefs.dev/cage/remote/status"
)

// dumpTable describes what the table says of every file, but for inodes, which
// recovery may have to make again, and times. It checks that its parts agree.
func dumpTable(t testing.TB, x *table) string {
	t.Helper()
	var out strings.Builder
	names, graves := 0, 0
	require.NoError(t, x.each(func(n node) bool {
		places := slices.Clone(n.names)
		slices.SortFunc(places, func(a, b place) int { return strings.Compare(fmt.Sprint(a), fmt.Sprint(b)) })
		fmt.Fprintf(&out, "%d %o %v %v\n", n.id, n.typ, places, n.graves)
		for _, p := range places {
			require.Equal(t, n.id, x.kid(p), p)
		}
		if len(places)+len(n.graves) > 0 { // an inode that a process of the server removed may have been used again
			require.Equal(t, n.id, x.holder(n.ident))
		}
		names, graves = names+len(n.names), graves+len(n.graves)
		return true
	}))
	require.NoError(t, x.scan(keyName, 1<<64-1, func(uint64, []byte) bool {
		names--
		return true
	}))
	list, err := x.gravesBelow(1<<64 - 1)
	require.NoError(t, err)
	require.Zero(t, names, "names that lead to no file")
	require.Equal(t, graves, len(list))
	return out.String()
}

// TestTableOnDiskIsTheTableInMemory: whatever of it has gone to disk, it says
// the same as one that is all in memory.
func TestTableOnDiskIsTheTableInMemory(t *testing.T) {
	rng := rand.New(rand.NewPCG(5, 5))
	small, large := newStorm(openWith(t, Options{TableChanges: 300, TableCache: 1 << 10}), rng), openWith(t, Options{TableChanges: 1 << 20})
	for range 600 {
		require.NoError(t, small.step())
	}
	// The other one replays the log of the first.
	require.NoError(t, small.log.Commit())
	require.NoError(t, small.log.Scan(1, false, func(r *record.Record) error {
		large.tree.apply(r)
		return nil
	}))
	v := small.tree.store.View()
	require.NotEmpty(t, v.Names(), "nothing went to disk")
	v.Release()
	require.Equal(t, dumpTable(t, large.tree.table), dumpTable(t, small.tree.table))
	require.NoError(t, small.Close())
	require.NoError(t, large.Close())
}

func openWith(t testing.TB, o Options) *testExport {
	t.Helper()
	disk := vfs.NewMem(1)
	o.FS, o.SegmentSize, o.HistoryCap = disk, 256<<10, 1<<40
	j, _, err := Open(t.Context(), o)
	require.NoError(t, err)
	require.NoError(t, j.OpenSession(testSession, 1, "key"))
	return &testExport{Journal: j, t: t, fs: disk, ses: testSession, ack: true}
}

// TestTableOnFullDisk: what is known stays known and changes go on; only files
// that nobody has looked at yet are refused, until there is space.
func TestTableOnFullDisk(t *testing.T) {
	for _, errno := range []syscall.Errno{syscall.ENOSPC, syscall.EDQUOT} {
		t.Run(errno.Error(), func(t *testing.T) {
			disk := vfs.NewMem(1)
			var full atomic.Bool
			fs := vfs.Inject(disk, func(op vfs.Op) error {
				if full.Load() && op.Kind == "create" && strings.HasPrefix(op.Path, DirName+"/table/") {
					return errno
				}
				return nil
			})
			root, err := disk.Root()
			require.NoError(t, err)
			defer root.Close()
			for i := range 500 {
				f, err := root.Create(fmt.Sprint("f", i), 0o644)
				require.NoError(t, err)
				f.Close()
			}
			e, _ := openOn(t, fs)
			full.Store(true)
			list := func() (last error) {
				for i := range 500 {
					if _, err := e.Lookup(proto.RootID, fmt.Sprint("f", i)); err != nil {
						last = err
					}
				}
				return last
			}
			require.Equal(t, status.NoSpace, status.Of(list()))
			require.Positive(t, e.tree.lacking())
			_, err = e.Lookup(proto.RootID, "f0")
			require.NoError(t, err)
			id := e.file(proto.RootID, "new", "x")
			require.Equal(t, "x", e.content(id))
			before := dumpTable(t, e.tree.table)
			require.NoError(t, e.Close(), "a checkpoint also of what did not go to disk")
			e, _ = openOn(t, fs)
			require.Equal(t, before, dumpTable(t, e.tree.table))
			require.Equal(t, status.NoSpace, status.Of(list()))
			full.Store(false)
			e.tree.retry() // as after a checkpoint
			require.NoError(t, list())
			require.Zero(t, e.tree.lacking())
			require.NoError(t, e.Close())
		})
	}
}

// TestDamagedTableStopsTheExport, so that no file gets a second number and no
// checkpoint is made of half a table.
func TestDamagedTableStopsTheExport(t *testing.T) {
	disk := vfs.NewMem(1)
	var bad atomic.Bool
	fs := vfs.Inject(disk, func(op vfs.Op) error {
		if bad.Load() && op.Kind == "readat" && strings.HasPrefix(op.Path, DirName+"/table/") {
			return syscall.EIO
		}
		return nil
	})
	j, _, err := Open(t.Context(), Options{FS: fs, SegmentSize: 256 << 10, HistoryCap: 1 << 40, TableChanges: 1 << 10, TableCache: 1})
	require.NoError(t, err)
	e := &testExport{Journal: j, t: t, fs: fs, ses: testSession}
	require.NoError(t, j.OpenSession(testSession, 1, "key"))
	for i := range 100 {
		e.file(proto.RootID, fmt.Sprint("f", i), "x")
	}
	require.Eventually(t, func() bool {
		v := e.tree.store.View()
		defer v.Release()
		e.tree.mu.Lock()
		defer e.tree.mu.Unlock()
		return len(v.Names()) > 0 && e.tree.frozen == nil
	}, time.Minute, time.Millisecond, "nothing goes to disk")
	before := dumpTable(t, e.tree.table)
	bad.Store(true)
	for i := 0; i < 100 && err == nil; i++ {
		_, err = e.Lookup(proto.RootID, fmt.Sprint("f", i))
	}
	require.Equal(t, status.IO, status.Of(err), "%v", err)
	_, err = e.do(&proto.Make{Dir: proto.RootID, Name: "new", Mode: proto.ModeRegular})
	require.Equal(t, status.IO, status.Of(err), "%v", err)
	require.NoError(t, e.Close())
	bad.Store(false)
	e, _ = openOn(t, fs)
	require.Equal(t, before, dumpTable(t, e.tree.table))
	require.NoError(t, e.Close())
}

// FuzzTableEntry: no bytes make the decoder panic or allocate without end.
func FuzzTableEntry(f *testing.F) {
	n := node{id: 5, ident: vfs.Ident{Ino: 9, Btime: -1}, typ: proto.ModeDir, names: []place{{1, "n"}}, graves: []proto.LSN{3}}
	f.Add(n.encode())
	f.Fuzz(func(t *testing.T, b []byte) {
		n, err := decodeNode(5, b)
		if err != nil {
			return
		}
		again, err := decodeNode(5, n.encode())
		require.NoError(t, err)
		require.Equal(t, n, again)
	})
}

package journal

import (
	"context"
	"encoding/binary"
	"fmt"
	"hash/crc32"
	"math/rand/v2"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"cagefs.dev/cage/journal/record"
	"cagefs.dev/cage/journal/runs"
	"cagefs.dev/cage/journal/vfs"
	"cagefs.dev/cage/remote/proto"
	"cagefs.dev/cage/remote/status"
)

// records returns the records of a kind, with images.
func (e *testExport) records(k record.Kind) (out []*record.Record) {
	require.NoError(e.t, e.log.Scan(e.log.Oldest(), true, func(r *record.Record) error {
		if r.Kind == k {
			out = append(out, r)
		}
		return nil
	}))
	return out
}

// onDisk opens a file behind the journal's back.
func onDisk(t testing.TB, fs vfs.FS, name string) vfs.File {
	t.Helper()
	root, err := fs.Root()
	require.NoError(t, err)
	defer root.Close()
	f, err := root.Open(name, true)
	require.NoError(t, err)
	t.Cleanup(func() { f.Close() })
	return f
}

// TestLocalChangeBetweenPlanAndApply: what a process of the server writes just
// before a change of the same bytes is applied becomes its before-image.
func TestLocalChangeBetweenPlanAndApply(t *testing.T) {
	disk := vfs.NewMem(1)
	var armed atomic.Bool
	var local func()
	fs := vfs.Inject(disk, func(op vfs.Op) error {
		if op.Kind == "datasync" && armed.CompareAndSwap(true, false) {
			local()
		}
		return nil
	})
	e, _ := openOn(t, fs)
	defer e.Close()
	id := e.file(proto.RootID, "f", "hello world")
	f := onDisk(t, disk, "f")
	local = func() {
		_, err := f.WriteAt([]byte("HOWDY"), 0)
		require.NoError(t, err)
	}
	armed.Store(true)
	e.must(&proto.Write{ID: id, Data: []byte("J")})
	require.Equal(t, "JOWDY world", e.content(id))
	ws, cancels := e.records(record.Write), e.records(record.Cancel)
	last := ws[len(ws)-1]
	require.Equal(t, "HJ", string(last.Images), "before as found, after")
	require.Len(t, cancels, 1)
	require.Equal(t, ws[len(ws)-2].LSN, cancels[0].Upto)

	armed.Store(true)
	local = func() {
		root, err := disk.Root()
		require.NoError(t, err)
		defer root.Close()
		require.NoError(t, root.Remove("f"))
	}
	_, err := e.do(&proto.Remove{Dir: proto.RootID, Name: "f"})
	require.Equal(t, status.NotFound, status.Of(err))
}

// TestLocalChangeRaisesChangeNumber: clients check pages by it.
func TestLocalChangeRaisesChangeNumber(t *testing.T) {
	disk := vfs.NewMem(1)
	e, _ := openOn(t, disk)
	defer e.Close()
	id := e.file(proto.RootID, "f", "one")
	a, err := e.Attr(id)
	require.NoError(t, err)
	again, err := e.Attr(id)
	require.NoError(t, err)
	require.Equal(t, a.Change, again.Change)
	_, err = onDisk(t, disk, "f").WriteAt([]byte("two"), 0)
	require.NoError(t, err)
	b, err := e.Attr(id)
	require.NoError(t, err)
	require.Greater(t, b.Change, a.Change)
}

// TestFullDiskLeavesNothingHalf: a write that the disk, or a quota, refuses in the middle fails, and the file is as before.
func TestFullDiskLeavesNothingHalf(t *testing.T) {
	for errno, want := range map[syscall.Errno]status.Code{syscall.ENOSPC: status.NoSpace, syscall.EDQUOT: status.Quota} {
		t.Run(want.String(), func(t *testing.T) {
			disk := vfs.NewMem(1)
			var full atomic.Bool
			fs := vfs.Inject(disk, func(op vfs.Op) error {
				if op.Kind == "writeat" && op.Path == "f" && full.CompareAndSwap(true, false) {
					return vfs.Short(5000, errno)
				}
				return nil
			})
			e, _ := openOn(t, fs)
			id := e.file(proto.RootID, "f", "hello")
			before, err := e.Attr(id)
			require.NoError(t, err)
			full.Store(true)
			_, err = e.do(&proto.Write{ID: id, Off: 2, Data: make([]byte, 20000)})
			require.Equal(t, want, status.Of(err))
			require.Equal(t, "hello", e.content(id))
			after, err := e.Attr(id)
			require.NoError(t, err)
			require.Equal(t, before.Mtime, after.Mtime)
			killed := disk.Clone()
			e.must(&proto.Write{ID: id, Off: 5, Data: []byte(" again")})
			require.Equal(t, "hello again", e.content(id))
			require.NoError(t, e.Close())

			e, _ = openOn(t, killed)
			require.Equal(t, "hello", e.content(id), "a cancelled write is not replayed")
			e.seq--
			_, err = e.do(&proto.Write{ID: id, Off: 2, Data: make([]byte, 20000)})
			require.Equal(t, want, status.Of(err), "and fails again the same way")
			require.NoError(t, e.Close())
		})
	}
}

// TestFailedSyncIsFinal: nobody knows what is durable after it.
func TestFailedSyncIsFinal(t *testing.T) {
	for _, where := range []string{"log", "file", "tree"} {
		t.Run(where, func(t *testing.T) {
			disk := vfs.NewMem(1)
			var bad atomic.Bool
			fs := vfs.Inject(disk, func(op vfs.Op) error {
				hit := where == "log" && op.Kind == "datasync" && strings.HasPrefix(op.Path, ".cage/wal") ||
					where == "file" && op.Kind == "datasync" && op.Path == "big" ||
					where == "tree" && op.Kind == "syncfs"
				if hit && bad.Load() {
					return vfs.LoseUnsynced(syscall.EIO)
				}
				return nil
			})
			e, _ := openOn(t, fs)
			id := e.file(proto.RootID, "f", "safe")
			big := e.file(proto.RootID, "big", "")
			e.must(&proto.Write{ID: big, Data: make([]byte, 1<<20)})
			e.must(&proto.Write{ID: big, Off: 1 << 20, Data: make([]byte, 1<<20)})
			bad.Store(true)
			switch where {
			case "log":
				_, err := e.do(&proto.Write{ID: id, Data: []byte("lost")})
				require.Equal(t, status.IO, status.Of(err))
			case "file":
				_, err := e.do(&proto.Sync{ID: big})
				require.Equal(t, status.IO, status.Of(err))
			case "tree":
				require.Eventually(t, func() bool { // until a checkpoint comes, which has its own goroutine
					_, err := e.do(&proto.Write{ID: big, Data: make([]byte, 4096)})
					return err != nil
				}, time.Minute, 100*time.Microsecond)
				require.Error(t, e.Failed())
			}
			_, err := e.do(&proto.Make{Dir: proto.RootID, Name: "x", Mode: proto.ModeRegular})
			require.Equal(t, status.IO, status.Of(err), "no more changes")
			require.Equal(t, "safe", e.content(id), "reading goes on")
			_ = e.Close()

			rng := rand.New(rand.NewPCG(1, 1))
			e, _ = openOn(t, disk.Crash(rng))
			require.Equal(t, "safe", e.content(id))
			require.NoError(t, e.Close())
		})
	}
}

// TestLargeTruncationKeepsTheBytes in a grave.
func TestLargeTruncationKeepsTheBytes(t *testing.T) {
	eachDisk(t, func(t *testing.T, fs vfs.FS) {
		e, _ := openOn(t, fs)
		id := e.file(proto.RootID, "f", "")
		want := make([]byte, 0, 3<<20)
		for i := range 3 {
			chunk := []byte(strings.Repeat(fmt.Sprintf("%07d\n", i), 1<<17))
			e.must(&proto.Write{ID: id, Off: uint64(i) << 20, Data: chunk})
			want = append(want, chunk...)
		}
		r := e.must(&proto.SetAttr{ID: id, Mask: proto.SetSize, Size: 100})
		require.Equal(t, string(want[:100]), e.content(id))
		root, err := fs.Root()
		require.NoError(t, err)
		defer root.Close()
		cage, err := root.OpenDir(DirName)
		require.NoError(t, err)
		defer cage.Close()
		grave, err := cage.OpenDir("grave")
		require.NoError(t, err)
		defer grave.Close()
		f, err := grave.Open(graveName(r.LSN), false)
		require.NoError(t, err)
		defer f.Close()
		got := make([]byte, len(want)-100)
		_, err = f.ReadAt(got, 100)
		require.NoError(t, err)
		require.Equal(t, string(want[100:]), string(got))
		require.NoError(t, e.Close())
	})
}

// openHandles are the files that the journal has descriptors of.
func (e *testExport) openHandles() (ids []proto.FileID) {
	e.tree.hmu.Lock()
	defer e.tree.hmu.Unlock()
	for k := range e.tree.handles {
		ids = append(ids, k.id)
	}
	return ids
}

// TestHistoryStaysBelowItsCap and takes its graves along.
func TestHistoryStaysBelowItsCap(t *testing.T) {
	disk := vfs.NewMem(1)
	j, _, err := Open(context.Background(), Options{FS: disk, SegmentSize: 64 << 10, CheckpointBytes: 32 << 10, HistoryCap: 512 << 10, TableChanges: 2 << 10})
	require.NoError(t, err)
	e := &testExport{Journal: j, t: t, fs: disk, ses: testSession, ack: true}
	require.NoError(t, j.OpenSession(testSession, 1, "key"))
	for i := range 3000 {
		e.file(proto.RootID, "f", fmt.Sprint(i, strings.Repeat(".", 500)))
		e.must(&proto.Remove{Dir: proto.RootID, Name: "f"})
	}
	require.Eventually(t, func() bool { // it is given up beside the changes
		e.must(&proto.SetAttr{ID: proto.RootID, Mask: proto.SetMtimeNow})
		return e.logBytes() <= 512<<10
	}, 20*time.Second, time.Millisecond)
	for _, h := range e.openHandles() {
		_, ok := e.tree.get(h)
		require.True(t, ok, "a file that is gone is held open, and takes its space: %v", h)
	}
	killed, _ := openOn(t, disk.Clone())
	defer killed.Close()
	rep, err := killed.Verify(t.Context(), true)
	require.NoError(t, err)
	require.Empty(t, rep.Problems, "graves that went after the last checkpoint are forgotten")
	require.NoError(t, e.Close())
	e, _ = openOn(t, disk)
	defer e.Close()
	require.Greater(t, e.log.Oldest(), proto.LSN(1000))
	graves := 0
	require.NoError(t, e.tree.grave.ReadDir(0, func(name string, _ uint64, _ uint32, _ uint64) bool {
		graves++
		return true
	}))
	require.Less(t, graves, 1500)
	nodes := 0
	require.NoError(t, e.tree.each(func(node) bool {
		nodes++
		return true
	}))
	require.Less(t, nodes, 1500, "files that are nowhere any more are forgotten")
}

// TestConcurrentSessionsSurviveCuts: several sessions share commits; what each
// was told is there after a cut, and at most one more of each.
func TestConcurrentSessionsSurviveCuts(t *testing.T) {
	const workers, rounds = 6, 40
	disk := vfs.NewMem(7)
	rng := rand.New(rand.NewPCG(7, 7))
	var told [workers]atomic.Int64
	type cut struct {
		disk *vfs.Mem
		told [workers]int64
	}
	var mu sync.Mutex
	var cuts []cut
	disk.OnSync = func(int) {
		mu.Lock()
		defer mu.Unlock()
		c := cut{}
		for i := range told {
			c.told[i] = told[i].Load()
		}
		c.disk = disk.Crash(rng)
		cuts = append(cuts, c)
	}
	count := func() int { // checkpoints sync beside the changes
		mu.Lock()
		defer mu.Unlock()
		return len(cuts)
	}
	e, _ := openOn(t, disk)
	syncs := count()
	var wg sync.WaitGroup
	for w := range workers {
		ses := proto.SessionID(1000 + w)
		require.NoError(t, e.OpenSession(ses, 1, "k"))
		we := &testExport{Journal: e.Journal, t: t, fs: disk, ses: ses, ack: true}
		wg.Go(func() {
			d := we.make(proto.RootID, fmt.Sprint("w", w), proto.ModeDir|0o755)
			for i := 1; i <= rounds; i++ {
				we.file(d, "tmp", fmt.Sprint(i))
				we.must(&proto.Rename{Dir: d, Name: "tmp", NewDir: d, NewName: "cur"})
				told[w].Store(int64(i))
			}
		})
	}
	wg.Wait()
	require.Less(t, count()-syncs, workers*rounds*3, "commits are shared")
	require.NoError(t, e.Close())
	for n, c := range cuts {
		e, _ := openOn(t, c.disk)
		for w := range workers {
			got := int64(0)
			if d, err := e.Lookup(proto.RootID, fmt.Sprint("w", w)); err == nil {
				if a, err := e.Lookup(d.ID, "cur"); err == nil {
					_, err := fmt.Sscan(e.content(a.ID), &got)
					require.NoError(t, err)
				}
			}
			require.GreaterOrEqual(t, got, c.told[w], "cut %d worker %d", n, w)
			require.LessOrEqual(t, got, c.told[w]+1, "cut %d worker %d", n, w)
		}
		require.NoError(t, e.Close())
	}
}

// TestMissingCheckpointIsDamage: the log alone does not say what was before it.
func TestMissingCheckpointIsDamage(t *testing.T) {
	disk := vfs.NewMem(1)
	o := Options{FS: disk, SegmentSize: 64 << 10, CheckpointBytes: 32 << 10, HistoryCap: 128 << 10, TableChanges: 2 << 10}
	j, _, err := Open(context.Background(), o)
	require.NoError(t, err)
	e := &testExport{Journal: j, t: t, fs: disk}
	for i := range 2000 {
		e.must(&proto.SetAttr{ID: proto.RootID, Mask: proto.SetMtime, Mtime: proto.Time(i)})
	}
	require.Greater(t, e.log.Oldest(), proto.LSN(1))
	require.NoError(t, e.Close())
	root, err := disk.Root()
	require.NoError(t, err)
	cage, err := root.OpenDir(DirName)
	require.NoError(t, err)
	require.NoError(t, cage.Remove(checkpointName))
	_, _, err = Open(context.Background(), o)
	require.Equal(t, status.Damaged, status.Of(err), "%v", err)
}

// FuzzCheckpoint: no bytes make the decoder panic or allocate without end.
func FuzzCheckpoint(f *testing.F) {
	ck := &checkpointData{lsn: 7, clients: map[uint32]string{1: "c"}, sessions: map[proto.SessionID]*session{9: newSession(1, "k")},
		runs: []runs.Name{{Number: 3, Sum: 4}}, since: runs.Sorted{{Key: []byte("k"), Value: []byte("v")}, {Key: []byte("l")}}}
	f.Add(encodeCheckpoint(ck))
	f.Add([]byte{})
	f.Fuzz(func(t *testing.T, b []byte) {
		if len(b) > 4 { // the sum would hide the rest
			b = append(b[:len(b)-4:len(b)-4], sumOf(b[:len(b)-4])...)
		}
		if ck, err := decodeCheckpoint(b); err == nil {
			again, err := decodeCheckpoint(encodeCheckpoint(ck))
			require.NoError(t, err)
			require.Equal(t, ck, again)
		}
	})
}

func sumOf(b []byte) []byte {
	return binary.LittleEndian.AppendUint32(nil, crc32.Checksum(b, castagnoli))
}

// TestReplannedChangeKeepsItsTurn: what was queued after it is not taken for applied.
func TestReplannedChangeKeepsItsTurn(t *testing.T) {
	disk := vfs.NewMem(1)
	hold, held := make(chan struct{}), make(chan struct{}, 1)
	var armed atomic.Bool
	var e *testExport
	var atApply proto.LSN
	fs := vfs.Inject(disk, func(op vfs.Op) error {
		switch {
		case op.Kind == "datasync" && armed.CompareAndSwap(true, false):
			held <- struct{}{}
			<-hold
		case op.Kind == "writeat" && op.Path == "g" && e != nil:
			atApply = e.appliedLSN()
		}
		return nil
	})
	x, _ := openOn(t, fs)
	defer x.Close()
	f, g := x.file(proto.RootID, "f", "ffff"), x.file(proto.RootID, "g", "gggg")
	submit := func(op proto.Op) *Ticket {
		x.seq++
		ticket, err := x.Submit(t.Context(), &Submission{Change: &proto.Change{Session: x.ses, Seq: x.seq, Op: op}, Client: 1, Trusted: true})
		require.NoError(t, err)
		return ticket
	}
	armed.Store(true)
	first := submit(&proto.Make{Dir: proto.RootID, Name: "busy", Mode: proto.ModeRegular})
	<-held
	wf, wg := submit(&proto.Write{ID: f, Data: []byte("F")}), submit(&proto.Write{ID: g, Data: []byte("G")})
	_, err := onDisk(t, disk, "f").WriteAt([]byte("local"), 0)
	require.NoError(t, err)
	e = x
	close(hold)
	for _, ticket := range []*Ticket{first, wf, wg} {
		_, err := ticket.Wait(t.Context())
		require.NoError(t, err)
	}
	rf, err := wf.Wait(t.Context())
	require.NoError(t, err)
	rg, err := wg.Wait(t.Context())
	require.NoError(t, err)
	require.Greater(t, rf.LSN, rg.LSN, "planned anew")
	require.Less(t, atApply, rg.LSN, "not applied before it was")
	require.NoError(t, x.waitApplied(t.Context(), rf.LSN), "and the new plan's record is in the end")
	require.Equal(t, "Focal", x.content(f))
}

// TestLargestOverwriteFitsASmallDisk: a segment holds any record.
func TestLargestOverwriteFitsASmallDisk(t *testing.T) {
	j, _, err := Open(t.Context(), Options{FS: vfs.NewMem(1), SegmentSize: minSegment, HistoryCap: 1 << 40, TableChanges: 2 << 10})
	require.NoError(t, err)
	e := &testExport{Journal: j, t: t, ses: testSession, ack: true}
	require.NoError(t, j.OpenSession(testSession, 1, "key"))
	id := e.file(proto.RootID, "f", "")
	for range 12 { // over segment borders
		e.must(&proto.Write{ID: id, Data: make([]byte, proto.MaxIO)})
	}
	require.NoError(t, e.Close())
}

// TestSyncAfterAFailedWrite: a write that was cancelled leaves the bytes before it to be synced, and none of its own.
func TestSyncAfterAFailedWrite(t *testing.T) {
	for name, op := range map[string]func(id proto.FileID) proto.Op{
		"beyond the end":    func(id proto.FileID) proto.Op { return &proto.Write{ID: id, Off: 8192, Data: make([]byte, 16384)} },
		"over whole blocks": func(id proto.FileID) proto.Op { return &proto.Write{ID: id, Data: make([]byte, 8192)} },
		"over parts":        func(id proto.FileID) proto.Op { return &proto.Write{ID: id, Off: 100, Data: make([]byte, 5000)} },
	} {
		t.Run(name, func(t *testing.T) {
			disk := vfs.NewMem(1)
			var full atomic.Bool
			fs := vfs.Inject(disk, func(op vfs.Op) error {
				if op.Kind == "writeat" && op.Path == "f" && full.CompareAndSwap(true, false) {
					return vfs.Short(3000, syscall.ENOSPC)
				}
				return nil
			})
			e, _ := openOn(t, fs)
			want := strings.Repeat("precious", 1024)
			id := e.file(proto.RootID, "f", want)
			full.Store(true)
			_, err := e.do(op(id))
			require.Equal(t, status.NoSpace, status.Of(err))
			e.must(&proto.Sync{ID: id})
			for seed := range uint64(40) {
				cut := disk.Crash(rand.New(rand.NewPCG(seed, 9)))
				x, rep := openOn(t, cut)
				require.Empty(t, rep.Missing)
				require.Equal(t, want, x.content(id))
				require.NoError(t, x.Close())
			}
			require.NoError(t, e.Close())
		})
	}
}

// TestSyncOfAFileThatIsGone: a process of the server has removed or moved it; nobody's sync fails for that.
func TestSyncOfAFileThatIsGone(t *testing.T) {
	disk := vfs.NewMem(1)
	e, _ := openOn(t, disk)
	defer e.Close()
	id := e.file(proto.RootID, "f", strings.Repeat("precious", 1024))
	root, err := disk.Root()
	require.NoError(t, err)
	defer root.Close()
	require.NoError(t, root.Rename("f", root, "g", 0))
	e.tree.closeHandles()
	e.must(&proto.Sync{ID: proto.RootID, All: true})
	require.NotContains(t, e.loose, id)
}

// TestLocalChangeBeforeLargeTruncation: the copy of what is cut off is made again.
func TestLocalChangeBeforeLargeTruncation(t *testing.T) {
	disk := vfs.NewMem(1)
	var armed atomic.Bool
	var local func()
	fs := vfs.Inject(disk, func(op vfs.Op) error {
		if op.Kind == "datasync" && armed.CompareAndSwap(true, false) {
			local()
		}
		return nil
	})
	e, _ := openOn(t, fs)
	defer e.Close()
	id := e.file(proto.RootID, "f", "")
	for i := range 3 {
		e.must(&proto.Write{ID: id, Off: uint64(i) << 20, Data: []byte(strings.Repeat("x", 1<<20))})
	}
	f := onDisk(t, disk, "f")
	local = func() {
		_, err := f.WriteAt([]byte("local"), 0)
		require.NoError(t, err)
	}
	armed.Store(true)
	r := e.must(&proto.SetAttr{ID: id, Mask: proto.SetSize, Size: 0})
	require.Empty(t, e.content(id))
	g, err := e.tree.grave.Open(graveName(r.LSN), false)
	require.NoError(t, err)
	defer g.Close()
	kept, err := readFull(g, 0, 6)
	require.NoError(t, err)
	require.Equal(t, "localx", string(kept))
}

// TestReplanFindsNothingToDo: a process of the server has made the two names one file meanwhile.
func TestReplanFindsNothingToDo(t *testing.T) {
	disk := vfs.NewMem(1)
	var armed atomic.Bool
	var local func()
	fs := vfs.Inject(disk, func(op vfs.Op) error {
		if op.Kind == "datasync" && armed.CompareAndSwap(true, false) {
			local()
		}
		return nil
	})
	e, _ := openOn(t, fs)
	e.file(proto.RootID, "a", "a")
	e.file(proto.RootID, "b", "b")
	local = func() {
		root, err := disk.Root()
		require.NoError(t, err)
		defer root.Close()
		require.NoError(t, root.Remove("b"))
		require.NoError(t, root.Link("a", root, "b"))
	}
	armed.Store(true)
	rename := &proto.Rename{Dir: proto.RootID, Name: "a", NewDir: proto.RootID, NewName: "b"}
	e.must(rename)
	for _, name := range []string{"a", "b"} { // as rename(2) leaves two names of one file
		_, err := e.Lookup(proto.RootID, name)
		require.NoError(t, err)
	}
	require.NoError(t, e.Close())
	e, _ = openOn(t, disk)
	defer e.Close()
	e.seq--
	e.must(rename)
}

// TestPruningThatFailsStopsNothing: history takes more than it should then, that is all.
func TestPruningThatFailsStopsNothing(t *testing.T) {
	disk := vfs.NewMem(1)
	var failed atomic.Int64
	fs := vfs.Inject(disk, func(op vfs.Op) error {
		if op.Kind == "remove" && strings.HasPrefix(op.Path, ".cage/grave/") {
			failed.Add(1)
			return syscall.EIO
		}
		return nil
	})
	j, _, err := Open(t.Context(), Options{FS: fs, SegmentSize: 64 << 10, CheckpointBytes: 16 << 10, HistoryCap: 64 << 10, TableChanges: 2 << 10})
	require.NoError(t, err)
	e := &testExport{Journal: j, t: t, ses: testSession, ack: true}
	require.NoError(t, j.OpenSession(testSession, 1, "key"))
	require.Eventually(t, func() bool {
		e.file(proto.RootID, "f", "x")
		e.must(&proto.Remove{Dir: proto.RootID, Name: "f"})
		return failed.Load() > 2
	}, 20*time.Second, time.Microsecond)
	require.NoError(t, e.Failed())
	require.NoError(t, e.Close())
}

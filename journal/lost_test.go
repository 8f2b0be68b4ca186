package journal

import (
	"math/rand/v2"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"cagefs.dev/cage/journal/vfs"
	"cagefs.dev/cage/remote/proto"
	"cagefs.dev/cage/remote/status"
)

// crashLosing returns what a power cut leaves, of which recovery says that bytes are missing.
func crashLosing(t *testing.T, disk *vfs.Mem, from uint64) *vfs.Mem {
	t.Helper()
	for seed := from; seed < from+200; seed++ {
		cut := disk.Crash(rand.New(rand.NewPCG(seed, 0)))
		e, rep := openOn(t, cut.Clone())
		require.NoError(t, e.Close())
		if len(rep.Missing) > 0 {
			return cut
		}
	}
	t.Fatal("no cut loses unsynced bytes")
	return nil
}

// again submits an operation under a number that was used.
func (e *testExport) again(seq proto.Seq, op proto.Op) {
	e.t.Helper()
	last := e.seq
	e.seq = seq - 1
	e.must(op)
	e.seq = max(e.seq, last)
}

// TestLostBytesAreFilledIn: a session that has not heard of a write's success
// sends it again; what a cut has taken of it is filled in, and nothing that
// came later is touched.
func TestLostBytesAreFilledIn(t *testing.T) {
	disk := vfs.NewMem(3)
	e, _ := openOn(t, disk)
	id := e.make(proto.RootID, "f", proto.ModeRegular|0o644)
	writes := []*proto.Write{
		{ID: id, Off: 100, Data: []byte(strings.Repeat("a", 50_000))},
		{ID: id, Off: 50_100, Data: []byte(strings.Repeat("b", 30_000))},
		{ID: id, Off: 20_000, Data: []byte(strings.Repeat("c", 10_000))},
		{ID: id, Off: 200_001, Data: []byte(strings.Repeat("d", 9_000))},
		{ID: id, Off: 7, Append: true, Data: []byte(strings.Repeat("e", 12_000))},
	}
	first := e.seq + 1
	for _, w := range writes {
		e.must(w)
	}
	content := e.content(id)
	for n := range uint64(20) {
		cut := crashLosing(t, disk, 1000*n)
		// Nobody comes before the next crash: it is still known then.
		disk := cut.Clone()
		between, _ := openOn(t, disk)
		killed := disk.Clone()
		require.NoError(t, between.Close())
		for _, found := range []*vfs.Mem{cut.Clone(), killed} {
			want := content
			e2, rep := openOn(t, found)
			if m := rep.Missing; len(m) > 0 { // somebody else is faster, with less than a block
				at := m[0].Off + 1000
				_, err := e2.Do(t.Context(), &Submission{Change: &proto.Change{Op: &proto.Write{ID: id, Off: at, Data: []byte("other")}}, Trusted: true})
				require.NoError(t, err)
				want = want[:at] + "other" + want[at+5:]
			}
			for i, w := range writes {
				e2.again(first+proto.Seq(i), w)
			}
			require.Equal(t, want, e2.content(id))
			require.Empty(t, e2.lost)
			e2.must(&proto.Sync{ID: id})
			for seed := range uint64(8) {
				e3, rep := openOn(t, found.Crash(rand.New(rand.NewPCG(seed, 9))))
				require.Empty(t, rep.Missing)
				require.True(t, want == e3.content(id), "cut %d, %d: synced bytes are not there", n, seed)
				require.NoError(t, e3.Close())
			}
			require.NoError(t, e2.Close())
		}
	}
	require.NoError(t, e.Close())
}

// TestLostBytesFailTheSync: a session that has heard of a write's success does
// not send it again. The next sync of the file says that it is gone.
func TestLostBytesFailTheSync(t *testing.T) {
	for name, sync := range map[string]func(id proto.FileID) *proto.Sync{
		"of the file":  func(id proto.FileID) *proto.Sync { return &proto.Sync{ID: id} },
		"of all files": func(proto.FileID) *proto.Sync { return &proto.Sync{All: true} },
	} {
		t.Run(name, func(t *testing.T) {
			disk := vfs.NewMem(5)
			e, _ := openOn(t, disk)
			other := e.file(proto.RootID, "other", "x")
			id := e.file(proto.RootID, "f", strings.Repeat("x", 100_000))
			e2, _ := openOn(t, crashLosing(t, disk, 0))
			require.NoError(t, e.Close())
			defer e2.Close()
			e2.must(&proto.Sync{ID: other})
			for range 2 { // the same sync, sent again
				_, err := e2.do(sync(id))
				require.Equal(t, status.IO, status.Of(err), "%v", err)
				e2.seq--
			}
			e2.seq++
			e2.must(sync(id))
			if name == "of all files" {
				_, err := e2.do(&proto.Sync{ID: id})
				require.Equal(t, status.IO, status.Of(err), "who syncs the file itself is told, too")
				e2.must(&proto.Sync{ID: id})
			}
			require.Empty(t, e2.lost)
		})
	}
}

// TestLostBytesOfRemovedFile: a sync of all files says nothing of it.
func TestLostBytesOfRemovedFile(t *testing.T) {
	disk := vfs.NewMem(5)
	e, _ := openOn(t, disk)
	e.file(proto.RootID, "f", strings.Repeat("x", 100_000))
	e2, _ := openOn(t, crashLosing(t, disk, 0))
	require.NoError(t, e.Close())
	defer e2.Close()
	e2.must(&proto.Remove{Dir: proto.RootID, Name: "f"})
	e2.must(&proto.Sync{All: true})
}

// TestLostBytesGoWithTheirPlace: a truncation, another write, the session's end
// leave nothing to complain of.
func TestLostBytesGoWithTheirPlace(t *testing.T) {
	disk := vfs.NewMem(5)
	e, _ := openOn(t, disk)
	id := e.file(proto.RootID, "f", strings.Repeat("x", 100_000))
	cut := crashLosing(t, disk, 0)
	require.NoError(t, e.Close())
	for name, do := range map[string]func(e *testExport){
		"truncated": func(e *testExport) { e.must(&proto.SetAttr{ID: id, Mask: proto.SetSize, Size: 0}) },
		"written":   func(e *testExport) { e.must(&proto.Write{ID: id, Data: make([]byte, 100_000)}) },
		"closed":    func(e *testExport) { require.NoError(t, e.CloseSession(testSession)) },
	} {
		t.Run(name, func(t *testing.T) {
			e, _ := openOn(t, cut.Clone())
			defer e.Close()
			require.NotEmpty(t, e.lost)
			do(e)
			require.Empty(t, e.lost)
		})
	}
}

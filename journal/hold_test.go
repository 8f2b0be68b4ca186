package journal

import (
	"context"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"cagefs.dev/cage/journal/vfs"
	"cagefs.dev/cage/remote/proto"
	"cagefs.dev/cage/remote/status"
)

// giveAllUp ends history now, as pruning does on a full disk.
func (e *testExport) giveAllUp() {
	e.t.Helper()
	graves, err := e.graveList()
	require.NoError(e.t, err)
	require.NoError(e.t, e.giveUp(e.Last()+1, graves))
}

func (e *testExport) gone(id proto.FileID) bool {
	_, err := e.Attr(id)
	return status.Of(err) == status.Stale
}

// TestOpenFilesOutliveTheServer: what a session had open when the server was
// killed is kept until the session is back and has named it, but not for ever.
func TestOpenFilesOutliveTheServer(t *testing.T) {
	disk := vfs.NewMem(1)
	e, _ := openOn(t, disk)
	d := e.make(proto.RootID, "d", proto.ModeDir|0o755)
	f, g := e.file(proto.RootID, "f", "f"), e.file(proto.RootID, "g", "g")
	for _, id := range []proto.FileID{d, f} {
		require.NoError(t, e.Hold(id))
	}
	e.must(&proto.Remove{Dir: proto.RootID, Name: "d", IsDir: true})
	e.must(&proto.Remove{Dir: proto.RootID, Name: "f"})
	e.must(&proto.Remove{Dir: proto.RootID, Name: "g"})
	killed, late := disk.Clone(), disk.Clone()
	require.NoError(t, e.Close())

	e, _ = openOn(t, killed)
	e.giveAllUp()
	require.Equal(t, "f", e.content(f))
	require.Equal(t, "g", e.content(g), "the session may have had it open")
	require.NoError(t, e.Hold(f))
	require.NoError(t, e.Hold(d))
	e.Returned(testSession)
	e.giveAllUp()
	require.True(t, e.gone(g))
	a, err := e.Attr(d)
	require.NoError(t, err)
	require.Zero(t, a.Nlink)
	require.NoError(t, e.ReadDir(d, 0, true, func(proto.DirEntry) bool { t.Error("an entry"); return false }))
	e.must(&proto.Write{ID: f, Data: []byte("more")})
	e.must(&proto.SetAttr{ID: f, Mask: proto.SetSize | proto.SetMode, Size: 3, Mode: 0o600})
	e.must(&proto.SetXattr{ID: f, Name: "user.x", Value: []byte("y")})
	e.must(&proto.SetXattr{ID: d, Name: "user.x", Value: []byte("y")})
	require.Equal(t, "mor", e.content(f))
	e.Unhold(f, 1)
	e.Unhold(d, 1)
	e.giveAllUp()
	require.True(t, e.gone(f) && e.gone(d))
	require.NoError(t, e.Close())

	j, _, err := Open(context.Background(), Options{FS: late, SegmentSize: 256 << 10, Grace: time.Nanosecond})
	require.NoError(t, err)
	e = &testExport{Journal: j, t: t}
	e.giveAllUp()
	require.True(t, e.gone(f), "nobody came back in time")
	require.NoError(t, j.Close())
}

// TestEndedSessionsAreNotAwaited: a session that is closed holds nothing.
func TestEndedSessionsAreNotAwaited(t *testing.T) {
	disk := vfs.NewMem(1)
	e, _ := openOn(t, disk)
	f := e.file(proto.RootID, "f", "f")
	e.must(&proto.Remove{Dir: proto.RootID, Name: "f"})
	require.NoError(t, e.Close())
	e, _ = openOn(t, disk)
	require.NoError(t, e.CloseSession(testSession))
	e.giveAllUp()
	require.True(t, e.gone(f))
	require.NoError(t, e.Close())
}

// TestFileInARemovedTreeStaysOpen: a rollback takes a tree away in which a file is open.
func TestFileInARemovedTreeStaysOpen(t *testing.T) {
	e, _ := openOn(t, vfs.NewMem(1))
	d := e.make(proto.RootID, "d", proto.ModeDir|0o755)
	f := e.file(d, "f", "content")
	require.NoError(t, e.Hold(f))
	e.seq++
	s := &Submission{Change: &proto.Change{Session: e.ses, Seq: e.seq}}
	_, err := e.Transact(context.Background(), s, KindRollback, "", false, func(tx *Tx) error {
		tx.Remove(proto.RootID, "d", d)
		return nil
	})
	require.NoError(t, err)
	e.giveAllUp()
	require.Equal(t, "content", e.content(f))
	e.Unhold(f, 1)
	e.giveAllUp()
	require.True(t, e.gone(f))
	require.NoError(t, e.Close())
}

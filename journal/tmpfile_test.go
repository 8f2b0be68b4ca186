package journal

import (
	"context"
	"math/rand/v2"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"cagefs.dev/cage/journal/vfs"
	"cagefs.dev/cage/remote/proto"
	"cagefs.dev/cage/remote/status"
)

func (e *testExport) tmpfile(content string) proto.FileID {
	e.t.Helper()
	id := e.must(&proto.Make{Dir: proto.RootID, Mode: proto.ModeRegular | 0o640}).ID
	e.must(&proto.Write{ID: id, Data: []byte(content)})
	return id
}

// TestTmpfile: a file without a name works, is not to be seen, and can be
// given a name once, also after the server was killed.
func TestTmpfile(t *testing.T) {
	disk := vfs.NewMem(1)
	e, _ := openOn(t, disk)
	before, err := e.Attr(proto.RootID)
	require.NoError(t, err)
	f := e.tmpfile("content")
	unseen := e.tmpfile("unseen")
	a, err := e.Attr(f)
	require.NoError(t, err)
	require.Zero(t, a.Nlink)
	after, err := e.Attr(proto.RootID)
	require.NoError(t, err)
	require.Equal(t, before, after, "the directory does not change")
	_, err = e.do(&proto.Make{Dir: proto.RootID, Mode: proto.ModeDir | 0o700})
	require.Error(t, err, "only regular files may be without a name")

	killed := disk.Clone()
	require.NoError(t, e.Close())
	e, rep := openOn(t, killed)
	require.Empty(t, rep.Strangers)
	require.NoError(t, e.Hold(f))
	require.Equal(t, "content", e.content(f))
	res := e.must(&proto.Link{ID: f, Dir: proto.RootID, Name: "f"})
	require.EqualValues(t, 1, res.Attr.Nlink)
	res = e.must(&proto.Link{ID: f, Dir: proto.RootID, Name: "g"})
	require.EqualValues(t, 2, res.Attr.Nlink)
	e.must(&proto.Remove{Dir: proto.RootID, Name: "f"})
	e.must(&proto.Remove{Dir: proto.RootID, Name: "g"})
	_, err = e.do(&proto.Link{ID: f, Dir: proto.RootID, Name: "again"})
	require.Equal(t, status.NotFound, status.Of(err), "a removed file gets no name")
	require.Equal(t, "unseen", e.content(unseen))

	v, err := e.Verify(context.Background(), true)
	require.NoError(t, err)
	require.Empty(t, v.Problems)
	require.NoError(t, e.Close())
}

// TestTmpfileIsDurableWhenLinked: the bytes of a file are there when its name is.
func TestTmpfileIsDurableWhenLinked(t *testing.T) {
	disk := vfs.NewMem(1)
	e, _ := openOn(t, disk)
	content := strings.Repeat("0123456789abcdef", 1<<10)
	f := e.tmpfile(content)
	e.must(&proto.Link{ID: f, Dir: proto.RootID, Name: "f"})
	cut := disk.Crash(rand.New(rand.NewPCG(1, 1)))
	require.NoError(t, e.Close())
	e, rep := openOn(t, cut)
	require.Empty(t, rep.Missing)
	require.Equal(t, content, e.content(f))
	require.NoError(t, e.Close())
}

// TestTmpfileGoesWithHistory: nobody holds it, so it goes; who holds it keeps it.
func TestTmpfileGoesWithHistory(t *testing.T) {
	disk := vfs.NewMem(1)
	e, _ := openOn(t, disk)
	kept, gone := e.tmpfile("kept"), e.tmpfile("gone")
	e.Unhold(gone, 1)
	last := e.Last()
	require.NoError(t, e.giveUp(last+1, []proto.LSN{e.Graves(kept)[0], e.Graves(gone)[0]}))
	require.Equal(t, "kept", e.content(kept))
	_, err := e.Attr(gone)
	require.Equal(t, status.Stale, status.Of(err))
	e.must(&proto.Link{ID: kept, Dir: proto.RootID, Name: "f"})
	require.Equal(t, "kept", e.content(kept), "it gets its name also where history does not know it any more")
	require.NoError(t, e.Close())
}

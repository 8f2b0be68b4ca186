package journal

import (
	"bytes"
	"context"
	"io"
	"testing"

	"github.com/rs/zerolog"
	"github.com/stretchr/testify/require"

	"cagefs.dev/cage/journal/vfs"
	"cagefs.dev/cage/remote/proto"
	"cagefs.dev/cage/remote/status"
)

// testExport is a journal on a disk in memory with a session of root.
type testExport struct {
	*Journal
	t   testing.TB
	fs  vfs.FS
	ses proto.SessionID
	seq proto.Seq
	who proto.Ident
	ack bool   // operations acknowledge all results before them
	did func() // called after each operation
}

const testSession = proto.SessionID(77)

func openOn(t testing.TB, fs vfs.FS) (*testExport, *Report) {
	t.Helper()
	j, rep, err := Open(context.Background(), optionsOn(fs, Options{SegmentSize: 256 << 10, CheckpointBytes: 48 << 10,
		HistoryCap: 1 << 40, TableChanges: 2 << 10, Log: zerolog.New(io.Discard)}))
	require.NoError(t, err)
	e := &testExport{Journal: j, t: t, fs: fs, ses: testSession}
	if seq, err := j.ResumeSession(testSession, "key"); err == nil {
		e.seq = seq
	} else {
		n, err := j.Client("test")
		require.NoError(t, err)
		require.NoError(t, j.OpenSession(testSession, n, "key"))
	}
	return e, rep
}

func (e *testExport) do(op proto.Op) (proto.Result, error) {
	e.seq++
	c := &proto.Change{Session: e.ses, Seq: e.seq, Ident: e.who, Op: op}
	if e.ack {
		c.Acked = e.seq - 1
	}
	res, err := e.Do(context.Background(), &Submission{Change: c, Client: 1, Trusted: true})
	if e.did != nil {
		e.did()
	}
	return res, err
}

func (e *testExport) must(op proto.Op) proto.Result {
	e.t.Helper()
	r, err := e.do(op)
	require.NoError(e.t, err, "%T %+v", op, op)
	return r
}

func (e *testExport) make(dir proto.FileID, name string, mode uint32) proto.FileID {
	e.t.Helper()
	return e.must(&proto.Make{Dir: dir, Name: name, Mode: mode}).ID
}

func (e *testExport) file(dir proto.FileID, name, content string) proto.FileID {
	e.t.Helper()
	id := e.make(dir, name, proto.ModeRegular|0o644)
	if content != "" {
		e.must(&proto.Write{ID: id, Data: []byte(content)})
	}
	return id
}

func (e *testExport) content(id proto.FileID) string {
	e.t.Helper()
	a, err := e.Attr(id)
	require.NoError(e.t, err)
	b := make([]byte, a.Size)
	_, err = e.ReadAt(id, b, 0)
	require.NoError(e.t, err)
	return string(b)
}

// eachDisk runs a test on the disk in memory and on the operating system's.
func eachDisk(t *testing.T, f func(t *testing.T, fs vfs.FS)) {
	t.Run("mem", func(t *testing.T) { f(t, vfs.NewMem(1)) })
	t.Run("os", func(t *testing.T) {
		fs, err := vfs.OS(t.TempDir())
		require.NoError(t, err)
		t.Cleanup(func() { fs.Close() })
		f(t, fs)
	})
}

func TestEverydayOperations(t *testing.T) {
	eachDisk(t, func(t *testing.T, fs vfs.FS) {
		e, rep := openOn(t, fs)
		require.Equal(t, uint32(1), rep.Boot)
		require.True(t, rep.Clean)
		d := e.make(proto.RootID, "d", proto.ModeDir|0o755)
		f := e.file(d, "f", "hello")
		require.Equal(t, "hello", e.content(f))

		e.must(&proto.Write{ID: f, Off: 1, Data: []byte("ipp")})
		require.Equal(t, "hippo", e.content(f))
		big := bytes.Repeat([]byte("0123456789abcdef"), 1000)
		e.must(&proto.Write{ID: f, Off: 3, Data: big})
		require.Equal(t, "hip"+string(big), e.content(f))
		e.must(&proto.SetAttr{ID: f, Mask: proto.SetSize, Size: 4})
		require.Equal(t, "hip0", e.content(f))

		g := e.file(d, "g", "other")
		e.must(&proto.Rename{Dir: d, Name: "g", NewDir: d, NewName: "f"})
		a, err := e.Lookup(d, "f")
		require.NoError(t, err)
		require.Equal(t, g, a.ID)
		require.Equal(t, uint32(1), a.Nlink)
		require.Equal(t, "hip0", e.content(f), "a replaced file is in its grave")
		old, err := e.Attr(f)
		require.NoError(t, err)
		require.Zero(t, old.Nlink)

		e.must(&proto.Link{ID: g, Dir: proto.RootID, Name: "h"})
		e.must(&proto.Remove{Dir: d, Name: "f"})
		a, err = e.Lookup(proto.RootID, "h")
		require.NoError(t, err)
		require.Equal(t, g, a.ID)
		require.Equal(t, uint32(1), a.Nlink, "the grave's link does not count")

		_, err = e.do(&proto.Remove{Dir: proto.RootID, Name: "d"})
		require.ErrorIs(t, err, status.IsDir)
		e.must(&proto.Remove{Dir: proto.RootID, Name: "d", IsDir: true})
		_, err = e.Lookup(proto.RootID, "d")
		require.Equal(t, status.NotFound, status.Of(err))
		_, err = e.do(&proto.Make{Dir: d, Name: "x", Mode: proto.ModeRegular})
		require.Equal(t, status.NotFound, status.Of(err), "nothing can be made in a removed directory")
		require.NoError(t, e.Close())

		e, rep = openOn(t, fs)
		require.True(t, rep.Clean)
		a, err = e.Lookup(proto.RootID, "h")
		require.NoError(t, err)
		require.Equal(t, g, a.ID, "numbers outlive a restart")
		require.Equal(t, "other", e.content(g))
		require.NoError(t, e.Close())
	})
}

func TestReplayAfterKill(t *testing.T) {
	disk := vfs.NewMem(1)
	e, _ := openOn(t, disk)
	d := e.make(proto.RootID, "d", proto.ModeDir|0o755)
	f := e.file(d, "f", "hello")
	e.must(&proto.SetXattr{ID: f, Name: "user.k", Value: []byte("v")})
	e.must(&proto.Rename{Dir: d, Name: "f", NewDir: proto.RootID, NewName: "f2"})
	e.file(d, "keep", "1")
	e.must(&proto.Remove{Dir: d, Name: "keep"})
	last := e.seq
	killed := disk.Clone()
	require.NoError(t, e.Close())

	e2, rep := openOn(t, killed)
	require.False(t, rep.Clean)
	require.Equal(t, last, e2.seq, "the session goes on")
	a, err := e2.Lookup(proto.RootID, "f2")
	require.NoError(t, err)
	require.Equal(t, f, a.ID)
	require.Equal(t, "hello", e2.content(f))
	v, err := e2.GetXattr(f, "user.k")
	require.NoError(t, err)
	require.Equal(t, "v", string(v))
	_, err = e2.Lookup(d, "keep")
	require.Equal(t, status.NotFound, status.Of(err))
	require.NoError(t, e2.Close())
}

func TestRepeatedOperationAppliesOnce(t *testing.T) {
	e, _ := openOn(t, vfs.NewMem(1))
	defer e.Close()
	first := e.make(proto.RootID, "f", proto.ModeRegular|0o600)
	e.seq--
	again := e.must(&proto.Make{Dir: proto.RootID, Name: "f", Mode: proto.ModeRegular | 0o600})
	require.Equal(t, first, again.ID)
	_, err := e.do(&proto.Make{Dir: proto.RootID, Name: "f", Mode: proto.ModeRegular | 0o600})
	require.ErrorIs(t, err, status.Exists)
	e.must(&proto.Remove{Dir: proto.RootID, Name: "f"})
	e.seq -= 2
	_, err = e.do(&proto.Make{Dir: proto.RootID, Name: "f", Mode: proto.ModeRegular | 0o600})
	require.ErrorIs(t, err, status.Exists, "a failed operation fails again the same way")
}

func TestOneJournalAtATime(t *testing.T) {
	eachDisk(t, func(t *testing.T, fs vfs.FS) {
		e, _ := openOn(t, fs)
		_, _, err := Open(context.Background(), Options{FS: fs, SegmentSize: 256 << 10})
		require.Equal(t, status.Busy, status.Of(err))
		require.NoError(t, e.Close())
		e, _ = openOn(t, fs)
		require.NoError(t, e.Close())
	})
}

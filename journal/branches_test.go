package journal

import (
	"bytes"
	"context"
	"io"
	"testing"

	"github.com/stretchr/testify/require"

	"cagefs.dev/cage/journal/vfs"
	"cagefs.dev/cage/remote/branch"
	"cagefs.dev/cage/remote/proto"
	"cagefs.dev/cage/remote/status"
)

// strand keeps a write of the test's session.
func (e *testExport) strand(seq proto.Seq, id proto.FileID, off uint64, data string) error {
	e.t.Helper()
	w := &proto.Write{ID: id, Off: off, Data: []byte(data), Lost: true}
	s := &Submission{Change: &proto.Change{Session: e.ses, Seq: seq, Ident: e.who, Op: w}, Client: 1, Trusted: true}
	_, err := e.Strand(context.Background(), s, w, false)
	return err
}

// stranded reads a branch back.
func (e *testExport) stranded(id proto.SessionID) (out []branch.Write) {
	e.t.Helper()
	b, err := e.Branch(id)
	require.NoError(e.t, err)
	raw := make([]byte, b.Size)
	_, err = e.ReadBranch(id, raw, 0)
	require.NoError(e.t, err)
	r, err := branch.NewReader(bytes.NewReader(raw))
	require.NoError(e.t, err)
	require.Equal(e.t, "test", r.Head.Client)
	for {
		w, err := r.Next()
		if err == io.EOF {
			require.EqualValues(e.t, b.Writes, len(out))
			return out
		}
		require.NoError(e.t, err)
		out = append(out, *w)
	}
}

// What cannot be applied is kept once, over restarts, touches no file, and is gone when it is dropped.
func TestBranches(t *testing.T) {
	eachDisk(t, func(t *testing.T, fs vfs.FS) {
		e, _ := openOn(t, fs)
		none, err := e.Branches()
		require.NoError(t, err)
		require.Empty(t, none)
		require.Equal(t, status.NotFound, status.Of(e.DropBranch(e.ses, 1<<62)))
		d := e.make(proto.RootID, "d", proto.ModeDir|0o755)
		f := e.file(d, "f", "content")

		require.NoError(t, e.strand(100, f, 3, "one"))
		require.NoError(t, e.strand(101, f, 9, "two"))
		require.NoError(t, e.strand(100, f, 3, "one"), "sent again")
		require.NoError(t, e.strand(101, f, 9, "two"))
		require.Equal(t, "content", e.content(f))
		require.NoError(t, e.Close())

		e, _ = openOn(t, fs)
		require.NoError(t, e.strand(101, f, 9, "two"), "sent again")
		require.NoError(t, e.strand(102, f, 0, "three"))
		got := e.stranded(e.ses)
		require.Len(t, got, 3)
		for i, want := range []string{"one", "two", "three"} {
			require.Equal(t, want, string(got[i].Data))
			require.Equal(t, "d/f", got[i].Path)
			require.Equal(t, proto.Seq(100+i), got[i].Seq)
			require.Zero(t, got[i].Base, "nobody knows")
		}
		list, err := e.Branches()
		require.NoError(t, err)
		require.Len(t, list, 1)
		require.EqualValues(t, 1, list[0].Files)
		require.EqualValues(t, len("onetwothree"), list[0].Bytes)
		require.Equal(t, []uint32{0}, list[0].UIDs)
		require.NoError(t, e.DropBranch(e.ses, 1<<62))
		_, err = e.ReadBranch(e.ses, make([]byte, 1), 0)
		require.Equal(t, status.NotFound, status.Of(err))
		require.NoError(t, e.Close())

		e, _ = openOn(t, fs)
		list, err = e.Branches()
		require.NoError(t, err)
		require.Empty(t, list)
		require.NoError(t, e.Close())
	})
}

// A branch tells up to which record its session knew a file: until the lease of it was taken.
func TestBranchBase(t *testing.T) {
	disk := vfs.NewMem(1)
	e, _ := openOn(t, disk)
	f, g := e.file(proto.RootID, "f", "content"), e.file(proto.RootID, "g", "content")
	require.NoError(t, e.SetLeases(e.ses))
	require.NoError(t, e.VoidLeases(e.ses, []proto.FileID{f}, proto.Gen{Boot: 1, Counter: 9}))
	fenced := e.log.Last()
	e.must(&proto.Write{ID: f, Data: []byte("others")})
	require.NoError(t, e.Close())

	e, _ = openOn(t, disk)
	require.NoError(t, e.strand(100, f, 0, "mine"))
	require.NoError(t, e.strand(101, g, 0, "mine"))
	got := e.stranded(e.ses)
	require.Equal(t, fenced, got[0].Base)
	require.Zero(t, got[1].Base)
	a, err := e.Attr(f)
	require.NoError(t, err)
	require.Greater(t, a.Change, fenced)
	require.NoError(t, e.NoLeases(e.ses))
	all := e.log.Last()
	require.NoError(t, e.strand(102, g, 0, "mine"))
	require.Equal(t, all, e.stranded(e.ses)[2].Base)
	require.NoError(t, e.Close())
}

// A torn end is cut off, and what comes later is whole; what is damaged stays readable up to there, and is added to no more.
func TestTornBranch(t *testing.T) {
	disk := vfs.NewMem(1)
	e, _ := openOn(t, disk)
	f := e.file(proto.RootID, "f", "content")
	require.NoError(t, e.strand(1, f, 0, "one"))
	require.NoError(t, e.strand(2, f, 0, "two"))
	require.NoError(t, e.Close())
	change := func(how func(f vfs.File, size int64)) {
		root, err := disk.Root()
		require.NoError(t, err)
		cage, err := root.OpenDir(DirName)
		require.NoError(t, err)
		dir, err := cage.OpenDir("branch")
		require.NoError(t, err)
		file, err := dir.Open(BranchName(testSession), true)
		require.NoError(t, err)
		info, err := file.Stat()
		require.NoError(t, err)
		how(file, info.Size)
		for _, c := range []io.Closer{file, dir, cage, root} {
			require.NoError(t, c.Close())
		}
	}
	for _, size := range []int64{0, 5, 20} { // not even a head: it is as if it had not begun
		change(func(f vfs.File, _ int64) { require.NoError(t, f.Truncate(size)) })
		e, _ = openOn(t, disk)
		list, err := e.Branches()
		require.NoError(t, err)
		require.Empty(t, list)
		require.NoError(t, e.strand(1, f, 0, "one"))
		require.NoError(t, e.strand(2, f, 0, "two"))
		require.Len(t, e.stranded(e.ses), 2)
		require.NoError(t, e.Close())
	}
	change(func(f vfs.File, size int64) { require.NoError(t, f.Truncate(size-2)) })
	e, _ = openOn(t, disk)
	require.Len(t, e.stranded(e.ses), 1)
	require.NoError(t, e.strand(3, f, 0, "three and more"))
	require.NoError(t, e.Close())
	e, _ = openOn(t, disk)
	got := e.stranded(e.ses)
	require.Len(t, got, 2)
	require.Equal(t, "three and more", string(got[1].Data))
	require.NoError(t, e.Close())

	change(func(f vfs.File, _ int64) {
		_, err := f.WriteAt([]byte{0xff}, got[0].At)
		require.NoError(t, err)
	})
	e, _ = openOn(t, disk)
	b, err := e.Branch(e.ses)
	require.NoError(t, err)
	require.True(t, b.Damaged)
	require.Equal(t, status.Damaged, status.Of(e.strand(9, f, 0, "x")))
	require.NoError(t, e.DropBranch(e.ses, 1<<62))
	require.NoError(t, e.strand(9, f, 0, "x"))
	require.NoError(t, e.Close())
}

// What comes while a branch is being applied stays when that is done.
func TestBranchGrowsMeanwhile(t *testing.T) {
	eachDisk(t, func(t *testing.T, fs vfs.FS) {
		e, _ := openOn(t, fs)
		f := e.file(proto.RootID, "f", "content")
		require.NoError(t, e.strand(1, f, 0, "one"))
		applied, err := e.Branch(e.ses)
		require.NoError(t, err)
		require.NoError(t, e.strand(2, f, 0, "two"))
		require.NoError(t, e.DropBranch(e.ses, applied.Size))
		for range 2 {
			got := e.stranded(e.ses)
			require.Len(t, got, 1)
			require.Equal(t, "two", string(got[0].Data))
			require.NoError(t, e.Close())
			e, _ = openOn(t, fs)
		}
		require.NoError(t, e.strand(1, f, 0, "one"), "sent again")
		b, err := e.Branch(e.ses)
		require.NoError(t, err)
		require.EqualValues(t, 1, b.Writes)
		require.NoError(t, e.DropBranch(e.ses, b.Size))
		_, err = e.Branch(e.ses)
		require.Equal(t, status.NotFound, status.Of(err))
		require.NoError(t, e.Close())
	})
}

// Who may not write to a file has no bytes for it kept either, and there is a bound for all together.
func TestBranchBounds(t *testing.T) {
	e, _ := openOn(t, vfs.NewMem(1))
	f := e.file(proto.RootID, "f", "content")
	w := &proto.Write{ID: f, Data: []byte("evil"), Lost: true}
	sub := func(uid uint32, opened bool) *Submission {
		return &Submission{Change: &proto.Change{Session: e.ses, Seq: 7, Ident: proto.Ident{UID: uid, GID: uid}, Op: w}, Client: 1, Opened: opened, Trusted: true}
	}
	_, err := e.Strand(context.Background(), sub(1000, false), w, false)
	require.Equal(t, status.Access, status.Of(err))
	fresh, err := e.Strand(context.Background(), sub(1000, true), w, false)
	require.NoError(t, err)
	require.True(t, fresh)
	e.branches.bytes = maxAllBranches - 10
	require.Equal(t, status.NoSpace, status.Of(e.strand(8, f, 0, "more than ten bytes")))
	b, err := e.Branch(e.ses)
	require.NoError(t, err)
	require.EqualValues(t, 1, b.Writes)
	require.NoError(t, e.Close())
}

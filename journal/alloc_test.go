package journal

import (
	"bytes"
	"strings"
	"syscall"
	"testing"

	"github.com/stretchr/testify/require"

	"cagefs.dev/cage/journal/record"
	"cagefs.dev/cage/journal/vfs"
	"cagefs.dev/cage/remote/proto"
	"cagefs.dev/cage/remote/status"
)

const punch = proto.AllocPunchHole | proto.AllocKeepSize

func TestAllocate(t *testing.T) {
	eachDisk(t, func(t *testing.T, fs vfs.FS) {
		e, _ := openOn(t, fs)
		id := e.file(proto.RootID, "f", "0123456789")
		size := func() uint64 {
			a, err := e.Attr(id)
			require.NoError(t, err)
			return a.Size
		}
		e.must(&proto.Allocate{ID: id, Mode: proto.AllocKeepSize, Len: 20000})
		require.Equal(t, "0123456789", e.content(id))
		res := e.must(&proto.Allocate{ID: id, Off: 5, Len: 7})
		require.EqualValues(t, 12, size())
		require.EqualValues(t, 12, res.Attr.Size)
		e.must(&proto.Allocate{ID: id, Mode: punch, Off: 2, Len: 3})
		require.Equal(t, "01\x00\x00\x0056789\x00\x00", e.content(id))
		e.must(&proto.Allocate{ID: id, Mode: punch, Off: 8, Len: 1 << 40})
		require.Equal(t, "01\x00\x00\x00567\x00\x00\x00\x00", e.content(id), "a hole goes no further than the file")
		e.must(&proto.Allocate{ID: id, Mode: proto.AllocZeroRange | proto.AllocKeepSize, Off: 0, Len: 100})
		require.Equal(t, strings.Repeat("\x00", 12), e.content(id))
		e.must(&proto.Allocate{ID: id, Mode: proto.AllocZeroRange, Off: 6, Len: 14})
		require.Equal(t, strings.Repeat("\x00", 20), e.content(id))
		res = e.must(&proto.Allocate{ID: id, Mode: punch, Off: 20, Len: 5})
		require.NotZero(t, res.LSN, "behind the end there is nothing to punch, but it counts as a change, as on ext4 and xfs")

		for _, bad := range []struct {
			op   proto.Allocate
			code status.Code
		}{
			{proto.Allocate{ID: id}, status.Invalid},
			{proto.Allocate{ID: id, Off: 1<<63 - 5, Len: 10}, status.TooLarge},
			{proto.Allocate{ID: proto.RootID, Len: 1}, status.Invalid},
			{proto.Allocate{ID: 4711, Len: 1}, status.Stale},
		} {
			_, err := e.do(&bad.op)
			require.Equal(t, bad.code, status.Of(err), "%+v", bad.op)
		}
		list, err := e.Entries(Query{Path: "f", Limit: 3})
		require.NoError(t, err)
		require.Equal(t, "allocate", list.Entries[1].Kind)
		require.Equal(t, "size 20, was 12", list.Entries[1].Detail)
		require.Equal(t, "hole", list.Entries[2].Detail)
		require.NoError(t, e.Close())
		require.Empty(t, verified(t, fs))
	})
}

// verified opens an export again and returns what Verify finds.
func verified(t *testing.T, fs vfs.FS) []string {
	t.Helper()
	e, _ := openOn(t, fs)
	rep, err := e.Verify(t.Context(), true)
	require.NoError(t, err)
	require.NoError(t, e.Close())
	return rep.Problems
}

// A hole over more data than the log takes costs the log nothing: what was in
// it lies in a grave.
func TestLargeHole(t *testing.T) {
	eachDisk(t, func(t *testing.T, fs vfs.FS) {
		e, _ := openOn(t, fs)
		id := e.file(proto.RootID, "f", "")
		whole := bytes.Repeat([]byte("0123456789abcdef"), 3<<20/16)
		for off := 0; off < len(whole); off += proto.MaxIO {
			e.must(&proto.Write{ID: id, Off: uint64(off), Data: whole[off : off+proto.MaxIO]})
		}
		const far = uint64(1) << 40
		e.must(&proto.Write{ID: id, Off: far, Data: []byte("end")})
		full := e.Last()
		res := e.must(&proto.Allocate{ID: id, Mode: punch, Off: 100, Len: far - 99})
		r, err := e.Record(res.LSN, true)
		require.NoError(t, err)
		require.NotZero(t, r.Flag&record.FlagGraveImage)
		require.Empty(t, r.Images)
		require.Less(t, e.graves.bytes.Load(), int64(4<<20), "counted is what it takes, not how long it is")
		require.Equal(t, [][2]int64{{0, block}, {int64(far), int64(far) + 3}}, dataOf(t, e, id))
		check := func(e *testExport) {
			past, err := e.At(full)
			require.NoError(t, err)
			got := make([]byte, len(whole))
			_, err = past.ReadAt(id, got, 0)
			require.NoError(t, err)
			require.True(t, bytes.Equal(whole, got))
			_, err = past.ReadAt(id, got[:3], int64(far))
			require.NoError(t, err)
			require.Equal(t, "end", string(got[:3]))
			require.Equal(t, [][2]int64{{0, int64(len(whole))}, {int64(far), int64(far) + 3}}, dataOf(t, past, id))
		}
		check(e)
		require.NoError(t, e.Close())
		require.Empty(t, verified(t, fs))
		e, _ = openOn(t, fs)
		check(e)
		require.NoError(t, e.Close())
	})
}

// A hole over many small ranges of data is several records of one change.
func TestHoleOverManyRanges(t *testing.T) {
	j, _, err := Open(t.Context(), Options{FS: vfs.NewMem(1)})
	require.NoError(t, err)
	e := &testExport{Journal: j, t: t}
	e.inlineCut = 64 << 20
	id := e.file(proto.RootID, "f", "")
	const n = 2*maxPieces + 10
	for i := range n {
		e.must(&proto.Write{ID: id, Off: uint64(i) * 2 * block, Data: []byte{1}})
	}
	before := e.Last()
	e.must(&proto.Allocate{ID: id, Mode: punch, Off: 0, Len: n * 2 * block})
	require.Empty(t, dataOf(t, e, id))
	require.EqualValues(t, 3, e.Last()-before)
	past, err := e.At(before)
	require.NoError(t, err)
	require.Len(t, dataOf(t, past, id), n)
	require.NoError(t, e.Close())
}

// What the file system cannot do, or has no room for, leaves nothing behind.
func TestAllocateThatFails(t *testing.T) {
	for name, c := range map[string]struct {
		mode  uint32
		fails string
		err   error
		code  status.Code
		cut   int64
	}{
		"no space":            {0, "allocate", syscall.ENOSPC, status.NoSpace, maxInlineCut},
		"cannot allocate":     {proto.AllocKeepSize, "allocate", syscall.EOPNOTSUPP, status.Unsupported, maxInlineCut},
		"cannot punch":        {punch, "punchhole", syscall.EOPNOTSUPP, status.Unsupported, maxInlineCut},
		"zeroed, not there":   {proto.AllocZeroRange, "allocate", syscall.ENOSPC, status.NoSpace, maxInlineCut},
		"zeroed, with a copy": {proto.AllocZeroRange, "allocate", syscall.ENOSPC, status.NoSpace, 100},
	} {
		t.Run(name, func(t *testing.T) {
			mem := vfs.NewMem(1)
			broken := false
			fs := vfs.Inject(mem, func(op vfs.Op) error {
				if broken && op.Kind == c.fails {
					return c.err
				}
				return nil
			})
			e, _ := openOn(t, fs)
			e.inlineCut = c.cut
			content := strings.Repeat("0123456789", 1000)
			id := e.file(proto.RootID, "f", content)
			e.must(&proto.Sync{ID: id})
			before := snapshot(t, e.Journal)
			broken = true
			_, err := e.do(&proto.Allocate{ID: id, Mode: c.mode, Off: 3, Len: 20000})
			require.Equal(t, c.code, status.Of(err), err)
			broken = false
			require.Empty(t, before.diff(snapshot(t, e.Journal), nil))
			require.NoError(t, e.Close())
			killed, _ := openOn(t, mem.Clone())
			require.Empty(t, before.diff(snapshot(t, killed.Journal), nil))
			rep, err := killed.Verify(t.Context(), true)
			require.NoError(t, err)
			require.Empty(t, rep.Problems)
			require.NoError(t, killed.Close())
		})
	}
}

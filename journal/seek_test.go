package journal

import (
	"bytes"
	"testing"

	"github.com/stretchr/testify/require"

	"cagefs.dev/cage/journal/vfs"
	"cagefs.dev/cage/remote/proto"
	"cagefs.dev/cage/remote/status"
)

// seeker is a state in which data and holes can be looked for.
type seeker interface {
	Seek(proto.FileID, int64, bool) (int64, error)
}

// dataOf lists the ranges of data of a file, as lseek(2) tells.
func dataOf(t testing.TB, r seeker, id proto.FileID) (out [][2]int64) {
	t.Helper()
	for end := int64(0); ; {
		from, err := r.Seek(id, end, false)
		if status.Of(err) == status.NoDevice {
			return out
		}
		require.NoError(t, err)
		require.GreaterOrEqual(t, from, end)
		if end > 0 {
			require.Greater(t, from, end, "data do not end at a hole")
		}
		end, err = r.Seek(id, from, true)
		require.NoError(t, err)
		require.Greater(t, end, from)
		out = append(out, [2]int64{from, end})
	}
}

// requireHoles checks that there is nothing but zeros where a file says that it has holes.
func requireHoles(t testing.TB, r seeker, id proto.FileID, content []byte) {
	t.Helper()
	rest := bytes.Clone(content)
	for _, d := range dataOf(t, r, id) {
		clear(rest[d[0]:d[1]])
	}
	require.Empty(t, bytes.Trim(rest, "\x00"), "%s has bytes in a hole", id)
}

func TestSeek(t *testing.T) {
	eachDisk(t, func(t *testing.T, fs vfs.FS) {
		e, _ := openOn(t, fs)
		const far = int64(1) << 41
		id := e.file(proto.RootID, "f", "")
		_, err := e.Seek(id, 0, false)
		require.Equal(t, status.NoDevice, status.Of(err), "an empty file")
		_, err = e.Seek(id, 0, true)
		require.Equal(t, status.NoDevice, status.Of(err), "the end is beyond the end")
		e.must(&proto.Write{ID: id, Off: uint64(far), Data: bytes.Repeat([]byte("x"), 5000)})
		e.must(&proto.Write{ID: id, Off: 3 * block, Data: []byte("y")})
		sparse := e.Last()
		want := [][2]int64{{3 * block, 4 * block}, {far, far + 5000}}
		require.Equal(t, want, dataOf(t, e, id))
		off, err := e.Seek(id, 0, true)
		require.NoError(t, err)
		require.Zero(t, off)
		off, err = e.Seek(id, far+100, false)
		require.NoError(t, err)
		require.Equal(t, far+100, off)
		off, err = e.Seek(id, far+100, true)
		require.NoError(t, err)
		require.Equal(t, far+5000, off, "the end is a hole")
		for _, bad := range []int64{-1, far + 5000, far + 5001} {
			_, err = e.Seek(id, bad, true)
			require.Equal(t, status.NoDevice, status.Of(err), bad)
		}
		e.must(&proto.SetAttr{ID: id, Mask: proto.SetSize, Size: 10})
		cut := e.Last()
		e.must(&proto.Write{ID: id, Off: 0, Data: []byte("zz")})
		require.Equal(t, [][2]int64{{0, 10}}, dataOf(t, e, id))
		past, err := e.At(sparse)
		require.NoError(t, err)
		require.Equal(t, want, dataOf(t, past, id), "then")
		past, err = e.At(cut)
		require.NoError(t, err)
		require.Empty(t, dataOf(t, past, id))
		_, err = past.Seek(id, 0, false)
		require.Equal(t, status.NoDevice, status.Of(err))
		_, err = e.Seek(proto.RootID, 0, false)
		require.Error(t, err)
		require.NoError(t, e.Close())
	})
}

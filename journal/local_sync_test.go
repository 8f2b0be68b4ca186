package journal

import (
	"context"
	"math/rand/v2"
	"slices"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"cagefs.dev/cage/journal/record"
	"cagefs.dev/cage/journal/vfs"
	"cagefs.dev/cage/remote/proto"
)

// TestSyncedLocalChangesOutlivePowerCut: recovery does records since the checkpoint
// again, but not over what a process of the server did to the same file after them;
// and a client's records after that count again.
func TestSyncedLocalChangesOutlivePowerCut(t *testing.T) {
	open := func(fs *vfs.Mem, mount string) *testExport {
		j, _, err := Open(context.Background(), Options{FS: fs, Mount: mount, Now: func() proto.Time { return proto.Time(fs.Now()) }})
		require.NoError(t, err)
		return &testExport{Journal: j, t: t, fs: fs, ses: testSession, ack: true}
	}
	disk := vfs.NewMem(1)
	e := open(disk, "m1")
	require.NoError(t, e.OpenSession(testSession, 1, "key"))
	a := e.file(proto.RootID, "a", "0123456789abcdef")
	b := e.file(proto.RootID, "b", "0123456789abcdef")
	require.NoError(t, e.Close())

	e = open(disk, "m1")
	for _, id := range []proto.FileID{a, b} {
		e.must(&proto.Write{ID: id, Data: []byte("a client's")})
		e.must(&proto.SetAttr{ID: id, Mask: proto.SetMode, Mode: 0o600})
	}
	o := newOutsider(e)
	o.overwrite("a", "a local's ")
	o.tell("content a")
	synced := func() bool {
		return slices.ContainsFunc(e.records(record.Synced), func(r *record.Record) bool { return r.ID == a && r.Flag&record.FlagLocal != 0 })
	}
	require.Eventually(t, synced, time.Minute, time.Millisecond)
	before := disk.Clone()
	e.must(&proto.Write{ID: a, Off: 2, Data: []byte("CLIENT")})
	e.must(&proto.Sync{ID: a})

	for seed := range uint64(50) {
		rng := rand.New(rand.NewPCG(seed, 0))
		for want, fs := range map[string]*vfs.Mem{
			"a local's abcdef": before.Crash(rng),
			"a CLIENTs abcdef": disk.Crash(rng),
		} {
			r := open(fs, "m2")
			require.Equal(t, want, r.content(a), "seed %d", seed)
			require.Equal(t, "a client'sabcdef", r.content(b), "seed %d: what no local process touched is the log's", seed)
			attr, err := r.Attr(a)
			require.NoError(t, err)
			require.EqualValues(t, 0o600, attr.Mode&proto.ModePerm, "seed %d: what was acknowledged before", seed)
			require.NoError(t, r.Close())
		}
	}
	require.NoError(t, e.Close())
}

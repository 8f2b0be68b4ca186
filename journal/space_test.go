package journal

import (
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"cagefs.dev/cage/journal/vfs"
	"cagefs.dev/cage/remote/proto"
	"cagefs.dev/cage/remote/status"
)

// smallDisk tells sizes and quotas of its own.
type smallDisk struct {
	vfs.FS
	st     vfs.StatFS
	users  map[uint32]vfs.Quota
	groups map[uint32]vfs.Quota
}

func (d *smallDisk) StatFS() (vfs.StatFS, error) {
	st, err := d.FS.StatFS()
	own := d.st
	own.ID, own.NameMax = st.ID, st.NameMax
	return own, err
}

func (d *smallDisk) Quota(group bool, id uint32) (vfs.Quota, error) {
	if group {
		return d.groups[id], nil
	}
	return d.users[id], nil
}

func TestStatFSOfUsersWithQuotas(t *testing.T) {
	const mib = 1 << 20
	disk := &smallDisk{FS: vfs.NewMem(1),
		st:     vfs.StatFS{BlockSize: 4096, Blocks: 100_000, BlocksFree: 50_000, BlocksAvail: 45_000, Files: 1000, FilesFree: 600},
		users:  map[uint32]vfs.Quota{1: {Space: 3*mib + 1, SpaceLimit: 8 * mib}, 2: {Space: 9 * mib, SpaceLimit: 8 * mib, Files: 80, FilesLimit: 70}, 3: {SpaceLimit: 1 << 40, FilesLimit: 1 << 20}},
		groups: map[uint32]vfs.Quota{7: {Space: mib, SpaceLimit: 2 * mib, Files: 1, FilesLimit: 10}},
	}
	e, _ := openOn(t, disk)
	lacking := uint64(e.lacking()) / 4096
	require.EqualValues(t, 256<<10/4096, lacking, "a segment of the log: none is prepared yet")
	for _, tc := range []struct {
		uid, gid uint32
		want     proto.StatFS
	}{
		{0, 0, proto.StatFS{Blocks: 100_000, BlocksFree: 50_000 - lacking, BlocksAvail: 45_000 - lacking, Files: 1000, FilesFree: 600}},
		{1, 0, proto.StatFS{Blocks: 2048, BlocksFree: 1279, BlocksAvail: 1279, Files: 1000, FilesFree: 600}},
		{2, 0, proto.StatFS{Blocks: 2048, Files: 70}},
		{3, 0, proto.StatFS{Blocks: 100_000, BlocksFree: 50_000 - lacking, BlocksAvail: 45_000 - lacking, Files: 1000, FilesFree: 600}},
		{0, 7, proto.StatFS{Blocks: 512, BlocksFree: 256, BlocksAvail: 256, Files: 10, FilesFree: 9}},
		{1, 7, proto.StatFS{Blocks: 512, BlocksFree: 256, BlocksAvail: 256, Files: 10, FilesFree: 9}},
		{2, 7, proto.StatFS{Blocks: 512, Files: 10}},
	} {
		tc.want.BlockSize, tc.want.NameMax = 4096, 255
		got, err := e.StatFS(tc.uid, tc.gid)
		require.NoError(t, err)
		require.Equal(t, tc.want, got, "uid %d gid %d", tc.uid, tc.gid)
	}
	disk.st.BlocksFree, disk.st.BlocksAvail = lacking+5, lacking-1
	got, err := e.StatFS(0, 0)
	require.NoError(t, err)
	require.EqualValues(t, 5, got.BlocksFree)
	require.Zero(t, got.BlocksAvail)
	disk.st = vfs.StatFS{BlockSize: 4096, Blocks: 100_000, BlocksFree: 50_000, BlocksAvail: 45_000}
	require.NoError(t, e.Close())
}

// TestQuotaOfTheJournal: where a quota holds for the journal itself, of a project, a
// subvolume, or the user as whom the server runs, it is as a full disk: what does
// not fit fails, what the journal has kept for itself serves, nothing ends.
func TestQuotaOfTheJournal(t *testing.T) {
	disk := vfs.NewMem(1)
	var full atomic.Bool
	fs := vfs.Inject(disk, func(op vfs.Op) error {
		grows := op.Kind == "create" || op.Kind == "writeat" && (strings.HasSuffix(op.Path, ".tmp") && !strings.HasSuffix(op.Path, "/1.tmp") || op.Path == DirName+"/"+checkpointTemp && op.Off > 0)
		if full.Load() && grows && strings.HasPrefix(op.Path, DirName+"/") {
			return syscall.EDQUOT
		}
		return nil
	})
	e, _ := openOn(t, fs)
	id := e.file(proto.RootID, "f", "hello")
	full.Store(true)
	var err error
	for i := 0; err == nil; i++ {
		require.Less(t, i, 10_000)
		_, err = e.do(&proto.Write{ID: id, Data: []byte(strings.Repeat("x", 1000))})
	}
	require.Equal(t, status.Quota, status.Of(err), "%v", err)
	_, err = e.do(&proto.Make{Dir: proto.RootID, Name: "new", Mode: proto.ModeRegular})
	require.Equal(t, status.Quota, status.Of(err), "%v", err)
	require.NoError(t, e.keepRoom(1<<30))
	require.Positive(t, e.roomShort.Load())
	require.NoError(t, e.Failed())
	full.Store(false)
	require.NoError(t, e.keepRoom(1<<20))
	require.Zero(t, e.roomShort.Load())
	require.Eventually(t, func() bool {
		_, err := e.do(&proto.Make{Dir: proto.RootID, Name: "new", Mode: proto.ModeRegular})
		return err == nil
	}, 10*time.Second, 10*time.Millisecond)
	require.NoError(t, e.Close())
}

// TestTruncationUncharges: what a large truncation keeps is the server's, so that a user
// whose quota is used up has room again at once.
func TestTruncationUncharges(t *testing.T) {
	disk := vfs.NewMem(1)
	e, _ := openOn(t, disk)
	id := e.file(proto.RootID, "f", "")
	e.must(&proto.SetAttr{ID: id, Mask: proto.SetUID | proto.SetGID, UID: 1234, GID: 1234})
	for i := range 3 {
		e.must(&proto.Write{ID: id, Off: uint64(i) << 20, Data: make([]byte, 1<<20)})
	}
	r := e.must(&proto.SetAttr{ID: id, Mask: proto.SetSize})
	kept, err := e.tree.grave.Stat(graveName(r.LSN))
	require.NoError(t, err)
	require.GreaterOrEqual(t, kept.Blocks*512, uint64(3<<20))
	require.Zero(t, kept.UID)
	require.Zero(t, kept.GID)
	a, err := e.Attr(id)
	require.NoError(t, err)
	require.Zero(t, a.Blocks)
	require.NoError(t, e.Close())
}

package journal

import (
	"sync/atomic"
	"syscall"
	"testing"

	"github.com/stretchr/testify/require"

	"cagefs.dev/cage/journal/vfs"
	"cagefs.dev/cage/remote/proto"
)

// TestGapCutShort: an orderly stop comes before all could be compared with what
// the server before had left. What a client changed in the meantime does not hide what
// is still to be found: the next start finds it.
func TestGapCutShort(t *testing.T) {
	disk := vfs.NewMem(1)
	e, _ := openOn(t, disk)
	d := e.make(proto.RootID, "d", proto.ModeDir|0o755)
	e.file(d, "a", "a")
	e.file(d, "b", "b")
	snapshot(t, e.Journal)
	require.NoError(t, e.Close())

	o := newOutsider(e)
	o.rm("d/a")
	o.create("d/n", "n")

	var failed atomic.Bool
	fs := vfs.Inject(disk, func(op vfs.Op) error {
		if op.Kind == "readdir" && op.Path == "d" {
			failed.Store(true)
			return syscall.EIO
		}
		return nil
	})
	e, _ = openOn(t, fs)
	require.Eventually(t, failed.Load, 5e9, 1e6)
	e.file(d, "mine", "m")
	require.NoError(t, e.Close())

	e, _ = openOn(t, disk)
	o = newOutsider(e)
	require.Eventually(t, func() bool { return !e.local.gap.open.Load() }, 5e9, 1e6)
	gap := " (while no server ran)"
	require.Subset(t, o.story(), []string{"remove d/a" + gap, "make d/n" + gap})
	require.NoError(t, e.Close())
}

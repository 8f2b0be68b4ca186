package e2e

import (
	"math/rand/v2"
	"path/filepath"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// TestPowerCycle cuts the power of a server whose mount stays and goes on.
// Bytes that nobody had synced may be gone then; a sync of such a file must say so,
// and when it has not, everything is there at the end.
func TestPowerCycle(t *testing.T) {
	t.Parallel()
	cycles := 2
	if accept {
		cycles = 20
	}
	seed := seed(t)
	rng := rand.New(rand.NewPCG(seed, 3))
	lab := newLab(t, "")
	disk := lab.newDisk(1 << 30)
	export := filepath.Join(disk.mnt, "export")
	disk.sh("mkdir", export)
	disk.sync()
	srv := lab.newServer(export)
	srv.start()
	point := lab.mount(srv)
	load := newLoad(t, seed, 4, point)
	for _, w := range load.workers {
		w.lossy = true
	}
	load.start()
	t.Cleanup(func() { load.stop() })
	for range cycles {
		time.Sleep(time.Duration(rng.Int64N(int64(time.Second))))
		load.power.Add(1)
		srv.kill()
		disk.powerCycle()
		srv.start()
		load.power.Add(1)
		load.advance(t)
	}
	require.NoError(t, load.stop())
	lost := 0
	for _, w := range load.workers {
		lost += w.lost
		w.requireEqual(t, w.dir)
	}
	t.Logf("%d power cycles, %d operations, %d files with bytes gone, of which their syncs told", cycles, load.done(), lost)
	fresh := lab.mount(srv)
	for _, w := range load.workers {
		w.requireEqual(t, filepath.Join(fresh, w.name))
	}
	lab.umount(fresh)
	lab.umount(point)
	srv.stop()
	for _, w := range load.workers {
		w.requireEqual(t, filepath.Join(export, w.name))
	}
	require.NoError(t, lab.verify(export))
}

package e2e

import (
	"fmt"
	"math/rand/v2"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// TestKilledServer kills the server at random moments under load, sometimes
// while it still recovers from the last time, and starts it again. The mounts
// go on: no operation fails or is done twice, and at the end everything that was
// answered is there: in the mounts, in a fresh one, on the server's disk.
func TestKilledServer(t *testing.T) {
	t.Parallel()
	kills := 4
	if accept {
		kills = 20
	}
	seed := seed(t)
	rng := rand.New(rand.NewPCG(seed, 1))
	lab := newLab(t, "")
	export := lab.mkdir("export")
	srv := lab.newServer(export)
	srv.start()
	mounts := []string{lab.mount(srv), lab.mount(srv)}
	load := newLoad(t, seed, 3, mounts...)
	load.start()
	defer load.stop()
	upto := func(d time.Duration) { time.Sleep(time.Duration(rng.Int64N(int64(d)))) }

	for n := 0; n < kills; n++ {
		upto(600 * time.Millisecond)
		srv.kill()
		upto(time.Second)
		if n+1 < kills && rng.IntN(3) == 0 {
			srv.launch()
			upto(100 * time.Millisecond)
			srv.kill()
			n++
		}
		srv.start()
		load.advance(t)
	}
	require.NoError(t, load.stop())
	t.Logf("%d kills, %d operations", kills, load.done())

	for _, w := range load.workers {
		w.requireEqual(t, w.dir)
	}
	fresh := lab.mount(srv)
	for _, w := range load.workers {
		w.requireEqual(t, filepath.Join(fresh, w.name))
	}
	for _, m := range append(mounts, fresh) {
		lab.umount(m)
	}
	srv.stop()
	for _, w := range load.workers {
		w.requireEqual(t, filepath.Join(export, w.name))
	}
	require.NoError(t, lab.verify(export))
}

// advance returns when every worker has done something since.
func (l *load) advance(t testing.TB) {
	t.Helper()
	for _, w := range l.workers {
		_, before := w.now()
		require.Eventually(t, func() bool {
			_, done := w.now()
			return done > before || l.stopping.Load()
		}, 40*time.Second, 5*time.Millisecond, "%s hangs", w.name)
	}
	if l.stopping.Load() {
		require.NoError(t, l.stop())
	}
}

// requireEqual compares a directory with all that the worker has done.
func (w *worker) requireEqual(t testing.TB, dir string) {
	t.Helper()
	got, err := readTree(dir)
	require.NoError(t, err)
	lines := w.model.differences(got, nil)
	if len(lines) > 0 {
		require.Fail(t, fmt.Sprintf("%s is not what %s has done:\n%s\n%s", dir, w.name, strings.Join(lines, "\n"), w.story()))
	}
}

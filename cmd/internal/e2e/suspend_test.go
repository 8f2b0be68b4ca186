package e2e

import (
	"os"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"
)

// TestResumeAfterSuspend: a machine that sleeps for longer than the term of its
// leases has a dead network and stopped processes. When it wakes up its mount sees what others have done
// meanwhile, delivers what it had accepted of files that nobody wanted, and says of the others that it is lost.
func TestResumeAfterSuspend(t *testing.T) {
	needRoot(t)
	t.Parallel()
	l := newLab(t, "")
	export := l.mkdir("export")
	s := l.newServer(export, "--lease-term", "2s")
	s.start()
	p := newProxy(t, s.addr)
	laptop, here := l.through(s, p, "--hard"), l.mount(s)
	kept, lost := openToWrite(t, laptop+"/kept", "old"), openToWrite(t, laptop+"/lost", "old")
	require.NoError(t, os.WriteFile(laptop+"/seen", []byte("old"), 0o644))
	require.NoError(t, os.WriteFile(laptop+"/gone", nil, 0o644))
	l.run("cagefs", "sync", laptop)
	writeAway(t, func() {
		for _, f := range []*os.File{kept, lost} {
			_, err := f.WriteAt([]byte("old"), 0)
			require.NoError(t, err)
		}
		l.run("cagefs", "sync", laptop)
		for _, name := range []string{"/seen", "/gone"} {
			_, err := os.ReadFile(laptop + name)
			require.NoError(t, err)
		}
	}, p.freeze, p.thaw, func() error {
		_, err := kept.WriteAt([]byte("new"), 0)
		require.NoError(t, err)
		_, err = lost.WriteAt([]byte("new"), 0)
		return err
	})
	resume := suspend(t, l.mountPID(laptop))

	require.NoError(t, os.WriteFile(here+"/seen", []byte("theirs"), 0o644)) // waits for the term
	require.NoError(t, os.WriteFile(here+"/lost", []byte("theirs"), 0o644))
	require.NoError(t, os.Remove(here+"/gone"))
	require.NoError(t, os.Chmod(here+"/seen", 0o600))

	resume()
	p.thaw()
	woken := time.Now()
	require.NoError(t, kept.Sync())
	require.ErrorIs(t, lost.Sync(), unix.EIO)
	require.Eventually(t, func() bool {
		b, err := os.ReadFile(laptop + "/seen")
		_, gone := os.Stat(laptop + "/gone")
		info, serr := os.Stat(laptop + "/seen")
		return err == nil && string(b) == "theirs" && os.IsNotExist(gone) && serr == nil && info.Mode().Perm() == 0o600
	}, 10*time.Second, time.Millisecond)
	t.Logf("awake after %v", time.Since(woken).Round(time.Millisecond))
	for name, want := range map[string]string{"kept": "new", "lost": "theirs", "seen": "theirs"} {
		for _, dir := range []string{laptop, here, export} {
			b, err := os.ReadFile(dir + "/" + name)
			require.NoError(t, err)
			require.Equal(t, want, string(b), "%s in %s", name, dir)
		}
	}
	require.Len(t, s.branches(), 1)
}

package e2e

import (
	"io"
	"os"
	"path/filepath"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

// awaitState returns when the mount's connection is in a state.
func (l *lab) awaitState(point, state string) {
	l.t.Helper()
	require.Eventually(l.t, func() bool { return l.state(point).State == state }, 20*time.Second, 20*time.Millisecond, "never %s", state)
}

// TestStaleReads: with the option stale, what was looked at is read on when the server is gone and the lease
// term is over, and nothing is changed; after the time that the option gives that ends; and with the server
// all is coherent again, of what was open all the time as well.
func TestStaleReads(t *testing.T) {
	needRoot(t)
	t.Parallel()
	l := newLab(t, "")
	export := l.mkdir("export")
	require.NoError(t, os.Mkdir(export+"/dir", 0o755))
	for _, name := range []string{"read", "open", "mine", "unread", "later"} {
		require.NoError(t, os.WriteFile(filepath.Join(export, "dir", name), []byte("old "+name), 0o644))
	}
	require.NoError(t, os.Symlink("read", export+"/dir/link"))
	s := l.newServer(export, "--lease-term", "2s")
	s.start()
	p := newProxy(t, s.addr)
	a := l.through(s, p, "-o", "stale=1m,soft=1s")
	short := l.through(s, p, "-o", "stale=3s,soft=1s")
	b := l.mount(s)

	list := func(m string) string {
		_, out, err := runWithin(t, 10*time.Second, m+"/dir", "", "ls", "-l")
		require.NoError(t, err, "%s", out)
		return out
	}
	read := func(path string) string {
		got, err := os.ReadFile(path)
		require.NoError(t, err)
		return string(got)
	}
	open, err := os.Open(a + "/dir/open")
	require.NoError(t, err)
	defer open.Close()
	mine, err := os.OpenFile(a+"/dir/mine", os.O_RDWR, 0)
	require.NoError(t, err)
	defer mine.Close()
	readOpen := func() string {
		got, err := io.ReadAll(io.NewSectionReader(open, 0, 100))
		require.NoError(t, err)
		return string(got)
	}
	listed := list(a)
	for _, m := range []string{a, short} {
		require.Equal(t, "old read", read(m+"/dir/read"))
		require.NoFileExists(t, m+"/dir/none")
	}
	require.Equal(t, "old open", readOpen())

	p.refuse()
	l.awaitState(a, "stale")
	require.NoError(t, os.WriteFile(b+"/dir/read", []byte("new read, longer"), 0o644))
	require.NoError(t, os.WriteFile(b+"/dir/open", []byte("new open, longer"), 0o644))
	require.NoError(t, os.WriteFile(b+"/dir/none", nil, 0o644))
	require.NoError(t, os.Remove(b+"/dir/later"))
	began := time.Now()
	assert.Equal(t, listed, list(a))
	assert.Equal(t, "old read", read(a+"/dir/read"))
	assert.Equal(t, "old read", read(a+"/dir/link"))
	assert.NoFileExists(t, a+"/dir/none")
	assert.Equal(t, "old open", readOpen())
	_, out, err := runWithin(t, 10*time.Second, a+"/dir", "", "sh", "-c", "cat read && ls -d . .. && test -e later")
	assert.NoError(t, err, "%s", out)
	assert.Less(t, time.Since(began), time.Second, "somebody waited")
	changesFail(t, a, mine)

	l.awaitState(short, "reconnecting")
	_, err = os.ReadFile(short + "/dir/read")
	assert.ErrorIs(t, err, syscall.ETIMEDOUT, "the time is over")

	require.Equal(t, "stale", l.state(a).State)
	p.accept(t)
	require.Eventually(t, func() bool { // who reads has the server looked for
		_, err := os.Stat(a + "/dir/unread")
		require.NoError(t, err)
		got, err := os.ReadFile(a + "/dir/unread")
		return err == nil && string(got) == "old unread"
	}, 20*time.Second, time.Millisecond)
	assert.Equal(t, "new open, longer", readOpen())
	assert.Equal(t, "new read, longer", read(a+"/dir/read"))
	assert.FileExists(t, a+"/dir/none")
	assert.NoFileExists(t, a+"/dir/later")
	assert.Contains(t, list(a), "none")
	l.awaitState(a, "online")
	l.awaitState(short, "online")
	assert.Equal(t, "new read, longer", read(short+"/dir/read"))
	require.NoError(t, os.WriteFile(a+"/dir/read", []byte("newest"), 0o644))
	assert.Equal(t, "newest", read(b+"/dir/read"))
}

// changesFail tries to change things, and to read what nobody has read before, in a mount whose server is gone.
func changesFail(t *testing.T, m string, open *os.File) {
	t.Helper()
	var all sync.WaitGroup
	for name, f := range map[string]func() error{
		"read what is not known": func() error { _, err := os.ReadFile(m + "/dir/unread"); return err },
		"write":                  func() error { _, err := open.WriteAt([]byte("x"), 0); return err },
		"open to write":          func() error { return os.WriteFile(m+"/dir/read", nil, 0o644) },
		"create":                 func() error { return os.WriteFile(m+"/dir/fresh", nil, 0o644) },
		"chmod":                  func() error { return os.Chmod(m+"/dir/unread", 0o600) },
	} {
		all.Go(func() { assert.ErrorIs(t, f(), syscall.ETIMEDOUT, name) })
	}
	all.Wait()
}

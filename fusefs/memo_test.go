package fusefs

import (
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"
)

// While the server is away, what is remembered of a directory is given, and it is
// what our own last changes and those of others have left.
func TestDirectoriesAreRemembered(t *testing.T) {
	d := startDaemon(t, "CAGE_TEST_PATIENCE=1s")
	at := func(m string, sub ...string) string { return filepath.Join(append([]string{m, "top"}, sub...)...) }
	require.NoError(t, os.Mkdir(at(d.a), 0o755))
	changes := []struct {
		name   string
		change func() error
	}{
		{"nothing", func() error { return nil }},
		{"mode", func() error { return os.Chmod(at(d.a, "mode"), 0o700) }},
		{"xattr", func() error { return unix.Setxattr(at(d.a, "xattr"), "user.a", []byte("b"), 0) }},
		{"entry", func() error { return os.Mkdir(at(d.a, "entry", "sub"), 0o755) }},
		{"by others", func() error { return os.Chmod(at(d.b, "by others"), 0o711) }},
		{"moved", func() error { return os.Rename(at(d.a, "moved"), at(d.a, "moved here")) }},
	}
	for _, tt := range changes {
		require.NoError(t, os.Mkdir(at(d.a, tt.name), 0o755))
		name := at(d.a, tt.name)
		remember := func() (st unix.Stat_t) {
			for range 2 {
				_, err := os.ReadDir(name) // makes the kernel ask again at the next look
				require.NoError(t, err)
				require.NoError(t, unix.Stat(name, &st))
			}
			_, err := os.ReadDir(name)
			require.NoError(t, err)
			st.Atim = unix.Timespec{}
			return st
		}
		away := func() (st unix.Stat_t, err error) {
			d.ask("down a")
			defer d.ask("up a")
			began := time.Now()
			err = unix.Stat(name, &st)
			require.Less(t, time.Since(began), 3*time.Second, tt.name)
			st.Atim = unix.Timespec{}
			return st, err
		}
		before := remember()
		require.NoError(t, tt.change())
		if tt.name == "moved" {
			name += " here"
		}
		got, err := away()
		if tt.name == "nothing" {
			require.NoError(t, err)
			require.Equal(t, before, got)
		} else if err == nil { // from the answer to the change
			require.NotEqual(t, before, got, tt.name)
		}
		soon(t, "the server is back", func() bool { return unix.Stat(name, &got) == nil })
		after := remember()
		got, err = away()
		require.NoError(t, err, tt.name)
		require.Equal(t, after, got, tt.name)
		soon(t, "the server is back", func() bool { return unix.Stat(name, &got) == nil })
	}
}

package fusefs

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"
)

func TestUsersOf(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "m")
	require.NoError(t, os.Mkdir(dir, 0o755))
	require.NoError(t, os.Mkdir(dir+"2", 0o755))
	require.NoError(t, os.WriteFile(dir+"2/beside", nil, 0o644))
	beside, err := os.Open(dir + "2/beside")
	require.NoError(t, err)
	defer beside.Close()
	require.Empty(t, usersOf(dir))
	me := fmt.Sprintf("(%d)", os.Getpid())

	f, err := os.Create(filepath.Join(dir, "f"))
	require.NoError(t, err)
	require.Len(t, usersOf(dir), 1)
	require.Contains(t, usersOf(dir)[0], me, "an open file")
	require.NoError(t, f.Truncate(4096))
	m, err := unix.Mmap(int(f.Fd()), 0, 4096, unix.PROT_READ, unix.MAP_SHARED)
	require.NoError(t, err)
	require.NoError(t, f.Close())
	require.NoError(t, os.Remove(f.Name()))
	require.Len(t, usersOf(dir), 1, "a mapping of a removed file")
	require.NoError(t, unix.Munmap(m))
	require.Empty(t, usersOf(dir))

	cmd := exec.Command("sleep", "60")
	cmd.Dir = dir
	require.NoError(t, cmd.Start())
	defer cmd.Wait()
	defer cmd.Process.Kill()
	require.Equal(t, []string{fmt.Sprintf("sleep (%d)", cmd.Process.Pid)}, usersOf(dir), "a current directory")
}

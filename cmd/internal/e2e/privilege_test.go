package e2e

import (
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"syscall"
	"testing"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"
)

// TestServerHasNoQuotaPrivilege: the server works without CAP_SYS_RESOURCE, with
// which quotas would not hold, also where it is started with it, as in a user
// namespace of its own.
func TestServerHasNoQuotaPrivilege(t *testing.T) {
	t.Parallel()
	needRoot(t)
	l := newLab(t, "")
	s := l.newServer(l.mkdir("export"))
	s.attr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWUSER,
		UidMappings: []syscall.SysProcIDMap{{HostID: 0, Size: 1}}, GidMappings: []syscall.SysProcIDMap{{HostID: 0, Size: 1}}}
	s.start()
	tasks, err := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/status", s.cmd.Process.Pid))
	require.NoError(t, err)
	require.NotEmpty(t, tasks)
	for _, task := range tasks {
		b, err := os.ReadFile(task)
		if os.IsNotExist(err) {
			continue
		}
		require.NoError(t, err)
		require.Contains(t, string(b), "Name:\tcageserverd")
		for _, set := range []string{"CapInh", "CapPrm", "CapEff", "CapBnd"} {
			hex := regexp.MustCompile(`(?m)^` + set + `:\t([0-9a-f]+)$`).FindStringSubmatch(string(b))
			require.NotNil(t, hex)
			var caps uint64
			_, err := fmt.Sscanf(hex[1], "%x", &caps)
			require.NoError(t, err)
			require.Zero(t, caps>>unix.CAP_SYS_RESOURCE&1, "%s of %s", set, task)
			if set == "CapEff" {
				require.NotZero(t, caps>>unix.CAP_CHOWN&1, "the others it keeps")
			}
		}
	}
	cmdline, err := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", s.cmd.Process.Pid))
	require.NoError(t, err)
	require.Equal(t, s.args, strings.Split(strings.TrimSuffix(string(cmdline), "\x00"), "\x00")[1:])
	m := l.mount(s)
	require.NoError(t, os.WriteFile(filepath.Join(m, "f"), []byte("x"), 0o644))
	l.umount(m)
	s.stop()
}

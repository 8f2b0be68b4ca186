package fusefs

import (
	"bufio"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// dweller is a shell that has its current directory somewhere.
type dweller struct {
	t   *testing.T
	in  io.Writer
	out *bufio.Reader
}

// dwell starts one in a directory. It ends with the test.
func dwell(t *testing.T, dir string) *dweller {
	t.Helper()
	sh := exec.Command("sh", "-c", `while read -r line; do eval "$line" 2>&1; echo "=$?"; done`)
	sh.Dir = dir
	sh.Env = append(os.Environ(), "LC_ALL=C")
	in, err := sh.StdinPipe()
	require.NoError(t, err)
	out, err := sh.StdoutPipe()
	require.NoError(t, err)
	require.NoError(t, sh.Start())
	t.Cleanup(func() {
		in.Close()
		sh.Wait()
	})
	return &dweller{t, in, bufio.NewReader(out)}
}

// run is what a command prints, and its exit code.
func (d *dweller) run(command string) (answer string) {
	d.t.Helper()
	within(d.t, 30*time.Second, func() {
		fmt.Fprintln(d.in, command)
		for !strings.Contains(answer, "=") {
			line, err := d.out.ReadString('\n')
			if err != nil {
				answer += err.Error()
				return
			}
			answer += line
		}
	})
	return answer
}

// Who is in a directory that another mount moves or removes goes on as on a local file system, once somebody
// has looked at the names that are not there any more: the kernel answers getcwd(2) and ".." without asking.
func TestDirectoryGoneFromUnderAProcess(t *testing.T) {
	d := startDaemon(t)
	local := t.TempDir()
	require.NoError(t, os.Chmod(local, 0o755))
	require.NoError(t, os.Mkdir(filepath.Join(local, "sub"), 0o755)) // as prepareDaemon does
	for _, root := range []string{d.a, local} {
		require.NoError(t, os.MkdirAll(filepath.Join(root, "x", "y", "z"), 0o755))
		require.NoError(t, os.WriteFile(filepath.Join(root, "x", "y", "z", "f"), []byte("content\n"), 0o644))
	}
	here, there := dwell(t, filepath.Join(d.b, "x", "y", "z")), dwell(t, filepath.Join(local, "x", "y", "z"))
	same := func(when string, commands ...string) {
		t.Helper()
		for _, c := range commands {
			require.Equal(t, there.run(c), strings.ReplaceAll(here.run(c), d.b, local), "%s: %s", when, c)
		}
	}
	change := func(f func(root string) error) {
		t.Helper()
		require.NoError(t, f(d.a))
		require.NoError(t, f(local))
	}
	look := func(old, new string) {
		t.Helper()
		require.Equal(t, "nothing", seen(t, filepath.Join(d.b, old)))
		if new != "" {
			require.Equal(t, "drwxr-xr-x", seen(t, filepath.Join(d.b, new)))
		}
	}
	relative := []string{"ls", "cat f", "stat -c %F .", "ls -d ./."}
	absolute := []string{"/bin/pwd -P", "ls ..", "ls ../..", "ls -l /proc/self/cwd | sed 's/.*->//'"}
	same("at first", append(relative, absolute...)...)

	change(func(r string) error { return os.Rename(filepath.Join(r, "x", "y"), filepath.Join(r, "moved")) })
	same("a directory above is moved", relative...)
	look("x/y", "moved/z")
	same("that is known", append(relative, absolute...)...)

	change(func(r string) error { return os.Rename(filepath.Join(r, "moved", "z"), filepath.Join(r, "x", "z2")) })
	same("it is moved itself", relative...)
	look("moved/z", "x/z2")
	same("that is known", append(relative, absolute...)...)

	change(func(r string) error { return os.RemoveAll(filepath.Join(r, "x", "z2")) })
	gone := append(relative, "echo >new", "mkdir new", "ls ./new")
	same("it is removed", gone...)
	look("x/z2", "")
	same("that is known", append(gone, "/bin/pwd -P", "ls -l /proc/self/cwd | sed 's/.*->//'")...)
}

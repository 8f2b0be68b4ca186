package e2e

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"cagefs.dev/cage/remote/wire"
)

// openerEnv makes this program one that keeps files of a directory open.
const openerEnv = "CAGE_E2E_OPENER"

// opener does what its lines on stdin say and answers each with a line: "open
// FROM TO" opens the files of these numbers, "read" reads a byte of each,
// "close" closes all. It says "ok", or the name of the error.
func opener(dir string) int {
	open := map[int]int{}
	do := func(line string) error {
		var from, to int
		switch {
		case line == "read":
			for i, fd := range open {
				b := make([]byte, 1)
				if n, err := unix.Pread(fd, b, 0); err != nil {
					return err
				} else if n != 1 || b[0] != byte(i) {
					return fmt.Errorf("file %d has %d bytes, %q", i, n, b)
				}
			}
		case line == "close":
			for i, fd := range open {
				if err := unix.Close(fd); err != nil {
					return err
				}
				delete(open, i)
			}
		default:
			if _, err := fmt.Sscanf(line, "open %d %d", &from, &to); err != nil {
				return err
			}
			for i := from; i < to; i++ {
				fd, err := unix.Open(numbered(dir, i), unix.O_RDONLY|unix.O_CLOEXEC, 0)
				if err != nil {
					return err
				}
				open[i] = fd
			}
		}
		return nil
	}
	for lines := bufio.NewScanner(os.Stdin); lines.Scan(); {
		said := "ok"
		if err := do(lines.Text()); err != nil {
			said = err.Error()
			var errno unix.Errno
			if errors.As(err, &errno) {
				said = unix.ErrnoName(errno)
			}
		}
		fmt.Println(said)
	}
	return 0
}

func numbered(dir string, i int) string {
	return filepath.Join(dir, strconv.Itoa(i>>10), strconv.Itoa(i))
}

// TestOpenFiles: a mount can have as many files open as the protocol says, also
// over a restart of the server; the next one is refused, and nothing else.
func TestOpenFiles(t *testing.T) {
	t.Parallel()
	files := 4096
	if accept {
		files = wire.MaxOpens
	}
	l := newLab(t, "")
	export := l.mkdir("export")
	for i := range files + 1 {
		if i&1023 == 0 {
			require.NoError(t, os.Mkdir(filepath.Dir(numbered(export, i)), 0o755))
		}
		require.NoError(t, os.WriteFile(numbered(export, i), []byte{byte(i)}, 0o644))
	}
	s := l.newServer(export)
	s.start()
	m := l.mount(s)

	const procs = 4
	type process struct {
		in  io.WriteCloser
		out *bufio.Reader
	}
	var all [procs]process
	for i := range all {
		cmd := exec.Command("/proc/self/exe")
		cmd.Env = append(os.Environ(), openerEnv+"="+m)
		cmd.Stderr = os.Stderr
		in, err := cmd.StdinPipe()
		require.NoError(t, err)
		out, err := cmd.StdoutPipe()
		require.NoError(t, err)
		require.NoError(t, cmd.Start())
		t.Cleanup(func() { in.Close(); cmd.Wait() })
		all[i] = process{in, bufio.NewReader(out)}
	}
	say := func(i int, format string, args ...any) { fmt.Fprintf(all[i].in, format+"\n", args...) }
	answer := func(i int) string {
		line, err := all[i].out.ReadString('\n')
		require.NoError(t, err, "process %d", i)
		return strings.TrimSpace(line)
	}
	each := func(f func(i int)) {
		t.Helper()
		for i := range all {
			f(i)
		}
		for i := range all {
			require.Equal(t, "ok", answer(i), "process %d", i)
		}
	}
	share := files / procs
	each(func(i int) { say(i, "open %d %d", i*share, (i+1)*share) })
	each(func(i int) { say(i, "read") })
	bounded := func(what string) {
		fds, err := os.ReadDir(fmt.Sprintf("/proc/%d/fd", s.cmd.Process.Pid))
		require.NoError(t, err)
		require.Less(t, len(fds), 2048+200, "descriptors of the server %s", what) // handles of the journal, and connections
	}
	bounded("with all open")

	full := func() {
		if files < wire.MaxOpens {
			return
		}
		say(1, "open %d %d", files, files+1)
		require.Equal(t, "ENFILE", answer(1))
		say(1, "open %d %d", share, share+1) // is open already
		require.Equal(t, "ok", answer(1))
		require.NoError(t, os.Mkdir(m+"/new", 0o755))
		require.NoError(t, os.Remove(m+"/new"))
	}
	full()
	s.kill()
	s.start()
	each(func(i int) { say(i, "read") })
	bounded("after a restart")
	full()

	say(0, "close")
	require.Equal(t, "ok", answer(0))
	require.Eventually(t, func() bool {
		f, err := os.Open(numbered(m, files))
		if err != nil {
			require.ErrorIs(t, err, syscall.ENFILE)
			return false
		}
		return f.Close() == nil
	}, 10*time.Second, 10*time.Millisecond)
	say(0, "open 0 %d", share-1)
	require.Equal(t, "ok", answer(0))
	each(func(i int) { say(i, "read") })
	each(func(i int) { say(i, "close") })
	for _, p := range all {
		p.in.Close()
	}
	l.umount(m)
	s.stop()
}

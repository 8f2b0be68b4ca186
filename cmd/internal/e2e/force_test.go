package e2e

import (
	"bufio"
	"fmt"
	"io"
	"os"
	"os/exec"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"
)

// TestForcedUmount: `cagefs umount --force` ends a mount in use within 15 seconds
// whatever is wrong with it, says what is lost or kept, ends what is blocked in it, and
// leaves the place free.
func TestForcedUmount(t *testing.T) {
	needRoot(t)
	for _, tt := range []struct {
		name string
		do   func(l *lab, p *proxy, m string)
		code int
		text string // of its only line
	}{
		{"in use", func(*lab, *proxy, string) {}, 0, ""},
		{"the server is silent", func(l *lab, p *proxy, m string) { p.freeze() }, 9, "not delivered: 1 change, 8 bytes of data of file; what programs had written is kept for: cagejournal branch import "},
		{"its process is stopped", func(l *lab, p *proxy, m string) { suspend(l.t, l.mountPID(m)) }, 9, "did not answer"},
		{"its process is dead", func(l *lab, p *proxy, m string) {
			pid := l.mountPID(m)
			require.NoError(t, unix.Kill(pid, unix.SIGKILL))
			require.Eventually(t, func() bool { return unix.Kill(pid, 0) != nil }, 10*time.Second, time.Millisecond)
		}, 9, "had died"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			l := newLab(t, "")
			s := l.newServer(l.mkdir("export"))
			s.start()
			p := newProxy(t, s.addr)
			m := l.through(s, p, "--hard")
			require.NoError(t, os.WriteFile(m+"/file", make([]byte, 1<<20), 0o644))
			require.NoError(t, os.WriteFile(m+"/other", make([]byte, 1<<20), 0o644))
			l.run("cagefs", "sync", m)
			pid := l.mountPID(m)
			t.Cleanup(func() { unix.Kill(pid, unix.SIGKILL) })
			u := startHolder(t, m)
			tt.do(l, p, m)
			if tt.code == 0 || tt.name == "the server is silent" {
				u.do("write")
			}
			u.do("block")

			began := time.Now()
			_, err := l.try("cagefs", "umount", "--force", m)
			require.Less(t, time.Since(began), 15*time.Second)
			if tt.code == 0 {
				require.NoError(t, err)
				b, err := os.ReadFile(l.path("export", "file"))
				require.NoError(t, err)
				require.Equal(t, "accepted", string(b[:8]))
			} else {
				require.Equal(t, tt.code, exitCode(err), "%v", err)
				require.ErrorContains(t, err, tt.text)
			}
			if err := u.ended(); tt.code != 0 {
				require.Error(t, err)
			}
			require.NotContains(t, mountsBelow(l.dir), m)
			args, _ := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", pid))
			require.Empty(t, args, "its process is gone, or nobody's child any more")

			l.run("cagefs", "mount", s.addr+":/data", m)
			require.FileExists(t, m+"/other")
			l.umount(m)
		})
	}
}

// holder is a process that has a file of a mount open. The test itself must not: to
// start a program it would have to close the file, and the kernel waits for the
// mount's process then, which a signal does not end.
type holder struct {
	t   *testing.T
	cmd *exec.Cmd
	in  io.Writer
	out *bufio.Reader
}

func startHolder(t *testing.T, m string) *holder {
	u := &holder{t: t, cmd: exec.Command("sh", "-c", `exec 3<>"$1/file"; while read what; do
		case $what in write) printf accepted >&3;; esac
		echo "$what"
		case $what in block) break;; esac
	done
	cat "$1/other" "$1/none" >/dev/null
	exec cat <&3 >/dev/null`, "sh", m)}
	var err error
	u.in, err = u.cmd.StdinPipe()
	require.NoError(t, err)
	out, err := u.cmd.StdoutPipe()
	require.NoError(t, err)
	u.out = bufio.NewReader(out)
	require.NoError(t, u.cmd.Start())
	t.Cleanup(func() { u.cmd.Process.Kill() })
	u.do("hello")
	return u
}

// do makes it do something; it is done then, or, of "block", about to begin.
func (u *holder) do(what string) {
	u.t.Helper()
	_, err := fmt.Fprintln(u.in, what)
	require.NoError(u.t, err)
	line, err := u.out.ReadString('\n')
	require.NoError(u.t, err)
	require.Equal(u.t, what+"\n", line)
}

// ended waits until it has ended, soon.
func (u *holder) ended() error {
	u.t.Helper()
	ended := make(chan error, 1)
	go func() { ended <- u.cmd.Wait() }()
	select {
	case err := <-ended:
		return err
	case <-time.After(time.Second):
		u.t.Error("what was blocked in the mount is still there")
		return nil
	}
}

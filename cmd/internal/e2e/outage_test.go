package e2e

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

// soft is the patience of mounts whose server stays away.
func soft() time.Duration {
	if accept {
		return 30 * time.Second // what a mount has unless told otherwise
	}
	return 2 * time.Second
}

// through mounts a server's export through a proxy.
func (l *lab) through(s *server, p *proxy, flags ...string) string {
	l.t.Helper()
	by := *s
	by.addr = p.addr
	return l.mount(&by, flags...)
}

// state asks a mount for its status.
func (l *lab) state(point string) (st struct {
	PID     int    `json:"pid"`
	State   string `json:"state"`
	Ops     int    `json:"unapplied_operations"`
	Resumes int    `json:"resumes"`
}) {
	l.t.Helper()
	require.NoError(l.t, json.Unmarshal([]byte(l.run("cagefs", "status", "--json", point)), &st))
	return st
}

// copying starts a copy of a tree into a mount, and returns when it is well under way.
func copying(t testing.TB, src, dst string) (wait func()) {
	t.Helper()
	cmd := exec.Command("cp", "-a", src, dst)
	var errs bytes.Buffer
	cmd.Stderr = &errs
	require.NoError(t, cmd.Start())
	require.Eventually(t, func() bool {
		list, _ := os.ReadDir(filepath.Join(dst, filepath.Base(src)))
		return len(list) > 3
	}, 10*time.Second, 5*time.Millisecond)
	return func() {
		t.Helper()
		require.NoError(t, cmd.Wait(), "%s", &errs)
		require.Empty(t, errs.String())
	}
}

// TestCopyGoesOn breaks what a copy needs, and the copy must not notice but for
// the time that it takes.
func TestCopyGoesOn(t *testing.T) {
	needRoot(t)
	away := time.Second
	if accept {
		away = 20 * time.Second
	}
	pause := func(d time.Duration) { time.Sleep(d) }
	tests := []struct {
		name    string
		disturb func(t *testing.T, s *server, p *proxy)
	}{
		{"cut again and again", func(t *testing.T, _ *server, p *proxy) {
			for range 8 {
				p.cut()
				pause(150 * time.Millisecond)
			}
		}},
		{"refused for a while", func(t *testing.T, _ *server, p *proxy) {
			p.refuse()
			pause(away)
			p.accept(t)
		}},
		{"silent for a while", func(t *testing.T, _ *server, p *proxy) {
			p.freeze()
			pause(away)
			p.thaw()
		}},
		{"silent, then cut", func(t *testing.T, _ *server, p *proxy) {
			p.freeze()
			pause(away)
			p.cut()
			p.thaw()
		}},
		{"slow", func(t *testing.T, _ *server, p *proxy) {
			p.slow(20 * time.Millisecond)
			pause(away)
			p.cut()
			pause(away)
			p.slow(0)
		}},
		{"server restarted", func(t *testing.T, s *server, _ *proxy) {
			s.stop()
			pause(away)
			s.start()
		}},
		{"server killed", func(t *testing.T, s *server, _ *proxy) {
			for range 3 {
				s.kill()
				pause(away / 2)
				s.start()
				pause(away / 3) // long enough to be found again
			}
		}},
	}
	src := filepath.Join(goSource(t), "net")
	want := survey(t, src)
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			l := newLab(t, "")
			export := l.mkdir("export")
			s := l.newServer(export)
			s.start()
			p := newProxy(t, s.addr)
			m := l.through(s, p)
			wait := copying(t, src, m)
			tt.disturb(t, s, p)
			wait()
			requireSame(t, want, m+"/net")
			l.run("cagefs", "sync", m)
			requireSame(t, want, export+"/net")
			l.umount(m)
			l.run("cagejournal", "verify", "--full", s.addr+":/data")
		})
	}
}

// TestServerStaysAway: who asks gets an error after the patience of the mount,
// df and ls of what is known do not even wait, and the mount can be left.
func TestServerStaysAway(t *testing.T) {
	needRoot(t)
	outages := map[string]struct{ begin, end func(*server, *proxy) }{
		"killed":  {func(s *server, p *proxy) { s.kill() }, func(s *server, p *proxy) { s.start() }},
		"silent":  {func(s *server, p *proxy) { p.freeze() }, func(s *server, p *proxy) { p.thaw() }},
		"refused": {func(s *server, p *proxy) { p.refuse() }, func(s *server, p *proxy) { p.accept(s.lab.t) }},
	}
	for name, outage := range outages {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			l := newLab(t, "")
			s := l.newServer(l.mkdir("export"))
			s.start()
			p := newProxy(t, s.addr)
			m := l.through(s, p, "--soft", soft().String())
			require.NoError(t, os.WriteFile(m+"/old", make([]byte, 1<<20), 0o644))
			l.run("cagefs", "sync", m)
			idle := l.through(s, p, "--soft", soft().String())
			open, err := os.OpenFile(m+"/old", os.O_RDWR, 0)
			require.NoError(t, err)
			defer open.Close()

			writeAway(t, func() {
				_, err := open.WriteAt([]byte("--------"), 5000)
				require.NoError(t, err)
				l.run("cagefs", "sync", m)
			}, func() { outage.begin(s, p) }, func() { outage.end(s, p) }, func() error {
				_, err := open.WriteAt([]byte("accepted"), 5000)
				return err
			})
			commands := [][]string{
				{"df", m}, {"cat", m + "/other"}, {"ls", "-l", m + "/dir"}, {"mkdir", m + "/new"},
				{"cp", m + "/old", "/dev/null"}, {"sync", m + "/old"}, {"touch", m + "/old"},
			}
			type outcome struct {
				args []string
				took time.Duration
				out  string
				err  error
			}
			results := make(chan outcome, len(commands))
			for _, args := range commands {
				go func() {
					began := time.Now()
					out, err := exec.Command(args[0], args[1:]...).CombinedOutput()
					results <- outcome{args, time.Since(began), string(out), err}
				}()
			}
			for range commands {
				select {
				case r := <-results:
					if r.args[0] == "df" {
						assert.NoError(t, r.err, r.out)
						assert.Less(t, r.took, 4*time.Second, "df waits for nobody")
						continue
					}
					assert.Error(t, r.err, "%s", r.args)
					assert.Contains(t, r.out, "Connection timed out", "%s", r.args)
					assert.Less(t, r.took, 4*soft()+2*time.Second, "%s", r.args) // some ask several times
				case <-time.After(6*soft() + 5*time.Second):
					require.Fail(t, "a command hangs")
				}
			}
			require.NotZero(t, l.state(m).Ops, "what was accepted waits for the server")
			require.NoError(t, open.Close())

			// A mount that owes nothing goes; one that does says what.
			l.umount(idle)
			_, err = l.try("cagefs", "umount", m)
			require.ErrorContains(t, err, "not delivered")
			require.Equal(t, 10, exitCode(err), "%v", err)
			require.Contains(t, mountsBelow(l.dir), m)

			// The server comes back, and so does what waited for it.
			outage.end(s, p)
			require.Eventually(t, func() bool { return l.state(m).Ops == 0 }, 20*time.Second, 50*time.Millisecond)
			l.umount(m)
			b, err := os.ReadFile(l.path("export", "old"))
			require.NoError(t, err)
			require.Equal(t, "accepted", string(b[5000:5008]))
			if name != "silent" { // what was not even sent when its program was told that it failed
				require.NoDirExists(t, l.path("export", "new"))
			}
		})
	}
}

// exitCode is that of a command that has failed.
func exitCode(err error) int {
	var e *exec.ExitError
	if errors.As(err, &e) {
		return e.ExitCode()
	}
	return -1
}

// TestBlockedProcessesDie: with a server that is silent for ever and a mount that
// waits for ever, whatever hangs in the mount can be killed at once.
func TestBlockedProcessesDie(t *testing.T) {
	needRoot(t)
	l := newLab(t, "")
	s := l.newServer(l.mkdir("export"))
	s.start()
	p := newProxy(t, s.addr)
	m := l.through(s, p, "--hard")
	for _, d := range []string{"dir", "dir/sub", "empty"} {
		require.NoError(t, os.Mkdir(filepath.Join(m, d), 0o755))
	}
	for _, f := range []string{"file", "dir/file", "log"} {
		require.NoError(t, os.WriteFile(filepath.Join(m, f), make([]byte, 300<<10), 0o644))
	}
	l.run("cagefs", "sync", m)
	l.umount(m)
	m = l.through(s, p, "--hard") // one that knows nothing yet
	open, err := os.OpenFile(m+"/log", os.O_WRONLY, 0)
	require.NoError(t, err)
	_, err = open.WriteString("synced") // the first write of a file asks whether it has capabilities to lose
	require.NoError(t, err)
	l.run("cagefs", "sync", m)
	p.freeze()
	_, err = open.WriteString("accepted")
	require.NoError(t, err)
	require.NoError(t, open.Close())

	commands := [][]string{
		{"cat", m + "/file"}, {"ls", "-l", m}, {"ls", m + "/dir"}, {"find", m}, {"stat", m + "/file"}, {"touch", m + "/file"},
		{"cp", m + "/file", m + "/copy"}, {"cp", "-a", goSource(t) + "/net", m}, {"mkdir", m + "/x"}, {"rmdir", m + "/empty"},
		{"rm", m + "/dir/file"}, {"mv", m + "/file", m + "/file2"}, {"ln", "-s", "a", m + "/b"}, {"sync", m + "/log"},
		{"dd", "if=/dev/zero", "of=" + m + "/log", "bs=1M", "count=200", "status=none"}, {"truncate", "-s", "5", m + "/file"},
		{"sh", "-c", "echo x >>" + m + "/log"}, {"chmod", "600", m + "/file"}, {"df", m}, {"flock", m + "/log", "true"},
		{"tar", "cf", "/dev/null", m}, {"grep", "-r", "x", m}, {"sh", "-c", "cd " + m + "/dir && ls"}, {"mknod", m + "/fifo", "p"},
	}
	// All at once: who waits for a name that another looks up, or for its directory,
	// waits in the kernel, and goes with the other.
	blocked := make(map[*exec.Cmd]chan struct{})
	for _, args := range commands {
		cmd := exec.Command(args[0], args[1:]...)
		require.NoError(t, cmd.Start())
		ended := make(chan struct{})
		go func() { cmd.Wait(); close(ended) }()
		blocked[cmd] = ended
	}
	umount := exec.Command(filepath.Join(l.bin, "cagefs"), "umount", m)
	umount.Env = l.env
	var errs bytes.Buffer
	umount.Stderr = &errs
	require.NoError(t, umount.Start())

	time.Sleep(time.Second) // in which nothing may happen
	for cmd, ended := range blocked {
		if cmd.Args[0] == "df" {
			await(t, ended, 5*time.Second, cmd)
			require.True(t, cmd.ProcessState.Success(), "df waits for nobody")
			delete(blocked, cmd)
			continue
		}
		select {
		case <-ended:
			assert.Fail(t, "it ended although nobody answered", "%s: %v", cmd.Args, cmd.ProcessState)
		default:
		}
	}
	require.NoError(t, umount.Process.Signal(os.Interrupt))
	require.Equal(t, 9, exitCode(umount.Wait()), "%s", &errs)
	require.Contains(t, mountsBelow(l.dir), m)

	for cmd := range blocked {
		require.NoError(t, cmd.Process.Kill())
	}
	for cmd, ended := range blocked {
		await(t, ended, time.Second, cmd)
		require.Equal(t, syscall.SIGKILL, cmd.ProcessState.Sys().(syscall.WaitStatus).Signal(), "%s", cmd.Args)
	}
	p.thaw()
	l.umount(m)
}

// await fails the test if a process does not end in time.
func await(t testing.TB, ended chan struct{}, within time.Duration, cmd *exec.Cmd) {
	t.Helper()
	select {
	case <-ended:
	case <-time.After(within):
		stack, _ := os.ReadFile(fmt.Sprintf("/proc/%d/stack", cmd.Process.Pid))
		require.Fail(t, "it is still there", "%s after %v:\n%s", cmd.Args, within, stack)
	}
}

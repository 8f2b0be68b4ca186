package e2e

import (
	"bufio"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// local is a process of the server's machine that changes the export by itself:
// a shell that lives as long as the test.
type local struct {
	t   testing.TB
	in  io.WriteCloser
	out *bufio.Reader
	pid int
}

func startLocal(l *lab, dir string) *local {
	t := l.t
	cmd := exec.Command("bash")
	cmd.Dir = dir
	cmd.Env = append(slices.Clone(l.env), "HOME="+l.path("home"))
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: l.user}
	in, err := cmd.StdinPipe()
	require.NoError(t, err)
	out, err := cmd.StdoutPipe()
	require.NoError(t, err)
	cmd.Stderr = os.Stderr
	require.NoError(t, cmd.Start())
	t.Cleanup(func() {
		in.Close()
		require.NoError(t, cmd.Wait())
	})
	return &local{t, in, bufio.NewReader(out), cmd.Process.Pid}
}

// shared is an export with a server, a mount, and a process beside the server
// that changes the export. Set at construction.
type shared struct {
	*lab   // of who mounts
	s      *server
	export string
	m      string // the mount
	sh     *local
	names  bool // the server knows who changed what
}

// bothWays runs a test with a server of root, which fanotify tells of changes, and
// one of an ordinary user, which inotify tells.
func bothWays(t *testing.T, test func(t *testing.T, x *shared)) {
	t.Run("root", func(t *testing.T) {
		needRoot(t)
		test(t, share(newLab(t, "")))
	})
	t.Run("user", func(t *testing.T) { test(t, share(newUserLab(t))) })
}

func share(l *lab) *shared {
	x := &shared{lab: l, export: l.mkdir("export"), names: l.user == nil && os.Getuid() == 0}
	l.mkdir("home")
	x.s = l.newServer(x.export)
	x.s.start()
	x.sh = startLocal(l, x.export)
	if l.user != nil { // whose mount nobody else may use, root neither
		x.lab = l.elsewhere("client")
		x.lab.user = nil
		x.lab.run("cagefs", "join", x.s.invite("client"))
	}
	x.m = x.lab.mount(x.s)
	x.watched()
	return x
}

// watched waits until the server watches all of its export.
func (x *shared) watched() {
	x.t.Helper()
	require.Eventually(x.t, func() bool {
		return strings.Contains(readFile(x.t, x.s.log), "watching for changes by programs on this machine")
	}, 10*time.Second, time.Millisecond)
}

// locals lists what processes of the server did, according to the log.
func (x *shared) locals() (out []logEntry) {
	x.t.Helper()
	for _, e := range x.history(x.m) {
		if e.Client == "local" {
			out = append(out, e)
		}
	}
	return out
}

// do runs a line of shell and returns when it is done.
func (l *local) do(format string, args ...any) {
	l.t.Helper()
	_, err := fmt.Fprintf(l.in, format+"; echo done $?\n", args...)
	require.NoError(l.t, err)
	line, err := l.out.ReadString('\n')
	require.NoError(l.t, err)
	require.Equal(l.t, "done 0\n", line, format, args)
}

// sooner waits until a condition holds and fails after a second.
func sooner(t testing.TB, what string, ok func() bool) time.Duration {
	t.Helper()
	began := time.Now()
	for !ok() {
		if d := time.Since(began); d > time.Second {
			t.Fatalf("not within a second: %s", what)
		}
		time.Sleep(2 * time.Millisecond)
	}
	return time.Since(began)
}

// logEntry is what the log shows of a change.
type logEntry struct {
	LSN     uint64
	Kind    string
	Path    string
	Client  string
	PID     int
	Command string
	Detail  string
}

func (l *lab) history(dir string) (out []logEntry) {
	l.t.Helper()
	for line := range strings.Lines(l.run("cagejournal", "log", "--json", dir)) {
		var e logEntry
		require.NoError(l.t, json.Unmarshal([]byte(line), &e), line)
		out = append(out, e)
	}
	return out
}

func content(path string) string {
	b, err := os.ReadFile(path)
	if err != nil {
		return err.Error()
	}
	return string(b)
}

// TestLocalChanges: what processes of the server write, append, rename and remove
// is seen by a mount within a second each, while the mount writes and renames in
// the same directory; nothing is lost or undone, and the log says who did it.
func TestLocalChanges(t *testing.T) { bothWays(t, testLocalChanges) }

func testLocalChanges(t *testing.T, x *shared) {
	m, sh := x.m, x.sh
	rounds := 14 // of three and a half changes
	if accept {
		rounds = 300
	}
	sh.do("mkdir d; printf start > d/log")
	sooner(t, "the first file", func() bool { return content(m+"/d/log") == "start" })
	follow := startTail(t, m+"/d/log")

	stop, ended := make(chan struct{}), make(chan error, 1)
	go func() { ended <- busyMount(m+"/d", stop) }()
	var slowest time.Duration
	log := "start"
	for i := range rounds {
		f := fmt.Sprintf("d/f%d", i)
		see := func(what string, ok func() bool) { slowest = max(slowest, sooner(t, what+" "+f, ok)) }
		sh.do("printf %d > %s", i, f)
		see("write", func() bool { return content(filepath.Join(m, f)) == fmt.Sprint(i) })
		sh.do("printf ' line %d' >> d/log", i)
		log += fmt.Sprintf(" line %d", i)
		see("append", func() bool { return content(m+"/d/log") == log })
		sh.do("mv %s d/g%d", f, i)
		see("rename", func() bool {
			return content(fmt.Sprintf("%s/d/g%d", m, i)) == fmt.Sprint(i) && !exists(filepath.Join(m, f))
		})
		if i%2 == 0 {
			sh.do("rm d/g%d", i)
			see("remove", func() bool { return !exists(fmt.Sprintf("%s/d/g%d", m, i)) })
		}
	}
	close(stop)
	require.NoError(t, <-ended)
	t.Logf("%d changes, the slowest was seen after %v", rounds*7/2, slowest)
	follow.wait(log)
	x.run("cagefs", "sync", m)
	for i := 1; i < rounds; i += 2 {
		require.Equal(t, fmt.Sprint(i), content(fmt.Sprintf("%s/d/g%d", x.export, i)))
	}
	require.Equal(t, log, content(x.export+"/d/log"))
	require.Equal(t, content(m+"/d/mine"), content(x.export+"/d/mine"))
	x.attributed(rounds)
}

// attributed checks what the log says of the rounds of testLocalChanges.
func (x *shared) attributed(rounds int) {
	t := x.t
	t.Helper()
	did := map[string]map[string]bool{"": {}} // by command: kind and path
	for _, e := range x.locals() {
		require.NotRegexp(t, `^d/(mine|[mn]\d)$`, e.Path, "%v: that was the mount", e)
		if x.names && e.PID == 0 {
			continue
		}
		if did[e.Command] == nil {
			did[e.Command] = map[string]bool{}
		}
		did[e.Command][e.Kind+" "+e.Path] = true
	}
	shell := ""
	if x.names {
		shell = "bash"
	}
	for i := range rounds {
		require.Contains(t, did[shell], fmt.Sprintf("make d/f%d", i))
	}
	require.Contains(t, did[shell], "local d/log")
	known := 0                       // a process that lives for a millisecond may be gone before it can be looked at
	for i := 1; i < rounds; i += 2 { // of the others the removal may have come in the same moment
		f := fmt.Sprintf("rename d/f%d", i)
		if did["mv"][f] {
			known++
		} else {
			require.Contains(t, did[""], f, "at least its number")
		}
	}
	t.Logf("%d of %d mv were caught alive", known, rounds/2)
}

func exists(path string) bool {
	_, err := os.Lstat(path)
	return err == nil
}

// busyMount writes and renames in a mounted directory until stop is closed.
func busyMount(dir string, stop chan struct{}) error {
	f, err := os.Create(dir + "/mine")
	if err != nil {
		return err
	}
	defer f.Close()
	for i := 0; ; i++ {
		select {
		case <-stop:
			return f.Sync()
		default:
		}
		line := fmt.Sprintf("mine %d\n", i)
		if _, err := f.WriteString(line); err != nil {
			return err
		}
		a, b := fmt.Sprintf("%s/m%d", dir, i%7), fmt.Sprintf("%s/n%d", dir, i%5)
		if err := os.WriteFile(a, []byte(line), 0o644); err != nil {
			return err
		}
		if err := os.Rename(a, b); err != nil {
			return err
		}
		if got := content(b); got != line {
			return fmt.Errorf("%s has %q, not %q", b, got, line)
		}
		time.Sleep(3 * time.Millisecond) // a program, not a storm
	}
}

// tailer is `tail -f` on a file.
type tailer struct {
	t   testing.TB
	out chan string
}

func startTail(t testing.TB, path string) *tailer {
	cmd := exec.Command("tail", "-c", "+1", "-f", path)
	cmd.Stderr = os.Stderr
	out, err := cmd.StdoutPipe()
	require.NoError(t, err)
	require.NoError(t, cmd.Start())
	f := &tailer{t, make(chan string, 1024)}
	go func() {
		buf := make([]byte, 4096)
		for {
			n, err := out.Read(buf)
			if err != nil {
				close(f.out)
				return
			}
			f.out <- string(buf[:n])
		}
	}()
	t.Cleanup(func() {
		cmd.Process.Signal(syscall.SIGTERM)
		cmd.Wait()
	})
	return f
}

// wait waits until tail has printed all of a text; tail itself looks once a second.
func (f *tailer) wait(want string) {
	f.t.Helper()
	got, late := "", time.After(5*time.Second)
	for got != want {
		select {
		case s := <-f.out:
			got += s
			require.True(f.t, strings.HasPrefix(want, got), "tail printed %q", got)
		case <-late:
			f.t.Fatalf("tail -f printed %q, not %q", got, want)
		}
	}
}

// TestLocalWhileDown: the server is killed; what local processes then do to files
// that clients had just changed stays, and the next start records it as a gap.
func TestLocalWhileDown(t *testing.T) {
	t.Parallel()
	l := newLab(t, "")
	export := l.mkdir("export")
	s := l.newServer(export)
	s.start()
	m := l.mount(s)
	for _, name := range []string{"written", "removed", "renamed"} {
		require.NoError(t, os.WriteFile(filepath.Join(m, name), []byte("a client's"), 0o644))
	}
	l.run("cagefs", "sync", m)
	s.kill()
	died := time.Now()
	sh := startLocal(l, export)
	sh.do("until [ $(date +%%s) -gt %d ]; do sleep 0.1; done", died.Unix()+3) // recovery cannot tell what happened in the first two seconds
	sh.do("printf local > written; rm removed; mv renamed other")
	s.start()
	find := func() (kinds []string) {
		for _, e := range l.history(m) {
			if e.Client == "local" {
				kinds = append(kinds, e.Kind+" "+e.Path)
			}
		}
		return kinds
	}
	require.Eventually(t, func() bool { return len(find()) >= 4 }, 10*time.Second, 100*time.Millisecond)
	require.ElementsMatch(t, []string{"gap ", "local written", "remove removed", "rename renamed"}, find())
	require.Equal(t, "local", content(m+"/written"))
	require.Equal(t, "local", content(export+"/written"))
	require.Equal(t, "a client's", content(m+"/other"))
	require.False(t, exists(m+"/removed"))
	l.umount(m)
	s.stop()
	require.NoError(t, l.verify(export))
}

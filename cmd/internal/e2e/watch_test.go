package e2e

import (
	"bufio"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"
)

// printer is a command that prints changes until Ctrl-C.
type printer struct {
	t     *testing.T
	cmd   *exec.Cmd
	lines chan string
}

func (l *lab) printer(prog string, args ...string) *printer {
	w := &printer{t: l.t.(*testing.T), cmd: l.command(prog, args...), lines: make(chan string, 1000)}
	out, err := w.cmd.StdoutPipe()
	require.NoError(l.t, err)
	w.cmd.Stderr = os.Stderr
	require.NoError(l.t, w.cmd.Start())
	go func() {
		defer close(w.lines)
		for s := bufio.NewScanner(out); s.Scan(); {
			w.lines <- s.Text()
		}
	}()
	l.t.Cleanup(func() { w.cmd.Process.Kill() })
	return w
}

// next is what it prints next, as kind and path.
func (w *printer) next() (e logEntry) {
	w.t.Helper()
	select {
	case line := <-w.lines:
		require.NoError(w.t, json.Unmarshal([]byte(line), &e), line)
	case <-time.After(20 * time.Second):
		w.t.Fatal("nothing is printed")
	}
	return e
}

// interrupt is Ctrl-C: the end, in order, with nothing left to print.
func (w *printer) interrupt() {
	w.t.Helper()
	require.NoError(w.t, w.cmd.Process.Signal(unix.SIGINT))
	for line := range w.lines {
		w.t.Errorf("not expected: %s", line)
	}
	require.NoError(w.t, w.cmd.Wait())
}

// TestWatch: `cagefs watch` prints what others do below a path, and `cagejournal log
// --follow` what everybody does, once each and in order, over a restart of the server.
func TestWatch(t *testing.T) {
	t.Parallel()
	l := newLab(t, "")
	export := l.mkdir("export")
	require.NoError(t, os.MkdirAll(filepath.Join(export, "in/box"), 0o755))
	s := l.newServer(export)
	s.start()
	own, other := l.mount(s), l.mount(s)
	write := func(path string) { require.NoError(t, os.WriteFile(path, []byte("x"), 0o644)) }
	write(own + "/in/before")
	l.run("cagefs", "sync", own)

	watch := l.printer("cagefs", "watch", own+"/in")
	follow := l.printer("cagejournal", "log", "-f", "--json", "-n", "1", own+"/in")
	require.Equal(t, "in/before", follow.next().Path, "the last one from before")
	mkdir := func(path string) { require.NoError(t, os.Mkdir(path, 0o755)) }
	for n, ready := 0, false; !ready; n++ { // the other says nothing at its beginning
		mkdir(fmt.Sprintf("%s/in/%d", other, n))
		select {
		case <-watch.lines:
			ready = true
		case <-time.After(100 * time.Millisecond):
		}
	}
	mkdir(other + "/in/now")
	for _, w := range []*printer{watch, follow} {
		for w.next().Path != "in/now" {
		}
	}

	write(own + "/in/own")
	write(other + "/elsewhere")
	write(export + "/in/local")
	require.Equal(t, logEntry{Kind: "make", Path: "in/own"}, short(follow.next()))
	require.Equal(t, logEntry{Kind: "write", Path: "in/own"}, short(follow.next()))
	for _, w := range []*printer{watch, follow} {
		e := w.next()
		require.Equal(t, logEntry{Kind: "make", Path: "in/local"}, short(e))
		require.Equal(t, "local", e.Client)
	}
	s.kill()
	s.start()
	require.NoError(t, os.Rename(other+"/in/local", other+"/in/box/renamed"))
	for _, w := range []*printer{watch, follow} {
		require.Equal(t, logEntry{Kind: "rename", Path: "in/local"}, short(w.next()))
		w.interrupt()
	}
	l.expect(failure{args: []string{"cagejournal", "log", "-f", "--before", "@5", own}, code: 2, text: "exclude each other"})
	l.expect(failure{args: []string{"cagefs", "watch", l.dir}, code: 3, text: "not in a mount"})
}

func short(e logEntry) logEntry { return logEntry{Kind: e.Kind, Path: e.Path} }

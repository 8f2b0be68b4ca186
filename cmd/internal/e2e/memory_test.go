package e2e

import (
	"bufio"
	"bytes"
	"encoding/binary"
	"encoding/json"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// watcher samples the resident memory of a server and a mount every second.
type watcher struct {
	t    testing.TB
	stop chan struct{}
	done sync.WaitGroup

	mu   sync.Mutex
	pids [2]int   // guarded by mu
	peak [2]int64 // since the last row; guarded by mu
	rows []row    // guarded by mu
}

// row is resident memory in KiB at a step: the most since the row before, of server and mount.
type row struct {
	step string
	peak [2]int64
}

func watch(t testing.TB, server, mount int) *watcher {
	w := &watcher{t: t, pids: [2]int{server, mount}, stop: make(chan struct{})}
	w.done.Go(func() {
		tick := time.NewTicker(time.Second)
		defer tick.Stop()
		for {
			select {
			case <-tick.C:
				w.mu.Lock()
				w.sampleLocked()
				w.mu.Unlock()
			case <-w.stop:
				return
			}
		}
	})
	return w
}

func (w *watcher) sampleLocked() {
	for i, pid := range w.pids {
		w.peak[i] = max(w.peak[i], resident(pid))
	}
}

// follows makes another process the server.
func (w *watcher) follows(server int) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.pids[0] = server
}

// row ends a step.
func (w *watcher) row(format string, args ...any) row {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.sampleLocked()
	r := row{fmt.Sprintf(format, args...), w.peak}
	w.peak = [2]int64{}
	w.rows = append(w.rows, r)
	if accept {
		fmt.Println(time.Now().Format(time.TimeOnly), r.step, r.peak[0]>>10, r.peak[1]>>10)
	}
	return r
}

// end stops the sampling and prints the table.
func (w *watcher) end() {
	close(w.stop)
	w.done.Wait()
	var b strings.Builder
	b.WriteString("\n| step | cageserverd MiB | cagefs MiB |\n| --- | ---: | ---: |\n")
	for _, r := range w.rows {
		fmt.Fprintf(&b, "| %s | %d | %d |\n", r.step, r.peak[0]>>10, r.peak[1]>>10)
	}
	w.t.Log(b.String())
}

// resident is a process's resident memory in KiB, 0 when it is gone.
func resident(pid int) (kib int64) {
	b, _ := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if _, rest, ok := bytes.Cut(b, []byte("VmRSS:")); ok {
		_, _ = fmt.Sscan(string(rest), &kib)
	}
	return kib
}

// mountPID is the process of a mount.
func (l *lab) mountPID(point string) int {
	var s struct {
		PID int `json:"pid"`
	}
	require.NoError(l.t, json.Unmarshal([]byte(l.run("cagefs", "status", point, "--json")), &s))
	return s.PID
}

// manyFiles makes small files, a thousand in each directory.
func manyFiles(t testing.TB, dir string, n int) {
	for i := range n {
		d := filepath.Join(dir, fmt.Sprintf("d%04d", i/1000))
		if i%1000 == 0 {
			require.NoError(t, os.Mkdir(d, 0o755))
		}
		require.NoError(t, os.WriteFile(filepath.Join(d, fmt.Sprintf("f%06d", i)), nil, 0o644))
	}
}

// walk looks at every file below a directory, as find(1) does that prints attributes.
func (w *watcher) walk(what, dir string, n int) {
	cmd := exec.Command("find", dir, "-type", "f", "-printf", "%i %s\n")
	out, err := cmd.StdoutPipe()
	require.NoError(w.t, err)
	require.NoError(w.t, cmd.Start())
	lines := bufio.NewScanner(out)
	got := 0
	for lines.Scan() {
		if got++; got%(n/parts) == 0 {
			w.bounded(w.row("%s, %d files", what, got))
		}
	}
	require.NoError(w.t, cmd.Wait())
	require.Equal(w.t, n, got)
}

// pattern is an endless stream of bytes that are different everywhere.
type pattern struct {
	block [1 << 20]byte
	n     uint64
	rest  []byte
}

func newPattern(seed uint64) *pattern {
	p := &pattern{}
	rng := rand.New(rand.NewPCG(seed, 0))
	for i := 0; i < len(p.block); i += 8 {
		binary.LittleEndian.PutUint64(p.block[i:], rng.Uint64())
	}
	return p
}

func (p *pattern) Read(b []byte) (int, error) {
	if len(p.rest) == 0 {
		p.n++
		for i := 0; i < len(p.block); i += 4096 {
			binary.LittleEndian.PutUint64(p.block[i:], p.n)
		}
		p.rest = p.block[:]
	}
	n := copy(b, p.rest)
	p.rest = p.rest[n:]
	return n, nil
}

// TestMemory: neither daemon's memory grows with the files that were looked at
// or the bytes that were copied, once caches and the collector's limit are filled.
// docs/bench/memory.md has the figures of the long run.
func TestMemory(t *testing.T) {
	files, size := 5_000, int64(64)<<20
	if accept {
		files, size = 1_000_000, 20<<30
	}
	l := newLab(t, "")
	export := l.mkdir("export")
	manyFiles(t, l.mkdir("export/many"), files)
	s := l.newServer(export)
	s.start()
	mnt := l.mount(s)
	many := filepath.Join(mnt, "many")
	w := watch(t, s.cmd.Process.Pid, l.mountPID(mnt))
	defer w.end()
	w.row("mounted")
	walks := []string{"first", "second", "third", "fourth"}
	if !accept {
		walks = walks[:2]
	}
	for _, walk := range walks {
		w.walk(walk+" walk", many, files)
	}
	w.restart("stopped", s, s.stop)
	w.walk("walk after it", many, files)
	w.copy(mnt, size)
	w.restart("killed", s, s.kill)
	w.walk("walk after it", many, files)
	l.umount(mnt)
}

// restart ends the server in some way and starts it again.
func (w *watcher) restart(how string, s *server, end func()) {
	end()
	begin := time.Now()
	s.start()
	w.follows(s.cmd.Process.Pid)
	w.bounded(w.row("server %s; ready %.1f s after its start", how, time.Since(begin).Seconds()))
}

// parts are the steps of a walk or a copy.
const parts = 5

// Bounds of resident memory, in KiB: the server's budget (--memory), and the
// mount's (its memory limit as stats shows it: pages, writes, and 128 MiB), with
// an eighth more, for the limit is the collector's and not that of the process.
const (
	serverBound = (256 << 10) * 9 / 8
	mountBound  = (256 + 64 + 128) << 10 * 9 / 8
)

// bounded checks a row.
func (w *watcher) bounded(r row) {
	require.NotZero(w.t, min(r.peak[0], r.peak[1]), "a process is gone")
	require.Less(w.t, r.peak[0], int64(serverBound), "the server, %s", r.step)
	require.Less(w.t, r.peak[1], int64(mountBound), "the mount, %s", r.step)
}

// copy writes files of size together, then reads them back.
func (w *watcher) copy(mnt string, size int64) {
	for i := range int64(parts) {
		f, err := os.Create(filepath.Join(mnt, fmt.Sprint("big", i)))
		require.NoError(w.t, err)
		_, err = io.CopyN(f, newPattern(uint64(i)), size/parts)
		require.NoError(w.t, err)
		require.NoError(w.t, f.Close())
		w.bounded(w.row("copied in, %d MiB", (i+1)*size/parts>>20))
	}
	for i := range int64(parts) {
		f, err := os.Open(filepath.Join(mnt, fmt.Sprint("big", i)))
		require.NoError(w.t, err)
		want, got, b := newPattern(uint64(i)), make([]byte, 1<<20), make([]byte, 1<<20)
		for range size / parts >> 20 {
			_, err := io.ReadFull(f, got)
			require.NoError(w.t, err)
			io.ReadFull(want, b)
			require.True(w.t, bytes.Equal(got, b))
		}
		require.NoError(w.t, f.Close())
		w.bounded(w.row("read back, %d MiB", (i+1)*size/parts>>20))
	}
}

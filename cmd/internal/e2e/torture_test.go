package e2e

import (
	"bytes"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"
)

// tortureTerm is the term of leases, and tortureAway how long a mount is cut off that is to lose its.
const (
	tortureTerm = 3 * time.Second
	tortureAway = tortureTerm + 1500*time.Millisecond
)

// TestTorture has workers on three mounts change what is their own and what they share, while connections
// are cut, slowed down and silenced, mounts are stopped, the server is killed and started again, and
// processes that wait are killed. At the end the tree is what the workers know, everything that all
// share was done once or, where it failed, at most once, nothing that was synced is missing, and nothing is left over.
// CAGE_TORTURE_TIME says how long, CAGE_SEED with which faults.
func TestTorture(t *testing.T) {
	needRoot(t)
	long := 3 * time.Second
	if accept {
		long = 5 * time.Minute
	}
	if s := os.Getenv("CAGE_TORTURE_TIME"); s != "" {
		var err error
		long, err = time.ParseDuration(s)
		require.NoError(t, err, "CAGE_TORTURE_TIME")
	} else {
		t.Parallel()
	}
	l := newLab(t, "")
	h := &torment{lab: l, rand: rand.New(rand.NewPCG(seed(t), 0)), export: l.mkdir("export"), done: map[string]int{},
		shared: &arenaOfAll{certain: map[string]bool{}, maybe: map[string]bool{}, counts: map[int]string{}, names: map[string]int{}, vague: map[string]bool{}}}
	h.prepare(3, 2)
	t.Cleanup(h.story)
	before := h.footprints()

	stop := make(chan struct{})
	failed := make(chan error, len(h.workers))
	var all sync.WaitGroup
	for _, w := range h.workers {
		all.Go(func() { failed <- w.run(stop) })
	}
	for end := time.Now().Add(long); time.Now().Before(end) && len(failed) == 0; {
		h.fault()
	}
	for range 20 { // so that what cuts leave behind has piled up in the last run of the server
		h.proxies[h.rand.IntN(len(h.proxies))].cut()
		h.pause(50 * time.Millisecond)
	}
	h.heal()
	close(stop)
	all.Wait()
	for range h.workers {
		require.NoError(t, <-failed)
	}
	ops, lost := 0, 0
	for _, w := range h.workers {
		ops, lost = ops+w.ops, lost+w.lost
	}
	t.Logf("%d operations, %d told of a loss; faults: %v; %d of %d processes were there to be killed, one took %v at most", ops, lost, h.done, h.blocked, h.killed, h.slowest.Round(time.Millisecond))
	require.Less(t, h.slowest, time.Second, "a process that is killed ends")
	h.verdict()
	h.nothingLeft(before)
}

// torment is a torture.
type torment struct {
	*lab
	rand    *rand.Rand
	export  string
	server  *server
	proxies []*proxy
	mounts  []string
	workers []*tortured
	shared  *arenaOfAll
	done    map[string]int // faults
	trace   []string
	slowest time.Duration // from SIGKILL to the end of a process
	killed  int           // victims
	blocked int           // of them, those that SIGKILL ended
}

// victims is a directory for the processes that are killed in a mount, and victimLines how many lines each appends there.
func victims(mount int) string { return fmt.Sprint("victims", mount) }

const victimLines = 200

func (h *torment) prepare(mounts, each int) {
	t := h.t
	h.server = h.newServer(h.export, "--lease-term", tortureTerm.String())
	require.NoError(t, os.Mkdir(filepath.Join(h.export, "shared"), 0o755))
	for i := range mounts {
		dir := filepath.Join(h.export, victims(i))
		require.NoError(t, os.Mkdir(dir, 0o755))
		require.NoError(t, os.WriteFile(filepath.Join(dir, "big"), make([]byte, 4<<20), 0o644))
		require.NoError(t, os.WriteFile(filepath.Join(dir, "log"), nil, 0o644))
	}
	for name, content := range map[string]string{"log": "", "counter": fmt.Sprintf("%10d", 0), "token": ""} {
		require.NoError(t, os.WriteFile(filepath.Join(h.export, "shared", name), []byte(content), 0o644))
	}
	h.server.start()
	for i := range mounts {
		p := newProxy(t, h.server.addr)
		h.proxies = append(h.proxies, p)
		h.mounts = append(h.mounts, h.through(h.server, p, "--hard"))
		for j := range each {
			w := &tortured{name: fmt.Sprintf("w%d%d", i, j), point: h.mounts[i], own: fmt.Sprintf("own%d%d", i, j), shared: h.shared,
				rand: rand.New(rand.NewPCG(h.rand.Uint64(), 0)), files: map[string]*ownFile{}, dirs: map[string]bool{}, syms: map[string]string{}}
			require.NoError(t, os.Mkdir(w.path(""), 0o755))
			h.workers = append(h.workers, w)
		}
	}
}

// pause lets the workers work for a random time.
func (h *torment) pause(most time.Duration) { time.Sleep(h.upTo(most)) }

func (h *torment) upTo(most time.Duration) time.Duration {
	return time.Duration(h.rand.Int64N(int64(most)))
}

// away keeps a mount from its server for longer than the term.
func (h *torment) away(i int, begin, end func()) {
	note := func() {
		for _, w := range h.workers {
			if w.point == h.mounts[i] {
				w.away()
			}
		}
	}
	note()
	begin()
	time.Sleep(tortureAway)
	note() // before somebody else is told of a loss than who wrote
	end()
	h.back(i)
	note()
}

// fault lets one thing go wrong, and get right again.
func (h *torment) fault() {
	i := h.rand.IntN(len(h.mounts))
	p := h.proxies[i]
	h.pause(400 * time.Millisecond)
	began, name := time.Now(), "cut"
	switch n := h.rand.IntN(100); {
	case n < 25:
		for range 1 + h.rand.IntN(3) {
			p.cut()
			h.pause(100 * time.Millisecond)
		}
	case n < 40:
		name = "slow"
		p.slow(time.Duration(1+h.rand.IntN(30)) * time.Millisecond)
		h.pause(time.Second)
		p.slow(0)
	case n < 55:
		name = "silent"
		p.freeze()
		h.pause(time.Second)
		p.thaw()
	case n < 70:
		name = "killed server"
		h.restart()
	case n < 77:
		name = "killed server, twice"
		h.restart()
		h.restart()
	case n < 85:
		name = "stopped mount"
		h.stopped(i, h.upTo(time.Second))
	case n < 88:
		name = "away"
		h.away(i, p.freeze, p.thaw)
	case n < 90:
		name = "stopped for long"
		pid, resume := h.mountPID(h.mounts[i]), func() {}
		h.away(i, func() { resume = suspend(h.t, pid) }, func() { resume() })
	default:
		name = "killed process"
		h.victim(i)
	}
	h.done[name]++
	h.trace = append(h.trace, fmt.Sprintf("%s–%s %s %d", began.Format(stamp), time.Now().Format(stamp), name, i))
}

// story tells the last faults, when the test has failed.
func (h *torment) story() {
	if h.t.Failed() {
		h.t.Logf("faults, of which mount:\n%s", strings.Join(h.trace[max(0, len(h.trace)-20):], "\n"))
	}
}

// stamp is the form of times in the story.
const stamp = "15:04:05.000"

// back returns when a mount has delivered what it had while it was away, or lost it.
func (h *torment) back(i int) {
	for end := time.Now().Add(30 * time.Second); ; time.Sleep(10 * time.Millisecond) {
		out, err := h.try("cagefs", "sync", h.mounts[i])
		if err == nil {
			return
		}
		require.True(h.t, time.Now().Before(end), "the mount does not come back: %v %s", err, out)
	}
}

func (h *torment) restart() {
	h.server.kill()
	h.pause(300 * time.Millisecond)
	h.server.start()
	h.pause(500 * time.Millisecond)
}

func (h *torment) stopped(i int, d time.Duration) {
	resume := suspend(h.t, h.mountPID(h.mounts[i]))
	time.Sleep(d)
	resume()
}

// victim starts processes that use a mount, silences the server for them, and kills them.
func (h *torment) victim(i int) {
	// In a directory that nobody else looks up: who waits for another's look-up the kernel does not let go.
	own := filepath.Join(h.mounts[i], victims(i))
	h.killed++
	lines := fmt.Sprintf("for n in $(seq %d); do echo victim%d.$n; done >>log", victimLines, h.killed)
	scripts := []string{"cat big >/dev/null", "ls -lR .", "dd if=/dev/zero of=victim bs=64k count=400", "exec 3<>victim; flock 3; cat <&3",
		"rm -f victim; touch victim", "find . -exec stat {} +", lines, lines}
	script := scripts[h.rand.IntN(len(scripts))]
	if script == lines {
		h.shared.mayAppend(fmt.Sprint("victim", h.killed))
	}
	// Not as Dir: this process, in which the proxies are, would wait for the change of directory.
	cmd := exec.Command("sh", "-c", "cd "+own+" && "+script)
	cmd.SysProcAttr = &unix.SysProcAttr{Setpgid: true}
	cmd.Stderr = new(bytes.Buffer) // Wait waits for all that have it open
	require.NoError(h.t, cmd.Start())
	h.pause(20 * time.Millisecond)
	h.proxies[i].freeze()
	h.pause(300 * time.Millisecond)
	killed := time.Now()
	_ = unix.Kill(-cmd.Process.Pid, unix.SIGKILL) // ESRCH: it is done already
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		cmd.Wait()
	}()
	select {
	case <-ended:
	case <-time.After(10 * time.Second):
		out, _ := exec.Command("sh", "-c", fmt.Sprintf("ps -eo pid,ppid,pgid,stat,wchan:30,args | awk '$3 == %d'; for p in $(ps -eo pid,pgid | awk '$2 == %d {print $1}'); do cat /proc/$p/task/*/stack; done", cmd.Process.Pid, cmd.Process.Pid)).CombinedOutput()
		h.t.Errorf("a killed process does not end: %s\n%s", script, out)
	}
	h.slowest = max(h.slowest, time.Since(killed))
	h.proxies[i].thaw()
	<-ended
	if cmd.ProcessState != nil && cmd.ProcessState.Sys().(syscall.WaitStatus).Signaled() {
		h.blocked++
	}
}

// heal ends all faults.
func (h *torment) heal() {
	for _, p := range h.proxies {
		p.slow(0)
		p.thaw()
	}
}

package e2e

import (
	"bytes"
	"context"
	"crypto/tls"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"cagefs.dev/cage/remote/auth"
	"cagefs.dev/cage/remote/hostile"
	"cagefs.dev/cage/remote/proto"
	"cagefs.dev/cage/remote/wire"
)

// hostileSeed is CAGE_HOSTILE_SEED, or a new one.
func hostileSeed(t *testing.T) uint64 {
	n := uint64(time.Now().UnixNano())
	if s := os.Getenv("CAGE_HOSTILE_SEED"); s != "" {
		var err error
		n, err = strconv.ParseUint(s, 10, 64)
		require.NoError(t, err)
	}
	t.Logf("CAGE_HOSTILE_SEED=%d", n)
	return n
}

// rssOf is what a process takes of memory, in KiB.
func rssOf(t *testing.T, pid int) int {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	require.NoError(t, err)
	_, rest, _ := strings.Cut(string(b), "VmRSS:")
	n, err := strconv.Atoi(strings.Fields(rest)[0])
	require.NoError(t, err)
	return n
}

// usurp lets a liar answer at a server's address, with its key, as long as the test runs.
func (s *server) usurp(l *hostile.Liar) {
	t := s.lab.t
	state, err := auth.OpenServerState(s.lab.path("server"))
	require.NoError(t, err)
	ln, err := net.Listen("tcp", s.addr)
	require.NoError(t, err)
	var wg sync.WaitGroup
	ctx, stop := context.WithCancel(context.Background())
	config := state.TLS()
	wg.Go(func() {
		for {
			raw, err := ln.Accept()
			if err != nil {
				return
			}
			wg.Go(func() {
				defer context.AfterFunc(ctx, func() { raw.Close() })()
				defer raw.Close()
				c := tls.Server(raw, config)
				if c.Handshake() == nil {
					l.Serve(c)
				}
			})
		}
	})
	t.Cleanup(func() {
		stop()
		ln.Close()
		wg.Wait()
		state.Close()
	})
}

// A mount of a server that lies: every call ends, or can be ended; the mount's
// process stays, as small as it may be, and touches nothing outside.
func TestHostileServer(t *testing.T) {
	needRoot(t)
	rounds, limit := 1, "0.3"
	if accept {
		rounds, limit = 20, "2"
	}
	seed := hostileSeed(t)
	l := newLab(t, "")
	s := l.newServer(l.mkdir("export"))
	s.start()
	s.stop()
	liar := &hostile.Liar{Seed: seed, Honest: true}
	s.usurp(liar)

	point := l.mkdir("mnt")
	cmd := exec.Command(filepath.Join(l.bin, "cagefs"), "mount", "-f", "-o", "soft=3s", s.addr+":/data", point)
	cmd.Env, cmd.Dir = l.env, l.dir
	var out bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &out
	require.NoError(t, cmd.Start())
	ended := make(chan error, 1)
	go func() { ended <- cmd.Wait() }()
	defer func() {
		unix.Unmount(point, unix.MNT_DETACH)
		cmd.Process.Kill()
	}()
	require.Eventually(t, func() bool { return len(mountsBelow(l.dir)) == 1 }, 30*time.Second, 10*time.Millisecond, "%s", &out)
	before := rssOf(t, cmd.Process.Pid)
	for _, m := range mountLines(t, point) {
		require.Contains(t, m, "nosuid")
		require.Contains(t, m, "nodev")
	}

	script := `cd "$1" || exit
try() { timeout -s KILL $3 sh -c "$1" sh "$2"; }
for c in 'ls -la .' 'ls n1 n2 n3 n4 n5' 'find . -maxdepth 3 | head -1000' 'cat n1 n2 n3' 'stat n1 n6 n7' 'readlink n1 n6' 'mkdir d$1' \
	'echo x > f$1; echo y >> f$1' 'ln f$1 g$1' 'mv f$1 h$1' 'chmod 700 h$1' 'truncate -s 5 h$1' 'ln -s a s$1' 'rm h$1' 'rmdir d$1' 'cp n1 n2' \
	'dd if=n3 of=/dev/null bs=1M count=4' 'df .' 'getfattr -d n1' 'cat n*' ./n1 'head -c 1 n2' 'sync f$1'
do try "$c" "$2" "$3"; done`
	var mu sync.Mutex
	var worst time.Duration
	for i := range rounds {
		var wg sync.WaitGroup
		for k := range 4 {
			wg.Go(func() {
				began := time.Now()
				exec.Command("sh", "-c", script, "sh", point, fmt.Sprint(i, "-", k), limit).Run() // what it says is what the liar says
				mu.Lock()
				defer mu.Unlock()
				worst = max(worst, time.Since(began))
			})
		}
		done := make(chan struct{})
		go func() { wg.Wait(); close(done) }()
		select {
		case <-done:
		case <-time.After(90 * time.Second):
			t.Fatal("a process cannot be killed")
		case err := <-ended:
			t.Fatalf("cagefs ended: %v\n%s", err, &out)
		}
	}
	after := rssOf(t, cmd.Process.Pid)
	t.Logf("%d answers on %d connections; RSS %d KiB before, %d KiB after; a script took %v at most", liar.Sent.Load(), liar.Conns.Load(), before, after, worst)
	require.Positive(t, liar.Sent.Load())
	require.Less(t, after, 600<<10)
	require.Empty(t, ended, "cagefs is there: %s", &out)
	unix.Unmount(point, unix.MNT_DETACH)
	cmd.Process.Kill()
	<-ended
	require.NotContains(t, out.String(), "panic")
	left, err := os.ReadDir(l.path("export"))
	require.NoError(t, err)
	require.Len(t, left, 1, "the real export, beside its journal, is as it was")
}

func mountLines(t *testing.T, point string) (out []string) {
	b, err := os.ReadFile("/proc/self/mounts")
	require.NoError(t, err)
	for line := range strings.Lines(string(b)) {
		if strings.Fields(line)[1] == point {
			out = append(out, line)
		}
	}
	require.NotEmpty(t, out)
	return out
}

// A client asks a server for all it can give, on many connections, and takes
// nothing: the server's process grows to its budget, not beyond, and shrinks again.
func TestHostileClientMemory(t *testing.T) {
	needRoot(t)
	lines, rounds := 40, 1
	if accept {
		lines, rounds = 300, 10
	}
	seed := hostileSeed(t)
	l := newLab(t, "")
	export := l.wide("export")
	require.NoError(t, os.WriteFile(filepath.Join(export, "big"), make([]byte, 4<<20), 0o644))
	s := l.newServer(export)
	s.start()
	foe := l.elsewhere("foe")
	foe.run("cagefs", "join", s.invite("foe"))
	keys := auth.OpenKeyring(filepath.Join(l.path("foe", "config"), "cage"))
	before, most := rssOf(t, s.cmd.Process.Pid), 0
	for round := range rounds {
		var wg sync.WaitGroup
		stop := time.Now().Add(3 * time.Second)
		for i := range lines {
			wg.Go(func() { glut(s.addr, keys, hostile.New(seed, uint64(round*lines+i)), i, stop) })
		}
		wg.Go(func() {
			for time.Now().Before(stop) {
				most = max(most, rssOf(t, s.cmd.Process.Pid))
				time.Sleep(50 * time.Millisecond)
			}
		})
		wg.Wait()
	}
	point := l.mount(s)
	began := time.Now()
	_, err := os.ReadFile(filepath.Join(point, "big"))
	require.NoError(t, err)
	require.Less(t, time.Since(began), 5*time.Second)
	after := rssOf(t, s.cmd.Process.Pid)
	t.Logf("RSS %d KiB before, %d KiB at most, %d KiB after %d connections", before, most, after, lines*rounds)
	require.Less(t, most, 1<<20)
	b, err := os.ReadFile(s.log)
	require.NoError(t, err)
	require.NotContains(t, string(b), "panic")
	l.umount(point)
	s.stop()
	require.NoError(t, l.verify(export))
}

// glut sends requests with large answers, or large requests, and reads nothing.
func glut(addr string, keys *auth.Keyring, g *hostile.Gen, i int, stop time.Time) {
	raw, err := net.Dial("tcp", addr)
	if err != nil {
		return
	}
	defer raw.Close()
	raw.(*net.TCPConn).SetReadBuffer(4096)
	raw.SetDeadline(stop)
	c := keys.Client(raw)
	if c.Handshake() != nil {
		return
	}
	if _, err := wire.Greet(c); err != nil {
		return
	}
	c.Write(wire.AppendFrame(nil, wire.Request(wire.OpHello, 1), &wire.HelloReq{Version: wire.Version, Export: "data"}))
	io.ReadFull(c, make([]byte, wire.HeaderSize))
	for id := uint64(2); ; id++ {
		var b []byte
		switch i % 3 {
		case 0:
			b = wire.AppendFrame(nil, wire.Request(wire.OpRead, id), &wire.ReadReq{ID: proto.FileID(2 + g.Uint64N(3)), Off: g.Uint64N(1 << 20), Len: proto.MaxIO})
		case 1:
			op := &proto.Write{ID: 2, Off: g.Uint64N(1 << 20), Data: make([]byte, proto.MaxIO)} // refused, when its turn comes
			b = wire.AppendFrame(nil, wire.Request(wire.ChangeOpcode(op), id), &wire.ChangeReq{Seq: proto.Seq(id - 1), Op: op})
		case 2:
			b = wire.AppendFrame(nil, wire.Request(wire.OpReadDir, id), &wire.ReadDirReq{ID: proto.RootID, Max: wire.MaxEntries, Plus: true})
		}
		if _, err := c.Write(b); err != nil {
			return
		}
	}
}

package fusefs

import (
	"bufio"
	"context"
	"errors"
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

	"github.com/hanwen/go-fuse/v2/fuse"
	"github.com/rs/zerolog"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"cagefs.dev/cage/pagecache"
	"cagefs.dev/cage/remote"
	"cagefs.dev/cage/remote/auth"
	"cagefs.dev/cage/remote/lease"
	"cagefs.dev/cage/remote/proto"
	"cagefs.dev/cage/remote/wire"
	"cagefs.dev/cage/serverd"
)

// A process must not use files of a mount that it serves itself: page faults
// and the runtime's own threads can wait for each other. So the test binary
// runs itself as the daemon of a server and two mounts, and drives it by lines on its stdin.

const daemonEnv = "CAGE_TEST_DAEMON"

func TestMain(m *testing.M) {
	if dir := os.Getenv(daemonEnv); dir != "" {
		dropInherited()
		if err := runDaemon(dir, os.Stdin, os.Stdout); err != nil {
			fmt.Fprintln(os.Stderr, "daemon:", err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	os.Exit(m.Run())
}

// dropInherited closes what this process has of the mounts of tests that ran while
// it was started: posixtest opens files without O_CLOEXEC, and a mount in which
// somebody has one cannot be unmounted.
func dropInherited() {
	fds, _ := os.ReadDir("/proc/self/fd")
	for _, e := range fds {
		fd, _ := strconv.Atoi(e.Name())
		if path, err := os.Readlink("/proc/self/fd/" + e.Name()); err == nil && fd > 2 && strings.HasPrefix(path, os.TempDir()+"/") {
			unix.Close(fd)
		}
	}
}

// testNet lets a test cut the network off.
type testNet struct {
	mu    sync.Mutex
	down  bool       // guarded by mu
	conns []net.Conn // guarded by mu
}

func (n *testNet) dial(ctx context.Context, network, addr string) (net.Conn, error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.down {
		return nil, unix.ENETUNREACH
	}
	c, err := (&net.Dialer{}).DialContext(ctx, network, addr)
	if err == nil {
		n.conns = append(n.conns, c)
	}
	return c, err
}

func (n *testNet) set(down bool) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.down = down
	if down {
		for _, c := range n.conns {
			c.Close()
		}
		n.conns = nil
	}
}

// testMount is one mount of the daemon.
type testMount struct {
	sources []*testSource
	cache   *pagecache.Cache
	mount   *Mounted
	holder  *holder
}

// testSource is a source of a mount with its session.
type testSource struct {
	session *remote.Session
	net     testNet
}

// mountForTest mounts the directory sub of the export; several, with colons
// between, become sources named s1, s2, ….
func mountForTest(addr string, keys *auth.Keyring, point, sub string, log zerolog.Logger) (*testMount, error) {
	patience, err := time.ParseDuration(os.Getenv("CAGE_TEST_PATIENCE"))
	if err != nil {
		return nil, err
	}
	m := &testMount{cache: pagecache.New(pagecache.Options{}), holder: &holder{}}
	ready := make(chan struct{}) // upcalls come after the mount
	ctx := context.Background()
	inodes, _ := strconv.Atoi(os.Getenv("CAGE_TEST_INODES"))
	o := Options{Cache: m.cache, Device: addr + ":/x", Inodes: inodes, Log: log}
	o.between = func(fs fuse.RawFileSystem) fuse.RawFileSystem { m.holder.RawFileSystem = fs; return m.holder }
	subs := strings.Split(sub, ":")
	for i, sub := range subs {
		src := &testSource{}
		m.sources = append(m.sources, src)
		src.session, err = remote.Dial(ctx, remote.Options{
			Addr: addr, Export: "x", Keys: keys, Patience: patience, DataPort: true, Dial: src.net.dial, Log: log,
			Leases:   true,
			Recalled: func(r lease.Recall) { <-ready; m.mount.Recalled(i, r) },
			Reset:    func() { <-ready; m.mount.Reset(i) },
			Failed:   func(id proto.FileID, seq proto.Seq, err error) { <-ready; m.mount.Failed(i, id, seq, err) },
			LostLock: func(o remote.LockOwner) { m.mount.LostLock(i, o) },
			Written:  func(id proto.FileID, change proto.LSN) { <-ready; m.mount.Written(i, id, change) },
		})
		if err != nil {
			return nil, err
		}
		root, err := src.session.Resolve(ctx, wire.ReqHeader{}, sub)
		if err != nil {
			return nil, err
		}
		of := Source{Session: src.session, Root: root}
		if len(subs) > 1 {
			of.Name = fmt.Sprintf("s%d", i+1)
		}
		o.Sources = append(o.Sources, of)
	}
	m.mount, err = Mount(point, o)
	if err != nil {
		for _, src := range m.sources {
			src.session.Close(ctx)
		}
		return nil, err
	}
	close(ready)
	return m, nil
}

// cut takes the network of all sources from the first-th on away, or gives it back.
func (m *testMount) cut(first int, down bool) {
	for _, src := range m.sources[first:] {
		src.net.set(down)
	}
}

func (m *testMount) close() error {
	m.cut(0, false)
	err := m.mount.Unmount(context.Background())
	if err != nil {
		err = errors.Join(err, m.mount.Detach())
	}
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	for _, src := range m.sources {
		err = errors.Join(err, src.session.Close(ctx))
	}
	m.mount.Wait()
	m.cache.Close()
	return err
}

// runDaemon serves dir/export and mounts it at dir/a and dir/b until in ends.
func runDaemon(dir string, in io.Reader, out io.Writer) (err error) {
	log := zerolog.New(os.Stderr).Level(zerolog.WarnLevel)
	state, err := auth.OpenServerState(filepath.Join(dir, "state"))
	if err != nil {
		return err
	}
	defer state.Close()
	config := filepath.Join(dir, "config")
	if err := state.AdmitLocal(config, uint32(os.Geteuid())); err != nil {
		return err
	}
	unix.Umask(0)
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	exports, err := serverd.OpenExports(ctx, []serverd.Spec{{Name: "x", Dir: filepath.Join(dir, "export")}}, log)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, exports.Close()) }()
	term, _ := time.ParseDuration(os.Getenv("CAGE_TEST_TERM"))
	srv, err := serverd.Listen(serverd.Options{Term: term, Exports: exports.List, Listen: "127.0.0.1:0", DataPorts: 1, State: state, Log: log, Software: "test"})
	if err != nil {
		return err
	}
	served := make(chan error, 1)
	go func() { served <- srv.Serve(ctx) }()
	defer func() {
		cancel()
		err = errors.Join(err, <-served)
	}()
	mounts := map[string]*testMount{}
	for name, sub := range map[string]string{"a": "", "b": os.Getenv("CAGE_TEST_SUB")} {
		m, err := mountForTest(srv.Addr().String(), auth.OpenKeyring(config), filepath.Join(dir, name), sub, log)
		if err != nil {
			return err
		}
		mounts[name] = m
	}
	fmt.Fprintln(out, "ready")
	for lines := bufio.NewScanner(in); lines.Scan(); {
		verb, name, _ := strings.Cut(lines.Text(), " ")
		name, kind, _ := strings.Cut(name, ":")
		answer := "ok"
		switch m := mounts[name]; verb {
		case "down":
			m.cut(0, true)
		case "down-second":
			m.cut(1, true)
		case "up":
			m.cut(0, false)
		case "umount":
			if err := m.mount.Unmount(ctx); err != nil {
				answer = err.Error()
			}
		case "wait":
			m.mount.Wait()
		case "hold":
			m.holder.hold(kind)
		case "held":
			if !m.holder.held() {
				answer = "nothing is asked"
			}
		case "let":
			m.holder.let()
		case "awaited":
			answer = strconv.FormatInt(m.mount.fs[0].awaited.Load(), 10)
		case "stats":
			answer = fmt.Sprintf("%+v", m.mount.Stats())
		case "mount": // another one at the same place
			m, err := mountForTest(srv.Addr().String(), auth.OpenKeyring(config), filepath.Join(dir, name), "", log)
			if err != nil {
				answer = err.Error()
			} else {
				mounts[name+strconv.Itoa(len(mounts))] = m
			}
		}
		fmt.Fprintln(out, answer)
	}
	for _, m := range mounts {
		err = errors.Join(err, m.close())
	}
	return err
}

// daemon is the driver's side.
type daemon struct {
	t      *testing.T
	dir    string
	a, b   string // mountpoints
	export string
	in     io.WriteCloser
	out    *bufio.Scanner
}

// prepareDaemon makes the directories of a server with two mounts.
func prepareDaemon(t *testing.T) *daemon {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("mounts as root only")
	}
	t.Parallel()
	d := &daemon{t: t, dir: t.TempDir()}
	require.NoError(t, os.Chmod(filepath.Dir(d.dir), 0o755))
	d.a, d.b, d.export = filepath.Join(d.dir, "a"), filepath.Join(d.dir, "b"), filepath.Join(d.dir, "export")
	for _, p := range []string{d.a, d.b, d.export, filepath.Join(d.export, "sub")} {
		require.NoError(t, os.Mkdir(p, 0o777))
	}
	return d
}

// startDaemon prepares and starts one.
func startDaemon(t *testing.T, env ...string) *daemon {
	t.Helper()
	d := prepareDaemon(t)
	d.start(env...)
	return d
}

// start runs the server with its mounts until the end of the test, which fails
// when they do not end in order, when the race detector has found something,
// or when something stays mounted.
func (d *daemon) start(env ...string) {
	t := d.t
	t.Helper()
	cmd := exec.Command(os.Args[0])
	cmd.Env = append(os.Environ(), daemonEnv+"="+d.dir, "CAGE_TEST_PATIENCE=30s")
	cmd.Env = append(cmd.Env, env...)
	cmd.Stderr = testLog{t}
	var err error
	d.in, err = cmd.StdinPipe()
	require.NoError(t, err)
	out, err := cmd.StdoutPipe()
	require.NoError(t, err)
	d.out = bufio.NewScanner(out)
	require.NoError(t, cmd.Start())
	t.Cleanup(func() {
		d.in.Close()
		timer := time.AfterFunc(20*time.Second, func() {
			t.Error("the daemon does not end")
			cmd.Process.Signal(unix.SIGQUIT)
		})
		defer timer.Stop()
		require.NoError(t, cmd.Wait())
		for _, p := range []string{d.a, d.b} {
			_, ok := mountedAt(p)
			if ok {
				unix.Unmount(p, unix.MNT_DETACH)
			}
			require.False(t, ok, "%s stays mounted", p)
		}
	})
	require.True(t, d.out.Scan(), "the daemon did not start")
	require.Equal(t, "ready", d.out.Text())
}

// ask sends a command and returns the answer.
func (d *daemon) ask(format string, args ...any) string {
	d.t.Helper()
	_, err := fmt.Fprintf(d.in, format+"\n", args...)
	require.NoError(d.t, err)
	require.True(d.t, d.out.Scan(), "no answer")
	return d.out.Text()
}

// writeAway writes before to a file of a mount and, when the command down has taken its server away, text behind it. The
// latter needs the write lease, which a mount gives up that has not written for a second; so where it waits for
// one after all, the command up brings the server back and all begins again.
func (d *daemon) writeAway(f *os.File, down, up, before, text string) {
	d.t.Helper()
	for range 10 {
		_, err := f.WriteAt([]byte(before), 0)
		require.NoError(d.t, err)
		d.ask("%s", down)
		done := make(chan error, 1)
		go func() {
			_, err := f.WriteAt([]byte(text), int64(len(before)))
			done <- err
		}()
		select {
		case err := <-done:
			require.NoError(d.t, err)
			return
		case <-time.After(time.Second):
		}
		d.ask("%s", up)
		if err := <-done; !errors.Is(err, unix.ETIMEDOUT) {
			require.NoError(d.t, err)
		}
	}
	d.t.Fatal("the mount never has the write lease")
}

type testLog struct{ t *testing.T }

func (l testLog) Write(p []byte) (int, error) {
	l.t.Logf("%s", p)
	return len(p), nil
}

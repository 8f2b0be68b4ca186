package control

import (
	"bufio"
	"context"
	"io/fs"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"cagefs.dev/cage/remote/status"
)

// fakeMount answers as a mount would; sync blocks until released or cancelled.
type fakeMount struct {
	syncing   chan string // receives the path when a sync began
	release   chan error
	cancelled chan struct{}
	umount    func() error
}

func newFake() *fakeMount {
	return &fakeMount{syncing: make(chan string, 1), release: make(chan error, 1), cancelled: make(chan struct{}, 1)}
}

func (f *fakeMount) Where(path string) (Where, error) {
	if path == "" {
		return Where{}, status.Newf(status.Usage, "", "", "several")
	}
	return Where{Addr: "h:7400", Export: "data", Sub: "src", Dir: path, At: 7}, nil
}
func (f *fakeMount) Status() Status {
	return Status{Mountpoint: "/mnt", Source: Source{State: "online", Unapplied: 3}, Sources: []Source{{Name: "a", Unapplied: 3}, {Name: "b"}}}
}
func (f *fakeMount) Stats() Stats { return Stats{Hits: 9} }
func (f *fakeMount) Sync(ctx context.Context, path string) error {
	f.syncing <- path
	select {
	case err := <-f.release:
		return err
	case <-ctx.Done():
		f.cancelled <- struct{}{}
		return ctx.Err()
	}
}
func (f *fakeMount) Umount(context.Context) error { return f.umount() }

func start(t *testing.T, dev string, h Handler) *Server {
	t.Helper()
	t.Setenv("XDG_RUNTIME_DIR", t.TempDir())
	s, err := Listen(t.Context(), dev, h)
	require.NoError(t, err)
	t.Cleanup(s.Close)
	return s
}

func dial(t *testing.T, dev string) *Client {
	t.Helper()
	c, err := Dial(t.Context(), Mount{Dev: dev, Point: "/mnt"})
	require.NoError(t, err)
	t.Cleanup(c.Close)
	return c
}

func TestRequests(t *testing.T) {
	f := newFake()
	start(t, "0:50", f)
	c := dial(t, "0:50")

	w, err := c.Where(t.Context(), "a")
	require.NoError(t, err)
	require.Equal(t, Where{Addr: "h:7400", Export: "data", Sub: "src", Dir: "a", At: 7}, w)
	_, err = c.Where(t.Context(), "")
	require.ErrorIs(t, err, status.Usage)
	st, err := c.Status(t.Context())
	require.NoError(t, err)
	require.Equal(t, f.Status(), st)
	stats, err := c.Stats(t.Context())
	require.NoError(t, err)
	require.Equal(t, f.Stats(), stats)

	f.release <- nil
	require.NoError(t, c.Sync(t.Context(), "a/b"))
	require.Equal(t, "a/b", <-f.syncing)
	f.release <- status.New(status.NoSpace, "sync", "a")
	err = c.Sync(t.Context(), "")
	require.ErrorIs(t, err, status.NoSpace)
	require.EqualError(t, err, "sync a: no space left")

	require.Equal(t, os.Getpid(), c.PID())
	_, err = c.call(t.Context(), request{Op: "dance"})
	require.ErrorIs(t, err, status.Unsupported)
}

func TestSocketIsPrivateAndReplaced(t *testing.T) {
	s := start(t, "0:51", newFake())
	fi, err := os.Stat(s.l.Addr().String())
	require.NoError(t, err)
	require.Equal(t, fs.FileMode(0o600), fi.Mode().Perm())
	require.Equal(t, filepath.Join(os.Getenv("XDG_RUNTIME_DIR"), "cage"), filepath.Dir(s.l.Addr().String()))
	s.Close()
	s.Close()
	_, err = os.Stat(s.l.Addr().String())
	require.ErrorIs(t, err, fs.ErrNotExist)

	// A socket without a process is what a mount that was killed leaves.
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: s.l.Addr().String(), Net: "unix"})
	require.NoError(t, err)
	l.SetUnlinkOnClose(false)
	l.Close()
	_, err = Dial(t.Context(), Mount{Dev: "0:51", Point: "/mnt"})
	require.ErrorIs(t, err, status.Unreachable)
	again, err := Listen(t.Context(), "0:51", newFake())
	require.NoError(t, err)
	defer again.Close()
	dial(t, "0:51")

	require.NoError(t, os.Chmod(filepath.Dir(s.l.Addr().String()), 0o777))
	_, err = Listen(t.Context(), "0:52", newFake())
	require.ErrorIs(t, err, status.Access, "a directory that others may write to is no place for the socket")
}

func TestClientThatGoesCancelsItsRequest(t *testing.T) {
	f := newFake()
	start(t, "0:53", f)
	c := dial(t, "0:53")
	ctx, cancel := context.WithCancel(t.Context())
	failed := make(chan error, 1)
	go func() { failed <- c.Sync(ctx, "") }()
	<-f.syncing
	cancel()
	require.ErrorIs(t, <-failed, status.Interrupted)
	c.Close()
	<-f.cancelled
}

func TestCloseEndsWhatRuns(t *testing.T) {
	f := newFake()
	s := start(t, "0:54", f)
	c := dial(t, "0:54")
	failed := make(chan error, 1)
	go func() { failed <- c.Sync(t.Context(), "") }()
	<-f.syncing
	s.Close()
	require.ErrorIs(t, <-failed, status.Interrupted, "the client still gets an answer")
	_, err := c.Status(t.Context())
	require.ErrorIs(t, err, status.Unreachable)
}

// lateMount ends a sync long after it was told to.
type lateMount struct{ *fakeMount }

func (m lateMount) Sync(ctx context.Context, path string) error {
	m.syncing <- path
	<-ctx.Done()
	<-time.After(answerTime + 100*time.Millisecond)
	return nil
}

// A machine with a lot to do lets a mount end slowly; whoever unmounts it is
// still to be told that it has.
func TestLateAnswerAfterClose(t *testing.T) {
	f := lateMount{newFake()}
	s := start(t, "0:57", f)
	c := dial(t, "0:57")
	answered := make(chan error, 1)
	go func() { answered <- c.Sync(t.Context(), "") }()
	<-f.syncing
	s.Close()
	require.NoError(t, <-answered)
}

func TestUmountRefused(t *testing.T) {
	f := newFake()
	f.umount = func() error { return status.New(status.Busy, "umount", "/mnt") }
	start(t, "0:55", f)
	require.ErrorIs(t, dial(t, "0:55").Umount(t.Context()), status.Busy)
}

// Umount returns only when the mount's process is gone.
func TestUmountWaitsForTheProcess(t *testing.T) {
	if os.Getenv("CONTROL_TEST_DEV") != "" {
		f := newFake()
		f.umount = func() error { _, err := os.Stdout.WriteString("umount\n"); return err }
		s, err := Listen(t.Context(), os.Getenv("CONTROL_TEST_DEV"), f)
		require.NoError(t, err)
		defer s.Close()
		os.Stdout.WriteString("ready\n")
		os.Stdin.Read(make([]byte, 1))
		return
	}
	t.Setenv("XDG_RUNTIME_DIR", t.TempDir())
	cmd := exec.Command(os.Args[0], "-test.run=^TestUmountWaitsForTheProcess$")
	cmd.Env = append(os.Environ(), "CONTROL_TEST_DEV=0:"+strconv.Itoa(os.Getpid()))
	in, err := cmd.StdinPipe()
	require.NoError(t, err)
	out, err := cmd.StdoutPipe()
	require.NoError(t, err)
	require.NoError(t, cmd.Start())
	defer cmd.Wait()
	said := bufio.NewReader(out)
	expect := func(want string) {
		line, err := said.ReadString('\n')
		require.NoError(t, err)
		require.Equal(t, want+"\n", line)
	}
	expect("ready")

	c := dial(t, "0:"+strconv.Itoa(os.Getpid()))
	require.Equal(t, cmd.Process.Pid, c.PID())
	ctx, cancel := context.WithTimeout(t.Context(), 200*time.Millisecond)
	defer cancel()
	require.ErrorIs(t, c.Umount(ctx), status.Timeout, "the process is still there")
	expect("umount")

	done := make(chan error, 1)
	c = dial(t, "0:"+strconv.Itoa(os.Getpid()))
	go func() { done <- c.Umount(t.Context()) }()
	expect("umount")
	in.Close()
	require.NoError(t, <-done)
}

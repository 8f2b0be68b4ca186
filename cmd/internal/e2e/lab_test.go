package e2e

import (
	"bufio"
	"bytes"
	"context"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"cagefs.dev/cage/cmd/internal/differ"
)

// accept says that the full numbers are to be run.
var accept = os.Getenv("CAGE_ACCEPT") != ""

// labRoot is the directory that everything of this run lies in: binaries,
// exports, states, mountpoints. Set by TestMain.
var labRoot string

// janitorEnv makes this program the janitor of the directory that it names.
const janitorEnv = "CAGE_E2E_JANITOR"

func TestMain(m *testing.M) {
	differ.Worker()
	if root := os.Getenv(janitorEnv); root != "" {
		os.Exit(janitor(root))
	}
	if dir := os.Getenv(openerEnv); dir != "" {
		os.Exit(opener(dir))
	}
	if dir := os.Getenv(lockerEnv); dir != "" {
		os.Exit(lockerMain(dir))
	}
	if os.Getenv(historianEnv) != "" {
		os.Exit(historianMain())
	}
	os.Exit(run(m))
}

// run runs the tests under the eyes of a janitor.
func run(m *testing.M) int {
	root, err := os.MkdirTemp("", "cage-e2e.")
	if err == nil {
		root, err = filepath.EvalSymlinks(root)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "e2e:", err)
		return 1
	}
	labRoot = root
	cmd := exec.Command("/proc/self/exe")
	cmd.Env = append(os.Environ(), janitorEnv+"="+root)
	cmd.Stdout, cmd.Stderr = os.Stdout, os.Stderr
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true} // outlives a Ctrl-C
	alive, err := cmd.StdinPipe()
	if err == nil {
		err = cmd.Start()
	}
	if err != nil {
		os.RemoveAll(root)
		fmt.Fprintln(os.Stderr, "e2e: the janitor does not start:", err)
		return 1
	}
	code := m.Run()
	alive.Close()
	if err := cmd.Wait(); err != nil && code == 0 {
		fmt.Fprintln(os.Stderr, "e2e: FAIL: the tests left something behind")
		code = 1
	}
	return code
}

// janitor waits until the tests have ended, in whatever way, and clears up: it
// ends processes whose program lies in the root, unmounts what is mounted there,
// detaches loop devices on files there, and removes it. It exits with 1 if
// there was more to do than to remove files.
func janitor(root string) int {
	io.Copy(io.Discard, os.Stdin)
	code := 0
	left := func(format string, args ...any) {
		fmt.Fprintf(os.Stderr, "e2e: left behind: "+format+"\n", args...)
		code = 1
	}
	exes, _ := filepath.Glob("/proc/[0-9]*/exe")
	for _, exe := range exes {
		if prog, err := os.Readlink(exe); err == nil && strings.HasPrefix(prog, root+"/") {
			pid, _ := strconv.Atoi(filepath.Base(filepath.Dir(exe)))
			left("process %d of %s", pid, prog)
			unix.Kill(pid, unix.SIGKILL)
		}
	}
	// First, while the files can be told by their names: a device in use is
	// detached when it is not any more.
	files, _ := filepath.Glob("/sys/block/loop*/loop/backing_file")
	for _, f := range files {
		if b, err := os.ReadFile(f); err == nil && strings.HasPrefix(string(b), root+"/") {
			dev := "/dev/" + strings.Split(f, "/")[3]
			left("%s on %s", dev, strings.TrimSpace(string(b)))
			exec.Command("losetup", "-d", dev).Run()
		}
	}
	points := mountsBelow(root)
	slices.Reverse(points)
	for _, p := range points {
		left("mount on %s", p)
		unix.Unmount(p, unix.MNT_DETACH)
	}
	if err := os.RemoveAll(root); err != nil {
		left("%v", err)
	}
	return code
}

// mountsBelow returns the mountpoints below a directory, in the order of mounting.
func mountsBelow(dir string) (points []string) {
	b, _ := os.ReadFile("/proc/self/mountinfo")
	for line := range strings.Lines(string(b)) {
		f := strings.Fields(line)
		if len(f) > 4 && strings.HasPrefix(f[4], dir+"/") {
			points = append(points, f[4])
		}
	}
	return points
}

var builds struct {
	sync.Mutex
	dirs map[string]string // by tags
}

// binaries returns the directory of the three programs, built once in a run for
// each set of build tags.
func binaries(t testing.TB, tags string) string {
	t.Helper()
	builds.Lock()
	defer builds.Unlock()
	if dir := builds.dirs[tags]; dir != "" {
		return dir
	}
	dir := filepath.Join(labRoot, "bin-"+tags)
	cmd := exec.Command("go", "build", "-tags", tags, "-o", dir+"/", "./cmd/cagefs", "./cmd/cageserverd", "./cmd/cagejournal")
	cmd.Dir = "../../.."
	out, err := cmd.CombinedOutput()
	require.NoError(t, err, "%s", out)
	if builds.dirs == nil {
		builds.dirs = map[string]string{}
	}
	builds.dirs[tags] = dir
	return dir
}

// lab is a place for servers and mounts that know nothing of those elsewhere:
// it has its own keys, state and control sockets. Set at construction.
type lab struct {
	t    testing.TB
	dir  string
	bin  string
	env  []string
	user *syscall.Credential // as whom the programs run and to whom the directories belong; nil: who runs the test
}

// newLab makes a lab with programs built with tags. What is started in it ends with the test.
func newLab(t testing.TB, tags string) *lab {
	t.Helper()
	if _, err := os.Stat("/dev/fuse"); err != nil {
		t.Skip("there is no /dev/fuse: load the kernel module fuse")
	}
	if os.Getuid() != 0 {
		if _, err := exec.LookPath("fusermount3"); err != nil {
			t.Skip("only root can mount without fusermount3")
		}
	}
	dir, err := os.MkdirTemp(labRoot, "lab.")
	require.NoError(t, err)
	l := &lab{t: t, dir: dir, bin: binaries(t, tags)}
	for _, e := range os.Environ() {
		if !strings.HasPrefix(e, "CAGE") && !strings.HasPrefix(e, "XDG_") {
			l.env = append(l.env, e)
		}
	}
	for name, sub := range map[string]string{"XDG_CONFIG_HOME": "config", "XDG_STATE_HOME": "state", "XDG_RUNTIME_DIR": "run"} {
		require.NoError(t, os.Mkdir(l.path(sub), 0o700))
		l.env = append(l.env, name+"="+l.path(sub))
	}
	return l
}

// needRoot skips a test that only root can run.
func needRoot(t testing.TB) {
	if os.Getuid() != 0 {
		t.Skip("only root can do this")
	}
}

// path is a path in the lab.
func (l *lab) path(elem ...string) string { return filepath.Join(append([]string{l.dir}, elem...)...) }

// mkdir makes a directory in the lab.
func (l *lab) mkdir(name string) string {
	l.t.Helper()
	require.NoError(l.t, os.MkdirAll(l.path(name), 0o755))
	l.own(l.path(name))
	return l.path(name)
}

// own gives something in the lab to its user.
func (l *lab) own(path string) {
	l.t.Helper()
	if l.user != nil {
		require.NoError(l.t, os.Lchown(path, int(l.user.Uid), int(l.user.Gid)))
	}
}

// command prepares one of the three programs. They get a minute.
func (l *lab) command(prog string, args ...string) *exec.Cmd {
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	l.t.Cleanup(cancel)
	cmd := exec.CommandContext(ctx, filepath.Join(l.bin, prog), args...)
	cmd.Env, cmd.Dir = l.env, l.dir
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: l.user}
	return cmd
}

// try runs one of the three programs; the error has what it wrote to stderr.
func (l *lab) try(prog string, args ...string) (stdout string, err error) {
	var out, errs bytes.Buffer
	cmd := l.command(prog, args...)
	cmd.Stdout, cmd.Stderr = &out, &errs
	if err = cmd.Run(); err != nil {
		err = fmt.Errorf("%s %s: %w: %s", prog, strings.Join(args, " "), err, strings.TrimSpace(errs.String()))
	}
	return out.String(), err
}

// run runs one of the three programs, which must succeed.
func (l *lab) run(prog string, args ...string) (stdout string) {
	l.t.Helper()
	out, err := l.try(prog, args...)
	require.NoError(l.t, err)
	return out
}

// server is a cageserverd. Its address stays the same when it is started again.
type server struct {
	// Set at construction.
	lab   *lab
	args  []string
	addr  string               // HOST:PORT
	log   string               // file that all its runs write to
	attr  *syscall.SysProcAttr // of its processes
	under []string             // a command that runs what comes behind it

	cmd *exec.Cmd // nil while none runs
}

// newServer prepares a server of a directory under the name data; it is to be started.
func (l *lab) newServer(export string, flags ...string) *server {
	l.t.Helper()
	f, err := os.CreateTemp(l.dir, "server.*.log")
	require.NoError(l.t, err)
	f.Close()
	s := &server{lab: l, addr: freeAddr(l.t), log: f.Name(), attr: &syscall.SysProcAttr{Credential: l.user}}
	s.args = append([]string{"serve", "--export", "data=" + export, "--listen", s.addr, "--state", l.path("server")}, flags...)
	l.t.Cleanup(func() {
		if s.cmd != nil {
			s.kill()
		}
		tail(l.t, s.log)
	})
	return s
}

// given are the ports that freeAddr has given away.
var given struct {
	sync.Mutex
	ports map[int]bool
}

// freeAddr finds three free ports in a row, outside the range from which
// connections get theirs, so that they stay free while no server runs.
func freeAddr(t testing.TB) string {
	t.Helper()
	given.Lock()
	defer given.Unlock()
	if given.ports == nil {
		given.ports = map[int]bool{}
	}
	for range 100 {
		port := 20000 + 3*rand.IntN(3333)
		if given.ports[port] {
			continue
		}
		given.ports[port] = true
		free := 0
		for i := range 3 {
			ln, err := net.Listen("tcp", "127.0.0.1:"+strconv.Itoa(port+i))
			if err == nil {
				ln.Close()
				free++
			}
		}
		if free == 3 {
			return "127.0.0.1:" + strconv.Itoa(port)
		}
	}
	t.Fatal("no three free ports in a row")
	return ""
}

// launch starts the server's process; wait tells when it is ready.
func (s *server) launch() (wait func() error) {
	t := s.lab.t
	t.Helper()
	require.Nil(t, s.cmd, "the server runs already")
	log, err := os.OpenFile(s.log, os.O_WRONLY|os.O_APPEND, 0)
	require.NoError(t, err)
	defer log.Close()
	argv := slices.Concat(s.under, []string{filepath.Join(s.lab.bin, "cageserverd")}, s.args)
	s.cmd = exec.Command(argv[0], argv[1:]...)
	s.cmd.Env, s.cmd.Dir, s.cmd.Stderr = s.lab.env, s.lab.dir, log
	s.cmd.SysProcAttr = s.attr
	out, err := s.cmd.StdoutPipe()
	require.NoError(t, err)
	require.NoError(t, s.cmd.Start())
	return func() error {
		line, err := bufio.NewReader(out).ReadString('\n')
		if err == nil && line != "ready "+s.addr+"\n" {
			err = fmt.Errorf("the server said %q", line)
		}
		return err
	}
}

// start starts the server and returns when it is ready.
func (s *server) start() {
	s.lab.t.Helper()
	require.NoError(s.lab.t, s.launch()(), "the server did not start; its log is %s", s.log)
}

// kill ends the server at once.
func (s *server) kill() {
	s.lab.t.Helper()
	require.NoError(s.lab.t, s.cmd.Process.Kill())
	s.cmd.Wait()
	s.cmd = nil
}

// stop ends the server in order.
func (s *server) stop() {
	s.lab.t.Helper()
	require.NoError(s.lab.t, s.cmd.Process.Signal(syscall.SIGTERM))
	err := s.cmd.Wait()
	s.cmd = nil
	require.NoError(s.lab.t, err, "the server did not end in order")
}

// stoppedAtMost is how long a process stays stopped whatever becomes of the test.
const stoppedAtMost = 3 * time.Minute

// suspend stops a process (SIGSTOP) until resume, or the end of the test. A stopped mount can hold up every
// ps of the machine; so a child that outlives this process lets it go on when the test
// does not: when its pipe ends, or stoppedAtMost has passed.
func suspend(t testing.TB, pid int) (resume func()) {
	t.Helper()
	guard := exec.Command("sh", "-c", `timeout "$1" cat >/dev/null; kill -CONT "$2"`, "sh", fmt.Sprint(stoppedAtMost.Seconds()), strconv.Itoa(pid))
	guard.SysProcAttr = &syscall.SysProcAttr{Setpgid: true} // outlives a Ctrl-C
	alive, err := guard.StdinPipe()
	require.NoError(t, err)
	require.NoError(t, guard.Start()) // first: a stopped mount may hold up who starts a program
	resume = sync.OnceFunc(func() {
		unix.Kill(pid, unix.SIGCONT)
		alive.Close()
		guard.Wait()
	})
	t.Cleanup(resume)
	require.NoError(t, unix.Kill(pid, unix.SIGSTOP))
	return resume
}

// mount mounts a server's export and returns the mountpoint. It is unmounted
// at the end of the test, if the test has not done it.
func (l *lab) mount(s *server, flags ...string) string {
	l.t.Helper()
	return l.mountSources([]string{s.addr + ":/data"}, flags...)
}

// mountSources does it with sources as they are typed.
func (l *lab) mountSources(sources []string, flags ...string) string {
	l.t.Helper()
	point, err := os.MkdirTemp(l.dir, "mnt.")
	require.NoError(l.t, err)
	l.own(point)
	log := point + ".log"
	args := append([]string{"mount", "--log-file", log}, flags...)
	l.run("cagefs", append(append(args, sources...), point)...)
	l.t.Cleanup(func() {
		defer tail(l.t, log)
		if !slices.Contains(mountsBelow(l.dir), point) {
			return
		}
		if _, err := l.try("cagefs", "umount", point); err != nil {
			l.t.Errorf("at the end of the test: %v", err)
			unix.Unmount(point, unix.MNT_DETACH)
		}
	})
	return point
}

// umount unmounts in order.
func (l *lab) umount(point string) {
	l.t.Helper()
	l.run("cagefs", "umount", point)
	require.NotContains(l.t, mountsBelow(l.dir), point, "umount returned, but it is still mounted")
}

// verify checks an export's journal, and the files against it; no server runs.
func (l *lab) verify(export string) error {
	out, err := l.try("cagejournal", "verify", "--full", "--dir", export)
	if err != nil {
		return fmt.Errorf("%w\n%s", err, out[:min(len(out), 1000)])
	}
	return nil
}

// tail shows the end of a log of a failed test.
func tail(t testing.TB, log string) {
	if !t.Failed() {
		return
	}
	b, err := os.ReadFile(log)
	if err == nil {
		t.Logf("the end of %s:\n%s", filepath.Base(log), b[max(0, len(b)-4000):])
	}
}

// seed returns where a test's randomness begins, and prints it. CAGE_SEED sets it.
func seed(t testing.TB) uint64 {
	n := rand.Uint64() >> 32
	if s := os.Getenv("CAGE_SEED"); s != "" {
		var err error
		n, err = strconv.ParseUint(s, 10, 64)
		require.NoError(t, err, "CAGE_SEED")
	}
	t.Logf("seed: CAGE_SEED=%d", n)
	return n
}

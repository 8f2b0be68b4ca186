package e2e

import (
	"context"
	"fmt"
	"io"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"
)

// The tests of this file and of program_*_test.go run real programs on a real
// mount. Each looks at what its program has made, and leaves to workshop.finish
// what holds for all: the server's plain files are what the mount shows, the
// journal is whole, and all that the program did can be taken back and done again.

// workshop is a server and a mount for a program to work in.
type workshop struct {
	*lab
	srv    *server
	export string // served directory
	mnt    string // where it is mounted
	ground string // the directory in the mount that programs work in; their users may come here
	local  string // a directory of the file system below, for what is to be compared
	before map[string]entry
}

// newWorkshop makes a workshop with programs that must be installed: their
// names, then the packages they come from.
func newWorkshop(t *testing.T, programs map[string]string) *workshop {
	t.Helper()
	needRoot(t)
	for prog, pkg := range programs {
		if _, err := exec.LookPath(prog); err != nil {
			unavailable(t, "the program %s is missing: apt-get install %s", prog, pkg)
		}
	}
	quickly(t)
	w := &workshop{lab: newLab(t, "")}
	require.NoError(t, os.Chmod(labRoot, 0o711))
	require.NoError(t, os.Chmod(w.dir, 0o711))
	w.export, w.local = w.mkdir("export"), w.mkdir("local")
	w.srv = w.newServer(w.export)
	w.srv.start()
	w.mnt = w.mount(w.srv)
	w.ground = filepath.Join(w.mnt, "ground")
	require.NoError(t, os.Mkdir(w.ground, 0o755))
	w.mark()
	return w
}

// mark makes the present the state that finish goes back to.
func (w *workshop) mark() {
	w.t.Helper()
	w.run("cagefs", "sync", w.mnt)
	w.before = survey(w.t, w.ground)
	_, err := w.try("cagejournal", "label", "before", w.mnt)
	require.NoError(w.t, err)
}

// finish compares the server's files with the mount, checks the journal, takes
// all back that happened since mark, does it again, and ends server and mount.
// check, if not nil, looks with the program's own eyes at what has come back.
func (w *workshop) finish(check func()) {
	t := w.t
	t.Helper()
	w.run("cagefs", "sync", w.mnt)
	after := survey(t, w.ground)
	same := func() {
		t.Helper()
		requireSame(t, after, w.ground)
		requireSame(t, linkless(after), filepath.Join(w.export, "ground"), linkless)
	}
	same()
	start := time.Now()
	w.long("cagejournal", "verify", "--full", w.mnt)
	verified := time.Now()
	undo := w.changing("cagejournal", "rollback", w.ground, "--to", "@label:before", "-y")
	back := time.Now()
	requireSame(t, w.before, w.ground)
	again := time.Now()
	if undo != nil {
		w.changing(append(undo, "-y")...)
	}
	t.Logf("verify --full %.1f s, rollback %.1f s, its undo %.1f s", verified.Sub(start).Seconds(), back.Sub(verified).Seconds(), time.Since(again).Seconds())
	same()
	if check != nil {
		check()
	}
	w.umount(w.mnt)
	require.Empty(t, mountsBelow(w.dir))
	w.srv.stop()
	w.long("cagejournal", "verify", "--full", "--dir", w.export)
}

// long runs one of the three programs, which may take its time and must succeed.
func (w *workshop) long(prog string, args ...string) {
	w.t.Helper()
	w.ask(task{args: append([]string{filepath.Join(w.bin, prog)}, args...), env: w.env})
}

// linkless leaves out the numbers of links: on the server's disk, names that
// the journal keeps count too.
func linkless(tree map[string]entry) map[string]entry {
	tree = maps.Clone(tree)
	for path, e := range tree {
		e.Links = 0
		tree[path] = e
	}
	return tree
}

// task is a run of a program.
type task struct {
	args  []string
	dir   string              // where it runs, else in the lab
	env   []string            // beside this process's own
	user  *syscall.Credential // else this process's own
	stdin io.Reader
}

// command prepares a task. Neither it nor what it starts outlives ctx.
func (k task) command(ctx context.Context) *exec.Cmd {
	cmd := exec.CommandContext(ctx, k.args[0], k.args[1:]...)
	cmd.Dir, cmd.Env, cmd.Stdin = k.dir, append(os.Environ(), k.env...), k.stdin
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Credential: k.user}
	cmd.Cancel = func() error { return unix.Kill(-cmd.Process.Pid, unix.SIGKILL) }
	cmd.WaitDelay = 10 * time.Second
	return cmd
}

// limit is how long a task may take. It is there to end one that hangs.
func limit() time.Duration {
	if accept {
		return 15 * time.Minute
	}
	return 2 * time.Minute
}

// attempt runs a task and returns what it prints; the error says how it ended.
func (w *workshop) attempt(k task) (string, error) {
	ctx, cancel := context.WithTimeout(context.Background(), limit())
	defer cancel()
	if k.dir == "" {
		k.dir = w.dir
	}
	out, err := k.command(ctx).CombinedOutput()
	if ctx.Err() != nil {
		err = fmt.Errorf("not done after %v: %w", limit(), err)
	}
	return string(out), err
}

// ask runs a task, which must succeed, and returns what it prints.
func (w *workshop) ask(k task) string {
	w.t.Helper()
	out, err := w.attempt(k)
	if err != nil {
		require.NoError(w.t, err, "%s\n%s", strings.Join(k.args, " "), out[max(0, len(out)-3000):])
	}
	return out
}

// in runs a program in a directory; it must succeed.
func (w *workshop) in(dir string, args ...string) string {
	w.t.Helper()
	return w.ask(task{args: args, dir: dir})
}

// compare does some work on the mount, and in full runs first beside it, on the
// file system below, and tells how long it took.
func (w *workshop) compare(what string, work func(dir string)) {
	w.t.Helper()
	took := func(dir string) time.Duration {
		start := time.Now()
		work(dir)
		return time.Since(start)
	}
	if !accept {
		w.t.Logf("%s: %.1f s", what, took(w.ground).Seconds())
		return
	}
	local := took(w.local)
	mount := took(w.ground)
	w.t.Logf("%s: %.1f s, local %.1f s, ratio %.1f", what, mount.Seconds(), local.Seconds(), mount.Seconds()/local.Seconds())
}

// full returns the number for quick runs, or that for full ones.
func full(quick, full int) int {
	if accept {
		return full
	}
	return quick
}

// quickly runs a test beside others, but for a long run, which is to have the machine to itself.
func quickly(t *testing.T) {
	if !accept {
		t.Parallel()
	}
}

// long runs are those that take minutes: they belong to `make programs`.
func onlyFull(t *testing.T) {
	if !accept {
		t.Skip("takes minutes: make programs")
	}
}

// lines splits what a program printed, without empty lines.
func lines(out string) []string {
	return slices.DeleteFunc(strings.Split(out, "\n"), func(s string) bool { return strings.TrimSpace(s) == "" })
}

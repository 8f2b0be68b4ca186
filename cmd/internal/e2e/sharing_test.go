package e2e

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"
)

// The tests of this file have two mounts work on the same files at the same time.
// Nothing may be lost, and each must get on: no step may take longer than stuck.
const stuck = 30 * time.Second

// sharedBy says where the two work, for comparison (docs/bench/sharing.md): both in one "mount", or
// in a "directory" of the file system below; else each in a mount of its own. With it they work longer, and alone.
var sharedBy = os.Getenv("CAGE_SHARED_BY")

// shares is how much each does.
func shares(quick, full int) int {
	switch {
	case accept:
		return full
	case sharedBy != "":
		return min(5*quick, full)
	}
	return quick
}

// twoMounts makes a server and two mounts of its export.
func twoMounts(t *testing.T) (l *lab, export, a, b string) {
	if sharedBy == "" {
		quickly(t)
	}
	l = newLab(t, "")
	export = l.mkdir("export")
	if sharedBy == "directory" {
		return l, export, export, export
	}
	s := l.newServer(export)
	s.start()
	a = l.mount(s)
	if sharedBy == "mount" {
		return l, export, a, a
	}
	return l, export, a, l.mount(s)
}

// push makes sure that the server has everything that was written in a mount.
func (l *lab) push(dir string) {
	l.t.Helper()
	if sharedBy != "directory" {
		l.run("cagefs", "sync", dir)
	}
}

// together runs functions at the same time and returns the first error, which ends the others.
func together(each ...func(ctx context.Context) error) error {
	ctx, cancel := context.WithCancelCause(context.Background())
	defer cancel(nil)
	var all sync.WaitGroup
	for _, f := range each {
		all.Go(func() {
			if err := f(ctx); err != nil {
				cancel(err)
			}
		})
	}
	all.Wait()
	return context.Cause(ctx)
}

// until looks again and again until something is so.
func until(ctx context.Context, what string, so func() (bool, error)) error {
	for end := time.Now().Add(stuck); ctx.Err() == nil; time.Sleep(50 * time.Microsecond) {
		if is, err := so(); is || err != nil {
			return err
		}
		if time.Now().After(end) {
			return fmt.Errorf("not within %v: %s", stuck, what)
		}
	}
	return ctx.Err()
}

// rate tells how many there were in a second.
func rate(t *testing.T, n int, what string, since time.Time) {
	took := time.Since(since)
	t.Logf("%d %s in %.2f s, %.1f a second", n, what, took.Seconds(), float64(n)/took.Seconds())
}

// TestSharingPingPong: two writers of one file raise a number in turn, each when
// it sees what the other wrote.
func TestSharingPingPong(t *testing.T) {
	l, export, a, b := twoMounts(t)
	n := shares(400, 20_000)
	require.NoError(t, os.WriteFile(a+"/ball", make([]byte, 4096), 0o644))
	l.push(a)
	player := func(path string, side uint64) func(ctx context.Context) error {
		fd := keepOpen(t, path, unix.O_RDWR)
		return func(ctx context.Context) error {
			var last uint64
			for last+2 <= uint64(n)+side {
				var now int64
				if err := until(ctx, fmt.Sprint("the other has raised it to ", last+1-side), func() (_ bool, err error) {
					now, err = readValue(fd, 0)
					if got := uint64(now); got < last || got > last+1 {
						return false, fmt.Errorf("after %d side %d sees %d", last, side, got)
					}
					return uint64(now)%2 == side, err
				}); err != nil {
					return err
				}
				last = uint64(now) + 1
				if _, err := unix.Pwrite(fd, binary.LittleEndian.AppendUint64(nil, last), 0); err != nil {
					return err
				}
			}
			return nil
		}
	}
	start := time.Now()
	require.NoError(t, together(player(a+"/ball", 0), player(b+"/ball", 1)))
	rate(t, n, "turns", start)
	l.push(a)
	l.push(b)
	text, err := os.ReadFile(filepath.Join(export, "ball"))
	require.NoError(t, err)
	require.EqualValues(t, n, binary.LittleEndian.Uint64(text)/2*2)
}

// TestSharingAPage: two writers, each of its half of one page, as fast as they can.
func TestSharingAPage(t *testing.T) {
	l, export, a, b := twoMounts(t)
	n := shares(500, 50_000)
	require.NoError(t, os.WriteFile(a+"/page", make([]byte, 4096), 0o644))
	l.push(a)
	writer := func(path string, at int64) func(ctx context.Context) error {
		fd := keepOpen(t, path, unix.O_RDWR)
		return func(ctx context.Context) error {
			for i := int64(1); i <= int64(n) && ctx.Err() == nil; i++ {
				start := time.Now()
				if _, err := unix.Pwrite(fd, binary.LittleEndian.AppendUint64(nil, uint64(i)), at); err != nil {
					return err
				}
				if got, err := readValue(fd, at); err != nil || got != i {
					return fmt.Errorf("%d: wrote %d and read %d (%v)", at, i, got, err)
				}
				if took := time.Since(start); took > stuck {
					return fmt.Errorf("a write and a read took %v", took)
				}
			}
			return nil
		}
	}
	start := time.Now()
	require.NoError(t, together(writer(a+"/page", 0), writer(b+"/page", 2048)))
	rate(t, 2*n, "writes and reads", start)
	l.push(a)
	l.push(b)
	for _, dir := range []string{export, a, b} {
		awaitSight(t, func() (string, error) {
			text, err := os.ReadFile(filepath.Join(dir, "page"))
			if err != nil {
				return "", err
			}
			return fmt.Sprint(binary.LittleEndian.Uint64(text), binary.LittleEndian.Uint64(text[2048:])), nil
		}, fmt.Sprint(n, n))
	}
}

// TestSharingFollow: a file is appended to, and followed on another mount and on
// the server, as tail -f does: each line arrives whole and in its place.
func TestSharingFollow(t *testing.T) {
	l, export, a, b := twoMounts(t)
	n := shares(1000, 50_000)
	require.NoError(t, os.WriteFile(a+"/log", nil, 0o644))
	l.push(a)
	log := keepOpen(t, a+"/log", unix.O_WRONLY|unix.O_APPEND)
	written := make([]atomic.Int64, n) // when
	write := func(ctx context.Context) error {
		for i := range n {
			if _, err := unix.Write(log, logLine(i)); err != nil || ctx.Err() != nil {
				return err
			}
			written[i].Store(time.Now().UnixNano())
		}
		return nil
	}
	late := [2]time.Duration{}
	follow := func(who int, path string) func(ctx context.Context) error {
		fd := keepOpen(t, path, unix.O_RDONLY)
		return func(ctx context.Context) error {
			var got []byte
			for i := 0; i < n; {
				if err := until(ctx, fmt.Sprint("line ", i, " has arrived"), func() (bool, error) {
					buf := make([]byte, 16<<10)
					k, err := unix.Read(fd, buf)
					got = append(got, buf[:max(k, 0)]...)
					return k != 0, err
				}); err != nil {
					return err
				}
				for ; bytes.IndexByte(got, '\n') >= 0; i++ {
					line, rest, _ := bytes.Cut(got, []byte("\n"))
					if want := logLine(i); string(line)+"\n" != string(want) {
						return fmt.Errorf("line %d is %q, not %q", i, line, want)
					}
					if at := written[i].Load(); at != 0 {
						late[who] = max(late[who], time.Since(time.Unix(0, at)))
					}
					got = rest
				}
			}
			return nil
		}
	}
	start := time.Now()
	require.NoError(t, together(write, follow(0, b+"/log"), follow(1, filepath.Join(export, "log"))))
	rate(t, n, "lines", start)
	t.Logf("at most %.1f ms late on another mount, %.1f ms on the server", float64(late[0])/1e6, float64(late[1])/1e6)
}

// TestSharingAppend: both mounts append to one file. Nothing is lost, the lines of each are in
// its order, and that a line went elsewhere than its mount took the end to be is no error.
func TestSharingAppend(t *testing.T) {
	l, export, a, b := twoMounts(t)
	n := shares(300, 20_000)
	require.NoError(t, os.WriteFile(a+"/log", nil, 0o644))
	l.push(a)
	appender := func(path, who string) func(ctx context.Context) error {
		fd := keepOpen(t, path, unix.O_WRONLY|unix.O_APPEND)
		return func(ctx context.Context) error {
			for i := 0; i < n && ctx.Err() == nil; i++ {
				if _, err := unix.Write(fd, append([]byte(who), logLine(i)...)); err != nil {
					return err
				}
			}
			return nil
		}
	}
	start := time.Now()
	require.NoError(t, together(appender(a+"/log", "a"), appender(b+"/log", "b")))
	rate(t, 2*n, "lines", start)
	l.push(a)
	l.push(b)
	for _, dir := range []string{export, a, b} {
		awaitSight(t, func() (string, error) {
			text, err := os.ReadFile(filepath.Join(dir, "log"))
			if err != nil {
				return "", err
			}
			var next [2]int
			for line := range bytes.Lines(text) {
				who := line[0] - 'a'
				if who > 1 || string(line[1:]) != string(logLine(next[who])) {
					return fmt.Sprintf("after %v comes %q", next, line), nil
				}
				next[who]++
			}
			return fmt.Sprint(next), nil
		}, fmt.Sprint([2]int{n, n}))
	}
	for _, m := range []string{a, b} {
		if sharedBy == "directory" {
			break
		}
		log, err := os.ReadFile(m + ".log")
		require.NoError(t, err)
		require.NotContains(t, string(log), `"level":"error"`)
	}
}

// logLine is a line of a log, of a length of its own.
func logLine(i int) []byte {
	text := fmt.Sprint(i, " ", strings.Repeat("x", i*7%211))
	return fmt.Appendf(nil, "%s %08x\n", text, crc32.ChecksumIEEE([]byte(text)))
}

// TestSharingGit: two clients commit in one work tree through two mounts. The
// lock files of git exclude, so no commit is lost.
func TestSharingGit(t *testing.T) {
	if _, err := exec.LookPath("git"); err != nil {
		unavailable(t, "the program git is missing: apt-get install git")
	}
	l, export, a, b := twoMounts(t)
	n := shares(6, 100)
	git := func(dir string, args ...string) (string, error) {
		ctx, cancel := context.WithTimeout(context.Background(), limit())
		defer cancel()
		cmd := exec.CommandContext(ctx, "git", args...)
		cmd.Dir = dir
		cmd.Env = append(os.Environ(), "HOME="+l.dir, "GIT_CONFIG_NOSYSTEM=1", "GIT_AUTHOR_NAME=N", "GIT_AUTHOR_EMAIL=n@example.org", "GIT_COMMITTER_NAME=N", "GIT_COMMITTER_EMAIL=n@example.org")
		out, err := cmd.CombinedOutput()
		if err != nil {
			err = fmt.Errorf("git %s: %w: %s", strings.Join(args, " "), err, out)
		}
		return strings.TrimSpace(string(out)), err
	}
	must := func(dir string, args ...string) string {
		t.Helper()
		out, err := git(dir, args...)
		require.NoError(t, err)
		return out
	}
	must(a, "init", "-q", "-b", "main", "repo")
	must(a+"/repo", "config", "gc.auto", "0")
	must(a+"/repo", "commit", "-q", "--allow-empty", "-m", "first")
	l.push(a)
	awaitSight(t, func() (string, error) { return git(b+"/repo", "rev-list", "--count", "HEAD") }, "1")
	var refused atomic.Int64
	client := func(repo, who string) func(ctx context.Context) error {
		// excluded does it again while the other has the lock file.
		excluded := func(ctx context.Context, args ...string) error {
			return until(ctx, "git "+args[0], func() (bool, error) {
				_, err := git(repo, args...)
				if err == nil {
					return true, nil
				}
				// The file of the message has no lock: what one has emptied the other may read.
				for _, lock := range []string{".lock': File exists", "cannot lock ref", "empty commit message"} {
					if strings.Contains(err.Error(), lock) {
						refused.Add(1)
						return false, nil
					}
				}
				return false, err
			})
		}
		return func(ctx context.Context) error {
			for i := range n {
				name := fmt.Sprint(who, i)
				if err := os.WriteFile(filepath.Join(repo, name), []byte(name), 0o644); err != nil {
					return err
				}
				if err := excluded(ctx, "add", name); err != nil {
					return err
				}
				if err := excluded(ctx, "commit", "-q", "--allow-empty", "-m", name); err != nil {
					return err
				}
			}
			return nil
		}
	}
	start := time.Now()
	require.NoError(t, together(client(a+"/repo", "a"), client(b+"/repo", "b")))
	rate(t, 2*n, "commits", start)
	t.Logf("%d times the other had the lock", refused.Load())
	for _, dir := range []string{a, b} {
		l.push(dir)
	}
	must(a+"/repo", "gc", "-q", "--prune=now")
	l.push(a)
	for _, dir := range []string{b, a, export} {
		repo := filepath.Join(dir, "repo")
		must(dir, "config", "--global", "--replace-all", "safe.directory", "*")
		require.Empty(t, must(repo, "fsck", "--full", "--strict", "--no-progress"), dir)
		// Each commit is there once. Not each file: git reads the index before it takes its lock.
		subjects := lines(must(repo, "log", "--format=%s"))
		require.Len(t, subjects, 2*n+1, dir)
		slices.Sort(subjects)
		require.Len(t, slices.Compact(subjects), 2*n+1, dir)
	}
	// Of what the index has, all is there; for the same reason it may lack a file.
	require.Empty(t, must(b+"/repo", "diff", "--stat"))
}

// TestSharingSQLite: a writer on each mount of one database, in the mode of the
// rollback journal, whose locks hold between mounts.
func TestSharingSQLite(t *testing.T) {
	if _, err := exec.LookPath("sqlite3"); err != nil {
		unavailable(t, "the program sqlite3 is missing: apt-get install sqlite3")
	}
	_, _, a, b := twoMounts(t)
	rows := shares(40, 2000)
	sql := func(dir, text string) string {
		t.Helper()
		ctx, cancel := context.WithTimeout(context.Background(), limit())
		defer cancel()
		out, err := task{args: []string{"sqlite3", "-bail", dir + "/db", "PRAGMA busy_timeout=60000; " + text}, dir: os.TempDir()}.command(ctx).CombinedOutput()
		require.NoError(t, err, "%s", out)
		return strings.TrimPrefix(strings.TrimSpace(string(out)), "60000\n")
	}
	sql(a, "PRAGMA journal_mode=delete; CREATE TABLE t(w INTEGER, n INTEGER, b BLOB, PRIMARY KEY(w, n)); CREATE TABLE sum(w INTEGER PRIMARY KEY, n INTEGER); INSERT INTO sum VALUES(0,0),(1,0)")
	awaitSight(t, func() (string, error) { _, err := os.Lstat(b + "/db"); return "", err }, "")
	start := time.Now()
	writers := []*sqlWriter{startSQLWriter(t, a+"/db", 0, rows), startSQLWriter(t, b+"/db", 1, rows)}
	for _, w := range writers {
		require.NoError(t, w.wait(), "%s", w.errs)
		require.EqualValues(t, rows, w.told.Load())
	}
	rate(t, 2*rows, "transactions", start)
	for _, dir := range []string{a, b} {
		require.Equal(t, "ok", sql(dir, "PRAGMA integrity_check"))
		for w := range writers {
			require.Equal(t, fmt.Sprintf("%d|%d", rows, rows*(rows+1)/2), sql(dir, fmt.Sprintf("SELECT count(*), (SELECT n FROM sum WHERE w=%d) FROM t WHERE w=%d", w, w)))
		}
	}
}

// TestSharingBuild: a program is built through one mount, while another lists
// the directory over and over, and runs what was built.
func TestSharingBuild(t *testing.T) {
	_, _, a, b := twoMounts(t)
	n := shares(3, 60)
	const packages = 5
	src := filepath.Join(a, "src")
	main := "package main\n\nimport (\n\t\"os\"\n"
	body := ""
	for i := range packages {
		require.NoError(t, os.MkdirAll(filepath.Join(src, fmt.Sprint("p", i)), 0o755))
		main += fmt.Sprintf("\t\"x/p%d\"\n", i)
		body += fmt.Sprintf("\tos.Stdout.WriteString(p%d.Text)\n", i)
	}
	require.NoError(t, os.WriteFile(src+"/go.mod", []byte("module x\n\ngo 1.26\n"), 0o644))
	require.NoError(t, os.WriteFile(src+"/main.go", []byte(main+")\n\nfunc main() {\n"+body+"}\n"), 0o644))
	done := make(chan struct{})
	build := func(ctx context.Context) error {
		defer close(done)
		for round := range n {
			want := ""
			for i := range packages {
				text := fmt.Sprint(round, ".", i, ";")
				want += text
				if err := os.WriteFile(filepath.Join(src, fmt.Sprintf("p%d/p.go", i)), fmt.Appendf(nil, "package p%d\n\nconst Text = %q\n", i, text), 0o644); err != nil {
					return err
				}
			}
			cmd := exec.CommandContext(ctx, "go", "build", "-o", "../out/", ".")
			cmd.Dir, cmd.Env = src, append(os.Environ(), "GOFLAGS=-buildvcs=false", "GOWORK=off")
			if out, err := cmd.CombinedOutput(); err != nil {
				return fmt.Errorf("go build: %w: %s", err, out)
			}
			out, err := exec.CommandContext(ctx, b+"/out/x").CombinedOutput()
			if err != nil || string(out) != want {
				return fmt.Errorf("what was built says %q (%v), not %q", out, err, want)
			}
		}
		return nil
	}
	var lists, entries int
	list := func(ctx context.Context) error {
		for ctx.Err() == nil {
			start := time.Now()
			err := filepath.WalkDir(b, func(_ string, d fs.DirEntry, err error) error {
				if err == nil {
					_, err = d.Info()
				}
				entries++
				if errors.Is(err, fs.ErrNotExist) { // it has gone meanwhile
					return nil
				}
				return err
			})
			if took := time.Since(start); err == nil && took > stuck {
				err = fmt.Errorf("a list took %v", took)
			}
			if err != nil {
				return err
			}
			lists++
			select {
			case <-done:
				return nil
			default:
			}
		}
		return ctx.Err()
	}
	start := time.Now()
	require.NoError(t, together(build, list))
	rate(t, n, "builds", start)
	rate(t, lists, fmt.Sprintf("lists with %d entries", entries), start)
}

package e2e

import (
	"bufio"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"
)

// lockScript is what three processes do, by their number, and what each is told. "…"
// is a command that waits; a later "=" with the same number is its end. A step of nobody begins a part.
var lockScript = []struct{ who, say, want string }{
	{"0", "open f file rw", "ok"}, {"1", "open f file rw", "ok"}, {"2", "open f file rw", "ok"}, {"2", "open r file ro", "ok"},

	{"0", "posix f sh 0 10 try", "ok"}, {"1", "posix f sh 5 10 try", "ok"}, {"2", "posix f ex 9 1 try", "EAGAIN"},
	{"2", "posix f ex 15 5 try", "ok"}, {"1", "get posix f ex 0 0", "sh 0 10"}, {"0", "get posix f sh 0 0", "ex 15 5"},
	{"0", "get posix f sh 0 15", "free"}, {"0", "posix f ex 0 6 try", "EAGAIN"}, {"0", "posix f ex 0 5 try", "ok"},
	{"1", "posix f sh 4 1 try", "EAGAIN"}, {"1", "get posix f sh 0 10", "ex 0 5"},
	{"0", "posix f un 2 1 try", "ok"}, {"2", "posix f ex 2 1 try", "ok"}, {"0", "posix f un 0 0 try", "ok"},
	{"1", "posix f un 0 0 try", "ok"}, {"2", "posix f un 0 0 try", "ok"}, {"0", "get posix f ex 0 0", "free"},
	{"2", "posix r ex 0 1 try", "EBADF"}, {"2", "posix r sh 0 1 try", "ok"}, {"2", "posix r un 0 1 try", "ok"},

	// waiting: shared, exclusive, an upgrade, and whoever closes another descriptor
	{"0", "posix f ex 0 1 try", "ok"}, {"1", "posix f sh 0 1 wait", "…"}, {"2", "posix f sh 0 1 wait", "…"},
	{"0", "posix f un 0 1 try", "ok"}, {"1", "=", "ok"}, {"2", "=", "ok"},
	{"0", "posix f ex 0 0 wait", "…"}, {"2", "posix f un 0 1 try", "ok"},
	{"1", "posix f ex 0 1 wait", "ok"}, {"1", "dup f g", "ok"}, {"1", "close g", "ok"}, {"0", "=", "ok"},
	{"0", "open g file ro", "ok"}, {"1", "posix f sh 7 7 wait", "…"}, {"0", "close g", "ok"}, {"1", "=", "ok"},
	{"1", "posix f un 0 0 try", "ok"},

	{"", "circle", ""},
	{"0", "posix f ex 0 1 try", "ok"}, {"1", "posix f ex 1 1 try", "ok"}, {"2", "posix f ex 2 1 try", "ok"},
	{"0", "posix f sh 1 1 wait", "…"}, {"1", "posix f sh 2 1 wait", "…"}, {"2", "posix f ex 0 2 wait", "EDEADLK"},
	{"2", "posix f un 0 0 try", "ok"}, {"1", "=", "ok"}, {"1", "posix f un 0 0 try", "ok"}, {"0", "=", "ok"}, {"0", "posix f un 0 0 try", "ok"},

	{"", "open files", ""},
	{"0", "open a file rw", "ok"}, {"0", "open b file rw", "ok"},
	{"0", "ofd a ex 0 4 try", "ok"}, {"0", "ofd b sh 3 1 try", "EAGAIN"}, {"0", "posix f sh 3 1 try", "EAGAIN"}, {"1", "posix f sh 0 1 try", "EAGAIN"},
	{"0", "dup a c", "ok"}, {"0", "close a", "ok"}, {"1", "get ofd f sh 0 0", "ex 0 4"}, {"1", "ofd f ex 0 0 wait", "…"},
	{"0", "close c", "ok"}, {"1", "=", "ok"}, {"1", "ofd f un 0 0 try", "ok"}, {"0", "close b", "ok"},

	// flock, which neither sees nor is seen
	{"0", "flock f sh 0 0 try", "ok"}, {"1", "posix f ex 0 0 try", "ok"}, {"1", "flock f sh 0 0 try", "ok"},
	{"0", "flock f ex 0 0 try", "EAGAIN"}, {"1", "flock f ex 0 0 try", "ok"}, {"0", "flock f sh 0 0 try", "EAGAIN"},
	{"2", "flock r ex 0 0 wait", "…"}, {"1", "flock f un 0 0 try", "ok"}, {"2", "=", "ok"},
	{"1", "flock f sh 0 0 wait", "…"}, {"2", "close r", "ok"}, {"1", "=", "ok"}, {"1", "flock f un 0 0 try", "ok"}, {"1", "posix f un 0 0 try", "ok"},

	// who dies lets go, and does not get what he waited for
	{"2", "open r file ro", "ok"}, {"2", "flock r ex 0 0 try", "ok"}, {"2", "posix f ex 0 5 try", "ok"}, {"2", "ofd r sh 9 1 try", "ok"},
	{"0", "posix f ex 0 0 wait", "…"}, {"1", "flock f sh 0 0 wait", "…"},
	{"2", "kill", "dead"}, {"0", "=", "ok"}, {"1", "=", "ok"},
	{"1", "posix f ex 3 0 wait", "…"}, {"1", "kill", "dead"}, {"0", "posix f un 0 0 try", "ok"},
	{"3", "open f file rw", "ok"}, {"3", "posix f ex 0 0 wait", "ok"}, {"3", "flock f ex 0 0 wait", "ok"},
	{"0", "posix f sh 0 0 wait", "…"}, {"0", "interrupt", "dead"}, {"3", "posix f un 0 0 try", "ok"}, {"4", "open f file rw", "ok"}, {"4", "posix f ex 0 0 wait", "ok"},
}

// playLocks plays it, with each process in its directory, but for one part.
func playLocks(t *testing.T, dirs [5]string, without string) {
	ps := map[string]*locker{}
	part := ""
	for i, step := range lockScript {
		if step.who == "" {
			part = step.say
			continue
		}
		if without != "" && part == without {
			continue
		}
		p := ps[step.who]
		if p == nil {
			p = newLocker(t, dirs[step.who[0]-'0'])
			ps[step.who] = p
		}
		name := fmt.Sprintf("step %d: process %s: %s", i, step.who, step.say)
		switch step.say {
		case "=":
			require.Equal(t, step.want, p.answer(), name)
			continue
		case "kill":
			p.kill()
			continue
		case "interrupt":
			require.NoError(t, p.cmd.Process.Signal(unix.SIGINT))
			require.Equal(t, "dead", p.answer(), name)
			continue
		}
		if p.say("%s", step.say); step.want == "…" {
			p.blocked()
			continue
		}
		require.Equal(t, step.want, p.answer(), name)
	}
}

// TestLocks: processes that lock a file through two mounts are told what they
// would be told on a local file system.
func TestLocks(t *testing.T) {
	t.Parallel()
	l := newLab(t, "")
	export := l.mkdir("export")
	s := l.newServer(export)
	s.start()
	a, b := l.mount(s), l.mount(s)
	local := l.mkdir("local")
	for name, dirs := range map[string][5]string{
		"ext4": {local, local, local, local, local}, "one mount": {a + "/1", a + "/1", a + "/1", a + "/1", a + "/1"},
		"two mounts": {a + "/2", b + "/2", a + "/2", b + "/2", b + "/2"},
	} {
		require.NoError(t, os.MkdirAll(dirs[0], 0o755))
		t.Run(name, func(t *testing.T) { playLocks(t, dirs, "") })
	}
	// The kernel sees no circle that goes through the server's table.
	for name, dirs := range map[string][5]string{
		"a program of the server": {a + "/3", export + "/3", a + "/3", b + "/3", a + "/3"},
		"a mount among programs":  {export + "/4", a + "/4", export + "/4", export + "/4", b + "/4"},
	} {
		require.NoError(t, os.MkdirAll(dirs[0], 0o755))
		for _, dir := range dirs {
			require.Eventually(t, func() bool { _, err := os.Stat(dir); return err == nil }, 5*time.Second, 10*time.Millisecond)
		}
		t.Run(name, func(t *testing.T) {
			require.NoError(t, os.WriteFile(dirs[0]+"/file", nil, 0o644))
			for _, dir := range dirs {
				require.Eventually(t, func() bool { _, err := os.Stat(dir + "/file"); return err == nil }, 5*time.Second, 10*time.Millisecond)
			}
			playLocks(t, dirs, "circle")
		})
	}
	t.Run("a signal that is handled", func(t *testing.T) {
		p := newLocker(t, a)
		p.do("open f signal rw", "flock f ex 0 0 try")
		cmd := exec.Command("perl", "-e", `$SIG{USR1} = sub {}; $| = 1; open(F, "+<", shift) or die; print "go\n"; print flock(F, 2) ? "locked\n" : "$!\n"`, b+"/signal")
		cmd.Stderr = os.Stderr
		out, err := cmd.StdoutPipe()
		require.NoError(t, err)
		require.Eventually(t, func() bool { _, err := os.Stat(b + "/signal"); return err == nil }, 5*time.Second, 10*time.Millisecond)
		require.NoError(t, cmd.Start())
		lines := bufio.NewReader(out)
		line, err := lines.ReadString('\n')
		require.NoError(t, err)
		require.Equal(t, "go\n", line)
		said := make(chan string, 1)
		go func() {
			line, _ := lines.ReadString('\n')
			said <- line
		}()
		require.Eventually(t, func() bool {
			cmd.Process.Signal(unix.SIGUSR1) // the first may come before it waits
			select {
			case line = <-said:
				return true
			default:
				return false
			}
		}, 5*time.Second, 20*time.Millisecond)
		require.Equal(t, "Interrupted system call\n", line)
		require.NoError(t, cmd.Wait())
		p.do("flock f un 0 0 try", "flock f ex 0 0 try") // it was undone, or this fails
	})
	t.Run("a past state", func(t *testing.T) {
		p := newLocker(t, a)
		p.do("open f past rw", "write f 0 x", "posix f ex 0 0 try")
		l.run("cagefs", "sync", a)
		then := l.mountSources([]string{s.addr + ":/data@" + time.Now().Format("2006-01-02T15:04:05.000000000")})
		q := newLocker(t, then)
		q.do("open f past ro", "posix f sh 0 0 try", "flock f ex 0 0 try")
	})
}

// TestLocksAndContent: who gets a lock sees all that was written under it
// before, through a file that stays open, content and size, whichever sort of
// lock it is; programs of the server as well.
func TestLocksAndContent(t *testing.T) {
	t.Parallel()
	l := newLab(t, "")
	export := l.mkdir("export")
	s := l.newServer(export)
	s.start()
	mounts := []string{l.mount(s), l.mount(s), export}
	for _, kind := range []string{"posix", "ofd", "flock"} {
		t.Run(kind, func(t *testing.T) {
			require.NoError(t, os.WriteFile(filepath.Join(mounts[0], kind), make([]byte, 8), 0o644))
			l.run("cagefs", "sync", mounts[0])
			const procs = 6
			n := full(30, 700)
			var ps [procs]*locker
			for i := range ps {
				ps[i] = newLocker(t, mounts[i%3])
				ps[i].do("open f " + kind + " rw")
			}
			for _, p := range ps {
				p.say("count f %s %d", kind, n)
			}
			for _, p := range ps {
				require.Equal(t, "ok", p.answer())
			}
			for _, m := range mounts {
				b, err := os.ReadFile(filepath.Join(m, kind))
				require.NoError(t, err)
				require.Len(t, b, 8*(procs*n+1))
				require.EqualValues(t, procs*n, binary.LittleEndian.Uint64(b))
				for i := 1; i <= procs*n; i++ {
					require.EqualValues(t, i, binary.LittleEndian.Uint64(b[8*i:]))
				}
			}
		})
	}
}

// TestLocksOutliveConnections: over a cut and a restart of the server locks stay
// with their owners and waiters go on to wait; a client that is gone for too long
// loses its locks, and what it goes on to do under them fails.
func TestLocksOutliveConnections(t *testing.T) {
	t.Parallel()
	l := newLab(t, "")
	s := l.newServer(l.mkdir("export"), "--lock-timeout", "4s", "--lease-term", "5s")
	s.start()
	p := newProxy(t, s.addr)
	far, near := l.through(s, p), l.mount(s)
	a, b, c := newLocker(t, far), newLocker(t, near), newLocker(t, near)
	a.do("open f file rw", "open g file rw", "posix f ex 0 10 try", "flock g ex 0 0 try", "write f 0 held")
	l.run("cagefs", "sync", far)
	for _, x := range []*locker{b, c} {
		require.Eventually(t, func() bool { return x.ask("open f file rw") == "ok" }, 5*time.Second, 10*time.Millisecond)
	}
	b.do("posix f sh 20 1 try")
	a.do("posix f sh 20 1 try")
	c.say("posix f ex 20 1 wait")
	c.blocked()

	held := func() {
		t.Helper()
		require.Equal(t, "EAGAIN", b.ask("posix f sh 5 1 try"))
		require.Equal(t, "EAGAIN", b.ask("flock f sh 0 0 try"))
		require.Equal(t, "ex 0 10", b.ask("get posix f sh 0 10"))
		a.do("write f 0 mine")
		c.blocked()
	}
	held()
	p.cut()
	held()
	s.kill()
	s.start()
	held()
	s.stop()
	s.start()
	held()

	// Two wait for each other over a restart.
	b.say("posix f ex 0 10 wait")
	b.blocked()
	p.cut()
	b.blocked()
	a.do("write f 0 last", "posix f un 0 10 try")
	require.Equal(t, "ok", b.answer())
	require.Equal(t, `"last"`, b.ask("read f 0 4"))
	b.do("posix f un 0 0 try")
	a.do("posix f ex 0 10 try")

	// Too long away.
	writeAway(t, func() {
		a.do("write f 0 last")
		l.run("cagefs", "sync", far)
	}, p.refuse, func() { p.accept(t) }, func() error {
		if said := a.ask("write f 0 late"); said != "ok" { // accepted: it does not know yet
			return errors.New(said)
		}
		return nil
	})
	b.say("posix f ex 0 1 wait")
	require.Equal(t, "ok", b.answer())
	require.Equal(t, `"last"`, b.ask("read f 0 4"))
	b.do("flock f ex 0 0 wait", "write f 0 next")
	require.Equal(t, "ok", c.answer(), "nobody else had shared that")
	p.accept(t)
	require.Eventually(t, func() bool { return a.ask("read f 0 4") == "EIO" }, 10*time.Second, 20*time.Millisecond)
	for _, cmd := range []string{"write f 0 evil", "write g 0 evil", "posix f sh 50 1 try", "get posix f sh 50 1"} {
		require.Equal(t, "EIO", a.ask("%s", cmd), cmd)
	}
	require.Eventually(t, func() bool { return l.state(far).Ops == 0 }, 10*time.Second, 20*time.Millisecond)
	newLocker(t, far).do("open r file ro", "close r")
	require.Equal(t, "EIO", a.ask("close f"), "it is told that a write was lost, and no reader before")
	require.Equal(t, "EIO", a.ask("close g"), "and whoever else may have written")
	a.do("open f file rw")
	require.Equal(t, `"next"`, a.ask("read f 0 4"), "what came too late is nowhere")
	require.Equal(t, "EAGAIN", a.ask("posix f ex 0 1 try"))
	b.do("posix f un 0 0 try")
	a.do("posix f ex 0 1 try")
}

// TestLocksOfTheDead: a client that is killed gives its locks up before long.
func TestLocksOfTheDead(t *testing.T) {
	t.Parallel()
	l := newLab(t, "")
	s := l.newServer(l.mkdir("export"), "--lock-timeout", "3s", "--lease-term", "3s")
	s.start()
	doomed, m := l.mount(s), l.mount(s)
	a, b := newLocker(t, doomed), newLocker(t, m)
	a.do("open f file rw", "posix f ex 0 0 try", "flock f ex 0 0 try", "write f 0 kept")
	l.run("cagefs", "sync", doomed)
	require.NoError(t, unix.Kill(l.state(doomed).PID, unix.SIGKILL))
	require.NotEqual(t, "ok", a.ask("read f 0 4"))
	require.Eventually(t, func() bool { return b.ask("open f file rw") == "ok" }, 5*time.Second, 10*time.Millisecond)
	require.Equal(t, "EAGAIN", b.ask("posix f ex 0 0 try"))
	b.do("posix f ex 0 0 wait", "flock f ex 0 0 wait")
	require.Equal(t, `"kept"`, b.ask("read f 0 4"))
	require.NoError(t, unix.Unmount(doomed, unix.MNT_DETACH))
}

// TestLocksOfTheFrozen: a client that is stopped for longer than its connection
// and its locks last must not go on as if it had them when it wakes up.
func TestLocksOfTheFrozen(t *testing.T) {
	if !accept {
		t.Skip("it takes as long as a silent connection lasts: make accept")
	}
	t.Parallel()
	l := newLab(t, "")
	s := l.newServer(l.mkdir("export"), "--lock-timeout", "1s", "--idle-timeout", "20s")
	s.start()
	frozen, m := l.mount(s), l.mount(s)
	a, b := newLocker(t, frozen), newLocker(t, m)
	a.do("open f file rw")
	require.Eventually(t, func() bool { return b.ask("open f file rw") == "ok" }, 5*time.Second, 10*time.Millisecond) // later it would wait for the lease
	a.do("write f 0 mine", "posix f ex 0 0 try")
	l.run("cagefs", "sync", frozen)
	resume := suspend(t, l.state(frozen).PID)
	b.say("posix f ex 0 0 wait")
	a.say("write f 0 evil") // it is in the kernel's queue when the client wakes up
	require.Equal(t, "ok", b.answer())
	b.do("write f 0 next")
	resume()
	t.Log("the write when it woke up:", a.answer())
	require.Eventually(t, func() bool { return a.ask("read f 0 4") == "EIO" }, 60*time.Second, 50*time.Millisecond)
	a.ask("close f")
	a.do("open f file rw")
	require.Equal(t, `"next"`, a.ask("read f 0 4"))
	require.Equal(t, `"next"`, b.ask("read f 0 4"))
}

// TestLocksSQLite: writers on two mounts and on the server count up in one database.
func TestLocksSQLite(t *testing.T) {
	t.Parallel()
	if _, err := exec.LookPath("sqlite3"); err != nil {
		t.Skip("there is no sqlite3")
	}
	l := newLab(t, "")
	export := l.mkdir("export")
	s := l.newServer(export)
	s.start()
	mounts := []string{l.mount(s), l.mount(s), export}
	sql := func(m, text string) string {
		t.Helper()
		out, err := exec.Command("sqlite3", "-bail", m+"/db", "PRAGMA busy_timeout=60000", text).CombinedOutput()
		require.NoError(t, err, "%s", out)
		return strings.TrimPrefix(strings.TrimSpace(string(out)), "60000\n")
	}
	sql(mounts[0], "CREATE TABLE n(n INTEGER); INSERT INTO n VALUES(0); CREATE TABLE log(w INTEGER, n INTEGER)")
	const writers = 6
	rows := full(10, 500)
	var all [writers]*exec.Cmd
	for i := range all {
		cmd := exec.Command("sqlite3", "-bail", mounts[i%3]+"/db")
		in, err := cmd.StdinPipe()
		require.NoError(t, err)
		cmd.Stderr = os.Stderr
		require.NoError(t, cmd.Start())
		go func() {
			defer in.Close()
			io.WriteString(in, "PRAGMA busy_timeout=60000;\n")
			for range rows {
				fmt.Fprintf(in, "BEGIN IMMEDIATE; UPDATE n SET n=n+1; INSERT INTO log SELECT %d, n FROM n; COMMIT;\n", i)
			}
		}()
		all[i] = cmd
	}
	for _, cmd := range all {
		require.NoError(t, cmd.Wait())
	}
	want := fmt.Sprintf("%d|%d|%d\nok", writers*rows, writers*rows, writers*rows)
	for _, m := range mounts {
		require.Equal(t, want, sql(m, "SELECT (SELECT n FROM n), count(DISTINCT n), count(*) FROM log; PRAGMA integrity_check"))
	}
}

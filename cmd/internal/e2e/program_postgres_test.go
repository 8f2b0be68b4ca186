package e2e

import (
	"os"
	"os/user"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"
)

// TestProgramPostgres keeps a PostgreSQL cluster on the mount, owned by its own
// user, under load: with the clients of the database cut off, its processes killed,
// the Cage server killed. What was told committed is there, all sums agree, and
// PostgreSQL's own checks of tables, indexes and checksums find nothing.
func TestProgramPostgres(t *testing.T) {
	onlyFull(t)
	bins, err := filepath.Glob("/usr/lib/postgresql/*/bin")
	require.NoError(t, err)
	if len(bins) == 0 {
		unavailable(t, "PostgreSQL is missing: apt-get install postgresql")
	}
	w := newWorkshop(t, nil)
	p := &cluster{workshop: w, bin: bins[len(bins)-1], run: w.mkdir("postgres"), user: credential(t, "postgres")}
	require.NoError(t, os.Chown(p.run, int(p.user.Uid), int(p.user.Gid)))
	t.Cleanup(func() {
		if p.data != "" {
			w.attempt(p.task("pg_ctl", "-m", "immediate", "stop"))
		}
		tail(t, filepath.Join(p.run, "log"))
	})

	seconds := strconv.Itoa(full(2, 20))
	w.compare("initdb, pgbench", func(dir string) {
		p.data, p.told = filepath.Join(dir, "data"), 0
		require.NoError(t, os.Mkdir(p.data, 0o700))
		require.NoError(t, os.Chown(p.data, int(p.user.Uid), int(p.user.Gid)))
		phase := func(what string, run func()) {
			start := time.Now()
			run()
			t.Logf("%s in %s: %.1f s", what, dir, time.Since(start).Seconds())
		}
		phase("initdb", func() { p.do("initdb", "--data-checksums", "-U", "postgres") })
		p.start()
		p.do("createdb", "-U", "postgres", "bench")
		phase("pgbench -i", func() { p.do("pgbench", "-U", "postgres", "-q", "-i", "-s", "3", "bench") })
		out := p.do("pgbench", "-U", "postgres", "-n", "-c", "4", "-T", seconds, "bench")
		t.Log(regexp.MustCompile(`tps = .*`).FindString(out))
		p.check()
		p.do("pg_ctl", "-w", "-m", "fast", "stop")
	})
	p.start()
	p.check()

	p.under(func() { p.do("pg_ctl", "-m", "immediate", "stop") })
	p.start()
	p.check()
	p.under(func() {
		for range 4 {
			time.Sleep(time.Second) // of load between the kills
			w.srv.kill()
			w.srv.start()
		}
	})
	p.check()
	p.under(func() {
		pids := p.processes()
		w.srv.kill()
		p.kill(pids)
		w.srv.start()
	})
	p.start()
	p.check()
	p.do("psql", "-U", "postgres", "-c", "VACUUM FULL", "bench")
	p.check()

	p.do("pg_ctl", "-w", "-m", "fast", "stop")
	checksums := func() {
		t.Helper()
		require.Regexp(t, `Bad checksums: +0\n`, p.do("pg_checksums", "--check"))
	}
	checksums()
	w.finish(func() {
		t.Helper()
		checksums()
		p.start()
		p.check()
		p.do("pg_ctl", "-w", "-m", "fast", "stop")
	})
}

// credential is that of a user of this machine.
func credential(t *testing.T, name string) *syscall.Credential {
	t.Helper()
	u, err := user.Lookup(name)
	require.NoError(t, err)
	uid, err := strconv.ParseUint(u.Uid, 10, 32)
	require.NoError(t, err)
	gid, err := strconv.ParseUint(u.Gid, 10, 32)
	require.NoError(t, err)
	return &syscall.Credential{Uid: uint32(uid), Gid: uint32(gid)}
}

// cluster is a PostgreSQL server with the database bench.
type cluster struct {
	*workshop
	bin  string
	run  string // of its socket and log
	user *syscall.Credential
	data string
	told int // transactions that pgbench saw committed in all, with data in the mount
	less int // transactions of which it was cut off in the middle, at most
}

func (p *cluster) task(prog string, args ...string) task {
	return task{args: append([]string{filepath.Join(p.bin, prog)}, args...), dir: p.run, user: p.user,
		env: []string{"HOME=" + p.run, "PGDATA=" + p.data, "PGHOST=" + p.run}}
}

// do runs one of PostgreSQL's programs, which must succeed.
func (p *cluster) do(prog string, args ...string) string {
	p.t.Helper()
	out := p.ask(p.task(prog, args...))
	if prog == "pgbench" {
		p.count(out)
	}
	return out
}

// count adds the transactions that pgbench tells of.
func (p *cluster) count(out string) {
	if m := regexp.MustCompile(`actually processed: (\d+)`).FindStringSubmatch(out); m != nil {
		n, _ := strconv.Atoi(m[1])
		p.told += n
	}
}

// start starts the cluster, which recovers if it has to.
func (p *cluster) start() {
	p.t.Helper()
	p.do("pg_ctl", "-w", "-t", "300", "-o", "-c listen_addresses= -k "+p.run, "-l", filepath.Join(p.run, "log"), "start")
}

// under does something while pgbench runs.
func (p *cluster) under(do func()) {
	p.t.Helper()
	out := make(chan string)
	go func() {
		s, _ := p.attempt(p.task("pgbench", "-U", "postgres", "-n", "-c", "4", "-T", "8", "bench"))
		out <- s
	}()
	time.Sleep(2 * time.Second) // of load before
	do()
	p.count(<-out)
	p.less += 4
}

// processes are the postmaster and all that it has started.
func (p *cluster) processes() (pids []int) {
	p.t.Helper()
	b, err := os.ReadFile(filepath.Join(p.data, "postmaster.pid"))
	require.NoError(p.t, err)
	main, _, _ := strings.Cut(string(b), "\n")
	for _, f := range append([]string{main}, strings.Fields(p.ask(task{args: []string{"pgrep", "-P", main}}))...) {
		pid, err := strconv.Atoi(f)
		require.NoError(p.t, err)
		pids = append(pids, pid)
	}
	return pids
}

// kill kills processes and returns when they have ended.
func (p *cluster) kill(pids []int) {
	p.t.Helper()
	for _, pid := range pids {
		unix.Kill(pid, unix.SIGKILL)
	}
	for _, pid := range pids {
		require.Eventually(p.t, func() bool { return unix.Kill(pid, 0) == unix.ESRCH }, 10*time.Second, 10*time.Millisecond, "process %d", pid)
	}
}

// check has the database checked.
func (p *cluster) check() {
	p.t.Helper()
	p.do("pg_amcheck", "-U", "postgres", "--all", "--heapallindexed", "--parent-check", "--install-missing")
	out := p.do("psql", "-U", "postgres", "-At", "-F", " ", "-c",
		`SELECT (SELECT sum(abalance) FROM pgbench_accounts), (SELECT sum(bbalance) FROM pgbench_branches),
		(SELECT sum(tbalance) FROM pgbench_tellers), (SELECT sum(delta) FROM pgbench_history), (SELECT count(*) FROM pgbench_history)`, "bench")
	f := strings.Fields(out)
	require.Len(p.t, f, 5, out)
	require.Equal(p.t, []string{f[0], f[0], f[0]}, f[1:4], "the sums of accounts, branches, tellers and history")
	n, err := strconv.Atoi(f[4])
	require.NoError(p.t, err)
	require.GreaterOrEqual(p.t, n, p.told, "transactions that were committed are missing")
	require.LessOrEqual(p.t, n, p.told+p.less)
}

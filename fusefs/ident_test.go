package fusefs

import (
	"fmt"
	"os"
	"path/filepath"
	"syscall"
	"testing"
	"time"

	"github.com/hanwen/go-fuse/v2/fuse"
	"github.com/stretchr/testify/require"

	"cagefs.dev/cage/remote/proto"
)

func TestParseStat(t *testing.T) {
	for name, tc := range map[string]struct {
		in   string
		comm string
		pgid uint32
	}{
		"plain":       {"42 (cp) S 1 40 40 0 -1", "cp", 40},
		"parentheses": {"42 (a) b) (c) R 1 7 7", "a) b) (c", 7},
		"newline":     {"42 (x\ny) R 1 7 7", "x\ny", 7},
		"cut off":     {"42 (cp) S 1", "cp", 0},
		"no name":     {"42", "", 0},
		"reversed":    {"42 )(", "", 0},
		"empty":       {"", "", 0},
	} {
		t.Run(name, func(t *testing.T) {
			comm, pgid := parseStat([]byte(tc.in))
			require.Equal(t, tc.comm, comm)
			require.Equal(t, tc.pgid, pgid)
		})
	}
	long, _ := parseStat([]byte("1 (" + string(make([]byte, 100)) + ") S 1 1"))
	require.Len(t, long, proto.MaxComm)
}

func TestParseStatusOfThisProcess(t *testing.T) {
	b, err := os.ReadFile("/proc/self/status")
	require.NoError(t, err)
	st := parseStatus(b)
	require.EqualValues(t, os.Getpid(), st.tgid)
	groups, err := os.Getgroups()
	require.NoError(t, err)
	require.Len(t, st.groups, len(groups))
	require.NotZero(t, st.signals.caught&set(syscall.SIGURG), "Go's runtime handles SIGURG")
	require.False(t, st.signals.fatal())
}

func TestSignals(t *testing.T) {
	kill, term, intr, alrm, urg, chld := set(syscall.SIGKILL), set(syscall.SIGTERM), set(syscall.SIGINT), set(syscall.SIGALRM), set(syscall.SIGURG), set(syscall.SIGCHLD)
	for name, tc := range map[string]struct {
		s            signalSets
		fatal, urged bool
	}{
		"none":              {signalSets{}, false, false},
		"kill":              {signalSets{pending: kill}, true, false},
		"kill blocked":      {signalSets{pending: kill, blocked: ^uint64(0)}, true, false},
		"term":              {signalSets{pending: term}, true, false},
		"term ignored":      {signalSets{pending: term, ignored: term}, false, false},
		"term blocked":      {signalSets{pending: term, blocked: term}, false, false},
		"term handled":      {signalSets{pending: term, caught: term}, false, true},
		"interrupt handled": {signalSets{pending: intr | urg, caught: intr | urg}, false, true},
		"handled, blocked":  {signalSets{pending: intr, caught: intr, blocked: intr}, false, false},
		"timer":             {signalSets{pending: alrm, caught: alrm}, false, false},
		"timer, unhandled":  {signalSets{pending: alrm}, true, false},
		"preemption":        {signalSets{pending: urg, caught: urg}, false, false},
		"child":             {signalSets{pending: chld}, false, false},
	} {
		t.Run(name, func(t *testing.T) {
			require.Equal(t, tc.fatal, tc.s.fatal())
			require.Equal(t, tc.urged, tc.s.urged())
		})
	}
}

// process writes a /proc entry.
func process(t *testing.T, proc string, tid int, tgid, pgid int, comm, groups string) {
	t.Helper()
	dir := filepath.Join(proc, fmt.Sprint(tid))
	require.NoError(t, os.MkdirAll(dir, 0o777))
	require.NoError(t, os.WriteFile(filepath.Join(dir, "status"), fmt.Appendf(nil, "Name:\t%s\nTgid:\t%d\nGroups:\t%s\n", comm, tgid, groups), 0o666))
	require.NoError(t, os.WriteFile(filepath.Join(dir, "stat"), fmt.Appendf(nil, "%d (%s) S 1 %d 1", tid, comm, pgid), 0o666))
}

func header(tid, uid, gid uint32) *fuse.InHeader {
	return &fuse.InHeader{Caller: fuse.Caller{Pid: tid, Owner: fuse.Owner{Uid: uid, Gid: gid}}}
}

func TestIdents(t *testing.T) {
	proc := t.TempDir()
	now := time.Unix(1000, 0)
	ids := newIdents(proc, func() time.Time { return now })
	process(t, proc, 10, 10, 9, "make", "4 24 27")
	process(t, proc, 11, 10, 9, "worker", "4 24 27")

	want := proto.Ident{UID: 7, GID: 8, Groups: []uint32{4, 24, 27}, PID: 10, PGID: 9, Comm: "make"}
	require.Equal(t, want, ids.full(header(10, 7, 8)))
	require.Equal(t, want, ids.full(header(11, 7, 8)), "a thread acts as its process")
	require.Equal(t, want, ids.brief(header(10, 7, 8)), "groups count for who is not root")
	require.Equal(t, proto.Ident{PID: 10}, ids.brief(header(10, 0, 0)), "root needs no look at /proc")
	require.Equal(t, proto.Ident{UID: 7, GID: 8}, ids.full(header(0, 7, 8)), "a process of another namespace")
	require.Equal(t, proto.Ident{UID: 7, GID: 8, PID: 99}, ids.full(header(99, 7, 8)), "a process that is gone")

	process(t, proc, 10, 10, 5, "sh", "")
	require.Equal(t, want, ids.full(header(10, 7, 8)), "believed for a second")
	require.Equal(t, proto.Ident{UID: 1, GID: 8, PID: 10, PGID: 5, Comm: "sh"}, ids.full(header(10, 1, 8)), "other credentials are another caller")
	now = now.Add(identAge)
	require.Equal(t, "sh", ids.full(header(10, 7, 8)).Comm)

	for i := range uint32(3 * maxIdent) {
		ids.full(header(1000+i, 7, 8))
		require.LessOrEqual(t, len(ids.known), maxIdent)
	}
}

package e2e

import (
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	hist "cagefs.dev/cage/cmd/internal/history"
)

const (
	// localLate is how late a mount may see what a program on the server did
	// without asking: a second (docs/consistency.md), and one for a loaded machine.
	localLate = 2 * time.Second

	// checkTime is how long the search for an order of an object's operations may take.
	checkTime = time.Minute
)

// TestLinearizable has processes on several mounts of one export, and one on the
// server, do random operations on the same files and directories, and searches
// an order in which all their answers are right. The program on the server is
// apart in two ways. It sees a change when it is applied, a moment before the
// mount that makes it: what it reads of names and attributes has an order with all
// changes, but none with what mounts read. What it writes mounts hear of later: that is in objects of
// its own, of which each answer must have been right within localLate.
//
// CAGE_LINEAR_TIME says how long, CAGE_SEED where it begins. A history without an order is left in a directory that is told.
func TestLinearizable(t *testing.T) {
	long := 4 * time.Second
	if accept {
		long = 5 * time.Minute
	}
	if s := os.Getenv("CAGE_LINEAR_TIME"); s != "" {
		var err error
		long, err = time.ParseDuration(s)
		require.NoError(t, err, "CAGE_LINEAR_TIME")
	} else if !accept {
		t.Parallel()
	}
	l := newLab(t, "")
	g := &ground{lab: l, export: l.mkdir("export")}
	s := l.newServer(g.export)
	s.start()
	g.mounts = []string{l.mount(s), l.mount(s), l.mount(s)}
	for _, m := range g.mounts {
		for range 3 {
			g.roots = append(g.roots, m)
		}
	}
	hs := startHistorians(t, len(g.roots)+1)
	g.rounds(hs, long, func(seed uint64, name string) (errands []errand) {
		for i, root := range g.roots {
			errands = append(errands, errand{Dir: filepath.Join(root, name), Seed: seed, Proc: i, Ops: 130, Mount: slices.Index(g.mounts, root)})
		}
		return append(errands, errand{Dir: filepath.Join(g.export, name), Seed: seed, Proc: len(g.roots), Ops: 60, Local: true})
	})
}

// TestDeafKernels is TestLinearizable with mounts that do not tell their kernels
// what is not valid any more: that must show.
func TestDeafKernels(t *testing.T) {
	t.Parallel()
	l := newLab(t, "cage_deaf")
	g := &ground{lab: l, export: l.mkdir("export")}
	s := l.newServer(g.export, "--lease-term", "1s") // by which even these forget
	s.start()
	g.mounts = []string{l.mount(s), l.mount(s)}
	g.roots = append(g.mounts, g.mounts...)
	hs := startHistorians(t, len(g.roots))
	first := seed(t)
	for round := range uint64(20) {
		name := fmt.Sprint("round", first+round)
		var errands []errand
		for i, root := range g.roots {
			errands = append(errands, errand{Dir: filepath.Join(root, name), Seed: first + round, Proc: i, Ops: 130, Mount: slices.Index(g.mounts, root)})
		}
		if _, v := g.round(hs, first+round, name, errands); v.Err() != nil {
			t.Logf("it shows in round %d: %d objects", round+1, len(v.Illegal))
			return
		}
	}
	t.Error("nobody notices that the kernels are told nothing")
}

// TestLocksOfMany: of processes on two mounts that lock the same files all the
// time no two own a lock, and who owns it sees what was done under it. They get
// signals meanwhile: a wait for a lock ends and begins again.
func TestLocksOfMany(t *testing.T) {
	if !accept {
		t.Parallel()
	}
	l := newLab(t, "")
	g := &ground{lab: l, export: l.mkdir("export")}
	s := l.newServer(g.export)
	s.start()
	g.mounts = []string{l.mount(s), l.mount(s)}
	for range 4 {
		g.roots = append(g.roots, g.mounts...)
	}
	long := time.Duration(full(3, 120)) * time.Second
	g.rounds(startHistorians(t, len(g.roots)), long, func(seed uint64, name string) (errands []errand) {
		for i, root := range g.roots {
			errands = append(errands, errand{Dir: filepath.Join(root, name), Seed: seed, Proc: i, Ops: 40, Locks: true, Signals: true})
		}
		return errands
	})
}

// ground is an export with its mounts.
type ground struct {
	*lab
	export string
	mounts []string
	roots  []string // the mount of each process
}

// rounds goes round for a while: each has a seed and a directory of its own, in
// which the processes do what errands says.
func (g *ground) rounds(hs historians, long time.Duration, errands func(seed uint64, name string) []errand) {
	first, rounds, operations := seed(g.t), uint64(0), 0
	for end := time.Now().Add(long); time.Now().Before(end); rounds++ {
		name := fmt.Sprint("round", first+rounds)
		all, v := g.round(hs, first+rounds, name, errands(first+rounds, name))
		if err := v.Err(); err != nil {
			g.t.Fatalf("CAGE_SEED=%d: %v\nall of it is in %s", first+rounds, err, leave(g.t, all, v))
		}
		require.NoError(g.t, hist.CheckLate(all.Late, localLate), "CAGE_SEED=%d", first+rounds)
		require.Eventually(g.t, func() bool { // it may hear of the last names on the server late
			return os.RemoveAll(filepath.Join(g.mounts[0], name)) == nil
		}, localLate, 10*time.Millisecond)
		operations += len(all.Records) + len(all.Late)
	}
	g.t.Logf("%d rounds, %d operations of %d processes on %d mounts: all in order", rounds, operations, len(hs), len(g.mounts))
}

// round makes a directory, has the processes work there, and checks what they tell.
func (g *ground) round(hs historians, seed uint64, name string, errands []errand) (account, *hist.Verdict) {
	all := g.prepare(filepath.Join(g.mounts[0], name))
	told := hs.do(g.t, errands)
	all.Records, all.Late = append(all.Records, told.Records...), append(all.Late, told.Late...)
	v, err := hist.Check(all.Records, checkTime)
	require.NoError(g.t, err, "CAGE_SEED=%d", seed)
	return all, v
}

// prepare makes the directory of a round and records it.
func (g *ground) prepare(dir string) account {
	t := g.t
	h := &historian{errand: errand{Dir: dir, Proc: len(g.roots)}}
	for _, sub := range []string{"", "d0", "d1", "lk", "o"} {
		require.NoError(t, os.Mkdir(filepath.Join(dir, sub), 0o755))
	}
	for _, name := range []string{"f0", "f1", "z", "a0", "a1", "l", "k", "k2", "o/f", "o/a"} {
		require.NoError(t, os.WriteFile(filepath.Join(dir, name), nil, 0o644))
	}
	done := func(note string, call func() error) hist.Record {
		t.Helper()
		r, err := h.timed(note, call)
		require.NoError(t, err)
		require.False(t, r.Unknown, "%v", r)
		return r
	}
	require.NoError(t, os.Truncate(filepath.Join(dir, "f0"), slots/2*4096))
	for _, name := range []string{"a0", "a1"} {
		h.add(done("chmod", func() error { return os.Chmod(filepath.Join(dir, name), 0o600) }), hist.Register, name+" mode", hist.Write, 0o600)
		h.add(done("utimensat", func() error { return setTimes(filepath.Join(dir, name), eraOfTimes) }), hist.Register, name+" mtime", hist.Write, eraOfTimes)
	}
	h.add(done("O_CREAT", func() error { _, err := os.Lstat(filepath.Join(dir, "l")); return err }), hist.Links, "l", hist.Add, 1)
	h.addLate(done("utimensat", func() error { return setTimes(filepath.Join(dir, "o/a"), eraOfTimes) }), "a", hist.Write, eraOfTimes)
	g.run("cagefs", "sync", g.mounts[0])
	for _, m := range g.mounts[1:] { // where the name may come late
		require.Eventually(t, func() bool { return unix.Access(filepath.Join(m, filepath.Base(dir)), unix.F_OK) == nil }, 10*time.Second, time.Millisecond)
	}
	return account{Records: h.records, Late: h.late}
}

// leave writes what a round has shown into a directory that stays: all
// records, and those of the object with the shortest wrong history, also to look at.
func leave(t testing.TB, all account, v *hist.Verdict) (dir string) {
	t.Helper()
	dir, err := os.MkdirTemp("", "cage-history.")
	require.NoError(t, err)
	write := func(name string, what func(w io.Writer) error) {
		f, err := os.Create(filepath.Join(dir, name))
		require.NoError(t, err)
		require.NoError(t, what(f))
		require.NoError(t, f.Close())
	}
	write("all.jsonl", func(w io.Writer) error { return hist.Encode(w, all.Records) })
	if len(v.Illegal) > 0 {
		bad := v.Illegal[0]
		write("bad.jsonl", func(w io.Writer) error { return hist.Encode(w, bad.Records) })
		write("short.jsonl", func(w io.Writer) error { return hist.Encode(w, bad.Short) })
		write("short.html", func(w io.Writer) error { return hist.Draw(w, bad.Short, checkTime) })
	}
	return dir
}

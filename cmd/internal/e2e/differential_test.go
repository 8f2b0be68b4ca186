package e2e

import (
	"fmt"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"cagefs.dev/cage/cmd/internal/differ"
)

// TestPrograms runs the programs in testdata, each of which has once shown a
// difference, or the one in the file that CAGE_DIFF_PROGRAM names.
func TestPrograms(t *testing.T) {
	quickly(t)
	files, err := filepath.Glob("testdata/*.program")
	require.NoError(t, err)
	if f := os.Getenv("CAGE_DIFF_PROGRAM"); f != "" {
		files, err = filepath.Glob(f)
		require.NoError(t, err)
	}
	require.NotEmpty(t, files)
	a := newArena(t)
	for _, file := range files {
		t.Run(filepath.Base(file), func(t *testing.T) {
			text, err := os.ReadFile(file)
			require.NoError(t, err)
			p, err := differ.Parse(string(text))
			require.NoError(t, err)
			d, err := a.run(p)
			require.NoError(t, err)
			require.Nil(t, d, "%v", d)
		})
	}
}

// TestDifferential runs random programs of several users on mounts and on
// ext4 itself: what Cage exports it must not change. CAGE_DIFF_TIME says how
// long, CAGE_SEED where it begins; the program of a failure is printed as text
// for TestPrograms.
func TestDifferential(t *testing.T) {
	quickly(t)
	a := newArena(t)
	long := 20 * time.Second
	if accept {
		long = 10 * time.Minute
	}
	if s := os.Getenv("CAGE_DIFF_TIME"); s != "" {
		var err error
		long, err = time.ParseDuration(s)
		require.NoError(t, err, "CAGE_DIFF_TIME")
	}
	first, programs, steps := seed(t), uint64(0), 0
	for end := time.Now().Add(long); time.Now().Before(end); programs++ {
		p, err := differ.Make(first+programs, scenario(first+programs), a.plain)
		require.NoError(t, err)
		d, err := a.run(p)
		require.NoError(t, err, "CAGE_SEED=%d\n%s", p.Seed, p)
		if d != nil {
			a.report(p, d)
		}
		steps += len(p.Steps)
	}
	t.Logf("%d programs, %d steps, no difference", programs, steps)
}

// TestEveryChangeComesBack: what random programs did is taken back by a rollback, that
// by an undo, and that again, with names, contents, owners, modes, times, links and
// attributes, as another program found them or left them.
func TestEveryChangeComesBack(t *testing.T) {
	quickly(t)
	a := newArena(t)
	long := 8 * time.Second
	if accept {
		long = 10 * time.Minute
	}
	first, programs := seed(t), uint64(0)
	for end := time.Now().Add(long); time.Now().Before(end); programs++ {
		a.comesBack(first + 2*programs)
	}
	t.Logf("%d programs", programs)
}

func (a *arena) comesBack(seed uint64) {
	t := a.t
	a.number++
	label := fmt.Sprint("before", a.number)
	var programs [2]*differ.Program
	var states [2]map[string]entry // after each
	a.again = false
	for i := range programs {
		var err error
		programs[i], err = differ.Make(seed+uint64(i), differ.Scenario{Steps: 60, ACL: true}, a.plain)
		require.NoError(t, err)
	}
	for i, p := range programs {
		d, err := differ.Run(p, a.plain, a.cage)
		require.NoError(t, err, "CAGE_SEED=%d\n%s", seed, p)
		require.Nil(t, d, "CAGE_SEED=%d\n%s", seed, p)
		states[i] = survey(t, a.dir())
		if i == 0 {
			a.lab.run("cagejournal", "label", label, a.dir())
		}
		a.again = true
	}
	before, after := states[0], states[1]
	undo := a.changing("cagejournal", "rollback", a.dir(), "--to", "@label:"+label, "-y")
	requireSame(t, before, a.dir())
	for _, want := range []map[string]entry{after, before} {
		if undo == nil {
			return
		}
		undo = a.changing(append(undo, "-y")...)
		requireSame(t, want, a.dir())
	}
}

// dir is the directory of the present program in the mount.
func (a *arena) dir() string { return filepath.Join(a.now[0], a.name()) }

// scenario is what the program of a seed is to be like.
func scenario(seed uint64) differ.Scenario {
	sc := differ.Scenario{Steps: 120, ACL: seed%3 == 0}
	switch seed % 10 {
	case 0: // short: each change of the mount takes a second
		sc.Steps, sc.Mounts = 40, 2
	case 1, 2:
		sc.Controls, sc.Every = []string{"kill", "drop"}, 25
	case 3, 4:
		sc.Controls, sc.Every = []string{"drop"}, 10
	}
	return sc
}

// arena is an ext4 file system, a server of one of its directories with two
// mounts, and another directory of it that is mounted like these.
type arena struct {
	*lab
	server      *server
	export      string
	plain, cage *differ.Side
	mounts      []string // without access control lists
	aclMounts   []string

	number int      // of the directory of the present program
	again  bool     // the present program begins with what the one before left
	now    []string // the mounts that it uses
}

// newArena makes one, with further options of mkfs.ext4.
func newArena(t testing.TB, options ...string) *arena {
	a := &arena{lab: newLab(t, "")}
	disk, plain := a.ext4(1<<30, options...), a.mkdir("plain")
	command(t, "mount", "-o", "remount,noatime", disk)
	a.export = filepath.Join(disk, "export")
	for _, dir := range []string{a.export, disk + "/plain"} {
		require.NoError(t, os.Mkdir(dir, 0o755))
	}
	command(t, "mount", "--bind", disk+"/plain", plain)
	t.Cleanup(func() { command(t, "umount", plain) })
	command(t, "mount", "-o", "remount,bind,nosuid,nodev,noatime", plain)
	a.server = a.newServer(a.export)
	a.server.start()
	a.mounts = []string{a.mount(a.server), a.mount(a.server)}
	a.aclMounts = []string{a.mount(a.server, "--acl"), a.mount(a.server, "--acl")}
	a.plain = &differ.Side{Name: "ext4", Fresh: func(*differ.Program) ([]string, error) { return a.fresh([]string{plain}) }}
	a.cage = &differ.Side{
		Name:    "cage",
		Fresh:   a.begin,
		Control: a.control,
		Switch:  a.change,
		Behind: func() (string, error) {
			_, err := a.try("cagefs", "sync", a.now[0])
			return filepath.Join(a.export, a.name()), err
		},
	}
	return a
}

// begin makes the directory of a program on the mounts.
func (a *arena) begin(p *differ.Program) ([]string, error) {
	if a.now = a.mounts[:p.Mounts]; p.ACL {
		a.now = a.aclMounts[:p.Mounts]
	}
	return a.fresh(a.now)
}

func (a *arena) name() string { return fmt.Sprintf("program%d", a.number) }

// fresh makes the directory of the present program below the first root, and
// removes that of the one before.
func (a *arena) fresh(roots []string) (paths []string, err error) {
	for _, root := range roots {
		paths = append(paths, filepath.Join(root, a.name()))
	}
	if a.again {
		return paths, nil
	}
	old, err := filepath.Glob(filepath.Join(roots[0], "program*"))
	if err != nil {
		return nil, err
	}
	for _, dir := range old {
		if err := os.RemoveAll(dir); err != nil {
			return nil, err
		}
	}
	return paths, os.Mkdir(paths[0], 0o755)
}

// run runs a program.
func (a *arena) run(p *differ.Program) (*differ.Difference, error) {
	a.number++
	return differ.Run(p, a.plain, a.cage)
}

// control is what happens to the mounts in the middle of a program.
func (a *arena) control(op string) error {
	switch op {
	case "kill":
		a.server.kill()
		return a.server.launch()()
	case "drop": // by remounting, the kernel forgets names and files that are not in use
		return unix.Mount("", a.now[0], "", unix.MS_REMOUNT|unix.MS_NOSUID|unix.MS_NODEV, "")
	}
	return fmt.Errorf("there is no control %q", op)
}

// change waits as long as docs/consistency.md says that a change may need to
// be seen in another mount.
func (a *arena) change(from, _ int) error {
	if _, err := a.try("cagefs", "sync", a.now[from]); err != nil {
		return err
	}
	time.Sleep(1010 * time.Millisecond)
	return nil
}

// report fails the test with a program that is as short as can be found in a minute.
func (a *arena) report(p *differ.Program, d *differ.Difference) {
	end := time.Now().Add(time.Minute)
	short, got := differ.Shrink(p, d, a.run, func() bool { return time.Now().Before(end) })
	a.t.Fatalf("CAGE_SEED=%d: %v\nIn short, %v\nTo run it again, put this into a file for CAGE_DIFF_PROGRAM:\n%s", p.Seed, d, got, short)
}

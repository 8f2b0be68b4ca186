package differ

import (
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"testing"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"
)

func TestMain(m *testing.M) {
	Worker()
	os.Exit(m.Run())
}

func TestProgramText(t *testing.T) {
	for seed := range uint64(50) {
		sc := Scenario{Steps: 200, Mounts: 2, ACL: true, Controls: []string{"kill"}, Every: 9}
		optimist := func(*Step) (bool, error) { return true, nil }
		p, err := Generate(seed, sc, optimist)
		require.NoError(t, err)
		again, err := Generate(seed, sc, optimist)
		require.NoError(t, err)
		require.Equal(t, p, again, "a seed gives one program")
		got, err := Parse(p.String())
		require.NoError(t, err)
		require.Equal(t, p, got)
	}
	for _, bad := range []string{
		"", "0 open", "program seed=1 mounts=1 acl=false\n9 open", "program seed=1 mounts=1 acl=false\n0 fly",
		"program seed=1 mounts=1 acl=false\n0 open flags=WINGS", "program seed=1 mounts=1 acl=false\n0 open proc=1",
		"program seed=1 mounts=1 acl=false\n0 open path=\"",
	} {
		_, err := Parse(bad)
		require.Error(t, err, bad)
	}
}

// plain is a side of ordinary directories below root.
func plain(name, root string) *Side {
	n := 0
	return &Side{Name: name, Fresh: func(*Program) ([]string, error) {
		n++
		dir := filepath.Join(root, name+strconv.Itoa(n))
		return []string{dir}, os.Mkdir(dir, 0o755)
	}}
}

// disk is a directory that is mounted as both sides are to be.
func disk(t *testing.T) string {
	if os.Getuid() != 0 {
		t.Skip("only root can have processes of several users")
	}
	dir := t.TempDir()
	require.NoError(t, unix.Mount(dir, dir, "", unix.MS_BIND, ""))
	t.Cleanup(func() { unix.Unmount(dir, unix.MNT_DETACH) })
	require.NoError(t, unix.Mount("", dir, "", unix.MS_REMOUNT|unix.MS_BIND|unix.MS_NOATIME|unix.MS_NODEV|unix.MS_NOSUID, ""))
	require.NoError(t, exec.Command("chmod", "755", dir).Run())
	return dir
}

// A file system does not differ from itself.
func TestSame(t *testing.T) {
	root := disk(t)
	a, b := plain("a", root), plain("b", root)
	for seed := range uint64(15) {
		p, err := Make(seed, Scenario{Steps: 150, ACL: seed%2 == 0}, a)
		require.NoError(t, err)
		d, err := Run(p, a, b)
		require.NoError(t, err)
		require.Nil(t, d, "%v\n%s", d, p)
	}
}

func parse(t *testing.T, steps string) *Program {
	p, err := Parse("program seed=0 mounts=1 acl=false\n" + steps)
	require.NoError(t, err)
	return p
}

// What a step returns, what a process holds and what the tree is are all compared.
func TestDifferences(t *testing.T) {
	root := disk(t)
	a, b := plain("a", root), plain("b", root)
	fresh := b.Fresh
	b.Fresh = func(p *Program) ([]string, error) {
		paths, err := fresh(p)
		if err == nil {
			err = os.WriteFile(filepath.Join(paths[0], "f"), []byte("text"), 0o644)
		}
		return paths, err
	}
	for _, tt := range []struct{ steps, want string }{
		{`0 stat path="f"`, "step 0, 0 stat path=\"f\"\n\ta: ENOENT\n\tb: ok file 0644 0:0 links=1 size=4 a=now m=now"},
		{`0 open slot=1 path="f" flags=CREAT mode=0644`, "step 1, 0 held\n\ta: ok 1: file 0644 0:0 links=1 size=0"},
		{`0 getcwd`, "step 2, the tree at " + root + "/b3\n\ta: \n\tb: \"f\": file 0644"},
	} {
		d, err := Run(parse(t, tt.steps), a, b)
		require.NoError(t, err)
		require.NotNil(t, d, tt.steps)
		require.Contains(t, d.String(), tt.want)
	}
	d, err := Run(parse(t, `0 unlink path="f"`), b, b)
	require.NoError(t, err)
	require.Nil(t, d)
}

// A process gets the bytes that are meant, whatever they are.
func TestBytes(t *testing.T) {
	a := plain("a", disk(t))
	r, err := a.begin(&Program{Mounts: 1})
	require.NoError(t, err)
	defer r.end()
	for _, s := range []Step{
		{Op: "open", Slot: 1, Path: "\xff\xfe", Flags: unix.O_CREAT, Mode: 0o644},
		{Op: "setxattr", Path: "\xff\xfe", Name: "user.a", Value: "\x00\xff"},
	} {
		o, err := r.do(&s)
		require.NoError(t, err)
		require.Equal(t, outcome{}, o)
	}
	value := make([]byte, 10)
	n, err := unix.Getxattr(filepath.Join(r.paths[0], "\xff\xfe"), "user.a", value)
	require.NoError(t, err)
	require.Equal(t, "\x00\xff", string(value[:n]))
}

func TestShrink(t *testing.T) {
	sc := Scenario{Steps: 300}
	p, err := Generate(3, sc, func(*Step) (bool, error) { return true, nil })
	require.NoError(t, err)
	p.Steps[40] = Step{Op: "mkdir", Path: "here"}
	p.Steps[200] = Step{Op: "rmdir", Path: "here"}
	runs := 0
	run := func(p *Program) (*Difference, error) { // the second of these two, after the first
		runs++
		made := false
		for i, s := range p.Steps {
			if made = made || s.Op == "mkdir" && s.Path == "here"; made && s.Op == "rmdir" && s.Path == "here" {
				return &Difference{Step: i}, nil
			}
		}
		return nil, nil
	}
	d, err := run(p)
	require.NoError(t, err)
	short, d := Shrink(p, d, run, func() bool { return true })
	require.Equal(t, []Step{p.Steps[40], p.Steps[200]}, short.Steps)
	require.Equal(t, 1, d.Step)
	require.Less(t, runs, 100)
	require.Len(t, p.Steps, 300, "the program itself stays as it was")
}

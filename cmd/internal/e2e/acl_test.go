package e2e

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// shellAs runs a shell command in a directory as somebody with a group and further
// groups, and returns what it printed and its exit code.
func shellAs(t *testing.T, dir string, uid uint32, groups []uint32, script string) string {
	t.Helper()
	cmd := exec.Command("sh", "-c", "umask 027; cd "+dir+" && "+script)
	cmd.Env = []string{"PATH=" + os.Getenv("PATH"), "LC_ALL=C"}
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: uid, Gid: groups[0], Groups: groups}}
	out, _ := cmd.CombinedOutput() // the code is part of what is compared
	return fmt.Sprintf("%s\nexit %d", strings.ReplaceAll(string(out), dir, "."), cmd.ProcessState.ExitCode())
}

// TestACL does the same with access control lists in a mount and on the file
// system itself, as several users: what they may, what is inherited, what chmod
// does to a list and a list to the mode.
func TestACL(t *testing.T) {
	t.Parallel()
	needRoot(t)
	for _, tool := range []string{"setfacl", "getfacl"} {
		if _, err := exec.LookPath(tool); err != nil {
			unavailable(t, "%s is missing: apt-get install acl", tool)
		}
	}
	l := newLab(t, "")
	open := func(dir string) string {
		for d := dir; d != "/"; d = filepath.Dir(d) {
			require.NoError(t, os.Chmod(d, 0o755))
			if d == labRoot {
				break
			}
		}
		return dir
	}
	export := open(l.mkdir("export"))
	local := open(l.mkdir("local"))
	s := l.newServer(export)
	s.start()
	m, plain := open(l.mount(s, "--acl")), l.mount(s)

	root, anna, ben, cleo := []uint32{0}, []uint32{1001, 2000}, []uint32{1002, 2001}, []uint32{1003}
	steps := []struct {
		who    []uint32 // uid is that of the first group
		script string
	}{
		{root, "mkdir d && chown 1001:1001 d && chmod 750 d"},
		{ben, "ls d"},
		{anna, "setfacl -m u:1002:rwx,g:2001:r-x d && echo x >d/f && chmod 640 d/f"},
		{ben, "ls d && echo y >d/ben && cat d/f"},
		{cleo, "ls d"},
		{anna, "setfacl -m u:1003:r d/f && chmod o+x d"},
		{cleo, "cat d/f; echo z >>d/f"},
		{anna, "setfacl -m g:2001:rw,m::r d/f"},
		{ben, "cat d/f; echo z >>d/f"},
		{anna, "chmod 660 d/f && getfacl -n d/f"},
		{ben, "cat d/f; echo z >>d/f"},
		{ben, "setfacl -m u:1003:rw d/f"}, // not the owner's
		{anna, "setfacl -d -m u:1003:rwx,g:2001:r-x,o::- d && getfacl -n d"},
		{anna, "mkdir d/sub && echo x >d/sub/file && mkdir -m 700 d/private && touch d/exec && ln -s f d/link && mkfifo d/fifo"},
		{cleo, "ls d/sub && cat d/sub/file && echo more >>d/sub/file && ls d/private"},
		{ben, "ls d/sub && cat d/sub/file && echo more >>d/sub/file"},
		{anna, "setfacl -m u::rw,g::r,o::- d/exec && setfacl -b d/f && setfacl -k d/sub && setfacl -R -m u:4000:x d/private"},
		{anna, "chmod 2775 d/sub && mkdir d/sub/below && setfacl -m m::- d/sub/file"},
		{cleo, "cat d/sub/file; rm -f d/sub/file; rm -f d/ben"},
		{ben, "rm d/ben && mv d/exec d/moved && ln d/moved d/sub/hard"},
		{anna, "cp -a d/sub d/copy && getfacl -R -n d/copy"},
		{anna, "setfacl -x u:1003 d && setfacl -m d:u:1003:--- d && echo x >d/last"},
		{cleo, "cat d/last"},
		{root, "setfacl -m u:1002:- d/link; setfacl -d -m u:1002:- d/fifo; setfacl --set u::rwx,u:7:r,g::-,m::rwx,o::r d/moved"},
		{ben, "cat d/moved; echo x >d/moved"},
		{cleo, "cat d/moved"},
		{anna, "chmod 4755 d/moved && setfacl -m u:1002:rwx d/moved"},
		{root, "setfacl -R -b d"},
	}
	look := func(dir string) string {
		return shellAs(t, dir, 0, root, `getfacl -R -n -P d && find d ! -type l -printf "%p %m %U %G\n" | sort`)
	}
	for i, step := range steps {
		want := shellAs(t, local, step.who[0], step.who, step.script)
		require.Equal(t, want, shellAs(t, m, step.who[0], step.who, step.script), "step %d: %s", i, step.script)
		want = look(local)
		require.Equal(t, want, look(m), "after step %d: %s", i, step.script)
		require.Equal(t, want, look(export), "on the server, after step %d: %s", i, step.script)
	}

	// Where the kernel goes by the mode, the server refuses what the list does.
	require.Contains(t, shellAs(t, m, 1001, anna, "echo x >d/open && chmod 666 d/open && setfacl -m u:1002:- d/open && chmod 777 d"), "exit 0")
	require.Eventually(t, func() bool { return strings.Contains(shellAs(t, plain, 1003, cleo, "cat d/open"), "exit 0") }, 5*time.Second, 20*time.Millisecond)
	require.Contains(t, shellAs(t, plain, 1002, ben, "cat d/open"), "Permission denied")
	require.Contains(t, shellAs(t, plain, 1002, ben, "echo x >>d/open"), "Permission denied")
	require.Contains(t, shellAs(t, plain, 1001, anna, "getfacl -n d/open"), "user:1002:---")

	// All of it can be taken back.
	require.NoError(t, os.WriteFile(m+"/d/kept", nil, 0o640))
	require.Contains(t, shellAs(t, m, 0, root, "setfacl -m u:1002:rw,g:2000:r d/kept && setfacl -d -m u:5:rwx d"), "exit 0")
	want := shellAs(t, m, 0, root, "getfacl -n d d/kept")
	l.run("cagejournal", "label", "lists", m)
	require.Contains(t, shellAs(t, m, 0, root, "chmod 600 d/kept && setfacl -x u:1002 d/kept && setfacl -k d && mkdir d/new"), "exit 0")
	undo := l.changing("cagejournal", "rollback", m, "--to", "@label:lists", "-y")
	require.Equal(t, want, shellAs(t, m, 0, root, "getfacl -n d d/kept"))
	l.changing(append(undo, "-y")...)
	require.NotEqual(t, want, shellAs(t, m, 0, root, "getfacl -n d d/kept"))
	require.Contains(t, shellAs(t, m, 0, root, "setfacl -d -m u:5:rwx d && mkdir d/lists"), "exit 0")
	l.run("cagejournal", "undo", "-y", m+"/d/lists")
	_, err := os.Stat(m + "/d/lists")
	require.ErrorIs(t, err, os.ErrNotExist)

	// A server that is killed brings lists back with the files that they are of.
	require.Contains(t, shellAs(t, m, 1001, anna, "setfacl -d -m u:1003:rx d; mkdir d/inherits && chmod 711 d/inherits"), "exit 0")
	want = look(m)
	s.kill()
	s.start()
	require.Equal(t, want, look(m))
	l.umount(m)
	l.umount(plain)
	s.stop()
	require.NoError(t, l.verify(export))
}

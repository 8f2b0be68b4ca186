package e2e

import (
	"bytes"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"
)

// newUserLab makes a lab of an ordinary user: who runs the tests, or nobody
// where that is root.
func newUserLab(t *testing.T) *lab {
	t.Helper()
	_, err := exec.LookPath("fusermount3")
	require.NoError(t, err, "ordinary users mount with fusermount3 (package fuse3)")
	l := newLab(t, "")
	l.env = append(l.env, "HOME="+l.path("home"))
	if os.Getuid() == 0 {
		u, err := user.Lookup("nobody") // fusermount3 wants a user with a name
		require.NoError(t, err)
		uid, err := strconv.ParseUint(u.Uid, 10, 32)
		require.NoError(t, err)
		gid, err := strconv.ParseUint(u.Gid, 10, 32)
		require.NoError(t, err)
		l.user = &syscall.Credential{Uid: uint32(uid), Gid: uint32(gid)}
		l.open()
		for _, dir := range []string{"", "config", "state", "run"} {
			l.own(l.path(dir))
		}
		fuseForAll(t)
	}
	l.mkdir("home")
	return l
}

// fuseForAll makes /dev/fuse what it is wherever udev runs, until the end of the test.
func fuseForAll(t *testing.T) {
	t.Helper()
	fi, err := os.Stat("/dev/fuse")
	require.NoError(t, err)
	if fi.Mode().Perm()&0o006 == 0o006 {
		return
	}
	require.NoError(t, os.Chmod("/dev/fuse", 0o666))
	t.Cleanup(func() { require.NoError(t, os.Chmod("/dev/fuse", fi.Mode().Perm())) })
}

// sh runs a shell command as the lab's user.
func (l *lab) sh(script string) (string, error) {
	cmd := exec.Command("/bin/sh", "-c", script)
	cmd.Env, cmd.Dir = l.env, l.dir
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: l.user}
	var out, errs bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &errs
	if err := cmd.Run(); err != nil {
		return out.String(), fmt.Errorf("%s: %w: %s", script, err, strings.TrimSpace(errs.String()))
	}
	return out.String(), nil
}

// must runs a shell command as the lab's user, which must succeed.
func (l *lab) must(script string) string {
	l.t.Helper()
	out, err := l.sh(script)
	require.NoError(l.t, err)
	return out
}

// TestOrdinaryUser does without root what there is to do: serve an own
// directory, mount it, work in it, roll back, unmount.
func TestOrdinaryUser(t *testing.T) {
	t.Parallel()
	l := newUserLab(t)
	uid := os.Getuid()
	if l.user != nil {
		uid = int(l.user.Uid)
	}
	s := l.newServer(l.mkdir("export"))
	s.start()
	m := l.mount(s)

	t.Run("the mount", func(t *testing.T) {
		require.Contains(t, readFile(t, "/proc/mounts"), fmt.Sprintf("127.0.0.1:/data %s fuse.cage rw,nosuid,nodev,relatime,user_id=%d,", m, uid))
		var st struct {
			PID int `json:"pid"`
		}
		require.NoError(t, json.Unmarshal([]byte(l.run("cagefs", "status", "--json", m)), &st))
		owner, err := os.Stat(fmt.Sprintf("/proc/%d", st.PID))
		require.NoError(t, err)
		require.EqualValues(t, uid, owner.Sys().(*syscall.Stat_t).Uid, "no part of it is root's")
		sockets, err := filepath.Glob(l.path("run", "cage", "mount-*.sock"))
		require.NoError(t, err)
		require.Len(t, sockets, 1)
		fi, err := os.Stat(sockets[0])
		require.NoError(t, err)
		require.Equal(t, os.FileMode(0o600), fi.Mode().Perm())
		if uid != os.Getuid() {
			_, err = os.Stat(filepath.Join(m, "x"))
			require.ErrorIs(t, err, unix.EACCES, "others are not let in, root neither")
		}
	})

	t.Run("work", func(t *testing.T) {
		l.must("mkdir src && cd src && for i in 1 2 3 4 5 6 7 8; do mkdir d$i; head -c 300000 /dev/urandom > d$i/big; echo $i > d$i/small; ln -s small d$i/link; done")
		l.must("cp -a src " + m + "/src && diff -r src " + m + "/src && chmod 600 " + m + "/src/d1/small && mkfifo " + m + "/p")
		require.Equal(t, "600\n", l.must("stat -c %a "+m+"/src/d1/small"))
	})

	t.Run("what needs root", func(t *testing.T) {
		for _, script := range []string{"chown 1 %s", "chgrp 1 %s", "mknod %s.b b 1 1", "mknod %s.c c 1 3"} {
			for _, where := range []string{m + "/src/d1/small", l.path("src", "d1", "small")} {
				_, err := l.sh(fmt.Sprintf(script, where))
				require.ErrorContains(t, err, "Operation not permitted")
			}
		}
	})

	t.Run("roll back", func(t *testing.T) {
		l.run("cagejournal", "label", "whole", m)
		l.must("rm -r " + m + "/src/d1 " + m + "/src/d2 && echo changed > " + m + "/src/d3/small")
		l.run("cagejournal", "rollback", m+"/src", "--to", "@label:whole", "-y")
		require.Eventually(t, func() bool {
			_, err := l.sh("diff -r src " + m + "/src")
			return err == nil
		}, 5*time.Second, 50*time.Millisecond)
	})

	t.Run("allow_other", func(t *testing.T) {
		if conf, err := os.ReadFile("/etc/fuse.conf"); err == nil && strings.Contains("\n"+string(conf), "\nuser_allow_other") {
			l.umount(l.mount(s, "-o", "allow_other"))
			return
		}
		l.expect(failure{
			args: []string{"cagefs", "mount", s.addr + ":/data", l.mkdir("other"), "-o", "allow_other"},
			code: 8, text: "'user_allow_other' is set in /etc/fuse.conf",
		})
	})

	l.umount(m)
	require.Equal(t, "1\n", readFile(t, l.path("export", "src", "d1", "small")))

	t.Run("several sources, unmounted with fusermount3", func(t *testing.T) {
		m := l.mountSources([]string{"a=" + s.addr + ":/data", "src=" + s.addr + ":/data/src"})
		require.Contains(t, readFile(t, "/proc/mounts"), "127.0.0.1:/data,127.0.0.1:/data/src "+m+" fuse.cage ")
		pid := l.state(m).PID
		l.must("head -c 3000000 /dev/zero > " + m + "/a/zeros && cat " + m + "/src/d1/small")
		l.must("fusermount3 -u " + m)
		require.NotContains(t, mountsBelow(l.dir), m)
		require.Eventually(t, func() bool { // a process that is gone, or a zombie that its parent has not looked at
			b, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
			return err != nil || strings.Contains(string(b), ") Z ")
		}, 10*time.Second, 10*time.Millisecond)
		fi, err := os.Stat(l.path("export", "zeros"))
		require.NoError(t, err)
		require.EqualValues(t, 3000000, fi.Size(), "the process delivered what was left before it ended")
	})
	s.stop()
	require.NoError(t, l.verify(l.path("export")))
}

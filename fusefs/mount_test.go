package fusefs

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"runtime"
	"sort"
	"syscall"
	"testing"
	"time"

	"github.com/hanwen/go-fuse/v2/posixtest"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"
)

// soon waits for what becomes true within the time that the kernel may believe
// what it was told, and some more for a loaded machine.
func soon(t *testing.T, what string, cond func() bool) {
	t.Helper()
	require.Eventually(t, cond, 10*time.Second, 5*time.Millisecond, what)
}

func TestPosix(t *testing.T) {
	d := startDaemon(t)
	skip := map[string]string{
		"FcntlFlockLocksFile": "expects a process to exclude itself, which locks of the kernel do not",
		"OpenSymlinkRace":     "thousands of changes that each wait for the server's disk",
	}
	for name, f := range posixtest.All {
		t.Run(name, func(t *testing.T) {
			if why := skip[name]; why != "" {
				t.Skip(why)
			}
			dir := filepath.Join(d.a, name)
			require.NoError(t, os.Mkdir(dir, 0o777))
			f(t, dir)
		})
	}
}

func TestFiles(t *testing.T) {
	d := startDaemon(t)
	p := filepath.Join(d.a, "f")
	want := make([]byte, 3<<20+17)
	for i := range want {
		want[i] = byte(rand.Uint32())
	}
	require.NoError(t, os.WriteFile(p, want, 0o640))
	got, err := os.ReadFile(p)
	require.NoError(t, err)
	require.True(t, bytes.Equal(want, got))
	info, err := os.Stat(p)
	require.NoError(t, err)
	require.EqualValues(t, len(want), info.Size())
	require.EqualValues(t, 0o640, info.Mode().Perm())

	f, err := os.OpenFile(p, os.O_RDWR|os.O_APPEND, 0)
	require.NoError(t, err)
	_, err = f.Write([]byte("tail"))
	require.NoError(t, err)
	require.NoError(t, f.Sync())
	require.NoError(t, f.Close())
	want = append(want, "tail"...)
	got, err = os.ReadFile(filepath.Join(d.export, "f"))
	require.NoError(t, err)
	require.True(t, bytes.Equal(want, got), "fsynced bytes are in the export")

	require.NoError(t, os.Truncate(p, 5))
	got, err = os.ReadFile(p)
	require.NoError(t, err)
	require.Equal(t, want[:5], got)
	require.NoError(t, os.WriteFile(p, []byte("new"), 0), "O_TRUNC")
	got, err = os.ReadFile(p)
	require.NoError(t, err)
	require.Equal(t, "new", string(got))

	when := time.Unix(1_000_000_000, 123456789)
	require.NoError(t, os.Chtimes(p, when, when))
	require.NoError(t, os.Chown(p, 12, 34))
	var st unix.Stat_t
	require.NoError(t, unix.Stat(p, &st))
	require.Equal(t, unix.Timespec{Sec: 1_000_000_000, Nsec: 123456789}, st.Mtim)
	require.EqualValues(t, 12, st.Uid)
	require.EqualValues(t, 34, st.Gid)
	var stx unix.Statx_t
	require.NoError(t, unix.Statx(unix.AT_FDCWD, p, 0, unix.STATX_BASIC_STATS|unix.STATX_BTIME, &stx))
	require.NotZero(t, stx.Mask&unix.STATX_BTIME)
	require.EqualValues(t, 3, stx.Size)
}

func TestSetIDBitsGo(t *testing.T) { setIDBitsGo(t, startDaemon(t)) }

func setIDBitsGo(t *testing.T, d *daemon) {
	for name, change := range map[string]func(p string) error{
		"chown": func(p string) error { return os.Chown(p, 1, 1) },
		"write": func(p string) error { return asUser(1000, "sh", "-c", "echo x >> "+p).Run() },
		"trunc": func(p string) error { return asUser(1000, "sh", "-c", ": > "+p).Run() },
	} {
		t.Run(name, func(t *testing.T) {
			p := filepath.Join(d.a, name)
			require.NoError(t, os.WriteFile(p, []byte("#!/bin/true"), 0o777))
			require.NoError(t, os.Chown(p, 1000, 1000))
			require.NoError(t, os.Chmod(p, 0o777|os.ModeSetuid|os.ModeSetgid))
			require.NoError(t, change(p))
			info, err := os.Stat(p)
			require.NoError(t, err)
			require.Zero(t, info.Mode()&(os.ModeSetuid|os.ModeSetgid), "%v", info.Mode())
		})
	}
}

// asUser runs a command as somebody else, in a directory that is open to all.
func asUser(uid uint32, name string, args ...string) *exec.Cmd {
	cmd := exec.Command(name, args...)
	cmd.Dir = "/"
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: uid, Gid: uid}}
	return cmd
}

func TestListing(t *testing.T) {
	const n = 2*entriesAtOnce + 10
	d := prepareDaemon(t)
	require.NoError(t, os.Mkdir(filepath.Join(d.export, "dir"), 0o755))
	want := make([]string, n)
	for i := range want {
		want[i] = fmt.Sprintf("name-%05d", i)
		require.NoError(t, os.WriteFile(filepath.Join(d.export, "dir", want[i]), []byte(want[i]), 0o644))
	}
	d.start()
	dir := filepath.Join(d.a, "dir")
	es, err := os.ReadDir(dir)
	require.NoError(t, err)
	var got []string
	for _, e := range es {
		info, err := e.Info()
		require.NoError(t, err)
		require.EqualValues(t, 10, info.Size(), e.Name())
		got = append(got, e.Name())
	}
	sort.Strings(got)
	require.Equal(t, want, got)

	// Changed while it is being listed: each name is listed at most once, and one
	// that was removed is not there any more.
	f, err := os.Open(dir)
	require.NoError(t, err)
	defer f.Close()
	seen := map[string]bool{}
	for {
		names, err := f.Readdirnames(100)
		for i, name := range names {
			require.False(t, seen[name], "%s twice", name)
			seen[name] = true
			if i%10 != 0 {
				continue
			}
			require.NoError(t, os.Remove(filepath.Join(dir, name)))
			_, err := os.Lstat(filepath.Join(dir, name))
			require.ErrorIs(t, err, os.ErrNotExist)
		}
		if err == io.EOF {
			break
		}
		require.NoError(t, err)
	}
	require.Len(t, seen, n)
	require.ErrorIs(t, os.Remove(dir), unix.ENOTEMPTY)
}

func TestNames(t *testing.T) {
	d := startDaemon(t)
	x, y := filepath.Join(d.a, "x"), filepath.Join(d.a, "y")
	require.NoError(t, os.WriteFile(x, []byte("x"), 0o600))
	require.NoError(t, os.WriteFile(y, []byte("y"), 0o600))
	require.ErrorIs(t, unix.Renameat2(unix.AT_FDCWD, x, unix.AT_FDCWD, y, unix.RENAME_NOREPLACE), unix.EEXIST)
	require.NoError(t, unix.Renameat2(unix.AT_FDCWD, x, unix.AT_FDCWD, y, unix.RENAME_EXCHANGE))
	b, err := os.ReadFile(x)
	require.NoError(t, err)
	require.Equal(t, "y", string(b))
	require.ErrorIs(t, unix.Renameat2(unix.AT_FDCWD, x, unix.AT_FDCWD, y, unix.RENAME_WHITEOUT), unix.EINVAL)
	require.NoError(t, os.Symlink("x", filepath.Join(d.a, "link")))
	target, err := os.Readlink(filepath.Join(d.a, "link"))
	require.NoError(t, err)
	require.Equal(t, "x", target)
	require.NoError(t, unix.Mkfifo(filepath.Join(d.a, "fifo"), 0o600))
	_, err = os.Lstat(filepath.Join(d.a, ".cage"))
	require.ErrorIs(t, err, os.ErrNotExist, "the journal is hidden")
}

func TestXattrs(t *testing.T) {
	d := startDaemon(t)
	p := filepath.Join(d.a, "f")
	require.NoError(t, os.WriteFile(p, nil, 0o644))
	_, err := unix.Getxattr(p, "user.k", nil)
	require.ErrorIs(t, err, unix.ENODATA)
	require.NoError(t, unix.Setxattr(p, "user.k", []byte("value"), unix.XATTR_CREATE))
	require.ErrorIs(t, unix.Setxattr(p, "user.k", nil, unix.XATTR_CREATE), unix.EEXIST)
	require.ErrorIs(t, unix.Setxattr(p, "user.none", nil, unix.XATTR_REPLACE), unix.ENODATA)
	n, err := unix.Getxattr(p, "user.k", nil)
	require.NoError(t, err)
	require.Equal(t, 5, n)
	_, err = unix.Getxattr(p, "user.k", make([]byte, 2))
	require.ErrorIs(t, err, unix.ERANGE)
	buf := make([]byte, 64)
	n, err = unix.Getxattr(p, "user.k", buf)
	require.NoError(t, err)
	require.Equal(t, "value", string(buf[:n]))
	n, err = unix.Listxattr(p, buf)
	require.NoError(t, err)
	require.Equal(t, "user.k\x00", string(buf[:n]))
	require.NoError(t, unix.Removexattr(p, "user.k"))
	require.ErrorIs(t, unix.Removexattr(p, "user.k"), unix.ENODATA)
}

func TestWhatIsNotDoneFallsBack(t *testing.T) {
	d := startDaemon(t)
	f, err := os.Create(filepath.Join(d.a, "f"))
	require.NoError(t, err)
	defer f.Close()
	_, err = f.WriteString("0123456789")
	require.NoError(t, err)
	g, err := os.Create(filepath.Join(d.a, "g"))
	require.NoError(t, err)
	defer g.Close()
	var from, to int64
	n, err := unix.CopyFileRange(int(f.Fd()), &from, int(g.Fd()), &to, 10, 0)
	require.NoError(t, err)
	require.Equal(t, 10, n)
	require.NoError(t, f.Sync())
	dir, err := os.Open(d.a)
	require.NoError(t, err)
	defer dir.Close()
	require.NoError(t, dir.Sync())
	require.NoError(t, unix.Flock(int(f.Fd()), unix.LOCK_EX))
}

func TestTwoMounts(t *testing.T) { twoMounts(t, startDaemon(t)) }

func twoMounts(t *testing.T, d *daemon) {
	pa, pb := filepath.Join(d.a, "f"), filepath.Join(d.b, "f")
	_, err := os.Stat(pb)
	require.ErrorIs(t, err, os.ErrNotExist)
	require.NoError(t, os.WriteFile(pa, []byte("one"), 0o644))
	soon(t, "a name that was not there appears", func() bool { b, err := os.ReadFile(pb); return err == nil && string(b) == "one" })

	f, err := os.Open(pb)
	require.NoError(t, err)
	defer f.Close()
	buf := make([]byte, 3)
	_, err = f.ReadAt(buf, 0)
	require.NoError(t, err)
	g, err := os.OpenFile(pa, os.O_WRONLY, 0)
	require.NoError(t, err)
	_, err = g.WriteAt([]byte("two"), 0)
	require.NoError(t, err)
	require.NoError(t, g.Close())
	soon(t, "pages that the kernel has are invalidated in a file that stays open", func() bool {
		_, err := f.ReadAt(buf, 0)
		return err == nil && string(buf) == "two"
	})
	require.NoError(t, os.Remove(pa))
	soon(t, "a removed name goes", func() bool { _, err := os.Stat(pb); return errors.Is(err, os.ErrNotExist) })
	_, err = f.ReadAt(buf, 0)
	require.NoError(t, err, "the open file stays")

	// A directory that stays where it is keeps getcwd(2) of those below intact.
	require.NoError(t, os.Mkdir(filepath.Join(d.a, "cwd"), 0o755))
	soon(t, "the directory appears", func() bool { _, err := os.Stat(filepath.Join(d.b, "cwd")); return err == nil })
	sh := exec.Command("sh", "-c", "read x; /bin/pwd")
	sh.Dir = filepath.Join(d.b, "cwd")
	in, err := sh.StdinPipe()
	require.NoError(t, err)
	var out bytes.Buffer
	sh.Stdout, sh.Stderr = &out, &out
	require.NoError(t, sh.Start())
	require.NoError(t, os.WriteFile(filepath.Join(d.a, "cwd", "new"), nil, 0o644))
	require.NoError(t, os.Chmod(filepath.Join(d.a, "cwd"), 0o700))
	soon(t, "the news have come", func() bool {
		i, err := os.Stat(filepath.Join(d.b, "cwd"))
		return err == nil && i.Mode().Perm() == 0o700
	})
	in.Close()
	require.NoError(t, sh.Wait(), out.String())
	require.Equal(t, filepath.Join(d.b, "cwd")+"\n", out.String())
}

// TestFewInodes: a mount that remembers next to nothing of what the kernel knows
// behaves as any other.
func TestFewInodes(t *testing.T) {
	d := startDaemon(t, "CAGE_TEST_INODES=1")
	for i := range 300 { // everything is dropped again and again
		require.NoError(t, os.WriteFile(filepath.Join(d.a, fmt.Sprint("x", i)), []byte("x"), 0o644))
	}
	list := func() {
		for _, point := range []string{d.a, d.b} {
			out, err := exec.Command("ls", "-lR", point).CombinedOutput()
			require.NoError(t, err, "%s", out)
			require.Contains(t, string(out), " x299")
		}
	}
	list()
	twoMounts(t, d)
	setIDBitsGo(t, d)
	list()
	p, q := filepath.Join(d.a, "x7"), filepath.Join(d.b, "x7")
	f, err := os.Stat(q)
	require.NoError(t, err)
	require.EqualValues(t, 1, f.Size())
	list() // the inode is dropped on both sides, the kernel has it
	require.NoError(t, os.WriteFile(p, []byte("longer"), 0o600))
	soon(t, "a change of a file that is not remembered comes", func() bool {
		b, err := os.ReadFile(q)
		return err == nil && string(b) == "longer"
	})
}

func TestMountedSubdirectory(t *testing.T) {
	d := startDaemon(t, "CAGE_TEST_SUB=sub")
	require.NoError(t, os.WriteFile(filepath.Join(d.b, "f"), []byte("x"), 0o644))
	soon(t, "it is the same file", func() bool { b, _ := os.ReadFile(filepath.Join(d.a, "sub", "f")); return string(b) == "x" })
	var a, b unix.Stat_t
	require.NoError(t, unix.Stat(filepath.Join(d.a, "sub"), &a))
	require.NoError(t, unix.Stat(d.b, &b))
	require.Equal(t, a.Ino, b.Ino)
	require.NoError(t, os.Mkdir(filepath.Join(d.b, "dir"), 0o755))
	require.NoError(t, os.Remove(filepath.Join(d.b, "dir")))
	es, err := os.ReadDir(d.b)
	require.NoError(t, err)
	require.Len(t, es, 1)
}

func TestUnmount(t *testing.T) {
	d := startDaemon(t)
	m, ok := mountedAt(d.a)
	require.True(t, ok)
	require.Equal(t, fsType, m.fsType)
	require.Regexp(t, `^127\.0\.0\.1:\d+:/x$`, m.source)
	require.Contains(t, d.ask("mount a"), "mounted there already")

	f, err := os.Create(filepath.Join(d.a, "f"))
	require.NoError(t, err)
	require.Contains(t, d.ask("umount a"), fmt.Sprintf("(%d)", os.Getpid()), "in use by this process")
	_, err = f.WriteString("x")
	require.NoError(t, err, "it is still mounted")
	require.NoError(t, f.Close())
	require.Equal(t, "ok", d.ask("umount a"))
	require.Equal(t, "ok", d.ask("umount a"), "a second time changes nothing")

	require.NoError(t, unix.Unmount(d.b, 0), "umount(8)")
	require.Equal(t, "ok", d.ask("wait b"))
}

func TestForcedUnmountEndsTheMount(t *testing.T) {
	d := startDaemon(t)
	f, err := os.Create(filepath.Join(d.a, "f"))
	require.NoError(t, err)
	defer f.Close()
	// umount -f says that the mount is busy, but aborts the connection.
	require.ErrorIs(t, unix.Unmount(d.a, unix.MNT_FORCE), unix.EBUSY)
	require.Equal(t, "ok", d.ask("wait a"))
	_, ok := mountedAt(d.a)
	require.False(t, ok)
}

func TestServerThatIsAway(t *testing.T) {
	d := startDaemon(t, "CAGE_TEST_PATIENCE=3s")
	p := filepath.Join(d.a, "f")
	f, err := os.Create(p)
	require.NoError(t, err)
	defer f.Close() // else the daemon does not end after a failure
	require.NoError(t, os.WriteFile(filepath.Join(d.a, "g"), []byte("x"), 0o644))
	d.writeAway(f, "down a", "up a", "was ", "kept")

	quick := func(what string, do func() error) {
		t.Helper()
		began := time.Now()
		require.NoError(t, do(), what)
		require.Less(t, time.Since(began), 2*time.Second, what)
	}
	var st unix.Stat_t
	var sf unix.Statfs_t
	quick("stat of the root", func() error { return unix.Stat(d.a, &st) })
	quick("statfs", func() error { return unix.Statfs(d.a, &sf) })
	quick("close", f.Close)
	began := time.Now()
	_, err = os.ReadFile(filepath.Join(d.a, "g"))
	require.ErrorIs(t, err, unix.ETIMEDOUT)
	require.Less(t, time.Since(began), 8*time.Second)

	d.ask("up a")
	soon(t, "everything goes on", func() bool { b, err := os.ReadFile(p); return err == nil && string(b) == "was kept" })
}

func TestProcessesThatWaitCanBeKilled(t *testing.T) {
	d := startDaemon(t)
	for _, name := range []string{"f", "g", "h"} {
		require.NoError(t, os.WriteFile(filepath.Join(d.a, name), []byte("x"), 0o644))
	}
	d.ask("down a")
	for name, script := range map[string]string{
		"reading":        "cat f",
		"making a name":  "mkdir new",
		"removing":       "rm -f g",
		"changing modes": "chmod 600 h",
	} {
		for _, sig := range []syscall.Signal{syscall.SIGTERM, syscall.SIGKILL} {
			t.Run(fmt.Sprint(name, " ", sig), func(t *testing.T) {
				waitAndKill(t, "cd "+d.a+" && exec "+script, sig)
			})
		}
	}
	// The kernel tells the daemon of the first signal only, which the process
	// handles when its system call is done.
	t.Run("after a signal that it handles", func(t *testing.T) {
		waitAndKill(t, "trap : USR1; cd "+d.a+"; read x < f", syscall.SIGUSR1, syscall.SIGKILL)
	})
	t.Run("by an urging signal that it handles", func(t *testing.T) {
		waitAndKill(t, "trap 'exit 7' INT; cd "+d.a+"; read x < f; exit 7", syscall.SIGINT)
	})
	d.ask("up a")
}

// A handled signal that comes while a server is away: a database takes a failed
// fsync for lost data, and a timer of a program is not about the call it hits.
func TestSignalsThatEndNoCall(t *testing.T) {
	d := startDaemon(t)
	f, err := os.Create(filepath.Join(d.a, "f"))
	require.NoError(t, err)
	defer f.Close()
	root, err := os.Open(d.a)
	require.NoError(t, err)
	defer root.Close()
	for name, tc := range map[string]struct {
		sig  syscall.Signal
		call func() error
	}{
		"fsync, interrupt":       {syscall.SIGINT, func() error { return unix.Fsync(int(f.Fd())) }},
		"listxattr, alarm":       {syscall.SIGALRM, func() error { _, err := unix.Flistxattr(int(f.Fd()), make([]byte, 100)); return err }},
		"fsync of the root, end": {syscall.SIGTERM, func() error { return unix.Fsync(int(root.Fd())) }},
	} {
		t.Run(name, func(t *testing.T) {
			handled := make(chan os.Signal, 1)
			signal.Notify(handled, tc.sig)
			defer signal.Stop(handled)
			_, err := f.WriteString("kept")
			require.NoError(t, err)
			d.ask("down a")
			tid, done := make(chan int), make(chan error, 1)
			go func() {
				runtime.LockOSThread()
				tid <- unix.Gettid()
				done <- tc.call()
			}()
			thread := <-tid
			soon(t, "it waits in the mount", func() bool {
				b, _ := os.ReadFile(fmt.Sprintf("/proc/self/task/%d/wchan", thread))
				return bytes.Contains(b, []byte("request_wait_answer"))
			})
			require.NoError(t, unix.Tgkill(os.Getpid(), thread, tc.sig))
			select {
			case err := <-done:
				require.Fail(t, "the call ended", "%v", err)
			case <-time.After(2 * interruptGrace):
			}
			d.ask("up a")
			require.NoError(t, <-done)
			<-handled
		})
	}
}

// waitAndKill runs a script in the mount until it waits there, sends it
// signals, of which it survives all but the last, and expects its end.
func waitAndKill(t *testing.T, script string, signals ...syscall.Signal) {
	cmd := exec.Command("sh", "-c", script) // which goes to the mount by itself: with Dir, it would wait there before it has a trap
	require.NoError(t, cmd.Start())
	for _, sig := range signals {
		soon(t, "it waits in the mount", func() bool {
			b, _ := os.ReadFile(fmt.Sprintf("/proc/%d/wchan", cmd.Process.Pid))
			return bytes.Contains(b, []byte("request_wait_answer"))
		})
		require.NoError(t, cmd.Process.Signal(sig))
	}
	began := time.Now()
	require.Error(t, cmd.Wait())
	require.Less(t, time.Since(began), 4*time.Second)
}

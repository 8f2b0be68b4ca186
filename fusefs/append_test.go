package fusefs

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"syscall"
	"testing"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"
)

// Two mounts and a process of the server append to one file: nothing is lost,
// and no line is torn.
func TestAppendFromEverywhere(t *testing.T) {
	d := startDaemon(t)
	plain := filepath.Join(d.export, "log")
	require.NoError(t, os.WriteFile(plain, nil, 0o666))
	const lines = 500
	var wg sync.WaitGroup
	errs := make(chan error, 3)
	for _, dir := range []string{d.a, d.b, d.export} {
		f := openAt(t, filepath.Join(dir, "log"), os.O_WRONLY|os.O_APPEND)
		wg.Go(func() {
			for i := range lines {
				if _, err := fmt.Fprintf(f, "%s line %d %s\n", filepath.Base(dir), i, strings.Repeat("x", i%90)); err != nil {
					errs <- err
					return
				}
			}
			errs <- f.Sync()
		})
	}
	wg.Wait()
	for range 3 {
		require.NoError(t, <-errs)
	}
	b, err := os.ReadFile(plain)
	require.NoError(t, err)
	next := map[string]int{}
	for line := range strings.Lines(string(b)) {
		var who string
		var i int
		_, err := fmt.Sscanf(line, "%s line %d", &who, &i)
		require.NoError(t, err, "%q", line)
		require.Equal(t, fmt.Sprintf("%s line %d %s\n", who, i, strings.Repeat("x", i%90)), line)
		require.Equal(t, next[who], i, "the lines of one writer are in order")
		next[who]++
	}
	require.Equal(t, map[string]int{"a": lines, "b": lines, "export": lines}, next)
	for _, dir := range []string{d.a, d.b} {
		soon(t, "what a mount shows is what is there", func() bool {
			got, err := os.ReadFile(filepath.Join(dir, "log"))
			return err == nil && bytes.Equal(got, b)
		})
	}
}

// One who appends and reads sees what it wrote, where the end is.
func TestAppendIsSeen(t *testing.T) {
	d := startDaemon(t)
	pa, pb := filepath.Join(d.a, "f"), filepath.Join(d.b, "f")
	require.NoError(t, os.WriteFile(pa, []byte("0"), 0o644))
	a := openAt(t, pa, os.O_RDWR|os.O_APPEND)
	b := openAt(t, pb, os.O_RDWR|os.O_APPEND)
	want := "0"
	for i := range 20 {
		f := []*os.File{a, b}[i%2]
		_, err := fmt.Fprintf(f, " %d", i)
		require.NoError(t, err)
		require.NoError(t, f.Sync())
		want += fmt.Sprintf(" %d", i)
	}
	for _, f := range []*os.File{a, b} {
		soon(t, "both see all", func() bool {
			got := make([]byte, 200)
			n, _ := f.ReadAt(got, 0)
			info, err := f.Stat()
			return err == nil && string(got[:n]) == want && info.Size() == int64(len(want))
		})
	}
}

func TestCopyFileRange(t *testing.T) {
	d := startDaemon(t)
	src := openAt(t, filepath.Join(d.a, "src"), os.O_RDWR|os.O_CREATE)
	dst := openAt(t, filepath.Join(d.a, "dst"), os.O_RDWR|os.O_CREATE)
	want := make([]byte, 5<<20+333)
	for i := range want {
		want[i] = byte(i * i >> 7)
	}
	_, err := src.Write(want) // nobody waits
	require.NoError(t, err)
	_, err = dst.Write(bytes.Repeat([]byte("old"), 1<<20))
	require.NoError(t, err)
	_, err = os.ReadFile(dst.Name()) // all of it is cached
	require.NoError(t, err)
	copyRange := func(from, to int64, n int) int {
		t.Helper()
		n, err := unix.CopyFileRange(int(src.Fd()), &from, int(dst.Fd()), &to, n, 0)
		require.NoError(t, err)
		return n
	}
	require.Equal(t, len(want), copyRange(0, 0, 1<<30), "short at the end of the source")
	require.Zero(t, copyRange(int64(len(want)), 0, 5))
	for _, p := range []string{dst.Name(), filepath.Join(d.b, "dst"), filepath.Join(d.export, "dst")} {
		got, err := os.ReadFile(p)
		require.NoError(t, err)
		require.True(t, bytes.Equal(want, got), p)
	}
	// Writes before and after it are before and after it.
	_, err = src.WriteAt([]byte("new"), 100)
	require.NoError(t, err)
	_, err = dst.WriteAt([]byte("gone"), 1000)
	require.NoError(t, err)
	require.Equal(t, 10, copyRange(99, 999, 10))
	_, err = dst.WriteAt([]byte("after"), 1006)
	require.NoError(t, err)
	copy(want[999:], want[99:109])
	copy(want[1000:], "new")
	copy(want[1006:], "after")
	got, err := os.ReadFile(dst.Name())
	require.NoError(t, err)
	require.True(t, bytes.Equal(want, got))
	require.NoError(t, dst.Sync())
	got, err = os.ReadFile(filepath.Join(d.export, "dst"))
	require.NoError(t, err)
	require.True(t, bytes.Equal(want, got))

	from, to := int64(0), int64(5)
	_, err = unix.CopyFileRange(int(dst.Fd()), &from, int(dst.Fd()), &to, 10, 0)
	require.ErrorIs(t, err, unix.EINVAL, "ranges of one file that overlap")
	from, to = 0, 1<<20
	n, err := unix.CopyFileRange(int(dst.Fd()), &from, int(dst.Fd()), &to, 10, 0)
	require.NoError(t, err)
	require.Equal(t, 10, n)
	got = make([]byte, 10)
	_, err = dst.ReadAt(got, 1<<20)
	require.NoError(t, err)
	require.Equal(t, want[:10], got)
}

// as runs f in a thread with the identity of another user.
func as(t *testing.T, uid int, f func() error) error {
	t.Helper()
	done := make(chan error)
	go func() { // the thread is not given back: it ends with the goroutine
		runtime.LockOSThread()
		_, _, errno := syscall.RawSyscall(syscall.SYS_SETFSUID, uintptr(uid), 0, 0)
		if errno == 0 {
			_, _, errno = syscall.RawSyscall(syscall.SYS_SETRESUID, ^uintptr(0), uintptr(uid), ^uintptr(0))
		}
		if errno != 0 {
			done <- errno
			return
		}
		done <- f()
	}()
	return <-done
}

func TestContentChangesTakeSetID(t *testing.T) {
	d := startDaemon(t)
	p := filepath.Join(d.a, "f")
	for name, change := range map[string]func(f *os.File) error{
		"write":     func(f *os.File) error { _, err := f.WriteAt([]byte("x"), 3); return err },
		"truncate":  func(f *os.File) error { return f.Truncate(5) },
		"fallocate": func(f *os.File) error { return unix.Fallocate(int(f.Fd()), 0, 0, 100) },
		"copy": func(f *os.File) error {
			var from, to int64 = 0, 20
			_, err := unix.CopyFileRange(int(f.Fd()), &from, int(f.Fd()), &to, 5, 0)
			return err
		},
	} {
		t.Run(name, func(t *testing.T) {
			require.NoError(t, os.WriteFile(p, []byte("0123456789"), 0o666))
			require.NoError(t, unix.Chmod(p, 0o6777))
			err := as(t, 1234, func() error {
				f, err := os.OpenFile(p, os.O_RDWR, 0)
				if err != nil {
					return err
				}
				defer f.Close()
				return change(f)
			})
			require.NoError(t, err)
			var st unix.Stat_t
			require.NoError(t, unix.Stat(p, &st))
			require.EqualValues(t, 0o777, st.Mode&0o7777)
			require.NoError(t, unix.Stat(filepath.Join(d.export, "f"), &st))
			require.EqualValues(t, 0o777, st.Mode&0o7777, "on the server")
			require.NoError(t, unix.Chmod(p, 0o6777))
			require.NoError(t, os.WriteFile(p, []byte("by root"), 0))
			require.NoError(t, unix.Stat(p, &st))
			require.EqualValues(t, 0o6777, st.Mode&0o7777, "root keeps them")
		})
	}
}

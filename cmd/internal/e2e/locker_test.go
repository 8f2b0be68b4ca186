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

// lockerEnv makes this program one that locks files of a directory.
const lockerEnv = "CAGE_E2E_LOCKER"

// lockerMain does what its lines on stdin say and answers each with a line: "ok",
// what was asked for, or the name of the error.
//
//	open SLOT NAME ro|rw             close SLOT             dup SLOT TO
//	posix|ofd|flock SLOT sh|ex|un START LEN try|wait
//	get posix|ofd SLOT sh|ex START LEN
//	read SLOT OFF LEN                write SLOT OFF TEXT    size SLOT
//	count SLOT posix|ofd|flock N     raises the number in the file N times, and appends it
func lockerMain(dir string) int {
	l := &lockerState{dir: dir, slots: map[string]int{}}
	for lines := bufio.NewScanner(os.Stdin); lines.Scan(); {
		said, err := l.do(strings.Fields(lines.Text()))
		var errno unix.Errno
		switch {
		case errors.As(err, &errno):
			said = unix.ErrnoName(errno)
		case err != nil:
			said = err.Error()
		}
		fmt.Println(said)
	}
	return 0
}

type lockerState struct {
	dir   string
	slots map[string]int
}

func (l *lockerState) do(w []string) (string, error) {
	fd := l.slots[w[1]]
	switch w[0] {
	case "open":
		flags := map[string]int{"ro": unix.O_RDONLY, "rw": unix.O_RDWR | unix.O_CREAT}[w[3]]
		fd, err := unix.Open(filepath.Join(l.dir, w[2]), flags|unix.O_CLOEXEC, 0o644)
		l.slots[w[1]] = fd
		return "ok", err
	case "close":
		return "ok", unix.Close(fd)
	case "dup":
		to, err := unix.Dup(fd)
		l.slots[w[2]] = to
		return "ok", err
	case "posix", "ofd", "flock":
		return "ok", setLock(fd, w[0], w[2], number(w[3]), number(w[4]), w[5] == "wait")
	case "get":
		k := unix.Flock_t{Type: lockTypes[w[3]], Start: number(w[4]), Len: number(w[5])}
		cmd := map[string]int{"posix": unix.F_GETLK, "ofd": unix.F_OFD_GETLK}[w[1]]
		if err := unix.FcntlFlock(uintptr(l.slots[w[2]]), cmd, &k); err != nil {
			return "", err
		}
		if k.Type == unix.F_UNLCK {
			return "free", nil
		}
		return fmt.Sprintf("%s %d %d", map[int16]string{unix.F_RDLCK: "sh", unix.F_WRLCK: "ex"}[k.Type], k.Start, k.Len), nil
	case "read":
		b := make([]byte, number(w[3]))
		n, err := unix.Pread(fd, b, number(w[2]))
		return fmt.Sprintf("%q", b[:max(n, 0)]), err
	case "write":
		_, err := unix.Pwrite(fd, []byte(w[3]), number(w[2]))
		return "ok", err
	case "size":
		var st unix.Stat_t
		err := unix.Fstat(fd, &st)
		return fmt.Sprint(st.Size), err
	case "count":
		for range number(w[3]) {
			if err := countUp(fd, w[2]); err != nil {
				return "", err
			}
		}
		return "ok", nil
	}
	return "", fmt.Errorf("what is %q?", w)
}

var lockTypes = map[string]int16{"sh": unix.F_RDLCK, "ex": unix.F_WRLCK, "un": unix.F_UNLCK}

func number(s string) (n int64) {
	fmt.Sscan(s, &n)
	return n
}

func setLock(fd int, kind, how string, start, n int64, wait bool) error {
	if kind == "flock" {
		op := map[string]int{"sh": unix.LOCK_SH, "ex": unix.LOCK_EX, "un": unix.LOCK_UN}[how]
		if !wait {
			op |= unix.LOCK_NB
		}
		return unix.Flock(fd, op)
	}
	cmd := map[string][2]int{"posix": {unix.F_SETLK, unix.F_SETLKW}, "ofd": {unix.F_OFD_SETLK, unix.F_OFD_SETLKW}}[kind]
	k := unix.Flock_t{Type: lockTypes[how], Start: start, Len: n}
	if wait {
		return unix.FcntlFlock(uintptr(fd), cmd[1], &k)
	}
	return unix.FcntlFlock(uintptr(fd), cmd[0], &k)
}

// countUp raises the number at the beginning of a file and appends it, under a lock.
func countUp(fd int, kind string) error {
	if err := setLock(fd, kind, "ex", 0, 1, true); err != nil {
		return err
	}
	var b [8]byte
	if _, err := unix.Pread(fd, b[:], 0); err != nil {
		return err
	}
	n := binary.LittleEndian.Uint64(b[:]) + 1
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return err
	}
	if n > 1 && st.Size != int64(8*n) {
		return fmt.Errorf("the number is %d and the size %d", n-1, st.Size)
	}
	binary.LittleEndian.PutUint64(b[:], n)
	for _, off := range []int64{0, int64(8 * n)} {
		if _, err := unix.Pwrite(fd, b[:], off); err != nil {
			return err
		}
	}
	return setLock(fd, kind, "un", 0, 1, true)
}

// locker is such a process.
type locker struct {
	t     testing.TB
	cmd   *exec.Cmd
	in    io.WriteCloser
	lines chan string // what it says; closed at its end
}

// newLocker starts one that works in a directory; it ends with the test.
func newLocker(t testing.TB, dir string) *locker {
	t.Helper()
	cmd := exec.Command("/proc/self/exe")
	cmd.Env = append(os.Environ(), lockerEnv+"="+dir)
	cmd.Stderr = os.Stderr
	in, err := cmd.StdinPipe()
	require.NoError(t, err)
	out, err := cmd.StdoutPipe()
	require.NoError(t, err)
	require.NoError(t, cmd.Start())
	l := &locker{t, cmd, in, make(chan string)}
	ended := make(chan struct{})
	go func() {
		defer close(l.lines)
		for lines := bufio.NewScanner(out); lines.Scan(); {
			select {
			case l.lines <- lines.Text():
			case <-ended:
				return
			}
		}
	}()
	t.Cleanup(func() {
		close(ended)
		in.Close()
		cmd.Process.Signal(unix.SIGCONT)
		cmd.Process.Kill()
		cmd.Wait()
	})
	return l
}

// say gives it a command.
func (l *locker) say(format string, args ...any) {
	l.t.Helper()
	_, err := fmt.Fprintf(l.in, format+"\n", args...)
	require.NoError(l.t, err)
}

// answer waits for its answer; "dead" where it is.
func (l *locker) answer() string {
	l.t.Helper()
	select {
	case line, ok := <-l.lines:
		if !ok {
			return "dead"
		}
		return line
	case <-time.After(limit()):
		l.t.Fatal("a process that locks does not answer")
	}
	return ""
}

func (l *locker) ask(format string, args ...any) string {
	l.t.Helper()
	l.say(format, args...)
	return l.answer()
}

// do gives it commands, which must succeed.
func (l *locker) do(commands ...string) {
	l.t.Helper()
	for _, c := range commands {
		require.Equal(l.t, "ok", l.ask("%s", c), c)
	}
}

// blocked makes sure that it is busy with its last command for a while.
func (l *locker) blocked() {
	l.t.Helper()
	select {
	case line := <-l.lines:
		l.t.Fatalf("it was to wait, and says %q", line)
	case <-time.After(40 * time.Millisecond):
	}
}

// kill kills it.
func (l *locker) kill() {
	l.t.Helper()
	require.NoError(l.t, l.cmd.Process.Kill())
	require.Equal(l.t, "dead", l.answer())
}

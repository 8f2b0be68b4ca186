package e2e

import (
	"encoding/json"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// opens tries to open a file and closes it again.
func opens(name string, flags int) error {
	f, err := os.OpenFile(name, flags, 0)
	if err == nil {
		err = f.Close()
	}
	return err
}

// TestExclusive: in a mount with -o exclusive who has a file open keeps other clients
// from opening it, for as long as he has it open and no longer; other mounts are kept out, and do not keep out.
func TestExclusive(t *testing.T) {
	t.Parallel()
	l := newLab(t, "")
	export := l.mkdir("export")
	s := l.newServer(export, "--lock-timeout", "2s", "--lease-term", "3s")
	s.start()
	p := newProxy(t, s.addr)
	mine, plain, writers := l.through(s, p, "-o", "exclusive"), l.mount(s), l.mount(s, "-o", "exclusive=ws")
	open := func(name string, flags int) *os.File {
		t.Helper()
		f, err := os.OpenFile(name, flags, 0o644)
		require.NoError(t, err)
		t.Cleanup(func() { f.Close() })
		return f
	}
	const rw, ro = os.O_RDWR, os.O_RDONLY

	f := open(mine+"/file", rw|os.O_CREATE)
	_, err := f.WriteString("mine")
	require.NoError(t, err)
	require.ErrorIs(t, opens(plain+"/file", ro), syscall.EBUSY)
	require.ErrorIs(t, opens(writers+"/file", ro), syscall.EBUSY)
	require.ErrorIs(t, os.Truncate(plain+"/file", 0), syscall.EBUSY)
	require.ErrorIs(t, os.WriteFile(plain+"/file", nil, 0), syscall.EBUSY)
	info, err := os.Stat(plain + "/file")
	require.NoError(t, err, "it is not opened for that")
	require.EqualValues(t, 4, info.Size())
	require.NoError(t, os.Rename(plain+"/file", plain+"/renamed"))
	require.NoError(t, os.Rename(plain+"/renamed", plain+"/file"))
	require.NoError(t, opens(mine+"/file", rw), "one client's processes see to themselves")
	host, err := os.Hostname()
	require.NoError(t, err)
	require.Contains(t, l.run("cagefs", "status", plain), host+" has it open in mode wm")
	require.Contains(t, readFile(t, s.log), host+" has it open in mode wm")
	require.NoError(t, f.Close())

	t.Run("ends with the close", func(t *testing.T) {
		for i := range byte(50) {
			want := make([]byte, 300<<10)
			want[0], want[len(want)-1] = i, i
			require.NoError(t, os.WriteFile(mine+"/file", want, 0o644))
			got, err := os.ReadFile(plain + "/file")
			require.NoError(t, err)
			require.Equal(t, want, got)
		}
	})

	t.Run("modes", func(t *testing.T) {
		f := open(mine+"/file", ro)
		require.NoError(t, opens(plain+"/file", ro))
		require.NoError(t, opens(writers+"/file", ro), "both only read")
		require.ErrorIs(t, opens(plain+"/file", os.O_WRONLY), syscall.EBUSY)
		require.ErrorIs(t, opens(writers+"/file", rw), syscall.EBUSY)
		require.NoError(t, f.Close())

		f = open(writers+"/file", rw)
		reader := open(plain+"/file", ro)
		_, err := f.WriteAt([]byte("new"), 0)
		require.NoError(t, err)
		got := make([]byte, 3)
		_, err = reader.ReadAt(got, 0)
		require.NoError(t, err)
		require.Equal(t, "new", string(got))
		require.ErrorIs(t, opens(plain+"/file", rw), syscall.EBUSY)
		require.ErrorIs(t, opens(mine+"/file", ro), syscall.EBUSY, "it wants that nobody writes")
		require.NoError(t, f.Close())

		require.ErrorIs(t, opens(mine+"/file", rw), syscall.EBUSY, "somebody reads")
		require.NoError(t, opens(writers+"/file", rw), "who may")
		require.NoError(t, reader.Close())
		require.NoError(t, opens(mine+"/file", rw))
		require.NoError(t, exec.Command("cp", "/bin/true", mine+"/true").Run())
		require.NoError(t, exec.Command(mine+"/true").Run())
		require.NoError(t, exec.Command(plain+"/true").Run())
	})

	t.Run("a process that dies", func(t *testing.T) {
		cmd := exec.Command("sh", "-c", "exec 3<>"+mine+"/file; echo open; exec sleep 1000")
		out, err := cmd.StdoutPipe()
		require.NoError(t, err)
		require.NoError(t, cmd.Start())
		_, err = out.Read(make([]byte, 5))
		require.NoError(t, err)
		require.ErrorIs(t, opens(plain+"/file", ro), syscall.EBUSY)
		require.NoError(t, cmd.Process.Kill())
		cmd.Wait()
		require.NoError(t, opens(plain+"/file", ro))
	})

	t.Run("a program of the server", func(t *testing.T) {
		f := open(mine+"/file", rw)
		require.NoError(t, os.WriteFile(export+"/file", []byte("theirs"), 0o644), "is not kept out")
		require.Eventually(t, func() bool {
			return strings.Contains(readFile(t, s.log), "changed a file that a client has open to itself")
		}, 10*time.Second, 20*time.Millisecond)
		require.NoError(t, f.Close())
	})

	t.Run("outlives a cut and a crash of the server", func(t *testing.T) {
		f := open(mine+"/file", rw)
		p.cut()
		require.ErrorIs(t, opens(plain+"/file", ro), syscall.EBUSY)
		s.kill()
		s.start()
		require.ErrorIs(t, opens(plain+"/file", ro), syscall.EBUSY)
		_, err := f.WriteAt([]byte("still mine"), 0)
		require.NoError(t, err)
		require.NoError(t, f.Sync())
		require.NoError(t, f.Close())
		got, err := os.ReadFile(plain + "/file")
		require.NoError(t, err)
		require.Equal(t, "still mine", string(got))
	})

	t.Run("ends with an absence", func(t *testing.T) {
		f := open(mine+"/file", rw)
		p.freeze()
		var theirs *os.File
		require.Eventually(t, func() bool {
			var err error
			theirs, err = os.OpenFile(plain+"/file", rw, 0)
			return err == nil
		}, time.Minute, 50*time.Millisecond, "others do not wait for ever")
		_, err := theirs.WriteAt([]byte("theirs now"), 0)
		require.NoError(t, err)
		require.NoError(t, theirs.Sync())
		p.thaw()
		require.Eventually(t, func() bool {
			_, err = f.WriteAt([]byte("mine again"), 0)
			return err != nil
		}, 20*time.Second, 20*time.Millisecond)
		require.ErrorIs(t, err, syscall.EIO)
		f.Close()
		got, err := os.ReadFile(plain + "/file")
		require.NoError(t, err)
		require.Equal(t, "theirs now", string(got))
		require.NoError(t, theirs.Close())
		require.NoError(t, opens(mine+"/file", rw), "it is a new open")
	})

	var st struct {
		Refused struct{ Path, Why string }
	}
	require.NoError(t, json.Unmarshal([]byte(l.run("cagefs", "status", "--json", plain)), &st))
	require.Equal(t, "file", st.Refused.Path)
}

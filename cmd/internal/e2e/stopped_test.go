package e2e

import (
	"bytes"
	"context"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

// TestStoppedServer: while the server is stopped (SIGSTOP), nobody who happens to be in a mount hangs
// longer than he must: the directory in which he is is known, who waits for the rest can be killed, and a copy that
// waits goes on to its end without an error. The server stays stopped until all have been answered, and for at least a while.
func TestStoppedServer(t *testing.T) {
	needRoot(t)
	t.Parallel()
	l := newLab(t, "")
	export := l.mkdir("export")
	s := l.newServer(export)
	for _, dir := range []string{"known", "strange"} {
		require.NoError(t, os.Mkdir(filepath.Join(export, dir), 0o755))
		require.NoError(t, os.WriteFile(filepath.Join(export, dir, "file"), make([]byte, 300<<10), 0o644))
	}
	s.start()
	m := l.mount(s, "--soft", "2m") // the copy waits for as long as all of this takes
	_, err := os.ReadDir(m + "/known")
	require.NoError(t, err)
	_, err = os.Stat(m + "/known/file")
	require.NoError(t, err)
	src := filepath.Join(goSource(t), "net")
	want := survey(t, src)
	wait := copying(t, src, m)

	resume := suspend(t, s.cmd.Process.Pid)
	stopped := time.Now()
	for _, tt := range []struct {
		name string
		args []string
		in   string // on stdin
		ok   bool   // it succeeds
		most time.Duration
	}{
		{"timeout 2 ls", []string{"timeout", "2", "ls", "-l", m + "/known"}, "", false, 3 * time.Second}, // listings come from the server
		{"stat of the directory", []string{"stat", m + "/known"}, "", true, 2 * time.Second},
		{"df", []string{"df", m}, "", true, time.Second},
		{"a shell in the directory", []string{"bash", "--norc", "--noprofile", "-i"}, "PS1='\\w '\ntrue\nexit\n", true, 2 * time.Second},
		// Last: it waits for the machine's own disks as well, and the directory is known until the lease term is over.
		{"sync", []string{"sync"}, "", true, time.Minute},
	} {
		took, out, err := runWithin(t, tt.most+10*time.Second, m+"/known", tt.in, tt.args...)
		t.Logf("%-26s %5.2f s", tt.name, took.Seconds())
		assert.Equal(t, tt.ok, err == nil, "%s: %v: %s", tt.name, err, out)
		assert.Less(t, took, tt.most, tt.name)
	}

	cat := exec.Command("cat", m+"/strange/file")
	require.NoError(t, cat.Start())
	ended := make(chan error, 1)
	go func() { ended <- cat.Wait() }()
	select {
	case err := <-ended:
		require.Fail(t, "it read what only the stopped server has", "%v", err)
	case <-time.After(500 * time.Millisecond):
	}
	killed := time.Now()
	require.NoError(t, cat.Process.Kill())
	<-ended
	t.Logf("%-26s %5.2f s", "kill -9 of a blocked cat", time.Since(killed).Seconds())
	assert.Less(t, time.Since(killed), time.Second)

	time.Sleep(time.Until(stopped.Add(time.Duration(full(3, 10)) * time.Second)))
	resume()
	resumed := time.Now()
	wait()
	t.Logf("stopped for %.1f s; the copy ended %.1f s later", resumed.Sub(stopped).Seconds(), time.Since(resumed).Seconds())
	requireSame(t, want, m+"/net")
	l.umount(m)
	requireSame(t, want, export+"/net")
}

// runWithin runs a program in a directory, and kills it when it takes too long.
func runWithin(t *testing.T, most time.Duration, dir, stdin string, args ...string) (took time.Duration, out string, err error) {
	ctx, cancel := context.WithTimeout(t.Context(), most)
	defer cancel()
	cmd := exec.CommandContext(ctx, "env", append([]string{"-C", dir}, args...)...) // else this process would wait for the change of directory
	cmd.Stdin = strings.NewReader(stdin)
	var b bytes.Buffer
	cmd.Stdout, cmd.Stderr = &b, &b
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	cmd.WaitDelay = time.Second
	began := time.Now()
	err = cmd.Run()
	return time.Since(began), b.String(), err
}

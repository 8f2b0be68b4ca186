package main

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"syscall"

	"github.com/spf13/pflag"
	"golang.org/x/sys/unix"

	"cagefs.dev/cage/remote/status"
)

// readyEnv tells the process of a mount in the background on which descriptor
// its parent waits.
const readyEnv = "CAGEFS_READY_FD"

// verdict is what the process of a mount tells its parent, once.
type verdict struct {
	Code status.Code // OK: the mount works
	Text string      // the error
}

// startBackground runs this program again, in a session of its own, and
// returns when the mount works or has failed; it fails with the words and the
// exit code of the other.
func startBackground(ctx context.Context, fs *pflag.FlagSet, m *spec) error {
	out, err := m.openLog()
	if err != nil {
		return err
	}
	defer out.Close()
	r, w, err := os.Pipe()
	if err != nil {
		return err
	}
	defer r.Close()
	cmd := exec.Command("/proc/self/exe", childArgs(fs, m)...)
	cmd.Args[0] = os.Args[0]
	cmd.Env = append(os.Environ(), readyEnv+"=3")
	cmd.Stdout, cmd.Stderr = out, out
	cmd.ExtraFiles = []*os.File{w}
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	err = cmd.Start()
	w.Close()
	if err != nil {
		return fmt.Errorf("start the mount's process: %w", err)
	}
	// Who is interrupted while waiting wants no mount; the child then unmounts
	// what it has and tells so.
	stop := context.AfterFunc(ctx, func() { cmd.Process.Signal(unix.SIGTERM) })
	defer stop()
	b, _ := io.ReadAll(r)
	var v verdict
	if err := json.Unmarshal(b, &v); err != nil {
		cmd.Wait()
		return status.Newf(status.Internal, "", m.mountpoint, "the mount's process ended without a word (%v); its log is %s", cmd.ProcessState, out.Name())
	}
	if v.Code != status.OK {
		cmd.Wait()
		return status.Newf(v.Code, "", "", "%s", v.Text)
	}
	return cmd.Process.Release()
}

// childArgs is the command line of the mount's process: the same flags, in the
// foreground, with paths that do not depend on the directory.
func childArgs(fs *pflag.FlagSet, m *spec) []string {
	args := []string{"mount", "--foreground"}
	fs.Visit(func(f *pflag.Flag) {
		switch f.Name {
		case "foreground", "options", "log-file":
		default:
			args = append(args, "--"+f.Name+"="+f.Value.String())
		}
	})
	args = append(args, "--")
	args = append(args, fs.Args()[:fs.NArg()-1]...)
	return append(args, m.mountpoint)
}

// openLog opens the log of a mount in the background. Only a log that somebody
// asked for is worth failing.
func (m *spec) openLog() (*os.File, error) {
	path, chosen, err := m.logPath()
	if err == nil {
		err = os.MkdirAll(filepath.Dir(path), 0o700)
	}
	if err == nil {
		var f *os.File
		if f, err = os.OpenFile(path, os.O_WRONLY|os.O_APPEND|os.O_CREATE, 0o600); err == nil {
			return f, nil
		}
	}
	if chosen {
		return nil, status.Wrap(err, "log", path)
	}
	return os.OpenFile(os.DevNull, os.O_WRONLY, 0)
}

// announcer tells the parent, if there is one, how the start went.
type announcer struct{ w *os.File }

// newAnnouncer takes the descriptor that a parent handed over.
func newAnnouncer() *announcer {
	fd, err := strconv.Atoi(os.Getenv(readyEnv))
	os.Unsetenv(readyEnv)
	if err != nil || fd < 3 {
		return &announcer{}
	}
	unix.CloseOnExec(fd)
	return &announcer{w: os.NewFile(uintptr(fd), "ready")}
}

// announce says that the mount works (nil) or why not. Only the first time counts.
func (a *announcer) announce(err error) {
	if a.w == nil {
		return
	}
	v := verdict{Code: status.Of(err)}
	if err != nil {
		v.Text = err.Error()
	}
	// A parent that is gone has nobody who wants to know.
	_ = json.NewEncoder(a.w).Encode(v)
	a.w.Close()
	a.w = nil
}

// background reports whether there is a parent that waits.
func (a *announcer) background() bool { return a.w != nil }

package differ

import (
	"bufio"
	"encoding/gob"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"runtime"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// workerEnv has the assignment of a process that was started to do steps.
const workerEnv = "DIFFER_WORKER"

// assignment says who a process is and where.
type assignment struct {
	User User
	Root string
}

// outcome is what a step gave: the name of the error, or what is to be known of success.
type outcome struct{ Err, Out string }

func (o outcome) String() string {
	if o.Err != "" {
		return o.Err
	}
	return strings.TrimSpace("ok " + o.Out)
}

// worker is a process that does steps. Its root directory is the side's, so
// that no path, symlink or ".." leads out.
type worker struct {
	self  int            // /proc/self/fd, from before the root was changed
	slots [Slots + 1]int // -1 where nothing is open
}

// Worker does not return in a process that was started to do steps. In all
// others it does nothing.
func Worker() {
	text := os.Getenv(workerEnv)
	if text == "" {
		return
	}
	if err := work(text); err != nil {
		fmt.Fprintln(os.Stderr, "differ:", err)
		os.Exit(1)
	}
	os.Exit(0)
}

func work(text string) error {
	runtime.LockOSThread()
	var a assignment
	if err := json.Unmarshal([]byte(text), &a); err != nil {
		return err
	}
	w := &worker{}
	for i := range w.slots {
		w.slots[i] = -1
	}
	if err := w.become(a); err != nil {
		return err
	}
	in, out := gob.NewDecoder(bufio.NewReader(os.Stdin)), gob.NewEncoder(os.Stdout)
	for {
		var s Step
		if err := in.Decode(&s); errors.Is(err, io.EOF) {
			return nil
		} else if err != nil {
			return err
		}
		if err := out.Encode(w.do(&s)); err != nil {
			return err
		}
	}
}

// become makes the process who and where it is to be.
func (w *worker) become(a assignment) (err error) {
	if w.self, err = unix.Open("/proc/self/fd", unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0); err != nil {
		return err
	}
	if err := syscall.Chroot(a.Root); err != nil {
		return err
	}
	if err := syscall.Chdir("/"); err != nil {
		return err
	}
	syscall.Umask(0)
	if err := syscall.Setgroups(a.User.Groups); err != nil {
		return err
	}
	if err := syscall.Setresgid(a.User.GID, a.User.GID, a.User.GID); err != nil {
		return err
	}
	return syscall.Setresuid(a.User.UID, a.User.UID, a.User.UID)
}

// do does one step.
func (w *worker) do(s *Step) outcome {
	call := calls[s.Op]
	if call == nil || s.Slot < 0 || s.Slot > Slots || s.ToSlot < 0 || s.ToSlot > Slots || s.At < 0 || s.At > Slots || s.ToAt < 0 || s.ToAt > Slots {
		return outcome{Err: "no such step"}
	}
	out, err := call(w, s)
	if err != nil {
		var errno unix.Errno
		if errors.As(err, &errno) {
			return outcome{Err: unix.ErrnoName(errno)}
		}
		return outcome{Err: err.Error()}
	}
	return outcome{Out: out}
}

// stepTime is how long a step may take. A mount gives up waiting for a lost
// server earlier.
const stepTime = 2 * time.Minute

// process is a worker as seen by who runs programs.
type process struct {
	cmd *exec.Cmd
	in  *gob.Encoder // not JSON: paths and values are any bytes
	end io.Closer
	out chan outcome
}

// start starts a worker; startErrors of it come with its first step.
func start(u User, root string) (*process, error) {
	text, err := json.Marshal(assignment{u, root})
	if err != nil {
		return nil, err
	}
	p := &process{cmd: exec.Command("/proc/self/exe"), out: make(chan outcome)}
	p.cmd.Env = append(os.Environ(), workerEnv+"="+string(text), "GOMAXPROCS=1")
	p.cmd.Stderr = os.Stderr
	stdin, err := p.cmd.StdinPipe()
	if err != nil {
		return nil, err
	}
	stdout, err := p.cmd.StdoutPipe()
	if err != nil {
		return nil, err
	}
	if err := p.cmd.Start(); err != nil {
		return nil, err
	}
	p.in, p.end = gob.NewEncoder(stdin), stdin
	go func() {
		defer close(p.out)
		for in := gob.NewDecoder(bufio.NewReader(stdout)); ; {
			var o outcome
			if in.Decode(&o) != nil {
				return
			}
			p.out <- o
		}
	}()
	return p, nil
}

// do has the worker do a step.
func (p *process) do(s *Step) (outcome, error) {
	if err := p.in.Encode(s); err != nil {
		return outcome{}, fmt.Errorf("the process is gone before %q: %w", s, err)
	}
	late := time.NewTimer(stepTime)
	defer late.Stop()
	select {
	case o, ok := <-p.out:
		if !ok {
			return o, fmt.Errorf("the process died in %q", s)
		}
		return o, nil
	case <-late.C:
		return outcome{}, fmt.Errorf("%q has not returned after %v", s, stepTime)
	}
}

// stop ends the worker, which closes what it has open, and waits for it. One
// that hangs is killed.
func (p *process) stop() {
	p.end.Close()
	late := time.AfterFunc(stepTime, func() { p.cmd.Process.Kill() })
	defer late.Stop()
	for range p.out { // until it has closed its end
	}
	p.cmd.Wait()
}

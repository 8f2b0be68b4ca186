package e2e

import (
	"bufio"
	"encoding/gob"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"runtime/debug"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	hist "cagefs.dev/cage/cmd/internal/history"
)

// historianEnv makes this program one that does random operations and records them.
const historianEnv = "CAGE_E2E_HISTORIAN"

// errand is what a historian is to do. It does the operations in an order that
// the seed and its number alone decide.
type errand struct {
	Dir     string // of the round, as it sees it
	Seed    uint64
	Proc    int
	Ops     int
	Mount   int  // which it works on
	Local   bool // it is a program on the server, and Dir there
	Locks   bool // it does nothing but lock
	Signals bool // all the time it gets some
}

// account is what it tells: at first, that it is ready (nothing), then what it has done.
type account struct {
	Records []hist.Record
	Late    []hist.Record // of what programs on the server write
	Err     string
}

// historianMain does errands: it gets ready, tells so, waits for any byte, and tells what it did.
func historianMain() int {
	debug.SetPanicOnFault(true) // a mapped page that cannot be read: an answer like any other
	stdin := bufio.NewReader(os.Stdin)
	in, out := gob.NewDecoder(stdin), gob.NewEncoder(os.Stdout)
	for {
		h := &historian{}
		if err := in.Decode(&h.errand); errors.Is(err, io.EOF) {
			return 0
		} else if err != nil {
			fmt.Fprintln(os.Stderr, "historian:", err)
			return 1
		}
		err := h.open()
		if err == nil {
			out.Encode(account{})
			var start bool
			if err = in.Decode(&start); err == nil {
				err = h.work()
			}
		}
		h.close()
		a := account{Records: h.records, Late: h.late}
		if err != nil {
			a.Err = fmt.Sprintf("process %d: %v", h.Proc, err)
		}
		if err := out.Encode(a); err != nil {
			return 1
		}
	}
}

// historian is such a program in a round.
type historian struct {
	errand
	rand *rand.Rand

	records, late []hist.Record
	last          int64    // value that it has stored
	links         []string // of file l, that it has made

	fds    map[string]int
	mapped []byte // f0
}

// open opens what stays open. Names may come late through other mounts than the one that made them.
func (h *historian) open() error {
	h.rand, h.fds = rand.New(rand.NewPCG(h.Seed, uint64(h.Proc))), map[string]int{}
	for name, flags := range map[string]int{
		"f0": unix.O_RDWR, "f1": unix.O_RDWR, "z": unix.O_RDWR | unix.O_APPEND, "a0": unix.O_RDONLY, "a1": unix.O_RDONLY, "l": unix.O_RDONLY,
		"k": unix.O_RDWR, "k2": unix.O_RDWR, "d0": unix.O_RDONLY, "d1": unix.O_RDONLY, "lk": unix.O_RDONLY, "o/f": unix.O_RDWR, "o/a": unix.O_RDONLY,
	} {
		for end := time.Now().Add(10 * time.Second); ; time.Sleep(time.Millisecond) {
			fd, err := unix.Open(h.path(name), flags|unix.O_CLOEXEC, 0)
			if err == nil {
				h.fds[name] = fd
				break
			}
			if time.Now().After(end) {
				return fmt.Errorf("open %s: %w", name, err)
			}
		}
	}
	var err error
	h.mapped, err = unix.Mmap(h.fds["f0"], 0, slots/2*4096, unix.PROT_READ, unix.MAP_SHARED)
	return err
}

func (h *historian) close() {
	if h.mapped != nil {
		unix.Munmap(h.mapped)
	}
	for _, fd := range h.fds {
		unix.Close(fd)
	}
}

func (h *historian) path(name string) string { return filepath.Join(h.Dir, name) }

// work does its operations.
func (h *historian) work() error {
	todo := mountOperations
	switch {
	case h.Local:
		todo = localOperations
	case h.Locks:
		todo = lockOperations
	}
	if h.Signals {
		defer signalled()()
	}
	var sum int
	for _, o := range todo {
		sum += o.weight
	}
	for range h.Ops {
		n := h.rand.IntN(sum)
		for _, o := range todo {
			if n -= o.weight; n < 0 {
				if err := o.do(h); err != nil {
					return fmt.Errorf("%s: %w", o.name, err)
				}
				break
			}
		}
	}
	return nil
}

// signalled sends this process signals until its result is called. The runtime of Go
// handles SIGURG, and has the kernel do again what that interrupts.
func signalled() (stop func()) {
	done := make(chan struct{})
	var ended sync.WaitGroup
	ended.Go(func() {
		for often := time.NewTicker(time.Millisecond); ; {
			select {
			case <-often.C:
				unix.Kill(os.Getpid(), unix.SIGURG)
			case <-done:
				often.Stop()
				return
			}
		}
	})
	return func() { close(done); ended.Wait() }
}

// value is one that no other process of the round stores, and this one only once.
func (h *historian) value() int64 {
	h.last++
	return int64(h.Proc+1)*1e6 + h.last
}

// moment is now, for all processes of the machine the same.
func moment() int64 {
	var ts unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_MONOTONIC, &ts); err != nil {
		panic(err)
	}
	return ts.Nano()
}

// timed does a system call, or a few, and returns a record of when. Where it
// stays open whether they had an effect, that is no error.
func (h *historian) timed(note string, calls func() error) (hist.Record, error) {
	r := hist.Record{Proc: h.Proc, Call: moment(), Note: note}
	err := calls()
	r.Return = moment()
	for _, open := range []error{unix.ETIMEDOUT, unix.EIO, unix.EINTR, unix.ENOTCONN} {
		if errors.Is(err, open) {
			r.Unknown, r.Return, err = true, 0, nil
		}
	}
	return r, err
}

// add records what a call did to an object.
func (h *historian) add(r hist.Record, kind hist.Kind, object string, op hist.Op, arg int64) {
	r.Kind, r.Object, r.Op = kind, string(kind)+" "+object, op
	if op == hist.Read {
		r.Out = arg
	} else {
		r.Arg = arg
	}
	if !h.Local {
		h.records = append(h.records, r)
	}
	// Who changes something that is seen in two ways is in the history of both.
	if h.Local || op != hist.Read && (kind == hist.Name || kind == hist.Register && !strings.Contains(object, "slot")) {
		r.Object += " at the server"
		h.records = append(h.records, r)
	}
}

// addName records what a call did to a name, which may have failed as such calls do.
func (h *historian) addName(r hist.Record, err error, object string, op hist.Op, file int64) error {
	if errors.Is(err, unix.ENOENT) && op == hist.Take || errors.Is(err, unix.EEXIST) && op == hist.Make {
		r.Failed, err = true, nil
	}
	if err == nil {
		h.add(r, hist.Name, object, op, file)
	}
	return err
}

// historians are the processes of a test.
type historians []*historianProcess

type historianProcess struct {
	cmd *exec.Cmd
	in  *gob.Encoder
	end io.Closer
	out chan account // closed at its end
}

// startHistorians starts some; they end with the test.
func startHistorians(t testing.TB, n int) (hs historians) {
	t.Helper()
	for range n {
		cmd := exec.Command("/proc/self/exe")
		cmd.Env = append(os.Environ(), historianEnv+"=1", "GOMAXPROCS=2", "GODEBUG=asyncpreemptoff=1") // no signals but those that a test wants
		cmd.Stderr = os.Stderr
		stdin, err := cmd.StdinPipe()
		require.NoError(t, err)
		stdout, err := cmd.StdoutPipe()
		require.NoError(t, err)
		require.NoError(t, cmd.Start())
		p := &historianProcess{cmd, gob.NewEncoder(stdin), stdin, make(chan account, 1)}
		go func() {
			defer close(p.out)
			for in := gob.NewDecoder(bufio.NewReader(stdout)); ; {
				var a account
				if in.Decode(&a) != nil {
					return
				}
				p.out <- a
			}
		}()
		t.Cleanup(func() {
			p.end.Close()
			p.cmd.Process.Kill()
			for range p.out { // until it has closed its end
			}
			p.cmd.Wait()
		})
		hs = append(hs, p)
	}
	return hs
}

// do has each do an errand, all at the same time, and returns all that they tell.
func (hs historians) do(t testing.TB, errands []errand) (all account) {
	t.Helper()
	answer := func(p *historianProcess) account {
		select {
		case a, alive := <-p.out:
			require.True(t, alive, "a process died")
			require.Empty(t, a.Err)
			return a
		case <-time.After(limit()):
			t.Fatal("a process does not end its operations")
		}
		return account{}
	}
	for i, p := range hs {
		require.NoError(t, p.in.Encode(errands[i]))
	}
	for _, p := range hs {
		answer(p)
	}
	for _, p := range hs {
		require.NoError(t, p.in.Encode(true))
	}
	for _, p := range hs {
		a := answer(p)
		all.Records, all.Late = append(all.Records, a.Records...), append(all.Late, a.Late...)
	}
	return all
}

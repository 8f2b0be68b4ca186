package e2e

import (
	"encoding/json"
	"fmt"
	"net"
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// Where a client is, and where it is afterwards.
const (
	office = "127.0.0.2"
	train  = "127.0.0.3"
)

// TestClientMoves: a client whose address changes while it works, as a laptop's that comes to another network, is
// the same to the server when it comes back within the term of its leases. No program hears of it: what is open stays open,
// what is locked stays locked for others, what was accepted is applied once, also what had been on its way.
func TestClientMoves(t *testing.T) {
	t.Parallel()
	for name, leave := range map[string]func(*testing.T, *proxy){
		"cut": func(_ *testing.T, p *proxy) { p.refuse() },
		"swallowed": func(t *testing.T, p *proxy) {
			p.swallow(t, false)
			p.shut()
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			l := newLab(t, "")
			export := l.mkdir("export")
			s := l.newServer(export)
			s.start()
			p := newProxyFrom(t, s.addr, office)
			var flags []string
			if !accept { // half of its patience it takes a mount to notice that its packets are swallowed
				flags = []string{"--soft", "10s"}
			}
			far, near := l.through(s, p, flags...), l.mount(s)

			writeFile(t, near+"/seen", "old")
			l.run("cagefs", "sync", near)
			require.Equal(t, "old", readFile(t, far+"/seen"))
			gone := openToWrite(t, far+"/gone", "gone")
			require.NoError(t, os.Remove(far+"/gone"))
			a, b, c := newLocker(t, far), newLocker(t, near), newLocker(t, near)
			a.do("open f file rw", "posix f ex 0 10 try", "write f 0 held")
			for _, x := range []*locker{b, c} {
				require.Eventually(t, func() bool { return x.ask("open f file rw") == "ok" }, 5*time.Second, 10*time.Millisecond)
			}
			b.say("posix f ex 0 1 wait")
			held := func() {
				t.Helper()
				require.Equal(t, "EAGAIN", c.ask("posix f sh 5 1 try"))
				b.blocked()
			}
			held()
			before := s.sessions()
			require.Len(t, before, 2)
			require.NotEmpty(t, before[office])

			w := newDiarist(t, far)
			w.leave(export, func() { p.swallow(t, true) }, func() { leave(t, p) }, func() {
				p.letThrough(t)
				p.shut()
				p.accept(t)
			})
			require.NotZero(t, l.state(far).Ops)
			held()

			left, resumes := time.Now(), l.state(far).Resumes
			p.move(train)
			p.accept(t)
			require.Eventually(t, func() bool { return s.sessions()[train] != "" }, 30*time.Second, 10*time.Millisecond)
			t.Logf("back after %v", time.Since(left).Round(time.Millisecond))
			held()
			after := s.sessions()
			require.Len(t, after, 2)
			require.Equal(t, before[office], after[train], "it is the same session")
			require.Equal(t, resumes+1, l.state(far).Resumes)

			n := w.end()
			want := new(strings.Builder)
			for i := range n {
				fmt.Fprintf(want, "line %d\n", i+1)
			}
			for _, dir := range []string{export, far, near} {
				require.Equal(t, want.String(), readFile(t, dir+"/diary"), "each line once, in order, in %s", dir)
				require.Equal(t, fmt.Sprintf("page %8d", n), readFile(t, dir+"/page"), dir)
			}
			_, err := gone.WriteAt([]byte("here"), 0)
			require.NoError(t, err)
			require.NoError(t, gone.Sync())
			writeFile(t, near+"/seen", "new")
			require.Equal(t, "new", readFile(t, far+"/seen"))
			held()
			a.do("write f 0 mine", "posix f un 0 10 try")
			require.Equal(t, "ok", b.answer())
			require.Equal(t, `"mine"`, b.ask("read f 0 4"))
			a.do("close f")
			require.NoError(t, gone.Close())
			l.umount(far)
			l.run("cagejournal", "verify", "--full", s.addr+":/data")
		})
	}
}

// sessions are the server's sessions that have a connection, by their IP addresses.
func (s *server) sessions() map[string]string {
	s.lab.t.Helper()
	out := map[string]string{}
	for line := range strings.Lines(s.admin("sessions", "--json")) {
		var c struct {
			Session string `json:"session"`
			Peer    string `json:"peer"`
		}
		require.NoError(s.lab.t, json.Unmarshal([]byte(line), &c))
		if host, _, err := net.SplitHostPort(c.Peer); err == nil {
			out[host] = c.Session
		}
	}
	return out
}

// diarist writes, until its end, numbered lines at the end of one file, and each number into a page of another.
type diarist struct {
	t           *testing.T
	diary, page *os.File
	lines       atomic.Int64 // written
	stop        func()       // may be called again
	ended       chan error   // holds one
}

func newDiarist(t *testing.T, dir string) *diarist {
	t.Helper()
	diary, err := os.OpenFile(dir+"/diary", os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o644)
	require.NoError(t, err)
	stop := make(chan struct{})
	w := &diarist{t: t, diary: diary, page: openToWrite(t, dir+"/page", ""), ended: make(chan error, 1)}
	w.stop = sync.OnceFunc(func() { close(stop) })
	t.Cleanup(func() {
		w.stop()
		diary.Close()
	})
	go func() { w.ended <- w.write(stop) }()
	return w
}

func (w *diarist) write(stop <-chan struct{}) error {
	pace := time.NewTicker(5 * time.Millisecond)
	defer pace.Stop()
	for n := int64(1); ; n++ {
		if _, err := fmt.Fprintf(w.diary, "line %d\n", n); err != nil {
			return fmt.Errorf("line %d: %w", n, err)
		}
		if _, err := w.page.WriteAt(fmt.Appendf(nil, "page %8d", n), 0); err != nil {
			return fmt.Errorf("page %d: %w", n, err)
		}
		w.lines.Store(n)
		select {
		case <-stop:
			return nil
		case <-pace.C:
		}
	}
}

// leave takes the server away: when it returns, the server has applied lines whose answers the mount does not get, and the mount has
// accepted some that the server does not get. silence keeps the answers back, gone does the rest, undo takes both back: the mount
// accepts nothing without write leases, and where it has given them up, for it was kept from writing for a second, it begins again.
func (w *diarist) leave(export string, silence, gone, undo func()) {
	w.t.Helper()
	for range 10 {
		n := w.lines.Load() + 20
		require.Eventually(w.t, func() bool { return w.lines.Load() >= n }, 30*time.Second, time.Millisecond)
		silence()
		n = w.lines.Load() + 2 // what is written later is not answered
		if soonTrue(func() bool { return strings.Count(readFile(w.t, export+"/diary"), "\n") >= int(n) }) {
			gone()
			n = w.lines.Load() + 2
			if soonTrue(func() bool { return w.lines.Load() >= n }) {
				w.t.Logf("left in line %d, the server with line %d", w.lines.Load(), strings.Count(readFile(w.t, export+"/diary"), "\n"))
				return
			}
		}
		undo()
	}
	w.t.Fatal("the mount never has the write leases")
}

// soonTrue waits for a second until something is so.
func soonTrue(ok func() bool) bool {
	for end := time.Now().Add(time.Second); time.Now().Before(end); time.Sleep(time.Millisecond) {
		if ok() {
			return true
		}
	}
	return false
}

// end has it write on for a while, end without an error, and tells how many lines it has written.
func (w *diarist) end() int {
	w.t.Helper()
	n := w.lines.Load() + 20
	require.Eventually(w.t, func() bool { return w.lines.Load() >= n || len(w.ended) > 0 }, 30*time.Second, time.Millisecond)
	w.stop()
	require.NoError(w.t, <-w.ended)
	for _, f := range []*os.File{w.diary, w.page} {
		require.NoError(w.t, f.Sync())
		require.NoError(w.t, f.Close())
	}
	return int(w.lines.Load())
}

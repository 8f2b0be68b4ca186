package e2e

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"
)

// history is what a worker has begun and what was answered, in order.
type history struct {
	mu    sync.Mutex
	steps []step // begun; guarded by mu
	done  int    // answered, all but the last at most; guarded by mu
}

func (h *history) begin(s step) {
	h.mu.Lock()
	defer h.mu.Unlock()
	s.at = time.Now()
	h.steps = append(h.steps, s)
}

func (h *history) end() {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.done = len(h.steps)
}

// now returns the steps begun, not to be changed, and how many were answered.
func (h *history) now() (begun []step, done int) {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.steps[:len(h.steps):len(h.steps)], h.done
}

// worker changes a directory of its own, one step after another. Every step must
// succeed, and what it reads must be what it wrote.
type worker struct {
	// Set at construction.
	name string // of its directory in the mount
	dir  string
	root string // the mount
	// The server loses power while the mount goes on: bytes that nobody has
	// synced may be gone afterwards, with the end of the file.
	lossy bool
	history

	// Owned by the goroutine of run.
	model *model
	rng   *rand.Rand
	plan  []step // what comes next
	files map[string]*os.File
	fresh int   // of the next new name
	lost  int   // files whose sync told that bytes are gone
	seen  int64 // load.power when files were last settled
}

// load is a number of workers that run until they are stopped.
type load struct {
	workers  []*worker
	stopping atomic.Bool
	power    atomic.Int64 // odd while the server's power is off or may be
	running  sync.WaitGroup
	mu       sync.Mutex
	errs     []error // guarded by mu
}

// newLoad prepares n workers in each mount, and makes their directories.
func newLoad(t testing.TB, seed uint64, n int, mounts ...string) *load {
	t.Helper()
	l := &load{}
	for _, root := range mounts {
		for range n {
			name := fmt.Sprintf("w%d", len(l.workers))
			w := &worker{
				name: name, dir: filepath.Join(root, name), root: root, model: newModel(),
				rng: rand.New(rand.NewPCG(seed, uint64(len(l.workers)))), files: map[string]*os.File{},
			}
			w.plan = []step{{kind: create, path: "log", mode: 0o644}, {kind: hold, path: "log", slot: "log"}}
			require.NoError(t, os.Mkdir(w.dir, 0o755))
			l.workers = append(l.workers, w)
		}
	}
	return l
}

// start lets the workers run.
func (l *load) start() {
	for _, w := range l.workers {
		l.running.Go(func() {
			if err := w.run(l); err != nil {
				l.stopping.Store(true)
				l.mu.Lock()
				defer l.mu.Unlock()
				l.errs = append(l.errs, err)
			}
		})
	}
}

// stop lets the workers end their steps and returns what went wrong.
func (l *load) stop() error {
	l.stopping.Store(true)
	l.running.Wait()
	l.mu.Lock()
	defer l.mu.Unlock()
	return errors.Join(l.errs...)
}

// done returns how many steps were answered, in all.
func (l *load) done() (n int) {
	for _, w := range l.workers {
		_, done := w.now()
		n += done
	}
	return n
}

func (w *worker) run(l *load) error {
	defer func() {
		for _, f := range w.files {
			f.Close()
		}
	}()
	for {
		power := l.power.Load()
		switch {
		case power != w.seen && power%2 == 0: // before anything else, also before the end
			w.seen = power
			w.plan = slices.Concat(w.settling(), w.plan)
		case l.stopping.Load() && w.settled():
			return nil
		case len(w.plan) == 0:
			w.choose()
		}
		if len(w.plan) == 0 {
			continue
		}
		s := w.plan[0]
		w.plan = w.plan[1:]
		w.begin(s)
		err := w.do(s)
		if w.lossy {
			err = w.excuse(&s, err, power%2 == 1 || l.power.Load() != power)
		}
		if err != nil {
			return fmt.Errorf("%s: %v: %w\n%s", w.name, s, err, w.story(s.path, s.to))
		}
		w.end()
		// What is gone when a rename or link makes it durable is gone in silence.
		w.model.apply(s, !w.lossy || s.kind == syncFile)
	}
}

// settling plans, after a power cut, a sync of each file with bytes that nobody
// had synced: it tells whether they are gone.
func (w *worker) settling() (plan []step) {
	for slot, n := range w.model.held {
		if len(n.loose) > 0 {
			plan = append(plan, step{kind: syncFile, path: slot, slot: slot})
		}
	}
	for _, p := range w.pick(isFile) {
		if len(w.model.tree[p].loose) > 0 {
			plan = append(plan, step{kind: syncFile, path: p})
		}
	}
	return plan
}

// settled reports whether no such sync is planned.
func (w *worker) settled() bool {
	return !w.lossy || !slices.ContainsFunc(w.plan, func(s step) bool { return s.kind == syncFile })
}

// excuse looks at the outcome of a step when the power has been cut before. EIO
// of a sync is an answer: then the file, of which bytes are gone, is emptied. What a
// read found while the power was cut says nothing.
func (w *worker) excuse(s *step, err error, meanwhile bool) error {
	switch {
	case s.kind == readBack && meanwhile:
		return nil
	case s.kind == syncAll && errors.Is(err, unix.EIO):
		s.kind = list // it has made nothing durable
		return nil
	case s.kind == syncFile && errors.Is(err, unix.EIO):
		w.lost++
		*s = step{kind: truncate, path: s.path, slot: s.slot}
		return w.with(*s, os.O_WRONLY, func(f *os.File) error { return errors.Join(f.Truncate(0), f.Sync()) })
	}
	return err
}

// story lists the last steps of a worker, and of those before the last that
// were about some paths, or about everything.
func (h *history) story(paths ...string) string {
	begun, done := h.now()
	var lines []string
	for i := len(begun) - 1; i >= 0 && len(lines) < 40; i-- {
		s := begun[i]
		if i > len(begun)-12 || slices.Contains(paths, s.path) || s.to != "" && slices.Contains(paths, s.to) || s.kind == syncAll {
			lines = append(lines, fmt.Sprintf("  %d %s %v", i, s.at.Format("05.000"), s))
		}
	}
	slices.Reverse(lines)
	return fmt.Sprintf("  %d steps begun, %d answered; the last:\n%s", len(begun), done, strings.Join(lines, "\n"))
}

// do does a step on the mount.
func (w *worker) do(s step) error {
	path, to := filepath.Join(w.dir, s.path), filepath.Join(w.dir, s.to)
	switch s.kind {
	case create:
		f, err := os.OpenFile(path, os.O_CREATE|os.O_EXCL|os.O_WRONLY, os.FileMode(s.mode))
		if err != nil {
			return err
		}
		return f.Close()
	case write:
		return w.with(s, os.O_WRONLY, func(f *os.File) error {
			_, err := f.WriteAt(s.data(), s.off)
			return err
		})
	case appendTo:
		if w.lossy { // the kernel's idea of the file's end may be another
			return w.with(s, os.O_WRONLY, func(f *os.File) error {
				_, err := unix.Pwrite(int(f.Fd()), s.data(), w.model.offset(s))
				return err
			})
		}
		return w.with(s, os.O_WRONLY|os.O_APPEND, func(f *os.File) error {
			_, err := f.Write(s.data())
			return err
		})
	case truncate:
		return os.Truncate(path, s.n)
	case syncFile:
		return w.with(s, os.O_RDONLY, func(f *os.File) error {
			if s.seed&1 == 0 {
				return f.Sync()
			}
			return unix.Fdatasync(int(f.Fd()))
		})
	case syncDir:
		return w.with(step{path: filepath.Dir(s.path)}, os.O_RDONLY, (*os.File).Sync)
	case syncAll:
		f, err := os.Open(w.root)
		if err != nil {
			return err
		}
		return errors.Join(f.Sync(), f.Close())
	case rename:
		return os.Rename(path, to)
	case unlink:
		return unix.Unlink(path)
	case rmdir:
		return unix.Rmdir(path)
	case link:
		return os.Link(path, to)
	case symlink:
		return os.Symlink(s.to, path)
	case mkdir:
		return os.Mkdir(path, os.FileMode(s.mode))
	case chmod:
		return os.Chmod(path, os.FileMode(s.mode))
	case hold:
		flags := os.O_RDWR | os.O_APPEND
		if w.lossy {
			flags = os.O_RDWR
		}
		f, err := os.OpenFile(path, flags, 0)
		w.files[s.slot] = f
		return err
	case drop:
		f := w.files[s.slot]
		delete(w.files, s.slot)
		return f.Close()
	case readBack:
		return w.with(s, os.O_RDONLY, func(f *os.File) error { return w.compareFile(f, s) })
	case list:
		return w.compareList(s.path)
	}
	panic("unknown step " + s.kind)
}

// with calls do with a step's file: the held one, or opened and closed.
func (w *worker) with(s step, flags int, do func(*os.File) error) error {
	if f := w.files[s.slot]; s.slot != "" {
		return do(f)
	}
	f, err := os.OpenFile(filepath.Join(w.dir, s.path), flags, 0)
	if err != nil {
		return err
	}
	return errors.Join(do(f), f.Close())
}

func (w *worker) compareFile(f *os.File, s step) error {
	want := w.model.target(s).data
	got, err := io.ReadAll(io.NewSectionReader(f, 0, int64(len(want))+1))
	if err == nil && !bytes.Equal(got, want) {
		i := 0
		for i < min(len(got), len(want)) && got[i] == want[i] {
			i++
		}
		err = fmt.Errorf("reads other than what was written: from byte %d on; %d bytes, want %d", i, len(got), len(want))
	}
	return err
}

func (w *worker) compareList(dir string) error {
	entries, err := os.ReadDir(filepath.Join(w.dir, dir))
	if err != nil {
		return err
	}
	var got, want []string
	for _, e := range entries {
		got = append(got, e.Name())
	}
	for p := range w.model.tree {
		if filepath.Dir(p) == dir {
			want = append(want, filepath.Base(p))
		}
	}
	slices.Sort(want)
	if !slices.Equal(got, want) {
		return fmt.Errorf("lists %v, want %v", got, want)
	}
	return nil
}

// choose plans a few steps that belong together.
func (w *worker) choose() {
	w.plan = nil
	for len(w.plan) == 0 {
		n := w.rng.IntN(100)
		for _, c := range choices {
			if n -= c.weight; n < 0 {
				w.plan = c.plan(w)
				break
			}
		}
	}
}

// choices are what workers do, with weights that add up to 100. One that cannot
// be done now plans nothing.
var choices = []struct {
	weight int
	plan   func(w *worker) []step
}{
	{20, func(w *worker) []step { // a new file
		if len(w.pick(isFile)) > 24 {
			return nil
		}
		path := w.newPath("f")
		plan := []step{{kind: create, path: path, mode: w.mode()}}
		for off := int64(0); len(plan) < 2+w.rng.IntN(3); {
			s := step{kind: write, path: path, off: off, n: w.size(), seed: w.seed()}
			off += s.n
			plan = append(plan, s)
		}
		return w.maybeSync(plan, path)
	}},
	{12, func(w *worker) []step { // an overwrite
		return w.onFile(func(path string, n *inode) []step {
			s := step{kind: write, path: path, off: w.rng.Int64N(int64(len(n.data)) + 1), n: w.size(), seed: w.seed()}
			return w.maybeSync([]step{s}, path)
		})
	}},
	{12, func(w *worker) []step {
		return w.onFile(func(path string, _ *inode) []step {
			return w.maybeSync([]step{{kind: appendTo, path: path, n: w.size(), seed: w.seed()}}, path)
		})
	}},
	{12, func(w *worker) []step { // a line in the log
		return []step{{kind: appendTo, path: "log", slot: "log", n: 1 + w.rng.Int64N(200), seed: w.seed()}, {kind: syncFile, path: "log", slot: "log", seed: w.seed()}}
	}},
	{10, func(w *worker) []step { // as an editor saves
		return w.onFile(func(path string, _ *inode) []step {
			tmp := w.newPath("tmp")
			return []step{{kind: create, path: tmp, mode: w.mode()}, {kind: write, path: tmp, n: w.size(), seed: w.seed()},
				{kind: syncFile, path: tmp, seed: w.seed()}, {kind: rename, path: tmp, to: path}, {kind: readBack, path: path}}
		})
	}},
	{5, func(w *worker) []step { // over another file, unsynced or not
		return w.onFile(func(path string, _ *inode) []step {
			return w.onFile(func(to string, _ *inode) []step { return []step{{kind: rename, path: path, to: to}} })
		})
	}},
	{4, func(w *worker) []step {
		return w.onFile(func(path string, _ *inode) []step { return []step{{kind: rename, path: path, to: w.newPath("r")}} })
	}},
	{5, func(w *worker) []step {
		return w.onFile(func(path string, n *inode) []step {
			s := step{kind: truncate, path: path, n: w.rng.Int64N(int64(len(n.data)) + 1)}
			if w.rng.IntN(3) == 0 {
				s.n += w.size()
			}
			return w.maybeSync([]step{s}, path)
		})
	}},
	{5, func(w *worker) []step {
		return w.onFile(func(path string, _ *inode) []step { return []step{{kind: unlink, path: path}} })
	}},
	{2, func(w *worker) []step {
		return w.onFile(func(path string, _ *inode) []step { return []step{{kind: link, path: path, to: w.newPath("l")}} })
	}},
	{2, func(w *worker) []step {
		if old := w.pick(func(_ string, n *inode) bool { return n.typ == os.ModeSymlink }); len(old) > 3 {
			return []step{{kind: unlink, path: old[0]}}
		}
		return []step{{kind: symlink, path: w.newPath("s"), to: "log"}}
	}},
	{2, func(w *worker) []step {
		if len(w.pick(isDir)) > 3 {
			return nil
		}
		return []step{{kind: mkdir, path: w.newName("d"), mode: 0o755}}
	}},
	{1, func(w *worker) []step {
		for _, d := range w.pick(isDir) {
			if len(w.model.below(d)) == 0 {
				return []step{{kind: rmdir, path: d}}
			}
		}
		return nil
	}},
	{2, func(w *worker) []step {
		return one(w, w.pick(isDir), func(d string) []step { return []step{{kind: rename, path: d, to: w.newName("d")}} })
	}},
	{1, func(w *worker) []step {
		return w.onFile(func(path string, _ *inode) []step { return []step{{kind: chmod, path: path, mode: w.mode()}} })
	}},
	{1, func(w *worker) []step {
		return w.onFile(func(path string, _ *inode) []step { return []step{{kind: syncDir, path: path}} })
	}},
	{1, func(w *worker) []step { return []step{{kind: syncAll}} }},
	{2, func(w *worker) []step {
		return w.onFile(func(path string, _ *inode) []step { return []step{{kind: readBack, path: path}} })
	}},
	{1, func(w *worker) []step {
		return one(w, append(w.pick(isDir), "."), func(d string) []step { return []step{{kind: list, path: d}} })
	}},
	{1, func(w *worker) []step { // a file without a name
		path := w.newPath("t")
		add := step{kind: appendTo, path: path, slot: "tmp", n: w.size()}
		add1, add2 := add, add
		add1.seed, add2.seed = w.seed(), w.seed()
		return []step{{kind: create, path: path, mode: 0o600}, {kind: hold, path: path, slot: "tmp"}, add1, {kind: unlink, path: path}, add2,
			{kind: syncFile, path: path, slot: "tmp", seed: w.seed()}, {kind: readBack, path: path, slot: "tmp"}, {kind: drop, slot: "tmp"}}
	}},
}

func isFile(path string, n *inode) bool { return n.typ == 0 && path != "log" }
func isDir(_ string, n *inode) bool     { return n.typ == os.ModeDir }

// pick returns the paths of some kind, sorted.
func (w *worker) pick(is func(path string, n *inode) bool) (paths []string) {
	for p, n := range w.model.tree {
		if is(p, n) {
			paths = append(paths, p)
		}
	}
	slices.Sort(paths)
	return paths
}

// one plans for one path of several.
func one(w *worker, paths []string, plan func(path string) []step) []step {
	if len(paths) == 0 {
		return nil
	}
	return plan(paths[w.rng.IntN(len(paths))])
}

func (w *worker) onFile(plan func(path string, n *inode) []step) []step {
	return one(w, w.pick(isFile), func(path string) []step { return plan(path, w.model.tree[path]) })
}

func (w *worker) maybeSync(plan []step, path string) []step {
	if w.rng.IntN(2) == 0 {
		plan = append(plan, step{kind: syncFile, path: path, seed: w.seed()})
	}
	return plan
}

// newName is a name that was never used; newPath is one in any directory.
func (w *worker) newName(prefix string) string {
	w.fresh++
	return fmt.Sprintf("%s%d", prefix, w.fresh)
}

func (w *worker) newPath(prefix string) string {
	name := w.newName(prefix)
	return one(w, append(w.pick(isDir), "."), func(d string) []step {
		return []step{{path: strings.TrimPrefix(d+"/"+name, "./")}}
	})[0].path
}

func (w *worker) mode() uint32 { return []uint32{0o644, 0o600, 0o755, 0o640}[w.rng.IntN(4)] }
func (w *worker) seed() uint64 { return w.rng.Uint64() >> 24 }

// size is of a write: most are small, some cross pages, few are large.
func (w *worker) size() int64 {
	switch n := w.rng.IntN(100); {
	case n < 60:
		return 1 + w.rng.Int64N(3000)
	case n < 80:
		return 4096 * (1 + w.rng.Int64N(8))
	case n < 98:
		return 1 + w.rng.Int64N(40_000)
	case n < 99:
		return 1 + w.rng.Int64N(300_000)
	}
	return 1 + w.rng.Int64N(1_500_000)
}

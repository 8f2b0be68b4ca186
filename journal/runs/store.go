package runs

import (
	"bytes"
	"errors"
	"slices"
	"strconv"
	"sync"
	"sync/atomic"
	"syscall"

	"github.com/rs/zerolog"

	"cagefs.dev/cage/journal/vfs"
	"cagefs.dev/cage/remote/status"
)

// Options of a store.
type Options struct {
	Dir      vfs.Dir // holds the runs and nothing else; stays the caller's
	Names    []Name  // the runs that count, newest first
	Cache    *Cache
	ReadOnly bool // nothing is changed on disk
	Log      zerolog.Logger
	Failed   func(error) // called once a merge has failed for good, with no lock held
}

// Store is the runs of a directory. Safe for concurrent use.
type Store struct {
	o      Options // set at construction
	closed atomic.Bool
	work   sync.WaitGroup // the merge under way

	mu      sync.Mutex // a leaf lock, held over no I/O
	live    *View      // guarded by mu
	kept    *View      // guarded by mu: what a restart would open
	next    uint64     // number of the next run; guarded by mu
	merging bool       // guarded by mu
}

// View is the runs at a time, newest first. Its holder releases it once.
type View struct {
	s    *Store
	runs []*run
	refs atomic.Int32
}

// Open opens the runs that count and removes all others. A run that is missing or
// damaged is status.Damaged.
func Open(o Options) (*Store, error) {
	s := &Store{o: o, next: 1}
	var opened []*run
	err := s.sweep()
	for _, n := range o.Names {
		if err != nil {
			break
		}
		var r *run
		if r, err = s.open(n); err == nil {
			opened = append(opened, r)
		}
	}
	if err != nil {
		for _, r := range opened {
			r.f.Close()
		}
		return nil, err
	}
	s.live = s.view(opened)
	s.kept = s.view(opened)
	return s, nil
}

func (s *Store) open(n Name) (*run, error) {
	f, err := s.o.Dir.Open(n.file(), false)
	if errors.Is(err, syscall.ENOENT) {
		return nil, status.Newf(status.Damaged, "open", "table/"+n.file(), "it is missing")
	}
	if err != nil {
		return nil, err
	}
	r, err := openRun(f, n.Number, s.o.Cache)
	if err == nil && r.Sum != n.Sum {
		f.Close()
		err = status.Newf(status.Damaged, "open", "table/"+n.file(), "it is another one than the checkpoint names")
	}
	return r, err
}

// sweep removes files that do not count: of runs that no checkpoint came to name.
func (s *Store) sweep() error {
	var stray []string
	err := s.o.Dir.ReadDir(0, func(name string, _ uint64, _ uint32, _ uint64) bool {
		n, err := strconv.ParseUint(name, 10, 64)
		if err == nil {
			s.next = max(s.next, n+1)
		}
		if err != nil || !slices.ContainsFunc(s.o.Names, func(x Name) bool { return x.Number == n }) {
			stray = append(stray, name)
		}
		return true
	})
	for _, name := range stray {
		if err == nil && !s.o.ReadOnly {
			err = s.o.Dir.Remove(name)
		}
	}
	return err
}

// view makes a view that its maker holds.
func (s *Store) view(list []*run) *View {
	v := &View{s: s, runs: list}
	v.refs.Store(1)
	for _, r := range list {
		r.refs.Add(1)
	}
	return v
}

// View returns the runs as they are now.
func (s *Store) View() *View {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.live.refs.Add(1)
	return s.live
}

// Release gives the view back. Files that only it had are closed and removed.
func (v *View) Release() {
	if v.refs.Add(-1) > 0 {
		return
	}
	for _, r := range v.runs {
		if r.refs.Add(-1) > 0 {
			continue
		}
		r.f.Close()
		r.cache.forget(r)
		if v.s.closed.Load() || v.s.o.ReadOnly {
			continue
		}
		if err := v.s.o.Dir.Remove(r.file()); err != nil { // the next start will
			v.s.o.Log.Warn().Err(err).Str("file", "table/"+r.file()).Msg("cannot be removed")
		}
	}
}

// Names are the runs of the view, newest first, as Open wants them.
func (v *View) Names() []Name {
	out := make([]Name, len(v.runs))
	for i, r := range v.runs {
		out[i] = r.Name
	}
	return out
}

// Get returns the value of a key, which is not to be changed.
func (v *View) Get(key []byte) (value []byte, ok bool, err error) {
	for _, r := range v.runs {
		e, ok, err := r.get(key)
		if err != nil {
			return nil, false, err
		}
		if ok {
			return e.Value, e.Value != nil, nil
		}
	}
	return nil, false, nil
}

// Scan calls f for the keys from one on and below another with their values, in
// order, until it returns false. What newer sources say of a key hides what
// older ones and the view say; the newest comes first.
func (v *View) Scan(from, below []byte, f func(Entry) bool, newer ...Sorted) error {
	var sources []Source
	for _, s := range newer {
		i, _ := slices.BinarySearchFunc(s, from, func(e Entry, k []byte) int { return bytes.Compare(e.Key, k) })
		s = s[i:]
		sources = append(sources, &s)
	}
	old, err := v.sources(from)
	if err != nil {
		return err
	}
	return merge(append(sources, old...), func(e Entry) (bool, error) {
		if bytes.Compare(e.Key, below) >= 0 {
			return false, nil
		}
		return e.Value == nil || f(e), nil
	})
}

func (v *View) sources(from []byte) (out []Source, err error) {
	for _, r := range v.runs {
		c, err := r.from(from)
		if err != nil {
			return nil, err
		}
		out = append(out, c)
	}
	return out, nil
}

// Add makes a new run of entries in order, durable when Add returns, and begins
// to merge if that is due. One Add at a time. After status.NoSpace nothing has changed.
func (s *Store) Add(entries Sorted) error {
	r, err := s.write(func(add func(Entry) error) error {
		for _, e := range entries {
			if err := add(e); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		return err
	}
	s.mu.Lock()
	s.replaceLocked(append([]*run{r}, s.live.runs...))
	s.mu.Unlock()
	s.merge()
	return nil
}

// replaceLocked makes another list of runs the live one. The view before is
// released by a goroutine, for that may remove files.
func (s *Store) replaceLocked(list []*run) {
	old := s.live
	s.live = s.view(list)
	s.work.Go(old.Release)
}

// write makes the file of a run.
func (s *Store) write(fill func(add func(Entry) error) error) (*run, error) {
	s.mu.Lock()
	n := Name{Number: s.next}
	s.next++
	s.mu.Unlock()
	f, err := s.o.Dir.Create(n.file(), 0o600)
	if err != nil {
		return nil, status.Wrap(err, "write", "table/"+n.file())
	}
	w := newWriter(f)
	if err = fill(w.add); err == nil {
		err = w.finish()
	}
	if err == nil {
		err = s.o.Dir.Sync()
	}
	if err != nil {
		f.Close()
		return nil, errors.Join(status.Wrap(err, "write", "table/"+n.file()), s.o.Dir.Remove(n.file()))
	}
	return openRun(f, n.Number, s.o.Cache)
}

// Keep notes what a restart would open from now on. It takes the view over.
func (s *Store) Keep(v *View) {
	s.mu.Lock()
	old := s.kept
	s.kept = v
	s.mu.Unlock()
	old.Release()
}

// due is which runs are to be merged, n of them, 0 or at least 2: one with each
// older one that is not twice as big as those before it together. It need not be
// the newest: one that is small beside the next waits for others of its size.
func due(list []*run) (from, n int) {
	for from := range list {
		sum, n := int64(0), 0
		for _, r := range list[from:] {
			if n > 0 && r.size >= 2*sum {
				break
			}
			sum += r.size
			n++
		}
		if n > 1 {
			return from, n
		}
	}
	return 0, 0
}

// merge begins merging in the background, if that is due and not under way.
func (s *Store) merge() {
	s.mu.Lock()
	defer s.mu.Unlock()
	from, n := due(s.live.runs)
	if s.merging || n == 0 || s.closed.Load() {
		return
	}
	s.merging = true
	v := s.live
	v.refs.Add(1)
	s.work.Go(func() {
		err := s.mergeRuns(v, from, n)
		v.Release()
		s.mu.Lock()
		s.merging = false
		s.mu.Unlock()
		switch {
		case err == nil:
			s.merge()
		case errors.Is(err, errClosed):
		case status.Full(err): // the next Add tries again
			s.o.Log.Warn().Err(err).Msg("no space to merge the table of files")
		default:
			s.o.Failed(err)
		}
	})
}

var errClosed = errors.New("closed")

// mergeRuns replaces n runs of a view, one after the other, by one.
func (s *Store) mergeRuns(v *View, from, n int) error {
	part := &View{s: s, runs: v.runs[from : from+n]}
	sources, err := part.sources(nil)
	if err != nil {
		return err
	}
	last := from+n == len(v.runs) // nothing is left that a deleted key would hide
	merged, err := s.write(func(add func(Entry) error) error {
		return merge(sources, func(e Entry) (bool, error) {
			if s.closed.Load() {
				return false, errClosed
			}
			if last && e.Value == nil {
				return true, nil
			}
			return true, add(e)
		})
	})
	if err != nil {
		return err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	i := slices.Index(s.live.runs, v.runs[from]) // newer ones may have come
	s.replaceLocked(slices.Concat(s.live.runs[:i], []*run{merged}, s.live.runs[i+n:]))
	return nil
}

// Close waits for what is under way and closes the files. Views must be released.
func (s *Store) Close() {
	s.closed.Store(true)
	s.work.Wait()
	s.live.Release()
	s.kept.Release()
}

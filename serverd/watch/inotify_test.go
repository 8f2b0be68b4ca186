package watch

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// seen collects what a watcher tells of a tree.
type seen struct {
	t   *testing.T
	dir string
	o   Options

	mu        sync.Mutex
	what      map[string]What // by path
	from      map[string]string
	lost      []time.Time
	unwatched int
	walks     []string
}

func newSeen(t *testing.T) *seen {
	s := &seen{t: t, dir: t.TempDir(), what: map[string]What{}, from: map[string]string{}}
	s.o = Options{Dir: s.dir, Hidden: ".cage", MaxDirs: 1 << 20,
		Seen: func(_ context.Context, events []Event) error {
			s.mu.Lock()
			defer s.mu.Unlock()
			for _, e := range events {
				p := filepath.Join(e.Path, e.Name)
				s.what[p] |= e.What
				if e.From != nil {
					s.from[p] = filepath.Join(e.From.Path, e.From.Name)
				}
			}
			return nil
		},
		Lost: func(_ context.Context, since time.Time) error {
			s.mu.Lock()
			defer s.mu.Unlock()
			s.lost = append(s.lost, since)
			return nil
		},
		Unwatched: func(context.Context) error {
			s.mu.Lock()
			defer s.mu.Unlock()
			s.unwatched++
			return nil
		},
		Walked: func(dirs int, all bool) {
			s.mu.Lock()
			defer s.mu.Unlock()
			s.walks = append(s.walks, fmt.Sprint(dirs, " ", all))
		},
		Failed: func(err error) { t.Errorf("watching failed: %v", err) },
	}
	return s
}

// inotify starts watching and returns when all of the tree has been walked.
func (s *seen) inotify() *Watcher {
	s.t.Helper()
	i, err := openInotify(s.o)
	require.NoError(s.t, err)
	return s.start(i)
}

func (s *seen) start(i *inotify) *Watcher {
	s.t.Helper()
	w := start(s.o, i)
	s.t.Cleanup(w.Close)
	s.until("the first walk", func() bool { return len(s.walks) > 0 })
	return w
}

// until waits for a condition on what is guarded by mu.
func (s *seen) until(what string, ok func() bool) {
	s.t.Helper()
	require.Eventually(s.t, func() bool {
		s.mu.Lock()
		defer s.mu.Unlock()
		return ok()
	}, 5*time.Second, time.Millisecond, what)
}

// told waits until all of this was told of a path.
func (s *seen) told(path string, what What) {
	s.t.Helper()
	s.until(fmt.Sprintf("%s: %b", path, what), func() bool { return s.what[path]&what == what })
}

// forget drops what was told so far, and returns it.
func (s *seen) forget() map[string]What {
	s.mu.Lock()
	defer s.mu.Unlock()
	old := s.what
	s.what, s.from = map[string]What{}, map[string]string{}
	return old
}

func (s *seen) at(path string) string { return filepath.Join(s.dir, path) }

func (s *seen) write(path, content string) {
	s.t.Helper()
	require.NoError(s.t, os.MkdirAll(filepath.Dir(s.at(path)), 0o755))
	require.NoError(s.t, os.WriteFile(s.at(path), []byte(content), 0o644))
}

func (s *seen) mv(from, to string) {
	s.t.Helper()
	require.NoError(s.t, os.Rename(s.at(from), s.at(to)))
}

func TestInotifyTells(t *testing.T) {
	s := newSeen(t)
	s.write("old/f", "x")
	s.write(".cage/wal/1", "x")
	require.NoError(t, os.Symlink(t.TempDir(), s.at("out")))
	w := s.inotify()
	require.True(t, w.Complete())
	require.False(t, w.Sure())
	require.Equal(t, []string{"2 true"}, s.walks, "the root and one directory")

	s.write("new", "x")
	s.told("new", In|Content|Closed)
	require.NoError(t, os.Chmod(s.at("old/f"), 0o600))
	s.told("old/f", Attr)
	s.mv("old/f", "g")
	s.told("old/f", Out)
	s.told("g", In)
	s.until("where it was", func() bool { return s.from["g"] == "old/f" })
	require.NoError(t, os.Remove(s.at("g")))
	s.told("g", Out)
	require.NoError(t, os.Chmod(s.dir, 0o750))
	s.told("", Attr)
	s.write(".cage/wal/2", "x")
	require.NoError(t, os.WriteFile(s.at("out/there"), []byte("x"), 0o644))
	s.write("last", "")
	s.told("last", In)
	for path, what := range s.forget() {
		require.False(t, strings.HasPrefix(path, ".cage") || strings.HasPrefix(path, "out"), path)
		require.Zero(t, what&(Sure|Gone), path)
	}
}

// TestInotifyMissesNothingInNewDirectories: what is made in a directory before it
// has its watch is told when it has.
func TestInotifyMissesNothingInNewDirectories(t *testing.T) {
	s := newSeen(t)
	w := s.inotify()
	for i := range 200 {
		s.write(fmt.Sprintf("%d/a/b/c/f", i), "x")
		s.mv(fmt.Sprintf("%d/a", i), fmt.Sprintf("%d/z", i))
		s.write(fmt.Sprintf("%d/z/b/c/g", i), "x")
	}
	s.until("all files", func() bool {
		for i := range 200 {
			for _, f := range "fg" {
				in := false
				for _, up := range "az" { // where it was when it was told
					in = in || s.what[fmt.Sprintf("%d/%c/b/c/%c", i, up, f)]&In != 0
				}
				if !in {
					return false
				}
			}
		}
		return true
	})
	s.forget()
	for i := range 200 {
		s.write(fmt.Sprintf("%d/z/b/c/later", i), "x")
	}
	s.until("all of them are watched, where they are", func() bool {
		for i := range 200 {
			if s.what[fmt.Sprintf("%d/z/b/c/later", i)]&In == 0 {
				return false
			}
		}
		return true
	})
	require.True(t, w.Complete())
}

func TestInotifyFollowsDirectories(t *testing.T) {
	s := newSeen(t)
	s.write("d/sub/f", "x")
	s.write("other/f", "x")
	outside := t.TempDir()
	i, err := openInotify(s.o)
	require.NoError(t, err)
	w := s.start(i)

	s.mv("d", "other/e")
	s.told("other/e", In)
	s.write("other/e/sub/f", "y")
	s.told("other/e/sub/f", Content)
	require.Empty(t, s.lost)

	s.forget()
	require.NoError(t, os.Rename(s.at("other/e"), filepath.Join(outside, "e")))
	s.told("other/e", Out)
	s.write("mark", "")
	s.told("mark", In)
	require.NoError(t, os.WriteFile(filepath.Join(outside, "e/sub/f"), []byte("z"), 0o644))
	s.write("mark2", "")
	s.told("mark2", In)
	for path := range s.forget() {
		require.NotContains(t, path, "sub", "what is not in the tree is nobody's business")
	}

	require.NoError(t, os.WriteFile(filepath.Join(outside, "e/young"), nil, 0o644))
	require.NoError(t, os.Rename(filepath.Join(outside, "e"), s.at("back")))
	s.told("back", In)
	s.write("back/sub/new", "x")
	s.told("back/sub/new", In)
	require.Zero(t, s.forget()["back/sub/f"]&In, "it came with its directory")

	require.NoError(t, os.RemoveAll(s.at("back")))
	s.told("back", Out)
	w.Close()
	names := []string{}
	for _, d := range i.dirs.byWatch {
		names = append(names, d.path())
	}
	slices.Sort(names)
	require.Equal(t, []string{"", "other"}, names, "no watch is left of what is gone")
}

// TestInotifyOverflow: more happens than the kernel keeps. That is said, with a time
// from before, and directories that were made meanwhile have their watches then.
func TestInotifyOverflow(t *testing.T) {
	s := newSeen(t)
	s.write("d/f", "x")
	s.write("gone/f", "x")
	i, err := openInotify(s.o)
	require.NoError(t, err)
	idle := &Watcher{o: s.o, source: i, index: map[placeKey]int{}, wake: make(chan struct{}, 1), lose: make(chan struct{}, 1)}
	i.begin(idle, time.Now())
	for len(i.todo) > 0 { // the kernel has watches, and nobody reads
		d := i.todo[0]
		i.todo = i.todo[1:]
		i.list(idle, d)
	}
	i.since = time.Time{}
	before := time.Now()
	done := make(chan struct{})
	w := start(s.o, &late{inotify: i, do: func() {
		defer close(done)
		for n := range 20000 {
			name := s.at(fmt.Sprintf("n%d", n))
			require.NoError(t, os.WriteFile(name, nil, 0o644))
			require.NoError(t, os.Remove(name))
		}
		require.NoError(t, os.RemoveAll(s.at("gone")))
		s.write("new/sub/f", "x")
	}})
	t.Cleanup(w.Close)
	<-done // however slow the disk is
	s.until("it is said", func() bool { return len(s.lost) > 0 })
	require.False(t, s.lost[0].After(time.Now()))
	require.WithinDuration(t, before, s.lost[0], time.Second)
	require.True(t, w.Complete())
	s.write("new/sub/g", "x")
	s.told("new/sub/g", In)
	w.Close()
	require.Len(t, i.dirs.byWatch, 4, "the root, d, new, new/sub")
}

// late is inotify that does something before it reads for the first time.
type late struct {
	*inotify
	do func()
}

func (l *late) run(w *Watcher) error {
	l.do()
	return l.inotify.run(w)
}

// TestInotifyLimit: with fewer watches than directories that is said, and what has
// a watch is told.
func TestInotifyLimit(t *testing.T) {
	s := newSeen(t)
	for i := range 10 {
		s.write(fmt.Sprintf("d%d/sub/f", i), "x")
	}
	s.o.MaxDirs = 5
	w := s.inotify()
	require.False(t, w.Complete())
	require.Equal(t, []string{"5 false"}, s.walks)
	s.write("f", "x")
	s.told("f", In|Content)
	require.NoError(t, os.Mkdir(s.at("more"), 0o755))
	s.told("more", In)
	w.Close()
	require.LessOrEqual(t, len(w.source.(*inotify).dirs.byWatch), 5)
}

// TestInotifyWalksAgain: once there are watches enough, all is watched.
func TestInotifyWalksAgain(t *testing.T) {
	s := newSeen(t)
	s.write("a/f", "x")
	s.write("b/f", "x")
	s.o.MaxDirs = 2
	i, err := openInotify(s.o)
	require.NoError(t, err)
	i.rewalk = 10 * time.Millisecond
	w := s.start(i)
	require.False(t, w.Complete())
	require.NoError(t, os.RemoveAll(s.at("a")))
	require.Eventually(t, w.Complete, 5*time.Second, time.Millisecond)
	s.write("b/g", "x")
	s.told("b/g", In)
	s.until("what happened meanwhile is to be looked for", func() bool { return s.unwatched > 1 })
}

// TestInotifyUnreadable: a directory that this process may not read is watched when it may.
func TestInotifyUnreadable(t *testing.T) {
	if os.Getuid() == 0 {
		t.Skip("root may read everything")
	}
	s := newSeen(t)
	s.write("mine/f", "x")
	s.write("shut/f", "x")
	require.NoError(t, os.Chmod(s.at("shut"), 0))
	t.Cleanup(func() { os.Chmod(s.at("shut"), 0o700) })
	w := s.inotify()
	require.True(t, w.Complete(), "what is in it this process cannot serve either")
	require.NoError(t, os.Chmod(s.at("shut"), 0o700))
	s.told("shut", Attr)
	s.write("shut/g", "x")
	s.told("shut/g", In)
}

func TestDecodeInotify(t *testing.T) {
	for _, b := range [][]byte{make([]byte, 15), append(make([]byte, 12), 1, 0, 0, 0), append(make([]byte, 12), 255, 255, 255, 255)} {
		require.Error(t, decodeInotify(b, func(inEvent) {}))
	}
	n := 0
	require.NoError(t, decodeInotify(make([]byte, 32), func(inEvent) { n++ }))
	require.Equal(t, 2, n)
}

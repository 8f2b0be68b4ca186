package e2e

import (
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"
)

// TestLocalDirectories: directories that processes of the server make, move and
// remove, and what is in them at once, are seen by a mount, and are in the log.
func TestLocalDirectories(t *testing.T) {
	bothWays(t, func(t *testing.T, x *shared) {
		rounds := 5
		if accept {
			rounds = 100
		}
		for i := range rounds {
			x.sh.do("mkdir -p t%[1]d/a/b/c && echo x > t%[1]d/a/b/c/f && mkdir t%[1]d/a/n && mv t%[1]d/a/n t%[1]d/m && echo y > t%[1]d/m/g", i)
			at := func(p string) string { return fmt.Sprintf("%s/t%d/%s", x.m, i, p) }
			sooner(t, "what is in new directories", func() bool {
				return content(at("a/b/c/f")) == "x\n" && content(at("m/g")) == "y\n"
			})
			x.sh.do("echo later >> t%[1]d/a/b/c/f; echo later > t%[1]d/m/h", i)
			sooner(t, "what comes later", func() bool {
				return content(at("a/b/c/f")) == "x\nlater\n" && content(at("m/h")) == "later\n"
			})
			x.sh.do("mv t%[1]d/a t%[1]d/z; echo moved >> t%[1]d/z/b/c/f", i)
			sooner(t, "a moved tree", func() bool {
				return content(at("z/b/c/f")) == "x\nlater\nmoved\n" && !exists(at("a"))
			})
			x.sh.do("rm -r t%d/m", i)
			sooner(t, "a removed tree", func() bool { return !exists(at("m")) })
		}
		missing := func() (out []string) {
			var did []string
			for _, e := range x.locals() {
				did = append(did, e.Kind+" "+e.Path)
			}
			for i := range rounds {
				for _, want := range []string{"make t%d/a", "make t%d/[az]/b", "make t%d/[az]/b/c", "make t%d/[az]/b/c/f", "rename t%d/a", "remove t%d/(m|[az]/n)"} {
					want := "^" + fmt.Sprintf(want, i) + "$"
					if !slices.ContainsFunc(did, regexp.MustCompile(want).MatchString) {
						out = append(out, want)
					}
				}
			}
			return out
		}
		// Who asks for a name that is gone is told so before the removal is in the log.
		if !soonTrue(func() bool { return len(missing()) == 0 }) {
			t.Errorf("not in the log: %v", missing())
		}
	})
}

// TestLocalSameFile: a mount and a process of the server write the same file.
// Each has bytes of its own, some of them in the same pages, and both append to
// another file: nothing of either is lost or undone. Of bytes that both write
// each time one whole write is left.
func TestLocalSameFile(t *testing.T) {
	bothWays(t, func(t *testing.T, x *shared) {
		const slot, slots = 1000, 64 // several in a page
		rounds := 40
		if accept {
			rounds = 1000
		}
		x.sh.do("head -c %d /dev/zero > both; : > log; chmod 666 both log", slot*slots)
		sooner(t, "the file", func() bool { return len(content(x.m+"/both")) == slot*slots && exists(x.m+"/log") })
		sides := []*writer{openWriter(t, x.m, 0), openWriter(t, x.export, 1)}
		var wg sync.WaitGroup
		for _, w := range sides {
			wg.Go(func() {
				for i := range rounds {
					if w.err = w.write(i, slot, slots); w.err != nil {
						return
					}
				}
			})
		}
		wg.Wait()
		for _, w := range sides {
			require.NoError(t, w.err)
		}
		x.run("cagefs", "sync", x.m)
		for _, dir := range []string{x.export, x.m} {
			var got, lines string
			same := func() bool {
				got, lines = content(dir+"/both"), content(dir+"/log")
				return got == content(x.export+"/both") && lines == content(x.export+"/log")
			}
			sooner(t, dir, same)
			for n, w := range sides {
				for s, want := range w.last {
					require.Equal(t, want, got[s*slot:s*slot+len(want)], "%s: slot %d of side %d", dir, s, n)
				}
				require.Equal(t, rounds, strings.Count(lines, fmt.Sprintf("side %d,", n)), "%s: lines of side %d", dir, n)
			}
			require.Contains(t, []string{sides[0].shared, sides[1].shared}, got[:len(sides[0].shared)])
		}
	})
}

// writer writes a file that others write, too.
type writer struct {
	side      int
	file, log *os.File
	last      map[int]string // of its slots: what it wrote last
	shared    string         // what it wrote last where both do
	err       error
}

func openWriter(t *testing.T, dir string, side int) *writer {
	file, err := os.OpenFile(dir+"/both", os.O_RDWR, 0)
	require.NoError(t, err)
	t.Cleanup(func() { file.Close() })
	log, err := os.OpenFile(dir+"/log", os.O_WRONLY|os.O_APPEND, 0)
	require.NoError(t, err)
	t.Cleanup(func() { log.Close() })
	return &writer{side: side, file: file, log: log, last: map[int]string{}}
}

func (w *writer) write(i, slot, slots int) error {
	s := 2 + 2*rand.IntN(slots/2-1) + w.side
	w.last[s] = fmt.Sprintf("side %d, round %6d|", w.side, i)
	w.shared = fmt.Sprintf("shared by %d, round %6d|", w.side, i)
	for _, b := range []struct {
		text string
		off  int
	}{{w.last[s], s * slot}, {w.shared, 0}} {
		if _, err := w.file.WriteAt([]byte(b.text), int64(b.off)); err != nil {
			return err
		}
	}
	for s, want := range w.last { // also while the other writes
		got := make([]byte, len(want))
		if _, err := w.file.ReadAt(got, int64(s*slot)); err != nil {
			return err
		}
		if string(got) != want {
			return fmt.Errorf("side %d, round %d: slot %d has %q, not %q", w.side, i, s, got, want)
		}
	}
	_, err := fmt.Fprintf(w.log, "side %d, line %d\n", w.side, i)
	return err
}

// TestLocalEditors: files that programs of the server save in the ways of editors
// are seen whole by a mount that has them open in its own, and so is a tree in
// which git commits and checks out.
func TestLocalEditors(t *testing.T) {
	bothWays(t, func(t *testing.T, x *shared) {
		rounds := 3
		if accept {
			rounds = 40
		}
		x.sh.do("echo first > f")
		sooner(t, "the file", func() bool { return content(x.m+"/f") == "first\n" })
		ways := []struct{ name, save string }{
			{"over a new file", "echo '%[1]s' > .f.new && mv .f.new f"},
			{"vim, backupcopy=no", "mv f f~ && echo '%[1]s' > f && rm f~"},
			{"vim, backupcopy=yes", "cp -p f f~ && echo '%[1]s' > f && rm f~"},
			{"emacs", "rm -f f~ && mv f f~ && echo '%[1]s' > f"},
			{"sed -i", "sed -i 's/.*/%[1]s/' f"},
			{"in place, time kept", "touch -r f .t && echo '%[1]s' 1<>f && touch -r .t f && rm .t"},
			{"ed", "printf '1c\\n%[1]s\\n.\\nw\\nq\\n' | ed -s f"},
		}
		if _, err := exec.LookPath("ed"); err != nil {
			ways = ways[:len(ways)-1]
		}
		for i := range rounds {
			for n, way := range ways {
				text := fmt.Sprintf("save %05d", i*len(ways)+n) // of one length
				x.sh.do(way.save, text)
				sooner(t, way.name, func() bool { return content(x.m+"/f") == text+"\n" })
			}
			require.NoError(t, os.WriteFile(x.m+"/f", fmt.Appendf(nil, "mine %5d\n", i), 0o644))
			require.Equal(t, fmt.Sprintf("mine %5d\n", i), content(x.m+"/f"))
			x.run("cagefs", "sync", x.m)
			require.Equal(t, fmt.Sprintf("mine %5d\n", i), content(x.export+"/f"))
		}
		x.run("cagefs", "sync", x.m)
		x.same("")
	})
}

// TestLocalGit: git commits, checks out and packs in the export; a mount shows
// its work tree and its repository as they are.
func TestLocalGit(t *testing.T) {
	_, err := exec.LookPath("git")
	if err != nil {
		t.Skip("there is no git")
	}
	bothWays(t, func(t *testing.T, x *shared) {
		rounds := 1
		if accept {
			rounds = 15
		}
		x.sh.do("git init -q -b one r && cd r && git config user.email a@b && git config user.name a && git config gc.auto 0")
		x.sh.do("for i in $(seq 30); do mkdir -p d$((i%%5)); echo $i > d$((i%%5))/f$i; done; git add . && git commit -qm one && git branch two")
		for i := range rounds {
			x.sh.do("git checkout -q two && echo %[1]d > d1/changed && git rm -q -r --ignore-unmatch d2 && mkdir -p new && echo %[1]d > new/f%[1]d && git add . && git commit -qm two%[1]d", i)
			x.same("r")
			x.sh.do("git checkout -q one && echo %[1]d > d3/g%[1]d && git add . && git commit -qm one%[1]d", i)
			x.same("r")
			x.sh.do("{ git merge -q -m merged%[1]d -X theirs two || { git add -A && git commit -qm merged%[1]d; }; } >/dev/null 2>&1", i)
			x.same("r")
		}
		x.sh.do("git gc -q && git fsck")
		x.same("r")
		cmd := exec.Command("git", "-c", "safe.directory=*", "-C", x.m+"/r", "fsck", "--strict")
		out, err := cmd.CombinedOutput()
		require.NoError(t, err, "%s", out)
	})
}

// TestLocalMapping: what a program stores through a mapping nothing tells. A mount
// that looks sees the first store to a page, and all when the file is closed.
func TestLocalMapping(t *testing.T) {
	t.Parallel()
	bothWays(t, func(t *testing.T, x *shared) {
		const size = 16 * 4096
		x.sh.do("head -c %d /dev/zero | tr '\\0' . > f", size)
		sooner(t, "the file", func() bool { return content(x.m+"/f") == strings.Repeat(".", size) })
		follow, err := os.Open(x.m + "/f")
		require.NoError(t, err)
		t.Cleanup(func() { follow.Close() })
		sees := func(off int, want string, most time.Duration) bool {
			t.Helper()
			got := make([]byte, len(want))
			for end := time.Now().Add(most); string(got) != want && time.Now().Before(end); time.Sleep(5 * time.Millisecond) {
				_, err := follow.Stat()
				require.NoError(t, err)
				_, err = follow.ReadAt(got, int64(off))
				require.NoError(t, err)
			}
			return string(got) == want
		}
		see := func(off int, want string) {
			t.Helper()
			require.True(t, sees(off, want, 5*time.Second), "%q at %d", want, off)
		}
		see(0, ".....")
		require.Eventually(t, func() bool { // what came before is told
			return slices.ContainsFunc(x.locals(), func(e logEntry) bool { return e.Kind == "make" && e.Path == "f" })
		}, 5*time.Second, 20*time.Millisecond)
		f, err := os.OpenFile(x.export+"/f", os.O_RDWR, 0)
		require.NoError(t, err)
		b, err := unix.Mmap(int(f.Fd()), 0, size, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
		require.NoError(t, err)
		// The kernel stamps the file before the store is made: who looks between the two sees nothing of
		// it, and nothing tells him to look again.
		page := 0
		for ; page < size; page += 4096 {
			if copy(b[page:], "first"); sees(page, "first", time.Second) {
				break
			}
		}
		require.Less(t, page, size, "no first store was seen")
		copy(b[page+100:], "second")
		require.NoError(t, unix.Munmap(b))
		require.NoError(t, f.Close())
		see(page+100, "second")
	})
}

// TestLocalFewWatches: the kernel gives the server three watches for more
// directories. What happens in the others is polled; the server says so.
func TestLocalFewWatches(t *testing.T) {
	t.Parallel()
	needRoot(t)
	l := newLab(t, "")
	x := &shared{lab: l, export: l.mkdir("export")}
	for i := range 8 {
		require.NoError(t, os.MkdirAll(fmt.Sprintf("%s/d%d/sub", x.export, i), 0o755))
	}
	x.s = l.newServer(x.export)
	x.s.under = []string{"unshare", "--user", "--map-root-user", "sh", "-c", "echo 3 > /proc/sys/user/max_inotify_watches && exec \"$@\"", "sh"}
	x.s.start()
	x.m = l.mount(x.s)
	require.Eventually(t, func() bool { return strings.Contains(readFile(t, x.s.log), "not all directories can be watched") }, 10*time.Second, time.Millisecond)
	l.mkdir("home")
	x.sh = startLocal(l, x.export)
	for i := range 8 {
		x.sh.do("echo old > d%d/sub/f", i)
		require.Eventually(t, func() bool { return content(fmt.Sprintf("%s/d%d/sub/f", x.m, i)) == "old\n" }, 10*time.Second, 5*time.Millisecond)
	}
	for i := range 8 {
		x.sh.do("cd d%d/sub && echo new > f && echo n > n && mv n m && cd ../..", i)
	}
	want := []string{} // nobody looks: the log alone shows that it was found
	for i := range 8 {
		want = append(want, fmt.Sprintf("local d%d/sub/f", i))
	}
	require.Eventually(t, func() bool {
		var did []string
		for _, e := range x.locals() {
			did = append(did, e.Kind+" "+e.Path)
		}
		return !slices.ContainsFunc(want, func(w string) bool { return !slices.Contains(did, w) })
	}, 20*time.Second, 200*time.Millisecond)
	x.same("")
}

// same waits until the mount shows a tree of the export as it is there.
func (x *shared) same(dir string) {
	x.t.Helper()
	var out []byte
	began := time.Now()
	for {
		var err error
		out, err = exec.Command("diff", "-r", "--no-dereference", "--exclude=.cage", filepath.Join(x.export, dir), filepath.Join(x.m, dir)).CombinedOutput()
		if err == nil {
			return
		}
		require.Less(x.t, time.Since(began), time.Second, "not the same within a second: %s", out)
	}
}

// TestLocalOverflow: more happens while the server stands still than the kernel
// keeps for it (max_queued_events, 16384). Nothing is missed.
func TestLocalOverflow(t *testing.T) {
	if !accept {
		t.Skip("CAGE_ACCEPT is not set")
	}
	bothWays(t, func(t *testing.T, x *shared) {
		m, sh := x.m, x.sh
		sh.do("for i in $(seq 200); do echo old > k$i; done")
		sooner(t, "200 files", func() bool { return content(m+"/k200") == "old\n" })
		for i := 1; i <= 200; i++ {
			require.Equal(t, "old\n", content(fmt.Sprintf("%s/k%d", m, i)))
		}
		resume := suspend(t, x.s.cmd.Process.Pid)
		sh.do("for i in $(seq 20000); do : > n$i; done")
		sh.do("for i in $(seq 100); do rm k$i; done; for i in $(seq 101 200); do echo changed > k$i; done; mkdir -p new/sub; echo x > new/sub/f")
		resume()
		require.Eventually(t, func() bool {
			for i := 1; i <= 200; i++ {
				path := fmt.Sprintf("%s/k%d", m, i)
				if i <= 100 && exists(path) || i > 100 && content(path) != "changed\n" {
					return false
				}
			}
			names, err := os.ReadDir(m)
			return err == nil && len(names) == 20101
		}, 30*time.Second, 50*time.Millisecond)
		require.Eventually(t, func() bool { return strings.Contains(readFile(t, x.s.log), "compared everything") }, 30*time.Second, 50*time.Millisecond,
			"the queue did not overflow")
		require.Equal(t, "x\n", content(m+"/new/sub/f"))
		sh.do("echo y >> new/sub/f")
		sooner(t, "what comes later", func() bool { return content(m+"/new/sub/f") == "x\ny\n" })
	})
}

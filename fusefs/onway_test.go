package fusefs

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/hanwen/go-fuse/v2/fuse"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"
)

// holder stands between kernel and file system, and keeps back an answer that is made already.
type holder struct {
	fuse.RawFileSystem

	mu   sync.Mutex
	kind string        // guarded by mu: of the answer that is to be kept; "": of none
	kept chan struct{} // guarded by mu: closed when it is
	free chan struct{} // guarded by mu: closed to let it go
}

// hold keeps the next answer of a kind.
func (h *holder) hold(kind string) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.kind, h.kept, h.free = kind, make(chan struct{}), make(chan struct{})
}

// held reports whether it is kept, as soon as it is.
func (h *holder) held() bool {
	h.mu.Lock()
	kept := h.kept
	h.mu.Unlock()
	select {
	case <-kept:
		return true
	case <-time.After(15 * time.Second):
		return false
	}
}

// let lets it go.
func (h *holder) let() {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.kind = ""
	close(h.free)
}

// pass is on the way of each answer.
func (h *holder) pass(kind string) {
	h.mu.Lock()
	kept, free := h.kept, h.free
	mine := h.kind == kind
	if mine {
		h.kind = ""
	}
	h.mu.Unlock()
	if mine {
		close(kept)
		<-free
	}
}

func (h *holder) Lookup(c <-chan struct{}, in *fuse.InHeader, name string, out *fuse.EntryOut) fuse.Status {
	defer h.pass("lookup")
	return h.RawFileSystem.Lookup(c, in, name, out)
}

func (h *holder) Create(c <-chan struct{}, in *fuse.CreateIn, name string, out *fuse.CreateOut) fuse.Status {
	defer h.pass("create")
	return h.RawFileSystem.Create(c, in, name, out)
}

func (h *holder) Mkdir(c <-chan struct{}, in *fuse.MkdirIn, name string, out *fuse.EntryOut) fuse.Status {
	defer h.pass("mkdir")
	return h.RawFileSystem.Mkdir(c, in, name, out)
}

func (h *holder) Mknod(c <-chan struct{}, in *fuse.MknodIn, name string, out *fuse.EntryOut) fuse.Status {
	defer h.pass("mknod")
	return h.RawFileSystem.Mknod(c, in, name, out)
}

func (h *holder) Link(c <-chan struct{}, in *fuse.LinkIn, name string, out *fuse.EntryOut) fuse.Status {
	defer h.pass("link")
	return h.RawFileSystem.Link(c, in, name, out)
}

func (h *holder) SetAttr(c <-chan struct{}, in *fuse.SetAttrIn, out *fuse.AttrOut) fuse.Status {
	defer h.pass("setattr")
	return h.RawFileSystem.SetAttr(c, in, out)
}

func (h *holder) GetAttr(c <-chan struct{}, in *fuse.GetAttrIn, out *fuse.AttrOut) fuse.Status {
	defer h.pass("getattr")
	return h.RawFileSystem.GetAttr(c, in, out)
}

func (h *holder) Statx(c <-chan struct{}, in *fuse.StatxIn, out *fuse.StatxOut) fuse.Status {
	defer h.pass("statx")
	return h.RawFileSystem.Statx(c, in, out)
}

func (h *holder) ReadDirPlus(c <-chan struct{}, in *fuse.ReadIn, out *fuse.DirEntryList) fuse.Status {
	defer h.pass("readdirplus")
	return h.RawFileSystem.ReadDirPlus(c, in, out)
}

// What another mount changes while an answer about it is on its way, made but not
// with the kernel yet, is not believed when that comes: the lease under which it was made is gone.
func TestAnswersOnTheirWay(t *testing.T) {
	for name, tc := range map[string]struct {
		first  func(p string) error // before there are mounts
		before func(p string) error // on this mount
		since  func(p string) error // on the other one
		kind   string               // of the answer
		act    func(p string) error // on this mount: what is answered
		change func(p string) error // on the other one, meanwhile
		opened bool                 // the answer is to an open, through which is looked at the end
	}{
		"attributes of a file":           {first: touch, kind: "lookup", act: stat, change: chmod},
		"attributes of a directory":      {first: mkdir, kind: "lookup", act: stat, change: chmod},
		"attributes of an entered one":   {first: mkdir, kind: "lookup", change: chmod, opened: true},
		"attributes with times of birth": {first: touch, before: stat, kind: "statx", act: statx, change: chmod},
		"attributes alone":               {first: touch, before: chmodOther, kind: "getattr", act: stat, change: chmod},
		"attributes of a known file":     {first: touch, before: stat, since: beside, kind: "lookup", act: stat, change: chmod},
		"attributes of a new file":       {kind: "create", act: touch, change: chmod},
		"attributes of a new directory":  {kind: "mkdir", act: mkdir, change: chmod},
		"attributes of a new fifo":       {kind: "mknod", act: mkfifo, change: chmod},
		"attributes of a linked file":    {before: beside, kind: "link", act: linkBeside, change: chmod},
		"attributes that we change":      {first: touch, before: stat, kind: "setattr", act: chmodOther, change: chmod},
		"attributes in a listing":        {first: touch, kind: "readdirplus", act: readdir, change: chmod},
		"of a directory in a listing":    {first: mkdir, kind: "readdirplus", act: readdir, change: chmod},
		"known attributes in a listing":  {first: touch, before: stat, kind: "readdirplus", act: readdir, change: chmod},
		"a name":                         {first: touch, kind: "lookup", act: stat, change: away},
		"a known name":                   {first: touch, before: stat, since: beside, kind: "lookup", act: stat, change: away},
		"no name":                        {kind: "lookup", act: stat, change: touch},
		"the name of a new file":         {kind: "create", act: touch, change: away},
		"the name of a new directory":    {kind: "mkdir", act: mkdir, change: away},
		"the name of a linked file":      {before: beside, kind: "link", act: linkBeside, change: away},
		"a name in a listing":            {first: touch, kind: "readdirplus", act: readdir, change: away},
		"a known name in a listing":      {first: touch, before: stat, kind: "readdirplus", act: readdir, change: away},
	} {
		t.Run(name, func(t *testing.T) {
			d := prepareDaemon(t)
			dir := func(m string) string { return filepath.Join(m, "d") }
			require.NoError(t, os.Mkdir(dir(d.export), 0o755))
			do := func(f func(string) error, dir string) error {
				if f == nil {
					return nil
				}
				return f(filepath.Join(dir, "f"))
			}
			require.NoError(t, do(tc.first, dir(d.export)))
			d.start()
			// Who looks the directory up once more makes the kernel forget all names in it.
			fd, err := unix.Open(dir(d.a), unix.O_PATH|unix.O_CLOEXEC, 0)
			require.NoError(t, err)
			defer unix.Close(fd)
			here, there := fmt.Sprintf("/proc/self/fd/%d", fd), dir(d.b)
			require.NoError(t, do(tc.before, here))
			require.NoError(t, do(tc.since, there))
			require.Equal(t, "ok", d.ask("hold a:%s", tc.kind))
			acted, changed := make(chan error, 1), make(chan error, 1)
			var opened *os.File
			go func() {
				err := do(tc.act, here)
				if tc.opened {
					opened, err = os.OpenFile(filepath.Join(here, "f"), unix.O_PATH, 0)
				}
				acted <- err
			}()
			require.Equal(t, "ok", d.ask("held a"))
			go func() { changed <- do(tc.change, there) }()
			// Either the change has to wait for the answer, or the answer is worth nothing.
			for end := time.Now().Add(15 * time.Second); len(changed) == 0 && d.ask("awaited a") == "0"; {
				require.True(t, time.Now().Before(end), "the change neither waits for the answer nor is done")
			}
			require.Equal(t, "ok", d.ask("let a"))
			require.NoError(t, <-acted)
			require.NoError(t, <-changed)
			at := filepath.Join(here, "f")
			if tc.opened {
				defer opened.Close()
				at = fmt.Sprintf("/proc/self/fd/%d/.", opened.Fd())
			}
			require.Equal(t, seen(t, filepath.Join(there, "f")), seen(t, at))
		})
	}
}

// Who has read a listing to its end, or closed it, holds up no change of others, and who stops within it does for
// onWay, unless somebody of his mount changes the directory.
func TestReaderThatStops(t *testing.T) {
	d := prepareDaemon(t)
	for _, name := range []string{"read", "closed", "changed", "begun"} {
		require.NoError(t, os.Mkdir(filepath.Join(d.export, name), 0o755))
		require.NoError(t, touch(filepath.Join(d.export, name, "f")))
	}
	d.start()
	begin := func(name string, n int) *os.File {
		f, err := os.Open(filepath.Join(d.a, name))
		require.NoError(t, err)
		_, err = f.Readdirnames(n)
		require.NoError(t, err)
		return f
	}
	require.NoError(t, begin("closed", 1).Close())
	require.Eventually(t, func() bool { return strings.Contains(d.ask("stats a"), " Dirs:0 ") }, 15*time.Second, time.Millisecond)
	defer begin("read", -1).Close()
	defer begin("changed", 1).Close()
	require.NoError(t, touch(filepath.Join(d.a, "changed", "own")))
	defer begin("begun", 1).Close()
	for _, name := range []string{"read", "closed", "changed"} {
		require.NoError(t, touch(filepath.Join(d.b, name, "new")))
		require.Equal(t, "0", d.ask("awaited a"), name)
	}
	var err error
	within(t, 15*time.Second, func() { err = away(filepath.Join(d.b, "begun", "f")) })
	require.NoError(t, err)
	awaited := d.ask("awaited a")
	require.NotEqual(t, "0", awaited)
	require.Equal(t, "nothing", seen(t, filepath.Join(d.a, "begun", "f")))
	require.NoError(t, touch(filepath.Join(d.b, "begun", "f")))
	require.Equal(t, awaited, d.ask("awaited a"), "only once")
}

// What is done in TestAnswersOnTheirWay.

func touch(p string) error      { return os.WriteFile(p, nil, 0o600) }
func mkdir(p string) error      { return os.Mkdir(p, 0o700) }
func mkfifo(p string) error     { return unix.Mkfifo(p, 0o600) }
func beside(p string) error     { return touch(p + "-beside") }
func linkBeside(p string) error { return os.Link(p+"-beside", p) }
func chmod(p string) error      { return os.Chmod(p, 0o640) }
func chmodOther(p string) error { return os.Chmod(p, 0o604) }
func away(p string) error       { return os.Rename(p, p+"-away") }
func readdir(p string) error    { _, err := os.ReadDir(filepath.Dir(p)); return err }

// stat looks, and may find nothing.
func stat(p string) error {
	if _, err := os.Lstat(p); !os.IsNotExist(err) {
		return err
	}
	return nil
}

// statx looks at what the kernel does not know with the other attributes.
func statx(p string) error {
	return unix.Statx(unix.AT_FDCWD, p, unix.AT_SYMLINK_NOFOLLOW, unix.STATX_BASIC_STATS|unix.STATX_BTIME, &unix.Statx_t{})
}

// seen is what a look at a file shows.
func seen(t *testing.T, p string) string {
	t.Helper()
	info, err := os.Lstat(p)
	if os.IsNotExist(err) {
		return "nothing"
	}
	require.NoError(t, err)
	return info.Mode().String()
}

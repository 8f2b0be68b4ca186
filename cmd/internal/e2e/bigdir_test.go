package e2e

import (
	"encoding/binary"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"
)

// dirEntry is one that getdents(2) gave.
type dirEntry struct {
	name string
	ino  uint64
	off  int64 // where the next one begins, as telldir(3) says
}

// dirReader reads a directory as readdir(3) does, 32 KiB at a time.
type dirReader struct {
	t    testing.TB
	fd   int
	buf  [32 << 10]byte
	rest []byte
}

func openDir(t testing.TB, dir string) *dirReader {
	fd, err := unix.Open(dir, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	require.NoError(t, err)
	return &dirReader{t: t, fd: fd}
}

func (d *dirReader) close() { require.NoError(d.t, unix.Close(d.fd)) }

// next returns the next entry but . and .., false at the end.
func (d *dirReader) next() (dirEntry, bool) {
	for {
		if len(d.rest) == 0 {
			n, err := unix.Getdents(d.fd, d.buf[:])
			require.NoError(d.t, err)
			if n == 0 {
				return dirEntry{}, false
			}
			d.rest = d.buf[:n]
		}
		e := d.rest[:binary.NativeEndian.Uint16(d.rest[16:])]
		d.rest = d.rest[len(e):]
		name, _, _ := strings.Cut(string(e[19:]), "\x00")
		if name != "." && name != ".." {
			return dirEntry{name, binary.NativeEndian.Uint64(e), int64(binary.NativeEndian.Uint64(e[8:]))}, true
		}
	}
}

// seek is seekdir(3): it forgets what it has read ahead.
func (d *dirReader) seek(off int64) {
	d.rest = nil
	_, err := unix.Seek(d.fd, off, unix.SEEK_SET)
	require.NoError(d.t, err)
}

func (d *dirReader) all() (list []dirEntry) {
	for e, ok := d.next(); ok; e, ok = d.next() {
		list = append(list, e)
	}
	return list
}

// bigDir is a directory of many empty files that are in a mount and on the server.
type bigDir struct {
	t       testing.TB
	l       *lab
	s       *server
	at, mnt string // on the server, in the mount
	n       int    // files
}

// newBigDir makes one: most of the files before the server starts.
func newBigDir(t testing.TB, n int) *bigDir {
	l := newLab(t, "")
	b := &bigDir{t: t, l: l, at: l.mkdir("export/big"), n: n}
	for i := range n {
		b.make(b.at, i)
	}
	b.s = l.newServer(l.path("export"))
	b.s.start()
	b.mnt = filepath.Join(l.mount(b.s), "big")
	return b
}

func (b *bigDir) file(i int) string { return fmt.Sprintf("file-%07d", i) }

func (b *bigDir) make(dir string, i int) {
	fd, err := unix.Open(filepath.Join(dir, b.file(i)), unix.O_CREAT|unix.O_EXCL|unix.O_WRONLY|unix.O_CLOEXEC, 0o644)
	require.NoError(b.t, err)
	require.NoError(b.t, unix.Close(fd))
}

// list reads the directory once and logs how long that took.
func (b *bigDir) list(what, dir string) []dirEntry {
	begin := time.Now()
	d := openDir(b.t, dir)
	defer d.close()
	list := d.all()
	b.t.Logf("%s: %d entries in %v", what, len(list), time.Since(begin).Round(time.Millisecond))
	return list
}

// complete checks that a listing has each of the files once, and others only
// if they may be there.
func (b *bigDir) complete(list []dirEntry, others ...string) {
	b.t.Helper()
	seen, inos := make(map[string]bool, len(list)), make(map[uint64]bool, len(list))
	for _, e := range list {
		require.False(b.t, seen[e.name], "%s is listed twice", e.name)
		seen[e.name] = true
		if strings.HasPrefix(e.name, "file-") {
			require.False(b.t, inos[e.ino], "%s has the number of another", e.name)
			inos[e.ino] = true
			continue
		}
		require.True(b.t, hasPrefix(e.name, others), "%s is listed", e.name)
	}
	for i := range b.n {
		require.True(b.t, seen[b.file(i)], "%s is not listed", b.file(i))
	}
}

func hasPrefix(name string, prefixes []string) bool {
	for _, p := range prefixes {
		if strings.HasPrefix(name, p) {
			return true
		}
	}
	return false
}

// TestBigDirectory: a directory of many files is listed whole, whatever happens to
// other names meanwhile, also from where seekdir(3) goes; and it comes back.
func TestBigDirectory(t *testing.T) {
	t.Parallel()
	n := 20_000
	if accept {
		n = 1_000_000
	}
	b := newBigDir(t, n)
	local := b.list("on the server's file system", b.at)
	b.complete(local)
	first := b.list("in the mount, first time", b.mnt)
	b.complete(first)
	again := b.list("in the mount, again", b.mnt)
	require.Equal(t, first, again)
	b.seeking(again)
	b.changing()
	b.comesBack()
	b.l.umount(filepath.Dir(b.mnt))
	b.s.stop()
	require.NoError(t, b.l.verify(b.l.path("export")))
}

// seeking: a position is followed by the same entries later, also when the one that
// stood there has gone; and the start is the start of the directory as it is then.
func (b *bigDir) seeking(list []dirEntry) {
	t := b.t
	d := openDir(t, b.mnt)
	defer d.close()
	rng := rand.New(rand.NewPCG(seed(t), 0))
	follows := func(i int) {
		t.Helper()
		d.seek(list[i].off)
		for _, want := range list[i+1 : min(i+1+10, len(list))] {
			got, ok := d.next()
			require.True(t, ok, "after entry %d", i)
			require.Equal(t, want, got, "after entry %d", i)
		}
	}
	for range 100 {
		follows(rng.IntN(len(list)))
	}
	d.seek(list[len(list)-1].off)
	_, ok := d.next()
	require.False(t, ok, "the end is the end")

	i := 1 + rng.IntN(len(list)-2)
	gone := list[i]
	require.NoError(t, os.Remove(filepath.Join(b.mnt, gone.name)))
	d.seek(list[i-1].off)
	got, ok := d.next()
	require.True(t, ok)
	require.Equal(t, list[i+1].name, got.name, "after the place of one that was removed")

	d.seek(0)
	require.Len(t, d.all(), len(list)-1)
	require.NoError(t, os.WriteFile(filepath.Join(b.mnt, gone.name), nil, 0o644))
	d.seek(0)
	require.Len(t, d.all(), len(list), "rewinddir shows what was made since")
}

// changing: names that stay are listed once each, while others are made, renamed
// and removed in this mount, in another and on the server.
func (b *bigDir) changing() {
	t := b.t
	other := filepath.Join(b.l.mount(b.s), "big")
	var stop atomic.Bool
	var changes atomic.Int64
	var wg sync.WaitGroup
	for who, dir := range map[string]string{"a": b.mnt, "b": other, "c": b.at} {
		wg.Go(func() {
			var made []string
			for i := 0; !stop.Load(); i++ {
				name := fmt.Sprintf("other-%s-%d", who, i)
				path := filepath.Join(dir, name)
				if err := os.WriteFile(path, nil, 0o644); err != nil {
					t.Errorf("%v", err)
					return
				}
				if i%2 == 0 {
					if err := os.Rename(path, path+"-renamed"); err != nil {
						t.Errorf("%v", err)
						return
					}
					path += "-renamed"
				}
				if made = append(made, path); len(made) > 50 {
					if err := os.Remove(made[0]); err != nil {
						t.Errorf("%v", err)
						return
					}
					made = made[1:]
				}
				changes.Add(1)
			}
			for _, path := range made {
				if err := os.Remove(path); err != nil {
					t.Errorf("%v", err)
				}
			}
		})
	}
	for i := range 4 {
		b.complete(b.list(fmt.Sprint("while it changes, ", i+1), []string{b.mnt, other}[i%2]), "other-")
	}
	stop.Store(true)
	wg.Wait()
	t.Logf("%d names came and went meanwhile", changes.Load())
	b.complete(b.list("on the server afterwards", b.at))
	b.l.umount(filepath.Dir(other))
}

// comesBack: a tenth of the files is removed by several processes, and a rollback
// has them all again.
func (b *bigDir) comesBack() {
	t := b.t
	b.l.run("cagejournal", "label", "before", b.mnt)
	begin := time.Now()
	var wg sync.WaitGroup
	const workers, part = 8, 10
	for w := range workers {
		wg.Go(func() {
			for i := w * part; i < b.n; i += workers * part {
				if err := os.Remove(filepath.Join(b.mnt, b.file(i))); err != nil {
					t.Errorf("%v", err)
					return
				}
			}
		})
	}
	wg.Wait()
	require.False(t, t.Failed())
	t.Logf("removed in %v", time.Since(begin).Round(time.Millisecond))
	require.Len(t, b.list("what is left", b.mnt), b.n-b.n/part)
	begin = time.Now()
	b.l.changing("cagejournal", "rollback", b.mnt, "--to", "@label:before", "-y")
	t.Logf("rolled back in %v", time.Since(begin).Round(time.Millisecond))
	b.complete(b.list("after the rollback", b.mnt))
}

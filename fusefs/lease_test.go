package fusefs

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"
)

// within runs f, which must come to its end: what it shows is that nobody waits for ever.
func within(t *testing.T, d time.Duration, f func()) {
	t.Helper()
	done := make(chan struct{})
	go func() {
		defer close(done)
		f()
	}()
	select {
	case <-done:
	case <-time.After(d):
		t.Fatalf("not done within %v", d)
	}
}

// Two mounts make names in one directory that both know: each needs what the
// other's kernel holds locked while it waits for the same.
func TestCreateAgainstCreate(t *testing.T) {
	d := startDaemon(t)
	require.NoError(t, os.Mkdir(filepath.Join(d.a, "dir"), 0o755))
	const each = 40
	within(t, 30*time.Second, func() {
		var wg sync.WaitGroup
		for _, m := range []string{d.a, d.b} {
			for p := range 2 {
				wg.Go(func() {
					for i := range each {
						name := filepath.Join(m, "dir", fmt.Sprintf("%s%d-%d", filepath.Base(m), p, i))
						if err := os.WriteFile(name, []byte(name), 0o644); err != nil {
							t.Error(err)
						}
						if _, err := os.ReadDir(filepath.Join(m, "dir")); err != nil {
							t.Error(err)
						}
					}
				})
			}
		}
		wg.Wait()
	})
	for _, m := range []string{d.a, d.b} {
		list, err := os.ReadDir(filepath.Join(m, "dir"))
		require.NoError(t, err)
		require.Len(t, list, 4*each)
	}
}

// A mount writes pages that others read and map all the time: whoever has seen a
// write does not see an older one afterwards, and nobody waits for ever.
func TestReadersAgainstAWriter(t *testing.T) {
	d := startDaemon(t)
	const pages = 300
	require.NoError(t, os.WriteFile(filepath.Join(d.a, "f"), make([]byte, pages*4096), 0o644))
	stop := make(chan struct{})
	var readers sync.WaitGroup
	for r := range 4 {
		readers.Go(func() {
			m := []string{d.a, d.b}[r%2]
			f, err := os.Open(filepath.Join(m, "f"))
			if err != nil {
				t.Error(err)
				return
			}
			defer f.Close()
			mapped, err := unix.Mmap(int(f.Fd()), 0, pages*4096, unix.PROT_READ, unix.MAP_SHARED)
			if err != nil {
				t.Error(err)
				return
			}
			defer unix.Munmap(mapped)
			var last [pages]uint64
			for i := 0; ; i = (i + 7) % pages {
				select {
				case <-stop:
					return
				default:
				}
				b := make([]byte, 8)
				if r < 2 {
					if _, err := f.ReadAt(b, int64(i)*4096); err != nil {
						t.Error(err)
						return
					}
				} else {
					copy(b, mapped[i*4096:])
				}
				n := binary.LittleEndian.Uint64(b)
				if n < last[i] {
					t.Errorf("reader %d: page %d has %d after %d", r, i, n, last[i])
					return
				}
				last[i] = n
			}
		})
	}
	within(t, 60*time.Second, func() {
		f, err := os.OpenFile(filepath.Join(d.b, "f"), os.O_RDWR, 0)
		if err != nil {
			t.Error(err)
			return
		}
		defer f.Close()
		for n := range uint64(300) {
			if _, err := f.WriteAt(binary.LittleEndian.AppendUint64(nil, n+1), int64(n*13%pages)*4096); err != nil {
				t.Error(err)
				return
			}
		}
	})
	close(stop)
	readers.Wait()
}

// A directory that somebody is in keeps its name through changes by others.
func TestGetcwdAfterARemoteChange(t *testing.T) {
	d := startDaemon(t)
	require.NoError(t, os.MkdirAll(filepath.Join(d.a, "x", "y", "z"), 0o755))
	sh := exec.Command("sh", "-c", `while read -r line; do readlink /proc/self/cwd; done`)
	sh.Dir = filepath.Join(d.b, "x", "y", "z")
	in, err := sh.StdinPipe()
	require.NoError(t, err)
	out, err := sh.StdoutPipe()
	require.NoError(t, err)
	require.NoError(t, sh.Start())
	defer sh.Process.Kill()
	pwd := func() string {
		_, err := fmt.Fprintln(in)
		require.NoError(t, err)
		b := make([]byte, 4096)
		n, err := out.Read(b)
		require.NoError(t, err)
		return strings.TrimSpace(string(b[:n]))
	}
	require.Equal(t, sh.Dir, pwd())
	for i := range 20 {
		require.NoError(t, os.WriteFile(filepath.Join(d.a, "x", "y", fmt.Sprint(i)), nil, 0o644))
		require.NoError(t, os.Chmod(filepath.Join(d.a, "x", "y", "z"), 0o700+os.FileMode(i)))
		require.NoError(t, os.Rename(filepath.Join(d.a, "x", "y", fmt.Sprint(i)), filepath.Join(d.a, "x", fmt.Sprint(i))))
		require.Equal(t, sh.Dir, pwd())
	}
	require.NoError(t, os.Rename(filepath.Join(d.a, "x", "y"), filepath.Join(d.a, "x", "new")))
	_, err = os.Stat(filepath.Join(d.b, "x", "new", "z"))
	require.NoError(t, err)
	require.Equal(t, filepath.Join(d.b, "x", "new", "z"), pwd())
	require.NoError(t, in.Close())
	require.NoError(t, sh.Wait())
}

// What is stored through mappings on two mounts is there for the other from
// msync on, and recalls meanwhile, in which the kernel writes its pages back, come to their end.
func TestMappingsOfTwoMounts(t *testing.T) {
	d := startDaemon(t)
	require.NoError(t, os.WriteFile(filepath.Join(d.a, "f"), make([]byte, 2*4096), 0o644))
	var maps [2][]byte
	for i, m := range []string{d.a, d.b} {
		f, err := os.OpenFile(filepath.Join(m, "f"), os.O_RDWR, 0)
		require.NoError(t, err)
		defer f.Close()
		maps[i], err = unix.Mmap(int(f.Fd()), 0, 2*4096, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
		require.NoError(t, err)
		defer unix.Munmap(maps[i])
	}
	within(t, 60*time.Second, func() {
		for n := byte(1); n < 100; n++ {
			mine, other := maps[n%2], maps[1-n%2]
			mine[100] = n
			other[4096+100] = n // dirty there as well, when it is recalled
			if err := unix.Msync(mine, unix.MS_SYNC); err != nil {
				t.Error(err)
				return
			}
			if got := other[100]; got != n {
				t.Errorf("%d after %d was synced", got, n)
				return
			}
		}
	})
}

// Two mounts change bytes of one page in turn, one of them through a mapping. Each has what the other did before,
// although the kernel writes whole pages back: a store is in the page that is handed over with the lease.
func TestOnePageInTurn(t *testing.T) {
	for name, store := range map[string]func(f *os.File, page []byte, at int, b byte) error{
		"against writes": func(f *os.File, _ []byte, at int, b byte) error {
			_, err := f.WriteAt([]byte{b}, int64(at))
			return err
		},
		"against a mapping": func(_ *os.File, page []byte, at int, b byte) error {
			page[at] = b
			return unix.Msync(page, unix.MS_SYNC)
		},
	} {
		t.Run(name, func(t *testing.T) {
			d := startDaemon(t)
			require.NoError(t, os.WriteFile(filepath.Join(d.a, "f"), make([]byte, 4096), 0o644))
			var files [2]*os.File
			var pages [2][]byte
			for i, m := range []string{d.a, d.b} {
				f, err := os.OpenFile(filepath.Join(m, "f"), os.O_RDWR, 0)
				require.NoError(t, err)
				defer f.Close()
				files[i] = f
				pages[i], err = unix.Mmap(int(f.Fd()), 0, 4096, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
				require.NoError(t, err)
				defer unix.Munmap(pages[i])
			}
			want := make([]byte, 4096)
			within(t, 120*time.Second, func() {
				for n := range 400 {
					at := n * 1021 % 4096 // each byte once
					want[at] = byte(n%255) + 1
					var err error
					if n%2 == 0 {
						pages[0][at] = want[at]
						if name == "against a mapping" {
							err = unix.Msync(pages[0], unix.MS_SYNC)
						}
					} else {
						err = store(files[1], pages[1], at, want[at])
					}
					if err != nil {
						t.Error(err)
						return
					}
					if n%2 == 0 && name == "against writes" {
						continue // not synced: the other's write fetches it
					}
					// What was not synced the writer sees soon.
					for end := time.Now().Add(10 * time.Second); n%2 == 1 && name == "against writes" && !bytes.Equal(want, pages[1]) && time.Now().Before(end); {
						time.Sleep(time.Millisecond)
					}
					for i, p := range pages {
						if !bytes.Equal(want, p) {
							t.Errorf("after change %d, of byte %d, the page of mount %d differs", n, at, i)
							return
						}
					}
				}
			})
			require.NoError(t, files[0].Sync())
			require.NoError(t, files[1].Sync())
			for _, m := range []string{d.a, d.b, d.export} {
				got, err := os.ReadFile(filepath.Join(m, "f"))
				require.NoError(t, err)
				require.Equal(t, want, got, m)
			}
		})
	}
}

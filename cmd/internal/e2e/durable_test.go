package e2e

import (
	"bytes"
	"os"
	"path/filepath"
	"testing"
	"unsafe"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"
)

// aligned are bytes that O_DIRECT takes.
func aligned(n int, with byte) []byte {
	b := make([]byte, n+4096)
	skip := int(-uintptr(unsafe.Pointer(&b[0])) & 4095)
	copy(b[skip:skip+n], bytes.Repeat([]byte{with}, n))
	return b[skip : skip+n : skip+n]
}

// TestSyncedWrites cuts the power right after writes that promise to be
// durable when they return: they are.
func TestSyncedWrites(t *testing.T) {
	t.Parallel()
	l := newLab(t, "")
	disk := l.newDisk(256 << 20)
	export := filepath.Join(disk.mnt, "export")
	require.NoError(t, os.Mkdir(export, 0o755))
	disk.sync()
	srv := l.newServer(export)
	srv.start()
	point := l.mount(srv)
	want := bytes.Repeat([]byte("w"), 8192)
	write := func(flags int) func(string) error {
		return func(path string) error {
			f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|flags, 0o644)
			if err != nil {
				return err
			}
			defer f.Close()
			for range 2 {
				if _, err := unix.Write(int(f.Fd()), aligned(4096, 'w')); err != nil {
					return err
				}
			}
			return nil
		}
	}
	writers := map[string]func(path string) error{
		"sync":          write(unix.O_SYNC),
		"dsync":         write(unix.O_DSYNC),
		"sync-append":   write(unix.O_SYNC | unix.O_APPEND),
		"direct-sync":   write(unix.O_DIRECT | unix.O_SYNC),
		"direct-dsync":  write(unix.O_DIRECT | unix.O_DSYNC),
		"direct-append": write(unix.O_DIRECT | unix.O_DSYNC | unix.O_APPEND),
		"mapped": func(path string) error {
			f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE, 0o644)
			if err != nil {
				return err
			}
			defer f.Close()
			if err := f.Truncate(8192); err != nil {
				return err
			}
			m, err := unix.Mmap(int(f.Fd()), 0, 8192, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
			if err != nil {
				return err
			}
			defer unix.Munmap(m)
			copy(m, want)
			return unix.Msync(m, unix.MS_SYNC)
		},
		"mapped-fsync": func(path string) error {
			f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE, 0o644)
			if err != nil {
				return err
			}
			defer f.Close()
			if err := f.Truncate(8192); err != nil {
				return err
			}
			m, err := unix.Mmap(int(f.Fd()), 0, 8192, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
			if err != nil {
				return err
			}
			copy(m, want)
			if err := unix.Munmap(m); err != nil {
				return err
			}
			return f.Sync()
		},
	}
	for name, do := range writers { // the sync of one file does not make another one's new blocks durable
		require.NoError(t, do(filepath.Join(point, name)), name)
	}
	c := disk.cut()
	c.mount()
	l.run("cageserverd", "recover", filepath.Join(c.mnt, "export"))
	for name := range writers {
		got, err := os.ReadFile(filepath.Join(c.mnt, "export", name))
		require.NoError(t, err, name)
		require.True(t, bytes.Equal(want, got), "%s: %d bytes, want %d", name, len(bytes.Trim(got, "\x00")), len(want))
	}
	c.umount()
	c.remove()
	l.umount(point)
	srv.stop()
	require.NoError(t, l.verify(export))
}

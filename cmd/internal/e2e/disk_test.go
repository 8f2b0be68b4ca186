package e2e

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"
)

// disk is an ext4 file system whose power can be cut without stopping it: it
// lies on an image on a btrfs file system, and a reflink copy of the image,
// which btrfs makes in one piece, is what the disk had got at that moment. ext4
// reaches the image past the page cache (direct I/O), so what nobody has synced
// or the kernel has not written back by itself is not in the copy. The copy does
// not drop what is only in a drive's own cache.
//
//	file system of the lab > btrfs.img > btrfs > disk.img > ext4
type disk struct {
	t     testing.TB
	dir   string
	pool  string // where the btrfs is mounted
	image string
	dev   string // of the image
	mnt   string // where the ext4 is mounted
	cuts  int
}

// newDisk makes a disk of a size in bytes and mounts it until the end of the test.
func (l *lab) newDisk(size int64) *disk {
	t := l.t
	t.Helper()
	needRoot(t)
	for tool, pkg := range map[string]string{"mkfs.btrfs": "btrfs-progs", "mkfs.ext4": "e2fsprogs", "losetup": "mount"} {
		if _, err := exec.LookPath(tool); err != nil {
			unavailable(t, "the program %s is missing: apt-get install %s", tool, pkg)
		}
	}
	if loop, err := os.OpenFile("/dev/loop-control", os.O_RDWR, 0); err != nil {
		unavailable(t, "there are no loop devices: %v", err)
	} else {
		loop.Close()
	}
	d := &disk{t: t, dir: l.mkdir("disk")}
	d.pool, d.mnt = l.mkdir("disk/pool"), l.mkdir("disk/mnt")
	d.image = filepath.Join(d.pool, "disk.img")

	whole := filepath.Join(d.dir, "btrfs.img")
	require.NoError(t, os.WriteFile(whole, nil, 0o600))
	require.NoError(t, os.Truncate(whole, 8*size)) // copies share with the original what has not changed since
	d.sh("mkfs.btrfs", "-q", whole)
	d.sh("mount", "-o", "loop", whole, d.pool)
	t.Cleanup(func() {
		d.sh("umount", d.pool)
		os.Remove(whole)
	})
	require.NoError(t, os.WriteFile(d.image, nil, 0o600))
	require.NoError(t, os.Truncate(d.image, size))
	d.sh("mkfs.ext4", "-q", "-F", "-I", "256", d.image)
	d.attach()
	t.Cleanup(d.detach)
	return d
}

func (d *disk) attach() {
	d.t.Helper()
	d.dev = d.sh("losetup", "--find", "--show", "--direct-io=on", d.image)
	d.sh("mount", "-t", "ext4", d.dev, d.mnt)
}

func (d *disk) detach() {
	d.t.Helper()
	d.sh("umount", d.mnt)
	d.sh("losetup", "-d", d.dev)
}

// powerCycle cuts the power and turns it on again: what had not reached the disk
// is gone. Nobody uses the disk meanwhile.
func (d *disk) powerCycle() {
	d.t.Helper()
	c := d.cut()
	d.detach()
	require.NoError(d.t, os.Rename(c.file, d.image))
	d.attach()
}

// ext4 makes an ext4 file system of a size in bytes on a loop device, mounts it
// until the end of the test and returns where.
func (l *lab) ext4(size int64, mkfs ...string) (dir string) {
	t := l.t
	t.Helper()
	needRoot(t)
	if _, err := exec.LookPath("mkfs.ext4"); err != nil {
		unavailable(t, "mkfs.ext4 is missing: apt-get install e2fsprogs")
	}
	image, dir := l.path("ext4.img"), l.mkdir("ext4")
	require.NoError(t, os.WriteFile(image, nil, 0o600))
	require.NoError(t, os.Truncate(image, size))
	command(t, append(append([]string{"mkfs.ext4", "-q", "-F"}, mkfs...), image)...)
	command(t, "mount", "-o", "loop", image, dir)
	t.Cleanup(func() { command(t, "umount", dir) })
	return dir
}

// unavailable skips a test; where tests must not be skipped, it fails.
func unavailable(t testing.TB, format string, args ...any) {
	t.Helper()
	if os.Getenv("CI") != "" || accept {
		t.Fatalf(format, args...)
	}
	t.Skipf(format, args...)
}

// sh runs a program of the system and returns what it prints.
func (d *disk) sh(prog string, args ...string) string {
	d.t.Helper()
	out, err := exec.Command(prog, args...).CombinedOutput()
	require.NoError(d.t, err, "%s %s: %s", prog, strings.Join(args, " "), out)
	return strings.TrimSpace(string(out))
}

// sync makes everything durable.
func (d *disk) sync() {
	d.t.Helper()
	f, err := os.Open(d.mnt)
	require.NoError(d.t, err)
	defer f.Close()
	require.NoError(d.t, unix.Syncfs(int(f.Fd())))
}

// cut takes a copy of the disk as it would be if the power failed now.
func (d *disk) cut() *image {
	d.t.Helper()
	d.cuts++
	c := &image{d, filepath.Join(d.pool, fmt.Sprintf("cut%d.img", d.cuts)), filepath.Join(d.dir, fmt.Sprintf("cut%d", d.cuts))}
	d.sh("cp", "--reflink=always", d.image, c.file)
	return c
}

// image is a disk after a power cut.
type image struct {
	disk *disk
	file string
	mnt  string // where it is mounted, when it is
}

// mount mounts the image, by which ext4 recovers its own journal.
func (c *image) mount() {
	c.disk.t.Helper()
	require.NoError(c.disk.t, os.MkdirAll(c.mnt, 0o755))
	c.disk.sh("mount", "-t", "ext4", "-o", "loop", c.file, c.mnt)
}

func (c *image) umount() {
	c.disk.t.Helper()
	c.disk.sh("umount", c.mnt)
}

func (c *image) remove() { os.Remove(c.file) }

// keep copies the image to where the tester finds it, if he has said where (CAGE_KEEP).
func (c *image) keep(name string) {
	if dir := os.Getenv("CAGE_KEEP"); dir != "" {
		c.disk.sh("cp", "--sparse=always", c.file, filepath.Join(dir, name))
	}
}

package auth

import (
	"crypto/rand"
	"errors"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"syscall"

	"golang.org/x/sys/unix"

	"cagefs.dev/cage/remote/status"
)

// maxFile is more than any file of this package holds.
const maxFile = 16 << 20

// readPrivate reads a file that nobody but its owner may read or write. The
// error of a file that is not there matches fs.ErrNotExist.
func readPrivate(dir *os.Root, name string) ([]byte, fs.FileInfo, error) {
	path := filepath.Join(dir.Name(), name)
	f, err := dir.OpenFile(name, os.O_RDONLY|unix.O_NONBLOCK, 0)
	if err != nil {
		return nil, nil, status.Wrap(err, "open", path)
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return nil, nil, status.Wrap(err, "stat", path)
	}
	if !info.Mode().IsRegular() {
		return nil, nil, status.Newf(status.Access, "open", path, "not a regular file")
	}
	if info.Mode().Perm()&0o077 != 0 {
		return nil, nil, status.Newf(status.Access, "open", path,
			"mode %04o lets others at it; chmod 600 it if nobody saw it, otherwise remove it", info.Mode().Perm())
	}
	data, err := io.ReadAll(io.LimitReader(f, maxFile))
	if err != nil {
		return nil, nil, status.Wrap(err, "read", path)
	}
	return data, info, nil
}

// writePrivate replaces or makes a file, mode 0600, owned by uid, durably.
func writePrivate(dir *os.Root, name string, data []byte, uid int) error {
	return place(dir, name, data, uid, dir.Rename)
}

// addPrivate makes a file that must not exist: fs.ErrExist if it does.
func addPrivate(dir *os.Root, name string, data []byte, uid int) error {
	return place(dir, name, data, uid, dir.Link)
}

// place writes a file under another name and puts it in its place.
func place(dir *os.Root, name string, data []byte, uid int, put func(from, to string) error) error {
	path := filepath.Join(dir.Name(), name)
	temp := "." + name + "." + rand.Text()
	f, err := dir.OpenFile(temp, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return status.Wrap(err, "write", path)
	}
	defer dir.Remove(temp) // in vain after a rename
	_, err = f.Write(data)
	if err == nil && uid != os.Geteuid() {
		err = f.Chown(uid, -1)
	}
	if err == nil {
		err = f.Sync()
	}
	if err = errors.Join(err, f.Close()); err == nil {
		err = put(temp, name)
	}
	if err == nil {
		err = syncDir(dir)
	}
	return status.Wrap(err, "write", path)
}

func syncDir(dir *os.Root) error {
	f, err := dir.Open(".")
	if err != nil {
		return err
	}
	return errors.Join(f.Sync(), f.Close())
}

// makeDir opens a directory, and makes it (0700, owned by uid) with the parents
// that it lacks. Root works for another user only in that user's own
// directories, so that it cannot be led to somebody else's by a link.
func makeDir(path string, uid int) (*os.Root, error) {
	path, err := filepath.Abs(path)
	if err != nil {
		return nil, status.Wrap(err, "open", path)
	}
	dir, err := os.OpenRoot(path)
	if errors.Is(err, fs.ErrNotExist) {
		var parent *os.Root
		if parent, err = makeDir(filepath.Dir(path), uid); err != nil {
			return nil, err
		}
		defer parent.Close()
		if err = checkOwner(parent, uid); err != nil {
			return nil, err
		}
		if err = makeIn(parent, filepath.Base(path), uid); err == nil {
			dir, err = os.OpenRoot(path)
		}
	}
	if err != nil {
		return nil, status.Wrap(err, "open", path)
	}
	return dir, nil
}

// makeIn makes a directory in another one, unless somebody else just did.
func makeIn(parent *os.Root, name string, uid int) error {
	if err := parent.Mkdir(name, 0o700); err != nil {
		if errors.Is(err, fs.ErrExist) {
			return nil
		}
		return err
	}
	if uid == os.Geteuid() {
		return nil
	}
	dir, err := parent.OpenRoot(name)
	if err != nil {
		return err
	}
	return errors.Join(dir.Chown(".", uid, -1), dir.Close())
}

// checkOwner refuses a directory in which this process, working for another
// user, would write but that user could not.
func checkOwner(dir *os.Root, uid int) error {
	if uid == os.Geteuid() {
		return nil
	}
	info, err := dir.Stat(".")
	if err != nil {
		return status.Wrap(err, "stat", dir.Name())
	}
	if owner(info) != uid {
		return status.Newf(status.Access, "open", dir.Name(), "belongs to uid %d, not to %d", owner(info), uid)
	}
	return nil
}

// owner is the uid of a file's owner.
func owner(info fs.FileInfo) int { return int(info.Sys().(*syscall.Stat_t).Uid) }

// flock opens (or makes, for uid) a file and locks it. Closing it unlocks it.
func flock(dir *os.Root, name string, uid, how int) (*os.File, error) {
	path := filepath.Join(dir.Name(), name)
	f, err := dir.OpenFile(name, os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, status.Wrap(err, "lock", path)
	}
	if uid != os.Geteuid() {
		if err := f.Chown(uid, -1); err != nil {
			f.Close()
			return nil, status.Wrap(err, "lock", path)
		}
	}
	for {
		err = unix.Flock(int(f.Fd()), how)
		if !errors.Is(err, unix.EINTR) {
			break
		}
	}
	if err != nil {
		f.Close()
		return nil, status.Wrap(err, "lock", path)
	}
	return f, nil
}

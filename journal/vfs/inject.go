package vfs

import (
	"errors"
	"path"
	"syscall"
)

// Op is a call that Inject is about to make.
type Op struct {
	Kind string // the method's name in lower case: "rename", "datasync", "writeat", "syncfs", …
	Path string // of its object below the root, by the names it was opened by; "" is the root
	To   string // the second path of link, rename and copyto
	Off  int64  // of readat, writeat, punchhole, allocate, nextdata, copyto (of the source); the size of truncate
	Len  int64  // of readat, writeat, punchhole, allocate, copyto
}

// Inject returns fs with f asked before each call but Close. What f returns is
// returned instead of doing the call; with nil the call is made. Short and
// LoseUnsynced make errors that also do something. f is called concurrently and
// without locks. Directories and files of the result work with each other, not
// with those of fs.
func Inject(fs FS, f func(Op) error) FS { return &injectFS{fs, f} }

// Short makes writeat write only the first n bytes before it fails with err.
func Short(n int, err error) error { return &shortWrite{n, err} }

type shortWrite struct {
	n int
	error
}

func (e *shortWrite) Unwrap() error { return e.error }

// LoseUnsynced makes datasync, sync of a file, and syncfs fail with err as
// Linux fails them: what was written since the last sync is marked clean, so
// that readers see it but no later sync writes it, and a crash brings the old
// bytes back. Whoever else has a file open that lost something is told by his next sync of it. It is meant for Mem; on others it is err alone.
func LoseUnsynced(err error) error { return &lostSync{err} }

type lostSync struct{ error }

func (e *lostSync) Unwrap() error { return e.error }

// unsyncedLoser is what Mem has for LoseUnsynced.
type unsyncedLoser interface{ loseUnsynced() }

// injectFS, injectDir and injectFile are set at construction.
type injectFS struct {
	FS
	f func(Op) error
}

func (s *injectFS) Root() (Dir, error) {
	if err := s.f(Op{Kind: "root"}); err != nil {
		return nil, err
	}
	d, err := s.FS.Root()
	if err != nil {
		return nil, err
	}
	return &injectDir{d, s.f, ""}, nil
}

func (s *injectFS) SyncFS() error {
	if err := s.f(Op{Kind: "syncfs"}); err != nil {
		return failSync(s.FS, err)
	}
	return s.FS.SyncFS()
}

func (s *injectFS) StatFS() (StatFS, error) {
	if err := s.f(Op{Kind: "statfs"}); err != nil {
		return StatFS{}, err
	}
	return s.FS.StatFS()
}

func (s *injectFS) Quota(group bool, id uint32) (Quota, error) {
	if err := s.f(Op{Kind: "quota"}); err != nil {
		return Quota{}, err
	}
	return s.FS.Quota(group, id)
}

func failSync(object any, err error) error {
	var lost *lostSync
	if errors.As(err, &lost) {
		if l, ok := object.(unsyncedLoser); ok {
			l.loseUnsynced()
		}
		return lost.error
	}
	return err
}

type injectDir struct {
	d    Dir
	f    func(Op) error
	path string
}

func (d *injectDir) ask(kind, name string) error {
	return d.f(Op{Kind: kind, Path: path.Join(d.path, name)})
}

// ask2 is ask for calls with a second directory, which it unwraps.
func (d *injectDir) ask2(kind, name string, to Dir, newname string) (Dir, error) {
	t, ok := to.(*injectDir)
	if !ok {
		return nil, syscall.EXDEV
	}
	return t.d, d.f(Op{Kind: kind, Path: path.Join(d.path, name), To: path.Join(t.path, newname)})
}

func (d *injectDir) OpenDir(name string) (Dir, error) {
	if err := d.ask("opendir", name); err != nil {
		return nil, err
	}
	sub, err := d.d.OpenDir(name)
	if err != nil {
		return nil, err
	}
	return &injectDir{sub, d.f, path.Join(d.path, name)}, nil
}

func (d *injectDir) file(f File, name string, err error) (File, error) {
	if err != nil {
		return nil, err
	}
	return &injectFile{f, d.f, path.Join(d.path, name)}, nil
}

func (d *injectDir) Open(name string, write bool) (File, error) {
	if err := d.ask("open", name); err != nil {
		return nil, err
	}
	f, err := d.d.Open(name, write)
	return d.file(f, name, err)
}

func (d *injectDir) Create(name string, perm uint32) (File, error) {
	if err := d.ask("create", name); err != nil {
		return nil, err
	}
	f, err := d.d.Create(name, perm)
	return d.file(f, name, err)
}

func (d *injectDir) Mkdir(name string, perm uint32) error {
	if err := d.ask("mkdir", name); err != nil {
		return err
	}
	return d.d.Mkdir(name, perm)
}

func (d *injectDir) Mknod(name string, mode, rdev uint32) error {
	if err := d.ask("mknod", name); err != nil {
		return err
	}
	return d.d.Mknod(name, mode, rdev)
}

func (d *injectDir) Symlink(target, name string) error {
	if err := d.ask("symlink", name); err != nil {
		return err
	}
	return d.d.Symlink(target, name)
}

func (d *injectDir) Readlink(name string) (string, error) {
	if err := d.ask("readlink", name); err != nil {
		return "", err
	}
	return d.d.Readlink(name)
}

func (d *injectDir) Link(name string, to Dir, newname string) error {
	dir, err := d.ask2("link", name, to, newname)
	if err != nil {
		return err
	}
	return d.d.Link(name, dir, newname)
}

func (d *injectDir) Remove(name string) error {
	if err := d.ask("remove", name); err != nil {
		return err
	}
	return d.d.Remove(name)
}

func (d *injectDir) RemoveDir(name string) error {
	if err := d.ask("removedir", name); err != nil {
		return err
	}
	return d.d.RemoveDir(name)
}

func (d *injectDir) Rename(name string, to Dir, newname string, flags uint) error {
	dir, err := d.ask2("rename", name, to, newname)
	if err != nil {
		return err
	}
	return d.d.Rename(name, dir, newname, flags)
}

func (d *injectDir) Stat(name string) (Info, error) {
	if err := d.ask("stat", name); err != nil {
		return Info{}, err
	}
	return d.d.Stat(name)
}

func (d *injectDir) StatSelf() (Info, error) {
	if err := d.ask("statself", ""); err != nil {
		return Info{}, err
	}
	return d.d.StatSelf()
}

func (d *injectDir) ReadDir(after uint64, f func(name string, ino uint64, typ uint32, cookie uint64) bool) error {
	if err := d.ask("readdir", ""); err != nil {
		return err
	}
	return d.d.ReadDir(after, f)
}

func (d *injectDir) Chmod(name string, perm uint32) error {
	if err := d.ask("chmod", name); err != nil {
		return err
	}
	return d.d.Chmod(name, perm)
}

func (d *injectDir) Chown(name string, uid, gid uint32) error {
	if err := d.ask("chown", name); err != nil {
		return err
	}
	return d.d.Chown(name, uid, gid)
}

func (d *injectDir) Utimes(name string, atime, mtime int64) error {
	if err := d.ask("utimes", name); err != nil {
		return err
	}
	return d.d.Utimes(name, atime, mtime)
}

func (d *injectDir) GetXattr(name, attr string) ([]byte, error) {
	if err := d.ask("getxattr", name); err != nil {
		return nil, err
	}
	return d.d.GetXattr(name, attr)
}

func (d *injectDir) SetXattr(name, attr string, value []byte, flags int) error {
	if err := d.ask("setxattr", name); err != nil {
		return err
	}
	return d.d.SetXattr(name, attr, value, flags)
}

func (d *injectDir) RemoveXattr(name, attr string) error {
	if err := d.ask("removexattr", name); err != nil {
		return err
	}
	return d.d.RemoveXattr(name, attr)
}

func (d *injectDir) ListXattr(name string) ([]string, error) {
	if err := d.ask("listxattr", name); err != nil {
		return nil, err
	}
	return d.d.ListXattr(name)
}

func (d *injectDir) Lock() error {
	if err := d.ask("lock", ""); err != nil {
		return err
	}
	return d.d.Lock()
}

func (d *injectDir) Sync() error {
	if err := d.ask("sync", ""); err != nil {
		return failSync(d.d, err)
	}
	return d.d.Sync()
}

func (d *injectDir) Close() error { return d.d.Close() }

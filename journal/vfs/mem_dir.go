package vfs

import (
	"cmp"
	"slices"
	"syscall"
)

// dirent is a name in a directory of Mem. Its cookie is a hash of the name, so
// that it stays the same as long as the name is there, whatever else changes.
type dirent struct {
	cookie uint64 // 55 bits of hash, 8 bits that tell names of equal hash apart
	name   string
	id     nodeID
}

const cookieTies = 1 << 8

// cookie returns a name's place among the entries: the one that it has, or the
// first free one.
func (m *Mem) cookie(entries []dirent, name string) uint64 {
	h := uint64(14695981039346656037) ^ m.seed
	for i := range len(name) {
		h = (h ^ uint64(name[i])) * 1099511628211
	}
	c := mix(h)>>1&^(cookieTies-1) + 1
	i, _ := findCookie(entries, c)
	free := c
	for ; i < len(entries) && entries[i].cookie < c-1+cookieTies; i++ {
		if entries[i].name == name {
			return entries[i].cookie
		}
		if entries[i].cookie == free {
			free++
		}
	}
	return free
}

// mix is the finalizer of MurmurHash3.
func mix(h uint64) uint64 {
	h = (h ^ h>>33) * 0xff51afd7ed558ccd
	h = (h ^ h>>33) * 0xc4ceb9fe1a85ec53
	return h ^ h>>33
}

func findCookie(entries []dirent, c uint64) (int, bool) {
	return slices.BinarySearchFunc(entries, c, func(e dirent, c uint64) int { return cmp.Compare(e.cookie, c) })
}

// put inserts, replaces or (id 0) removes an entry.
func put(entries []dirent, e dirent) []dirent {
	i, found := findCookie(entries, e.cookie)
	switch {
	case e.id == 0:
		return slices.Delete(entries, i, i+1)
	case found:
		entries[i] = e
		return entries
	}
	return slices.Insert(entries, i, e)
}

// memDir is an open directory.
type memDir struct {
	m      *Mem
	id     nodeID
	closed bool // guarded by m.mu
}

func (m *Mem) openDirLocked(id nodeID) *memDir {
	m.refs[id]++
	return &memDir{m: m, id: id}
}

// lock locks the disk and returns the directory. The caller unlocks, also on errors.
func (d *memDir) lock() (*inode, error) {
	d.m.mu.Lock()
	if d.closed {
		return nil, syscall.EBADF
	}
	return d.m.live.nodes[d.id], nil
}

// find locks the disk and looks a name up.
func (d *memDir) find(name string) (nodeID, *inode, error) {
	dir, err := d.lock()
	if err == nil {
		err = checkName(name)
	}
	if err != nil {
		return 0, nil, err
	}
	return d.m.lookupLocked(dir, name)
}

func (m *Mem) lookupLocked(dir *inode, name string) (nodeID, *inode, error) {
	i, found := findCookie(dir.entries, m.cookie(dir.entries, name))
	if !found {
		return 0, nil, syscall.ENOENT
	}
	id := dir.entries[i].id
	return id, m.live.nodes[id], nil
}

func (n *inode) isDir() bool { return n.Mode&syscall.S_IFMT == syscall.S_IFDIR }

func (d *memDir) OpenDir(name string) (Dir, error) {
	defer d.m.mu.Unlock()
	id, n, err := d.find(name)
	if err != nil {
		return nil, err
	}
	if !n.isDir() {
		return nil, syscall.ENOTDIR
	}
	return d.m.openDirLocked(id), nil
}

func (d *memDir) Open(name string, write bool) (File, error) {
	defer d.m.mu.Unlock()
	id, n, err := d.find(name)
	if err == nil {
		err = checkRegular(n.Mode)
	}
	if err != nil {
		return nil, err
	}
	return d.m.openFileLocked(id, write), nil
}

// make makes an inode under a name that must not exist.
func (d *memDir) make(name string, mode, rdev uint32, target string) (nodeID, error) {
	_, _, err := d.find(name)
	switch {
	case err == nil:
		return 0, syscall.EEXIST
	case err != syscall.ENOENT:
		return 0, err
	}
	dir := d.m.live.nodes[d.id]
	if dir.Nlink == 0 {
		return 0, syscall.ENOENT
	}
	gid := uint32(0)
	if dir.Mode&syscall.S_ISGID != 0 {
		gid = dir.GID
	}
	c := d.m.beginLocked()
	id := c.newInode(mode, rdev, gid, target)
	c.enter(d.id, name, id)
	if mode&syscall.S_IFMT == syscall.S_IFDIR {
		c.adopt(id, d.id)
	}
	c.commit()
	return id, nil
}

func (d *memDir) Create(name string, perm uint32) (File, error) {
	defer d.m.mu.Unlock()
	id, err := d.make(name, syscall.S_IFREG|perm&permBits, 0, "")
	if err != nil {
		return nil, err
	}
	return d.m.openFileLocked(id, true), nil
}

func (d *memDir) Mkdir(name string, perm uint32) error {
	defer d.m.mu.Unlock()
	_, err := d.make(name, syscall.S_IFDIR|perm&permBits, 0, "")
	return err
}

func (d *memDir) Mknod(name string, mode, rdev uint32) error {
	if err := checkSpecial(mode); err != nil {
		return err
	}
	if t := mode & syscall.S_IFMT; t != syscall.S_IFCHR && t != syscall.S_IFBLK {
		rdev = 0
	}
	defer d.m.mu.Unlock()
	_, err := d.make(name, mode&(syscall.S_IFMT|permBits), rdev, "")
	return err
}

func (d *memDir) Symlink(target, name string) error {
	if err := checkTarget(target); err != nil {
		return err
	}
	defer d.m.mu.Unlock()
	_, err := d.make(name, syscall.S_IFLNK|0o777, 0, target)
	return err
}

func (d *memDir) Readlink(name string) (string, error) {
	defer d.m.mu.Unlock()
	_, n, err := d.find(name)
	if err != nil {
		return "", err
	}
	if n.Mode&syscall.S_IFMT != syscall.S_IFLNK {
		return "", syscall.EINVAL
	}
	return n.target, nil
}

// other returns the second directory of a call; the disk is locked.
func (d *memDir) other(to Dir, newname string) (nodeID, *inode, error) {
	t, ok := to.(*memDir)
	switch {
	case !ok || t.m != d.m:
		return 0, nil, syscall.EXDEV
	case t.closed:
		return 0, nil, syscall.EBADF
	}
	return t.id, d.m.live.nodes[t.id], checkName(newname)
}

func (d *memDir) Link(name string, to Dir, newname string) error {
	m := d.m
	defer m.mu.Unlock()
	id, n, err := d.find(name)
	if err != nil {
		return err
	}
	toID, toDir, err := d.other(to, newname)
	if err != nil {
		return err
	}
	_, _, err = m.lookupLocked(toDir, newname)
	switch {
	case err == nil:
		return syscall.EEXIST
	case toDir.Nlink == 0:
		return syscall.ENOENT
	case n.isDir():
		return syscall.EPERM
	case n.Nlink >= maxLinks:
		return syscall.EMLINK
	}
	c := m.beginLocked()
	c.touch(id).Nlink++
	c.enter(toID, newname, id)
	c.commit()
	return nil
}

func (d *memDir) Remove(name string) error {
	defer d.m.mu.Unlock()
	id, n, err := d.find(name)
	if err != nil {
		return err
	}
	if n.isDir() {
		return syscall.EISDIR
	}
	c := d.m.beginLocked()
	c.enter(d.id, name, 0)
	c.dropLink(id, 1)
	c.commit()
	return nil
}

func (d *memDir) RemoveDir(name string) error {
	defer d.m.mu.Unlock()
	id, n, err := d.find(name)
	switch {
	case err != nil:
		return err
	case !n.isDir():
		return syscall.ENOTDIR
	case len(n.entries) > 0:
		return syscall.ENOTEMPTY
	}
	c := d.m.beginLocked()
	c.enter(d.id, name, 0)
	c.attrs(d.id).Nlink--
	c.dropLink(id, n.Nlink)
	c.commit()
	return nil
}

// Rename checks in the kernel's order, so that errors are the same.
func (d *memDir) Rename(name string, to Dir, newname string, flags uint) error {
	m := d.m
	defer m.mu.Unlock()
	id, n, err := d.find(name)
	if err != nil && err != syscall.ENOENT {
		return err
	}
	toID, toDir, operr := d.other(to, newname)
	if operr != nil {
		return operr
	}
	if flags > RenameExchange { // neither both nor others
		return syscall.EINVAL
	}
	if err != nil {
		return err
	}
	exchange := flags == RenameExchange
	oldID, old, _ := m.lookupLocked(toDir, newname)
	switch {
	case toDir.Nlink == 0:
		return syscall.ENOENT
	case old != nil && flags == RenameNoReplace:
		return syscall.EEXIST
	case old == nil && exchange:
		return syscall.ENOENT
	case m.underLocked(toID, id):
		return syscall.EINVAL
	case old != nil && m.underLocked(d.id, oldID):
		if exchange {
			return syscall.EINVAL
		}
		return syscall.ENOTEMPTY
	case oldID == id:
		return nil
	case old == nil || exchange:
	case n.isDir() && !old.isDir():
		return syscall.ENOTDIR
	case !n.isDir() && old.isDir():
		return syscall.EISDIR
	case len(old.entries) > 0:
		return syscall.ENOTEMPTY
	}
	c := m.beginLocked()
	c.touch(id)
	c.enter(toID, newname, id)
	if n.isDir() {
		c.attrs(d.id).Nlink--
		c.adopt(id, toID)
	}
	if exchange {
		c.touch(oldID)
		c.enter(d.id, name, oldID)
		if old.isDir() {
			c.attrs(toID).Nlink--
			c.adopt(oldID, d.id)
		}
	} else {
		c.enter(d.id, name, 0)
		if old != nil && old.isDir() {
			c.attrs(toID).Nlink--
			c.dropLink(oldID, old.Nlink)
		} else if old != nil {
			c.dropLink(oldID, 1)
		}
	}
	c.commit()
	return nil
}

// underLocked tells whether a directory is top or lies somewhere below it.
func (m *Mem) underLocked(id, top nodeID) bool {
	for id != top {
		n := m.live.nodes[id]
		if id == rootID || n == nil {
			return false
		}
		id = n.parent
	}
	return true
}

func (d *memDir) Stat(name string) (Info, error) {
	defer d.m.mu.Unlock()
	id, _, err := d.find(name)
	if err != nil {
		return Info{}, err
	}
	return d.m.infoLocked(id), nil
}

func (d *memDir) StatSelf() (Info, error) {
	defer d.m.mu.Unlock()
	if _, err := d.lock(); err != nil {
		return Info{}, err
	}
	return d.m.infoLocked(d.id), nil
}

func (d *memDir) ReadDir(after uint64, f func(name string, ino uint64, typ uint32, cookie uint64) bool) error {
	type found struct {
		dirent
		ino uint64
		typ uint32
	}
	for batch := make([]found, 0, 64); ; batch = batch[:0] {
		dir, err := d.lock()
		if err == nil && dir.Nlink == 0 {
			err = syscall.ENOENT
		}
		if err == nil {
			i, _ := findCookie(dir.entries, after+1)
			for _, e := range dir.entries[i:min(len(dir.entries), i+cap(batch))] {
				n := d.m.live.nodes[e.id]
				batch = append(batch, found{e, n.Ino, n.Mode & syscall.S_IFMT})
			}
		}
		d.m.mu.Unlock()
		if err != nil || len(batch) == 0 {
			return err
		}
		for _, e := range batch {
			if !f(e.name, e.ino, e.typ, e.cookie) {
				return nil
			}
			after = e.cookie
		}
	}
}

func (d *memDir) Lock() error {
	defer d.m.mu.Unlock()
	if _, err := d.lock(); err != nil {
		return err
	}
	if holder := d.m.locks[d.id]; holder != nil && holder != d {
		return syscall.EWOULDBLOCK
	}
	if d.m.locks == nil {
		d.m.locks = map[nodeID]*memDir{}
	}
	d.m.locks[d.id] = d
	return nil
}

func (d *memDir) Sync() error {
	d.m.aboutToSync()
	defer d.m.mu.Unlock()
	if _, err := d.lock(); err != nil {
		return err
	}
	d.m.settleLocked(d.m.seq)
	return nil
}

func (d *memDir) Close() error {
	defer d.m.mu.Unlock()
	if _, err := d.lock(); err != nil {
		return err
	}
	d.closed = true
	if d.m.locks[d.id] == d {
		delete(d.m.locks, d.id)
	}
	d.m.unrefLocked(d.id)
	return nil
}

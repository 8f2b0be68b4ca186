package serverd

import (
	"cagefs.dev/cage/journal"
	"cagefs.dev/cage/remote/proto"
	"cagefs.dev/cage/remote/status"
	"cagefs.dev/cage/remote/wire"
)

// Who may read what. A change is checked by journal.Submit, which sees what
// changes before it are still to be applied.
//
//	all               a way to the file: see call.at
//	lookup            search permission on the directory
//	readdir           read permission; attributes of entries only with search permission
//	getattr, readlink,
//	listxattr         nothing more
//	open              the bits asked for, or the file was just made by this
//	                  session for this user (O_CREAT with a mode that forbids)
//	read              read permission, or own the file, or the session has it
//	                  open for reading: the bits counted when it was opened
//	pushes            names of a directory only with read permission
//	getxattr          user.*: as read; trusted.*: root, believed; others nothing
//
// A past state needs permission then and, as far as the file still exists, now.

// view is a state of an export: the present, or as a record left it.
type view interface {
	Lookup(dir proto.FileID, name string) (proto.Attr, error)
	Attr(id proto.FileID) (proto.Attr, error)
	ReadDir(dir proto.FileID, after uint64, plus bool, f func(proto.DirEntry) bool) error
	Readlink(id proto.FileID) (string, error)
	ReadAt(id proto.FileID, p []byte, off int64) (int, error)
	Seek(id proto.FileID, off int64, hole bool) (int64, error)
	GetXattr(id proto.FileID, name string) ([]byte, error)
	ListXattr(id proto.FileID) ([]string, error)
	Access(a *proto.Attr, who *proto.Ident, want uint32) error
}

var (
	_ view = (*journal.Journal)(nil)
	_ view = (*journal.Past)(nil)
)

// allowed makes a check in the state that is read and, if that is a past one,
// in the present as well.
func (c *call) allowed(v view, at proto.LSN, a *proto.Attr, check func(view, *proto.Attr) error) error {
	if err := check(v, a); err != nil || at == 0 {
		return err
	}
	now, err := c.exp.Journal.Attr(a.ID)
	switch {
	case status.Of(err) == status.Stale:
		return nil
	case err != nil:
		return err
	}
	return check(c.exp.Journal, &now)
}

// may checks permissions, by mode or access control list.
func (c *call) may(v view, at proto.LSN, a *proto.Attr, who *proto.Ident, want uint32) error {
	return c.allowed(v, at, a, func(v view, a *proto.Attr) error { return v.Access(a, who, want) })
}

// mayRead checks whether the content of a file may be read.
func (c *call) mayRead(v view, at proto.LSN, a *proto.Attr, who *proto.Ident) error {
	if at == 0 && c.sess.openFlags(a.ID)&wire.OpenRead != 0 {
		return nil
	}
	return c.allowed(v, at, a, func(v view, a *proto.Attr) error {
		if who.UID == a.UID {
			return nil
		}
		return v.Access(a, who, journal.MayRead)
	})
}

// mayOpen checks whether a file may be opened.
func (c *call) mayOpen(v view, at proto.LSN, a *proto.Attr, who *proto.Ident, flags uint32) error {
	var want uint32
	if flags&wire.OpenRead != 0 {
		want |= journal.MayRead
	}
	if flags&wire.OpenWrite != 0 {
		if a.IsDir() {
			return status.IsDir
		}
		if at != 0 || c.readOnly() {
			return status.ReadOnly
		}
		want |= journal.MayWrite
	}
	if at == 0 && c.sess.takeFresh(a.ID, who.UID) {
		return nil
	}
	return c.may(v, at, a, who, want)
}

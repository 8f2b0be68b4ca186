package journal

import (
	"encoding/binary"
	"errors"
	"slices"
	"sync"
	"syscall"
	"time"

	"cagefs.dev/cage/journal/record"
	"cagefs.dev/cage/journal/vfs"
	"cagefs.dev/cage/remote/proto"
	"cagefs.dev/cage/remote/status"
)

// POSIX access control lists, acl(5), as the extended attributes in which Linux
// hands them out: a little endian u32 version, then entries of u16 tag, u16
// permissions, u32 id. The server's file system keeps them, and keeps mode and
// list in step: the mode's group bits are the list's mask. The journal does
// what depends on who asks, or on the directory in which a file is made: inodes
// are made elsewhere, and by root.

// The attributes.
const (
	aclAccess  = "system.posix_acl_access"
	aclDefault = "system.posix_acl_default"
)

const aclVersion = 2

// Tags of entries.
const (
	aclUserObj  = 0x01
	aclUser     = 0x02
	aclGroupObj = 0x04
	aclGroup    = 0x08
	aclMask     = 0x10
	aclOther    = 0x20
)

type aclEntry struct {
	tag, perm uint16
	id        uint32
}

// acl is a valid list: entries in the order of their tags. nil: there is none.
type acl []aclEntry

func isACL(name string) bool { return name == aclAccess || name == aclDefault }

// parseACL reads an attribute; one without entries is no list. Error: status.Invalid,
// Unsupported for another version.
func parseACL(b []byte) (acl, error) {
	if len(b) < 4 || len(b)%8 != 4 {
		return nil, status.Invalid
	}
	if binary.LittleEndian.Uint32(b) != aclVersion {
		return nil, status.Unsupported
	}
	var l acl
	for b = b[4:]; len(b) > 0; b = b[8:] {
		l = append(l, aclEntry{binary.LittleEndian.Uint16(b), binary.LittleEndian.Uint16(b[2:]), binary.LittleEndian.Uint32(b[4:])})
	}
	return l, l.check()
}

// check refuses what Linux refuses: each of the three classes once, a mask where
// users or groups are named, entries in the order of their tags.
func (l acl) check() error {
	count := map[uint16]int{}
	for i, e := range l {
		if e.perm&^7 != 0 || i > 0 && e.tag < l[i-1].tag {
			return status.Invalid
		}
		switch e.tag {
		case aclUserObj, aclUser, aclGroupObj, aclGroup, aclMask, aclOther:
			count[e.tag]++
		default:
			return status.Invalid
		}
	}
	named := count[aclUser]+count[aclGroup] > 0
	if len(l) > 0 && (count[aclUserObj] != 1 || count[aclGroupObj] != 1 || count[aclOther] != 1 ||
		count[aclMask] > 1 || named && count[aclMask] == 0) {
		return status.Invalid
	}
	return nil
}

func (l acl) bytes() []byte {
	b := binary.LittleEndian.AppendUint32(nil, aclVersion)
	for _, e := range l {
		b = binary.LittleEndian.AppendUint16(b, e.tag)
		b = binary.LittleEndian.AppendUint16(b, e.perm)
		id := e.id
		if e.tag != aclUser && e.tag != aclGroup {
			id = ^uint32(0)
		}
		b = binary.LittleEndian.AppendUint32(b, id)
	}
	return b
}

// minimal reports whether a mode says the same.
func (l acl) minimal() bool { return len(l) == 3 }

// find returns the entry with a tag that is there at most once, nil if it is not.
func (l acl) find(tag uint16) *aclEntry {
	for i := range l {
		if l[i].tag == tag {
			return &l[i]
		}
	}
	return nil
}

// class returns the three entries that a mode's bits show.
func (l acl) class() (user, group, other *aclEntry) {
	if group = l.find(aclMask); group == nil {
		group = l.find(aclGroupObj)
	}
	return l.find(aclUserObj), group, l.find(aclOther)
}

// mode returns a mode with the list's permission bits.
func (l acl) mode(mode uint32) uint32 {
	u, g, o := l.class()
	return mode&^0o777 | uint32(u.perm)<<6 | uint32(g.perm)<<3 | uint32(o.perm)
}

// chmod is the list after a chmod(2).
func (l acl) chmod(mode uint32) acl {
	l = slices.Clone(l)
	u, g, o := l.class()
	u.perm, g.perm, o.perm = uint16(mode>>6&7), uint16(mode>>3&7), uint16(mode&7)
	return l
}

// inherit is the access list and mode of what is made with a mode in a directory
// with this default list: each may forbid what the other permits. A list that a
// mode can say is none.
func (l acl) inherit(mode uint32) (acl, uint32) {
	l = slices.Clone(l)
	u, g, o := l.class()
	u.perm &= uint16(mode >> 6 & 7)
	g.perm &= uint16(mode >> 3 & 7)
	o.perm &= uint16(mode & 7)
	mode = l.mode(mode)
	if l.minimal() {
		return nil, mode
	}
	return l, mode
}

// access is the check of acl(5) for somebody who does not own the file.
func (l acl) access(gid uint32, who *proto.Ident, want uint32) error {
	mask := uint32(7)
	if m := l.find(aclMask); m != nil {
		mask = uint32(m.perm)
	}
	inAny := false
	for _, e := range l {
		switch e.tag {
		case aclUser:
			if e.id == who.UID {
				return granted(uint32(e.perm)&mask, want)
			}
		case aclGroupObj, aclGroup:
			id := e.id
			if e.tag == aclGroupObj {
				id = gid
			}
			if inGroup(who, id) {
				if inAny = true; uint32(e.perm)&want == want {
					return granted(uint32(e.perm)&mask, want)
				}
			}
		}
	}
	if inAny {
		return status.Access
	}
	return granted(uint32(l.find(aclOther).perm), want)
}

// modeDecides reports whether a file's list, if it has one, makes no difference. With
// an empty mask Linux does not look at the list, so that who is in one of its
// groups may what all others may (acl_permission_check in fs/namei.c).
func modeDecides(a *proto.Attr, who *proto.Ident) bool {
	return who.UID == 0 || who.UID == a.UID || a.Type() == proto.ModeSymlink || a.Mode&0o070 == 0
}

func granted(bits, want uint32) error {
	if bits&want != want {
		return status.Access
	}
	return nil
}

// aclCache keeps the access lists of files that were asked for. A change of a
// list changes the file's ctime.
type aclCache struct {
	mu    sync.Mutex
	lists map[proto.FileID]cachedACL
	none  bool // the file system has no lists
}

type cachedACL struct {
	ctime proto.Time
	list  acl
}

// Bounds of the cache. What has just changed is not kept: two changes within a
// tick of the file system's clock have one ctime.
const (
	maxACLs = 1 << 16
	aclTick = proto.Time(20 * time.Millisecond)
)

// get returns the access list of a file, from read if it is not known.
func (c *aclCache) get(a *proto.Attr, read func() ([]byte, error)) (acl, error) {
	c.mu.Lock()
	known, ok := c.lists[a.ID]
	none := c.none
	c.mu.Unlock()
	if none || ok && known.ctime == a.Ctime {
		return known.list, nil
	}
	b, err := read()
	l, err := listOf(b, err)
	c.mu.Lock()
	defer c.mu.Unlock()
	switch {
	case errors.Is(err, errNoLists):
		c.none = true
		return nil, nil
	case err != nil:
		return nil, err
	case proto.Time(time.Now().UnixNano())-a.Ctime < aclTick:
		delete(c.lists, a.ID)
		return l, nil
	}
	if len(c.lists) >= maxACLs || c.lists == nil {
		c.lists = map[proto.FileID]cachedACL{}
	}
	c.lists[a.ID] = cachedACL{a.Ctime, l}
	return l, nil
}

var errNoLists = errors.New("the file system has no access control lists")

// listOf makes a list of what reading its attribute has given: errNoLists where there can be none.
func listOf(b []byte, err error) (acl, error) {
	switch status.Of(err) {
	case status.OK:
		return parseACL(b)
	case status.NoAttr:
		return nil, nil
	case status.Unsupported:
		return nil, errNoLists
	}
	return nil, err
}

// Access checks whether an identity may read, write, or execute or search a
// file, by its access control list if it has one, by its mode otherwise: nil or
// status.Access, or the error of reading the list.
func (j *Journal) Access(a *proto.Attr, who *proto.Ident, want uint32) error {
	return j.access(a, who, want, func() ([]byte, error) { return j.getXattr(a.ID, aclAccess) })
}

// Access is Journal.Access, then.
func (p *Past) Access(a *proto.Attr, who *proto.Ident, want uint32) error {
	if modeDecides(a, who) {
		return modeAccess(a, who, want)
	}
	l, err := listOf(p.GetXattr(a.ID, aclAccess))
	if err != nil && !errors.Is(err, errNoLists) {
		return err
	}
	if l == nil {
		return modeAccess(a, who, want)
	}
	return l.access(a.GID, who, want)
}

// mayLocked is Access for a plan.
func (j *Journal) mayLocked(a *proto.Attr, who *proto.Ident, want uint32) error {
	return j.access(a, who, want, func() ([]byte, error) { return j.getXattrViewed(a.ID, aclAccess) })
}

// access checks with what read gives as the list, if it has to be read.
func (j *Journal) access(a *proto.Attr, who *proto.Ident, want uint32, read func() ([]byte, error)) error {
	if modeDecides(a, who) {
		return modeAccess(a, who, want)
	}
	l, err := j.acls.get(a, read)
	if err != nil {
		return err
	}
	if l == nil {
		return modeAccess(a, who, want)
	}
	return l.access(a.GID, who, want)
}

// inheritLocked completes the Make record of a plan with what a directory's
// default list says: the mode, and records for the lists that the file gets.
// Without such a list the umask counts.
func (j *Journal) inheritLocked(r *record.Record, pa *parent, umask uint32) ([]*record.Record, error) {
	if r.New.Mode&proto.ModeType == proto.ModeSymlink {
		return nil, nil
	}
	l, err := listOf(pa.dir.GetXattr("", aclDefault))
	if err != nil && !errors.Is(err, errNoLists) {
		return nil, err
	}
	if l == nil {
		r.New.Mode &^= umask
		return nil, nil
	}
	var recs []*record.Record
	set := func(name string, l acl) {
		recs = append(recs, &record.Record{Kind: record.SetXattr, ID: r.ID, Name: name, HasNew: true, Value: l.bytes()})
	}
	var own acl
	if own, r.New.Mode = l.inherit(r.New.Mode); own != nil {
		set(aclAccess, own)
	}
	if r.New.Mode&proto.ModeType == proto.ModeDir {
		set(aclDefault, l)
	}
	return recs, nil
}

// planACL plans the change of a list, empty for none, as setfacl(1) makes it. A
// list that the mode can say becomes the mode; any other changes it: both are
// records, so that both are taken back.
func (j *Journal) planACL(p *pending, id proto.FileID, name string, value []byte) error {
	if err := j.busy.file(id); err != nil {
		return err
	}
	n, info, err := j.tree.stat(id)
	if err != nil {
		return err
	}
	who := &p.sub.Ident
	var l acl
	if len(value) > 0 {
		if l, err = parseACL(value); err != nil {
			return err
		}
	}
	var old []byte
	err = j.tree.at(id, func(d vfs.Dir, at string) error {
		old, err = d.GetXattr(at, name)
		return err
	})
	hasOld := err == nil
	switch {
	case n.typ == proto.ModeSymlink:
		return status.Unsupported
	case err != nil && !errors.Is(err, syscall.ENODATA):
		return err
	case who.UID != 0 && who.UID != info.UID:
		return status.NotOwner
	case name == aclDefault && n.typ != proto.ModeDir && l != nil:
		return status.Access
	}
	p.id = id
	mode := info.Mode
	if name == aclAccess && l != nil {
		mode = l.mode(mode)
		if who.UID != 0 && !inGroup(who, info.GID) { // of directories as well: posix_acl_update_mode
			mode &^= proto.ModeSetgid
		}
		if l.minimal() {
			l = nil
		}
	}
	r := &record.Record{Kind: record.SetXattr, ID: id, Name: name, HasOld: hasOld, OldValue: old, HasNew: l != nil}
	if l != nil {
		r.Value = l.bytes()
	}
	if r.HasOld || r.HasNew {
		p.recs = append(p.recs, r)
	}
	if mode != info.Mode {
		was := record.Attrs{Mode: info.Mode, UID: info.UID, GID: info.GID, Atime: proto.Time(info.Atime), Mtime: proto.Time(info.Mtime)}
		is := was
		is.Mode = mode
		if err := mayPrivilege(p.sub, &was, &is); err != nil {
			return err
		}
		p.recs = append(p.recs, &record.Record{Kind: record.SetAttr, ID: id, Old: was, New: is})
	}
	return nil
}

// accessThen brings an access list to the mode that the file had: chmod(2)
// changes it, and leaves no record of that.
func (p *Past) accessThen(id proto.FileID, v []byte) ([]byte, error) {
	l, err := parseACL(v)
	if err != nil || l == nil {
		return v, err
	}
	a, err := p.attrThen(id)
	if err != nil {
		return nil, err
	}
	return l.chmod(a.Mode).bytes(), nil
}

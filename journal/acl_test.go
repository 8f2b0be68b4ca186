package journal

import (
	"testing"

	"github.com/stretchr/testify/require"

	"cagefs.dev/cage/journal/vfs"
	"cagefs.dev/cage/remote/proto"
	"cagefs.dev/cage/remote/status"
)

// someACL names user 1002 and group 2001; the mask takes writing from both.
var someACL = acl{{aclUserObj, 7, 0}, {aclUser, 7, 1002}, {aclGroupObj, 5, 0}, {aclGroup, 6, 2001}, {aclMask, 5, 0}, {aclOther, 1, 0}}

func TestACLAccess(t *testing.T) {
	for name, c := range map[string]struct {
		uid, gid uint32
		groups   []uint32
		may      uint32 // of 7
	}{
		"named user, masked":              {uid: 1002, gid: 1002, may: 5},
		"a named user's groups count not": {uid: 1002, gid: 2001, may: 5},
		"owning group":                    {uid: 7, gid: 50, may: 5},
		"named group, masked":             {uid: 7, gid: 2001, may: 4},
		"in both groups, each for itself": {uid: 7, gid: 50, groups: []uint32{2001}, may: 5},
		"others":                          {uid: 7, gid: 7, may: 1},
	} {
		t.Run(name, func(t *testing.T) {
			who := &proto.Ident{UID: c.uid, GID: c.gid, Groups: c.groups}
			for want := range uint32(8) {
				err := someACL.access(50, who, want)
				require.Equal(t, want&c.may == want, err == nil, "%d: %v", want, err)
			}
		})
	}
}

// TestACLWithEmptyMask: it does not count, as on Linux.
func TestACLWithEmptyMask(t *testing.T) {
	e := openWith(t, Options{})
	for mode, may := range map[uint32]uint32{0o707: 7, 0o717: 0} { // the mask is the group's bits
		a := &proto.Attr{ID: 9, Mode: proto.ModeRegular | mode, UID: 7, GID: 50}
		list := someACL.chmod(mode)
		for want := range uint32(8) {
			err := e.access(a, &proto.Ident{UID: 8, GID: 2001}, want, func() ([]byte, error) { return list.bytes(), nil })
			require.Equal(t, want&may == want, err == nil, "mode %o, want %d: %v", mode, want, err)
		}
	}
	require.NoError(t, e.Close())
}

func TestACLFollowsTheMode(t *testing.T) {
	require.EqualValues(t, proto.ModeRegular|0o751, someACL.mode(proto.ModeRegular|0o4000)&^0o4000)
	l := someACL.chmod(0o640)
	require.EqualValues(t, 0o640, l.mode(0))
	require.Equal(t, someACL[1], l[1], "named entries stay")
	require.EqualValues(t, 5, someACL.find(aclMask).perm, "the list itself is not changed")

	own, mode := someACL.inherit(proto.ModeRegular | 0o666)
	require.EqualValues(t, proto.ModeRegular|0o640, mode)
	require.EqualValues(t, 4, own.find(aclMask).perm)
	own, mode = acl{{aclUserObj, 7, 0}, {aclGroupObj, 0, 0}, {aclOther, 0, 0}}.inherit(0o666)
	require.Nil(t, own, "the mode says it all")
	require.EqualValues(t, 0o600, mode)
}

func TestACLRefused(t *testing.T) {
	e := func(tag, perm uint16) aclEntry { return aclEntry{tag, perm, 1} }
	for name, l := range map[string]acl{
		"no group":             {e(aclUserObj, 7), e(aclOther, 7)},
		"two owners":           {e(aclUserObj, 7), e(aclUserObj, 7), e(aclGroupObj, 7), e(aclOther, 7)},
		"a name without mask":  {e(aclUserObj, 7), e(aclUser, 7), e(aclGroupObj, 7), e(aclOther, 7)},
		"out of order":         {e(aclGroupObj, 7), e(aclUserObj, 7), e(aclOther, 7)},
		"unknown tag":          {e(aclUserObj, 7), e(aclGroupObj, 7), e(aclOther, 7), e(0x40, 7)},
		"unknown permission":   {e(aclUserObj, 8), e(aclGroupObj, 7), e(aclOther, 7)},
		"a mask after another": {e(aclUserObj, 7), e(aclGroupObj, 7), e(aclMask, 7), e(aclMask, 7), e(aclOther, 7)},
	} {
		_, err := parseACL(l.bytes())
		require.Equal(t, status.Invalid, status.Of(err), name)
	}
	_, err := parseACL([]byte{1, 0, 0, 0})
	require.Equal(t, status.Unsupported, status.Of(err), "another version")
}

func FuzzParseACL(f *testing.F) {
	f.Add(someACL.bytes())
	f.Add([]byte{2, 0, 0, 0})
	f.Fuzz(func(t *testing.T, b []byte) {
		l, err := parseACL(b)
		if err != nil || l == nil {
			return
		}
		again, err := parseACL(l.bytes())
		require.NoError(t, err)
		require.Equal(t, l.bytes(), again.bytes())
		require.EqualValues(t, 0o640, l.chmod(0o640).mode(0))
		_ = l.access(1, &proto.Ident{UID: 5, GID: 6}, MayRead)
	})
}

// TestACLIsOfItsMoment: what chmod does to a list is taken back when the past is read.
func TestACLIsOfItsMoment(t *testing.T) {
	eachDisk(t, func(t *testing.T, fs vfs.FS) {
		e, _ := openOn(t, fs)
		f := e.file(proto.RootID, "f", "")
		res := e.must(&proto.SetXattr{ID: f, Name: aclAccess, Value: someACL.bytes()})
		require.EqualValues(t, 0o751, res.Attr.Mode&0o777)
		then := e.Last()
		e.must(&proto.SetAttr{ID: f, Mask: proto.SetMode, Mode: 0o700})
		p, err := e.At(then)
		require.NoError(t, err)
		v, err := p.GetXattr(f, aclAccess)
		require.NoError(t, err)
		require.Equal(t, someACL.bytes(), v)
		a, err := p.Attr(f)
		require.NoError(t, err)
		require.NoError(t, p.Access(&a, &proto.Ident{UID: 1002}, MayRead))
		now, err := e.Attr(f)
		require.NoError(t, err)
		require.Equal(t, status.Access, status.Of(e.Access(&now, &proto.Ident{UID: 1002}, MayRead)))
		require.NoError(t, e.Close())
	})
}

// TestACLIsInherited: what is made in a directory gets its lists, and the umask
// counts only without one.
func TestACLIsInherited(t *testing.T) {
	eachDisk(t, func(t *testing.T, fs vfs.FS) {
		e, _ := openOn(t, fs)
		d := e.make(proto.RootID, "d", proto.ModeDir|0o777)
		e.must(&proto.SetXattr{ID: d, Name: aclDefault, Value: someACL.bytes()})
		made := func(dir proto.FileID, name string, mode uint32) proto.Attr {
			return e.must(&proto.Make{Dir: dir, Name: name, Mode: mode, Umask: 0o077}).Attr
		}
		require.EqualValues(t, 0o600, made(proto.RootID, "f", proto.ModeRegular|0o666).Mode&0o777)
		a := made(d, "f", proto.ModeRegular|0o666)
		require.EqualValues(t, 0o640, a.Mode&0o777)
		v, err := e.GetXattr(a.ID, aclAccess)
		require.NoError(t, err)
		own, _ := someACL.inherit(0o666)
		require.Equal(t, own.bytes(), v)
		sub := made(d, "sub", proto.ModeDir|0o777)
		require.EqualValues(t, 0o751, sub.Mode&0o777)
		v, err = e.GetXattr(sub.ID, aclDefault)
		require.NoError(t, err)
		require.Equal(t, someACL.bytes(), v)
		bare := made(d, "", proto.ModeRegular|0o666)
		v, err = e.GetXattr(bare.ID, aclAccess)
		require.NoError(t, err)
		require.Equal(t, own.bytes(), v)
		require.NoError(t, e.Close())
	})
}

// TestACLTakesSetgid: whoever sets an access list and is not in the file's group
// takes its setgid bit, of directories as well, as posix_acl_update_mode does.
func TestACLTakesSetgid(t *testing.T) {
	eachDisk(t, func(t *testing.T, fs vfs.FS) {
		e, _ := openOn(t, fs)
		d := e.make(proto.RootID, "d", proto.ModeDir|0o777)
		e.must(&proto.SetAttr{ID: d, Mask: proto.SetUID | proto.SetGID | proto.SetMode, UID: 1002, GID: 2001, Mode: 0o2777})
		set := &proto.SetXattr{ID: d, Name: aclAccess, Value: someACL.bytes()}
		res, err := e.as(proto.Ident{UID: 1002, GID: 2001}, set)
		require.NoError(t, err)
		require.EqualValues(t, 0o2751, res.Attr.Mode&proto.ModePerm, "a member keeps it")
		res, err = e.as(proto.Ident{UID: 1002, GID: 1002}, set)
		require.NoError(t, err)
		require.EqualValues(t, 0o751, res.Attr.Mode&proto.ModePerm)
		require.NoError(t, e.Close())
	})
}

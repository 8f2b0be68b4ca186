package journal

import (
	"context"
	"strconv"
	"testing"

	"github.com/stretchr/testify/require"

	"cagefs.dev/cage/journal/vfs"
	"cagefs.dev/cage/remote/proto"
	"cagefs.dev/cage/remote/status"
)

// as does an operation for somebody who is not root.
func (e *testExport) as(who proto.Ident, op proto.Op) (proto.Result, error) {
	e.seq++
	return e.Do(context.Background(), &Submission{Change: &proto.Change{Session: e.ses, Seq: e.seq, Op: op, Ident: who}, Client: 1, Trusted: true})
}

var somebody = proto.Ident{UID: 1001, GID: 2001, Groups: []uint32{2002}}

// Without execution by the group a setgid bit is no privilege: only with it is
// it taken from files made by somebody who is not in the group.
func TestMakeKeepsSetgidWithoutExecution(t *testing.T) {
	e, _ := openOn(t, vfs.NewMem(1))
	d := e.make(proto.RootID, "d", proto.ModeDir|proto.ModeSetgid|0o777)
	for mode, want := range map[uint32]uint32{0o2644: 0o2644, 0o2755: 0o755, 0o2745: 0o2745, 0o6775: 0o4775} {
		res, err := e.as(somebody, &proto.Make{Dir: d, Name: "f", Mode: proto.ModeRegular | mode})
		require.NoError(t, err)
		a, err := e.Attr(res.ID)
		require.NoError(t, err)
		require.Equal(t, want, a.Mode&proto.ModePerm, "made with %o", mode)
		require.Zero(t, a.GID)
		e.must(&proto.Remove{Dir: d, Name: "f"})
	}
	require.NoError(t, e.Close())
}

// A device that is none may be made by anybody, as with Linux; others by root alone.
func TestMakeDevices(t *testing.T) {
	e, _ := openOn(t, vfs.NewMem(1))
	d := e.make(proto.RootID, "d", proto.ModeDir|0o777)
	_, err := e.as(somebody, &proto.Make{Dir: d, Name: "whiteout", Mode: proto.ModeChar | 0o600})
	require.NoError(t, err)
	for _, op := range []*proto.Make{{Mode: proto.ModeChar, Rdev: 1<<8 | 3}, {Mode: proto.ModeBlock}, {Mode: proto.ModeBlock, Rdev: 7 << 8}} {
		op.Dir, op.Name = d, "device"
		_, err := e.as(somebody, op)
		require.ErrorIs(t, err, status.NotOwner, "%+v", op)
		e.must(op)
		e.must(&proto.Remove{Dir: d, Name: "device"})
	}
	require.NoError(t, e.Close())
}

// A new owner takes setuid, and setgid where the group may execute the file or
// the one who changes it is not in the group that it was of.
func TestChangeOfOwnerTakesSetID(t *testing.T) {
	e, _ := openOn(t, vfs.NewMem(1))
	id := e.file(proto.RootID, "f", "")
	for _, c := range []struct {
		who             proto.Ident
		gid, mode, want uint32
	}{
		{proto.Ident{}, 2001, 0o6777, 0o777},
		{proto.Ident{}, 2001, 0o6767, 0o2767},
		{somebody, 2001, 0o6777, 0o777},
		{somebody, 2001, 0o6767, 0o2767},
		{somebody, 7, 0o6767, 0o767},
		{somebody, 7, 0o1644, 0o1644},
	} {
		e.must(&proto.SetAttr{ID: id, Mask: proto.SetUID | proto.SetGID, UID: somebody.UID, GID: c.gid})
		e.must(&proto.SetAttr{ID: id, Mask: proto.SetMode, Mode: c.mode})
		res, err := e.as(c.who, &proto.SetAttr{ID: id, Mask: proto.SetGID, GID: 2002})
		require.NoError(t, err)
		require.Equal(t, c.want, res.Attr.Mode&proto.ModePerm, "%+v", c)
	}
	require.NoError(t, e.Close())
}

// Who is not trusted gives no file a privilege: neither setuid nor, where the group
// may execute it, setgid. What a file has already may stay, on directories setgid
// is none.
func TestSetIDNeedsTrust(t *testing.T) {
	e, _ := openOn(t, vfs.NewMem(1))
	untrusted := func(op proto.Op) (proto.Result, error) {
		e.seq++
		return e.Do(t.Context(), &Submission{Change: &proto.Change{Session: e.ses, Seq: e.seq, Op: op, Ident: somebody}, Client: 1})
	}
	e.must(&proto.SetAttr{ID: proto.RootID, Mask: proto.SetMode | proto.SetGID, Mode: 0o2777, GID: somebody.GID})
	for i, mode := range []uint32{0o4600, 0o2755, 0o6755, 0o2710, 0o2644, 0o1755} {
		refused := mode != 0o2644 && mode != 0o1755
		name := strconv.Itoa(i)
		_, err := untrusted(&proto.Make{Dir: proto.RootID, Name: name + "-new", Mode: proto.ModeRegular | mode})
		require.Equal(t, refused, status.Of(err) == status.NotOwner, "made with %o: %v", mode, err)

		id := e.file(proto.RootID, name, "")
		e.must(&proto.SetAttr{ID: id, Mask: proto.SetUID | proto.SetGID, UID: somebody.UID, GID: somebody.GID})
		_, err = untrusted(&proto.SetAttr{ID: id, Mask: proto.SetMode, Mode: mode})
		require.Equal(t, refused, status.Of(err) == status.NotOwner, "set to %o: %v", mode, err)

		e.must(&proto.SetAttr{ID: id, Mask: proto.SetMode, Mode: mode})
		_, err = untrusted(&proto.SetAttr{ID: id, Mask: proto.SetMode, Mode: mode &^ 0o044})
		require.NoError(t, err, "%o was there", mode)
		if refused && mode&proto.ModeSetgid != 0 {
			_, err = untrusted(&proto.SetAttr{ID: id, Mask: proto.SetMode | proto.SetGID, Mode: mode, GID: 2002})
			require.ErrorIs(t, err, status.NotOwner, "of another group")
		}
	}
	const none = 1<<32 - 1
	id := e.file(proto.RootID, "lock", "")
	e.must(&proto.SetAttr{ID: id, Mask: proto.SetUID | proto.SetGID, UID: somebody.UID, GID: somebody.GID})
	e.must(&proto.SetAttr{ID: id, Mask: proto.SetMode, Mode: 0o2644})
	_, err := untrusted(&proto.SetXattr{ID: id, Name: aclAccess, Value: acl{
		{aclUserObj, 6, none}, {aclGroupObj, 5, none}, {aclOther, 4, none}}.bytes()})
	require.ErrorIs(t, err, status.NotOwner, "a list gives the group execution")
	_, err = untrusted(&proto.Make{Dir: proto.RootID, Name: "dir", Mode: proto.ModeDir | 0o2755})
	require.NoError(t, err)
	require.NoError(t, e.Close())
}

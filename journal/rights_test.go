package journal

import (
	"context"
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

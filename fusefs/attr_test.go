package fusefs

import (
	"math"
	"testing"
	"time"

	"github.com/hanwen/go-fuse/v2/fuse"
	"github.com/stretchr/testify/require"

	"cagefs.dev/cage/remote/proto"
)

func TestTimesThereAndBack(t *testing.T) {
	for name, tm := range map[string]proto.Time{
		"epoch":     0,
		"now":       proto.Time(time.Now().UnixNano()),
		"1969":      -1,
		"1901":      -2147483648 * 1e9,
		"last":      math.MaxInt64,
		"before it": math.MaxInt64 / 1e9 * 1e9,
	} {
		t.Run(name, func(t *testing.T) {
			sec, nsec := splitTime(tm)
			require.Less(t, nsec, uint32(1e9))
			want := tm.Std()
			require.Equal(t, want.Unix(), int64(sec))
			require.EqualValues(t, want.Nanosecond(), nsec)
			if name != "last" && name != "before it" {
				require.Equal(t, tm, joinTime(sec, nsec))
			}
		})
	}
	require.Equal(t, proto.Time(math.MaxInt64), joinTime(1<<62, 0), "too late")
	require.Equal(t, proto.Time(math.MinInt64), joinTime(1<<63, 0), "too early")
}

func TestSetAttrOp(t *testing.T) {
	const suid = proto.ModeRegular | 0o6755
	for name, tc := range map[string]struct {
		mode uint32 // of the file
		in   fuse.SetAttrInCommon
		want proto.SetAttr
	}{
		"nothing we keep": {suid, fuse.SetAttrInCommon{Valid: fuse.FATTR_CTIME | fuse.FATTR_LOCKOWNER}, proto.SetAttr{}},
		"chmod":           {suid, fuse.SetAttrInCommon{Valid: fuse.FATTR_MODE, Mode: proto.ModeRegular | 0o4711}, proto.SetAttr{Mask: proto.SetMode, Mode: 0o4711}},
		"truncate by root": {suid, fuse.SetAttrInCommon{Valid: fuse.FATTR_SIZE, Size: 9},
			proto.SetAttr{Mask: proto.SetSize, Size: 9}},
		"truncate by others": {suid, fuse.SetAttrInCommon{Valid: fuse.FATTR_SIZE | fuse.FATTR_KILL_SUIDGID, Size: 9},
			proto.SetAttr{Mask: proto.SetSize | proto.SetMode, Size: 9, Mode: 0o755}},
		"truncate by others of a plain file": {proto.ModeRegular | 0o755, fuse.SetAttrInCommon{Valid: fuse.FATTR_SIZE | fuse.FATTR_KILL_SUIDGID},
			proto.SetAttr{Mask: proto.SetSize}},
		"setgid without execution is a lock": {proto.ModeRegular | 0o2644, fuse.SetAttrInCommon{Valid: fuse.FATTR_SIZE | fuse.FATTR_KILL_SUIDGID},
			proto.SetAttr{Mask: proto.SetSize}},
		"chown": {suid, fuse.SetAttrInCommon{Valid: fuse.FATTR_UID | fuse.FATTR_GID, Owner: fuse.Owner{Uid: 3, Gid: 4}},
			proto.SetAttr{Mask: proto.SetUID | proto.SetGID, UID: 3, GID: 4}}, // the server takes the bits away
		"chown and chmod": {suid, fuse.SetAttrInCommon{Valid: fuse.FATTR_UID | fuse.FATTR_MODE, Owner: fuse.Owner{Uid: 3}, Mode: 0o4755},
			proto.SetAttr{Mask: proto.SetUID | proto.SetMode, UID: 3, Mode: 0o4755}},
		"chown of a directory": {proto.ModeDir | 0o2775, fuse.SetAttrInCommon{Valid: fuse.FATTR_UID, Owner: fuse.Owner{Uid: 3}},
			proto.SetAttr{Mask: proto.SetUID, UID: 3}},
		"touch": {suid, fuse.SetAttrInCommon{Valid: fuse.FATTR_ATIME | fuse.FATTR_ATIME_NOW | fuse.FATTR_MTIME | fuse.FATTR_MTIME_NOW},
			proto.SetAttr{Mask: proto.SetAtimeNow | proto.SetMtimeNow}},
		"utimensat": {suid, fuse.SetAttrInCommon{Valid: fuse.FATTR_ATIME | fuse.FATTR_MTIME, Atime: 1, Atimensec: 2, Mtime: ^uint64(0), Mtimensec: 5},
			proto.SetAttr{Mask: proto.SetAtime | proto.SetMtime, Atime: 1e9 + 2, Mtime: -1e9 + 5}},
	} {
		t.Run(name, func(t *testing.T) {
			ino := &inode{id: 5}
			ino.mode.Store(tc.mode)
			tc.want.ID = 5
			got := setAttrOp(&fuse.SetAttrIn{SetAttrInCommon: tc.in}, ino, 0)
			require.Equal(t, &tc.want, got)
		})
	}
}

func TestXattrAnswer(t *testing.T) {
	n, st := answer([]byte("value"), nil)
	require.EqualValues(t, 5, n, "without room the size is the answer")
	require.Equal(t, fuse.OK, st)
	n, st = answer([]byte("value"), make([]byte, 4))
	require.EqualValues(t, 5, n)
	require.Equal(t, fuse.ERANGE, st)
	dest := make([]byte, 8)
	n, st = answer([]byte("value"), dest)
	require.Equal(t, fuse.OK, st)
	require.Equal(t, "value", string(dest[:n]))
	n, st = answer(nil, dest)
	require.Zero(t, n)
	require.Equal(t, fuse.OK, st)
}

func TestTimeouts(t *testing.T) {
	require.Equal(t, time.Second, timeout(0))
	require.Equal(t, time.Duration(0), timeout(-1))
	require.Equal(t, time.Second, timeout(time.Hour))
	require.Equal(t, time.Millisecond, timeout(time.Millisecond))
}

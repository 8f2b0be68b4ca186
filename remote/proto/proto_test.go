package proto

import (
	"testing"

	"github.com/stretchr/testify/require"
)

func TestEveryOperationHasItsKind(t *testing.T) {
	all := []Op{&Make{}, &Link{}, &Remove{}, &Rename{}, &SetAttr{}, &SetXattr{}, &RemoveXattr{}, &Write{}, &Sync{},
		&Label{}, &Rollback{}, &Undo{}}
	for i, op := range all {
		require.EqualValues(t, i+1, op.Kind(), "%T: the numbers are on the wire and never change", op)
	}
}

func TestAttrType(t *testing.T) {
	for mode, want := range map[uint32]struct{ dir, regular bool }{
		ModeDir | 0o755:     {true, false},
		ModeRegular | 0o644: {false, true},
		ModeSymlink | 0o777: {},
		ModeBlock:           {}, // its bits are those of a directory and a device
		ModeSocket:          {}, // a regular file's bits are among its own
	} {
		a := Attr{Mode: mode}
		require.Equal(t, want.dir, a.IsDir(), "%#o", mode)
		require.Equal(t, want.regular, a.IsRegular(), "%#o", mode)
		require.Equal(t, mode&ModeType, a.Type())
	}
}

func TestStrings(t *testing.T) {
	require.Equal(t, "fid 12", FileID(12).String())
	require.Regexp(t, `^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.000000001(Z|[+-]\d\d:\d\d)$`, Time(1).String())
}

func TestTags(t *testing.T) {
	id := MaxFileID.Tagged(7)
	require.EqualValues(t, 7, id.Tag())
	require.Equal(t, MaxFileID, id.Tagged(0))
	require.EqualValues(t, 1<<48|5, FileID(5).Tagged(1))
	require.EqualValues(t, 2<<48|5, FileID(5).Tagged(1).Tagged(2))
	require.Zero(t, MaxFileID.Tag())
}

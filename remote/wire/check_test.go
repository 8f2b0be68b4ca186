package wire

import (
	"math"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"cagefs.dev/cage/remote/proto"
	"cagefs.dev/cage/remote/status"
)

func TestCheckOp(t *testing.T) {
	long := strings.Repeat("n", proto.MaxName)
	file := func(mode uint32) *proto.Make { return &proto.Make{Dir: 1, Name: "n", Mode: mode} }
	set := func(a proto.SetAttr) *proto.SetAttr { a.ID = 9; return &a }
	for name, tc := range map[string]struct {
		op   proto.Op
		want status.Code
	}{
		"file":                 {file(proto.ModeRegular | 0o644), 0},
		"directory":            {file(proto.ModeDir | 0o1777), 0},
		"fifo":                 {file(proto.ModeFIFO), 0},
		"device":               {&proto.Make{Dir: 1, Name: "n", Mode: proto.ModeChar, Rdev: 259}, 0},
		"symlink":              {&proto.Make{Dir: 1, Name: "n", Mode: proto.ModeSymlink | 0o777, Target: "../x"}, 0},
		"proposed number":      {&proto.Make{Dir: 1, Name: "n", Mode: proto.ModeDir, Propose: proto.MaxFileID}, 0},
		"proposed with tag":    {&proto.Make{Dir: 1, Name: "n", Mode: proto.ModeDir, Propose: proto.MaxFileID + 1}, status.Invalid},
		"longest name":         {&proto.Remove{Dir: 1, Name: long}, 0},
		"name of dots":         {&proto.Remove{Dir: 1, Name: "..."}, 0},
		"no type":              {file(0o644), status.Invalid},
		"unknown type":         {file(0o170000), status.Invalid},
		"mode bits":            {file(proto.ModeRegular | 1<<20), status.Invalid},
		"file with target":     {&proto.Make{Dir: 1, Name: "n", Mode: proto.ModeRegular, Target: "x"}, status.Invalid},
		"empty target":         {file(proto.ModeSymlink), status.Invalid},
		"zero byte in target":  {&proto.Make{Dir: 1, Name: "n", Mode: proto.ModeSymlink, Target: "a\x00"}, status.Invalid},
		"target too long":      {&proto.Make{Dir: 1, Name: "n", Mode: proto.ModeSymlink, Target: strings.Repeat("t", 4096)}, status.NameTooLong},
		"no directory":         {&proto.Remove{Name: "n"}, status.Invalid},
		"empty name":           {&proto.Remove{Dir: 1}, status.Invalid},
		"dot":                  {&proto.Remove{Dir: 1, Name: "."}, status.Invalid},
		"dot dot":              {&proto.Remove{Dir: 1, Name: ".."}, status.Invalid},
		"slash":                {&proto.Remove{Dir: 1, Name: "a/b"}, status.Invalid},
		"zero byte":            {&proto.Remove{Dir: 1, Name: "a\x00"}, status.Invalid},
		"name too long":        {&proto.Remove{Dir: 1, Name: long + "n"}, status.NameTooLong},
		"link":                 {&proto.Link{ID: 2, Dir: 1, Name: "n"}, 0},
		"link of nothing":      {&proto.Link{Dir: 1, Name: "n"}, status.Invalid},
		"rename":               {&proto.Rename{Dir: 1, Name: "a", NewDir: 1, NewName: "b", Flags: proto.RenameExchange}, 0},
		"rename to bad name":   {&proto.Rename{Dir: 1, Name: "a", NewDir: 1, NewName: "b/"}, status.Invalid},
		"rename flags":         {&proto.Rename{Dir: 1, Name: "a", NewDir: 1, NewName: "b", Flags: 3}, status.Invalid},
		"rename whiteout":      {&proto.Rename{Dir: 1, Name: "a", NewDir: 1, NewName: "b", Flags: 4}, status.Invalid},
		"chmod":                {set(proto.SetAttr{Mask: proto.SetMode, Mode: 0o7777}), 0},
		"chmod of the type":    {set(proto.SetAttr{Mask: proto.SetMode, Mode: proto.ModeRegular}), status.Invalid},
		"mode not in the mask": {set(proto.SetAttr{Mode: proto.ModeRegular}), 0},
		"unknown mask":         {set(proto.SetAttr{Mask: 1 << 12}), status.Invalid},
		"times":                {set(proto.SetAttr{Mask: proto.SetAtime | proto.SetMtimeNow}), 0},
		"time twice":           {set(proto.SetAttr{Mask: proto.SetMtime | proto.SetMtimeNow}), status.Invalid},
		"largest file":         {set(proto.SetAttr{Mask: proto.SetSize, Size: math.MaxInt64}), 0},
		"file too large":       {set(proto.SetAttr{Mask: proto.SetSize, Size: math.MaxInt64 + 1}), status.TooLarge},
		"setattr of nothing":   {&proto.SetAttr{Mask: proto.SetUID}, status.Invalid},
		"attribute":            {&proto.SetXattr{ID: 2, Name: "user.a", Value: make([]byte, proto.MaxXattr)}, 0},
		"attribute too big":    {&proto.SetXattr{ID: 2, Name: "user.a", Value: make([]byte, proto.MaxXattr+1)}, status.TooBig},
		"attribute flags":      {&proto.SetXattr{ID: 2, Name: "user.a", Flags: 4}, status.Invalid},
		"attribute unnamed":    {&proto.SetXattr{ID: 2}, status.Range},
		"attribute's name":     {&proto.RemoveXattr{ID: 2, Name: long + "n"}, status.Range},
		"attribute's zero":     {&proto.RemoveXattr{ID: 2, Name: "a\x00"}, status.Invalid},
		"remove attribute":     {&proto.RemoveXattr{ID: 2, Name: "user.a/b"}, 0},
		"write":                {&proto.Write{ID: 2, Data: make([]byte, proto.MaxIO)}, 0},
		"write of too much":    {&proto.Write{ID: 2, Data: make([]byte, proto.MaxIO+1)}, status.Invalid},
		"write to the end":     {&proto.Write{ID: 2, Off: math.MaxInt64 - 1, Data: []byte("x")}, 0},
		"write beyond":         {&proto.Write{ID: 2, Off: math.MaxInt64, Data: []byte("x")}, status.TooLarge},
		"write far beyond":     {&proto.Write{ID: 2, Off: math.MaxUint64, Data: []byte("x")}, status.TooLarge},
		"write to tagged":      {&proto.Write{ID: 1 << 48}, status.Invalid},
		"sync":                 {&proto.Sync{ID: 2}, 0},
		"sync of all":          {&proto.Sync{ID: proto.RootID, All: true}, 0},
		"sync of all at file":  {&proto.Sync{ID: 2, All: true}, status.Invalid},
		"label":                {&proto.Label{Name: "v1.0_rc-2"}, 0},
		"label with space":     {&proto.Label{Name: "v 1"}, status.Invalid},
		"label empty":          {&proto.Label{}, status.Invalid},
		"rollback":             {&proto.Rollback{Paths: []string{"", ".", "a/b"}}, 0},
		"rollback of nothing":  {&proto.Rollback{}, status.Invalid},
		"rollback new files":   {&proto.Rollback{Paths: []string{"a"}, New: 2}, status.Invalid},
		"rollback absolute":    {&proto.Rollback{Paths: []string{"/a"}}, status.Invalid},
		"rollback upwards":     {&proto.Rollback{Paths: []string{"a/../b"}}, status.Invalid},
		"rollback of many":     {&proto.Rollback{Paths: make([]string, MaxEntries+1)}, status.Invalid},
		"rollback too long":    {&proto.Rollback{Paths: []string{strings.Repeat("a/", proto.MaxPath) + "a"}}, status.NameTooLong},
		"undo":                 {&proto.Undo{Path: "a/b", LSNs: []proto.LSN{3}}, 0},
		"undo path":            {&proto.Undo{Path: "a//b"}, status.Invalid},
		"undo of many":         {&proto.Undo{LSNs: make([]proto.LSN, MaxEntries+1)}, status.Invalid},
		"no operation":         {nil, status.Unsupported},
	} {
		t.Run(name, func(t *testing.T) {
			err := CheckOp(tc.op)
			require.Equal(t, tc.want, status.Of(err), "%v", err)
			if err != nil {
				require.Less(t, len(err.Error()), 300)
				require.NotContains(t, err.Error(), "\x00")
			}
		})
	}
}

// Paths that pass one by one can be too much for a frame together.
func TestCheckOpOfManyLongPaths(t *testing.T) {
	long := strings.TrimSuffix(strings.Repeat(strings.Repeat("n", 255)+"/", 200), "/")
	op := &proto.Rollback{}
	for range 100 {
		op.Paths = append(op.Paths, long)
	}
	require.Equal(t, status.TooBig, status.Of(CheckOp(op)))
	op.Paths = op.Paths[:10]
	require.NoError(t, CheckOp(op))
	require.Less(t, len((&ChangeReq{Op: op}).Append(nil)), MaxFrame)
}

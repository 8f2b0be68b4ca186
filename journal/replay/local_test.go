package replay

import (
	"context"
	"slices"
	"testing"

	"github.com/stretchr/testify/require"

	"cagefs.dev/cage/journal"
	"cagefs.dev/cage/journal/vfs"
	"cagefs.dev/cage/remote/proto"
	"cagefs.dev/cage/remote/status"
)

// TestLocalChangesTakenBack: what a process of the server moved or made can be
// undone and rolled back; what it removed or overwrote cannot, and that is said
// before anything is changed.
func TestLocalChangesTakenBack(t *testing.T) {
	tests := []struct {
		name  string
		local func(root vfs.Dir) error
		told  []string
		code  status.Code // of the rollback, and of the undo of the last record
	}{
		{"renamed", func(d vfs.Dir) error { return d.Rename("a", d, "c", 0) }, []string{"a", "c"}, status.OK},
		{"made", func(d vfs.Dir) error { return d.Mkdir("n", 0o755) }, []string{"n"}, status.OK},
		{"linked", func(d vfs.Dir) error { return d.Link("a", d, "l") }, []string{"l"}, status.OK},
		{"removed", func(d vfs.Dir) error { return d.Remove("a") }, []string{"a"}, status.Gap},
		{"overwritten", func(d vfs.Dir) error {
			f, err := d.Open("a", true)
			if err != nil {
				return err
			}
			defer f.Close()
			_, err = f.WriteAt([]byte("X"), 0)
			return err
		}, []string{"a"}, status.Gap},
	}
	for _, tt := range tests {
		for _, how := range []string{"rollback", "undo"} {
			t.Run(tt.name+", "+how, func(t *testing.T) {
				e := openExport(t, vfs.NewMem(1))
				e.write("a", "content")
				e.write("b", "other")
				was, moment := e.look(), e.Last()
				root, err := e.disk.Root()
				require.NoError(t, err)
				defer root.Close()
				require.NoError(t, tt.local(root))
				info, err := root.StatSelf()
				require.NoError(t, err)
				var events []journal.LocalEvent
				for _, name := range tt.told {
					events = append(events, journal.LocalEvent{LocalPlace: journal.LocalPlace{Dir: info.Ident, Name: name},
						What: journal.LocalIn | journal.LocalOut})
				}
				require.NoError(t, e.Notice(context.Background(), events))
				now := e.look()
				if how == "undo" {
					_, err = e.do(&proto.Undo{LSNs: []proto.LSN{e.Last()}})
				} else {
					_, err = e.do(&proto.Rollback{Paths: []string{""}, To: moment})
				}
				require.Equal(t, tt.code, status.Of(err), "%v", err)
				if tt.code == status.OK {
					require.Equal(t, names(was), names(e.look()))
				} else {
					require.Equal(t, names(now), names(e.look()), "nothing is changed")
				}
			})
		}
	}
}

func names(s state) (out []string) {
	for p := range s {
		out = append(out, p)
	}
	slices.Sort(out)
	return out
}

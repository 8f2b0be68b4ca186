package journal

import (
	"testing"

	"github.com/stretchr/testify/require"

	"cagefs.dev/cage/journal/vfs"
	"cagefs.dev/cage/remote/proto"
)

// TestGivingUpALinkIsNoLocalChange: a file loses a link when history gives up the
// grave of another of its names. That is no change by a process of the server; one
// that there was before is still noticed.
func TestGivingUpALinkIsNoLocalChange(t *testing.T) {
	for name, story := range map[string][]string{"nothing else": nil, "written before": {"local a"}} {
		t.Run(name, func(t *testing.T) {
			e, _ := openOn(t, vfs.NewMem(1))
			o := newOutsider(e)
			a := e.file(proto.RootID, "a", "a")
			e.must(&proto.Link{ID: a, Dir: proto.RootID, Name: "b"})
			e.must(&proto.Remove{Dir: proto.RootID, Name: "b"})
			snapshot(t, e.Journal)
			if story != nil {
				o.overwrite("a", "A")
			}
			require.NoError(t, e.giveUp(e.Last()+1, e.Graves(a)))
			require.Empty(t, e.Graves(a))
			snapshot(t, e.Journal)
			require.Equal(t, story, o.story())
			require.NoError(t, e.Close())
		})
	}
}

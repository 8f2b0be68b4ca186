package journal

import (
	"bytes"
	"context"
	"strings"
	"sync"
	"testing"

	"github.com/stretchr/testify/require"

	"cagefs.dev/cage/journal/vfs"
	"cagefs.dev/cage/remote/proto"
)

// beside is a process of the server that acts each time that a change was made
// durable and is not applied yet.
type beside struct {
	mu sync.Mutex
	do func(n int) // guarded by mu: the nth time, from 0; nil: nothing
	n  int         // guarded by mu
}

// besides opens a journal on whose disk one is.
func besides(t *testing.T, disk vfs.FS) (e *testExport, o *outsider, b *beside) {
	b = &beside{}
	fs := vfs.Inject(disk, func(op vfs.Op) error {
		if op.Kind == "datasync" && strings.HasPrefix(op.Path, DirName+"/wal/") {
			b.mu.Lock()
			defer b.mu.Unlock()
			if b.do != nil {
				b.do(b.n)
				b.n++
			}
		}
		return nil
	})
	e, _ = openOn(t, fs)
	return e, newOutsider(&testExport{t: t, fs: disk, Journal: e.Journal}), b
}

// act makes it do something from now on, and returns how often it did something before.
func (b *beside) act(do func(n int)) int {
	b.mu.Lock()
	defer b.mu.Unlock()
	n := b.n
	b.do, b.n = do, 0
	return n
}

// TestWritesBesideLocalWrites: a process of the server writes a file all the time
// while a client writes it. Each has its bytes afterwards; the client's change is
// neither given up nor does it destroy what it is not about.
func TestWritesBesideLocalWrites(t *testing.T) {
	const size = 3 * block
	for _, tt := range []struct {
		name  string
		local func(o *outsider, n int) // the nth time
		op    func(a proto.FileID) proto.Op
		want  func(was []byte)
	}{
		{"other bytes", func(o *outsider, n int) { o.overwriteAt("a", 100, "LOCAL") },
			func(a proto.FileID) proto.Op { return &proto.Write{ID: a, Off: 200, Data: []byte("mine")} },
			func(b []byte) { copy(b[100:], "LOCAL"); copy(b[200:], "mine") }},
		{"the same bytes", func(o *outsider, n int) {
			if n <= maxReplans { // afterwards the client's turn is over
				o.overwriteAt("a", 200, strings.Repeat(string(rune('A'+n)), 4))
			}
		},
			func(a proto.FileID) proto.Op { return &proto.Write{ID: a, Off: 200, Data: []byte("mine")} },
			func(b []byte) { copy(b[200:], "mine") }},
		{"appended", func(o *outsider, n int) { o.overwriteAt("a", int64(size+n), "+") },
			func(a proto.FileID) proto.Op { return &proto.Write{ID: a, Off: 200, Data: []byte("mine")} },
			func(b []byte) { copy(b[200:], "mine") }},
		{"in a hole, in the block", func(o *outsider, n int) { o.overwriteAt("h", block+100, "LOCAL") },
			func(a proto.FileID) proto.Op { return &proto.Write{ID: a + 1, Off: block + 200, Data: []byte("mine")} }, nil},
		{"beyond the end", func(o *outsider, n int) {
			if n == 0 {
				o.overwriteAt("a", size, "LOCAL")
			}
		}, func(a proto.FileID) proto.Op { return &proto.Write{ID: a, Off: size + 100, Data: []byte("mine")} }, nil},
		{"a truncation", func(o *outsider, n int) { o.overwriteAt("a", 100, "LOCAL") },
			func(a proto.FileID) proto.Op { return &proto.SetAttr{ID: a, Mask: proto.SetSize, Size: 300} },
			func(b []byte) { copy(b[100:], "LOCAL") }},
	} {
		test := func(t *testing.T, disk vfs.FS) {
			e, o, b := besides(t, disk)
			was := bytes.Repeat([]byte("0123456789abcdef"), size/16)
			a := e.file(proto.RootID, "a", string(was))
			h := e.file(proto.RootID, "h", "")
			require.Equal(t, a+1, h)
			e.must(&proto.SetAttr{ID: h, Mask: proto.SetSize, Size: size})
			snapshot(t, e.Journal)
			last := e.Last()
			b.act(func(n int) { tt.local(o, n) })
			_, err := e.do(tt.op(a))
			require.NoError(t, err)
			require.Positive(t, b.act(nil))
			switch tt.name {
			case "in a hole, in the block":
				got := e.content(h)
				require.Equal(t, "LOCAL", got[block+100:block+105])
				require.Equal(t, "mine", got[block+200:block+204])
			case "beyond the end":
				got := e.content(a)
				require.Equal(t, "LOCAL", got[size:size+5])
				require.Equal(t, "mine", got[size+100:])
			default:
				want := bytes.Clone(was)
				tt.want(want)
				got := e.content(a)
				require.Equal(t, string(want[:min(len(got), size)]), got[:min(len(got), size)])
			}
			require.NoError(t, e.Rescan(context.Background(), 0))
			require.NotEmpty(t, o.story(), "it is noticed")
			past, err := e.At(last)
			require.NoError(t, err)
			_, err = past.Attr(a)
			require.NoError(t, err)
			rep, err := e.Verify(context.Background(), true)
			require.NoError(t, err)
			require.Empty(t, rep.Problems)
			require.NoError(t, e.Close())
		}
		t.Run(tt.name, func(t *testing.T) { eachDisk(t, test) })
	}
}

// overwriteAt writes at an offset.
func (o *outsider) overwriteAt(path string, off int64, content string) {
	o.t.Helper()
	o.in(path, func(d vfs.Dir, name string) error {
		f, err := d.Open(name, true)
		if err != nil {
			return err
		}
		defer f.Close()
		_, err = f.WriteAt([]byte(content), off)
		return err
	})
}

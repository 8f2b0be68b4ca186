package journal

import (
	"strings"
	"syscall"
	"testing"

	"github.com/stretchr/testify/require"

	"cagefs.dev/cage/journal/vfs"
	"cagefs.dev/cage/remote/proto"
	"cagefs.dev/cage/remote/status"
)

func TestAppend(t *testing.T) {
	eachDisk(t, func(t *testing.T, fs vfs.FS) {
		e, _ := openOn(t, fs)
		id := e.file(proto.RootID, "f", "0123")
		res := e.must(&proto.Write{ID: id, Append: true, Off: 77, Data: []byte("456")})
		require.EqualValues(t, 4, res.N)
		res = e.must(&proto.Write{ID: id, Append: true, Data: []byte(strings.Repeat("x", 5000))})
		require.EqualValues(t, 7, res.N)
		require.Equal(t, "0123456"+strings.Repeat("x", 5000), e.content(id))
		// The answer to a repetition is the first one, also after a restart.
		e.seq--
		require.EqualValues(t, 7, e.must(&proto.Write{ID: id, Append: true, Data: []byte(strings.Repeat("x", 5000))}).N)
		require.NoError(t, e.Close())
		e, _ = openOn(t, fs)
		e.seq--
		require.EqualValues(t, 7, e.must(&proto.Write{ID: id, Append: true, Data: []byte(strings.Repeat("x", 5000))}).N)
		require.Equal(t, "0123456"+strings.Repeat("x", 5000), e.content(id))
		// Behind an end that is a hole.
		e.must(&proto.SetAttr{ID: id, Mask: proto.SetSize, Size: 20_000})
		require.EqualValues(t, 20_000, e.must(&proto.Write{ID: id, Append: true, Data: []byte("end")}).N)
		require.Equal(t, "end", e.content(id)[20_000:])
		require.NoError(t, e.Close())
		require.Empty(t, verified(t, fs))
	})
}

// A process of the server appends in the moment before ours is applied: neither
// is lost, and the log knows where ours is.
func TestAppendBesideALocalProcess(t *testing.T) {
	mem := vfs.NewMem(1)
	local := ""
	fs := vfs.Inject(mem, func(op vfs.Op) error {
		if op.Kind == "append" && local != "" {
			b := []byte(local)
			local = ""
			root, err := mem.Root()
			if err != nil {
				return err
			}
			defer root.Close()
			f, err := root.Open("f", true)
			if err != nil {
				return err
			}
			defer f.Close()
			_, _, err = f.Append(b)
			return err
		}
		return nil
	})
	e, _ := openOn(t, fs)
	e.opts.Sure = true // somebody would tell, and nobody does
	id := e.file(proto.RootID, "f", "one,")
	first := e.Last()
	e.must(&proto.SetAttr{ID: id, Mask: proto.SetMode, Mode: 0o4777})
	e.who.UID = 7
	local = "local,"
	res := e.must(&proto.Write{ID: id, Append: true, Off: 4, Data: []byte("two,")})
	require.EqualValues(t, 10, res.N)
	require.EqualValues(t, 0o777, res.Attr.Mode&proto.ModePerm)
	e.must(&proto.Write{ID: id, Append: true, Off: 8, Data: []byte(strings.Repeat("3", 9000))})
	want := "one,local,two," + strings.Repeat("3", 9000)
	require.Equal(t, want, e.content(id))
	e.must(&proto.Sync{ID: id})
	for _, disk := range []*vfs.Mem{mem.Clone()} {
		k, _ := openOn(t, disk)
		require.Equal(t, want, k.content(id))
		past, err := k.At(first)
		require.NoError(t, err)
		got := make([]byte, 4)
		_, err = past.ReadAt(id, got, 0)
		require.NoError(t, err)
		require.Equal(t, "one,", string(got))
		require.NoError(t, k.Close())
	}
	require.NoError(t, e.Close())
}

func TestAppendWithoutRoom(t *testing.T) {
	mem := vfs.NewMem(1)
	full := false
	fs := vfs.Inject(mem, func(op vfs.Op) error {
		if op.Kind == "append" && full {
			return syscall.ENOSPC
		}
		return nil
	})
	e, _ := openOn(t, fs)
	id := e.file(proto.RootID, "f", "one")
	before := snapshot(t, e.Journal)
	full = true
	_, err := e.do(&proto.Write{ID: id, Append: true, Data: []byte("two")})
	require.Equal(t, status.NoSpace, status.Of(err))
	require.Empty(t, before.diff(snapshot(t, e.Journal), nil))
	full = false
	require.EqualValues(t, 3, e.must(&proto.Write{ID: id, Append: true, Data: []byte("two")}).N)
	require.NoError(t, e.Close())
}

func TestCopy(t *testing.T) {
	eachDisk(t, func(t *testing.T, fs vfs.FS) {
		e, _ := openOn(t, fs)
		src := e.file(proto.RootID, "src", strings.Repeat("0123456789", 1000))
		dst := e.file(proto.RootID, "dst", "start")
		res := e.must(&proto.Copy{ID: dst, Off: 3, Src: src, SrcOff: 5, Len: 9000})
		require.EqualValues(t, 9000, res.N)
		want := "sta" + strings.Repeat("5678901234", 900)
		require.Equal(t, want, e.content(dst))
		e.seq--
		require.EqualValues(t, 9000, e.must(&proto.Copy{ID: dst, Off: 3, Src: src, SrcOff: 5, Len: 9000}).N, "repeated")
		require.EqualValues(t, 10, e.must(&proto.Copy{ID: dst, Src: src, SrcOff: 9990, Len: 50}).N, "short at the end")
		require.Zero(t, e.must(&proto.Copy{ID: dst, Src: src, SrcOff: 10_000, Len: 50}).N)
		require.Zero(t, e.must(&proto.Copy{ID: dst, Src: src, SrcOff: 1 << 50, Len: 50}).N)
		want = "0123456789" + want[10:]
		require.Equal(t, want, e.content(dst))
		require.EqualValues(t, 20, e.must(&proto.Copy{ID: dst, Off: 100, Src: dst, Len: 20}).N, "within one file")
		require.Equal(t, want[:100]+want[:20]+want[120:], e.content(dst))
		// What was submitted before is in it, although nobody waited.
		tickets := []*Ticket{}
		for _, op := range []proto.Op{
			&proto.Write{ID: src, Data: []byte("new")}, &proto.Copy{ID: dst, Src: src, Len: 5}, &proto.Write{ID: src, Data: []byte("old")},
		} {
			e.seq++
			ticket, err := e.Submit(t.Context(), &Submission{Change: &proto.Change{Session: e.ses, Seq: e.seq, Op: op}, Client: 1})
			require.NoError(t, err)
			tickets = append(tickets, ticket)
		}
		for _, ticket := range tickets {
			_, err := ticket.Wait(t.Context())
			require.NoError(t, err)
		}
		require.Equal(t, "new34", e.content(dst)[:5])

		e.must(&proto.SetAttr{ID: src, Mask: proto.SetMode, Mode: 0o600})
		e.must(&proto.SetAttr{ID: dst, Mask: proto.SetMode, Mode: 0o666})
		for _, bad := range []struct {
			op   proto.Copy
			uid  uint32
			code status.Code
		}{
			{proto.Copy{ID: dst, Off: 5, Src: dst, Len: 10}, 0, status.Invalid},
			{proto.Copy{ID: dst, Src: proto.RootID, Len: 10}, 0, status.Invalid},
			{proto.Copy{ID: proto.RootID, Src: src, Len: 10}, 0, status.Invalid},
			{proto.Copy{ID: dst, Off: 1<<63 - 5, Src: src, Len: 10}, 0, status.TooLarge},
			{proto.Copy{ID: dst, Src: src, Len: 10}, 9, status.Access},
		} {
			_, err := e.Do(t.Context(), &Submission{Change: &proto.Change{Ident: proto.Ident{UID: bad.uid}, Op: &bad.op}})
			require.Equal(t, bad.code, status.Of(err), "%+v", bad.op)
		}
		require.NoError(t, e.Close())
		require.Empty(t, verified(t, fs))
	})
}

// Whoever but root changes the content of a file takes its setuid bit, and the
// setgid bit where the group may execute or he is not in it, in the same change.
func TestContentChangesTakeSetID(t *testing.T) {
	for name, op := range map[string]func(id, src proto.FileID) proto.Op{
		"write":    func(id, _ proto.FileID) proto.Op { return &proto.Write{ID: id, Off: 2, Data: []byte("x")} },
		"append":   func(id, _ proto.FileID) proto.Op { return &proto.Write{ID: id, Append: true, Data: []byte("x")} },
		"truncate": func(id, _ proto.FileID) proto.Op { return &proto.SetAttr{ID: id, Mask: proto.SetSize, Size: 1} },
		"allocate": func(id, _ proto.FileID) proto.Op { return &proto.Allocate{ID: id, Len: 100} },
		"punch":    func(id, _ proto.FileID) proto.Op { return &proto.Allocate{ID: id, Mode: punch, Len: 2} },
		"punch nothing": func(id, _ proto.FileID) proto.Op {
			return &proto.Allocate{ID: id, Mode: punch, Off: 1000, Len: 2}
		},
		"copy": func(id, src proto.FileID) proto.Op { return &proto.Copy{ID: id, Src: src, Len: 5} },
	} {
		t.Run(name, func(t *testing.T) {
			e, _ := openOn(t, vfs.NewMem(1))
			src := e.file(proto.RootID, "src", "source")
			id := e.file(proto.RootID, "f", "0123456789")
			for _, c := range []struct{ uid, gid, mode, want uint32 }{
				{0, 0, 0o6777, 0o6777}, {5, 0, 0o6777, 0o777}, {5, 0, 0o2767, 0o2767}, {5, 0, 0o4767, 0o767}, {5, 6, 0o6767, 0o767},
			} {
				e.who = proto.Ident{}
				e.must(&proto.SetAttr{ID: id, Mask: proto.SetMode, Mode: c.mode})
				before := e.Last()
				e.who = proto.Ident{UID: c.uid, GID: c.gid}
				res := e.must(op(id, src))
				require.Equal(t, c.want, res.Attr.Mode&proto.ModePerm, "%o by %d", c.mode, c.uid)
				past, err := e.At(before)
				require.NoError(t, err)
				a, err := past.Attr(id)
				require.NoError(t, err)
				require.Equal(t, c.mode, a.Mode&proto.ModePerm)
			}
			require.NoError(t, e.Close())
		})
	}
}

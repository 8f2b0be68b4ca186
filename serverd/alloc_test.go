package serverd

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"testing"
	"time"

	"github.com/rs/zerolog"
	"github.com/stretchr/testify/require"

	"cagefs.dev/cage/journal/vfs"
	"cagefs.dev/cage/remote"
	"cagefs.dev/cage/remote/proto"
	"cagefs.dev/cage/remote/status"
	"cagefs.dev/cage/remote/wire"
)

// Looking for holes and copying need the permission to read; a file that the
// session has open for reading was checked when it was opened.
func TestSeekAndCopyArePermissionToRead(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("acts as another user")
	}
	disk := vfs.NewMem(1)
	r, _ := serveDisk(t, disk, Options{})
	p, _ := r.on()
	seq := proto.Seq(0)
	change := func(who proto.Ident, op proto.Op) (proto.Result, error) {
		seq++
		var rep wire.ChangeRep
		err := p.call(wire.ChangeOpcode(op), &wire.ChangeReq{Seq: seq, Ident: who, Op: op}, &rep)
		return rep.Result, err
	}
	must := func(op proto.Op) proto.Result {
		res, err := change(self, op)
		require.NoError(t, err)
		return res
	}
	src := must(&proto.Make{Dir: proto.RootID, Name: "src", Mode: proto.ModeRegular | 0o600}).ID
	dst := must(&proto.Make{Dir: proto.RootID, Name: "dst", Mode: proto.ModeRegular | 0o666}).ID
	must(&proto.Write{ID: src, Off: 1 << 20, Data: []byte("secret")})
	past := must(&proto.Write{ID: src, Data: []byte("more")}).LSN - 1

	seek := func(uid uint32, at proto.LSN, id proto.FileID, off uint64, whence uint32) (uint64, error) {
		var rep wire.SeekRep
		err := p.call(wire.OpSeek, &wire.SeekReq{ReqHeader: wire.ReqHeader{At: at, Ident: proto.Ident{UID: uid}}, ID: id, Off: off, Whence: whence}, &rep)
		return rep.Off, err
	}
	off, err := seek(0, 0, src, 10_000, wire.SeekData)
	require.NoError(t, err)
	require.EqualValues(t, 1<<20, off)
	off, err = seek(0, past, src, 0, wire.SeekHole)
	require.NoError(t, err)
	require.Zero(t, off, "then")
	for _, bad := range []struct {
		uid    uint32
		id     proto.FileID
		off    uint64
		whence uint32
		code   status.Code
	}{
		{4711, src, 0, wire.SeekData, status.Access},
		{0, src, 1 << 30, wire.SeekData, status.NoDevice},
		{0, src, 1 << 63, wire.SeekHole, status.Invalid},
		{0, src, 0, 2, status.Invalid},
		{0, proto.RootID, 0, wire.SeekData, status.IsDir},
		{0, 4711, 0, wire.SeekData, status.Stale},
	} {
		_, err := seek(bad.uid, 0, bad.id, bad.off, bad.whence)
		require.Equal(t, bad.code, codeOf(err), "%+v", bad)
	}

	user := proto.Ident{UID: 4711, GID: 4711}
	_, err = change(user, &proto.Copy{ID: dst, Src: src, Len: 10})
	require.Equal(t, status.Access, codeOf(err))
	require.NoError(t, p.call(wire.OpOpen, &wire.OpenReq{ReqHeader: header(), ID: src, Flags: wire.OpenRead}, &wire.AttrRep{}))
	res, err := change(user, &proto.Copy{ID: dst, Src: src, SrcOff: 1 << 20, Len: 10})
	require.NoError(t, err)
	require.EqualValues(t, 6, res.N)
	hidden := must(&proto.Make{Dir: proto.RootID, Name: "hidden", Mode: proto.ModeRegular | 0o600}).ID
	require.NoError(t, p.call(wire.OpOpen, &wire.OpenReq{ReqHeader: header(), ID: hidden, Flags: wire.OpenWrite}, &wire.AttrRep{}))
	_, err = seek(user.UID, 0, hidden, 0, wire.SeekHole)
	require.Equal(t, status.NoDevice, codeOf(err), "it is empty; whoever has it open for writing may ask")
}

// The real client copies while its connections are cut: each part once, in order.
func TestCopyOverCutConnections(t *testing.T) {
	r := serve(t, Options{})
	var net cutter
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	s, err := remote.Dial(ctx, remote.Options{
		Addr: r.Addr().String(), Export: "x", Keys: r.keys, Patience: 20 * time.Second, Dial: net.dial, Log: zerolog.Nop(),
	})
	require.NoError(t, err)
	ids := []proto.FileID{}
	for i := range 2 {
		res, err := s.Do(ctx, self, newFile(fmt.Sprint("f", i)))
		require.NoError(t, err)
		ids = append(ids, res.ID)
	}
	want := make([]byte, 6<<20+77)
	for i := range want {
		want[i] = byte(i * i >> 5)
	}
	for off := 0; off < len(want); off += proto.MaxIO {
		_, err := s.Log(ctx, self, &proto.Write{ID: ids[0], Off: uint64(off), Data: want[off:min(len(want), off+proto.MaxIO)]})
		require.NoError(t, err)
	}
	cut := time.AfterFunc(5*time.Millisecond, net.cut)
	defer cut.Stop()
	n, last, err := s.Copy(ctx, self, proto.Copy{ID: ids[1], Src: ids[0]}, 1<<30)
	require.NoError(t, err)
	require.EqualValues(t, len(want), n)
	require.EqualValues(t, len(want), last.Attr.Size)
	got := make([]byte, len(want))
	_, _, _, err = s.ReadAt(ctx, header(), ids[1], got, 0)
	require.NoError(t, err)
	require.True(t, bytes.Equal(want, got))
	n, _, err = s.Copy(ctx, self, proto.Copy{ID: ids[1], Src: 4711}, 10)
	require.Equal(t, status.Stale, status.Of(err))
	require.Zero(t, n)
	n, _, err = s.Copy(ctx, self, proto.Copy{ID: ids[1], Src: ids[0], SrcOff: uint64(len(want)) - 5}, 2<<20)
	require.NoError(t, err)
	require.EqualValues(t, 5, n)
	require.NoError(t, s.Close(ctx))
}

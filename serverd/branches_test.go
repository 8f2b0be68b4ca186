package serverd

import (
	"bytes"
	"io"
	"os"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/require"

	"cagefs.dev/cage/remote/auth"
	"cagefs.dev/cage/remote/branch"
	"cagefs.dev/cage/remote/proto"
	"cagefs.dev/cage/remote/status"
	"cagefs.dev/cage/remote/wire"
)

// lose sends a write that is to be kept instead of being made.
func (p *peer) lose(seq proto.Seq, id proto.FileID, data string) error {
	p.t.Helper()
	op := &proto.Write{ID: id, Data: []byte(data), Lost: true}
	return p.call(wire.ChangeOpcode(op), &wire.ChangeReq{Seq: seq, Acked: seq - 1, Ident: self, Op: op}, &wire.ChangeRep{})
}

// A lost write fails, is kept once however often it comes, and what comes after it is done. Others
// than root and who made it neither see it nor apply it, and who may not write to a file has nothing kept for it.
func TestBranchOfASession(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("makes files of several users")
	}
	dir := t.TempDir()
	require.NoError(t, os.Chmod(dir, 0o777))
	require.NoError(t, os.WriteFile(filepath.Join(dir, "mine"), []byte("data"), 0o644))
	r, _ := serveDir(t, dir, Options{})
	p, _ := r.again(wire.HelloReq{Leases: true})
	id, err := p.resolve("mine")
	require.NoError(t, err)
	for range 2 {
		require.Equal(t, status.LostLock, codeOf(p.lose(1, id, "lost")))
	}
	_, err = p.change(2, newFile("next"))
	require.NoError(t, err)
	require.Equal(t, status.LostLock, codeOf(p.lose(3, id, "")), "nothing is kept of nothing")

	var list wire.BranchesRep
	require.NoError(t, p.call(wire.OpBranches, &wire.BranchesReq{Ident: self}, &list))
	require.Len(t, list.Branches, 1)
	info := list.Branches[0]
	require.EqualValues(t, 1, info.Writes)
	var raw wire.BytesRep
	require.NoError(t, p.call(wire.OpReadBranch, &wire.ReadBranchReq{Ident: self, Session: info.Session, Len: 1 << 20}, &raw))
	br, err := branch.NewReader(bytes.NewReader(raw.Value))
	require.NoError(t, err)
	w, err := br.Next()
	require.NoError(t, err)
	require.Equal(t, "lost", string(w.Data))
	_, err = br.Next()
	require.Equal(t, io.EOF, err)
	require.NoError(t, p.call(wire.OpReadBranch, &wire.ReadBranchReq{Ident: self, Session: info.Session, Off: 1<<64 - 1, Len: 1}, &raw))
	require.Empty(t, raw.Value)

	foe, _ := r.with(r.stranger("foe", auth.ClientKey{}), wire.HelloReq{Leases: true})
	require.NoError(t, foe.call(wire.OpBranches, &wire.BranchesReq{Ident: self}, &list))
	require.Empty(t, list.Branches)
	err = foe.call(wire.OpReadBranch, &wire.ReadBranchReq{Ident: self, Session: info.Session, Len: 1}, &raw)
	require.Equal(t, status.NotFound, codeOf(err))
	_, err = foe.change(1, &proto.Branch{Session: info.Session, Drop: true})
	require.Equal(t, status.NotOwner, codeOf(err))
	err = foe.lose(2, id, "evil")
	require.Equal(t, status.LostLock, codeOf(err))
	require.ErrorContains(t, err, "could not be kept")
	require.NoError(t, p.call(wire.OpBranches, &wire.BranchesReq{Ident: self}, &list))
	require.Len(t, list.Branches, 1)

	_, err = p.change(4, &proto.Branch{Session: info.Session, Drop: true})
	require.NoError(t, err)
	require.NoError(t, p.call(wire.OpBranches, &wire.BranchesReq{Ident: self}, &list))
	require.Empty(t, list.Branches)
}

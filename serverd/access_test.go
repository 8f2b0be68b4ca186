package serverd

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/require"

	"cagefs.dev/cage/journal/vfs"
	"cagefs.dev/cage/remote/proto"
	"cagefs.dev/cage/remote/status"
	"cagefs.dev/cage/remote/wire"
)

// What somebody may who is neither root nor trusted, whatever the requests claim.
func TestUntrustedClient(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("makes files of several users")
	}
	dir := t.TempDir()
	write := func(name string, mode os.FileMode, uid int) {
		path := filepath.Join(dir, name)
		require.NoError(t, os.WriteFile(path, []byte(name), mode))
		require.NoError(t, os.Chmod(path, mode))
		require.NoError(t, os.Chown(path, uid, uid))
	}
	require.NoError(t, os.Mkdir(filepath.Join(dir, "closed"), 0o700))
	write("closed/in", 0o644, 0)
	write("secret", 0o600, 0)
	write("public", 0o644, 0)
	write("mine", 0o600, nobody)
	write("mine-locked", 0o000, nobody)
	require.NoError(t, os.Chmod(dir, 0o755))

	r, _ := serveDir(t, dir, Options{})
	root, hello := r.on()
	key := *r.lookupSession(hello.Session).key
	key.TrustIDs, key.LocalUID = false, nil
	require.NoError(t, r.state.Admit(key))
	p, rep := r.on()
	require.False(t, rep.Trusted)

	ids := map[string]proto.FileID{}
	for _, name := range []string{"closed", "secret", "public", "mine", "mine-locked"} {
		a, err := p.lookup(name)
		require.NoError(t, err, name)
		ids[name] = a.ID
	}
	var at wire.AttrRep
	require.NoError(t, root.call(wire.OpResolve, &wire.ResolveReq{ReqHeader: header(), Path: "closed/in"}, &at))
	ids["in"] = at.Attr.ID

	open := func(name string, flags uint32) status.Code {
		return codeOf(p.call(wire.OpOpen, &wire.OpenReq{ReqHeader: header(), ID: ids[name], Flags: flags}, &at))
	}
	read := func(name string) status.Code {
		_, err := p.read(ids[name], 0, 100)
		return codeOf(err)
	}
	require.Equal(t, status.Access, read("secret"))
	require.Equal(t, status.OK, read("public"))
	require.Equal(t, status.OK, read("mine"))
	require.Equal(t, status.OK, read("mine-locked"), "the owner may read, as under NFS")
	require.Equal(t, status.Access, read("in"), "a number can be guessed")
	require.Equal(t, status.Access, open("secret", wire.OpenRead))
	require.Equal(t, status.Access, open("public", wire.OpenRead|wire.OpenWrite))
	require.Equal(t, status.OK, open("public", wire.OpenRead))
	require.Equal(t, status.OK, open("mine", wire.OpenRead|wire.OpenWrite))
	require.Equal(t, status.Access, open("mine-locked", wire.OpenRead))
	require.Equal(t, status.Invalid, open("mine", 64))

	err := p.call(wire.OpResolve, &wire.ResolveReq{ReqHeader: header(), Path: "closed/in"}, &at)
	require.Equal(t, status.Access, codeOf(err))
	err = p.call(wire.OpReadDir, &wire.ReadDirReq{ReqHeader: header(), ID: ids["closed"], Max: 9}, &wire.ReadDirRep{})
	require.Equal(t, status.Access, codeOf(err))
	err = p.call(wire.OpGetXattr, &wire.XattrReq{ReqHeader: header(), ID: ids["secret"], Name: "user.x"}, &wire.BytesRep{})
	require.Equal(t, status.Access, codeOf(err))
	err = p.call(wire.OpGetXattr, &wire.XattrReq{ReqHeader: header(), ID: ids["mine"], Name: "trusted.x"}, &wire.BytesRep{})
	require.Equal(t, status.NoAttr, codeOf(err))
	require.Equal(t, status.NotOwner, codeOf(p.call(wire.OpVerify, &wire.VerifyReq{}, &wire.VerifyRep{})))

	_, err = p.change(1, newFile("no"))
	require.Equal(t, status.Access, codeOf(err))
	_, err = p.change(2, &proto.Write{ID: ids["public"], Data: []byte("x")})
	require.Equal(t, status.Access, codeOf(err))
	_, err = p.change(3, &proto.Write{ID: ids["mine"], Data: []byte("x")})
	require.NoError(t, err)
	_, err = p.change(4, &proto.Rollback{Paths: []string{"mine"}, To: 1})
	require.Equal(t, status.NotOwner, codeOf(err))
}

// open(2) with O_CREAT and a mode that forbids gives a descriptor all the same,
// and an open file stays readable when its mode changes.
func TestOpenOutlivesPermission(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("acts as another user")
	}
	disk := vfs.NewMem(1)
	dir, err := disk.Root()
	require.NoError(t, err)
	require.NoError(t, dir.Chmod("", 0o777))
	require.NoError(t, dir.Close())
	r, _ := serveDisk(t, disk, Options{})
	p, _ := r.on()
	user := proto.Ident{UID: 4711, GID: 4711}
	as := wire.ReqHeader{Ident: user}
	change := func(seq proto.Seq, who proto.Ident, op proto.Op) (proto.Result, error) {
		var rep wire.ChangeRep
		err := p.call(wire.ChangeOpcode(op), &wire.ChangeReq{Seq: seq, Ident: who, Op: op}, &rep)
		return rep.Result, err
	}
	made, err := change(1, user, &proto.Make{Dir: proto.RootID, Name: "a", Mode: proto.ModeRegular | 0o400})
	require.NoError(t, err)
	open := &wire.OpenReq{ReqHeader: as, ID: made.ID, Flags: wire.OpenRead | wire.OpenWrite}
	require.NoError(t, p.call(wire.OpOpen, open, &wire.AttrRep{}))
	require.Equal(t, status.Access, codeOf(p.call(wire.OpOpen, open, &wire.AttrRep{})), "only the maker's first")
	_, err = change(2, user, &proto.Write{ID: made.ID, Data: []byte("data")})
	require.NoError(t, err, "open for writing")

	_, err = change(3, self, &proto.SetAttr{ID: made.ID, Mask: proto.SetMode | proto.SetUID, Mode: 0, UID: 1})
	require.NoError(t, err)
	read := &wire.ReadReq{ReqHeader: as, ID: made.ID, Len: 10}
	require.NoError(t, p.call(wire.OpRead, read, &wire.ReadRep{}))
	require.NoError(t, p.call(wire.OpRelease, &wire.ReleaseReq{ID: made.ID, N: 1}, &wire.Empty{}))
	require.Equal(t, status.Access, codeOf(p.call(wire.OpRead, read, &wire.ReadRep{})))
}

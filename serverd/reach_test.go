package serverd

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"cagefs.dev/cage/remote/auth"
	"cagefs.dev/cage/remote/proto"
	"cagefs.dev/cage/remote/status"
	"cagefs.dev/cage/remote/wire"
)

// stranger lets a client in that acts as nobody, whatever it claims.
func (r *rig) stranger(name string, k auth.ClientKey) *auth.Keyring {
	r.t.Helper()
	keys := newKeyring(r.t)
	k.Name = name
	_, err := r.join(keys, r.invite(k))
	require.NoError(r.t, err)
	return keys
}

// with opens a session of export x with some keys.
func (r *rig) with(keys *auth.Keyring, m wire.HelloReq) (*peer, wire.HelloRep) {
	r.t.Helper()
	p, err := r.tryDial(keys)
	require.NoError(r.t, err)
	if m.Export == "" {
		m.Export = "x"
	}
	rep, err := p.hello(m)
	require.NoError(r.t, err)
	return p, rep
}

func (p *peer) resolve(path string) (proto.FileID, error) {
	p.t.Helper()
	var rep wire.AttrRep
	err := p.call(wire.OpResolve, &wire.ResolveReq{ReqHeader: header(), Path: path}, &rep)
	return rep.Attr.ID, err
}

// What lies in a directory that somebody may not search does not exist for him,
// also by its number, which can be guessed.
func TestNumbersAreNoKeys(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("makes files of several users")
	}
	dir := t.TempDir()
	at := func(name string) string { return filepath.Join(dir, name) }
	require.NoError(t, os.Chmod(dir, 0o755))
	for _, d := range []string{"closed", "closed/sub", "free"} {
		require.NoError(t, os.Mkdir(at(d), 0o777))
		require.NoError(t, os.Chmod(at(d), 0o777))
	}
	for _, f := range []string{"closed/file", "closed/sub/deep", "closed/gone", "closed/twice", "free/gone", "free/moved"} {
		require.NoError(t, os.WriteFile(at(f), []byte("data"), 0o666))
		require.NoError(t, os.Chmod(at(f), 0o666))
	}
	require.NoError(t, unix.Setxattr(at("closed/file"), "user.x", []byte("v"), 0))
	require.NoError(t, os.Symlink("target", at("closed/link")))
	require.NoError(t, os.Link(at("closed/twice"), at("free/twice")))
	require.NoError(t, os.Chmod(at("closed"), 0o700))

	r, _ := serveDir(t, dir, Options{})
	root, _ := r.on()
	ids := map[string]proto.FileID{}
	for _, name := range []string{"closed", "closed/sub", "closed/file", "closed/sub/deep", "closed/gone", "closed/link", "closed/twice", "free/twice", "free", "free/gone", "free/moved"} {
		id, err := root.resolve(name)
		require.NoError(t, err, name)
		ids[name] = id
	}
	_, err := root.change(1, &proto.Remove{Dir: ids["closed"], Name: "gone"})
	require.NoError(t, err)
	lsn, err := root.change(2, &proto.Remove{Dir: ids["free"], Name: "gone"})
	require.NoError(t, err)
	nameless, err := root.change(3, &proto.Make{Dir: ids["free"], Mode: proto.ModeRegular | 0o666})
	require.NoError(t, err)
	ids["nameless"] = nameless.ID

	keys := r.stranger("foe", auth.ClientKey{})
	foe, _ := r.with(keys, wire.HelloReq{})
	ask := func(h wire.ReqHeader, id proto.FileID) map[string]error {
		return map[string]error{
			"getattr":   foe.call(wire.OpGetAttr, &wire.IDReq{ReqHeader: h, ID: id}, &wire.AttrRep{}),
			"read":      foe.call(wire.OpRead, &wire.ReadReq{ReqHeader: h, ID: id, Len: 9}, &wire.ReadRep{}),
			"seek":      foe.call(wire.OpSeek, &wire.SeekReq{ReqHeader: h, ID: id}, &wire.SeekRep{}),
			"open":      foe.call(wire.OpOpen, &wire.OpenReq{ReqHeader: h, ID: id, Flags: wire.OpenRead}, &wire.AttrRep{}),
			"readlink":  foe.call(wire.OpReadlink, &wire.IDReq{ReqHeader: h, ID: id}, &wire.ReadlinkRep{}),
			"listxattr": foe.call(wire.OpListXattr, &wire.IDReq{ReqHeader: h, ID: id}, &wire.NamesRep{}),
			"getxattr":  foe.call(wire.OpGetXattr, &wire.XattrReq{ReqHeader: h, ID: id, Name: "security.x"}, &wire.BytesRep{}),
			"readdir":   foe.call(wire.OpReadDir, &wire.ReadDirReq{ReqHeader: h, ID: id, Max: 9}, &wire.ReadDirRep{}),
			"lookup":    foe.call(wire.OpLookup, &wire.LookupReq{ReqHeader: h, Dir: id, Name: "deep"}, &wire.AttrRep{}),
		}
	}
	for _, name := range []string{"closed/sub", "closed/file", "closed/sub/deep", "closed/link", "nameless"} {
		for _, mode := range []proto.LeaseMode{proto.NoLease, proto.WriteLease} {
			err := foe.call(wire.OpAcquire, &wire.AcquireReq{Wants: []proto.Want{{ID: ids[name], Mode: mode}}}, &wire.AcquireRep{})
			require.Equal(t, status.Access, codeOf(err), "acquire %s", name)
		}
	}
	past := header()
	past.At = lsn.LSN
	for _, name := range []string{"closed/sub", "closed/file", "closed/sub/deep", "closed/gone", "closed/link", "nameless"} {
		for what, err := range ask(header(), ids[name]) {
			require.Equal(t, status.Access, codeOf(err), "%s %s", what, name)
		}
		if name == "nameless" {
			continue // it was not made yet
		}
		for what, err := range ask(past, ids[name]) {
			require.Equal(t, status.Access, codeOf(err), "%s %s then", what, name)
		}
	}
	var a wire.AttrRep
	for _, name := range []string{"closed/twice", "free/gone", "closed"} { // by its other link; where it was; a name in the open root
		require.NoError(t, foe.call(wire.OpGetAttr, &wire.IDReq{ReqHeader: header(), ID: ids[name]}, &a), name)
	}

	seq := proto.Seq(0)
	for what, op := range map[string]proto.Op{
		"write":       &proto.Write{ID: ids["closed/file"], Data: []byte("x")},
		"truncate":    &proto.SetAttr{ID: ids["closed/file"], Mask: proto.SetSize},
		"touch":       &proto.SetAttr{ID: ids["closed/sub/deep"], Mask: proto.SetMtimeNow},
		"xattr":       &proto.SetXattr{ID: ids["closed/file"], Name: "user.x"},
		"no xattr":    &proto.RemoveXattr{ID: ids["closed/file"], Name: "user.x"},
		"allocate":    &proto.Allocate{ID: ids["closed/file"], Len: 1 << 20},
		"copy":        &proto.Copy{ID: ids["free/moved"], Src: ids["closed/file"], Len: 4},
		"make":        &proto.Make{Dir: ids["closed/sub"], Name: "new", Mode: proto.ModeRegular | 0o600},
		"link out":    &proto.Link{ID: ids["closed/file"], Dir: ids["free"], Name: "mine"},
		"name it":     &proto.Link{ID: ids["nameless"], Dir: ids["free"], Name: "mine"},
		"remove":      &proto.Remove{Dir: ids["closed/sub"], Name: "deep"},
		"rename out":  &proto.Rename{Dir: ids["closed/sub"], Name: "deep", NewDir: ids["free"], NewName: "mine"},
		"rename in":   &proto.Rename{Dir: ids["free"], Name: "moved", NewDir: ids["closed/sub"], NewName: "mine"},
		"past number": &proto.SetAttr{ID: ids["closed/gone"], Mask: proto.SetSize},
	} {
		seq++
		_, err := foe.change(seq, op)
		require.Equal(t, status.Access, codeOf(err), what)
	}
	data, err := os.ReadFile(at("closed/file"))
	require.NoError(t, err)
	require.Equal(t, "data", string(data))

	// What it holds open it keeps, wherever it goes; nothing more comes to it by saying
	// that it had it open.
	require.NoError(t, foe.call(wire.OpOpen, &wire.OpenReq{ReqHeader: header(), ID: ids["free/moved"], Flags: wire.OpenRead | wire.OpenWrite}, &a))
	_, err = root.change(4, &proto.Rename{Dir: ids["free"], Name: "moved", NewDir: ids["closed"], NewName: "moved"})
	require.NoError(t, err)
	_, err = foe.read(ids["free/moved"], 0, 9)
	require.NoError(t, err)
	seq++
	_, err = foe.change(seq, &proto.SetAttr{ID: ids["free/moved"], Mask: proto.SetSize, Size: 2})
	require.NoError(t, err)
	again, _ := r.with(keys, wire.HelloReq{Opens: []proto.FileID{ids["closed/file"], ids["nameless"], ids["closed/gone"]}})
	require.Zero(t, r.lookupSession(again.session(r)).status().OpenFiles)
	_, err = again.read(ids["closed/file"], 0, 9)
	require.Equal(t, status.Access, codeOf(err))
}

// session is the number of the newest session of the peer's key.
func (p *peer) session(r *rig) (id proto.SessionID) {
	addr := p.tls.NetConn().LocalAddr().String()
	for _, st := range r.Status() {
		if st.Peer == addr {
			id = st.ID
		}
	}
	return id
}

// A push tells names to those who may list the directory.
func TestPushesTellNoForeignNames(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("makes files of several users")
	}
	dir := t.TempDir()
	require.NoError(t, os.Chmod(dir, 0o755))
	require.NoError(t, os.Mkdir(filepath.Join(dir, "closed"), 0o700))
	r, _ := serveDir(t, dir, Options{})
	root, _ := r.on()
	foe, _ := r.with(r.stranger("foe", auth.ClientKey{}), wire.HelloReq{})
	closed, err := root.resolve("closed")
	require.NoError(t, err)
	_, err = root.change(1, &proto.Make{Dir: closed, Name: "secret", Mode: proto.ModeRegular | 0o644})
	require.NoError(t, err)
	_, err = root.change(2, newFile("public"))
	require.NoError(t, err)
	told := map[proto.FileID][]string{}
	require.Eventually(t, func() bool {
		require.NoError(t, foe.call(wire.OpPing, &wire.Empty{}, &wire.Empty{}))
		for _, f := range foe.pushes {
			m, err := wire.DecodePush(f.head.Op, f.payload)
			require.NoError(t, err)
			c := m.(*wire.Changed)
			told[c.ID] = append(told[c.ID], c.Names...)
		}
		foe.pushes = nil
		return told[proto.RootID] != nil
	}, patience, 1)
	require.Equal(t, map[proto.FileID][]string{proto.RootID: {"public"}}, map[proto.FileID][]string{proto.RootID: told[proto.RootID]})
	require.Contains(t, told, closed, "that it changed is told")
	require.Empty(t, told[closed])
}

package serverd

import (
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"cagefs.dev/cage/remote/auth"
	"cagefs.dev/cage/remote/proto"
	"cagefs.dev/cage/remote/wire"
)

// writer is a session that has a file and its write lease.
func (r *rig) writer(name string) (p *peer, id proto.FileID, gen proto.Gen, seq proto.Seq) {
	r.t.Helper()
	p, _ = r.again(wire.HelloReq{Leases: true})
	made, err := p.change(1, newFile(name))
	require.NoError(r.t, err)
	var rep wire.AttrRep
	require.NoError(r.t, p.call(wire.OpOpen, &wire.OpenReq{ReqHeader: header(), ID: made.ID, Flags: wire.OpenWrite}, &rep))
	require.Equal(r.t, proto.WriteLease, rep.Attr.Lease.Mode)
	return p, made.ID, rep.Attr.Lease.Gen, 2
}

// write makes a change that was acknowledged under a lease.
func (p *peer) write(id proto.FileID, gen proto.Gen, seq proto.Seq) error {
	p.t.Helper()
	op := &proto.Write{ID: id, Off: uint64(seq), Data: []byte("x")}
	return p.call(wire.ChangeOpcode(op), &wire.ChangeReq{Seq: seq, Gen: gen, Acked: seq - 1, Ident: self, Op: op}, &wire.ChangeRep{})
}

// A client that does nothing but write is no silent one: its leases last.
func TestWritesCountForTheTerm(t *testing.T) {
	const term = time.Second
	r := serve(t, Options{Term: term})
	p, id, gen, seq := r.writer("f")
	for end := time.Now().Add(2 * term); time.Now().Before(end); seq++ {
		require.NoError(t, p.write(id, gen, seq))
	}
	q, _ := r.on()
	look := q.send(wire.OpGetAttr, &wire.IDReq{ReqHeader: header(), ID: id})
	for end := time.Now().Add(term / 2); time.Now().Before(end); seq++ { // it is asked what it has acknowledged, and takes its time
		require.NoError(t, p.write(id, gen, seq), "nobody has taken anything from it")
	}
	require.NotEmpty(t, p.pushes)
	m, err := wire.DecodePush(wire.OpPeek, p.pushes[len(p.pushes)-1].payload)
	require.NoError(t, err)
	require.NoError(t, p.call(wire.OpPeeked, &wire.PeekedReq{ID: id, Num: m.(*wire.Peek).Num, Seq: seq - 1}, &wire.Empty{}))
	f := q.reply()
	require.Equal(t, look, f.head.ID)
	require.False(t, f.head.IsError())
	require.NoError(t, p.write(id, gen, seq))
}

// Who may not have a file gets no lease of it either: others would have to wait for him.
func TestNoLeaseWithoutPermission(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("makes files of several users")
	}
	dir := t.TempDir()
	require.NoError(t, os.Chmod(dir, 0o755))
	require.NoError(t, os.Mkdir(filepath.Join(dir, "closed"), 0o700))
	for _, name := range []string{"mine", "closed/file"} {
		require.NoError(t, os.WriteFile(filepath.Join(dir, name), []byte("data"), 0o600))
	}
	r, _ := serveDir(t, dir, Options{})
	root, _ := r.again(wire.HelloReq{Leases: true})
	foe, _ := r.with(r.stranger("foe", auth.ClientKey{}), wire.HelloReq{Leases: true})
	for _, name := range []string{"mine", "closed/file"} {
		id, err := root.resolve(name)
		require.NoError(t, err)
		require.Error(t, foe.call(wire.OpOpen, &wire.OpenReq{ReqHeader: header(), ID: id, Flags: wire.OpenWrite}, &wire.AttrRep{}))
		if name != "mine" { // whose attributes everybody may see
			require.Error(t, foe.call(wire.OpGetAttr, &wire.IDReq{ReqHeader: header(), ID: id}, &wire.AttrRep{}))
		}
		var rep wire.AttrRep
		require.NoError(t, root.call(wire.OpOpen, &wire.OpenReq{ReqHeader: header(), ID: id, Flags: wire.OpenWrite}, &rep))
		require.Equal(t, proto.WriteLease, rep.Attr.Lease.Mode, "nobody else has one of %s", name)
	}
}

// Two sessions whose logs each hold a write under a lease that the other waits for
// get on: what waits goes beside the logs, and the logs go on meanwhile.
func TestTwoLogsInACycle(t *testing.T) {
	r := serve(t, Options{})
	a, x, genX, seqA := r.writer("x")
	b, y, genY, seqB := r.writer("y")
	want := func(p *peer, id proto.FileID) uint64 {
		return p.send(wire.OpAcquire, &wire.AcquireReq{Wants: []proto.Want{{ID: id, Mode: proto.WriteLease}}})
	}
	wantY, wantX := want(a, y), want(b, x)
	recalled := func(p *peer, id proto.FileID) {
		for {
			f, err := p.next()
			require.NoError(t, err)
			m, err := wire.DecodePush(f.head.Op, f.payload)
			require.NoError(t, err)
			if m, ok := m.(*wire.Recall); ok {
				require.Equal(t, id, m.ID)
				return
			}
		}
	}
	recalled(a, x)
	recalled(b, y)
	// Both have written under the lease that is recalled, and give it back behind that.
	for _, w := range []struct {
		p   *peer
		id  proto.FileID
		gen proto.Gen
		seq proto.Seq
	}{{a, x, genX, seqA}, {b, y, genY, seqB}} {
		w.p.send(wire.OpReturn, &wire.ReturnReq{ID: w.id, Gen: w.gen, Seq: w.seq})
		op := &proto.Write{ID: w.id, Data: []byte("logged")}
		w.p.send(wire.ChangeOpcode(op), &wire.ChangeReq{Seq: w.seq, Gen: w.gen, Acked: w.seq - 1, Ident: self, Op: op})
	}
	for p, wanted := range map[*peer]uint64{a: wantY, b: wantX} {
		got := map[wire.Opcode]bool{}
		for range 3 {
			f := p.reply()
			require.False(t, f.head.IsError(), "%v", f.head.Op)
			require.True(t, f.head.Op != wire.OpAcquire || f.head.ID == wanted)
			got[f.head.Op] = true
		}
		require.True(t, got[wire.OpAcquire] && got[wire.OpReturn], "%v", got)
	}
}

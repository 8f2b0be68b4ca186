package serverd

import (
	"testing"
	"time"

	"github.com/stretchr/testify/require"

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

package serverd

import (
	"fmt"
	"slices"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"cagefs.dev/cage/remote/auth"
	"cagefs.dev/cage/remote/proto"
	"cagefs.dev/cage/remote/wire"
)

// localUser admits the key of a user of this machine, somebody@here.
func (r *rig) localUser() *auth.Keyring {
	keys := r.stranger("somebody@here", auth.ClientKey{})
	list, err := r.o.State.Clients()
	require.NoError(r.t, err)
	key := list[slices.IndexFunc(list, func(k auth.ClientKey) bool { return k.Name == "somebody@here" })]
	uid := uint32(4321)
	key.LocalUID = &uid
	require.NoError(r.t, r.o.State.Admit(key))
	return keys
}

// A client that comes again and again, under a new name each time, and changes
// nothing grows neither the log nor the journal's list of names beyond a bound.
func TestComingAndGoingLeavesNoTrace(t *testing.T) {
	r := serve(t, Options{})
	keys := r.localUser()
	j := r.o.Exports[0].Journal
	comeAndGo := func(n int, from string) (names map[string]bool) {
		names = map[string]bool{}
		for i := range n {
			p, rep := r.with(keys, wire.HelloReq{Client: fmt.Sprint(from, i)})
			names[r.lookupSession(rep.Session).name] = true
			_, err := p.change(1, &proto.Write{ID: proto.RootID, Data: []byte("x")})
			require.Error(t, err)
			require.NoError(t, p.call(wire.OpBye, &wire.Empty{}, &wire.Empty{}))
			p.tls.NetConn().Close()
		}
		return names
	}
	names := comeAndGo(briskSessions+10, "box")
	require.Len(t, names, maxHostNames+1)
	require.True(t, names["box0"] && names["somebody@here"])
	root, _ := r.on()
	seq := proto.Seq(0)
	mark := func() proto.LSN { // the number of a new record
		seq++
		res, err := root.change(seq, &proto.Label{Name: fmt.Sprint("mark", seq)})
		require.NoError(t, err)
		return res.LSN
	}
	last, began := mark(), time.Now()
	require.Len(t, comeAndGo(50, "other"), 1)
	allowed := 2 * (1 + time.Since(began)/sessionEvery) // sessions, with their ends
	require.LessOrEqual(t, mark()-last-1, proto.LSN(allowed))
	rep, err := j.Verify(t.Context(), true)
	require.NoError(t, err)
	require.Empty(t, rep.Problems)

	p, hello := r.with(keys, wire.HelloReq{Client: "box0"}) // what it may change is recorded as ever
	require.Equal(t, "box0", r.lookupSession(hello.Session).name)
	last = mark()
	res, err := p.change(1, &proto.Label{Name: "label"})
	require.NoError(t, err)
	require.Equal(t, last+2, res.LSN, "its session, and the label")
}

func TestSessionsRecordedAtOnce(t *testing.T) {
	s := &Server{traces: map[auth.Fingerprint]*trace{}}
	now := time.Now()
	took := func() (n int) {
		for s.mayRecord("a", now) {
			n++
		}
		return n
	}
	require.Equal(t, briskSessions, took())
	now = now.Add(3*sessionEvery + time.Second)
	require.Equal(t, 3, took())
	require.True(t, s.mayRecord("b", now), "another client")
	now = now.Add(time.Hour)
	require.Equal(t, briskSessions, took())
}

// A user of this machine may say from which host it comes, and not that it is somebody else.
func TestNamesOfOthersAreTheirs(t *testing.T) {
	r := serve(t, Options{})
	r.stranger("laptop", auth.ClientKey{})
	keys := r.localUser()
	for said, name := range map[string]string{"laptop": "somebody@here", "local": "somebody@here", "somebody@here": "somebody@here", "host": "host"} {
		_, rep := r.with(keys, wire.HelloReq{Client: said})
		require.Equal(t, name, r.lookupSession(rep.Session).name, said)
	}
}

// When a journal has many names, those that were invited get theirs all the same.
func TestManyNames(t *testing.T) {
	r := serve(t, Options{})
	j := r.o.Exports[0].Journal
	for i := range maxNames {
		_, err := j.Client(fmt.Sprint("client", i))
		require.NoError(t, err)
	}
	local := r.localUser()
	for said, name := range map[string]string{"client7": "client7", "new": "somebody@here"} {
		_, rep := r.with(local, wire.HelloReq{Client: said})
		require.Equal(t, name, r.lookupSession(rep.Session).name)
	}
	_, rep := r.with(r.stranger("laptop", auth.ClientKey{}), wire.HelloReq{})
	require.Equal(t, "laptop", r.lookupSession(rep.Session).name)
}

// One client reads history in a few requests at a time, whatever it asks for: others,
// and its own ordinary requests, do not wait for them.
func TestLongRequestsTakeTurns(t *testing.T) {
	r := serve(t, Options{})
	keys := r.stranger("foe", auth.ClientKey{})
	foe, rep := r.with(keys, wire.HelloReq{})
	res, err := foe.change(1, &proto.Label{Name: "then"})
	require.NoError(t, err)
	r.mu.Lock()
	purse := r.purses[r.sessions[rep.Session].key.Fingerprint]
	r.mu.Unlock()
	for range maxLong {
		require.NoError(t, purse.takeLong(t.Context()))
	}
	past := header()
	past.At = res.LSN
	for _, ask := range [][]byte{
		wire.AppendFrame(nil, wire.Request(wire.OpLog, 1001), &wire.LogReq{Ident: self, Limit: 10}),
		wire.AppendFrame(nil, wire.Request(wire.OpGetAttr, 1002), &wire.IDReq{ReqHeader: past, ID: proto.RootID}),
	} {
		_, err = foe.tls.Write(ask)
		require.NoError(t, err)
	}
	_, err = foe.tls.Write(wire.AppendFrame(nil, wire.Request(wire.OpGetAttr, 1003), &wire.IDReq{ReqHeader: header(), ID: proto.RootID}))
	require.NoError(t, err)
	require.EqualValues(t, 1003, foe.reply().head.ID, "the present does not wait")
	root, _ := r.on()
	require.NoError(t, root.call(wire.OpLog, &wire.LogReq{Ident: self, Limit: 10}, &wire.LogRep{}), "nor does anybody else")
	purse.giveLong()
	answered := map[uint64]bool{}
	for range 2 {
		answered[foe.reply().head.ID] = true
	}
	require.Equal(t, map[uint64]bool{1001: true, 1002: true}, answered, "one after the other")
	for range maxLong - 1 {
		purse.giveLong()
	}
	require.Empty(t, purse.long)
}

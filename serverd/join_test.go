package serverd

import (
	"bufio"
	"fmt"
	"io"
	"net"
	"path/filepath"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"cagefs.dev/cage/remote/auth"
	"cagefs.dev/cage/remote/proto"
	"cagefs.dev/cage/remote/status"
	"cagefs.dev/cage/remote/wire"
)

// invite opens an invitation and returns its code.
func (r *rig) invite(c auth.ClientKey) auth.Code {
	r.t.Helper()
	secret, err := r.state.Invite(c, time.Now(), time.Hour)
	require.NoError(r.t, err)
	return auth.Code{Addresses: []string{r.Addr().String()}, Server: r.state.Fingerprint(), Secret: secret}
}

// joiner connects, up to and with the preamble, as one who is going to join.
func (r *rig) joiner(keys *auth.Keyring, code auth.Code) (*peer, *auth.Joining) {
	r.t.Helper()
	j, err := keys.Join(code)
	require.NoError(r.t, err)
	r.t.Cleanup(func() { j.Close() })
	raw, err := net.Dial("tcp", r.Addr().String())
	require.NoError(r.t, err)
	r.t.Cleanup(func() { raw.Close() })
	raw.SetDeadline(time.Now().Add(patience))
	c := j.Client(raw)
	require.NoError(r.t, c.Handshake())
	p := &peer{t: r.t, rig: r, tls: c, br: bufio.NewReader(c)}
	_, err = wire.Greet(struct {
		io.Reader
		io.Writer
	}{p.br, c})
	require.NoError(r.t, err)
	return p, j
}

// join joins with a code and returns the answer.
func (r *rig) join(keys *auth.Keyring, code auth.Code) (wire.JoinRep, error) {
	r.t.Helper()
	p, j := r.joiner(keys, code)
	var rep wire.JoinRep
	err := p.call(wire.OpJoin, &wire.JoinReq{Version: wire.Version, Client: "tester", Secret: code.Secret}, &rep)
	p.gone()
	if err == nil {
		require.NoError(r.t, j.Finish(rep.Name))
	}
	return rep, err
}

func newKeyring(t *testing.T) *auth.Keyring {
	return auth.OpenKeyring(filepath.Join(t.TempDir(), "cage"))
}

func TestJoinThenMount(t *testing.T) {
	r := serve(t, Options{})
	keys := newKeyring(t)
	rep, err := r.join(keys, r.invite(auth.ClientKey{Name: "laptop", ReadOnly: true, Exports: []string{"x", "y"}}))
	require.NoError(t, err)
	require.Equal(t, wire.JoinRep{Version: wire.Version, Software: "test", Name: "laptop", ReadOnly: true, Exports: []string{"x"}}, rep)

	p, err := r.tryDial(keys)
	require.NoError(t, err)
	hello, err := p.hello(wire.HelloReq{Export: "x"})
	require.NoError(t, err)
	require.True(t, hello.ReadOnly)
	require.False(t, hello.Trusted)
	_, err = p.change(1, newFile("a"))
	require.Equal(t, status.ReadOnly, codeOf(err))
}

func TestInvitedToOtherExportsOnly(t *testing.T) {
	r := serve(t, Options{})
	keys := newKeyring(t)
	rep, err := r.join(keys, r.invite(auth.ClientKey{Name: "laptop", Exports: []string{"y"}}))
	require.NoError(t, err)
	require.Empty(t, rep.Exports)
	p, err := r.tryDial(keys)
	require.NoError(t, err)
	_, err = p.hello(wire.HelloReq{Export: "x"})
	require.Equal(t, status.UnknownExport, codeOf(err), "as if it did not exist")
}

func TestJoinRefused(t *testing.T) {
	r := start(t, Options{})
	code := r.invite(auth.ClientKey{Name: "laptop"})
	wrong := code
	wrong.Secret = make([]byte, len(code.Secret))
	_, err := r.join(newKeyring(t), wrong)
	require.Equal(t, status.WrongKey, codeOf(err))
	_, err = r.join(newKeyring(t), code)
	require.NoError(t, err)
	_, err = r.join(newKeyring(t), code)
	require.Equal(t, status.WrongKey, codeOf(err))
	require.ErrorContains(t, err, "used already")
	p, _ := r.joiner(newKeyring(t), code)
	err = p.call(wire.OpJoin, &wire.JoinReq{Version: wire.Version + 1}, &wire.JoinRep{})
	require.Equal(t, status.Version, codeOf(err))
}

// Who is not admitted can do nothing but join, and whoever is cannot join there.
func TestJoinConnectionIsForJoiningOnly(t *testing.T) {
	r := serve(t, Options{})
	code := r.invite(auth.ClientKey{Name: "laptop"})
	for _, op := range []wire.Opcode{wire.OpHello, wire.OpAttach, wire.OpExports, wire.OpPing, wire.OpRead} {
		p, _ := r.joiner(newKeyring(t), code)
		p.send(op, wire.Table[op].NewRequest())
		p.gone()
	}
	p, _ := r.joiner(newKeyring(t), code)
	p.send(wire.OpJoin, &wire.JoinReq{Version: wire.Version, Secret: make([]byte, 16)})
	p.send(wire.OpJoin, &wire.JoinReq{Version: wire.Version, Secret: code.Secret})
	f := p.reply()
	require.True(t, f.head.IsError())
	p.gone() // one attempt a connection
	list, err := r.state.Clients()
	require.NoError(t, err)
	require.Len(t, list, 1, "nobody has joined")

	q := r.dial()
	q.send(wire.OpJoin, &wire.JoinReq{Version: wire.Version, Secret: code.Secret})
	q.gone()
	q, _ = r.on()
	q.send(wire.OpJoin, &wire.JoinReq{Version: wire.Version, Secret: code.Secret})
	require.True(t, q.reply().head.IsError())
	q.gone()
}

func TestWrongCodesAreBounded(t *testing.T) {
	var g guesses
	now := time.Now()
	for i := range maxGuesses {
		require.True(t, g.mayTry("a", now), i)
		g.wrong("a", now)
	}
	require.False(t, g.mayTry("a", now))
	require.True(t, g.mayTry("b", now), "another host's guesses")
	require.True(t, g.mayTry("a", now.Add(guessPause)))
	g.wrong("a", now.Add(guessPause))
	require.False(t, g.mayTry("a", now.Add(guessPause)))
	for i := range maxGuessers {
		g.wrong(fmt.Sprint(i), now)
	}
	require.False(t, g.mayTry("new", now), "memory is bounded")
	require.True(t, g.mayTry("new", now.Add(time.Hour)))

	r := start(t, Options{})
	code := r.invite(auth.ClientKey{Name: "laptop"})
	wrong := code
	wrong.Secret = make([]byte, 16)
	for range maxGuesses {
		_, err := r.join(newKeyring(t), wrong)
		require.Equal(t, status.WrongKey, codeOf(err))
	}
	_, err := r.join(newKeyring(t), code)
	require.Equal(t, status.Busy, codeOf(err))
}

// joined is a client of its own with a session and an open file.
func (r *rig) joined(name string) (p *peer, keys *auth.Keyring, hello wire.HelloRep, file proto.FileID) {
	r.t.Helper()
	keys = newKeyring(r.t)
	_, err := r.join(keys, r.invite(auth.ClientKey{Name: name, TrustIDs: true}))
	require.NoError(r.t, err)
	p, err = r.tryDial(keys)
	require.NoError(r.t, err)
	hello, err = p.hello(wire.HelloReq{Export: "x"})
	require.NoError(r.t, err)
	made, err := p.change(1, newFile(name))
	require.NoError(r.t, err)
	require.NoError(r.t, p.call(wire.OpOpen, &wire.OpenReq{ReqHeader: header(), ID: made.ID, Flags: wire.OpenRead}, &wire.AttrRep{}))
	return p, keys, hello, made.ID
}

func TestRevokeEndsSessionsAtOnce(t *testing.T) {
	r := serve(t, Options{})
	p, keys, hello, file := r.joined("laptop")
	data := r.attach(keys, hello.Session)
	lost, _, _, _ := r.joined("phone")
	lost.tls.NetConn().Close()
	q, qkeys, qhello, _ := r.joined("other")
	require.Eventually(t, func() bool { return r.Status() != nil && len(r.connections()) == 3 }, patience, time.Millisecond)

	for _, name := range []string{"laptop", "phone"} {
		_, _, err := r.state.Revoke(name)
		require.NoError(t, err)
	}
	require.Equal(t, 2, r.DropRevoked(), "with and without connection")
	p.gone()
	data.gone()
	st := r.Status()
	require.Len(t, st, 1)
	require.Equal(t, "other", st[0].Client)
	j := r.o.Exports[0].Journal
	require.Equal(t, []proto.SessionID{qhello.Session}, j.Sessions(), "closed in the journal")
	require.NoError(t, j.Hold(file), "the file is there")
	j.Unhold(file, 1)
	_, err := r.tryDial(keys)
	require.Equal(t, status.WrongKey, codeOf(err), "cannot come back")
	require.NoError(t, q.call(wire.OpPing, &wire.Empty{}, &wire.Empty{}))

	// Joined again, under the same name, it is another client.
	again := newKeyring(t)
	_, err = r.join(again, r.invite(auth.ClientKey{Name: "laptop"}))
	require.NoError(t, err)
	p, err = r.tryDial(again)
	require.NoError(t, err)
	rep, err := p.hello(wire.HelloReq{Export: "x", Session: hello.Session})
	require.NoError(t, err)
	require.False(t, rep.Resumed)

	// A namesake that joins ends the sessions of the one before it.
	_, err = r.join(newKeyring(t), r.invite(auth.ClientKey{Name: "other"}))
	require.NoError(t, err)
	q.gone()
	_, err = r.tryDial(qkeys)
	require.Equal(t, status.WrongKey, codeOf(err))
}

// attach opens a data connection.
func (r *rig) attach(keys *auth.Keyring, session proto.SessionID) *peer {
	r.t.Helper()
	p, err := r.tryDial(keys)
	require.NoError(r.t, err)
	require.NoError(r.t, p.call(wire.OpAttach, &wire.AttachReq{Version: wire.Version, Session: session}, &wire.Empty{}))
	return p
}

func TestSeenIsNoted(t *testing.T) {
	r := serve(t, Options{})
	_, _, _, _ = r.joined("laptop")
	r.halt()
	seen, err := r.state.Seen()
	require.NoError(t, err)
	require.Len(t, seen, 1)
}

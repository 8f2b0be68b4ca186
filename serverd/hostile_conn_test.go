package serverd

import (
	"context"
	"fmt"
	"net"
	"runtime"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"cagefs.dev/cage/remote/auth"
	"cagefs.dev/cage/remote/proto"
	"cagefs.dev/cage/remote/status"
	"cagefs.dev/cage/remote/wire"
)

// drip sends bytes one at a time until the other end has enough.
func drip(c net.Conn, b []byte) {
	for i := range b {
		if _, err := c.Write(b[i : i+1]); err != nil {
			return
		}
		time.Sleep(20 * time.Millisecond)
	}
}

// slowConn writes like drip.
type slowConn struct{ net.Conn }

func (c slowConn) Write(p []byte) (int, error) {
	drip(c.Conn, p)
	return len(p), nil
}

// Connections that never become clients, or clients that say next to nothing,
// keep nobody out and leave nothing behind.
func TestConnectionsThatLeadNowhere(t *testing.T) {
	rounds, _ := storms(t, 1, 20)
	r := serve(t, Options{Handshake: 3 * time.Second, Stall: time.Second, Idle: time.Second})
	keys := r.stranger("foe", auth.ClientKey{})
	root, _ := r.on()
	big, err := root.change(1, newFile("big"))
	require.NoError(t, err)
	_, err = root.change(2, &proto.Write{ID: big.ID, Data: make([]byte, proto.MaxIO)})
	require.NoError(t, err)
	require.NoError(t, root.call(wire.OpBye, &wire.Empty{}, &wire.Empty{}))
	root.tls.NetConn().Close()
	require.Eventually(t, func() bool { return len(r.connections()) == 0 }, patience, time.Millisecond)
	before := runtime.NumGoroutine()
	connect := func() net.Conn {
		from := net.Dialer{LocalAddr: &net.TCPAddr{IP: net.IPv4(127, 0, 0, 2)}}
		raw, err := from.Dial("tcp", r.Addr().String())
		if err != nil {
			return nil
		}
		raw.SetDeadline(time.Now().Add(patience))
		return raw
	}
	ends := func(raw net.Conn) { // what comes is not looked at, only that it ends
		defer raw.Close()
		b := make([]byte, 4096)
		for {
			if _, err := raw.Read(b); err != nil {
				return
			}
		}
	}
	hello := wire.AppendFrame(nil, wire.Request(wire.OpHello, 1), &wire.HelloReq{Version: wire.Version, Export: "x"})
	record := []byte{22, 3, 1, 2, 0, 1, 0, 1, 0xfc, 3, 3} // the beginning of a TLS hello
	kinds := map[string]func(net.Conn){
		"silent":           func(net.Conn) {},
		"garbage":          func(raw net.Conn) { raw.Write([]byte("GET / HTTP/1.1\r\n\r\n")) },
		"half a hello":     func(raw net.Conn) { raw.Write(record) },
		"slow TLS":         func(raw net.Conn) { keys.Client(slowConn{raw}).Handshake() },
		"no preamble":      func(raw net.Conn) { keys.Client(raw).Handshake() },
		"another preamble": func(raw net.Conn) { keys.Client(raw).Write(make([]byte, 100)) },
		"slow hello": func(raw net.Conn) {
			c := keys.Client(raw)
			wire.Greet(c)
			drip(c, hello)
		},
		"slow requests": func(raw net.Conn) {
			c := keys.Client(raw)
			wire.Greet(c)
			c.Write(hello)
			drip(c, slices.Repeat([]byte{0}, 100))
		},
		"does not read": func(raw net.Conn) {
			raw.(*net.TCPConn).SetReadBuffer(4096)
			c := keys.Client(raw)
			wire.Greet(c)
			c.Write(hello)
			ask := wire.AppendFrame(nil, wire.Request(wire.OpRead, 2), &wire.ReadReq{ID: big.ID, Len: proto.MaxIO})
			for {
				if _, err := c.Write(slices.Repeat(ask, 100)); err != nil {
					return
				}
			}
		},
	}
	var wg sync.WaitGroup
	stop := make(chan struct{})
	var tries, worst = 0, time.Duration(0)
	honest := make(chan struct{})
	go func() { // somebody comes and goes all the while
		defer close(honest)
		for {
			select {
			case <-stop:
				return
			default:
			}
			began := time.Now()
			p, err := r.tryDial(r.keys)
			if err == nil {
				_, err = p.hello(wire.HelloReq{Export: "x"})
				p.call(wire.OpBye, &wire.Empty{}, &wire.Empty{})
				p.tls.NetConn().Close()
			}
			if err != nil {
				t.Errorf("kept out: %v", err)
			}
			tries, worst = tries+1, max(worst, time.Since(began))
			time.Sleep(10 * time.Millisecond)
		}
	}()
	for range rounds {
		for name, f := range kinds {
			n := 4
			if name == "silent" {
				n = 200
			}
			for range n {
				wg.Go(func() {
					raw := connect()
					if raw == nil {
						return
					}
					f(raw)
					ends(raw)
				})
			}
		}
		wg.Wait()
	}
	close(stop)
	<-honest
	t.Logf("an honest client came in %d times, after %v at most", tries, worst)
	require.Positive(t, tries)
	require.Eventually(t, func() bool {
		r.mu.Lock()
		defer r.mu.Unlock()
		return len(r.conns) == 0 && len(r.pending) == 0 && len(r.purses) == 0
	}, patience, 10*time.Millisecond)
	require.Eventually(t, func() bool { return runtime.NumGoroutine() <= before+2 }, patience, 10*time.Millisecond)
}

// One client takes its share of connections and sessions, and no more.
func TestClientLimits(t *testing.T) {
	r := serve(t, Options{})
	keys := r.stranger("foe", auth.ClientKey{})
	foe, _ := r.with(keys, wire.HelloReq{})
	fp := r.lookupSession(foe.session(r)).key.Fingerprint
	r.mu.Lock()
	r.purses[fp].conns = maxClientConns
	r.mu.Unlock()
	p, err := r.tryDial(keys)
	require.NoError(t, err)
	_, err = p.hello(wire.HelloReq{Export: "x"})
	require.Equal(t, status.Busy, codeOf(err))
	p.gone()
	honest, _ := r.on()
	require.NoError(t, honest.call(wire.OpPing, &wire.Empty{}, &wire.Empty{}))
	r.mu.Lock()
	r.purses[fp].conns = 1
	r.mu.Unlock()

	lost, kept := r.again(wire.HelloReq{}) // an honest session that is without connection for longest
	lost.tls.NetConn().Close()
	require.Eventually(t, func() bool { return r.lookupSession(kept.Session).idle() > 0 }, patience, time.Millisecond)
	var first proto.SessionID
	for i := range maxClientSessions + 5 {
		p, rep := r.with(keys, wire.HelloReq{})
		p.tls.NetConn().Close()
		require.Eventually(t, func() bool { return r.lookupSession(rep.Session).current() == nil }, patience, time.Millisecond)
		if i == 0 {
			first = rep.Session
		}
	}
	mine := 0
	for _, st := range r.Status() {
		if st.Key.Fingerprint == fp {
			mine++
		}
	}
	require.Equal(t, maxClientSessions, mine)
	require.Nil(t, r.lookupSession(first), "its own oldest made room")
	require.NotNil(t, r.lookupSession(kept.Session))
	require.NoError(t, foe.call(wire.OpPing, &wire.Empty{}, &wire.Empty{}), "a session with a connection stays")
}

func TestPurse(t *testing.T) {
	p := newPurse(100)
	ctx, cancel := context.WithCancel(t.Context())
	a, b := newGate(10, 1000), newGate(10, 1000)
	a.purse, b.purse = p, p
	require.NoError(t, a.enter(ctx, 80))
	entered := make(chan error, 1)
	go func() { entered <- b.enter(ctx, 30) }()
	select {
	case <-entered:
		t.Fatal("more than there is")
	case <-time.After(20 * time.Millisecond):
	}
	a.leave(80)
	require.NoError(t, <-entered)
	require.NoError(t, a.enter(ctx, 70))
	go func() { entered <- b.enter(ctx, 500) }()
	cancel()
	require.Error(t, <-entered)
	require.EqualValues(t, 30, b.bytes, "who gave up holds nothing")
	a.shut()
	b.shut()
	require.Zero(t, p.used)
	require.NoError(t, a.enter(t.Context(), 500), "alone")
}

// Somebody else's session is nobody's, whatever connection asks for it.
func TestStolenSessionNumber(t *testing.T) {
	r := serve(t, Options{})
	victim, hello := r.with(r.stranger("victim", auth.ClientKey{}), wire.HelloReq{})
	keys := r.stranger("thief", auth.ClientKey{})
	for i := range 5 {
		thief, rep := r.with(keys, wire.HelloReq{Session: hello.Session, NextSeq: 1})
		require.False(t, rep.Resumed)
		require.NotEqual(t, hello.Session, rep.Session)
		data, err := r.tryDial(keys)
		require.NoError(t, err)
		err = data.call(wire.OpAttach, &wire.AttachReq{Version: wire.Version, Session: hello.Session}, &wire.Empty{})
		require.Equal(t, status.LostSession, codeOf(err))
		data.gone()
		_, err = victim.change(proto.Seq(i+1), &proto.Label{Name: fmt.Sprint("l", i)})
		require.NoError(t, err, "goes on undisturbed")
		require.NoError(t, thief.call(wire.OpBye, &wire.Empty{}, &wire.Empty{}))
	}
	require.Equal(t, hello.Session, victim.session(r))
}

// What a client without trust says about who it is counts for nothing.
func TestForgedIdentity(t *testing.T) {
	g := newGround(t, Options{})
	before := g.picture()
	foe, _ := g.with(g.stranger("foe", auth.ClientKey{Exports: []string{"x"}}), wire.HelloReq{})
	free, mine := g.files["free"], g.files["mine"]
	seq := proto.Seq(0)
	for what, c := range map[string]struct {
		op   proto.Op
		code status.Code
	}{
		"character device": {&proto.Make{Dir: free, Name: "c", Mode: proto.ModeChar | 0o666, Rdev: 1<<8 | 5}, status.NotOwner},
		"block device":     {&proto.Make{Dir: free, Name: "b", Mode: proto.ModeBlock | 0o666, Rdev: 7 << 8}, status.NotOwner},
		"chown away":       {&proto.SetAttr{ID: mine, Mask: proto.SetUID, UID: 0}, status.NotOwner},
		"chgrp root":       {&proto.SetAttr{ID: mine, Mask: proto.SetGID, GID: 0}, status.NotOwner},
		"setuid of others": {&proto.SetAttr{ID: g.files["public/file"], Mask: proto.SetMode, Mode: 0o4755}, status.NotOwner},
		"setuid":           {&proto.SetAttr{ID: mine, Mask: proto.SetMode, Mode: 0o4755}, status.NotOwner},
		"setgid":           {&proto.SetAttr{ID: mine, Mask: proto.SetMode, Mode: 0o2755}, status.NotOwner},
		"new with setuid":  {&proto.Make{Dir: free, Name: "u", Mode: proto.ModeRegular | 0o4755}, status.NotOwner},
		"new with setgid":  {&proto.Make{Dir: free, Name: "g", Mode: proto.ModeRegular | 0o2755}, status.NotOwner},
		"times of others":  {&proto.SetAttr{ID: g.files["public/file"], Mask: proto.SetMtime}, status.NotOwner},
		"write of others":  {&proto.Write{ID: g.files["secret"], Data: []byte("x")}, status.Access},
		"trusted xattr":    {&proto.SetXattr{ID: mine, Name: "trusted.x"}, status.NotOwner},
		"own trusted list": {&proto.RemoveXattr{ID: mine, Name: "trusted.x"}, status.NotOwner},
		"security label":   {&proto.SetXattr{ID: mine, Name: "security.selinux", Value: []byte("x")}, status.NotOwner},
		"capability":       {&proto.SetXattr{ID: mine, Name: "security.capability", Value: make([]byte, 20)}, status.NotOwner},
		"link of others":   {&proto.Link{ID: g.files["secret"], Dir: free, Name: "l"}, status.NotOwner},
		"journal":          {&proto.Make{Dir: proto.RootID, Name: ".cage", Mode: proto.ModeDir | 0o777}, status.NotOwner},
		"rollback":         {&proto.Rollback{Paths: []string{"mine"}, To: 1}, status.NotOwner},
		"dry rollback":     {&proto.Rollback{Paths: []string{""}, To: 1, DryRun: true}, status.NotOwner},
		"undo":             {&proto.Undo{LSNs: []proto.LSN{5}, DryRun: true}, status.NotOwner},
	} {
		seq++
		_, err := foe.change(seq, c.op) // as root, it says
		require.Equal(t, c.code, codeOf(err), what)
	}
	made, err := foe.change(seq+1, &proto.Make{Dir: free, Name: "f", Mode: proto.ModeRegular | 0o755})
	require.NoError(t, err)
	a, err := g.o.Exports[0].Journal.Attr(made.ID)
	require.NoError(t, err)
	require.EqualValues(t, nobody, a.UID)
	require.Equal(t, status.NotOwner, codeOf(foe.call(wire.OpVerify, &wire.VerifyReq{Full: true}, &wire.VerifyRep{})))
	var log wire.LogRep
	require.NoError(t, foe.call(wire.OpLog, &wire.LogReq{Ident: self, Limit: 1000}, &log))
	require.NotEmpty(t, log.Entries)
	for _, e := range log.Entries {
		require.EqualValues(t, nobody, e.UID)
	}
	require.Equal(t, status.UnknownExport, func() status.Code {
		p, err := g.tryDial(g.stranger("other", auth.ClientKey{Exports: []string{"x"}}))
		require.NoError(t, err)
		_, err = p.hello(wire.HelloReq{Export: "y"})
		return codeOf(err)
	}())
	require.Equal(t, before, g.picture())
}

// Whoever may only read changes nothing, whatever he asks for.
func TestReadOnlyRefusesEveryChange(t *testing.T) {
	r := serve(t, Options{})
	keys := r.stranger("reader", auth.ClientKey{ReadOnly: true, TrustIDs: true})
	last := r.o.Exports[0].Journal.Last()
	for what, p := range map[string]*peer{
		"key":   func() *peer { p, _ := r.with(keys, wire.HelloReq{}); return p }(),
		"mount": func() *peer { p, _ := r.again(wire.HelloReq{ReadOnly: true}); return p }(),
	} {
		seq := proto.Seq(0)
		for op, spec := range wire.Table {
			if spec.Change == 0 || spec.Change == proto.OpSync {
				continue
			}
			seq++
			m := spec.NewRequest().(*wire.ChangeReq)
			m.Seq, m.Ident = seq, self
			require.Equal(t, status.ReadOnly, codeOf(p.call(op, m, &wire.ChangeRep{})), "%s %s", what, op)
		}
		err := p.call(wire.OpOpen, &wire.OpenReq{ReqHeader: header(), ID: proto.RootID, Flags: wire.OpenWrite}, &wire.AttrRep{})
		require.Error(t, err)
	}
	for lsn := last + 1; lsn <= r.o.Exports[0].Journal.Last(); lsn++ {
		rec, err := r.o.Exports[0].Journal.Record(lsn, false)
		require.NoError(t, err)
		require.Zero(t, rec.Seq, "no change: %+v", rec)
	}
}

package serverd

import (
	"bufio"
	"context"
	"crypto/tls"
	"errors"
	"io"
	"net"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/rs/zerolog"
	"github.com/stretchr/testify/require"

	"cagefs.dev/cage/remote/auth"
	"cagefs.dev/cage/remote/status"
	"cagefs.dev/cage/remote/wire"
)

// patience is how long a test waits for what must happen.
const patience = 10 * time.Second

// rig is a server under test, and the keys to it.
type rig struct {
	*Server
	t        *testing.T
	state    *auth.ServerState
	stateDir string
	keys     *auth.Keyring
	stop     context.CancelFunc
	ended    chan error
}

// start runs a server until the end of the test, which fails when Serve does
// not return then.
func start(t *testing.T, o Options) *rig {
	t.Helper()
	dir := t.TempDir()
	state, err := auth.OpenServerState(filepath.Join(dir, "state"))
	require.NoError(t, err)
	config := filepath.Join(dir, "config")
	require.NoError(t, state.AdmitLocal(config, uint32(os.Geteuid())))
	if o.State == nil {
		o.State = state
	}
	o.Software, o.Listen = "test", "127.0.0.1:0"
	if o.Log.GetLevel() == zerolog.TraceLevel || o.Log.GetLevel() == zerolog.Disabled { // none given
		o.Log = zerolog.New(testWriter{t}).Level(zerolog.WarnLevel)
	}
	s, err := Listen(o)
	require.NoError(t, err)
	ctx, cancel := context.WithCancel(context.Background())
	r := &rig{Server: s, t: t, state: o.State, stateDir: filepath.Join(dir, "state"), keys: auth.OpenKeyring(config), stop: cancel, ended: make(chan error, 1)}
	go func() { r.ended <- s.Serve(ctx) }()
	t.Cleanup(func() {
		r.halt()
		state.Close() // last of all: a test may give it to a second server
	})
	return r
}

// halt stops the server and waits for its end.
func (r *rig) halt() {
	r.t.Helper()
	r.stop()
	select {
	case err := <-r.ended:
		require.NoError(r.t, err)
		r.ended <- nil
	case <-time.After(patience):
		r.t.Fatal("the server does not stop")
	}
}

type testWriter struct{ t *testing.T }

func (w testWriter) Write(p []byte) (int, error) {
	w.t.Logf("%s", p)
	return len(p), nil
}

// peer is a client as bytes on a connection.
type peer struct {
	t      *testing.T
	rig    *rig
	tls    *tls.Conn
	br     *bufio.Reader
	id     uint64
	pushes []frame // that came while a reply was waited for
}

type frame struct {
	head    wire.Header
	payload []byte
}

// dial connects up to and with the preamble.
func (r *rig) dial() *peer {
	r.t.Helper()
	p, err := r.tryDial(r.keys)
	require.NoError(r.t, err)
	return p
}

func (r *rig) tryDial(keys *auth.Keyring) (*peer, error) {
	raw, err := net.Dial("tcp", r.Addr().String())
	if err != nil {
		return nil, err
	}
	r.t.Cleanup(func() { raw.Close() })
	raw.SetDeadline(time.Now().Add(patience))
	c := keys.Client(raw)
	if err := c.Handshake(); err != nil {
		return nil, err
	}
	p := &peer{t: r.t, rig: r, tls: c, br: bufio.NewReader(c)}
	_, err = wire.Greet(struct {
		io.Reader
		io.Writer
	}{p.br, c})
	return p, auth.Explain(err)
}

// send sends a request and returns its id.
func (p *peer) send(op wire.Opcode, m wire.Message) uint64 {
	p.t.Helper()
	p.id++
	_, err := p.tls.Write(wire.AppendFrame(nil, wire.Request(op, p.id), m))
	require.NoError(p.t, err)
	return p.id
}

// next reads a frame; err is what the connection ended with.
func (p *peer) next() (frame, error) {
	h, payload, err := wire.ReadFrame(p.br, wire.MaxFrame, nil)
	return frame{h, payload}, err
}

// reply reads frames up to a reply, and keeps the pushes before it.
func (p *peer) reply() frame {
	p.t.Helper()
	for {
		f, err := p.next()
		require.NoError(p.t, err)
		if !f.head.IsPush() {
			return f
		}
		p.pushes = append(p.pushes, f)
	}
}

// call sends a request and decodes the reply, which must be the next one.
func (p *peer) call(op wire.Opcode, m, rep wire.Message) error {
	p.t.Helper()
	id := p.send(op, m)
	f := p.reply()
	require.Equal(p.t, id, f.head.ID)
	require.Equal(p.t, op, f.head.Op)
	return wire.DecodeReply(f.head, f.payload, rep)
}

// hello says hello and returns the answer.
func (p *peer) hello(m wire.HelloReq) (wire.HelloRep, error) {
	p.t.Helper()
	if m.Version == 0 {
		m.Version = wire.Version
	}
	if m.Client == "" {
		m.Client = "tester"
	}
	var rep wire.HelloRep
	err := p.call(wire.OpHello, &m, &rep)
	return rep, err
}

// gone fails the test unless the connection ends.
func (p *peer) gone() {
	p.t.Helper()
	for {
		_, err := p.next()
		if err == nil {
			continue
		}
		require.False(p.t, errors.Is(err, os.ErrDeadlineExceeded), "the connection goes on")
		return
	}
}

func codeOf(err error) status.Code { return status.Of(err) }

// errTimeout is what a test's own deadline gives.
var errTimeout = os.ErrDeadlineExceeded

// revokeAll takes the list of admitted clients away.
func (r *rig) revokeAll() {
	r.t.Helper()
	require.NoError(r.t, os.Remove(filepath.Join(r.stateDir, "clients.json")))
}

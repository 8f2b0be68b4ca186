package remote

import (
	"bufio"
	"context"
	"crypto/tls"
	"fmt"
	"net"
	"os"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/rs/zerolog"
	"github.com/stretchr/testify/require"

	"cagefs.dev/cage/remote/auth"
	"cagefs.dev/cage/remote/proto"
	"cagefs.dev/cage/remote/simnet"
	"cagefs.dev/cage/remote/status"
	"cagefs.dev/cage/remote/wire"
)

// keys are a server's state and a keyring that it admits, made once.
type keys struct {
	state *auth.ServerState
	ring  *auth.Keyring
}

func newKeys(dir string) (keys, error) {
	state, err := auth.OpenServerState(dir + "/server")
	if err != nil {
		return keys{}, err
	}
	if err := state.AdmitLocal(dir+"/client", uint32(os.Geteuid())); err != nil {
		return keys{}, err
	}
	return keys{state, auth.OpenKeyring(dir + "/client")}, nil
}

var testKeys keys

func TestMain(m *testing.M) {
	dir, err := os.MkdirTemp("", "remote")
	if err == nil {
		testKeys, err = newKeys(dir)
	}
	if err != nil {
		panic(err)
	}
	code := m.Run()
	os.RemoveAll(dir)
	os.Exit(code)
}

// server is a small server: files are byte slices, every change is an applied
// operation of its session, and each repeated one gets the first result.
type server struct {
	t    testing.TB
	net  *simnet.Net
	tls  *tls.Config
	wg   sync.WaitGroup
	data int // data ports offered

	mu        sync.Mutex
	down      bool
	term      time.Duration // of leases; 0: there are none
	exports   []string
	listeners []net.Listener
	conns     []*serverConn
	sessions  map[proto.SessionID]*serverSession
	nextID    proto.SessionID
	files     map[proto.FileID][]byte
	stranded  map[proto.FileID][]byte // what is kept instead of being written
	hellos    []wire.HelloReq
	seen      []seen // requests after the hello, pings not
	// hold, called with mu, says whether a request is to get no answer.
	hold func(c *serverConn, h wire.Header) bool
	// fail, called with mu, is the error of an operation that is applied for the first time.
	fail func(op proto.Op) error

	lostLocks []uint32 // of who comes back

	// refuse, if not nil, is the answer to every hello.
	refuse error
	drip   time.Duration // between the bytes of what it sends; guarded by mu
	// instead, set before anybody connects, serves connections after the TLS handshake.
	instead func(net.Conn)
}

type serverSession struct {
	applied []string // texts of the operations, by number − 1
	results []result
	opens   map[proto.FileID]int
}

type result struct {
	rep wire.ChangeRep
	err error
}

// seen is a request that came.
type seen struct {
	op   wire.Opcode
	data bool // on a data connection
}

type serverConn struct {
	srv  *server
	raw  net.Conn
	tls  *tls.Conn
	sess *serverSession
	data bool
	wmu  sync.Mutex
}

const serverPort = 7400

func newServer(t testing.TB, n *simnet.Net, dataPorts int) *server {
	s := &server{
		t: t, net: n, tls: testKeys.state.TLS(), data: dataPorts, exports: []string{"home", "src"},
		sessions: map[proto.SessionID]*serverSession{}, files: map[proto.FileID][]byte{}, stranded: map[proto.FileID][]byte{}, nextID: 100,
	}
	s.start()
	return s
}

// start listens on the main port and the data ports.
func (s *server) start() {
	s.mu.Lock()
	s.down = false
	s.mu.Unlock()
	for i := range s.data + 1 {
		s.listen(serverPort + i)
	}
}

func (s *server) listen(port int) {
	l, err := s.net.Host("server").Listen(port)
	require.NoError(s.t, err)
	s.mu.Lock()
	s.listeners = append(s.listeners, l)
	s.mu.Unlock()
	s.wg.Go(func() {
		for {
			raw, err := l.Accept()
			if err != nil {
				return
			}
			c := &serverConn{srv: s, raw: raw, tls: tls.Server(raw, s.tls), data: port != serverPort}
			s.mu.Lock()
			if s.down {
				s.mu.Unlock()
				raw.Close()
				continue
			}
			s.conns = append(s.conns, c)
			s.mu.Unlock()
			s.wg.Go(func() {
				c.serve()
				raw.Close()
			})
		}
	})
}

// stop closes listeners and connections; sessions stay.
func (s *server) stop() {
	s.mu.Lock()
	s.down = true
	listeners, conns := s.listeners, s.conns
	s.listeners, s.conns = nil, nil
	s.mu.Unlock()
	for _, l := range listeners {
		l.Close()
	}
	for _, c := range conns {
		c.raw.(*simnet.Conn).Cut()
	}
	s.wg.Wait()
}

// forget makes the server lose all sessions.
func (s *server) forget() {
	s.mu.Lock()
	defer s.mu.Unlock()
	clear(s.sessions)
}

func (c *serverConn) serve() {
	if c.tls.Handshake() != nil {
		return
	}
	if c.srv.instead != nil {
		c.srv.instead(c.tls)
		return
	}
	if _, err := wire.Welcome(c.tls); err != nil {
		return
	}
	br := bufio.NewReader(c.tls)
	for first := true; ; first = false {
		h, payload, err := wire.ReadFrame(br, wire.MaxFrame, nil)
		if err != nil {
			return
		}
		m, err := wire.DecodeRequest(h.Op, payload)
		if err != nil {
			c.reply(h, nil, err)
			continue
		}
		if !c.handle(h, m) || first && c.sess == nil && h.Op != wire.OpHello {
			return
		}
	}
}

// handle answers a request, or ends the connection (false).
func (c *serverConn) handle(h wire.Header, m wire.Message) bool {
	s := c.srv
	s.mu.Lock()
	switch m := m.(type) {
	case *wire.HelloReq:
		rep, err := c.hello(m)
		s.mu.Unlock()
		return c.reply(h, rep, err) && err == nil
	case *wire.AttachReq:
		c.sess = s.sessions[m.Session]
		s.mu.Unlock()
		if c.sess == nil {
			c.reply(h, nil, status.LostSession)
			return false
		}
		return c.reply(h, &wire.Empty{}, nil)
	}
	if h.Op != wire.OpPing {
		s.seen = append(s.seen, seen{h.Op, c.data})
	}
	if s.hold != nil && s.hold(c, h) {
		s.mu.Unlock()
		return true
	}
	rep, err := c.answer(h, m)
	s.mu.Unlock()
	return c.reply(h, rep, err) && h.Op != wire.OpBye
}

func (c *serverConn) hello(m *wire.HelloReq) (wire.Message, error) {
	s := c.srv
	s.hellos = append(s.hellos, *m)
	if s.refuse != nil {
		return nil, s.refuse
	}
	if m.Export != "" && !slices.Contains(s.exports, m.Export) {
		return nil, status.New(status.UnknownExport, "hello", m.Export)
	}
	rep := &wire.HelloRep{Version: wire.Version, Software: "test", Term: uint32(s.term.Milliseconds()), DataPorts: uint16(s.data),
		Root: proto.Attr{ID: proto.RootID, Mode: proto.ModeDir | 0o755}, Trusted: true}
	if sess := s.sessions[m.Session]; sess != nil {
		rep.Resumed, rep.Session, rep.Applied = true, m.Session, proto.Seq(len(sess.applied))
		rep.LostLocks = s.lostLocks
		clear(sess.opens)
		for _, id := range m.Opens {
			sess.opens[id]++
		}
	} else {
		s.nextID++
		rep.Session = s.nextID
		s.sessions[s.nextID] = &serverSession{opens: map[proto.FileID]int{}}
	}
	c.sess = s.sessions[rep.Session]
	return rep, nil
}

// answer is the reply to a request, with s.mu held.
func (c *serverConn) answer(h wire.Header, m wire.Message) (wire.Message, error) {
	s := c.srv
	switch m := m.(type) {
	case *wire.ChangeReq:
		return c.change(m)
	case *wire.LookupReq:
		if m.Name == "missing" {
			return nil, status.New(status.NotFound, "lookup", m.Name)
		}
		return &wire.AttrRep{Attr: proto.Attr{ID: 7, Size: uint64(len(m.Name))}}, nil
	case *wire.ReadReq:
		f := s.files[m.ID]
		off := min(m.Off, uint64(len(f)))
		end := min(off+uint64(m.Len), uint64(len(f)))
		return &wire.ReadRep{Change: 5, Size: uint64(len(f)), Data: f[off:end]}, nil
	case *wire.OpenReq:
		if m.ID == 404 {
			return nil, status.New(status.Stale, "open", "")
		}
		c.sess.opens[m.ID]++
		return &wire.AttrRep{Attr: proto.Attr{ID: m.ID}}, nil
	case *wire.ReleaseReq:
		if int64(m.N) >= int64(c.sess.opens[m.ID]) {
			delete(c.sess.opens, m.ID)
		} else {
			c.sess.opens[m.ID] -= int(m.N)
		}
		return &wire.Empty{}, nil
	}
	switch h.Op {
	case wire.OpExports:
		return &wire.ExportsRep{Names: s.exports}, nil
	case wire.OpGetAttr:
		return &wire.AttrRep{Attr: proto.Attr{ID: m.(*wire.IDReq).ID}}, nil
	}
	return wire.Table[h.Op].NewReply(), nil
}

func (c *serverConn) change(m *wire.ChangeReq) (wire.Message, error) {
	s, sess := c.srv, c.sess
	text := opText(m.Op)
	switch n := proto.Seq(len(sess.applied)); {
	case m.Seq <= n:
		if sess.applied[m.Seq-1] != text {
			s.t.Errorf("operation %d was %s, is %s", m.Seq, sess.applied[m.Seq-1], text)
		}
		r := sess.results[m.Seq-1]
		return &r.rep, r.err
	case m.Seq > n+1:
		s.t.Errorf("operation %d came after %d", m.Seq, n)
		return nil, status.Gap
	}
	r := result{rep: wire.ChangeRep{Result: proto.Result{LSN: proto.LSN(m.Seq) + 1000}}}
	if s.fail != nil {
		r.err = s.fail(m.Op)
	}
	w, ok := m.Op.(*proto.Write)
	switch {
	case ok && w.Lost:
		s.stranded[w.ID] = append(s.stranded[w.ID], w.Data...)
		r.err = status.LostLock
	case ok && r.err == nil:
		f := s.files[w.ID]
		if need := int(w.Off) + len(w.Data); need > len(f) {
			f = append(f, make([]byte, need-len(f))...)
		}
		copy(f[w.Off:], w.Data)
		s.files[w.ID] = f
	}
	sess.applied = append(sess.applied, text)
	sess.results = append(sess.results, r)
	return &r.rep, r.err
}

func opText(op proto.Op) string {
	if w, ok := op.(*proto.Write); ok {
		return fmt.Sprintf("write %d@%d+%d", w.ID, w.Off, len(w.Data))
	}
	return fmt.Sprintf("%T %+v", op, op)
}

func (c *serverConn) reply(h wire.Header, m wire.Message, err error) bool {
	if err != nil {
		return c.send(wire.AppendError(nil, h, wire.FromError(err)))
	}
	return c.send(wire.AppendFrame(nil, h.Reply(), m))
}

func (c *serverConn) push(op wire.Opcode, m wire.Message) bool {
	return c.send(wire.AppendFrame(nil, wire.Push(op), m))
}

func (c *serverConn) send(b []byte) bool {
	c.wmu.Lock()
	defer c.wmu.Unlock()
	c.srv.mu.Lock()
	drip := c.srv.drip
	c.srv.mu.Unlock()
	for ; drip > 0 && len(b) > 1; b = b[1:] {
		if _, err := c.tls.Write(b[:1]); err != nil {
			return false
		}
		time.Sleep(drip)
	}
	_, err := c.tls.Write(b)
	return err == nil
}

// main is the newest main connection.
func (s *server) main() *serverConn {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, c := range slices.Backward(s.conns) {
		if !c.data {
			return c
		}
	}
	return nil
}

// set changes a field of the server that mu guards.
func (s *server) set(f func()) {
	s.mu.Lock()
	defer s.mu.Unlock()
	f()
}

// count says how many requests of a kind came.
func (s *server) count(op wire.Opcode, data bool) (n int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, x := range s.seen {
		if x == (seen{op, data}) {
			n++
		}
	}
	return n
}

func (s *server) file(id proto.FileID) []byte {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Clone(s.files[id])
}

// kept is what of a file could not be applied, in the order in which it came.
func (s *server) kept(id proto.FileID) string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return string(s.stranded[id])
}

// holding holds all requests of some kinds, until released.
func holding(ops ...wire.Opcode) func(*serverConn, wire.Header) bool {
	return func(_ *serverConn, h wire.Header) bool { return slices.Contains(ops, h.Op) }
}

// options dial the server from host "client".
func (s *server) options() Options {
	return Options{
		Addr: "server:7400", Export: "home", Keys: testKeys.ring, Client: "client", Software: "test",
		Dial: s.net.Host("client").Dial, Log: zerolog.Nop(), DataPort: true,
	}
}

// dial opens a session that the test's end closes, with the server.
func (s *server) dial(o Options) *Session {
	s.t.Helper()
	sess, err := Dial(context.Background(), o)
	require.NoError(s.t, err)
	s.t.Cleanup(func() {
		s.set(func() { s.hold = nil })
		ctx, cancel := context.WithTimeout(context.Background(), time.Second)
		defer cancel()
		sess.Close(ctx)
		s.stop()
	})
	return sess
}

var ctx = context.Background()

var who = proto.Ident{UID: 1000, GID: 1000, Comm: "test"}

func write(id proto.FileID, off int, data string) *proto.Write {
	return &proto.Write{ID: id, Off: uint64(off), Data: []byte(data)}
}

func mkdir(name string) *proto.Make {
	return &proto.Make{Dir: proto.RootID, Name: name, Mode: proto.ModeDir | 0o755}
}

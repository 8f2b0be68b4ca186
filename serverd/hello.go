package serverd

import (
	"errors"
	"io"
	"net"
	"slices"
	"time"

	"github.com/rs/zerolog"

	"cagefs.dev/cage/journal"
	"cagefs.dev/cage/remote/auth"
	"cagefs.dev/cage/remote/proto"
	"cagefs.dev/cage/remote/status"
	"cagefs.dev/cage/remote/wire"
)

// handle is the life of a connection: TLS, preamble and hello under one
// deadline, then its requests.
func (s *Server) handle(raw net.Conn) {
	c := newConn(s, raw)
	defer func() {
		c.abort(io.EOF)
		s.gone(raw, c)
	}()
	raw.SetDeadline(time.Now().Add(s.o.Handshake))
	head, first, err := c.greet()
	if err != nil {
		c.noteRefused(err)
		return
	}
	var rep wire.Message
	if head.Op != wire.OpJoin {
		if err = s.known(raw, c); err == status.Draining {
			return
		}
	}
	if err == nil {
		rep, err = c.admit(head.Op, first)
	}
	raw.SetDeadline(time.Now().Add(s.o.Stall))
	if err != nil {
		c.log.Warn().Err(err).Msg("client refused")
		c.tls.Write(wire.AppendError(nil, head, wire.FromError(err)))
		c.shut()
		return
	}
	_, err = c.tls.Write(wire.AppendFrame(nil, head.Reply(), rep))
	switch {
	case head.Op == wire.OpJoin:
		c.shut()
		return
	case err != nil:
		c.retreat()
		return
	case s.o.State.Revoked(c.key.Fingerprint): // since greet, and too late for DropRevoked to see the connection
		c.retreat()
		s.DropRevoked()
		return
	}
	raw.SetDeadline(time.Time{})
	c.greeted = true
	c.serve()
}

// noteRefused logs why a connection did not get as far as its first request. One
// that just went away, or was closed by drain, was not refused.
func (c *conn) noteRefused(err error) {
	level, log := zerolog.WarnLevel, c.srv.rare.With().Str("peer", c.peer).Str("key", c.key.Name).Logger()
	if errors.Is(err, io.EOF) || errors.Is(err, net.ErrClosed) {
		level = zerolog.DebugLevel
	}
	log.WithLevel(level).Err(err).Msg("connection refused")
}

// greet makes sure that the other end has an admitted key, or is here to join,
// and speaks Cage, and reads its first request.
func (c *conn) greet() (wire.Header, wire.Message, error) {
	if err := c.tls.HandshakeContext(c.ctx); err != nil {
		return wire.Header{}, nil, err
	}
	state := c.tls.ConnectionState()
	fp, err := auth.PeerOf(state)
	if err != nil {
		return wire.Header{}, nil, err
	}
	joining, limit := state.NegotiatedProtocol == auth.JoinProtocol, wire.MaxFrame
	if joining {
		c.key.Fingerprint, limit = fp, maxJoinFrame
	} else {
		key, ok := c.srv.o.State.Client(fp)
		if !ok {
			return wire.Header{}, nil, status.Newf(status.WrongKey, "connect", "", "key %s is not admitted", fp)
		}
		c.key = key
		c.log = c.log.With().Str("key", key.Name).Logger()
	}
	if _, err := wire.Welcome(struct {
		io.Reader
		io.Writer
	}{c.br, c.tls}); err != nil {
		return wire.Header{}, nil, err
	}
	h, payload, err := wire.ReadFrame(c.br, limit, nil)
	if err != nil {
		return wire.Header{}, nil, err
	}
	if h.Flags != 0 || joining != (h.Op == wire.OpJoin) || !joining && h.Op != wire.OpHello && h.Op != wire.OpAttach {
		return wire.Header{}, nil, status.Newf(status.BadFrame, "connect", "", "%s before hello", h.Op)
	}
	m, err := wire.DecodeRequest(h.Op, payload)
	return h, m, err
}

// admit answers the first request.
func (c *conn) admit(op wire.Opcode, first wire.Message) (rep wire.Message, err error) {
	defer c.recovered(op, &err)
	switch m := first.(type) {
	case *wire.HelloReq:
		return c.hello(m)
	case *wire.AttachReq:
		return c.attach(m)
	case *wire.JoinReq:
		return c.enroll(c.key.Fingerprint, m)
	}
	panic("serverd: greet let something else through")
}

// hello opens or resumes a session.
func (c *conn) hello(m *wire.HelloReq) (wire.Message, error) {
	s := c.srv
	if err := wire.CheckVersions(wire.Version, m.Version); err != nil {
		return nil, err
	}
	var err error
	if c.ident, err = identify(c.key, s.users); err != nil {
		return nil, err
	}
	rep := &wire.HelloRep{
		Version: wire.Version, Software: s.o.Software, DataPorts: uint16(s.o.DataPorts), Trusted: c.ident.trusted,
	}
	if m.Export == "" {
		return rep, nil
	}
	exp := s.exports[m.Export]
	if exp == nil || !maySee(&c.key, m.Export) {
		return nil, status.New(status.UnknownExport, "mount", m.Export)
	}
	if a, err := exp.Journal.Attr(proto.RootID); m.Session == 0 && err == nil && a.Nlink == 0 {
		return nil, status.Newf(status.NotFound, "mount", m.Export, "the directory of %s is gone on the server", m.Export)
	}
	c.readOnly = m.ReadOnly || c.key.ReadOnly || exp.ReadOnly
	rep.ReadOnly = c.readOnly
	if err := c.join(m, exp, rep); err != nil {
		return nil, err
	}
	c.log = c.log.With().Str("session", sessionText(c.sess.id)).Str("export", exp.Name).Logger()
	c.log.Info().Str("client", c.sess.name).Str("software", m.Software).Uint32("uid", c.ident.who.UID).
		Bool("trusted", c.ident.trusted).Bool("read_only", c.readOnly).Bool("resumed", rep.Resumed).
		Uint64("applied", uint64(rep.Applied)).Int("opens", len(m.Opens)).Msg("session on line")
	return rep, nil
}

// join gives the connection its session, the one that the client wants to go on
// with if that exists, and the session its open files.
func (c *conn) join(m *wire.HelloReq, exp *export, rep *wire.HelloRep) (err error) {
	var sess *session
	var applied proto.Seq
	if m.Session != 0 {
		if exp.Leases.barred(m.Session) {
			return status.Newf(status.Busy, "resume session", sessionText(m.Session), "its leases are being taken away: try again")
		}
		if sess, applied, err = c.srv.takeOver(m.Session, exp, &c.key, m.Client); err != nil {
			return err
		}
	}
	rep.Resumed = sess != nil
	if sess == nil {
		if sess, err = c.srv.create(exp, &c.key, m.Client, m.Leases); err != nil {
			return err
		}
	}
	defer sess.attach.Unlock()
	c.sess = sess
	// What the client has an answer to was applied, or changed nothing.
	c.next = applied + 1
	if rep.Resumed {
		c.next = max(c.next, m.NextSeq)
	}
	rep.Session, rep.Applied = sess.id, applied
	exp.Feed.subscribe(c.out, sess.id)
	sess.replaceOpens(m.Opens, c.grant)
	exp.Journal.Returned(sess.id)
	rep.LostLocks = c.resumeLocks(m, rep)
	rep.Term = uint32(exp.Leases.term.Milliseconds())
	if rep.Lost, rep.Void, err = exp.Leases.enter(sess.id, m.Leases, c.out, m.Claims); err != nil {
		exp.Feed.unsubscribe(c.out)
		exp.locks.leave(sess.id, c.out)
		return err
	}
	sess.leases = m.Leases
	sess.resumed(c.next - 1)
	if rep.Root, err = exp.Journal.Attr(proto.RootID); err != nil {
		exp.Feed.unsubscribe(c.out)
		exp.locks.leave(sess.id, c.out)
		exp.Leases.leave(sess.id, c.out)
		return err
	}
	sess.setMain(c)
	return nil
}

// attach makes this a data connection of a session of the same key.
func (c *conn) attach(m *wire.AttachReq) (wire.Message, error) {
	if err := wire.CheckVersions(wire.Version, m.Version); err != nil {
		return nil, err
	}
	sess := c.srv.lookupSession(m.Session)
	if sess == nil || sess.key.Fingerprint != c.key.Fingerprint {
		return nil, status.New(status.LostSession, "attach", sessionText(m.Session))
	}
	main, err := sess.join(c)
	if err != nil {
		return nil, err
	}
	c.isData, c.sess, c.ident, c.readOnly = true, sess, main.ident, main.readOnly
	return &wire.Empty{}, nil
}

// retreat undoes admit where its answer could not be sent, or comes too late.
func (c *conn) retreat() {
	defer close(c.done) // who takes the session over may be waiting already
	if c.sess == nil {
		return
	}
	if !c.isData {
		c.sess.exp.Feed.unsubscribe(c.out)
		c.sess.exp.locks.leave(c.sess.id, c.out)
		c.sess.exp.Leases.leave(c.sess.id, c.out)
	}
	c.sess.leave(c)
}

// grant says what an open of a resumed session allows that this run of the
// server has not seen, and whether it may be: a trusted client says itself who its
// users are; for others the one user as whom they act is asked again.
func (c *conn) grant(a *proto.Attr) (flags uint32, ok bool) {
	if c.ident.trusted {
		return wire.OpenRead | wire.OpenWrite, true
	}
	if c.sess.exp.Journal.Reach(a.ID, &c.ident.who) != nil {
		return 0, false
	}
	if c.ident.who.UID == a.UID {
		return wire.OpenRead | wire.OpenWrite, true
	}
	if c.sess.exp.Journal.Access(a, &c.ident.who, journal.MayRead) == nil {
		flags |= wire.OpenRead
	}
	if c.sess.exp.Journal.Access(a, &c.ident.who, journal.MayWrite) == nil {
		flags |= wire.OpenWrite
	}
	return flags, true
}

// maySee reports whether a client may mount an export, or learn that it exists.
func maySee(k *auth.ClientKey, export string) bool {
	return len(k.Exports) == 0 || slices.Contains(k.Exports, export)
}

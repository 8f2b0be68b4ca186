package remote

import (
	"bufio"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"strings"
	"syscall"
	"time"

	"cagefs.dev/cage/remote/auth"
	"cagefs.dev/cage/remote/boottime"
	"cagefs.dev/cage/remote/status"
	"cagefs.dev/cage/remote/wire"
)

// Dial connects, checks the server's pin, and opens a session. It tries once.
// Errors: status.Unreachable, WrongKey (no pin or key for this server, or
// refused), UnknownExport, Version, Timeout or Interrupted (ctx ended), else
// that with which the server refuses the session.
func Dial(ctx context.Context, o Options) (*Session, error) {
	o = o.withDefaults()
	limit := connectTimeout
	if o.Patience > 0 {
		limit = min(limit, o.Patience)
	}
	dialing, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	began := boottime.Now()
	var rep wire.HelloRep
	c, err := o.connect(dialing, o.Addr, wire.OpHello, o.hello(), &rep)
	switch {
	case err != nil && ctx.Err() != nil:
		return nil, status.Wrap(ctx.Err(), "connect", o.Addr)
	case status.Of(err) == status.UnknownExport:
		return nil, o.unknownExport(ctx)
	case err != nil:
		return nil, err
	}
	if err := o.believeHello(&rep, 0, 0); err != nil {
		c.raw.Close()
		return nil, status.Wrap(err, "connect", o.Addr)
	}
	s := newSession(o, rep)
	s.leases.Answered(began, boottime.Now())
	s.mu.Lock()
	defer s.mu.Unlock()
	s.id = rep.Session
	s.useLocked(c, &rep)
	s.wg.Go(func() { s.keepConnected(c) })
	s.wg.Go(func() { s.upcalls.run(s.ctx) })
	if rep.Term > 0 {
		s.wg.Go(s.keepLeases)
	}
	return s, nil
}

// hello is the first request for a new session.
func (o *Options) hello() *wire.HelloReq {
	return &wire.HelloReq{
		Version: wire.Version, Software: o.Software, Client: o.Client,
		Export: o.Export, ReadOnly: o.ReadOnly, NextSeq: 1, Leases: o.Leases,
	}
}

// connect dials an address, shakes hands, and sends the first request. ctx
// bounds all of it. Nothing is running on the connection yet.
func (o *Options) connect(ctx context.Context, addr string, op wire.Opcode, req, rep wire.Message) (*conn, error) {
	began := time.Now()
	raw, err := o.Dial(ctx, "tcp", addr)
	if err != nil {
		return nil, inTime(ctx, began, addr, dialError(addr, err))
	}
	if err := o.noBlackHole(raw); err != nil {
		raw.Close()
		return nil, status.Wrap(err, "connect", addr)
	}
	// Whatever blocks on the connection ends with ctx.
	stop := context.AfterFunc(ctx, func() { raw.Close() })
	c, err := o.greet(ctx, raw, addr, op, req, rep)
	if !stop() && err == nil {
		err = status.Wrap(ctx.Err(), "connect", addr)
	}
	if err != nil {
		raw.Close()
		return nil, inTime(ctx, began, addr, err)
	}
	return c, nil
}

// inTime replaces the error of an attempt that took too long by one that says so.
func inTime(ctx context.Context, began time.Time, addr string, err error) error {
	if errors.Is(ctx.Err(), context.DeadlineExceeded) {
		took := time.Since(began).Round(100 * time.Millisecond)
		return status.Newf(status.Unreachable, "connect", addr, "no answer for %v: is cageserverd running there?", took)
	}
	return err
}

func (o *Options) greet(ctx context.Context, raw net.Conn, addr string, op wire.Opcode, req, rep wire.Message) (*conn, error) {
	secure := o.secure(raw)
	if err := secure.HandshakeContext(ctx); err != nil {
		return nil, handshakeError(addr, err)
	}
	if _, err := wire.Greet(secure); err != nil {
		return nil, handshakeError(addr, err)
	}
	c := &conn{
		addr: addr, raw: raw,
		br: bufio.NewReaderSize(secure, 64<<10), bw: bufio.NewWriterSize(secure, 64<<10),
	}
	if err := c.exchange(op, req, rep); err != nil {
		return nil, handshakeError(addr, err)
	}
	return c, nil
}

// exchange sends one request and reads its reply, before the connection runs.
func (c *conn) exchange(op wire.Opcode, req, rep wire.Message) error {
	c.lastID++
	c.bw.Write(wire.AppendFrame(nil, wire.Request(op, c.lastID), req))
	if err := c.bw.Flush(); err != nil {
		return err
	}
	for {
		h, payload, err := wire.ReadFrame(c.br, wire.MaxFrame, nil)
		switch {
		case err != nil:
			return err
		case h.IsPush():
			continue
		case !h.IsReply() || h.ID != c.lastID || h.Op != op:
			return c.confused(h, "a reply to nothing that was asked")
		}
		return wire.DecodeReply(h, payload, rep)
	}
}

// unknownExport names the export that the server does not have, and those that it has.
func (o *Options) unknownExport(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, 2*time.Second)
	defer cancel()
	ask := o.hello()
	ask.Export = ""
	var names wire.ExportsRep
	c, err := o.connect(ctx, o.Addr, wire.OpHello, ask, &wire.HelloRep{})
	if err == nil {
		stop := context.AfterFunc(ctx, func() { c.raw.Close() })
		err = c.exchange(wire.OpExports, &wire.Empty{}, &names)
		stop()
		c.raw.Close()
	}
	if err != nil || len(names.Names) == 0 {
		return status.Newf(status.UnknownExport, "connect", o.Addr, "no export named %q", o.Export)
	}
	return status.Newf(status.UnknownExport, "connect", o.Addr, "no export named %q; there are: %s",
		o.Export, strings.Join(names.Names, ", "))
}

// dialError is one clear line for what kept a TCP connection from being made.
func dialError(addr string, err error) error {
	var dns *net.DNSError
	var bad *net.AddrError
	switch {
	case errors.Is(err, syscall.ECONNREFUSED):
		return status.Newf(status.Unreachable, "connect", addr, "connection refused: is cageserverd running there?")
	case errors.As(err, &bad):
		return status.Newf(status.Invalid, "connect", addr, "%s", bad.Err)
	case errors.As(err, &dns):
		return status.Newf(status.Unreachable, "connect", addr, "%s", dns.Err)
	}
	return status.Newf(status.Unreachable, "connect", addr, "%w", plain(err))
}

// handshakeError is one clear line for what failed after that.
func handshakeError(addr string, err error) error {
	var noTLS tls.RecordHeaderError
	var e *status.Error
	switch {
	case errors.As(err, &noTLS):
		return status.Newf(status.Unreachable, "connect", addr, "what answers there is not cageserverd")
	case errors.As(auth.Explain(err), &e):
		return &status.Error{Code: e.Code, Op: "connect", Object: addr, Err: cause(e)}
	case errors.Is(err, io.EOF), errors.Is(err, io.ErrUnexpectedEOF),
		errors.Is(err, syscall.ECONNRESET), errors.Is(err, syscall.EPIPE):
		return status.Newf(status.Unreachable, "connect", addr, "the connection was closed before it was up")
	}
	return status.Newf(status.Unreachable, "connect", addr, "%w", plain(err))
}

// cause is what a status error says besides its operation and object, which
// are connecting and the address.
func cause(e *status.Error) error {
	switch {
	case e.Err == nil:
		return e.Code
	case e.Object != "":
		return fmt.Errorf("%s: %w", e.Object, e.Err)
	}
	return e.Err
}

// plain takes off what Go's net package puts around an error: its text says the
// address and the operation again.
func plain(err error) error {
	var op *net.OpError
	if errors.As(err, &op) && op.Op != "remote error" {
		err = op.Err
	}
	var no syscall.Errno
	switch {
	case errors.As(err, &no):
		return no
	case errors.Is(err, io.EOF), errors.Is(err, io.ErrUnexpectedEOF):
		return errClosedThere
	}
	return err
}

var errClosedThere = errors.New("closed by the server")

package serverd

import (
	"bufio"
	"context"
	"crypto/tls"
	"errors"
	"io"
	"net"
	"sync"
	"sync/atomic"
	"time"

	"github.com/rs/zerolog"

	"cagefs.dev/cage/remote/auth"
	"cagefs.dev/cage/remote/proto"
	"cagefs.dev/cage/remote/status"
	"cagefs.dev/cage/remote/wire"
)

// Why a connection ends, other than by its client.
var (
	errTakenOver = errors.New("the client came back on another connection")
	errMainGone  = errors.New("the session's main connection is gone")
	errRevoked   = errors.New("the key is no longer admitted")
	errTooSlow   = errors.New("the client does not keep up with the changes of others")
	errStopped   = errors.New("the server has stopped")
	errDraining  = errors.New("the server is stopping")
	errBye       = errors.New("the client said goodbye")
)

// Bounds of what a connection has in the works.
const (
	maxReads       = 64
	maxUrgent      = 256 // answers about leases that the client has not taken
	maxReadBytes   = 16 << 20
	maxChanges     = 1024
	maxChangeBytes = 32 << 20
)

// linger is how long an orderly end waits for the client to close, so that the
// last answers are not lost by a reset.
const linger = 2 * time.Second

// conn is one connection of a client that was let in.
type conn struct {
	// Set at construction.
	srv     *Server
	raw     net.Conn
	tls     *tls.Conn
	peer    string // address
	key     auth.ClientKey
	out     *outq
	reads   *gate           // requests that read
	urgent  *gate           // answers about leases, and pings
	changes *gate           // requests that change
	ctx     context.Context // ends, with the reason as cause, when the connection is lost or dropped
	cancel  context.CancelCauseFunc
	queue   chan *change  // from the reader to the goroutine that submits; its room is that of the gate
	done    chan struct{} // closed when nothing received here is in the works any more

	// Set by the handshake, before the connection's goroutines start.
	log      zerolog.Logger
	ident    identity
	isData   bool
	readOnly bool     // the client asked for that, or its key or export is
	sess     *session // nil if the client only lists exports

	// Owned by the reader.
	br      *bufio.Reader
	greeted bool        // hello has been said: the deadline is that of an idle connection
	next    proto.Seq   // the operation that must come next, unless one is repeated
	bye     wire.Header // the request that ended the session; zero if there was none

	// Atomic.
	draining atomic.Bool

	handlers sync.WaitGroup // requests that read

	// waiting ends with the reader: requests that wait for others are not waited for.
	waiting  context.Context
	dontWait context.CancelFunc

	// opening is held for reading by each open from its arrival until it is counted,
	// and taken by a release, so that none overtakes an open that came before it.
	opening sync.RWMutex
}

func newConn(s *Server, raw net.Conn) *conn {
	c := &conn{
		srv: s, raw: raw, tls: tls.Server(raw, s.tls), peer: raw.RemoteAddr().String(),
		reads: newGate(maxReads, maxReadBytes), urgent: newGate(maxUrgent, maxUrgent*smallCost), changes: newGate(maxChanges, maxChangeBytes),
		queue: make(chan *change, maxChanges), done: make(chan struct{}),
	}
	c.log = s.log.With().Str("peer", c.peer).Logger()
	c.ctx, c.cancel = context.WithCancelCause(s.base)
	c.waiting, c.dontWait = context.WithCancel(c.ctx)
	c.out = newOutq(func() { c.abort(errTooSlow) })
	c.br = bufio.NewReaderSize(idleReader{c}, 64<<10)
	return c
}

// abort drops the connection. It does not block and may be called from anywhere.
func (c *conn) abort(cause error) {
	c.cancel(cause)
	c.raw.Close()
}

// drain lets the connection end after what it has received. It does not block.
func (c *conn) drain() {
	if !c.isData {
		c.out.announceDrain()
	}
	c.draining.Store(true)
	c.raw.SetReadDeadline(time.Unix(1, 0))
}

// serve runs the connection until its end. On return nothing of it is left.
func (c *conn) serve() {
	var writer, submitter sync.WaitGroup
	writer.Go(func() {
		if err := c.writeLoop(); err != nil {
			c.abort(err)
		}
	})
	submitter.Go(c.changeLoop)
	err := c.readLoop()
	c.dontWait()
	if !orderly(err) {
		c.abort(err)
	}
	close(c.queue)
	submitter.Wait()
	c.handlers.Wait()
	if c.bye.ID != 0 {
		c.reply(c.bye, &wire.Empty{}, nil, 0)
	}
	if c.sess != nil && !c.isData {
		c.sess.exp.Feed.unsubscribe(c.out)
		c.sess.exp.locks.leave(c.sess.id, c.out)
		c.sess.exp.Leases.leave(c.sess.id, c.out)
	}
	c.out.close()
	writer.Wait()
	c.shut()
	if cause := context.Cause(c.ctx); cause != nil {
		err = cause
	}
	c.log.Debug().AnErr("why", err).Bool("data", c.isData).Msg("connection ended")
	c.cancel(err)
	if c.sess != nil {
		c.sess.leave(c)
	}
	close(c.done)
	if c.bye.ID != 0 && c.sess != nil {
		c.srv.end(c.sess, "goodbye", true)
	}
}

// orderly reports whether the answers to what was received are still worth sending.
func orderly(err error) bool {
	return errors.Is(err, errDraining) || errors.Is(err, errBye) || status.Of(err) == status.BadFrame
}

// shut closes the connection so that the other end gets all that was written.
func (c *conn) shut() {
	defer c.raw.Close()
	if c.ctx.Err() != nil {
		return
	}
	c.raw.SetDeadline(time.Now().Add(linger))
	if c.tls.CloseWrite() != nil {
		return
	}
	if half, ok := c.raw.(interface{ CloseWrite() error }); ok {
		half.CloseWrite()
	}
	io.Copy(io.Discard, c.raw)
}

// idleReader reads the connection and gives up when nothing has come for a while.
type idleReader struct{ c *conn }

func (r idleReader) Read(p []byte) (int, error) {
	c := r.c
	if c.greeted {
		c.raw.SetReadDeadline(time.Now().Add(c.srv.o.Idle))
	}
	// drain sets the flag before the deadline, so that one of the two is seen here.
	if c.draining.Load() {
		return 0, errDraining
	}
	n, err := c.tls.Read(p)
	if err != nil && c.draining.Load() {
		err = errDraining
	}
	return n, err
}

// stallWriter writes the connection and gives up when nothing is taken for a while.
type stallWriter struct{ c *conn }

func (w stallWriter) Write(p []byte) (n int, err error) {
	const piece = 64 << 10
	for n < len(p) {
		w.c.raw.SetWriteDeadline(time.Now().Add(w.c.srv.o.Stall))
		k, err := w.c.tls.Write(p[n:min(len(p), n+piece)])
		n += k
		if err != nil {
			return n, err
		}
	}
	return n, nil
}

// writeLoop sends what is queued until the queue is closed and empty.
func (c *conn) writeLoop() error {
	bw := bufio.NewWriterSize(stallWriter{c}, 32<<10)
	var buf []byte
	for {
		b, ok := c.out.take()
		if !ok {
			return nil
		}
		buf = buf[:0]
		for i := range b.pushes {
			buf = wire.AppendFrame(buf, wire.Push(wire.OpChanged), c.told(&b.pushes[i]))
		}
		for i := range b.locks {
			buf = wire.AppendFrame(buf, wire.Push(wire.OpLockDone), &b.locks[i])
		}
		if b.drain {
			buf = wire.AppendFrame(buf, wire.Push(wire.OpDrain), &wire.Empty{})
		}
		bw.Write(buf)
		for _, a := range b.answers {
			bw.Write(a.head)
			bw.Write(a.tail)
		}
		buf = buf[:0]
		for i := range b.recalls {
			buf = wire.AppendFrame(buf, wire.Push(wire.OpRecall), &b.recalls[i])
		}
		for i := range b.peeks {
			buf = wire.AppendFrame(buf, wire.Push(wire.OpPeek), &b.peeks[i])
		}
		bw.Write(buf)
		if err := bw.Flush(); err != nil {
			return err
		}
		for _, a := range b.answers {
			a.leave()
		}
	}
}

// reply queues the answer to a request that entered a gate (nil: none).
func (c *conn) reply(h wire.Header, m wire.Message, from *gate, cost int64) {
	head, tail := wire.AppendFrameHead(nil, h.Reply(), m)
	c.out.answer(answer{head: head, tail: tail, from: from, cost: cost})
}

// refuse queues an error as the answer.
func (c *conn) refuse(h wire.Header, e *wire.ErrorRep, from *gate, cost int64) {
	c.out.answer(answer{head: wire.AppendError(nil, h, e), from: from, cost: cost})
}

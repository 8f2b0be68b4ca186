package remote

import (
	"bufio"
	"cmp"
	"errors"
	"net"
	"slices"
	"sync/atomic"
	"time"

	"cagefs.dev/cage/remote/boottime"
	"cagefs.dev/cage/remote/proto"
	"cagefs.dev/cage/remote/status"
	"cagefs.dev/cage/remote/wire"
)

// Bounds of what is in flight on one connection, below those of the server.
const (
	maxCalls       = 64
	maxDataCalls   = 32
	maxChanges     = 256
	maxChangeBytes = 8 << 20
)

// When a connection is taken for dead: nothing came for deadAfter although
// something was asked, or maxMissed pings had no answer. A ping is sent after
// pingAfter of silence, also if only this side is silent: a server drops who
// says nothing, however much it tells him.
const (
	pingAfter = 15 * time.Second
	deadAfter = 30 * time.Second
	maxMissed = 2
)

// conn is a connection that has said hello or attached. Its reader, its writer
// and its watch end when it is dead.
type conn struct {
	// Set at construction.
	s    *Session
	addr string
	raw  net.Conn      // below TLS
	br   *bufio.Reader // the reader's
	bw   *bufio.Writer // the writer's
	port *port         // nil: this is the main connection
	gone chan struct{} // closed when it is dead
	wake chan struct{} // holds one: there may be something to send
	born time.Duration // see Session.now

	// Atomic.
	heard atomic.Int64 // when the last frame came; see Session.now
	spoke atomic.Int64 // when the last frames were sent

	// Guarded by Session.mu.
	pending  map[uint64]request // sent and not answered
	asked    time.Duration      // when there came to be something besides pings in it; see Session.now
	pings    int                // of pending: pings, and answers about leases
	ping     bool               // one is to be sent
	lastID   uint64
	queue    []*call // of a data connection; the main one sends Session.queue
	urgent   []frame // answers about leases, without ids
	draining bool    // the server stops: send nothing new
	dead     bool
}

// request is what a reply belongs to: a call, a change (seq), or a ping.
type request struct {
	op   wire.Opcode
	call *call
	seq  proto.Seq
	sent time.Duration // see boottime.Now
}

// frame is a request to send.
type frame struct {
	h wire.Header
	m wire.Message
}

// runLocked starts the connection's goroutines.
func (c *conn) runLocked() {
	c.born = c.s.now()
	c.heard.Store(int64(c.born))
	c.spoke.Store(int64(c.born))
	c.gone, c.wake = make(chan struct{}), make(chan struct{}, 1)
	c.pending = map[uint64]request{}
	c.s.wg.Go(c.readLoop)
	c.s.wg.Go(c.writeLoop)
	c.s.wg.Go(c.watch)
	c.wakeWriter()
}

func (c *conn) wakeWriter() {
	select {
	case c.wake <- struct{}{}:
	default:
	}
}

// fail ends the connection: what it has not answered is sent again on another.
func (c *conn) fail(err error) {
	s := c.s
	s.mu.Lock()
	if c.dead {
		s.mu.Unlock()
		return
	}
	dead := c.dieLocked()
	if c.port == nil {
		s.disconnectedLocked(c, err)
		for _, p := range s.ports {
			if p.conn != nil {
				dead = append(dead, p.conn.dieLocked()...)
			}
		}
		s.ports = nil
	}
	s.mu.Unlock()
	for _, d := range dead {
		d.raw.Close()
	}
	s.o.Log.Debug().Err(err).Str("addr", c.addr).Msg("connection ended")
}

// dieLocked makes the connection dead and puts its calls before those that wait
// for the main connection. It returns the connection, whose raw one is to be
// closed without the lock.
func (c *conn) dieLocked() []*conn {
	c.dead = true
	close(c.gone)
	if c.port != nil {
		c.port.lostLocked()
	}
	ids := make([]uint64, 0, len(c.pending))
	for id, r := range c.pending {
		if r.call != nil {
			ids = append(ids, id)
		}
	}
	slices.SortFunc(ids, cmp.Compare[uint64])
	var again []*call
	for _, id := range ids {
		k := c.pending[id].call
		k.sent, k.conn = false, nil
		if k.abandoned {
			c.s.forgetLocked(k, status.Interrupted)
			continue
		}
		again = append(again, k)
	}
	for _, k := range c.queue {
		k.conn = nil
		again = append(again, k)
	}
	c.pending, c.queue, c.pings = nil, nil, 0
	c.s.queue = append(again, c.s.queue...)
	c.s.wakeMainLocked()
	return []*conn{c}
}

// watch notices a silent connection.
func (c *conn) watch() {
	pingAfter := c.s.pingPause()
	timer := time.NewTimer(pingAfter)
	defer timer.Stop()
	missed, asked := 0, time.Duration(0)
	for {
		select {
		case <-c.gone:
			return
		case <-timer.C:
		}
		heard := time.Duration(c.heard.Load())
		silent := c.s.now() - heard
		if heard >= asked {
			missed = 0
		}
		if quiet := c.s.now() - min(heard, time.Duration(c.spoke.Load())); quiet < pingAfter {
			timer.Reset(pingAfter - quiet)
			continue
		}
		if missed == maxMissed || silent >= deadAfter && c.busy() {
			c.fail(status.Newf(status.Unreachable, "connection to", c.addr, "nothing heard for %v", silent.Round(time.Second)))
			return
		}
		missed++
		asked = c.s.now()
		c.askForLife()
		timer.Reset(pingAfter)
	}
}

// busy reports whether something besides pings is not answered.
func (c *conn) busy() bool {
	c.s.mu.Lock()
	defer c.s.mu.Unlock()
	return len(c.pending) > c.pings
}

// silentLocked is for how long something was asked and nothing at all heard.
func (c *conn) silentLocked() time.Duration {
	if len(c.pending) == c.pings {
		return 0
	}
	return c.s.now() - max(c.asked, time.Duration(c.heard.Load()))
}

func (c *conn) askForLife() {
	c.s.mu.Lock()
	c.ping = true
	c.s.mu.Unlock()
	c.wakeWriter()
}

// writeLoop sends what there is to send, in batches.
func (c *conn) writeLoop() {
	var batch []frame
	var head, tail []byte
	for {
		batch = c.take(batch[:0])
		if len(batch) == 0 {
			select {
			case <-c.wake:
				continue
			case <-c.gone:
				return
			}
		}
		for _, f := range batch {
			head, tail = wire.AppendFrameHead(head[:0], f.h, f.m)
			c.bw.Write(head)
			c.bw.Write(tail)
		}
		clear(batch)
		if err := c.bw.Flush(); err != nil {
			c.fail(status.Newf(status.Unreachable, "write to", c.addr, "%w", plain(err)))
			return
		}
		c.spoke.Store(int64(c.s.now()))
	}
}

// maxBatch is how many frames are written before the writer looks again.
const maxBatch = 16

// take moves what may be sent now to batch: calls and changes in turn, so that
// neither holds the other up.
func (c *conn) take(batch []frame) []frame {
	s := c.s
	s.mu.Lock()
	defer s.mu.Unlock()
	if c.dead {
		return batch
	}
	if c.ping {
		c.ping = false
		c.pings++
		batch = append(batch, c.frameLocked(request{op: wire.OpPing}, &wire.Empty{}))
	}
	for len(batch) < maxBatch && len(c.urgent) > 0 {
		f := c.urgent[0]
		c.urgent = c.urgent[1:]
		c.pings++ // nothing hangs on its reply either
		batch = append(batch, c.frameLocked(request{op: f.h.Op}, f.m))
	}
	for len(batch) < maxBatch && !c.draining {
		n := len(batch)
		if k := c.nextCallLocked(); k != nil {
			batch = append(batch, c.frameLocked(request{op: k.op, call: k}, k.req))
		}
		if c.port == nil {
			if e, ok := s.log.Next(maxChanges, maxChangeBytes); ok {
				batch = append(batch, c.frameLocked(request{op: wire.ChangeOpcode(e.Op), seq: e.Seq},
					&wire.ChangeReq{Seq: e.Wire, Gen: e.Gen, Acked: s.log.WireAcked(), Ident: e.Ident, Op: e.Op}))
			}
		}
		if len(batch) == n {
			break
		}
	}
	return batch
}

func (c *conn) nextCallLocked() *call {
	queue, limit := &c.s.queue, maxCalls+c.s.log.InFlight()
	if c.port != nil {
		queue, limit = &c.queue, maxDataCalls
	}
	if len(*queue) == 0 || len(c.pending) >= limit {
		return nil
	}
	k := (*queue)[0]
	(*queue)[0] = nil
	*queue = (*queue)[1:]
	k.conn, k.sent = c, true
	return k
}

// frameLocked gives a request its id.
func (c *conn) frameLocked(r request, m wire.Message) frame {
	if (r.call != nil || r.seq != 0) && len(c.pending) == c.pings {
		c.asked = c.s.now()
	}
	c.lastID++
	r.sent = boottime.Now()
	c.pending[c.lastID] = r
	return frame{wire.Request(r.op, c.lastID), m}
}

// readLoop hands out what comes until the connection ends.
func (c *conn) readLoop() {
	for {
		h, payload, err := wire.ReadFrame(c.br, wire.MaxFrame, c.s.buffer())
		if err != nil {
			c.fail(status.Newf(codeOf(err), "read from", c.addr, "%w", plain(err)))
			return
		}
		now := int64(c.s.now())
		c.heard.Store(now)
		c.s.heard.Store(now)
		if err := c.receive(h, payload); err != nil {
			c.fail(err)
			return
		}
	}
}

// receive handles one frame, and owns its payload.
func (c *conn) receive(h wire.Header, payload []byte) error {
	switch {
	case h.IsPush():
		defer c.s.recycle(payload)
		return c.pushed(h, payload)
	case !h.IsReply():
		return c.confused(h, "a request from the server")
	}
	c.s.mu.Lock()
	r, ok := c.pending[h.ID]
	if c.dead {
		c.s.mu.Unlock()
		return nil
	}
	if !ok || r.op != h.Op {
		c.s.mu.Unlock()
		return c.confused(h, "a reply to nothing that was asked")
	}
	delete(c.pending, h.ID)
	c.s.heardLocked(r.sent)
	var rep wire.ChangeRep
	var err error
	switch {
	case drainingReply(h, payload):
		c.refusedLocked(r)
	case r.call != nil:
		c.s.deliverLocked(r.call, reply{h, payload})
		payload = nil
	case r.seq != 0:
		// The log has one owner at a time, and answers are small but for the
		// plan of a rollback, so this one is decoded under the lock.
		if err = wire.DecodeReply(h, payload, &rep); err == nil {
			err = believeResult(h.Op, &rep.Result)
		}
		c.s.answeredLocked(r.seq, rep.Result, err)
		if err == nil && h.Op == wire.OpChange+wire.Opcode(proto.OpWrite) {
			c.s.upcalls.written(rep.Result.Attr)
		}
	default:
		c.pings--
	}
	stopped := c.draining && len(c.pending) == c.pings
	c.s.mu.Unlock()
	c.s.recycle(payload)
	c.wakeWriter()
	if stopped {
		return errDraining
	}
	return nil
}

var errDraining = status.Newf(status.Draining, "", "", "the server is stopping")

// confused is the error of a server that breaks the protocol.
func (c *conn) confused(h wire.Header, what string) error {
	return status.Newf(status.BadFrame, "read from", c.addr, "%s: %v, id %d", what, h.Op, h.ID)
}

// drainingReply reports whether the server refused a request because it stops:
// it did nothing, and the request is for the next connection.
func drainingReply(h wire.Header, payload []byte) bool {
	return h.IsError() && status.Of(wire.DecodeReply(h, payload, nil)) == status.Draining
}

// refusedLocked keeps a request for the next connection. A change is in the log
// already, as one without an answer.
func (c *conn) refusedLocked(r request) {
	c.draining = true
	k := r.call
	if k == nil {
		return
	}
	k.conn, k.sent = nil, false
	if k.abandoned {
		c.s.forgetLocked(k, status.Interrupted)
		return
	}
	c.s.queue = append(c.s.queue, k)
	c.s.wakeMainLocked()
}

// pushed handles what the server sends unasked. Pushes of a later version are ignored.
func (c *conn) pushed(h wire.Header, payload []byte) error {
	m, err := wire.DecodePush(h.Op, payload)
	switch {
	case status.Of(err) == status.Unsupported:
		return nil
	case err != nil:
		return err
	}
	switch m := m.(type) {
	case *wire.Changed:
		c.s.upcalls.changed(*m)
	case *wire.Recall:
		c.s.recalled(m)
	case *wire.Peek:
		c.s.looked(m)
	case *wire.LockDone:
		c.s.lockDone(c, m)
	case *wire.Empty: // OpDrain
		return c.drain()
	}
	return nil
}

// drain sends nothing new from now on; the last answer ends the connection.
func (c *conn) drain() error {
	c.s.mu.Lock()
	defer c.s.mu.Unlock()
	c.draining = true
	if len(c.pending) == c.pings {
		return errDraining
	}
	return nil
}

// codeOf is the code of a connection's error: Unreachable unless it says better.
func codeOf(err error) status.Code {
	if errors.Is(err, status.BadFrame) {
		return status.BadFrame
	}
	return status.Unreachable
}

package remote

import (
	"context"
	"slices"
	"time"

	"cagefs.dev/cage/remote/status"
	"cagefs.dev/cage/remote/wire"
)

// call is a request that may be sent again: anything but a change.
type call struct {
	// Set at construction.
	op    wire.Opcode
	req   wire.Message
	reply chan reply // holds one
	// forgotten is called with Session.mu held, once, when a call that nobody
	// waits for any more has its reply or will get none. err is the reply's. May be nil.
	forgotten func(err error)
	// answered is called with Session.mu held when the reply comes, before
	// anybody is given it. May be nil.
	answered func(reply)

	began time.Duration // set by start; see Session.now

	// Guarded by Session.mu.
	conn      *conn // on whose queue or way it is; nil: in Session.queue
	sent      bool
	abandoned bool // nobody waits for the reply; not sent again
	detached  bool // nobody ever waited; sent again all the same
}

// reply is a frame, whose payload goes back to the pool when it is decoded.
type reply struct {
	h       wire.Header
	payload []byte
}

func newCall(op wire.Opcode, req wire.Message) *call {
	return &call{op: op, req: req, reply: make(chan reply, 1)}
}

// roundTrip sends a request and decodes its reply, which is to keep nothing of
// the frame.
func (s *Session) roundTrip(ctx context.Context, op wire.Opcode, req, rep wire.Message, object string) error {
	c := newCall(op, req)
	if err := s.start(c, object); err != nil {
		return err
	}
	return s.finish(ctx, c, rep, object, nil)
}

// start queues a call.
func (s *Session) start(c *call, object string) error {
	c.began = s.now()
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.over {
		return closedError(c.op.String(), object)
	}
	s.enqueueLocked(c)
	return nil
}

// enqueueLocked puts a call on the connection that is to carry it.
func (s *Session) enqueueLocked(c *call) {
	if c.conn = s.dataConnLocked(c.op); c.conn != nil {
		c.conn.queue = append(c.conn.queue, c)
		c.conn.wakeWriter()
		return
	}
	s.queue = append(s.queue, c)
	s.wakeMainLocked()
}

func (s *Session) wakeMainLocked() {
	if s.main != nil {
		s.main.wakeWriter()
	}
}

// finish waits for a call's reply and decodes it. use, if not nil, is called
// while rep may still alias the frame.
func (s *Session) finish(ctx context.Context, c *call, rep wire.Message, object string, use func() error) error {
	r, err := await(ctx, s, c.reply, c.began, c.op.String(), object)
	if err != nil {
		s.abandon(c)
		return err
	}
	defer s.recycle(r.payload)
	if err := wire.DecodeReply(r.h, r.payload, rep); err != nil {
		return err
	}
	if use != nil {
		return use()
	}
	return nil
}

// abandon says that nobody waits for a call any more.
func (s *Session) abandon(c *call) {
	s.mu.Lock()
	defer s.mu.Unlock()
	select {
	case r := <-c.reply: // came meanwhile
		s.forgetLocked(c, replyError(r))
		s.recycle(r.payload)
		return
	default:
	}
	c.abandoned = true
	if c.sent {
		return
	}
	queue := &s.queue
	if c.conn != nil {
		queue = &c.conn.queue
	}
	if i := slices.Index(*queue, c); i >= 0 {
		*queue = slices.Delete(*queue, i, i+1)
	}
	s.forgetLocked(c, status.Interrupted)
}

// forgetLocked tells a call's maker what became of it, if nobody else is told.
func (s *Session) forgetLocked(c *call, err error) {
	if c.forgotten != nil {
		c.forgotten(err)
		c.forgotten = nil
	}
}

// deliverLocked hands a reply to who waits for it.
func (s *Session) deliverLocked(c *call, r reply) {
	if c.answered != nil {
		c.answered(r)
	}
	if c.abandoned || c.detached {
		s.forgetLocked(c, replyError(r))
		s.recycle(r.payload)
		return
	}
	c.reply <- r
}

// replyError is the error that a reply carries, if any.
func replyError(r reply) error {
	if !r.h.IsError() {
		return nil
	}
	return wire.DecodeReply(r.h, r.payload, nil)
}

// buffer returns a buffer for a payload; recycle takes it back.
func (s *Session) buffer() []byte { return *s.buffers.Get().(*[]byte) }

func (s *Session) recycle(b []byte) {
	if cap(b) == 0 {
		return
	}
	b = b[:0]
	s.buffers.Put(&b)
}

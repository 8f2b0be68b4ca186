package serverd

import (
	"context"
	"errors"
	"fmt"
	"runtime/debug"
	"slices"
	"sync"

	"cagefs.dev/cage/remote/proto"
	"cagefs.dev/cage/remote/status"
	"cagefs.dev/cage/remote/wire"
)

// call is a request that reads, while it is being answered.
type call struct {
	ctx  context.Context
	c    *conn
	sess *session
	exp  *export
	long bool // it is one of its client's long requests
	// counted says that an open is: a release that comes later need not wait for its answer.
	counted func()
}

// handler answers one kind of request.
type handler func(*call, wire.Message) (wire.Message, error)

// answerWith makes a handler of a function for one type of request.
func answerWith[T any, P interface {
	*T
	wire.Message
}](f func(*call, P) (wire.Message, error)) handler {
	return func(c *call, m wire.Message) (wire.Message, error) { return f(c, m.(P)) }
}

// handlers are those of the requests that need a session and change nothing.
var handlers = map[wire.Opcode]handler{
	wire.OpLookup:    answerWith(lookup),
	wire.OpGetAttr:   answerWith(getAttr),
	wire.OpReadDir:   answerWith(readDir),
	wire.OpReadlink:  answerWith(readlink),
	wire.OpResolve:   answerWith(resolve),
	wire.OpStatFS:    answerWith(statFS),
	wire.OpRead:      answerWith(read),
	wire.OpSeek:      answerWith(seek),
	wire.OpOpen:      answerWith(open),
	wire.OpRelease:   answerWith(release),
	wire.OpLock:      answerWith(lockFile),
	wire.OpTestLock:  answerWith(testLock),
	wire.OpUnlock:    answerWith(unlockFile),
	wire.OpUnwait:    answerWith(unwait),
	wire.OpReturn:    answerWith(returned),
	wire.OpPeeked:    answerWith(peeked),
	wire.OpSettled:   answerWith(settled),
	wire.OpGetXattr:  answerWith(getXattr),
	wire.OpListXattr: answerWith(listXattr),
	wire.OpLog:       answerWith(history),
	wire.OpMoment:    answerWith(moment),
	wire.OpVerify:    answerWith(verify),
	wire.OpUsage:     answerWith(usage),

	wire.OpBranches:   answerWith(branches),
	wire.OpReadBranch: answerWith(readBranch),
}

// readLoop takes requests until the connection ends, and says why it did.
func (c *conn) readLoop() error {
	for {
		h, payload, err := wire.ReadFrame(c.br, wire.MaxFrame, nil)
		if err != nil {
			if status.Of(err) == status.BadFrame {
				c.log.Warn().Err(err).Msg("connection dropped")
			}
			return err
		}
		if h.Flags != 0 {
			return c.violation(h, status.Newf(status.BadFrame, "read frame", h.Op.String(), "not a request"))
		}
		if err := c.dispatch(h, payload); err != nil {
			return err
		}
	}
}

// violation answers a request that breaks the protocol, and is the reason why
// the connection ends.
func (c *conn) violation(h wire.Header, err error) error {
	c.log.Warn().Err(err).Msg("connection dropped")
	c.refuse(h, wire.FromError(err), nil, 0)
	return err
}

// dispatch passes a request on to where it is handled. An error ends the connection.
func (c *conn) dispatch(h wire.Header, payload []byte) error {
	m, err := wire.DecodeRequest(h.Op, payload)
	switch {
	case err != nil:
		return c.answerNow(h, nil, err)
	case c.isData && !wire.Table[h.Op].Data, h.Op == wire.OpHello, h.Op == wire.OpAttach, h.Op == wire.OpJoin:
		return c.violation(h, status.Newf(status.BadFrame, "request", h.Op.String(), "not on this connection"))
	}
	if c.sess != nil && !c.sess.exp.Leases.heard(c.sess.id) {
		return errSilent
	}
	if r, ok := m.(*wire.ChangeReq); ok {
		return c.enqueue(h, r, int64(len(payload)))
	}
	switch h.Op {
	case wire.OpPing:
		return c.answerUrgent(h, func() (wire.Message, error) { return &wire.Empty{}, nil })
	case wire.OpExports:
		return c.answerNow(h, c.listExports(), nil)
	case wire.OpBye:
		c.bye = h
		return errBye
	}
	if c.sess == nil {
		return c.answerNow(h, nil, errNoExport)
	}
	switch h.Op {
	case wire.OpAcquire:
		return c.startAcquire(h, m.(*wire.AcquireReq))
	case wire.OpReturn, wire.OpPeeked, wire.OpSettled:
		return c.answerUrgent(h, func() (wire.Message, error) { return c.handleRead(h.Op, m, func() {}) })
	}
	return c.start(h, m)
}

// errNoExport answers requests on a connection that was opened to list exports.
var errNoExport = status.Newf(status.UnknownExport, "request", "", "the connection is not for an export")

// answerNow answers in the reader.
func (c *conn) answerNow(h wire.Header, m wire.Message, err error) error {
	if gerr := c.reads.enter(c.ctx, smallCost); gerr != nil {
		return gerr
	}
	c.settleRead(h, m, err, smallCost)
	return nil
}

// answerUrgent answers, in the reader, what requests that wait for others may be
// waiting for: it needs none of their room.
func (c *conn) answerUrgent(h wire.Header, handle func() (wire.Message, error)) error {
	if err := c.urgent.enter(c.ctx, smallCost); err != nil {
		return err
	}
	rep, err := handle()
	if err != nil {
		c.refuse(h, wire.FromError(err), c.urgent, smallCost)
	} else {
		c.reply(h, rep, c.urgent, smallCost)
	}
	return nil
}

// start answers in a goroutine of its own.
func (c *conn) start(h wire.Header, m wire.Message) error {
	cost := costOf(m)
	if err := c.reads.enter(c.ctx, cost); err != nil {
		return err
	}
	counted := func() {}
	if h.Op == wire.OpOpen {
		c.opening.RLock()
		counted = sync.OnceFunc(c.opening.RUnlock)
	}
	c.handlers.Go(func() {
		rep, err := c.handleRead(h.Op, m, counted)
		counted()
		c.settleRead(h, rep, err, cost)
	})
	return nil
}

// handleRead calls the handler; a panic in it is an answer too.
func (c *conn) handleRead(op wire.Opcode, m wire.Message, counted func()) (rep wire.Message, err error) {
	defer c.recovered(op, &err)
	f := handlers[op]
	if f == nil {
		return nil, status.New(status.Unsupported, "request", op.String())
	}
	k := &call{ctx: c.ctx, c: c, sess: c.sess, exp: c.sess.exp, counted: counted}
	defer k.end()
	return f(k, m)
}

// lasts makes the call one of its client's long requests, of which only so many go on at once.
func (c *call) lasts() error {
	if c.long || c.c.reads.purse == nil {
		return nil
	}
	err := c.c.reads.purse.takeLong(c.ctx)
	c.long = err == nil
	return err
}

func (c *call) end() {
	if c.long {
		c.c.reads.purse.giveLong()
	}
}

// recovered, deferred, turns a panic into status.Internal and a line in the log.
func (c *conn) recovered(op wire.Opcode, err *error) {
	if p := recover(); p != nil {
		c.log.Error().Str("request", op.String()).Str("panic", fmt.Sprint(p)).Bytes("stack", debug.Stack()).Msg("request failed")
		*err = status.Newf(status.Internal, op.String(), "", "%w", errFault)
	}
}

// errFault is what clients are told of a panic, which is in the log already.
var errFault = errors.New("a fault in the server, see its log")

func (c *conn) settleRead(h wire.Header, m wire.Message, err error, cost int64) {
	if err != nil {
		c.noteFault(h.Op, err)
		c.refuse(h, wire.FromError(err), c.reads, cost)
		return
	}
	c.reply(h, m, c.reads, cost)
}

// noteFault logs errors that are no answers to what was asked, but faults.
func (c *conn) noteFault(op wire.Opcode, err error) {
	if errors.Is(err, errFault) {
		return
	}
	switch status.Of(err) {
	case status.Internal, status.IO, status.Damaged:
		c.log.Error().Str("request", op.String()).Err(err).Msg("request failed")
	}
}

// What answers may take of memory, about.
const (
	smallCost = 4 << 10
	listCost  = 512 << 10
)

func costOf(m wire.Message) int64 {
	switch m := m.(type) {
	case *wire.ReadReq:
		return smallCost + int64(m.Len)
	case *wire.ReadDirReq, *wire.LogReq, *wire.VerifyReq, *wire.BranchesReq:
		return listCost
	case *wire.XattrReq, *wire.IDReq, *wire.ReadBranchReq:
		return smallCost + proto.MaxXattr
	}
	return smallCost
}

// listExports names the exports that the client may see.
func (c *conn) listExports() *wire.ExportsRep {
	rep := &wire.ExportsRep{}
	for name := range c.srv.exports {
		if maySee(&c.key, name) {
			rep.Names = append(rep.Names, name)
		}
	}
	slices.Sort(rep.Names)
	return rep
}

// readOnly reports whether the session may change anything.
func (c *call) readOnly() bool { return c.c.readOnly }

// who is on whose behalf a request is made.
func (c *call) who(claimed proto.Ident) *proto.Ident {
	who := c.c.ident.of(claimed)
	return &who
}

// view is the state in which a request reads.
func (c *call) view(at proto.LSN) (view, error) {
	if at == 0 {
		return c.exp.Journal, nil
	}
	if err := c.lasts(); err != nil {
		return nil, err
	}
	return c.exp.past.at(c.exp.Journal, at)
}

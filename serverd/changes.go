package serverd

import (
	"errors"

	"cagefs.dev/cage/journal"
	"cagefs.dev/cage/journal/replay"
	"cagefs.dev/cage/remote/proto"
	"cagefs.dev/cage/remote/status"
	"cagefs.dev/cage/remote/wire"
)

// A session's changes are submitted one after another, in the order of their
// numbers, and waited for side by side. The answer to a change that left no
// record (it was refused, or had nothing to do) is sent only after the answers
// to all changes before it. So a client that comes back either finds a change
// in the journal's results, or has its answer and those to all before it; its
// NextSeq and the journal's Applied together tell what must come next.

// change is a request that changes the export, from its arrival to its answer.
type change struct {
	head wire.Header
	req  *wire.ChangeReq
	cost int64
}

// outcome is what came of a change at its submission: something to wait for, or
// the answer itself.
type outcome struct {
	wait func() (proto.Result, error)
	res  proto.Result
	err  error
}

// enqueue takes a change from the reader, in the order of the session's log. A
// number that is neither the next one nor a repetition ends the connection.
func (c *conn) enqueue(h wire.Header, r *wire.ChangeReq, size int64) error {
	if c.sess == nil {
		return c.answerNow(h, nil, errNoExport)
	}
	if r.Seq == 0 || r.Seq > c.next {
		return c.violation(h, status.Newf(status.BadFrame, h.Op.String(), "", "operation %d where %d is expected", r.Seq, c.next))
	}
	if r.Seq == c.next {
		c.next++
	}
	cost := smallCost + size
	if err := c.changes.enter(c.ctx, cost); err != nil {
		return err
	}
	c.queue <- &change{head: h, req: r, cost: cost}
	return nil
}

// changeLoop submits the queued changes and returns when all are answered. When
// the connection is lost, those not yet submitted are dropped: the client sends
// them again.
func (c *conn) changeLoop() {
	before := make(chan struct{}) // closed when all changes so far are answered
	close(before)
	for ch := range c.queue {
		if c.ctx.Err() != nil {
			continue
		}
		o := c.submit(ch)
		after := make(chan struct{})
		go c.settle(ch, o, before, after)
		before = after
	}
	<-before
}

// settle answers a change when its outcome is known.
func (c *conn) settle(ch *change, o outcome, before <-chan struct{}, after chan<- struct{}) {
	defer close(after)
	if o.wait != nil {
		o.res, o.err = c.await(ch.head.Op, o.wait)
	}
	if o.res.LSN == 0 {
		<-before
	}
	if o.err != nil {
		c.noteFault(ch.head.Op, o.err)
		e := wire.FromError(o.err)
		e.LSN = o.res.LSN
		c.refuse(ch.head, e, c.changes, ch.cost)
	} else {
		c.noteMade(ch.req, &o.res)
		c.reply(ch.head, &wire.ChangeRep{Result: o.res}, c.changes, ch.cost)
	}
	<-before
	c.sess.doneUpTo(ch.req.Seq)
	c.sess.exp.Leases.progress(c.sess.id)
}

// await waits for a change; a panic is an answer too.
func (c *conn) await(op wire.Opcode, wait func() (proto.Result, error)) (res proto.Result, err error) {
	defer c.recovered(op, &err)
	return wait()
}

// noteMade lets the maker of a file open it. One without a name is open from the
// beginning, with the journal's hold, or it might be gone before its maker opens it.
func (c *conn) noteMade(r *wire.ChangeReq, res *proto.Result) {
	op, ok := r.Op.(*proto.Make)
	if !ok || op.Mode&proto.ModeType != proto.ModeRegular || res.ID == 0 {
		return
	}
	c.sess.made(res.ID, c.ident.of(r.Ident).UID)
	if op.Name == "" && c.sess.open(res.ID, 0, 1) != nil {
		c.sess.exp.Journal.Unhold(res.ID, 1)
	}
}

// submit hands a change to the journal. It blocks while the change depends on
// one that is not applied yet; a rollback or undo is done when it returns.
func (c *conn) submit(ch *change) (o outcome) {
	defer c.recovered(ch.head.Op, &o.err)
	r := ch.req
	op := r.Op
	if _, sync := op.(*proto.Sync); c.readOnly && !sync {
		return outcome{err: status.New(status.ReadOnly, ch.head.Op.String(), "")}
	}
	if err := wire.CheckOp(op); err != nil {
		return outcome{err: err}
	}
	s := &journal.Submission{
		Change: &proto.Change{
			Session: c.sess.id, Seq: r.Seq, Gen: r.Gen, Acked: r.Acked, Ident: c.ident.of(r.Ident), Op: op,
		},
		Client:  c.sess.client,
		Trusted: c.ident.trusted,
		Opened:  c.sess.openFlags(contentOf(op))&wire.OpenWrite != 0,
		Holds:   c.sess.holds,
	}
	if op, ok := op.(*proto.Copy); ok {
		s.SrcOpened = c.sess.openFlags(op.Src)&wire.OpenRead != 0
	}
	if _, write := op.(*proto.Write); !write && contentOf(op) != 0 && !s.Opened { // what is written was open, and may have been closed since
		if err := c.mayWrite(contentOf(op)); err != nil {
			return outcome{err: err}
		}
	}
	c.pass(s, &o)
	return o
}

// pass calls the part of the journal that an operation is for.
func (c *conn) pass(s *journal.Submission, o *outcome) {
	j := c.sess.exp.Journal
	switch op := s.Op.(type) {
	case *proto.Rollback:
		if o.err = mayRewind(&s.Ident); o.err == nil {
			o.res, o.err = c.cleared(s, func() (proto.Result, error) { return replay.Rollback(c.ctx, j, s, op) })
		}
	case *proto.Undo:
		if o.err = mayRewind(&s.Ident); o.err == nil {
			o.res, o.err = c.cleared(s, func() (proto.Result, error) { return replay.Undo(c.ctx, j, s, op) })
		}
	case *proto.Sync:
		// Everything before it is submitted, which is all that its place in the
		// order means; nothing after it waits for the disk.
		o.wait = func() (proto.Result, error) { return j.Do(c.ctx, s) }
	case *proto.Branch:
		o.res, o.err = c.passBranch(s, op)
	default:
		w, _ := op.(*proto.Write)
		if w != nil && w.Lost {
			o.err = c.strand(s, w)
			return
		}
		var t *journal.Ticket
		if t, o.err = j.Submit(c.ctx, s); o.err != nil {
			if w != nil && errors.Is(o.err, errVoid) {
				o.err = c.strand(s, w)
			}
			return
		}
		// Not the connection's context: who takes the session over must find
		// everything that was submitted done.
		o.wait = func() (proto.Result, error) { return t.Wait(c.srv.base) }
	}
}

// contentOf is the file whose content an operation changes, 0 if none.
func contentOf(op proto.Op) proto.FileID {
	switch op := op.(type) {
	case *proto.Write:
		return op.ID
	case *proto.Allocate:
		return op.ID
	case *proto.Copy:
		return op.ID
	case *proto.SetAttr:
		if op.Mask&proto.SetSize != 0 {
			return op.ID
		}
	}
	return 0
}

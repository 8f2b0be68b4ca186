package serverd

import (
	"errors"
	"slices"

	"cagefs.dev/cage/journal"
	"cagefs.dev/cage/remote/proto"
	"cagefs.dev/cage/remote/status"
	"cagefs.dev/cage/remote/wire"
)

// Requests about leases, and what leases mean for requests that read.

// startAcquire waits for leases in a goroutine of its own, and answers as soon as
// they are had.
func (c *conn) startAcquire(h wire.Header, m *wire.AcquireReq) error {
	if err := c.reads.enter(c.ctx, smallCost); err != nil {
		return err
	}
	c.handlers.Go(func() {
		err := c.mayAcquire(m)
		if err == nil {
			err = c.sess.exp.Leases.wait(c.waiting, c.sess.id, m.Wants, func(gens []proto.Gen) {
				c.reply(h, &wire.AcquireRep{Gens: gens}, c.reads, smallCost)
			})
		}
		if err != nil {
			c.settleRead(h, nil, c.notHere(err), smallCost)
		}
	})
	return nil
}

// mayAcquire reports whether leases can be asked for: of files that the client may
// know of, looks by everybody, the rest by who may change something or is given leases anyway.
func (c *conn) mayAcquire(m *wire.AcquireReq) error {
	for _, w := range m.Wants {
		switch {
		case w.ID == 0 || w.ID > proto.MaxFileID:
			return status.Invalid
		case w.Mode == proto.WriteLease && c.readOnly:
			return status.ReadOnly
		case w.Mode == proto.ReadLease && !c.sess.leases:
			return status.Invalid
		case !c.ident.trusted && !c.sess.holds(w.ID):
			if err := c.sess.exp.Journal.Reach(w.ID, &c.ident.who); err != nil {
				return err
			}
		}
	}
	if !slices.ContainsFunc(m.Wants, func(w proto.Want) bool { return w.Mode != proto.NoLease }) {
		return nil
	}
	// A session that is not recorded yet changes nothing before it is, and what it
	// acknowledges before that is lost with the server.
	if err := c.sess.exp.Leases.record(c.sess.id); status.Of(err) != status.Unsupported {
		return err
	}
	return nil
}

// returned takes a lease back when all that was acknowledged under it is
// applied. It is answered before that.
func returned(c *call, m *wire.ReturnReq) (wire.Message, error) {
	return &wire.Empty{}, c.sess.after(m.Seq, func() { c.exp.Leases.back(c.sess.id, m) })
}

// peeked lets those read who look, when all that was acknowledged is applied.
func peeked(c *call, m *wire.PeekedReq) (wire.Message, error) {
	return &wire.Empty{}, c.sess.after(m.Seq, func() { c.exp.Leases.peeked(c.sess.id, m) })
}

// settled ends the waiting for a session after a restart, when all that it acknowledged before is applied.
func settled(c *call, m *wire.SettledReq) (wire.Message, error) {
	return &wire.Empty{}, c.sess.after(m.Seq, func() { c.exp.Leases.settled(c.sess.id) })
}

// look returns when the present state of files is all that anybody may know of them.
func (c *call) look(at proto.LSN, files ...proto.FileID) error {
	if at != 0 {
		return nil
	}
	return c.c.notHere(c.exp.Leases.look(c.c.waiting, c.sess.id, files...))
}

// notHere makes the error of a wait that ended with the connection's reader one
// which says that the request is for the next connection.
func (c *conn) notHere(err error) error {
	if err != nil && c.waiting.Err() != nil {
		return status.Draining
	}
	return err
}

// lease gives the session what it may have of a file, of which it is told in the
// answer. What it is told is to be read afterwards. Without a lease it is true in this moment.
func (c *call) lease(at proto.LSN, id proto.FileID, mode proto.LeaseMode) (proto.Lease, error) {
	if at != 0 || !c.sess.leases {
		return proto.Lease{}, c.look(at, id)
	}
	given, foreign := c.exp.Leases.grant(c.sess.id, id, mode)
	if !foreign {
		return given, nil
	}
	return proto.Lease{}, c.look(at, id)
}

// leasedAttr is what a file's attributes are once the session has what it may
// have of it. That it may know of the file has been checked.
func (c *call) leasedAttr(v view, at proto.LSN, id proto.FileID, mode proto.LeaseMode) (proto.Attr, error) {
	l, err := c.lease(at, id, mode)
	if err != nil {
		return proto.Attr{}, err
	}
	a, err := v.Attr(id)
	a.Lease = l
	return a, err
}

// leaseEntries gives the session leases of the files in a part of a listing that
// was read when changes had begun and ended so often. Attributes that may be
// older than the lease, or than what others have acknowledged, are left out.
func (c *call) leaseEntries(v view, at proto.LSN, entries []proto.DirEntry, changed uint64) {
	if at != 0 {
		return
	}
	for i := range entries {
		a := &entries[i].Attr
		if a.ID == 0 || a.Nlink == 0 {
			continue
		}
		var foreign bool
		if c.sess.leases {
			a.Lease, foreign = c.exp.Leases.grant(c.sess.id, a.ID, proto.ReadLease)
		} else {
			foreign = c.exp.Leases.foreign(c.sess.id, a.ID)
		}
		if foreign {
			*a = proto.Attr{ID: a.ID, Mode: a.Mode & proto.ModeType}
		}
	}
	if c.exp.Leases.changed() == changed {
		return
	}
	for i := range entries {
		if a := &entries[i].Attr; a.Lease.Mode != proto.NoLease {
			fresh, err := v.Attr(a.ID)
			if err != nil {
				fresh = proto.Attr{ID: a.ID, Mode: a.Mode & proto.ModeType}
			}
			fresh.Lease = a.Lease
			*a = fresh
		}
	}
}

// cleared calls f, which makes a transaction, until no lease is in its way: it is
// not acknowledged before, so that its session's log need not wait for others.
func (c *conn) cleared(s *journal.Submission, f func() (proto.Result, error)) (proto.Result, error) {
	for {
		res, err := f()
		var need *wire.NeedLeases
		if !errors.As(err, &need) {
			return res, err
		}
		wants := make([]proto.Want, len(need.IDs))
		for i, id := range need.IDs {
			wants[i] = proto.Want{ID: id, Mode: proto.WriteLease}
		}
		if err := c.sess.exp.Leases.wait(c.waiting, s.Session, wants, nil); err != nil {
			return proto.Result{}, err
		}
	}
}

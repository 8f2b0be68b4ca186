package serverd

import (
	"cagefs.dev/cage/journal"
	"cagefs.dev/cage/remote/proto"
	"cagefs.dev/cage/remote/status"
	"cagefs.dev/cage/remote/wire"
)

// at returns a file of a view, if the identity may come to it (see
// journal.Reach): a trusted client knows files by their numbers alone, others on
// the way of their names, or because their session has them open. A past state
// wants the way then and, as far as the file still exists, now.
func (c *call) at(v view, at proto.LSN, id proto.FileID, who *proto.Ident) (proto.Attr, error) {
	a, err := v.Attr(id)
	if err != nil || c.c.ident.trusted {
		return a, err
	}
	if at == 0 {
		return a, c.reach(id, who)
	}
	if err := c.reach(id, who); err != nil && status.Of(err) != status.Stale {
		return a, err
	}
	return a, reachThen(v, &a, who)
}

// reach checks the way to a file in the present.
func (c *call) reach(id proto.FileID, who *proto.Ident) error {
	if c.sess.holds(id) {
		return nil
	}
	return c.exp.Journal.Reach(id, who)
}

// maxDepth is how many directories above a file are walked.
const maxDepth = 1 << 14

// reachThen checks the way to a file in a past state. What had no name then is
// its owner's alone.
func reachThen(v view, a *proto.Attr, who *proto.Ident) error {
	p, ok := v.(*journal.Past)
	if !ok {
		return status.Access
	}
	ways, err := p.Places(a.ID)
	switch {
	case err != nil:
		return err
	case a.ID == proto.RootID || len(ways) == 0 && a.UID == who.UID:
		return nil
	}
	for _, way := range ways {
		if upThen(p, way.Dir, who) == nil {
			return nil
		}
	}
	return status.Access
}

// upThen checks that an identity could search a directory and all above it.
func upThen(p *journal.Past, dir proto.FileID, who *proto.Ident) error {
	for range maxDepth {
		a, err := p.Attr(dir)
		if err == nil {
			err = p.Access(&a, who, journal.MayExec)
		}
		if err != nil || dir == proto.RootID {
			return err
		}
		ways, err := p.Places(dir)
		if err != nil || len(ways) == 0 {
			return status.Access
		}
		dir = ways[0].Dir
	}
	return status.Access
}

// told is a push as a connection may hear of it: who may not list a directory
// learns no names in it, only that it changed.
func (c *conn) told(m *wire.Changed) *wire.Changed {
	if len(m.Names) == 0 || c.ident.trusted || c.mayList(m.ID) {
		return m
	}
	return &wire.Changed{ID: m.ID, Change: m.Change, Data: m.Data}
}

func (c *conn) mayList(dir proto.FileID) bool {
	j, who := c.sess.exp.Journal, &c.ident.who
	if c.sess.openFlags(dir)&wire.OpenRead != 0 {
		return true
	}
	a, err := j.Attr(dir)
	return err == nil && j.Access(&a, who, journal.MayRead) == nil && j.Reach(dir, who) == nil
}

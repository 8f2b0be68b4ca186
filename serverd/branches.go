package serverd

import (
	"errors"
	"io"

	"cagefs.dev/cage/journal"
	"cagefs.dev/cage/journal/replay"
	"cagefs.dev/cage/remote/proto"
	"cagefs.dev/cage/remote/status"
	"cagefs.dev/cage/remote/wire"
)

// strand keeps a write in its session's branch that cannot be applied any more.
// It returns the change's answer, which says so.
func (c *conn) strand(s *journal.Submission, w *proto.Write) error {
	if len(w.Data) == 0 {
		return errVoid
	}
	name := journal.BranchName(s.Session)
	fresh, err := c.sess.exp.Journal.Strand(c.srv.base, s, w, c.sess.exp.Leases.owns(s.Session, w.ID))
	if err != nil {
		c.log.Warn().Str("session", name).Stringer("file", w.ID).Int("bytes", len(w.Data)).Err(err).Msg("a write is lost: it can neither be applied nor kept")
		return status.Newf(status.LostLock, "change", "", "it was acknowledged under a lease or lock that is lost, and could not be kept: %w", err)
	}
	if fresh {
		c.log.Warn().Str("branch", name).Msg("writes cannot be applied any more, and are kept")
	}
	return status.Newf(status.LostLock, "change", "", "it was acknowledged under a lease or lock that is lost; it is kept in branch %s", name)
}

// owns reports whether a session has the write lease of a file.
func (l *Leases) owns(id proto.SessionID, file proto.FileID) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.table != nil && l.table.Owns(id, file)
}

// seesBranch says who may look into a branch: root, and the user as whom the server
// runs; of a client, the user who made all of its writes.
func (c *call) seesBranch(who *proto.Ident, b *journal.Branch) bool {
	if privileged(who) {
		return true
	}
	own := b.Client == c.exp.Journal.ClientName(c.sess.client)
	return own && len(b.UIDs) == 1 && b.UIDs[0] == who.UID
}

// branches lists the branches.
func branches(c *call, m *wire.BranchesReq) (wire.Message, error) {
	list, err := c.exp.Journal.Branches()
	if err != nil {
		return nil, err
	}
	who, rep, after := c.who(m.Ident), &wire.BranchesRep{}, m.After == 0
	for i := range list {
		b := &list[i]
		if after && c.seesBranch(who, b) {
			rep.Branches = append(rep.Branches, b.BranchInfo)
		}
		after = after || b.Session == m.After
	}
	if len(rep.Branches) > wire.MaxEntries {
		rep.Branches, rep.More = rep.Branches[:wire.MaxEntries], true
	}
	return rep, nil
}

// readBranch reads bytes of a branch's file. A branch that somebody may not see is not there for him.
func readBranch(c *call, m *wire.ReadBranchReq) (wire.Message, error) {
	b, err := c.exp.Journal.Branch(m.Session)
	if err != nil {
		return nil, err
	}
	if !c.seesBranch(c.who(m.Ident), &b) {
		return nil, status.Newf(status.NotFound, "", journal.BranchName(m.Session), "there is no such branch")
	}
	if m.Off > 1<<62 {
		return &wire.BytesRep{}, nil
	}
	p := make([]byte, min(m.Len, proto.MaxXattr))
	n, err := c.exp.Journal.ReadBranch(m.Session, p, int64(m.Off))
	if errors.Is(err, io.EOF) {
		err = nil
	}
	return &wire.BytesRep{Value: p[:n]}, err
}

// passBranch applies a branch, or drops it.
func (c *conn) passBranch(s *journal.Submission, op *proto.Branch) (proto.Result, error) {
	if err := mayRewind(&s.Ident); err != nil {
		return proto.Result{}, err
	}
	return c.cleared(s, func() (proto.Result, error) { return replay.Branch(c.ctx, c.sess.exp.Journal, s, op) })
}

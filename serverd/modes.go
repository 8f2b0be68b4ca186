package serverd

import (
	"time"

	"cagefs.dev/cage/journal"
	"cagefs.dev/cage/remote/lockset"
	"cagefs.dev/cage/remote/proto"
	"cagefs.dev/cage/remote/status"
	"cagefs.dev/cage/remote/wire"
	"cagefs.dev/cage/serverd/lock"
)

// A mode is a lock of the kind Opens (lockset.Mode): its session keeps it and loses it
// like any other. An open without a mode locks nothing, so the two sides are compared
// here: an open is counted and compared with the modes of others, and a mode is
// taken and compared with what others have open, both with locks.opening held.
//
// A refusal is Busy, and names who is in the way; where that one has closed the file
// already and only what he wrote is on its way, it is Locked: the client asks again.

// opens names what modes lock. All opens of a file in a session have one mode together, the strongest.
func opens(id proto.FileID, s proto.SessionID, l lockset.Lock) lock.Request {
	return lock.Request{File: lock.File{ID: id}, Owner: lock.Owner{Session: s}, Kind: lockset.Opens, Lock: l}
}

// enter counts an open of the present that the journal holds already, unless a mode of
// another session forbids it. It may block for a sync of the journal, once.
func (c *call) enter(id proto.FileID, flags uint32) error {
	l := c.exp.locks
	if err := l.awaitModes(); err != nil {
		return err
	}
	l.opening.Lock()
	defer l.opening.Unlock()
	if err := c.c.permit(id, flags&wire.OpenWrite != 0, "open"); err != nil {
		return err
	}
	return c.sess.open(id, flags, 1)
}

// permit is the error of an open that a mode of another session forbids.
func (c *conn) permit(id proto.FileID, writes bool, what string) error {
	return c.inTheWay(opens(id, c.sess.id, lockset.Opening(writes)), what)
}

// mayWrite is the error of a change of content by who does not have the file open for writing, as truncate(2).
func (c *conn) mayWrite(id proto.FileID) error {
	err := c.permit(id, true, "write")
	if status.Of(err) == status.Locked { // nobody asks again
		return status.New(status.Busy, "write", id.String())
	}
	return err
}

// inTheWay says whose mode is in the way of an open or of a mode.
func (c *conn) inTheWay(r lock.Request, what string) error {
	l := c.sess.exp.locks
	l.mu.Lock()
	holder, held := l.table.Test(r)
	l.mu.Unlock()
	if !held {
		return nil
	}
	other := c.srv.lookupSession(holder.Owner.Session)
	if other == nil || !other.holds(r.File.ID) {
		return status.Newf(status.Locked, what, r.File.ID.String(), "who had it open to himself is closing it")
	}
	return c.busy(what, r.File.ID, other, " in mode "+lockset.ModeOf(holder.Lock).String())
}

// busy is a refusal.
func (c *conn) busy(what string, id proto.FileID, other *session, how string) error {
	err := status.Newf(status.Busy, what, id.String(), "%s has it open%s", other.name, how)
	if c.sess.exp.locks.mention(id, c.sess.id) {
		c.log.Info().Err(err).Str("holder_session", sessionText(other.id)).Msg("refused")
	}
	return err
}

// mentionPause is how often the log says the same of a file: who is refused asks again, and programs may write all the time.
const mentionPause = 10 * time.Second

// maxMentions bounds how much is remembered of that.
const maxMentions = 1024

// mention is of a file and who is refused, or 0 for a program of the server.
type mention struct {
	file proto.FileID
	who  proto.SessionID
}

// mention reports whether the log is to say something of a file and a session.
func (l *locks) mention(id proto.FileID, who proto.SessionID) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	m := mention{id, who}
	if last, ok := l.mentions[m]; ok && time.Since(last) < mentionPause {
		return false
	}
	if len(l.mentions) >= maxMentions {
		clear(l.mentions)
	}
	l.mentions[m] = time.Now()
	return true
}

// takeMode gives the session a mode for a file that it has open.
func (c *call) takeMode(r lock.Request) (lock.Outcome, error) {
	l := c.exp.locks
	if err := l.recordModes(c.sess.id); err != nil {
		return 0, err
	}
	mode := lockset.ModeOf(r.Lock)
	l.opening.Lock()
	defer l.opening.Unlock()
	for _, other := range c.c.srv.sessionList() {
		if other.exp != c.exp || other == c.sess || !other.holds(r.File.ID) {
			continue
		}
		if mode == lockset.WriteMine {
			return 0, c.c.busy("mode wm", r.File.ID, other, "")
		}
		if other.openFlags(r.File.ID)&wire.OpenWrite != 0 {
			return 0, c.c.busy("mode "+mode.String(), r.File.ID, other, " for writing")
		}
	}
	if err := c.c.inTheWay(r, "mode "+mode.String()); err != nil {
		return 0, err
	}
	return l.lock(r, 0), nil // of others nobody takes one meanwhile
}

// awaitModes waits for sessions from before the start that may have modes: Locked as long as they may
// come back, then they have lost them.
func (l *locks) awaitModes() error {
	l.mu.Lock()
	waits, grace := false, l.graceLocked()
	for id := range l.modes {
		_, absent := l.absent[id]
		waits = waits || absent
	}
	l.mu.Unlock()
	switch {
	case !waits:
		return nil
	case grace:
		return status.Newf(status.Locked, "open", "", "clients from before the restart may come back to what they had open to themselves")
	}
	return l.loseAbsent()
}

// recordModes makes sure that the journal knows that a session may have modes. It
// blocks for a sync of the journal the first time.
func (l *locks) recordModes(id proto.SessionID) error {
	l.mu.Lock()
	known := l.modes[id]
	l.mu.Unlock()
	if known {
		return nil
	}
	if err := l.journal.SetModes(id); err != nil {
		return err
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	l.modes[id] = true
	return nil
}

// local reports a program of the server that changes the content of a file which
// a client has open to itself: nobody can keep it from that.
func (s *Server) local(exp *export, a journal.Applied) {
	if a.Session != 0 || a.ID == 0 || !a.Data {
		return
	}
	l := exp.locks
	l.mu.Lock()
	holder, held := l.table.Test(opens(a.ID, 0, lockset.Opening(true)))
	l.mu.Unlock()
	if held && l.mention(a.ID, 0) {
		s.log.Warn().Str("export", exp.Name).Stringer("file", a.ID).Uint64("lsn", uint64(a.LSN)).Str("holder_session", sessionText(holder.Owner.Session)).
			Stringer("mode", lockset.ModeOf(holder.Lock)).Msg("a program of this machine changed a file that a client has open to itself")
	}
}

package serverd

import (
	"crypto/rand"
	"encoding/binary"
	"fmt"
	"iter"
	"maps"
	"slices"
	"time"

	"cagefs.dev/cage/remote/auth"
	"cagefs.dev/cage/remote/proto"
	"cagefs.dev/cage/remote/status"
)

// takeOver finds the session that a client wants to go on with, ends its
// connection, waits for what that has submitted, and returns it with attach
// held and the newest operation applied or failed. nil if there is no such
// session, or it is not this client's.
func (s *Server) takeOver(id proto.SessionID, exp *export, key *auth.ClientKey, said string) (*session, proto.Seq, error) {
	sess, err := s.find(id, exp, key, said)
	if sess == nil || err != nil {
		return nil, 0, err
	}
	sess.attach.Lock()
	if sess.isEnded() {
		sess.attach.Unlock()
		return nil, 0, nil
	}
	if old := sess.current(); old != nil {
		old.abort(errTakenOver)
		<-old.done
	}
	applied, err := exp.Journal.ResumeSession(id, string(key.Fingerprint))
	if err == nil {
		return sess, applied, nil
	}
	sess.attach.Unlock()
	if status.Of(err) == status.LostSession {
		s.end(sess, "the journal has lost it", false)
		return nil, 0, nil
	}
	return nil, 0, err
}

// find returns a session from memory, or one that the journal knows from before
// a restart; nil if neither, or it is another client's or export's.
func (s *Server) find(id proto.SessionID, exp *export, key *auth.ClientKey, said string) (*session, error) {
	if sess := s.lookupSession(id); sess != nil {
		if sess.exp != exp || sess.key.Fingerprint != key.Fingerprint {
			return nil, nil
		}
		return sess, nil
	}
	_, err := exp.Journal.ResumeSession(id, string(key.Fingerprint))
	switch {
	case status.Of(err) == status.LostSession:
		return nil, nil
	case err != nil:
		return nil, err
	}
	name, client, err := s.clientOf(exp.Journal, key, said)
	if err != nil {
		return nil, err
	}
	return s.addSession(newSession(id, exp, key, name, client))
}

// create opens a new session, with attach held. One with leases is always recorded.
func (s *Server) create(exp *export, key *auth.ClientKey, said string, leases bool) (*session, error) {
	name, client, err := s.clientOf(exp.Journal, key, said)
	if err != nil {
		return nil, err
	}
	record := s.mayRecord(key.Fingerprint, time.Now())
	if leases && !record {
		return nil, status.Newf(status.Busy, "open session", "", "too many sessions of the client within a minute: try again")
	}
	sess, err := s.addSession(newSession(newSessionID(), exp, key, name, client))
	if err != nil {
		return nil, err
	}
	sess.attach.Lock()
	open := exp.Journal.OpenBriefSession
	if record {
		open = exp.Journal.OpenSession
	}
	if err := open(sess.id, client, string(key.Fingerprint)); err != nil {
		sess.markEnded()
		sess.attach.Unlock()
		s.removeSession(sess)
		return nil, err
	}
	return sess, nil
}

// newSessionID makes a number that no other session has.
func newSessionID() proto.SessionID {
	for {
		var b [8]byte
		rand.Read(b[:])
		if id := binary.LittleEndian.Uint64(b[:]); id != 0 {
			return proto.SessionID(id)
		}
	}
}

func (s *Server) lookupSession(id proto.SessionID) *session {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.sessions[id]
}

func (s *Server) removeSession(sess *session) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.sessions, sess.id)
}

// addSession puts a session into the table and returns what is there then: it,
// or the one that another connection has put there meanwhile. Where the client, or
// the table, is full, that one of its, or of all, sessions ends that has been
// without connection for longest.
func (s *Server) addSession(sess *session) (*session, error) {
	for {
		there, oldest := s.tryAdd(sess)
		if there != nil {
			return there, nil
		}
		if oldest == nil {
			return nil, status.Newf(status.Busy, "open session", "", "the client has %d sessions already, or all clients together %d", maxClientSessions, maxSessions)
		}
		s.end(oldest, "too many sessions", false)
	}
}

// tryAdd is addSession where there is room, otherwise it returns the session
// that was left first, of those that count, nil if all are connected.
func (s *Server) tryAdd(sess *session) (there, oldest *session) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if other := s.sessions[sess.id]; other != nil {
		return other, nil
	}
	var mine []*session
	for _, other := range s.sessions {
		if other.key.Fingerprint == sess.key.Fingerprint {
			mine = append(mine, other)
		}
	}
	switch {
	case len(mine) >= maxClientSessions:
		return nil, longestIdle(slices.Values(mine))
	case len(s.sessions) >= maxSessions:
		return nil, longestIdle(maps.Values(s.sessions))
	}
	s.sessions[sess.id] = sess
	return sess, nil
}

// longestIdle is the session that was left first, nil if all are connected.
func longestIdle(list iter.Seq[*session]) (oldest *session) {
	var most time.Duration
	for sess := range list {
		if d := sess.idle(); d > most {
			oldest, most = sess, d
		}
	}
	return oldest
}

// end closes a session for good, unless a connection has taken it over. sure: its
// client relies on nothing any more.
func (s *Server) end(sess *session, why string, sure bool) {
	sess.attach.Lock()
	defer sess.attach.Unlock()
	if sess.current() != nil || sess.isEnded() {
		return
	}
	sess.markEnded()
	sess.dropOpens()
	sess.exp.locks.end(sess.id)
	sess.exp.Leases.end(sess.id, sure)
	err := sess.exp.Journal.CloseSession(sess.id)
	s.removeSession(sess)
	s.log.Info().Str("session", sessionText(sess.id)).Str("export", sess.exp.Name).Str("client", sess.name).
		Str("why", why).AnErr("error", err).Msg("session ended")
}

// expel ends a session for good, its connection first; false if it had ended.
func (s *Server) expel(sess *session, why error) bool {
	if c := sess.current(); c != nil {
		c.abort(why)
		<-c.done
	}
	if sess.isEnded() {
		return false
	}
	s.end(sess, why.Error(), false)
	return true
}

// tidySessions ends sessions that nobody came back to, and before that takes
// their open files from them, and still earlier their locks, for which others wait.
func (s *Server) tidySessions() {
	for _, sess := range s.sessionList() {
		switch idle := sess.idle(); {
		case idle >= s.o.Forget:
			s.end(sess, "nobody came back", false)
		case idle >= s.o.Grace:
			s.disarm(sess)
		case idle >= s.o.Locks:
			s.unlock(sess)
		}
	}
}

// tidyJournals closes, once this run is old enough, the sessions of earlier runs
// that nobody came back to.
func (s *Server) tidyJournals() {
	if time.Since(s.began) < s.o.Forget {
		return
	}
	for _, exp := range s.exports {
		for _, id := range exp.Journal.Sessions() {
			// Whoever comes back meanwhile finds a session that is not his.
			mine := newSession(id, exp, &auth.ClientKey{}, "", 0)
			if there, _ := s.tryAdd(mine); there == mine {
				s.end(mine, "nobody came back since the server started", false)
			}
		}
	}
}

// unlock takes its locks from a session that is without connection: whatever was
// done under them and came in over that connection is done.
func (s *Server) unlock(sess *session) {
	sess.attach.Lock()
	defer sess.attach.Unlock()
	if sess.current() != nil {
		return
	}
	s.loseLocks(sess)
}

func (s *Server) loseLocks(sess *session) {
	n, err := sess.exp.locks.lose(sess.id)
	if n > 0 || err != nil {
		s.log.Warn().Err(err).Str("session", sessionText(sess.id)).Str("client", sess.name).Int("locks", n).Msg("locks of a lost session dropped")
	}
}

// disarm drops the locks and open files of a session that is without connection.
func (s *Server) disarm(sess *session) {
	sess.attach.Lock()
	defer sess.attach.Unlock()
	if sess.current() != nil {
		return
	}
	s.loseLocks(sess)
	if n := sess.dropOpens(); n > 0 {
		s.log.Info().Str("session", sessionText(sess.id)).Int("files", n).Msg("open files of a lost session dropped")
	}
}

func (s *Server) sessionList() []*session {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Collect(maps.Values(s.sessions))
}

// sessionText is a session's number as logs show it.
func sessionText(id proto.SessionID) string { return fmt.Sprintf("%016x", uint64(id)) }

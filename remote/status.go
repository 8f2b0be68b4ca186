package remote

import (
	"time"

	"cagefs.dev/cage/remote/oplog"
	"cagefs.dev/cage/remote/proto"
)

// State of a session's connection.
type State int

// States. A session starts Online.
const (
	Online State = iota
	Reconnecting
	Stale // the leases are over and reads are answered from what was known; or that is being compared with the server's
	Closed
)

// String is the state for people.
func (st State) String() string {
	switch st {
	case Online:
		return "online"
	case Reconnecting:
		return "reconnecting"
	case Stale:
		return "stale"
	default:
		return "closed"
	}
}

// Status is what `cagefs status` shows of a session.
type Status struct {
	State     State
	Addr      string
	Export    string
	Session   proto.SessionID
	Since     time.Time     // of the state
	Silent    time.Duration // while it is online: for how long the server, asked for something, has said nothing at all
	LastError string        // why it is not online, or the last failure of a logged operation
	Unapplied int           // operations logged and not yet applied
	Bytes     int64         // bytes of new data in them
	Leases    int           // of files and directories
	Writing   int           // of them: write leases
	DataConns int
	Resumes   int      // reconnects that went on with the session
	Refused   *Refused // the last; nil: none
}

// Status never blocks.
func (s *Session) Status() Status {
	s.mu.Lock()
	defer s.mu.Unlock()
	st := Status{
		State: s.state, Addr: s.o.Addr, Export: s.o.Export, Session: s.id, Since: s.since,
		LastError: s.opErr, Resumes: s.resumes, Refused: s.lastRefused,
	}
	if s.main != nil {
		st.Silent = s.main.silentLocked()
	}
	if s.state == Reconnecting {
		st.LastError = s.connErr
	}
	if s.stale || s.o.Stale > 0 && s.state == Online && s.settled < s.resets {
		st.State = Stale
	}
	st.Unapplied, st.Bytes = s.log.Unanswered()
	st.Leases, st.Writing = s.leases.Count()
	for _, p := range s.ports {
		if p.conn != nil {
			st.DataConns++
		}
	}
	return st
}

// Owing are the files of which the server has not everything that was accepted. It never blocks.
func (s *Session) Owing() []oplog.Owed {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.log.Owing()
}

// State is that of the connection. It never blocks.
func (s *Session) State() State {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.state
}

func (s *Session) setStateLocked(st State) {
	s.state, s.since = st, time.Now()
}

package remote

import (
	"context"
	"errors"
	"math/rand/v2"
	"time"

	"cagefs.dev/cage/remote/boottime"
	"cagefs.dev/cage/remote/status"
	"cagefs.dev/cage/remote/wire"
)

// Pauses between attempts to connect. A connection that lasted for settled was
// a good one: the next loss begins with the shortest pause again.
const (
	minPause = 50 * time.Millisecond
	maxPause = 5 * time.Second
	settled  = 5 * time.Second
	askPause = 200 * time.Millisecond // while somebody waits for the server
)

// keepConnected replaces the main connection whenever it is lost, until the
// session ends. Then nothing is answered any more.
func (s *Session) keepConnected(c *conn) {
	defer close(s.ended)
	pause := minPause
	for {
		select {
		case <-c.gone:
		case <-s.ctx.Done():
			c.fail(errClosedHere)
			return
		}
		if s.State() == Closed {
			return
		}
		if s.now()-c.born >= settled {
			pause = minPause
		}
		if c = s.reconnect(&pause); c == nil {
			return
		}
	}
}

var errClosedHere = errors.New("closed by this side")

// reconnect tries until it has a connection, nil once the session ends.
func (s *Session) reconnect(pause *time.Duration) *conn {
	for {
		if !s.rest(*pause/2 + rand.N(*pause/2+1)) {
			return nil
		}
		*pause = min(2**pause, s.longestPause())
		if c := s.tryConnect(); c != nil {
			return c
		}
	}
}

// longestPause is how long at most the session waits between attempts to connect: where it has
// leases, short enough to be back, whenever the server is, before they are over.
func (s *Session) longestPause() time.Duration {
	if t := term(&s.first); t > 0 {
		return max(min(maxPause, t/8), minPause)
	}
	return maxPause
}

// rest pauses before an attempt to connect, no longer than askPause once
// somebody asks. False: the session ends.
func (s *Session) rest(pause time.Duration) bool {
	asked := s.asked
	timer := time.NewTimer(pause)
	defer timer.Stop()
	for {
		select {
		case <-timer.C:
			return true
		case <-asked:
			asked = nil
			timer.Reset(min(pause, askPause))
		case <-s.ctx.Done():
			return false
		}
	}
}

// askForServer says that somebody waits for a server that is gone.
func (s *Session) askForServer() {
	select {
	case s.asked <- struct{}{}:
	default:
	}
}

// tryConnect connects once and resumes the session; nil if that failed.
func (s *Session) tryConnect() *conn {
	ctx, cancel := context.WithTimeout(s.ctx, connectTimeout)
	defer cancel()
	req := s.resumeHello()
	began := boottime.Now()
	var rep wire.HelloRep
	c, err := s.o.connect(ctx, s.o.Addr, wire.OpHello, req, &rep)
	s.mu.Lock()
	defer s.mu.Unlock()
	if err == nil && s.over {
		err = errClosedHere
	}
	if err == nil {
		err = s.o.believeHello(&rep, len(req.Locks), len(req.Claims))
	}
	if err == nil && rep.Resumed {
		err = s.log.Resume(rep.Applied)
	}
	if err != nil {
		if c != nil {
			c.raw.Close()
		}
		switch status.Of(err) {
		case status.LostSession:
			s.id = 0
		case status.WrongKey:
			s.refusedLocked(err)
		}
		s.connErr = err.Error()
		s.o.Log.Debug().Err(err).Msg("not connected yet")
		return nil
	}
	if rep.Resumed {
		s.resumes++
		s.lostLocksLocked(req.Locks, rep.LostLocks, rep.Applied)
		s.heardLocked(began)
	} else if s.o.Export != "" { // a client that only lists exports has no session
		s.leases.Drop(rep.Void)
		s.leases.Answered(began, boottime.Now())
		s.lostLocked()
		s.resetLocked()
	}
	s.admittedLocked()
	s.id = rep.Session
	s.reopenLocked(req.Opens, rep.Resumed)
	s.useLocked(c, &rep)
	if rep.Resumed {
		s.resumedLeasesLocked(req, &rep)
	}
	s.setStateLocked(Online)
	s.o.Log.Info().Str("addr", s.o.Addr).Bool("resumed", rep.Resumed).Msg("connected again")
	return c
}

// resumeHello asks to go on with the session.
func (s *Session) resumeHello() *wire.HelloReq {
	req := s.o.hello()
	s.mu.Lock()
	defer s.mu.Unlock()
	req.Session = s.id
	req.NextSeq = s.log.WireAcked() + 1
	for id, o := range s.opens {
		if o.count > 0 && len(req.Opens) < wire.MaxOpens {
			o.granted = true
			req.Opens = append(req.Opens, id)
		}
	}
	req.Locks = s.locks.list()
	for _, c := range s.leases.Claims(wire.MaxClaims) {
		req.Claims = append(req.Claims, wire.Claim{ID: c.ID, Gen: c.Gen, First: c.First, Mode: c.Mode})
	}
	return req
}

// lostLocked says that the server has given a new session instead of the old one.
func (s *Session) lostLocked() {
	err := status.Newf(status.LostSession, "reconnect", s.o.Addr,
		"the server does not know the session any more, so it cannot be told whether the change was applied")
	failed, kept := s.log.Lose(err)
	s.o.Log.Warn().Int("failed", len(failed)).Int("kept", kept).Msg("the server has lost the session")
	for _, f := range failed {
		s.failedLocked(f)
	}
	s.lostAllLocksLocked()
	s.lighterLocked()
}

// useLocked makes c the main connection.
func (s *Session) useLocked(c *conn, rep *wire.HelloRep) {
	c.s = s
	s.main = c
	s.lost.Store(0)
	s.ports = newPorts(s, rep.DataPorts)
	c.runLocked()
}

// disconnectedLocked says that the main connection is dead.
func (s *Session) disconnectedLocked(c *conn, err error) {
	s.main = nil
	s.locks.disconnected()
	s.lost.Store(max(1, int64(s.now())))
	s.log.Disconnected()
	if s.state == Online {
		s.setStateLocked(Reconnecting)
		s.connErr = err.Error()
		s.o.Log.Info().Err(err).Str("addr", c.addr).Msg("connection lost")
	}
}

package remote

import (
	"context"
	"net"
	"strconv"
	"time"

	"cagefs.dev/cage/remote/wire"
)

// How long a data port is left alone after it could not be reached, and after
// its connection was lost.
const (
	portRetry = 30 * time.Second
	portRest  = time.Second
)

// port is a data port of the server, with the connection to it. It belongs to
// one main connection and ends with it. Guarded by Session.mu.
type port struct {
	s       *Session
	addr    string
	conn    *conn         // nil: none yet, or lost
	dialing bool          // a goroutine is at it
	retryAt time.Duration // see Session.now
}

// maxPorts is how many data connections a session makes, however many ports the
// server offers: as many as cageserverd lets it have.
const maxPorts = 16

// newPorts are the data ports that a server offers at the host that was dialled.
func newPorts(s *Session, count uint16) []*port {
	host, text, err := net.SplitHostPort(s.o.Addr)
	if err != nil || !s.o.DataPort {
		return nil
	}
	main, err := strconv.Atoi(text)
	if err != nil {
		return nil
	}
	var out []*port
	for i := 1; i <= min(int(count), maxPorts, 1<<16-1-main); i++ {
		out = append(out, &port{s: s, addr: net.JoinHostPort(host, strconv.Itoa(main+i))})
	}
	return out
}

// dataConnLocked picks the data connection with the least to do for a request
// that may use one; nil: the main connection. Data connections are made when
// first wanted; until they are there, and where they cannot be reached, the main
// one serves.
func (s *Session) dataConnLocked(op wire.Opcode) *conn {
	if !wire.Table[op].Data || s.main == nil || s.main.draining {
		return nil
	}
	var best *conn
	for _, p := range s.ports {
		c := p.conn
		if c == nil {
			p.dialLocked()
			continue
		}
		if !c.draining && (best == nil || c.loadLocked() < best.loadLocked()) {
			best = c
		}
	}
	return best
}

func (c *conn) loadLocked() int { return len(c.pending) + len(c.queue) }

// dialLocked begins to connect, unless that is under way or was tried just now.
func (p *port) dialLocked() {
	if p.dialing || p.s.over || p.s.now() < p.retryAt {
		return
	}
	p.dialing = true
	main := p.s.main
	p.s.wg.Go(func() { p.dial(main) })
}

// dial connects and attaches to the session of main.
func (p *port) dial(main *conn) {
	s := p.s
	ctx, cancel := context.WithTimeout(s.ctx, connectTimeout)
	defer cancel()
	s.mu.Lock()
	req := &wire.AttachReq{Version: wire.Version, Session: s.id}
	s.mu.Unlock()
	c, err := s.o.connect(ctx, p.addr, wire.OpAttach, req, &wire.Empty{})

	s.mu.Lock()
	p.dialing = false
	if err != nil {
		p.retryAt = s.now() + portRetry
		s.mu.Unlock()
		s.o.Log.Debug().Err(err).Msg("data port not reached; the main connection serves")
		return
	}
	if main.dead || s.over {
		s.mu.Unlock()
		c.raw.Close()
		return
	}
	c.s, c.port, p.conn = s, p, c
	c.runLocked()
	s.mu.Unlock()
}

// lostLocked says that the port's connection is dead.
func (p *port) lostLocked() {
	p.conn = nil
	p.retryAt = p.s.now() + portRest
}

// connectTimeout bounds one attempt to connect, from the dialling to the answer
// to the first frame.
const connectTimeout = 10 * time.Second

package serverd

import (
	"net"
	"sync"
	"time"

	"cagefs.dev/cage/remote/auth"
	"cagefs.dev/cage/remote/status"
	"cagefs.dev/cage/remote/wire"
)

// A connection on which a client joins (auth.JoinProtocol) carries one request
// and its answer, within the deadline of the handshake, and stays among those
// that have not said hello.

// maxJoinFrame is more than a request to join takes.
const maxJoinFrame = 4 << 10

// enroll answers a request to join.
func (c *conn) enroll(fp auth.Fingerprint, m *wire.JoinReq) (wire.Message, error) {
	s := c.srv
	if err := wire.CheckVersions(wire.Version, m.Version); err != nil {
		return nil, err
	}
	host, _, _ := net.SplitHostPort(c.peer)
	now := time.Now()
	if !s.guesses.mayTry(host, now) {
		return nil, status.Newf(status.Busy, "join", "", "too many wrong codes from %s: try again in a minute", host)
	}
	key, err := s.o.State.Join(m.Secret, fp, now)
	if status.Of(err) == status.WrongKey {
		s.guesses.wrong(host, now)
	}
	if err != nil {
		return nil, err
	}
	s.DropRevoked() // one of the same name that this takes the place of
	c.log.Info().Str("key", key.Name).Str("client", m.Client).Str("fingerprint", string(fp)).Str("software", m.Software).Msg("client joined")
	c.key = key
	return &wire.JoinRep{
		Version: wire.Version, Software: s.o.Software, Name: key.Name, ReadOnly: key.ReadOnly, Trusted: key.TrustIDs,
		Exports: c.listExports().Names,
	}, nil
}

// Bounds of wrong codes: a host may try this many in a row, and one more with
// every guessPause that passes. Secrets cannot be guessed anyway; this keeps
// the log readable and the disk quiet.
const (
	maxGuesses   = 10
	guessPause   = 6 * time.Second
	maxGuessers  = 1024
	guessForgive = maxGuesses * guessPause
)

// guesses counts wrong codes by host. Its zero value is empty. Safe for
// concurrent use.
type guesses struct {
	mu    sync.Mutex
	clear map[string]time.Time // guarded by mu; when the host's wrong codes are all forgiven
}

// mayTry reports whether a host may try a code now. Where too many hosts have
// been wrong of late, no further one may.
func (g *guesses) mayTry(host string, now time.Time) bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	until, known := g.clear[host]
	if known {
		return until.Sub(now) <= guessForgive-guessPause
	}
	if len(g.clear) >= maxGuessers {
		for h, t := range g.clear {
			if now.After(t) {
				delete(g.clear, h)
			}
		}
	}
	return len(g.clear) < maxGuessers
}

// wrong notes that a host tried a wrong code.
func (g *guesses) wrong(host string, now time.Time) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.clear == nil {
		g.clear = make(map[string]time.Time)
	}
	until := g.clear[host]
	if until.Before(now) {
		until = now
	}
	g.clear[host] = until.Add(guessPause)
}

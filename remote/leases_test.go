package remote

import (
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"cagefs.dev/cage/remote/simnet"
	"cagefs.dev/cage/remote/wire"
)

// A server that is restarted over and over is found again each time well before the leases end that its
// clients have, also when nobody waits for it.
func TestBackWithinTheTerm(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const term = 3 * time.Second
		srv := newServer(t, simnet.New(1), 0)
		srv.set(func() { srv.term = term })
		s := srv.dial(srv.options())
		for range 10 {
			srv.stop()
			time.Sleep(term / 3)
			srv.start()
			time.Sleep(term / 3)
			require.Equal(t, Online, s.Status().State)
		}
	})
}

// A restarted server is told that a client is settled when the client has
// forgotten all that it was told to forget, also before the connection, and not earlier.
func TestSettled(t *testing.T) {
	s := newSession(Options{Leases: true, Reset: func() {}}, wire.HelloRep{Term: 1000})
	s.main = &conn{s: s, wake: make(chan struct{}, 1)}
	told := func() bool {
		s.mu.Lock()
		defer s.mu.Unlock()
		s.sendSettledLocked()
		sent := len(s.main.urgent) > 0
		s.main.urgent = nil
		return sent
	}
	require.True(t, told(), "nothing is to be forgotten")
	s.mu.Lock()
	s.resetLocked()
	s.mu.Unlock()
	require.False(t, told())
	upTo := s.Resets()
	s.mu.Lock()
	s.resetLocked() // while the first is being seen to
	s.mu.Unlock()
	s.Settled(upTo)
	require.False(t, told())
	s.Settled(s.Resets())
	require.True(t, told())
}

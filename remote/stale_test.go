package remote

import (
	"context"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"cagefs.dev/cage/remote/boottime"
	"cagefs.dev/cage/remote/proto"
	"cagefs.dev/cage/remote/wire"
)

// staleSession is one with a lease, whose server was heard a while ago and has a term of a second.
func staleSession(stale, ago time.Duration) (s *Session, expire func(after time.Duration)) {
	s = newSession(Options{Leases: true, Stale: stale, Reset: func() {}}, wire.HelloRep{Term: 1000})
	s.main = &conn{s: s, wake: make(chan struct{}, 1)}
	heard := boottime.Now() - ago
	s.leases.Answered(heard, heard)
	s.leases.Granted(7, proto.Lease{Gen: proto.Gen{Boot: 1, Counter: 1}, Mode: proto.ReadLease})
	return s, func(after time.Duration) {
		s.mu.Lock()
		defer s.mu.Unlock()
		s.expireLocked(heard + after)
	}
}

// The reset at the end of the leases is put off until the time of Options.Stale is over.
func TestStale(t *testing.T) {
	s, expire := staleSession(time.Minute, 2*time.Second)
	require.True(t, s.Stale(), "nobody has to have looked at the clock before")
	require.Zero(t, s.Resets())
	require.Equal(t, Stale, s.Status().State)
	require.False(t, s.Holds(7, proto.ReadLease))
	expire(time.Minute - 1)
	require.True(t, s.Stale())
	expire(time.Minute)
	require.False(t, s.Stale())
	require.Equal(t, uint64(1), s.Resets())
	expire(2 * time.Minute)
	require.Equal(t, uint64(1), s.Resets(), "once")

	for name, stale := range map[string]time.Duration{"without it": 0, "less than the term": time.Second / 2} {
		s, expire := staleSession(stale, 0)
		expire(2 * time.Second)
		require.Equal(t, uint64(1), s.Resets(), name)
		require.False(t, s.Stale(), name)
	}
}

// Any answer ends it at once, and the server is told that the client is settled only when it is.
func TestStaleEndsWithAnAnswer(t *testing.T) {
	s, expire := staleSession(time.Minute, 2*time.Second)
	expire(2 * time.Second)
	told := func() bool {
		s.mu.Lock()
		defer s.mu.Unlock()
		s.sendSettledLocked()
		return len(s.main.urgent) > 0
	}
	require.False(t, told(), "what is to be forgotten is put off")
	s.mu.Lock()
	s.heardLocked(boottime.Now())
	s.mu.Unlock()
	require.False(t, s.Stale())
	require.Equal(t, uint64(1), s.Resets())
	require.Equal(t, Stale, s.Status().State, "it is not done yet")
	require.False(t, told())
	brief, cancel := context.WithTimeout(t.Context(), 10*time.Millisecond)
	defer cancel()
	s.AwaitSettled(brief)
	require.Error(t, brief.Err(), "it waits")
	s.Settled(s.Resets())
	s.AwaitSettled(t.Context())
	require.True(t, told())
	require.Equal(t, Online, s.Status().State)
}

package remote

import (
	"context"
	"time"

	"cagefs.dev/cage/remote/boottime"
)

// With Options.Stale the end of the leases is not told at once. Until the server
// is heard, or has not been for that long, the session's owner may answer reads
// from what was known under them; then comes the reset. Nothing is granted or logged meanwhile, for
// that goes by the leases, which are over.

// Stale reports whether the leases are over and what was known under them may
// still be shown. Who wants to know whether something is known looks at the lease first. Somebody
// wants something, so the server is looked for more often.
func (s *Session) Stale() bool {
	if s.o.Stale == 0 {
		return false
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.expireLocked(boottime.Now())
	if s.stale {
		s.askForServer()
	}
	return s.stale
}

// expireLocked tells the session's owner when the leases are over, or puts that off.
func (s *Session) expireLocked(now time.Duration) {
	over, showable := s.leases.Expire(now), now < s.leases.Heard()+s.o.Stale
	switch {
	case over && showable && now >= s.leases.Until():
		s.o.Log.Info().Dur("for", s.o.Stale).Msg("the server has not been heard for the leases' term: reads are answered from what was known then")
		s.stale = true
	case over, s.stale && !showable:
		s.o.Log.Info().Msg("the leases are over: the server has not been heard for their term")
		s.resetLocked()
	}
}

// heardLocked notes that a request was answered which was sent at that time.
func (s *Session) heardLocked(sent time.Duration) {
	s.leases.Answered(sent, boottime.Now())
	if s.stale {
		s.resetLocked()
	}
}

// AwaitSettled returns when everything is forgotten that the session's owner was told to forget
// after a stale time, as Settled says. What the server answers before that is not to be shown
// together with what was known. It waits no longer than a request would.
func (s *Session) AwaitSettled(ctx context.Context) {
	if s.o.Stale == 0 {
		return
	}
	s.mu.Lock()
	settling := s.settling
	s.mu.Unlock()
	if settling != nil {
		_, _ = await(ctx, s, settling, s.now(), "compare", "")
	}
}

// Quiet reports whether the server is not connected, or was asked something and
// has said nothing at all for so long.
func (s *Session) Quiet(d time.Duration) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.main == nil || s.main.silentLocked() >= d
}

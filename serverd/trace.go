package serverd

import (
	"slices"
	"strings"
	"time"

	"cagefs.dev/cage/journal"
	"cagefs.dev/cage/remote/auth"
	"cagefs.dev/cage/remote/status"
)

// A client that changes nothing must not grow the journals by coming and going:
// each session that is recorded and each name that a client gives itself stays in the log, and
// the log's length is everybody's history.

// Bounds of that, of one client (key) in one run of the server.
const (
	briskSessions = 64              // sessions recorded at once,
	sessionEvery  = 6 * time.Second // and one more each
	maxHostNames  = 16              // names that a key of this machine gives itself
	maxNames      = 1024            // names in a journal beyond which nobody gives himself one; of all runs
)

// trace is what a client has left in journals. Guarded by Server.mu.
type trace struct {
	names map[string]struct{}
	full  time.Time // when all sessions may be recorded again at once
}

// trace returns a client's. There are no more of them than keys were admitted. The caller holds mu.
func (s *Server) traceLocked(fp auth.Fingerprint) *trace {
	t := s.traces[fp]
	if t == nil {
		t = &trace{names: map[string]struct{}{}}
		s.traces[fp] = t
	}
	return t
}

// mayRecord reports whether a new session is recorded at once, and counts it. One
// that is not lives as well, but for a crash of the server before its first change.
func (s *Server) mayRecord(fp auth.Fingerprint, now time.Time) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	t := s.traceLocked(fp)
	full := t.full
	if full.Before(now) {
		full = now
	}
	if full.Sub(now) > (briskSessions-1)*sessionEvery {
		return false
	}
	t.full = full.Add(sessionEvery)
	return true
}

// mayName reports whether a client may have one more name of its own choice, and counts it.
func (s *Server) mayName(fp auth.Fingerprint, name string) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	t := s.traceLocked(fp)
	if _, ok := t.names[name]; ok {
		return true
	}
	if len(t.names) >= maxHostNames {
		return false
	}
	t.names[name] = struct{}{}
	return true
}

// clientOf returns what the journal of an export calls a client, and the number of
// that name: see clientName, unless that is somebody else's or one too many; then it is its key's.
func (s *Server) clientOf(j *journal.Journal, key *auth.ClientKey, said string) (name string, n uint32, err error) {
	if name = clientName(key, said); name != key.Name && !s.isTaken(name) && s.mayName(key.Fingerprint, name) {
		n, err = j.ClientBelow(name, maxNames)
		if status.Of(err) != status.NoSpace {
			return name, n, err
		}
	}
	n, err = j.Client(key.Name)
	return key.Name, n, err
}

// isTaken reports whether a name is the one of an admitted key, or of this machine's own programs.
func (s *Server) isTaken(name string) bool {
	list, err := s.o.State.Clients()
	return err != nil || name == journal.LocalClient || slices.ContainsFunc(list, func(k auth.ClientKey) bool { return k.Name == name })
}

// clientName is what the journal calls a client: the name under which it was
// invited, or, of a user of this machine, the host name that it gives.
func clientName(k *auth.ClientKey, said string) string {
	if k.LocalUID == nil || said == "" {
		return k.Name
	}
	return strings.Map(func(r rune) rune {
		if r <= ' ' || r == 0x7f || r == 0xfffd {
			return '_'
		}
		return r
	}, said)
}

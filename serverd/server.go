package serverd

import (
	"context"
	"crypto/tls"
	"errors"
	"maps"
	"net"
	"net/netip"
	"slices"
	"sync"
	"time"

	"github.com/rs/zerolog"

	"cagefs.dev/cage/journal"
	"cagefs.dev/cage/remote/auth"
	"cagefs.dev/cage/remote/proto"
	"cagefs.dev/cage/remote/status"
)

// Options of a server. Durations that are 0 have the default in their comment.
type Options struct {
	Exports   []Export
	Listen    string // HOST:PORT of the main port; port 0: any with enough free ones above it
	DataPorts int    // at main port + 1 …
	State     *auth.ServerState
	Log       zerolog.Logger
	Software  string // "cageserverd 0.1", told to clients

	Handshake time.Duration // a connection must have said hello; 10 s
	Idle      time.Duration // a connection from which nothing comes is dropped; 60 s
	Stall     time.Duration // a connection that takes nothing is dropped; 30 s
	Grace     time.Duration // a session without connection keeps its open files; 10 min
	Locks     time.Duration // a session without connection keeps its locks; 30 s
	Forget    time.Duration // a session without connection is closed; 24 h
	Term      time.Duration // of leases: who is silent for that long loses what others want; 20 s
	Drain     time.Duration // what was received is answered, when the server stops; 15 s
}

// Export is a directory that clients may mount. Journal and Feed belong
// together (Feed.Publish is the journal's Options.Changed; nil: nobody hears of
// changes) and stay the caller's.
type Export struct {
	Name     string
	Dir      string
	ReadOnly bool
	Journal  *journal.Journal
	Feed     *Feed
	Leases   *Leases // the journal's Options.Leases; nil: those of nobody else
	Local    *Local  // nil: nobody watches
}

// export is an Export being served.
type export struct {
	Export
	past      pastCache
	locks     *locks
	verifying sync.Mutex // one check of the journal at a time
}

// Limits of connections and sessions, of all clients and of one (one key): none
// leaves nothing for the others.
const (
	maxUnknown        = 64        // connections that have not said hello yet; see dropOldestLocked
	maxConns          = 4096      // connections
	maxClientConns    = 256       // of them, a client's
	maxSessions       = 4096      // sessions, with or without connection
	maxClientSessions = 128       // of them, a client's
	maxClientBytes    = 256 << 20 // what a client's requests in the works may take, on all its connections
)

// Server is a listening server. Safe for concurrent use.
type Server struct {
	// Set at construction.
	o       Options
	log     zerolog.Logger
	rare    zerolog.Logger // for what strangers can make happen: so many lines a second
	tls     *tls.Config
	lns     []net.Listener // the main port's, then the data ports'
	exports map[string]*export
	users   accounts
	began   time.Time
	guesses guesses
	base    context.Context
	kill    context.CancelCauseFunc // ends base: everything still running gives up

	running sync.WaitGroup // listeners, connections, housekeeper

	mu       sync.Mutex
	draining bool                         // guarded by mu
	pending  map[net.Conn]time.Time       // guarded by mu; not said hello yet, and since when they are here
	purses   map[auth.Fingerprint]*purse  // guarded by mu; of the clients that have connections
	conns    map[*conn]struct{}           // guarded by mu
	sessions map[proto.SessionID]*session // guarded by mu
	traces   map[auth.Fingerprint]*trace  // guarded by mu; of the clients that have had sessions
	seen     map[auth.Fingerprint]bool    // guarded by mu; connected since noteSeen wrote it down
	noted    time.Time                    // guarded by mu; when that was
}

// Listen binds the ports; clients are answered from Serve on. Errors:
// status.Busy (a port is in use), Access, Usage (a bad address), with the port.
func Listen(o Options) (*Server, error) {
	lns, err := listenAll(o.Listen, o.DataPorts)
	if err != nil {
		return nil, err
	}
	setDefault(&o.Handshake, 10*time.Second)
	setDefault(&o.Idle, time.Minute)
	setDefault(&o.Stall, 30*time.Second)
	setDefault(&o.Grace, 10*time.Minute)
	setDefault(&o.Locks, 30*time.Second)
	setDefault(&o.Forget, 24*time.Hour)
	setDefault(&o.Term, 20*time.Second)
	setDefault(&o.Drain, 15*time.Second)
	s := &Server{
		o: o, log: o.Log, rare: o.Log.Sample(&zerolog.BurstSampler{Burst: 20, Period: time.Second}), tls: o.State.TLS(), lns: lns,
		exports:  make(map[string]*export),
		users:    systemAccounts{},
		began:    time.Now(),
		pending:  make(map[net.Conn]time.Time),
		purses:   make(map[auth.Fingerprint]*purse),
		conns:    make(map[*conn]struct{}),
		sessions: make(map[proto.SessionID]*session),
		traces:   make(map[auth.Fingerprint]*trace),
		seen:     make(map[auth.Fingerprint]bool),
	}
	s.base, s.kill = context.WithCancelCause(context.Background())
	for _, e := range o.Exports {
		if e.Feed == nil {
			e.Feed = NewFeed()
		}
		if e.Leases == nil {
			e.Leases = NewLeases()
		}
		e.Leases.begin(e.Journal, o.Term, s.hangUp, o.Log.With().Str("export", e.Name).Logger())
		exp := &export{Export: e, locks: newLocks(e.Journal, s.began.Add(o.Locks))}
		s.exports[e.Name] = exp
		e.Feed.tap(func(a journal.Applied) { s.local(exp, a) })
	}
	return s, nil
}

func setDefault(d *time.Duration, v time.Duration) {
	if *d == 0 {
		*d = v
	}
}

// Addr is the main port.
func (s *Server) Addr() net.Addr { return s.lns[0].Addr() }

// Serve answers clients until ctx ends, or a listener fails. Then it tells the
// clients, finishes and answers what was received, within Options.Drain, and
// returns when nothing of it touches a journal any more. It is called once.
func (s *Server) Serve(ctx context.Context) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	s.log.Info().Str("addr", s.Addr().String()).Int("data_ports", s.o.DataPorts).Int("exports", len(s.exports)).Msg("serving")
	for _, ln := range s.lns {
		s.running.Go(func() {
			if err := s.accept(ctx, ln); err != nil {
				cancel(err)
			}
		})
	}
	s.running.Go(func() { s.keepHouse(ctx) })
	for _, e := range s.exports {
		s.running.Go(func() { e.Leases.run(ctx) })
		s.running.Go(func() { e.locks.run(ctx) })
	}
	<-ctx.Done()
	s.drain()
	err := context.Cause(ctx)
	if errors.Is(err, context.Canceled) || errors.Is(err, context.DeadlineExceeded) {
		err = nil
	}
	s.log.Info().AnErr("error", err).Msg("stopped")
	return err
}

// accept takes connections until the listener is closed.
func (s *Server) accept(ctx context.Context, ln net.Listener) error {
	for {
		raw, err := ln.Accept()
		switch {
		case err == nil:
			s.take(raw)
		case errors.Is(err, net.ErrClosed):
			return nil
		case status.Of(err) == status.TooManyFiles, status.Of(err) == status.Unreachable:
			// Out of descriptors, or a client that went away in the queue.
			s.log.Warn().Err(err).Msg("cannot accept a connection")
			select {
			case <-time.After(100 * time.Millisecond):
			case <-ctx.Done():
			}
		default:
			return status.Wrap(err, "accept", ln.Addr().String())
		}
	}
}

// take starts a goroutine for a new connection, or closes it where there are too many.
func (s *Server) take(raw net.Conn) {
	s.mu.Lock()
	defer s.mu.Unlock()
	full := len(s.conns)+len(s.pending) >= maxConns
	if full || s.draining {
		raw.Close()
		if full {
			s.rare.Warn().Str("peer", raw.RemoteAddr().String()).Msg("connection refused: too many")
		}
		return
	}
	if len(s.pending) >= maxUnknown {
		s.dropOldestLocked()
	}
	s.pending[raw] = time.Now()
	s.running.Go(func() { s.handle(raw) })
}

// dropOldestLocked closes, of the host that has the most, the connection that has
// taken longest to say hello: who means it needs a moment, and who only takes up
// room must not keep others out.
func (s *Server) dropOldestLocked() {
	count := make(map[netip.Prefix]int)
	for raw := range s.pending {
		count[hostOf(raw)]++
	}
	var oldest net.Conn
	for raw, since := range s.pending {
		more := 0
		if oldest != nil {
			more = count[hostOf(raw)] - count[hostOf(oldest)]
		}
		if oldest == nil || more > 0 || more == 0 && since.Before(s.pending[oldest]) {
			oldest = raw
		}
	}
	delete(s.pending, oldest)
	oldest.Close()
	s.rare.Warn().Str("peer", oldest.RemoteAddr().String()).Msg("connection dropped: others wait, and it has not said hello")
}

// hostOf is where a connection comes from: an address, of IPv6 the network, which
// a host has for itself.
func hostOf(raw net.Conn) netip.Prefix {
	addr, _ := netip.ParseAddrPort(raw.RemoteAddr().String())
	bits := 32
	if ip := addr.Addr().Unmap(); ip.Is6() {
		bits = 64
	}
	p, _ := addr.Addr().Unmap().WithZone("").Prefix(bits)
	return p
}

// known moves a connection from those that have not said hello to those that
// have: status.Draining when the server stops, Busy when the client has too many.
func (s *Server) known(raw net.Conn, c *conn) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.pending, raw)
	if s.draining {
		return status.Draining
	}
	fp := c.key.Fingerprint
	p := s.purses[fp]
	if p == nil {
		p = newPurse(maxClientBytes)
		s.purses[fp] = p
	}
	if p.conns >= maxClientConns {
		return status.Newf(status.Busy, "connect", "", "the client has %d connections already", maxClientConns)
	}
	p.conns++
	c.reads.purse, c.changes.purse = p, p
	s.conns[c] = struct{}{}
	s.seen[fp] = true
	return nil
}

// seenEvery is how often is written down which clients are connected.
const seenEvery = time.Minute

// noteSeen writes down which clients were connected lately, now and then.
func (s *Server) noteSeen() {
	s.mu.Lock()
	if !s.draining && time.Since(s.noted) < seenEvery {
		s.mu.Unlock()
		return
	}
	for c := range s.conns {
		s.seen[c.key.Fingerprint] = true
	}
	who := slices.Collect(maps.Keys(s.seen))
	clear(s.seen)
	s.noted = time.Now()
	s.mu.Unlock()
	if len(who) == 0 {
		return
	}
	if err := s.o.State.NoteSeen(who, time.Now()); err != nil {
		s.log.Warn().Err(err).Msg("cannot note which clients were seen")
	}
}

// gone is called when a connection has ended, wherever it was.
func (s *Server) gone(raw net.Conn, c *conn) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.pending, raw)
	if _, ok := s.conns[c]; !ok {
		return
	}
	delete(s.conns, c)
	c.reads.shut()
	c.changes.shut()
	fp := c.key.Fingerprint
	if p := s.purses[fp]; p.conns > 1 {
		p.conns--
	} else {
		delete(s.purses, fp)
	}
}

// drain stops taking connections and requests, and returns when every
// connection has ended.
func (s *Server) drain() {
	closeAll(s.lns)
	s.mu.Lock()
	s.draining = true
	for raw := range s.pending {
		raw.Close()
	}
	n := len(s.conns)
	for c := range s.conns {
		c.drain()
	}
	s.mu.Unlock()
	s.log.Info().Int("connections", n).Msg("draining")
	late := time.AfterFunc(s.o.Drain, func() {
		s.log.Warn().Dur("after", s.o.Drain).Msg("stopping with requests unanswered")
		s.killAll(errStopped)
	})
	s.running.Wait()
	late.Stop()
	s.noteSeen()
	s.kill(errStopped)
}

// killAll makes everything that waits give up.
func (s *Server) killAll(cause error) {
	s.kill(cause)
	for _, c := range s.connections() {
		c.abort(cause)
	}
}

func (s *Server) connections() []*conn {
	s.mu.Lock()
	defer s.mu.Unlock()
	out := make([]*conn, 0, len(s.conns))
	for c := range s.conns {
		out = append(out, c)
	}
	return out
}

// hangUp ends the connection of a session. It does not block.
func (s *Server) hangUp(id proto.SessionID) {
	go func() { // the caller has a lock that comes after Server.mu
		if sess := s.lookupSession(id); sess != nil {
			if c := sess.current(); c != nil {
				c.abort(errSilent)
			}
		}
	}()
}

// errSilent is why a connection ends whose client answers no recall.
var errSilent = status.Newf(status.Timeout, "", "", "it does not give back its leases")

// keepHouse looks now and then for what time alone brings about: sessions that
// nobody came back to, and keys that are no longer admitted.
func (s *Server) keepHouse(ctx context.Context) {
	tick := time.NewTicker(max(min(s.o.Grace, s.o.Forget, s.o.Locks, 20*time.Second)/4, time.Millisecond))
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
			s.tidySessions()
			s.tidyJournals()
			s.DropRevoked()
			s.noteSeen()
		}
	}
}

// DropRevoked ends the connections and sessions of clients that are not admitted
// any more, and returns how many sessions that were. It returns when nothing is
// done on their behalf any more, and when their open files are dropped.
func (s *Server) DropRevoked() (sessions int) {
	for _, c := range s.connections() {
		if s.o.State.Revoked(c.key.Fingerprint) {
			c.abort(errRevoked)
		}
	}
	for _, sess := range s.sessionList() {
		if s.o.State.Revoked(sess.key.Fingerprint) && s.expel(sess, errRevoked) {
			sessions++
		}
	}
	return sessions
}

// Since is when the server was started.
func (s *Server) Since() time.Time { return s.began }

// SessionStatus is a session as `cageserverd sessions` shows it.
type SessionStatus struct {
	ID        proto.SessionID
	Export    string
	Client    string         // its name in the journal
	Key       auth.ClientKey // as it was when the session began
	ReadOnly  bool
	Peer      string // address; "" without a connection
	Since     time.Time
	Lost      time.Time // zero while it has a connection
	OpenFiles int
	Locks     int // of files, by flock(2) and fcntl(2)
	Leases    int
	Writing   int // of Leases: write leases
	DataConns int
}

// Status lists the sessions, in no order.
func (s *Server) Status() []SessionStatus {
	s.mu.Lock()
	defer s.mu.Unlock()
	out := make([]SessionStatus, 0, len(s.sessions))
	for _, sess := range s.sessions {
		out = append(out, sess.status())
	}
	return out
}

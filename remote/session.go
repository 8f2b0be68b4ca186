// Package remote is the client: it finds the server's key, dials, keeps a
// session over lost connections and restarts of the server, sends the
// session's operation log in order, and asks for names, attributes and bytes.
//
// It promises that every operation of the log is applied once or reported as
// failed, in order, and that no call outlasts its context or the session's
// patience. It caches nothing and knows nothing of pages or the kernel.
//
// A session has one goroutine that keeps it connected (reconnect.go), one for
// upcalls (upcall.go), one for the leases' clock (leases.go), and three for each connection (conn.go). Callers only
// queue requests (call.go) or append to the log (change.go) and wait. All state
// is under one lock, Session.mu; it is never held over I/O. Under it may be
// taken: upcalls.mu.
package remote

import (
	"context"
	"crypto/tls"
	"net"
	"os"
	"sync"
	"sync/atomic"
	"time"

	"github.com/rs/zerolog"

	"cagefs.dev/cage/remote/auth"
	"cagefs.dev/cage/remote/lease"
	"cagefs.dev/cage/remote/oplog"
	"cagefs.dev/cage/remote/proto"
	"cagefs.dev/cage/remote/status"
	"cagefs.dev/cage/remote/wire"
)

// DefaultBudget is Options.Budget where that is 0.
const DefaultBudget = 64 << 20

// Options of a session.
type Options struct {
	Addr     string // HOST:PORT of the main port
	Export   string // "" only to list exports
	ReadOnly bool
	Keys     *auth.Keyring
	Client   string // this client's name in the journal; "": the host's name
	Software string // "cagefs 0.1", for logs

	// Patience is how long a call waits, without any sign of life from the
	// server, before it fails with status.Timeout (while dialling first:
	// Unreachable). 0: until its context ends ("hard").
	Patience time.Duration
	Budget   int64                                                             // bytes of logged writes that are not applied yet; Log blocks above it. 0: DefaultBudget
	DataPort bool                                                              // use the data connections that the server offers
	Dial     func(ctx context.Context, network, addr string) (net.Conn, error) // nil: net.Dialer
	Log      zerolog.Logger

	// Upcalls, each from one goroutine of the session, in order; they must not
	// call back into the session and must be quick. Any may be nil.
	Changed func(wire.Changed)                              // somebody else changed a file or directory
	Reset   func()                                          // pushes may have been missed: nothing cached is known to be valid
	Failed  func(id proto.FileID, seq proto.Seq, err error) // a logged operation nobody waited for failed; err nil: an append went elsewhere than its Off
	Written func(id proto.FileID, change proto.LSN)         // a write of this session was applied: the file's change number. Every Changed before it has been told
	// LostLock says that the server does not hold a lock any more, and that what
	// was written to its file and is not applied fails. It is called by the
	// session's own goroutines with its lock held: nothing is sent before it returns.
	LostLock func(LockOwner)
	// Leases asks the server for leases. Then Recalled is an upcall: who is told
	// forgets what is known of the file, and then calls Return, from another
	// goroutine. nil: nothing is to be forgotten.
	Leases   bool
	Recalled func(lease.Recall)
	// Stale is for how long since the server was last heard what was known under
	// leases may be shown when they are over. 0: not at all.
	Stale time.Duration

	secure func(net.Conn) *tls.Conn // the client's side of TLS; nil: Keys.Client
}

func (o Options) withDefaults() Options {
	if o.Client == "" {
		o.Client, _ = os.Hostname()
	}
	if o.Budget == 0 {
		o.Budget = DefaultBudget
	}
	if o.Dial == nil {
		o.Dial = (&net.Dialer{}).DialContext
	}
	if o.secure == nil {
		o.secure = o.Keys.Client
	}
	return o
}

// Session is a client's session with one export of a server. Safe for concurrent use.
type Session struct {
	// Set at construction.
	o       Options
	first   wire.HelloRep
	began   time.Time
	ctx     context.Context // of the session's goroutines
	cancel  context.CancelFunc
	ended   chan struct{} // closed when nothing is answered any more
	closed  chan struct{} // closed when Close is through
	upcalls *upcalls
	asked   chan struct{} // holds one: somebody waits for a server that is gone

	// Atomic.
	heard atomic.Int64 // when the server last gave a sign of life, in ns since began
	lost  atomic.Int64 // when the main connection was lost, in ns since began; 0 while there is one

	refusal atomic.Pointer[refusal] // replaced when the server admits the client again

	wg      sync.WaitGroup // all goroutines
	buffers sync.Pool      // of *[]byte: payloads of replies

	mu          sync.Mutex
	state       State           // guarded by mu, like all that follows
	since       time.Time       // of state
	closing     bool            // no new changes
	over        bool            // no new requests
	closeErr    error           // of Close, once closed is closed
	connErr     string          // why the connection was lost, or the last attempt failed
	opErr       string          // the last failure of a logged operation
	resumes     int             // reconnects that went on with the session
	id          proto.SessionID // 0: the next connection asks for a new session
	log         *oplog.Log
	synced      proto.Seq     // all up to it is durable on the server
	lighter     chan struct{} // closed and replaced when the log gets an answer
	queue       []*call       // for the main connection, in order
	main        *conn         // nil while there is none
	ports       []*port       // data connections of the main one
	opens       map[proto.FileID]*open
	lastRefused *Refused // of the opens; nil: none
	locks       locks
	leases      *lease.Table
	stored      proto.Seq     // the newest write through a mapping, which is logged under no lease
	resets      uint64        // how often the owner was told that nothing is to be relied on
	settled     uint64        // of these, how many it has done what is to be done
	settling    chan struct{} // closed when it has done all; nil: it has
	stale       bool          // the leases are over, and the reset is put off: see Options.Stale
}

func newSession(o Options, rep wire.HelloRep) *Session {
	s := &Session{
		o: o, first: rep, began: time.Now(), ended: make(chan struct{}), closed: make(chan struct{}),
		state: Online, since: time.Now(), log: oplog.New(), lighter: make(chan struct{}),
		opens: map[proto.FileID]*open{}, locks: newLocks(), asked: make(chan struct{}, 1), leases: lease.New(term(&rep)),
	}
	s.ctx, s.cancel = context.WithCancel(context.Background())
	s.upcalls = newUpcalls(&s.o)
	s.refusal.Store(newRefusal())
	s.buffers.New = func() any { return new([]byte) }
	return s
}

// Hello is what the server said when the session began.
func (s *Session) Hello() wire.HelloRep { return s.first }

// now is the time since the session began, which no change of the clock moves.
func (s *Session) now() time.Duration { return time.Since(s.began) }

// refusal is what a server says that does not admit the client's key, or is not
// the one that the client has a key for: it is final until somebody does
// something about it, so that nobody waits for it to pass. The session goes on
// trying, and its log keeps what is not delivered.
type refusal struct {
	done chan struct{} // closed once err is set
	err  error
}

func newRefusal() *refusal { return &refusal{done: make(chan struct{})} }

// refusedLocked says that the server refused the client.
func (s *Session) refusedLocked(err error) {
	if r := s.refusal.Load(); r.err == nil {
		r.err = err
		close(r.done)
	}
}

// admittedLocked says that the server did not.
func (s *Session) admittedLocked() {
	if s.refusal.Load().err != nil {
		s.refusal.Store(newRefusal())
	}
}

// await waits for a value from ch, or for it to be closed. Errors: status.Timeout
// when the server has given no sign of life for Patience, but not before that
// much has passed since began; WrongKey when it refuses the client; that of ctx;
// Unreachable when the session is closed.
func await[T any](ctx context.Context, s *Session, ch <-chan T, began time.Duration, op, object string) (T, error) {
	var none T
	var timer *time.Timer
	var expired <-chan time.Time
	if s.lost.Load() != 0 {
		s.askForServer()
	}
	if s.o.Patience > 0 {
		timer = time.NewTimer(s.patienceLeft(began))
		defer timer.Stop()
		expired = timer.C
	}
	refused := s.refusal.Load()
	for {
		select {
		case v := <-ch:
			return v, nil
		case <-refused.done:
			return none, status.Wrap(refused.err, op, object)
		case <-ctx.Done():
			return none, status.Wrap(ctx.Err(), op, object)
		case <-s.ended:
			return none, closedError(op, object)
		case <-expired:
			left := s.patienceLeft(began)
			if left <= 0 {
				return none, s.timeout(op, object)
			}
			timer.Reset(left)
		}
	}
}

// brief is the patience with a server that was gone for the whole patience
// before the call began: everybody has been told, and a program that asks for a
// thousand files is to fail before night.
const brief = time.Second

func (s *Session) patienceLeft(began time.Duration) time.Duration {
	patience := s.o.Patience
	if lost := time.Duration(s.lost.Load()); lost != 0 && began-lost >= patience {
		patience = min(patience, brief)
	}
	return max(began, time.Duration(s.heard.Load())) + patience - s.now()
}

// timeout is the error of a call that has waited long enough.
func (s *Session) timeout(op, object string) error {
	st := s.Status()
	if s.State() == Reconnecting && st.LastError != "" {
		return status.Newf(status.Timeout, op, object, "no answer from %s for %v: %s", s.o.Addr, s.o.Patience, st.LastError)
	}
	return status.Newf(status.Timeout, op, object, "no answer from %s for %v", s.o.Addr, s.o.Patience)
}

func closedError(op, object string) error {
	return status.Newf(status.Unreachable, op, object, "the session is closed")
}

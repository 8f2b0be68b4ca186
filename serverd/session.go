package serverd

import (
	"sync"
	"time"

	"cagefs.dev/cage/remote/auth"
	"cagefs.dev/cage/remote/proto"
	"cagefs.dev/cage/remote/status"
	"cagefs.dev/cage/remote/wire"
)

// maxOpens is how many different files a session may have open: as many as it
// can name when it comes back.
const maxOpens = wire.MaxOpens

// session is what an authorised client has on this server: its place in the
// operation log (in the journal) and the files it has open (here). Connections
// come and go.
type session struct {
	// Set at construction.
	id     proto.SessionID
	exp    *export
	key    *auth.ClientKey
	name   string    // of the client, in the journal
	client uint32    // its number in the journal's dictionary
	since  time.Time // in this run of the server
	leases bool      // its replies give leases; set while attach is held

	// attach is held while the session is taken over by a connection, loses its
	// files or ends. See the lock order.
	attach sync.Mutex

	mu    sync.Mutex
	main  *conn                      // guarded by mu; nil without a connection
	data  map[*conn]struct{}         // guarded by mu
	opens map[proto.FileID]*openFile // guarded by mu
	fresh freshFiles                 // guarded by mu
	lost  time.Time                  // guarded by mu; since when there is no connection
	known bool                       // guarded by mu; had a connection in this run of the server
	ended bool                       // guarded by mu; closed in the journal, for nobody to resume
	done  proto.Seq                  // guarded by mu; its operations up to this one are answered
	todo  []todo                     // guarded by mu; in the order of coming
}

// openFile is a file that the session has open.
type openFile struct {
	n     uint32 // opens less releases
	held  int    // journal holds taken for them
	flags uint32 // what all opens together were granted
}

func newSession(id proto.SessionID, exp *export, key *auth.ClientKey, name string, client uint32) *session {
	return &session{
		id: id, exp: exp, key: key, name: name, client: client, since: time.Now(),
		data: make(map[*conn]struct{}), opens: make(map[proto.FileID]*openFile),
	}
}

// resumed says that the session's operations up to a number are done since
// before the connection. What was to follow others is asked for again.
func (s *session) resumed(applied proto.Seq) {
	s.mu.Lock()
	s.todo = nil
	s.mu.Unlock()
	s.doneUpTo(applied)
}

// doneUpTo says that the session's operations up to a number are answered.
func (s *session) doneUpTo(seq proto.Seq) {
	s.mu.Lock()
	s.done = max(s.done, seq)
	n := 0
	for n < len(s.todo) && s.todo[n].seq <= s.done {
		n++
	}
	now := s.todo[:n]
	s.todo = s.todo[n:]
	s.mu.Unlock()
	for _, t := range now {
		t.do()
	}
}

// todo is what follows the operations up to a number.
type todo struct {
	seq proto.Seq
	do  func()
}

// after calls do when the session's operations up to a number are answered, and
// what it was called with before is done.
func (s *session) after(seq proto.Seq, do func()) error {
	s.mu.Lock()
	if seq > s.done || len(s.todo) > 0 {
		defer s.mu.Unlock()
		if len(s.todo) >= 2*maxLeases {
			return status.Newf(status.Invalid, "return", "", "%d leases are being given back already", len(s.todo))
		}
		s.todo = append(s.todo, todo{seq, do})
		return nil
	}
	s.mu.Unlock()
	do()
	return nil
}

// open counts an open of a file, which the journal holds already if held is 1.
func (s *session) open(id proto.FileID, flags uint32, held int) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	o := s.opens[id]
	if o == nil {
		if len(s.opens) >= maxOpens {
			return status.TooManyFiles
		}
		o = &openFile{}
		s.opens[id] = o
	}
	o.n++
	o.held += held
	o.flags |= flags
	return nil
}

// release takes n opens of a file back. A client that releases more than it
// opened releases all.
func (s *session) release(id proto.FileID, n uint32) {
	s.mu.Lock()
	o := s.opens[id]
	if o == nil {
		s.mu.Unlock()
		return
	}
	unhold := 0
	if n >= o.n {
		unhold = o.held
		delete(s.opens, id)
	} else {
		o.n -= n
		if o.held > int(o.n) {
			unhold = o.held - int(o.n)
			o.held = int(o.n)
		}
	}
	s.mu.Unlock()
	if unhold > 0 {
		s.exp.Journal.Unhold(id, unhold)
	}
}

// openFlags returns what the opens of a file were granted, 0 if there are none.
func (s *session) openFlags(id proto.FileID) uint32 {
	s.mu.Lock()
	defer s.mu.Unlock()
	if o := s.opens[id]; o != nil {
		return o.flags
	}
	return 0
}

// holds reports whether the session has a file open.
func (s *session) holds(id proto.FileID) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.opens[id] != nil
}

// replaceOpens makes the client's list the truth about what it has open, and
// returns how many of the files are gone. The new holds are taken before the
// old ones are given back, so that an orphan lives on. grant says what the opens
// of a file are to allow that this server has forgotten, and whether the client may
// have it open at all. The caller has attach.
func (s *session) replaceOpens(ids []proto.FileID, grant func(*proto.Attr) (uint32, bool)) (gone int) {
	s.mu.Lock()
	old := s.opens
	s.mu.Unlock()
	opens := make(map[proto.FileID]*openFile, min(len(ids), maxOpens))
	for _, id := range ids {
		o := opens[id]
		if o == nil {
			if len(opens) >= maxOpens {
				gone++
				continue
			}
			if o = s.reopen(id, old[id], grant); o == nil {
				gone++
				continue
			}
			opens[id] = o
			continue
		}
		if s.exp.Journal.Hold(id) == nil {
			o.n++
			o.held++
		}
	}
	s.mu.Lock()
	s.opens = opens
	s.mu.Unlock()
	s.unholdAll(old)
	return gone
}

// reopen takes the first hold of a file of a client's list; nil if the file is
// gone, or the client has no way to it.
func (s *session) reopen(id proto.FileID, known *openFile, grant func(*proto.Attr) (uint32, bool)) *openFile {
	if s.exp.Journal.Hold(id) != nil {
		return nil
	}
	o := &openFile{n: 1, held: 1}
	if known != nil {
		o.flags = known.flags
		return o
	}
	a, err := s.exp.Journal.Attr(id)
	ok := err == nil
	if ok {
		o.flags, ok = grant(&a)
	}
	if !ok {
		s.exp.Journal.Unhold(id, 1)
		return nil
	}
	return o
}

// dropOpens forgets all open files. The caller has attach.
func (s *session) dropOpens() (n int) {
	s.mu.Lock()
	old := s.opens
	s.opens = make(map[proto.FileID]*openFile)
	s.mu.Unlock()
	s.unholdAll(old)
	return len(old)
}

func (s *session) unholdAll(opens map[proto.FileID]*openFile) {
	for id, o := range opens {
		if o.held > 0 {
			s.exp.Journal.Unhold(id, o.held)
		}
	}
}

// made remembers that the session made a file for a user, who may open it once
// whatever its mode says, as open(2) with O_CREAT does.
func (s *session) made(id proto.FileID, uid uint32) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.fresh.add(id, uid)
}

// takeFresh reports, once, whether the session made the file for this user.
func (s *session) takeFresh(id proto.FileID, uid uint32) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.fresh.take(id, uid)
}

// maxFresh is how many files a session may have made and not opened yet.
const maxFresh = 4096

// freshFiles is the last files that a session made. Its zero value is empty.
type freshFiles struct {
	owner map[proto.FileID]uint32
	ring  []proto.FileID // the last maxFresh that were made, also those taken since
	next  int
}

func (f *freshFiles) add(id proto.FileID, uid uint32) {
	if f.owner == nil {
		f.owner = make(map[proto.FileID]uint32)
	}
	f.owner[id] = uid
	if len(f.ring) < maxFresh {
		f.ring = append(f.ring, id)
		return
	}
	delete(f.owner, f.ring[f.next])
	f.ring[f.next] = id
	f.next = (f.next + 1) % maxFresh
}

func (f *freshFiles) take(id proto.FileID, uid uint32) bool {
	owner, ok := f.owner[id]
	if !ok || owner != uid {
		return false
	}
	delete(f.owner, id)
	return true
}

// setMain makes c the session's connection.
func (s *session) setMain(c *conn) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.main, s.lost, s.known = c, time.Time{}, true
}

// wasHere reports whether the session had a connection in this run of the server.
func (s *session) wasHere() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.known
}

// current returns the session's connection, nil without one.
func (s *session) current() *conn {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.main
}

// leave is called by each connection at its end. With the main one go the data
// connections.
func (s *session) leave(c *conn) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.data, c)
	if s.main != c {
		return
	}
	s.main, s.lost = nil, time.Now()
	for d := range s.data {
		d.abort(errMainGone)
	}
}

// join adds a data connection, if the session has a main one, and returns that.
func (s *session) join(c *conn) (main *conn, err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	switch {
	case s.ended || s.main == nil:
		return nil, status.Newf(status.LostSession, "attach", "", "the session has no main connection")
	case len(s.data) >= maxDataConns:
		return nil, status.Newf(status.TooManyFiles, "attach", "", "the session has %d data connections already", len(s.data))
	}
	s.data[c] = struct{}{}
	return s.main, nil
}

// maxDataConns is how many data connections a session may have.
const maxDataConns = 16

// markEnded makes sure that nobody resumes the session.
func (s *session) markEnded() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.ended = true
}

func (s *session) isEnded() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.ended
}

// idle returns how long the session has been without a connection; 0 with one.
func (s *session) idle() time.Duration {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.main != nil || s.lost.IsZero() {
		return 0
	}
	return time.Since(s.lost)
}

func (s *session) status() SessionStatus {
	locks := s.exp.locks.count(s.id)
	leases, writing := s.exp.Leases.count(s.id)
	s.mu.Lock()
	defer s.mu.Unlock()
	st := SessionStatus{
		ID: s.id, Export: s.exp.Name, Client: s.name, Key: *s.key, Since: s.since, Lost: s.lost,
		ReadOnly: s.key.ReadOnly || s.exp.ReadOnly, OpenFiles: len(s.opens), Locks: locks, Leases: leases, Writing: writing, DataConns: len(s.data),
	}
	if s.main != nil {
		st.Peer, st.ReadOnly = s.main.peer, s.main.readOnly
	}
	return st
}

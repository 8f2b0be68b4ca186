package sim

import (
	"maps"
	"slices"
	"time"

	"cagefs.dev/cage/remote/proto"
	lease "cagefs.dev/cage/serverd/lease"
)

// change is an operation of a session's log on its way.
type change struct {
	seq  proto.Seq
	gen  proto.Gen
	kind Kind // Write, Put, Take; Read: nothing
	file proto.FileID
	dir  proto.FileID
	name int
	val  int
}

// result is what came of a change.
type result struct {
	again  []proto.FileID
	void   bool
	failed bool
	value  int // Take: what was there
	count  int // links of the file after it
}

// known is what of a session is on disk.
type known struct {
	results map[proto.Seq]result
	last    proto.Seq
	leased  bool
	void    map[proto.FileID]proto.Gen
}

// server is the server. What is on disk lives over a restart.
type server struct {
	w       *world
	up      bool
	boot    uint32
	content map[proto.FileID]int
	links   map[proto.FileID]int
	names   map[proto.FileID][]proto.FileID // by directory
	known   map[proto.SessionID]*known
	unasked map[proto.FileID]bool // the newest change was a program's

	life  int // of this run
	table *lease.Table
	conns map[proto.SessionID]*conn
	logs  map[proto.SessionID][]*change
	done  map[proto.SessionID]proto.Seq
	busy  map[proto.FileID]bool // a change is admitted and not applied
	waits map[lease.WaitID]func([]proto.Gen)
	last  uint64
	all   []*conn // that there are

	// onWay counts the changes of sessions that are admitted and not applied.
	onWay map[proto.SessionID]int
}

func newServer(w *world) *server {
	s := &server{w: w, content: map[proto.FileID]int{}, links: map[proto.FileID]int{}, names: map[proto.FileID][]proto.FileID{}, known: map[proto.SessionID]*known{}, unasked: map[proto.FileID]bool{}}
	for i := range dirs {
		s.names[dirID(i)] = make([]proto.FileID, names)
	}
	return s
}

func (s *server) clock() time.Duration { return s.w.now }

// begin starts a run of the server.
func (s *server) begin() {
	s.up = true
	s.boot++
	s.life++
	s.conns, s.logs, s.done = map[proto.SessionID]*conn{}, map[proto.SessionID][]*change{}, map[proto.SessionID]proto.Seq{}
	s.onWay = map[proto.SessionID]int{}
	s.busy, s.waits = map[proto.FileID]bool{}, map[lease.WaitID]func([]proto.Gen){}
	before := map[proto.SessionID]map[proto.FileID]proto.Gen{}
	for id, k := range s.known {
		if k.leased && s.w.broken != GraceTime {
			before[id] = maps.Clone(k.void)
		}
	}
	s.table = lease.New(lease.Options{Boot: s.boot, Term: term, Limit: 4, Now: s.clock(), Before: before})
	s.w.say("server: run %d, grace %v", s.boot, s.table.Grace())
	s.tick(s.life)
}

func (s *server) tick(life int) {
	s.w.after(100*time.Millisecond, func() {
		if s.life == life && s.up {
			s.do(s.table.Tick(s.clock()))
			s.tick(life)
		}
	})
}

// restart kills the server and starts it again.
func (s *server) restart(pause time.Duration) {
	if !s.up {
		return
	}
	s.w.say("server: killed")
	s.up = false
	for _, n := range s.all {
		n.end()
	}
	s.all = nil
	s.w.after(pause, s.begin)
}

// do does what the table wants done.
func (s *server) do(actions []lease.Action) {
	for _, a := range actions {
		n := s.conns[a.Session]
		switch a.Kind {
		case lease.Recall:
			if s.w.broken == Recalls {
				s.w.after(0, func() { s.do(s.table.Return(a.Session, a.ID, a.Gen, a.Mode, s.clock())) })
			} else if n != nil {
				n.send(mainWay, func() { n.c.recalled(n, a) })
			}
		case lease.Peek:
			if n != nil {
				n.send(mainWay, func() { n.c.peeked(n, a) })
			}
		case lease.Ready:
			if s.table.Grace() && slices.ContainsFunc(a.Gens, func(g proto.Gen) bool { return g != proto.Gen{} }) {
				s.w.fail("a lease is given in the grace time")
			}
			if then := s.waits[a.Wait]; then != nil {
				delete(s.waits, a.Wait)
				then(a.Gens)
			}
		case lease.Fence:
			s.fence(a)
			if n != nil {
				s.w.after(s.w.between(0, 30*time.Millisecond), n.end)
			}
		case lease.Drop:
			if n != nil {
				n.end()
			}
		}
	}
}

// fence records what is void, which takes a moment.
func (s *server) fence(a lease.Action) {
	life := s.life
	s.w.say("server: fences session %d, %v", a.Session, a.Files)
	s.w.after(s.w.between(time.Millisecond, 20*time.Millisecond), func() {
		if s.life != life || !s.up {
			return
		}
		if k := s.known[a.Session]; s.w.broken != FenceRecorded {
			if len(a.Files) == 0 {
				k.leased, k.void = false, nil
			}
			for _, f := range a.Files {
				k.void[f] = a.Gen
			}
		}
		s.do(s.table.Fenced(a, s.clock()))
	})
}

// hello is a client's first request on a connection.
func (s *server) hello(n *conn, claims []lease.Claim, answered proto.Seq) {
	id := n.c.session
	if s.table.Barred(id) {
		n.end()
		return
	}
	if old := s.conns[id]; old != nil {
		old.end()
	}
	if s.onWay[id] > 0 { // all that was submitted is done first
		life := s.life
		s.w.after(time.Millisecond, func() {
			if s.life == life && !n.dead {
				s.hello(n, claims, answered)
			}
		})
		return
	}
	k := s.known[id]
	if k == nil {
		k = &known{results: map[proto.Seq]result{}}
		s.known[id] = k
	}
	if !k.leased {
		k.leased, k.void = true, map[proto.FileID]proto.Gen{}
	}
	if k.void == nil {
		k.void = map[proto.FileID]proto.Gen{}
	}
	s.conns[id], s.logs[id], s.done[id] = n, nil, max(k.last, answered)
	for i, c := range claims {
		claims[i].Unasked = c.Gen.Boot < s.boot && s.unasked[c.ID] && s.w.broken != UnaskedClaims
	}
	lost, void, actions := s.table.Begin(id, claims, s.clock())
	n.send(mainWay, func() { n.c.welcome(n, claims, lost, void, k.last) })
	s.do(actions)
}

// request is any request: it counts for the term.
func (s *server) request(n *conn, do func()) {
	n.send(toServer, func() {
		if !s.table.Heard(n.c.session, s.clock()) {
			n.end()
			return
		}
		do()
	})
}

// wait asks for leases and looks, and calls then when they are had.
func (s *server) wait(n *conn, wants []proto.Want, then func([]proto.Gen)) {
	s.last++
	w := lease.WaitID{Session: n.c.session, Num: s.last}
	s.waits[w] = then
	n.waits = append(n.waits, w)
	s.do(s.table.Wait(w, wants, s.clock()))
}

// look calls then when what others acknowledged of a file is applied.
func (s *server) look(n *conn, f proto.FileID, then func()) {
	if !s.table.Foreign(n.c.session, f) {
		then()
		return
	}
	s.wait(n, []proto.Want{{ID: f}}, func([]proto.Gen) { then() })
}

// view is what a look at a file or directory tells.
type view struct {
	content, links int
	names          []proto.FileID
}

func (s *server) view(id proto.FileID) view {
	return view{s.content[id], s.links[id], slices.Clone(s.names[id])}
}

// getAttr answers with what there is of a file, and a lease if it may.
func (s *server) getAttr(n *conn, id proto.FileID, reply func(view, proto.Lease)) {
	life := s.life
	answer := func(v view, l proto.Lease) {
		way := mainWay
		if s.w.chance(2) {
			way = dataWay
		}
		n.send(way, func() { reply(v, l) })
	}
	if !s.known[n.c.session].leased { // not before that is on record again
		s.look(n, id, func() { answer(s.view(id), proto.Lease{}) })
		return
	}
	if s.w.broken == GrantFirst {
		v := s.view(id)
		s.w.after(s.w.between(0, 20*time.Millisecond), func() {
			if s.life != life || n.dead {
				return
			}
			l, actions := s.table.Grant(n.c.session, id, proto.ReadLease, s.clock())
			s.do(actions)
			answer(v, l)
		})
		return
	}
	l, actions := s.table.Grant(n.c.session, id, proto.ReadLease, s.clock())
	s.do(actions)
	if l.Mode != proto.NoLease {
		if s.table.Grace() {
			s.w.fail("a lease is given in the grace time")
		}
		// It is read a little later, and may be newer than the lease.
		s.w.after(s.w.between(0, 5*time.Millisecond), func() {
			if s.life == life && !n.dead {
				answer(s.view(id), l)
			}
		})
		return
	}
	s.look(n, id, func() { answer(s.view(id), proto.Lease{}) })
}

// read answers with a file's content: at once to who has a lease.
func (s *server) read(n *conn, id proto.FileID, reply func(view)) {
	s.look(n, id, func() {
		v := s.view(id)
		n.send(dataWay, func() { reply(v) })
	})
}

// acquire answers when leases are had.
func (s *server) acquire(n *conn, wants []proto.Want, reply func([]proto.Gen)) {
	if k := s.known[n.c.session]; !k.leased {
		k.leased, k.void = true, map[proto.FileID]proto.Gen{}
	}
	s.wait(n, wants, func(gens []proto.Gen) { n.send(mainWay, func() { reply(gens) }) })
}

// after calls do when the session's operations up to a number are done.
func (s *server) after(n *conn, seq proto.Seq, broken bool, do func()) {
	if broken || seq <= s.done[n.c.session] && len(n.todo) == 0 {
		do()
		return
	}
	n.todo = append(n.todo, todo{seq, do})
}

// submit takes an operation of a session's log.
func (s *server) submit(n *conn, ch *change) {
	id := n.c.session
	s.logs[id] = append(s.logs[id], ch)
	if len(s.logs[id]) == 1 {
		s.next(n)
	}
}

// touched are the files of a change.
func (s *server) touched(ch *change) []proto.FileID {
	switch ch.kind {
	case Put:
		return []proto.FileID{ch.dir, ch.file}
	case Take:
		return []proto.FileID{ch.dir, s.names[ch.dir][ch.name]}
	}
	return []proto.FileID{ch.file}
}

// next plans the first operation of a session's log; the others follow it.
func (s *server) next(n *conn) {
	id := n.c.session
	if n.dead || len(s.logs[id]) == 0 {
		return
	}
	ch, k := s.logs[id][0], s.known[id]
	if r, ok := k.results[ch.seq]; ok && s.w.broken != AppliedOnce {
		s.answer(n, ch, r)
		return
	}
	if ch.kind == Read { // given up
		k.last = max(k.last, ch.seq)
		s.answer(n, ch, result{})
		return
	}
	fs := s.touched(ch)
	if slices.ContainsFunc(fs, func(f proto.FileID) bool { return s.busy[f] }) {
		life := s.life
		s.w.after(time.Millisecond, func() { // when that one is applied
			if s.life == life {
				s.next(n)
			}
		})
		return
	}
	there := ch.kind != Write && s.names[ch.dir][ch.name] != 0
	if ch.kind == Put && there || ch.kind == Take && !there { // it fails, if that is what all agree on
		if s.table.Foreign(id, ch.dir) {
			s.answer(n, ch, result{again: []proto.FileID{ch.dir}})
			return
		}
		r := result{failed: true}
		k.results[ch.seq], k.last = r, max(k.last, ch.seq)
		s.answer(n, ch, r)
		return
	}
	verdict := s.table.Admit(id, ch.gen, fs)
	switch {
	case verdict == lease.Void && s.w.broken == Fencing, verdict == lease.Again && s.w.broken == AskFirst:
		s.do(s.table.Force(id, fs, s.clock()))
	case verdict == lease.Void:
		s.answer(n, ch, result{void: true})
		return
	case verdict == lease.Again:
		s.answer(n, ch, result{again: fs})
		return
	}
	for _, f := range fs {
		s.busy[f] = true
	}
	s.onWay[id]++
	if s.w.broken == ChangeExcludes {
		s.do(s.table.Done(fs, s.clock()))
	}
	life := s.life
	commit := s.w.between(time.Millisecond, 25*time.Millisecond)
	if s.w.chance(8) { // a slow disk
		commit *= 20
	}
	s.w.after(commit, func() {
		if s.life == life && s.up {
			s.apply(n, ch, fs)
		}
	})
}

// apply does what is committed, and answers.
func (s *server) apply(n *conn, ch *change, fs []proto.FileID) {
	k := s.known[n.c.session]
	var r result
	switch ch.kind {
	case Write:
		s.content[ch.file] = ch.val
		s.unasked[ch.file] = false
	case Put:
		s.names[ch.dir][ch.name] = ch.file
		s.links[ch.file]++
		r.count = s.links[ch.file]
	case Take:
		f := s.names[ch.dir][ch.name]
		s.names[ch.dir][ch.name] = 0
		s.links[f]--
		r.value, r.count = int(f), s.links[f]
	}
	s.w.say("server: applied %d of session %d: %+v", ch.seq, n.c.session, *ch)
	k.results[ch.seq], k.last = r, max(k.last, ch.seq)
	s.onWay[n.c.session]--
	for _, f := range fs {
		delete(s.busy, f)
	}
	if s.w.broken != ChangeExcludes {
		s.do(s.table.Done(fs, s.clock()))
	}
	if s.conns[n.c.session] == n {
		s.answer(n, ch, r)
	}
}

// answer answers an operation, and goes on with what waited for it.
func (s *server) answer(n *conn, ch *change, r result) {
	id := n.c.session
	s.logs[id] = s.logs[id][1:]
	s.done[id] = max(s.done[id], ch.seq)
	s.table.Progress(id, s.clock())
	n.send(mainWay, func() { n.c.answered(ch.seq, r) })
	for len(n.todo) > 0 && n.todo[0].seq <= s.done[id] {
		t := n.todo[0]
		n.todo = n.todo[1:]
		t.do()
	}
	life := s.life
	s.w.after(0, func() {
		if s.life == life {
			s.next(n)
		}
	})
}

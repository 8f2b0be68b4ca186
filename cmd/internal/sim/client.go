package sim

import (
	"cmp"
	"fmt"
	"math/rand/v2"
	"slices"
	"time"

	"cagefs.dev/cage/remote/lease"
	"cagefs.dev/cage/remote/proto"
	server_lease "cagefs.dev/cage/serverd/lease"
)

// logged is an operation of a client's log that is not answered.
type logged struct {
	change
	op     int  // its place in the history, or -1
	acked  bool // its program was told already
	call   time.Duration
	answer func(result) // otherwise
}

// kept is what a client's kernel has of a file.
type kept struct {
	view
	until time.Duration // by the client's clock
}

// client is a client with its programs, of which one asks at a time.
type client struct {
	w       *world
	n       int
	session proto.SessionID
	skew    float64
	slept   time.Duration // counted by SleepCounts only

	apart, asleep, dead bool
	waking              []func() // what happened while it was asleep

	leases *lease.Table
	kernel map[proto.FileID]kept
	recall map[proto.FileID]int // counts recalls: what was asked for before is not kept
	seq    proto.Seq
	log    []*logged
	conn   *conn

	busy  uint64 // of the operation that its program waits for
	asked time.Duration
	retry func() // begins it again on a new connection
}

func newClient(w *world, n int) *client {
	c := &client{w: w, n: n, session: proto.SessionID(n + 1), skew: 1 + (w.rng.Float64()-0.5)/50,
		leases: lease.New(term), kernel: map[proto.FileID]kept{}, recall: map[proto.FileID]int{}}
	return c
}

func (c *client) String() string { return fmt.Sprintf("client %d", c.n) }

// clock is the client's.
func (c *client) clock() time.Duration {
	return time.Duration(float64(c.w.now-c.slept) * c.skew)
}

func (c *client) begin() {
	c.connect()
	c.beat()
	c.expire()
	c.think()
}

// awake does something as soon as the client is awake.
func (c *client) awake(do func()) {
	switch {
	case c.dead:
	case c.asleep:
		c.waking = append(c.waking, do)
	default:
		do()
	}
}

// later is after, on the client.
func (c *client) later(d time.Duration, do func()) { c.w.after(d, func() { c.awake(do) }) }

func (c *client) sleep(d time.Duration) {
	if c.asleep || c.dead {
		return
	}
	c.w.say("%v sleeps for %v", c, d)
	c.asleep = true
	c.w.after(d, func() {
		if c.dead {
			return
		}
		c.w.say("%v wakes up", c)
		c.asleep = false
		if c.w.broken == SleepCounts {
			c.slept += d
		}
		c.over()
		todo := c.waking
		c.waking = nil
		for _, do := range todo {
			c.awake(do)
		}
	})
}

// die is a kill: what it acknowledged and had not delivered may never happen.
func (c *client) die() {
	c.w.say("%v is killed", c)
	for _, l := range c.log {
		c.lost(l)
	}
	if c.conn != nil {
		c.conn.end()
	}
	c.dead = true
}

// leave is an orderly end: all is delivered first.
func (c *client) leave() {
	c.awake(func() {
		if len(c.log) > 0 || c.busy != 0 || c.conn == nil || !c.conn.ready {
			c.later(500*time.Millisecond, c.leave)
			return
		}
		c.w.say("%v leaves", c)
		n := c.conn
		c.dead = true
		n.send(toServer, func() {
			delete(c.w.server.conns, c.session)
			delete(c.w.server.known, c.session)
			c.w.server.do(c.w.server.table.End(c.session, true, c.w.server.clock()))
		})
	})
}

// lost says that nobody knows whether an acknowledged operation happens.
func (c *client) lost(l *logged) {
	if l.op >= 0 {
		c.w.history[l.op].Return = Never
	}
}

// ---- Connection ----

func (c *client) connect() {
	if c.conn != nil || c.dead {
		return
	}
	if c.apart || !c.w.server.up {
		c.later(c.w.between(50*time.Millisecond, 500*time.Millisecond), c.connect)
		return
	}
	n := &conn{w: c.w, c: c}
	c.conn = n
	c.w.server.all = append(c.w.server.all, n)
	var claims []server_lease.Claim
	for _, l := range c.leases.Claims(100) {
		claims = append(claims, server_lease.Claim{ID: l.ID, Gen: l.Gen, First: l.First, Mode: l.Mode})
	}
	sent, answered := c.clock(), c.acked()
	n.send(toServer, func() {
		c.w.server.hello(n, claims, answered)
		n.send(mainWay, func() { c.renew(sent) })
	})
}

// acked is the operation up to which all are answered.
func (c *client) acked() proto.Seq {
	if len(c.log) > 0 {
		return c.log[0].seq - 1
	}
	return c.seq
}

func (c *client) disconnected(n *conn) {
	if c.conn == n {
		c.conn = nil
		c.later(c.w.between(20*time.Millisecond, 300*time.Millisecond), c.connect)
	}
}

func (c *client) cut() {
	if c.conn != nil {
		c.w.say("%v: connection cut", c)
		c.conn.end()
	}
}

// renew counts the term anew, for an answer to what was sent at a time.
func (c *client) renew(sent time.Duration) {
	if c.w.broken == SendTime {
		sent = c.clock()
	}
	c.leases.Answered(sent, c.clock())
}

// welcome is the answer to the hello.
func (c *client) welcome(n *conn, claims []server_lease.Claim, lost []int, void proto.Gen, applied proto.Seq) {
	n.ready = true
	c.w.say("%v is welcome, lost %v of %v", c, lost, claims)
	mine := make([]lease.Claim, len(claims))
	for i, cl := range claims {
		mine[i] = lease.Claim{ID: cl.ID, Gen: cl.Gen, First: cl.First, Mode: cl.Mode}
	}
	for _, i := range lost {
		if mine[i].Mode == proto.WriteLease {
			c.fenced(mine[i].ID, applied)
		}
	}
	gone := c.leases.Resumed(mine, lost, void)
	for _, l := range c.log {
		c.sendChange(l)
	}
	settled := func() {
		if !n.dead {
			seq := c.seq
			n.send(toServer, func() {
				srv := c.w.server
				srv.after(n, seq, false, func() { srv.do(srv.table.Settled(c.session, srv.clock())) })
			})
		}
	}
	if len(gone) > 0 {
		c.later(c.w.between(0, 30*time.Millisecond), func() {
			for _, id := range gone {
				c.forget(id)
			}
			settled()
		})
	} else {
		settled()
	}
	if c.retry != nil {
		c.retry()
	}
}

// fenced gives up what was logged for a file and is not applied. The numbers are
// used up: nothing is done under them.
func (c *client) fenced(id proto.FileID, applied proto.Seq) {
	if c.w.broken == Fencing {
		return
	}
	for _, l := range c.log {
		if l.acked && l.file == id && l.seq > applied {
			c.lost(l)
			l.kind = Read
		}
	}
}

// ask sends a request whose answer, if it comes, counts for the term. Without a connection nothing
// is sent.
func (c *client) ask(do func(n *conn)) {
	n := c.conn
	if n == nil || !n.ready {
		return
	}
	sent := c.clock()
	c.w.server.request(n, func() {
		do(n)
		n.send(mainWay, func() { c.renew(sent) })
	})
}

func (c *client) beat() {
	c.ask(func(*conn) {})
	c.later(term/4, c.beat)
}

// expire looks now and then whether the leases are over.
func (c *client) expire() {
	c.over()
	if idle := c.leases.Idle(c.clock()-time.Second, 1000); c.conn != nil {
		slices.SortFunc(idle, func(a, b lease.Recall) int { return cmp.Compare(a.ID, b.ID) })
		for _, r := range idle {
			if c.leases.Recalled(r) {
				c.giveBack(r, c.leases.Returned(r))
			}
		}
	}
	c.later(200*time.Millisecond, c.expire)
}

// unanswered records what became of the changes of a client that is dead, of
// which nobody was told.
func (c *client) unanswered() {
	k := c.w.server.known[c.session]
	for _, l := range c.log {
		if l.acked || k == nil {
			continue
		}
		if r, ok := k.results[l.seq]; ok {
			c.changed(l.change, r, l.call, Never)
		}
	}
}

func (c *client) over() {
	if c.w.broken == Expires {
		return
	}
	if c.leases.Expire(c.clock()) {
		c.w.say("%v: the leases are over", c)
		for id := range c.recall {
			c.recall[id]++
		}
		clear(c.kernel)
	}
}

// ---- Recalls ----

func (c *client) forget(id proto.FileID) {
	c.recall[id]++
	delete(c.kernel, id)
}

func (c *client) recalled(n *conn, a server_lease.Action) {
	r := lease.Recall{ID: a.ID, UpTo: a.Gen, To: a.Mode}
	c.w.say("%v: recall %+v", c, r)
	if c.w.broken == Overtaken && c.leases.Tenure(a.ID, c.clock()) == 0 {
		c.giveBack(r, true)
		return
	}
	if c.leases.Recalled(r) {
		c.revoke(r)
	}
}

// revoke makes the kernel forget, which takes a while, and gives the lease back.
func (c *client) revoke(r lease.Recall) {
	if r.To != proto.NoLease {
		c.giveBack(r, c.leases.Returned(r))
		return
	}
	c.recall[r.ID]++
	if c.w.broken == ForgetFirst {
		c.giveBack(r, c.leases.Returned(r))
		c.later(c.w.between(time.Millisecond, 60*time.Millisecond), func() { c.forget(r.ID) })
		return
	}
	c.later(c.w.between(0, 30*time.Millisecond), func() {
		c.forget(r.ID)
		c.giveBack(r, c.leases.Returned(r))
	})
}

// giveBack sends a return; it comes again if it gets lost.
func (c *client) giveBack(r lease.Recall, logged bool) {
	seq := proto.Seq(0)
	if logged {
		seq = c.seq
	}
	if c.w.broken == ReturnNames {
		r.UpTo = proto.Gen{Boot: 1 << 30}
	}
	c.ask(func(n *conn) {
		s := c.w.server
		s.after(n, seq, c.w.broken == ReturnApplied, func() { s.do(s.table.Return(c.session, r.ID, r.UpTo, r.To, s.clock())) })
	})
}

func (c *client) peeked(_ *conn, a server_lease.Action) {
	seq := c.seq
	c.ask(func(n *conn) {
		s := c.w.server
		s.after(n, seq, c.w.broken == PeekApplied, func() { s.do(s.table.Peeked(c.session, a.ID, a.Num, s.clock())) })
	})
}

func (c *client) granted(id proto.FileID, l proto.Lease) bool {
	ok, back := c.leases.Granted(id, l)
	if back {
		c.giveBack(lease.Recall{ID: id, UpTo: l.Gen}, true)
	}
	return ok
}

// keep lets the kernel keep what it is told, under a lease that it has had since
// it was asked for: attributes and names for a time, pages until it is made to forget.
func (c *client) keep(id proto.FileID, v view, recalls int, pages bool) {
	if c.recall[id] != recalls || c.leases.Tenure(id, c.clock()) == 0 {
		return
	}
	k := kept{v, c.leases.Until()}
	if pages {
		k.until = Never
	}
	c.kernel[id] = k
}

// cached is what the kernel answers from itself.
func (c *client) cached(id proto.FileID) (view, bool) {
	k, ok := c.kernel[id]
	if !ok || c.clock() >= k.until && c.w.broken != Expires {
		return view{}, false
	}
	return k.view, true
}

// acquire asks for leases, and calls then when they are had. It is begun again with the connection.
func (c *client) acquire(wants []proto.Want, then func(release func())) {
	c.w.say("%v asks for %v", c, wants)
	c.ask(func(n *conn) {
		c.w.server.acquire(n, wants, func(gens []proto.Gen) {
			c.w.say("%v gets %v %v", c, wants, gens)
			used := make([]bool, len(wants))
			for i, w := range wants {
				if w.Mode != proto.NoLease {
					c.granted(w.ID, proto.Lease{Gen: gens[i], Mode: w.Mode})
					used[i] = c.leases.Use(w.ID, c.clock())
				}
			}
			then(func() {
				for i, w := range wants {
					if used[i] {
						if r, again := c.leases.Unuse(w.ID); again {
							c.revoke(r)
						}
					}
				}
			})
		})
	})
}

// ---- Programs ----

// think waits for a while and does the next thing.
func (c *client) think() {
	c.later(c.w.between(20*time.Millisecond, 700*time.Millisecond), func() {
		if !c.w.calm {
			c.act(c.w.rng)
		}
	})
}

// task is what a client's program waits for.
type task struct {
	c  *client
	id uint64
}

// start begins one; again is called now and on each new connection until it ends.
func (c *client) start(again func(t task)) {
	c.w.order++
	t := task{c, c.w.order}
	c.w.say("%v begins %d", c, t.id)
	c.busy, c.asked = t.id, c.w.now
	c.retry = func() {
		if t.open() {
			again(t)
		}
	}
	c.retry()
}

func (t task) open() bool { return t.c.busy == t.id }

func (t task) end() {
	if t.open() {
		t.c.w.say("%v ends %d", t.c, t.id)
		t.c.busy, t.c.retry = 0, nil
		t.c.think()
	}
}

func (c *client) act(rng *rand.Rand) {
	f, d, n := fileID(rng.IntN(files)), dirID(rng.IntN(dirs)), rng.IntN(names)
	switch rng.IntN(12) {
	case 0, 1, 2:
		c.write(f)
	case 3, 4:
		c.readFile(f)
	case 5, 6:
		c.stat(f)
	case 7:
		c.stat(d)
	case 8:
		if rng.IntN(2) == 0 {
			c.change(change{kind: Put, file: f, dir: d, name: n})
		} else {
			c.change(change{kind: Take, dir: d, name: n})
		}
	case 9:
		c.stat(localFile)
	case 10:
		c.readFile(localFile)
	case 11:
		c.w.values++
		c.change(change{kind: Write, file: f, val: c.w.values})
	}
}

// saw records what a look at a file or directory told.
func (c *client) saw(id proto.FileID, v view, call time.Duration, all bool) {
	read := func(object string, value int) {
		c.w.record(Op{Client: c.n, Object: object, Kind: Read, Value: value, Call: call, Return: c.w.now})
	}
	if id >= dirID(0) {
		for i, f := range v.names {
			read(name(id, i), int(f))
		}
		return
	}
	read(content(id), v.content)
	if all {
		read(links(id), v.links)
	}
	c.w.say("%v saw %v: %+v", c, id, v)
}

// stat looks at a file or directory: in the kernel, or at the server.
func (c *client) stat(id proto.FileID) {
	call := c.w.now
	if v, ok := c.cached(id); ok {
		c.saw(id, v, call, true)
		c.think()
		return
	}
	c.start(func(t task) {
		recalls, upto := c.recall[id], c.seq
		c.ask(func(n *conn) {
			c.w.server.after(n, upto, false, func() { // a look waits for one's own writes
				c.w.server.getAttr(n, id, func(v view, l proto.Lease) {
					if l.Mode != proto.NoLease && c.granted(id, l) && c.seq == upto {
						c.keep(id, v, recalls, false)
					}
					if t.open() {
						c.saw(id, v, call, true)
						t.end()
					}
				})
			})
		})
	})
}

// readFile reads a file's content, for which it needs a lease.
func (c *client) readFile(id proto.FileID) {
	call := c.w.now
	if v, ok := c.cached(id); ok {
		c.saw(id, v, call, false)
		c.think()
		return
	}
	c.start(func(t task) {
		if !c.leases.Holds(id, proto.ReadLease, c.clock()) {
			c.acquire([]proto.Want{{ID: id, Mode: proto.ReadLease}}, func(release func()) {
				release()
				if t.open() {
					c.retry()
				}
			})
			return
		}
		recalls, upto := c.recall[id], c.seq
		c.ask(func(n *conn) {
			c.w.server.after(n, upto, false, func() {
				c.w.server.read(n, id, func(v view) {
					if c.seq == upto {
						c.keep(id, v, recalls, true)
					}
					if t.open() {
						c.saw(id, v, call, false)
						t.end()
					}
				})
			})
		})
	})
}

// write changes a file and acknowledges that at once, under the write lease.
func (c *client) write(id proto.FileID) {
	c.w.values++
	call, v := c.w.now, c.w.values
	do := func(t task) {
		gen, ok := c.leases.Log(id, c.clock())
		if !ok || !t.open() {
			return
		}
		op := c.w.record(Op{Client: c.n, Object: content(id), Kind: Write, Value: v, Call: call, Return: c.w.now})
		c.append(&logged{change: change{gen: gen, kind: Write, file: id, val: v}, op: op, acked: true})
		if k, ok := c.kernel[id]; ok { // its own kernel sees it
			k.content = v
			c.kernel[id] = k
		}
		t.end()
	}
	c.start(func(t task) {
		if do(t); !t.open() {
			return
		}
		c.acquire([]proto.Want{{ID: id, Mode: proto.WriteLease}}, func(release func()) {
			do(t)
			release()
			if t.open() {
				c.retry()
			}
		})
	})
}

// change is a change that its program waits for.
func (c *client) change(ch change) {
	call, begun := c.w.now, false
	c.start(func(t task) {
		if begun {
			return // the log sees to it
		}
		begun = true
		c.changeUnder(t, ch, call, func() {})
	})
}

// changeUnder sends a change, and after it calls release; where leases are
// needed for it, it asks for these and makes the change anew.
func (c *client) changeUnder(t task, ch change, call time.Duration, release func()) {
	c.append(&logged{change: ch, op: -1, call: call, answer: func(r result) {
		release()
		if r.again == nil {
			c.changed(ch, r, call, c.w.now)
			t.end()
			return
		}
		wants := make([]proto.Want, len(r.again))
		for i, f := range r.again {
			wants[i] = proto.Want{ID: f, Mode: proto.WriteLease}
		}
		begun := false
		c.retry = func() {
			c.acquire(wants, func(release func()) {
				if begun || !t.open() {
					release()
					return
				}
				begun, c.retry = true, nil
				c.changeUnder(t, ch, call, release)
			})
		}
		c.retry()
	}})
}

// changed records the outcome of a change.
func (c *client) changed(ch change, r result, call, end time.Duration) {
	op := Op{Client: c.n, Kind: ch.kind, Call: call, Return: end, Failed: r.failed}
	switch ch.kind {
	case Write:
		op.Object, op.Value = content(ch.file), ch.val
		c.w.record(op)
		return
	case Put:
		op.Object, op.Value = name(ch.dir, ch.name), int(ch.file)
	case Take:
		op.Object, op.Value = name(ch.dir, ch.name), r.value
	}
	c.w.record(op)
	if r.failed {
		return
	}
	add := 1
	if ch.kind == Take {
		add = -1
	}
	c.w.record(Op{Client: c.n, Object: links(proto.FileID(op.Value)), Kind: Add, Value: add, Call: call, Return: end})
}

// append gives an operation its place in the log.
func (c *client) append(l *logged) {
	c.seq++
	l.seq = c.seq
	c.log = append(c.log, l)
	// What the kernel has of the files that a change of ours touches, it forgets.
	if !l.acked {
		for _, id := range []proto.FileID{l.file, l.dir} {
			c.forget(id)
		}
		if l.kind == Take {
			for i := range files {
				c.forget(fileID(i))
			}
		}
	}
	c.sendChange(l)
}

func (c *client) sendChange(l *logged) {
	c.ask(func(n *conn) { c.w.server.submit(n, &l.change) })
}

// answered is the answer to an operation.
func (c *client) answered(seq proto.Seq, r result) {
	i := slices.IndexFunc(c.log, func(l *logged) bool { return l.seq == seq })
	if i < 0 {
		return
	}
	l := c.log[i]
	c.log = slices.Delete(c.log, i, i+1)
	switch {
	case l.answer != nil:
		for _, id := range []proto.FileID{l.file, l.dir, proto.FileID(r.value)} {
			c.forget(id)
		}
		l.answer(r)
	case r.void:
		c.lost(l)
	}
}

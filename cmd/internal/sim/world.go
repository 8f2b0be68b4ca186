// Package sim plays the lease protocol in virtual time: one server, several
// clients, programs on the server, a network that delays, cuts and partitions,
// clocks that go differently, machines that sleep, restarts and deaths. It uses the
// very state machines of serverd/lease and remote/lease, and does around them what their owners do.
//
// A run is a function of its seed. It yields the history of what was asked and
// answered, to be checked for linearizability, and the first broken invariant.
package sim

import (
	"container/heap"
	"fmt"
	"math/rand/v2"
	"time"

	"cagefs.dev/cage/remote/proto"
)

// Rule is a rule of the protocol that a run breaks, to show that it is found out.
type Rule string

// The rules. The empty one is none.
const (
	Recalls        Rule = "leases are recalled before others change the file"
	SendTime       Rule = "the term counts from when the request was sent"
	SleepCounts    Rule = "the clock goes on while the machine sleeps"
	Expires        Rule = "nothing is answered from memory when the term is over"
	GraceTime      Rule = "after a restart nothing is given before all are back"
	ReturnApplied  Rule = "a return counts when what was logged before it is applied"
	ForgetFirst    Rule = "a lease is returned when the kernel has forgotten"
	GrantFirst     Rule = "what is read for a lease is read after it is given"
	Fencing        Rule = "what was logged under a lease that is lost is refused"
	AskFirst       Rule = "a change is refused while others have leases"
	FenceRecorded  Rule = "that a lease is void is recorded before it is given to others"
	Overtaken      Rule = "a grant that its recall overtook does not count"
	PeekApplied    Rule = "who looks waits for what was acknowledged before"
	LocalRevokes   Rule = "changes by programs of the server are told"
	ChangeExcludes Rule = "nothing is given between the admission of a change and its end"
	ReturnNames    Rule = "a return names the generation it gives back"
	AppliedOnce    Rule = "an operation that is sent again is applied once"
	UnaskedClaims  Rule = "what programs of the server changed is not claimed after a restart"
)

// Rules are all of them.
var Rules = []Rule{Recalls, SendTime, SleepCounts, Expires, GraceTime, ReturnApplied, ForgetFirst, GrantFirst, Fencing,
	AskFirst, FenceRecorded, Overtaken, PeekApplied, LocalRevokes, ChangeExcludes, ReturnNames, AppliedOnce, UnaskedClaims}

// Term of the leases, and how long a run goes on and then may take to come to rest.
const (
	term    = 20 * time.Second
	length  = 60 * time.Second
	restful = 120 * time.Second
)

// What there is.
const (
	clients = 3
	files   = 3 // numbers 10, 11, …
	dirs    = 2 // numbers 20, 21, …
	names   = 2 // in each directory
)

// localFile is changed by programs of the server only.
const localFile = proto.FileID(10 + files)

func fileID(i int) proto.FileID { return proto.FileID(10 + i) }
func dirID(i int) proto.FileID  { return proto.FileID(20 + i) }

// event is something that happens at a time; of one time in the order of order.
type event struct {
	at    time.Duration
	order uint64
	do    func()
}

type events []event

func (e events) Len() int { return len(e) }
func (e events) Less(i, j int) bool {
	return e[i].at < e[j].at || e[i].at == e[j].at && e[i].order < e[j].order
}
func (e events) Swap(i, j int) { e[i], e[j] = e[j], e[i] }
func (e *events) Push(x any)   { *e = append(*e, x.(event)) }
func (e *events) Pop() any {
	old := *e
	x := old[len(old)-1]
	*e = old[:len(old)-1]
	return x
}

// world is a run.
type world struct {
	rng    *rand.Rand
	broken Rule
	now    time.Duration
	queue  events
	order  uint64
	calm   bool // no more faults, and nobody asks for anything new

	server  *server
	clients []*client
	history []Op
	values  int // the last that was written
	err     error
	trace   func(string)
}

// Run plays a seed with a rule broken, if not "". trace, if not nil, is told what happens.
func Run(seed uint64, broken Rule, trace func(string)) ([]Op, error) {
	w := &world{rng: rand.New(rand.NewPCG(seed, 1)), broken: broken, trace: trace}
	w.server = newServer(w)
	for i := range clients {
		w.clients = append(w.clients, newClient(w, i))
	}
	w.server.begin()
	for _, c := range w.clients {
		c.begin()
	}
	w.local()
	w.faults()
	w.after(length, func() {
		w.calm = true
		w.say("calm")
	})
	for len(w.queue) > 0 && w.err == nil {
		e := heap.Pop(&w.queue).(event)
		if e.at > length+restful {
			break
		}
		w.now = e.at
		e.do()
		w.exclusive()
	}
	for _, c := range w.clients {
		if c.dead {
			c.unanswered()
		}
	}
	if w.err == nil {
		w.atRest()
	}
	return w.history, w.err
}

func (w *world) after(d time.Duration, do func()) {
	w.order++
	heap.Push(&w.queue, event{w.now + d, w.order, do})
}

// between is a random time.
func (w *world) between(from, to time.Duration) time.Duration {
	return from + time.Duration(w.rng.Int64N(int64(to-from)))
}

// chance is true once in n times.
func (w *world) chance(n int) bool { return w.rng.IntN(n) == 0 }

func (w *world) say(format string, args ...any) {
	if w.trace != nil {
		w.trace(fmt.Sprintf("%10.3f ", w.now.Seconds()) + fmt.Sprintf(format, args...))
	}
}

func (w *world) fail(format string, args ...any) {
	if w.err == nil {
		w.err = fmt.Errorf("at %.3f s: %w", w.now.Seconds(), fmt.Errorf(format, args...))
		w.say("FAIL %v", w.err)
	}
}

// exclusive checks that nobody relies on a lease of a file while somebody else
// relies on its write lease: by their own clocks, but for one that sleeps.
func (w *world) exclusive() {
	for i := range files + dirs {
		id := fileID(i)
		if i >= files {
			id = dirID(i - files)
		}
		var writer *client
		for _, c := range w.clients {
			if c.dead || c.asleep || !c.leases.Holds(id, proto.WriteLease, c.clock()) {
				continue
			}
			if writer != nil {
				w.fail("%v and %v both have the write lease of %v", writer, c, id)
			}
			writer = c
		}
		for _, c := range w.clients {
			if writer != nil && c != writer && !c.dead && !c.asleep && c.leases.Holds(id, proto.ReadLease, c.clock()) {
				w.fail("%v has a lease of %v, and %v the write lease", c, id, writer)
			}
		}
	}
}

// atRest checks that everybody got an answer, and that the server has what the clients have logged.
func (w *world) atRest() {
	for _, c := range w.clients {
		if c.dead {
			continue
		}
		if c.busy != 0 {
			w.fail("%v waits for an answer since %.3f s", c, c.asked.Seconds())
		}
		if n := len(c.log); n > 0 {
			w.fail("%v has %d operations that are not answered", c, n)
		}
	}
}

// faults makes things go wrong until it is calm.
func (w *world) faults() {
	w.after(w.between(100*time.Millisecond, 6*time.Second), func() {
		if w.calm {
			for _, c := range w.clients {
				c.apart = false
			}
			return
		}
		c := w.clients[w.rng.IntN(clients)]
		switch w.rng.IntN(11) {
		case 0, 1, 2:
			c.cut()
		case 3, 4:
			w.partition(c)
		case 5:
			c.sleep(w.between(time.Second, 30*time.Second))
		case 6, 7:
			w.server.restart(w.between(10*time.Millisecond, 5*time.Second))
		case 8:
			w.server.restart(w.between(10*time.Millisecond, 500*time.Millisecond))
			w.after(w.between(time.Second, 8*time.Second), func() { w.server.restart(100 * time.Millisecond) })
		case 10: // answers come late, and then nothing
			if n := c.conn; n != nil {
				late := w.between(time.Second, 8*time.Second)
				n.last[mainWay] = max(n.last[mainWay], w.now+late)
				w.say("%v: answers are %v late", c, late)
				w.after(late+time.Millisecond, func() { w.partition(c) })
			}
		case 9:
			if w.chance(4) && !c.dead && c != w.clients[0] {
				if w.chance(2) {
					c.die()
				} else {
					c.leave()
				}
			}
		}
		w.faults()
	})
}

// partition keeps a client from the server for a while.
func (w *world) partition(c *client) {
	c.apart = true
	c.cut()
	w.say("%v is cut off", c)
	w.after(w.between(500*time.Millisecond, 35*time.Second), func() { c.apart = false })
}

// LocalBound is how long a change by a program of the server may go unnoticed: who
// is cut off hears of it when his term is over.
const LocalBound = term + 2*time.Second

// local changes a file on the server, without asking anybody. No client writes
// it: who has seen such a change and who has not is in no order.
func (w *world) local() {
	w.after(w.between(500*time.Millisecond, 5*time.Second), func() {
		if w.calm {
			return
		}
		if s := w.server; s.up {
			f := localFile
			w.values++
			v := w.values
			w.record(Op{Client: clients, Object: content(f), Kind: Write, Value: v, Call: w.now, Return: w.now})
			s.content[f] = v
			s.unasked[f] = true
			w.say("local: %v = %d", f, v)
			if w.broken != LocalRevokes {
				s.do(s.table.Revoke(0, []proto.FileID{f}, s.clock()))
			}
		}
		w.local()
	})
}

package sim

import (
	"time"

	"cagefs.dev/cage/remote/proto"
	"cagefs.dev/cage/serverd/lease"
)

// Connections are as TCP makes them: what is sent on one way arrives in order or
// not at all; ends of connections cut everything short. A client has two ways
// from the server, main and data, which keep no order between them.

// conn is a connection of a client, with both its ways.
type conn struct {
	w     *world
	c     *client
	dead  bool
	ready bool // the hello is answered
	last  [3]time.Duration
	todo  []todo // at the server: what waits for operations to be applied
	waits []lease.WaitID
}

// The ways.
const (
	toServer = iota
	mainWay
	dataWay
)

// send makes do happen at the other end, if the connection lives until then.
func (n *conn) send(way int, do func()) {
	delay := n.w.between(time.Millisecond, 60*time.Millisecond)
	if n.w.chance(100) {
		delay *= 50
	}
	at := max(n.w.now+delay, n.last[way])
	n.last[way] = at
	n.w.after(at-n.w.now, func() {
		if n.dead {
			return
		}
		if way != toServer {
			n.c.awake(func() {
				if !n.dead {
					do()
				}
			})
			return
		}
		if n.w.server.up {
			do()
		}
	})
}

// end cuts the connection; each end hears of it.
func (n *conn) end() {
	if n.dead {
		return
	}
	n.dead = true
	s := n.w.server
	for _, w := range n.waits {
		if s.up && s.waits[w] != nil {
			delete(s.waits, w)
			s.do(s.table.Cancel(w, s.clock()))
		}
	}
	if n.w.server.conns[n.c.session] == n {
		delete(n.w.server.conns, n.c.session)
	}
	n.c.awake(func() { n.c.disconnected(n) })
}

// todo is what follows the operations up to a number.
type todo struct {
	seq proto.Seq
	do  func()
}

package serverd

import (
	"context"
	"sync"
)

// gate bounds what a connection's requests may take of the server's memory: how
// many are in the works, and how many bytes they and their answers have. The
// reader enters a request before it is handled, and stops reading while there is
// no room; the request leaves when its answer is written to the connection.
type gate struct {
	maxN     int
	maxBytes int64
	room     chan struct{} // holds one: somebody left since the last look
	purse    *purse        // of the client; nil: none. Set before the first enter

	mu    sync.Mutex
	n     int   // guarded by mu
	bytes int64 // guarded by mu
}

func newGate(maxN int, maxBytes int64) *gate {
	return &gate{maxN: maxN, maxBytes: maxBytes, room: make(chan struct{}, 1)}
}

// enter waits for room; it is for the one goroutine that reads the connection.
// A request larger than everything allowed enters alone.
func (g *gate) enter(ctx context.Context, cost int64) error {
	for !g.tryEnter(cost) {
		select {
		case <-g.room:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	if g.purse == nil {
		return nil
	}
	err := g.purse.take(ctx, cost)
	if err != nil {
		g.forget(cost)
	}
	return err
}

func (g *gate) forget(cost int64) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.n--
	g.bytes -= cost
}

func (g *gate) tryEnter(cost int64) bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.n > 0 && (g.n >= g.maxN || g.bytes+cost > g.maxBytes) {
		return false
	}
	g.n++
	g.bytes += cost
	return true
}

// leave gives the room of one request back.
func (g *gate) leave(cost int64) {
	g.forget(cost)
	if g.purse != nil {
		g.purse.give(cost)
	}
	select {
	case g.room <- struct{}{}:
	default:
	}
}

// shut gives back what requests hold whose answers are never written. Nobody
// enters or leaves any more.
func (g *gate) shut() {
	if g.purse != nil {
		g.purse.give(g.bytes)
	}
}

// purse bounds what the requests of all connections of a client take together.
// Where one is not read from, the others wait for it, until it is dropped. Safe
// for concurrent use.
type purse struct {
	max   int64
	conns int           // guarded by Server.mu
	long  chan struct{} // holds one for each of its long requests

	mu   sync.Mutex
	used int64         // guarded by mu
	room chan struct{} // guarded by mu; closed when something is given back; nil: nobody waits
}

// maxLong is how many requests a client may have in the works that read history: what
// one takes of processor, disk and memory depends on how much there is of that.
const maxLong = 4

func newPurse(max int64) *purse { return &purse{max: max, long: make(chan struct{}, maxLong)} }

// takeLong waits until the client may begin a long request.
func (p *purse) takeLong(ctx context.Context) error {
	select {
	case p.long <- struct{}{}:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

func (p *purse) giveLong() { <-p.long }

// take waits for room; a request larger than everything allowed goes alone.
func (p *purse) take(ctx context.Context, cost int64) error {
	for {
		room := p.tryTake(cost)
		if room == nil {
			return nil
		}
		select {
		case <-room:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// tryTake returns nil, or what is closed when there may be room.
func (p *purse) tryTake(cost int64) <-chan struct{} {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.used > 0 && p.used+cost > p.max {
		if p.room == nil {
			p.room = make(chan struct{})
		}
		return p.room
	}
	p.used += cost
	return nil
}

func (p *purse) give(cost int64) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.used -= cost
	if p.room != nil {
		close(p.room)
		p.room = nil
	}
}

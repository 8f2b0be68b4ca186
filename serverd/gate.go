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
	return nil
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
	g.mu.Lock()
	g.n--
	g.bytes -= cost
	g.mu.Unlock()
	select {
	case g.room <- struct{}{}:
	default:
	}
}

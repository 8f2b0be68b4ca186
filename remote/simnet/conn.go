package simnet

import (
	"io"
	"net"
	"os"
	"sync"
	"syscall"
	"time"
)

// Conn is one end of a connection.
type Conn struct {
	net           *Net
	in, out       *pipe
	local, remote Addr
}

// Read waits for bytes to arrive.
func (c *Conn) Read(p []byte) (int, error) {
	n, err := c.in.read(p)
	return n, c.wrap("read", err)
}

// Write blocks while the other end's buffer is full.
func (c *Conn) Write(p []byte) (int, error) {
	n, err := c.out.write(p)
	return n, c.wrap("write", err)
}

func (c *Conn) wrap(op string, err error) error {
	if err == nil || err == io.EOF {
		return err
	}
	return &net.OpError{Op: op, Net: "sim", Source: c.local, Addr: c.remote, Err: err}
}

// Close is an orderly end: what was written before still arrives.
func (c *Conn) Close() error {
	c.out.closeWrite()
	c.in.closeRead()
	c.gone()
	return nil
}

// Cut breaks the connection: ECONNRESET at both ends, bytes on their way are lost.
func (c *Conn) Cut() {
	c.out.reset()
	c.in.reset()
	c.gone()
}

// gone takes the connection out of the network's list, whichever end this is.
func (c *Conn) gone() {
	c.net.mu.Lock()
	defer c.net.mu.Unlock()
	for _, e := range c.out.ends {
		delete(c.net.conns, e)
	}
}

// LocalAddr is this end.
func (c *Conn) LocalAddr() net.Addr { return c.local }

// RemoteAddr is the other end.
func (c *Conn) RemoteAddr() net.Addr { return c.remote }

// SetDeadline sets both deadlines.
func (c *Conn) SetDeadline(t time.Time) error {
	c.in.setDeadline(&c.in.readBy, t)
	c.out.setDeadline(&c.out.writeBy, t)
	return nil
}

// SetReadDeadline ends reads, also those that wait already, at t.
func (c *Conn) SetReadDeadline(t time.Time) error {
	c.in.setDeadline(&c.in.readBy, t)
	return nil
}

// SetWriteDeadline ends writes, also those that wait already, at t.
func (c *Conn) SetWriteDeadline(t time.Time) error {
	c.out.setDeadline(&c.out.writeBy, t)
	return nil
}

// chunk is bytes that arrive together.
type chunk struct {
	data []byte
	at   time.Time
}

// pipe is one direction of a connection.
type pipe struct {
	net  *Net
	link *link
	// Set before the pipe is used.
	ends     [2]*Conn
	cutAfter int // 0: never

	mu      sync.Mutex
	wake    chan struct{} // closed and replaced when anything below changes
	chunks  []chunk
	size    int       // bytes in chunks
	through time.Time // when the last bytes are on the line
	written int
	err     error // reset
	eof     bool  // the writer closed
	unread  bool  // the reader closed
	readBy  time.Time
	writeBy time.Time
}

func newPipe(n *Net, l *link) *pipe { return &pipe{net: n, link: l, wake: make(chan struct{})} }

// changedLocked wakes all who wait.
func (p *pipe) changedLocked() {
	close(p.wake)
	p.wake = make(chan struct{})
}

func (p *pipe) setDeadline(which *time.Time, t time.Time) {
	p.mu.Lock()
	defer p.mu.Unlock()
	*which = t
	p.changedLocked()
}

func (p *pipe) reset() {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.err == nil {
		p.err = syscall.ECONNRESET
	}
	p.chunks, p.size = nil, 0
	p.changedLocked()
}

func (p *pipe) closeWrite() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.eof = true
	p.changedLocked()
}

func (p *pipe) closeRead() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.unread = true
	p.chunks, p.size = nil, 0
	p.changedLocked()
}

// wait blocks until the pipe or its link changes, or one of the times has come.
func wait(pipe, link <-chan struct{}, times ...time.Time) {
	var first time.Time
	for _, t := range times {
		if !t.IsZero() && (first.IsZero() || t.Before(first)) {
			first = t
		}
	}
	var timer <-chan time.Time
	if !first.IsZero() {
		t := time.NewTimer(time.Until(first))
		defer t.Stop()
		timer = t.C
	}
	select {
	case <-pipe:
	case <-link:
	case <-timer:
	}
}

func past(t time.Time) bool { return !t.IsZero() && !time.Now().Before(t) }

func (p *pipe) read(b []byte) (int, error) {
	for {
		stopped, linkWake := p.net.stopped(p.link)
		p.mu.Lock()
		var arrives time.Time
		switch {
		case p.unread:
			p.mu.Unlock()
			return 0, net.ErrClosed
		case p.err != nil:
			err := p.err
			p.mu.Unlock()
			return 0, err
		case past(p.readBy):
			p.mu.Unlock()
			return 0, os.ErrDeadlineExceeded
		case len(b) == 0:
			p.mu.Unlock()
			return 0, nil
		case stopped:
		case len(p.chunks) == 0 && p.eof:
			p.mu.Unlock()
			return 0, io.EOF
		case len(p.chunks) > 0 && !time.Now().Before(p.chunks[0].at):
			n := p.takeLocked(b)
			p.mu.Unlock()
			return n, nil
		case len(p.chunks) > 0:
			arrives = p.chunks[0].at
		}
		wake, by := p.wake, p.readBy
		p.mu.Unlock()
		wait(wake, linkWake, arrives, by)
	}
}

// takeLocked moves arrived bytes to b.
func (p *pipe) takeLocked(b []byte) int {
	n := 0
	now := time.Now()
	for n < len(b) && len(p.chunks) > 0 && !now.Before(p.chunks[0].at) {
		c := &p.chunks[0]
		k := copy(b[n:], c.data)
		n += k
		c.data = c.data[k:]
		if len(c.data) == 0 {
			p.chunks = p.chunks[1:]
		}
	}
	p.size -= n
	p.changedLocked()
	return n
}

func (p *pipe) write(b []byte) (int, error) {
	n := 0
	for {
		p.mu.Lock()
		switch {
		case n == len(b) && n > 0: // all is on its way, whatever happened since
			p.mu.Unlock()
			return n, nil
		case p.eof:
			p.mu.Unlock()
			return n, net.ErrClosed
		case p.err != nil:
			err := p.err
			p.mu.Unlock()
			return n, err
		case p.unread:
			p.mu.Unlock()
			return n, syscall.EPIPE
		case past(p.writeBy):
			p.mu.Unlock()
			return n, os.ErrDeadlineExceeded
		case n == len(b):
			p.mu.Unlock()
			return n, nil
		case p.size < buffer:
			k := min(len(b)-n, buffer-p.size)
			cut := p.putLocked(b[n : n+k])
			n += k
			p.mu.Unlock()
			if cut {
				p.ends[0].Cut()
			}
			continue
		}
		wake, by := p.wake, p.writeBy
		p.mu.Unlock()
		wait(wake, nil, by)
	}
}

// putLocked sends bytes on their way; true means that the connection breaks now.
func (p *pipe) putLocked(b []byte) (cut bool) {
	var at time.Time
	p.through, at = p.net.arrival(p.through, len(b))
	if k := len(p.chunks); k > 0 && at.Before(p.chunks[k-1].at) {
		at = p.chunks[k-1].at
	}
	p.chunks = append(p.chunks, chunk{append([]byte(nil), b...), at})
	p.size += len(b)
	p.written += len(b)
	p.changedLocked()
	return p.cutAfter > 0 && p.written >= p.cutAfter
}

// Package simnet is a network in memory: net.Conn and net.Listener with delay,
// bandwidth, frozen links, partitions and cuts, all at the test's command or
// from a seed.
//
// It promises the manners of TCP: bytes arrive in order or not at all, a
// deadline ends a call with os.ErrDeadlineExceeded, a full buffer blocks the
// writer, an orderly close is io.EOF at the other end after all bytes, and a cut
// is ECONNRESET at both. It uses only channels and timers, so it works under
// testing/synctest. Only tests import it.
package simnet

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"sync"
	"syscall"
	"time"
)

// buffer is how many bytes of one direction may be on their way or unread.
const buffer = 256 << 10

// Net is a network of named hosts.
type Net struct {
	mu        sync.Mutex
	rand      *rand.Rand
	listeners map[string]*listener // by "host:port"
	links     map[pair]*link
	conns     map[*Conn]struct{} // open client ends
	delay     time.Duration
	jitter    time.Duration
	bandwidth int64 // bytes a second of each direction of a connection; 0: no limit
	cutMin    int   // a new connection is cut after between cutMin and
	cutMax    int   // cutMax bytes in either direction; 0: never
	nextPort  int
}

// pair is two hosts, in order of their names.
type pair struct{ a, b string }

func pairOf(a, b string) pair {
	if b < a {
		a, b = b, a
	}
	return pair{a, b}
}

// link is what connections between two hosts have in common.
type link struct {
	frozen      bool
	partitioned bool
	wake        chan struct{} // closed and replaced when it changes
}

// New makes a network without delay or faults. All its chances come from seed.
func New(seed uint64) *Net {
	return &Net{
		rand: rand.New(rand.NewPCG(seed, 0)), nextPort: 40000,
		listeners: map[string]*listener{}, links: map[pair]*link{}, conns: map[*Conn]struct{}{},
	}
}

// Delay sets the time that bytes take one way, plus up to jitter, for bytes
// written from now on.
func (n *Net) Delay(d, jitter time.Duration) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.delay, n.jitter = d, jitter
}

// Bandwidth limits each direction of each connection; 0: no limit.
func (n *Net) Bandwidth(bytesPerSecond int64) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.bandwidth = bytesPerSecond
}

// CutAfter makes each new connection break once a random number of bytes, from
// least to most, has been written to it in either direction; 0, 0: never.
func (n *Net) CutAfter(least, most int) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.cutMin, n.cutMax = least, most
}

// Freeze stops all bytes between two hosts without an error to anybody:
// writers block once the buffers are full, dialling waits.
func (n *Net) Freeze(a, b string) { n.setLink(a, b, func(l *link) { l.frozen = true }) }

// Partition is Freeze, but dialling fails at once with EHOSTUNREACH.
func (n *Net) Partition(a, b string) { n.setLink(a, b, func(l *link) { l.partitioned = true }) }

// Heal ends Freeze and Partition; what was written meanwhile arrives.
func (n *Net) Heal(a, b string) {
	n.setLink(a, b, func(l *link) { l.frozen, l.partitioned = false, false })
}

func (n *Net) setLink(a, b string, set func(*link)) {
	n.mu.Lock()
	defer n.mu.Unlock()
	l := n.linkLocked(a, b)
	set(l)
	close(l.wake)
	l.wake = make(chan struct{})
}

func (n *Net) linkLocked(a, b string) *link {
	p := pairOf(a, b)
	l := n.links[p]
	if l == nil {
		l = &link{wake: make(chan struct{})}
		n.links[p] = l
	}
	return l
}

// stopped reports whether bytes pass, and what tells of a change.
func (n *Net) stopped(l *link) (bool, <-chan struct{}) {
	n.mu.Lock()
	defer n.mu.Unlock()
	return l.frozen || l.partitioned, l.wake
}

// Cut breaks all connections between two hosts; bytes on their way are lost.
// It returns how many there were.
func (n *Net) Cut(a, b string) int {
	p := pairOf(a, b)
	return n.cut(func(c *Conn) bool { return pairOf(c.local.Host, c.remote.Host) == p })
}

// CutPort breaks all connections to a port of a host.
func (n *Net) CutPort(host string, port int) int {
	return n.cut(func(c *Conn) bool { return c.remote == Addr{host, port} })
}

func (n *Net) cut(which func(client *Conn) bool) int {
	n.mu.Lock()
	var hit []*Conn
	for c := range n.conns {
		if which(c) {
			hit = append(hit, c)
		}
	}
	n.mu.Unlock()
	for _, c := range hit {
		c.Cut()
	}
	return len(hit)
}

// Conns counts the connections to a port of a host.
func (n *Net) Conns(host string, port int) int {
	n.mu.Lock()
	defer n.mu.Unlock()
	count := 0
	for c := range n.conns {
		if c.remote == (Addr{host, port}) {
			count++
		}
	}
	return count
}

// Host is a place to dial from and listen at.
type Host struct {
	net  *Net
	name string
}

// Host returns the host with a name.
func (n *Net) Host(name string) *Host { return &Host{n, name} }

// Dial connects to "host:port". It waits while the link is frozen, and fails
// with ECONNREFUSED where nobody listens, as the system does.
func (h *Host) Dial(ctx context.Context, network, address string) (net.Conn, error) {
	c, err := h.dial(ctx, address)
	if err != nil {
		return nil, &net.OpError{Op: "dial", Net: network, Addr: textAddr{network, address}, Err: err}
	}
	return c, nil
}

func (h *Host) dial(ctx context.Context, address string) (net.Conn, error) {
	to, err := parseAddr(address)
	if err != nil {
		return nil, err
	}
	n := h.net
	n.mu.Lock()
	link := n.linkLocked(h.name, to.Host)
	n.mu.Unlock()
	for {
		if err := ctx.Err(); err != nil {
			return nil, err
		}
		n.mu.Lock()
		frozen, partitioned, wake := link.frozen, link.partitioned, link.wake
		n.mu.Unlock()
		if partitioned {
			return nil, syscall.EHOSTUNREACH
		}
		if !frozen {
			break
		}
		select {
		case <-wake:
		case <-ctx.Done():
		}
	}
	n.mu.Lock()
	rtt := 2 * n.delay
	n.mu.Unlock()
	if rtt > 0 {
		select {
		case <-time.After(rtt):
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
	return n.connect(h.name, to, link)
}

// connect makes the two ends and hands one to the listener.
func (n *Net) connect(from string, to Addr, link *link) (net.Conn, error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	l := n.listeners[to.String()]
	if l == nil {
		return nil, syscall.ECONNREFUSED
	}
	n.nextPort++
	local := Addr{from, n.nextPort}
	there, back := newPipe(n, link), newPipe(n, link)
	if n.cutMax > 0 {
		there.cutAfter = n.cutMin + n.rand.IntN(n.cutMax-n.cutMin+1)
		back.cutAfter = n.cutMin + n.rand.IntN(n.cutMax-n.cutMin+1)
	}
	client := &Conn{net: n, in: back, out: there, local: local, remote: to}
	server := &Conn{net: n, in: there, out: back, local: to, remote: local}
	there.ends, back.ends = [2]*Conn{client, server}, [2]*Conn{client, server}
	select {
	case l.accept <- server:
		n.conns[client] = struct{}{}
		return client, nil
	default:
		return nil, syscall.ECONNREFUSED
	}
}

// arrival is when n more bytes that are written now are at the other end, if
// those before them are through at last.
func (n *Net) arrival(last time.Time, bytes int) (through, arrives time.Time) {
	n.mu.Lock()
	defer n.mu.Unlock()
	through = time.Now()
	if last.After(through) {
		through = last
	}
	if n.bandwidth > 0 {
		through = through.Add(time.Duration(int64(bytes) * int64(time.Second) / n.bandwidth))
	}
	d := n.delay
	if n.jitter > 0 {
		d += time.Duration(n.rand.Int64N(int64(n.jitter)))
	}
	return through, through.Add(d)
}

// Listen accepts connections to a port of the host; port 0 takes a free one.
func (h *Host) Listen(port int) (net.Listener, error) {
	n := h.net
	n.mu.Lock()
	defer n.mu.Unlock()
	if port == 0 {
		n.nextPort++
		port = n.nextPort
	}
	a := Addr{h.name, port}
	if n.listeners[a.String()] != nil {
		return nil, &net.OpError{Op: "listen", Net: "sim", Addr: a, Err: syscall.EADDRINUSE}
	}
	l := &listener{net: n, addr: a, accept: make(chan *Conn, 128), closed: make(chan struct{})}
	n.listeners[a.String()] = l
	return l, nil
}

type listener struct {
	net    *Net
	addr   Addr
	accept chan *Conn
	once   sync.Once
	closed chan struct{}
}

func (l *listener) Accept() (net.Conn, error) {
	select {
	case <-l.closed:
		return nil, net.ErrClosed
	default:
	}
	select {
	case c := <-l.accept:
		return c, nil
	case <-l.closed:
		return nil, net.ErrClosed
	}
}

// Close also resets connections that nobody accepted.
func (l *listener) Close() error {
	err := net.ErrClosed
	l.once.Do(func() {
		err = nil
		l.net.mu.Lock()
		delete(l.net.listeners, l.addr.String())
		l.net.mu.Unlock()
		close(l.closed)
		for {
			select {
			case c := <-l.accept:
				c.Cut()
			default:
				return
			}
		}
	})
	return err
}

func (l *listener) Addr() net.Addr { return l.addr }

// Addr is a host and a port.
type Addr struct {
	Host string
	Port int
}

// Network is "sim".
func (Addr) Network() string { return "sim" }

// String is HOST:PORT.
func (a Addr) String() string { return net.JoinHostPort(a.Host, fmt.Sprint(a.Port)) }

func parseAddr(s string) (Addr, error) {
	host, port, err := net.SplitHostPort(s)
	if err != nil {
		return Addr{}, err
	}
	a := Addr{Host: host}
	if _, err := fmt.Sscan(port, &a.Port); err != nil {
		return Addr{}, errors.New("bad port " + port)
	}
	return a, nil
}

// textAddr is an address as it was asked for.
type textAddr struct{ network, address string }

func (a textAddr) Network() string { return a.network }
func (a textAddr) String() string  { return a.address }

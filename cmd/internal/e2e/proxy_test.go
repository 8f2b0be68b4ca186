package e2e

import (
	"net"
	"strconv"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"
)

// proxy stands between clients and all ports of a server and is as bad as the
// test wants it.
type proxy struct {
	addr string // of its main port; set at construction

	wg sync.WaitGroup

	mu     sync.Mutex
	lns    []net.Listener              // guarded by mu; nil while refused
	conns  map[net.Conn]bool           // guarded by mu; true: to the server
	frozen chan struct{}               // guarded by mu; closed when bytes go on
	delay  time.Duration               // guarded by mu; of every piece in every direction
	from   *net.TCPAddr                // guarded by mu; where the server sees clients, nil: anywhere
	ports  []struct{ from, to string } // set at construction
}

// newProxy starts a proxy for a server's three ports.
func newProxy(t testing.TB, server string) *proxy {
	t.Helper()
	return newProxyFrom(t, server, "")
}

// newProxyFrom starts one whose clients the server sees at an IP address, "": at any.
func newProxyFrom(t testing.TB, server, ip string) *proxy {
	t.Helper()
	p := &proxy{addr: freeAddr(t), conns: map[net.Conn]bool{}, frozen: make(chan struct{})}
	close(p.frozen)
	p.move(ip)
	for i := range 3 {
		p.ports = append(p.ports, struct{ from, to string }{nextPort(t, p.addr, i), nextPort(t, server, i)})
	}
	p.accept(t)
	t.Cleanup(func() {
		p.refuse()
		p.thaw()
		p.wg.Wait()
	})
	return p
}

func nextPort(t testing.TB, addr string, i int) string {
	t.Helper()
	host, port, err := net.SplitHostPort(addr)
	require.NoError(t, err)
	n, err := strconv.Atoi(port)
	require.NoError(t, err)
	return net.JoinHostPort(host, strconv.Itoa(n+i))
}

// accept lets clients come, after refuse.
func (p *proxy) accept(t testing.TB) {
	t.Helper()
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, port := range p.ports {
		ln, err := net.Listen("tcp", port.from)
		require.NoError(t, err)
		p.lns = append(p.lns, ln)
		p.wg.Go(func() {
			for {
				c, err := ln.Accept()
				if err != nil {
					return
				}
				p.wg.Go(func() { p.serve(c, port.to) })
			}
		})
	}
}

// refuse ends all connections and lets nobody come.
func (p *proxy) refuse() {
	p.shut()
	p.cut()
}

// shut lets nobody come any more; connections stay.
func (p *proxy) shut() {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, ln := range p.lns {
		ln.Close()
	}
	p.lns = nil
}

// move has the server see clients at another IP address from their next connection on.
func (p *proxy) move(ip string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if ip != "" {
		p.from = &net.TCPAddr{IP: net.ParseIP(ip)}
	}
}

// swallow drops every packet that the server, or the clients, send over the connections that are there: nothing
// acknowledges it, and no reset or end gets through. Connections that come later are not concerned.
func (p *proxy) swallow(t testing.TB, server bool) {
	t.Helper()
	drop := unix.SockFilter{Code: unix.BPF_RET | unix.BPF_K, K: 0}
	p.filter(t, server, func(fd int) error {
		return unix.SetsockoptSockFprog(fd, unix.SOL_SOCKET, unix.SO_ATTACH_FILTER, &unix.SockFprog{Len: 1, Filter: &drop})
	})
}

// letThrough ends what swallow did.
func (p *proxy) letThrough(t testing.TB) {
	t.Helper()
	for _, server := range []bool{true, false} {
		p.filter(t, server, func(fd int) error {
			err := unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_DETACH_FILTER, 0)
			if err == unix.ENOENT {
				return nil
			}
			return err
		})
	}
}

// filter calls set for the sockets of the connections to the server, or to the clients, that are not closed.
func (p *proxy) filter(t testing.TB, server bool, set func(fd int) error) {
	t.Helper()
	p.mu.Lock()
	defer p.mu.Unlock()
	for c, to := range p.conns {
		if to != server {
			continue
		}
		raw, err := c.(*net.TCPConn).SyscallConn()
		require.NoError(t, err)
		raw.Control(func(fd uintptr) { err = set(int(fd)) })
		require.NoError(t, err)
	}
}

// close lets nobody come to some of the ports any more; connections stay.
func (p *proxy) close(ports ...int) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, i := range ports {
		p.lns[i].Close()
	}
}

// lose ends a port: its connections, and it lets nobody come any more.
func (p *proxy) lose(port int) {
	p.close(port)
	p.mu.Lock()
	defer p.mu.Unlock()
	for c := range p.conns {
		if c.LocalAddr().String() == p.ports[port].from {
			c.(*net.TCPConn).SetLinger(0)
			c.Close()
		}
	}
}

// cut ends all connections; new ones are welcome.
func (p *proxy) cut() {
	p.mu.Lock()
	defer p.mu.Unlock()
	for c := range p.conns {
		c.(*net.TCPConn).SetLinger(0) // a reset, as from a router that forgot
		c.Close()
	}
}

// freeze lets no byte through; connections stay, new ones are accepted.
func (p *proxy) freeze() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.frozen = make(chan struct{})
}

// thaw ends a freeze.
func (p *proxy) thaw() {
	p.mu.Lock()
	defer p.mu.Unlock()
	select {
	case <-p.frozen:
	default:
		close(p.frozen)
	}
}

// slow delays every piece.
func (p *proxy) slow(d time.Duration) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.delay = d
}

func (p *proxy) serve(client net.Conn, to string) {
	p.mu.Lock()
	from := p.from
	p.mu.Unlock()
	var d net.Dialer
	if from != nil {
		d.LocalAddr = from
	}
	server, err := d.Dial("tcp", to)
	if err != nil {
		client.Close()
		return
	}
	p.mu.Lock()
	p.conns[client], p.conns[server] = false, true
	p.mu.Unlock()
	var both sync.WaitGroup
	both.Go(func() { p.copy(server, client) })
	both.Go(func() { p.copy(client, server) })
	both.Wait()
	p.mu.Lock()
	delete(p.conns, client)
	delete(p.conns, server)
	p.mu.Unlock()
}

// copy hands bytes on until either side ends, and then ends both.
func (p *proxy) copy(to, from net.Conn) {
	defer to.Close()
	defer from.Close()
	buf := make([]byte, 16<<10)
	for {
		n, err := from.Read(buf)
		p.mu.Lock()
		frozen, delay := p.frozen, p.delay
		p.mu.Unlock()
		<-frozen
		time.Sleep(delay)
		if n > 0 {
			if _, err := to.Write(buf[:n]); err != nil {
				return
			}
		}
		if err != nil {
			return
		}
	}
}

package remote

import (
	"net"
	"time"

	"golang.org/x/sys/unix"
)

// maxUnacked is how long the other host may leave bytes unacknowledged.
const maxUnacked = 15 * time.Second

// noBlackHole makes a connection fail when the way to the other host swallows
// what is sent: a router has forgotten the connection, a cable is out. The pings
// notice that as well, but must be patient with a slow link that carries large
// frames; the kernel sees single packets, so that there is time for another
// connection before a caller's patience ends.
func (o *Options) noBlackHole(raw net.Conn) error {
	tcp, ok := raw.(*net.TCPConn)
	if !ok {
		return nil
	}
	limit := maxUnacked
	if o.Patience > 0 {
		limit = min(limit, o.Patience/2)
	}
	c, err := tcp.SyscallConn()
	if err != nil {
		return err
	}
	set := c.Control(func(fd uintptr) {
		err = unix.SetsockoptInt(int(fd), unix.IPPROTO_TCP, unix.TCP_USER_TIMEOUT, int(limit.Milliseconds()))
	})
	if set != nil {
		return set
	}
	return err
}

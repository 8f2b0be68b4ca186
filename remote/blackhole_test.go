package remote

import (
	"net"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"
)

func TestUnacknowledgedBytesEndAConnection(t *testing.T) {
	tests := map[string]struct{ patience, want time.Duration }{
		"default": {30 * time.Second, 15 * time.Second},
		"soft":    {3 * time.Second, 1500 * time.Millisecond},
		"patient": {time.Hour, 15 * time.Second},
		"hard":    {0, 15 * time.Second},
	}
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	defer ln.Close()
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			c, err := net.Dial("tcp", ln.Addr().String())
			require.NoError(t, err)
			defer c.Close()
			require.NoError(t, (&Options{Patience: tt.patience}).noBlackHole(c))
			raw, err := c.(*net.TCPConn).SyscallConn()
			require.NoError(t, err)
			var got int
			require.NoError(t, raw.Control(func(fd uintptr) {
				got, err = unix.GetsockoptInt(int(fd), unix.IPPROTO_TCP, unix.TCP_USER_TIMEOUT)
			}))
			require.NoError(t, err)
			require.Equal(t, tt.want.Milliseconds(), int64(got))
		})
	}
}

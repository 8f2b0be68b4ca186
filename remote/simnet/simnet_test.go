package simnet

import (
	"bytes"
	"context"
	"errors"
	"io"
	"net"
	"os"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"
)

// connect makes a connection from host a to host b, port 1.
func connect(t *testing.T, n *Net) (client, server net.Conn) {
	t.Helper()
	l, err := n.Host("b").Listen(1)
	require.NoError(t, err)
	defer l.Close()
	client, err = n.Host("a").Dial(context.Background(), "tcp", "b:1")
	require.NoError(t, err)
	server, err = l.Accept()
	require.NoError(t, err)
	t.Cleanup(func() { client.Close(); server.Close() })
	return client, server
}

func TestBytesArriveInOrderThenEOF(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := New(1)
		n.Delay(time.Millisecond, 5*time.Millisecond)
		c, s := connect(t, n)
		want := bytes.Repeat([]byte("0123456789abcdef"), 64<<10) // more than the buffers hold
		go func() {
			for p := want; len(p) > 0; {
				k := min(len(p), 7001)
				c.Write(p[:k])
				p = p[k:]
			}
			c.Close()
		}()
		got, err := io.ReadAll(s)
		require.NoError(t, err)
		require.True(t, bytes.Equal(want, got))
		_, err = s.Write([]byte("x"))
		require.ErrorIs(t, err, syscall.EPIPE)
	})
}

func TestDelayAndBandwidth(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := New(1)
		n.Delay(20*time.Millisecond, 0)
		n.Bandwidth(1000)
		start := time.Now()
		c, s := connect(t, n)
		require.Equal(t, 40*time.Millisecond, time.Since(start), "dialling takes a round trip")
		start = time.Now()
		c.Write(make([]byte, 100))
		c.Write(make([]byte, 100))
		_, err := io.ReadFull(s, make([]byte, 200))
		require.NoError(t, err)
		require.Equal(t, 220*time.Millisecond, time.Since(start))
	})
}

func TestFreeze(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := New(1)
		c, s := connect(t, n)
		n.Freeze("b", "a")
		_, err := c.Write([]byte("hello"))
		require.NoError(t, err, "the buffer takes it")

		s.SetReadDeadline(time.Now().Add(time.Minute))
		_, err = s.Read(make([]byte, 5))
		require.ErrorIs(t, err, os.ErrDeadlineExceeded)
		s.SetReadDeadline(time.Time{})

		c.SetWriteDeadline(time.Now().Add(time.Minute))
		k, err := c.Write(make([]byte, 2*buffer))
		require.ErrorIs(t, err, os.ErrDeadlineExceeded)
		require.Equal(t, buffer-5, k, "until the buffer is full")

		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		_, err = n.Host("a").Dial(ctx, "tcp", "b:1")
		require.ErrorIs(t, err, context.DeadlineExceeded)

		time.AfterFunc(time.Second, func() { n.Heal("a", "b") })
		p := make([]byte, 5)
		_, err = io.ReadFull(s, p)
		require.NoError(t, err)
		require.Equal(t, "hello", string(p))
	})
}

func TestPartitionRefusesNewConnections(t *testing.T) {
	n := New(1)
	n.Partition("a", "b")
	_, err := n.Host("a").Dial(context.Background(), "tcp", "b:1")
	require.ErrorIs(t, err, syscall.EHOSTUNREACH)
	n.Heal("a", "b")
	_, err = n.Host("a").Dial(context.Background(), "tcp", "b:1")
	require.ErrorIs(t, err, syscall.ECONNREFUSED)
}

func TestCut(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := New(1)
		c, s := connect(t, n)
		n.Delay(time.Second, 0)
		c.Write([]byte("lost"))
		errs := make(chan error)
		go func() {
			_, err := c.Read(make([]byte, 1))
			errs <- err
		}()
		synctest.Wait()
		require.Equal(t, 1, n.Conns("b", 1))
		require.Equal(t, 1, n.Cut("b", "a"))
		require.Zero(t, n.Conns("b", 1))
		require.ErrorIs(t, <-errs, syscall.ECONNRESET)
		_, err := s.Read(make([]byte, 1))
		require.ErrorIs(t, err, syscall.ECONNRESET)
		var op *net.OpError
		require.True(t, errors.As(err, &op))
	})
}

func TestCutAfterIsSeeded(t *testing.T) {
	lengths := func(seed uint64) (out []int) {
		n := New(seed)
		n.CutAfter(10, 1000)
		for range 5 {
			c, s := connect(t, n)
			total := 0
			for {
				k, err := c.Write([]byte{1})
				if err != nil {
					break
				}
				total += k
			}
			_, err := s.Write([]byte{1})
			require.ErrorIs(t, err, syscall.ECONNRESET)
			out = append(out, total)
		}
		return out
	}
	a := lengths(7)
	for _, k := range a {
		require.True(t, k >= 10 && k <= 1000, "cut after %d", k)
	}
	require.Equal(t, a, lengths(7))
	require.NotEqual(t, a, lengths(8))
}

func TestListenerCloseResetsWhoWaits(t *testing.T) {
	n := New(1)
	l, err := n.Host("b").Listen(0)
	require.NoError(t, err)
	c, err := n.Host("a").Dial(context.Background(), "tcp", l.Addr().String())
	require.NoError(t, err)
	_, err = n.Host("b").Listen(l.Addr().(Addr).Port)
	require.ErrorIs(t, err, syscall.EADDRINUSE)
	require.NoError(t, l.Close())
	require.ErrorIs(t, l.Close(), net.ErrClosed)
	_, err = c.Read(make([]byte, 1))
	require.ErrorIs(t, err, syscall.ECONNRESET)
	_, err = l.Accept()
	require.ErrorIs(t, err, net.ErrClosed)
}

func TestClosedEndIsClosed(t *testing.T) {
	c, s := connect(t, New(1))
	require.NoError(t, c.Close())
	_, err := c.Read(make([]byte, 1))
	require.ErrorIs(t, err, net.ErrClosed)
	_, err = c.Write([]byte{1})
	require.ErrorIs(t, err, net.ErrClosed)
	_, err = s.Read(make([]byte, 1))
	require.ErrorIs(t, err, io.EOF)
}

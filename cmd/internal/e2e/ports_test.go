package e2e

import (
	"bytes"
	"encoding/json"
	"io"
	"math/rand/v2"
	"net"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// dataConns is how many data connections a mount has.
func (l *lab) dataConns(point string) int {
	l.t.Helper()
	var st struct {
		DataConns *int `json:"data_connections"`
	}
	require.NoError(l.t, json.Unmarshal([]byte(l.run("cagefs", "status", "--json", point)), &st))
	require.NotNil(l.t, st.DataConns)
	return *st.DataConns
}

// bigFile makes a file of random bytes in an export.
func bigFile(t *testing.T, dir string, size int) []byte {
	t.Helper()
	b := make([]byte, size)
	var key [32]byte
	rand.NewChaCha8(key).Read(b)
	require.NoError(t, os.WriteFile(filepath.Join(dir, "big"), b, 0o644))
	return b
}

// A mount works whatever becomes of the data ports, and status tells.
func TestDataPorts(t *testing.T) {
	const size = 8 << 20
	for name, c := range map[string]struct {
		ports string
		block func(t *testing.T, p *proxy)
		want  int
	}{
		"two":     {ports: "2", want: 2},
		"none":    {ports: "0", want: 0},
		"refused": {ports: "2", block: func(_ *testing.T, p *proxy) { p.close(1, 2) }, want: 0},
		"one":     {ports: "2", block: func(_ *testing.T, p *proxy) { p.close(2) }, want: 1},
		"swallowed": {ports: "2", block: func(t *testing.T, p *proxy) {
			p.close(1, 2)
			for _, port := range p.ports[1:] {
				blackHole(t, port.from)
			}
		}, want: 0},
	} {
		t.Run(name, func(t *testing.T) {
			l := newLab(t, "")
			export := l.mkdir("export")
			want := bigFile(t, export, size)
			s := l.newServer(export, "--data-ports", c.ports)
			s.start()
			p := newProxy(t, s.addr)
			if c.block != nil {
				c.block(t, p)
			}
			behind := *s
			behind.addr = p.addr
			point := l.mount(&behind)
			began := time.Now()
			got, err := os.ReadFile(filepath.Join(point, "big"))
			require.NoError(t, err)
			require.True(t, bytes.Equal(want, got))
			require.Less(t, time.Since(began), 8*time.Second, "nobody waits for a port that does not answer")
			require.NoError(t, os.WriteFile(filepath.Join(point, "new"), want[:1<<20], 0o644))
			require.Eventually(t, func() bool { return l.dataConns(point) == c.want }, 5*time.Second, 20*time.Millisecond, "status shows them")
			require.Contains(t, s.admin("sessions", "--json"), `"data_connections":`+string(rune('0'+c.want)))
			l.umount(point)
		})
	}
}

// A data port that is lost in the middle of a read costs nobody a byte.
func TestDataPortLostWhileReading(t *testing.T) {
	const size = 32 << 20
	l := newLab(t, "")
	export := l.mkdir("export")
	want := bigFile(t, export, size)
	s := l.newServer(export)
	s.start()
	p := newProxy(t, s.addr)
	behind := *s
	behind.addr = p.addr
	point := l.mount(&behind)
	f, err := os.Open(filepath.Join(point, "big"))
	require.NoError(t, err)
	defer f.Close()
	got := make([]byte, size)
	_, err = io.ReadFull(f, got[:size/4])
	require.NoError(t, err)
	require.Eventually(t, func() bool { return l.dataConns(point) == 2 }, 5*time.Second, 20*time.Millisecond)
	p.slow(2 * time.Millisecond) // so that there is a middle
	done := make(chan error, 1)
	go func() {
		_, err := io.ReadFull(f, got[size/4:])
		done <- err
	}()
	p.lose(1)
	require.NoError(t, <-done)
	require.True(t, bytes.Equal(want, got))
	require.Equal(t, 1, l.dataConns(point))
	require.Contains(t, l.run("cagefs", "status", point), "resumed 0 times", "the main connection is another matter")
	f.Close()
	l.umount(point)
}

// blackHole accepts connections at an address and never says a word.
func blackHole(t *testing.T, addr string) {
	t.Helper()
	ln, err := net.Listen("tcp", addr)
	require.NoError(t, err)
	t.Cleanup(func() { ln.Close() })
	go func() {
		var held []net.Conn // not collected, so not closed
		for {
			c, err := ln.Accept()
			if err != nil {
				for _, c := range held {
					c.Close()
				}
				return
			}
			held = append(held, c)
		}
	}()
}

// A client that falls silent loses its connection at the server in time.
func TestIdleTimeout(t *testing.T) {
	if !accept {
		t.Skip("takes half a minute: make accept runs it")
	}
	l := newLab(t, "")
	s := l.newServer(l.mkdir("export"), "--idle-timeout", "20s")
	s.start()
	p := newProxy(t, s.addr)
	behind := *s
	behind.addr = p.addr
	l.mount(&behind)
	quiet := l.mount(s)
	p.freeze()
	require.Eventually(t, func() bool {
		return bytes.Contains([]byte(s.admin("sessions")), []byte("no connection since"))
	}, 40*time.Second, 500*time.Millisecond)
	st := l.run("cagefs", "status", quiet)
	require.Contains(t, st, "resumed 0 times", "one that has nothing to say is not silent")
	p.thaw()
}

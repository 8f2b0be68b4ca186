package control

import (
	"bufio"
	"bytes"
	"encoding/json"
	"net"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"cagefs.dev/cage/remote/status"
)

// fakeServer is a server as its admin socket shows it.
type fakeServer struct{ dropped atomic.Int32 }

func (f *fakeServer) Served() Served {
	return Served{Addr: "127.0.0.1:7400", Exports: []Export{{Name: "data"}}, Sessions: []Session{{Key: "laptop", OpenFiles: 3}}}
}

func (f *fakeServer) DropRevoked() int { return int(f.dropped.Add(1)) }

func listenAdmin(t testing.TB, dir string) {
	t.Helper()
	s, err := ListenAdmin(t.Context(), dir, &fakeServer{})
	require.NoError(t, err)
	t.Cleanup(s.Close)
}

func TestAdmin(t *testing.T) {
	dir := t.TempDir()
	_, err := DialAdmin(t.Context(), dir)
	require.Equal(t, status.Unreachable, status.Of(err))
	listenAdmin(t, dir)
	a, err := DialAdmin(t.Context(), dir)
	require.NoError(t, err)
	defer a.Close()
	served, err := a.Served(t.Context())
	require.NoError(t, err)
	require.Equal(t, (&fakeServer{}).Served(), served)
	n, err := a.DropRevoked(t.Context())
	require.NoError(t, err)
	require.Equal(t, 1, n)
	_, err = a.call(t.Context(), request{Op: opUmount})
	require.Equal(t, status.Unsupported, status.Of(err), "what only mounts do")
	_, err = ListenAdmin(t.Context(), "/"+strings.Repeat("x", 200), &fakeServer{})
	require.Equal(t, status.NameTooLong, status.Of(err))
}

// FuzzAdminRequest sends the server anything: each line that is a request has
// an answer, anything else ends the connection, and the next one is served.
func FuzzAdminRequest(f *testing.F) {
	f.Add([]byte(`{"op":"served"}` + "\n" + `{"op":"drop-revoked"}` + "\n"))
	f.Add([]byte(`{"op":"x"}` + "\n\n"))
	f.Add([]byte("GET / HTTP/1.0\r\n\r\n"))
	f.Add(bytes.Repeat([]byte("x"), 100<<10))
	dir := f.TempDir()
	listenAdmin(f, dir)
	f.Fuzz(func(t *testing.T, b []byte) {
		c, err := net.Dial("unix", filepath.Join(dir, AdminSocket))
		require.NoError(t, err)
		defer c.Close()
		c.SetDeadline(time.Now().Add(10 * time.Second))
		go func() {
			c.Write(b)
			c.(*net.UnixConn).CloseWrite()
		}()
		answers := 0
		in := bufio.NewScanner(c)
		for in.Scan() {
			answers++
			require.True(t, json.Valid(in.Bytes()))
		}
		require.LessOrEqual(t, answers, 1+bytes.Count(b, []byte("\n")))
		a, err := DialAdmin(t.Context(), dir)
		require.NoError(t, err)
		defer a.Close()
		_, err = a.Served(t.Context())
		require.NoError(t, err)
	})
}

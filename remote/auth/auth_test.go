package auth

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"io"
	"io/fs"
	"math/big"
	"net"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"cagefs.dev/cage/remote/status"
)

// ends are a server's state and a user's keyring that know each other.
type ends struct {
	state  *ServerState
	dir    string // of the state
	config string
	keys   *Keyring
}

func newEnds(t *testing.T) ends {
	t.Helper()
	e := ends{dir: filepath.Join(t.TempDir(), "state"), config: filepath.Join(t.TempDir(), "home", "cage")}
	e.state = openState(t, e.dir)
	require.NoError(t, e.state.AdmitLocal(e.config, uint32(os.Geteuid())))
	e.keys = OpenKeyring(e.config)
	return e
}

func openState(t *testing.T, dir string) *ServerState {
	t.Helper()
	s, err := OpenServerState(dir)
	require.NoError(t, err)
	t.Cleanup(func() { s.Close() })
	return s
}

func (e ends) keyFile() string { return filepath.Join(e.config, e.state.Fingerprint().fileName()) }

// onlyClient is the one client that the state admits.
func onlyClient(t *testing.T, s *ServerState) ClientKey {
	t.Helper()
	list, err := s.list()
	require.NoError(t, err)
	require.Len(t, list, 1)
	return list[0]
}

// outcome of a connection: the client shakes hands and reads one byte, which
// the server writes once it has admitted the client.
type outcome struct {
	client, server error
	peer           Fingerprint // as the server sees the client
	seen           Fingerprint // as the client sees the server
}

// meet connects over a real socket, where a close can overtake an alert.
func meet(t *testing.T, keys *Keyring, config *tls.Config) outcome {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	defer l.Close()
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()

	var out outcome
	done := make(chan struct{})
	go func() {
		defer close(done)
		raw, err := l.Accept()
		if err != nil {
			out.server = err
			return
		}
		conn := tls.Server(raw, config)
		defer conn.Close()
		if out.server = conn.HandshakeContext(ctx); out.server == nil {
			out.peer, out.server = PeerOf(conn.ConnectionState())
			_, err := conn.Write([]byte{1})
			out.server = errors.Join(out.server, err)
		}
	}()
	raw, err := net.Dial("tcp", l.Addr().String())
	require.NoError(t, err)
	conn := keys.Client(raw)
	if out.client = conn.HandshakeContext(ctx); out.client == nil {
		out.seen, out.client = PeerOf(conn.ConnectionState())
		_, err := io.ReadFull(conn, make([]byte, 1))
		out.client = errors.Join(out.client, err)
	}
	conn.Close()
	<-done
	return out
}

func TestFingerprintForm(t *testing.T) {
	key, err := newKey()
	require.NoError(t, err)
	fp := fingerprintOfPrivate(key)
	require.Regexp(t, regexp.MustCompile(`^cage:[a-z2-7]{52}$`), string(fp))
	require.Equal(t, fp, fingerprintOfPrivate(key))
	require.NotContains(t, fp.fileName(), ":")
	other, err := newKey()
	require.NoError(t, err)
	require.NotEqual(t, fp, fingerprintOfPrivate(other))
}

func TestAdmitted(t *testing.T) {
	e := newEnds(t)
	out := meet(t, e.keys, e.state.TLS())
	require.NoError(t, out.client)
	require.NoError(t, out.server)
	require.Equal(t, e.state.Fingerprint(), out.seen)

	c, ok := e.state.Client(out.peer)
	require.True(t, ok)
	require.NotNil(t, c.LocalUID)
	require.EqualValues(t, os.Geteuid(), *c.LocalUID)
	require.Equal(t, os.Geteuid() == 0, c.TrustIDs)
	require.NotEmpty(t, c.Name)
}

func TestUnknownClient(t *testing.T) {
	e, other := newEnds(t), newEnds(t)
	// A client that knows this server, with a key that another server admits.
	data, err := os.ReadFile(other.keyFile())
	require.NoError(t, err)
	text := strings.Replace(string(data), string(other.state.Fingerprint()), string(e.state.Fingerprint()), 1)
	require.NoError(t, os.WriteFile(e.keyFile(), []byte(text), 0o600))

	requireRefused(t, meet(t, e.keys, e.state.TLS()))
}

// requireRefused wants a client that the server turned away for its key, and
// that both ends can say so.
func requireRefused(t *testing.T, out outcome) {
	t.Helper()
	require.ErrorIs(t, out.server, status.WrongKey)
	require.ErrorContains(t, out.server, "client not admitted")
	require.Error(t, out.client)
	explained := Explain(out.client)
	require.Equal(t, status.WrongKey, status.Of(explained), "client saw %v", out.client)
	require.ErrorContains(t, explained, "does not admit this client's key")
}

func TestRevokedWhileRunning(t *testing.T) {
	e := newEnds(t)
	config := e.state.TLS()
	out := meet(t, e.keys, config)
	require.NoError(t, out.client)

	// Another process takes the client off the list, and puts it back.
	admin := openState(t, e.dir)
	was := onlyClient(t, admin)
	require.NoError(t, admin.edit(func([]ClientKey) []ClientKey { return nil }))
	requireRefused(t, meet(t, e.keys, config))
	_, ok := e.state.Client(out.peer)
	require.False(t, ok)

	was.ReadOnly = true
	require.NoError(t, admin.Admit(was))
	require.NoError(t, meet(t, e.keys, config).client)
	c, ok := e.state.Client(out.peer)
	require.True(t, ok)
	require.True(t, c.ReadOnly)
}

func TestUnknownServer(t *testing.T) {
	e, other := newEnds(t), newEnds(t)
	for name, dir := range map[string]string{
		"other servers known": other.config,
		"no directory":        filepath.Join(t.TempDir(), "none"),
	} {
		t.Run(name, func(t *testing.T) {
			out := meet(t, OpenKeyring(dir), e.state.TLS())
			require.Equal(t, status.WrongKey, status.Of(out.client))
			require.EqualError(t, out.client, "connect: no key for server "+string(e.state.Fingerprint())+" in "+dir)
			require.Error(t, out.server)
		})
	}
}

func TestServerStartedLaterIsFound(t *testing.T) {
	config := filepath.Join(t.TempDir(), "cage")
	keys := OpenKeyring(config)
	state := openState(t, t.TempDir())
	require.Error(t, meet(t, keys, state.TLS()).client)
	require.NoError(t, state.AdmitLocal(config, uint32(os.Geteuid())))
	require.NoError(t, meet(t, keys, state.TLS()).client)
}

func TestClientWithoutKeyRefused(t *testing.T) {
	e := newEnds(t)
	c, s := net.Pipe()
	defer c.Close()
	defer s.Close()
	done := make(chan error, 1)
	go func() { done <- tls.Server(s, e.state.TLS()).HandshakeContext(t.Context()) }()
	conn := tls.Client(c, &tls.Config{InsecureSkipVerify: true})
	require.NoError(t, conn.HandshakeContext(t.Context()))
	_, err := conn.Read(make([]byte, 1))
	require.Equal(t, status.WrongKey, status.Of(Explain(err)), "client saw %v", err)
	require.Error(t, <-done)
}

func TestOlderTLSRefused(t *testing.T) {
	e := newEnds(t)
	config := e.state.TLS()
	c, s := net.Pipe()
	defer c.Close()
	defer s.Close()
	done := make(chan error, 1)
	go func() { done <- tls.Server(s, config).HandshakeContext(t.Context()) }()
	err := tls.Client(c, &tls.Config{InsecureSkipVerify: true, MaxVersion: tls.VersionTLS12}).HandshakeContext(t.Context())
	require.ErrorContains(t, err, "protocol version")
	require.Error(t, <-done)
}

func TestOtherKindOfKeyRefused(t *testing.T) {
	e := newEnds(t)
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	require.NoError(t, err)
	template := &x509.Certificate{SerialNumber: big.NewInt(1)}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	require.NoError(t, err)
	out := meet(t, e.keys, &tls.Config{Certificates: []tls.Certificate{{Certificate: [][]byte{der}, PrivateKey: key}}})
	require.Equal(t, status.WrongKey, status.Of(out.client))
	require.ErrorContains(t, out.client, "ed25519")
}

func TestServerKeyIsKept(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "a", "b")
	first := openState(t, dir).Fingerprint()
	require.Equal(t, first, openState(t, dir).Fingerprint())
	requireMode(t, dir, 0o700)
	requireMode(t, filepath.Join(dir, keyFile), 0o600)
	left, err := filepath.Glob(filepath.Join(dir, ".*"))
	require.NoError(t, err)
	require.Empty(t, left, "temporary files left behind")
}

func requireMode(t *testing.T, path string, want fs.FileMode) {
	t.Helper()
	info, err := os.Stat(path)
	require.NoError(t, err)
	require.Equal(t, want, info.Mode().Perm(), path)
}

func TestAdmitLocalIsIdempotent(t *testing.T) {
	e := newEnds(t)
	requireMode(t, e.config, 0o700)
	requireMode(t, e.keyFile(), 0o600)
	requireMode(t, filepath.Join(e.dir, clientsFile), 0o600)
	before, err := os.ReadFile(e.keyFile())
	require.NoError(t, err)
	client := onlyClient(t, e.state)

	require.NoError(t, e.state.AdmitLocal(e.config, uint32(os.Geteuid())))
	after, err := os.ReadFile(e.keyFile())
	require.NoError(t, err)
	require.Equal(t, string(before), string(after))
	require.Equal(t, client, onlyClient(t, e.state))

	// A key that is there is admitted again after the list was lost.
	require.NoError(t, os.Remove(filepath.Join(e.dir, clientsFile)))
	_, ok := e.state.Client(client.Fingerprint)
	require.False(t, ok)
	require.NoError(t, e.state.AdmitLocal(e.config, uint32(os.Geteuid())))
	require.Equal(t, client, onlyClient(t, e.state))
}

func TestAdmitLocalForAnotherUser(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("only root can make files of others")
	}
	const uid = 54321
	state := openState(t, t.TempDir())
	home := t.TempDir()

	err := state.AdmitLocal(filepath.Join(home, ".config", "cage"), uid)
	require.Equal(t, status.Access, status.Of(err), "in a directory that is not the user's: %v", err)

	require.NoError(t, os.Chown(home, uid, -1))
	config := filepath.Join(home, ".config", "cage")
	require.NoError(t, state.AdmitLocal(config, uid))
	for _, path := range []string{filepath.Dir(config), config, filepath.Join(config, state.Fingerprint().fileName())} {
		info, err := os.Stat(path)
		require.NoError(t, err)
		require.EqualValues(t, uid, info.Sys().(*syscall.Stat_t).Uid, path)
	}
	c := onlyClient(t, state)
	require.EqualValues(t, uid, *c.LocalUID)
	require.False(t, c.TrustIDs, "only root's identities count")

	link := filepath.Join(home, "link")
	require.NoError(t, os.Symlink(t.TempDir(), link))
	require.Equal(t, status.Access, status.Of(state.AdmitLocal(link, uid)), "a link to a directory of root")
}

func TestOpenToOthersRefused(t *testing.T) {
	for _, mode := range []fs.FileMode{0o640, 0o604, 0o620, 0o602, 0o644} {
		t.Run(mode.String(), func(t *testing.T) {
			e := newEnds(t)
			require.NoError(t, os.Chmod(e.keyFile(), mode))
			out := meet(t, e.keys, e.state.TLS())
			require.Equal(t, status.Access, status.Of(out.client), "%v", out.client)
			require.ErrorContains(t, out.client, e.keyFile())
			require.Equal(t, status.Access, status.Of(e.state.AdmitLocal(e.config, uint32(os.Geteuid()))))
			require.NoError(t, os.Chmod(e.keyFile(), 0o600))

			clients := filepath.Join(e.dir, clientsFile)
			require.NoError(t, os.Chmod(clients, mode))
			out = meet(t, e.keys, e.state.TLS())
			require.Equal(t, status.Access, status.Of(out.server), "%v", out.server)
			require.NoError(t, os.Chmod(clients, 0o600))

			require.NoError(t, os.Chmod(filepath.Join(e.dir, keyFile), mode))
			_, err := OpenServerState(e.dir)
			require.Equal(t, status.Access, status.Of(err))
		})
	}
	t.Run("directory", func(t *testing.T) {
		e := newEnds(t)
		require.NoError(t, os.Chmod(e.dir, 0o770))
		_, err := OpenServerState(e.dir)
		require.Equal(t, status.Access, status.Of(err))
	})
}

func TestDamagedFilesAreNamed(t *testing.T) {
	for name, tc := range map[string]struct {
		content string
		want    status.Code
	}{
		"empty":        {"", status.Damaged},
		"cut off":      {`{"schema":1,"server":`, status.Damaged},
		"other fields": {`{"schema":1}`, status.Damaged},
		"newer":        {`{"schema":2}`, status.Version},
	} {
		t.Run(name, func(t *testing.T) {
			e := newEnds(t)
			require.NoError(t, os.WriteFile(e.keyFile(), []byte(tc.content), 0o600))
			out := meet(t, e.keys, e.state.TLS())
			require.Equal(t, tc.want, status.Of(out.client), "%v", out.client)
			require.ErrorContains(t, out.client, e.keyFile())

			require.NoError(t, os.WriteFile(filepath.Join(e.dir, keyFile), []byte(tc.content), 0o600))
			_, err := OpenServerState(e.dir)
			require.Equal(t, status.Damaged, status.Of(err))
			require.ErrorContains(t, err, keyFile)
		})
	}
	t.Run("list of clients", func(t *testing.T) {
		e := newEnds(t)
		require.NoError(t, os.WriteFile(filepath.Join(e.dir, clientsFile), []byte(`{"schema":9}`), 0o600))
		require.Equal(t, status.Version, status.Of(meet(t, e.keys, e.state.TLS()).server))
		require.Equal(t, status.Version, status.Of(e.state.Admit(ClientKey{})), "a newer list must not be overwritten")
	})
}

func TestLockState(t *testing.T) {
	dir := t.TempDir()
	lock, err := LockState(dir)
	require.NoError(t, err)
	_, err = LockState(dir)
	require.Equal(t, status.Busy, status.Of(err))
	require.ErrorContains(t, err, dir)
	require.NoError(t, lock.Close())
	lock, err = LockState(dir)
	require.NoError(t, err)
	require.NoError(t, lock.Close())

	_, err = LockState(filepath.Join(dir, "none"))
	require.Equal(t, status.NotFound, status.Of(err))
}

func TestExplainLeavesOthersAlone(t *testing.T) {
	require.NoError(t, Explain(nil))
	for _, err := range []error{io.EOF, syscall.ECONNRESET, &net.OpError{Op: "dial", Err: syscall.ECONNREFUSED},
		&net.OpError{Op: "remote error", Err: errors.New("tls: internal error")}} {
		require.Equal(t, err, Explain(err))
	}
	require.Equal(t, status.BadFrame, status.Of(Explain(tls.RecordHeaderError{Msg: "no"})))
}

func TestPeerThatDoesNotSpeakTLS(t *testing.T) {
	c, s := net.Pipe()
	var other sync.WaitGroup
	other.Go(func() { io.Copy(io.Discard, s) })
	other.Go(func() { io.WriteString(s, "SSH-2.0-OpenSSH_9.9\r\n") })
	err := OpenKeyring(t.TempDir()).Client(c).HandshakeContext(t.Context())
	c.Close()
	other.Wait()
	require.Equal(t, status.BadFrame, status.Of(Explain(err)), "%v", err)
}

func TestDefaultKeyringDir(t *testing.T) {
	t.Setenv("HOME", "/home/u")
	t.Setenv("XDG_CONFIG_HOME", "")
	dir, err := DefaultKeyringDir()
	require.NoError(t, err)
	require.Equal(t, "/home/u/.config/cage", dir)
	t.Setenv("XDG_CONFIG_HOME", "/elsewhere")
	dir, err = DefaultKeyringDir()
	require.NoError(t, err)
	require.Equal(t, "/elsewhere/cage", dir)
}

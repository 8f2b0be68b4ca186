package auth

import (
	"context"
	"crypto/tls"
	"io"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"cagefs.dev/cage/remote/status"
)

func testCode(t testing.TB) Code {
	t.Helper()
	key, err := newKey()
	require.NoError(t, err)
	return Code{
		Server: fingerprintOfPrivate(key), Secret: []byte("0123456789abcdef"),
		Addresses: []string{"files.example.org:7400", "[2001:db8::1]:7400"},
	}
}

func TestCodeForm(t *testing.T) {
	c := testCode(t)
	text := c.String()
	require.Regexp(t, `^cage1[a-z2-7]+$`, text, "a word for shells, terminals and double clicks")
	for _, s := range []string{text, "  " + text + "\n", strings.ToUpper(text)} {
		got, err := ParseCode(s)
		require.NoError(t, err)
		require.Equal(t, c, got)
	}
}

// Every single mistake in a code is noticed.
func TestMistypedCode(t *testing.T) {
	text := testCode(t).String()
	for i := range text {
		wrong := []byte(text)
		wrong[i] = 'a'
		if text[i] == 'a' {
			wrong[i] = 'b'
		}
		_, err := ParseCode(string(wrong))
		require.Equal(t, status.Invalid, status.Of(err), "%s: %v", wrong, err)
		require.ErrorContains(t, err, "not a join code")
	}
	for i := range text {
		_, err := ParseCode(text[:i])
		require.Equal(t, status.Invalid, status.Of(err), "cut at %d: %v", i, err)
	}
	_, err := ParseCode(text + "a")
	require.Equal(t, status.Invalid, status.Of(err))
	_, err = ParseCode("cage2" + text[5:])
	require.Equal(t, status.Version, status.Of(err))
	require.ErrorContains(t, err, "version 2")
}

func FuzzParseCode(f *testing.F) {
	f.Add(testCode(f).String())
	f.Add("cage1")
	f.Add("cage1aaaaaaaa")
	// What is behind the check digits is reached too.
	f.Fuzz(func(t *testing.T, text string) {
		if c, err := ParseCode(text); err == nil {
			require.Equal(t, strings.ToLower(strings.TrimSpace(text)), c.String())
		}
		if c, ok := decodeCode([]byte(text)); ok {
			again, err := ParseCode(c.String())
			require.NoError(t, err)
			require.Equal(t, c, again)
		}
	})
}

// invite opens an invitation and returns its code.
func (e ends) invite(t *testing.T, c ClientKey, now time.Time) Code {
	t.Helper()
	secret, err := e.state.Invite(c, now, time.Hour)
	require.NoError(t, err)
	return Code{Server: e.state.Fingerprint(), Secret: secret, Addresses: []string{"127.0.0.1:7400"}}
}

func newFingerprint(t *testing.T) Fingerprint {
	t.Helper()
	key, err := newKey()
	require.NoError(t, err)
	return fingerprintOfPrivate(key)
}

func TestInviteAndJoin(t *testing.T) {
	e := newEnds(t)
	now := time.Now().Round(0)
	code := e.invite(t, ClientKey{Name: "laptop", Exports: []string{"data"}, ReadOnly: true, User: "bob"}, now)
	data, err := os.ReadFile(filepath.Join(e.dir, invitationsFile))
	require.NoError(t, err)
	require.NotContains(t, string(data), string(code.Secret))
	requireMode(t, filepath.Join(e.dir, invitationsFile), 0o600)
	open, err := e.state.OpenInvitations(now)
	require.NoError(t, err)
	require.Len(t, open, 1)

	fp := newFingerprint(t)
	c, err := e.state.Join(code.Secret, fp, now)
	require.NoError(t, err)
	require.Equal(t, "laptop", c.Name)
	got, ok := e.state.Client(fp)
	require.True(t, ok)
	require.True(t, got.ReadOnly)
	require.Equal(t, []string{"data"}, got.Exports)
	require.Equal(t, "bob", got.User)
	open, err = e.state.OpenInvitations(now)
	require.NoError(t, err)
	require.Empty(t, open)

	again, err := e.state.Join(code.Secret, fp, now.Add(time.Minute))
	require.NoError(t, err, "the same key, whose answer was lost")
	require.True(t, now.Equal(again.Joined))
	_, err = e.state.Join(code.Secret, newFingerprint(t), now)
	require.Equal(t, status.WrongKey, status.Of(err))
	require.ErrorContains(t, err, "used already")

	late := e.invite(t, ClientKey{Name: "late"}, now)
	_, err = e.state.Join(late.Secret, newFingerprint(t), now.Add(2*time.Hour))
	require.Equal(t, status.WrongKey, status.Of(err))
	require.ErrorContains(t, err, "expired")
	older := e.invite(t, ClientKey{Name: "phone"}, now)
	newer := e.invite(t, ClientKey{Name: "phone"}, now)
	_, err = e.state.Join(older.Secret, newFingerprint(t), now)
	require.ErrorContains(t, err, "does not know the code")
	_, err = e.state.Join(newer.Secret, newFingerprint(t), now)
	require.NoError(t, err)
	_, err = e.state.Join(make([]byte, secretSize), newFingerprint(t), now)
	require.ErrorContains(t, err, "does not know the code")
	_, err = e.state.Join(nil, newFingerprint(t), now)
	require.ErrorContains(t, err, "does not know the code", "clients that were not invited have no secret, but no empty one either")
}

func TestInviteRefused(t *testing.T) {
	e := newEnds(t)
	for _, name := range []string{"", "a b", "-x", ".x", "a/b", "a\n", strings.Repeat("x", 65), "cage:aa"} {
		_, err := e.state.Invite(ClientKey{Name: name}, time.Now(), time.Hour)
		require.Equal(t, status.Usage, status.Of(err), "%q", name)
	}
	_, err := e.state.Invite(ClientKey{Name: onlyClient(t, e.state).Name}, time.Now(), time.Hour)
	require.Equal(t, status.Conflict, status.Of(err))
}

// A client that joins under a name takes the place of the one that had it.
func TestJoinReplacesTheNamesake(t *testing.T) {
	e := newEnds(t)
	now := time.Now()
	first, second := newFingerprint(t), newFingerprint(t)
	_, err := e.state.Join(e.invite(t, ClientKey{Name: "laptop"}, now).Secret, first, now)
	require.NoError(t, err)
	_, err = e.state.Join(e.invite(t, ClientKey{Name: "laptop"}, now).Secret, second, now)
	require.NoError(t, err)
	require.True(t, e.state.Revoked(first))
	require.False(t, e.state.Revoked(second))
}

func TestConcurrentJoinsOneWins(t *testing.T) {
	e := newEnds(t)
	code := e.invite(t, ClientKey{Name: "laptop"}, time.Now())
	other := openState(t, e.dir) // as another process
	var won atomic.Int32
	var all sync.WaitGroup
	for i := range 8 {
		state, fp := e.state, newFingerprint(t)
		if i%2 == 1 {
			state = other
		}
		all.Go(func() {
			if _, err := state.Join(code.Secret, fp, time.Now()); err == nil {
				won.Add(1)
			}
		})
	}
	all.Wait()
	require.EqualValues(t, 1, won.Load())
}

// A crash between the two files that joining replaces.
func TestCrashWhileJoining(t *testing.T) {
	e := newEnds(t)
	now := time.Now()
	code := e.invite(t, ClientKey{Name: "laptop"}, now)
	file := filepath.Join(e.dir, invitationsFile)
	before, err := os.ReadFile(file)
	require.NoError(t, err)
	fp := newFingerprint(t)
	_, err = e.state.Join(code.Secret, fp, now)
	require.NoError(t, err)
	require.NoError(t, os.WriteFile(file, before, 0o600)) // as if the second replacement was lost

	e.state = openState(t, e.dir)
	require.False(t, e.state.Revoked(fp), "admitted")
	open, err := e.state.OpenInvitations(now)
	require.NoError(t, err)
	require.Empty(t, open, "used, though it stands in the list")
	_, err = e.state.Join(code.Secret, newFingerprint(t), now)
	require.ErrorContains(t, err, "used already")
	_, err = e.state.Join(code.Secret, fp, now)
	require.NoError(t, err)
	list, err := e.state.Invitations()
	require.NoError(t, err)
	require.Empty(t, list, "the repetition has completed it")
}

func TestRevoke(t *testing.T) {
	e := newEnds(t)
	now := time.Now()
	a, b := newFingerprint(t), newFingerprint(t)
	_, err := e.state.Join(e.invite(t, ClientKey{Name: "a"}, now).Secret, a, now)
	require.NoError(t, err)
	_, err = e.state.Join(e.invite(t, ClientKey{Name: "b"}, now).Secret, b, now)
	require.NoError(t, err)
	e.invite(t, ClientKey{Name: "a"}, now)
	pending := e.invite(t, ClientKey{Name: "c"}, now)

	gone, withdrawn, err := e.state.Revoke(string(a))
	require.NoError(t, err)
	require.Len(t, gone, 1)
	require.Len(t, withdrawn, 1, "the open invitation of that name goes as well")
	require.True(t, e.state.Revoked(a))
	require.False(t, e.state.Revoked(b))
	_, _, err = e.state.Revoke("a")
	require.Equal(t, status.NotFound, status.Of(err))
	_, withdrawn, err = e.state.Revoke("c")
	require.NoError(t, err)
	require.Len(t, withdrawn, 1)
	_, err = e.state.Join(pending.Secret, newFingerprint(t), now)
	require.Equal(t, status.WrongKey, status.Of(err))

	// A list that cannot be read for a moment ends nobody's sessions.
	require.NoError(t, os.Chmod(filepath.Join(e.dir, clientsFile), 0o644))
	require.False(t, e.state.Revoked(a))
}

func TestSeen(t *testing.T) {
	e := newEnds(t)
	at := time.Now().Round(0)
	local := onlyClient(t, e.state).Fingerprint
	require.NoError(t, e.state.NoteSeen([]Fingerprint{local, "cage:other"}, at))
	require.NoError(t, e.state.NoteSeen(nil, at.Add(time.Hour)))
	seen, err := e.state.Seen()
	require.NoError(t, err)
	require.Len(t, seen, 1)
	require.True(t, at.Equal(seen[local]))
}

func TestFindServerState(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "state")
	_, err := FindServerState(dir)
	require.Equal(t, status.NotFound, status.Of(err))
	require.NoDirExists(t, dir, "asking makes nothing")
	want := openState(t, dir).Fingerprint()
	s, err := FindServerState(dir)
	require.NoError(t, err)
	defer s.Close()
	require.Equal(t, want, s.Fingerprint())
}

// What root does to another user's server leaves that user its files.
func TestStateOfAnotherUser(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("only root can make files of others")
	}
	const uid = 54321
	dir := filepath.Join(t.TempDir(), "state")
	require.NoError(t, os.Mkdir(dir, 0o700))
	require.NoError(t, os.Chown(dir, uid, uid))
	s := openState(t, dir)
	_, err := s.Invite(ClientKey{Name: "a"}, time.Now(), time.Hour)
	require.NoError(t, err)
	for _, name := range []string{keyFile, invitationsFile, editFile} {
		info, err := os.Stat(filepath.Join(dir, name))
		require.NoError(t, err)
		require.EqualValues(t, uid, owner(info), name)
	}
}

// meetAs shakes hands on a connection on which to join, and returns the
// server's error and whether it took the connection for one.
func meetAs(t *testing.T, client func(net.Conn) *tls.Conn, config *tls.Config) (peer Fingerprint, joining bool, err error) {
	t.Helper()
	c, s := net.Pipe()
	defer c.Close()
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	done := make(chan error, 1)
	go func() {
		defer s.Close()
		conn := tls.Server(s, config)
		err := conn.HandshakeContext(ctx)
		if err == nil {
			joining = conn.ConnectionState().NegotiatedProtocol == JoinProtocol
			peer, err = PeerOf(conn.ConnectionState())
			conn.Write([]byte{1})
		}
		done <- err
	}()
	conn := client(c)
	if err = conn.HandshakeContext(ctx); err == nil {
		_, err = io.ReadFull(conn, make([]byte, 1))
	}
	if serr := <-done; err == nil {
		err = serr
	}
	return peer, joining, err
}

func TestJoiningKeepsItsKey(t *testing.T) {
	e := newEnds(t)
	code := e.invite(t, ClientKey{Name: "laptop"}, time.Now())
	keys := OpenKeyring(filepath.Join(t.TempDir(), "home", "cage"))
	first, err := keys.Join(code)
	require.NoError(t, err)
	peer, joining, err := meetAs(t, first.Client, e.state.TLS())
	require.NoError(t, err)
	require.True(t, joining)
	require.True(t, first.Met())
	require.True(t, e.state.Revoked(peer), "not admitted yet")
	require.NoError(t, first.Close()) // interrupted

	out := meet(t, keys, e.state.TLS())
	require.ErrorContains(t, out.client, "no key for server", "a key that has not joined is not used")

	second, err := keys.Join(code)
	require.NoError(t, err)
	again, _, err := meetAs(t, second.Client, e.state.TLS())
	require.NoError(t, err)
	require.Equal(t, peer, again, "the same key with the same code")
	_, err = e.state.Join(code.Secret, again, time.Now())
	require.NoError(t, err)
	require.NoError(t, second.Finish("laptop"))
	require.NoError(t, second.Close())
	require.NoError(t, meet(t, keys, e.state.TLS()).client)
	left, err := filepath.Glob(filepath.Join(keys.dir, "joining-*"))
	require.NoError(t, err)
	require.Empty(t, left)

	third, err := keys.Join(e.invite(t, ClientKey{Name: "laptop2"}, time.Now()))
	require.NoError(t, err)
	defer third.Close()
	other, _, err := meetAs(t, third.Client, e.state.TLS())
	require.NoError(t, err)
	require.NotEqual(t, peer, other, "another code, another key")
	require.NoError(t, meet(t, keys, e.state.TLS()).client, "until it has joined, the old one is used")
}

func TestJoiningAnotherServerIsRefused(t *testing.T) {
	e, other := newEnds(t), newEnds(t)
	j, err := OpenKeyring(t.TempDir()).Join(e.invite(t, ClientKey{Name: "laptop"}, time.Now()))
	require.NoError(t, err)
	defer j.Close()
	_, _, err = meetAs(t, j.Client, other.state.TLS())
	require.Equal(t, status.WrongKey, status.Of(err))
	require.ErrorContains(t, err, "another server than that of the code")
	require.False(t, j.Met())
}

// Without naming the protocol a key that is not admitted gets nowhere.
func TestUnknownKeyNeedsTheProtocol(t *testing.T) {
	e := newEnds(t)
	key, err := newKey()
	require.NoError(t, err)
	cert, err := certificate(key)
	require.NoError(t, err)
	for proto, ok := range map[string]bool{"": false, "h2": false, JoinProtocol: true} {
		_, joining, err := meetAs(t, func(c net.Conn) *tls.Conn {
			config := &tls.Config{InsecureSkipVerify: true, Certificates: []tls.Certificate{cert}}
			if proto != "" {
				config.NextProtos = []string{proto}
			}
			return tls.Client(c, config)
		}, e.state.TLS())
		require.Equal(t, ok, err == nil, "protocol %q: %v", proto, err)
		require.Equal(t, ok, joining)
	}
}

package auth

import (
	"crypto/ed25519"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"errors"
	"io/fs"
	"os"
	"os/user"
	"path/filepath"
	"slices"
	"strconv"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"cagefs.dev/cage/remote/status"
)

// The files of a state directory.
const (
	keyFile         = "server.key"       // PKCS #8, PEM
	clientsFile     = "clients.json"     // clientList
	invitationsFile = "invitations.json" // invitationList
	seenFile        = "seen.json"        // seenList
	editFile        = "clients.lock"     // locked by whoever replaces one of these three
	lockFile        = "lock"             // LockState
)

// schema is the version of the JSON files.
const schema = 1

// ServerState is a server's state directory: its key, the clients it admits and
// those that are invited. Safe for concurrent use, also by several processes.
type ServerState struct {
	// Set at construction.
	dir  *os.Root
	uid  int // the directory's owner, who is to own what is in it
	cert tls.Certificate
	fp   Fingerprint

	mu      sync.Mutex
	seen    fs.FileInfo // guarded by mu: clients.json as it was read last; nil: not there
	clients []ClientKey // guarded by mu: its content; the slice is replaced, not changed
}

// ClientKey is a client that the server admits.
type ClientKey struct {
	Name        string      `json:"name"`
	Fingerprint Fingerprint `json:"fingerprint"`
	LocalUID    *uint32     `json:"local_uid,omitempty"` // key of a user of this machine, made by the server: acts as that user
	User        string      `json:"user,omitempty"`      // server user as which others act
	Exports     []string    `json:"exports,omitempty"`   // empty: all
	ReadOnly    bool        `json:"read_only,omitempty"`
	TrustIDs    bool        `json:"trust_ids,omitempty"` // identities in requests count; a local key of root has it
	Joined      time.Time   `json:"joined,omitzero"`
	Invitation  []byte      `json:"invitation,omitempty"` // the Hash of the one that it joined with
}

// ActsAs says for people on whose behalf the client's requests are done.
func (c *ClientKey) ActsAs() string {
	switch {
	case c.TrustIDs:
		return "its own users"
	case c.LocalUID != nil:
		return "uid " + strconv.FormatUint(uint64(*c.LocalUID), 10)
	case c.User != "":
		return c.User
	}
	return "nobody"
}

type clientList struct {
	Schema  int         `json:"schema"`
	Clients []ClientKey `json:"clients"`
}

// FindServerState opens the state directory of a server that was started there
// at least once: status.NotFound if none was. Other errors as OpenServerState.
func FindServerState(dir string) (*ServerState, error) {
	if _, err := os.Stat(filepath.Join(dir, keyFile)); errors.Is(err, fs.ErrNotExist) {
		return nil, status.Newf(status.NotFound, "open", dir, "no server has its keys there: start one, or name another directory with --state")
	}
	return OpenServerState(dir)
}

// OpenServerState opens or makes (0700) a state directory, with a new key on
// first use. Errors: status.Access where others could read or change what is in
// it, Damaged, Version, else those of the files.
func OpenServerState(dir string) (*ServerState, error) {
	root, err := makeDir(dir, os.Geteuid())
	if err != nil {
		return nil, err
	}
	s := &ServerState{dir: root}
	if err := s.open(); err != nil {
		root.Close()
		return nil, err
	}
	return s, nil
}

func (s *ServerState) open() error {
	info, err := s.dir.Stat(".")
	if err != nil {
		return status.Wrap(err, "stat", s.dir.Name())
	}
	if info.Mode().Perm()&0o022 != 0 {
		return status.Newf(status.Access, "open", s.dir.Name(), "others may write to it (mode %04o); chmod 700 it", info.Mode().Perm())
	}
	s.uid = owner(info)
	key, err := s.key()
	if err != nil {
		return err
	}
	s.fp = fingerprintOfPrivate(key)
	if s.cert, err = certificate(key); err != nil {
		return status.Wrap(err, "make certificate", "")
	}
	_, err = s.list()
	return err
}

// Close gives the directory up. Configurations made by TLS must not be used any more.
func (s *ServerState) Close() error { return s.dir.Close() }

// key reads the server's key, or makes it. Of two processes that make one at
// the same time the first wins.
func (s *ServerState) key() (ed25519.PrivateKey, error) {
	data, _, err := readPrivate(s.dir, keyFile)
	if errors.Is(err, fs.ErrNotExist) {
		if err := s.makeKey(); err != nil && !errors.Is(err, fs.ErrExist) {
			return nil, err
		}
		data, _, err = readPrivate(s.dir, keyFile)
	}
	if err != nil {
		return nil, err
	}
	path := filepath.Join(s.dir.Name(), keyFile)
	block, _ := pem.Decode(data)
	if block == nil || block.Type != "PRIVATE KEY" {
		return nil, status.Newf(status.Damaged, "open", path, "not a PEM private key")
	}
	parsed, err := x509.ParsePKCS8PrivateKey(block.Bytes)
	if err != nil {
		return nil, status.Newf(status.Damaged, "open", path, "%w", err)
	}
	key, ok := parsed.(ed25519.PrivateKey)
	if !ok {
		return nil, status.Newf(status.Damaged, "open", path, "not an ed25519 key")
	}
	return key, nil
}

func (s *ServerState) makeKey() error {
	key, err := newKey()
	if err != nil {
		return status.Wrap(err, "make key", "")
	}
	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return status.Wrap(err, "make key", "")
	}
	data := pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der})
	return addPrivate(s.dir, keyFile, data, s.uid)
}

// Fingerprint is the server's own.
func (s *ServerState) Fingerprint() Fingerprint { return s.fp }

// AdmitLocal makes sure that the user who runs the server (uid) has a key for
// it and its pin in configDir (see Keyring), and that the server admits it,
// acting as that user; root's identities count. A key that is there is kept.
func (s *ServerState) AdmitLocal(configDir string, uid uint32) error {
	name := localName(uid)
	key, err := localKey(configDir, int(uid), name, s.fp)
	if err != nil {
		return err
	}
	return s.Admit(ClientKey{
		Name:        name,
		Fingerprint: fingerprintOfPrivate(key),
		LocalUID:    &uid,
		TrustIDs:    uid == 0,
	})
}

// localName is user@host as far as these are known.
func localName(uid uint32) string {
	name := strconv.FormatUint(uint64(uid), 10)
	if u, err := user.LookupId(name); err == nil {
		name = u.Username
	}
	if host, err := os.Hostname(); err == nil {
		name += "@" + host
	}
	return name
}

// Admit adds a client, or replaces the one with the same fingerprint. Servers
// that run with this state see it at their next handshake.
func (s *ServerState) Admit(c ClientKey) error {
	return s.edit(func(list []ClientKey) []ClientKey {
		i := slices.IndexFunc(list, func(o ClientKey) bool { return o.Fingerprint == c.Fingerprint })
		if i < 0 {
			return append(list, c)
		}
		list[i] = c
		return list
	})
}

// edit replaces the list of clients; change may change its argument.
func (s *ServerState) edit(change func([]ClientKey) []ClientKey) error {
	return s.locked(func() error {
		list, err := s.list()
		if err != nil {
			return err
		}
		return s.writeClients(change(slices.Clone(list)))
	})
}

// locked calls f while nobody else, in this process or another, replaces a list.
func (s *ServerState) locked(f func() error) error {
	lock, err := flock(s.dir, editFile, s.uid, unix.LOCK_EX)
	if err != nil {
		return err
	}
	defer lock.Close()
	return f()
}

func (s *ServerState) writeClients(list []ClientKey) error {
	return s.writeJSON(clientsFile, clientList{Schema: schema, Clients: list})
}

// writeJSON replaces a file as a whole.
func (s *ServerState) writeJSON(name string, v any) error {
	data, err := json.MarshalIndent(v, "", "  ")
	if err != nil {
		return status.Wrap(err, "write", name)
	}
	return writePrivate(s.dir, name, append(data, '\n'), s.uid)
}

// Clients lists the clients that the server admits.
func (s *ServerState) Clients() ([]ClientKey, error) {
	list, err := s.list()
	return slices.Clone(list), err
}

// Client returns the client with a fingerprint; ok is false if it is not
// admitted (any more), also when the list of clients cannot be read.
func (s *ServerState) Client(fp Fingerprint) (c ClientKey, ok bool) {
	c, err := s.client(fp)
	return c, err == nil
}

// Revoked reports whether the list of clients can be read and does not have a
// fingerprint, so that a list that cannot be read for a moment ends nothing for good.
func (s *ServerState) Revoked(fp Fingerprint) bool {
	list, err := s.list()
	return err == nil && !slices.ContainsFunc(list, func(c ClientKey) bool { return c.Fingerprint == fp })
}

// client is status.WrongKey for a client that is not admitted.
func (s *ServerState) client(fp Fingerprint) (ClientKey, error) {
	list, err := s.list()
	if err != nil {
		return ClientKey{}, err
	}
	i := slices.IndexFunc(list, func(c ClientKey) bool { return c.Fingerprint == fp })
	if i < 0 {
		return ClientKey{}, status.Newf(status.WrongKey, "accept", string(fp), "client not admitted")
	}
	return list[i], nil
}

// list is the list of clients, read again if the file was replaced or changed.
func (s *ServerState) list() ([]ClientKey, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	info, err := s.dir.Stat(clientsFile)
	if errors.Is(err, fs.ErrNotExist) {
		s.seen, s.clients = nil, nil
		return nil, nil
	}
	if err != nil {
		return nil, status.Wrap(err, "stat", filepath.Join(s.dir.Name(), clientsFile))
	}
	if s.seen != nil && os.SameFile(s.seen, info) && s.seen.ModTime().Equal(info.ModTime()) &&
		s.seen.Size() == info.Size() && s.seen.Mode() == info.Mode() {
		return s.clients, nil
	}
	data, info, err := readPrivate(s.dir, clientsFile)
	if err != nil {
		return nil, err
	}
	var l clientList
	if err := decodeJSON(data, &l, &l.Schema); err != nil {
		return nil, status.Wrap(err, "open", filepath.Join(s.dir.Name(), clientsFile))
	}
	s.seen, s.clients = info, l.Clients
	return s.clients, nil
}

// JoinProtocol is the ALPN protocol of a connection on which a client that is
// not admitted yet may join, and nobody may do anything else. Other connections
// name no protocol.
const JoinProtocol = "cage-join"

// TLS is the server's configuration: TLS 1.3, a client certificate required
// and admitted, looked up at each handshake. The peer is PeerOf the connection's
// state. The handshake's error is status.WrongKey for a client that is refused.
// Where JoinProtocol is negotiated, any key of the right kind will do: whoever
// uses the configuration must let such a connection join and no more.
func (s *ServerState) TLS() *tls.Config {
	return &tls.Config{
		MinVersion:             tls.VersionTLS13,
		Certificates:           []tls.Certificate{s.cert},
		ClientAuth:             tls.RequireAnyClientCert,
		SessionTicketsDisabled: true,
		NextProtos:             []string{JoinProtocol},
		VerifyConnection: func(cs tls.ConnectionState) error {
			fp, err := PeerOf(cs)
			if err != nil || cs.NegotiatedProtocol == JoinProtocol {
				return err
			}
			_, err = s.client(fp)
			return err
		},
	}
}

// StateLock is a state directory in use by a server.
type StateLock struct{ f *os.File }

// LockState keeps other servers from using an existing state directory until
// the lock is closed or the process ends: status.Busy if one does.
func LockState(dir string) (*StateLock, error) {
	root, err := os.OpenRoot(dir)
	if err != nil {
		return nil, status.Wrap(err, "lock", dir)
	}
	defer root.Close()
	f, err := flock(root, lockFile, os.Geteuid(), unix.LOCK_EX|unix.LOCK_NB)
	if errors.Is(err, unix.EWOULDBLOCK) {
		return nil, status.Newf(status.Busy, "lock", dir, "another server uses this state directory")
	}
	if err != nil {
		return nil, err
	}
	return &StateLock{f: f}, nil
}

// Close unlocks the directory.
func (l *StateLock) Close() error { return l.f.Close() }

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

	"golang.org/x/sys/unix"

	"cagefs.dev/cage/remote/status"
)

// The files of a state directory.
const (
	keyFile     = "server.key"   // PKCS #8, PEM
	clientsFile = "clients.json" // clientList
	editFile    = "clients.lock" // locked by whoever replaces clients.json
	lockFile    = "lock"         // LockState
)

// schema is the version of the JSON files.
const schema = 1

// ServerState is a server's state directory: its key and the clients it admits.
// Safe for concurrent use, also by several processes.
type ServerState struct {
	// Set at construction.
	dir  *os.Root
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
}

type clientList struct {
	Schema  int         `json:"schema"`
	Clients []ClientKey `json:"clients"`
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
	return addPrivate(s.dir, keyFile, data, os.Geteuid())
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
	lock, err := flock(s.dir, editFile, unix.LOCK_EX)
	if err != nil {
		return err
	}
	defer lock.Close()
	list, err := s.list()
	if err != nil {
		return err
	}
	data, err := json.MarshalIndent(clientList{Schema: schema, Clients: change(slices.Clone(list))}, "", "  ")
	if err != nil {
		return status.Wrap(err, "write", clientsFile)
	}
	return writePrivate(s.dir, clientsFile, append(data, '\n'), os.Geteuid())
}

// Client returns the client with a fingerprint; ok is false if it is not
// admitted (any more), also when the list of clients cannot be read.
func (s *ServerState) Client(fp Fingerprint) (c ClientKey, ok bool) {
	c, err := s.client(fp)
	return c, err == nil
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

// TLS is the server's configuration: TLS 1.3, a client certificate required
// and admitted, looked up at each handshake. The peer is PeerOf the connection's
// state. The handshake's error is status.WrongKey for a client that is refused.
func (s *ServerState) TLS() *tls.Config {
	return &tls.Config{
		MinVersion:             tls.VersionTLS13,
		Certificates:           []tls.Certificate{s.cert},
		ClientAuth:             tls.RequireAnyClientCert,
		SessionTicketsDisabled: true,
		VerifyConnection: func(cs tls.ConnectionState) error {
			fp, err := PeerOf(cs)
			if err != nil {
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
	f, err := flock(root, lockFile, unix.LOCK_EX|unix.LOCK_NB)
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

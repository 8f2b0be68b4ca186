package auth

import (
	"crypto/ed25519"
	"crypto/tls"
	"encoding/json"
	"errors"
	"io/fs"
	"net"
	"os"
	"path/filepath"

	"cagefs.dev/cage/remote/status"
)

// Keyring is a client's directory of servers ($XDG_CONFIG_HOME/cage): one file
// per server fingerprint with its pin and the key to use there, mode 0600.
type Keyring struct{ dir string }

// serverFile is what the file of a server holds.
type serverFile struct {
	Schema    int         `json:"schema"`
	Server    Fingerprint `json:"server"`
	Name      string      `json:"name"` // of this client, at the server
	Key       []byte      `json:"key"`  // seed of the ed25519 key
	Addresses []string    `json:"addresses,omitempty"`
	Joining   []byte      `json:"joining,omitempty"` // not admitted yet: SHA-256 of the secret with which it is going to join
}

// DefaultKeyringDir is $XDG_CONFIG_HOME/cage, default ~/.config/cage.
func DefaultKeyringDir() (string, error) {
	dir, err := os.UserConfigDir()
	if err != nil {
		return "", status.Newf(status.NotFound, "find keys", "", "%w", err)
	}
	return filepath.Join(dir, "cage"), nil
}

// OpenKeyring opens a keyring; a directory that does not exist is an empty one.
// Files are read at each handshake, so that a server started later is found.
func OpenKeyring(dir string) *Keyring { return &Keyring{dir: dir} }

// Client is the client's side of TLS 1.3 on a connection. It accepts a server
// only if its key is pinned in the keyring, and shows it the key kept for it.
// The error of the handshake is status.WrongKey where there is none, with the
// fingerprint that is not known, or Access where others may read the file. That
// the server refuses the key shows at the first read only: see Explain.
func (k *Keyring) Client(conn net.Conn) *tls.Conn {
	return tls.Client(conn, clientConfig(k.key))
}

// clientConfig is a client's configuration. keyFor returns the key to show to a
// server, or an error for one that is not to be talked to.
func clientConfig(keyFor func(server Fingerprint) (ed25519.PrivateKey, error)) *tls.Config {
	// The key to show depends on the server's, which is verified first. Both
	// functions run in the connection's handshake, one after the other.
	var shown *tls.Certificate
	return &tls.Config{
		MinVersion: tls.VersionTLS13,
		// Instead of names and authorities, VerifyConnection checks the pin.
		InsecureSkipVerify: true,
		VerifyConnection: func(cs tls.ConnectionState) error {
			fp, err := PeerOf(cs)
			if err != nil {
				return err
			}
			key, err := keyFor(fp)
			if err != nil {
				return err
			}
			cert, err := certificate(key)
			shown = &cert
			return err
		},
		GetClientCertificate: func(*tls.CertificateRequestInfo) (*tls.Certificate, error) {
			return shown, nil
		},
	}
}

// key is the key to show to a server.
func (k *Keyring) key(server Fingerprint) (ed25519.PrivateKey, error) {
	dir, err := os.OpenRoot(k.dir)
	if err == nil {
		defer dir.Close()
		var key ed25519.PrivateKey
		if key, _, err = readServerFile(dir, server.fileName(), server); err == nil {
			return key, nil
		}
	}
	if errors.Is(err, fs.ErrNotExist) {
		return nil, status.Newf(status.WrongKey, "connect", "", "no key for server %s in %s", server, k.dir)
	}
	return nil, status.Wrap(err, "connect", "")
}

func readServerFile(dir *os.Root, name string, server Fingerprint) (ed25519.PrivateKey, serverFile, error) {
	path := filepath.Join(dir.Name(), name)
	var f serverFile
	data, _, err := readPrivate(dir, name)
	if err != nil {
		return nil, f, err
	}
	if err := decodeJSON(data, &f, &f.Schema); err != nil {
		return nil, f, status.Wrap(err, "open", path)
	}
	if f.Server != server || len(f.Key) != ed25519.SeedSize {
		return nil, f, status.Newf(status.Damaged, "open", path, "not the file of server %s", server)
	}
	return ed25519.NewKeyFromSeed(f.Key), f, nil
}

func (f *serverFile) encode() ([]byte, error) {
	f.Schema = schema
	data, err := json.MarshalIndent(f, "", "  ")
	return append(data, '\n'), status.Wrap(err, "make key", "")
}

// localKey returns the key for a server in a user's keyring, and makes it if
// there is none.
func localKey(configDir string, uid int, name string, server Fingerprint) (ed25519.PrivateKey, error) {
	dir, err := makeDir(configDir, uid)
	if err != nil {
		return nil, err
	}
	defer dir.Close()
	if err := checkOwner(dir, uid); err != nil {
		return nil, err
	}
	key, _, err := readServerFile(dir, server.fileName(), server)
	if !errors.Is(err, fs.ErrNotExist) {
		return key, err
	}
	if key, err = newKey(); err != nil {
		return nil, status.Wrap(err, "make key", "")
	}
	data, err := (&serverFile{Server: server, Name: name, Key: key.Seed()}).encode()
	if err != nil {
		return nil, err
	}
	if err := addPrivate(dir, server.fileName(), data, uid); err != nil {
		if errors.Is(err, fs.ErrExist) {
			key, _, err = readServerFile(dir, server.fileName(), server)
			return key, err
		}
		return nil, err
	}
	return key, nil
}

// decodeJSON decodes a file and checks its schema: status.Damaged or Version.
func decodeJSON(data []byte, into any, got *int) error {
	if err := json.Unmarshal(data, into); err != nil {
		return status.Newf(status.Damaged, "", "", "%w", err)
	}
	if *got != schema {
		return status.Newf(status.Version, "", "", "schema %d, this version knows %d", *got, schema)
	}
	return nil
}

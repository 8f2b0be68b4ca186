// Package auth keeps the keys and pins of both ends and makes TLS
// configurations of them. Identities are ed25519 keys: a server is known by the
// fingerprint of its key (the pin), a client by the fingerprint of its own.
//
// It knows nothing of exports, sessions or frames.
package auth

import "crypto/tls"

// Fingerprint is the SHA-256 of a public key (PKIX), printed as "cage:" + base32 without padding, lower case.
type Fingerprint string

// ServerState is a server's state directory: its key and the clients it admits.
type ServerState struct{ unfinished struct{} }

// ClientKey is a client that the server admits.
type ClientKey struct {
	Name        string
	Fingerprint Fingerprint
	LocalUID    *uint32  // key of a user of this machine, made by the server: acts as that user
	User        string   // server user as which others act
	Exports     []string // empty: all
	ReadOnly    bool
	TrustIDs    bool // identities in requests count; a local key of root has it
}

// OpenServerState opens or makes (0700) a state directory, with a new key on first use.
func OpenServerState(dir string) (*ServerState, error) { panic("auth: being written") }

// Fingerprint is the server's own.
func (s *ServerState) Fingerprint() Fingerprint { panic("auth: being written") }

// AdmitLocal makes sure that the user who runs the server (uid) has a key for
// it and its pin in configDir (see Keyring), and that the server admits it.
func (s *ServerState) AdmitLocal(configDir string, uid uint32) error { panic("auth: being written") }

// Client returns the client with a fingerprint; ok is false if it is not admitted (any more).
func (s *ServerState) Client(fp Fingerprint) (ClientKey, bool) { panic("auth: being written") }

// TLS is the server's configuration: TLS 1.3, a client certificate required
// and admitted. The peer is PeerOf the connection's state.
func (s *ServerState) TLS() *tls.Config { panic("auth: being written") }

// PeerOf returns the fingerprint of the key at the other end of a handshaken connection.
func PeerOf(cs tls.ConnectionState) (Fingerprint, error) { panic("auth: being written") }

// Keyring is a client's directory of servers ($XDG_CONFIG_HOME/cage): one file
// per server fingerprint with its pin and the key to use there, mode 0600.
type Keyring struct{ unfinished struct{} }

// DefaultKeyringDir is $XDG_CONFIG_HOME/cage, default ~/.config/cage.
func DefaultKeyringDir() (string, error) { panic("auth: being written") }

// OpenKeyring opens a keyring; a directory that does not exist is an empty one.
// Files are read at each handshake, so that a server started later is found.
func OpenKeyring(dir string) *Keyring { panic("auth: being written") }

// TLS is the client's configuration: it accepts a server only if its key is
// pinned in the keyring and shows it the key kept for it. The handshake's error is
// status.WrongKey, with the fingerprint that was not known.
func (k *Keyring) TLS() *tls.Config { panic("auth: being written") }

package auth

import (
	"bytes"
	"crypto/ed25519"
	"crypto/tls"
	"errors"
	"io/fs"
	"net"
	"os"

	"cagefs.dev/cage/remote/status"
)

// Joining is a client on its way to be admitted by a server. Its new key is in
// the keyring, beside the one that is used there if there is one, before the
// server hears of it, and takes that one's place when the server has admitted
// it (Finish). Whoever is interrupted in between joins again with the same code
// and shows the same key. Not safe for concurrent use.
type Joining struct {
	// Set at construction.
	dir  *os.Root
	code Code
	key  ed25519.PrivateKey
	file serverFile
	met  bool // the server of the code has shown its key
}

// Join begins to join the server of a code. The directory of the keyring is
// made if there is none. Close it.
func (k *Keyring) Join(code Code) (*Joining, error) {
	dir, err := makeDir(k.dir, os.Geteuid())
	if err != nil {
		return nil, err
	}
	j := &Joining{dir: dir, code: code}
	if err := j.prepare(); err != nil {
		dir.Close()
		return nil, err
	}
	return j, nil
}

// prepare finds the key that an earlier attempt with the same code has made, or
// makes one.
func (j *Joining) prepare() (err error) {
	hash := hashOf(j.code.Secret)
	j.key, j.file, err = readServerFile(j.dir, j.name(), j.code.Server)
	if err == nil && bytes.Equal(j.file.Joining, hash) {
		return nil
	}
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	if j.key, err = newKey(); err != nil {
		return status.Wrap(err, "make key", "")
	}
	j.file = serverFile{Server: j.code.Server, Key: j.key.Seed(), Addresses: j.code.Addresses, Joining: hash}
	data, err := j.file.encode()
	if err != nil {
		return err
	}
	return writePrivate(j.dir, j.name(), data, os.Geteuid())
}

func (j *Joining) name() string { return "joining-" + j.code.Server.fileName() }

// Client is the client's side of TLS 1.3 on a connection on which to join. It
// accepts the code's server only; the error of the handshake is status.WrongKey
// for another.
func (j *Joining) Client(conn net.Conn) *tls.Conn {
	j.met = false
	config := clientConfig(func(fp Fingerprint) (ed25519.PrivateKey, error) {
		if fp != j.code.Server {
			return nil, status.Newf(status.WrongKey, "connect", "", "another server than that of the code answers there: its key is %s, not %s", fp, j.code.Server)
		}
		j.met = true
		return j.key, nil
	})
	config.NextProtos = []string{JoinProtocol}
	return tls.Client(conn, config)
}

// Met reports whether it was the code's server that answered on the last connection.
func (j *Joining) Met() bool { return j.met }

// Finish makes the new key the one that is used with the server, which has
// admitted it under a name.
func (j *Joining) Finish(name string) error {
	j.file.Name, j.file.Joining = name, nil
	data, err := j.file.encode()
	if err != nil {
		return err
	}
	if err := writePrivate(j.dir, j.code.Server.fileName(), data, os.Geteuid()); err != nil {
		return err
	}
	return j.Forget()
}

// Forget takes the new key away, for a code with which nobody can join.
func (j *Joining) Forget() error { return j.dir.Remove(j.name()) }

// Close gives the keyring up.
func (j *Joining) Close() error { return j.dir.Close() }

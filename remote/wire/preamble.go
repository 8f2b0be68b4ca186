package wire

import (
	"encoding/binary"
	"io"

	"cagefs.dev/cage/remote/status"
)

// Version is the version of the protocol that this package speaks.
const Version uint16 = 7

// PreambleSize is the bytes that each side sends first on every connection.
const PreambleSize = 8

const magic = "CAGE"

// AppendPreamble appends the preamble of a peer that speaks a version.
func AppendPreamble(b []byte, version uint16) []byte {
	b = append(b, magic...)
	b = binary.LittleEndian.AppendUint16(b, version)
	return append(b, 0, 0)
}

// ParsePreamble returns the version in a preamble: status.BadFrame if the peer
// speaks something else. The reserved bytes may have any value.
func ParsePreamble(b []byte) (version uint16, err error) {
	if len(b) < PreambleSize || string(b[:len(magic)]) != magic {
		return 0, status.Newf(status.BadFrame, "connect", "", "the other end does not speak Cage")
	}
	version = binary.LittleEndian.Uint16(b[len(magic):])
	if version == 0 {
		return 0, status.Newf(status.BadFrame, "connect", "", "protocol version 0")
	}
	return version, nil
}

// CheckVersions refuses a client that is newer than its server by name, with
// status.Version. Whether an older client is still served is said in the reply
// to its hello.
func CheckVersions(server, client uint16) error {
	if client > server {
		return status.Newf(status.Version, "connect", "", "protocol too new: server speaks %d, client %d", server, client)
	}
	return nil
}

// Welcome is the server's half of the preamble, which comes first: it sends the
// version that the server speaks and reads the one that the client chose. It
// blocks as rw does; set a deadline. Errors: status.Version, BadFrame, else the
// connection's.
func Welcome(rw io.ReadWriter) (client uint16, err error) {
	if err := writePreamble(rw); err != nil {
		return 0, err
	}
	if client, err = readPreamble(rw); err != nil {
		return 0, err
	}
	return client, CheckVersions(Version, client)
}

// Greet is the client's half: it waits for the server's version, so that a
// refusal of the client's key is what it reads first, and answers with its own,
// also where it is too new, so that both sides can name both. It blocks as rw
// does; set a deadline. Errors are those of Welcome; see also auth.Explain.
func Greet(rw io.ReadWriter) (server uint16, err error) {
	if server, err = readPreamble(rw); err != nil {
		return 0, err
	}
	if err := writePreamble(rw); err != nil {
		return 0, err
	}
	return server, CheckVersions(server, Version)
}

func writePreamble(w io.Writer) error {
	_, err := w.Write(AppendPreamble(nil, Version))
	return err
}

func readPreamble(r io.Reader) (uint16, error) {
	var b [PreambleSize]byte
	if _, err := io.ReadFull(r, b[:]); err != nil {
		return 0, err
	}
	return ParsePreamble(b[:])
}

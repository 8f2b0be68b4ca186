package auth

import (
	"bytes"
	"crypto/sha256"
	"encoding/base32"
	"net"
	"strconv"
	"strings"

	"cagefs.dev/cage/remote/status"
)

// Code is what a server's invitation consists of for the client. As text it is
// one word of lower-case letters and digits, with nothing in it that a shell
// or a double click would stop at:
//
//	cage1 base32( fingerprint 32 | secret 16 | count 1 | { length 1 | address }… | check 4 )
//
// The digits after "cage" are the version. check is the beginning of the SHA-256
// of everything before it, the "cage1" included. base32 is without padding.
type Code struct {
	Addresses []string    // HOST:PORT of the main port, to be tried in order; 1 to MaxAddresses
	Server    Fingerprint // of the server
	Secret    []byte      // secretSize bytes, known to nobody else
}

// MaxAddresses is how many addresses a code may have.
const MaxAddresses = 8

const (
	codeVersion = "1"
	secretSize  = 16
	checkSize   = 4
	maxAddress  = 255
)

var base32Text = base32.StdEncoding.WithPadding(base32.NoPadding)

// String is the code's text. The parts must be what the comments above say.
func (c Code) String() string {
	sum, err := c.Server.sum()
	if err != nil {
		panic("auth: a code for " + string(c.Server))
	}
	b := append(sum, c.Secret...)
	b = append(b, byte(len(c.Addresses)))
	for _, a := range c.Addresses {
		b = append(append(b, byte(len(a))), a...)
	}
	b = append(b, check(b)...)
	return "cage" + codeVersion + strings.ToLower(base32Text.EncodeToString(b))
}

func check(b []byte) []byte {
	sum := sha256.Sum256(append([]byte("cage"+codeVersion), b...))
	return sum[:checkSize]
}

// ParseCode reads a code, whatever the case of its letters, with white space
// around it. Errors: status.Invalid for what is no code or was mistyped, Version
// for one of a later version.
func ParseCode(text string) (Code, error) {
	word := strings.ToLower(strings.TrimSpace(text))
	rest, ok := strings.CutPrefix(word, "cage")
	if !ok {
		return Code{}, notACode("it does not begin with \"cage\"")
	}
	// base32 has no digits 0, 1, 8, 9: of a version of more digits the rest is the data's.
	data, ok := strings.CutPrefix(rest, codeVersion)
	if !ok {
		if rest != "" && '0' <= rest[0] && rest[0] <= '9' {
			return Code{}, status.Newf(status.Version, "join code", "", "the code is of version %c, this program knows %s", rest[0], codeVersion)
		}
		return Code{}, notACode("it has no version")
	}
	b, err := base32Text.DecodeString(strings.ToUpper(data))
	if err != nil || len(b) < checkSize || !bytes.Equal(check(b[:len(b)-checkSize]), b[len(b)-checkSize:]) {
		return Code{}, notACode("its check digits do not match: it was mistyped or cut short")
	}
	c, ok := decodeCode(b[:len(b)-checkSize])
	if !ok || c.String() != word {
		return Code{}, notACode("its content makes no sense")
	}
	return c, nil
}

func notACode(why string) error {
	return status.Newf(status.Invalid, "join code", "", "not a join code: %s", why)
}

func decodeCode(b []byte) (c Code, ok bool) {
	const fixed = sha256.Size + secretSize + 1
	if len(b) < fixed {
		return c, false
	}
	c.Server = fingerprintOfSum(b[:sha256.Size])
	c.Secret = bytes.Clone(b[sha256.Size : sha256.Size+secretSize])
	n := int(b[fixed-1])
	if n == 0 || n > MaxAddresses {
		return c, false
	}
	b = b[fixed:]
	for range n {
		if len(b) == 0 || len(b) < 1+int(b[0]) {
			return c, false
		}
		a := string(b[1 : 1+int(b[0])])
		if !ValidAddress(a) {
			return c, false
		}
		c.Addresses = append(c.Addresses, a)
		b = b[1+int(b[0]):]
	}
	return c, len(b) == 0
}

// ValidAddress reports whether an address is HOST:PORT as a code may contain
// it: printable ASCII without blanks, a port from 1 to 65535.
func ValidAddress(a string) bool {
	host, port, err := net.SplitHostPort(a)
	n, perr := strconv.ParseUint(port, 10, 16)
	return err == nil && perr == nil && n > 0 && host != "" && len(a) <= maxAddress &&
		!strings.ContainsFunc(a, func(r rune) bool { return r <= ' ' || r > '~' })
}

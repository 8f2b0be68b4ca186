// Package auth keeps the keys and pins of both ends and makes TLS
// configurations of them. Identities are ed25519 keys: a server is known by the
// fingerprint of its key (the pin), a client by the fingerprint of its own.
//
// It knows nothing of exports, sessions or frames.
//
// Files with keys, and the list of admitted clients, are refused when group or
// others may read or write them. They are replaced as a whole: written under
// another name, synced, renamed.
package auth

import (
	"crypto/ed25519"
	"crypto/rand"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"errors"
	"math/big"
	"net"
	"strings"
	"time"

	"cagefs.dev/cage/remote/status"
)

// Fingerprint is the SHA-256 of a public key (PKIX), printed as "cage:" + base32 without padding, lower case.
type Fingerprint string

const fingerprintPrefix = "cage:"

// FingerprintOf is the fingerprint of a public key.
func FingerprintOf(key ed25519.PublicKey) Fingerprint {
	der, err := x509.MarshalPKIXPublicKey(key)
	if err != nil {
		panic("auth: an ed25519 key has no PKIX form: " + err.Error())
	}
	sum := sha256.Sum256(der)
	return fingerprintOfSum(sum[:])
}

func fingerprintOfSum(sum []byte) Fingerprint {
	return Fingerprint(fingerprintPrefix + strings.ToLower(base32Text.EncodeToString(sum)))
}

// sum is the SHA-256 that the fingerprint prints.
func (fp Fingerprint) sum() ([]byte, error) {
	text, ok := strings.CutPrefix(string(fp), fingerprintPrefix)
	sum, err := base32Text.DecodeString(strings.ToUpper(text))
	if !ok || err != nil || len(sum) != sha256.Size {
		return nil, status.Newf(status.Invalid, "fingerprint", string(fp), "not a fingerprint")
	}
	return sum, nil
}

// fileName is the name of the keyring's file for a server.
func (fp Fingerprint) fileName() string {
	return "server-" + strings.TrimPrefix(string(fp), fingerprintPrefix) + ".json"
}

// PeerOf returns the fingerprint of the key at the other end of a handshaken
// connection: status.WrongKey if it showed none of the kind that Cage uses.
func PeerOf(cs tls.ConnectionState) (Fingerprint, error) {
	if len(cs.PeerCertificates) == 0 {
		return "", status.Newf(status.WrongKey, "connect", "", "the other end showed no key")
	}
	key, ok := cs.PeerCertificates[0].PublicKey.(ed25519.PublicKey)
	if !ok {
		return "", status.Newf(status.WrongKey, "connect", "", "the other end's key is not an ed25519 key")
	}
	return FingerprintOf(key), nil
}

// Explain turns what a client sees when it connects into an error with a code:
// a server that refuses its key (in TLS 1.3 an alert at the first read after the
// handshake) is status.WrongKey, a peer that does not speak TLS status.BadFrame.
// Other errors, and nil, stay as they are.
func Explain(err error) error {
	var op *net.OpError
	var record tls.RecordHeaderError
	switch {
	case errors.As(err, &op) && op.Op == "remote error" && refusal(op.Err):
		return status.Newf(status.WrongKey, "connect", "", "the server does not admit this client's key (%w)", err)
	case errors.As(err, &record):
		return status.Newf(status.BadFrame, "connect", "", "the other end does not speak TLS (%w)", err)
	}
	return err
}

// refusal recognises the alerts by which a server refuses a client's certificate.
// crypto/tls does not export the type of an alert received; AlertError has the
// same texts.
func refusal(alert error) bool {
	const (
		badCertificate         = 42
		unsupportedCertificate = 43
		certificateUnknown     = 46
		accessDenied           = 49
		certificateRequired    = 116
	)
	for _, a := range []tls.AlertError{badCertificate, unsupportedCertificate, certificateUnknown, accessDenied, certificateRequired} {
		if alert.Error() == a.Error() {
			return true
		}
	}
	return false
}

func newKey() (ed25519.PrivateKey, error) {
	_, key, err := ed25519.GenerateKey(rand.Reader)
	return key, err
}

// certificate wraps a key for TLS. Nothing in it counts but the key: whoever
// checks it compares fingerprints, so that the clocks of the two ends do not matter.
func certificate(key ed25519.PrivateKey) (tls.Certificate, error) {
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1),
		Subject:      pkix.Name{CommonName: "cage"},
		NotBefore:    time.Date(2000, 1, 1, 0, 0, 0, 0, time.UTC),
		NotAfter:     time.Date(9999, 12, 31, 23, 59, 59, 0, time.UTC),
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		return tls.Certificate{}, err
	}
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}, nil
}

func fingerprintOfPrivate(key ed25519.PrivateKey) Fingerprint {
	return FingerprintOf(key.Public().(ed25519.PublicKey))
}

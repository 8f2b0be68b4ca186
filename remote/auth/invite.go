package auth

import (
	"crypto/rand"
	"crypto/sha256"
	"crypto/subtle"
	"errors"
	"io/fs"
	"path/filepath"
	"regexp"
	"slices"
	"time"

	"cagefs.dev/cage/remote/status"
)

// An invitation is made (Invite), and ends in one of three ways: a client joins
// with its secret, it expires, or it is withdrawn (Revoke, or a new invitation
// of the same name). The state directory has a hash of the secret, never the secret.
//
// Joining replaces two files, first the list of clients, then that of
// invitations. The client's entry names its invitation, so whatever a crash
// leaves is whole: before the first replacement the invitation is as it was,
// after it the client is admitted, and an invitation that a client's entry
// names is used, for all but that client, also where it still stands in the list.

// Invitation is one that is open, or expired not long ago.
type Invitation struct {
	Client  ClientKey `json:"client"` // what the server will admit, but for the fingerprint
	Hash    []byte    `json:"hash"`   // SHA-256 of the secret
	Made    time.Time `json:"made"`
	Expires time.Time `json:"expires"`
}

type invitationList struct {
	Schema      int          `json:"schema"`
	Invitations []Invitation `json:"invitations"`
}

const (
	maxInvitations = 1024
	maxClientName  = 64
	keepExpired    = 7 * 24 * time.Hour // so that who comes late is told why
)

var clientName = regexp.MustCompile(`^[A-Za-z0-9_][A-Za-z0-9._@-]*$`)

// Invite opens an invitation for a client (Name and what it may do; the rest is
// ignored) until valid from now, and returns the secret. It takes the place of
// an open invitation of the same name. Errors: status.Usage (no such name
// possible), Conflict (the name is that of a user of this machine), NoSpace (too
// many invitations).
func (s *ServerState) Invite(c ClientKey, now time.Time, valid time.Duration) (secret []byte, err error) {
	if len(c.Name) > maxClientName || !clientName.MatchString(c.Name) {
		return nil, status.Newf(status.Usage, "invite", c.Name, "a name consists of letters, digits and . _ @ -, does not start with . @ or -, and has at most %d of them", maxClientName)
	}
	secret = make([]byte, secretSize)
	rand.Read(secret)
	err = s.locked(func() error {
		clients, err := s.list()
		if err != nil {
			return err
		}
		if slices.ContainsFunc(clients, func(o ClientKey) bool { return o.Name == c.Name && o.LocalUID != nil }) {
			return status.Newf(status.Conflict, "invite", c.Name, "a user of this machine has that name")
		}
		list, err := s.Invitations()
		if err != nil {
			return err
		}
		list = slices.DeleteFunc(list, func(i Invitation) bool {
			return i.Client.Name == c.Name || now.Sub(i.Expires) > keepExpired
		})
		if len(list) >= maxInvitations {
			return status.Newf(status.NoSpace, "invite", c.Name, "there are %d invitations already; withdraw some with revoke", len(list))
		}
		c.Fingerprint, c.LocalUID, c.Invitation, c.Joined = "", nil, nil, time.Time{}
		return s.writeInvitations(append(list, Invitation{Client: c, Hash: hashOf(secret), Made: now, Expires: now.Add(valid)}))
	})
	return secret, err
}

func hashOf(secret []byte) []byte {
	sum := sha256.Sum256(secret)
	return sum[:]
}

// Invitations lists the invitations, with those that expired in the last week.
func (s *ServerState) Invitations() ([]Invitation, error) {
	data, _, err := readPrivate(s.dir, invitationsFile)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	var l invitationList
	if err := decodeJSON(data, &l, &l.Schema); err != nil {
		return nil, status.Wrap(err, "open", filepath.Join(s.dir.Name(), invitationsFile))
	}
	return l.Invitations, nil
}

// OpenInvitations lists those with which a client can still join.
func (s *ServerState) OpenInvitations(now time.Time) ([]Invitation, error) {
	list, err := s.Invitations()
	if err != nil {
		return nil, err
	}
	clients, err := s.list()
	return slices.DeleteFunc(list, func(i Invitation) bool {
		return now.After(i.Expires) || slices.ContainsFunc(clients, func(c ClientKey) bool { return slices.Equal(c.Invitation, i.Hash) })
	}), err
}

func (s *ServerState) writeInvitations(list []Invitation) error {
	return s.writeJSON(invitationsFile, invitationList{Schema: schema, Invitations: list})
}

// Join admits the client with a key whose secret is that of an open invitation,
// and ends the invitation. A client of the same name is not admitted any more:
// the new one takes its place. The same key may join with the same secret again,
// as one does that lost the answer. Of several keys exactly one joins.
// Errors: status.WrongKey with the reason, else those of the files.
func (s *ServerState) Join(secret []byte, key Fingerprint, now time.Time) (c ClientKey, err error) {
	hash := hashOf(secret)
	err = s.locked(func() error {
		clients, err := s.list()
		if err != nil {
			return err
		}
		list, err := s.Invitations()
		if err != nil {
			return err
		}
		used := slices.IndexFunc(clients, func(o ClientKey) bool { return subtle.ConstantTimeCompare(o.Invitation, hash) == 1 })
		open := slices.IndexFunc(list, func(i Invitation) bool { return subtle.ConstantTimeCompare(i.Hash, hash) == 1 })
		switch {
		case used >= 0 && clients[used].Fingerprint == key:
			c = clients[used]
		case used >= 0:
			return status.Newf(status.WrongKey, "join", "", "the code was used already: ask for a new one")
		case open < 0:
			return status.Newf(status.WrongKey, "join", "", "the server does not know the code: it was used, withdrawn or replaced by a newer one")
		case now.After(list[open].Expires):
			return status.Newf(status.WrongKey, "join", "", "the code expired at %s: ask for a new one", list[open].Expires.Format(time.RFC3339))
		default:
			c = list[open].Client
			c.Fingerprint, c.Invitation, c.Joined = key, hash, now
			clients = slices.DeleteFunc(slices.Clone(clients), func(o ClientKey) bool {
				return o.Name == c.Name || o.Fingerprint == key
			})
			if err := s.writeClients(append(clients, c)); err != nil {
				return err
			}
		}
		if open < 0 {
			return nil
		}
		return s.writeInvitations(slices.Delete(list, open, open+1))
	})
	return c, err
}

// Revoke takes the clients with a name or fingerprint off the list, and
// withdraws the invitations of their names, and returns both. Servers that run
// with this state see it at their next handshake. Error: status.NotFound if there
// is neither.
func (s *ServerState) Revoke(who string) (gone []ClientKey, withdrawn []Invitation, err error) {
	err = s.locked(func() error {
		clients, err := s.list()
		if err != nil {
			return err
		}
		list, err := s.Invitations()
		if err != nil {
			return err
		}
		names := map[string]bool{who: true}
		left := slices.DeleteFunc(slices.Clone(clients), func(c ClientKey) bool {
			if c.Name != who && string(c.Fingerprint) != who {
				return false
			}
			gone, names[c.Name] = append(gone, c), true
			return true
		})
		open := slices.DeleteFunc(list, func(i Invitation) bool {
			if !names[i.Client.Name] {
				return false
			}
			withdrawn = append(withdrawn, i)
			return true
		})
		if len(gone)+len(withdrawn) == 0 {
			return status.Newf(status.NotFound, "revoke", who, "no client and no invitation of that name")
		}
		if len(withdrawn) > 0 {
			if err := s.writeInvitations(open); err != nil {
				return err
			}
		}
		if len(gone) == 0 {
			return nil
		}
		return s.writeClients(left)
	})
	return gone, withdrawn, err
}

type seenList struct {
	Schema int                       `json:"schema"`
	Seen   map[Fingerprint]time.Time `json:"seen"`
}

// Seen tells when clients were last connected, as far as it was noted.
func (s *ServerState) Seen() (map[Fingerprint]time.Time, error) {
	data, _, err := readPrivate(s.dir, seenFile)
	if errors.Is(err, fs.ErrNotExist) {
		return map[Fingerprint]time.Time{}, nil
	}
	if err != nil {
		return nil, err
	}
	l := seenList{}
	if err := decodeJSON(data, &l, &l.Schema); err != nil {
		return nil, status.Wrap(err, "open", filepath.Join(s.dir.Name(), seenFile))
	}
	return l.Seen, nil
}

// NoteSeen notes that clients were connected at a time, and forgets those that
// are not admitted any more.
func (s *ServerState) NoteSeen(who []Fingerprint, at time.Time) error {
	return s.locked(func() error {
		clients, err := s.list()
		if err != nil {
			return err
		}
		old, err := s.Seen()
		if err != nil {
			return err
		}
		seen := make(map[Fingerprint]time.Time, len(clients))
		for _, c := range clients {
			if t, ok := old[c.Fingerprint]; ok {
				seen[c.Fingerprint] = t
			}
			if slices.Contains(who, c.Fingerprint) {
				seen[c.Fingerprint] = at
			}
		}
		return s.writeJSON(seenFile, seenList{Schema: schema, Seen: seen})
	})
}

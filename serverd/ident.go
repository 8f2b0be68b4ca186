package serverd

import (
	"os"
	"os/user"
	"strconv"

	"cagefs.dev/cage/remote/auth"
	"cagefs.dev/cage/remote/proto"
	"cagefs.dev/cage/remote/status"
)

// nobody is who acts for those that nothing better is known of.
const nobody = 65534

// identity says on whose behalf the requests of a connection are made. It is
// found once per connection, as groups are at a login, and is immutable.
type identity struct {
	trusted bool // the identities of requests count as they are
	who     proto.Ident
}

// accounts looks users of this machine up. Tests have their own.
type accounts interface {
	byName(name string) (uid, gid uint32, groups []uint32, err error)
	byUID(uid uint32) (gid uint32, groups []uint32, err error)
}

// identify finds out as whom a client acts:
//
//	TrustIDs           each request's own identity counts
//	LocalUID           that user of this machine, with its groups; a uid without
//	                   an account has no group but nobody's
//	User               that user of this machine
//	neither            nobody
//
// Root is never reached but by TrustIDs: another client that would act as uid 0
// acts as nobody.
func identify(k auth.ClientKey, db accounts) (identity, error) {
	if k.TrustIDs {
		return identity{trusted: true}, nil
	}
	who := proto.Ident{UID: nobody, GID: nobody}
	switch {
	case k.LocalUID != nil:
		who.UID = *k.LocalUID
		if gid, groups, err := db.byUID(who.UID); err == nil {
			who.GID, who.Groups = gid, groups
		}
	case k.User != "":
		uid, gid, groups, err := db.byName(k.User)
		if err != nil {
			return identity{}, status.Newf(status.WrongKey, "client", k.Name, "acts as user %q, whom this server does not know", k.User)
		}
		who = proto.Ident{UID: uid, GID: gid, Groups: groups}
	}
	if who.UID == 0 {
		who = proto.Ident{UID: nobody, GID: nobody}
	}
	if len(who.Groups) > proto.MaxGroups {
		who.Groups = who.Groups[:proto.MaxGroups]
	}
	return identity{who: who}, nil
}

// of turns the identity that a request claims into the one that counts. Process
// and command are only told to the journal's readers, so they are taken over.
func (id *identity) of(claimed proto.Ident) proto.Ident {
	if id.trusted {
		return claimed
	}
	who := id.who
	who.PID, who.PGID, who.Comm = claimed.PID, claimed.PGID, claimed.Comm
	return who
}

// privileged reports whether an identity may do what concerns an export as a
// whole: roll back, see everybody's history, verify. That is root, and the user
// as whom the server itself runs, for the files are his anyway.
func privileged(who *proto.Ident) bool {
	return who.UID == 0 || int(who.UID) == os.Geteuid()
}

// mayService reports whether a connection may ask for services whose requests
// carry no identity.
func (id *identity) mayService() bool { return id.trusted || privileged(&id.who) }

// systemAccounts is the machine's own user database.
type systemAccounts struct{}

func (systemAccounts) byName(name string) (uid, gid uint32, groups []uint32, err error) {
	u, err := user.Lookup(name)
	if err != nil {
		return 0, 0, nil, err
	}
	uid, err = parseID(u.Uid)
	if err != nil {
		return 0, 0, nil, err
	}
	gid, groups, err = groupsOf(u)
	return uid, gid, groups, err
}

func (systemAccounts) byUID(uid uint32) (gid uint32, groups []uint32, err error) {
	u, err := user.LookupId(strconv.FormatUint(uint64(uid), 10))
	if err != nil {
		return 0, nil, err
	}
	return groupsOf(u)
}

func groupsOf(u *user.User) (gid uint32, groups []uint32, err error) {
	if gid, err = parseID(u.Gid); err != nil {
		return 0, nil, err
	}
	ids, err := u.GroupIds()
	if err != nil {
		return 0, nil, err
	}
	for _, s := range ids {
		g, err := parseID(s)
		if err != nil {
			return 0, nil, err
		}
		groups = append(groups, g)
	}
	return gid, groups, nil
}

func parseID(s string) (uint32, error) {
	n, err := strconv.ParseUint(s, 10, 32)
	return uint32(n), err
}

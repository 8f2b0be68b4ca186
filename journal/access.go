package journal

import (
	"slices"

	"cagefs.dev/cage/journal/record"
	"cagefs.dev/cage/remote/proto"
	"cagefs.dev/cage/remote/status"
)

// Permission bits of Access, as in access(2).
const (
	MayRead  = 4
	MayWrite = 2
	MayExec  = 1
)

// modeAccess checks the permission bits of a file for an identity: nil or
// status.Access. Root may everything, but execute only what somebody may.
func modeAccess(a *proto.Attr, who *proto.Ident, want uint32) error {
	if who.UID == 0 {
		if want&MayExec != 0 && !a.IsDir() && a.Mode&0o111 == 0 {
			return status.Access
		}
		return nil
	}
	bits := a.Mode & 7
	switch {
	case who.UID == a.UID:
		bits = a.Mode >> 6 & 7
	case inGroup(who, a.GID):
		bits = a.Mode >> 3 & 7
	}
	return granted(bits, want)
}

// inGroup reports whether gid is the identity's group or one of its supplementary ones.
func inGroup(who *proto.Ident, gid uint32) bool {
	return who.GID == gid || slices.Contains(who.Groups, gid)
}

// mayRemove checks whether a name of victim may be taken out of dir: write and
// search permission, and in a sticky directory ownership of one of the two.
func (j *Journal) mayRemove(dir, victim *proto.Attr, who *proto.Ident) error {
	if err := j.mayLocked(dir, who, MayWrite|MayExec); err != nil {
		return err
	}
	if dir.Mode&proto.ModeSticky != 0 && who.UID != 0 && who.UID != dir.UID && who.UID != victim.UID {
		return status.NotOwner
	}
	return nil
}

// mayLink is what Linux calls fs.protected_hardlinks: somebody gives further names to
// files that are his, or that he may read and write and that are no more than
// files. A trusted client's kernel has checked that. A link keeps what its owner
// removes, and leads into it around the directories that were in the way.
func (j *Journal) mayLink(a *proto.Attr, s *Submission) error {
	who := &s.Ident
	if s.Trusted || who.UID == 0 || who.UID == a.UID {
		return nil
	}
	const setgidExec = proto.ModeSetgid | 0o010
	if !a.IsRegular() || a.Mode&proto.ModeSetuid != 0 || a.Mode&setgidExec == setgidExec {
		return status.NotOwner
	}
	if j.mayLocked(a, who, MayRead|MayWrite) != nil {
		return status.NotOwner
	}
	return nil
}

// mayPrivilege checks a change of a file's mode or owner for setuid and setgid bits
// that are new: they make whoever runs it its owner or group, and nobody gives that
// away for the users of the server whose word on who they are does not count.
// Of what is made old has no bits. Error: status.NotOwner.
func mayPrivilege(s *Submission, old, upd *record.Attrs) error {
	if s.Trusted || s.Ident.UID == 0 {
		return nil
	}
	had := privileges(old.Mode)
	if old.UID != upd.UID {
		had &^= proto.ModeSetuid
	}
	if old.GID != upd.GID {
		had &^= proto.ModeSetgid
	}
	if privileges(upd.Mode)&^had != 0 {
		return status.NotOwner
	}
	return nil
}

// privileges are the bits of a mode with which a file runs as its owner or group.
// Without execution by the group setgid is a lock, on directories an inheritance.
func privileges(mode uint32) (bits uint32) {
	if mode&proto.ModeType == proto.ModeDir {
		return 0
	}
	if mode&0o010 != 0 {
		bits = mode & proto.ModeSetgid
	}
	return bits | mode&proto.ModeSetuid
}

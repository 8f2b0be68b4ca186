package journal

import (
	"cagefs.dev/cage/remote/proto"
	"cagefs.dev/cage/remote/status"
)

// A file without a name, open(2) with O_TMPFILE, is in the grave of the record
// that made it. Its first name brings it out of there, so that it is as
// a file that was restored: its link count is right, and undoing the link puts
// it back. Without a name it goes with the history, unless somebody holds it.

// planTmpfile checks where a nameless file may be made. The directory itself
// does not change.
func (j *Journal) planTmpfile(op *proto.Make) (*parent, error) {
	if op.Mode&proto.ModeType != proto.ModeRegular {
		return nil, status.Invalid
	}
	return j.dirLocked(op.Dir)
}

// nameless reports whether a file never had a name, so that it may still be
// given one; a file that was removed may not. Where history does not go back to
// the record that put it into its grave nobody can tell, and it may.
func (j *Journal) nameless(n *node) bool {
	if len(n.names) > 0 || len(n.graves) != 1 || n.typ != proto.ModeRegular {
		return false
	}
	return j.hist.made(n.id) == n.graves[0] || n.graves[0] < j.oldest()
}

// holdNameless holds the file that a successful Make without a name made, before
// anybody can prune it.
func (j *Journal) holdNameless(s *Submission, id proto.FileID) {
	if op, ok := s.Op.(*proto.Make); ok && op.Name == "" {
		_ = j.hold(id) // it fails only for a file that is gone
	}
}

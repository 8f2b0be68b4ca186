package fusefs

import (
	"context"

	"github.com/hanwen/go-fuse/v2/fuse"

	"cagefs.dev/cage/remote/proto"
)

// A server that does not answer must hold up nobody who merely is in a directory:
// a shell that starts, a prompt, pwd. So the attributes of directories are
// remembered, and given once the server has been silent for patience, as long as they are true for sure:
// while the lease lasts under which they came, and no change of ours concerns the directory.

// memo is what is remembered of a directory.
type memo struct {
	attr   proto.Attr
	tenure uint64 // of the directory's lease
	own    uint64 // inode.names: changes of ours and recalls
	moves  uint64 // fileSystem.moves
}

// mark notes that a change of ours begins or ends. Directories whose names it changes are
// marked by changeNames; here are those of which it may alter other attributes.
func (s *fileSystem) mark(op proto.Op) {
	s.changes.Add(1)
	s.forgetFor(op)
	id := proto.FileID(0)
	switch op := op.(type) {
	case *proto.SetAttr:
		id = op.ID
	case *proto.SetXattr:
		id = op.ID
	case *proto.RemoveXattr:
		id = op.ID
	case *proto.Remove:
		if op.IsDir {
			s.moves.Add(1)
		}
	case *proto.Rename:
		s.moves.Add(1)
	}
	if ino := s.inodes.known(id); ino != nil && ino.isDir() {
		ino.names.Add(1)
	}
}

// memorize remembers attributes of an answer. own and moves are from before it was asked for.
func (s *fileSystem) memorize(ino *inode, a *proto.Attr, own, moves uint64) {
	if !s.leasing || !a.IsDir() || a.Lease.Mode == proto.NoLease {
		return
	}
	n := s.tenure(ino)
	ino.mu.Lock()
	defer ino.mu.Unlock()
	ino.memo = &memo{*a, n, own, moves}
}

// memorized is what is remembered of a directory, if it still is true for sure.
func (s *fileSystem) memorized(ino *inode) (proto.Attr, bool) {
	ino.mu.Lock()
	m := ino.memo
	ino.mu.Unlock()
	if m == nil || m.tenure == 0 || m.tenure != s.tenure(ino) || m.own != ino.names.Load() || m.moves != s.moves.Load() {
		return proto.Attr{}, false
	}
	return m.attr, true
}

// dirAttr asks for the attributes of a directory, or gives what is remembered of it.
func (s *fileSystem) dirAttr(ctx context.Context, h *fuse.InHeader, ino *inode) (proto.Attr, error) {
	return orKnown(ctx, s, func() (proto.Attr, bool) {
		if a, ok := s.memorized(ino); ok {
			return a, true
		}
		return s.knownAttr(ino.id)
	}, func(ctx context.Context) (proto.Attr, error) { return s.askDir(ctx, h, ino) })
}

func (s *fileSystem) askDir(ctx context.Context, h *fuse.InHeader, ino *inode) (proto.Attr, error) {
	own, moves, r := ino.names.Load(), s.moves.Load(), s.remembering()
	a, err := s.session.GetAttr(ctx, s.header(h), ino.id)
	if err == nil {
		s.inodes.heard(ino, &a)
		s.memorize(ino, &a, own, moves)
		s.learnAttr(&a, r)
	}
	return a, err
}

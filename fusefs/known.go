package fusefs

import (
	"context"

	"cagefs.dev/cage/remote/lockset"
	"cagefs.dev/cage/remote/proto"
	"cagefs.dev/cage/remote/status"
	"cagefs.dev/cage/remote/wire"
)

// With the option stale, what is read while the server is silent is answered
// from memory: as long as the lease lasts because it is true, after that because the
// user wants it so. The kernel's timeouts end with the lease all the same, so that it asks.

// orKnown asks the server, or gives what is known if that is silent. What the server says after a stale time
// is given when what was known is forgotten: the kernel would take the new size of a file and keep old pages.
func orKnown[T any](ctx context.Context, s *fileSystem, known func() (T, bool), ask func(context.Context) (T, error)) (T, error) {
	if v, ok := known(); ok {
		if s.session.Stale() || s.session.Quiet(patience) {
			return v, nil
		}
		brief, cancel := context.WithTimeout(ctx, patience)
		a, err := ask(brief)
		cancel()
		if err == nil || !silence(err) || ctx.Err() != nil {
			s.session.AwaitSettled(ctx)
			return a, err
		}
		if v, ok := known(); ok {
			return v, nil
		}
	}
	v, err := ask(ctx)
	s.session.AwaitSettled(ctx)
	return v, err
}

// recall is what is remembered of a file, if it may be shown. look reports whether it has found that.
func recall[T any](s *fileSystem, id proto.FileID, look func(*recollection) (T, bool)) (v T, ok bool) {
	tenure := s.memory.recall(id, func(r *recollection) { v, ok = look(r) })
	if !ok || tenure == 0 {
		return v, false
	}
	now, _ := s.session.Tenure(id)
	return v, now == tenure || s.session.Stale()
}

// remembering is what has to be known before something is asked that is then remembered.
type remembering struct {
	since   uint64
	applied proto.Seq
}

func (s *fileSystem) remembering() remembering {
	return remembering{s.memory.since(), s.session.Applied()}
}

// learn remembers what an answer tells of a file whose lease the session has.
func (s *fileSystem) learn(id proto.FileID, r remembering, add func(*recollection)) {
	if s.memory != nil {
		n, _ := s.session.Tenure(id)
		s.memory.learn(id, n, r.since, add)
	}
}

// learnAttr remembers attributes.
func (s *fileSystem) learnAttr(a *proto.Attr, r remembering) {
	if a.Lease.Mode != proto.NoLease {
		s.learn(a.ID, r, func(m *recollection) { m.attr, m.applied = *a, r.applied })
	}
}

// learnName remembers that a name is a file's, or, with id 0, nobody's. tenure is the directory's from before it was asked for.
func (s *fileSystem) learnName(dir *inode, name string, id proto.FileID, tenure uint64, r remembering) {
	if s.tenure(dir) == tenure {
		s.learn(dir.id, r, func(m *recollection) { m.name(name, id) })
	}
}

// told is attributes, in which are all operations of ours up to a number.
type told struct {
	attr proto.Attr
	upto proto.Seq
}

// knownState is what is remembered of a file's attributes, if writes of ours have not overtaken it.
func (s *fileSystem) knownState(id proto.FileID) (told, bool) {
	k, ok := recall(s, id, func(r *recollection) (told, bool) { return told{r.attr, r.applied}, r.attr.ID != 0 })
	if !ok {
		return told{}, false
	}
	if ino := s.inodes.known(id); ino != nil && (ino.written() > k.upto || ino.changed.Load() > uint64(k.attr.Change)) {
		return told{}, false
	}
	if n, _ := s.session.Tenure(id); n == 0 {
		k.attr.Lease = proto.Lease{}
	}
	return k, true
}

// knownAttr is its attributes alone.
func (s *fileSystem) knownAttr(id proto.FileID) (proto.Attr, bool) {
	k, ok := s.knownState(id)
	return k.attr, ok
}

// knownName is what is remembered of a name: attributes without an ID if there is none.
func (s *fileSystem) knownName(dir proto.FileID, name string) (proto.Attr, bool) {
	id, ok := recall(s, dir, func(r *recollection) (proto.FileID, bool) { return r.find(name) })
	if !ok || id == 0 {
		return proto.Attr{}, ok
	}
	return s.knownAttr(id)
}

// opening is an open of a file.
type opening struct {
	told
	held bool // the session has it open
	mode lockset.Mode
}

// modeOf is what others may do with a file that is opened here.
func (s *fileSystem) modeOf(flags uint32) lockset.Mode {
	if s.exclusive != lockset.NoMode && flags&wire.OpenWrite == 0 {
		return lockset.ReadShared
	}
	return s.exclusive
}

// open opens a file at the session, or, if it may, on the strength of an
// earlier open by the same user. That the server does not know of, and
// does not keep the file if it is removed.
func (s *fileSystem) open(ctx context.Context, h wire.ReqHeader, id proto.FileID, flags uint32, mayRecall bool) (opening, error) {
	mode := s.modeOf(flags)
	known := func() (opening, bool) {
		may, ok := recall(s, id, func(r *recollection) (bool, bool) { return r.allows(h.Ident, flags), true })
		if !ok || !may {
			return opening{}, false
		}
		k, ok := s.knownState(id)
		return opening{k, false, lockset.NoMode}, ok
	}
	ask := func(ctx context.Context) (opening, error) {
		r := s.remembering()
		a, err := s.session.Open(ctx, h, id, flags, mode)
		if err == nil {
			s.learnAttr(&a, r)
			s.learn(id, r, func(m *recollection) { m.allow(h.Ident, flags) })
		}
		return opening{told{a, r.applied}, true, mode}, err
	}
	if !mayRecall || mode != lockset.NoMode {
		return ask(ctx)
	}
	return orKnown(ctx, s, known, ask)
}

// learnListing remembers a directory that was listed from the beginning to the end.
func (s *fileSystem) learnListing(l *listing, b *batch) {
	if s.memory == nil || b.known {
		return
	}
	switch first := len(l.seen) == 0; {
	case b.from == 0:
		l.seen, l.asked, l.tenure = nil, b.asked, b.tenure
	case first || l.seen[len(l.seen)-1].Cookie != b.from || l.tenure != b.tenure || len(l.seen) > s.memory.most:
		l.seen = nil
		return
	}
	for _, e := range b.entries {
		s.learnAttr(&e.Attr, b.asked)
		if e.Attr.ID == 0 {
			l.seen = nil
			return
		}
		e.Attr = proto.Attr{ID: e.Attr.ID, Mode: e.Attr.Mode & proto.ModeType}
		l.seen = append(l.seen, e)
	}
	if b.eof && s.tenure(l.ino) == l.tenure {
		s.learn(l.ino.id, l.asked, func(m *recollection) {
			m.list(l.seen, b.parent)
			m.allow(l.head.Ident, wire.OpenRead)
		})
		l.seen = nil
	}
}

// knownListing is what is remembered of a listing after a cookie, to be shown to who was shown it before.
func (s *fileSystem) knownListing(l *listing, cookie uint64) (*batch, bool) {
	type found struct {
		entries []proto.DirEntry
		parent  proto.FileID
	}
	f, ok := recall(s, l.ino.id, func(r *recollection) (found, bool) {
		return found{r.whole, r.parent}, r.whole != nil && r.allows(l.head.Ident, wire.OpenRead)
	})
	if !ok {
		return nil, false
	}
	b := s.newBatch(l, cookie)
	b.known, b.eof, b.parent, b.entries = true, true, f.parent, f.entries
	if cookie != 0 {
		whole := batch{entries: f.entries}
		i := whole.after(cookie)
		if i < 0 {
			return nil, false
		}
		b.entries = f.entries[i:]
	}
	b.entries = append([]proto.DirEntry(nil), b.entries...)
	for i := range b.entries {
		if a, ok := s.knownAttr(b.entries[i].Attr.ID); ok {
			b.entries[i].Attr = a
		}
	}
	return b, true
}

// xattr asks for an extended attribute. One that nobody has asked for before fails at once when
// nothing but memory is left: programs that list a directory ask for some of each file.
func (s *fileSystem) xattr(ctx context.Context, h wire.ReqHeader, id proto.FileID, name string) ([]byte, error) {
	x, err := orKnown(ctx, s, func() (xattr, bool) {
		return recall(s, id, func(r *recollection) (xattr, bool) { x, ok := r.xattrs[name]; return x, ok })
	}, func(ctx context.Context) (xattr, error) {
		if s.session.Stale() {
			return xattr{}, status.New(status.Timeout, "getxattr", name)
		}
		r := s.remembering()
		tenure, _ := s.session.Tenure(id)
		value, err := s.session.GetXattr(ctx, h, id, name)
		none := status.Of(err) == status.NoAttr
		if now, _ := s.session.Tenure(id); now == tenure && (err == nil || none) {
			s.learn(id, r, func(m *recollection) { m.mark(name, xattr{value, none}) })
		}
		return xattr{value, none}, err
	})
	if err == nil && x.none {
		err = status.New(status.NoAttr, "getxattr", name)
	}
	return x.value, err
}

// forgetFor forgets what a change of ours alters, at its beginning and at its end.
func (s *fileSystem) forgetFor(op proto.Op) {
	switch op := op.(type) {
	case *proto.Make:
		s.memory.forget(op.Dir)
	case *proto.Link:
		s.memory.forget(op.Dir, op.ID)
	case *proto.Remove:
		s.memory.forgetName(op.Dir, op.Name)
	case *proto.Rename:
		s.memory.forgetName(op.Dir, op.Name)
		s.memory.forgetName(op.NewDir, op.NewName)
	case *proto.SetAttr:
		s.memory.forget(op.ID)
	case *proto.SetXattr:
		s.memory.forget(op.ID)
	case *proto.RemoveXattr:
		s.memory.forget(op.ID)
	case *proto.Allocate:
		s.memory.forget(op.ID)
	}
}

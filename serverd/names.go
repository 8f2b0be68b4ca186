package serverd

import (
	"strings"

	"cagefs.dev/cage/journal"
	"cagefs.dev/cage/remote/proto"
	"cagefs.dev/cage/remote/status"
	"cagefs.dev/cage/remote/wire"
)

// Requests about names and attributes.

func lookup(c *call, m *wire.LookupReq) (wire.Message, error) {
	v, err := c.view(m.At)
	if err != nil {
		return nil, err
	}
	who := c.who(m.Ident)
	if err := c.look(m.At, m.Dir); err != nil {
		return nil, err
	}
	dir, err := c.at(v, m.At, m.Dir, who)
	if err != nil {
		return nil, err
	}
	for range readTries {
		a, err := c.step(v, m.At, &dir, m.Name, who)
		if err != nil {
			return nil, err
		}
		l, err := c.lease(m.At, a.ID, proto.ReadLease)
		if err != nil {
			return nil, err
		}
		if m.At != 0 {
			return &wire.AttrRep{Attr: a}, nil
		}
		again, err := c.step(v, m.At, &dir, m.Name, who) // after the lease
		if err != nil {
			return nil, err
		}
		if again.ID == a.ID {
			again.Lease = l
			return &wire.AttrRep{Attr: again}, nil
		}
	}
	return nil, status.Newf(status.Again, "lookup", m.Name, "the name is being changed again and again")
}

// step looks a name up in a directory that the identity may search.
func (c *call) step(v view, at proto.LSN, dir *proto.Attr, name string, who *proto.Ident) (proto.Attr, error) {
	if !dir.IsDir() {
		return proto.Attr{}, status.NotDir
	}
	if err := wire.CheckName(name); err != nil {
		return proto.Attr{}, err
	}
	if err := c.may(v, at, dir, who, journal.MayExec); err != nil {
		return proto.Attr{}, err
	}
	return v.Lookup(dir.ID, name)
}

// resolve walks a path from the root. Symlinks are not followed: one as the
// last component is the answer, another is status.Loop.
func resolve(c *call, m *wire.ResolveReq) (wire.Message, error) {
	if err := wire.CheckPath(m.Path); err != nil {
		return nil, err
	}
	v, err := c.view(m.At)
	if err != nil {
		return nil, err
	}
	a, err := v.Attr(proto.RootID)
	if err != nil {
		return nil, err
	}
	who := c.who(m.Ident)
	for name := range strings.SplitSeq(m.Path, "/") {
		if name == "" || name == "." {
			continue
		}
		if a.Type() == proto.ModeSymlink {
			return nil, status.New(status.Loop, "resolve", m.Path)
		}
		if err := c.ctx.Err(); err != nil {
			return nil, err
		}
		if err := c.look(m.At, a.ID); err != nil {
			return nil, err
		}
		if a, err = c.step(v, m.At, &a, name, who); err != nil {
			return nil, status.Wrap(err, "resolve", m.Path)
		}
	}
	if err := c.look(m.At, a.ID); err != nil {
		return nil, err
	}
	if m.At == 0 {
		if a, err = v.Attr(a.ID); err != nil {
			return nil, err
		}
	}
	return &wire.AttrRep{Attr: a}, nil
}

func getAttr(c *call, m *wire.IDReq) (wire.Message, error) {
	v, err := c.view(m.At)
	if err != nil {
		return nil, err
	}
	a, err := c.at(v, m.At, m.ID, c.who(m.Ident))
	if err == nil && m.At == 0 {
		a, err = c.leasedAttr(v, m.At, m.ID, proto.ReadLease)
	}
	if err != nil {
		return nil, err
	}
	return &wire.AttrRep{Attr: a}, nil
}

func readlink(c *call, m *wire.IDReq) (wire.Message, error) {
	v, err := c.view(m.At)
	if err != nil {
		return nil, err
	}
	if _, err := c.at(v, m.At, m.ID, c.who(m.Ident)); err != nil {
		return nil, err
	}
	target, err := v.Readlink(m.ID)
	if err != nil {
		return nil, err
	}
	return &wire.ReadlinkRep{Target: target}, nil
}

// readDir lists a part of a directory. Its change number is from before the
// listing, so that a change meanwhile makes the listing outdated, never current.
func readDir(c *call, m *wire.ReadDirReq) (wire.Message, error) {
	v, err := c.view(m.At)
	if err != nil {
		return nil, err
	}
	who := c.who(m.Ident)
	if err := c.look(m.At, m.ID); err != nil {
		return nil, err
	}
	changed := c.exp.Leases.changed()
	dir, err := c.at(v, m.At, m.ID, who)
	if err != nil {
		return nil, err
	}
	if !dir.IsDir() {
		return nil, status.NotDir
	}
	if c.sess.openFlags(m.ID)&wire.OpenRead == 0 || m.At != 0 {
		if err := c.may(v, m.At, &dir, who, journal.MayRead); err != nil {
			return nil, err
		}
	}
	plus := m.Plus && c.may(v, m.At, &dir, who, journal.MayExec) == nil
	limit := int(min(max(m.Max, 1), wire.MaxEntries))
	rep := &wire.ReadDirRep{Change: dir.Change, EOF: true}
	err = v.ReadDir(m.ID, m.Cookie, plus, func(e proto.DirEntry) bool {
		rep.Entries = append(rep.Entries, e)
		rep.EOF = len(rep.Entries) < limit // else that was perhaps the last one: the next part says so
		return rep.EOF
	})
	if err != nil {
		return nil, err
	}
	if plus {
		c.leaseEntries(v, m.At, rep.Entries, changed)
	}
	rep.Parent, err = parentOf(v, m.ID)
	return rep, err
}

// parentOf is the directory above one, 0 for the root and those that were removed.
func parentOf(v view, id proto.FileID) (proto.FileID, error) {
	var places []journal.Place
	var err error
	switch v := v.(type) {
	case *journal.Journal:
		places = v.Places(id)
	case *journal.Past:
		places, err = v.Places(id)
	}
	if len(places) == 0 {
		return 0, err
	}
	return places[0].Dir, err
}

func statFS(c *call, m *wire.IDReq) (wire.Message, error) {
	who := c.who(m.Ident)
	st, err := c.exp.Journal.StatFS(who.UID, who.GID)
	if err != nil {
		return nil, err
	}
	return &wire.StatFSRep{StatFS: st}, nil
}

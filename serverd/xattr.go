package serverd

import (
	"slices"
	"strings"

	"cagefs.dev/cage/remote/proto"
	"cagefs.dev/cage/remote/status"
	"cagefs.dev/cage/remote/wire"
)

// Requests about extended attributes, with Linux's rules (xattr(7)).

func getXattr(c *call, m *wire.XattrReq) (wire.Message, error) {
	v, err := c.view(m.At)
	if err != nil {
		return nil, err
	}
	who := c.who(m.Ident)
	a, err := c.at(v, m.At, m.ID, who)
	if err != nil {
		return nil, err
	}
	switch {
	case strings.HasPrefix(m.Name, "trusted."):
		if !c.maySeeTrusted(who) {
			return nil, status.NoAttr
		}
	case strings.HasPrefix(m.Name, "user."):
		if err := c.mayRead(v, m.At, &a, who); err != nil {
			return nil, err
		}
	}
	value, err := v.GetXattr(m.ID, m.Name)
	if err != nil {
		return nil, err
	}
	if len(value) > proto.MaxXattr {
		return nil, status.TooBig
	}
	return &wire.BytesRep{Value: value}, nil
}

func listXattr(c *call, m *wire.IDReq) (wire.Message, error) {
	v, err := c.view(m.At)
	if err != nil {
		return nil, err
	}
	who := c.who(m.Ident)
	if _, err := c.at(v, m.At, m.ID, who); err != nil {
		return nil, err
	}
	names, err := v.ListXattr(m.ID)
	if err != nil {
		return nil, err
	}
	if !c.maySeeTrusted(who) {
		names = slices.DeleteFunc(names, func(n string) bool { return strings.HasPrefix(n, "trusted.") })
	}
	return &wire.NamesRep{Names: names}, nil
}

// maySeeTrusted reports whether attributes of the kind trusted.* exist for somebody.
func (c *call) maySeeTrusted(who *proto.Ident) bool { return c.c.ident.trusted && who.UID == 0 }

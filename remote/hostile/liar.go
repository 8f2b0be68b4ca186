package hostile

import (
	"bufio"
	"fmt"
	"net"
	"sync/atomic"

	"cagefs.dev/cage/remote/proto"
	"cagefs.dev/cage/remote/status"
	"cagefs.dev/cage/remote/wire"
)

// Liar is a server that answers as it likes: with what could be, what cannot, not at
// all, or with what is no answer.
type Liar struct {
	Seed   uint64
	Honest bool // about the session and the root, so that a mount comes about

	Conns, Sent atomic.Uint64 // how many there were
}

// Serve is a connection after TLS; it returns when that has ended.
func (l *Liar) Serve(c net.Conn) {
	if _, err := wire.Welcome(c); err != nil {
		return
	}
	g := New(l.Seed, l.Conns.Add(1))
	br := bufio.NewReader(c)
	for {
		h, payload, err := wire.ReadFrame(br, wire.MaxFrame, nil)
		if err != nil {
			return
		}
		m, _ := wire.DecodeRequest(h.Op, payload)
		if _, err := c.Write(l.answer(g, h, m)); err != nil {
			return
		}
		l.Sent.Add(1)
	}
}

func (l *Liar) answer(g *Gen, h wire.Header, m wire.Message) []byte {
	switch {
	case h.Op == wire.OpHello && (l.Honest || g.IntN(4) > 0):
		rep := &wire.HelloRep{
			Version: wire.Version, Session: 1, DataPorts: uint16(g.Uint32N(1 << 16)), Trusted: true,
			Root: proto.Attr{ID: proto.RootID, Mode: proto.ModeDir | 0o777, Nlink: 2},
		}
		if req, ok := m.(*wire.HelloReq); ok && !l.Honest {
			rep.Session += proto.SessionID(g.Uint64N(2))
			rep.Resumed, rep.Applied = g.IntN(2) == 0, proto.Seq(g.Uint64N(3))
		} else if ok {
			rep.Resumed, rep.Applied = req.Session == 1, req.NextSeq-1
		}
		return wire.AppendFrame(nil, h.Reply(), rep)
	case h.Op == wire.OpAttach && l.Honest, h.Op == wire.OpPing && g.IntN(8) > 0:
		return wire.AppendFrame(nil, h.Reply(), &wire.Empty{})
	}
	if root, ok := m.(*wire.IDReq); l.Honest && (h.Op == wire.OpResolve || ok && h.Op == wire.OpGetAttr && root.ID == proto.RootID) {
		return wire.AppendFrame(nil, h.Reply(), &wire.AttrRep{Attr: proto.Attr{ID: proto.RootID, Mode: proto.ModeDir | 0o777, Nlink: 2}})
	}
	rep := g.Reply(h.Op)
	if g.IntN(3) > 0 {
		g.nearly(m, rep)
	}
	b := wire.AppendFrame(nil, h.Reply(), rep)
	switch g.IntN(100) {
	case 0:
		return g.Bend(b, true)
	case 1, 2, 3, 4, 5, 6:
		return g.Bend(b, false)
	case 7:
		h.ID += g.Uint64N(3)
		return wire.AppendFrame(nil, h.Reply(), &wire.Empty{})
	case 8, 9:
		return wire.AppendError(nil, h, &wire.ErrorRep{Code: status.Code(g.Uint32N(60)), Text: "\x1b[2J\n" + g.Name(), Object: g.Name()})
	case 10:
		return nil
	case 11:
		return g.Garbage()
	case 12:
		return append(g.pushes(300), b...)
	case 13:
		return append(wire.AppendFrame(nil, wire.Push(wire.OpDrain), &wire.Empty{}), b...)
	case 14:
		return append(b, b...)
	}
	return b
}

func (g *Gen) pushes(n int) (b []byte) {
	for range n {
		op, m := g.Push()
		b = wire.AppendFrame(b, wire.Push(op), m)
	}
	return b
}

// nearly makes of a reply to a request one that a client will go on with.
func (g *Gen) nearly(req, rep wire.Message) {
	var id proto.FileID
	switch m := req.(type) {
	case *wire.IDReq:
		id = m.ID
	case *wire.OpenReq:
		id = m.ID
	case *wire.ChangeReq:
		switch op := m.Op.(type) {
		case *proto.SetAttr:
			id = op.ID
		case *proto.Link:
			id = op.ID
		}
	}
	switch rep := rep.(type) {
	case *wire.AttrRep:
		g.file(&rep.Attr, id)
	case *wire.ChangeRep:
		g.file(&rep.Result.Attr, id)
		rep.Result.ID = rep.Result.Attr.ID
	case *wire.ReadDirRep:
		for i := range rep.Entries {
			e := &rep.Entries[i]
			e.Cookie = uint64(i + 1 + g.IntN(2))
			g.file(&e.Attr, 0)
			if g.IntN(20) > 0 {
				e.Name = fmt.Sprint("n", g.IntN(26))
			}
		}
	case *wire.ReadRep:
		if m, ok := req.(*wire.ReadReq); ok {
			n := min(int(m.Len), g.IntN(1+int(m.Len)))
			rep.Data = make([]byte, n)
			rep.Size = m.Off + uint64(n) + g.Uint64N(2)
		}
	}
}

// file makes attributes of a file that could be: its type is told by its number,
// most of the time.
func (g *Gen) file(a *proto.Attr, id proto.FileID) {
	if id == 0 {
		id = proto.FileID(2 + g.Uint64N(50))
	}
	*a = proto.Attr{ID: id, Mode: proto.ModeRegular | 0o777, Nlink: 1, Size: g.Uint64N(1 << 20), Change: proto.LSN(g.Uint64N(9))}
	k := uint64(id)
	if g.IntN(20) == 0 {
		k = g.Uint64()
	}
	switch {
	case id == proto.RootID, k%5 == 0:
		a.Mode = proto.ModeDir | 0o777
	case k%5 == 1:
		a.Mode = proto.ModeSymlink | 0o777
	case k%7 == 2:
		a.Mode = proto.ModeChar | 0o666 | proto.ModeSetuid
		a.Rdev = 1<<8 | 5
	case k%7 == 3:
		a.Mode = proto.ModeRegular | 0o6777
	}
}

package wire

import (
	"encoding/binary"

	"cagefs.dev/cage/remote/proto"
)

// Codecs of the words of proto, which several messages contain.

func (c *Cursor) fid() proto.FileID { return proto.FileID(c.uvarint()) }
func (c *Cursor) lsn() proto.LSN    { return proto.LSN(c.uvarint()) }
func (c *Cursor) seq() proto.Seq    { return proto.Seq(c.uvarint()) }
func (c *Cursor) time() proto.Time  { return proto.Time(c.varint()) }

func (c *Cursor) session() proto.SessionID { return proto.SessionID(c.fixed64()) }

func appendTime(b []byte, t proto.Time) []byte { return binary.AppendVarint(b, int64(t)) }

func appendGen(b []byte, g proto.Gen) []byte {
	return appendInt(appendInt(b, g.Boot), g.Counter)
}

func (c *Cursor) gen() proto.Gen { return proto.Gen{Boot: c.u32(), Counter: c.uvarint()} }

// appendIdent shortens what is over its limit: a command's name is for people,
// and with fewer groups somebody may do less, not more.
func appendIdent(b []byte, id *proto.Ident) []byte {
	b = appendInt(b, id.UID)
	b = appendInt(b, id.GID)
	b = appendList(b, id.Groups[:min(len(id.Groups), proto.MaxGroups)], appendInt[uint32])
	b = appendInt(b, id.PID)
	b = appendInt(b, id.PGID)
	return appendText(b, id.Comm, proto.MaxComm)
}

func (c *Cursor) ident() proto.Ident {
	return proto.Ident{
		UID:    c.u32(),
		GID:    c.u32(),
		Groups: list(c, c.count(proto.MaxGroups, 1), (*Cursor).u32),
		PID:    c.u32(),
		PGID:   c.u32(),
		Comm:   c.str(proto.MaxComm),
	}
}

func appendAttr(b []byte, a *proto.Attr) []byte {
	b = appendInt(b, a.ID)
	b = appendInt(b, a.Mode)
	b = appendInt(b, a.Nlink)
	b = appendInt(b, a.UID)
	b = appendInt(b, a.GID)
	b = appendInt(b, a.Rdev)
	b = appendInt(b, a.Size)
	b = appendInt(b, a.Blocks)
	b = appendTime(b, a.Atime)
	b = appendTime(b, a.Mtime)
	b = appendTime(b, a.Ctime)
	b = appendTime(b, a.Btime)
	b = appendInt(b, a.Change)
	return appendLease(b, a.Lease)
}

// attrLeast is the bytes that the smallest Attr takes.
const attrLeast = 16

func (c *Cursor) attr() proto.Attr {
	return proto.Attr{
		ID:     c.fid(),
		Mode:   c.u32(),
		Nlink:  c.u32(),
		UID:    c.u32(),
		GID:    c.u32(),
		Rdev:   c.u32(),
		Size:   c.uvarint(),
		Blocks: c.uvarint(),
		Atime:  c.time(),
		Mtime:  c.time(),
		Ctime:  c.time(),
		Btime:  c.time(),
		Change: c.lsn(),
		Lease:  c.lease(),
	}
}

func appendLease(b []byte, l proto.Lease) []byte {
	return appendInt(appendGen(b, l.Gen), uint8(l.Mode))
}

func (c *Cursor) lease() proto.Lease { return proto.Lease{Gen: c.gen(), Mode: c.leaseMode()} }

func (c *Cursor) leaseMode() proto.LeaseMode {
	return proto.LeaseMode(c.upTo(uint64(proto.WriteLease)))
}

func appendDirEntry(b []byte, e *proto.DirEntry) []byte {
	b = appendBytes(b, e.Name)
	b = appendInt(b, e.Cookie)
	return appendAttr(b, &e.Attr)
}

func (c *Cursor) dirEntry() proto.DirEntry {
	return proto.DirEntry{Name: c.str(proto.MaxName), Cookie: c.uvarint(), Attr: c.attr()}
}

func appendStatFS(b []byte, s *proto.StatFS) []byte {
	b = appendInt(b, s.BlockSize)
	b = appendInt(b, s.NameMax)
	b = appendInt(b, s.Blocks)
	b = appendInt(b, s.BlocksFree)
	b = appendInt(b, s.BlocksAvail)
	b = appendInt(b, s.Files)
	return appendInt(b, s.FilesFree)
}

func (c *Cursor) statFS() proto.StatFS {
	return proto.StatFS{
		BlockSize:   c.u32(),
		NameMax:     c.u32(),
		Blocks:      c.uvarint(),
		BlocksFree:  c.uvarint(),
		BlocksAvail: c.uvarint(),
		Files:       c.uvarint(),
		FilesFree:   c.uvarint(),
	}
}

func appendMoment(b []byte, m *proto.Moment) []byte {
	b = appendInt(b, uint8(m.Kind))
	b = appendInt(b, m.LSN)
	b = appendTime(b, m.Time)
	return appendBytes(b, m.Label)
}

func (c *Cursor) moment() proto.Moment {
	return proto.Moment{
		Kind:  proto.MomentKind(c.upTo(uint64(proto.MomentLabel))),
		LSN:   c.lsn(),
		Time:  c.time(),
		Label: c.str(proto.MaxLabel),
	}
}

func appendEntry(b []byte, e *proto.Entry) []byte {
	b = appendInt(b, e.LSN)
	b = appendTime(b, e.Time)
	b = appendText(b, e.Kind, MaxWord)
	b = appendInt(b, e.ID)
	b = appendText(b, e.Path, proto.MaxPath)
	b = appendText(b, e.NewPath, proto.MaxPath)
	b = appendText(b, e.Client, MaxWord)
	b = appendFixed64(b, e.Session)
	b = appendInt(b, e.UID)
	b = appendInt(b, e.GID)
	b = appendInt(b, e.PID)
	b = appendInt(b, e.PGID)
	b = appendText(b, e.Comm, proto.MaxComm)
	b = appendInt(b, e.Off)
	b = appendInt(b, e.Bytes)
	b = appendInt(b, e.Txn)
	b = appendInt(b, e.Records)
	b = appendText(b, e.Detail, MaxText)
	return appendInt(b, e.Undone)
}

// entryLeast is the bytes that the smallest Entry takes.
const entryLeast = 26

func (c *Cursor) entry() proto.Entry {
	return proto.Entry{
		LSN:     c.lsn(),
		Time:    c.time(),
		Kind:    c.str(MaxWord),
		ID:      c.fid(),
		Path:    c.str(proto.MaxPath),
		NewPath: c.str(proto.MaxPath),
		Client:  c.str(MaxWord),
		Session: c.session(),
		UID:     c.u32(),
		GID:     c.u32(),
		PID:     c.u32(),
		PGID:    c.u32(),
		Comm:    c.str(proto.MaxComm),
		Off:     c.uvarint(),
		Bytes:   c.uvarint(),
		Txn:     c.lsn(),
		Records: c.u32(),
		Detail:  c.str(MaxText),
		Undone:  c.lsn(),
	}
}

func appendStep(b []byte, s *proto.PlanStep) []byte {
	b = appendText(b, s.Action, MaxWord)
	b = appendText(b, s.Path, proto.MaxPath)
	b = appendText(b, s.From, proto.MaxPath)
	return appendText(b, s.Detail, MaxText)
}

// stepLeast is the bytes that the smallest PlanStep takes.
const stepLeast = 4

func (c *Cursor) step() proto.PlanStep {
	return proto.PlanStep{
		Action: c.str(MaxWord),
		Path:   c.str(proto.MaxPath),
		From:   c.str(proto.MaxPath),
		Detail: c.str(MaxText),
	}
}

func appendResult(b []byte, r *proto.Result) []byte {
	b = appendInt(b, r.LSN)
	b = appendInt(b, r.ID)
	b = appendAttr(b, &r.Attr)
	b = appendInt(b, r.N)
	b, n := appendCut(b, r.Plan, MaxList, appendStep)
	return appendInt(b, r.More+uint64(len(r.Plan)-n))
}

func (c *Cursor) result() proto.Result {
	return proto.Result{
		LSN:  c.lsn(),
		ID:   c.fid(),
		Attr: c.attr(),
		N:    c.uvarint(),
		Plan: list(c, c.cutCount(MaxList, stepLeast), (*Cursor).step),
		More: c.uvarint(),
	}
}

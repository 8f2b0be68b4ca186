package wire

import (
	"bytes"

	"cagefs.dev/cage/remote/proto"
)

// ChangeReq is an operation of the session's log. The session is the
// connection's. Its opcode is OpChange + Op.Kind(), and only the opcode says
// what Op is: Decode fills the empty operation that NewRequest of the Table put
// there. A Write's Data aliases the frame that it was decoded from.
type ChangeReq struct {
	Seq   proto.Seq
	Gen   proto.Gen
	Acked proto.Seq
	Ident proto.Ident
	Op    proto.Op
}

// Append implements Message.
func (m *ChangeReq) Append(b []byte) []byte { return append(m.appendHead(b), m.tail()...) }

func (m *ChangeReq) appendHead(b []byte) []byte {
	b = appendInt(b, m.Seq)
	b = appendGen(b, m.Gen)
	b = appendInt(b, m.Acked)
	b = appendIdent(b, &m.Ident)
	return appendOp(b, m.Op)
}

func (m *ChangeReq) tail() []byte {
	if w, ok := m.Op.(*proto.Write); ok {
		return w.Data
	}
	return nil
}

// Decode implements Message.
func (m *ChangeReq) Decode(c *Cursor) {
	m.Seq = c.seq()
	m.Gen = c.gen()
	m.Acked = c.seq()
	m.Ident = c.ident()
	c.op(m.Op)
}

// DecodeChange decodes the payload of a change's opcode: status.BadFrame if it
// is none, Unsupported if the opcode is not that of a change. A Write's Data
// aliases payload.
func DecodeChange(op Opcode, payload []byte) (*ChangeReq, error) {
	if Table[op].Change == 0 {
		return nil, unsupported(op)
	}
	m, err := DecodeRequest(op, payload)
	if err != nil {
		return nil, err
	}
	return m.(*ChangeReq), nil
}

// appendOp appends an operation without its kind and, of a Write, up to its data.
func appendOp(b []byte, op proto.Op) []byte {
	switch op := op.(type) {
	case *proto.Make:
		b = appendInt(b, op.Dir)
		b = appendBytes(b, op.Name)
		b = appendInt(b, op.Mode)
		b = appendInt(b, op.Umask)
		b = appendInt(b, op.Rdev)
		b = appendBytes(b, op.Target)
		b = appendInt(b, op.Propose)
	case *proto.Link:
		b = appendInt(b, op.ID)
		b = appendInt(b, op.Dir)
		b = appendBytes(b, op.Name)
	case *proto.Remove:
		b = appendInt(b, op.Dir)
		b = appendBytes(b, op.Name)
		b = appendFlag(b, op.IsDir)
	case *proto.Rename:
		b = appendInt(b, op.Dir)
		b = appendBytes(b, op.Name)
		b = appendInt(b, op.NewDir)
		b = appendBytes(b, op.NewName)
		b = appendInt(b, op.Flags)
	case *proto.SetAttr:
		b = appendInt(b, op.ID)
		b = appendInt(b, op.Mask)
		b = appendInt(b, op.Mode)
		b = appendInt(b, op.UID)
		b = appendInt(b, op.GID)
		b = appendInt(b, op.Size)
		b = appendTime(b, op.Atime)
		b = appendTime(b, op.Mtime)
	case *proto.SetXattr:
		b = appendInt(b, op.ID)
		b = appendBytes(b, op.Name)
		b = appendBytes(b, op.Value)
		b = appendInt(b, op.Flags)
	case *proto.RemoveXattr:
		b = appendInt(b, op.ID)
		b = appendBytes(b, op.Name)
	case *proto.Write:
		b = appendInt(b, op.ID)
		b = appendInt(b, op.Off)
		b = appendFlag(b, op.Append)
		b = appendFlag(b, op.Mapped)
		b = appendFlag(b, op.Lost)
		b = appendInt(b, uint64(len(op.Data)))
	case *proto.Sync:
		b = appendInt(b, op.ID)
		b = appendFlag(b, op.All)
	case *proto.Label:
		b = appendBytes(b, op.Name)
	case *proto.Rollback:
		b = appendList(b, op.Paths, appendBytes[string])
		b = appendInt(b, op.To)
		b = appendInt(b, uint8(op.New))
		b = appendFlag(b, op.DryRun)
	case *proto.Undo:
		b = appendList(b, op.LSNs, appendInt[proto.LSN])
		b = appendBytes(b, op.Path)
		b = appendFlag(b, op.Redo)
		b = appendFlag(b, op.DryRun)
	case *proto.Allocate:
		b = appendInt(b, op.ID)
		b = appendInt(b, op.Mode)
		b = appendInt(b, op.Off)
		b = appendInt(b, op.Len)
	case *proto.Copy:
		b = appendInt(b, op.ID)
		b = appendInt(b, op.Off)
		b = appendInt(b, op.Src)
		b = appendInt(b, op.SrcOff)
		b = appendInt(b, op.Len)
	case *proto.Branch:
		b = appendFixed64(b, op.Session)
		b = appendFlag(b, op.Drop)
		b = appendFlag(b, op.Force)
		b = appendFlag(b, op.DryRun)
	}
	return b
}

// op fills an operation whose kind is known.
func (c *Cursor) op(op proto.Op) {
	switch op := op.(type) {
	case *proto.Make:
		*op = proto.Make{Dir: c.fid(), Name: c.name(), Mode: c.u32(), Umask: c.u32(), Rdev: c.u32(),
			Target: c.str(proto.MaxTarget), Propose: c.fid()}
	case *proto.Link:
		*op = proto.Link{ID: c.fid(), Dir: c.fid(), Name: c.name()}
	case *proto.Remove:
		*op = proto.Remove{Dir: c.fid(), Name: c.name(), IsDir: c.flag()}
	case *proto.Rename:
		*op = proto.Rename{Dir: c.fid(), Name: c.name(), NewDir: c.fid(), NewName: c.name(), Flags: c.u32()}
	case *proto.SetAttr:
		*op = proto.SetAttr{ID: c.fid(), Mask: proto.SetMask(c.u16()), Mode: c.u32(), UID: c.u32(), GID: c.u32(),
			Size: c.uvarint(), Atime: c.time(), Mtime: c.time()}
	case *proto.SetXattr:
		*op = proto.SetXattr{ID: c.fid(), Name: c.name(), Value: bytes.Clone(c.bytes(proto.MaxXattr)), Flags: c.u32()}
	case *proto.RemoveXattr:
		*op = proto.RemoveXattr{ID: c.fid(), Name: c.name()}
	case *proto.Write:
		*op = proto.Write{ID: c.fid(), Off: c.uvarint(), Append: c.flag(), Mapped: c.flag(), Lost: c.flag(), Data: c.bytes(proto.MaxIO)}
	case *proto.Sync:
		*op = proto.Sync{ID: c.fid(), All: c.flag()}
	case *proto.Label:
		*op = proto.Label{Name: c.str(proto.MaxLabel)}
	case *proto.Rollback:
		*op = proto.Rollback{Paths: c.strs(MaxEntries, proto.MaxPath), To: c.lsn(),
			New: proto.NewFiles(c.upTo(uint64(proto.NewKeep))), DryRun: c.flag()}
	case *proto.Undo:
		*op = proto.Undo{LSNs: list(c, c.count(MaxEntries, 1), (*Cursor).lsn), Path: c.str(proto.MaxPath),
			Redo: c.flag(), DryRun: c.flag()}
	case *proto.Allocate:
		*op = proto.Allocate{ID: c.fid(), Mode: c.u32(), Off: c.uvarint(), Len: c.uvarint()}
	case *proto.Copy:
		*op = proto.Copy{ID: c.fid(), Off: c.uvarint(), Src: c.fid(), SrcOff: c.uvarint(), Len: c.u32()}
	case *proto.Branch:
		*op = proto.Branch{Session: c.session(), Drop: c.flag(), Force: c.flag(), DryRun: c.flag()}
	default:
		c.fail("no operation given to decode into")
	}
}

func (c *Cursor) name() string { return c.str(proto.MaxName) }

// ChangeRep is its result. A repeated operation gets the result of the first time.
// A plan that a frame has no room for is cut when it is encoded; Result.More
// counts what is missing.
type ChangeRep struct{ Result proto.Result }

// Append implements Message.
func (m *ChangeRep) Append(b []byte) []byte { return appendResult(b, &m.Result) }

// Decode implements Message.
func (m *ChangeRep) Decode(c *Cursor) { m.Result = c.result() }

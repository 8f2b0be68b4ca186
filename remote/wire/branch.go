package wire

import "cagefs.dev/cage/remote/proto"

// BranchesReq asks for the branches of an export that somebody may see, those after one in their order.
type BranchesReq struct {
	Ident proto.Ident
	After proto.SessionID // 0: from the first
}

// Append implements Message.
func (m *BranchesReq) Append(b []byte) []byte {
	return appendFixed64(appendIdent(b, &m.Ident), m.After)
}

// Decode implements Message.
func (m *BranchesReq) Decode(c *Cursor) {
	m.Ident = c.ident()
	m.After = c.session()
}

// BranchesRep is branches, the oldest first. More: there are others after the last.
type BranchesRep struct {
	Branches []proto.BranchInfo
	More     bool
}

// Append implements Message.
func (m *BranchesRep) Append(b []byte) []byte {
	b, n := appendCut(b, m.Branches, MaxEntries, appendBranchInfo)
	return appendFlag(b, m.More || n < len(m.Branches))
}

// Decode implements Message.
func (m *BranchesRep) Decode(c *Cursor) {
	m.Branches = list(c, c.cutCount(MaxEntries, branchLeast), (*Cursor).branchInfo)
	m.More = c.flag()
}

func appendBranchInfo(b []byte, m *proto.BranchInfo) []byte {
	b = appendFixed64(b, m.Session)
	b = appendText(b, m.Client, MaxWord)
	b = appendTime(b, m.Began)
	b = appendTime(b, m.Newest)
	b = appendInt(b, m.Files)
	b = appendInt(b, m.Writes)
	b = appendInt(b, m.Bytes)
	b = appendInt(b, m.Size)
	return appendFlag(b, m.Damaged)
}

const branchLeast = 16 // bytes

func (c *Cursor) branchInfo() proto.BranchInfo {
	return proto.BranchInfo{
		Session: c.session(),
		Client:  c.str(MaxWord),
		Began:   c.time(),
		Newest:  c.time(),
		Files:   c.u32(),
		Writes:  c.u32(),
		Bytes:   c.uvarint(),
		Size:    c.uvarint(),
		Damaged: c.flag(),
	}
}

// ReadBranchReq asks for bytes of a branch's file; fewer than Len at its end.
type ReadBranchReq struct {
	Ident   proto.Ident
	Session proto.SessionID
	Off     uint64
	Len     uint32 // at most proto.MaxXattr
}

// Append implements Message.
func (m *ReadBranchReq) Append(b []byte) []byte {
	b = appendFixed64(appendIdent(b, &m.Ident), m.Session)
	return appendInt(appendInt(b, m.Off), m.Len)
}

// Decode implements Message.
func (m *ReadBranchReq) Decode(c *Cursor) {
	m.Ident = c.ident()
	m.Session = c.session()
	m.Off = c.uvarint()
	m.Len = c.u32()
}

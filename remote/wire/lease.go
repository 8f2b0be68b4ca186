package wire

import "cagefs.dev/cage/remote/proto"

// Claim is a lease that a client which comes back has.
type Claim struct {
	ID    proto.FileID
	Gen   proto.Gen
	First proto.Gen
	Mode  proto.LeaseMode
}

const claimLeast = 6 // bytes

func appendClaim(b []byte, m Claim) []byte {
	return appendInt(appendGen(appendGen(appendInt(b, m.ID), m.Gen), m.First), uint8(m.Mode))
}

func (c *Cursor) claim() Claim {
	return Claim{ID: c.fid(), Gen: c.gen(), First: c.gen(), Mode: c.leaseMode()}
}

// AcquireReq asks for leases on files, all at once; it is answered when they are
// had. NoLease asks for a look: the answer comes when what others have
// acknowledged of the file is applied.
type AcquireReq struct{ Wants []proto.Want } // at most MaxWants

// Append implements Message.
func (m *AcquireReq) Append(b []byte) []byte { return appendList(b, m.Wants, appendWant) }

// Decode implements Message.
func (m *AcquireReq) Decode(c *Cursor) { m.Wants = list(c, c.count(MaxWants, 2), (*Cursor).want) }

func appendWant(b []byte, w proto.Want) []byte { return appendInt(appendInt(b, w.ID), uint8(w.Mode)) }

func (c *Cursor) want() proto.Want { return proto.Want{ID: c.fid(), Mode: c.leaseMode()} }

// AcquireRep is the generations of the leases, one for each that was wanted.
type AcquireRep struct{ Gens []proto.Gen }

// Append implements Message.
func (m *AcquireRep) Append(b []byte) []byte { return appendList(b, m.Gens, appendGen) }

// Decode implements Message.
func (m *AcquireRep) Decode(c *Cursor) { m.Gens = list(c, c.count(MaxWants, 2), (*Cursor).gen) }

// ReturnReq gives a lease back, but for Mode, if it is no newer than Gen. What
// the session acknowledged under it are operations up to Seq of its log.
type ReturnReq struct {
	ID   proto.FileID
	Gen  proto.Gen
	Mode proto.LeaseMode
	Seq  proto.Seq
}

// Append implements Message.
func (m *ReturnReq) Append(b []byte) []byte {
	b = appendGen(appendInt(b, m.ID), m.Gen)
	return appendInt(appendInt(b, uint8(m.Mode)), m.Seq)
}

// Decode implements Message.
func (m *ReturnReq) Decode(c *Cursor) {
	m.ID, m.Gen, m.Mode, m.Seq = c.fid(), c.gen(), c.leaseMode(), c.seq()
}

// PeekedReq answers a Peek: what the session had acknowledged of the file by
// then are operations up to Seq of its log.
type PeekedReq struct {
	ID  proto.FileID
	Num uint64
	Seq proto.Seq
}

// Append implements Message.
func (m *PeekedReq) Append(b []byte) []byte {
	return appendInt(appendInt(appendInt(b, m.ID), m.Num), m.Seq)
}

// Decode implements Message.
func (m *PeekedReq) Decode(c *Cursor) { m.ID, m.Num, m.Seq = c.fid(), c.uvarint(), c.seq() }

// SettledReq says that the session relies on nothing from before its last hello
// but what the reply left it, and that what it had acknowledged by then are operations up to Seq.
type SettledReq struct{ Seq proto.Seq }

// Append implements Message.
func (m *SettledReq) Append(b []byte) []byte { return appendInt(b, m.Seq) }

// Decode implements Message.
func (m *SettledReq) Decode(c *Cursor) { m.Seq = c.seq() }

// Recall asks for a lease back, but for Mode, if it is no newer than Gen.
type Recall struct {
	ID   proto.FileID
	Gen  proto.Gen
	Mode proto.LeaseMode
}

// Append implements Message.
func (m *Recall) Append(b []byte) []byte {
	return appendInt(appendGen(appendInt(b, m.ID), m.Gen), uint8(m.Mode))
}

// Decode implements Message.
func (m *Recall) Decode(c *Cursor) { m.ID, m.Gen, m.Mode = c.fid(), c.gen(), c.leaseMode() }

// Peek asks how much of the session's log has to be applied before others may
// read what it acknowledged of a file.
type Peek struct {
	ID  proto.FileID
	Num uint64
}

// Append implements Message.
func (m *Peek) Append(b []byte) []byte { return appendInt(appendInt(b, m.ID), m.Num) }

// Decode implements Message.
func (m *Peek) Decode(c *Cursor) { m.ID, m.Num = c.fid(), c.uvarint() }

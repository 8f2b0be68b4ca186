package wire

import "cagefs.dev/cage/remote/proto"

// LogReq asks for the history of a path or of the whole export, newest first, or
// with After oldest first.
type LogReq struct {
	Ident   proto.Ident
	Path    string    // below the export; "" is everything
	LSN     proto.LSN // only this record (and its transaction); 0: all
	Before  proto.LSN // only older than this; 0: from the newest
	After   proto.LSN // only newer than this; excludes Before; 0: newest first
	Limit   uint32    // at most MaxEntries
	Records bool      // the records of transactions one by one, not one line for each transaction
}

// Append implements Message.
func (m *LogReq) Append(b []byte) []byte {
	b = appendIdent(b, &m.Ident)
	b = appendBytes(b, m.Path)
	b = appendInt(b, m.LSN)
	b = appendInt(b, m.Before)
	b = appendInt(b, m.After)
	b = appendInt(b, m.Limit)
	return appendFlag(b, m.Records)
}

// Decode implements Message.
func (m *LogReq) Decode(c *Cursor) {
	m.Ident = c.ident()
	m.Path = c.str(proto.MaxPath)
	m.LSN = c.lsn()
	m.Before = c.lsn()
	m.After = c.lsn()
	m.Limit = c.u32()
	m.Records = c.flag()
}

// LogRep is a part of the history. Entries that a frame has no room for are
// left out when it is encoded, and More is then true on arrival.
type LogRep struct {
	Entries []proto.Entry
	More    bool
	Oldest  proto.LSN // the oldest record that is kept
	Upto    proto.LSN // with After: what comes next has newer ones
}

// Append implements Message.
func (m *LogRep) Append(b []byte) []byte {
	b, n := appendCut(b, m.Entries, MaxEntries, appendEntry)
	b = appendFlag(b, m.More || n < len(m.Entries))
	b = appendInt(b, m.Oldest)
	upto := m.Upto
	if n < len(m.Entries) && upto != 0 {
		upto = m.Entries[n].LSN - 1
	}
	return appendInt(b, upto)
}

// Decode implements Message.
func (m *LogRep) Decode(c *Cursor) {
	m.Entries = list(c, c.cutCount(MaxEntries, entryLeast), (*Cursor).entry)
	m.More = c.flag()
	m.Oldest = c.lsn()
	m.Upto = c.lsn()
}

// MomentReq asks what a moment means. The client has turned forms that depend
// on its zone or clock display into Time.
type MomentReq struct{ Moment proto.Moment }

// Append implements Message.
func (m *MomentReq) Append(b []byte) []byte { return appendMoment(b, &m.Moment) }

// Decode implements Message.
func (m *MomentReq) Decode(c *Cursor) { m.Moment = c.moment() }

// MomentRep is the moment as a record: it includes it.
type MomentRep struct {
	LSN  proto.LSN
	Time proto.Time
}

// Append implements Message.
func (m *MomentRep) Append(b []byte) []byte { return appendTime(appendInt(b, m.LSN), m.Time) }

// Decode implements Message.
func (m *MomentRep) Decode(c *Cursor) {
	m.LSN = c.lsn()
	m.Time = c.time()
}

// VerifyReq asks the server to check its journal.
type VerifyReq struct{ Full bool }

// Append implements Message.
func (m *VerifyReq) Append(b []byte) []byte { return appendFlag(b, m.Full) }

// Decode implements Message.
func (m *VerifyReq) Decode(c *Cursor) { m.Full = c.flag() }

// VerifyRep is what was checked, and what is wrong, a line each.
type VerifyRep struct {
	Segments uint64
	Frames   uint64
	Records  uint64
	Bytes    uint64
	Problems []string // at most MaxEntries
	More     uint64   // further problems, for which a frame has no room
}

// Append implements Message.
func (m *VerifyRep) Append(b []byte) []byte {
	b = appendInt(b, m.Segments)
	b = appendInt(b, m.Frames)
	b = appendInt(b, m.Records)
	b = appendInt(b, m.Bytes)
	b, n := appendCut(b, m.Problems, MaxEntries, func(b []byte, s *string) []byte {
		return appendText(b, *s, MaxText)
	})
	return appendInt(b, m.More+uint64(len(m.Problems)-n))
}

// Decode implements Message.
func (m *VerifyRep) Decode(c *Cursor) {
	m.Segments = c.uvarint()
	m.Frames = c.uvarint()
	m.Records = c.uvarint()
	m.Bytes = c.uvarint()
	m.Problems = list(c, c.cutCount(MaxEntries, 1), func(c *Cursor) string { return c.str(MaxText) })
	m.More = c.uvarint()
}

// UsageRep tells what history takes.
type UsageRep struct {
	Oldest     proto.LSN
	OldestTime proto.Time
	Newest     proto.LSN
	LogBytes   uint64
	GraveBytes uint64
	GraveFiles uint64
	CapBytes   uint64
}

// Append implements Message.
func (m *UsageRep) Append(b []byte) []byte {
	b = appendInt(b, m.Oldest)
	b = appendTime(b, m.OldestTime)
	b = appendInt(b, m.Newest)
	b = appendInt(b, m.LogBytes)
	b = appendInt(b, m.GraveBytes)
	b = appendInt(b, m.GraveFiles)
	return appendInt(b, m.CapBytes)
}

// Decode implements Message.
func (m *UsageRep) Decode(c *Cursor) {
	m.Oldest = c.lsn()
	m.OldestTime = c.time()
	m.Newest = c.lsn()
	m.LogBytes = c.uvarint()
	m.GraveBytes = c.uvarint()
	m.GraveFiles = c.uvarint()
	m.CapBytes = c.uvarint()
}

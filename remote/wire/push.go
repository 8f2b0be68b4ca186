package wire

import "cagefs.dev/cage/remote/proto"

// Changed tells that a file, or a directory's names, changed by somebody else.
type Changed struct {
	ID     proto.FileID
	Change proto.LSN
	Names  []string // directory: the names concerned; empty: unknown, also when there are more than MaxEntries
	Data   bool     // content or size, not only attributes
}

// Append implements Message.
func (m *Changed) Append(b []byte) []byte {
	names := m.Names
	if len(names) > MaxEntries {
		names = nil
	}
	b = appendInt(b, m.ID)
	b = appendInt(b, m.Change)
	b = appendList(b, names, appendBytes[string])
	return appendFlag(b, m.Data)
}

// Decode implements Message.
func (m *Changed) Decode(c *Cursor) {
	m.ID = c.fid()
	m.Change = c.lsn()
	m.Names = c.strs(MaxEntries, proto.MaxName)
	m.Data = c.flag()
}

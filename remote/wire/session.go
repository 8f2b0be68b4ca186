package wire

import "cagefs.dev/cage/remote/proto"

// HelloReq opens a main connection. Its first two fields never change their
// place, so that any version can refuse any other by name.
type HelloReq struct {
	Version  uint16 // what the sender speaks on this connection, as in its preamble
	Software string // "cagefs 0.1", for logs
	Client   string // host name of the client, for the journal
	Export   string // "" for tools that only list exports
	ReadOnly bool
	Session  proto.SessionID // to resume; 0 for a new one
	NextSeq  proto.Seq       // first operation that the client has no result of
	Opens    []proto.FileID  // resuming: files that are held open (kept or kept as orphans), at most MaxOpens
	Locks    []Lock          // resuming: what is locked, at most MaxLocks; the server gives the rest up
	Leases   bool            // replies may give leases, and are asked for back
	Claims   []Claim         // resuming: the leases that the session has, at most MaxClaims
}

// Append implements Message.
func (m *HelloReq) Append(b []byte) []byte {
	b = appendInt(b, m.Version)
	b = appendText(b, m.Software, MaxWord)
	b = appendText(b, m.Client, MaxWord)
	b = appendBytes(b, m.Export)
	b = appendFlag(b, m.ReadOnly)
	b = appendFixed64(b, m.Session)
	b = appendInt(b, m.NextSeq)
	b = appendList(b, m.Opens, appendInt[proto.FileID])
	b = appendList(b, m.Locks, appendLock)
	b = appendFlag(b, m.Leases)
	return appendList(b, m.Claims, appendClaim)
}

// Decode implements Message.
func (m *HelloReq) Decode(c *Cursor) {
	m.Version = c.u16()
	m.Software = c.str(MaxWord)
	m.Client = c.str(MaxWord)
	m.Export = c.str(MaxWord)
	m.ReadOnly = c.flag()
	m.Session = c.session()
	m.NextSeq = c.seq()
	m.Opens = list(c, c.count(MaxOpens, 1), (*Cursor).fid)
	m.Locks = list(c, c.count(MaxLocks, lockLeast), (*Cursor).lock)
	m.Leases = c.flag()
	m.Claims = list(c, c.count(MaxClaims, claimLeast), (*Cursor).claim)
}

// HelloRep admits the client.
type HelloRep struct {
	Version   uint16
	Software  string
	Session   proto.SessionID
	Resumed   bool      // the session of the request goes on; otherwise it is a new one
	Applied   proto.Seq // resuming: operations up to this one are applied
	DataPorts uint16    // reachable at main port + 1 … + DataPorts
	Root      proto.Attr
	ReadOnly  bool
	Trusted   bool      // the identities of requests count (Ident.UID and so on)
	LostLocks []uint32  // resuming: the places in the request's list of the locks that the session has lost
	Term      uint32    // of leases, in milliseconds; 0: none are given
	Lost      []uint32  // resuming: the places of the claims that are not true
	Void      proto.Gen // resuming: all other leases up to this one are void
}

// Append implements Message.
func (m *HelloRep) Append(b []byte) []byte {
	b = appendInt(b, m.Version)
	b = appendText(b, m.Software, MaxWord)
	b = appendFixed64(b, m.Session)
	b = appendFlag(b, m.Resumed)
	b = appendInt(b, m.Applied)
	b = appendInt(b, m.DataPorts)
	b = appendAttr(b, &m.Root)
	b = appendFlag(b, m.ReadOnly)
	b = appendFlag(b, m.Trusted)
	b = appendList(b, m.LostLocks, appendInt[uint32])
	b = appendInt(b, m.Term)
	b = appendList(b, m.Lost, appendInt[uint32])
	return appendGen(b, m.Void)
}

// Decode implements Message.
func (m *HelloRep) Decode(c *Cursor) {
	m.Version = c.u16()
	m.Software = c.str(MaxWord)
	m.Session = c.session()
	m.Resumed = c.flag()
	m.Applied = c.seq()
	m.DataPorts = c.u16()
	m.Root = c.attr()
	m.ReadOnly = c.flag()
	m.Trusted = c.flag()
	m.LostLocks = list(c, c.count(MaxLocks, 1), (*Cursor).u32)
	m.Term = c.u32()
	m.Lost = list(c, c.count(MaxClaims, 1), (*Cursor).u32)
	m.Void = c.gen()
}

// AttachReq joins a data connection to a session of the same client key.
type AttachReq struct {
	Version uint16
	Session proto.SessionID
}

// Append implements Message.
func (m *AttachReq) Append(b []byte) []byte {
	return appendFixed64(appendInt(b, m.Version), m.Session)
}

// Decode implements Message.
func (m *AttachReq) Decode(c *Cursor) {
	m.Version = c.u16()
	m.Session = c.session()
}

// ExportsRep lists exports, at most MaxEntries.
type ExportsRep struct{ Names []string }

// Append implements Message.
func (m *ExportsRep) Append(b []byte) []byte { return appendList(b, m.Names, appendBytes[string]) }

// Decode implements Message.
func (m *ExportsRep) Decode(c *Cursor) { m.Names = c.strs(MaxEntries, MaxWord) }

// JoinReq asks the server to admit the key that the client shows in TLS, which
// it does for the secret of an open invitation. Its first two fields are those
// of the hello.
type JoinReq struct {
	Version  uint16
	Software string
	Client   string // host name of the client, for the server's log
	Secret   []byte // at most MaxSecret bytes; aliases the frame
}

// Append implements Message.
func (m *JoinReq) Append(b []byte) []byte {
	b = appendInt(b, m.Version)
	b = appendText(b, m.Software, MaxWord)
	b = appendText(b, m.Client, MaxWord)
	return appendBytes(b, m.Secret)
}

// Decode implements Message.
func (m *JoinReq) Decode(c *Cursor) {
	m.Version = c.u16()
	m.Software = c.str(MaxWord)
	m.Client = c.str(MaxWord)
	m.Secret = c.bytes(MaxSecret)
}

// JoinRep says as what the client is admitted from now on.
type JoinRep struct {
	Version  uint16
	Software string
	Name     string // of the client, at the server
	ReadOnly bool
	Trusted  bool
	Exports  []string // that it may mount, at most MaxEntries
}

// Append implements Message.
func (m *JoinRep) Append(b []byte) []byte {
	b = appendInt(b, m.Version)
	b = appendText(b, m.Software, MaxWord)
	b = appendText(b, m.Name, MaxWord)
	b = appendFlag(b, m.ReadOnly)
	b = appendFlag(b, m.Trusted)
	return appendList(b, m.Exports, appendBytes[string])
}

// Decode implements Message.
func (m *JoinRep) Decode(c *Cursor) {
	m.Version = c.u16()
	m.Software = c.str(MaxWord)
	m.Name = c.str(MaxWord)
	m.ReadOnly = c.flag()
	m.Trusted = c.flag()
	m.Exports = c.strs(MaxEntries, MaxWord)
}

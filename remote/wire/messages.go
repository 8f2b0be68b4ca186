package wire

import (
	"cagefs.dev/cage/remote/proto"
	"cagefs.dev/cage/remote/status"
)

// Opcode is what a frame asks for. Numbers are append-only. A reply bears the
// opcode of its request.
type Opcode uint16

// The opcodes. Table ties each to its request and reply.
const (
	// Connection and session (1–19).
	OpHello   Opcode = 1 // HelloReq, HelloRep: first frame of a main connection
	OpAttach  Opcode = 2 // AttachReq, Empty: first frame of a data connection
	OpPing    Opcode = 3 // Empty, Empty
	OpBye     Opcode = 4 // Empty, Empty: ends the session; its opens are dropped
	OpExports Opcode = 5 // Empty, ExportsRep: the exports this client may see

	// Reading (20–49). ReqHeader says for whom and at which moment.
	OpLookup    Opcode = 20 // LookupReq, AttrRep
	OpGetAttr   Opcode = 21 // IDReq, AttrRep
	OpReadDir   Opcode = 22 // ReadDirReq, ReadDirRep
	OpReadlink  Opcode = 23 // IDReq, ReadlinkRep
	OpRead      Opcode = 24 // ReadReq, ReadRep: main or data connection
	OpOpen      Opcode = 25 // OpenReq, AttrRep: checks permission, keeps an orphan alive until Release
	OpRelease   Opcode = 26 // ReleaseReq, Empty
	OpStatFS    Opcode = 27 // IDReq, StatFSRep
	OpGetXattr  Opcode = 28 // XattrReq, BytesRep
	OpListXattr Opcode = 29 // IDReq, NamesRep
	OpResolve   Opcode = 30 // ResolveReq, AttrRep: a path, for tools and mounts of a subdirectory

	// Changing (50–79): ChangeReq, ChangeRep; one for each proto.OpKind, at
	// OpChange + kind. Main connection only, in the order of the session's log.
	OpChange Opcode = 50

	// History (80–99), for tools.
	OpLog    Opcode = 80 // LogReq, LogRep
	OpMoment Opcode = 81 // MomentReq, MomentRep
	OpVerify Opcode = 82 // VerifyReq, VerifyRep
	OpUsage  Opcode = 83 // Empty, UsageRep

	// Pushed by the server on the main connection, unasked, id 0 (100–119).
	OpChanged Opcode = 100 // Changed
	OpRecall  Opcode = 101 // Recall (comes with leases)
	OpDrain   Opcode = 102 // Empty: the server is stopping; finish and reconnect
)

// Empty is a message without content.
type Empty struct{}

// HelloReq opens a main connection. Its first two fields never change their
// place, so that any version can refuse any other by name.
type HelloReq struct {
	Version  uint16 // the newest the sender speaks
	Software string // "cagefs 0.1", for logs
	Client   string // host name of the client, for the journal
	Export   string // "" for tools that only list exports
	ReadOnly bool
	Session  proto.SessionID // to resume; 0 for a new one
	Boot     uint32          // server start that the client last saw
	NextSeq  proto.Seq       // first operation that the client has no result of
	Opens    []proto.FileID  // resuming: files that are held open (kept or kept as orphans)
}

// HelloRep admits the client.
type HelloRep struct {
	Version   uint16
	Software  string
	Session   proto.SessionID
	Resumed   bool      // the session of the request goes on; otherwise it is a new one
	Boot      uint32    // which start of the server this is
	Applied   proto.Seq // resuming: operations up to this one are applied
	DataPorts uint16    // reachable at main port + 1 … + DataPorts
	Root      proto.Attr
	ReadOnly  bool
	Trusted   bool // the identities of requests count (Ident.UID and so on)
}

// AttachReq joins a data connection to a session of the same client key.
type AttachReq struct {
	Version uint16
	Session proto.SessionID
}

// ExportsRep lists exports.
type ExportsRep struct{ Names []string }

// ReqHeader is at the start of every request for a file.
type ReqHeader struct {
	At    proto.LSN // 0: now; otherwise the state that this record left
	Ident proto.Ident
}

// LookupReq asks for a name in a directory.
type LookupReq struct {
	ReqHeader
	Dir  proto.FileID
	Name string
}

// IDReq asks something of a file.
type IDReq struct {
	ReqHeader
	ID proto.FileID
}

// AttrRep is the file that was asked for.
type AttrRep struct{ Attr proto.Attr }

// ReadDirReq asks for entries of a directory after Cookie (0: from the start).
type ReadDirReq struct {
	ReqHeader
	ID     proto.FileID
	Cookie uint64
	Max    uint32 // entries, at most MaxEntries
	Plus   bool   // with attributes
}

// ReadDirRep is a part of a listing. Change is the directory's change number.
type ReadDirRep struct {
	Entries []proto.DirEntry
	EOF     bool
	Change  proto.LSN
}

// ReadlinkRep is a symlink's target.
type ReadlinkRep struct{ Target string }

// ReadReq asks for bytes, at most proto.MaxIO.
type ReadReq struct {
	ReqHeader
	ID  proto.FileID
	Off uint64
	Len uint32
}

// ReadRep has fewer bytes than asked for only at the end of the file.
// Data aliases the frame that it was decoded from.
type ReadRep struct {
	Change proto.LSN
	Size   uint64 // of the file, when the bytes were read
	Data   []byte
}

// Open flags.
const (
	OpenRead  = 1
	OpenWrite = 2
)

// OpenReq opens a file by number.
type OpenReq struct {
	ReqHeader
	ID    proto.FileID
	Flags uint32
}

// ReleaseReq gives up N opens of a file.
type ReleaseReq struct {
	ID proto.FileID
	N  uint32
}

// StatFSRep describes the file system.
type StatFSRep struct{ StatFS proto.StatFS }

// XattrReq asks for an extended attribute.
type XattrReq struct {
	ReqHeader
	ID   proto.FileID
	Name string
}

// BytesRep is a value.
type BytesRep struct{ Value []byte }

// NamesRep is a list of names.
type NamesRep struct{ Names []string }

// ResolveReq asks for the file under a path below the export; symlinks are not followed.
type ResolveReq struct {
	ReqHeader
	Path string
}

// ChangeReq is an operation of the session's log. The session is the
// connection's. Its opcode is OpChange + Op.Kind().
type ChangeReq struct {
	Seq   proto.Seq
	Gen   proto.Gen
	Acked proto.Seq
	Ident proto.Ident
	Op    proto.Op
}

// ChangeRep is its result. A repeated operation gets the result of the first time.
type ChangeRep struct{ Result proto.Result }

// LogReq asks for the history of a path or of the whole export, newest first.
type LogReq struct {
	Ident   proto.Ident
	Path    string    // below the export; "" is everything
	LSN     proto.LSN // only this record (and its transaction); 0: all
	Before  proto.LSN // only older than this; 0: from the newest
	Limit   uint32    // at most MaxEntries
	Records bool      // the records of transactions one by one, not one line for each transaction
}

// LogRep is a part of the history.
type LogRep struct {
	Entries []proto.Entry
	More    bool
	Oldest  proto.LSN // the oldest record that is kept
}

// MomentReq asks what a moment means. The client has turned forms that depend
// on its zone or clock display into Time.
type MomentReq struct{ Moment proto.Moment }

// MomentRep is the moment as a record: it includes it.
type MomentRep struct {
	LSN  proto.LSN
	Time proto.Time
}

// VerifyReq asks the server to check its journal.
type VerifyReq struct{ Full bool }

// VerifyRep is what was checked, and what is wrong, a line each.
type VerifyRep struct {
	Segments uint64
	Frames   uint64
	Records  uint64
	Bytes    uint64
	Problems []string
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

// Changed tells that a file, or a directory's names, changed by somebody else.
type Changed struct {
	ID     proto.FileID
	Change proto.LSN
	Names  []string // directory: the names concerned; empty: unknown
	Data   bool     // content or size, not only attributes
}

// Recall asks for a lease back.
type Recall struct {
	ID   proto.FileID
	Gen  proto.Gen
	Mode uint8
}

// ErrorRep is the payload of a reply whose header has the error flag.
type ErrorRep struct {
	Code   status.Code
	LSN    proto.LSN // of the RESULT record of a failed change
	Op     string
	Object string
	Text   string
}

package wire

import (
	"fmt"

	"cagefs.dev/cage/remote/proto"
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
	OpJoin    Opcode = 6 // JoinReq, JoinRep: only frame of a connection on which a client joins

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
	OpSeek      Opcode = 31 // SeekReq, SeekRep: the next data or hole of a file

	// Locks. Unlike changes they are not kept in order: who gives one up has first
	// waited for the answers to what he did under it.
	OpLock     Opcode = 32 // LockReq, LockRep
	OpTestLock Opcode = 33 // LockReq, TestLockRep
	OpUnlock   Opcode = 34 // LockReq, Empty
	OpUnwait   Opcode = 35 // UnwaitReq, Empty

	// Leases. They go beside the log, so that no log waits for a lease; what has
	// to be applied first is named by its number. See serverd/lease.
	OpAcquire Opcode = 36 // AcquireReq, AcquireRep
	OpReturn  Opcode = 37 // ReturnReq, Empty
	OpPeeked  Opcode = 38 // PeekedReq, Empty
	OpSettled Opcode = 39 // SettledReq, Empty: of the leases from before a resume nothing is relied on but what the hello's reply left

	// Changing (50–79): ChangeReq, ChangeRep; one for each proto.OpKind, at
	// OpChange + kind. Main connection only, in the order of the session's log.
	OpChange Opcode = 50

	// History (80–99), for tools.
	OpLog    Opcode = 80 // LogReq, LogRep
	OpMoment Opcode = 81 // MomentReq, MomentRep
	OpVerify Opcode = 82 // VerifyReq, VerifyRep
	OpUsage  Opcode = 83 // Empty, UsageRep

	// Branches: what sessions could not deliver, see package branch.
	OpBranches   Opcode = 84 // BranchesReq, BranchesRep
	OpReadBranch Opcode = 85 // ReadBranchReq, BytesRep

	// Pushed by the server on the main connection, unasked, id 0 (100–119).
	OpChanged  Opcode = 100 // Changed
	OpRecall   Opcode = 101 // Recall: comes again until OpReturn
	OpDrain    Opcode = 102 // Empty: the server is stopping; finish and reconnect
	OpLockDone Opcode = 103 // LockDone: a wait for a lock is over
	OpPeek     Opcode = 104 // Peek: comes again until OpPeeked
)

// Message is the payload of a frame: a pointer to one of this package's structs.
type Message interface {
	// Append appends the encoding to b.
	Append(b []byte) []byte
	// Decode fills the message from the cursor, which keeps the first error.
	// Fields that are slices of bytes alias the cursor's bytes where the
	// message's comment says so.
	Decode(c *Cursor)
}

// Spec says what belongs to an opcode. A pushed opcode has NewPush only, every
// other one NewRequest and NewReply only.
type Spec struct {
	Name       string
	NewRequest func() Message
	NewReply   func() Message
	NewPush    func() Message
	Data       bool         // allowed on data connections too
	Change     proto.OpKind // the operation of a change; otherwise 0
}

// Table holds the Spec of every opcode. It must not be changed.
var Table = map[Opcode]Spec{
	OpHello:   {Name: "hello", NewRequest: fresh[HelloReq], NewReply: fresh[HelloRep]},
	OpAttach:  {Name: "attach", NewRequest: fresh[AttachReq], NewReply: fresh[Empty], Data: true},
	OpPing:    {Name: "ping", NewRequest: fresh[Empty], NewReply: fresh[Empty], Data: true},
	OpBye:     {Name: "bye", NewRequest: fresh[Empty], NewReply: fresh[Empty]},
	OpExports: {Name: "exports", NewRequest: fresh[Empty], NewReply: fresh[ExportsRep]},
	OpJoin:    {Name: "join", NewRequest: fresh[JoinReq], NewReply: fresh[JoinRep]},

	OpLookup:    {Name: "lookup", NewRequest: fresh[LookupReq], NewReply: fresh[AttrRep]},
	OpGetAttr:   {Name: "getattr", NewRequest: fresh[IDReq], NewReply: fresh[AttrRep]},
	OpReadDir:   {Name: "readdir", NewRequest: fresh[ReadDirReq], NewReply: fresh[ReadDirRep]},
	OpReadlink:  {Name: "readlink", NewRequest: fresh[IDReq], NewReply: fresh[ReadlinkRep]},
	OpRead:      {Name: "read", NewRequest: fresh[ReadReq], NewReply: fresh[ReadRep], Data: true},
	OpOpen:      {Name: "open", NewRequest: fresh[OpenReq], NewReply: fresh[AttrRep]},
	OpRelease:   {Name: "release", NewRequest: fresh[ReleaseReq], NewReply: fresh[Empty]},
	OpStatFS:    {Name: "statfs", NewRequest: fresh[IDReq], NewReply: fresh[StatFSRep]},
	OpGetXattr:  {Name: "getxattr", NewRequest: fresh[XattrReq], NewReply: fresh[BytesRep]},
	OpListXattr: {Name: "listxattr", NewRequest: fresh[IDReq], NewReply: fresh[NamesRep]},
	OpResolve:   {Name: "resolve", NewRequest: fresh[ResolveReq], NewReply: fresh[AttrRep]},
	OpSeek:      {Name: "seek", NewRequest: fresh[SeekReq], NewReply: fresh[SeekRep]},

	OpLock:     {Name: "lock", NewRequest: fresh[LockReq], NewReply: fresh[LockRep]},
	OpTestLock: {Name: "testlock", NewRequest: fresh[LockReq], NewReply: fresh[TestLockRep]},
	OpUnlock:   {Name: "unlock", NewRequest: fresh[LockReq], NewReply: fresh[Empty]},
	OpUnwait:   {Name: "unwait", NewRequest: fresh[UnwaitReq], NewReply: fresh[Empty]},

	OpAcquire: {Name: "acquire", NewRequest: fresh[AcquireReq], NewReply: fresh[AcquireRep]},
	OpReturn:  {Name: "return", NewRequest: fresh[ReturnReq], NewReply: fresh[Empty]},
	OpPeeked:  {Name: "peeked", NewRequest: fresh[PeekedReq], NewReply: fresh[Empty]},
	OpSettled: {Name: "settled", NewRequest: fresh[SettledReq], NewReply: fresh[Empty]},

	OpChange + Opcode(proto.OpMake):        change[proto.Make]("make"),
	OpChange + Opcode(proto.OpLink):        change[proto.Link]("link"),
	OpChange + Opcode(proto.OpRemove):      change[proto.Remove]("remove"),
	OpChange + Opcode(proto.OpRename):      change[proto.Rename]("rename"),
	OpChange + Opcode(proto.OpSetAttr):     change[proto.SetAttr]("setattr"),
	OpChange + Opcode(proto.OpSetXattr):    change[proto.SetXattr]("setxattr"),
	OpChange + Opcode(proto.OpRemoveXattr): change[proto.RemoveXattr]("removexattr"),
	OpChange + Opcode(proto.OpWrite):       change[proto.Write]("write"),
	OpChange + Opcode(proto.OpSync):        change[proto.Sync]("sync"),
	OpChange + Opcode(proto.OpLabel):       change[proto.Label]("label"),
	OpChange + Opcode(proto.OpRollback):    change[proto.Rollback]("rollback"),
	OpChange + Opcode(proto.OpUndo):        change[proto.Undo]("undo"),
	OpChange + Opcode(proto.OpAllocate):    change[proto.Allocate]("allocate"),
	OpChange + Opcode(proto.OpCopy):        change[proto.Copy]("copy"),
	OpChange + Opcode(proto.OpBranch):      change[proto.Branch]("branch"),

	OpLog:    {Name: "log", NewRequest: fresh[LogReq], NewReply: fresh[LogRep]},
	OpMoment: {Name: "moment", NewRequest: fresh[MomentReq], NewReply: fresh[MomentRep]},
	OpVerify: {Name: "verify", NewRequest: fresh[VerifyReq], NewReply: fresh[VerifyRep]},
	OpUsage:  {Name: "usage", NewRequest: fresh[Empty], NewReply: fresh[UsageRep]},

	OpBranches:   {Name: "branches", NewRequest: fresh[BranchesReq], NewReply: fresh[BranchesRep]},
	OpReadBranch: {Name: "readbranch", NewRequest: fresh[ReadBranchReq], NewReply: fresh[BytesRep]},

	OpChanged:  {Name: "changed", NewPush: fresh[Changed]},
	OpRecall:   {Name: "recall", NewPush: fresh[Recall]},
	OpDrain:    {Name: "drain", NewPush: fresh[Empty]},
	OpLockDone: {Name: "lockdone", NewPush: fresh[LockDone]},
	OpPeek:     {Name: "peek", NewPush: fresh[Peek]},
}

// fresh makes an empty message of a type.
func fresh[T any, P interface {
	*T
	Message
}]() Message {
	return P(new(T))
}

// change is the Spec of an operation that changes an export.
func change[T any, P interface {
	*T
	proto.Op
}](name string) Spec {
	return Spec{
		Name:       name,
		NewRequest: func() Message { return &ChangeReq{Op: P(new(T))} },
		NewReply:   fresh[ChangeRep],
		Change:     P(new(T)).Kind(),
	}
}

// ChangeOpcode is the opcode under which an operation travels.
func ChangeOpcode(op proto.Op) Opcode { return OpChange + Opcode(op.Kind()) }

// String is the opcode's name in error texts and logs.
func (o Opcode) String() string {
	if s, ok := Table[o]; ok {
		return s.Name
	}
	return fmt.Sprintf("opcode %d", uint16(o))
}

// Empty is a message without content.
type Empty struct{}

// Append appends nothing.
func (*Empty) Append(b []byte) []byte { return b }

// Decode accepts anything: a later version's fields are trailing bytes.
func (*Empty) Decode(*Cursor) {}

package record

import "cagefs.dev/cage/remote/proto"

// Kind says what a record changes. The numbers are on disk: append only.
type Kind uint8

// The kinds. "Inverse" is the kind that takes it back.
const (
	Make       Kind = iota + 1 // stage/ID becomes Dir/Name, or, without Name, grave/LSN. Inverse: Remove
	Link                       // ID gets the further name Dir/Name. Inverse: Remove
	Remove                     // Dir/Name goes to grave/LSN. Inverse: Restore
	Rename                     // Dir/Name becomes NewDir/NewName; Victim, if any, goes to grave/LSN, or with FlagExchange to Dir/Name. Inverse: Rename (and Restore of the victim)
	Restore                    // grave/Grave becomes Dir/Name. Inverse: Remove
	SetAttr                    // mode, owner, times: Old and New
	Truncate                   // OldSize to NewSize; the image, or grave/LSN with FlagGraveImage, holds the bytes cut off
	Write                      // bytes [Off, Off+Len) of ID; Pieces say which were overwritten and which are new
	Data                       // bytes of ID that earlier records wrote without image, now in the log (an fsync of few bytes)
	Synced                     // everything of ID that records up to Upto wrote is durable in the file; with FlagLocal its attributes, and what processes of the server did to it before, are too
	SetXattr                   // OldValue (HasOld) to Value (HasNew) of attribute Name
	Local                      // ID was changed by a process of the server, seen now: New and NewSize as found (Mode 0: not looked at), OldMtime the ctime before, HasNew: its content may be another; what changes up to Upto did was applied before
	Adopt                      // the inode Inode under Dir/Name got the number ID; with FlagRecovered ID's inode is Inode now
	Result                     // the operation changed nothing: it failed with Status, or (OK) had nothing to do and was answered with ID and Count
	Cancel                     // record Upto could not be applied (Status): it never happened
	Begin                      // a transaction of Count records follows; Name says rollback, undo or redo, Value its arguments: of an undo or redo the records that it takes back, ascending, as in "@12 @15..@20 @31"; a transaction stands there by its Begin record, a range for all changes in it
	Commit                     // the transaction that began at Txn is complete
	Label                      // Name is this moment
	IDs                        // file numbers below Upto may be in use from now on
	Boot                       // the server started, for the Count-th time; Value names the run of its machine
	Client                     // client number Count is Name
	Session                    // a session of client number Client began (Count 1) or ended (Count 0); Value is its key's hash
	Checkpoint                 // everything up to Upto is applied and durable in the tree
	Prune                      // history below Upto is given up: its graves and segments may be gone
	Allocate                   // blocks for bytes [Off, Off+Len) of ID are reserved; the size goes from OldSize to NewSize. Inverse: Truncate, where the size changed
	Gap                        // between the time OldMtime and this record no server watched: changes found from here on that carry FlagGap may be from then
	Locks                      // Session has lost its locks and modes (Count 0), has heard of that (Count 1), or may have modes (Count 2)
	Leases                     // Session may have leases from here on (Count 1), or has none (Count 0), or those of the files in Value up to run Off of the server, number Len, are void (Count 2)

	endKind // one more than the last
)

// Flags of a record.
const (
	FlagExchange   = 1 << iota // Rename: the two names change places
	FlagDir                    // Remove, Restore, Rename: ID is a directory
	FlagTree                   // Remove, Restore: the directory goes with what is in it (transactions only)
	FlagGraveImage             // Truncate, Write with FlagHole: the bytes taken away are the content of the file grave/LSN, at their place
	FlagHole                   // Write: the range becomes a hole; its pieces are PieceOver
	FlagRecovered              // made by recovery
	FlagLocal                  // a process of the server did this; the record was made when it was found done
	FlagGap                    // Local, or with FlagLocal: done while no server ran
)

// LocalClient is the client number of the server's own processes: no Client
// record says so.
const LocalClient = 1<<32 - 1

// Inode is an inode's identity on the server's file system.
type Inode struct {
	Ino   uint64
	Btime int64
}

// Attrs are the attributes that SetAttr changes, before or after.
type Attrs struct {
	Mode  uint32 // type and permissions
	UID   uint32
	GID   uint32
	Atime proto.Time
	Mtime proto.Time
}

// PieceKind says what a piece of a Write was before and where its bytes are.
type PieceKind uint8

// Piece kinds.
const (
	// PieceOver overwrites bytes of the file. Images hold Len bytes before and Len
	// bytes after (after only, when FlagHole is not set).
	PieceOver PieceKind = iota + 1
	// PieceBlocks is new: whole 4 KiB blocks that were a hole or beyond the end.
	// Only their checksums are logged, the bytes are in the file.
	PieceBlocks
	// PieceInline is new and less than a block: the images hold the Len bytes after.
	PieceInline
)

// BlockSize is the unit of checksums of new bytes.
const BlockSize = 4096

// Piece is a part of a Write or Data record. Pieces are in ascending order,
// do not overlap and cover the record's range; with FlagHole they are the data
// that was in it.
type Piece struct {
	Kind PieceKind
	Off  uint64
	Len  uint64
	Sums []uint32 // PieceBlocks: CRC32C of each block
}

// Record is one change. Which fields count depends on Kind; the others are zero
// and take no space on disk.
type Record struct {
	LSN  proto.LSN
	Time proto.Time // never before that of an earlier record
	Kind Kind
	Flag uint16

	// Who: zero for the server's own records.
	Session proto.SessionID
	Seq     proto.Seq
	Client  uint32 // number in the dictionary of Client records; 0: the server itself
	UID     uint32
	GID     uint32
	PID     uint32
	PGID    uint32
	Comm    string

	Txn proto.LSN // Begin record of its transaction; 0: none

	ID      proto.FileID
	Dir     proto.FileID
	Name    string
	NewDir  proto.FileID
	NewName string
	Victim  proto.FileID
	Grave   proto.LSN // name of the grave that it takes from

	Inode Inode // Make, Adopt, Restore: identity of ID's inode; with FlagGraveImage: of the grave's

	// Directory times before: Dir's and NewDir's mtime; Write, Truncate: ID's mtime.
	OldMtime    proto.Time
	OldNewMtime proto.Time

	Old    Attrs // SetAttr: before
	New    Attrs // SetAttr: after; Make: as made
	Rdev   uint32
	Target string

	Off     uint64
	Len     uint64
	OldSize uint64
	NewSize uint64
	Pieces  []Piece

	HasOld   bool
	OldValue []byte
	HasNew   bool
	Value    []byte

	Upto   proto.LSN // Synced, Cancel, Checkpoint, Local; IDs: the file number
	Count  uint64    // Write: the N of its operation's result
	Status uint16

	// Images are the bytes that the record keeps, in the frame's second section:
	// for each piece in order, PieceOver: before, then after (not with FlagHole);
	// PieceInline: after. Truncate: the bytes cut off. Nil after a decode of the
	// skeleton alone; ImageLen tells how many there are and ImageSum is their
	// CRC32C. Both are set by Seal, that is by the log when it is appended.
	Images   []byte
	ImageLen uint64
	ImageSum uint32
}

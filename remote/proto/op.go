package proto

// OpKind numbers the operations that change an export. Append only.
type OpKind uint8

// The operations. Each is one entry of a session's operation log.
const (
	OpMake OpKind = iota + 1
	OpLink
	OpRemove
	OpRename
	OpSetAttr
	OpSetXattr
	OpRemoveXattr
	OpWrite
	OpSync
	OpLabel
	OpRollback
	OpUndo
	OpAllocate
	OpCopy
	OpBranch
)

// Op is an operation that changes an export, or orders changes (Sync). It is
// immutable once it has a number.
type Op interface{ Kind() OpKind }

// Make creates a file of any type under a name that must be free: open(O_CREAT),
// mkdir, mknod, symlink. A setgid directory
// gives its group (and, to directories, its bit) to what is made in it.
//
// Without a name it is open(O_TMPFILE): a regular file that belongs to the
// directory's file system but to none of its names. A Link gives it its first
// name; without one it is gone when nobody has it open.
type Make struct {
	Dir     FileID
	Name    string // "": none, regular files only
	Mode    uint32 // type and permissions
	Umask   uint32 // permissions still to be taken away where the directory has no default ACL
	Rdev    uint32
	Target  string // symlinks only
	Propose FileID // the number the client wants, from a block that it was given; 0: the server chooses
}

// Link gives a file a further name. The file is not a directory.
type Link struct {
	ID   FileID
	Dir  FileID
	Name string
}

// Remove takes a name away: unlink, or with IsDir rmdir.
type Remove struct {
	Dir   FileID
	Name  string
	IsDir bool
}

// Rename flags, as in renameat2(2).
const (
	RenameNoReplace = 1
	RenameExchange  = 2
)

// Rename moves a name, replacing what is under the new one unless Flags forbid it.
type Rename struct {
	Dir     FileID
	Name    string
	NewDir  FileID
	NewName string
	Flags   uint32
}

// SetMask says which fields of a SetAttr count.
type SetMask uint16

// The fields of a SetAttr. A time that is to become the server's present is
// marked by SetAtimeNow or SetMtimeNow alone.
const (
	SetMode SetMask = 1 << iota
	SetUID
	SetGID
	SetSize
	SetAtime
	SetMtime
	SetAtimeNow
	SetMtimeNow
)

// SetAttr changes attributes: chmod, chown, truncate, utimensat. A change of
// size is a change of its own for the journal; all of one SetAttr are applied
// together.
type SetAttr struct {
	ID    FileID
	Mask  SetMask
	Mode  uint32
	UID   uint32
	GID   uint32
	Size  uint64
	Atime Time
	Mtime Time
}

// SetXattr flags, as in setxattr(2), where both together always fail.
const (
	XattrCreate  = 1
	XattrReplace = 2
)

// SetXattr sets an extended attribute.
type SetXattr struct {
	ID    FileID
	Name  string
	Value []byte
	Flags uint32
}

// RemoveXattr removes an extended attribute.
type RemoveXattr struct {
	ID   FileID
	Name string
}

// Write puts bytes at an offset, at most MaxIO of them. With Append they go to
// the end of the file, wherever that is when their turn comes; Off is then where
// the client takes it to be, and the result's N where it was. Mapped bytes were
// stored through a mapping: they are ordered by msync(2) only, and need no lease.
//
// Lost bytes were acknowledged under a lease or lock that is lost, or in a session
// that is: they are not written, but kept in the session's branch, and the change fails. Without Data nothing is kept.
type Write struct {
	ID     FileID
	Off    uint64
	Append bool
	Mapped bool
	Lost   bool
	Data   []byte
}

// Modes of an Allocate, as in fallocate(2).
const (
	AllocKeepSize  = 0x01
	AllocPunchHole = 0x02
	AllocZeroRange = 0x10
)

// Allocate is fallocate(2): it reserves blocks for a range (Mode 0: and extends
// the file to its end), makes it a hole (AllocPunchHole with AllocKeepSize), or
// makes it zeros (AllocZeroRange). Other modes are Unsupported.
type Allocate struct {
	ID   FileID
	Mode uint32
	Off  uint64
	Len  uint64
}

// Copy is copy_file_range(2) between two files of an export: bytes of Src are
// written to ID as they are when its turn comes, at most MaxIO of them. The
// result's N is how many there were, fewer than Len at the end of Src.
type Copy struct {
	ID     FileID
	Off    uint64
	Src    FileID
	SrcOff uint64
	Len    uint32
}

// Sync makes everything durable that was logged before it: of one file with its
// data, or, with ID = RootID and All, of the whole session.
type Sync struct {
	ID  FileID
	All bool
}

// Label gives the present moment a name.
type Label struct{ Name string }

// NewFiles says what a rollback does with files that did not exist at the moment.
type NewFiles uint8

// What becomes of newer files.
const (
	NewRemove NewFiles = iota
	NewKeep
)

// Rollback brings paths back to a moment, in one transaction.
type Rollback struct {
	Paths  []string // below the export, clean, "" or "." is the root
	To     LSN
	New    NewFiles
	DryRun bool
}

// Undo takes records (and whole transactions, by any of their records) back,
// in one transaction. Without LSNs it takes the newest change of the caller's
// client and user under Path. Redo goes the other way: it takes back the
// newest undo that is not taken back yet.
type Undo struct {
	LSNs   []LSN
	Path   string
	Redo   bool
	DryRun bool
}

// Branch applies, in one transaction, what a session had acknowledged and could not deliver
// (package branch), or with Drop forgets it. Where a file is gone or was changed since
// the session knew it, that is a conflict; with Force the branch's bytes go over what others
// wrote, and what is gone is left out.
type Branch struct {
	Session SessionID
	Drop    bool
	Force   bool
	DryRun  bool
}

func (*Make) Kind() OpKind        { return OpMake }
func (*Link) Kind() OpKind        { return OpLink }
func (*Remove) Kind() OpKind      { return OpRemove }
func (*Rename) Kind() OpKind      { return OpRename }
func (*SetAttr) Kind() OpKind     { return OpSetAttr }
func (*SetXattr) Kind() OpKind    { return OpSetXattr }
func (*RemoveXattr) Kind() OpKind { return OpRemoveXattr }
func (*Write) Kind() OpKind       { return OpWrite }
func (*Sync) Kind() OpKind        { return OpSync }
func (*Label) Kind() OpKind       { return OpLabel }
func (*Rollback) Kind() OpKind    { return OpRollback }
func (*Undo) Kind() OpKind        { return OpUndo }
func (*Allocate) Kind() OpKind    { return OpAllocate }
func (*Copy) Kind() OpKind        { return OpCopy }
func (*Branch) Kind() OpKind      { return OpBranch }

// Change is an operation in its place of a session's operation log.
type Change struct {
	Session SessionID
	Seq     Seq
	Gen     Gen // of the lease under which it was logged; zero: none needed
	Acked   Seq // the client has the results of all operations up to this one
	Ident   Ident
	Op      Op
}

// Result is the answer to a change. With an error status only LSN may be set
// besides (the RESULT record).
type Result struct {
	LSN  LSN        // of the record, or the first of the transaction; 0 where nothing had to change
	ID   FileID     // Make: the new file. Otherwise the file that was changed.
	Attr Attr       // of ID after the change, as far as it still exists; Attr.ID 0: not given
	N    uint64     // Write with Append: where its bytes went; Copy: how many there were
	Plan []PlanStep // Rollback, Undo, Branch: what was or would be done
	More uint64     // steps of the plan behind those in Plan, where a reply had no room for them
}

// PlanStep is one line of what a rollback, undo or branch does, for people and scripts.
type PlanStep struct {
	Action string // remove, restore, move, content, attributes, copy, conflict
	Path   string
	From   string // move: the old path; copy: the source
	Detail string
}

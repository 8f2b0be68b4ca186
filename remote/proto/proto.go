// Package proto holds the words that both ends of the wire share: numbers of
// files, changes and sessions, attributes, identities, the operations that
// change an export, and moments of its history.
//
// It owns no behaviour beyond small pure functions. It imports nothing of Cage.
package proto

import (
	"cmp"
	"fmt"
	"time"
)

// FileID is the server's number for a file. It is given once and never reused,
// also not after the file is gone. The low 48 bits are the server's; a mount of
// several servers puts a tag in the upper 16, which never crosses the wire.
type FileID uint64

const (
	// RootID is the root directory of every export.
	RootID FileID = 1
	// MaxFileID is the largest number a server gives out.
	MaxFileID FileID = 1<<48 - 1
)

const tagShift = 48

// Tag is which of a mount's sources a file is of; 0 in a mount of one, and in
// every number that crosses the wire.
func (id FileID) Tag() uint16 { return uint16(id >> tagShift) }

// Tagged is the same file of the source with a tag: Tagged(0) is its server's
// number alone. An id beyond MaxFileID loses what is beyond.
func (id FileID) Tagged(tag uint16) FileID { return id&MaxFileID | FileID(tag)<<tagShift }

// LSN is the number of a record in an export's journal: a total order of all
// changes, dense, starting with 1. As a place to read from ("at"), 0 is now.
type LSN uint64

// Seq numbers the operations of a session, starting with 1. A number belongs to
// one immutable operation for ever.
type Seq uint64

// SessionID names an authorised client's state on a server. It outlives TCP
// connections and restarts of the server. It is random, not secret by itself:
// resuming a session needs its key as well.
type SessionID uint64

// Gen is the generation of a lease: which start of the server gave it, and the
// how many-th of that start. It grows for ever. Zero is no lease.
type Gen struct {
	Boot    uint32
	Counter uint64
}

// Compare is negative, zero or positive as g is older than h, h itself, or newer.
func (g Gen) Compare(h Gen) int {
	return cmp.Or(cmp.Compare(g.Boot, h.Boot), cmp.Compare(g.Counter, h.Counter))
}

// LeaseMode says what a lease allows its session to rely on.
type LeaseMode uint8

// The modes; a greater one includes the smaller.
const (
	NoLease    LeaseMode = iota
	ReadLease            // shared: the file, or the directory with its names, stays as it is
	WriteLease           // exclusive: nobody else reads or changes it without asking
)

// Want is a lease, or with NoLease a look without one, at a file.
type Want struct {
	ID   FileID
	Mode LeaseMode
}

// Lease is what a reply gives of a lease besides the file: zero for none.
type Lease struct {
	Gen  Gen
	Mode LeaseMode
}

// Time is nanoseconds since the Unix epoch, UTC.
type Time int64

// Std converts t to the local zone's time.Time.
func (t Time) Std() time.Time { return time.Unix(0, int64(t)) }

// String prints t in full, in the local zone, so that it can be typed back.
func (t Time) String() string { return t.Std().Format("2006-01-02T15:04:05.000000000Z07:00") }

// Attr is what stat(2) tells of a file, with the file's change number.
type Attr struct {
	ID     FileID
	Mode   uint32 // type and permission bits, Linux S_IF* numbers
	Nlink  uint32 // without the links that graves hold
	UID    uint32
	GID    uint32
	Rdev   uint32
	Size   uint64
	Blocks uint64 // of 512 bytes
	Atime  Time
	Mtime  Time
	Ctime  Time
	Btime  Time
	Change LSN   // number of the last change of this file, also of its entries
	Lease  Lease // that the reply gives the session with them
}

// File types in Attr.Mode, as in stat(2).
const (
	ModeType    = 0o170000
	ModeRegular = 0o100000
	ModeDir     = 0o040000
	ModeSymlink = 0o120000
	ModeFIFO    = 0o010000
	ModeSocket  = 0o140000
	ModeChar    = 0o020000
	ModeBlock   = 0o060000
	ModeSetuid  = 0o4000
	ModeSetgid  = 0o2000
	ModeSticky  = 0o1000
	ModePerm    = 0o7777
)

// Type returns the type bits of the mode.
func (a *Attr) Type() uint32 { return a.Mode & ModeType }

// IsDir reports whether the file is a directory.
func (a *Attr) IsDir() bool { return a.Type() == ModeDir }

// IsRegular reports whether the file is a regular file.
func (a *Attr) IsRegular() bool { return a.Type() == ModeRegular }

// Ident says on whose behalf a request is made. The server maps and checks it;
// what an untrusted client claims here counts for nothing.
type Ident struct {
	UID    uint32
	GID    uint32
	Groups []uint32 // supplementary groups, at most MaxGroups
	PID    uint32   // process at the client; 0 unknown
	PGID   uint32   // its process group
	Comm   string   // its command name, at most MaxComm bytes
}

// Limits of what crosses the wire and enters the journal.
const (
	MaxName   = 255     // bytes of a name
	MaxTarget = 4095    // bytes of a symlink's target
	MaxPath   = 1 << 16 // bytes of a path in a request (tools only; mounts use fids)
	MaxGroups = 1024
	MaxComm   = 64
	MaxXattr  = 64 << 10 // bytes of an attribute's value, or of a list of names
	MaxIO     = 1 << 20  // bytes of one read or write
	MaxLabel  = 128      // bytes of a label's name
)

// DirEntry is one name of a directory. Where its attributes were not asked for,
// or may not be seen, only Attr.ID and the type in Attr.Mode are set, and
// Attr.Nlink is zero. Attr.ID is zero where the entry could not be looked up.
type DirEntry struct {
	Name   string
	Cookie uint64 // where a listing goes on after this entry
	Attr   Attr
}

// StatFS is what statfs(2) tells of the file system below an export.
type StatFS struct {
	BlockSize   uint32
	NameMax     uint32
	Blocks      uint64
	BlocksFree  uint64
	BlocksAvail uint64
	Files       uint64
	FilesFree   uint64
}

// BranchInfo is what a list tells of a branch: of what a session could not deliver.
type BranchInfo struct {
	Session SessionID
	Client  string
	Began   Time
	Newest  Time // of its writes
	Files   uint32
	Writes  uint32
	Bytes   uint64 // of the writes
	Size    uint64 // of the branch's file
	Damaged bool   // the counts are of what can be read of it
}

// Entry is one change of an export's history as tools show it.
type Entry struct {
	LSN     LSN
	Time    Time
	Kind    string // make, link, remove, rename, restore, setattr, truncate, write, allocate, swap, setxattr, removexattr, rollback, undo, redo, label, local, …
	ID      FileID
	Path    string // path below the export after the change, or before it where that removed it
	NewPath string // rename only
	Client  string
	Session SessionID
	UID     uint32
	GID     uint32
	PID     uint32
	PGID    uint32
	Comm    string
	Off     uint64 // write, allocate, truncate
	Bytes   uint64 // write, allocate: length; truncate: the new size
	Txn     LSN    // the transaction's first record; zero outside of one
	Records uint32 // number of records of a transaction, in its first entry
	Detail  string // label's name, new mode, …: for people
	Undone  LSN    // by which record or transaction it was taken back, if it was
}

// String is the form in error texts and logs.
func (id FileID) String() string { return fmt.Sprintf("fid %d", uint64(id)) }

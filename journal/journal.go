// Package journal is a tree of files in which every change is a record before
// it happens, with what it destroys.
//
// It owns an export on the server's disk: the plain files and, beside them in
// .cage, the log, the graves, the stage and the checkpoint. It promises the
// rules 1 to 4 and 6 of docs/architecture.md: a before-image is durable before
// the bytes it preserves are destroyed; after a cut at any byte recovery yields a prefix of
// what was acknowledged that contains everything synced; a repeated operation is applied once;
// no path leads out of the export. It must not know the wire, connections or leases.
//
// The way of a change: Submit plans it (plan.go), appends its record and queues
// it; the commit loop (commit.go) makes a batch durable, applies it in order
// (apply.go) and wakes those who wait. Reads (read.go) see applied state only.
package journal

import (
	"context"
	"time"

	"github.com/rs/zerolog"

	"cagefs.dev/cage/journal/record"
	"cagefs.dev/cage/journal/vfs"
	"cagefs.dev/cage/remote/proto"
)

// DirName is the journal's directory in the root of an export.
const DirName = ".cage"

// Options of a journal.
type Options struct {
	FS              vfs.FS            // the export; Close leaves it open
	Home            vfs.FS            // the journal's directory, on the same file system; nil: DirName in the export. Close leaves it open
	HomePath        string            // its absolute path, for the link in the export (home.go)
	SegmentSize     int64             // of the log; 0: by the size of the file system, at most 64 MiB
	CheckpointBytes int64             // of the log between checkpoints; 0: 128 MiB
	HistoryCap      int64             // bytes of log and graves above which the oldest history goes; 0: a fifth of the file system
	TableCache      int64             // bytes of blocks of the table of files in memory; 0: 64 MiB
	TableChanges    int64             // bytes of changes of the table from which on they are written as a run; 0: by the size of the file system, at most 4 MiB
	ReadOnly        bool              // no recovery, no writing: for tools beside a stopped server
	Grace           time.Duration     // after the start, how long sessions may take to come back before removed files that they had open may go; 0: 10 minutes
	Now             func() proto.Time // nil: the system's clock
	Log             zerolog.Logger
	Mount           string // names the export's mount, from its beginning to its end (vfs.MountRun); "": not known
	// Told reports whether Notice is told at present of everything that happens to names: a directory that
	// a reader finds changed need not be compared. nil: it is not. It must not block.
	Told func() bool
	// Sure says that the events are LocalSure. Otherwise Notice may be told of what the journal itself
	// did, or of nothing, and each change first looks at what it would hide.
	Sure   bool
	Leases Leases // nil: there are none
	// Changed is called after each applied change, those of clients in order, from
	// any goroutine: it must not block or call back.
	Changed func(Applied)
}

// Applied is a change as others may want to hear of it.
type Applied struct {
	LSN     proto.LSN
	ID      proto.FileID // the file, 0 if none
	Dir     proto.FileID // directory whose names changed, 0 if none
	Name    string
	NewDir  proto.FileID // renames
	NewName string
	Data    bool // content or size of ID changed
	Made    bool // a process of the server just made ID: nobody has asked for it yet
	Session proto.SessionID
}

// Report is what recovery did.
type Report struct {
	Clean     bool // the last stop was orderly, or there was none
	Boot      uint32
	Last      proto.LSN // newest record
	Replayed  int       // records after the checkpoint
	Moved     int       // names that were brought to their place
	Remade    int       // inodes that were missing and made again
	Missing   []Missing // bytes that nobody had synced and that are gone
	Strangers []string  // names found where the journal put something else; now in graves
}

// Missing is a range of unsynced new bytes that a power cut took.
type Missing struct {
	ID   proto.FileID
	Path string
	Off  uint64
	Len  uint64
}

// Journal is an open export. Safe for concurrent use.
type Journal struct{ core }

// Open opens the journal of an export, makes it on first use, and recovers it.
// Errors: status.Damaged (with the place; nothing was changed), Busy (another
// process has it), Version, Conflict (a copied journal), NoSpace, Unsupported (a file
// system that cannot do what is needed, e.g. has no birth times).
func Open(ctx context.Context, o Options) (*Journal, *Report, error) { return open(ctx, o) }

// Close applies what was submitted, checkpoints and closes. Idempotent.
func (j *Journal) Close() error { return j.close() }

// Boot is the number of this start, from 1.
func (j *Journal) Boot() uint32 { return j.boot }

// Last returns the newest applied LSN.
func (j *Journal) Last() proto.LSN { return j.appliedLSN() }

// Failed returns why the export stopped taking changes (a failed sync), or nil.
func (j *Journal) Failed() error { return j.failedErr() }

// ---- Reading the present. No permission checks: see Access. ----

// Lookup returns what is under a name: status.NotFound, NotDir, Stale.
func (j *Journal) Lookup(dir proto.FileID, name string) (proto.Attr, error) {
	return j.lookup(dir, name)
}

// Attr returns a file's attributes; also of a removed file that history still has.
func (j *Journal) Attr(id proto.FileID) (proto.Attr, error) { return j.attr(id) }

// ReadDir calls f for the entries of a directory after a cookie until f returns
// false; the journal's own directory is left out. With plus, entries have their
// attributes; without, their numbers and types.
func (j *Journal) ReadDir(dir proto.FileID, after uint64, plus bool, f func(proto.DirEntry) bool) error {
	return j.readDir(dir, after, plus, f)
}

// Readlink returns a symlink's target.
func (j *Journal) Readlink(id proto.FileID) (string, error) { return j.readlink(id) }

// ReadAt reads a regular file; n < len(p) only with io.EOF or another error.
func (j *Journal) ReadAt(id proto.FileID, p []byte, off int64) (int, error) {
	return j.readAt(id, p, off)
}

// GetXattr returns an extended attribute: status.NoAttr.
func (j *Journal) GetXattr(id proto.FileID, name string) ([]byte, error) { return j.getXattr(id, name) }

// ListXattr returns the names of extended attributes.
func (j *Journal) ListXattr(id proto.FileID) ([]string, error) { return j.listXattr(id) }

// StatFS describes the file system as a user with a group may use it: less what
// the journal needs before it can go on, and no more than quotas of theirs leave.
func (j *Journal) StatFS(uid, gid uint32) (proto.StatFS, error) { return j.statFS(uid, gid) }

// Hold keeps a file reachable after it is removed and beyond the retention of
// history, until Unhold. Holds do not survive a restart: the client renews them,
// and until it has (Returned) nothing is removed that it may have held.
func (j *Journal) Hold(id proto.FileID) error { return j.hold(id) }

// Unhold takes n holds back.
func (j *Journal) Unhold(id proto.FileID, n int) { j.unhold(id, n) }

// Path returns a present path of a file, "" for the root, or an error if it has no name.
func (j *Journal) Path(id proto.FileID) (string, error) { return j.path(id) }

// ---- Sessions ----

// Client returns the number of a client in the journal's dictionary, making one.
func (j *Journal) Client(name string) (uint32, error) { return j.client(name, 1<<32-2) }

// ClientBelow is Client that makes a number only while there are fewer than max names: status.NoSpace.
// Names stay for ever.
func (j *Journal) ClientBelow(name string, max int) (uint32, error) { return j.client(name, max) }

// OpenSession records a new session, whose operations are from then on applied
// once each. key tells whose it is when it is resumed after a restart.
func (j *Journal) OpenSession(id proto.SessionID, client uint32, key string) error {
	return j.openSession(id, client, key, true)
}

// OpenBriefSession is OpenSession of one that is expected to change nothing: it is
// recorded with its first change, and a restart before that forgets it, unless there
// was a checkpoint.
func (j *Journal) OpenBriefSession(id proto.SessionID, client uint32, key string) error {
	return j.openSession(id, client, key, false)
}

// ResumeSession returns the newest operation applied or failed of a session:
// status.LostSession if it is unknown or key differs.
func (j *Journal) ResumeSession(id proto.SessionID, key string) (proto.Seq, error) {
	return j.resumeSession(id, key)
}

// Returned says that a session of an earlier start has renewed its holds.
func (j *Journal) Returned(id proto.SessionID) { j.returned(id) }

// CloseSession forgets a session and its results.
func (j *Journal) CloseSession(id proto.SessionID) error { return j.closeSession(id) }

// ---- Changing ----

// Submission is a change with what the server knows of it. The Change's Ident is
// the mapped one, already believed.
type Submission struct {
	*proto.Change
	Client  uint32
	Trusted bool // may make devices, setuid files, trusted.* attributes; knows files by their numbers alone
	Opened  bool // the session holds the file open for writing: permission was checked then
	// Copy: the session holds the source open for reading.
	SrcOpened bool
	// Holds reports whether the session has a file open, so that it needs no way
	// to it (see Reach). It must not call back. nil: none.
	Holds func(proto.FileID) bool
	// Guard runs in the critical section that gives the record its number; an
	// error refuses the change without a trace (fencing). May be nil.
	Guard func() error
}

// Submit plans a change and appends its record; the order of calls is the order
// of a session. It blocks while the change depends on one that is not applied
// yet, or the queue is full. A failure of the operation itself comes from
// Ticket.Wait; an error here means that nothing was recorded.
// A Seq that was submitted before gives the first one's result.
// The result of a Make without a name comes with a Hold of the file, which is
// the caller's to take back: nothing else keeps it.
func (j *Journal) Submit(ctx context.Context, s *Submission) (*Ticket, error) {
	return j.submit(ctx, s)
}

// Do is Submit and Wait.
func (j *Journal) Do(ctx context.Context, s *Submission) (proto.Result, error) {
	t, err := j.Submit(ctx, s)
	if err != nil {
		return proto.Result{}, err
	}
	return t.Wait(ctx)
}

// Wait returns the result when the change is durable (but for bytes of new
// data) and applied. Stopping to wait takes nothing back.
func (t *Ticket) Wait(ctx context.Context) (proto.Result, error) { return t.wait(ctx) }

// Record returns a committed record, for tools.
func (j *Journal) Record(lsn proto.LSN, images bool) (*record.Record, error) {
	return j.log.Read(lsn, images)
}

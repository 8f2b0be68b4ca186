package journal

import (
	"context"

	"cagefs.dev/cage/remote/proto"
)

// Moment turns a moment into the record that it includes, and that record's
// time. now is the newest applied record; a time is the newest record not after it.
// Errors: status.NoMoment (no such label, a record or time in the future), NoHistory.
func (j *Journal) Moment(m proto.Moment) (proto.LSN, proto.Time, error) {
	panic("journal: being written")
}

// Query asks for entries of the history.
type Query struct {
	Path    string    // file or tree below the export, as it is or was; "" everything
	LSN     proto.LSN // only this record or transaction
	Before  proto.LSN // only older than this; 0 from the newest
	Limit   int
	Records bool // transactions record by record
}

// Entries returns history, newest first, and whether there is more.
func (j *Journal) Entries(q Query) (entries []proto.Entry, more bool, oldest proto.LSN, err error) {
	panic("journal: being written")
}

// Past is the export as a record left it. It reads without taking part in
// leases, and stays valid while history reaches back to it.
type Past struct{ unfinished struct{} }

// At opens the state that record lsn left: status.NoHistory, NoMoment.
func (j *Journal) At(lsn proto.LSN) (*Past, error) { panic("journal: being written") }

// Lookup, Attr, ReadDir, Readlink, ReadAt, GetXattr, ListXattr are those of Journal, then.
// Cookies of a past listing are positions in the sorted list of names.
func (p *Past) Lookup(dir proto.FileID, name string) (proto.Attr, error) {
	panic("journal: being written")
}
func (p *Past) Attr(id proto.FileID) (proto.Attr, error) { panic("journal: being written") }
func (p *Past) ReadDir(dir proto.FileID, after uint64, plus bool, f func(proto.DirEntry) bool) error {
	panic("journal: being written")
}
func (p *Past) Readlink(id proto.FileID) (string, error) { panic("journal: being written") }
func (p *Past) ReadAt(id proto.FileID, b []byte, off int64) (int, error) {
	panic("journal: being written")
}
func (p *Past) GetXattr(id proto.FileID, name string) ([]byte, error) {
	panic("journal: being written")
}
func (p *Past) ListXattr(id proto.FileID) ([]string, error) { panic("journal: being written") }

// UsageReport tells what history takes.
type UsageReport struct {
	Oldest, Newest                             proto.LSN
	OldestTime                                 proto.Time
	LogBytes, GraveBytes, GraveFiles, CapBytes uint64
}

// Usage counts what history takes.
func (j *Journal) Usage() (UsageReport, error) { panic("journal: being written") }

// VerifyReport is what Verify found; Problems is empty when all is well.
type VerifyReport struct {
	Segments, Frames, Records, Bytes uint64
	Problems                         []string
}

// Verify checks the log, and with full also the tree against it.
func (j *Journal) Verify(ctx context.Context, full bool) (VerifyReport, error) {
	panic("journal: being written")
}

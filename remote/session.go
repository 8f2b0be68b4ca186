// Package remote is the client: it finds the server's key, dials, keeps a
// session over lost connections and restarts of the server, sends the
// session's operation log in order, and asks for names, attributes and bytes.
//
// It promises that every operation of the log is applied once or reported as
// failed, in order, and that no call outlasts its context or the session's
// patience. It caches nothing and knows nothing of pages or the kernel.
package remote

import (
	"context"
	"net"
	"time"

	"github.com/rs/zerolog"

	"cagefs.dev/cage/remote/auth"
	"cagefs.dev/cage/remote/proto"
	"cagefs.dev/cage/remote/wire"
)

// Options of a session.
type Options struct {
	Addr     string // HOST:PORT of the main port
	Export   string // "" only to list exports
	ReadOnly bool
	Keys     *auth.Keyring
	Client   string                                                            // this client's name in the journal; "": the host's name
	Software string                                                            // "cagefs 0.1", for logs
	Patience time.Duration                                                     // how long a call waits for a lost server before status.Timeout (…Unreachable while dialing first); 0: for ever ("hard")
	Budget   int64                                                             // bytes of logged writes that are not applied yet; Log blocks above it. 0: 64 MiB
	DataPort bool                                                              // use the data connections that the server offers
	Dial     func(ctx context.Context, network, addr string) (net.Conn, error) // nil: net.Dialer
	Log      zerolog.Logger

	// Upcalls, each from one goroutine of the session, in order; they must not
	// call back into the session and must be quick. Any may be nil.
	Changed func(wire.Changed)                              // somebody else changed a file or directory
	Reset   func()                                          // pushes may have been missed: nothing cached is known to be valid
	Failed  func(id proto.FileID, seq proto.Seq, err error) // a logged operation nobody waited for failed
}

// State of a session's connection.
type State int

// States. A session starts Online.
const (
	Online State = iota
	Reconnecting
	Closed
)

// Status is what `cagefs status` shows of a session.
type Status struct {
	State     State
	Addr      string
	Export    string
	Session   proto.SessionID
	Since     time.Time // of the state
	LastError string    // why it is not online, or the last failure of a logged operation
	Unapplied int       // operations logged and not yet applied
	Bytes     int64     // bytes of new data in them
	DataConns int
	Resumes   int
}

// Dial connects, checks the server's pin, and opens a session. Errors:
// status.Unreachable, WrongKey (no pin or key for this server, or refused),
// UnknownExport, Version, Timeout.
func Dial(ctx context.Context, o Options) (*Session, error) { panic("remote: being written") }

// Session is a client's session with one export of a server. Safe for concurrent use.
type Session struct{ unfinished struct{} }

// Hello is what the server said when the session began.
func (s *Session) Hello() wire.HelloRep { panic("remote: being written") }

// ---- Reads. at is 0 for now. Errors carry status codes. They are sent again after a reconnect. ----

func (s *Session) Lookup(ctx context.Context, h wire.ReqHeader, dir proto.FileID, name string) (proto.Attr, error) {
	panic("remote: being written")
}
func (s *Session) GetAttr(ctx context.Context, h wire.ReqHeader, id proto.FileID) (proto.Attr, error) {
	panic("remote: being written")
}
func (s *Session) ReadDir(ctx context.Context, h wire.ReqHeader, id proto.FileID, cookie uint64, max int, plus bool) (wire.ReadDirRep, error) {
	panic("remote: being written")
}
func (s *Session) Readlink(ctx context.Context, h wire.ReqHeader, id proto.FileID) (string, error) {
	panic("remote: being written")
}

// ReadAt fills p from a file; n < len(p) only at the end of the file (no error then).
// change and size are the file's when the bytes were read.
func (s *Session) ReadAt(ctx context.Context, h wire.ReqHeader, id proto.FileID, p []byte, off int64) (n int, change proto.LSN, size uint64, err error) {
	panic("remote: being written")
}

// Open checks permission and keeps the file reachable until Release; the
// session renews it after a reconnect or restart.
func (s *Session) Open(ctx context.Context, h wire.ReqHeader, id proto.FileID, flags uint32) (proto.Attr, error) {
	panic("remote: being written")
}

// Release takes one Open back. It does not block.
func (s *Session) Release(id proto.FileID) { panic("remote: being written") }
func (s *Session) StatFS(ctx context.Context, h wire.ReqHeader, id proto.FileID) (proto.StatFS, error) {
	panic("remote: being written")
}
func (s *Session) GetXattr(ctx context.Context, h wire.ReqHeader, id proto.FileID, name string) ([]byte, error) {
	panic("remote: being written")
}
func (s *Session) ListXattr(ctx context.Context, h wire.ReqHeader, id proto.FileID) ([]string, error) {
	panic("remote: being written")
}
func (s *Session) Resolve(ctx context.Context, h wire.ReqHeader, path string) (proto.Attr, error) {
	panic("remote: being written")
}

// ---- Changes: one ordered operation log for the session. ----

// Do logs an operation and waits until it is applied. When ctx ends first the
// error is status.Interrupted or Timeout, and the operation stays logged: it
// may still be applied.
func (s *Session) Do(ctx context.Context, id proto.Ident, op proto.Op) (proto.Result, error) {
	panic("remote: being written")
}

// Log appends an operation and returns its number without waiting for the
// server; it blocks while the budget is used up. The op's Data is copied.
// A Write directly after an unsent Write of the same file and identity that it continues may join it and get its number.
func (s *Session) Log(ctx context.Context, id proto.Ident, op proto.Op) (proto.Seq, error) {
	panic("remote: being written")
}

// Wait blocks until the operation is applied (nil), has failed (its error), or ctx ends.
func (s *Session) Wait(ctx context.Context, seq proto.Seq) error { panic("remote: being written") }

// Applied is the newest operation up to which all are answered. It never blocks.
func (s *Session) Applied() proto.Seq { panic("remote: being written") }

// TakeError returns, once, the first failure of a logged, unwaited operation
// on the file since the last call (the sticky error of fsync and close); id 0: of any file.
func (s *Session) TakeError(id proto.FileID) error { panic("remote: being written") }

// Sync waits until everything logged so far is applied and durable on the server.
func (s *Session) Sync(ctx context.Context, id proto.Ident) error { panic("remote: being written") }

// ---- History and service ----

func (s *Session) Exports(ctx context.Context) ([]string, error) { panic("remote: being written") }
func (s *Session) History(ctx context.Context, q wire.LogReq) (wire.LogRep, error) {
	panic("remote: being written")
}
func (s *Session) Moment(ctx context.Context, m proto.Moment) (wire.MomentRep, error) {
	panic("remote: being written")
}
func (s *Session) Verify(ctx context.Context, full bool) (wire.VerifyRep, error) {
	panic("remote: being written")
}
func (s *Session) Usage(ctx context.Context) (wire.UsageRep, error) { panic("remote: being written") }

// Status never blocks.
func (s *Session) Status() Status { panic("remote: being written") }

// Close pushes the log until ctx ends, says goodbye and closes. It returns an error that
// tells what was not delivered. Idempotent.
func (s *Session) Close(ctx context.Context) error { panic("remote: being written") }

package control

import (
	"context"
	"errors"
	"net"
	"os"
	"path/filepath"
	"syscall"
	"time"

	"cagefs.dev/cage/remote/proto"
	"cagefs.dev/cage/remote/status"
)

// AdminSocket is the name of a server's socket in its state directory.
const AdminSocket = "admin.sock"

// Served is what a server serves, and whom.
type Served struct {
	Addr      string    `json:"addr"` // HOST:PORT of the main port, as it listens
	DataPorts int       `json:"data_ports"`
	Software  string    `json:"software"`
	PID       int       `json:"pid"`
	Since     time.Time `json:"since"`
	Exports   []Export  `json:"exports"`
	Sessions  []Session `json:"sessions"`
}

// Export is an export of a server.
type Export struct {
	Name     string    `json:"name"`
	Dir      string    `json:"dir"`
	ReadOnly bool      `json:"read_only"`
	Newest   proto.LSN `json:"newest_lsn"`
	Failed   string    `json:"failed"` // why it takes no changes any more, or ""
	Sessions int       `json:"sessions"`
}

// Session is a client's session.
type Session struct {
	ID          string    `json:"session"`
	Export      string    `json:"export"`
	Client      string    `json:"client"` // in the journal
	Key         string    `json:"key"`    // the name under which it is admitted
	Fingerprint string    `json:"fingerprint"`
	ActsAs      string    `json:"acts_as"`
	ReadOnly    bool      `json:"read_only"`
	Peer        string    `json:"peer"` // address, "" without a connection
	Since       time.Time `json:"since"`
	Lost        time.Time `json:"lost,omitzero"` // since when it is without connection
	OpenFiles   int       `json:"open_files"`
	Locks       int       `json:"locks"`
	Leases      int       `json:"leases"`
	Writing     int       `json:"write_leases"` // of Leases
	DataConns   int       `json:"data_connections"`
}

// AdminHandler is a server as its socket shows it. The methods may be called concurrently.
type AdminHandler interface {
	Served() Served
	// DropRevoked ends what clients have that are not admitted any more, and
	// returns the number of sessions ended.
	DropRevoked() int
}

const (
	opServed = "served"
	opDrop   = "drop-revoked"
)

// ListenAdmin opens the socket of the server that uses a state directory, and
// has locked it, and serves it until Close.
func ListenAdmin(ctx context.Context, stateDir string, h AdminHandler) (*Server, error) {
	return listen(ctx, filepath.Join(stateDir, AdminSocket), func(_ context.Context, q request) reply {
		switch q.Op {
		case opServed:
			v := h.Served()
			return reply{Served: &v}
		case opDrop:
			n := h.DropRevoked()
			return reply{Ended: &n}
		}
		return unknown(q)
	})
}

// Admin talks to a running server. Not safe for concurrent use.
type Admin struct{ link }

// DialAdmin connects to the server that uses a state directory:
// status.Unreachable if none runs, Access if it is another user's.
func DialAdmin(ctx context.Context, stateDir string) (*Admin, error) {
	path := filepath.Join(stateDir, AdminSocket)
	l, err := connect(ctx, path)
	var op *net.OpError
	switch {
	case err == nil:
		return &Admin{l}, nil
	case errors.Is(err, os.ErrPermission), status.Of(err) == status.Access:
		return nil, status.Newf(status.Access, "", stateDir, "the server of this state directory is another user's")
	case errors.As(err, &op) && (errors.Is(err, os.ErrNotExist) || errors.Is(err, syscall.ECONNREFUSED)):
		return nil, status.Newf(status.Unreachable, "", stateDir, "no server runs with this state directory")
	}
	return nil, status.Wrap(err, "control socket", path)
}

// Close ends the connection.
func (a *Admin) Close() { a.c.Close() }

// Served tells what the server serves, and whom.
func (a *Admin) Served(ctx context.Context) (Served, error) {
	r, err := a.call(ctx, request{Op: opServed})
	if err != nil {
		return Served{}, err
	}
	if r.Served == nil {
		return Served{}, errNoAnswer
	}
	return *r.Served, nil
}

// DropRevoked ends what clients have that are not admitted any more, and
// returns, when that is done, how many sessions it was.
func (a *Admin) DropRevoked(ctx context.Context) (int, error) {
	r, err := a.call(ctx, request{Op: opDrop})
	if err != nil {
		return 0, err
	}
	if r.Ended == nil {
		return 0, errNoAnswer
	}
	return *r.Ended, nil
}

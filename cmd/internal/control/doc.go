// Package control is the control socket of a running mount: how status, sync,
// umount and cagejournal find the mount that a path belongs to, and what they
// can ask of it. It is also that of a running server (admin.go), which is found
// in the server's state directory.
//
// Each mount listens on a socket of its own (mode 0600) in the directory of
// Dir, named by the device number of the mount, so that it is found from a path
// through /proc/self/mountinfo alone, without a system call that a mount whose
// server is gone would have to answer. The peer must be the same user, or root.
//
// A request is one line of JSON, {"op":"sync","path":"a/b"}; so is the answer. A
// path is below the root of the mount's file system. A client that goes away
// cancels what it asked for. The package knows nothing of how a mount or a
// server answers.
package control

import (
	"path"
	"strings"
	"time"

	"cagefs.dev/cage/remote/proto"
)

// FSType is the type under which the kernel lists a mount.
const FSType = "fuse.cage"

// Where says what a mount shows at a path, so that others can talk to its server.
type Where struct {
	Addr   string    `json:"addr"`   // HOST:PORT of the main port
	Export string    `json:"export"` // its name
	Sub    string    `json:"sub"`    // directory of the export that is shown, "" for all of it
	Dir    string    `json:"dir"`    // name in the mount's root where it is shown, "": it is the root
	At     proto.LSN `json:"at"`     // the moment that is shown, 0 for now

	Session string `json:"session"` // of the mount, as the history has it
}

// Path is the path in the export of a path below the root of the mount's file system.
func (w Where) Path(below string) string {
	inSource := strings.TrimPrefix(strings.TrimPrefix(below, w.Dir), "/")
	return strings.TrimPrefix(path.Clean("/"+path.Join(w.Sub, inSource)), "/")
}

// Status is what `cagefs status` shows. The fields of Source are those of the
// only source; of several they are sums, or what is true of all, and state,
// since and last_error are of the first that is worst off.
type Status struct {
	Mountpoint string `json:"mountpoint"`
	Source
	Software string    `json:"software"`
	PID      int       `json:"pid"`
	Mounted  time.Time `json:"mounted"`
	Sources  []Source  `json:"sources"`
}

// Source is how one source of a mount is.
type Source struct {
	Name      string    `json:"name"`   // of its directory in the mount's root, "": it is the root
	Source    string    `json:"source"` // HOST:/EXPORT
	Addr      string    `json:"addr"`
	At        proto.LSN `json:"at"` // the moment that is shown, 0 for now
	ReadOnly  bool      `json:"read_only"`
	State     string    `json:"state"`     // online, reconnecting, stale, closed
	Since     time.Time `json:"since"`     // of the state
	SilentMS  int64     `json:"silent_ms"` // for how long the server, asked for something, has said nothing at all
	LastError string    `json:"last_error"`
	Unapplied int       `json:"unapplied_operations"` // logged and not yet applied on the server
	Bytes     int64     `json:"unapplied_bytes"`
	Delivered bool      `json:"everything_on_server"` // Unapplied is 0
	Owed      []Owed    `json:"undelivered"`          // of which files there are Bytes; at most MaxOwed
	MoreOwed  int       `json:"more_undelivered"`     // how many files are not in Owed
	Leases    int       `json:"leases"`
	Writing   int       `json:"write_leases"` // of Leases
	DataConns int       `json:"data_connections"`
	Resumes   int       `json:"resumes"`
	Refused   *Refused  `json:"refused,omitempty"` // the last open that another client's was in the way of
}

// MaxOwed is how many files a Source names.
const MaxOwed = 10

// File is a file of a source.
type File struct {
	Path    string       `json:"path"` // below the mountpoint, as the mount last knew it; "": it does not know it
	PathB64 []byte       `json:"path_base64,omitempty"`
	FID     proto.FileID `json:"fid"`
}

// Owed is a file with bytes that were accepted and are not applied yet.
type Owed struct {
	File
	Bytes int64 `json:"bytes"`
}

// Refused is an open that failed with EBUSY.
type Refused struct {
	File
	When time.Time `json:"when"`
	Why  string    `json:"why"` // names the client that was in the way
}

// Stats are counters of a mount.
type Stats struct {
	PageSize    int64         `json:"page_size"`
	Policy      string        `json:"policy"` // which page leaves a full cache
	Pages       int64         `json:"pages"`
	Bytes       int64         `json:"bytes"`
	Budget      int64         `json:"budget"`
	Hits        int64         `json:"hits"`
	Misses      int64         `json:"misses"`
	ReadAheads  int64         `json:"read_aheads"`
	Evictions   int64         `json:"evictions"`
	Files       int64         `json:"files"`
	Inodes      int64         `json:"inodes"`       // that are held; the kernel may know more
	InodeBudget int64         `json:"inode_budget"` // for them, those aside that are open or have writes on their way
	Known       int64         `json:"known"`        // files and names that are remembered, with the option stale
	KnownBudget int64         `json:"known_budget"` // for them
	Dirty       int64         `json:"dirty_bytes"`  // of writes that are not applied, of all sources
	DirtyBudget int64         `json:"dirty_budget"` // for them, of each source
	MemoryLimit int64         `json:"memory_limit"` // that the process keeps to as long as it can
	Sources     []SourceStats `json:"sources"`
}

// SourceStats are counters of one source.
type SourceStats struct {
	Name  string `json:"name"`
	Dirty int64  `json:"dirty_bytes"`
}

// The operations of the socket.
const (
	opWhere  = "where"
	opStatus = "status"
	opStats  = "stats"
	opSync   = "sync"
	opUmount = "umount"
)

// request is a line from the client.
type request struct {
	Op   string `json:"op"`
	Path string `json:"path,omitempty"` // where, sync
}

// reply is the line that answers it: exactly one field, or Error, or none.
type reply struct {
	Where  *Where  `json:"where,omitempty"`
	Status *Status `json:"status,omitempty"`
	Stats  *Stats  `json:"stats,omitempty"`
	Served *Served `json:"served,omitempty"`
	Ended  *int    `json:"ended,omitempty"`
	Error  *failed `json:"error,omitempty"`
}

// failed is an error on its way.
type failed struct {
	Code uint16 `json:"code"`
	Text string `json:"text"`
}

package fusefs

import (
	"fmt"
	"log"
	"os"
	"runtime/debug"
	"slices"
	"time"

	"github.com/hanwen/go-fuse/v2/fuse"
	"github.com/rs/zerolog"

	"cagefs.dev/cage/pagecache"
	"cagefs.dev/cage/remote"
	"cagefs.dev/cage/remote/lockset"
	"cagefs.dev/cage/remote/proto"
	"cagefs.dev/cage/remote/status"
	"cagefs.dev/cage/remote/wire"
)

// maxValid is the longest that the kernel may believe names and attributes of a past state, and the
// names of sources, without asking; of the present it believes them as long as a lease says.
const maxValid = time.Second

// Source is a directory of an export that a mount shows.
type Source struct {
	Name     string // of its directory in the mount's root; "": it is the root, and the only source
	Session  *remote.Session
	Root     proto.Attr
	At       proto.LSN // the state that is shown; 0: the present. A past state is read-only.
	ReadOnly bool
}

// Options of a mount. Sessions and Cache stay the caller's, who closes them
// after Wait.
type Options struct {
	Sources []Source // one without a name, or any number with different ones
	Cache   *pagecache.Cache
	Device  string // shown as the device: HOST:/EXPORT

	ReadOnly   bool // all sources are
	AllowOther bool // other users than the one who mounts; always so for root
	Debug      bool // log each request
	ACL        bool // the kernel checks access control lists; without, it goes by the mode, and the server checks them

	// Exclusive is the mode of files that are opened for writing, those that are opened
	// to be read then have lockset.ReadShared. lockset.NoMode: none have one.
	Exclusive lockset.Mode

	// How long the kernel may answer from what it was told. 0: a second, which
	// is also the most; negative: not at all.
	NameTimeout, AttrTimeout time.Duration

	Inodes int // of a source that are held, those aside that are open or have writes on their way; 0: 65536

	// Known is how many files and names of a source are remembered, for reads while
	// its server is silent: see remote.Options.Stale. 0: none.
	Known int

	Log zerolog.Logger

	between func(fuse.RawFileSystem) fuse.RawFileSystem // of tests: stands between the kernel and the mount; nil: nothing does
}

func (o Options) withDefaults() Options {
	o.ReadOnly = o.ReadOnly || !slices.ContainsFunc(o.Sources, func(s Source) bool { return !s.ReadOnly && s.At == 0 })
	o.AllowOther = o.AllowOther || os.Geteuid() == 0
	o.NameTimeout = timeout(o.NameTimeout)
	o.AttrTimeout = timeout(o.AttrTimeout)
	if o.Inodes == 0 {
		o.Inodes = maxInodes
	}
	return o
}

func timeout(d time.Duration) time.Duration {
	switch {
	case d < 0:
		return 0
	case d == 0 || d > maxValid:
		return maxValid
	}
	return d
}

// check refuses options that cannot be mounted.
func (o *Options) check() error {
	if o.Cache == nil || len(o.Sources) == 0 || len(o.Sources) > maxSources {
		return status.Newf(status.Internal, "mount", o.Device, "options without a cache, or with %d sources", len(o.Sources))
	}
	names := map[string]bool{}
	for _, s := range o.Sources {
		switch {
		case s.Session == nil || s.Root.ID == 0:
			return status.Newf(status.Internal, "mount", o.Device, "a source without session or root")
		case s.Name == "" && len(o.Sources) > 1, s.Name != "" && wire.CheckName(s.Name) != nil, names[s.Name]:
			return status.Newf(status.Internal, "mount", o.Device, "%q cannot be a source's name here", s.Name)
		case !s.Root.IsDir():
			return status.Newf(status.NotDir, "mount", s.Name, "only directories can be mounted")
		}
		names[s.Name] = true
	}
	return nil
}

// maxSources is how many tags there are.
const maxSources = 1<<16 - 1

// maxRequest is the most bytes of a read or write, and of what /dev/fuse hands over at once.
const maxRequest = proto.MaxIO

// fuseOptions are go-fuse's. The reasons are those of measurements: requests
// larger than 1 MiB are slower, AUTO_INVAL_DATA drops pages after our own
// writes, splice costs more than it saves for what is in memory, without
// KILLPRIV_V2 each write is preceded by a getxattr.
func (o *Options) fuseOptions(onPanic func()) *fuse.MountOptions {
	return &fuse.MountOptions{
		Name:                     fsSubtype,
		FsName:                   o.Device,
		MaxWrite:                 maxRequest,
		MaxBackground:            64,
		MaxInflightRequestBytes:  256 << 20,
		ExplicitDataCacheControl: true,
		DisableSplice:            true,
		EnableSymlinkCaching:     true,
		ExtraCapabilities: fuse.CAP_HANDLE_KILLPRIV_V2 | fuse.CAP_ATOMIC_O_TRUNC | fuse.CAP_READDIRPLUS_AUTO |
			fuse.CAP_ASYNC_DIO | fuse.CAP_DIRECT_IO_ALLOW_MMAP | fuse.CAP_EXPORT_SUPPORT |
			fuse.CAP_DONT_MASK, // the umask does not count where a directory has a default access control list
		EnableAcl:   o.ACL,
		EnableLocks: true,
		// Passthrough would let writes by.
		DisabledCapabilities: fuse.CAP_PASSTHROUGH,
		Debug:                o.Debug,
		Logger:               log.New(o.Log, "fuse: ", 0),
		PanicHandler: func(v any) fuse.Status {
			o.Log.Error().Str("panic", fmt.Sprint(v)).Bytes("stack", debug.Stack()).Msg("a request met a broken invariant, reported as EIO")
			onPanic()
			return fuse.EIO
		},
	}
}

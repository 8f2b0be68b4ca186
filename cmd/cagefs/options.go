package main

import (
	"errors"
	"math/bits"
	"slices"
	"strings"
	"time"

	"github.com/spf13/pflag"

	"cagefs.dev/cage/cmd/internal/cli"
	"cagefs.dev/cage/pagecache"
	"cagefs.dev/cage/remote"
	"cagefs.dev/cage/remote/lockset"
	"cagefs.dev/cage/remote/proto"
)

// options are the flags of mount.
type options struct {
	foreground bool
	debug      bool
	readOnly   bool
	allowOther bool
	acl        bool
	soft       time.Duration
	hard       bool
	stale      time.Duration
	exclusive  exclusive
	cacheSize  cli.Size
	pageSize   cli.Size
	pages      int64 // 0: as many as cacheSize holds
	policy     string
	dirtySize  cli.Size
	logFile    string
	logLevel   string
	o          []string
}

// Geometry of pages that the cache takes.
const (
	minPage  = 4 << 10
	maxPage  = 4 << 20
	minPages = 16
)

// maxMemory is the most that may be asked for of each kind.
const maxMemory = 1 << 50

func (o *options) register(fs *pflag.FlagSet) {
	fs.BoolVarP(&o.foreground, "foreground", "f", false, "stay in the foreground")
	fs.BoolVarP(&o.debug, "debug", "d", false, "foreground, with a log of all that happens")
	fs.StringArrayVarP(&o.o, "options", "o", nil, "ro, allow_other, acl, soft=TIME, hard, stale=TIME, exclusive[=ws], cache_size=SIZE, page_size=SIZE, pages=N, cache_policy=NAME, dirty_size=SIZE, as -o a,b=c")
	fs.BoolVar(&o.readOnly, "read-only", false, "refuse changes")
	fs.BoolVar(&o.allowOther, "allow-other", false, "let other users in (root's mounts do)")
	fs.BoolVar(&o.acl, "acl", false, "let the kernel check access control lists as well (the server always does)")
	fs.DurationVar(&o.soft, "soft", 30*time.Second, "wait so long for a server that is gone, then fail with an error")
	fs.BoolVar(&o.hard, "hard", false, "wait for ever; waiting processes can be killed")
	fs.DurationVar(&o.stale, "stale", 0, "while the server is gone, answer reads from what is known for so long since it was last heard; not coherent")
	fs.Var(&o.exclusive, "exclusive", "who has a file open keeps other clients from opening it: wm, what is open for writing nobody else opens; ws, others may read it; either way nobody writes what is open for reading")
	fs.Lookup("exclusive").NoOptDefVal = "wm"
	o.cacheSize, o.pageSize, o.dirtySize = 256<<20, 128<<10, remote.DefaultBudget
	fs.Var(&o.cacheSize, "cache-size", "memory for pages")
	fs.Var(&o.pageSize, "page-size", "size of a page: 4KiB to 4MiB, a power of two")
	fs.Int64Var(&o.pages, "pages", 0, "memory for so many pages, instead of cache-size")
	fs.StringVar(&o.policy, "cache-policy", pagecache.Policies[0], "which page leaves a full cache: "+strings.Join(pagecache.Policies, ", "))
	fs.Var(&o.dirtySize, "dirty-size", "memory for writes that the server has not applied, of each source; further ones wait")
	fs.StringVar(&o.logFile, "log-file", "", "log of a mount in the background (default $XDG_STATE_HOME/cage, /var/log/cage for root)")
	fs.StringVar(&o.logLevel, "log-level", "info", "debug, info, warn or error")
}

// settable are the flags that -o may set, under their names there; "-" and "_"
// are equal. ro is the usual name of read-only.
var settable = []string{"read-only", "allow-other", "acl", "soft", "hard", "stale", "exclusive", "cache-size", "page-size", "pages", "cache-policy", "dirty-size", "log-file", "log-level", "debug"}

// ignored are options of mount(8) and fstab that say nothing to a mount of Cage,
// or what it does anyway.
var ignored = []string{
	"rw", "defaults", "auto", "noauto", "user", "nouser", "users", "nousers", "owner", "group", "_netdev", "nofail",
	"async", "atime", "relatime", "dev", "suid", "exec", "default_permissions", "nonempty",
}

// finish applies -o and checks the whole.
func (o *options) finish(fs *pflag.FlagSet) error {
	for _, list := range o.o {
		for opt := range strings.SplitSeq(list, ",") {
			if err := o.set(fs, opt); err != nil {
				return err
			}
		}
	}
	switch {
	case o.hard && fs.Changed("soft"):
		return cli.Usage("soft and hard exclude each other")
	case o.soft <= 0:
		return cli.Usage("--soft %v: the time must be positive", o.soft)
	case o.stale < 0:
		return cli.Usage("--stale %v: the time must not be negative", o.stale)
	case o.pageSize < minPage || o.pageSize > maxPage || bits.OnesCount64(uint64(o.pageSize)) != 1:
		return cli.Usage("--page-size %s: not a power of two from 4KiB to 4MiB", o.pageSize.Short())
	case fs.Changed("pages") && fs.Changed("cache-size"):
		return cli.Usage("pages and cache-size exclude each other")
	case fs.Changed("pages") && (o.pages < minPages || o.pages > maxMemory/int64(o.pageSize)):
		return cli.Usage("--pages %d: not between %d and %d", o.pages, minPages, maxMemory/int64(o.pageSize))
	case o.pages == 0 && (o.cacheSize < minPages*o.pageSize || o.cacheSize > maxMemory):
		return cli.Usage("--cache-size %s: not between %d pages of %s and %s", o.cacheSize.Short(), minPages, o.pageSize.Short(), cli.Size(maxMemory).Short())
	case !slices.Contains(pagecache.Policies, o.policy):
		return cli.Usage("--cache-policy %s: there are %s", o.policy, strings.Join(pagecache.Policies, ", "))
	case o.dirtySize < proto.MaxIO || o.dirtySize > maxMemory:
		return cli.Usage("--dirty-size %s: not between a write, %s, and %s", o.dirtySize.Short(), cli.Size(proto.MaxIO).Short(), cli.Size(maxMemory).Short())
	}
	if o.pages != 0 {
		o.cacheSize = cli.Size(o.pages) * o.pageSize
	}
	if o.hard {
		o.soft = 0
	}
	if o.debug {
		o.foreground, o.logLevel = true, "debug"
	}
	return nil
}

func (o *options) set(fs *pflag.FlagSet, opt string) error {
	name, value, has := strings.Cut(opt, "=")
	if name == "" || slices.Contains(ignored, name) || strings.HasPrefix(name, "x-") || name == "comment" {
		return nil
	}
	flag := strings.ReplaceAll(name, "_", "-")
	if name == "ro" {
		flag = "read-only"
	}
	f := fs.Lookup(flag)
	if f == nil || !slices.Contains(settable, flag) {
		return cli.Usage("unknown option -o %s (see cagefs mount --help)", name)
	}
	if !has {
		if f.NoOptDefVal == "" {
			return cli.Usage("-o %s needs a value", name)
		}
		value = f.NoOptDefVal
	}
	if err := fs.Set(flag, value); err != nil {
		return cli.Usage("-o %s: no value for it: %q", name, value)
	}
	return nil
}

// exclusive is the mode of what is open for writing, as a flag.
type exclusive lockset.Mode

// String implements pflag.Value.
func (e *exclusive) String() string { return lockset.Mode(*e).String() }

// Set implements pflag.Value.
func (e *exclusive) Set(s string) error {
	for _, m := range []lockset.Mode{lockset.WriteShared, lockset.WriteMine} {
		if s == m.String() {
			*e = exclusive(m)
			return nil
		}
	}
	return errors.New("it is wm or ws")
}

// Type implements pflag.Value.
func (e *exclusive) Type() string { return "mode" }

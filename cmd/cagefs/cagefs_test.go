package main

import (
	"bytes"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"cagefs.dev/cage/cmd/internal/cli"
	"cagefs.dev/cage/cmd/internal/control"
	"cagefs.dev/cage/remote/lockset"
)

// cagefs runs a command line and returns its exit code and what it wrote.
func cagefs(t *testing.T, args ...string) (code cli.Exit, out, errs string) {
	t.Helper()
	var o, e bytes.Buffer
	code = app().Main(t.Context(), args, cli.Std{In: strings.NewReader(""), Out: &o, Err: &e})
	return code, o.String(), e.String()
}

func TestTable(t *testing.T) { require.NoError(t, app().Check()) }

func TestWrongCommandLines(t *testing.T) {
	dir := t.TempDir()
	tests := []struct {
		name string
		args []string
		code cli.Exit
		text string
	}{
		{"no mountpoint", []string{"mount", "h:/d"}, cli.ExitUsage, "missing argument"},
		{"no mountpoint, implied", []string{"h:/d"}, cli.ExitUsage, "missing argument"},
		{"no mountpoint after several sources", []string{"mount", "a=h:/d", "h:/e"}, cli.ExitUsage, "h:/e is a source: the mountpoint is missing"},
		{"two sources of a name", []string{"a=h:/d", "a=h:/e", dir}, cli.ExitUsage, "a=h:/e: two sources are called a"},
		{"two exports of a name", []string{"h:/d", "i:7500:/d@-5m", dir}, cli.ExitUsage, "two sources are called d: give it another name, as other=i:7500:/d@-5m"},
		{"no source among sources", []string{"h:/d", "dir", dir}, cli.ExitUsage, "dir: not a source"},
		{"no source", []string{"mount", "h/d", dir}, cli.ExitUsage, "not a source"},
		{"unknown option", []string{"h:/d", dir, "-o", "ro,sauce=5"}, cli.ExitUsage, "cagefs: unknown option -o sauce"},
		{"unknown flag", []string{"mount", "--x", "h:/d", dir}, cli.ExitUsage, "cagefs: unknown flag --x"},
		{"unknown command", []string{"unmount", dir}, cli.ExitUsage, "cagefs: unknown command unmount"},
		{"page size", []string{"h:/d", dir, "--page-size=100K"}, cli.ExitUsage, "not a power of two"},
		{"no mount to unmount", []string{"umount", dir}, cli.ExitNotFound, "not a mountpoint of Cage"},
		{"no mount to ask", []string{"status", dir}, cli.ExitNotFound, "not a mountpoint of Cage"},
		{"no mount to sync", []string{"sync", dir + "/none"}, cli.ExitNotFound, "not a mountpoint of Cage"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			code, out, errs := cagefs(t, tt.args...)
			require.Equal(t, tt.code, code, errs)
			require.Empty(t, out)
			require.Contains(t, errs, tt.text)
			require.Equal(t, 1, strings.Count(errs, "\n"), "one line: %q", errs)
		})
	}
}

func TestOptions(t *testing.T) {
	defaults := options{soft: 30 * time.Second, cacheSize: 256 << 20, pageSize: 128 << 10, policy: "lfu", dirtySize: 64 << 20, logLevel: "info"}
	with := func(change func(*options)) options {
		o := defaults
		change(&o)
		return o
	}
	tests := []struct {
		name string
		args []string
		want options
		err  string
	}{
		{"defaults", nil, defaults, ""},
		{"fstab", []string{"-o", "_netdev,nofail,defaults,rw,noauto,x-systemd.automount,comment=mine"}, defaults, ""},
		{"ro", []string{"-o", "ro"}, with(func(o *options) { o.readOnly = true }), ""},
		{"both spellings", []string{"-o", "allow_other,cache-size=1G", "--page_size=64KiB"}, with(func(o *options) {
			o.allowOther, o.cacheSize, o.pageSize = true, 1<<30, 64<<10
		}), ""},
		{"soft", []string{"-o", "soft=5s"}, with(func(o *options) { o.soft = 5 * time.Second }), ""},
		{"hard", []string{"-o", "hard"}, with(func(o *options) { o.soft, o.hard = 0, true }), ""},
		{"debug", []string{"-d"}, with(func(o *options) { o.debug, o.foreground, o.logLevel = true, true, "debug" }), ""},
		{"stale", []string{"-o", "stale=1h"}, with(func(o *options) { o.stale = time.Hour }), ""},
		{"stale and negative", []string{"--stale=-1s"}, options{}, "must not be negative"},
		{"exclusive", []string{"-o", "exclusive"}, with(func(o *options) { o.exclusive = exclusive(lockset.WriteMine) }), ""},
		{"exclusive writers", []string{"-o", "exclusive=ws"}, with(func(o *options) { o.exclusive = exclusive(lockset.WriteShared) }), ""},
		{"exclusive readers", []string{"-o", "exclusive=rs"}, options{}, `-o exclusive: no value for it: "rs"`},
		{"several -o", []string{"-o", "ro", "-o", "soft=1m,"}, with(func(o *options) { o.readOnly, o.soft = true, time.Minute }), ""},
		{"hard and soft", []string{"--hard", "-o", "soft=5s"}, options{}, "soft and hard exclude each other"},
		{"no time", []string{"-o", "soft=never"}, options{}, `-o soft: no value for it: "never"`},
		{"zero", []string{"--soft=0s"}, options{}, "must be positive"},
		{"value missing", []string{"-o", "cache_size"}, options{}, "-o cache_size needs a value"},
		{"small cache", []string{"-o", "cache_size=1M"}, options{}, "not between 16 pages of 128KiB and 1024TiB"},
		{"pages", []string{"-o", "pages=1000,page_size=4K"}, with(func(o *options) {
			o.pages, o.pageSize, o.cacheSize = 1000, 4<<10, 4000<<10
		}), ""},
		{"policy", []string{"-o", "cache_policy=s3fifo"}, with(func(o *options) { o.policy = "s3fifo" }), ""},
		{"dirty size", []string{"-o", "dirty_size=1M"}, with(func(o *options) { o.dirtySize = 1 << 20 }), ""},
		{"pages and size", []string{"-o", "pages=100,cache_size=1G"}, options{}, "pages and cache-size exclude each other"},
		{"few pages", []string{"-o", "pages=15"}, options{}, "--pages 15: not between 16 and"},
		{"no pages", []string{"-o", "pages=0"}, options{}, "--pages 0: not between 16 and"},
		{"many pages", []string{"--pages=9000000000000000000"}, options{}, "not between 16 and"},
		{"no number", []string{"-o", "pages=many"}, options{}, `-o pages: no value for it: "many"`},
		{"no policy", []string{"-o", "cache_policy=best"}, options{}, "--cache-policy best: there are lfu, lru, s3fifo"},
		{"small dirty size", []string{"-o", "dirty_size=64K"}, options{}, "--dirty-size 64KiB: not between a write, 1MiB, and"},
		{"page too large", []string{"-o", "page_size=8M"}, options{}, "not a power of two from 4KiB to 4MiB"},
		{"not for -o", []string{"-o", "foreground"}, options{}, "unknown option -o foreground"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			var o options
			c := cli.New("mount", "", "")
			o.register(c.Flags)
			require.NoError(t, c.Flags.Parse(tt.args))
			err := o.finish(c.Flags)
			if tt.err != "" {
				require.ErrorContains(t, err, tt.err)
				require.Equal(t, cli.ExitUsage, cli.ExitOf(err))
				return
			}
			require.NoError(t, err)
			o.o = nil
			require.Equal(t, tt.want, o)
		})
	}
}

// The command line of the mount's process means the same as the one typed.
func TestChildArgs(t *testing.T) {
	var o options
	c := cli.New("mount", "", "")
	o.register(c.Flags)
	require.NoError(t, c.Flags.Parse([]string{"-o", "ro,soft=5s,_netdev,cache_policy=lru,dirty_size=2M", "--pages", "5000", "a=h:/d", "h:/e", "mnt"}))
	require.NoError(t, o.finish(c.Flags))
	args := childArgs(c.Flags, &spec{mountpoint: "/abs/mnt"})
	require.Equal(t, "mount", args[0])

	var again options
	c = cli.New("mount", "", "")
	again.register(c.Flags)
	require.NoError(t, c.Flags.Parse(args[1:]))
	require.NoError(t, again.finish(c.Flags))
	require.Equal(t, []string{"a=h:/d", "h:/e", "/abs/mnt"}, c.Flags.Args())
	o.o, o.foreground = nil, true
	require.Equal(t, o, again)
}

func TestLogPath(t *testing.T) {
	m := &spec{mountpoint: "/mnt/a/b", opts: &options{}}
	t.Setenv("XDG_STATE_HOME", "/state")
	path, chosen, err := m.logPath()
	require.NoError(t, err)
	require.False(t, chosen)
	require.Equal(t, "/state/cage/mnt-a-b.log", path)
	m.opts.logFile = "/var/log/x"
	path, chosen, err = m.logPath()
	require.NoError(t, err)
	require.True(t, chosen)
	require.Equal(t, "/var/log/x", path)
}

func TestPrintStatus(t *testing.T) {
	since := time.Date(2026, 11, 21, 14, 2, 3, 0, time.Local)
	src := control.Source{
		Source: "h:/d", Addr: "h:7400", State: "reconnecting", Since: since,
		Unapplied: 3, Bytes: 3 << 19, DataConns: 2, Resumes: 1, LastError: "connection refused",
		Owed: []control.Owed{
			{File: control.File{Path: "dir/file", FID: 7}, Bytes: 1 << 20}, {File: control.File{FID: 8}, Bytes: 1 << 10},
			{File: control.File{Path: "\ufffd", PathB64: []byte("\xff"), FID: 9}, Bytes: 1},
		},
		MoreOwed: 2, Refused: &control.Refused{File: control.File{Path: "db", FID: 10}, When: since, Why: "laptop has it open in mode wm"},
	}
	s := control.Status{Mountpoint: "/mnt", Source: src, Mounted: since, Software: "cagefs 0.1", PID: 7, Sources: []control.Source{src}}
	var b bytes.Buffer
	require.NoError(t, printStatus(&b, s))
	require.Equal(t, `h:/d on /mnt (read-write)
server       h:7400, reconnecting since 2026-11-21 14:02:03, 2 data connections, resumed 1 times
leases       0, 0 of them for writing
everything is on the server: no: 3 changes, 1.5MiB of data
  1MiB of dir/file
  1KiB of fid 8
  1B of "\xff"
  and of 2 more
refused      db, 2026-11-21 14:02:03: laptop has it open in mode wm
process      7, cagefs 0.1, mounted 2026-11-21 14:02:03
last error   connection refused
`, b.String())

	require.Equal(t, ` of dir/file, fid 8, "\xff" and 2 more files`, ofFiles(src))
	require.Equal(t, " of dir/file", ofFiles(control.Source{Owed: src.Owed[:1]}))
	require.Empty(t, ofFiles(control.Source{}), "changes without data")

	src.Name, src.Owed, src.MoreOwed = "a", nil, 0
	other := control.Source{Name: "b", Source: "i:/e", Addr: "i:7400", State: "online", Since: since, SilentMS: 6789, At: 9, ReadOnly: true, Delivered: true, Leases: 12, Writing: 3}
	s.Sources = []control.Source{src, other}
	b.Reset()
	require.NoError(t, printStatus(&b, s))
	require.Equal(t, `2 sources on /mnt
process      7, cagefs 0.1, mounted 2026-11-21 14:02:03
a: h:/d (read-write)
  server       h:7400, reconnecting since 2026-11-21 14:02:03, 2 data connections, resumed 1 times
  leases       0, 0 of them for writing
  everything is on the server: no: 3 changes, 1.5MiB of data
  refused      db, 2026-11-21 14:02:03: laptop has it open in mode wm
  last error   connection refused
b: i:/e (read-only, as of @9)
  server       i:7400, online since 2026-11-21 14:02:03, no answer for 6s, 0 data connections, resumed 0 times
  leases       12, 3 of them for writing
  everything is on the server: yes
`, b.String())
}

func TestPrintStats(t *testing.T) {
	s := control.Stats{
		PageSize: 64 << 10, Policy: "lru", Pages: 3, Bytes: 192 << 10, Budget: 1 << 20, Files: 2, Inodes: 11, InodeBudget: 12, Hits: 5, Misses: 4, ReadAheads: 1, Evictions: 7,
		Dirty: 3 << 20, DirtyBudget: 8 << 20, MemoryLimit: 200 << 20, Sources: []control.SourceStats{{Dirty: 3 << 20}},
	}
	var b bytes.Buffer
	require.NoError(t, printStats(&b, s))
	require.Equal(t, `pages   3 of up to 64KiB, 192KiB of 1MiB, of 2 files
reads   5 hits, 4 misses, 1 read ahead
evicted 7, policy lru
inodes  11 of 12
writes  3MiB of 8MiB not applied yet
memory  limit 200MiB
`, b.String())
	s.Sources = []control.SourceStats{{Name: "a", Dirty: 3 << 20}, {Name: "b"}}
	b.Reset()
	require.NoError(t, printStats(&b, s))
	require.Contains(t, b.String(), "writes to a  3MiB of 8MiB not applied yet\nwrites to b  0B of 8MiB not applied yet\n")
}

func TestMemoryFollowsTheBudgets(t *testing.T) {
	m, err := newSpec([]string{"h:/a", "h:/b"}, "/mnt", &options{cacheSize: 1 << 30, dirtySize: 1 << 20})
	require.NoError(t, err)
	require.EqualValues(t, 1<<30+2<<20+workingMemory, m.memory())
}

func TestSourcesTogether(t *testing.T) {
	now := time.Now()
	a := control.Source{Name: "a", State: "online", Since: now, LastError: "old", ReadOnly: true, Unapplied: 1, Bytes: 2, DataConns: 3, Resumes: 4, Owed: make([]control.Owed, 7), MoreOwed: 1}
	b := control.Source{Name: "b", State: "reconnecting", Since: now.Add(1), LastError: "refused", Unapplied: 10, Bytes: 20, DataConns: 30, Resumes: 40, Owed: make([]control.Owed, 5)}
	require.Equal(t, control.Source{State: "reconnecting", Since: now.Add(1), LastError: "refused", Unapplied: 11, Bytes: 22, DataConns: 33, Resumes: 44, Owed: make([]control.Owed, control.MaxOwed), MoreOwed: 3},
		together([]control.Source{a, b}))
	require.Equal(t, a, together([]control.Source{a}))
}

// What `cagefs mount` takes as the sources of a mount, and the device it shows.
func TestSpec(t *testing.T) {
	many := make([]string, 100)
	for i := range many {
		many[i] = fmt.Sprintf("%d=h:/an-export-with-a-name-of-some-length", i)
	}
	for _, tt := range []struct {
		sources []string
		names   []string
		device  string
	}{
		{[]string{"h:/d/sub"}, []string{""}, "h:/d/sub"},
		{[]string{"a=h:/d"}, []string{"a"}, "h:/d"},
		{[]string{"h:/d@-5m", "h:7500:/e/x", "now=h:/d"}, []string{"d", "e", "now"}, "h:/d@-5m,h:/e/x,h:/d"},
	} {
		m, err := newSpec(tt.sources, "/mnt", &options{})
		require.NoError(t, err)
		require.Equal(t, tt.names, m.names())
		require.Equal(t, tt.device, m.device())
	}
	m, err := newSpec(many, "/mnt", &options{})
	require.NoError(t, err)
	require.LessOrEqual(t, len(m.device()), maxDevice+len(",…"))
	require.True(t, strings.HasSuffix(m.device(), ",…"))
}

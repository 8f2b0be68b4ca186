package main

import (
	"bytes"
	"context"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"cagefs.dev/cage/cmd/internal/cli"
	"cagefs.dev/cage/cmd/internal/control"
	"cagefs.dev/cage/remote/proto"
	"cagefs.dev/cage/remote/status"
	"cagefs.dev/cage/remote/wire"
)

func TestTable(t *testing.T) { require.NoError(t, app().Check()) }

func TestWrongCommandLines(t *testing.T) {
	dir := t.TempDir()
	tests := []struct {
		name string
		args []string
		code cli.Exit
		text string
	}{
		{"not in a mount", []string{"log", dir}, cli.ExitNotFound, "not in a mount of Cage"},
		{"too many paths", []string{"log", "a", "b"}, cli.ExitUsage, "too many arguments"},
		{"before what", []string{"log", "--before", "noon"}, cli.ExitUsage, "not @LSN"},
		{"show what", []string{"show", "x"}, cli.ExitUsage, "not @LSN"},
		{"cat what", []string{"cat"}, cli.ExitUsage, "missing argument"},
		{"bad label", []string{"label", "a b", dir}, cli.ExitUsage, "a name is of letters"},
		{"rollback to when", []string{"rollback", dir}, cli.ExitUsage, "--to MOMENT is missing"},
		{"no moment", []string{"rollback", dir, "--to", "@whenever", "-n"}, cli.ExitUsage, "no moment"},
		{"nobody to ask", []string{"rollback", dir, "--to", "@1"}, cli.ExitUsage, "nobody to ask: use -y to do it, -n to see the plan"},
		{"nobody to ask for undo", []string{"undo", "@5", dir}, cli.ExitUsage, "nobody to ask"},
		{"undo what", []string{"undo", "@-5m", "-y"}, cli.ExitUsage, "not @LSN"},
		{"branch what", []string{"branch", "prune", dir}, cli.ExitUsage, "branch prune: not one of list, show"},
		{"branch show which", []string{"branch", "show"}, cli.ExitUsage, "branch show: 0 arguments, it takes 1 to 2"},
		{"nobody to ask of a branch", []string{"branch", "apply", "8b90", dir}, cli.ExitUsage, "branch apply: nobody to ask"},
		{"import of nothing", []string{"branch", "import", dir + "/none"}, cli.ExitNotFound, "no such file"},
		{"new what", []string{"rollback", dir, "--to", "@1", "--new=burn"}, cli.ExitUsage, "use remove or keep"},
		{"source of no export", []string{"log", "h:/"}, cli.ExitUsage, "the name of an export is missing"},
		{"offline without directory", []string{"log", "--dir", dir + "/none"}, cli.ExitNotFound, "no such file"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			var out, errs bytes.Buffer
			code := app().Main(t.Context(), tt.args, cli.Std{In: strings.NewReader("y\n"), Out: &out, Err: &errs})
			require.Equal(t, tt.code, code, errs.String())
			require.Empty(t, out.String())
			require.Contains(t, errs.String(), tt.text)
			require.Equal(t, 1, strings.Count(errs.String(), "\n"), "one line: %q", errs.String())
		})
	}
}

func TestParseLSN(t *testing.T) {
	for in, want := range map[string]proto.LSN{"@123": 123, "7": 7, "@1000000000000": 1e12} {
		got, ok := parseLSN(in)
		require.True(t, ok, in)
		require.Equal(t, want, got)
	}
	for _, bad := range []string{"", "@", "0", "@0", "-1", "@1x", "@@1", "99999999999999999999"} {
		_, ok := parseLSN(bad)
		require.False(t, ok, bad)
	}
}

func TestWholePath(t *testing.T) {
	tests := []struct {
		name, below, short, arg, want string
		ok                            bool
	}{
		{"file", "src/a", "mnt/src/a", "mnt/src/a@14:02", "src/a@14:02", true},
		{"only a moment", "src", "", "@-5m", "src/@-5m", true},
		{"in a directory", "src", "mnt/src/", "mnt/src/@-5m", "src/@-5m", true},
		{"the mount's root", "", "mnt", "mnt@-5m", "", false},
		{"in the root", "", "mnt/", "mnt/@-5m", "@-5m", true},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			got, ok := wholePath(tt.below, tt.short, tt.arg)
			require.Equal(t, tt.ok, ok)
			require.Equal(t, tt.want, got)
		})
	}
}

func TestMountedName(t *testing.T) {
	dir := t.TempDir()
	t.Chdir(dir)
	require.Equal(t, "a/b", mountedName(dir, "", "a/b"))
	require.Equal(t, ".", mountedName(dir, "src", "src"))
	require.Equal(t, "x", mountedName(dir, "src", "src/x"))
	require.Equal(t, "/mnt/x", mountedName("/mnt", "src", "src/x"))
	require.Equal(t, "/other/x", mountedName("/mnt", "src", "other/x"), "not in the mount: its path in the export")
}

func TestWhereAPathOfAMountIs(t *testing.T) {
	for _, tt := range []struct {
		name        string
		mount       control.Mount
		where       control.Where
		below       string // the mount's file system's root
		point, top  string
		path, typed string // of the file in the export, and in the mount
	}{
		{"whole export", control.Mount{Point: "/mnt", Root: "/"}, control.Where{}, "x/y", "/mnt", "", "x/y", "/mnt/x/y"},
		{"directory of an export", control.Mount{Point: "/mnt", Root: "/"}, control.Where{Sub: "s"}, "x", "/mnt", "s", "s/x", "/mnt/x"},
		{"bind mount", control.Mount{Point: "/bind", Root: "/x"}, control.Where{Sub: "s"}, "x/y", "/bind", "s/x", "s/x/y", "/bind/y"},
		{"one of several", control.Mount{Point: "/mnt", Root: "/"}, control.Where{Dir: "a"}, "a/a/y", "/mnt/a", "", "a/y", "/mnt/a/a/y"},
		{"itself", control.Mount{Point: "/mnt", Root: "/"}, control.Where{Dir: "a", Sub: "s"}, "a", "/mnt/a", "s", "s", "/mnt/a"},
		{"bind mount of one of several", control.Mount{Point: "/bind", Root: "/a"}, control.Where{Dir: "a", Sub: "s"}, "a/y", "/bind", "s", "s/y", "/bind/y"},
		{"bind mount in one of several", control.Mount{Point: "/bind", Root: "/a/x"}, control.Where{Dir: "a"}, "a/x/y", "/bind", "x", "x/y", "/bind/y"},
	} {
		point, top := shown(tt.mount, tt.where)
		require.Equal(t, tt.point, point, tt.name)
		require.Equal(t, tt.top, top, tt.name)
		path := tt.where.Path(tt.below)
		require.Equal(t, tt.path, path, tt.name)
		require.Equal(t, tt.typed, mountedName(point, top, path), tt.name)
	}
}

func TestShellQuote(t *testing.T) {
	for in, want := range map[string]string{
		"": "''", "/mnt/a-b_c.d": "/mnt/a-b_c.d", "h:7400:/d/x@14:02": "h:7400:/d/x@14:02",
		"a b": "'a b'", "it's": `'it'\''s'`, "$x": "'$x'", "für": "'für'",
	} {
		require.Equal(t, want, shellQuote(in))
	}
}

func TestModeString(t *testing.T) {
	for mode, want := range map[uint32]string{
		proto.ModeRegular | 0o644: "-rw-r--r--", proto.ModeDir | 0o755: "drwxr-xr-x", proto.ModeSymlink | 0o777: "lrwxrwxrwx",
		proto.ModeRegular | proto.ModeSetuid | 0o755: "-rwsr-xr-x", proto.ModeDir | proto.ModeSetgid | 0o700: "drwx--S---",
		proto.ModeDir | proto.ModeSticky | 0o777: "drwxrwxrwt", proto.ModeBlock: "b---------", 0: "?---------",
	} {
		require.Equal(t, want, modeString(mode))
	}
}

// fake is a history in memory.
type fake struct {
	history // nil: what is not overridden is not called
	entries []proto.Entry
	plan    []proto.PlanStep
	fail    error
	asked   []wire.LogReq
	made    []proto.Op
}

func (f *fake) Log(_ context.Context, q wire.LogReq) (wire.LogRep, error) {
	f.asked = append(f.asked, q)
	var rep wire.LogRep
	for _, e := range f.entries {
		if q.Before != 0 && e.LSN >= q.Before {
			continue
		}
		if len(rep.Entries) == int(q.Limit) {
			rep.More = true
			break
		}
		rep.Entries = append(rep.Entries, e)
	}
	return rep, nil
}

func (f *fake) Change(_ context.Context, op proto.Op) (proto.Result, error) {
	f.made = append(f.made, op)
	r := proto.Result{Plan: f.plan}
	if f.fail != nil {
		return r, f.fail
	}
	dry := false
	switch op := op.(type) {
	case *proto.Rollback:
		dry = op.DryRun
	case *proto.Undo:
		dry = op.DryRun
	}
	if !dry && len(f.plan) > 0 {
		r.LSN = 123
	}
	return r, nil
}

func fakeTarget(f *fake) *target {
	return &target{history: f, path: "src", name: func(p string) string { return "/mnt/" + p }, hint: "/mnt/src"}
}

func TestPrintHistoryPages(t *testing.T) {
	f := &fake{}
	for lsn := proto.LSN(pageEntries + 500); lsn > 0; lsn-- {
		f.entries = append(f.entries, proto.Entry{LSN: lsn, Kind: "write"})
	}
	tests := []struct{ limit, want, calls int }{{0, pageEntries + 500, 2}, {7, 7, 1}, {pageEntries, pageEntries, 1}, {pageEntries + 1, pageEntries + 1, 2}}
	for _, tt := range tests {
		t.Run(fmt.Sprint(tt.limit), func(t *testing.T) {
			f.asked = nil
			var b bytes.Buffer
			n, err := printHistory(t.Context(), f, wire.LogReq{Path: "src"}, tt.limit, newEntryPrinter(&b, fakeTarget(f), false))
			require.NoError(t, err)
			require.Equal(t, tt.want, n)
			require.Equal(t, tt.want, strings.Count(b.String(), "\n"))
			require.Len(t, f.asked, tt.calls)
		})
	}
}

func TestPrintEntries(t *testing.T) {
	at := proto.Time(time.Date(2026, 11, 21, 14, 2, 3, 456_000_000, time.Local).UnixNano())
	entries := []proto.Entry{
		{LSN: 12, Time: at, Kind: "write", ID: 5, Path: "src/a", Client: "host", UID: 4_000_000, Comm: "cp", Off: 4096, Bytes: 100, Session: 0xabc},
		{LSN: 11, Time: at, Kind: "rename", ID: 6, Path: "src/b\n", NewPath: "src/c", Client: "host", UID: 4_000_000, Comm: "mv"},
		{LSN: 8, Time: at, Kind: "rollback", Path: "src", Client: "host", UID: 4_000_000, Records: 3, Detail: "to @4", Undone: 12},
		{LSN: 7, Time: at, Kind: "label", Detail: "now", UID: 4_000_000},
	}
	var b bytes.Buffer
	p := newEntryPrinter(&b, fakeTarget(nil), false)
	for i := range entries {
		require.NoError(t, p.print(&entries[i]))
	}
	require.Equal(t, `@12      2026-11-21T14:02:03.456  host         4000000  cp           write       /mnt/src/a  100 bytes at 4096
@11      2026-11-21T14:02:03.456  host         4000000  mv           rename      "/mnt/src/b\n" -> /mnt/src/c
@8       2026-11-21T14:02:03.456  host         4000000  -            rollback    /mnt/src  to @4  (3 records)  [taken back by @12]
@7       2026-11-21T14:02:03.456  -            4000000  -            label         now
`, b.String())

	b.Reset()
	p.json = true
	entries[0].Time = 1e9
	require.NoError(t, p.print(&entries[0]))
	require.Equal(t, `{"schema":1,"lsn":12,"time":"1970-01-01T00:00:01Z","kind":"write","path":"src/a","fid":5,"client":"host","session":"0000000000000abc","uid":4000000,"gid":0,"command":"cp","offset":4096,"bytes":100}`+"\n", b.String())
}

func TestChanging(t *testing.T) {
	plan := []proto.PlanStep{{Action: "restore", Path: "src/a"}, {Action: "move", Path: "src/b", From: "c"}}
	const lines = "restore    /mnt/src/a\nmove       /mnt/src/b from /mnt/c\n"
	const hint = "done as @123; undo with: cagejournal undo @123 /mnt/src\n"
	tests := []struct {
		name      string
		ch        changing
		f         fake
		answer    string
		code      cli.Exit
		out, errs string
		dry       []bool // of the operations that were made
	}{
		{"for good", changing{yes: true}, fake{plan: plan}, "", 0, lines, hint, []bool{false}},
		{"dry run", changing{dryRun: true, yes: true}, fake{plan: plan}, "", 0, lines, "", []bool{true}},
		{"asked, yes", changing{}, fake{plan: plan}, "y\n", 0, lines, "go on? [y/N] " + hint, []bool{true, false}},
		{"asked, no", changing{}, fake{plan: plan}, "n\n", cli.ExitInterrupted, lines, "go on? [y/N] nothing was changed\n", []bool{true}},
		{"nothing to do", changing{}, fake{}, "", 0, "", "nothing has to be changed\n", []bool{true}},
		{"conflict", changing{yes: true}, fake{plan: []proto.PlanStep{{Action: "conflict", Path: "x", Detail: "changed by @9"}}, fail: status.Conflict},
			"", cli.ExitConflict, "conflict   /mnt/x  changed by @9\n", "", []bool{false}},
		{"json", changing{yes: true, json: true}, fake{plan: plan[:1]}, "", 0,
			`{"schema":1,"action":"restore","path":"src/a"}` + "\n" +
				`{"schema":1,"lsn":123,"steps":1,"dry_run":false,"undo":"cagejournal undo @123 /mnt/src"}` + "\n", "", []bool{false}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			var out, errs bytes.Buffer
			err := tt.ch.do(t.Context(), fakeTarget(&tt.f), cli.Std{In: strings.NewReader(tt.answer), Out: &out, Err: &errs},
				func(dryRun bool) proto.Op { return &proto.Undo{DryRun: dryRun} })
			require.Equal(t, tt.code, cli.ExitOf(err))
			require.Equal(t, tt.out, out.String())
			require.Equal(t, tt.errs, errs.String())
			var dry []bool
			for _, op := range tt.f.made {
				dry = append(dry, op.(*proto.Undo).DryRun)
			}
			require.Equal(t, tt.dry, dry)
		})
	}
}

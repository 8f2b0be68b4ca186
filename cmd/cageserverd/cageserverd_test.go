package main

import (
	"bytes"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"cagefs.dev/cage/cmd/internal/cli"
	"cagefs.dev/cage/journal"
	"cagefs.dev/cage/serverd"
)

func TestTable(t *testing.T) { require.NoError(t, app().Check()) }

func TestExportFlag(t *testing.T) {
	wd, err := os.Getwd()
	require.NoError(t, err)
	tests := []struct {
		in   string
		want serverd.Spec
		ok   bool
	}{
		{"data=/srv/data", serverd.Spec{Name: "data", Dir: "/srv/data"}, true},
		{"pub=/srv/pub,ro", serverd.Spec{Name: "pub", Dir: "/srv/pub", ReadOnly: true}, true},
		{"c=/srv/a,b", serverd.Spec{Name: "c", Dir: "/srv/a,b"}, true},
		{"e=/srv/a=b", serverd.Spec{Name: "e", Dir: "/srv/a=b"}, true},
		{"r=sub/", serverd.Spec{Name: "r", Dir: filepath.Join(wd, "sub")}, true},
		{"data", serverd.Spec{}, false},
		{"=/srv", serverd.Spec{}, false},
		{"data=", serverd.Spec{}, false},
	}
	for _, tt := range tests {
		t.Run(tt.in, func(t *testing.T) {
			var f exportFlag
			err := f.Set(tt.in)
			require.Equal(t, tt.ok, err == nil)
			if tt.ok {
				require.Equal(t, exportFlag{tt.want}, f)
			}
		})
	}
	f := exportFlag{{Name: "a", Dir: "/x"}, {Name: "b", Dir: "/y", ReadOnly: true}}
	require.Equal(t, "a=/x b=/y,ro", f.String())
}

func TestWrongCommandLines(t *testing.T) {
	dir := t.TempDir()
	t.Setenv("XDG_CONFIG_HOME", filepath.Join(dir, "config"))
	state := filepath.Join(dir, "state")
	require.NoError(t, os.WriteFile(filepath.Join(dir, "file"), nil, 0o600))
	require.NoError(t, os.MkdirAll(filepath.Join(dir, "outer", "inner"), 0o700))
	require.NoError(t, os.WriteFile(filepath.Join(dir, "bad.conf"), []byte("listen = :1\nexports = x\n"), 0o600))
	tests := []struct {
		name string
		args []string
		code cli.Exit
		text string
	}{
		{"nothing to export", []string{"serve"}, cli.ExitUsage, "nothing to export"},
		{"argument", []string{"serve", "x"}, cli.ExitUsage, "too many arguments"},
		{"export without directory", []string{"serve", "--export", "data"}, cli.ExitUsage, "not NAME=DIR[,ro]"},
		{"bad name", []string{"serve", "--export", "a b=" + dir}, cli.ExitUsage, "a name consists of"},
		{"missing directory", []string{"serve", "--export", "d=" + dir + "/none"}, cli.ExitNotFound, "does not exist"},
		{"a file", []string{"serve", "--export", "d=" + dir + "/file"}, cli.ExitNotFound, "not a directory"},
		{"nested", []string{"serve", "--export", "a=" + dir + "/outer", "--export", "b=" + dir + "/outer/inner"}, cli.ExitConflict, "lies in"},
		{"log level", []string{"serve", "--export", "d=" + dir, "--log-level", "loud"}, cli.ExitUsage, "--log-level loud"},
		{"size", []string{"serve", "--export", "d=" + dir, "--history-cap", "x"}, cli.ExitUsage, "--history-cap x"},
		{"idle timeout", []string{"serve", "--export", "d=" + dir, "--idle-timeout", "1s"}, cli.ExitUsage, "at least 20s"},
		{"journal of nothing", []string{"serve", "--export", "d=" + dir, "--journal", "e=" + dir}, cli.ExitUsage, "no export of that name"},
		{"journal without a name", []string{"serve", "--export", "d=" + dir, "--journal", dir}, cli.ExitUsage, "not NAME=DIR"},
		{"journal in the export", []string{"serve", "--export", "d=" + dir, "--journal", "d=" + dir + "/outer"}, cli.ExitConflict, "must not lie in one another"},
		{"no config", []string{"serve", "--config", dir + "/none"}, cli.ExitNotFound, "no such file"},
		{"bad config", []string{"serve", "--config", dir + "/bad.conf"}, cli.ExitUsage, "bad.conf:2: no setting named"},
		{"recover nothing", []string{"recover"}, cli.ExitUsage, "no directory given"},
		{"recover a missing directory", []string{"recover", dir + "/none"}, cli.ExitNotFound, "no such file"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			args := tt.args
			if args[0] == "serve" {
				args = append(args, "--state", state)
			}
			var out, errs bytes.Buffer
			code := app().Main(t.Context(), args, cli.Std{In: strings.NewReader(""), Out: &out, Err: &errs})
			require.Equal(t, tt.code, code, errs.String())
			require.Empty(t, out.String())
			require.Contains(t, errs.String(), tt.text)
			require.Equal(t, 1, strings.Count(errs.String(), "\n"), "one line: %q", errs.String())
			require.NoDirExists(t, state, "a mistyped command leaves no keys behind")
		})
	}
}

func TestPrintReport(t *testing.T) {
	r := &journal.Report{
		Boot: 3, Last: 42, Replayed: 7, Moved: 1, Remade: 2,
		Missing: []journal.Missing{{Path: "a/b", Off: 4096, Len: 8192}}, Strangers: []string{"x\ny"},
	}
	var b bytes.Buffer
	require.NoError(t, printReport(&b, "/srv", r))
	require.Equal(t, `/srv: in order (after a crash): newest change @42, 7 changes applied again, 1 names moved, 2 files made again
missing  a/b: 8192 bytes at 4096 that nobody had synced
moved away  "x\ny": something else stood where the journal knows a file
`, b.String())

	b.Reset()
	require.NoError(t, cli.JSON(&b, reportJSON("/srv", &journal.Report{Clean: true, Boot: 1})))
	require.Equal(t, `{"schema":1,"dir":"/srv","clean":true,"boot":1,"newest_lsn":0,"replayed":0,"moved":0,"remade":0,"missing":[],"moved_away":[]}`+"\n", b.String())
}

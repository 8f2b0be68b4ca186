package main

import (
	"bytes"
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/rs/zerolog"
	"github.com/stretchr/testify/require"

	"cagefs.dev/cage/cmd/internal/cli"
	"cagefs.dev/cage/journal"
	"cagefs.dev/cage/journal/vfs"
	"cagefs.dev/cage/remote/proto"
)

// madeExport is an export with a history: the file notes says "one" at
// @label:first, then "two"; sub/gone was removed.
func madeExport(t *testing.T) (dir string, hold func() (release func())) {
	t.Helper()
	dir = t.TempDir()
	open := func() (*journal.Journal, func()) {
		fs, err := vfs.OS(dir)
		require.NoError(t, err)
		j, _, err := journal.Open(t.Context(), journal.Options{FS: fs, Log: zerolog.Nop()})
		require.NoError(t, err)
		return j, func() {
			require.NoError(t, j.Close())
			require.NoError(t, fs.Close())
		}
	}
	j, release := open()
	client, err := j.Client("tester")
	require.NoError(t, err)
	require.NoError(t, j.OpenSession(7, client, "key"))
	seq := proto.Seq(0)
	do := func(op proto.Op) proto.FileID {
		seq++
		r, err := j.Do(t.Context(), &journal.Submission{
			Change: &proto.Change{Session: 7, Seq: seq, Acked: seq - 1, Ident: proto.Ident{Comm: "test"}, Op: op},
			Client: client, Trusted: true,
		})
		require.NoError(t, err)
		return r.ID
	}
	notes := do(&proto.Make{Dir: proto.RootID, Name: "notes", Mode: proto.ModeRegular | 0o640})
	do(&proto.Write{ID: notes, Data: []byte("one")})
	sub := do(&proto.Make{Dir: proto.RootID, Name: "sub", Mode: proto.ModeDir | 0o755})
	do(&proto.Make{Dir: sub, Name: "gone", Mode: proto.ModeSymlink | 0o777, Target: "away"})
	do(&proto.Label{Name: "first"})
	do(&proto.Write{ID: notes, Data: []byte("two")})
	do(&proto.Remove{Dir: sub, Name: "gone"})
	release()
	return dir, func() func() {
		_, release := open()
		return release
	}
}

func TestOffline(t *testing.T) {
	dir, hold := madeExport(t)
	run := func(t *testing.T, want cli.Exit, args ...string) (out, errs string) {
		t.Helper()
		var o, e bytes.Buffer
		code := app().Main(t.Context(), append(args, "--dir", dir), cli.Std{In: strings.NewReader(""), Out: &o, Err: &e})
		require.Equal(t, want, code, e.String())
		return o.String(), e.String()
	}
	kinds := func(out string) (kinds []string) {
		for line := range strings.Lines(out) {
			var e struct {
				Schema int
				Kind   string
			}
			require.NoError(t, json.Unmarshal([]byte(line), &e), line)
			require.Equal(t, 1, e.Schema)
			kinds = append(kinds, e.Kind)
		}
		return kinds
	}

	t.Run("log", func(t *testing.T) {
		out, _ := run(t, cli.ExitOK, "log", "notes", "--json")
		require.Equal(t, []string{"write", "write", "make"}, kinds(out))
		out, _ = run(t, cli.ExitOK, "log", "sub/gone", "--json")
		require.Equal(t, []string{"remove", "make"}, kinds(out))
		out, _ = run(t, cli.ExitOK, "log", "-n", "1", "--json")
		require.Equal(t, []string{"remove"}, kinds(out))
		run(t, cli.ExitNotFound, "log", "never")
	})
	t.Run("read", func(t *testing.T) {
		for arg, want := range map[string]string{"notes": "two", "notes@label:first": "one", "/notes@label:first": "one"} {
			out, _ := run(t, cli.ExitOK, "cat", arg)
			require.Equal(t, want, out, arg)
		}
		out, _ := run(t, cli.ExitOK, "cat", "notes", "--at", "label:first")
		require.Equal(t, "one", out)
		run(t, cli.ExitUsage, "cat", "sub")
		run(t, cli.ExitNotFound, "cat", "notes@label:never")
		run(t, cli.ExitNotFound, "cat", "notes@999999")

		out, _ = run(t, cli.ExitOK, "stat", "sub/gone@label:first")
		require.Contains(t, out, "sub/gone -> away\n")
		run(t, cli.ExitNotFound, "stat", "sub/gone")
		out, _ = run(t, cli.ExitOK, "ls", "sub@label:first")
		require.Contains(t, out, " gone\n")
		out, _ = run(t, cli.ExitOK, "ls", "sub")
		require.Empty(t, out)
		out, _ = run(t, cli.ExitOK, "ls", "@label:first")
		require.Contains(t, out, "-rw-r-----")
	})
	t.Run("a name that looks like a moment", func(t *testing.T) {
		require.NoError(t, os.WriteFile(filepath.Join(dir, "notes@14:02"), []byte("itself"), 0o600))
		out, _ := run(t, cli.ExitOK, "stat", "notes@14:02", "--json")
		require.Contains(t, out, `"path":"notes@14:02"`)
	})
	t.Run("label", func(t *testing.T) {
		run(t, cli.ExitOK, "label", "second", "-n")
		out, _ := run(t, cli.ExitOK, "label", "second")
		require.Regexp(t, `^@label:second is @\d+\n$`, out)
		run(t, cli.ExitConflict, "label", "second")
	})
	t.Run("checks", func(t *testing.T) {
		out, _ := run(t, cli.ExitOK, "verify")
		require.Contains(t, out, ": 0 problems\n")
		out, _ = run(t, cli.ExitOK, "usage", "--json")
		require.Contains(t, out, `"newest_lsn":`)
	})
	t.Run("held by a server", func(t *testing.T) {
		defer hold()()
		_, errs := run(t, cli.ExitBusy, "label", "third")
		require.Contains(t, errs, "another server has this export")
	})
}

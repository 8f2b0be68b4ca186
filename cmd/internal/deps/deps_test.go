// Package deps holds the test of which package may import which. The two halves
// of Cage meet only at the wire, and a reader follows data downwards; an import
// against that direction fails here, with the reason.
package deps

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os/exec"
	"slices"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

const module = "cagefs.dev/cage/"

// pkg is what `go list` tells of a package. Paths in it are relative to the
// module where they are in it.
type pkg struct {
	ImportPath string
	Imports    []string // of the package without its tests
	Deps       []string // these, and theirs
	GoFiles    []string
}

// allowed lists, for each package, the packages of Cage that its files other
// than tests may import. remote/proto and remote/status are open to all but
// those that stand in bare.
var allowed = map[string][]string{
	"cmd/cagefs":           {"fusefs", "pagecache", "remote", "remote/auth", "remote/lease", "remote/lockset", "remote/page", "remote/wire", "cmd/internal/cli", "cmd/internal/control"},
	"cmd/cageserverd":      {"serverd", "journal", "journal/vfs", "remote/auth", "cmd/internal/cli", "cmd/internal/control"},
	"cmd/cagejournal":      {"journal", "journal/replay", "journal/vfs", "remote", "remote/auth", "remote/branch", "remote/wire", "cmd/internal/cli", "cmd/internal/control"},
	"cmd/internal/cli":     {},
	"cmd/internal/control": {},
	"cmd/internal/deps":    {},
	"cmd/internal/differ":  {},
	"cmd/internal/e2e":     {"cmd/internal/cli", "cmd/internal/differ", "cmd/internal/history"},
	"cmd/internal/history": {},
	"cmd/internal/sim":     {"remote/lease", "serverd/lease"},
	"fusefs":               {"pagecache", "remote", "remote/lease", "remote/lockset", "remote/page", "remote/wire"},
	"pagecache":            {"pagecache/evict", "remote/page"},
	"pagecache/evict":      {},
	"remote":               {"remote/auth", "remote/boottime", "remote/branch", "remote/lease", "remote/lockset", "remote/oplog", "remote/page", "remote/wire"},
	"remote/auth":          {},
	"remote/boottime":      {},
	"remote/branch":        {},
	"remote/hostile":       {"remote/wire"},
	"remote/lease":         {},
	"remote/lockset":       {},
	"remote/oplog":         {"remote/wire"},
	"remote/page":          {},
	"remote/proto":         {},
	"remote/simnet":        {},
	"remote/status":        {},
	"remote/wire":          {"remote/lockset", "remote/page"},
	"serverd":              {"journal", "journal/replay", "journal/vfs", "remote/auth", "remote/boottime", "remote/lockset", "remote/page", "remote/wire", "serverd/lease", "serverd/lock", "serverd/watch"},
	"serverd/lease":        {},
	"serverd/lock":         {"remote/lockset"},
	"serverd/watch":        {"journal/vfs"},
	"journal":              {"remote/branch", "journal/record", "journal/runs", "journal/vfs", "journal/wal"},
	"journal/record":       {},
	"journal/runs":         {"journal/vfs"},
	"journal/replay":       {"remote/branch", "journal", "journal/record", "journal/vfs"},
	"journal/vfs":          {},
	"journal/wal":          {"journal/record", "journal/vfs"},
}

// bare packages import nothing of Cage at all: they are the words and the
// leaves that everybody may use without getting more.
var bare = []string{"cmd/internal/differ", "cmd/internal/history", "remote/proto", "remote/status", "remote/page", "remote/boottime", "remote/lockset", "remote/simnet", "pagecache/evict", "journal/vfs"}

// apart says what must not be linked into a program or package by any way.
var apart = []struct{ from, to, why string }{
	{"cmd/cagefs", "journal", "a client has no part in keeping the journal: the halves meet at the wire"},
	{"cmd/cagefs", "serverd", "a client is no server: the halves meet at the wire"},
	{"cmd/cageserverd", "fusefs", "a server mounts nothing"},
	{"cmd/cageserverd", "pagecache", "pages are the clients' business; the server knows byte ranges"},
	{"cmd/cageserverd", "remote", "the client's half stays out of the server"},
	{"cmd/cageserverd", "remote/oplog", "the client's half stays out of the server"},
	{"cmd/cagejournal", "serverd", "it uses the journal itself, or asks a server over the wire"},
	{"cmd/cagejournal", "fusefs", "it mounts nothing"},
	{"pagecache", "remote", "the cache knows its Backing only, so that it can be tested without a wire"},
	{"fusefs", "journal", "a mount reaches the journal through the wire only"},
	{"serverd", "remote", "the client's half stays out of the server"},
	{"serverd/watch", "journal", "watching knows places, not file numbers: what they mean is the journal's business"},
	{"journal", "remote/wire", "the journal must not know the wire"},
}

// onlyIn says which packages alone may import a package from outside, or one of
// Cage that is no part of the programs.
var onlyIn = []struct {
	to  string
	in  []string
	why string
}{
	{"github.com/hanwen/go-fuse/v2", []string{"fusefs"}, "the kernel's side is translated in one place"},
	{"github.com/spf13/pflag", []string{"cmd/cagefs", "cmd/cageserverd", "cmd/cagejournal", "cmd/internal/cli"}, "flags belong to commands"},
	{"github.com/stretchr/testify", nil, "it is for tests"},
	{"github.com/anishathalye/porcupine", []string{"cmd/internal/history", "cmd/internal/sim"}, "it is for tests"},
	{"remote/simnet", []string{"cmd/internal/sim"}, "it is for tests"},
	{"remote/hostile", nil, "it is for tests"},
	{"unsafe", []string{"fusefs", "journal/vfs"}, "raw memory is for system calls only"},
}

func TestImports(t *testing.T) {
	pkgs := list(t)
	require.Greater(t, len(pkgs), 10, "go list found too few packages: is this the module's root?")
	for _, v := range violations(pkgs) {
		t.Error(v)
	}
}

// violations returns a line for each import that must not be, with the reason.
func violations(pkgs []pkg) []string {
	var out []string
	bad := func(format string, args ...any) { out = append(out, fmt.Sprintf(format, args...)) }
	for _, p := range pkgs {
		ok, known := allowed[p.ImportPath]
		if !known {
			bad("%s: not in the tree of packages: add it to this test with what it may import", p.ImportPath)
		}
		for _, i := range p.Imports {
			common := (i == "remote/proto" || i == "remote/status") && !slices.Contains(bare, p.ImportPath)
			if _, ours := allowed[i]; ours && known && !common && !slices.Contains(ok, i) {
				bad("%s imports %s: against the direction of the tree (it may import %s)", p.ImportPath, i, strings.Join(ok, ", "))
			}
			for _, r := range onlyIn {
				if within(i, r.to) && !slices.Contains(r.in, p.ImportPath) {
					bad("%s imports %s: %s", p.ImportPath, i, r.why)
				}
			}
		}
		for _, a := range apart {
			if p.ImportPath == a.from && slices.Contains(p.Deps, a.to) {
				bad("%s links %s: %s", a.from, a.to, a.why)
			}
		}
	}
	return out
}

// within reports whether an import is a package or one below it, where the
// package is of another module.
func within(imp, to string) bool {
	return imp == to || strings.Contains(to, ".") && strings.HasPrefix(imp, to+"/")
}

// list asks the go command for all packages of the module.
func list(t *testing.T) []pkg {
	t.Helper()
	cmd := exec.Command("go", "list", "-e", "-json=ImportPath,Imports,Deps,GoFiles", "./...")
	cmd.Dir = "../../.."
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	b, err := cmd.Output()
	require.NoError(t, err, stderr.String())
	var out []pkg
	for dec := json.NewDecoder(bytes.NewReader(b)); ; {
		var p pkg
		err := dec.Decode(&p)
		if errors.Is(err, io.EOF) {
			return out
		}
		require.NoError(t, err)
		p.ImportPath = short(p.ImportPath)
		for i := range p.Imports {
			p.Imports[i] = short(p.Imports[i])
		}
		for i := range p.Deps {
			p.Deps[i] = short(p.Deps[i])
		}
		out = append(out, p)
	}
}

func short(path string) string { return strings.TrimPrefix(path, module) }

// The test of the test: each kind of bad edge is found and its reason told.
func TestViolationsAreFound(t *testing.T) {
	tests := []struct {
		name string
		pkg  pkg
		want string
	}{
		{"upwards", pkg{ImportPath: "journal", Imports: []string{"serverd"}}, "journal imports serverd: against the direction"},
		{"sideways", pkg{ImportPath: "remote/page", Imports: []string{"remote/proto"}}, "remote/page imports remote/proto: against the direction"},
		{"linked", pkg{ImportPath: "cmd/cagefs", Deps: []string{"journal"}}, "cmd/cagefs links journal: a client has no part"},
		{"client in the server", pkg{ImportPath: "cmd/cageserverd", Deps: []string{"remote"}}, "cmd/cageserverd links remote: the client's half"},
		{"go-fuse", pkg{ImportPath: "remote", Imports: []string{"github.com/hanwen/go-fuse/v2/fuse"}}, "remote imports github.com/hanwen/go-fuse/v2/fuse: the kernel's side"},
		{"test library", pkg{ImportPath: "serverd", Imports: []string{"github.com/stretchr/testify/require"}}, "it is for tests"},
		{"simnet", pkg{ImportPath: "remote", Imports: []string{"remote/simnet"}}, "remote imports remote/simnet: it is for tests"},
		{"unknown package", pkg{ImportPath: "util"}, "util: not in the tree"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			got := strings.Join(violations([]pkg{tt.pkg}), "\n")
			require.Contains(t, got, tt.want)
		})
	}
	good := pkg{ImportPath: "serverd", Imports: []string{"journal", "remote/wire", "remote/status", "context"}, Deps: []string{"journal/vfs"}}
	require.Empty(t, violations([]pkg{good}))
	for from, to := range allowed {
		for _, i := range to {
			require.Contains(t, allowed, i, "%s is allowed what does not exist", from)
		}
	}
}

package e2e

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

// TestProgramGo builds this project with source, cache and temporary files on the
// mount. The programs are byte by byte those that are built elsewhere.
func TestProgramGo(t *testing.T) {
	onlyFull(t)
	w := newWorkshop(t, map[string]string{"tar": "tar"})
	root, err := filepath.Abs("../../..")
	require.NoError(t, err)
	progs := []string{"cagefs", "cageserverd", "cagejournal"}
	var build func(dir string, args ...string) string
	w.compare("go build, go vet", func(dir string) {
		for _, sub := range []string{"src", "cache", "tmp", "bin"} {
			require.NoError(t, os.Mkdir(filepath.Join(dir, sub), 0o755))
		}
		w.in(root, "sh", "-c", `tar --exclude=./.git --exclude=./bin -cf - . | tar -C "$1" -xf -`, "sh", dir+"/src")
		build = func(dir string, args ...string) string {
			t.Helper()
			return w.ask(task{args: append([]string{"go"}, args...), dir: dir + "/src",
				env: []string{"GOCACHE=" + dir + "/cache", "GOTMPDIR=" + dir + "/tmp", "GOFLAGS=-mod=mod -trimpath -buildvcs=false", "GOPROXY=off"}})
		}
		build(dir, "build", "./...")
		build(dir, "vet", "./...")
		build(dir, "build", "-o", dir+"/bin/", "./cmd/...")
	})
	whole := func() {
		t.Helper()
		for _, p := range progs {
			w.in(w.dir, "cmp", filepath.Join(w.ground, "bin", p), filepath.Join(w.local, "bin", p))
		}
		require.Empty(t, strings.TrimSpace(build(w.ground, "build", "-v", "./...")), "what is built is in the cache")
		require.Empty(t, names(t, w.ground+"/tmp"))
	}
	whole()
	w.finish(whole)
}

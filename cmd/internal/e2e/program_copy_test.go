package e2e

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/require"
)

// TestProgramCopies brings a tree with all that is rare in trees to the mount and
// back, with tar and with rsync. It stays the same, and rsync then finds nothing to do.
func TestProgramCopies(t *testing.T) {
	w := newWorkshop(t, map[string]string{"tar": "tar", "rsync": "rsync", "diff": "diffutils", "setfacl": "acl", "sha256sum": "coreutils"})
	src := w.mkdir("src")
	part := "encoding"
	if accept {
		part = "net"
	}
	command(t, "cp", "-a", filepath.Join(goSource(t), part), src+"/go")
	makeOddities(t, filepath.Join(src, "odd"))
	// rsync takes special files and directories of one second for the same, and the copy may be made within it.
	command(t, "find", filepath.Join(src, "odd"), "-depth", "-exec", "touch", "-h", "-d", "2001-02-03T04:05:06.789Z", "{}", "+")
	command(t, "setfacl", "-R", "-m", "u:nobody:rwX,d:g:nogroup:rx", src+"/go")
	command(t, "touch", "-d", "2001-02-03T04:05:06.789Z", src)
	want := survey(t, src)
	t.Logf("%d files and directories", len(want))
	w.in(src, "sh", "-c", "find go -type f -print0 | sort -z | xargs -0 sha256sum >"+w.path("sums"))

	back := w.mkdir("back")
	for how, steps := range map[string]struct{ to, from, again string }{
		// Sockets are nothing for tar. It has them from cp.
		"tar": {
			`tar -C "$1" --acls --xattrs --sparse -cpf - . 2>/dev/null | tar -C "$2" --acls --xattrs --xattrs-include='*' --same-owner -xpf - && cp -a "$1/odd/socket" "$2/odd" && touch -r "$1/odd" "$2/odd"`,
			`tar -C "$2" --acls --xattrs --sparse -cpf - . 2>/dev/null | tar -C "$3" --acls --xattrs --xattrs-include='*' --same-owner -xpf - && cp -a "$2/odd/socket" "$3/odd" && touch -r "$2/odd" "$3/odd"`,
			`tar -C "$1" --acls --xattrs -cf - . 2>/dev/null | tar -C "$2" -df - 2>/dev/null`,
		},
		"rsync": {`rsync -aHAXS "$1"/ "$2"`, `rsync -aHAXS "$2"/ "$3"`, `rsync -aHAXSic "$1"/ "$2"`},
	} {
		tree, home := filepath.Join(w.ground, how), filepath.Join(back, how)
		require.NoError(t, os.Mkdir(home, 0o755))
		sh := func(script, to string) string {
			t.Helper()
			return w.in(w.dir, "sh", "-c", script, "sh", src, to, home)
		}
		w.compare(how, func(dir string) {
			to := filepath.Join(dir, how)
			require.NoError(t, os.Mkdir(to, 0o755))
			sh(steps.to, to)
		})
		requireSame(t, want, tree)
		require.Empty(t, sh(steps.again, tree), "%s finds a difference", how)
		require.Less(t, blocks(t, tree+"/odd/sparse"), int64(64<<10), "holes are holes")
		w.in(w.dir, "diff", "-r", "--no-dereference", src+"/go", tree+"/go")
		w.in(tree, "sha256sum", "--quiet", "-c", w.path("sums"))
		sh(steps.from, tree)
		requireSame(t, want, home)
	}
	w.in(w.ground, "rm", "-rf", "tar")
	require.NoDirExists(t, filepath.Join(w.ground, "tar"))
	w.finish(func() { w.in(filepath.Join(w.ground, "rsync"), "sha256sum", "--quiet", "-c", w.path("sums")) })
}

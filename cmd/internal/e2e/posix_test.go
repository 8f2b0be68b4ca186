package e2e

import (
	"maps"
	"os"
	"path/filepath"
	"slices"
	"testing"

	"github.com/hanwen/go-fuse/v2/posixtest"
	"github.com/stretchr/testify/require"
)

// notOurs are tests of posixtest that its own authors do not run, with the reason.
var notOurs = map[string]string{
	"FcntlFlockLocksFile": "fcntl locks belong to processes: one does not exclude itself, as the test wants",
	"OpenSymlinkRace":     "it is about file systems that open files of another one by path",
}

// TestPosix runs what go-fuse's authors ask of a file system on a mount. A test
// that skips itself, because it finds something unsupported, has failed.
func TestPosix(t *testing.T) {
	l := newLab(t, "")
	disk := l.ext4(256<<20, "-O", "ea_inode") // for attributes larger than a block
	require.NoError(t, os.Mkdir(disk+"/export", 0o755))
	s := l.newServer(disk + "/export")
	s.start()
	mnt := l.mount(s)
	for _, name := range slices.Sorted(maps.Keys(posixtest.All)) {
		if notOurs[name] != "" {
			continue
		}
		t.Run(name, func(t *testing.T) {
			defer func() {
				if t.Skipped() {
					t.Error("the test skipped itself")
				}
			}()
			dir := filepath.Join(mnt, name)
			require.NoError(t, os.Mkdir(dir, 0o755))
			posixtest.All[name](t, dir)
		})
	}
}

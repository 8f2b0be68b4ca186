package control

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"cagefs.dev/cage/remote/status"
)

// mountinfo is a table with Cage at base/mnt, another file system below it, and
// a bind mount of a subdirectory elsewhere.
func mountinfo(base string) string {
	return strings.ReplaceAll(`22 1 254:1 / / rw,relatime shared:1 - ext4 /dev/vda1 rw
40 22 0:50 / BASE/my\040mnt rw,nosuid,nodev shared:5 - fuse.cage host:/data rw,user_id=1000,group_id=0
41 40 0:51 / BASE/my\040mnt/tmp rw - tmpfs tmpfs rw
42 22 0:50 /src/go BASE/bind rw - fuse.cage host:/data rw,user_id=1000,group_id=0
43 22 0:52 / BASE/over rw - ext4 /dev/vdb rw
44 43 0:53 / BASE/over rw master:3 propagate_from:2 - fuse.cage other:/x rw,user_id=0
`, "BASE", base)
}

func TestFind(t *testing.T) {
	base, err := filepath.EvalSymlinks(t.TempDir())
	require.NoError(t, err)
	require.NoError(t, os.MkdirAll(filepath.Join(base, "my mnt", "dir"), 0o755))
	require.NoError(t, os.MkdirAll(filepath.Join(base, "over"), 0o755))
	require.NoError(t, os.Symlink(filepath.Join(base, "my mnt", "dir"), filepath.Join(base, "link")))
	require.NoError(t, os.Symlink(filepath.Join(base, "my mnt"), filepath.Join(base, "linkroot")))
	require.NoError(t, os.Symlink("dir", filepath.Join(base, "my mnt", "inner")))
	mounts, err := parseMounts(strings.NewReader(mountinfo(base)))
	require.NoError(t, err)

	tests := []struct {
		path, dev, below string
	}{
		{"my mnt", "0:50", ""},
		{"my mnt/", "0:50", ""},
		{"my mnt/gone/away", "0:50", "gone/away"},
		{"my mnt/tmp/x", "", ""},
		{"my mnt/tmpx", "0:50", "tmpx"},
		{"my mntx", "", ""},
		{"bind", "0:50", "src/go"},
		{"bind/a", "0:50", "src/go/a"},
		{"over/a", "0:53", "a"},
		{"link", "0:50", "dir"},
		{"link/f", "0:50", "dir/f"},
		{"linkroot", "0:50", ""},
		{"my mnt/inner", "0:50", "inner"},
		{"my mnt/inner/f", "0:50", "dir/f"},
		{"my mnt/inner/", "0:50", "dir"},
		{"my mnt/../bind/b", "0:50", "src/go/b"},
		{"elsewhere", "", ""},
	}
	for _, tt := range tests {
		t.Run(tt.path, func(t *testing.T) {
			p, err := find(mounts, base+"/"+tt.path)
			if tt.dev == "" {
				require.ErrorIs(t, err, status.NotFound)
				return
			}
			require.NoError(t, err)
			require.Equal(t, tt.dev, p.Mount.Dev)
			require.Equal(t, tt.below, p.Below)
		})
	}

	t.Run("relative", func(t *testing.T) {
		t.Chdir(filepath.Join(base, "my mnt"))
		p, err := find(mounts, "new")
		require.NoError(t, err)
		require.Equal(t, "new", p.Below)
		p, err = find(mounts, ".")
		require.NoError(t, err)
		require.Equal(t, "", p.Below)
		require.Equal(t, 1000, p.Mount.uid)
	})
}

func TestParseMounts(t *testing.T) {
	for _, bad := range []string{"22 1 254:1 / / rw", "x - y z", "22 1 254:1 / / rw - ext4"} {
		_, err := parseMounts(strings.NewReader(bad + "\n"))
		require.Error(t, err, bad)
	}
	own, err := readMounts()
	require.NoError(t, err)
	require.NotEmpty(t, own)
	require.Equal(t, "a b\tc\\", unescape(`a\040b\011c\134`))
	require.Equal(t, `a\04`, unescape(`a\04`))
}

func TestAtIsTheMountpointOnly(t *testing.T) {
	_, err := At(t.TempDir())
	require.ErrorIs(t, err, status.NotFound)
	require.Contains(t, fmt.Sprint(err), "not a mountpoint of Cage")
}

package journal

import (
	"context"
	"os"
	"path/filepath"
	"syscall"
	"testing"

	"github.com/rs/zerolog"
	"github.com/stretchr/testify/require"

	"cagefs.dev/cage/journal/vfs"
	"cagefs.dev/cage/remote/proto"
	"cagefs.dev/cage/remote/status"
)

// below is a directory of a file system as a file system.
type below struct {
	vfs.FS
	name string
}

func (b below) Root() (vfs.Dir, error) {
	root, err := b.FS.Root()
	if err != nil {
		return nil, err
	}
	defer root.Close()
	return root.OpenDir(b.name)
}

// parted prepares a disk for an export with a journal elsewhere.
func parted(t *testing.T, disk vfs.FS) {
	root, err := disk.Root()
	require.NoError(t, err)
	defer root.Close()
	require.NoError(t, root.Mkdir("export", 0o755))
	require.NoError(t, root.Mkdir("journal", 0o700))
	require.NoError(t, root.Sync())
}

// optionsOn are the options for a disk, which is the export unless it was parted.
func optionsOn(disk vfs.FS, o Options) Options {
	o.FS = disk
	root, err := disk.Root()
	if err != nil {
		return o
	}
	defer root.Close()
	if _, err := root.Stat("journal"); err == nil {
		o.FS, o.Home, o.HomePath = below{disk, "export"}, below{disk, "journal"}, "/journal"
	}
	return o
}

// openAt opens the journal of an export on the real disk.
func openAt(t *testing.T, dir, home string) (*Journal, func(), error) {
	t.Helper()
	o, closeDisk, err := Locate(dir, home)
	require.NoError(t, err)
	if home == "" { // as serve does, which wants to be told
		o.Home = nil
	}
	o.SegmentSize, o.Log = 256<<10, zerolog.Nop()
	j, _, err := Open(context.Background(), o)
	if err != nil {
		closeDisk()
		return nil, nil, err
	}
	return j, func() {
		require.NoError(t, j.Close())
		closeDisk()
	}, nil
}

func TestJournalElsewhere(t *testing.T) {
	dir := t.TempDir()
	at := func(name string) string {
		path := filepath.Join(dir, name)
		require.NoError(t, os.MkdirAll(path, 0o755))
		return path
	}
	export, home := at("export"), at("home")
	j, stop, err := openAt(t, export, home)
	require.NoError(t, err)
	target, err := os.Readlink(filepath.Join(export, DirName))
	require.NoError(t, err)
	require.Equal(t, home, target)
	_, err = j.Lookup(proto.RootID, DirName)
	require.Equal(t, status.NotFound, status.Of(err), "hidden")
	require.NoError(t, j.ReadDir(proto.RootID, 0, true, func(e proto.DirEntry) bool {
		t.Errorf("%s is shown", e.Name)
		return true
	}))
	e := &testExport{Journal: j, t: t, ses: testSession}
	n, err := j.Client("test")
	require.NoError(t, err)
	require.NoError(t, j.OpenSession(testSession, n, "key"))
	_, err = e.do(&proto.Make{Dir: proto.RootID, Name: DirName, Mode: proto.ModeRegular | 0o600})
	require.Error(t, err)
	e.file(proto.RootID, "f", "content")
	e.must(&proto.Remove{Dir: proto.RootID, Name: "f"})
	last := j.Last()
	_, _, err = openAt(t, export, home)
	require.Equal(t, status.Busy, status.Of(err))
	stop()

	wants := func(code status.Code, text, export, home string) {
		t.Helper()
		_, _, err := openAt(t, export, home)
		require.Equal(t, code, status.Of(err), "%v", err)
		require.ErrorContains(t, err, text)
	}
	wants(status.Conflict, "say so with --journal", export, "")
	wants(status.Conflict, "is empty", export, at("empty"))
	wants(status.Conflict, "of another directory", at("export2"), home)
	require.NoFileExists(t, filepath.Join(at("export2"), DirName), "no link to a journal that was refused")
	_, stop, err = openAt(t, at("export3"), "")
	require.NoError(t, err)
	stop()
	wants(status.Conflict, "has a journal of its own", at("export3"), at("empty"))
	copied := at("copied")
	require.NoError(t, os.CopyFS(copied, os.DirFS(home)))
	wants(status.Conflict, "was copied", export, copied)

	// Moved, with its identity, it is the same journal; tools find it by the link.
	moved := filepath.Join(dir, "moved")
	require.NoError(t, os.Rename(home, moved))
	j, stop, err = openAt(t, export, moved)
	require.NoError(t, err)
	require.GreaterOrEqual(t, j.Last(), last)
	stop()
	o, closeDisk, err := Locate(export, "")
	require.NoError(t, err)
	require.Equal(t, moved, o.HomePath)
	closeDisk()
	// So does one that was in the export.
	own := filepath.Join(dir, "own")
	require.NoError(t, os.Rename(filepath.Join(at("export3"), DirName), own))
	j, stop, err = openAt(t, at("export3"), own)
	require.NoError(t, err)
	require.Positive(t, j.Boot())
	stop()
}

func TestJournalOnAnotherFileSystem(t *testing.T) {
	const other = "/dev/shm"
	var a, b syscall.Stat_t
	export := t.TempDir()
	if syscall.Stat(export, &a) != nil || syscall.Stat(other, &b) != nil || a.Dev == b.Dev {
		t.Skip("there is only one file system")
	}
	home, err := os.MkdirTemp(other, "cage")
	require.NoError(t, err)
	defer os.RemoveAll(home)
	_, _, err = openAt(t, export, home)
	require.Equal(t, status.CrossDevice, status.Of(err))
	require.ErrorContains(t, err, "another file system")
	for _, dir := range []string{export, home} {
		left, err := os.ReadDir(dir)
		require.NoError(t, err)
		require.Empty(t, left, "nothing stays behind")
	}
}

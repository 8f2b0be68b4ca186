package journal

import (
	"errors"
	"path/filepath"
	"syscall"

	"cagefs.dev/cage/journal/vfs"
	"cagefs.dev/cage/remote/proto"
	"cagefs.dev/cage/remote/status"
)

// The journal of an export lies in DirName in the export's root or, with
// Options.Home, in another directory of the same file system. DirName is then a
// symlink to it. So the name stays hidden from clients, somebody at the
// server's disk finds the journal, and a start that leaves Home out is refused
// instead of beginning a second journal.
//
// The link is made under another name in the journal's directory and renamed
// into the export, at each start: what rename cannot do at a start, it cannot do later.

// homeLink is the link's name before it is put in its place.
const homeLink = "link"

// Locate fills the options that say where an export in dir has its journal:
// home, or, if that is "", where the export's link leads, or in the export
// itself. The caller calls closeAll after Close.
func Locate(dir, home string) (o Options, closeAll func() error, err error) {
	if o.FS, err = vfs.OS(dir); err != nil {
		return o, nil, err
	}
	if home == "" {
		home, err = elsewhere(o.FS)
	}
	if err == nil && home != "" {
		o.HomePath = home
		o.Home, err = vfs.OS(home)
	}
	if err != nil {
		o.FS.Close()
		return o, nil, status.Wrap(err, "open journal", home)
	}
	return o, func() error {
		err := o.FS.Close()
		if o.Home != nil {
			err = errors.Join(err, o.Home.Close())
		}
		return err
	}, nil
}

// elsewhere is where the journal of an export is, "" if it is in the export, or none.
func elsewhere(fs vfs.FS) (string, error) {
	root, err := fs.Root()
	if err != nil {
		return "", err
	}
	defer root.Close()
	link, err := linkOf(root)
	if link != "" && !filepath.IsAbs(link) {
		return "", status.Newf(status.Damaged, "open journal", DirName, "the link to the journal leads to %q", link)
	}
	return link, err
}

// linkOf is the target of the export's link, "" if it has none.
func linkOf(root vfs.Dir) (string, error) {
	info, err := root.Stat(DirName)
	if errors.Is(err, syscall.ENOENT) || err == nil && info.Mode&proto.ModeType != proto.ModeSymlink {
		return "", nil
	}
	if err != nil {
		return "", err
	}
	return root.Readlink(DirName)
}

// openHome opens the journal's directory, which is made, in the export, on first use.
func (j *Journal) openHome(root vfs.Dir) (vfs.Dir, error) {
	link, err := linkOf(root)
	switch {
	case err != nil:
		return nil, err
	case j.opts.Home == nil && link != "":
		return nil, status.Newf(status.Conflict, "", "", "the journal of this export is in %s: say so with --journal", link)
	case j.opts.Home == nil:
		return subdir(root, DirName, j.opts.ReadOnly)
	}
	if _, err := root.Stat(DirName); link == "" && !errors.Is(err, syscall.ENOENT) {
		return nil, status.Newf(status.Conflict, "", "", "the export has a journal of its own in %s: move that to %s first", DirName, j.opts.HomePath)
	}
	home, err := j.opts.Home.Root()
	if err != nil {
		return nil, err
	}
	if _, err := home.Stat("wal"); errors.Is(err, syscall.ENOENT) && link != "" && link != j.opts.HomePath {
		home.Close()
		return nil, status.Newf(status.Conflict, "", "", "the journal of this export is in %s, and %s is empty: move it there, or remove the link %s to begin a new one", link, j.opts.HomePath, DirName)
	}
	return home, nil
}

// linkHome puts the export's link to a journal elsewhere in its place. The
// journal is locked.
func (j *Journal) linkHome() error {
	if j.opts.Home == nil {
		return nil
	}
	t := j.tree
	if err := t.cage.Remove(homeLink); err != nil && !errors.Is(err, syscall.ENOENT) {
		return err
	}
	if err := t.cage.Symlink(j.opts.HomePath, homeLink); err != nil {
		return err
	}
	err := t.cage.Rename(homeLink, t.root, DirName, 0)
	if err != nil {
		_ = t.cage.Remove(homeLink)
	}
	if errors.Is(err, syscall.EXDEV) {
		return status.Newf(status.CrossDevice, "", "", "%s is on another file system than the export, or mounted apart", j.opts.HomePath)
	}
	if err != nil {
		return err
	}
	return t.root.Sync()
}

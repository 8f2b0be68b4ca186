package fusefs

import (
	"slices"
	"strings"

	"cagefs.dev/cage/remote/proto"
)

// place is a name that a file had when it was last heard of.
type place struct {
	dir  proto.FileID
	name string
}

// seen notes a name of a file.
func (ino *inode) seen(dir proto.FileID, name string) {
	if p := ino.place.Load(); p == nil || p.dir != dir || p.name != name {
		ino.place.Store(&place{dir, name})
	}
}

// maxDepth is how deep a file is whose path is told, and ends a circle of places of different times.
const maxDepth = 1024

// path is a file's path below the source's root, as it was last known; "" if it is not
// known, or the root.
func (t *table) path(id proto.FileID) string {
	var names []string
	for range maxDepth {
		ino := t.known(id)
		if ino == t.root {
			slices.Reverse(names)
			return strings.Join(names, "/")
		}
		if ino == nil {
			return ""
		}
		p := ino.place.Load()
		if p == nil {
			return ""
		}
		names = append(names, p.name)
		id = p.dir
	}
	return ""
}

// Path is the path of a file of a source, which is named by its place in Options.Sources, below the source's
// root, as the mount last knew it; "" if it does not know it. It never blocks on I/O.
func (m *Mounted) Path(source int, id proto.FileID) string { return m.fs[source].inodes.path(id) }

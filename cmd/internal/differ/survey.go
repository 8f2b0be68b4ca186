package differ

import (
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"golang.org/x/sys/unix"
)

// survey describes the tree below a directory, its root as ".", a line for each
// name in order: attributes, content, extended attributes, and the first name
// of the same file if there are several.
func survey(root string) (lines []string, err error) {
	first := map[uint64]string{}
	err = filepath.WalkDir(root, func(path string, _ fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		rel, err := filepath.Rel(root, path)
		if err != nil {
			return err
		}
		var st unix.Stat_t
		if err := unix.Lstat(path, &st); err != nil {
			return fmt.Errorf("lstat %s: %w", path, err)
		}
		line := short(rel) + ": " + describe(&st)
		switch st.Mode & unix.S_IFMT {
		case unix.S_IFREG:
			b, err := os.ReadFile(path)
			if err != nil {
				return err
			}
			line += " " + digest(b)
		case unix.S_IFLNK:
			target, err := os.Readlink(path)
			if err != nil {
				return err
			}
			line += " -> " + short(target)
		}
		if st.Mode&unix.S_IFMT != unix.S_IFDIR && st.Nlink > 1 {
			if first[st.Ino] == "" {
				first[st.Ino] = rel
			} else {
				line += " same as " + short(first[st.Ino])
			}
		}
		attrs, err := xattrs(path)
		lines = append(lines, line+attrs)
		return err
	})
	return lines, err
}

// xattrs are the extended attributes of a file, a symlink's own.
func xattrs(path string) (string, error) {
	buf := make([]byte, maxXattr)
	n, err := unix.Llistxattr(path, buf)
	if err == unix.ENOTSUP {
		return "", nil
	}
	names, err := nameList(buf, n, err)
	if err != nil {
		return "", fmt.Errorf("listxattr %s: %w", path, err)
	}
	var out []string
	for _, name := range strings.Fields(names) {
		n, err := unix.Lgetxattr(path, name, buf)
		if err != nil {
			return "", fmt.Errorf("getxattr %s %s: %w", path, name, err)
		}
		out = append(out, fmt.Sprintf(" %s=%q", name, buf[:n]))
	}
	slices.Sort(out)
	return strings.Join(out, ""), nil
}

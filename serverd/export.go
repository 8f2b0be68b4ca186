package serverd

import (
	"errors"
	"io/fs"
	"os"
	"regexp"

	"golang.org/x/sys/unix"

	"cagefs.dev/cage/remote/status"
)

// maxExportName is the length of an export's name in bytes.
const maxExportName = 64

// exportName is what a name may look like: it appears in HOST:/EXPORT/path@MOMENT.
var exportName = regexp.MustCompile(`^[A-Za-z0-9_][A-Za-z0-9._-]*$`)

// CheckExports checks what is to be exported: names (letters, digits, "._-"),
// that each directory exists, and that none is another or lies in one, by
// whatever symlinks it is named. The error names the one in the way:
// status.Usage (a bad or repeated name), NotFound, NotDir, Access, Conflict
// (nested or the same).
func CheckExports(exports []Spec) error {
	chains := make([][]fileKey, len(exports))
	journals := make([][]fileKey, len(exports))
	names := make(map[string]bool)
	for i, e := range exports {
		if len(e.Name) > maxExportName || !exportName.MatchString(e.Name) {
			return status.Newf(status.Usage, "export", e.Name, "a name consists of letters, digits and . _ -, does not start with . or -, and has at most %d of them", maxExportName)
		}
		if names[e.Name] {
			return status.Newf(status.Usage, "export", e.Name, "the name is given twice")
		}
		names[e.Name] = true
		chain, err := ancestry(e.Dir)
		if err != nil {
			return dirError(e, err)
		}
		chains[i] = chain
		for k := range i {
			if err := overlap(exports[k], e, chains[k], chain); err != nil {
				return err
			}
		}
		if e.Journal == "" {
			continue
		}
		if journals[i], err = ancestry(e.Journal); err != nil {
			return status.Newf(status.Of(err), "export", e.Name, "its journal's directory cannot be opened: %w", err)
		}
	}
	return checkJournals(exports, chains, journals)
}

// checkJournals refuses a journal's directory that is, holds or lies in an
// export or another journal.
func checkJournals(exports []Spec, chains, journals [][]fileKey) error {
	for i, e := range exports {
		if e.Journal == "" {
			continue
		}
		for k, other := range exports {
			what, dir := "", ""
			switch {
			case touching(journals[i], chains[k]):
				what, dir = "export "+other.Name, other.Dir
			case k != i && other.Journal != "" && touching(journals[i], journals[k]):
				what, dir = "the journal of "+other.Name, other.Journal
			default:
				continue
			}
			return status.Newf(status.Conflict, "export", e.Name, "its journal's directory %s and %s, %s, must not lie in one another", e.Journal, what, dir)
		}
	}
	return nil
}

// touching reports whether two directories are one, or one lies in the other.
func touching(a, b []fileKey) bool { return within(a, b[0]) || within(b, a[0]) }

func dirError(e Spec, err error) error {
	what := "cannot be opened"
	switch {
	case errors.Is(err, fs.ErrNotExist):
		what = "does not exist"
	case errors.Is(err, unix.ENOTDIR):
		what = "is not a directory"
	}
	return status.Newf(status.Of(err), "export", e.Name, "directory %s %s: %w", e.Dir, what, errors.Unwrap(err))
}

func overlap(a, b Spec, chainA, chainB []fileKey) error {
	in, out := a, b
	switch {
	case chainA[0] == chainB[0]:
		return status.Newf(status.Conflict, "export", b.Name, "%s is already exported as %s", b.Dir, a.Name)
	case within(chainB, chainA[0]):
		in, out = b, a
	case within(chainA, chainB[0]):
	default:
		return nil
	}
	return status.Newf(status.Conflict, "export", in.Name, "%s lies in %s, which is exported as %s", in.Dir, out.Dir, out.Name)
}

// fileKey identifies a directory among those that exist now.
type fileKey struct{ dev, ino uint64 }

func within(chain []fileKey, k fileKey) bool {
	for _, c := range chain {
		if c == k {
			return true
		}
	}
	return false
}

// ancestry lists a directory and those above it, up to the root.
func ancestry(dir string) ([]fileKey, error) {
	fd, err := unix.Open(dir, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, &os.PathError{Op: "open", Path: dir, Err: err}
	}
	defer func() { unix.Close(fd) }()
	var chain []fileKey
	for {
		var st unix.Stat_t
		if err := unix.Fstat(fd, &st); err != nil {
			return nil, &os.PathError{Op: "stat", Path: dir, Err: err}
		}
		k := fileKey{dev: uint64(st.Dev), ino: st.Ino}
		if len(chain) > 0 && chain[len(chain)-1] == k {
			return chain, nil
		}
		chain = append(chain, k)
		up, err := unix.Openat(fd, "..", unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
		if err != nil {
			return nil, &os.PathError{Op: "open", Path: dir + "/..", Err: err}
		}
		unix.Close(fd)
		fd = up
	}
}

package control

import (
	"bufio"
	"errors"
	"io"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"cagefs.dev/cage/remote/status"
)

// Mount is a mount of Cage as the kernel lists it.
type Mount struct {
	Dev    string // device number, "0:53"
	Point  string // where it is mounted
	Root   string // directory of the file system that is mounted there ("/", but for bind mounts)
	Source string // HOST:/EXPORT
	typ    string
	uid    int // whose process serves it
}

// Path is a path with the mount that it belongs to.
type Path struct {
	Mount Mount
	Below string // below the file system's root, without leading slash, "" for the root
}

// Find returns the mount a path belongs to; the path need not exist. Symlinks
// are followed, but a symlink as last component is itself what is meant, unless
// it leads into a mount from outside. The error is status.NotFound if the path
// is in no mount of Cage.
func Find(path string) (Path, error) {
	mounts, err := readMounts()
	if err != nil {
		return Path{}, err
	}
	return find(mounts, path)
}

// At returns the mount whose root a path is: status.NotFound otherwise.
func At(mountpoint string) (Mount, error) {
	p, err := Find(mountpoint)
	if err != nil || p.Below != strings.Trim(p.Mount.Root, "/") {
		return Mount{}, status.Newf(status.NotFound, "", mountpoint, "not a mountpoint of Cage")
	}
	return p.Mount, nil
}

func find(mounts []Mount, path string) (Path, error) {
	abs, err := filepath.Abs(path)
	if err != nil {
		return Path{}, status.Wrap(err, "", path)
	}
	last := filepath.Base(path)
	itself := last != "." && last != ".." && !strings.HasSuffix(path, "/")
	if itself {
		// The directory above decides: a mountpoint itself is never asked.
		p, ok := inMount(mounts, filepath.Join(resolve(filepath.Dir(abs)), filepath.Base(abs)))
		if ok {
			return p, nil
		}
	}
	if p, ok := inMount(mounts, resolve(abs)); ok {
		return p, nil
	}
	return Path{}, status.Newf(status.NotFound, "", path, "not in a mount of Cage")
}

// resolve follows the symlinks of the longest part of an absolute path that exists.
func resolve(abs string) string {
	rest := ""
	for dir := abs; ; dir = filepath.Dir(dir) {
		if real, err := filepath.EvalSymlinks(dir); err == nil {
			return filepath.Join(real, rest)
		}
		if dir == "/" {
			return abs
		}
		rest = filepath.Join(filepath.Base(dir), rest)
	}
}

// inMount finds the mount over a resolved path: the one with the longest
// mountpoint, of several at one place the last.
func inMount(mounts []Mount, path string) (Path, bool) {
	best := -1
	for i, m := range mounts {
		if _, ok := below(m.Point, path); ok && (best < 0 || len(m.Point) >= len(mounts[best].Point)) {
			best = i
		}
	}
	if best < 0 || mounts[best].typ != FSType {
		return Path{}, false
	}
	m := mounts[best]
	rel, _ := below(m.Point, path)
	return Path{Mount: m, Below: strings.Trim(filepath.Join(m.Root, rel), "/")}, true
}

// below returns path relative to dir, if it is dir or in it.
func below(dir, path string) (string, bool) {
	if dir == "/" || path == dir {
		return strings.TrimPrefix(path, dir), true
	}
	return strings.CutPrefix(path, dir+"/")
}

func readMounts() ([]Mount, error) {
	f, err := os.Open("/proc/self/mountinfo")
	if err != nil {
		return nil, err
	}
	defer f.Close()
	return parseMounts(f)
}

// parseMounts reads the format of proc_pid_mountinfo(5).
func parseMounts(r io.Reader) ([]Mount, error) {
	var out []Mount
	sc := bufio.NewScanner(r)
	sc.Buffer(nil, 1<<20)
	for sc.Scan() {
		left, right, ok := strings.Cut(sc.Text(), " - ")
		f, g := strings.Fields(left), strings.Fields(right)
		if !ok || len(f) < 6 || len(g) < 2 {
			return nil, errors.New("/proc/self/mountinfo: a line that cannot be read")
		}
		m := Mount{Dev: f[2], Root: unescape(f[3]), Point: unescape(f[4]), typ: g[0], Source: unescape(g[1])}
		for opt := range strings.SplitSeq(g[len(g)-1], ",") {
			if v, ok := strings.CutPrefix(opt, "user_id="); ok {
				m.uid, _ = strconv.Atoi(v)
			}
		}
		out = append(out, m)
	}
	return out, sc.Err()
}

// unescape turns \040 and the like back into bytes.
func unescape(s string) string {
	if !strings.Contains(s, `\`) {
		return s
	}
	var b strings.Builder
	for i := 0; i < len(s); i++ {
		if s[i] == '\\' && i+3 < len(s) && octal(s[i+1]) && octal(s[i+2]) && octal(s[i+3]) {
			b.WriteByte((s[i+1]-'0')<<6 | (s[i+2]-'0')<<3 | (s[i+3] - '0'))
			i += 3
			continue
		}
		b.WriteByte(s[i])
	}
	return b.String()
}

func octal(c byte) bool { return c >= '0' && c <= '7' }

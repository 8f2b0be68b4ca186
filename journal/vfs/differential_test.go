package vfs

import (
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"regexp"
	"slices"
	"strings"
	"syscall"
	"testing"

	"github.com/stretchr/testify/require"
)

// dump describes a tree: one line an inode or name, in order of paths. Inodes
// are named by the first path that leads to them.
func dump(t testing.TB, d Dir) []string {
	var lines []string
	first := make(map[Ident]string)
	var walk func(d Dir, path string)
	walk = func(d Dir, path string) {
		for _, name := range names(t, d) {
			info, p := stat(t, d, name), path+"/"+name
			if same, ok := first[info.Ident]; ok {
				lines = append(lines, p+" = "+same)
				continue
			}
			first[info.Ident] = p
			line := fmt.Sprintf("%q %o n%d u%d g%d r%x", p, info.Mode, info.Nlink, info.UID, info.GID, info.Rdev)
			attrs, err := d.ListXattr(name)
			require.NoError(t, err)
			slices.Sort(attrs)
			for _, a := range attrs {
				v, err := d.GetXattr(name, a)
				require.NoError(t, err)
				line += fmt.Sprintf(" %s=%q", a, v)
			}
			switch info.Mode & syscall.S_IFMT {
			case syscall.S_IFREG:
				line += fmt.Sprintf(" %d %s", info.Size, summary(t, d, name))
			case syscall.S_IFLNK:
				target, err := d.Readlink(name)
				require.NoError(t, err)
				line += fmt.Sprintf(" -> %q", target)
			}
			lines = append(lines, line)
			if info.Mode&syscall.S_IFMT == syscall.S_IFDIR {
				sub, err := d.OpenDir(name)
				require.NoError(t, err)
				walk(sub, p)
				sub.Close()
			}
		}
	}
	walk(d, "")
	return lines
}

// summary is a file's content as runs of bytes, with its ranges of data.
func summary(t testing.TB, d Dir, name string) string {
	f, err := d.Open(name, false)
	require.NoError(t, err)
	defer f.Close()
	var b strings.Builder
	for off := int64(0); ; {
		start, end, ok, err := f.NextData(off)
		require.NoError(t, err)
		if !ok {
			return b.String()
		}
		p := make([]byte, end-start)
		_, err = f.ReadAt(p, start)
		require.NoError(t, err)
		fmt.Fprintf(&b, "[%d-%d:", start, end)
		for len(p) > 0 {
			n := 1
			for n < len(p) && p[n] == p[0] {
				n++
			}
			fmt.Fprintf(&b, " %x*%d", p[0], n)
			p = p[n:]
		}
		b.WriteString("]")
		off = end
	}
}

// player applies random calls to a disk.
type player struct {
	root  Dir
	dirs  []Dir
	files []File
	more  int // 1: with allocations
}

// fileOps is how many kinds of calls of files there are without allocations.
const fileOps = 6

func (p *player) close() {
	for _, d := range p.dirs {
		d.Close()
	}
	for _, f := range p.files {
		f.Close()
	}
}

var playNames = []string{"a", "b", "c", "d", "\xff"}

// play makes one call chosen by rng and returns what it did and what came out.
// The choice must depend on nothing but rng and earlier results, which are the
// same on all disks.
func (p *player) play(rng *rand.Rand) string {
	name, name2 := playNames[rng.IntN(len(playNames))], playNames[rng.IntN(len(playNames))]
	d, d2 := p.root, p.root
	if n := rng.IntN(len(p.dirs) + 1); n > 0 {
		d = p.dirs[n-1]
	}
	if n := rng.IntN(len(p.dirs) + 1); n > 0 {
		d2 = p.dirs[n-1]
	}
	attrName := name
	if rng.IntN(6) == 0 {
		attrName = ""
	}
	x, y := rng.Uint32(), rng.Uint32()
	switch op := rng.IntN(26); op {
	case 0, 1:
		f, err := d.Create(name, x&permBits)
		p.keepFile(f, err)
		return fmt.Sprint("create ", name, err)
	case 2:
		return fmt.Sprint("mkdir ", name, d.Mkdir(name, x&permBits))
	case 3:
		sub, err := d.OpenDir(name)
		if err == nil {
			if len(p.dirs) == 6 {
				p.dirs[0].Close()
				p.dirs = p.dirs[1:]
			}
			p.dirs = append(p.dirs, sub)
		}
		return fmt.Sprint("opendir ", name, err)
	case 4, 5:
		f, err := d.Open(name, x%4 != 0)
		p.keepFile(f, err)
		return fmt.Sprint("open ", name, err)
	case 6:
		return fmt.Sprint("symlink ", name, d.Symlink(name2, name))
	case 7:
		typ := []uint32{syscall.S_IFIFO, syscall.S_IFSOCK, syscall.S_IFCHR, syscall.S_IFREG}[x%4]
		return fmt.Sprint("mknod ", name, typ, d.Mknod(name, typ|y&permBits, x>>2%1000))
	case 8, 9:
		return fmt.Sprint("link ", name, name2, d.Link(name, d2, name2))
	case 10:
		return fmt.Sprint("remove ", name, d.Remove(name))
	case 11:
		return fmt.Sprint("removedir ", name, d.RemoveDir(name))
	case 12, 13, 14, 15:
		flags := []uint{0, 0, 0, RenameNoReplace, RenameExchange, RenameExchange, 3}[x%7]
		return fmt.Sprint("rename ", name, name2, flags, d.Rename(name, d2, name2, flags))
	case 16:
		return fmt.Sprint("chmod ", attrName, d.Chmod(attrName, x&permBits))
	case 17:
		return fmt.Sprint("chown ", attrName, d.Chown(attrName, x%9, y%9))
	case 18, 19:
		attr := []string{"user.a", "user.b", "trusted.c", "bad"}[x%4]
		if op == 18 {
			return fmt.Sprint("setxattr ", attrName, attr, d.SetXattr(attrName, attr, []byte(fmt.Sprint(y%1000)), int(y>>10%4)))
		}
		return fmt.Sprint("removexattr ", attrName, attr, d.RemoveXattr(attrName, attr))
	}
	if len(p.files) == 0 {
		return "none"
	}
	return p.playFile(rng, p.files[rng.IntN(len(p.files))], rng.IntN(fileOps+p.more))
}

func (p *player) keepFile(f File, err error) {
	if err != nil {
		return
	}
	if len(p.files) == 6 {
		p.files[0].Close()
		p.files = p.files[1:]
	}
	p.files = append(p.files, f)
}

func (p *player) playFile(rng *rand.Rand, f File, op int) string {
	off, n := rng.Int64N(40000), rng.Int64N(12000)
	if rng.IntN(3) == 0 {
		off, n = off/pageSize*pageSize, n/pageSize*pageSize
	}
	switch op {
	case 0, 1, 2:
		w, err := f.WriteAt([]byte(strings.Repeat(string(rune('A'+rng.IntN(26))), int(n))), off)
		return fmt.Sprint("write ", off, n, w, err)
	case 3:
		return fmt.Sprint("truncate ", off, f.Truncate(off))
	case 4:
		return fmt.Sprint("punch ", off, n, f.PunchHole(off, n))
	case fileOps:
		keep := rng.IntN(2) == 0
		return fmt.Sprint("allocate ", off, n, keep, f.Allocate(off, n, keep))
	default:
		b := make([]byte, n)
		r, err := f.ReadAt(b, off)
		if err != nil && !errors.Is(err, io.EOF) {
			r = 0
		}
		return fmt.Sprint("read ", off, n, string(b[:r]), err)
	}
}

func TestDifferential(t *testing.T) {
	steps, rounds := 400, 40
	if testing.Short() {
		rounds = 5
	}
	for seed := range uint64(rounds) {
		differential(t, seed, steps, 0, dump)
	}
}

// TestDifferentialAllocate allocates as well. Whether blocks that are reserved
// and not written count as data depends on what is cached: zeros are left out.
func TestDifferentialAllocate(t *testing.T) {
	zeros := regexp.MustCompile(`\[[-0-9]+:( 0\*[0-9]+)*|]| 0\*[0-9]+`)
	for seed := range uint64(10) {
		differential(t, seed, 400, 1, func(t testing.TB, d Dir) []string {
			lines := dump(t, d)
			for i := range lines {
				lines[i] = zeros.ReplaceAllString(lines[i], "")
			}
			return lines
		})
	}
}

// differential makes the same calls on the real file system and on Mem.
func differential(t *testing.T, seed uint64, steps, more int, dump func(testing.TB, Dir) []string) {
	fs, err := OS(ext4Dir(t))
	require.NoError(t, err)
	defer fs.Close()
	mem := NewMem(seed)
	a, b := &player{root: rootOf(t, fs), more: more}, &player{root: rootOf(t, mem), more: more}
	defer a.close()
	defer b.close()
	ra, rb := rand.New(rand.NewPCG(seed, 1)), rand.New(rand.NewPCG(seed, 1))
	var story []string
	for i := range steps {
		got, want := b.play(rb), a.play(ra)
		story = append(story, want)
		if got != want {
			t.Fatalf("seed %d step %d: Mem %s, OS %s, after\n%s", seed, i, got, want, strings.Join(story, "\n"))
		}
		if i%100 == 99 {
			require.Equal(t, dump(t, a.root), dump(t, b.root), "seed %d step %d", seed, i)
		}
	}
}

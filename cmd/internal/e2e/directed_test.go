package e2e

import (
	"encoding/json"
	"fmt"
	"maps"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"unicode/utf8"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"cagefs.dev/cage/cmd/internal/differ"
)

// script is the text of a program that is being written.
type script struct{ strings.Builder }

// do adds a step; %q writes names of any bytes.
func (s *script) do(step string, args ...any) { fmt.Fprintf(s, step+"\n", args...) }

// program is what has been written.
func (s *script) program(t *testing.T) *differ.Program {
	t.Helper()
	p, err := differ.Parse("program seed=0 mounts=1 acl=false\n" + s.String())
	require.NoError(t, err)
	return p
}

// same runs a program on a mount and on ext4, which must not differ.
func (a *arena) same(t *testing.T, s *script) {
	t.Helper()
	p := s.program(t)
	d, err := a.run(p)
	require.NoError(t, err)
	if d != nil {
		first := max(0, d.Step-12)
		t.Fatalf("%v\nafter\n%s", d, (&differ.Program{Mounts: 1, Steps: p.Steps[first:min(d.Step+1, len(p.Steps))]}).String())
	}
}

// things are what a name can be, with the steps of root that make it, under %[1]q.
var things = map[string]string{
	"nothing": "",
	"file":    "0 mknod path=%[1]q mode=0100644\n",
	"dir":     "0 mkdir path=%[1]q mode=0755\n",
	"full":    "0 mkdir path=%[1]q mode=0755\n0 mknod path=%[2]q mode=0100644\n",
	"symlink": "0 symlink path=\"nowhere\" to=%[1]q\n",
	"fifo":    "0 mknod path=%[1]q mode=0010644\n",
}

// thing makes one that belongs to somebody.
func (s *script) thing(kind, name string, owner int) {
	if kind == "nothing" {
		return
	}
	fmt.Fprintf(s, things[kind], name, name+"/x")
	u := differ.Users[owner]
	s.do("0 chown path=%q uid=%d gid=%d flags=NOFOLLOW", name, u.UID, u.GID)
}

// TestRenameRules does the renames of all kinds of things, by all kinds of
// users, in directories with all kinds of modes; a sample of them where time is short.
func TestRenameRules(t *testing.T) {
	t.Parallel()
	needRoot(t)
	a := newArena(t, "-N", "200000") // inodes: a move has up to six things on each side
	type move struct {
		who, dirs, owner, source, target, flags, other any
	}
	var all []move
	product(func(v []any) { all = append(all, move{v[0], v[1], v[2], v[3], v[4], v[5], v[6]}) },
		[]any{0, 1, 2, 3}, []any{"0777 0777", "1777 0777", "0777 1777", "1777 1777", "0755 0777", "0777 0755", "2777 1770"},
		[]any{1, 2}, []any{"file", "dir", "full", "symlink", "nothing"}, []any{"nothing", "file", "dir", "full", "symlink"},
		[]any{"0", "NOREPLACE", "EXCHANGE"}, []any{1, 3})
	r := rand.New(rand.NewPCG(seed(t), 0))
	r.Shuffle(len(all), func(i, j int) { all[i], all[j] = all[j], all[i] })
	if !accept {
		all = all[:200]
	}
	var s script
	for i, m := range all {
		from, to := fmt.Sprintf("a%d", i), fmt.Sprintf("b%d", i)
		modes := strings.Fields(m.dirs.(string))
		s.do("0 mkdir path=%q mode=0700\n0 chown path=%[1]q uid=61001 gid=62001\n0 chmod path=%[1]q mode=%[2]s", from, modes[0])
		s.do("0 mkdir path=%q mode=0700\n0 chown path=%[1]q uid=61001 gid=62001\n0 chmod path=%[1]q mode=%[2]s", to, modes[1])
		s.thing(m.source.(string), from+"/s", m.owner.(int))
		s.thing(m.target.(string), to+"/t", m.other.(int))
		s.do("%d rename path=%q to=%q flags=%s", m.who, from+"/s", to+"/t", m.flags)
	}
	a.same(t, &s)
}

// product calls f with one value of each list, in all ways.
func product(f func([]any), lists ...[]any) {
	var walk func(n int, v []any)
	walk = func(n int, v []any) {
		if n == len(lists) {
			f(append([]any(nil), v...))
			return
		}
		for _, x := range lists[n] {
			walk(n+1, append(v, x))
		}
	}
	walk(0, nil)
}

// TestNameRules does what the manual pages have a rule for: links, special
// files, bits that directories pass on and that changes take away, times; where
// time is short not all of these.
func TestNameRules(t *testing.T) {
	t.Parallel()
	needRoot(t)
	a := newArena(t)
	rules := map[string]func() *script{"rename": renameRules, "link": linkRules, "special": specialRules,
		"inherit": inheritRules, "chmod": chmodRules, "chown": chownRules, "times": timeRules}
	names := slices.Sorted(maps.Keys(rules))
	if !accept { // those that take longest: another one each time
		long := []string{"inherit", "chmod", "chown", "times"}
		one := long[rand.New(rand.NewPCG(seed(t), 0)).IntN(len(long))]
		names = slices.DeleteFunc(names, func(n string) bool { return n != one && slices.Contains(long, n) })
	}
	for _, name := range names {
		t.Run(name, func(t *testing.T) { a.same(t, rules[name]()) })
	}
}

// renameRules are those that need more than a source and a target.
func renameRules() *script {
	s := &script{}
	s.do(`0 mkdir path="d" mode=0777
0 chmod path="d" mode=0777
1 mkdir path="d/p" mode=0755
1 mkdir path="d/p/q" mode=0755
1 mkdir path="d/p/q/r" mode=0755
1 mknod path="d/f" mode=0100644
1 link path="d/f" to="d/g"`)
	for _, flags := range []string{"0", "NOREPLACE", "EXCHANGE", "NOREPLACE|EXCHANGE", "0x8"} {
		for _, pair := range [][2]string{
			{"d/p", "d/p"}, {"d/p", "d/p/q"}, {"d/p", "d/p/q/new"}, {"d/p", "d/p/q/r"}, {"d/p/q/r", "d/p"}, {"d/p/q", "d/p/."}, {"d/p/.", "d/x"},
			{"d/p/..", "d/x"}, {"d/p", "d/p/.."}, {"d/f", "d/f"}, {"d/f", "d/g"}, {"d/f", "d/g/"}, {"d/f", "d/new/"}, {"d/f/", "d/new"},
			{"d/none", "d/none"}, {"d/none", "d/f"}, {"", "d/f"}, {"d/f", ""}, {"d/f/x", "d/y"}, {"d/f", "d/f/y"}, {"/", "d/y"}, {"d/f", "/"},
		} {
			s.do("1 rename path=%q to=%q flags=%s", pair[0], pair[1], flags)
			s.do("1 rename path=%q to=%q flags=%s", pair[1], pair[0], flags)
		}
	}
	// Who moves a directory elsewhere changes its "..", and must be allowed to write to it.
	s.do(`0 mkdir path="e" mode=0777
0 chmod path="e" mode=0777`)
	for _, mode := range []string{"0755", "0777", "0555", "0770", "0000"} {
		for who := range 4 {
			s.do("1 mkdir path=%q mode=0700", "d/m")
			s.do("0 chmod path=%q mode=%s", "d/m", mode)
			s.do("%d rename path=%q to=%q", who, "d/m", "d/n") // stays: needs nothing
			s.do("%d rename path=%q to=%q", who, "d/n", "e/n")
			s.do("1 mkdir path=%q mode=0700", "e/o")
			s.do("%d rename path=%q to=%q flags=EXCHANGE", who, "e/o", "d/n")
			s.do("%d rename path=%q to=%q flags=EXCHANGE", who, "e/o", "d/f")
			for _, left := range []string{"d/m", "d/n", "e/n", "e/o"} {
				s.do("0 rmdir path=%q", left)
			}
			s.do("0 rename path=%q to=%q", "e/o", "d/f")
		}
	}
	return s
}

func linkRules() *script {
	s := &script{}
	s.do(`0 mkdir path="d" mode=0777
0 chmod path="d" mode=0777
0 mkdir path="t" mode=01777
0 chmod path="t" mode=01777`)
	for i, mode := range []string{"0644", "0666", "0600", "0664", "4755", "4777", "2777", "2766", "0000"} {
		f := fmt.Sprintf("d/f%d", i)
		s.do("1 open slot=1 path=%q flags=CREAT mode=0600", f)
		s.do("1 chmod path=%q mode=%s", f, mode)
		for who := range 4 {
			s.do("%d link path=%q to=%q", who, f, fmt.Sprintf("t/l%d-%d", i, who))
			s.do("%d link path=%q to=%q", who, f, f)
		}
	}
	for i, kind := range []string{"dir", "symlink", "fifo"} {
		f := "d/" + kind
		s.thing(kind, f, 1)
		for who := range 4 {
			s.do("%d link path=%q to=%q", who, f, fmt.Sprintf("t/k%d-%d", i, who))
			s.do("%d link path=%q to=%q flags=FOLLOW", who, f, fmt.Sprintf("t/kf%d-%d", i, who))
			s.do("%d unlink path=%q", who, f)
			s.do("%d rmdir path=%q", who, "t/nothing")
		}
	}
	s.do(`0 mkdir path="d/dir" mode=0755
0 unlink path="d/dir"
1 unlink path="d/dir"
0 rmdir path="d/f0"
0 rmdir path="d/f0/x"
0 rmdir path="d/."
0 rmdir path="d/dir/.."
0 rmdir path="/"
0 unlink path="/"
0 rmdir path="d"
1 symlink path="" to="d/empty"
1 symlink path="x" to=""
1 symlink path="x" to="d/f1"
1 symlink path="x" to="d/new/"
1 mkdir path="d/slash/" mode=0755
1 mknod path="d/slash2/" mode=0100644
1 open slot=2 path="d/slash3/" flags=CREAT mode=0644
1 readlink path="d/f1"
1 readlink path="d"`)
	// Who may remove what from a sticky directory.
	for _, owner := range []int{1, 2, 0} {
		for who := range 4 {
			for _, kind := range []string{"file", "dir", "symlink"} {
				n := fmt.Sprintf("t/%s-%d-%d", kind, owner, who)
				s.thing(kind, n, owner)
				s.do("%d rename path=%q to=%q", who, n, n+"m")
				s.do("%d unlink path=%q", who, n)
				s.do("%d rmdir path=%q", who, n)
			}
		}
	}
	return s
}

func specialRules() *script {
	s := &script{}
	s.do(`0 mkdir path="d" mode=0777
0 chmod path="d" mode=0777`)
	for who := range 3 {
		for _, mode := range []string{"0010644", "0140755", "0020600", "0060660", "0100640", "0644", "0040755", "0120777", "0170000", "0104755", "0012755"} {
			for _, dev := range []int{0, 0x0103, 0xfff12345} {
				s.do("%d mknod path=%q mode=%s rdev=%d", who, fmt.Sprintf("d/%d-%s-%x", who, mode, dev), mode, dev)
				s.do("%d stat path=%q", who, fmt.Sprintf("d/%d-%s-%x", who, mode, dev))
			}
		}
		s.do("%d umask mode=0077", who)
		s.do("%d mknod path=%q mode=0010666", who, fmt.Sprintf("d/masked%d", who))
		s.do("%d mkdir path=%q mode=7777", who, fmt.Sprintf("d/maskedd%d", who))
		s.do("%d open slot=1 path=%q flags=CREAT|WRONLY mode=7777", who, fmt.Sprintf("d/maskedf%d", who))
		s.do("%d symlink path=\"x\" to=%q", who, fmt.Sprintf("d/maskedl%d", who))
		s.do("%d umask mode=0777", who)
		s.do("%d mknod path=%q mode=0140777", who, fmt.Sprintf("d/none%d", who))
		s.do("%d open slot=1 path=%q flags=CREAT|RDWR mode=0777", who, fmt.Sprintf("d/nonef%d", who))
		s.do("%d open slot=2 path=%q flags=RDWR", who, fmt.Sprintf("d/nonef%d", who))
	}
	return s
}

// inheritRules are about directories with setgid: groups that one is in and is not.
func inheritRules() *script {
	s := &script{}
	for _, gid := range []int{0, 62001, 62002, 62003} {
		dir := fmt.Sprintf("g%d", gid)
		s.do("0 mkdir path=%q mode=0777\n0 chown path=%[1]q uid=61001 gid=%[2]d\n0 chmod path=%[1]q mode=2777", dir, gid)
		for who := range 4 {
			for _, umask := range []string{"0", "0027", "0010"} {
				n := fmt.Sprintf("%s/%d-%s", dir, who, umask)
				s.do("%d umask mode=%s", who, umask)
				for _, mode := range []string{"0755", "2755", "2745", "2700", "6777", "1777"} {
					s.do("%d mkdir path=%q mode=%s", who, n+"d"+mode, mode)
					s.do("%d open slot=1 path=%q flags=CREAT|EXCL mode=%s", who, n+"f"+mode, mode)
					s.do("%d mknod path=%q mode=010%s", who, n+"p"+mode, mode)
					s.do("%d stat path=%q", who, n+"f"+mode)
				}
				s.do("%d symlink path=\"x\" to=%q", who, n+"l")
				s.do("%d mkdir path=%q mode=0777", who, n+"d0755/below")
				s.do("%d open slot=1 path=%q flags=TMPFILE|WRONLY mode=2777", who, dir)
				s.do("%d linkproc slot=1 to=%q", who, n+"tmp")
				s.do("%d rename path=%q to=%q", who, n+"f0755", n+"moved")
			}
		}
	}
	return s
}

var modes = []string{"0644", "4755", "2755", "6755", "6745", "2644", "6666", "1777", "0", "7777"}

func chmodRules() *script {
	s := &script{}
	s.do(`0 mkdir path="d" mode=0777
0 chmod path="d" mode=0777`)
	for _, gid := range []int{62001, 62002, 62003} { // 62003: a group that the owner is not in
		for _, kind := range []string{"file", "dir", "fifo", "symlink"} {
			n := fmt.Sprintf("d/%s%d", kind, gid)
			s.thing(kind, n, 1)
			s.do("0 chown path=%q uid=61001 gid=%d flags=NOFOLLOW", n, gid)
			for who := range 4 {
				for _, mode := range modes {
					s.do("%d chmod path=%q mode=%s", who, n, mode)
					s.do("0 stat path=%q flags=NOFOLLOW", n)
				}
			}
			s.do("1 chmod path=%q mode=0640 flags=NOFOLLOW", n)
		}
	}
	return s
}

func chownRules() *script {
	s := &script{}
	s.do(`0 mkdir path="d" mode=0777
0 chmod path="d" mode=0777`)
	for i, mode := range modes {
		for _, kind := range []string{"file", "dir", "symlink"} {
			n := fmt.Sprintf("d/%s%d", kind, i)
			s.thing(kind, n, 1)
			for who := range 4 {
				for _, ids := range [][2]int{{-1, -1}, {61001, -1}, {-1, 62001}, {61001, 62002}, {-1, 62003}, {61002, -1}, {61001, 62001}} {
					if who > 1 && ids == [2]int{-1, -1} {
						continue // the kernel does not tell it from a write, which is checked elsewhere
					}
					s.do("0 chmod path=%q mode=%s", n, mode)
					s.do("%d chown path=%q uid=%d gid=%d flags=NOFOLLOW", who, n, ids[0], ids[1])
					s.do("0 stat path=%q flags=NOFOLLOW", n)
				}
			}
		}
	}
	return s
}

func timeRules() *script {
	s := &script{}
	s.do(`0 mkdir path="d" mode=0777
0 chmod path="d" mode=0777`)
	// The last is the last second that a time in nanoseconds can hold; ext4 goes on to 2446.
	times := []string{"omit", "now", "1.999999999", "0.0", "-1.5", "-2147483648.0", "-9000000000.1", "4294967296.7", "9223372035.999999999", "5.1000000000", "5.-1"}
	for _, perm := range []string{"0644", "0666", "0600"} {
		for _, kind := range []string{"file", "dir", "symlink"} {
			n := "d/" + kind + perm
			s.thing(kind, n, 1)
			if kind != "symlink" {
				s.do("0 chmod path=%q mode=%s", n, perm)
			}
			for who := range 4 {
				for _, at := range times {
					for _, mt := range []string{"omit", "now", at} {
						s.do("0 utimens path=%q atime=1000.1 mtime=2000.2 flags=NOFOLLOW", n)
						s.do("%d utimens path=%q atime=%q mtime=%q flags=NOFOLLOW", who, n, at, mt)
						s.do("0 stat path=%q flags=NOFOLLOW", n)
						s.do("%d utimens path=%q atime=%q mtime=%q flags=NOFOLLOW", who, n, mt, at)
						s.do("0 stat path=%q flags=NOFOLLOW", n)
					}
				}
			}
		}
	}
	return s
}

// TestNames uses names and paths of all bytes and lengths.
func TestNames(t *testing.T) {
	t.Parallel()
	needRoot(t)
	a := newArena(t)
	t.Run("bytes", func(t *testing.T) { a.same(t, byteNames()) })
	t.Run("long", func(t *testing.T) { a.same(t, longNames()) })
	t.Run("symlinks", func(t *testing.T) { a.same(t, symlinkChains()) })
}

func byteNames() *script {
	s := &script{}
	s.do(`0 mkdir path="alone" mode=0755
0 mkdir path="inside" mode=0755
0 mkdir path="sub" mode=0755
0 mkdir path="moved" mode=0755`)
	for b := 1; b < 256; b++ {
		if b == '/' {
			continue
		}
		c := string([]byte{byte(b)})
		if b != '.' {
			s.do("0 mknod path=%q mode=0100644", "alone/"+c)
		}
		n := "inside/a" + c + "b" + c
		s.do("0 mkdir path=%q mode=0755", n)
		s.do("0 rename path=%q to=%q", n, "moved/"+c+"x")
		s.do("0 stat path=%q", "moved/"+c+"x")
		s.do("0 symlink path=%q to=%q", c+c, n)
		s.do("0 readlink path=%q", n)
	}
	for _, n := range []string{"...", "....", "-", "--", "-rf", " ", "  x ", "\n", "a\nb", "\x1b[31m", "\xff\xfe", "\xc3(", "\xed\xa0\x80", "é", "e\u0301", "~", "*", "CON", ".cage", ".Cage", ".cage.x", ".fuse_hidden0001", ".nfs1"} {
		s.do("0 mknod path=%q mode=0100644", "sub/"+n)
		s.do("0 link path=%q to=%q", "sub/"+n, "sub/"+n+"+")
		s.do("0 mkdir path=%q mode=0755", n)
		s.do("0 mkdir path=%q mode=0755", n+"/.cage")
		s.do("0 mknod path=%q mode=0100644", n+"/.cage/f")
		s.do("0 rename path=%q to=%q flags=EXCHANGE", n+"/.cage/f", n+"/.cage")
		s.do("0 rename path=%q to=%q", n+"/.cage", n+"/other")
		s.do("0 rename path=%q to=%q", n+"/other", n+"/.cage")
		s.do("0 rename path=%q to=%q flags=NOREPLACE", "sub/"+n, n+"/.cage/"+n)
	}
	for _, dir := range []string{"alone", "inside", "moved", "sub"} {
		s.do("0 open slot=1 path=%q flags=DIRECTORY\n0 list slot=1", dir)
	}
	return s
}

// longNames are those at the limits of a name and of a path.
func longNames() *script {
	s := &script{}
	n := strings.Repeat("n", 255)
	for _, long := range []string{n, strings.Repeat("\xff", 255), strings.Repeat("é", 127) + "e", n + "n", n + n, strings.Repeat("é", 128)} {
		s.do("0 mknod path=%q mode=0100644", long)
		s.do("0 stat path=%q", long)
		s.do("0 mkdir path=%q mode=0755", long[:250])
		s.do("0 rename path=%q to=%q", long, long[:250]+"/"+long)
		s.do("0 link path=%q to=%q", long[:250]+"/"+long, long)
		s.do("0 symlink path=%q to=%q", long, long[1:])
		s.do("0 unlink path=%q", long+"x")
		s.do("0 open slot=1 path=%q flags=CREAT mode=0644", long+"x")
		s.do("0 setxattr path=%q name=\"user.a\" value=\"b\"", long)
	}
	for _, size := range []int{4094, 4095, 4096, 8000} {
		s.do("0 mkdir path=\"d\" mode=0755")
		for deep := 2; deep <= 60; deep++ {
			s.do("0 mkdir path=%q mode=0755", strings.Repeat("d/", deep))
		}
		path := strings.Repeat("d/", 60) + strings.Repeat("./", size)[:size-120-1] + "f"
		s.do("0 open slot=1 path=%q flags=CREAT|RDWR mode=0644", path)
		s.do("0 stat path=%q", path)
		s.do("0 rename path=%q to=%q", path, strings.ReplaceAll(path, "f", "g"))
	}
	return s
}

func symlinkChains() *script {
	s := &script{}
	s.do("0 mknod path=\"l0\" mode=0100644")
	for i := 1; i <= 45; i++ {
		s.do("0 symlink path=%q to=%q", fmt.Sprint("l", i-1), fmt.Sprint("l", i))
		s.do("0 stat path=%q", fmt.Sprint("l", i))
		s.do("0 open slot=1 path=%q flags=CREAT mode=0644", fmt.Sprint("l", i))
	}
	s.do(`0 symlink path="self" to="self"
0 symlink path="b" to="a"
0 symlink path="a" to="b"
0 stat path="self"
0 stat path="a/x"
0 open slot=1 path="a" flags=CREAT mode=0644
0 open slot=1 path="a" flags=NOFOLLOW
0 open slot=1 path="a" flags=PATH|NOFOLLOW
0 rename path="self" to="self2"
0 readlink path="self2"
0 chmod path="a" mode=0600
0 truncate path="self2"
0 mkdir path="a" mode=0755`)
	for _, size := range []int{1, 59, 60, 61, 255, 256, 4000, 4094, 4095, 4096} {
		n := fmt.Sprint("size", size)
		s.do("0 symlink path=%q to=%q", strings.Repeat("\xfe", size), n)
		s.do("0 readlink path=%q", n)
		s.do("0 stat path=%q flags=NOFOLLOW", n)
		s.do("0 stat path=%q", n)
	}
	return s
}

// TestXattrs does what xattr(7) has rules for, on a file system that takes
// little more than a block of attributes per file and on one that takes more.
func TestXattrs(t *testing.T) {
	t.Parallel()
	needRoot(t)
	small, large := newArena(t), newArena(t, "-O", "ea_inode")
	t.Run("kinds", func(t *testing.T) { small.same(t, xattrKinds()) })
	t.Run("small", func(t *testing.T) { small.same(t, xattrSizes()) })
	t.Run("large", func(t *testing.T) { large.same(t, xattrSizes()) })
}

// xattrKinds are all kinds of attributes of all kinds of files, by several users.
func xattrKinds() *script {
	s := &script{}
	names := []string{"user.a", "user.", "user", "", "trusted.a", "trusted.", "security.a", "security.capability", "security.", "system.a", "other.a", "user.\xff"}
	s.do("0 mkdir path=\"d\" mode=0777\n0 chmod path=\"d\" mode=0777\n0 mkdir path=\"sticky\" mode=01777\n0 chmod path=\"sticky\" mode=1777")
	for _, perm := range []string{"0604", "0622"} {
		for _, kind := range []string{"file", "dir", "symlink", "fifo"} {
			f := "d/" + kind + perm
			s.thing(kind, f, 1)
			if kind != "symlink" {
				s.do("0 chmod path=%q mode=%s", f, perm)
			}
			for _, name := range names {
				for who := range 3 {
					s.do("%d lsetxattr path=%q name=%q value=\"first\" flags=REPLACE", who, f, name)
					s.do("%d lsetxattr path=%q name=%q value=\"second\" flags=CREATE", who, f, name)
					s.do("%d lsetxattr path=%q name=%q value=\"third\" flags=CREATE", who, f, name)
					if who == 0 || name != "security.capability" { // the kernel lets everybody set an empty one on everything
						s.do("%d lsetxattr path=%q name=%q value=\"\" flags=REPLACE", who, f, name)
					}
					s.do("%d getxattr path=%q name=%q flags=NOFOLLOW", who, f, name)
					s.do("%d lsetxattr path=%q name=%q value=\"fourth\"", who, f, name)
					for reader := range 3 {
						s.do("%d getxattr path=%q name=%q flags=NOFOLLOW", reader, f, name)
						s.do("%d getxattr path=%q name=%q flags=NOFOLLOW len=-1", reader, f, name)
						s.do("%d getxattr path=%q name=%q flags=NOFOLLOW len=5", reader, f, name)
						s.do("%d getxattr path=%q name=%q flags=NOFOLLOW len=6", reader, f, name)
					}
					s.do("%d listxattr path=%q flags=NOFOLLOW", who, f)
					s.do("%d listxattr path=%q flags=NOFOLLOW len=-1", who, f)
					s.do("%d listxattr path=%q flags=NOFOLLOW len=3", who, f)
					if who != 1 {
						s.do("%d removexattr path=%q name=%q flags=NOFOLLOW", who, f, name)
						s.do("%d removexattr path=%q name=%q flags=NOFOLLOW", who, f, name)
					}
				}
			}
		}
	}
	for who := range 3 {
		s.do("%d setxattr path=\"sticky\" name=\"user.who\" value=\"x\"", who)
		s.do("%d setxattr path=\"d/none\" name=\"user.who\" value=\"x\"", who)
		s.do("%d setxattr path=\"d/file0622\" name=\"user.both\" value=\"x\" flags=CREATE|REPLACE", who)
		s.do("%d setxattr path=\"d/file0622\" name=\"user.both\" value=\"x\" flags=0x10", who)
	}
	return s
}

// xattrSizes are values and names at the limits.
func xattrSizes() *script {
	s := &script{}
	for i, size := range []int{0, 1, 100, 3000, 4000, 4096, 5000, 65535, 65536, 65537} {
		for _, kind := range []string{"file", "dir"} {
			f := fmt.Sprint(kind, i)
			s.thing(kind, f, 0)
			value := strings.Repeat("v", size)
			s.do("0 setxattr path=%q name=\"user.a\" value=%q", f, value)
			s.do("0 setxattr path=%q name=\"user.a\" value=%q flags=REPLACE", f, value)
			s.do("0 getxattr path=%q name=\"user.a\"", f)
			s.do("0 getxattr path=%q name=\"user.a\" len=-1", f)
			s.do("0 getxattr path=%q name=\"user.a\" len=1", f)
			for j := range 4 { // until no more fits
				s.do("0 setxattr path=%q name=\"trusted.%d\" value=%q", f, j, strings.Repeat("w", 900))
			}
			s.do("0 setxattr path=%q name=\"user.a\" value=\"small\"", f)
			s.do("0 setxattr path=%q name=\"security.b\" value=%q", f, value)
			s.do("0 listxattr path=%q", f)
			s.do("0 removexattr path=%q name=\"user.a\"", f)
		}
	}
	s.do("0 mknod path=\"names\" mode=0100644")
	for _, size := range []int{249, 250, 251, 300} {
		n := "user." + strings.Repeat("n", size)
		s.do("0 setxattr path=\"names\" name=%q value=\"x\"", n)
		s.do("0 getxattr path=\"names\" name=%q", n)
		s.do("0 removexattr path=\"names\" name=%q", n)
	}
	return s
}

// TestDeepTree goes deeper than a path can name, step by step, and removes it again.
func TestDeepTree(t *testing.T) {
	t.Parallel()
	needRoot(t)
	a := newArena(t)
	depth := 150
	if accept {
		depth = 1500
	}
	name := func(i int) string { return fmt.Sprintf("%d-%s", i%10, strings.Repeat("deeper", 8)) }
	s := &script{}
	for i := range depth {
		s.do("0 mkdir path=%q mode=0755\n0 chdir path=%[1]q", name(i))
		if i%50 == 49 {
			s.do("0 getcwd\n0 open slot=1 path=\"f\" flags=CREAT|RDWR mode=0644\n0 stat path=\"..\"")
		}
	}
	s.do("0 rename path=\"f\" to=\"../../g\"\n0 stat path=\"../../g\"\n0 open slot=2 path=\"../..\" flags=DIRECTORY\n0 list slot=2")
	s.do("0 rename path=%q to=%q", "../../"+name(depth-2), "x")
	for i := depth - 1; i >= 0; i-- {
		s.do("0 unlink path=\"f\"\n0 unlink path=\"g\"\n0 chdir path=\"..\"\n0 rmdir path=%q", name(i))
	}
	s.do("0 getcwd")
	a.same(t, s)

	// What is removed of such a tree can be brought back.
	m := a.mounts[0]
	down := func(make bool) int {
		fd, err := unix.Open(m, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
		require.NoError(t, err)
		for i := range depth {
			if make {
				require.NoError(t, unix.Mkdirat(fd, name(i), 0o755))
			}
			next, err := unix.Openat(fd, name(i), unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
			require.NoError(t, err, "at depth %d", i)
			unix.Close(fd)
			fd = next
		}
		return fd
	}
	bottom := down(true)
	fd, err := unix.Openat(bottom, "file", unix.O_CREAT|unix.O_WRONLY|unix.O_CLOEXEC, 0o644)
	require.NoError(t, err)
	_, err = unix.Write(fd, []byte("deep"))
	require.NoError(t, err)
	require.NoError(t, unix.Close(fd))
	unix.Close(bottom)
	a.lab.run("cagejournal", "label", "deep", m)
	require.NoError(t, os.RemoveAll(filepath.Join(m, name(0))))
	a.changing("cagejournal", "rollback", m, "--to", "@label:deep", "-y")
	bottom = down(false)
	fd, err = unix.Openat(bottom, "file", unix.O_RDONLY|unix.O_CLOEXEC, 0)
	require.NoError(t, err)
	b := make([]byte, 10)
	n, err := unix.Read(fd, b)
	require.NoError(t, err)
	require.Equal(t, "deep", string(b[:n]))
	unix.Close(fd)
	unix.Close(bottom)
	a.lab.run("cagejournal", "log", m, "-n", "10")
	require.NoError(t, os.RemoveAll(filepath.Join(m, name(0))))
}

// TestNamesInHistory: names that are no text are shown so that a terminal is
// safe, and are exact for programs, and can be given as arguments.
func TestNamesInHistory(t *testing.T) {
	t.Parallel()
	l := newLab(t, "")
	export := l.mkdir("export")
	s := l.newServer(export)
	s.start()
	m := l.mount(s)
	names := []string{"\xff\xfe", "new\nline", "\x1b[31mred", "-rf", "...", "é", "\ufffd", "a\xc3(b"}
	require.NoError(t, os.Mkdir(m+"/sub", 0o755))
	for _, bad := range []string{"/.cage", "/.cage/x"} {
		require.Error(t, os.Mkdir(m+bad, 0o755))
		_, err := os.Lstat(m + bad)
		require.ErrorIs(t, err, os.ErrNotExist)
	}
	require.ErrorIs(t, os.Rename(m+"/sub", m+"/.cage"), unix.EPERM)
	require.ErrorIs(t, os.Symlink("x", m+"/.cage"), unix.EPERM)
	for _, n := range append(names, ".cage") {
		require.NoError(t, os.WriteFile(filepath.Join(m, "sub", n), []byte(n), 0o644))
	}
	l.run("cagefs", "sync", m)
	l.run("cagejournal", "label", "then", m)
	for _, n := range names {
		path := filepath.Join(m, "sub", n)
		require.NoError(t, os.Remove(path))
		require.Equal(t, n, l.run("cagejournal", "cat", path+"@label:then"))
		text := l.run("cagejournal", "log", path)
		require.NotContains(t, text, "\x1b")
		require.NotContains(t, text, "new\nline")
		require.True(t, utf8.ValidString(text), "%q", text)
		found := false
		for line := range strings.Lines(l.run("cagejournal", "log", path, "--json")) {
			var e struct {
				Kind string
				Path string
				B64  []byte `json:"path_base64"`
			}
			require.NoError(t, json.Unmarshal([]byte(line), &e))
			if e.Kind == "make" {
				found = true
				if e.B64 == nil {
					e.B64 = []byte(e.Path)
				} else {
					require.False(t, utf8.Valid(e.B64))
				}
				require.Equal(t, "sub/"+n, string(e.B64))
			}
		}
		require.True(t, found, "%q", n)
		l.changing("cagejournal", "rollback", path, "--to", "@label:then", "-y")
		got, err := os.ReadFile(path)
		require.NoError(t, err)
		require.Equal(t, n, string(got))
	}
	require.NoError(t, os.RemoveAll(m+"/sub"))
	l.changing("cagejournal", "rollback", m+"/sub", "--to", "@label:then", "-y")
	for _, n := range append(names, ".cage") {
		got, err := os.ReadFile(filepath.Join(m, "sub", n))
		require.NoError(t, err)
		require.Equal(t, n, string(got))
	}
	l.umount(m)
	s.stop()
	require.NoError(t, l.verify(export))
}

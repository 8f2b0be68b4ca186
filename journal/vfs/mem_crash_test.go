package vfs

import (
	"bytes"
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
	"strings"
	"syscall"
	"testing"

	"github.com/stretchr/testify/require"
)

func newRand(seed uint64) *rand.Rand { return rand.New(rand.NewPCG(seed, 7)) }

// crashes calls f with n crashed copies of m.
func crashes(t *testing.T, m *Mem, n int, f func(root Dir)) {
	for seed := range uint64(n) {
		root, err := m.Crash(newRand(seed)).Root()
		require.NoError(t, err)
		f(root)
		root.Close()
	}
}

// TestCrashPrefix: names and attributes are those after some number of calls,
// not fewer than were made durable.
func TestCrashPrefix(t *testing.T) {
	for seed := range uint64(15) {
		m, rng := NewMem(seed), newRand(seed)
		p := &player{root: rootOf(t, m), more: 1}
		states := map[string]int{"": 0}
		cuts := make(map[int]bool)
		durable := 0
		for step := 1; step <= 60; step++ {
			p.playNames(t, rng)
			state := strings.Join(dump(t, p.root), "\n")
			states[state] = step // the latest, as a state may come back
			if rng.IntN(20) == 0 {
				require.NoError(t, p.root.Sync())
				durable = step
			}
			for range 3 {
				found := strings.Join(dump(t, rootOf(t, m.Crash(rng))), "\n")
				at, ok := states[found]
				require.True(t, ok, "seed %d step %d: not a state that was:\n%s", seed, step, found)
				require.GreaterOrEqual(t, at, durable)
				cuts[step-at] = true
			}
		}
		require.Greater(t, len(cuts), 5, "cuts at different places")
	}
}

// playNames makes a call that changes names or attributes.
func (p *player) playNames(t *testing.T, rng *rand.Rand) {
	for {
		before := len(p.files)
		did := p.play(rng)
		for len(p.files) > before { // no content here
			p.files[before].Close()
			p.files = p.files[:before]
		}
		if !strings.HasPrefix(did, "none") && strings.HasSuffix(did, "<nil>") {
			return
		}
	}
}

// TestCrashSynced: what was synced is there, whatever came after it elsewhere.
func TestCrashSynced(t *testing.T) {
	for seed := range uint64(80) {
		m, rng := NewMem(seed), newRand(seed)
		root := rootOf(t, m)
		synced := make(map[string]string)
		open := make(map[string]File)
		for step := range 60 {
			name := fmt.Sprint(rng.IntN(8))
			f := open[name]
			if f == nil {
				f = create(t, root, name, "")
				open[name] = f
			}
			switch rng.IntN(6) {
			case 0, 1:
				write(t, f, strings.Repeat(string(rune('a'+step%26)), rng.IntN(9000)), rng.Int64N(9000))
				delete(synced, name)
			case 2:
				require.NoError(t, f.Truncate(rng.Int64N(9000)))
				delete(synced, name)
			case 3:
				require.NoError(t, f.PunchHole(rng.Int64N(9000), 1+rng.Int64N(9000)))
				delete(synced, name)
			case 4:
				require.NoError(t, f.Datasync())
				synced[name] = contentOf(t, f)
			case 5:
				require.NoError(t, root.Chmod(name, rng.Uint32()))
			}
			if rng.IntN(30) == 0 {
				require.NoError(t, m.SyncFS())
				for name, f := range open {
					synced[name] = contentOf(t, f)
				}
			}
			if step%5 == 0 {
				c := m.Crash(rng)
				for range 2 { // a crash loses nothing that an earlier one left
					found := rootOf(t, c)
					for name, want := range synced {
						require.True(t, want == contentAt(t, found, name), "seed %d step %d: %s", seed, step, name)
					}
					c = c.Crash(rng)
				}
			}
		}
	}
}

// TestCrashTorn: of an overwrite each sector arrives or not, nothing else is found.
func TestCrashTorn(t *testing.T) {
	const size = 3 * pageSize
	m := NewMem(1)
	root := rootOf(t, m)
	f := create(t, root, "f", strings.Repeat("o", size))
	require.NoError(t, f.Datasync())
	write(t, f, strings.Repeat("n", size-2*sectorSize-100), sectorSize+50)
	want := contentOf(t, f)
	none, some, all := 0, 0, 0
	crashes(t, m, 300, func(root Dir) {
		got := contentAt(t, root, "f")
		require.Len(t, got, size)
		arrived, changed := 0, 0
		for off := 0; off < size; off += sectorSize {
			sector, old := got[off:off+sectorSize], strings.Repeat("o", sectorSize)
			isNew := sector == want[off:off+sectorSize]
			require.True(t, isNew || sector == old, "sector at %d", off)
			if want[off:off+sectorSize] != old {
				changed++
				if isNew {
					arrived++
				}
			}
		}
		switch arrived {
		case 0:
			none++
		case changed:
			all++
		default:
			some++
		}
	})
	require.Greater(t, min(none, some, all), 20, "none %d, some %d, all %d", none, some, all)
	require.Equal(t, want, contentOf(t, f), "the original goes on")
}

// TestCrashGrowth: an unsynced size is kept wholly, partly or not, with zeros or,
// rarely, garbage where data did not arrive.
func TestCrashGrowth(t *testing.T) {
	m := NewMem(1)
	root := rootOf(t, m)
	f := create(t, root, "f", "synced")
	require.NoError(t, f.Sync())
	write(t, f, strings.Repeat("n", 8*pageSize), 6)
	sizes := make(map[int]bool)
	var zeros, garbage, whole int
	crashes(t, m, 500, func(root Dir) {
		got := contentAt(t, root, "f")
		sizes[len(got)] = true
		require.Equal(t, "synced", got[:6])
		if got == contentOf(t, f) {
			whole++
		}
		for off := sectorSize; off+sectorSize <= len(got); off += sectorSize {
			switch s := got[off : off+sectorSize]; {
			case s == strings.Repeat("\x00", sectorSize):
				zeros++
			case s != strings.Repeat("n", sectorSize):
				garbage++
			}
		}
	})
	require.True(t, sizes[6] && sizes[6+8*pageSize], "ends")
	require.Greater(t, len(sizes), 50)
	require.Greater(t, zeros, 100)
	require.Greater(t, garbage, 10)
	require.Greater(t, whole, 5)
}

// TestCrashTruncate: what a truncation cut off does not come back once it is
// durable, and before that nothing written into the new space is seen.
func TestCrashTruncate(t *testing.T) {
	m := NewMem(1)
	root := rootOf(t, m)
	f := create(t, root, "f", strings.Repeat("o", 4*pageSize))
	require.NoError(t, m.SyncFS())
	require.NoError(t, f.Truncate(pageSize))
	write(t, f, strings.Repeat("n", 3*pageSize), pageSize)
	write(t, f, "head", 0)
	var before, after int
	check := func(root Dir) {
		got := contentAt(t, root, "f")
		tail := got[pageSize:]
		require.Contains(t, []string{"oooo", "head"}, got[:4])
		if strings.Contains(tail, "oooo") {
			before++
			require.Equal(t, strings.Repeat("o", 3*pageSize), tail)
			return
		}
		after++
		require.NotContains(t, tail, "oooo")
	}
	crashes(t, m, 200, check)
	require.Greater(t, min(before, after), 30)
	require.NoError(t, root.Sync())
	before, after = 0, 0
	crashes(t, m, 200, check)
	require.Zero(t, before)
}

func TestCrashHole(t *testing.T) {
	m := NewMem(1)
	root := rootOf(t, m)
	f := create(t, root, "f", strings.Repeat("o", 3*pageSize))
	require.NoError(t, m.SyncFS())
	require.NoError(t, f.PunchHole(pageSize, pageSize))
	old, zero := strings.Repeat("o", pageSize), strings.Repeat("\x00", pageSize)
	seen := make(map[string]int)
	crashes(t, m, 100, func(root Dir) {
		got := contentAt(t, root, "f")
		require.Equal(t, old, got[:pageSize])
		require.Equal(t, old, got[2*pageSize:])
		seen[got[pageSize:2*pageSize]]++
	})
	require.ElementsMatch(t, []string{old, zero}, slices.Collect(maps.Keys(seen)))
}

func TestCrashFileSyncs(t *testing.T) {
	m := NewMem(1)
	root := rootOf(t, m)
	f := create(t, root, "f", "content")
	require.NoError(t, root.Rename("f", root, "g", 0))
	require.NoError(t, f.Datasync())
	found := make(map[string]bool)
	crashes(t, m, 100, func(root Dir) {
		list := names(t, root)
		require.Len(t, list, 1, "the inode exists")
		require.Equal(t, "content", contentAt(t, root, list[0]))
		found[list[0]] = true
	})
	require.Equal(t, map[string]bool{"f": true, "g": true}, found)

	require.NoError(t, root.Chmod("g", 0o600))
	require.NoError(t, f.Sync())
	require.NoError(t, root.Mkdir("later", 0o700))
	crashes(t, m, 100, func(root Dir) {
		require.EqualValues(t, syscall.S_IFREG|0o600, stat(t, root, "g").Mode)
	})
}

// TestCrashIdentity: numbers are used again, identities are not, also after
// creations were lost.
func TestCrashIdentity(t *testing.T) {
	m := NewMem(1)
	root := rootOf(t, m)
	seen, inos := make(map[Ident]bool), make(map[uint64]bool)
	fresh := func(root Dir) {
		root.Remove("f") // its removal may have been lost
		create(t, root, "f", "").Close()
		info := stat(t, root, "f")
		require.False(t, seen[info.Ident])
		seen[info.Ident], inos[info.Ino] = true, true
		require.NoError(t, root.Remove("f"))
	}
	for seed := range uint64(30) {
		fresh(root)
		fresh(root)
		m = m.Crash(newRand(seed))
		root = rootOf(t, m)
	}
	require.Len(t, inos, 1)

	f := create(t, root, "open", "")
	require.NoError(t, m.SyncFS())
	require.NoError(t, root.Remove("open"))
	require.NoError(t, root.Sync())
	for _, c := range []*Mem{m.Crash(newRand(1)), m.Clone()} {
		require.Equal(t, 1, len(c.live.nodes), "files without a name are gone")
		require.Empty(t, names(t, rootOf(t, c)))
	}
	require.Zero(t, contentOf(t, f))
}

func TestCrashDeterministic(t *testing.T) {
	run := func() (all [][]string) {
		m, rng := NewMem(5), newRand(5)
		p := &player{root: rootOf(t, m), more: 1}
		for range 20 {
			for range 20 {
				p.play(rng)
			}
			for seed := range uint64(5) {
				c := m.Crash(newRand(seed))
				all = append(all, dump(t, rootOf(t, c)), dump(t, rootOf(t, c.Crash(newRand(seed)))))
			}
		}
		p.close()
		return all
	}
	require.Equal(t, run(), run())
}

// TestCloneIndependent: neither of two clones sees the other's changes, and a
// clone loses nothing but can still crash.
func TestCloneIndependent(t *testing.T) {
	for seed := range uint64(20) {
		m, rng := NewMem(seed), newRand(seed)
		p := &player{root: rootOf(t, m), more: 1}
		for range 200 {
			p.play(rng)
		}
		state := dump(t, p.root)
		c := m.Clone()
		q := &player{root: rootOf(t, c), more: 1}
		require.Equal(t, state, dump(t, q.root))
		for range 200 {
			q.play(rng)
		}
		require.Equal(t, state, dump(t, p.root))
		state = dump(t, q.root)
		for range 200 {
			p.play(rng)
		}
		require.Equal(t, state, dump(t, q.root))
		require.NoError(t, c.SyncFS())
		require.Equal(t, state, dump(t, rootOf(t, c.Crash(rng))), "nothing to lose")
	}
}

func TestOnSync(t *testing.T) {
	m := NewMem(1)
	root := rootOf(t, m)
	var calls []int
	var lost bool
	m.OnSync = func(n int) {
		calls = append(calls, n)
		for seed := range uint64(20) {
			lost = lost || len(names(t, rootOf(t, m.Crash(newRand(seed))))) == 0
		}
	}
	f := create(t, root, "f", "x")
	require.NoError(t, f.Datasync())
	require.True(t, lost, "the hook comes before the effect")
	require.NoError(t, f.Sync())
	require.NoError(t, root.Sync())
	require.NoError(t, m.SyncFS())
	require.Equal(t, []int{1, 2, 3, 4}, calls)
}

func TestInject(t *testing.T) {
	m := NewMem(1)
	fail := make(map[string]error)
	var seen []Op
	fs := Inject(m, func(op Op) error {
		seen = append(seen, op)
		return fail[op.Kind]
	})
	root := rootOf(t, fs)
	d := subdir(t, root, "d")
	f := create(t, d, "f", strings.Repeat("o", 2*pageSize))
	require.NoError(t, d.Rename("f", root, "g", 0))
	require.Equal(t, []Op{
		{Kind: "root"}, {Kind: "mkdir", Path: "d"}, {Kind: "opendir", Path: "d"}, {Kind: "create", Path: "d/f"},
		{Kind: "writeat", Path: "d/f", Len: 2 * pageSize}, {Kind: "rename", Path: "d/f", To: "g"},
	}, seen)
	require.NoError(t, f.Sync())

	fail["rename"] = syscall.EIO
	require.Equal(t, syscall.EIO, root.Rename("g", root, "h", 0))
	require.Equal(t, []string{"d", "g"}, names(t, root))

	fail["writeat"] = Short(pageSize, syscall.ENOSPC)
	n, err := f.WriteAt(bytes.Repeat([]byte("n"), 2*pageSize), 0)
	require.Equal(t, syscall.ENOSPC, err)
	require.Equal(t, pageSize, n)
	want := strings.Repeat("n", pageSize) + strings.Repeat("o", pageSize)
	require.Equal(t, want, contentOf(t, f))

	fail["datasync"] = LoseUnsynced(syscall.EIO)
	require.Equal(t, syscall.EIO, f.Datasync())
	delete(fail, "datasync")
	require.NoError(t, f.Datasync(), "the next sync finds nothing to do")
	require.Equal(t, want, contentOf(t, f), "readers see what is not on the disk")
	crashes(t, m, 20, func(root Dir) {
		require.Equal(t, strings.Repeat("o", 2*pageSize), contentAt(t, root, "g"))
	})
	delete(fail, "writeat")
	write(t, f, "x", 1)
	require.NoError(t, f.Datasync())
	crashes(t, m, 20, func(root Dir) {
		require.Equal(t, contentOf(t, f), contentAt(t, root, "g"), "written again: the page is dirty again")
	})

	write(t, f, strings.Repeat("z", pageSize), pageSize)
	fail["syncfs"] = LoseUnsynced(syscall.EIO)
	require.Equal(t, syscall.EIO, fs.SyncFS())
	delete(fail, "syncfs")
	require.NoError(t, fs.SyncFS())
	require.Equal(t, syscall.EIO, f.Datasync(), "the file's own sync tells as well")
	require.NoError(t, f.Datasync(), "once")
	crashes(t, m, 20, func(root Dir) {
		require.Equal(t, strings.Repeat("o", pageSize), contentAt(t, root, "g")[pageSize:])
	})
}

// TestInjectEveryCall: every method but Close can be made to fail, before it
// does anything.
func TestInjectEveryCall(t *testing.T) {
	failure := errors.New("injected")
	m := NewMem(1)
	var armed bool
	kinds := make(map[string]bool)
	fs := Inject(m, func(op Op) error {
		if !armed {
			return nil
		}
		kinds[op.Kind] = true
		return failure
	})
	root := rootOf(t, fs)
	f := create(t, root, "f", "content")
	require.NoError(t, root.Symlink("t", "l"))
	subdir(t, root, "d")
	before := dump(t, root)
	armed = true
	second := func(_ any, err error) error { return err }
	_, _, _, dataErr := f.NextData(0)
	for i, err := range []error{
		fs.SyncFS(), second(fs.StatFS()), second(fs.Root()),
		second(root.OpenDir("d")), second(root.Open("f", true)), second(root.Create("n", 0)), root.Mkdir("n", 0),
		root.Mknod("n", syscall.S_IFIFO, 0), root.Symlink("t", "n"), second(root.Readlink("l")), root.Link("f", root, "n"),
		root.Remove("f"), root.RemoveDir("d"), root.Rename("f", root, "n", 0), second(root.Stat("f")), second(root.StatSelf()),
		root.ReadDir(0, nil), root.Chmod("f", 0), root.Chown("f", 1, 1), root.Utimes("f", 1, 1),
		second(root.GetXattr("f", "user.a")), root.SetXattr("f", "user.a", nil, 0), root.RemoveXattr("f", "user.a"),
		second(root.ListXattr("f")), root.Sync(),
		second(f.ReadAt(nil, 0)), second(f.WriteAt([]byte("x"), 0)), f.Truncate(0), f.PunchHole(0, 1), dataErr,
		f.CopyTo(f, 0, 100, 1), second(f.Stat()), f.Utimes(1, 1), f.Datasync(), f.Sync(),
	} {
		require.Equal(t, failure, err, "call %d", i)
	}
	require.Len(t, kinds, 32, "stat, sync and utimes are calls of files and directories")
	armed = false
	require.Equal(t, before, dump(t, root))
}

// BenchmarkCrash is the sizes of the journal's crash tests: 100 small files
// and a log segment with a little that is not synced.
func BenchmarkCrash(b *testing.B) {
	m := NewMem(1)
	root := rootOf(b, m)
	for i := range 100 {
		create(b, root, fmt.Sprint(i), strings.Repeat("x", 5000))
	}
	log := create(b, root, "log", strings.Repeat("\x00", 4<<20))
	require.NoError(b, m.SyncFS())
	write(b, log, strings.Repeat("r", 100_000), 1<<20)
	for i := range 20 {
		require.NoError(b, root.Rename(fmt.Sprint(i), root, fmt.Sprint("new", i), 0))
	}
	rng := newRand(1)
	for b.Loop() {
		m.Crash(rng)
		write(b, log, "more", 1<<20)
	}
}

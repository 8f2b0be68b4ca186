package runs

import (
	"bytes"
	"fmt"
	"maps"
	"math/rand/v2"
	"slices"
	"strconv"
	"syscall"
	"testing"

	"github.com/rs/zerolog"
	"github.com/stretchr/testify/require"

	"cagefs.dev/cage/journal/vfs"
	"cagefs.dev/cage/remote/status"
)

func testDir(t testing.TB, fs vfs.FS) vfs.Dir {
	t.Helper()
	d, err := fs.Root()
	require.NoError(t, err)
	t.Cleanup(func() { d.Close() })
	return d
}

func openStore(t testing.TB, d vfs.Dir, names ...Name) *Store {
	t.Helper()
	s, err := Open(Options{Dir: d, Names: names, Cache: NewCache(64 << 10), Log: zerolog.Nop(),
		Failed: func(err error) { t.Error(err) }})
	require.NoError(t, err)
	return s
}

// batch makes changes in a model and as entries.
func batch(rng *rand.Rand, model map[string]string, n int) (out Sorted) {
	changed := map[string][]byte{}
	for range n {
		k := fmt.Sprintf("k%05d", rng.IntN(5000))
		if rng.IntN(4) == 0 {
			delete(model, k)
			changed[k] = nil
			continue
		}
		v := bytes.Repeat([]byte{byte(rng.Uint32())}, rng.IntN([]int{1, 20, 200, 40000}[rng.IntN(4)]+1))
		if rng.IntN(50) > 0 {
			v = v[:min(len(v), 200)]
		}
		model[k], changed[k] = string(v), v
	}
	for _, k := range slices.Sorted(maps.Keys(changed)) {
		out = append(out, Entry{[]byte(k), changed[k]})
	}
	return out
}

// check compares a view with a model, key by key and as a whole.
func check(t *testing.T, v *View, model map[string]string) {
	t.Helper()
	for i := range 5000 {
		k := fmt.Sprintf("k%05d", i)
		got, ok, err := v.Get([]byte(k))
		require.NoError(t, err)
		want, there := model[k]
		require.Equal(t, there, ok, k)
		require.Equal(t, want, string(got), k)
	}
	keys := slices.Sorted(maps.Keys(model))
	from := 0
	for _, first := range []string{"", "k02500", "k04999x", "z"} {
		from, _ = slices.BinarySearch(keys, first)
		var got []string
		require.NoError(t, v.Scan([]byte(first), []byte("k04000"), func(e Entry) bool {
			require.Equal(t, model[string(e.Key)], string(e.Value))
			got = append(got, string(e.Key))
			return true
		}))
		to, _ := slices.BinarySearch(keys, "k04000")
		require.Equal(t, len(keys[min(from, to):to]), len(got), first)
	}
}

// TestStoreIsAMap with whatever merges and starts between, and views stay as they were.
func TestStoreIsAMap(t *testing.T) {
	rng := rand.New(rand.NewPCG(1, 1))
	d := testDir(t, vfs.NewMem(1))
	s := openStore(t, d)
	model := map[string]string{}
	for round := range 3 {
		for range 5 {
			require.NoError(t, s.Add(batch(rng, model, 300)))
		}
		old, then := s.View(), maps.Clone(model)
		for range 5 {
			require.NoError(t, s.Add(batch(rng, model, 300)))
		}
		check(t, old, then)
		old.Release()
		s.work.Wait()
		v := s.View()
		check(t, v, model)
		require.Less(t, len(v.runs), 8, "they are merged")
		names := v.Names()
		s.Keep(v)
		s.Close()
		s = openStore(t, d, names...)
		require.Equal(t, len(names), files(t, d), "round %d: files that nobody has are removed", round)
	}
	s.Close()
}

func files(t testing.TB, d vfs.Dir) (n int) {
	require.NoError(t, d.ReadDir(0, func(string, uint64, uint32, uint64) bool {
		n++
		return true
	}))
	return n
}

// TestStartsWithWhatIsNamed: runs that came later count for nothing, and those
// named are there although they were merged away meanwhile.
func TestStartsWithWhatIsNamed(t *testing.T) {
	rng := rand.New(rand.NewPCG(2, 2))
	disk := vfs.NewMem(2)
	d := testDir(t, disk)
	s := openStore(t, d)
	model := map[string]string{}
	for range 3 {
		require.NoError(t, s.Add(batch(rng, model, 100)))
	}
	v := s.View()
	names, then := v.Names(), maps.Clone(model)
	s.Keep(v)
	for range 9 {
		require.NoError(t, s.Add(batch(rng, model, 100)))
	}
	s.work.Wait()
	cut := disk.Crash(rng)
	s.Close()
	d = testDir(t, cut)
	s = openStore(t, d, names...)
	v = s.View()
	check(t, v, then)
	v.Release()
	s.Close()
	_, err := Open(Options{Dir: d, Names: []Name{{names[0].Number, names[0].Sum + 1}}, Cache: NewCache(0)})
	require.Equal(t, status.Damaged, status.Of(err), "%v", err)
	_, err = Open(Options{Dir: d, Names: names, Cache: NewCache(0)})
	require.Equal(t, status.Damaged, status.Of(err), "the rest was removed, as nobody named it: %v", err)
}

// TestFullDisk: what does not fit changes nothing and leaves nothing.
func TestFullDisk(t *testing.T) {
	full := false
	disk := vfs.NewMem(3)
	fs := vfs.Inject(disk, func(op vfs.Op) error {
		if full && op.Kind == "writeat" {
			return syscall.ENOSPC
		}
		return nil
	})
	rng := rand.New(rand.NewPCG(3, 3))
	d := testDir(t, fs)
	s := openStore(t, d)
	model := map[string]string{}
	require.NoError(t, s.Add(batch(rng, model, 500)))
	full = true
	require.Equal(t, status.NoSpace, status.Of(s.Add(batch(rng, maps.Clone(model), 500))))
	require.Equal(t, 1, files(t, d))
	full = false
	v := s.View()
	check(t, v, model)
	v.Release()
	require.NoError(t, s.Add(batch(rng, model, 500)))
	s.work.Wait()
	v = s.View()
	check(t, v, model)
	v.Release()
	s.Close()
}

// TestRotIsFound: no byte of a file can change without being noticed, when it is
// opened or when it is read.
func TestRotIsFound(t *testing.T) {
	d := testDir(t, vfs.NewMem(4))
	s := openStore(t, d)
	model := map[string]string{}
	require.NoError(t, s.Add(batch(rand.New(rand.NewPCG(4, 4)), model, 400)))
	v := s.View()
	name := v.Names()[0]
	s.Keep(v)
	s.Close()
	f, err := d.Open(name.file(), true)
	require.NoError(t, err)
	defer f.Close()
	info, err := f.Stat()
	require.NoError(t, err)
	for off := int64(0); off < info.Size; off += 1 + off/50 {
		if off >= int64(len(magic))+4 && off < headerSize {
			continue
		}
		b := make([]byte, 1)
		_, err := f.ReadAt(b, off)
		require.NoError(t, err)
		_, err = f.WriteAt([]byte{b[0] ^ 1}, off)
		require.NoError(t, err)
		s, err := Open(Options{Dir: d, Names: []Name{name}, Cache: NewCache(0)})
		if err == nil {
			v := s.View()
			err = v.Scan(nil, []byte("z"), func(Entry) bool { return true })
			v.Release()
			s.Close()
		}
		require.Contains(t, []status.Code{status.Damaged, status.Version}, status.Of(err), "byte %d: %v", off, err)
		_, err = f.WriteAt(b, off)
		require.NoError(t, err)
	}
}

// FuzzBlock: no bytes make the decoders panic.
func FuzzBlock(f *testing.F) {
	var w writer
	for i := range 3 {
		_ = w.add(Entry{[]byte(strconv.Itoa(i)), []byte("value")})
	}
	f.Add(append(append(bytes.Clone(w.block), w.starts...), 3, 0), appendIndex(nil, []byte("0"), 40, 7))
	f.Add([]byte{}, []byte{})
	f.Fuzz(func(t *testing.T, b, index []byte) {
		if x, err := openBlock(b); err == nil {
			for i := range x.len() {
				_, _ = x.at(i)
			}
			_, _ = x.seek([]byte("1"))
		}
		if x, err := decodeIndex(index, 1<<20); err == nil {
			require.NotEmpty(t, x)
			require.LessOrEqual(t, x[len(x)-1].off+int64(x[len(x)-1].len), int64(1<<20))
		}
	})
}

// TestDue: a small newest run keeps nobody from merging older ones.
func TestDue(t *testing.T) {
	list := func(sizes ...int64) (out []*run) {
		for _, s := range sizes {
			out = append(out, &run{size: s})
		}
		return out
	}
	for _, c := range []struct {
		sizes   []int64
		from, n int
	}{
		{nil, 0, 0},
		{[]int64{1}, 0, 0},
		{[]int64{1, 2, 6}, 0, 0},
		{[]int64{1, 1, 4}, 0, 2},
		{[]int64{1, 1, 3, 9, 40}, 0, 4},
		{[]int64{1, 3, 3, 3}, 1, 3},
		{[]int64{1, 2, 6, 6, 30}, 2, 2},
	} {
		from, n := due(list(c.sizes...))
		require.Equal(t, []int{c.from, c.n}, []int{from, n}, "%v", c.sizes)
	}
}

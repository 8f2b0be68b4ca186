package evict

import (
	"container/list"
	"math/rand/v2"
	"testing"

	"github.com/stretchr/testify/require"
)

// cache is a cache of size entries that follows a policy; get reports a hit.
type cache interface{ get(key int) bool }

type lfuCache struct {
	size int
	lfu  *LFU[int]
	has  map[int]*Entry[int]
}

func newLFU(size int) *lfuCache {
	return &lfuCache{size, New[int](), make(map[int]*Entry[int])}
}

func (c *lfuCache) get(key int) bool {
	if e, ok := c.has[key]; ok {
		c.lfu.Touch(e)
		return true
	}
	if len(c.has) == c.size {
		delete(c.has, c.lfu.Victim().Key)
	}
	e := &Entry[int]{Key: key}
	c.has[key] = e
	c.lfu.Add(e)
	return false
}

// lruCache is what LFU has to beat.
type lruCache struct {
	size  int
	order *list.List
	has   map[int]*list.Element
}

func newLRU(size int) *lruCache { return &lruCache{size, list.New(), make(map[int]*list.Element)} }

func (c *lruCache) get(key int) bool {
	if e, ok := c.has[key]; ok {
		c.order.MoveToFront(e)
		return true
	}
	if len(c.has) == c.size {
		delete(c.has, c.order.Remove(c.order.Back()).(int))
	}
	c.has[key] = c.order.PushFront(key)
	return false
}

// Traces.

func zipf(seed uint64, n, keys, first int) []int {
	r := rand.New(rand.NewPCG(seed, 1))
	z := rand.NewZipf(r, 1.1, 1, uint64(keys-1))
	t := make([]int, n)
	for i := range t {
		t[i] = first + int(z.Uint64())
	}
	return t
}

func scan(first, n, times int) []int {
	t := make([]int, 0, n*times)
	for i := range n {
		for range times {
			t = append(t, first+i)
		}
	}
	return t
}

func join(traces ...[]int) (t []int) {
	for _, x := range traces {
		t = append(t, x...)
	}
	return t
}

// mixed takes one of b after each k of a, until a is used up; b begins again at its end.
func mixed(a []int, k int, b []int) (t []int) {
	for i, x := range a {
		t = append(t, x)
		if i%k == 0 {
			t = append(t, b[i/k%len(b)])
		}
	}
	return t
}

func loop(n, times int) (t []int) {
	for range times {
		t = append(t, scan(0, n, 1)...)
	}
	return t
}

func percent(c cache, trace []int) int {
	if len(trace) == 0 {
		return 0
	}
	hits := 0
	for _, k := range trace {
		if c.get(k) {
			hits++
		}
	}
	return (hits*100 + len(trace)/2) / len(trace)
}

// Hit rates in percent of the measured part of each trace, for LFU and LRU. The
// figures are exact: a change of the policy shows here.
func TestHitRates(t *testing.T) {
	const size = 1000
	for _, tc := range []struct {
		name     string
		warm     []int // replayed first, not measured
		measured []int
		lfu, lru int
	}{
		{"zipf", zipf(1, 50_000, 20_000, 0), zipf(2, 100_000, 20_000, 0), 80, 74},
		{"zipf straight after a scan of ten caches", join(zipf(1, 50_000, 20_000, 0), scan(1e6, 10*size, 1)), zipf(2, size, 20_000, 0), 76, 54},
		{"zipf straight after a scan in 32 pieces each", join(zipf(1, 50_000, 20_000, 0), scan(1e6, 10*size, 32)), zipf(2, size, 20_000, 0), 76, 54},
		{"zipf mixed with an endless scan", zipf(1, 50_000, 20_000, 0), mixed(zipf(2, 50_000, 20_000, 0), 1, scan(1e6, 50_000, 1)), 38, 31},
		{"loop of twice the cache", loop(2*size, 5), loop(2*size, 20), 48, 0},
		{"loop a tenth larger than the cache", loop(size*11/10, 5), loop(size*11/10, 20), 88, 0},
		{"loop that fits", loop(size, 2), loop(size, 5), 100, 100},
		{"hot set that moves away", zipf(1, 50_000, 20_000, 0), zipf(2, 50_000, 20_000, 1e6), 74, 73},
		{"hot set that moves every ten caches", nil, join(zipf(1, 10*size, 5000, 0), zipf(2, 10*size, 5000, 1e6), zipf(3, 10*size, 5000, 2e6), zipf(4, 10*size, 5000, 3e6)), 75, 80}, // the price: a newcomer has to prove itself
	} {
		t.Run(tc.name, func(t *testing.T) {
			lfu, lru := newLFU(size), newLRU(size)
			percent(lfu, tc.warm)
			percent(lru, tc.warm)
			gotLFU, gotLRU := percent(lfu, tc.measured), percent(lru, tc.measured)
			require.Equal(t, []int{tc.lfu, tc.lru}, []int{gotLFU, gotLRU}, "percent of hits: LFU, LRU")
		})
	}
}

func TestTies(t *testing.T) {
	// Four entries that were used equally often once they are old leave in the
	// order of their last use.
	l := New[int]()
	var e [40]Entry[int]
	for i := range e {
		e[i].Key = i
		l.Add(&e[i])
	}
	for _, i := range []int{2, 0, 3, 1} {
		l.Touch(&e[i])
	}
	for i := 4; i < len(e); i++ {
		l.Remove(&e[i])
	}
	for _, want := range []int{2, 0, 3, 1} {
		require.Equal(t, want, l.Victim().Key)
	}
	require.Nil(t, l.Victim())
}

func TestPinned(t *testing.T) {
	l := New[int]()
	var e [3]Entry[int]
	for i := range e {
		e[i].Key = i
		l.Add(&e[i])
	}
	l.Pin(&e[0])
	l.Pin(&e[0])
	l.Pin(&e[2])
	l.Touch(&e[0])
	require.Equal(t, 1, l.Victim().Key)
	require.Nil(t, l.Victim(), "what is pinned stays")
	l.Unpin(&e[0])
	require.Nil(t, l.Victim(), "pinned twice, unpinned once")
	l.Unpin(&e[0])
	require.Equal(t, 0, l.Victim().Key)
	l.Remove(&e[2])
	require.Zero(t, l.Len())
}

func TestAgeing(t *testing.T) {
	l := New[int]()
	const n = 64
	var e [n]Entry[int]
	for i := range e {
		e[i].Key = i
		l.Add(&e[i])
	}
	for range 20 * n { // e[0] is used so often that its count is at its maximum
		for _, i := range []int{0, 60, 61, 62, 63} {
			l.Touch(&e[i])
		}
	}
	require.EqualValues(t, maxCount, l.settle(&e[0]))
	before := l.halvings
	for l.halvings < before+5 { // then never again
		for i := 1; i < n; i++ {
			l.Touch(&e[i])
		}
	}
	require.Zero(t, l.settle(&e[0]))
	require.Equal(t, 0, l.Victim().Key)
}

// TestAnyOrder does everything at random and checks the structure after each step.
func TestAnyOrder(t *testing.T) {
	r := rand.New(rand.NewPCG(7, 7))
	l := New[int]()
	in := make(map[int]*Entry[int])
	pins := make(map[int]int)
	gone := func(k int) { delete(in, k); delete(pins, k) }
	for range 4_000 {
		k := r.IntN(100)
		e := in[k]
		switch op := r.IntN(10); {
		case e == nil:
			in[k] = &Entry[int]{Key: k}
			l.Add(in[k])
		case op < 5:
			l.Touch(e)
		case op < 6:
			l.Pin(e)
			pins[k]++
		case op < 8 && pins[k] > 0:
			l.Unpin(e)
			pins[k]--
		case op < 9:
			if v := l.Victim(); v != nil {
				require.Zero(t, pins[v.Key])
				require.Same(t, in[v.Key], v)
				gone(v.Key)
			}
		default:
			l.Remove(e)
			gone(k)
		}
		check(t, l, in, pins)
	}
}

func check(t *testing.T, l *LFU[int], in map[int]*Entry[int], pins map[int]int) {
	t.Helper()
	listed, nYoung := 0, 0
	ring := func(root *Entry[int], h home, count int) {
		last := l.now
		for e := root.next; e != root; e = e.next {
			if in[e.Key] != e || e.home != h || e.pins != 0 || e.used > last || e.next.prev != e {
				t.Fatalf("entry %+v on the ring of home %d, count %d, after one used at %d", e, h, count, last)
			}
			if h == old && int(l.settle(e)) != count {
				t.Fatalf("entry %d has count %d, is on the ring of %d", e.Key, e.count, count)
			}
			last = e.used
			listed++
		}
	}
	ring(&l.young, young, -1)
	for i := range l.old {
		ring(&l.old[i], old, i)
	}
	pinned := 0
	for k, e := range in {
		if pins[k] > 0 {
			pinned++
		}
		if e.home == young {
			nYoung++
		}
		require.Equal(t, pins[k], e.pins)
	}
	require.Equal(t, len(in), l.Len())
	require.Equal(t, len(in), listed+pinned)
	require.Equal(t, nYoung, l.nYoung)
	require.LessOrEqual(t, len(l.order), max(l.full, minGhosts))
	require.LessOrEqual(t, len(l.ghosts), len(l.order))
}

func TestHitAllocatesNothing(t *testing.T) {
	l := New[int]()
	var e [100]Entry[int]
	for i := range e {
		e[i].Key = i
		l.Add(&e[i])
	}
	i := 0
	require.Zero(t, testing.AllocsPerRun(1000, func() {
		x := &e[i%len(e)]
		l.Touch(x)
		l.Pin(x)
		l.Unpin(x)
		i++
	}))
}

func BenchmarkTouch(b *testing.B) {
	l := New[int]()
	e := make([]Entry[int], 2048)
	for i := range e {
		e[i].Key = i
		l.Add(&e[i])
	}
	trace := zipf(1, 1<<16, len(e), 0)
	for i := range b.N {
		l.Touch(&e[trace[i%len(trace)]])
	}
}

func BenchmarkReplace(b *testing.B) {
	c := newLFU(2048)
	for i := range b.N {
		c.get(i)
	}
}

package evict

import (
	"math/rand/v2"
	"testing"

	"github.com/stretchr/testify/require"
)

// policy is what all policies can.
type policy interface {
	Len() int
	Add(*Entry[int])
	Touch(*Entry[int])
	Pin(*Entry[int])
	Unpin(*Entry[int])
	Remove(*Entry[int])
	Victim() *Entry[int]
}

// policies makes one of each kind.
func policies() map[string]policy {
	return map[string]policy{"lfu": NewLFU[int](), "lru": NewLRU[int](), "s3fifo": NewS3FIFO[int]()}
}

// cache is a cache of size entries that follows a policy.
type cache struct {
	size int
	policy
	has map[int]*Entry[int]
}

func newCache(size int, p policy) *cache { return &cache{size, p, make(map[int]*Entry[int])} }

// get reports a hit.
func (c *cache) get(key int) bool {
	if e, ok := c.has[key]; ok {
		c.Touch(e)
		return true
	}
	if len(c.has) == c.size {
		delete(c.has, c.Victim().Key)
	}
	e := &Entry[int]{Key: key}
	c.has[key] = e
	c.Add(e)
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

func percent(c *cache, trace []int) int {
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

// Hit rates in percent of the measured part of each trace. The figures are
// exact: a change of a policy shows here.
func TestHitRates(t *testing.T) {
	const size = 1000
	for _, tc := range []struct {
		name             string
		warm             []int // replayed first, not measured
		measured         []int
		lfu, lru, s3fifo int
	}{
		{"zipf", zipf(1, 50_000, 20_000, 0), zipf(2, 100_000, 20_000, 0), 80, 74, 79},
		{"zipf straight after a scan of ten caches", join(zipf(1, 50_000, 20_000, 0), scan(1e6, 10*size, 1)), zipf(2, size, 20_000, 0), 76, 54, 77},
		{"zipf straight after a scan in 32 pieces each", join(zipf(1, 50_000, 20_000, 0), scan(1e6, 10*size, 32)), zipf(2, size, 20_000, 0), 76, 54, 77},
		{"zipf mixed with an endless scan", zipf(1, 50_000, 20_000, 0), mixed(zipf(2, 50_000, 20_000, 0), 1, scan(1e6, 50_000, 1)), 38, 31, 40},
		{"loop of twice the cache", loop(2*size, 5), loop(2*size, 20), 48, 0, 0},
		{"loop a tenth larger than the cache", loop(size*11/10, 5), loop(size*11/10, 20), 88, 0, 76},
		{"loop that fits", loop(size, 2), loop(size, 5), 100, 100, 100},
		{"hot set that moves away", zipf(1, 50_000, 20_000, 0), zipf(2, 50_000, 20_000, 1e6), 74, 73, 76},
		{"hot set that moves every ten caches", nil, join(zipf(1, 10*size, 5000, 0), zipf(2, 10*size, 5000, 1e6), zipf(3, 10*size, 5000, 2e6), zipf(4, 10*size, 5000, 3e6)), 75, 80, 77}, // LFU's price: a newcomer has to prove itself
	} {
		t.Run(tc.name, func(t *testing.T) {
			got := make(map[string]int)
			for name, p := range policies() {
				c := newCache(size, p)
				percent(c, tc.warm)
				got[name] = percent(c, tc.measured)
			}
			require.Equal(t, map[string]int{"lfu": tc.lfu, "lru": tc.lru, "s3fifo": tc.s3fifo}, got, "percent of hits")
		})
	}
}

func TestPinnedStay(t *testing.T) {
	for name, p := range policies() {
		t.Run(name, func(t *testing.T) {
			var e [3]Entry[int]
			for i := range e {
				e[i].Key = i
				p.Add(&e[i])
			}
			p.Pin(&e[0])
			p.Pin(&e[0])
			p.Pin(&e[2])
			p.Touch(&e[0])
			require.Equal(t, 1, p.Victim().Key)
			require.Nil(t, p.Victim(), "what is pinned stays")
			p.Unpin(&e[0])
			require.Nil(t, p.Victim(), "pinned twice, unpinned once")
			p.Unpin(&e[0])
			require.Equal(t, 0, p.Victim().Key)
			p.Remove(&e[2])
			require.Zero(t, p.Len())
			require.Nil(t, p.Victim())
			p.Add(&e[2])
			require.Equal(t, 2, p.Victim().Key, "not pinned any more")
		})
	}
}

// TestEachInAnyOrder does everything at random with each policy: a victim is one
// that is in and not pinned, there is one if any can be, and in the end all that is in comes out.
func TestEachInAnyOrder(t *testing.T) {
	for name, p := range policies() {
		t.Run(name, func(t *testing.T) {
			r := rand.New(rand.NewPCG(7, 7))
			in, pins := make(map[int]*Entry[int]), make(map[int]int)
			victim := func() {
				v := p.Victim()
				if v == nil {
					require.Len(t, pins, len(in), "there is one that is not pinned")
					return
				}
				require.Zero(t, pins[v.Key])
				require.Same(t, in[v.Key], v)
				delete(in, v.Key)
			}
			for range 20_000 {
				k := r.IntN(100)
				e := in[k]
				switch op := r.IntN(20); {
				case e == nil:
					in[k] = &Entry[int]{Key: k}
					p.Add(in[k])
				case op < 8:
					p.Touch(e)
				case op < 10:
					p.Pin(e)
					pins[k]++
				case op < 14 && pins[k] > 0:
					p.Unpin(e)
					if pins[k]--; pins[k] == 0 {
						delete(pins, k)
					}
				case op < 19:
					victim()
				default:
					p.Remove(e)
					delete(in, k)
					delete(pins, k)
				}
				require.Equal(t, len(in), p.Len())
			}
			for k, n := range pins {
				for range n {
					p.Unpin(in[k])
				}
			}
			clear(pins)
			for range len(in) {
				victim()
			}
			require.Empty(t, in)
			require.Zero(t, p.Len())
		})
	}
}

// Who left the small queue and comes back soon arrives in the main one; what is
// remembered of those who left is bounded.
func TestS3FIFORemembers(t *testing.T) {
	p := NewS3FIFO[int]()
	c := newCache(minGhosts, p)
	for k := range 10 * minGhosts {
		c.get(k)
	}
	require.Len(t, p.ghosts, minGhosts)
	require.Zero(t, p.main.n)
	left := 9*minGhosts - 1 // the last that was pushed out
	require.NotContains(t, c.has, left)
	c.get(left)
	require.Equal(t, old, c.has[left].home)
	require.NotContains(t, p.ghosts, left)
	require.LessOrEqual(t, len(p.order), minGhosts)
}

// A page that is read in many pieces at once is used once.
func TestBurstIsOneUse(t *testing.T) {
	p := NewS3FIFO[int]()
	var e [200]Entry[int]
	for i := range e {
		e[i].Key = i
		p.Add(&e[i])
	}
	for range 4 {
		p.Touch(&e[199])
	}
	require.Zero(t, e[199].count)
	for range 3 {
		for i := range e[:100] {
			p.Touch(&e[i])
		}
	}
	require.EqualValues(t, 3, e[5].count)
}

func TestHitsAllocateNothing(t *testing.T) {
	for name, p := range policies() {
		var e [100]Entry[int]
		for i := range e {
			e[i].Key = i
			p.Add(&e[i])
		}
		i := 0
		require.Zero(t, testing.AllocsPerRun(1000, func() {
			x := &e[i%len(e)]
			p.Touch(x)
			p.Pin(x)
			p.Unpin(x)
			i++
		}), name)
	}
}

func BenchmarkTouch(b *testing.B) {
	for name, p := range policies() {
		b.Run(name, func(b *testing.B) {
			e := make([]Entry[int], 2048)
			for i := range e {
				e[i].Key = i
				p.Add(&e[i])
			}
			trace := zipf(1, 1<<16, len(e), 0)
			for i := range b.N {
				p.Touch(&e[trace[i%len(trace)]])
			}
		})
	}
}

func BenchmarkReplace(b *testing.B) {
	for name, p := range policies() {
		b.Run(name, func(b *testing.B) {
			c := newCache(2048, p)
			for i := range b.N {
				c.get(i)
			}
		})
	}
}

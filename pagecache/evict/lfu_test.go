package evict

import (
	"math/rand/v2"
	"testing"

	"github.com/stretchr/testify/require"
)

func TestTies(t *testing.T) {
	// Four entries that were used equally often once they are old leave in the
	// order of their last use.
	l := NewLFU[int]()
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

func TestAgeing(t *testing.T) {
	l := NewLFU[int]()
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
	l := NewLFU[int]()
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

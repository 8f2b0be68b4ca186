package lockset

import (
	"math/rand/v2"
	"testing"

	"github.com/stretchr/testify/require"
)

const few = 24 // bytes of the model, the last of which stands for all that follow

// end turns a byte of the model into the end of a range.
func end(i int) uint64 {
	if i == few-1 {
		return Max
	}
	return uint64(i)
}

// model says of each byte: 0 free, 1 shared, 2 exclusive.
func model(s Set) (m [few]int) {
	for i := range m {
		for _, l := range s {
			if l.Overlaps(uint64(i), uint64(i)) {
				m[i] = 1
				if l.Exclusive {
					m[i] = 2
				}
			}
		}
	}
	return m
}

// check is the invariant of a Set.
func check(t *testing.T, s Set) {
	t.Helper()
	for i, l := range s {
		require.LessOrEqual(t, l.Start, l.End, "%v", s)
		if i == 0 {
			continue
		}
		require.Less(t, s[i-1].End, l.Start, "%v", s)
		require.False(t, s[i-1].End+1 == l.Start && s[i-1].Exclusive == l.Exclusive, "not merged: %v", s)
	}
}

// Any script of locks and unlocks leaves what a table of bytes says.
func TestAgainstBytes(t *testing.T) {
	for seed := range uint64(300) {
		r := rand.New(rand.NewPCG(seed, 1))
		var s Set
		var want [few]int
		for range 60 {
			a, b := r.IntN(few), r.IntN(few)
			a, b = min(a, b), max(a, b)
			before := append(Set{}, s...)
			what := r.IntN(3)
			var next Set
			if what == 0 {
				next = s.Cut(uint64(a), end(b))
			} else {
				next = s.Put(Lock{Start: uint64(a), End: end(b), Exclusive: what == 2})
			}
			require.Equal(t, before, append(Set{}, s...), "the old one is left alone")
			s = next
			for i := a; i <= b; i++ {
				want[i] = what
			}
			check(t, s)
			require.Equal(t, want, model(s), "seed %d", seed)

			c, d := r.IntN(few), r.IntN(few)
			c, d = min(c, d), max(c, d)
			covered, free := [2]bool{true, true}, [few]bool{}
			for i := c; i <= d; i++ {
				covered[0] = covered[0] && want[i] > 0
				covered[1] = covered[1] && want[i] > 1
				free[i] = want[i] == 0
			}
			require.Equal(t, covered[0], s.Covers(Lock{Start: uint64(c), End: end(d)}))
			require.Equal(t, covered[1], s.Covers(Lock{Start: uint64(c), End: end(d), Exclusive: true}))
			var gaps [few]bool
			for i, m := range model(s.Gaps(uint64(c), end(d))) {
				gaps[i] = m != 0
			}
			require.Equal(t, free, gaps)
		}
	}
}

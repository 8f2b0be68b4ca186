package page

import (
	"slices"
	"testing"

	"github.com/stretchr/testify/require"
)

// The arithmetic holds for every size, so that it is tried exhaustively with
// sizes that are too small to be valid: all ranges within a few pages.
const (
	mostSize = 5
	mostOff  = 4 * mostSize
)

func everyRange(check func(s Size, off, n int64)) {
	for s := Size(1); s <= mostSize; s++ {
		for off := range int64(mostOff) {
			for n := range int64(mostOff) {
				check(s, off, n)
			}
		}
	}
}

// pagesOf is the pages of a range, byte by byte.
func pagesOf(s Size, off, n int64) map[No]int {
	out := map[No]int{}
	for b := off; b < off+n; b++ {
		out[No(b/int64(s))]++
	}
	return out
}

func TestValid(t *testing.T) {
	for s, want := range map[Size]bool{
		4 << 10: true, 8 << 10: true, DefaultSize: true, 1 << 20: true, 4 << 20: true,
		0: false, -4096: false, 1: false, 2048: false, 4095: false, 4097: false, 12 << 10: false, 8 << 20: false,
	} {
		require.Equal(t, want, s.Valid(), "size %d", s)
	}
}

func TestNoAndStart(t *testing.T) {
	for s := Size(1); s <= mostSize; s++ {
		last := No(0)
		for off := range int64(mostOff) {
			no := s.No(off)
			require.True(t, s.Start(no) <= off && off < s.Start(no+1), "size %d offset %d page %d", s, off, no)
			require.Equal(t, off, s.Start(no)+int64(s.In(off)))
			require.GreaterOrEqual(t, no, last, "page numbers fall")
			last = no
		}
	}
}

func TestSplit(t *testing.T) {
	everyRange(func(s Size, off, n int64) {
		at, want := off, pagesOf(s, off, n)
		for p := range s.Split(off, n) {
			r := s.Range(p)
			require.Equal(t, at, r.Off, "size %d [%d,+%d): gap or overlap before %+v", s, off, n, p)
			require.Positive(t, p.Len)
			require.LessOrEqual(t, p.Off+p.Len, int(s))
			require.Equal(t, want[p.No], p.Len, "size %d [%d,+%d): %+v", s, off, n, p)
			require.Equal(t, want[p.No] == int(s), s.Whole(p))
			at = r.End()
		}
		require.Equal(t, off+n, at, "size %d [%d,+%d) not covered", s, off, n)
		require.EqualValues(t, len(want), s.Count(off, n), "size %d [%d,+%d)", s, off, n)
	})
}

func TestSplitStops(t *testing.T) {
	for p := range Size(4).Split(2, 100) {
		require.Equal(t, Piece{No: 0, Off: 2, Len: 2}, p)
		break
	}
}

func TestLen(t *testing.T) {
	for s := Size(1); s <= mostSize; s++ {
		for size := range int64(mostOff) {
			sum, last := int64(0), int(s)
			for no := range No(mostOff + 1) {
				n := s.Len(no, size)
				require.Equal(t, pagesOf(s, 0, size)[no], n, "size %d file %d page %d", s, size, no)
				require.LessOrEqual(t, n, last, "a later page is longer")
				sum, last = sum+int64(n), n
			}
			require.Equal(t, size, sum)
		}
	}
}

func TestCountGrows(t *testing.T) {
	everyRange(func(s Size, off, n int64) {
		require.LessOrEqual(t, s.Count(off, n), s.Count(off, n+1), "size %d [%d,+%d)", s, off, n)
		require.LessOrEqual(t, s.Count(off, n+1)-s.Count(off, n), int64(1))
	})
}

func TestAroundAndInside(t *testing.T) {
	everyRange(func(s Size, off, n int64) {
		r := Range{off, n}
		around, inside := s.Around(r), s.Inside(r)
		if r.Empty() {
			require.Equal(t, r, around)
			require.True(t, inside.Empty())
			return
		}
		require.True(t, around.Contains(r), "size %d %+v around %+v", s, r, around)
		require.Zero(t, s.In(around.Off))
		require.Equal(t, s.Count(off, n)*int64(s), around.Len)

		whole := 0
		for p := range s.Split(off, n) {
			if s.Whole(p) {
				require.True(t, inside.Contains(s.Range(p)), "size %d %+v inside %+v lacks %+v", s, r, inside, p)
				whole++
			}
		}
		require.EqualValues(t, whole*int(s), inside.Len, "size %d %+v inside %+v", s, r, inside)
		require.True(t, r.Contains(inside))
	})
}

func TestEndOfTheLargestFile(t *testing.T) {
	s := DefaultSize
	got := slices.Collect(s.Split(MaxOffset-10, 10))
	require.Equal(t, []Piece{{No: s.No(MaxOffset - 1), Off: int(s) - 11, Len: 10}}, got)
	require.EqualValues(t, 1, s.Count(MaxOffset-10, 10))
	around := s.Around(Range{MaxOffset - 10, 10})
	require.Equal(t, Range{s.Start(s.No(MaxOffset)), int64(s) - 1}, around)
	require.Equal(t, int(s)-1, s.Len(s.No(MaxOffset), MaxOffset))
}

// bytesOf is a range as a set.
func bytesOf(r Range) map[int64]bool {
	out := map[int64]bool{}
	for b := r.Off; b < r.End(); b++ {
		out[b] = true
	}
	return out
}

func TestRanges(t *testing.T) {
	const most = 6
	var all []Range
	for off := range int64(most) {
		for n := range int64(most) {
			all = append(all, Range{off, n})
		}
	}
	for _, a := range all {
		for _, b := range all {
			in := bytesOf(a)
			both, union := map[int64]bool{}, bytesOf(a)
			for x := range bytesOf(b) {
				union[x] = true
				if in[x] {
					both[x] = true
				}
			}
			require.Equal(t, both, bytesOf(a.Intersect(b)), "%+v and %+v", a, b)
			require.Equal(t, len(both) > 0, a.Overlaps(b), "%+v and %+v", a, b)
			require.Equal(t, len(both) == int(b.Len), a.Contains(b), "%+v and %+v", a, b)

			joint, ok := a.Join(b)
			back, backOK := b.Join(a)
			require.Equal(t, ok, backOK)
			require.Equal(t, bytesOf(joint), bytesOf(back))
			if ok {
				require.Equal(t, union, bytesOf(joint), "%+v and %+v", a, b)
			} else {
				require.False(t, a.Overlaps(b))
				require.True(t, a.End() < b.Off || b.End() < a.Off, "%+v and %+v touch", a, b)
			}
		}
	}
}

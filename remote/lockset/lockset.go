// Package lockset is what one owner has locked of one file: ranges that are
// shared or exclusive, split and merged as fcntl(2) says. Both ends of the wire
// keep count in it, so that they agree. It is pure, and imports nothing of Cage.
package lockset

import "slices"

// Kind separates locks: those of different kinds are not in each other's way.
type Kind uint8

// The kinds.
const (
	Ranges Kind = iota // of fcntl(2), of processes and of open files alike
	Flock              // of flock(2), always Whole
	Opens              // how others may open the file meanwhile; see Mode
	Kinds              // how many there are
)

// Max is the end of a range that reaches to the end of the file, wherever that is.
const Max = 1<<63 - 1

// Lock is a locked range, from Start to End, both of them in it.
type Lock struct {
	Start, End uint64 // Start ≤ End ≤ Max
	Exclusive  bool
	PID        uint32 // of the process that took it, in its own client's count
}

// Whole is a lock on all of a file.
func Whole(exclusive bool) Lock { return Lock{End: Max, Exclusive: exclusive} }

// Overlaps reports whether two ranges have a byte in common.
func (l Lock) Overlaps(start, end uint64) bool { return l.Start <= end && start <= l.End }

// Set is what an owner has locked: in order, without overlap, and no two that
// touch are of the same kind. Methods that change it return the changed one and
// leave what they were called on alone.
type Set []Lock

// Put locks a range, in whatever way parts of it were locked before.
func (s Set) Put(l Lock) Set {
	out := s.Cut(l.Start, l.End)
	i, _ := slices.BinarySearchFunc(out, l.Start, func(o Lock, start uint64) int { return cmpStart(o, start) })
	if i < len(out) && out[i].Exclusive == l.Exclusive && l.End < Max && out[i].Start == l.End+1 {
		l.End = out[i].End
		out = slices.Delete(out, i, i+1)
	}
	if i > 0 && out[i-1].Exclusive == l.Exclusive && out[i-1].End+1 == l.Start {
		out[i-1].End = l.End
		return out
	}
	return slices.Insert(out, i, l)
}

func cmpStart(l Lock, start uint64) int {
	if l.Start < start {
		return -1
	}
	return 1
}

// Cut unlocks a range.
func (s Set) Cut(start, end uint64) Set {
	out := make(Set, 0, len(s)+1)
	for _, l := range s {
		if !l.Overlaps(start, end) {
			out = append(out, l)
			continue
		}
		if l.Start < start {
			left := l
			left.End = start - 1
			out = append(out, left)
		}
		if l.End > end {
			right := l
			right.Start = end + 1
			out = append(out, right)
		}
	}
	return out
}

// Within are the parts of the locks that lie in a range, in order.
func (s Set) Within(start, end uint64) (out Set) {
	for _, l := range s {
		if l.Overlaps(start, end) {
			l.Start, l.End = max(l.Start, start), min(l.End, end)
			out = append(out, l)
		}
	}
	return out
}

// Covers reports whether all of a range is locked, in that way or exclusively.
func (s Set) Covers(l Lock) bool {
	next := l.Start
	for _, have := range s.Within(l.Start, l.End) {
		if have.Start != next || l.Exclusive && !have.Exclusive {
			return false
		}
		if have.End == l.End {
			return true
		}
		next = have.End + 1
	}
	return false
}

// Gaps are the parts of a range that are not locked.
func (s Set) Gaps(start, end uint64) (out Set) {
	for _, l := range s.Within(start, end) {
		if l.Start > start {
			out = append(out, Lock{Start: start, End: l.Start - 1})
		}
		if l.End == end {
			return out
		}
		start = l.End + 1
	}
	return append(out, Lock{Start: start, End: end})
}

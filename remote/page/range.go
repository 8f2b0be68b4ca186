package page

// Range is a piece of a file: Len bytes from Off.
type Range struct{ Off, Len int64 }

// End is the offset behind the last byte.
func (r Range) End() int64 { return r.Off + r.Len }

// Empty reports whether the range holds no byte.
func (r Range) Empty() bool { return r.Len <= 0 }

// Contains reports whether all of o lies in r. An empty range lies in every one.
func (r Range) Contains(o Range) bool {
	return o.Empty() || r.Off <= o.Off && o.End() <= r.End()
}

// Overlaps reports whether a byte lies in both.
func (r Range) Overlaps(o Range) bool { return !r.Intersect(o).Empty() }

// Intersect is what lies in both; without such bytes it is the zero Range.
func (r Range) Intersect(o Range) Range {
	start, end := max(r.Off, o.Off), min(r.End(), o.End())
	if end <= start {
		return Range{}
	}
	return Range{Off: start, Len: end - start}
}

// Join is the one range that holds the bytes of both and no others; ok is false
// if there is a gap between them. An empty range joins with every one.
func (r Range) Join(o Range) (joint Range, ok bool) {
	switch {
	case r.Empty():
		return o, true
	case o.Empty():
		return r, true
	case r.End() < o.Off || o.End() < r.Off:
		return Range{}, false
	}
	start := min(r.Off, o.Off)
	return Range{Off: start, Len: max(r.End(), o.End()) - start}, true
}

package runs

import "bytes"

// Source gives entries in ascending order of their keys, ok is false at the end.
// What it gives is not changed afterwards.
type Source interface {
	Next() (e Entry, ok bool, err error)
}

// Sorted is a Source of entries in order.
type Sorted []Entry

// Next implements Source.
func (s *Sorted) Next() (Entry, bool, error) {
	if len(*s) == 0 {
		return Entry{}, false, nil
	}
	e := (*s)[0]
	*s = (*s)[1:]
	return e, true, nil
}

// merge calls f for the entries of several sources in order, of equal keys for
// that of the first source only, until it returns false.
func merge(sources []Source, f func(Entry) (bool, error)) error {
	type head struct {
		Source
		Entry
	}
	var heads []*head
	advance := func(h *head) (bool, error) {
		var ok bool
		var err error
		h.Entry, ok, err = h.Next()
		return ok, err
	}
	for _, s := range sources {
		h := &head{Source: s}
		if ok, err := advance(h); err != nil {
			return err
		} else if ok {
			heads = append(heads, h)
		}
	}
	for len(heads) > 0 {
		least := heads[0].Entry
		for _, h := range heads[1:] {
			if bytes.Compare(h.Key, least.Key) < 0 {
				least = h.Entry
			}
		}
		if more, err := f(least); err != nil || !more {
			return err
		}
		rest := heads[:0]
		for _, h := range heads {
			if bytes.Equal(h.Key, least.Key) {
				ok, err := advance(h)
				if err != nil {
					return err
				}
				if !ok {
					continue
				}
			}
			rest = append(rest, h)
		}
		heads = rest
	}
	return nil
}

// Overlay is what several sources say, the newest first, with what they delete.
func Overlay(newer ...Sorted) (out Sorted) {
	var sources []Source
	for _, s := range newer {
		sources = append(sources, &s)
	}
	_ = merge(sources, func(e Entry) (bool, error) { // these do not fail
		out = append(out, e)
		return true, nil
	})
	return out
}

package lock

import (
	"slices"

	"cagefs.dev/cage/remote/lockset"
)

// maxPasses bounds how often promote looks at all waiters. Each pass but the
// first follows one in which somebody got less than he had, or began to block who
// blocks him: more than a few in a row are somebody's game with others' time,
// whose further moves wait for the next change of the file.
const maxPasses = 64

// promote gives waiters of a file what nobody holds any more, in the order in
// which they came, and ends those whose waiting has become a circle. by is who
// has just been granted a lock there; nil: nobody.
func (t *Table) promote(name File, by *Owner) (done []Done) {
	f := t.files[name]
	if f == nil {
		return nil
	}
	// Only who blocks others anew while he waits himself can close a circle.
	circles := by != nil && len(t.waiting[*by]) > 0
	again := true
	for pass := 0; again && pass < maxPasses; pass++ {
		again = false
		for _, w := range slices.Clone(f.waiters) {
			have := f.held[w.r.Kind][w.r.Owner]
			outcome := t.tryAgain(f, w, circles)
			if outcome == Queued {
				continue
			}
			t.unqueue(w)
			done = append(done, Done{w.id, outcome})
			if outcome == Granted {
				waits := len(t.waiting[w.r.Owner]) > 0
				circles = circles || waits
				again = again || waits || !w.r.Exclusive && len(have.Within(w.r.Start, w.r.End)) > 0
			}
			t.tidy(name, w.id.Session)
		}
	}
	return done
}

// tryAgain looks at a waiter.
func (t *Table) tryAgain(f *file, w *waiter, circles bool) Outcome {
	switch {
	case f.inTheWay(&w.r):
		if circles && w.r.Kind == lockset.Ranges && t.circle(f, &w.r) {
			return Deadlock
		}
		return Queued
	case !t.set(f, &w.r, f.held[w.r.Kind][w.r.Owner].Put(w.r.Lock)):
		return NoRoom
	}
	return Granted
}

// unqueue takes a waiter out.
func (t *Table) unqueue(w *waiter) {
	f, is := t.files[w.r.File], func(x *waiter) bool { return x == w }
	delete(t.waits, w.id)
	f.waiters = slices.DeleteFunc(f.waiters, is)
	t.session(w.id.Session).waits--
	if w.r.Kind != lockset.Ranges {
		return
	}
	if rest := slices.DeleteFunc(t.waiting[w.r.Owner], is); len(rest) > 0 {
		t.waiting[w.r.Owner] = rest
	} else {
		delete(t.waiting, w.r.Owner)
	}
}

// circle reports whether some owner that is in the way of a request waits, in
// turn, for the one who makes it. Each owner that is in the way has to let go, so
// one circle is enough.
func (t *Table) circle(f *file, r *Request) bool {
	seen := make(map[Owner]bool)
	var next []Owner
	ahead := func(f *file, r *Request) {
		f.conflicts(r, func(o Owner, _ lockset.Lock) bool {
			if !seen[o] {
				seen[o] = true
				next = append(next, o)
			}
			return true
		})
	}
	ahead(f, r)
	for len(next) > 0 && !seen[r.Owner] {
		o := next[len(next)-1]
		next = next[:len(next)-1]
		for _, w := range t.waiting[o] {
			ahead(t.files[w.r.File], &w.r)
		}
	}
	return seen[r.Owner]
}

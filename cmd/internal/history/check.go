package history

import (
	"cmp"
	"errors"
	"fmt"
	"io"
	"maps"
	"slices"
	"sort"
	"strings"
	"time"

	"github.com/anishathalye/porcupine"
)

// MaxOperations is how many operations an object may have: the search for an
// order takes a time that can grow with their factorial.
const MaxOperations = 400

// Verdict is what Check has found.
type Verdict struct {
	Objects, Operations int
	Illegal             []Violation // the shortest first
	Undecided           []string    // objects for which the time was not enough
}

// Violation is an object whose history is not linearizable.
type Violation struct {
	Object  string
	Records []Record // its whole history, in the order of invocations

	// The shortest beginning of it that is wrong already. Its last answer
	// cannot be; what had not been answered then is Unknown.
	Short []Record
}

// Err is nil if all histories are linearizable. What was not decided is an error.
func (v *Verdict) Err() error {
	switch {
	case len(v.Illegal) > 0:
		var names []string
		for _, bad := range v.Illegal {
			names = append(names, bad.Object)
		}
		return fmt.Errorf("%d of %d objects have no linearizable history (%s); the shortest is that of %v",
			len(names), v.Objects, strings.Join(names, ", "), v.Illegal[0])
	case len(v.Undecided) > 0:
		return fmt.Errorf("the time was not enough to check %s", strings.Join(v.Undecided, ", "))
	}
	return nil
}

// String tells the last operations of the short history.
func (v Violation) String() string {
	const last = 12
	var b strings.Builder
	fmt.Fprintf(&b, "%s, %d operations", v.Object, len(v.Short))
	begin := v.Short[0].Call
	for i, r := range v.Short {
		if i < len(v.Short)-last && !r.Unknown {
			continue
		}
		fmt.Fprintf(&b, "\n\t%10.3f ms ", float64(r.Call-begin)/1e6)
		if r.Unknown {
			b.WriteString("…         ")
		} else {
			fmt.Fprintf(&b, "+%6.3f ms ", float64(r.Return-r.Call)/1e6)
		}
		b.WriteString(r.String())
	}
	return b.String()
}

// Check tells whether the history of each object is linearizable. For each it
// takes at most limit. The error is of records that make no sense.
func Check(records []Record, limit time.Duration) (*Verdict, error) {
	objects := map[string][]Record{}
	for _, r := range records {
		objects[r.Object] = append(objects[r.Object], r)
	}
	v := &Verdict{Objects: len(objects), Operations: len(records)}
	for _, object := range slices.Sorted(maps.Keys(objects)) {
		recs := objects[object]
		if err := valid(recs); err != nil {
			return nil, fmt.Errorf("%s: %w", object, err)
		}
		slices.SortStableFunc(recs, func(a, b Record) int { return cmp.Compare(a.Call, b.Call) })
		switch check(recs, limit) {
		case porcupine.Unknown:
			v.Undecided = append(v.Undecided, object)
		case porcupine.Illegal:
			v.Illegal = append(v.Illegal, Violation{object, recs, shorten(recs, limit)})
		}
	}
	slices.SortStableFunc(v.Illegal, func(a, b Violation) int { return cmp.Compare(len(a.Short), len(b.Short)) })
	return v, nil
}

// valid returns what is wrong with the records of an object.
func valid(recs []Record) error {
	if len(recs) > MaxOperations {
		return fmt.Errorf("%d operations are more than %d", len(recs), MaxOperations)
	}
	for _, r := range recs {
		m, known := models[r.Kind]
		switch {
		case r.Kind != recs[0].Kind:
			return fmt.Errorf("it is a %s and a %s", recs[0].Kind, r.Kind)
		case !known || !slices.Contains(m.ops, r.Op):
			return fmt.Errorf("a %s has no operation %q", r.Kind, r.Op)
		case r.Return < r.Call && !r.Unknown:
			return fmt.Errorf("%v: answered before it was called", r)
		case r.Failed && r.Op != Make && r.Op != Take:
			return errors.New("only make and take tell something by failing")
		case (r.Op == Make || r.Op == Put) && r.Arg == Absent:
			return fmt.Errorf("%v: of which file?", r)
		case r.Kind == Lock && (r.Proc < 0 || r.Proc >= 64):
			return fmt.Errorf("process %d cannot have locks", r.Proc)
		}
	}
	return nil
}

func check(recs []Record, limit time.Duration) porcupine.CheckResult {
	return porcupine.CheckOperationsTimeout(models[recs[0].Kind].checker(), operations(recs), limit)
}

// operations leaves out what cannot make a difference: reads without an answer,
// and writes without one that nobody has read. Of the latter there can be many,
// and each could be in every place.
func operations(recs []Record) (ops []porcupine.Operation) {
	read := map[int64]bool{}
	for _, r := range recs {
		if r.Op == Read && !r.Unknown {
			read[r.Out] = true
		}
	}
	for _, r := range recs {
		if r.Unknown && (r.Op == Read || r.Op == Write && !read[r.Arg]) {
			continue
		}
		ops = append(ops, porcupine.Operation{ClientId: r.Proc, Input: r, Call: r.Call, Return: r.end()})
	}
	return ops
}

// shorten returns the shortest beginning of an illegal history that is illegal.
func shorten(recs []Record, limit time.Duration) []Record {
	var ends []int64
	for _, r := range recs {
		if !r.Unknown {
			ends = append(ends, r.Return)
		}
	}
	slices.Sort(ends)
	// What follows a wrong beginning makes nothing right, so the length can be halved.
	n := sort.Search(len(ends)-1, func(i int) bool { return check(until(recs, ends[i]), limit) == porcupine.Illegal })
	return until(recs, ends[n])
}

// until is the history as it was known at a moment.
func until(recs []Record, moment int64) (known []Record) {
	for _, r := range recs {
		if r.Call > moment {
			break
		}
		if r.end() > moment {
			r.Unknown, r.Failed = true, false
		}
		known = append(known, r)
	}
	return known
}

// Draw writes a page of HTML that shows the history of an object and how far it
// can be put in an order.
func Draw(w io.Writer, recs []Record, limit time.Duration) error {
	m := models[recs[0].Kind].checker()
	_, info := porcupine.CheckOperationsVerbose(m, operations(recs), limit)
	return porcupine.Visualize(m, info, w)
}

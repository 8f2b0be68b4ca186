package history

import (
	"cmp"
	"fmt"
	"slices"
	"time"
)

// CheckLate tells whether what was read of registers is what one process had
// written into them, where that may be seen late: each value that was read was the
// register's, at some time from lag before the read was called until it was
// answered. All writes of a register are one process's.
func CheckLate(records []Record, lag time.Duration) error {
	writes := map[string][]Record{}
	for _, r := range records {
		switch {
		case r.Kind != Register || r.Op != Read && r.Op != Write:
			return fmt.Errorf("%s: a %s, %s: only registers can be late", r.Object, r.Kind, r.Op)
		case r.Op == Write:
			writes[r.Object] = append(writes[r.Object], r)
		}
	}
	for object, w := range writes {
		slices.SortStableFunc(w, func(a, b Record) int { return cmp.Compare(a.Call, b.Call) })
		for i := range w[1:] {
			if w[i].Proc != w[i+1].Proc || w[i].end() > w[i+1].Call {
				return fmt.Errorf("%s: %v and %v are not one after another", object, w[i], w[i+1])
			}
		}
	}
	for _, r := range records {
		if r.Op == Read && !r.Unknown && !wasThere(writes[r.Object], r, lag) {
			return fmt.Errorf("%s: %v is what was there neither then nor %v before", r.Object, r, lag)
		}
	}
	return nil
}

// wasThere says whether a read found what the writes, in their order, had stored.
func wasThere(writes []Record, read Record, lag time.Duration) bool {
	earliest := read.Call - int64(lag)
	for i, w := range writes {
		if w.Arg == read.Out && w.Call <= read.Return && (i+1 == len(writes) || writes[i+1].end() >= earliest) {
			return true
		}
	}
	return read.Out == 0 && (len(writes) == 0 || writes[0].end() >= earliest)
}

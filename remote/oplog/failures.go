package oplog

import (
	"cagefs.dev/cage/remote/proto"
	"cagefs.dev/cage/remote/status"
)

// Bounds of what is remembered of failures.
const (
	maxSticky = 1024 // files with an unreported failure
	maxRecent = 1024 // failures that Failed can still tell
)

// Failure is an operation that failed.
type Failure struct {
	Seq proto.Seq
	ID  proto.FileID // the file it is reported on; 0: none in particular
	Err error
}

// failures remembers what went wrong until it is told, in bounded memory.
//
// Of each file it keeps the first failure since the last report. When more
// files have one than there is room for, the first of those that did not fit is
// told to the next caller who asks for any file without a failure of its own:
// an error may then reach the wrong file, but none is dropped silently.
type failures struct {
	sticky map[proto.FileID]Failure
	order  []proto.FileID // of sticky's keys, oldest first
	rest   *Failure       // the first that did not fit

	recent []recent // ring of the latest
	next   int      // where the next goes, once recent is full
	sum    uint64   // of all sticky ones
}

// recent is one of the latest failures.
type recent struct {
	Failure
	n uint64 // it is the how many-th sticky one; 0: it is none
}

func newFailures() failures { return failures{sticky: map[proto.FileID]Failure{}} }

func (f *failures) add(x Failure, sticky bool) {
	r := recent{Failure: x}
	if sticky {
		f.sum++
		r.n = f.sum
	}
	if len(f.recent) < maxRecent {
		f.recent = append(f.recent, r)
	} else {
		f.recent[f.next] = r
		f.next = (f.next + 1) % maxRecent
	}
	if !sticky {
		return
	}
	if _, ok := f.sticky[x.ID]; ok {
		return
	}
	if len(f.sticky) == maxSticky {
		if f.rest == nil {
			f.rest = &x
		}
		return
	}
	f.sticky[x.ID] = x
	f.order = append(f.order, x.ID)
}

// TakeError returns, once, the first failure on a file of an operation that
// nobody waited for, since the last call for that file. id 0: the oldest such
// failure of any file.
func (l *Log) TakeError(id proto.FileID) error {
	f := &l.failures
	if id == 0 && len(f.order) > 0 {
		id = f.order[0]
	}
	if x, ok := f.sticky[id]; ok {
		delete(f.sticky, id)
		for i, o := range f.order {
			if o == id {
				f.order = append(f.order[:i], f.order[i+1:]...)
				break
			}
		}
		return x.Err
	}
	if x := f.rest; x != nil {
		f.rest = nil
		return status.Wrap(x.Err, "earlier change", x.ID.String())
	}
	return nil
}

// Failures counts the operations so far that failed and nobody waited for.
func (l *Log) Failures() uint64 { return l.failures.sum }

// FailedSince returns the first failure on a file, among the latest thousand of
// all, after so many. It takes nothing from TakeError: each who counts is told.
func (l *Log) FailedSince(id proto.FileID, n uint64) error {
	var first recent
	for _, x := range l.failures.recent {
		if x.ID == id && x.n > n && (first.n == 0 || x.n < first.n) {
			first = x
		}
	}
	return first.Err
}

// Failed returns the error of an operation that has its outcome, if it failed
// and is among the latest failures. It takes nothing from TakeError.
func (l *Log) Failed(seq proto.Seq) error {
	for _, x := range l.failures.recent {
		if x.Seq == seq {
			return x.Err
		}
	}
	return nil
}

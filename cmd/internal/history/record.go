package history

import (
	"bufio"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math"
)

// Kind is what sort of object something is.
type Kind string

const (
	Register Kind = "register"
	Size     Kind = "size"
	Name     Kind = "name"
	Links    Kind = "links"
	Lock     Kind = "lock"
)

// Op is an operation. Which there are depends on the kind of the object.
type Op string

const (
	Read     Op = "read"     // of all kinds but locks: Out was found
	Write    Op = "write"    // Register: Arg is stored; best a value that no other write stores
	Extend   Op = "extend"   // Size: bytes up to Arg are written
	Append   Op = "append"   // Size: Arg bytes are written at the end
	Truncate Op = "truncate" // Size: it becomes Arg
	Make     Op = "make"     // Name: of file Arg, which fails if it is there
	Put      Op = "put"      // Name: of file Arg, whether it is there or not
	Take     Op = "take"     // Name: removed, which fails if it is not there
	Add      Op = "add"      // Links: Arg more
	Share    Op = "share"    // Lock: the process has it with others
	Exclude  Op = "exclude"  // Lock: the process has it alone
	Unlock   Op = "unlock"   // Lock: the process has it no more
)

// Files are numbers above zero. In place of one, Out and Arg of a name may be:
const (
	Absent  = 0  // there is no such name (Out)
	Unnamed = -1 // there is one; which file it is was not looked at
)

// Record is one operation on one object. Times are nanoseconds of one clock that
// never goes back, the same for all processes.
type Record struct {
	Kind   Kind
	Object string // its name; the same in all records of it
	Proc   int    // which process; for locks below 64
	Op     Op
	Arg    int64 `json:",omitempty"`
	Out    int64 `json:",omitempty"`

	// Make found the name there, or Take did not. Other operations that failed
	// changed nothing and tell nothing: they are not recorded.
	Failed bool `json:",omitempty"`

	Call   int64
	Return int64 `json:",omitempty"` // when it was answered; unless Unknown

	// There was no answer, or one that leaves open whether the operation took
	// place: it may have at any time since Call, and may still.
	Unknown bool `json:",omitempty"`

	Note string `json:",omitempty"` // for people: the system call
}

func (r Record) String() string {
	s := fmt.Sprintf("process %d %s", r.Proc, r.Op)
	if r.Arg != 0 {
		s += fmt.Sprintf(" %d", r.Arg)
	}
	switch {
	case r.Unknown:
		s += " unknown"
	case r.Failed:
		s += " failed"
	case r.Op == Read:
		s += fmt.Sprintf(" = %d", r.Out)
	}
	if r.Note != "" {
		s += " (" + r.Note + ")"
	}
	return s
}

// end is the latest moment at which the operation can have happened.
func (r Record) end() int64 {
	if r.Unknown {
		return math.MaxInt64
	}
	return r.Return
}

// Encode writes records as lines of JSON.
func Encode(w io.Writer, records []Record) error {
	b := bufio.NewWriter(w)
	lines := json.NewEncoder(b)
	for _, r := range records {
		if err := lines.Encode(r); err != nil {
			return err
		}
	}
	return b.Flush()
}

// Decode reads what Encode has written.
func Decode(r io.Reader) (records []Record, err error) {
	for lines := json.NewDecoder(r); ; {
		var rec Record
		if err := lines.Decode(&rec); errors.Is(err, io.EOF) {
			return records, nil
		} else if err != nil {
			return nil, fmt.Errorf("record %d: %w", len(records), err)
		}
		records = append(records, rec)
	}
}

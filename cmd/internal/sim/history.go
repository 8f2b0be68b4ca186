package sim

import (
	"fmt"
	"math"
	"time"

	"cagefs.dev/cage/remote/proto"
)

// Kind is what an operation does to its object.
type Kind uint8

// The kinds. Take and Put are of names: Put fails where there is something, Take
// where there is nothing. Add is of counts.
const (
	Read Kind = iota
	Write
	Put
	Take
	Add
)

// Never is the Return of an operation of which nobody knows whether it happened.
const Never = time.Duration(math.MaxInt64)

// Op is what was asked of one object and answered: its content, a name, or a
// number of links. Value is what was read or written.
type Op struct {
	Client       int
	Object       string
	Kind         Kind
	Value        int
	Failed       bool // Put, Take
	Call, Return time.Duration
}

func content(f proto.FileID) string { return fmt.Sprintf("content of %d", f) }
func links(f proto.FileID) string   { return fmt.Sprintf("links of %d", f) }
func name(d proto.FileID, n int) string {
	return fmt.Sprintf("name %d in %d", n, d)
}

// record adds an operation and returns its place.
func (w *world) record(op Op) int {
	w.history = append(w.history, op)
	return len(w.history) - 1
}

package history

import "github.com/anishathalye/porcupine"

// A step says whether an operation can give what it gave in a state, and which
// state it leaves. An operation of unknown outcome is possible in every state:
// the latest moment for it is the end, where nobody sees its effect.
type step func(state any, r Record) (possible bool, next any)

// model is what a kind of object is like. States are values that == compares.
type model struct {
	initial any
	ops     []Op
	step    step
}

var models = map[Kind]model{
	Register: {int64(0), []Op{Read, Write}, stepRegister},
	Size:     {int64(0), []Op{Read, Extend, Append, Truncate}, stepSize},
	Name:     {name{}, []Op{Read, Make, Put, Take}, stepName},
	Links:    {int64(0), []Op{Read, Add}, stepLinks},
	Lock:     {owners{}, []Op{Share, Exclude, Unlock}, stepLock},
}

// checker is a model as the checker wants it: a record is an operation's input,
// and has its output.
func (m model) checker() porcupine.Model {
	return porcupine.Model{
		Init:              func() any { return m.initial },
		Step:              func(state, input, _ any) (bool, any) { return m.step(state, input.(Record)) },
		DescribeOperation: func(input, _ any) string { return input.(Record).String() },
	}
}

func stepRegister(state any, r Record) (bool, any) {
	if r.Op == Write {
		return true, r.Arg
	}
	return r.Out == state.(int64), state
}

func stepSize(state any, r Record) (bool, any) {
	size := state.(int64)
	switch r.Op {
	case Extend:
		return true, max(size, r.Arg)
	case Append:
		return true, size + r.Arg
	case Truncate:
		return true, r.Arg
	}
	return r.Out == size, size
}

// name is the state of a name. Where the file is unnamed it is whatever the next
// who looks finds.
type name struct {
	there bool
	file  int64
}

func stepName(state any, r Record) (bool, any) {
	n := state.(name)
	switch r.Op {
	case Make:
		switch {
		case r.Unknown && n.there:
			return true, n
		case r.Failed:
			return n.there, n
		}
		return !n.there, name{true, r.Arg}
	case Put:
		return true, name{true, r.Arg}
	case Take:
		if r.Failed {
			return !n.there, n
		}
		return n.there || r.Unknown, name{}
	}
	switch {
	case r.Out == Absent || !n.there:
		return !n.there && r.Out == Absent, n
	case r.Out == Unnamed:
		return true, n
	case n.file == Unnamed:
		return true, name{true, r.Out}
	}
	return n.file == r.Out, n
}

func stepLinks(state any, r Record) (bool, any) {
	n := state.(int64)
	if r.Op == Add {
		return true, n + r.Arg
	}
	return r.Out == n, n
}

// owners are the processes that have a lock, a bit each.
type owners struct{ shared, alone uint64 }

func stepLock(state any, r Record) (bool, any) {
	o, me := state.(owners), uint64(1)<<r.Proc
	free := owners{o.shared &^ me, o.alone &^ me} // but for this process
	next := free
	switch r.Op {
	case Share:
		next.shared |= me
	case Exclude:
		next.alone |= me
	}
	if r.Op == Unlock || free.alone == 0 && (r.Op == Share || free.shared == 0) {
		return true, next
	}
	return r.Unknown, o
}

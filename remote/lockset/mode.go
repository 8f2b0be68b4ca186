package lockset

// Mode says what a client lets others do with a file as long as it has it open. It is
// a lock of the kind Opens, on two bytes that stand for reading and writing: an open
// without a mode takes none, but is refused where a lock of another client is in its way.
type Mode uint8

// The modes, by what they exclude.
const (
	NoMode      Mode = iota // nothing
	ReadShared              // rs: all read, nobody writes
	WriteShared             // ws: I write, others only read
	WriteMine               // wm: nobody else opens it
)

// String is the mode's name.
func (m Mode) String() string { return [...]string{"", "rs", "ws", "wm"}[m&3] }

// Lock is what the mode locks. NoMode has none.
func (m Mode) Lock() Lock {
	switch m {
	case WriteMine:
		return Lock{Start: 0, End: 1, Exclusive: true}
	case WriteShared:
		return Lock{Start: 1, End: 1, Exclusive: true}
	}
	return Lock{Start: 1, End: 1}
}

// ModeOf is the mode that locks this; NoMode where none does.
func ModeOf(l Lock) Mode {
	l.PID = 0
	for m := ReadShared; m <= WriteMine; m++ {
		if m.Lock() == l {
			return m
		}
	}
	return NoMode
}

// Opening is what an open would have to lock if it excluded others: a lock of another
// client that is in its way is a mode which forbids it.
func Opening(writes bool) Lock {
	if writes {
		return Lock{Start: 1, End: 1, Exclusive: true}
	}
	return Lock{Start: 0, End: 0}
}

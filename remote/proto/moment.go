package proto

// MomentKind is the form in which a moment was given.
type MomentKind uint8

// Forms of moments.
const (
	MomentNow MomentKind = iota
	MomentLSN
	MomentTime  // the last record not after Time
	MomentLabel // the label's record
)

// Moment is a point of an export's history as somebody named it. The server
// turns it into an LSN; a moment includes that record.
type Moment struct {
	Kind  MomentKind
	LSN   LSN
	Time  Time
	Label string
}

package wire

import (
	"errors"

	"cagefs.dev/cage/remote/proto"
	"cagefs.dev/cage/remote/status"
)

// ErrorRep is the payload of a reply whose header has the error flag.
type ErrorRep struct {
	Code   status.Code
	LSN    proto.LSN      // of the record that a failed change has left, 0 if none
	Op     string         // at most MaxWord bytes on the wire
	Object string         // at most MaxText
	Text   string         // the cause, at most MaxText; "": the code's text says it all
	Needs  []proto.FileID // Again: ask for the write leases of these first; at most MaxNeeds
}

// FromError turns an error into a reply. LSN is left to the caller.
func FromError(err error) *ErrorRep {
	m := &ErrorRep{Code: status.Of(err)}
	var need *NeedLeases
	if errors.As(err, &need) {
		m.Needs = need.IDs
	}
	if m.Code == status.OK {
		m.Code = status.Internal
	}
	e, ok := err.(*status.Error)
	switch {
	case ok:
		m.Op, m.Object = e.Op, e.Object
		if e.Err != nil {
			m.Text = e.Err.Error()
		}
	case err != nil && err.Error() != m.Code.String():
		m.Text = err.Error()
	}
	return m
}

// ToError turns the reply into a *status.Error with the same code and text.
func (m *ErrorRep) ToError() error {
	e := &status.Error{Code: m.Code, Op: m.Op, Object: m.Object}
	if e.Code == status.OK {
		e.Code = status.Internal
	}
	switch {
	case m.Code == status.Again && len(m.Needs) > 0:
		e.Err = &NeedLeases{m.Needs}
	case m.Text != "":
		e.Err = errors.New(m.Text)
	}
	return e
}

// Append implements Message.
func (m *ErrorRep) Append(b []byte) []byte {
	b = appendInt(b, uint16(m.Code))
	b = appendInt(b, m.LSN)
	b = appendText(b, m.Op, MaxWord)
	b = appendText(b, m.Object, MaxText)
	b = appendText(b, m.Text, MaxText)
	return appendList(b, m.Needs[:min(len(m.Needs), MaxNeeds)], appendInt[proto.FileID])
}

// NeedLeases is the cause why a change was not made, and will never be under its
// number: others have leases of these files, which the session has to ask for first.
type NeedLeases struct{ IDs []proto.FileID }

// Error implements error.
func (e *NeedLeases) Error() string { return "others have leases of the files" }

// Unwrap makes its code status.Again.
func (e *NeedLeases) Unwrap() error { return status.Again }

// Decode implements Message.
func (m *ErrorRep) Decode(c *Cursor) {
	m.Code = status.Code(c.u16())
	m.LSN = c.lsn()
	m.Op = c.str(MaxWord)
	m.Object = c.str(MaxText)
	m.Text = c.str(MaxText)
	m.Needs = list(c, c.count(MaxNeeds, 1), (*Cursor).fid)
}

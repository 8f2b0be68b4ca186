package wire

import (
	"errors"

	"cagefs.dev/cage/remote/proto"
	"cagefs.dev/cage/remote/status"
)

// ErrorRep is the payload of a reply whose header has the error flag.
type ErrorRep struct {
	Code   status.Code
	LSN    proto.LSN // of the record that a failed change has left, 0 if none
	Op     string    // at most MaxWord bytes on the wire
	Object string    // at most MaxText
	Text   string    // the cause, at most MaxText; "": the code's text says it all
}

// FromError turns an error into a reply. LSN is left to the caller.
func FromError(err error) *ErrorRep {
	m := &ErrorRep{Code: status.Of(err)}
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
	if m.Text != "" {
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
	return appendText(b, m.Text, MaxText)
}

// Decode implements Message.
func (m *ErrorRep) Decode(c *Cursor) {
	m.Code = status.Code(c.u16())
	m.LSN = c.lsn()
	m.Op = c.str(MaxWord)
	m.Object = c.str(MaxText)
	m.Text = c.str(MaxText)
}

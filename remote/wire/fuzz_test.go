package wire

import (
	"bufio"
	"bytes"
	"testing"

	"github.com/stretchr/testify/require"

	"cagefs.dev/cage/remote/proto"
)

// stable wants what a decoder accepted to mean the same after it was encoded
// again. fresh makes an empty message of the kind.
func stable(t *testing.T, m Message, fresh func() Message) {
	t.Helper()
	b := m.Append(nil)
	again := fresh()
	require.NoError(t, Decode("again", b, again))
	require.Equal(t, m, again)
	require.Equal(t, b, again.Append(nil))
}

// seed gives a fuzz target every message of a kind.
func seed(f *testing.F, kind string) {
	for _, p := range parts() {
		if p.kind == kind {
			f.Add(uint16(p.op), p.fresh().Append(nil))
			f.Add(uint16(p.op), fill(p.fresh(), source(3)).Append(nil))
		}
	}
}

func FuzzReadFrame(f *testing.F) {
	for _, p := range parts() {
		f.Add(AppendFrame(nil, p.header(), fill(p.fresh(), source(4))))
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		const limit = 1 << 12
		r := bufio.NewReader(bytes.NewReader(b))
		for rest := b; ; {
			h, payload, err := ReadFrame(r, limit, nil)
			if err != nil {
				return
			}
			require.LessOrEqual(t, len(payload), limit)
			raw := make([]byte, HeaderSize)
			h.put(raw)
			require.Equal(t, rest[:HeaderSize+len(payload)], append(raw, payload...))
			rest = rest[HeaderSize+len(payload):]
		}
	})
}

func FuzzRequest(f *testing.F) {
	seed(f, "request")
	f.Fuzz(func(t *testing.T, op uint16, b []byte) {
		m, err := DecodeRequest(Opcode(op), b)
		if err != nil {
			return
		}
		stable(t, m, Table[Opcode(op)].NewRequest)
		if c, ok := m.(*ChangeReq); ok && CheckOp(c.Op) == nil {
			require.LessOrEqual(t, len(m.Append(nil)), MaxFrame)
		}
	})
}

func FuzzReply(f *testing.F) {
	seed(f, "reply")
	f.Fuzz(func(t *testing.T, op uint16, b []byte) {
		fresh := Table[Opcode(op)].NewReply
		if fresh == nil || len(b) > proto.MaxIO {
			return
		}
		if m := fresh(); Decode("reply", b, m) == nil {
			stable(t, m, fresh)
		}
	})
}

func FuzzPush(f *testing.F) {
	seed(f, "push")
	f.Fuzz(func(t *testing.T, op uint16, b []byte) {
		if m, err := DecodePush(Opcode(op), b); err == nil {
			stable(t, m, Table[Opcode(op)].NewPush)
		}
	})
}

func FuzzError(f *testing.F) {
	for i := range uint64(20) {
		f.Add(fill(&ErrorRep{}, source(i)).Append(nil))
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		var m ErrorRep
		if Decode("error", b, &m) == nil {
			stable(t, &m, fresh[ErrorRep])
			require.NotEmpty(t, m.ToError().Error())
		}
	})
}

func FuzzPreamble(f *testing.F) {
	f.Add(AppendPreamble(nil, Version))
	f.Add(AppendPreamble(nil, Version+1))
	f.Add([]byte("SSH-2.0-OpenSSH"))
	f.Fuzz(func(t *testing.T, b []byte) {
		if v, err := ParsePreamble(b); err == nil {
			again, err := ParsePreamble(AppendPreamble(nil, v))
			require.NoError(t, err)
			require.Equal(t, v, again)
		}
	})
}

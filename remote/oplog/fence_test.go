package oplog

import (
	"testing"

	"github.com/stretchr/testify/require"

	"cagefs.dev/cage/remote/proto"
	"cagefs.dev/cage/remote/status"
)

// What changes a fenced file's content is not to be applied any more, under numbers
// that stay: it fails. Writes that were acknowledged are sent to be kept. What was applied is not touched.
func TestFence(t *testing.T) {
	l := New()
	require.Equal(t, proto.Seq(1), l.Append(alice, write(5, 0, "applied")))
	require.Equal(t, proto.Seq(2), l.Append(alice, write(5, 100, "sent")))
	truncate := l.AppendWaited(alice, &proto.SetAttr{ID: 5, Mask: proto.SetSize})
	sendAll(l)
	l.Append(alice, write(6, 0, "other file"))
	l.Append(alice, &proto.SetAttr{ID: 5, Mask: proto.SetMode})
	l.Append(alice, write(5, 0, "waiting"))
	l.Disconnected()
	require.NoError(t, l.Resume(1))
	l.Fence(5, 1, status.LostLock)
	_, bytes := l.Unanswered()
	require.EqualValues(t, len("applied")+len("sent")+len("other file")+len("waiting"), bytes)
	require.Equal(t, proto.Seq(7), l.Append(alice, write(5, 0, "new")), "joins nothing that is fenced")

	var sent []string
	for _, e := range sendAll(l) {
		sent = append(sent, text(e.Op))
	}
	require.Equal(t, []string{
		`write 5@0 "applied"`, `lost write 5@100 "sent"`, `lost write 5@0 ""`, `write 6@0 "other file"`, "op 5", `lost write 5@0 "waiting"`, `write 5@0 "new"`,
	}, sent)
	for seq := proto.Seq(1); seq <= 7; seq++ {
		f, sticky := l.Answer(seq, proto.Result{}, nil)
		lost := seq == 2 || seq == 6
		require.Equal(t, lost, sticky, "operation %d", seq)
		if lost {
			require.Equal(t, Failure{Seq: seq, ID: 5, Err: status.LostLock}, f)
		}
	}
	_, err := truncate.Outcome()
	require.ErrorIs(t, err, status.LostLock)
	require.ErrorIs(t, l.TakeError(5), status.LostLock)
	require.NoError(t, l.TakeError(0))
	_, bytes = l.Unanswered()
	require.Zero(t, bytes)
}

// Everybody who counts failures is told of each on his file, whoever was told before.
func TestFailedSince(t *testing.T) {
	l := New()
	fail := func(id proto.FileID, err error) {
		seq := l.Append(alice, write(id, 100*uint64(l.Last()), "x"))
		sendAll(l)
		l.Answer(seq, proto.Result{}, err)
	}
	fail(5, status.NoSpace)
	mark := l.Failures()
	require.NoError(t, l.FailedSince(5, mark))
	require.ErrorIs(t, l.FailedSince(5, 0), status.NoSpace)
	fail(6, status.Quota)
	fail(5, status.LostLock)
	fail(5, status.IO)
	require.ErrorIs(t, l.TakeError(0), status.NoSpace)
	require.ErrorIs(t, l.FailedSince(5, mark), status.LostLock, "the first since")
	require.ErrorIs(t, l.FailedSince(5, 0), status.NoSpace)
	require.ErrorIs(t, l.FailedSince(6, mark), status.Quota)
	require.NoError(t, l.FailedSince(5, l.Failures()))
	w := l.AppendWaited(alice, &proto.SetAttr{ID: 5})
	sendAll(l)
	l.Answer(w.Seq, proto.Result{}, status.Access)
	require.NoError(t, l.FailedSince(5, 4), "who waited was told")
}

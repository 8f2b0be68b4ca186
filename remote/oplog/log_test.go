package oplog

import (
	"fmt"
	"testing"

	"github.com/stretchr/testify/require"

	"cagefs.dev/cage/remote/proto"
	"cagefs.dev/cage/remote/status"
)

var alice = proto.Ident{UID: 1000, GID: 100, Groups: []uint32{100, 27}, PID: 4, Comm: "cp"}

func write(id proto.FileID, off uint64, data string) *proto.Write {
	return &proto.Write{ID: id, Off: off, Data: []byte(data)}
}

// sendAll takes everything that may go in a wide window.
func sendAll(l *Log) []Entry {
	var out []Entry
	for {
		e, ok := l.Next(1<<20, 1<<40)
		if !ok {
			return out
		}
		out = append(out, e)
	}
}

func text(op proto.Op) string {
	switch o := op.(type) {
	case *proto.Write:
		if len(o.Data) > 1000 {
			return fmt.Sprintf("write %d@%d %d bytes", o.ID, o.Off, len(o.Data))
		}
		lost := ""
		if o.Lost {
			lost = "lost "
		}
		return fmt.Sprintf("%swrite %d@%d %q", lost, o.ID, o.Off, o.Data)
	case *proto.Make:
		return "make " + o.Name
	case *proto.Sync:
		return "sync"
	}
	return fmt.Sprintf("op %d", op.Kind())
}

func TestJoin(t *testing.T) {
	bob := alice
	bob.Groups = []uint32{100}
	big := make([]byte, proto.MaxIO-1)
	tests := map[string]struct {
		append func(l *Log)
		want   []string
	}{
		"continues": {
			func(l *Log) { l.Append(alice, write(5, 0, "ab")); l.Append(alice, write(5, 2, "cd")) },
			[]string{`write 5@0 "abcd"`},
		},
		"gap": {
			func(l *Log) { l.Append(alice, write(5, 0, "ab")); l.Append(alice, write(5, 3, "cd")) },
			[]string{`write 5@0 "ab"`, `write 5@3 "cd"`},
		},
		"overlap": {
			func(l *Log) { l.Append(alice, write(5, 0, "ab")); l.Append(alice, write(5, 1, "cd")) },
			[]string{`write 5@0 "ab"`, `write 5@1 "cd"`},
		},
		"other file": {
			func(l *Log) { l.Append(alice, write(5, 0, "ab")); l.Append(alice, write(6, 2, "cd")) },
			[]string{`write 5@0 "ab"`, `write 6@2 "cd"`},
		},
		"other identity": {
			func(l *Log) { l.Append(alice, write(5, 0, "ab")); l.Append(bob, write(5, 2, "cd")) },
			[]string{`write 5@0 "ab"`, `write 5@2 "cd"`},
		},
		"another operation between": {
			func(l *Log) {
				l.Append(alice, write(5, 0, "ab"))
				l.Append(alice, &proto.Make{Name: "x"})
				l.Append(alice, write(5, 2, "cd"))
			},
			[]string{`write 5@0 "ab"`, `make x`, `write 5@2 "cd"`},
		},
		"waited for": {
			func(l *Log) { l.AppendWaited(alice, write(5, 0, "ab")); l.Append(alice, write(5, 2, "cd")) },
			[]string{`write 5@0 "ab"`, `write 5@2 "cd"`},
		},
		"too long": {
			func(l *Log) {
				l.Append(alice, &proto.Write{ID: 5, Data: big})
				l.Append(alice, write(5, uint64(len(big)), "cd"))
			},
			[]string{text(&proto.Write{ID: 5, Data: big}), fmt.Sprintf(`write 5@%d "cd"`, len(big))},
		},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			l := New()
			tt.append(l)
			var got []string
			for _, e := range sendAll(l) {
				got = append(got, text(e.Op))
			}
			require.Equal(t, tt.want, got)
		})
	}
}

func TestSentWritesAreImmutable(t *testing.T) {
	l := New()
	buf := []byte("ab")
	require.EqualValues(t, 1, l.Append(alice, &proto.Write{ID: 5, Data: buf}))
	copy(buf, "zz")
	sent := sendAll(l)
	require.EqualValues(t, 2, l.Append(alice, write(5, 2, "cd")))
	require.Equal(t, `write 5@0 "ab"`, text(sent[0].Op))

	// Also when the connection on which it was sent is gone.
	require.NoError(t, l.Resume(0))
	l = New()
	l.Append(alice, write(5, 0, "ab"))
	sendAll(l)
	l.Disconnected()
	require.EqualValues(t, 2, l.Append(alice, write(5, 2, "cd")))
}

func TestWindow(t *testing.T) {
	l := New()
	l.Append(alice, write(1, 0, "0123456789"))
	l.Append(alice, write(2, 0, "01234"))
	l.Append(alice, write(3, 0, "01234"))
	l.Append(alice, write(4, 0, ""))
	next := func(ops int, bytes int64) proto.Seq {
		e, _ := l.Next(ops, bytes)
		return e.Seq
	}
	require.EqualValues(t, 1, next(3, 8), "one alone always goes")
	require.EqualValues(t, 0, next(3, 8), "too many bytes")
	require.EqualValues(t, 2, next(3, 15))
	require.EqualValues(t, 0, next(3, 19), "too many bytes")
	require.EqualValues(t, 3, next(3, 20))
	require.EqualValues(t, 0, next(3, 100), "too many operations")
	require.Equal(t, 3, l.InFlight())
	l.Answer(2, proto.Result{}, nil)
	require.EqualValues(t, 0, l.Acked(), "1 is still open")
	require.EqualValues(t, 4, next(3, 15))
	l.Answer(1, proto.Result{}, nil)
	require.EqualValues(t, 2, l.Acked())
	ops, bytes := l.Unanswered()
	require.Equal(t, 2, ops)
	require.EqualValues(t, 5, bytes)
}

func TestResumeSendsUnansweredAgain(t *testing.T) {
	l := New()
	for i := range 5 {
		l.Append(alice, &proto.Make{Name: fmt.Sprint(i + 1)})
	}
	for range 4 {
		l.Next(100, 100)
	}
	l.Answer(1, proto.Result{}, nil)
	l.Answer(3, proto.Result{}, nil)
	l.Disconnected()
	require.Zero(t, l.InFlight())
	require.NoError(t, l.Resume(4))
	var again []proto.Seq
	for _, e := range sendAll(l) {
		again = append(again, e.Seq)
	}
	require.Equal(t, []proto.Seq{2, 4, 5}, again)

	require.Equal(t, status.LostSession, status.Of(l.Resume(6)), "the server knows more than was sent")
}

func TestTickets(t *testing.T) {
	l := New()
	a := l.AppendWaited(alice, &proto.Make{Name: "a"})
	b := l.AppendWaited(alice, &proto.Make{Name: "b", Dir: 7})
	seq := l.Append(alice, write(5, 0, "x"))
	sendAll(l)
	c1, c2 := l.Watch(seq), l.Watch(seq)

	_, sticky := l.Answer(a.Seq, proto.Result{ID: 9}, nil)
	require.False(t, sticky)
	<-a.Done()
	res, err := a.Outcome()
	require.NoError(t, err)
	require.EqualValues(t, 9, res.ID)
	require.Nil(t, l.Watch(a.Seq), "answered")
	require.Nil(t, l.Watch(99), "never given")

	_, sticky = l.Answer(b.Seq, proto.Result{}, status.Exists)
	require.False(t, sticky, "somebody waited")
	_, err = b.Outcome()
	require.ErrorIs(t, err, status.Exists)
	require.NoError(t, l.TakeError(7))
	require.ErrorIs(t, l.Failed(b.Seq), status.Exists)

	l.Leave(c1)
	f, sticky := l.Answer(seq, proto.Result{}, status.NoSpace)
	require.True(t, sticky, "logged: who waits may not be who wrote")
	require.Equal(t, Failure{Seq: seq, ID: 5, Err: status.NoSpace}, f)
	_, err = c2.Outcome()
	require.ErrorIs(t, err, status.NoSpace)

	_, sticky = l.Answer(seq, proto.Result{}, status.IO)
	require.False(t, sticky, "the first answer counts")
	require.ErrorIs(t, l.TakeError(5), status.NoSpace)
	require.NoError(t, l.TakeError(5), "told once")
}

func TestWithdrawn(t *testing.T) {
	mkdir := func(name string) proto.Op { return &proto.Make{Dir: 1, Name: name} }
	owed := func(l *Log) int { n, _ := l.Unanswered(); return n }

	t.Run("at the end, in any order", func(t *testing.T) {
		l := New()
		a, b := l.AppendWaited(alice, mkdir("a")), l.AppendWaited(alice, mkdir("b"))
		l.Leave(a)
		l.Leave(b)
		require.Zero(t, owed(l))
		require.Zero(t, l.Weight())
		require.Zero(t, l.Last())
		_, ok := l.Next(9, 1<<20)
		require.False(t, ok)
	})
	t.Run("before others", func(t *testing.T) {
		l := New()
		a := l.AppendWaited(alice, mkdir("a"))
		l.Append(alice, write(5, 0, "x"))
		l.Leave(a)
		require.Equal(t, 1, owed(l), "the write")
		e, ok := l.Next(9, 1<<20)
		require.True(t, ok)
		require.Equal(t, &proto.Sync{ID: proto.RootID}, e.Op, "nothing happens in its place")
		require.EqualValues(t, 1, e.Wire)
		e, ok = l.Next(9, 1<<20)
		require.True(t, ok)
		require.EqualValues(t, 2, e.Wire)
		require.IsType(t, &proto.Write{}, e.Op)
	})
	t.Run("not while somebody waits", func(t *testing.T) {
		l := New()
		a := l.AppendWaited(alice, mkdir("a"))
		l.Watch(a.Seq)
		l.Leave(a)
		require.Equal(t, 1, owed(l))
	})
	t.Run("not once it was sent", func(t *testing.T) {
		l := New()
		a := l.AppendWaited(alice, mkdir("a"))
		sendAll(l)
		l.Disconnected()
		l.Leave(a)
		require.Equal(t, 1, owed(l))
		e, ok := l.Next(9, 1<<20)
		require.True(t, ok)
		require.IsType(t, &proto.Make{}, e.Op)
	})
	t.Run("not what was logged", func(t *testing.T) {
		l := New()
		l.Append(alice, write(5, 0, "x"))
		l.Leave(l.Watch(1))
		require.Equal(t, 1, owed(l))
	})
}

func TestSyncIsNoChange(t *testing.T) {
	l := New()
	l.AppendWaited(alice, &proto.Sync{ID: 5})
	ops, _ := l.Unanswered()
	require.Zero(t, ops)
	require.NotZero(t, l.Weight())
	sendAll(l)
	l.Answer(1, proto.Result{}, nil)
	ops, _ = l.Unanswered()
	require.Zero(t, ops)
}

func TestAbandonedOperationIsSticky(t *testing.T) {
	l := New()
	a := l.AppendWaited(alice, &proto.Sync{ID: 5})
	sendAll(l)
	l.Leave(a)
	_, sticky := l.Answer(1, proto.Result{}, status.IO)
	require.True(t, sticky)
	require.ErrorIs(t, l.TakeError(5), status.IO)
}

func TestStickyErrors(t *testing.T) {
	l := New()
	fail := func(id proto.FileID, err error) {
		seq := l.Append(alice, write(id, uint64(l.Last())*10, "x"))
		sendAll(l)
		l.Answer(seq, proto.Result{}, err)
	}
	fail(5, status.NoSpace)
	fail(5, status.IO)
	fail(6, status.Quota)
	require.NoError(t, l.TakeError(7))
	require.ErrorIs(t, l.TakeError(0), status.NoSpace, "the oldest of any file")
	require.NoError(t, l.TakeError(5), "the first stands for all")
	require.ErrorIs(t, l.TakeError(6), status.Quota)
	require.NoError(t, l.TakeError(0))
	fail(5, status.IO)
	require.ErrorIs(t, l.TakeError(5), status.IO, "a new one after the report")

	for i := range maxSticky + 50 {
		fail(proto.FileID(100+i), status.NoSpace)
	}
	require.Len(t, l.failures.sticky, maxSticky)
	require.Len(t, l.failures.recent, maxRecent)
	require.ErrorIs(t, l.TakeError(7), status.NoSpace, "the one without room goes to who asks next")
	require.NoError(t, l.TakeError(7))
	require.ErrorIs(t, l.TakeError(100), status.NoSpace)
}

// What is owed of files is what was acknowledged and has no outcome.
func TestOwing(t *testing.T) {
	l := New()
	require.Empty(t, l.Owing())
	l.Append(alice, write(5, 0, "abc"))
	l.Append(alice, write(6, 0, "d"))
	l.Append(alice, &proto.SetXattr{ID: 7, Value: []byte("x")})
	l.Append(alice, write(5, 10, "ef"))
	l.AppendWaited(alice, write(8, 0, "waited for"))
	require.Equal(t, []Owed{{5, 5}, {6, 1}}, l.Owing())
	sendAll(l)
	l.Answer(1, proto.Result{}, nil)
	require.Equal(t, []Owed{{6, 1}, {5, 2}}, l.Owing())
	l.Answer(4, proto.Result{}, status.New(status.IO, "write", ""))
	require.Equal(t, []Owed{{6, 1}}, l.Owing())
}

func TestLose(t *testing.T) {
	lost := status.New(status.LostSession, "resume", "")
	t.Run("sent", func(t *testing.T) {
		l := New()
		l.Append(alice, &proto.SetXattr{ID: 5})
		l.Append(alice, &proto.SetXattr{ID: 6})
		sendAll(l)
		l.Answer(1, proto.Result{}, nil)
		w := l.AppendWaited(alice, &proto.Make{Name: "m", Dir: 8})
		failed, kept := l.Lose(lost)
		require.Len(t, failed, 1)
		require.Zero(t, kept)
		require.EqualValues(t, 6, failed[0].ID)
		_, err := w.Outcome()
		require.ErrorIs(t, err, status.LostSession)
		require.ErrorIs(t, l.TakeError(6), status.LostSession)
		require.EqualValues(t, 3, l.Acked())
		require.Zero(t, l.Weight())

		require.EqualValues(t, 4, l.Append(alice, write(5, 1, "c")), "the caller's numbers go on")
		sent := sendAll(l)
		require.Len(t, sent, 1)
		require.EqualValues(t, 1, sent[0].Wire, "the wire's begin again")
		require.EqualValues(t, 0, l.WireAcked())
		require.NoError(t, l.Resume(1))
		require.Error(t, l.Resume(2))
		l.Answer(4, proto.Result{}, nil)
		require.EqualValues(t, 1, l.WireAcked())
	})
	// Writes that were acknowledged go to the new session, to be kept there; what
	// was answered or failed between them leaves no gap in its numbers.
	t.Run("writes are kept", func(t *testing.T) {
		l := New()
		l.Append(alice, write(5, 0, "a"))
		l.Append(alice, write(6, 0, "b"))
		l.Append(alice, write(7, 0, "answered"))
		w := l.AppendWaited(alice, &proto.Make{Name: "m", Dir: 8})
		sendAll(l)
		l.Append(alice, write(6, 9, "never sent"))
		l.Answer(1, proto.Result{}, nil)
		l.Answer(3, proto.Result{}, nil)
		failed, kept := l.Lose(lost)
		require.Empty(t, failed)
		require.Equal(t, 2, kept)
		_, err := w.Outcome()
		require.ErrorIs(t, err, status.LostSession)
		require.Len(t, l.Undelivered(), 2)
		l.Append(alice, write(6, 0, "new"))

		var got []string
		for i, e := range sendAll(l) {
			require.EqualValues(t, i+1, e.Wire)
			got = append(got, text(e.Op))
		}
		require.Equal(t, []string{`lost write 6@0 "b"`, "sync", "sync", `lost write 6@9 "never sent"`, `write 6@0 "new"`}, got)
		for seq := proto.Seq(2); seq <= 6; seq++ {
			f, sticky := l.Answer(seq, proto.Result{}, nil)
			require.Equal(t, seq == 2 || seq == 5, sticky, "operation %d", seq)
			if sticky {
				require.ErrorIs(t, f.Err, status.LostSession)
			}
		}
		require.EqualValues(t, 6, l.Acked())
		require.Zero(t, l.Weight())
	})
	t.Run("never sent", func(t *testing.T) {
		l := New()
		l.Append(alice, write(5, 0, "a"))
		sendAll(l)
		l.Answer(1, proto.Result{}, nil)
		l.Append(alice, write(6, 0, "b"))
		failed, kept := l.Lose(lost)
		require.Empty(t, failed)
		require.Zero(t, kept)
		sent := sendAll(l)
		require.Len(t, sent, 1)
		require.EqualValues(t, 2, sent[0].Seq)
		require.EqualValues(t, 1, sent[0].Wire)
	})
}

func TestWeightCountsSmallOperations(t *testing.T) {
	l := New()
	l.Append(alice, write(5, 0, "a"))
	l.Append(alice, write(5, 7, "b"))
	require.EqualValues(t, 2+2*overhead, l.Weight())
}

func TestFileOf(t *testing.T) {
	ops := map[proto.Op]proto.FileID{
		&proto.Make{Dir: 3}: 3, &proto.Link{ID: 2, Dir: 3}: 3, &proto.Remove{Dir: 3}: 3,
		&proto.Rename{Dir: 2, NewDir: 3}: 3, &proto.SetAttr{ID: 3}: 3, &proto.SetXattr{ID: 3}: 3,
		&proto.RemoveXattr{ID: 3}: 3, &proto.Write{ID: 3}: 3, &proto.Sync{ID: 3}: 3,
		&proto.Allocate{ID: 3}: 3, &proto.Copy{ID: 3, Src: 4}: 3, &proto.Label{}: 0, &proto.Branch{}: 0, &proto.Rollback{}: 0, &proto.Undo{}: 0,
	}
	for op, want := range ops {
		c, _ := own(op)
		require.Equal(t, op, c)
		require.NotSame(t, op, c)
		require.Equal(t, want, fileOf(c), "%T", op)
	}
}

// Who appends is told when the bytes went elsewhere than it took the end to be.
func TestAppendElsewhere(t *testing.T) {
	l := New()
	add := func(off uint64, data string) proto.Seq {
		return l.Append(alice, &proto.Write{ID: 5, Append: true, Off: off, Data: []byte(data)})
	}
	require.EqualValues(t, 1, add(10, "ab"))
	require.EqualValues(t, 1, add(12, "cd"), "joined")
	require.EqualValues(t, 2, l.Append(alice, write(5, 14, "no append")), "not joined")
	require.Len(t, sendAll(l), 2)
	require.EqualValues(t, 3, add(20, "x"))
	require.EqualValues(t, 4, l.Append(alice, write(5, 21, "y")))
	require.Len(t, sendAll(l), 2)
	for _, c := range []struct {
		seq  proto.Seq
		n    uint64
		tell bool
	}{{1, 10, false}, {2, 0, false}, {3, 77, true}, {3, 78, false}, {4, 0, false}} {
		f, tell := l.Answer(c.seq, proto.Result{N: c.n}, nil)
		require.Equal(t, c.tell, tell, c.seq)
		if tell {
			require.Equal(t, Failure{Seq: 3, ID: 5}, f)
		}
	}
	require.NoError(t, l.TakeError(5))
}

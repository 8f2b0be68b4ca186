package oplog

import (
	"fmt"
	"math/rand/v2"
	"testing"

	"github.com/stretchr/testify/require"

	"cagefs.dev/cage/remote/proto"
	"cagefs.dev/cage/remote/status"
)

// modelServer applies operations in the order of their wire numbers, once, and
// remembers each result for a repetition. Even-numbered answers of files above
// 100 fail.
type modelServer struct {
	results []error  // by wire number − 1
	applied []string // texts of the operations
}

func (s *modelServer) receive(t *testing.T, e Entry) error {
	if int(e.Wire) > len(s.results) {
		require.EqualValues(t, len(s.results)+1, e.Wire, "a number was left out")
		var err error
		if w, ok := e.Op.(*proto.Write); ok && w.ID > 100 && e.Wire%2 == 0 {
			err = status.New(status.NoSpace, "write", fmt.Sprint(e.Wire))
		}
		s.results = append(s.results, err)
		s.applied = append(s.applied, text(e.Op))
	} else {
		require.Equal(t, s.applied[e.Wire-1], text(e.Op), "a number changed its operation")
	}
	return s.results[e.Wire-1]
}

// TestModel drives a log at random, with answers in any order and twice, and
// connections cut at any moment, and compares with what the server saw.
func TestModel(t *testing.T) {
	for seed := range uint64(60) {
		t.Run(fmt.Sprint(seed), func(t *testing.T) { runModel(t, seed) })
	}
}

type modelAnswer struct {
	seq proto.Seq
	err error
}

func runModel(t *testing.T, seed uint64) {
	r := rand.New(rand.NewPCG(seed, 1))
	l := New()
	server := &modelServer{}
	var (
		onWay    []Entry       // sent, not at the server yet, in order
		answers  []modelAnswer // on their way back, in any order
		tickets  []*Ticket
		logged   = map[proto.FileID][]byte{} // what the client wrote, file by file
		failures = map[proto.FileID]int{}    // that became sticky
		answered = map[proto.Seq]bool{}
	)
	answer := func(i int, keep bool) {
		a := answers[i]
		if !keep {
			answers = append(answers[:i], answers[i+1:]...)
		}
		f, sticky := l.Answer(a.seq, proto.Result{LSN: proto.LSN(a.seq)}, a.err)
		if answered[a.seq] {
			require.False(t, sticky)
			return
		}
		answered[a.seq] = true
		if sticky {
			require.Equal(t, a.seq, f.Seq)
			require.Equal(t, a.err, f.Err)
			failures[f.ID]++
		}
	}
	step := func(finishing bool) {
		switch k := r.IntN(20); {
		case k < 7 && !finishing:
			id := proto.FileID(99 + r.IntN(5))
			data := fmt.Sprint(r.IntN(100))
			l.Append(alice, write(id, uint64(len(logged[id])), data))
			logged[id] = append(logged[id], data...)
		case k < 9 && !finishing:
			tickets = append(tickets, l.AppendWaited(alice, &proto.Make{Name: fmt.Sprint(len(tickets))}))
		case k < 13:
			if e, ok := l.Next(8, 64); ok {
				onWay = append(onWay, e)
			}
		case k < 16 && len(onWay) > 0:
			answers = append(answers, modelAnswer{onWay[0].Seq, server.receive(t, onWay[0])})
			onWay = onWay[1:]
		case k < 19 && len(answers) > 0:
			answer(r.IntN(len(answers)), r.IntN(10) == 0)
		case k == 19 && r.IntN(4) == 0 && !finishing:
			// The server still gets some of what is on its way; answers are lost.
			for len(onWay) > 0 && r.IntN(3) > 0 {
				server.receive(t, onWay[0])
				onWay = onWay[1:]
			}
			onWay, answers = nil, nil
			l.Disconnected()
			require.NoError(t, l.Resume(proto.Seq(len(server.results))))
		}
		if l.InFlight() > 8 || l.Acked() > l.Last() {
			t.Fatalf("in flight %d, answered up to %d of %d", l.InFlight(), l.Acked(), l.Last())
		}
	}
	for range 400 {
		step(false)
	}
	for n := 0; l.Acked() < l.Last(); n++ {
		if n > 100000 {
			t.Fatal("the log does not drain")
		}
		step(true)
	}

	require.EqualValues(t, len(server.applied), l.Last(), "each operation reached the server")
	for i, tk := range tickets {
		<-tk.Done()
		_, err := tk.Outcome()
		require.NoError(t, err)
		require.Contains(t, server.applied, fmt.Sprintf("make %d", i))
	}
	for seq := range l.Last() {
		require.True(t, answered[seq+1], "operation %d has no outcome", seq+1)
	}
	for id, n := range failures {
		require.Positive(t, n)
		require.ErrorIs(t, l.TakeError(id), status.NoSpace)
	}
	require.NoError(t, l.TakeError(0), "each file's failures are told once")
	require.Zero(t, l.Weight())
	checkWritten(t, server.applied, logged)
}

// checkWritten replays what the server applied: the joined writes hold the same bytes.
func checkWritten(t *testing.T, applied []string, logged map[proto.FileID][]byte) {
	got := map[proto.FileID][]byte{}
	for _, s := range applied {
		var id proto.FileID
		var off int
		var data string
		if _, err := fmt.Sscanf(s, "write %d@%d %q", &id, &off, &data); err == nil {
			require.Len(t, got[id], off, "in order")
			got[id] = append(got[id], data...)
		}
	}
	require.Equal(t, logged, got)
}

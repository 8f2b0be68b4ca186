package lease

import (
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"cagefs.dev/cage/remote/proto"
)

const term = 20 * time.Second

func newTable(before map[proto.SessionID]map[proto.FileID]proto.Gen, sessions ...proto.SessionID) *Table {
	t := New(Options{Boot: 2, Term: term, Limit: 1000, Before: before})
	for _, s := range sessions {
		t.Begin(s, nil, 0)
	}
	return t
}

// only returns the actions of one kind.
func only(k Kind, actions []Action) (out []Action) {
	for _, a := range actions {
		if a.Kind == k {
			out = append(out, a)
		}
	}
	return out
}

func grant(t *testing.T, tab *Table, s proto.SessionID, id proto.FileID, mode proto.LeaseMode) proto.Gen {
	l, _ := tab.Grant(s, id, mode, 0)
	require.Equal(t, mode, l.Mode)
	return l.Gen
}

// Everybody may read; who wants to write waits until all the others have given
// theirs back, and then nobody else is given anything.
func TestReadersAreRecalledForAWriter(t *testing.T) {
	tab := newTable(nil, 1, 2, 3)
	g1, g2 := grant(t, tab, 1, 9, proto.ReadLease), grant(t, tab, 2, 9, proto.ReadLease)
	w := WaitID{3, 1}
	out := tab.Wait(w, []proto.Want{{ID: 9, Mode: proto.WriteLease}}, 0)
	require.Len(t, only(Recall, out), 2)
	l, _ := tab.Grant(1, 9, proto.ReadLease, 0)
	require.Zero(t, l, "a reader that comes again must not starve the writer")
	require.Empty(t, only(Ready, tab.Return(1, 9, g1, proto.NoLease, 0)))
	ready := only(Ready, tab.Return(2, 9, g2, proto.NoLease, 0))
	require.Len(t, ready, 1)
	require.Equal(t, w, ready[0].Wait)
	require.Equal(t, Again, tab.Admit(1, proto.Gen{}, []proto.FileID{9}))
	require.Equal(t, Admitted, tab.Admit(3, ready[0].Gens[0], []proto.FileID{9}))
}

// What was logged under a lease that somebody else had since is void for ever.
func TestOldGenerationsAreFenced(t *testing.T) {
	tab := newTable(nil, 1, 2)
	old := grant(t, tab, 1, 9, proto.WriteLease)
	require.Len(t, only(Recall, tab.Wait(WaitID{2, 1}, []proto.Want{{ID: 9, Mode: proto.WriteLease}}, 0)), 1)
	require.Equal(t, Admitted, tab.Admit(1, old, []proto.FileID{9}), "until the return the log goes on")
	tab.Done([]proto.FileID{9}, 0)
	require.Len(t, only(Ready, tab.Return(1, 9, old, proto.NoLease, 0)), 1)
	require.Equal(t, Void, tab.Admit(1, old, []proto.FileID{9}))
	gen := only(Recall, tab.Wait(WaitID{1, 1}, []proto.Want{{ID: 9, Mode: proto.WriteLease}}, 0))[0].Gen
	require.Len(t, only(Ready, tab.Return(2, 9, gen, proto.NoLease, 0)), 1)
	require.Equal(t, Void, tab.Admit(1, old, []proto.FileID{9}), "having the lease again does not bring it back")
}

// A silent holder is fenced when its term is over, not before, and nothing is
// given before that is recorded.
func TestSilentHolderIsFenced(t *testing.T) {
	tab := newTable(nil, 1, 2)
	grant(t, tab, 1, 9, proto.WriteLease)
	tab.Heard(1, 5*time.Second)
	tab.Wait(WaitID{2, 1}, []proto.Want{{ID: 9, Mode: proto.ReadLease}}, 6*time.Second)
	require.Empty(t, only(Fence, tab.Tick(5*time.Second+term-1)))
	fence := only(Fence, tab.Tick(5*time.Second+term))
	require.False(t, tab.Heard(1, 5*time.Second+term), "what it asks now must not make it believe that it has the lease")
	require.Len(t, fence, 1)
	require.True(t, tab.Barred(1))
	require.Len(t, only(Ready, tab.Fenced(fence[0], 26*time.Second)), 1)
	lost, _, _ := tab.Begin(1, []Claim{{9, fence[0].Gen, fence[0].Gen, proto.WriteLease, false}}, 27*time.Second)
	require.Equal(t, []int{0}, lost)
}

// In the grace time nobody is given anything; who comes back has what it had,
// and who does not is fenced.
func TestGrace(t *testing.T) {
	tab := newTable(map[proto.SessionID]map[proto.FileID]proto.Gen{1: nil, 2: {8: {Boot: 1, Counter: 7}}})
	tab.Begin(3, nil, 0)
	require.Empty(t, tab.Wait(WaitID{3, 1}, []proto.Want{{ID: 9, Mode: proto.WriteLease}}, 0))
	require.Equal(t, Again, tab.Admit(3, proto.Gen{}, []proto.FileID{9}))
	lost, _, _ := tab.Begin(1, []Claim{{9, proto.Gen{Boot: 1, Counter: 3}, proto.Gen{Boot: 1, Counter: 2}, proto.WriteLease, false}}, time.Second)
	require.Empty(t, lost)
	lost, _, _ = tab.Begin(2, []Claim{{8, proto.Gen{Boot: 1, Counter: 6}, proto.Gen{}, proto.ReadLease, false}}, time.Second)
	require.Equal(t, []int{0}, lost, "it was fenced before the restart")
	require.Empty(t, tab.Settled(1, time.Second))
	require.Len(t, only(Recall, tab.Settled(2, time.Second)), 1, "the grace time is over with the last who was missing")
	require.Equal(t, Admitted, tab.Admit(1, proto.Gen{Boot: 1, Counter: 2}, []proto.FileID{9}))
	tab.Done([]proto.FileID{9}, 0)
	require.Len(t, only(Ready, tab.Return(1, 9, proto.Gen{Boot: 1, Counter: 3}, proto.NoLease, 0)), 1)
}

// Who asks for what he holds has given it back, and the return is on its way or
// lost: he gets it anew, and the old return takes nothing from him.
func TestAskedForAgain(t *testing.T) {
	tab := newTable(nil, 1)
	old := grant(t, tab, 1, 9, proto.WriteLease)
	ready := only(Ready, tab.Wait(WaitID{1, 1}, []proto.Want{{ID: 9, Mode: proto.WriteLease}}, 0))
	require.Len(t, ready, 1)
	require.Positive(t, ready[0].Gens[0].Compare(old))
	require.Empty(t, tab.Return(1, 9, old, proto.ReadLease, 0))
	require.Equal(t, Admitted, tab.Admit(1, old, []proto.FileID{9}), "what was logged before still counts")
	require.Equal(t, Admitted, tab.Admit(1, ready[0].Gens[0], []proto.FileID{9}))
}

// A return may get lost together with the server: what was logged before it is
// taken in the grace time without the lease, and nothing else.
func TestOwedOverARestart(t *testing.T) {
	tab := newTable(map[proto.SessionID]map[proto.FileID]proto.Gen{1: {8: {Boot: 1, Counter: 5}}, 2: nil})
	tab.Begin(1, nil, 0)
	tab.Begin(2, []Claim{{7, proto.Gen{Boot: 1, Counter: 9}, proto.Gen{}, proto.ReadLease, false}}, 0)
	gen := proto.Gen{Boot: 1, Counter: 4}
	require.Equal(t, Admitted, tab.Admit(1, gen, []proto.FileID{9}))
	require.Equal(t, Void, tab.Admit(1, gen, []proto.FileID{8}), "it was fenced")
	require.Equal(t, Void, tab.Admit(1, gen, []proto.FileID{7}), "somebody has a lease")
	tab.Settled(1, 0)
	require.Equal(t, Void, tab.Admit(1, gen, []proto.FileID{9}), "all that was owed is delivered")
}

// A program of the server changed a file before its holder came back after a
// restart: the holder gets the lease, but only to be told.
func TestChangedBeforeTheHolderIsBack(t *testing.T) {
	tab := newTable(map[proto.SessionID]map[proto.FileID]proto.Gen{1: nil, 2: nil})
	require.Empty(t, tab.Revoke(0, []proto.FileID{9}, 0))
	gen := proto.Gen{Boot: 1, Counter: 4}
	lost, _, out := tab.Begin(1, []Claim{{9, gen, gen, proto.ReadLease, false}, {8, gen, gen, proto.ReadLease, false}}, 0)
	require.Empty(t, lost)
	require.Len(t, out, 1)
	require.EqualValues(t, 9, out[0].ID)
	require.Equal(t, Recall, out[0].Kind)
}

// A program of the server changed a file before the restart, and perhaps its holder was not told: who answered
// from memory loses the lease, who may have acknowledged changes keeps it, to be told.
func TestChangedBeforeTheRestart(t *testing.T) {
	tab := newTable(map[proto.SessionID]map[proto.FileID]proto.Gen{1: nil, 2: nil})
	gen := proto.Gen{Boot: 1, Counter: 4}
	lost, _, out := tab.Begin(1, []Claim{{9, gen, gen, proto.ReadLease, true}, {8, gen, gen, proto.WriteLease, true}, {7, gen, gen, proto.ReadLease, false}}, 0)
	require.Equal(t, []int{0}, lost)
	require.Len(t, out, 1)
	require.EqualValues(t, 8, out[0].ID)
	require.Equal(t, Recall, out[0].Kind)
	require.Equal(t, proto.NoLease, out[0].Mode)
}

// A holder that was too slow, and then gives back what it was asked for, loses
// nothing: least of all the other files that it writes.
func TestTooSlowButNothingLost(t *testing.T) {
	tab := newTable(nil, 1, 2)
	mine := grant(t, tab, 1, 8, proto.WriteLease)
	slow := grant(t, tab, 1, 9, proto.WriteLease)
	tab.Wait(WaitID{2, 1}, []proto.Want{{ID: 9, Mode: proto.WriteLease}}, 0)
	for now := time.Duration(0); now <= term; now += time.Second { // it is there, but does not answer
		tab.Heard(1, now)
		tab.Tick(now)
	}
	require.True(t, tab.Barred(1))
	require.Len(t, only(Ready, tab.Return(1, 9, slow, proto.NoLease, term)), 1)
	for now := term; now <= 3*term; now += time.Second {
		tab.Heard(2, now)
		require.Empty(t, only(Fence, tab.Tick(now)))
	}
	require.False(t, tab.Barred(1))
	require.Equal(t, Admitted, tab.Admit(1, mine, []proto.FileID{8}))
}

// Where it cannot be recorded that a lease is void it is nobody else's, and its
// session may come back to it.
func TestFenceThatCannotBeRecorded(t *testing.T) {
	tab := newTable(nil, 1, 2)
	gen := grant(t, tab, 1, 9, proto.WriteLease)
	tab.Wait(WaitID{2, 1}, []proto.Want{{ID: 9, Mode: proto.WriteLease}}, 0)
	tab.Heard(2, term)
	fence := only(Fence, tab.Tick(term))
	require.Len(t, fence, 1)
	tab.Unfenced(fence[0])
	require.False(t, tab.Barred(1))
	lost, _, _ := tab.Begin(1, []Claim{{9, gen, gen, proto.WriteLease, false}}, term)
	require.Empty(t, lost)
	require.Equal(t, Admitted, tab.Admit(1, gen, []proto.FileID{9}))
}

// A look at a file that somebody writes waits for his answer and leaves him the lease.
func TestLook(t *testing.T) {
	tab := newTable(nil, 1, 2)
	gen := grant(t, tab, 1, 9, proto.WriteLease)
	out := tab.Wait(WaitID{2, 1}, []proto.Want{{ID: 9}}, 0)
	require.Len(t, out, 1)
	require.Equal(t, Peek, out[0].Kind)
	require.Empty(t, only(Ready, tab.Peeked(1, 9, out[0].Num-1, 0)))
	require.Len(t, only(Ready, tab.Peeked(1, 9, out[0].Num, 0)), 1)
	require.Equal(t, Admitted, tab.Admit(1, gen, []proto.FileID{9}))
}

// Nothing is given between the admission of a change and its end.
func TestNoLeaseDuringAChange(t *testing.T) {
	tab := newTable(nil, 1, 2)
	require.Equal(t, Admitted, tab.Admit(1, proto.Gen{}, []proto.FileID{9}))
	l, _ := tab.Grant(2, 9, proto.ReadLease, 0)
	require.Zero(t, l)
	require.Empty(t, tab.Wait(WaitID{2, 1}, []proto.Want{{ID: 9, Mode: proto.WriteLease}}, 0))
	require.Len(t, only(Ready, tab.Done([]proto.FileID{9}, 0)), 1)
}

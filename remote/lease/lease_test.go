package lease

import (
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"cagefs.dev/cage/remote/proto"
)

const term = 20 * time.Second

func gen(n uint64) proto.Gen { return proto.Gen{Boot: 1, Counter: n} }

func newTable() *Table {
	t := New(term)
	t.Answered(0, 0)
	return t
}

// Replies and recalls are not ordered with one another: a grant that comes after
// its recall is what the recall left of it.
func TestGrantOvertakenByItsRecall(t *testing.T) {
	for name, tt := range map[string]struct {
		to          proto.LeaseMode
		before      proto.LeaseMode // that is held when the recall comes, of an older generation
		read, write bool
	}{
		"all of it":              {to: proto.NoLease},
		"writing":                {to: proto.ReadLease, read: true},
		"all, of an upgrade":     {to: proto.NoLease, before: proto.ReadLease},
		"writing, of an upgrade": {to: proto.ReadLease, before: proto.ReadLease, read: true},
	} {
		t.Run(name, func(t *testing.T) {
			tab := newTable()
			tab.Granted(9, proto.Lease{Gen: gen(1), Mode: tt.before})
			r := Recall{ID: 9, UpTo: gen(2), To: tt.to}
			require.True(t, tab.Recalled(r))
			tab.Returned(r)
			tab.Granted(9, proto.Lease{Gen: gen(2), Mode: proto.WriteLease})
			require.Equal(t, tt.read, tab.Holds(9, proto.ReadLease, 0))
			_, ok := tab.Log(9, 0)
			require.Equal(t, tt.write, ok)
			tab.Granted(9, proto.Lease{Gen: gen(3), Mode: proto.WriteLease})
			_, ok = tab.Log(9, 0)
			require.True(t, ok, "the next one counts")
		})
	}
}

// A lease is over when the term since the last answered request was sent is,
// less the margin; what is then granted or answered anew begins a new tenure.
func TestTerm(t *testing.T) {
	tab := newTable()
	tab.Granted(1, proto.Lease{Gen: gen(1), Mode: proto.ReadLease})
	tab.Granted(2, proto.Lease{Gen: gen(2), Mode: proto.WriteLease})
	end := term - term/Margin
	require.Equal(t, end, tab.Until())
	first := tab.Tenure(2, end-1)
	require.NotZero(t, first)
	require.False(t, tab.Expire(end-1))
	require.Zero(t, tab.Tenure(2, end))
	require.False(t, tab.Holds(1, proto.ReadLease, end))
	require.True(t, tab.Expire(end))
	require.False(t, tab.Expire(end), "once")
	require.Equal(t, []Claim{{2, gen(2), gen(2), proto.WriteLease}}, tab.Claims(10), "what was written under it is to be delivered")
	tab.Answered(end, end)
	require.NotZero(t, tab.Tenure(2, end))
	require.NotEqual(t, first, tab.Tenure(2, end))
	require.Zero(t, tab.Tenure(1, end))
}

// A process that was stopped for longer than the term and then hears an answer
// has no read leases from before, although nobody looked while it was stopped.
func TestLapsedUnseen(t *testing.T) {
	tab := newTable()
	tab.Granted(1, proto.Lease{Gen: gen(1), Mode: proto.ReadLease})
	tab.Answered(term, term+time.Second)
	require.False(t, tab.Holds(1, proto.ReadLease, term+time.Second))
	require.True(t, tab.Expire(term+time.Second), "and what is known under them is to be forgotten")
	require.False(t, tab.Expire(term+time.Second))
}

// A change that was let wait for a lease is made once before the lease goes.
func TestUse(t *testing.T) {
	tab := newTable()
	tab.Granted(9, proto.Lease{Gen: gen(1), Mode: proto.WriteLease})
	require.True(t, tab.Use(9, 0))
	r := Recall{ID: 9, UpTo: gen(1), To: proto.NoLease}
	require.False(t, tab.Recalled(r))
	_, ok := tab.Log(9, 0)
	require.True(t, ok)
	require.False(t, tab.Use(9, 0), "nobody else begins")
	again, ok := tab.Unuse(9)
	require.True(t, ok)
	require.Equal(t, r, again)
	require.True(t, tab.Returned(again))
	_, ok = tab.Log(9, 0)
	require.False(t, ok)
}

// After a reconnect only what the server confirms is held.
func TestResumed(t *testing.T) {
	tab := newTable()
	for id := range proto.FileID(4) {
		tab.Granted(id+1, proto.Lease{Gen: gen(uint64(id) + 1), Mode: proto.ReadLease})
	}
	claims := tab.Claims(3)
	require.Len(t, claims, 3)
	gone := tab.Resumed(claims, []int{1}, gen(7))
	require.Equal(t, []proto.FileID{2, 4}, gone, "one is refused, one was not named")
	_, back := tab.Granted(5, proto.Lease{Gen: gen(6), Mode: proto.ReadLease})
	require.True(t, back, "it is from before, and the server is told")
	ok, _ := tab.Granted(5, proto.Lease{Gen: gen(8), Mode: proto.ReadLease})
	require.True(t, ok)
}

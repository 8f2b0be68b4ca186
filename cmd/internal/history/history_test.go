package history

import (
	"bytes"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// parse reads a history of one object, with operations between semicolons:
//
//	PROCESS CALL-RETURN OP [ARG]     with "= OUT" for a read, "failed" for a failure
//
// and "?" for a RETURN that is unknown.
func parse(t testing.TB, kind Kind, text string) (recs []Record) {
	t.Helper()
	for _, op := range strings.Split(text, ";") {
		r := Record{Kind: kind, Object: "it"}
		f := strings.Fields(op)
		_, err := fmt.Sscanf(f[0]+" "+f[2], "%d %s", &r.Proc, &r.Op)
		require.NoError(t, err, op)
		if call, found := strings.CutSuffix(f[1], "-?"); found {
			r.Unknown = true
			_, err = fmt.Sscan(call, &r.Call)
		} else {
			_, err = fmt.Sscanf(f[1], "%d-%d", &r.Call, &r.Return)
		}
		require.NoError(t, err, op)
		for i := 3; i < len(f); i++ {
			switch f[i] {
			case "failed":
				r.Failed = true
			case "=":
				i++
				_, err = fmt.Sscan(f[i], &r.Out)
			default:
				_, err = fmt.Sscan(f[i], &r.Arg)
			}
			require.NoError(t, err, op)
		}
		recs = append(recs, r)
	}
	return recs
}

func TestCheck(t *testing.T) {
	tests := []struct {
		name    string
		kind    Kind
		history string
		wrong   int // how many operations the shortest wrong beginning has; 0 where the history is legal
	}{
		{"nothing was written", Register, "0 0-1 read = 0", 0},
		{"a write, then a read elsewhere", Register, "0 0-1 write 5; 1 2-3 read = 5", 0},
		{"a read during a write sees either", Register, "0 0-9 write 5; 1 2-3 read = 0; 2 4-5 read = 5", 0},
		{"an answer and a call at the same moment have no order", Register, "0 0-2 write 5; 1 2-3 read = 0", 0},
		{"two writes at a time have any order", Register, "0 0-5 write 1; 1 0-5 write 2; 0 6-7 read = 1", 0},
		{"stale read", Register, "0 0-1 write 5; 1 2-3 read = 0; 1 4-5 read = 5", 2},
		{"stale read of what was there before", Register, "0 0-1 write 5; 1 2-3 write 6; 2 4-5 read = 5", 3},
		{"old after new", Register, "0 0-9 write 5; 1 2-3 read = 5; 2 4-5 read = 0", 3},
		{"two readers disagree on an order", Register, "0 0-1 write 1; 1 0-1 write 2; 2 2-3 read = 1; 3 4-5 read = 2", 4},
		{"what nobody has written", Register, "0 0-1 write 5; 1 2-3 read = 7", 2},
		{"a lost update", Register, "0 0-1 write 1; 0 2-3 read = 1; 1 4-5 write 2; 2 6-7 read = 2; 2 8-9 read = 1", 5},
		{"a write without an answer is seen", Register, "0 0-? write 5; 1 2-3 read = 0; 1 4-5 read = 5", 0},
		{"a write without an answer is not seen", Register, "0 0-? write 5; 1 2-3 read = 0; 1 99-100 read = 0", 0},
		{"a write without an answer is seen and gone", Register, "0 0-? write 5; 1 2-3 read = 5; 1 4-5 read = 0", 3},
		{"a read without an answer says nothing", Register, "0 0-1 write 5; 1 2-? read = 9", 0},

		{"writes, appends and truncations", Size, "0 0-1 extend 10; 1 2-3 append 5; 0 4-5 read = 15; 0 6-7 truncate 3; 1 8-9 extend 2; 1 10-11 read = 3", 0},
		{"two appends at a time", Size, "0 0-5 append 1; 1 0-5 append 2; 2 1-2 read = 2; 2 6-7 read = 3", 0},
		{"a lost append", Size, "0 0-1 append 1; 1 2-3 append 2; 2 4-5 read = 2", 3},
		{"a write that shortens", Size, "0 0-1 truncate 9; 1 2-3 extend 4; 0 4-5 read = 4", 3},
		{"stale size", Size, "0 0-1 extend 9; 1 2-3 read = 0", 2},
		{"a truncation is seen and gone", Size, "0 0-1 extend 9; 1 2-9 truncate 3; 2 4-5 read = 3; 0 6-7 read = 9", 4},
		{"an append without an answer counts once", Size, "0 0-? append 4; 1 2-3 read = 4; 1 4-5 read = 8", 3},

		{"made, seen, removed", Name, "0 0-1 make 7; 1 2-3 read = 7; 1 4-5 take; 0 6-7 read = 0", 0},
		{"one of two makes fails", Name, "0 0-5 make 7; 1 0-5 make 8 failed; 0 6-7 read = 7", 0},
		{"renamed over: the file is who looks first", Name, "0 0-1 make 7; 1 2-3 put -1; 0 4-5 read = 9; 1 6-7 read = 9; 0 8-9 read = -1", 0},
		{"a removal that finds nothing", Name, "0 0-1 take failed; 0 2-3 make 7; 1 4-5 take", 0},
		{"two makes succeed", Name, "0 0-5 make 7; 1 0-5 make 8", 2},
		{"two removals succeed", Name, "0 0-1 make 7; 1 2-5 take; 2 2-5 take", 3},
		{"a make fails of nothing", Name, "0 0-1 make 7 failed", 1},
		{"a removal misses what is there", Name, "0 0-1 make 7; 1 2-3 take failed", 2},
		{"a listing lacks an acknowledged name", Name, "0 0-1 make 7; 1 2-3 read = 0; 1 4-5 read = -1", 2},
		{"a listing has a removed name", Name, "0 0-1 make 7; 0 2-3 take; 1 4-5 read = -1", 3},
		{"the file from before", Name, "0 0-1 make 7; 0 2-3 put 8; 1 4-5 read = 7", 3},
		{"renamed over, two looks differ", Name, "0 2-3 put -1; 1 4-5 read = 9; 0 6-7 read = 8", 3},
		{"gone, then there again", Name, "0 0-1 make 7; 1 2-9 take; 2 3-4 read = 0; 0 5-6 read = 7", 4},
		{"a removal without an answer", Name, "0 0-1 make 7; 1 2-? take; 2 3-4 read = 7; 0 5-6 read = 0; 0 7-8 make 9", 0},
		{"a make without an answer", Name, "0 0-? make -1; 1 3-4 read = 0; 1 5-6 make 9 failed; 1 7-8 read = 4", 0},
		{"a make without an answer makes once", Name, "0 0-? make 7; 1 1-2 read = 7; 1 3-4 take; 1 5-6 read = 7", 4},

		{"links", Links, "0 0-1 add 1; 1 2-3 add 1; 0 4-5 read = 2; 1 6-7 add -1; 0 8-9 read = 1", 0},
		{"a link is not counted", Links, "0 0-1 add 1; 1 2-3 add 1; 0 4-5 read = 1", 3},
		{"a removed link is counted", Links, "0 0-1 add 1; 1 2-3 add -1; 0 4-5 read = 1", 3},
		{"more, then fewer", Links, "0 0-9 add 1; 1 2-3 read = 1; 2 4-5 read = 0", 3},

		{"one after another", Lock, "0 0-1 exclude; 0 2-3 unlock; 1 2-4 exclude; 1 5-6 unlock", 0},
		{"a wait", Lock, "0 0-1 exclude; 1 0-9 exclude; 0 7-8 unlock", 0},
		{"shared, and an upgrade", Lock, "0 0-1 share; 1 0-1 share; 1 2-3 unlock; 0 4-5 exclude; 0 6-7 share; 1 8-9 share", 0},
		{"two owners", Lock, "0 0-1 exclude; 1 2-3 exclude", 2},
		{"two owners before the first lets go", Lock, "0 0-1 exclude; 1 2-3 exclude; 0 4-5 unlock", 2},
		{"a reader beside an owner", Lock, "0 0-1 exclude; 1 2-3 share", 2},
		{"an upgrade beside a reader", Lock, "0 0-1 share; 1 0-1 share; 1 2-3 exclude", 3},
		{"who was killed may have had it", Lock, "0 0-? exclude; 1 2-3 exclude; 0 4-? unlock", 0},
		{"who was killed is waited for", Lock, "0 0-1 exclude; 0 2-? unlock; 1 3-4 exclude", 0},
		{"who was killed lets go once", Lock, "0 0-1 exclude; 0 2-? unlock; 1 3-4 exclude; 2 5-6 exclude", 4},
	}
	for _, tt := range tests {
		t.Run(string(tt.kind)+"/"+tt.name, func(t *testing.T) {
			v, err := Check(parse(t, tt.kind, tt.history), time.Minute)
			require.NoError(t, err)
			require.Equal(t, tt.wrong == 0, v.Err() == nil, "%v", v.Err())
			if tt.wrong > 0 {
				require.Len(t, v.Illegal[0].Short, tt.wrong)
				require.Contains(t, v.Err().Error(), "it, ")
			}
		})
	}
}

// TestViolations: each wrong object is found among others, the one that is
// told is the shortest, and it ends with the answer that cannot be.
func TestViolations(t *testing.T) {
	var recs []Record
	for object, text := range map[string]string{
		"right": "0 0-1 write 5; 1 2-3 read = 5",
		"long":  "0 0-1 write 5; 1 2-3 read = 5; 0 4-5 write 6; 1 6-7 read = 5",
		"short": "0 0-1 write 5; 3 2-9 write 6; 1 3-4 read = 0; 2 6-7 read = 6; 2 8-9 read = 5",
	} {
		for _, r := range parse(t, Register, text) {
			r.Object = object
			recs = append(recs, r)
		}
	}
	v, err := Check(recs, time.Minute)
	require.NoError(t, err)
	require.Equal(t, []int{3, 11}, []int{v.Objects, v.Operations})
	require.Len(t, v.Illegal, 2)
	bad := v.Illegal[0]
	require.Equal(t, "short", bad.Object)
	require.Len(t, bad.Records, 5)
	last := bad.Short[len(bad.Short)-1]
	require.Equal(t, Record{Kind: Register, Object: "short", Proc: 1, Op: Read, Call: 3, Return: 4}, last)
	require.True(t, bad.Short[1].Unknown, "the second write was under way")
	require.ErrorContains(t, v.Err(), "2 of 3 objects have no linearizable history (short, long)")
	require.ErrorContains(t, v.Err(), "process 1 read = 0")

	var page bytes.Buffer
	require.NoError(t, Draw(&page, bad.Records, time.Minute))
	require.Contains(t, page.String(), "process 1 read = 0")
}

// TestTimeRunsOut: a history that there was no time to check is no legal one.
func TestTimeRunsOut(t *testing.T) {
	var recs []Record
	for i := range 60 { // all at a time, and a sum that only all of them give
		recs = append(recs, Record{Kind: Size, Object: "it", Proc: i, Op: Append, Arg: 1 << (i % 20), Call: 0, Return: 10})
	}
	recs = append(recs, Record{Kind: Size, Object: "it", Proc: 60, Op: Read, Out: 12345, Call: 20, Return: 30})
	v, err := Check(recs, 50*time.Millisecond)
	require.NoError(t, err)
	require.Equal(t, []string{"it"}, v.Undecided)
	require.ErrorContains(t, v.Err(), "the time was not enough to check it")
}

func TestNonsense(t *testing.T) {
	many := strings.Repeat("0 0-1 read = 0;", MaxOperations) + "0 0-1 read = 0"
	for text, want := range map[string]string{
		"register 0 0-1 append 3":    `a register has no operation "append"`,
		"lock 0 0-1 read = 3":        `a lock has no operation "read"`,
		"door 0 0-1 read = 3":        `a door has no operation "read"`,
		"register 0 3-2 write 3":     "answered before it was called",
		"name 0 0-1 put":             "of which file?",
		"size 0 0-1 truncate failed": "only make and take",
		"lock 64 0-1 exclude":        "process 64 cannot have locks",
		"register " + many:           "401 operations are more than 400",
	} {
		kind, ops, _ := strings.Cut(text, " ")
		_, err := Check(parse(t, Kind(kind), ops), time.Minute)
		require.ErrorContains(t, err, "it: ", text)
		require.ErrorContains(t, err, want, text)
	}
	_, err := Check(append(parse(t, Size, "0 0-1 read = 0"), parse(t, Links, "0 0-1 read = 0")...), time.Minute)
	require.ErrorContains(t, err, "it: it is a size and a links")
}

func TestEncode(t *testing.T) {
	recs := parse(t, Name, "0 0-1 make 7; 1 2-3 read = -1; 1 4-? take; 0 6-7 make 8 failed")
	recs[1].Note = "getdents"
	var b bytes.Buffer
	require.NoError(t, Encode(&b, recs))
	require.Equal(t, len(recs), strings.Count(b.String(), "\n"))
	got, err := Decode(&b)
	require.NoError(t, err)
	require.Equal(t, recs, got)
	_, err = Decode(strings.NewReader("{}\n{\"Call\":"))
	require.ErrorContains(t, err, "record 1: ")
}

// BenchmarkCheck checks a full object of nine processes, in which nothing is wrong.
func BenchmarkCheck(b *testing.B) {
	var recs []Record
	var now, last int64
	for i := range MaxOperations {
		r := Record{Kind: Register, Object: "it", Proc: i % 9, Op: Read, Call: now - 80, Return: now + 10}
		if i%3 == 0 {
			last++
			r.Op, r.Arg = Write, last
		} else {
			r.Out = last
		}
		recs = append(recs, r)
		now += 10
	}
	for b.Loop() {
		v, err := Check(recs, time.Minute)
		require.NoError(b, err)
		require.NoError(b, v.Err())
	}
}

package journal

import (
	"context"
	"fmt"
	"math/rand/v2"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"cagefs.dev/cage/journal/vfs"
	"cagefs.dev/cage/remote/proto"
	"cagefs.dev/cage/remote/status"
)

// lines are entries in short, oldest first.
func lines(t *testing.T, j *Journal, q Query) (out []string) {
	t.Helper()
	list, err := j.Entries(q)
	require.NoError(t, err)
	for _, e := range list.Entries {
		s := e.Kind + " " + e.Path
		if e.NewPath != "" {
			s += " -> " + e.NewPath
		}
		if e.Detail != "" {
			s += " (" + e.Detail + ")"
		}
		out = append([]string{s}, out...)
	}
	return out
}

func TestEntries(t *testing.T) {
	disk := vfs.NewMem(1)
	e, _ := openOn(t, disk)
	d := e.make(proto.RootID, "d", proto.ModeDir|0o755)
	f := e.file(d, "f", "hello")
	e.must(&proto.Rename{Dir: proto.RootID, Name: "d", NewDir: proto.RootID, NewName: "e"})
	e.must(&proto.Write{ID: f, Off: 3, Data: []byte("p!")})
	g := e.file(proto.RootID, "g", "")
	e.must(&proto.Rename{Dir: d, Name: "f", NewDir: proto.RootID, NewName: "g"})
	e.must(&proto.SetAttr{ID: f, Mask: proto.SetMode | proto.SetSize, Mode: 0o600, Size: 2})
	e.must(&proto.SetXattr{ID: f, Name: "user.k", Value: []byte("v")})
	e.must(&proto.RemoveXattr{ID: f, Name: "user.k"})
	e.must(&proto.Label{Name: "here"})
	e.must(&proto.Link{ID: f, Dir: d, Name: "l"})
	e.must(&proto.Remove{Dir: proto.RootID, Name: "g"})
	e.must(&proto.Make{Dir: d, Name: "s", Mode: proto.ModeSymlink, Target: "to"})
	_, err := e.do(&proto.Make{Dir: d, Name: "s", Mode: proto.ModeRegular})
	require.ErrorIs(t, err, status.Exists)

	replaced := fmt.Sprintf("rename e/f -> g (replaced fid %d)", g)
	all := []string{
		"make d (directory)", "make d/f", "write d/f", "rename d -> e", "write e/f", "make g", replaced,
		"truncate g (size 2, was 5)", "setattr g (mode 0600, was 0644)", "setxattr g (user.k)", "removexattr g (user.k)",
		"label  (here)", "link e/l", "remove g", "make e/s (-> to)",
	}
	tests := []struct {
		name string
		q    Query
		want []string
	}{
		{"everything", Query{}, all},
		{"the root", Query{Path: "."}, all},
		{"a file by its present name", Query{Path: "e/l"}, []string{
			"make d/f", "write d/f", "write e/f", replaced, all[7], all[8], all[9], all[10], "link e/l", "remove g"}},
		{"a tree, without what its files did elsewhere", Query{Path: "e"}, []string{
			all[0], all[1], all[2], all[3], all[4], replaced, "link e/l", "make e/s (-> to)"}},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) { require.Equal(t, test.want, lines(t, e.Journal, test.q)) })
	}
	t.Run("a removed path", func(t *testing.T) {
		require.Equal(t, lines(t, e.Journal, Query{Path: "e/l"}), lines(t, e.Journal, Query{Path: "g"}))
	})
	t.Run("pages", func(t *testing.T) {
		var got []string
		q := Query{Limit: 4}
		for {
			list, err := e.Entries(q)
			require.NoError(t, err)
			require.Equal(t, proto.LSN(1), list.Oldest)
			require.LessOrEqual(t, len(list.Entries), 4)
			got = append(lines(t, e.Journal, q), got...)
			q.Before = list.Entries[len(list.Entries)-1].LSN
			if !list.More {
				break
			}
		}
		require.Equal(t, all, got)
	})
	t.Run("onward", func(t *testing.T) {
		for _, scope := range []string{"", "e", "e/l"} {
			want := lines(t, e.Journal, Query{Path: scope})
			for _, limit := range []int{1, 4, 100} {
				var got []string
				for q := (Query{Path: scope, After: 1, Limit: limit}); ; {
					list, err := e.Entries(q)
					require.NoError(t, err)
					require.LessOrEqual(t, len(list.Entries), limit)
					for _, x := range list.Entries {
						require.Greater(t, x.LSN, q.After)
						require.LessOrEqual(t, x.LSN, list.Upto)
						got = append(got, x.Kind)
					}
					q.After = list.Upto
					if !list.More {
						break
					}
				}
				require.Len(t, got, len(want))
				for i := range want {
					require.Equal(t, strings.Fields(want[i])[0], got[i])
				}
			}
		}
		list, err := e.Entries(Query{After: e.Last()})
		require.NoError(t, err)
		require.Empty(t, list.Entries)
		require.Equal(t, e.Last(), list.Upto)
	})
	t.Run("who", func(t *testing.T) {
		list, err := e.Entries(Query{Limit: 1})
		require.NoError(t, err)
		require.Equal(t, "test", list.Entries[0].Client)
		require.Equal(t, testSession, list.Entries[0].Session)
	})
	t.Run("by number, also the server's own", func(t *testing.T) {
		require.Equal(t, []string{"boot "}, lines(t, e.Journal, Query{LSN: 1}))
	})
	for name, q := range map[string]Query{"a path that never was": {Path: "x/y"}, "a record to come": {LSN: 1 << 40}} {
		t.Run(name, func(t *testing.T) {
			_, err := e.Entries(q)
			require.Equal(t, status.NotFound, status.Of(err))
		})
	}
	crashed, _ := openOn(t, disk.Clone())
	require.Equal(t, all, lines(t, crashed.Journal, Query{}), "after a crash")
	require.NoError(t, crashed.Close())
	require.NoError(t, e.Close())
}

func TestMoment(t *testing.T) {
	e, _ := openOn(t, vfs.NewMem(1))
	defer e.Close()
	f := e.file(proto.RootID, "f", "1")
	first := e.Last()
	_, when, err := e.Moment(proto.Moment{Kind: proto.MomentLSN, LSN: first})
	require.NoError(t, err)
	label := e.must(&proto.Label{Name: "x"}).LSN
	txn, err := e.Transact(context.Background(), serverSubmission(), KindRollback, "", false, func(tx *Tx) error {
		tx.Write(f, 1, 0, []byte("2"))
		tx.Write(f, 1, 1, []byte("3"))
		return nil
	})
	require.NoError(t, err)
	commit := e.Last()
	begin, err := e.Record(txn.LSN, false)
	require.NoError(t, err)
	tests := []struct {
		name string
		m    proto.Moment
		want proto.LSN
		code status.Code
	}{
		{"now", proto.Moment{}, commit, 0},
		{"a record", proto.Moment{Kind: proto.MomentLSN, LSN: first}, first, 0},
		{"a record to come", proto.Moment{Kind: proto.MomentLSN, LSN: commit + 1}, 0, status.NoMoment},
		{"a record's time", proto.Moment{Kind: proto.MomentTime, Time: when}, first, 0},
		{"just before it", proto.Moment{Kind: proto.MomentTime, Time: when - 1}, first - 1, 0},
		{"long before", proto.Moment{Kind: proto.MomentTime, Time: 1}, 0, status.NoHistory},
		{"a time to come", proto.Moment{Kind: proto.MomentTime, Time: 1 << 62}, commit, 0},
		{"a label", proto.Moment{Kind: proto.MomentLabel, Label: "x"}, label, 0},
		{"no such label", proto.Moment{Kind: proto.MomentLabel, Label: "y"}, 0, status.NoMoment},
		{"a transaction, by its first record", proto.Moment{Kind: proto.MomentLSN, LSN: txn.LSN}, commit, 0},
		{"while a transaction is done", proto.Moment{Kind: proto.MomentTime, Time: begin.Time}, txn.LSN - 1, 0},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			got, _, err := e.Moment(test.m)
			require.Equal(t, test.code, status.Of(err), "%v", err)
			require.Equal(t, test.want, got)
		})
	}
	_, err = e.At(commit + 1)
	require.Equal(t, status.NoMoment, status.Of(err))
	p, err := e.At(first)
	require.NoError(t, err)
	b := make([]byte, 2)
	n, _ := p.ReadAt(f, b, 0)
	require.Equal(t, "1", string(b[:n]))
}

func TestVerifyAndUsage(t *testing.T) {
	eachDisk(t, func(t *testing.T, fs vfs.FS) {
		e, _ := openOn(t, fs)
		defer e.Close()
		d := e.make(proto.RootID, "d", proto.ModeDir|0o755)
		e.file(d, "f", "hello")
		big := e.file(d, "big", string(make([]byte, 1<<20)))
		e.must(&proto.Write{ID: big, Off: 1 << 20, Data: []byte("end")})
		e.must(&proto.SetAttr{ID: big, Mask: proto.SetSize, Size: 0})
		lsn := e.must(&proto.Remove{Dir: d, Name: "f"}).LSN
		rep, err := e.Verify(context.Background(), true)
		require.NoError(t, err)
		require.Empty(t, rep.Problems)
		u, err := e.Usage()
		require.NoError(t, err)
		require.Equal(t, uint64(2), u.GraveFiles)
		require.Equal(t, e.Last(), u.Newest)
		require.Equal(t, proto.LSN(1), u.Oldest)
		require.NotZero(t, u.OldestTime)

		require.NoError(t, e.tree.grave.Remove(graveName(lsn)))
		rep, err = e.Verify(context.Background(), true)
		require.NoError(t, err)
		require.Len(t, rep.Problems, 1)
		require.Contains(t, rep.Problems[0], graveName(lsn))
		rep, err = e.Verify(context.Background(), false)
		require.NoError(t, err)
		require.Empty(t, rep.Problems)
	})
}

func TestMergeBefore(t *testing.T) {
	r := func(lsn proto.LSN, from, to int64) before {
		return before{from: from, to: to, kind: beforeImage, lsn: lsn, img: from}
	}
	tests := []struct {
		name         string
		first, later []before
		want         []before
	}{
		{"nothing", nil, nil, nil},
		{"apart", []before{r(1, 10, 20)}, []before{r(2, 0, 5), r(2, 30, 40)}, []before{r(2, 0, 5), r(1, 10, 20), r(2, 30, 40)}},
		{"covered", []before{r(1, 0, 20)}, []before{r(2, 5, 10)}, []before{r(1, 0, 20)}},
		{"around", []before{r(1, 5, 10), r(1, 15, 20)}, []before{r(2, 0, 30)},
			[]before{r(2, 0, 5), r(1, 5, 10), r(2, 10, 15), r(1, 15, 20), r(2, 20, 30)}},
		{"edges", []before{r(1, 5, 10)}, []before{r(2, 0, 5), r(2, 10, 12)}, []before{r(2, 0, 5), r(1, 5, 10), r(2, 10, 12)}},
		{"overlapping ends", []before{r(1, 5, 10), r(1, 20, 30)}, []before{r(2, 8, 25)}, []before{r(1, 5, 10), r(2, 10, 20), r(1, 20, 30)}},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			require.Equal(t, test.want, mergeBefore(test.first, test.later))
		})
	}
}

func TestTargets(t *testing.T) {
	text := FormatTargets([][2]proto.LSN{{3, 3}, {5, 9}, {12, 12}})
	require.Equal(t, "@3 @5..@9 @12", text)
	u := txn{targets: parseTargets(text)}
	for lsn, want := range map[proto.LSN]bool{2: false, 3: true, 4: false, 5: true, 9: true, 10: false, 12: true, 13: false} {
		require.Equal(t, want, u.contains(lsn), "%d", lsn)
	}
	require.Empty(t, parseTargets("to @7: d"))
}

// A deep tree is listed in time that does not grow with each entry's depth, and its long
// paths take no more memory than an answer may: the rest comes with the next.
func TestEntriesOfADeepTree(t *testing.T) {
	for _, c := range []struct{ depth, name int }{{1500, 1}, {300, 255}} {
		t.Run(fmt.Sprint(c.depth), func(t *testing.T) {
			e, _ := openOn(t, vfs.NewMem(1))
			name := strings.Repeat("n", c.name)
			dirs := []proto.FileID{proto.RootID}
			for range c.depth {
				dirs = append(dirs, e.make(dirs[len(dirs)-1], name, proto.ModeDir|0o755))
			}
			bottom := dirs[c.depth]
			e.must(&proto.Rename{Dir: proto.RootID, Name: name, NewDir: proto.RootID, NewName: "top"})
			e.file(bottom, "f", "x")
			want := []string{strings.Repeat(name+"/", c.depth) + "f"}
			want[0] = "top" + want[0][c.name:]
			want = append(want, want[0], name) // write, make, and the rename
			for depth := c.depth; depth > 0; depth-- {
				want = append(want, strings.Repeat("/"+name, depth)[1:])
			}
			for _, scope := range []string{"", "top"} {
				var got []string
				began := time.Now()
				for q := (Query{Path: scope, Limit: 1024}); ; {
					list, err := e.Entries(q)
					require.NoError(t, err)
					size := 0
					for _, x := range list.Entries {
						got, size = append(got, x.Path), size+len(x.Path)+len(x.NewPath)
					}
					require.LessOrEqual(t, size, maxEntryBytes+2*proto.MaxPath)
					if !list.More {
						break
					}
					q.Before = list.Entries[len(list.Entries)-1].LSN
				}
				require.Less(t, time.Since(began), 10*time.Second)
				require.Len(t, got, len(want))
				for i := range want {
					require.Equal(t, want[i][:min(len(want[i]), proto.MaxPath)], got[i], "%d", i)
				}
			}
			require.NoError(t, e.Close())
		})
	}
}

// What an entry costs depends neither on how deep its file is nor on how often the
// directories above it, or the file itself, got other names later: each record of a
// name is looked at a few times in a query, not once for each entry.
func TestEntriesLookAtEachNameOnce(t *testing.T) {
	const rounds = 300
	for _, depth := range []int{1, 40} {
		t.Run(fmt.Sprint(depth), func(t *testing.T) {
			e, _ := openOn(t, vfs.NewMem(1))
			dir := proto.RootID
			for range depth {
				dir = e.make(dir, "d", proto.ModeDir|0o755)
			}
			f := e.file(dir, "f", "")
			top, name, below := "d", "f", strings.Repeat("d/", depth-1)
			var want []string // of the writes, oldest first
			for i := range rounds {
				e.must(&proto.Write{ID: f, Data: []byte("x")})
				want = append(want, top+"/"+below+name)
				next := fmt.Sprint("d", i)
				e.must(&proto.Rename{Dir: proto.RootID, Name: top, NewDir: proto.RootID, NewName: next})
				top = next
				e.must(&proto.Write{ID: f, Data: []byte("y")})
				want = append(want, top+"/"+below+name)
				next = fmt.Sprint("f", i)
				e.must(&proto.Rename{Dir: dir, Name: name, NewDir: dir, NewName: next})
				name = next
			}
			records := 2*rounds + depth + 1 // of names
			for _, scope := range []proto.FileID{0, dir} {
				l := lister{j: e.Journal, oldest: e.oldest(), scope: scope, paths: newPaths(e.Journal, scope)}
				more, err := l.all()
				require.NoError(t, err)
				require.False(t, more)
				var got []string
				for _, x := range l.out {
					if x.Kind == "write" {
						got = append([]string{x.Path}, got...)
					}
				}
				require.Equal(t, want, got)
				require.LessOrEqual(t, l.paths.looked, 3*records)
			}
			require.NoError(t, e.Close())
		})
	}
}

// What is kept of a file's names changes no answer, in whatever order moments are asked for.
func TestPlacesKeptAreTheSame(t *testing.T) {
	rnd := rand.New(rand.NewPCG(1, 2))
	e, _ := openOn(t, vfs.NewMem(1))
	dirs := []proto.FileID{proto.RootID, e.make(proto.RootID, "a", proto.ModeDir|0o755), e.make(proto.RootID, "b", proto.ModeDir|0o755)}
	ids := []proto.FileID{e.file(proto.RootID, "0", ""), e.file(proto.RootID, "1", "")}
	for range 400 { // many fail, by what is there then
		dir, to := dirs[rnd.IntN(3)], dirs[rnd.IntN(3)]
		name, next := fmt.Sprint(rnd.IntN(4)), fmt.Sprint(rnd.IntN(4))
		switch rnd.IntN(4) {
		case 0:
			e.do(&proto.Link{ID: ids[rnd.IntN(2)], Dir: dir, Name: name})
		case 1:
			e.do(&proto.Remove{Dir: dir, Name: name})
		default:
			e.do(&proto.Rename{Dir: dir, Name: name, NewDir: to, NewName: next})
		}
	}
	for order := range 2 {
		kept, several := newPaths(e.Journal, 0), 0
		top := e.appliedLSN()
		for i := range top {
			at := top - i
			if order == 1 {
				at = proto.LSN(rnd.Int64N(int64(top))) + 1
			}
			for _, id := range ids {
				want, err := newPaths(e.Journal, 0).places(id, at)
				require.NoError(t, err)
				got, err := kept.places(id, at)
				require.NoError(t, err)
				require.ElementsMatch(t, want, got, "%v at %d", id, at)
				if len(want) > 1 {
					several++
				}
			}
		}
		require.NotZero(t, several)
	}
	require.NoError(t, e.Close())
}

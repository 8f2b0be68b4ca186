package replay

import (
	"context"
	"fmt"
	"math/rand/v2"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"cagefs.dev/cage/journal"
	"cagefs.dev/cage/journal/vfs"
	"cagefs.dev/cage/remote/proto"
	"cagefs.dev/cage/remote/status"
)

func actions(steps []proto.PlanStep) string {
	var out []string
	for _, s := range steps {
		line := s.Action + " " + s.Path
		if s.From != "" {
			line += " from " + s.From
		}
		out = append(out, line)
	}
	return strings.Join(out, "; ")
}

func TestRollback(t *testing.T) {
	tests := []struct {
		name   string
		before func(e *export) // the moment is after it
		after  func(e *export)
		op     proto.Rollback
		plan   string
		want   func(t *testing.T, e *export, was, now state)
	}{
		{
			name:   "one file of a tree",
			before: func(e *export) { e.mkdir("d"); e.write("d/a", "one"); e.write("d/b", "two") },
			after:  func(e *export) { e.write("d/a", "ONE"); e.write("d/b", "TWO") },
			op:     proto.Rollback{Paths: []string{"d/a"}},
			plan:   "content d/a",
			want: func(t *testing.T, e *export, was, now state) {
				require.Equal(t, was["/d/a"], e.look()["/d/a"])
				require.Equal(t, now["/d/b"], e.look()["/d/b"])
			},
		},
		{
			name:   "newer files stay",
			before: func(e *export) { e.mkdir("d"); e.write("d/a", "one") },
			after:  func(e *export) { e.rm("d/a"); e.write("d/new", "new"); e.mkdir("d/nd"); e.write("d/nd/x", "x") },
			op:     proto.Rollback{Paths: []string{"d"}, New: proto.NewKeep},
			plan:   "restore d/a",
			want: func(t *testing.T, e *export, was, now state) {
				require.Equal(t, was["/d/a"], e.look()["/d/a"])
				require.Equal(t, now["/d/new"], e.look()["/d/new"])
				require.Equal(t, now["/d/nd/x"], e.look()["/d/nd/x"])
			},
		},
		{
			name:   "a file in a newer directory comes back, the directory stays",
			before: func(e *export) { e.write("a", "one") },
			after:  func(e *export) { e.mkdir("nd"); e.mv("a", "nd/a"); e.write("nd/b", "new") },
			op:     proto.Rollback{Paths: []string{""}, New: proto.NewKeep},
			plan:   "move a from nd/a",
			want: func(t *testing.T, e *export, was, now state) {
				require.Equal(t, was["/a"], e.look()["/a"])
				require.Equal(t, now["/nd/b"], e.look()["/nd/b"])
				require.NotContains(t, e.look(), "/nd/a")
			},
		},
		{
			name:   "a newer directory goes as a whole",
			before: func(e *export) { e.write("a", "one") },
			after:  func(e *export) { e.mkdir("nd"); e.mkdir("nd/s"); e.write("nd/s/x", "x"); e.write("nd/y", "y") },
			op:     proto.Rollback{Paths: []string{"."}},
			plan:   "remove nd",
			want:   func(t *testing.T, e *export, was, now state) { require.Equal(t, was, e.look()) },
		},
		{
			name: "moved out of the scope: a copy, the other place untouched",
			before: func(e *export) {
				e.mkdir("d")
				e.write("d/a", "one")
				e.must(&proto.SetXattr{ID: e.find("d/a").ID, Name: "user.k", Value: []byte("v")})
			},
			after: func(e *export) { e.mv("d/a", "out"); e.write("out", "changed outside") },
			op:    proto.Rollback{Paths: []string{"d"}},
			plan:  "copy d/a from out",
			want: func(t *testing.T, e *export, was, now state) {
				require.Equal(t, "one", e.content("d/a"))
				require.Equal(t, now["/out"], e.look()["/out"])
				require.NotEqual(t, e.find("out").ID, e.find("d/a").ID)
				require.Contains(t, e.look()["/d/a"], "user.k=v")
				require.Equal(t, was["/d/"], e.look()["/d/"])
			},
		},
		{
			name: "a tree moved out of the scope",
			before: func(e *export) {
				e.mkdir("d")
				e.mkdir("d/t")
				e.mkdir("d/t/s")
				e.write("d/t/a", "one")
				e.write("d/t/s/b", "two")
				e.ln("d/t/a", "d/t/l")
			},
			after: func(e *export) { e.mv("d/t", "out"); e.rm("out/s/b"); e.write("out/new", "new") },
			op:    proto.Rollback{Paths: []string{"d"}},
			plan:  "copy d/t from out; copy d/t/a from out/a; restore d/t/l; copy d/t/s from out/s; restore d/t/s/b",
			want: func(t *testing.T, e *export, was, now state) {
				require.Equal(t, "one", e.content("d/t/a"))
				require.Equal(t, "two", e.content("d/t/s/b"))
				require.Equal(t, e.find("d/t/a").ID, e.find("d/t/l").ID)
				require.Equal(t, now["/out/a"], e.look()["/out/a"])
				require.Equal(t, now["/out/new"], e.look()["/out/new"])
				require.NotContains(t, e.look(), "/d/t/new")
			},
		},
		{
			name:   "moved in from outside",
			before: func(e *export) { e.mkdir("d"); e.write("x", "one") },
			after:  func(e *export) { e.mv("x", "d/x") },
			op:     proto.Rollback{Paths: []string{"d"}},
			plan:   "remove d/x",
			want:   func(t *testing.T, e *export, was, now state) { require.Equal(t, was["/d/"], e.look()["/d/"]) },
		},
		{
			name:   "hard link within the scope",
			before: func(e *export) { e.write("a", "one"); e.ln("a", "b") },
			after:  func(e *export) { e.rm("b"); e.write("a", "ONE, and more") },
			op:     proto.Rollback{Paths: []string{""}},
			plan:   "restore b; content a",
			want:   func(t *testing.T, e *export, was, now state) { require.Equal(t, was, e.look()) },
		},
		{
			name:   "the directory of the path is gone",
			before: func(e *export) { e.mkdir("d"); e.mkdir("d/e"); e.write("d/e/a", "one"); e.write("d/e/b", "two") },
			after:  func(e *export) { e.rm("d/e/a"); e.rm("d/e/b"); e.rm("d/e"); e.rm("d") },
			op:     proto.Rollback{Paths: []string{"d/e/a"}},
			plan:   "restore d; restore d/e; restore d/e/a",
			want: func(t *testing.T, e *export, was, now state) {
				require.Equal(t, "one", e.content("d/e/a"))
				require.NotContains(t, e.look(), "/d/e/b")
			},
		},
		{
			name:   "the directory of the path was renamed",
			before: func(e *export) { e.mkdir("d"); e.write("d/a", "one"); e.write("d/b", "two") },
			after:  func(e *export) { e.mv("d", "e") },
			op:     proto.Rollback{Paths: []string{"d/a"}},
			plan:   "copy d from e; copy d/a from e/a",
			want: func(t *testing.T, e *export, was, now state) {
				require.Equal(t, "one", e.content("d/a"))
				require.Equal(t, now["/e/b"], e.look()["/e/b"])
				require.NotContains(t, e.look(), "/d/b")
			},
		},
		{
			name: "a large file cut, overwritten and with holes",
			before: func(e *export) {
				id := e.write("a", strings.Repeat("0123456789abcdef", 300_000/16))
				for off := uint64(300_000); off < 3_000_000; off += 500_000 {
					e.must(&proto.Write{ID: id, Off: off, Data: []byte(strings.Repeat("x", 400_000))})
				}
			},
			after: func(e *export) {
				id := e.find("a").ID
				e.must(&proto.SetAttr{ID: id, Mask: proto.SetSize, Size: 100})
				e.must(&proto.Write{ID: id, Off: 2_500_000, Data: []byte("tail")})
				e.must(&proto.Write{ID: id, Off: 720_000, Data: []byte(strings.Repeat("y", 20_000))})
			},
			op:   proto.Rollback{Paths: []string{"a"}},
			plan: "content a",
			want: func(t *testing.T, e *export, was, now state) { require.Equal(t, was["/a"], e.look()["/a"]) },
		},
		{
			name:   "nothing to do",
			before: func(e *export) { e.write("a", "one") },
			after:  func(e *export) { e.write("b", "two") },
			op:     proto.Rollback{Paths: []string{"a"}},
			want:   func(t *testing.T, e *export, was, now state) { require.Equal(t, now, e.look()) },
		},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			e := openExport(t, vfs.NewMem(1))
			test.before(e)
			was := e.look()
			test.op.To = e.Last()
			test.after(e)
			now := e.look()

			dry := test.op
			dry.DryRun = true
			plan := e.must(&dry).Plan
			require.Equal(t, now, e.look(), "a dry run changes nothing")
			require.Equal(t, test.plan, actions(plan))
			res := e.must(&test.op)
			require.Equal(t, plan, res.Plan, "the plan is what is done")
			test.want(t, e, was, now)
			after := e.look()
			require.Equal(t, after, e.crash().look())
			if res.LSN == 0 {
				return
			}
			e.must(&proto.Undo{})
			require.Equal(t, now, e.look(), "undone")
			e.must(&proto.Undo{Redo: true})
			require.Equal(t, after, e.look(), "redone")
		})
	}
}

func TestRollbackRefuses(t *testing.T) {
	e := openExport(t, vfs.NewMem(1))
	e.mkdir("d")
	e.write("d/a", "one")
	e.ln("d/a", "outside")
	to := e.Last()
	e.write("d/a", "ONE")
	now := e.look()
	_, err := e.do(&proto.Rollback{Paths: []string{"never/was"}, To: to})
	require.Equal(t, status.NotFound, status.Of(err))
	require.ErrorContains(t, err, "never/was")
	_, err = e.do(&proto.Rollback{Paths: []string{"d"}, To: e.Last() + 1000})
	require.Equal(t, status.NoMoment, status.Of(err))
	res, err := e.do(&proto.Rollback{Paths: []string{"d"}, To: to})
	require.Equal(t, status.Conflict, status.Of(err))
	require.ErrorContains(t, err, "outside")
	require.Equal(t, "conflict d/a from outside", actions(res.Plan))
	require.Equal(t, now, e.look())
	require.Equal(t, now, e.crash().look(), "an abandoned transaction never happened")
	e.must(&proto.Rollback{Paths: []string{"d", "outside"}, To: to})
	require.Equal(t, "one", e.content("outside"))
}

func TestUndo(t *testing.T) {
	tests := []struct {
		name     string
		do       func(e *export) []proto.LSN // what is taken back
		conflict string
		want     func(t *testing.T, e *export)
	}{
		{
			name: "a removal",
			do:   func(e *export) []proto.LSN { e.write("a", "one"); return []proto.LSN{e.rm("a")} },
			want: func(t *testing.T, e *export) { require.Equal(t, "one", e.content("a")) },
		},
		{
			name: "a removal whose name is taken",
			do: func(e *export) []proto.LSN {
				e.write("a", "one")
				lsn := e.rm("a")
				e.write("a", "two")
				return []proto.LSN{lsn}
			},
			conflict: "conflict a",
		},
		{
			name: "a removal whose directory is gone",
			do: func(e *export) []proto.LSN {
				e.mkdir("d")
				e.write("d/a", "one")
				lsn := e.rm("d/a")
				e.rm("d")
				return []proto.LSN{lsn}
			},
			conflict: "conflict (removed)/a",
		},
		{
			name: "an overwrite, with a later one elsewhere in the file",
			do: func(e *export) []proto.LSN {
				id := e.write("a", "0123456789")
				lsn := e.must(&proto.Write{ID: id, Off: 2, Data: []byte("XX")}).LSN
				e.must(&proto.Write{ID: id, Off: 6, Data: []byte("YY")})
				return []proto.LSN{lsn}
			},
			want: func(t *testing.T, e *export) { require.Equal(t, "012345YY89", e.content("a")) },
		},
		{
			name: "an allocation, which gives the size back",
			do: func(e *export) []proto.LSN {
				id := e.write("a", "0123456789")
				return []proto.LSN{e.must(&proto.Allocate{ID: id, Off: 5, Len: 9000}).LSN}
			},
			want: func(t *testing.T, e *export) { require.Equal(t, "0123456789", e.content("a")) },
		},
		{
			name: "an allocation of a file written to since",
			do: func(e *export) []proto.LSN {
				id := e.write("a", "0123456789")
				lsn := e.must(&proto.Allocate{ID: id, Len: 9000}).LSN
				e.must(&proto.Write{ID: id, Off: 3, Data: []byte("YY")})
				return []proto.LSN{lsn}
			},
			want: func(t *testing.T, e *export) { require.Equal(t, "012YY56789", e.content("a")) },
		},
		{
			name: "a hole that was written into",
			do: func(e *export) []proto.LSN {
				id := e.write("a", "0123456789")
				lsn := e.must(&proto.Allocate{ID: id, Mode: proto.AllocPunchHole | proto.AllocKeepSize, Off: 2, Len: 3}).LSN
				e.must(&proto.Write{ID: id, Off: 4, Data: []byte("YY")})
				return []proto.LSN{lsn}
			},
			conflict: "conflict a",
		},
		{
			name: "an overwrite that was overwritten",
			do: func(e *export) []proto.LSN {
				id := e.write("a", "0123456789")
				lsn := e.must(&proto.Write{ID: id, Off: 2, Data: []byte("XX")}).LSN
				e.must(&proto.Write{ID: id, Off: 3, Data: []byte("YY")})
				return []proto.LSN{lsn}
			},
			conflict: "conflict a",
		},
		{
			name: "an overwrite that was overwritten, by a change taken back since",
			do: func(e *export) []proto.LSN {
				id := e.write("a", "0123456789")
				lsn := e.must(&proto.Write{ID: id, Off: 2, Data: []byte("XX")}).LSN
				e.later()
				e.must(&proto.Write{ID: id, Off: 3, Data: []byte("YY")})
				e.must(&proto.Undo{})
				return []proto.LSN{lsn}
			},
			want: func(t *testing.T, e *export) { require.Equal(t, "0123456789", e.content("a")) },
		},
		{
			name: "an appended piece, with a later one behind it",
			do: func(e *export) []proto.LSN {
				id := e.write("a", "0123456789")
				lsn := e.must(&proto.Write{ID: id, Off: 10, Data: []byte("XX")}).LSN
				e.must(&proto.Write{ID: id, Off: 12, Data: []byte("YY")})
				return []proto.LSN{lsn}
			},
			conflict: "conflict a",
		},
		{
			name: "a new file that was written to since",
			do: func(e *export) []proto.LSN {
				lsn := e.must(&proto.Make{Dir: proto.RootID, Name: "a", Mode: proto.ModeRegular | 0o600}).LSN
				e.write("a", "one")
				return []proto.LSN{lsn}
			},
			conflict: "conflict a",
		},
		{
			name: "a new directory with something in it",
			do: func(e *export) []proto.LSN {
				lsn := e.must(&proto.Make{Dir: proto.RootID, Name: "d", Mode: proto.ModeDir | 0o700}).LSN
				e.write("d/a", "one")
				return []proto.LSN{lsn}
			},
			conflict: "conflict d/a",
		},
		{
			name: "a replacing rename",
			do: func(e *export) []proto.LSN {
				e.write("a", "one")
				e.write("b", "two")
				return []proto.LSN{e.mv("a", "b")}
			},
			want: func(t *testing.T, e *export) {
				require.Equal(t, "one", e.content("a"))
				require.Equal(t, "two", e.content("b"))
			},
		},
		{
			name: "a rename of what was written to since",
			do: func(e *export) []proto.LSN {
				e.write("a", "one")
				lsn := e.mv("a", "b")
				e.write("b", "two")
				return []proto.LSN{lsn}
			},
			want: func(t *testing.T, e *export) { require.Equal(t, "two", e.content("a")) },
		},
		{
			name: "a mode, with a later owner",
			do: func(e *export) []proto.LSN {
				id := e.write("a", "one")
				lsn := e.must(&proto.SetAttr{ID: id, Mask: proto.SetMode, Mode: 0o600}).LSN
				e.must(&proto.SetAttr{ID: id, Mask: proto.SetGID, GID: 7})
				return []proto.LSN{lsn}
			},
			want: func(t *testing.T, e *export) {
				a := e.find("a")
				require.Equal(t, uint32(0o644), a.Mode&0o777)
				require.Equal(t, uint32(7), a.GID)
			},
		},
		{
			name: "an attribute",
			do: func(e *export) []proto.LSN {
				id := e.write("a", "one")
				e.must(&proto.SetXattr{ID: id, Name: "user.k", Value: []byte("1")})
				lsn := e.must(&proto.SetXattr{ID: id, Name: "user.k", Value: []byte("2")}).LSN
				e.must(&proto.SetXattr{ID: id, Name: "user.other", Value: []byte("3")})
				return []proto.LSN{lsn}
			},
			want: func(t *testing.T, e *export) {
				v, err := e.GetXattr(e.find("a").ID, "user.k")
				require.NoError(t, err)
				require.Equal(t, "1", string(v))
			},
		},
		{
			name: "several, of which one is in the way of another",
			do: func(e *export) []proto.LSN {
				e.write("a", "one")
				first := e.rm("a")
				second := e.must(&proto.Make{Dir: proto.RootID, Name: "a", Mode: proto.ModeRegular | 0o600}).LSN
				return []proto.LSN{second, first}
			},
			want: func(t *testing.T, e *export) { require.Equal(t, "one", e.content("a")) },
		},
		{
			name: "what is taken back already",
			do: func(e *export) []proto.LSN {
				e.write("a", "one")
				e.later()
				lsn := e.rm("a")
				e.must(&proto.Undo{LSNs: []proto.LSN{lsn}})
				return []proto.LSN{lsn}
			},
			conflict: "conflict @",
		},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			e := openExport(t, vfs.NewMem(1))
			lsns := test.do(e)
			now := e.look()
			res, err := e.do(&proto.Undo{LSNs: lsns})
			if test.conflict != "" {
				require.Equal(t, status.Conflict, status.Of(err), "%v", err)
				require.Contains(t, actions(res.Plan), test.conflict)
				require.Equal(t, now, e.look())
				return
			}
			require.NoError(t, err, "%v", res.Plan)
			test.want(t, e)
			after := e.look()
			redo := e.must(&proto.Undo{Redo: true})
			require.Equal(t, now, e.look(), "redone")
			e.must(&proto.Undo{LSNs: []proto.LSN{redo.LSN}})
			require.Equal(t, after, e.look(), "undone again")
		})
	}
}

// TestUndoGoesBack undoes by groups: what one process group did without a pause.
func TestUndoGoesBack(t *testing.T) {
	e := openExport(t, vfs.NewMem(1))
	e.mkdir("d")
	states := []state{e.look()}
	act := func(f func()) {
		e.later()
		f()
		states = append(states, e.look())
	}
	act(func() { e.write("d/a", "one"); e.write("d/b", "two") })
	act(func() { e.ident.PGID = 2; e.write("d/a", "ONE") })
	to := e.Last()
	act(func() { e.rm("d/b"); e.mv("d/a", "c") })
	act(func() { e.must(&proto.Rollback{Paths: []string{""}, To: to}) })

	for i := 3; i >= 0; i-- {
		if i == 1 {
			e = e.crash() // what is undone is in the journal
			e.ident.PGID = 9
		}
		e.later()
		e.must(&proto.Undo{})
		require.Equal(t, states[i], e.look(), "undone to %d", i)
	}
	for i := 1; i <= 4; i++ {
		e.later()
		e.must(&proto.Undo{Redo: true})
		require.Equal(t, states[i], e.look(), "redone to %d", i)
	}
	_, err := e.do(&proto.Undo{Redo: true})
	require.Equal(t, status.NotFound, status.Of(err))
	e.must(&proto.Undo{})
	require.Equal(t, states[3], e.look())

	e.ident.UID = 1000
	_, err = e.do(&proto.Undo{})
	require.Equal(t, status.NotFound, status.Of(err), "another user has done nothing")
}

func TestUndoUnderPath(t *testing.T) {
	e := openExport(t, vfs.NewMem(1))
	e.mkdir("d")
	e.write("d/a", "one")
	e.write("x", "one")
	e.later()
	e.write("d/a", "two")
	e.later()
	e.write("x", "two")
	e.must(&proto.Undo{Path: "d"})
	require.Equal(t, "one", e.content("d/a"))
	require.Equal(t, "two", e.content("x"))
	_, err := e.do(&proto.Undo{Path: "nowhere"})
	require.Equal(t, status.NotFound, status.Of(err))
	_, err = e.do(&proto.Undo{LSNs: []proto.LSN{1}})
	require.Equal(t, status.Invalid, status.Of(err))
}

// TestEntriesShowWhatWasUndone reads the history of undos.
func TestEntriesShowWhatWasUndone(t *testing.T) {
	e := openExport(t, vfs.NewMem(1))
	e.write("a", "one")
	e.later()
	rm := e.rm("a")
	undo := e.must(&proto.Undo{}).LSN
	undone := func() (byRm, byUndo proto.LSN) {
		list, err := e.Entries(journal.Query{})
		require.NoError(t, err)
		for _, x := range list.Entries {
			switch x.LSN {
			case rm:
				byRm = x.Undone
			case undo:
				byUndo = x.Undone
				require.Equal(t, "undo", x.Kind)
				require.Equal(t, fmt.Sprintf("@%d", rm), x.Detail)
				require.NotZero(t, x.Records)
			}
		}
		return byRm, byUndo
	}
	a, b := undone()
	require.Equal(t, undo, a)
	require.Zero(t, b)
	redo := e.must(&proto.Undo{Redo: true}).LSN
	a, b = undone()
	require.Zero(t, a, "it stands again")
	require.Equal(t, redo, b)
	e = e.crash()
	a, b = undone()
	require.Zero(t, a)
	require.Equal(t, redo, b)
}

// TestManyFiles rolls the removal of a large tree back, record by record.
func TestManyFiles(t *testing.T) {
	files := 600
	e := openExport(t, vfs.NewMem(1))
	rng := rand.New(rand.NewPCG(1, 1))
	var tree []string
	e.mkdir("t")
	for d := range files / 20 {
		dir := fmt.Sprintf("t/d%d", d)
		e.mkdir(dir)
		for f := range 20 {
			e.write(fmt.Sprintf("%s/f%d", dir, f), fmt.Sprint(rng.Int()))
			tree = append(tree, fmt.Sprintf("%s/f%d", dir, f))
		}
		tree = append(tree, dir)
	}
	was, to := e.look(), e.Last()
	for _, p := range append(tree, "t") {
		e.rm(p)
	}
	res, err := Rollback(context.Background(), e.Journal, e.sub(&proto.Rollback{}), &proto.Rollback{Paths: []string{"t"}, To: to})
	require.NoError(t, err)
	require.Equal(t, was["/t/d7/f3"], e.look()["/t/d7/f3"])
	require.Len(t, e.look(), len(was))
	e.must(&proto.Undo{LSNs: []proto.LSN{res.LSN}})
	require.Len(t, e.look(), 1)
	e.must(&proto.Undo{Redo: true})
	require.Len(t, e.look(), len(was))
}

// TestRepeatedUndo sends one operation twice, as after a lost connection.
func TestRepeatedUndo(t *testing.T) {
	e := openExport(t, vfs.NewMem(1))
	e.write("a", "one")
	first := e.must(&proto.Undo{})
	was := e.look()
	for range 2 {
		e.seq--
		again := e.must(&proto.Undo{})
		require.Equal(t, first.LSN, again.LSN)
		require.Equal(t, was, e.look())
		e = e.crash()
	}
	_, err := e.do(&proto.Undo{})
	require.Equal(t, status.NotFound, status.Of(err), "there was nothing else")
}

// TestUndoInASessionOfItsOwn: each run of a tool is a session whose first operation is number 1.
func TestUndoInASessionOfItsOwn(t *testing.T) {
	e := openExport(t, vfs.NewMem(1))
	e.write("a", "one")
	was, to := e.look(), e.Last()
	e.write("a", "two")
	now := e.look()
	alone := func(session proto.SessionID, op proto.Op) (proto.Result, error) {
		require.NoError(t, e.OpenSession(session, e.client, "tool"))
		s := e.sub(op)
		s.Session, s.Seq, s.Acked = session, 1, 0
		switch op := op.(type) {
		case *proto.Rollback:
			return Rollback(t.Context(), e.Journal, s, op)
		default:
			return Undo(t.Context(), e.Journal, s, op.(*proto.Undo))
		}
	}
	_, err := alone(801, &proto.Rollback{Paths: []string{""}, To: to})
	require.NoError(t, err)
	require.Equal(t, was, e.look())
	_, err = alone(802, &proto.Undo{})
	require.NoError(t, err)
	require.Equal(t, now, e.look(), "the rollback was the newest change")
}

// TestNothingIsMadeBelowARemovedTree: a client may still know the numbers of its directories.
func TestNothingIsMadeBelowARemovedTree(t *testing.T) {
	e := openExport(t, vfs.NewMem(1))
	to := e.must(&proto.Label{Name: "empty"}).LSN
	e.mkdir("d")
	below := e.mkdir("d/below")
	e.must(&proto.Rollback{Paths: []string{""}, To: to})
	_, err := e.do(&proto.Make{Dir: below, Name: "f", Mode: proto.ModeRegular})
	require.Equal(t, status.NotFound, status.Of(err))
	require.Empty(t, e.look()["/d"])
}

// What is taken back of a file of a terabyte of holes costs what there are data.
func TestUndoInASparseFile(t *testing.T) {
	const far = 1 << 40
	for name, op := range map[string]func(id proto.FileID) proto.Op{
		"a hole": func(id proto.FileID) proto.Op {
			return &proto.Allocate{ID: id, Mode: proto.AllocPunchHole | proto.AllocKeepSize, Off: 3, Len: far}
		},
		"a truncation": func(id proto.FileID) proto.Op {
			return &proto.SetAttr{ID: id, Mask: proto.SetSize, Size: 1}
		},
		"a removal of its end": func(id proto.FileID) proto.Op {
			return &proto.Write{ID: id, Off: 2 * far, Data: []byte("farther")}
		},
	} {
		t.Run(name, func(t *testing.T) {
			e := openExport(t, vfs.NewMem(1))
			id := e.write("a", "0123456789")
			e.must(&proto.Write{ID: id, Off: far, Data: []byte("far")})
			e.later()
			lsn := e.must(op(id)).LSN
			before := e.Last()
			e.must(&proto.Undo{LSNs: []proto.LSN{lsn}})
			require.Less(t, e.Last()-before, proto.LSN(20))
			got := make([]byte, 10)
			_, err := e.ReadAt(id, got, 0)
			require.NoError(t, err)
			require.Equal(t, "0123456789", string(got))
			_, err = e.ReadAt(id, got[:3], far)
			require.NoError(t, err)
			require.Equal(t, "far", string(got[:3]))
			require.EqualValues(t, far+3, e.find("a").Size)
			require.NoError(t, e.Close())
		})
	}
}

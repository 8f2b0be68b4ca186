package replay

import (
	"context"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"cagefs.dev/cage/journal"
	"cagefs.dev/cage/journal/vfs"
	"cagefs.dev/cage/remote/proto"
	"cagefs.dev/cage/remote/status"
)

const awaySession = proto.SessionID(0xabc)

// away is a client that had the write lease of all files until now, and was away when it was taken.
type away struct {
	*export
	seq proto.Seq
}

func (e *export) away() *away {
	e.t.Helper()
	n, err := e.Client("laptop")
	require.NoError(e.t, err)
	require.NoError(e.t, e.OpenSession(awaySession, n, "key"))
	require.NoError(e.t, e.SetLeases(awaySession))
	require.NoError(e.t, e.NoLeases(awaySession))
	return &away{export: e}
}

// wrote is what it had told a program of.
func (a *away) wrote(w *proto.Write) {
	a.t.Helper()
	a.seq++
	w.Lost = true
	s := &journal.Submission{Trusted: true, Client: 2, Change: &proto.Change{Session: awaySession, Seq: a.seq, Ident: proto.Ident{UID: 1000}, Op: w}, Opened: true}
	_, err := a.Strand(context.Background(), s, w, false)
	require.NoError(a.t, err)
}

func (e *export) branch(op proto.Branch) (proto.Result, error) {
	op.Session = awaySession
	return Branch(context.Background(), e.Journal, e.sub(&op), &op)
}

// A branch is applied whole, in one transaction that can be undone, and is gone then.
func TestBranch(t *testing.T) {
	e := openExport(t, vfs.NewMem(1))
	_, err := e.branch(proto.Branch{})
	require.Equal(t, status.NotFound, status.Of(err))
	f, g := e.write("f", "0123456789"), e.write("g", "short")
	e.must(&proto.SetAttr{ID: g, Mask: proto.SetMode, Mode: 0o4755})
	a := e.away()
	a.wrote(&proto.Write{ID: f, Off: 2, Data: []byte("ABC")})
	a.wrote(&proto.Write{ID: f, Off: 4, Data: []byte("xy")})
	a.wrote(&proto.Write{ID: g, Off: 10, Data: []byte("long")})
	a.wrote(&proto.Write{ID: g, Off: 14, Append: true, Data: []byte(" end")})
	a.wrote(&proto.Write{ID: f, Off: 20, Data: []byte("far")})

	before := e.Last()
	r, err := e.branch(proto.Branch{DryRun: true})
	require.NoError(t, err)
	require.Len(t, r.Plan, 2)
	require.Equal(t, before, e.Last())
	require.Equal(t, "0123456789", e.content("f"))

	e.later()
	r, err = e.branch(proto.Branch{})
	require.NoError(t, err, "%v", r.Plan)
	require.Equal(t, "01ABxy6789"+strings.Repeat("\x00", 10)+"far", e.content("f"))
	require.Equal(t, "short\x00\x00\x00\x00\x00long end", e.content("g"))
	require.Zero(t, e.find("g").Mode&proto.ModeSetuid, "another user's bytes")
	_, err = e.branch(proto.Branch{})
	require.Equal(t, status.NotFound, status.Of(err))
	list, err := e.Entries(journal.Query{LSN: r.LSN, Limit: 1})
	require.NoError(t, err)
	require.Equal(t, journal.KindBranch, list.Entries[0].Kind)
	require.Contains(t, list.Entries[0].Detail, "of laptop")

	e.later()
	e.must(&proto.Undo{})
	require.Equal(t, "0123456789", e.content("f"))
	require.Equal(t, "short", e.content("g"))
	require.NotZero(t, e.find("g").Mode&proto.ModeSetuid)
	e.later()
	e.must(&proto.Undo{Redo: true})
	require.Equal(t, "short\x00\x00\x00\x00\x00long end", e.content("g"))
}

// What others did meanwhile is not written over unless that is asked for; nothing is done by halves.
func TestBranchConflict(t *testing.T) {
	e := openExport(t, vfs.NewMem(1))
	f, g, log, gone := e.write("f", "old"), e.write("g", "old"), e.write("log", "line\n"), e.write("gone", "old")
	a := e.away()
	e.write("f", "new")
	e.must(&proto.Write{ID: log, Append: true, Off: 5, Data: []byte("theirs\n")})
	e.must(&proto.Remove{Dir: proto.RootID, Name: "gone"})
	for _, id := range []proto.FileID{f, g, gone} {
		a.wrote(&proto.Write{ID: id, Data: []byte("mine")})
	}
	a.wrote(&proto.Write{ID: log, Append: true, Off: 5, Data: []byte("mine\n")})

	r, err := e.branch(proto.Branch{})
	require.Equal(t, status.Conflict, status.Of(err))
	by := map[string]string{}
	for _, s := range r.Plan {
		by[s.Path] = s.Action + " " + s.Detail
	}
	require.Contains(t, by["f"], "conflict it was changed since, last by @")
	require.Contains(t, by["f"], " of test at ")
	require.Contains(t, by["gone"], "conflict the file was removed")
	require.Contains(t, by["g"], "content 4 bytes")
	require.Contains(t, by["log"], "content 5 bytes", "what is appended is in nobody's way")
	require.Equal(t, "old", e.content("g"), "all or nothing")

	_, err = e.branch(proto.Branch{Force: true})
	require.NoError(t, err)
	require.Equal(t, "mine", e.content("f"))
	require.Equal(t, "mine", e.content("g"))
	require.Equal(t, "line\ntheirs\nmine\n", e.content("log"))
}

// A branch that is dropped changes nothing.
func TestBranchDropped(t *testing.T) {
	e := openExport(t, vfs.NewMem(1))
	a := e.away()
	a.wrote(&proto.Write{ID: e.write("f", "old"), Data: []byte("mine")})
	_, err := e.branch(proto.Branch{Drop: true, DryRun: true})
	require.NoError(t, err)
	_, err = e.branch(proto.Branch{Drop: true})
	require.NoError(t, err)
	require.Equal(t, "old", e.content("f"))
	_, err = e.branch(proto.Branch{Drop: true})
	require.Equal(t, status.NotFound, status.Of(err))
}

package journal

import (
	"fmt"
	"testing"

	"github.com/stretchr/testify/require"

	"cagefs.dev/cage/journal/vfs"
	"cagefs.dev/cage/remote/proto"
	"cagefs.dev/cage/remote/status"
)

// repeat sends an operation of this session again under its number.
func (e *testExport) repeat(seq proto.Seq, op proto.Op) (proto.Result, error) {
	return e.Do(e.t.Context(), &Submission{Change: &proto.Change{Session: e.ses, Seq: seq, Ident: e.who, Op: op}, Client: 1, Trusted: true})
}

// Who may change nothing writes nothing into the log either, however often it tries,
// so that it takes no history from others.
func TestOperationsWithoutEffectLeaveNoRecord(t *testing.T) {
	e, _ := openOn(t, vfs.NewMem(1))
	dir := e.make(proto.RootID, "d", proto.ModeDir|0o755)
	id := e.file(dir, "f", "content")
	require.NoError(t, e.OpenBriefSession(5, 1, "nobody"))
	ops := []proto.Op{
		&proto.Make{Dir: dir, Name: "new", Mode: proto.ModeRegular | 0o600}, &proto.Make{Dir: 999, Name: "new", Mode: proto.ModeRegular},
		&proto.Write{ID: id, Data: []byte("x")}, &proto.Write{ID: 999, Data: []byte("x")}, &proto.SetAttr{ID: id, Mask: proto.SetMode, Mode: 0o777},
		&proto.SetAttr{ID: id, Mask: proto.SetSize}, &proto.SetAttr{ID: id}, &proto.Remove{Dir: dir, Name: "f"}, &proto.Remove{Dir: dir, Name: "none"},
		&proto.Rename{Dir: dir, Name: "f", NewDir: dir, NewName: "g"}, &proto.Link{ID: id, Dir: dir, Name: "l"},
		&proto.SetXattr{ID: id, Name: "user.a", Value: []byte("x")}, &proto.RemoveXattr{ID: id, Name: "user.a"},
		&proto.Allocate{ID: id, Len: 100}, &proto.Copy{ID: id, Src: id, Off: 1 << 20, Len: 3}, &proto.Label{Name: "no label"},
	}
	require.NoError(t, e.log.Commit())
	last, seq, failed := e.Last(), proto.Seq(0), 0
	for range 100 {
		for _, op := range ops {
			seq++
			_, err := e.Do(t.Context(), &Submission{Change: &proto.Change{Session: 5, Seq: seq, Acked: seq - 1, Ident: somebody, Op: op}, Client: 1})
			if err != nil {
				failed++
			}
		}
	}
	require.Equal(t, 100*(len(ops)-1), failed, "all but the setattr of nothing")
	require.NoError(t, e.log.Commit())
	require.Equal(t, last, e.Last())
	require.NoError(t, e.CloseSession(5))
	require.NoError(t, e.log.Commit())
	require.Equal(t, last, e.Last(), "nor does it end")
	require.NoError(t, e.Close())
}

// What had no effect is answered the same way after a crash, if anything of the
// session was recorded after it: it is not done late, over that.
func TestOperationsWithoutEffectAreNotDoneLate(t *testing.T) {
	disk := vfs.NewMem(1)
	e, _ := openOn(t, disk)
	id := e.file(proto.RootID, "f", "hello")
	e.make(proto.RootID, "there", proto.ModeRegular|0o600)
	taken := &proto.Make{Dir: proto.RootID, Name: "there", Mode: proto.ModeRegular | 0o600}
	_, err := e.do(taken)
	require.ErrorIs(t, err, status.Exists)
	failed := e.seq
	cut := &proto.SetAttr{ID: id, Mask: proto.SetSize, Size: 5}
	_, err = e.do(cut)
	require.NoError(t, err)
	idle := e.seq
	empty := e.make(proto.RootID, "empty", proto.ModeRegular|0o600)
	copied := &proto.Copy{ID: id, Src: empty, Len: 100}
	res, err := e.do(copied)
	require.NoError(t, err)
	require.Zero(t, res.N)
	none := e.seq
	e.must(&proto.Write{ID: empty, Data: []byte("no more")})
	e.must(&proto.Remove{Dir: proto.RootID, Name: "there"})
	e.must(&proto.Write{ID: id, Off: 5, Data: []byte(" world")})

	for what, killed := range map[string]*vfs.Mem{"crash": disk.Clone(), "stop": nil} {
		t.Run(what, func(t *testing.T) {
			if killed == nil {
				require.NoError(t, e.Close())
				killed = disk
			}
			x, _ := openOn(t, killed)
			require.EqualValues(t, e.seq, x.seq)
			_, err := x.repeat(failed, taken)
			require.ErrorIs(t, err, status.Exists, "although it is not there any more")
			_, err = x.repeat(idle, cut)
			require.NoError(t, err)
			res, err := x.repeat(none, copied)
			require.NoError(t, err)
			require.Zero(t, res.N)
			require.Equal(t, "hello world", x.content(id))
			require.NoError(t, x.Close())
		})
	}
}

// The last operations of a session, if they had no effect, are decided anew after a crash.
func TestLastOperationsWithoutEffectAreDecidedAnew(t *testing.T) {
	disk := vfs.NewMem(1)
	e, _ := openOn(t, disk)
	e.make(proto.RootID, "there", proto.ModeRegular|0o600)
	taken := &proto.Make{Dir: proto.RootID, Name: "there", Mode: proto.ModeRegular | 0o600}
	_, err := e.do(taken)
	require.ErrorIs(t, err, status.Exists)
	_, err = e.repeat(e.seq, taken)
	require.ErrorIs(t, err, status.Exists)
	require.NoError(t, e.OpenSession(6, 1, "other"))
	_, err = e.Do(t.Context(), &Submission{Change: &proto.Change{Session: 6, Seq: 1, Op: &proto.Remove{Dir: proto.RootID, Name: "there"}}, Client: 1})
	require.NoError(t, err)
	_, err = e.repeat(e.seq, taken)
	require.ErrorIs(t, err, status.Exists)

	x, _ := openOn(t, disk.Clone())
	require.EqualValues(t, e.seq-1, x.seq, "the newest on record")
	made, err := x.repeat(e.seq, taken)
	require.NoError(t, err)
	again, err := x.repeat(e.seq, taken)
	require.NoError(t, err)
	require.Equal(t, made.ID, again.ID, "once")
	require.NoError(t, x.Close())
	require.NoError(t, e.Close())
}

// A brief session is recorded with its first change, and is one like others then.
func TestBriefSession(t *testing.T) {
	disk := vfs.NewMem(1)
	e, _ := openOn(t, disk)
	last := e.Last()
	for id := proto.SessionID(100); id < 110; id++ {
		require.NoError(t, e.OpenBriefSession(id, 1, "key"))
	}
	require.NoError(t, e.log.Commit())
	require.Equal(t, last, e.Last())
	label := func(x *testExport, id proto.SessionID, seq proto.Seq) (proto.Result, error) {
		return x.Do(t.Context(), &Submission{Change: &proto.Change{Session: id, Seq: seq, Op: &proto.Label{Name: fmt.Sprintf("l-%d-%d", id, seq)}}, Client: 1})
	}
	res, err := label(e, 100, 1)
	require.NoError(t, err)
	_, err = label(e, 100, 2)
	require.NoError(t, err)

	x, _ := openOn(t, disk.Clone())
	seq, err := x.ResumeSession(100, "key")
	require.NoError(t, err)
	require.EqualValues(t, 2, seq)
	again, err := label(x, 100, 1)
	require.NoError(t, err)
	require.Equal(t, res.LSN, again.LSN)
	_, err = x.ResumeSession(101, "key")
	require.Equal(t, status.LostSession, status.Of(err))
	require.NoError(t, x.CloseSession(100))
	require.NoError(t, x.Close())
	require.NoError(t, e.Close())
}

// Labels need no permission, so there are only so many of a user.
func TestLabelsOfAUser(t *testing.T) {
	disk := vfs.NewMem(1)
	e, _ := openOn(t, disk)
	label := func(x *testExport, uid uint32, n int) error {
		_, err := x.as(proto.Ident{UID: uid, GID: uid}, &proto.Label{Name: fmt.Sprintf("%d-%d", uid, n)})
		return err
	}
	for n := range maxLabels {
		require.NoError(t, label(e, 7, n))
	}
	var tickets []*Ticket
	for n := range 2 { // at once
		e.seq++
		ticket, err := e.Submit(t.Context(), &Submission{Change: &proto.Change{Session: e.ses, Seq: e.seq, Op: &proto.Label{Name: "same"}}, Client: 1})
		require.NoError(t, err, n)
		tickets = append(tickets, ticket)
	}
	_, err := tickets[0].Wait(t.Context())
	require.NoError(t, err)
	_, err = tickets[1].Wait(t.Context())
	require.ErrorIs(t, err, status.Exists)
	killed, _ := openOn(t, disk.Clone())
	for _, x := range []*testExport{e, killed} {
		require.Equal(t, status.NoSpace, status.Of(label(x, 7, maxLabels)))
		require.NoError(t, label(x, 8, 0), "another's")
		require.NoError(t, label(x, 0, 0))
	}
	require.NoError(t, killed.Close())
	lsn, ok := e.hist.label("7-0")
	require.True(t, ok)
	e.hist.forget(lsn + 1)
	require.NoError(t, label(e, 7, maxLabels))
	require.NoError(t, e.Close())
}

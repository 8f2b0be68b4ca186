package serverd

import (
	"fmt"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/rs/zerolog"
	"github.com/stretchr/testify/require"

	"cagefs.dev/cage/journal"
	"cagefs.dev/cage/journal/vfs"
	"cagefs.dev/cage/remote/auth"
	"cagefs.dev/cage/remote/proto"
	"cagefs.dev/cage/remote/status"
	"cagefs.dev/cage/remote/wire"
)

// serveDir serves a directory as export x; stop ends server and journal.
func serveDir(t *testing.T, dir string, o Options) (r *rig, stop func()) {
	t.Helper()
	x, err := OpenExports(t.Context(), []Spec{{Name: "x", Dir: dir}}, zerolog.New(testWriter{t}).Level(zerolog.WarnLevel))
	require.NoError(t, err)
	o.Exports = x.List
	r = start(t, o)
	stop = func() {
		r.halt()
		require.NoError(t, x.Close())
	}
	t.Cleanup(stop)
	return r, stop
}

// serveDisk serves a disk in memory, which is quicker.
func serveDisk(t *testing.T, disk vfs.FS, o Options) (r *rig, stop func()) {
	t.Helper()
	feed, leases := NewFeed(), NewLeases()
	j, _, err := journal.Open(t.Context(), journal.Options{FS: disk, SegmentSize: 1 << 20, Log: zerolog.Nop(), Changed: feed.Publish, Leases: leases})
	require.NoError(t, err)
	o.Exports = []Export{{Name: "x", Journal: j, Feed: feed, Leases: leases}}
	r = start(t, o)
	stop = func() {
		r.halt()
		require.NoError(t, j.Close())
	}
	t.Cleanup(stop)
	return r, stop
}

func serve(t *testing.T, o Options) *rig {
	r, _ := serveDisk(t, vfs.NewMem(1), o)
	return r
}

// on opens a session of export x.
func (r *rig) on() (*peer, wire.HelloRep) {
	r.t.Helper()
	return r.again(wire.HelloReq{})
}

func (r *rig) again(m wire.HelloReq) (*peer, wire.HelloRep) {
	r.t.Helper()
	p := r.dial()
	m.Export = "x"
	rep, err := p.hello(m)
	require.NoError(r.t, err)
	return p, rep
}

// change sends a change and waits for its result.
func (p *peer) change(seq proto.Seq, op proto.Op) (proto.Result, error) {
	p.t.Helper()
	var rep wire.ChangeRep
	err := p.call(wire.ChangeOpcode(op), &wire.ChangeReq{Seq: seq, Ident: self, Op: op}, &rep)
	return rep.Result, err
}

var self = proto.Ident{UID: uint32(os.Geteuid()), GID: uint32(os.Getegid()), Comm: "test"}

func header() wire.ReqHeader { return wire.ReqHeader{Ident: self} }

func newFile(name string) *proto.Make {
	return &proto.Make{Dir: proto.RootID, Name: name, Mode: proto.ModeRegular | 0o644}
}

func (p *peer) lookup(name string) (proto.Attr, error) {
	p.t.Helper()
	var rep wire.AttrRep
	err := p.call(wire.OpLookup, &wire.LookupReq{ReqHeader: header(), Dir: proto.RootID, Name: name}, &rep)
	return rep.Attr, err
}

func (p *peer) read(id proto.FileID, off uint64, n uint32) (wire.ReadRep, error) {
	p.t.Helper()
	var rep wire.ReadRep
	err := p.call(wire.OpRead, &wire.ReadReq{ReqHeader: header(), ID: id, Off: off, Len: n}, &rep)
	return rep, err
}

func TestChangeAndRead(t *testing.T) {
	r := serve(t, Options{})
	p, rep := r.on()
	require.True(t, rep.Root.IsDir())
	require.NotZero(t, rep.Session)
	require.False(t, rep.Resumed)

	made, err := p.change(1, newFile("a"))
	require.NoError(t, err)
	require.NotZero(t, made.ID)
	_, err = p.change(2, &proto.Write{ID: made.ID, Data: []byte("hello, world")})
	require.NoError(t, err)
	_, err = p.change(3, &proto.Sync{ID: made.ID})
	require.NoError(t, err)

	got, err := p.read(made.ID, 7, 100)
	require.NoError(t, err)
	require.Equal(t, "world", string(got.Data))
	require.EqualValues(t, 12, got.Size)
	got, err = p.read(made.ID, 12, 10)
	require.NoError(t, err)
	require.Empty(t, got.Data)

	var list wire.ReadDirRep
	require.NoError(t, p.call(wire.OpReadDir, &wire.ReadDirReq{ReqHeader: header(), ID: proto.RootID, Max: 10, Plus: true}, &list))
	require.Len(t, list.Entries, 1, "the journal's directory is hidden")
	require.True(t, list.EOF)
	require.Equal(t, made.ID, list.Entries[0].Attr.ID)

	var at wire.AttrRep
	require.NoError(t, p.call(wire.OpResolve, &wire.ResolveReq{ReqHeader: header(), Path: "a"}, &at))
	require.Equal(t, made.ID, at.Attr.ID)
	for path, code := range map[string]status.Code{"a/b": status.NotDir, "none": status.NotFound, "../etc": status.Invalid} {
		err := p.call(wire.OpResolve, &wire.ResolveReq{ReqHeader: header(), Path: path}, &at)
		require.Equal(t, code, codeOf(err), path)
	}
	_, err = p.read(proto.RootID, 0, 1)
	require.Equal(t, status.IsDir, codeOf(err))
	_, err = p.lookup("..")
	require.Equal(t, status.Invalid, codeOf(err))
	_, err = p.lookup("none")
	require.Equal(t, status.NotFound, codeOf(err))
}

func TestChangesInOrder(t *testing.T) {
	r := serve(t, Options{})
	p, _ := r.on()
	const n = 200
	for i := range proto.Seq(n) {
		op := newFile(fmt.Sprint("f", i))
		p.send(wire.ChangeOpcode(op), &wire.ChangeReq{Seq: i + 1, Ident: self, Op: op})
	}
	var last proto.LSN
	answers := map[uint64]proto.Result{}
	for range n {
		f := p.reply()
		var rep wire.ChangeRep
		require.NoError(t, wire.DecodeReply(f.head, f.payload, &rep))
		answers[f.head.ID] = rep.Result
	}
	for i := range uint64(n) {
		res, ok := answers[i+2] // 1 was the hello
		require.True(t, ok)
		require.Greater(t, res.LSN, last, "order of the log")
		last = res.LSN
	}
}

func TestRepeatedChangeIsAppliedOnce(t *testing.T) {
	r := serve(t, Options{})
	p, _ := r.on()
	first, err := p.change(1, newFile("a"))
	require.NoError(t, err)
	again, err := p.change(1, newFile("a"))
	require.NoError(t, err)
	require.Equal(t, first.LSN, again.LSN)
	require.Equal(t, first.ID, again.ID)

	_, err = p.change(2, newFile("a"))
	require.Equal(t, status.Exists, codeOf(err))
	_, err = p.change(2, newFile("a"))
	require.Equal(t, status.Exists, codeOf(err), "a failure is repeated too")
}

func TestChangeOutOfOrderEndsTheConnection(t *testing.T) {
	r := serve(t, Options{})
	for name, seq := range map[string]proto.Seq{"ahead": 2, "none": 0} {
		t.Run(name, func(t *testing.T) {
			p, _ := r.on()
			_, err := p.change(seq, newFile(name))
			require.Equal(t, status.BadFrame, codeOf(err))
			p.gone()
			q, _ := r.on()
			_, err = q.lookup(name)
			require.Equal(t, status.NotFound, codeOf(err))
		})
	}
}

// A change that was refused without a record is answered after those before it,
// and its number is not asked for again.
func TestRefusedChangeKeepsItsPlace(t *testing.T) {
	r := serve(t, Options{})
	p, hello := r.on()
	const n = 20
	for i := range proto.Seq(n) {
		var op proto.Op = newFile(fmt.Sprint("f", i))
		if i%2 == 1 {
			op = newFile("a/b") // refused by wire.CheckOp
		}
		p.send(wire.ChangeOpcode(op), &wire.ChangeReq{Seq: i + 1, Ident: self, Op: op})
	}
	answered := map[uint64]bool{}
	for range n {
		f := p.reply()
		answered[f.head.ID] = true
		if f.head.IsError() {
			require.Equal(t, status.Invalid, codeOf(wire.DecodeReply(f.head, f.payload, nil)))
			for id := uint64(2); id < f.head.ID; id++ {
				require.True(t, answered[id], "the refusal %d came before the answer to %d", f.head.ID, id)
			}
		}
	}
	q, rep := r.again(wire.HelloReq{Session: hello.Session, NextSeq: n + 1})
	require.True(t, rep.Resumed)
	require.EqualValues(t, n-1, rep.Applied)
	_, err := q.change(n+1, newFile("last"))
	require.NoError(t, err)
}

func TestResume(t *testing.T) {
	r := serve(t, Options{})
	p, hello := r.on()
	made, err := p.change(1, newFile("a"))
	require.NoError(t, err)
	_, err = p.change(2, &proto.Write{ID: made.ID, Data: []byte("kept")})
	require.NoError(t, err)
	require.NoError(t, p.call(wire.OpOpen, &wire.OpenReq{ReqHeader: header(), ID: made.ID, Flags: wire.OpenRead}, &wire.AttrRep{}))

	q, rep := r.again(wire.HelloReq{Session: hello.Session, NextSeq: 3, Opens: []proto.FileID{made.ID, 1 << 40}})
	require.True(t, rep.Resumed)
	require.Equal(t, hello.Session, rep.Session)
	require.EqualValues(t, 2, rep.Applied)
	p.gone() // taken over

	_, err = q.change(3, &proto.Remove{Dir: proto.RootID, Name: "a"})
	require.NoError(t, err)
	got, err := q.read(made.ID, 0, 10)
	require.NoError(t, err, "an open file outlives its name")
	require.Equal(t, "kept", string(got.Data))
	require.Equal(t, 1, r.Status()[0].OpenFiles)
	require.NoError(t, q.call(wire.OpRelease, &wire.ReleaseReq{ID: made.ID, N: 5}, &wire.Empty{}))
	require.Equal(t, 0, r.Status()[0].OpenFiles)
}

func TestResumeAfterRestart(t *testing.T) {
	disk := vfs.NewMem(1)
	r, stop := serveDisk(t, disk, Options{})
	p, hello := r.on()
	made, err := p.change(1, newFile("a"))
	require.NoError(t, err)
	p.tls.NetConn().Close()
	stop()

	r, stop = serveDisk(t, disk, Options{})
	stranger, rep := r.again(wire.HelloReq{Session: hello.Session, NextSeq: 2})
	require.False(t, rep.Resumed, "the client of another key")
	stranger.tls.NetConn().Close()
	stop()

	r, _ = serveDisk(t, disk, Options{State: p.rig.state})
	r.keys = p.rig.keys
	q, rep := r.again(wire.HelloReq{Session: hello.Session, NextSeq: 1, Opens: []proto.FileID{made.ID}})
	require.True(t, rep.Resumed)

	require.EqualValues(t, 1, rep.Applied)
	again, err := q.change(1, newFile("a"))
	require.NoError(t, err)
	require.Equal(t, made.LSN, again.LSN)
	_, err = q.change(2, newFile("b"))
	require.NoError(t, err)
}

func TestResumeNeedsItsKeyAndExport(t *testing.T) {
	r := serve(t, Options{})
	_, rep := r.again(wire.HelloReq{Session: 4711})
	require.False(t, rep.Resumed, "never heard of")
	require.NotEqual(t, proto.SessionID(4711), rep.Session)
	sess := r.lookupSession(rep.Session)
	require.NotNil(t, sess)
	other := *sess.key
	other.Fingerprint = auth.Fingerprint("cage:other")
	found, _, err := r.takeOver(rep.Session, sess.exp, &other, "x")
	require.NoError(t, err)
	require.Nil(t, found)
}

func TestByeEndsTheSession(t *testing.T) {
	r := serve(t, Options{})
	p, hello := r.on()
	_, err := p.change(1, newFile("a"))
	require.NoError(t, err)
	require.NoError(t, p.call(wire.OpBye, &wire.Empty{}, &wire.Empty{}))
	p.gone()
	p.tls.Close()
	require.Eventually(t, func() bool { return len(r.Status()) == 0 }, patience, time.Millisecond)
	_, rep := r.again(wire.HelloReq{Session: hello.Session})
	require.False(t, rep.Resumed)
}

func TestLostSessionIsTidiedUp(t *testing.T) {
	r := serve(t, Options{Grace: 30 * time.Millisecond, Forget: 300 * time.Millisecond})
	p, _ := r.on()
	made, err := p.change(1, newFile("a"))
	require.NoError(t, err)
	require.NoError(t, p.call(wire.OpOpen, &wire.OpenReq{ReqHeader: header(), ID: made.ID, Flags: wire.OpenRead}, &wire.AttrRep{}))
	p.tls.NetConn().Close()
	require.Eventually(t, func() bool {
		st := r.Status()
		return len(st) == 0 || st[0].OpenFiles == 0 && !st[0].Lost.IsZero()
	}, patience, time.Millisecond)
	require.Eventually(t, func() bool { return len(r.Status()) == 0 }, patience, time.Millisecond)
	require.Empty(t, r.o.Exports[0].Journal.Sessions())
}

func TestPushes(t *testing.T) {
	r := serve(t, Options{})
	p, _ := r.on()
	q, _ := r.on()
	made, err := p.change(1, newFile("a"))
	require.NoError(t, err)
	require.Empty(t, p.pushes, "not one's own")
	want := map[proto.FileID]bool{made.ID: true, proto.RootID: true}
	for len(want) > 0 {
		f, err := q.next()
		require.NoError(t, err)
		require.True(t, f.head.IsPush())
		m, err := wire.DecodePush(f.head.Op, f.payload)
		require.NoError(t, err)
		c := m.(*wire.Changed)
		require.Equal(t, made.LSN, c.Change)
		if c.ID == proto.RootID {
			require.Equal(t, []string{"a"}, c.Names)
		}
		delete(want, c.ID)
	}
}

func TestReadOnly(t *testing.T) {
	r := serve(t, Options{})
	p, rep := r.again(wire.HelloReq{ReadOnly: true})
	require.True(t, rep.ReadOnly)
	_, err := p.change(1, newFile("a"))
	require.Equal(t, status.ReadOnly, codeOf(err))
	_, err = p.change(2, &proto.Sync{ID: proto.RootID, All: true})
	require.NoError(t, err)
	err = p.call(wire.OpOpen, &wire.OpenReq{ReqHeader: header(), ID: proto.RootID, Flags: wire.OpenWrite}, &wire.AttrRep{})
	require.Equal(t, status.IsDir, codeOf(err))
}

func TestDataConnection(t *testing.T) {
	r := serve(t, Options{DataPorts: 1})
	p, hello := r.on()
	require.EqualValues(t, 1, hello.DataPorts)
	made, err := p.change(1, newFile("a"))
	require.NoError(t, err)
	d := r.dial()
	require.NoError(t, d.call(wire.OpAttach, &wire.AttachReq{Version: wire.Version, Session: hello.Session}, &wire.Empty{}))
	_, err = d.read(made.ID, 0, 1)
	require.NoError(t, err)
	_, err = d.lookup("a")
	require.Equal(t, status.BadFrame, codeOf(err))
	d.gone()

	d = r.dial()
	require.NoError(t, d.call(wire.OpAttach, &wire.AttachReq{Version: wire.Version, Session: hello.Session}, &wire.Empty{}))
	p.tls.NetConn().Close()
	d.gone()
}

func TestPushOverflowDropsTheConnection(t *testing.T) {
	r := serve(t, Options{})
	p, hello := r.on()
	c := r.lookupSession(hello.Session).current()
	require.Eventually(t, func() bool {
		c.out.mu.Lock() // as if the writer had been held up all the time
		for i := range proto.FileID(maxPushes) {
			c.out.pushes[i] = &wire.Changed{ID: i}
		}
		c.out.mu.Unlock()
		r.o.Exports[0].Feed.Publish(journal.Applied{LSN: 1, ID: 1 << 30})
		return c.ctx.Err() != nil
	}, patience, time.Millisecond)
	p.gone()
	_, rep := r.again(wire.HelloReq{Session: hello.Session})
	require.True(t, rep.Resumed)
}

func TestDrainAnswersWhatWasReceived(t *testing.T) {
	dir := t.TempDir()
	r, _ := serveDir(t, dir, Options{})
	p, _ := r.on()
	op := newFile("a")
	p.send(wire.ChangeOpcode(op), &wire.ChangeReq{Seq: 1, Ident: self, Op: op})
	f := p.reply()
	require.NoError(t, wire.DecodeReply(f.head, f.payload, &wire.ChangeRep{}))
	r.stop()
	for {
		f, err := p.next()
		require.NoError(t, err)
		if f.head == wire.Push(wire.OpDrain) {
			break
		}
	}
	p.gone()
	p.tls.Close()
	r.halt()
	_, err := os.Stat(filepath.Join(dir, "a"))
	require.NoError(t, err)
}

func TestMayRewind(t *testing.T) {
	require.NoError(t, mayRewind(&proto.Ident{}))
	require.NoError(t, mayRewind(&self))
	require.Equal(t, status.NotOwner, codeOf(mayRewind(&proto.Ident{UID: 54321})))
}

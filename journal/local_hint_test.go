package journal

import (
	"context"
	"testing"

	"github.com/stretchr/testify/require"

	"cagefs.dev/cage/journal/vfs"
	"cagefs.dev/cage/remote/proto"
)

// TestHintsOfClientsChanges: events may be of what clients did. No such change
// becomes one of a process of the server, in whatever order and company it is told.
func TestHintsOfClientsChanges(t *testing.T) {
	for _, tt := range []struct {
		name string
		do   func(e *testExport, d, a, b proto.FileID)
	}{
		{"make", func(e *testExport, d, a, b proto.FileID) { e.file(d, "c", "c") }},
		{"make a directory", func(e *testExport, d, a, b proto.FileID) { e.file(e.make(d, "c", proto.ModeDir|0o755), "f", "x") }},
		{"write", func(e *testExport, d, a, b proto.FileID) { e.must(&proto.Write{ID: a, Data: []byte("A")}) }},
		{"append", func(e *testExport, d, a, b proto.FileID) {
			e.must(&proto.Write{ID: a, Append: true, Data: []byte("A")})
		}},
		{"write and rename", func(e *testExport, d, a, b proto.FileID) {
			e.must(&proto.Write{ID: a, Data: []byte("A")})
			e.must(&proto.Rename{Dir: d, Name: "a", NewDir: d, NewName: "c"})
			e.must(&proto.Write{ID: a, Data: []byte("B")})
		}},
		{"rename over", func(e *testExport, d, a, b proto.FileID) {
			e.must(&proto.Rename{Dir: d, Name: "a", NewDir: d, NewName: "b"})
		}},
		{"exchange", func(e *testExport, d, a, b proto.FileID) {
			e.must(&proto.Rename{Dir: d, Name: "a", NewDir: d, NewName: "b", Flags: proto.RenameExchange})
		}},
		{"remove", func(e *testExport, d, a, b proto.FileID) { e.must(&proto.Remove{Dir: d, Name: "a"}) }},
		{"remove and make again", func(e *testExport, d, a, b proto.FileID) {
			e.must(&proto.Remove{Dir: d, Name: "a"})
			e.file(d, "a", "new")
		}},
		{"link", func(e *testExport, d, a, b proto.FileID) { e.must(&proto.Link{ID: a, Dir: d, Name: "c"}) }},
		{"attributes", func(e *testExport, d, a, b proto.FileID) {
			e.must(&proto.SetAttr{ID: a, Mask: proto.SetMode, Mode: 0o600})
		}},
		{"move a directory", func(e *testExport, d, a, b proto.FileID) {
			e.must(&proto.Rename{Dir: proto.RootID, Name: "d", NewDir: proto.RootID, NewName: "e"})
			e.must(&proto.Rename{Dir: proto.RootID, Name: "e", NewDir: proto.RootID, NewName: "d"})
		}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			e, _ := openOn(t, vfs.NewMem(1))
			d := e.make(proto.RootID, "d", proto.ModeDir|0o755)
			a, b := e.file(d, "a", "a"), e.file(d, "b", "b")
			snapshot(t, e.Journal)
			tt.do(e, d, a, b)
			o := newOutsider(e)
			for _, what := range []string{"in", "out", "content", "attr"} {
				var all []string
				for _, name := range []string{"d", "d/a", "d/b", "d/c"} {
					o.hint(what + " " + name)
					all = append(all, "in "+name, "out "+name, what+" "+name)
				}
				o.hint(all...)
			}
			require.NoError(t, e.Rescan(context.Background(), 1))
			require.NoError(t, e.Poll(context.Background()))
			require.Empty(t, o.story())
			require.NoError(t, e.Close())
		})
	}
}

// TestHintsBehindClientsChanges: what a process of the server wrote is noticed
// although a client has changed the same file since, before anybody told.
func TestHintsBehindClientsChanges(t *testing.T) {
	for name, client := range map[string]func(e *testExport, a proto.FileID){
		"a write": func(e *testExport, a proto.FileID) { e.must(&proto.Write{ID: a, Off: 8, Data: []byte("mine")}) },
		"a rename": func(e *testExport, a proto.FileID) {
			e.must(&proto.Rename{Dir: proto.RootID, Name: "a", NewDir: proto.RootID, NewName: "b"})
		},
		"a removal": func(e *testExport, a proto.FileID) { e.must(&proto.Remove{Dir: proto.RootID, Name: "a"}) },
	} {
		t.Run(name, func(t *testing.T) {
			disk := vfs.NewMem(1)
			told := map[proto.FileID]bool{}
			j, _, err := Open(context.Background(), Options{FS: disk, Changed: func(c Applied) {
				if c.Data && c.Session == 0 {
					told[c.ID] = true
				}
			}})
			require.NoError(t, err)
			e := &testExport{Journal: j, t: t, fs: disk, ses: testSession}
			require.NoError(t, j.OpenSession(testSession, 1, "key"))
			a := e.file(proto.RootID, "a", "0123456789ab")
			snapshot(t, e.Journal)
			o := newOutsider(e)
			o.overwrite("a", "LOCAL")
			require.Empty(t, told)
			client(e, a)
			require.True(t, told[a], "the client hears of it")
			o.hint("content a", "in b", "out a")
			var local []string
			for _, s := range o.story() {
				if s == "local a" || s == "local b" {
					local = append(local, s)
				}
			}
			require.Len(t, local, 1, "it is in the log, once")
			require.Equal(t, "LOCAL", e.content(a)[:5])
			require.NoError(t, e.Close())
		})
	}
}

// TestHintsBetweenWriteAndLook: a process of the server writes to a file after a
// client's write was applied, and before what that left was looked at.
func TestHintsBetweenWriteAndLook(t *testing.T) {
	disk := vfs.NewMem(1)
	var o *outsider
	timed := false // the client's write has set its time
	fs := vfs.Inject(disk, func(op vfs.Op) error {
		switch {
		case o == nil || op.Path != "a":
		case op.Kind == "utimes":
			timed = true
		case op.Kind == "stat" && timed:
			now := o
			o = nil
			now.overwrite("a", "LOCAL")
		}
		return nil
	})
	e, _ := openOn(t, fs)
	a := e.file(proto.RootID, "a", "0123456789ab")
	snapshot(t, e.Journal)
	outside := newOutsider(&testExport{t: t, fs: disk, Journal: e.Journal})
	o = outside
	e.must(&proto.Write{ID: a, Off: 8, Data: []byte("mine")})
	require.Nil(t, o)
	require.Equal(t, []string{"local a"}, outside.story())
	outside.hint("content a")
	require.Equal(t, []string{"local a"}, outside.story())
	require.NoError(t, e.Close())
}

// TestHintsBeforeAppends: a process of the server appends just before a client does.
func TestHintsBeforeAppends(t *testing.T) {
	disk := vfs.NewMem(1)
	var o *outsider
	fs := vfs.Inject(disk, func(op vfs.Op) error {
		if op.Kind == "append" && o != nil {
			now := o
			o = nil
			now.overwriteAt("a", 1, "LOCAL")
		}
		return nil
	})
	e, _ := openOn(t, fs)
	a := e.file(proto.RootID, "a", "a")
	snapshot(t, e.Journal)
	outside := newOutsider(&testExport{t: t, fs: disk, Journal: e.Journal})
	o = outside
	e.must(&proto.Write{ID: a, Off: 1, Append: true, Data: []byte("mine")})
	require.Equal(t, "aLOCALmine", e.content(a))
	require.Equal(t, []string{"local a"}, outside.story())
	outside.hint("content a")
	require.Equal(t, []string{"local a"}, outside.story())
	require.NoError(t, e.Close())
}

// TestHintsWhileNamesChange: content that changes while the record of a name is
// made is told, whichever way the events are cut into calls.
func TestHintsWhileNamesChange(t *testing.T) {
	for _, tt := range []struct {
		name  string
		do    func(o *outsider)
		story []string
	}{
		{"renamed, then written, told at once", func(o *outsider) {
			o.mv("a", "b")
			o.overwrite("b", "LOCAL")
			o.hint("out a", "in b", "content b")
		}, []string{"rename a b", "local b"}},
		{"renamed, then written, told one by one", func(o *outsider) {
			o.mv("a", "b")
			o.overwrite("b", "LOCAL")
			o.hint("out a", "in b")
			o.hint("content b")
		}, []string{"rename a b", "local b"}},
		{"written and renamed, and nobody tells", func(o *outsider) {
			o.overwrite("a", "LOCAL")
			o.mv("a", "b")
			require.NoError(o.t, o.Poll(context.Background()))
		}, []string{"rename a b", "local b"}},
		{"attributes, then written", func(o *outsider) {
			o.in("a", func(d vfs.Dir, n string) error { return d.Chmod(n, 0o600) })
			o.hint("attr a")
			o.overwrite("a", "LOCAL")
			o.hint("content a")
		}, []string{"local a (attributes)", "local a"}},
		{"attributes and content, told one by one", func(o *outsider) {
			o.in("a", func(d vfs.Dir, n string) error { return d.Chmod(n, 0o600) })
			o.overwrite("a", "LOCAL")
			o.hint("attr a")
			o.hint("content a")
		}, []string{"local a"}},
		{"made, seen half written", func(o *outsider) {
			o.create("n", "half")
			snapshot(o.t, o.Journal)
			o.overwrite("n", "whole!")
			o.hint("in n", "content n")
		}, []string{"make n", "local n"}},
		{"made in a directory of which is told later", func(o *outsider) {
			o.mkdir("s")
			o.create("s/f", "f")
			o.hint("in s/f", "content s/f")
			o.hint("in s")
		}, []string{"make s/f", "make s (directory)"}},
		{"stored through a mapping, found, and closed", func(o *outsider) {
			o.hint("closed a")
			o.overwrite("a", "LOCAL")
			snapshot(o.t, o.Journal)
			o.hint("closed a") // there may be more since; or it is an earlier writer's close
			o.hint("content a")
			o.hint("closed a")
			o.hint("closed a")
			o.hint("closed a") // enough of that
		}, []string{"local a", "local a", "local a", "local a"}},
		{"a file that nobody asked for", func(o *outsider) {
			o.create("n", "old")
			o.overwrite("n", "new")
			o.hint("content n")
		}, []string{"local n"}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			e, _ := openOn(t, vfs.NewMem(1))
			e.file(proto.RootID, "a", "as it was")
			snapshot(t, e.Journal)
			o := newOutsider(e)
			tt.do(o)
			require.Equal(t, tt.story, o.story())
			require.NoError(t, e.Close())
		})
	}
}

// TestHintsInTheHistoryOnward: who follows the history does not get past a local
// change that he cannot be shown yet.
func TestHintsInTheHistoryOnward(t *testing.T) {
	e, _ := openOn(t, vfs.NewMem(1))
	e.file(proto.RootID, "a", "as it was")
	snapshot(t, e.Journal)
	after := e.Last()
	o := newOutsider(e)
	o.overwrite("a", "LOCAL")
	o.hint("content a")
	require.Greater(t, e.Last(), after)
	list, err := e.Entries(Query{After: after})
	require.NoError(t, err)
	if len(list.Entries) == 0 { // it is not durable
		require.Equal(t, after, list.Upto)
		require.NoError(t, e.log.Commit())
		list, err = e.Entries(Query{After: after})
		require.NoError(t, err)
	}
	require.Len(t, list.Entries, 1)
	require.Equal(t, list.Entries[0].LSN, list.Upto)
	require.NoError(t, e.Close())
}

// TestHintsBesideClientsChanges: while a client's change is half done, the file
// is not what is known of it. That is not taken for somebody else's change.
func TestHintsBesideClientsChanges(t *testing.T) {
	e, _ := openOn(t, vfs.NewMem(1))
	d := e.make(proto.RootID, "d", proto.ModeDir|0o755)
	a := e.file(d, "a", "a")
	o := newOutsider(e)
	events := o.events("content d/a", "in d/b", "out d/b", "content d/b", "attr d")
	stop, ended := make(chan struct{}), make(chan error, 1)
	go func() {
		for {
			select {
			case <-stop:
				ended <- nil
				return
			default:
			}
			if err := e.Notice(context.Background(), events); err != nil {
				ended <- err
				return
			}
		}
	}()
	for i := range 300 {
		e.must(&proto.Write{ID: a, Off: uint64(i), Data: []byte("x")})
		b := e.file(d, "b", "b")
		e.must(&proto.Write{ID: b, Append: true, Data: []byte("y")})
		e.must(&proto.Rename{Dir: d, Name: "b", NewDir: d, NewName: "c"})
		e.must(&proto.SetAttr{ID: b, Mask: proto.SetMode, Mode: 0o600})
	}
	close(stop)
	require.NoError(t, <-ended)
	require.Empty(t, o.story())
	require.NoError(t, e.Close())
}

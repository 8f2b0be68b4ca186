package journal

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"syscall"
	"testing"

	"github.com/stretchr/testify/require"

	"cagefs.dev/cage/journal/record"
	"cagefs.dev/cage/journal/vfs"
	"cagefs.dev/cage/remote/proto"
	"cagefs.dev/cage/remote/status"
)

// outsider changes an export behind the journal's back, as processes of the server do.
type outsider struct {
	*testExport
	root vfs.Dir
}

func newOutsider(e *testExport) *outsider {
	root, err := e.fs.Root()
	require.NoError(e.t, err)
	e.t.Cleanup(func() { root.Close() })
	return &outsider{e, root}
}

// dir opens the directory of a path and returns it with the last name.
func (o *outsider) dir(path string) (vfs.Dir, string) {
	o.t.Helper()
	d, err := o.root.OpenDir(".")
	if err != nil {
		d, err = o.fs.Root()
	}
	require.NoError(o.t, err)
	names := strings.Split(path, "/")
	for _, n := range names[:len(names)-1] {
		sub, err := d.OpenDir(n)
		require.NoError(o.t, err)
		d.Close()
		d = sub
	}
	return d, names[len(names)-1]
}

func (o *outsider) in(path string, f func(d vfs.Dir, name string) error) {
	o.t.Helper()
	d, name := o.dir(path)
	defer d.Close()
	require.NoError(o.t, f(d, name), path)
}

func (o *outsider) create(path, content string) {
	o.t.Helper()
	o.in(path, func(d vfs.Dir, name string) error {
		f, err := d.Create(name, 0o644)
		if err != nil {
			return err
		}
		defer f.Close()
		_, err = f.WriteAt([]byte(content), 0)
		return err
	})
}

func (o *outsider) overwrite(path, content string) {
	o.t.Helper()
	o.in(path, func(d vfs.Dir, name string) error {
		f, err := d.Open(name, true)
		if err != nil {
			return err
		}
		defer f.Close()
		_, err = f.WriteAt([]byte(content), 0)
		return err
	})
}

func (o *outsider) mkdir(path string) {
	o.t.Helper()
	o.in(path, func(d vfs.Dir, name string) error { return d.Mkdir(name, 0o755) })
}

func (o *outsider) rm(path string) {
	o.t.Helper()
	o.in(path, func(d vfs.Dir, name string) error { return d.Remove(name) })
}

func (o *outsider) mv(from, to string) { o.rename(from, to, 0) }

func (o *outsider) rename(from, to string, flags uint) {
	o.t.Helper()
	td, tn := o.dir(to)
	defer td.Close()
	o.in(from, func(d vfs.Dir, name string) error { return d.Rename(name, td, tn, flags) })
}

func (o *outsider) ln(from, to string) {
	o.t.Helper()
	td, tn := o.dir(to)
	defer td.Close()
	o.in(from, func(d vfs.Dir, name string) error { return d.Link(name, td, tn) })
}

// place is a path as an event tells it.
func (o *outsider) place(path string) LocalPlace {
	o.t.Helper()
	d, name := o.dir(path)
	defer d.Close()
	info, err := d.StatSelf()
	require.NoError(o.t, err)
	up := ""
	if i := strings.LastIndexByte(path, '/'); i > 0 {
		up = path[:i]
	}
	return LocalPlace{Dir: info.Ident, Path: up, Name: name}
}

// vi is the process that the tests blame.
var vi = Process{PID: 4711, PGID: 4710, UID: 1000, GID: 100, Comm: "vi"}

// tell notices events given as "in a/b", "out c", "content d", "attr e".
func (o *outsider) tell(events ...string) {
	o.t.Helper()
	var list []LocalEvent
	for _, e := range o.events(events...) {
		e.What |= LocalSure
		e.By = vi
		list = append(list, e)
	}
	require.NoError(o.t, o.Notice(context.Background(), list))
}

// hint notices such events as inotify tells them: of whom is not known, it may be the journal itself.
func (o *outsider) hint(events ...string) {
	o.t.Helper()
	list := o.events(events...)
	for i := range list {
		list[i].What &^= LocalGone
	}
	require.NoError(o.t, o.Notice(context.Background(), list))
}

func (o *outsider) events(events ...string) (list []LocalEvent) {
	o.t.Helper()
	for _, s := range events {
		what, path, _ := strings.Cut(s, " ")
		bits := map[string]LocalWhat{"in": LocalIn, "out": LocalOut, "gone": LocalOut | LocalGone, "content": LocalContent, "attr": LocalAttr, "closed": LocalClosed}[what]
		list = append(list, LocalEvent{LocalPlace: o.place(path), What: bits})
	}
	return list
}

// story lists what local processes did according to history, oldest first.
func (o *outsider) story() (out []string) {
	o.t.Helper()
	require.NoError(o.t, o.log.Commit())
	list, err := o.Entries(Query{})
	require.NoError(o.t, err)
	for _, e := range slices.Backward(list.Entries) {
		if e.Client == LocalClient {
			s := e.Kind + " " + e.Path
			if e.NewPath != "" {
				s += " " + e.NewPath
			}
			if e.Detail != "" && e.Kind != "gap" {
				s += " (" + e.Detail + ")"
			}
			out = append(out, s)
		}
	}
	return out
}

// names lists a directory of a state, sorted.
func names(t *testing.T, p *Past, dir proto.FileID) (out []string) {
	t.Helper()
	require.NoError(t, p.ReadDir(dir, 0, false, func(d proto.DirEntry) bool {
		out = append(out, d.Name)
		return true
	}))
	return out
}

// namesTest is a change by a process of the server and what is made of it.
type namesTest struct {
	name  string
	do    func(o *outsider)
	tell  []string
	look  bool // a client lists the directories before the events come
	story []string
	now   []string
}

func TestNoticeNames(t *testing.T) {
	tests := []namesTest{
		{"a new file", func(o *outsider) { o.create("d/n", "x") }, []string{"in d/n", "content d/n"}, false,
			[]string{"make d/n"}, []string{"a", "b", "n"}},
		{"a new file that a client saw first", func(o *outsider) { o.create("d/n", "x") }, []string{"in d/n"}, true,
			[]string{"make d/n"}, []string{"a", "b", "n"}},
		{"a new directory with a file", func(o *outsider) { o.mkdir("d/s"); o.create("d/s/f", "") }, []string{"in d/s", "in d/s/f"}, false,
			[]string{"make d/s (directory)", "make d/s/f"}, []string{"a", "b", "s"}},
		{"new directories, renamed", func(o *outsider) {
			o.mkdir("d/s")
			o.mkdir("d/s/s")
			o.create("d/s/s/f", "")
			o.mv("d/s", "d/t")
		}, []string{"in d/t/s/f", "in d/t/s", "in d/s", "in d/t", "out d/s"}, false,
			[]string{"make d/t (directory)", "make d/t/s (directory)", "make d/t/s/f"}, []string{"a", "b", "t"}},
		{"removed", func(o *outsider) { o.rm("d/a") }, []string{"gone d/a"}, false,
			[]string{"remove d/a"}, []string{"b"}},
		{"removed, a client saw it first", func(o *outsider) { o.rm("d/a") }, []string{"gone d/a"}, true,
			[]string{"remove d/a"}, []string{"b"}},
		{"renamed", func(o *outsider) { o.mv("d/a", "d/c") }, []string{"out d/a", "in d/c"}, false,
			[]string{"rename d/a d/c"}, []string{"b", "c"}},
		{"renamed, a client saw it first", func(o *outsider) { o.mv("d/a", "d/c") }, []string{"out d/a", "in d/c"}, true,
			[]string{"rename d/a d/c"}, []string{"b", "c"}},
		{"renamed twice", func(o *outsider) { o.mv("d/a", "d/c"); o.mv("d/c", "d/e") }, []string{"out d/a", "in d/c", "out d/c", "in d/e"}, false,
			[]string{"rename d/a d/e"}, []string{"b", "e"}},
		{"renamed over", func(o *outsider) { o.mv("d/a", "d/b") }, []string{"in d/b", "out d/a"}, false,
			[]string{"rename d/a d/b (replaced fid 5)"}, []string{"b"}},
		{"renamed over, a client saw it first", func(o *outsider) { o.mv("d/a", "d/b") }, []string{"in d/b", "out d/a"}, true,
			[]string{"rename d/a d/b (replaced fid 5)"}, []string{"b"}},
		{"exchanged", func(o *outsider) { o.rename("d/a", "d/b", vfs.RenameExchange) }, []string{"in d/b", "in d/a"}, false,
			[]string{"rename d/a d/b (exchange)"}, []string{"a", "b"}},
		{"written beside and renamed over", func(o *outsider) { o.create("d/t", "new"); o.mv("d/t", "d/a") },
			[]string{"in d/t", "content d/t", "in d/a", "out d/t"}, false,
			[]string{"remove d/a", "make d/a"}, []string{"a", "b"}},
		{"linked", func(o *outsider) { o.ln("d/a", "d/c") }, []string{"in d/c"}, false,
			[]string{"link d/c"}, []string{"a", "b", "c"}},
		{"came and went", func(o *outsider) { o.create("d/t", ""); o.rm("d/t") }, []string{"in d/t", "gone d/t"}, false,
			nil, []string{"a", "b"}},
		{"a directory moves", func(o *outsider) { o.mv("d/a", "a"); o.mv("d", "e"); o.mv("e", "d") }, []string{"in a", "out d/a"}, false,
			[]string{"rename d/a a"}, []string{"b"}},
		{"written", func(o *outsider) { o.overwrite("d/a", "X") }, []string{"content d/a"}, false,
			[]string{"local d/a"}, []string{"a", "b"}},
		{"written, then renamed", func(o *outsider) { o.overwrite("d/a", "X"); o.mv("d/a", "d/c") }, []string{"content d/a", "in d/c", "out d/a"}, false,
			[]string{"local d/a", "rename d/a d/c"}, []string{"b", "c"}},
		{"attributes", func(o *outsider) { o.in("d/a", func(d vfs.Dir, n string) error { return d.Chmod(n, 0o600) }) }, []string{"attr d/a"}, false,
			[]string{"local d/a (attributes)"}, []string{"a", "b"}},
	}
	run := func(t *testing.T, sure bool) {
		for _, tt := range tests {
			t.Run(tt.name, func(t *testing.T) { noticeNames(t, tt, sure) })
		}
	}
	t.Run("sure", func(t *testing.T) { run(t, true) })
	t.Run("hints", func(t *testing.T) { run(t, false) })
}

func noticeNames(t *testing.T, tt namesTest, sure bool) {
	e, _ := openOn(t, vfs.NewMem(1))
	d := e.make(proto.RootID, "d", proto.ModeDir|0o755)
	e.file(d, "a", "a")
	b := e.file(d, "b", "b")
	snapshot(t, e.Journal) // clients have seen all of it
	was := e.Last()
	o := newOutsider(e)
	tt.do(o)
	if tt.look {
		snapshot(t, e.Journal)
	}
	tell, who := o.tell, vi
	if !sure {
		tell, who = o.hint, Process{}
	}
	tell(tt.tell...)
	var want []string
	for _, s := range tt.story {
		want = append(want, strings.ReplaceAll(s, "fid 5", b.String()))
	}
	story := o.story()
	if tt.look && len(story) > 0 && strings.HasPrefix(story[0], "local ") { // the look saw another ctime
		story = story[1:]
	}
	require.Equal(t, want, story)
	for i := was + 1; i <= e.Last(); i++ {
		if r, err := e.Record(i, false); err == nil && local(r) && (!tt.look || r.Kind != record.Local) {
			require.Equal(t, who, Process{r.PID, r.PGID, r.UID, r.GID, r.Comm}, "record %d", i)
		}
	}
	past, err := e.At(was)
	require.NoError(t, err)
	require.Equal(t, []string{"a", "b"}, names(t, past, d))
	now, err := e.At(0)
	require.NoError(t, err)
	require.Equal(t, tt.now, names(t, now, d))

	told := len(o.story())
	before := snapshot(t, e.Journal)
	tell(tt.tell...) // the second time nothing is left to record but what was seen for sure
	for _, s := range o.story()[told:] {
		require.True(t, strings.HasPrefix(s, "local "), s)
	}
	require.NoError(t, e.Close())
	e, _ = openOn(t, e.fs)
	require.Empty(t, before.diff(snapshot(t, e.Journal), nil), "numbers and names are the same after a start")
	require.NoError(t, e.Close())
}

// TestNoticePushes: what a local process did is told to all sessions, with the
// names and whether the content may be another.
func TestNoticePushes(t *testing.T) {
	disk := vfs.NewMem(1)
	var told []string
	listening := false
	j, _, err := Open(context.Background(), Options{FS: disk, Changed: func(a Applied) {
		if listening {
			told = append(told, fmt.Sprintf("%s %q %q data %v session %d", a.ID, a.Name, a.NewName, a.Data, a.Session))
		}
	}})
	require.NoError(t, err)
	e := &testExport{Journal: j, t: t, fs: disk}
	o := newOutsider(e)
	o.create("a", "a")
	a, err := j.Lookup(proto.RootID, "a")
	require.NoError(t, err)
	listening = true
	o.overwrite("a", "A")
	o.tell("content a")
	o.mv("a", "b")
	o.tell("in b", "out a")
	require.Equal(t, []string{
		fmt.Sprintf(`%s "" "" data true session 0`, a.ID),
		fmt.Sprintf(`%s "a" "b" data false session 0`, a.ID),
	}, told)
	b, err := j.Lookup(proto.RootID, "b")
	require.NoError(t, err)
	require.Equal(t, a.ID, b.ID)
	require.Greater(t, b.Change, a.Change)
	require.NoError(t, j.Close())
}

// TestPlansAfterCorrections: a client looks a name up that a local process has just
// moved, and changes it before anybody noticed: the move is in the log before the change.
func TestPlansAfterCorrections(t *testing.T) {
	e, _ := openOn(t, vfs.NewMem(1))
	x := e.file(proto.RootID, "x", "x")
	was := e.Last()
	o := newOutsider(e)
	o.mv("x", "y")
	res, err := e.do(&proto.Remove{Dir: proto.RootID, Name: "y"})
	require.NoError(t, err)
	require.Equal(t, []string{"rename x y"}, o.story())
	o.tell("in y", "out x")
	require.Equal(t, []string{"rename x y"}, o.story())
	past, err := e.At(was)
	require.NoError(t, err)
	require.Equal(t, []string{"x"}, names(t, past, proto.RootID))
	require.Equal(t, "x", e.content(x), "it is in a grave")
	require.NotZero(t, res.LSN)
	require.NoError(t, e.Close())
	e, rep := openOn(t, e.fs)
	require.Empty(t, rep.Strangers)
	require.Equal(t, "x", e.content(x))
	_, err = e.Lookup(proto.RootID, "y")
	require.Equal(t, status.NotFound, status.Of(err))
	require.NoError(t, e.Close())
}

// TestPastBeforeLocalChanges: names are known, and what records preserved before;
// for the rest the past says that it does not know.
func TestPastBeforeLocalChanges(t *testing.T) {
	e, _ := openOn(t, vfs.NewMem(1))
	a := e.file(proto.RootID, "a", "0123456789")
	b := e.file(proto.RootID, "b", "b")
	snapshot(t, e.Journal)
	was := e.Last()
	e.must(&proto.Write{ID: a, Off: 2, Data: []byte("XY")})
	o := newOutsider(e)
	o.overwrite("a", "local writes more than there was")
	o.rm("b")
	o.tell("content a", "gone b")
	e.must(&proto.Write{ID: a, Off: 20, Data: []byte("later")})

	past, err := e.At(was)
	require.NoError(t, err)
	require.Equal(t, []string{"a", "b"}, names(t, past, proto.RootID))
	at, err := past.Attr(a)
	require.NoError(t, err)
	require.EqualValues(t, 10, at.Size)
	buf := make([]byte, 2)
	n, err := past.ReadAt(a, buf, 2)
	require.NoError(t, err)
	require.Equal(t, "23", string(buf[:n]), "a record preserved it")
	_, err = past.ReadAt(a, buf, 5)
	require.Equal(t, status.Gap, status.Of(err), "nobody did")
	_, err = past.Attr(b)
	require.Equal(t, status.Gap, status.Of(err))
	_, err = past.Lookup(proto.RootID, "b")
	require.Equal(t, status.Gap, status.Of(err))
	now, err := e.At(0)
	require.NoError(t, err)
	require.Equal(t, []string{"a"}, names(t, now, proto.RootID))
	buf = make([]byte, 5)
	_, err = now.ReadAt(a, buf, 0)
	require.NoError(t, err)
	require.Equal(t, "local", string(buf))
	require.NoError(t, e.Close())
}

// TestLocalChangesOutliveKill: the server is killed, the mount lasts, and local
// processes change what clients had just changed: their changes stay.
func TestLocalChangesOutliveKill(t *testing.T) {
	disk := vfs.NewMem(1)
	run := func(fs *vfs.Mem, mount string) *Journal {
		j, _, err := Open(context.Background(), Options{FS: fs, Mount: mount, Now: func() proto.Time { return proto.Time(fs.Now()) }})
		require.NoError(t, err)
		return j
	}
	e := &testExport{Journal: run(disk, "m1"), t: t, fs: disk}
	a := e.file(proto.RootID, "a", "a client's")
	e.file(proto.RootID, "b", "b")
	e.file(proto.RootID, "c", "c")
	killed := disk.Clone()
	require.NoError(t, e.Close())

	o := newOutsider(&testExport{t: t, fs: killed})
	killed.Sleep(3600e9)
	o.overwrite("a", "A LOCAL'S ")
	o.rm("b")
	o.mv("c", "d")
	j := run(killed, "m1")
	e = &testExport{Journal: j, t: t, fs: killed}
	o = newOutsider(e)
	require.Eventually(t, func() bool { return !e.local.gap.open.Load() }, 5e9, 1e6)
	require.Equal(t, "A LOCAL'S ", e.content(a))
	_, err := j.Lookup(proto.RootID, "b")
	require.Equal(t, status.NotFound, status.Of(err))
	_, err = j.Lookup(proto.RootID, "d")
	require.NoError(t, err)
	gap := " (while no server ran)"
	story := o.story()
	require.NotEmpty(t, story)
	require.Regexp(t, "^gap ", story[0])
	require.ElementsMatch(t, []string{"local a" + gap, "remove b" + gap, "rename c d" + gap}, story[1:])
	rep, err := j.Verify(context.Background(), true)
	require.NoError(t, err)
	require.Empty(t, rep.Problems)
	require.NoError(t, e.Close())
}

// TestLogCountsAfterACutRecovery: what differs from the log may be the half of what a
// recovery did that was killed, so that the log decides; also in another mount.
func TestLogCountsAfterACutRecovery(t *testing.T) {
	for _, mount := range []string{"m1", "m2"} {
		disk := vfs.NewMem(1)
		run := func(fs *vfs.Mem, mount string) *testExport {
			j, _, err := Open(context.Background(), Options{FS: fs, Mount: mount, Now: func() proto.Time { return proto.Time(fs.Now()) }})
			require.NoError(t, err)
			return &testExport{Journal: j, t: t, fs: fs}
		}
		e := run(disk, "m1")
		a := e.file(proto.RootID, "a", "as logged")
		killed := disk.Clone()
		require.NoError(t, e.Close())
		killed.Sleep(3600e9)
		newOutsider(&testExport{t: t, fs: killed}).overwrite("a", "as halved")
		root, err := killed.Root()
		require.NoError(t, err)
		cage, err := root.OpenDir(DirName)
		require.NoError(t, err)
		if mount == "m1" {
			f, err := cage.Create(recoveringName, 0o600)
			require.NoError(t, err)
			require.NoError(t, f.Close())
		}
		e = run(killed, mount)
		require.Equal(t, "as logged", e.content(a), mount)
		_, err = cage.Stat(recoveringName)
		require.ErrorIs(t, err, syscall.ENOENT)
		require.NoError(t, e.Close())
	}
}

// TestRescanFindsWhatNobodyTold: after lost events everything is compared.
func TestRescanFindsWhatNobodyTold(t *testing.T) {
	e, _ := openOn(t, vfs.NewMem(1))
	d := e.make(proto.RootID, "d", proto.ModeDir|0o755)
	for i := range 20 {
		e.file(d, fmt.Sprint("f", i), "x")
	}
	snapshot(t, e.Journal)
	o := newOutsider(e)
	o.rm("d/f0")
	o.mv("d/f1", "g1")
	o.overwrite("d/f2", "y")
	o.create("d/n", "n")
	o.rename("d/f3", "d/f4", vfs.RenameExchange)
	require.NoError(t, e.Rescan(context.Background(), 0))
	require.ElementsMatch(t, []string{"remove d/f0", "rename d/f1 g1", "local d/f2", "make d/n", "rename d/f3 d/f4 (exchange)"},
		ordered(o.story(), "rename d/f4 d/f3 (exchange)", "rename d/f3 d/f4 (exchange)"))
	n := len(o.story())
	require.NoError(t, e.Rescan(context.Background(), 0))
	require.Len(t, o.story(), n, "nothing is found twice")
	for _, r := range e.records(record.Gap) {
		t.Errorf("a gap while the server ran: %v", r)
	}
	require.NoError(t, e.Close())
}

// ordered replaces one way of telling by another.
func ordered(list []string, a, b string) []string {
	for i := range list {
		if list[i] == a {
			list[i] = b
		}
	}
	return list
}

// TestGap: what happened while no server ran is found at the start and says so.
func TestGap(t *testing.T) {
	disk := vfs.NewMem(1)
	e, _ := openOn(t, disk)
	d := e.make(proto.RootID, "d", proto.ModeDir|0o755)
	e.file(d, "a", "a")
	e.file(d, "b", "b")
	e.file(d, "c", "c")
	snapshot(t, e.Journal)
	was := e.Last()
	require.NoError(t, e.Close())

	o := newOutsider(e)
	o.rm("d/a")
	o.mv("d/b", "b")
	o.overwrite("d/c", "C")
	o.create("d/n", "n")

	e, _ = openOn(t, disk)
	o = newOutsider(e)
	require.Eventually(t, func() bool { return !e.local.gap.open.Load() }, 5e9, 1e6)
	gap := " (while no server ran)"
	story := o.story()
	require.Regexp(t, "^gap ", story[0])
	require.ElementsMatch(t, []string{"remove d/a" + gap, "rename d/b b" + gap, "local d/c" + gap, "make d/n" + gap}, story[1:])
	past, err := e.At(was)
	require.NoError(t, err)
	require.Equal(t, []string{"a", "b", "c"}, names(t, past, d))
	require.NoError(t, e.Close())

	e, _ = openOn(t, disk)
	o = newOutsider(e)
	require.Eventually(t, func() bool { return !e.local.gap.open.Load() }, 5e9, 1e6)
	require.Len(t, o.story(), len(story), "a start after which nothing differs records no gap")
	require.NoError(t, e.Close())
}

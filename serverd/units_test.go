package serverd

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"strconv"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"cagefs.dev/cage/journal"
	"cagefs.dev/cage/remote/auth"
	"cagefs.dev/cage/remote/proto"
	"cagefs.dev/cage/remote/status"
	"cagefs.dev/cage/remote/wire"
)

// book is a user database for tests.
type book struct{}

func (book) byName(name string) (uid, gid uint32, groups []uint32, err error) {
	switch name {
	case "backup":
		return 34, 34, []uint32{34, 100}, nil
	case "root":
		return 0, 0, []uint32{0}, nil
	}
	return 0, 0, nil, errors.New("unknown user")
}

func (book) byUID(uid uint32) (gid uint32, groups []uint32, err error) {
	if uid == 1000 {
		return 1001, []uint32{1001, 27}, nil
	}
	return 0, nil, errors.New("unknown user")
}

func TestIdentify(t *testing.T) {
	uid := func(u uint32) *uint32 { return &u }
	claim := proto.Ident{UID: 0, GID: 0, Groups: []uint32{0, 4}, PID: 77, PGID: 70, Comm: "make"}
	as := func(uid, gid uint32, groups ...uint32) proto.Ident {
		return proto.Ident{UID: uid, GID: gid, Groups: groups, PID: 77, PGID: 70, Comm: "make"}
	}
	for name, c := range map[string]struct {
		key     auth.ClientKey
		trusted bool
		want    proto.Ident
		err     status.Code
	}{
		"trusted counts as claimed":       {key: auth.ClientKey{TrustIDs: true}, trusted: true, want: claim},
		"trusted root of this machine":    {key: auth.ClientKey{TrustIDs: true, LocalUID: uid(0)}, trusted: true, want: claim},
		"local user with groups":          {key: auth.ClientKey{LocalUID: uid(1000)}, want: as(1000, 1001, 1001, 27)},
		"local user without account":      {key: auth.ClientKey{LocalUID: uid(4711)}, want: as(4711, nobody)},
		"local user before a named one":   {key: auth.ClientKey{LocalUID: uid(1000), User: "backup"}, want: as(1000, 1001, 1001, 27)},
		"untrusted local root":            {key: auth.ClientKey{LocalUID: uid(0)}, want: as(nobody, nobody)},
		"server user":                     {key: auth.ClientKey{User: "backup"}, want: as(34, 34, 34, 100)},
		"server user root, untrusted":     {key: auth.ClientKey{User: "root"}, want: as(nobody, nobody)},
		"server user unknown":             {key: auth.ClientKey{User: "gone"}, err: status.WrongKey},
		"nothing known":                   {key: auth.ClientKey{}, want: as(nobody, nobody)},
		"nothing known, read-only export": {key: auth.ClientKey{ReadOnly: true}, want: as(nobody, nobody)},
	} {
		t.Run(name, func(t *testing.T) {
			id, err := identify(c.key, book{})
			require.Equal(t, c.err, status.Of(err))
			if err != nil {
				return
			}
			require.Equal(t, c.trusted, id.trusted)
			require.Equal(t, c.want, id.of(claim))
		})
	}
}

func TestSystemAccountsKnowThisUser(t *testing.T) {
	if _, _, err := (systemAccounts{}).byUID(uint32(os.Getuid())); err != nil {
		t.Skip("this user has no account")
	}
	gid, groups, err := systemAccounts{}.byUID(uint32(os.Getuid()))
	require.NoError(t, err)
	require.Contains(t, groups, gid)
}

func TestClientName(t *testing.T) {
	uid := uint32(7)
	local := auth.ClientKey{Name: "anna@box", LocalUID: &uid}
	joined := auth.ClientKey{Name: "laptop"}
	require.Equal(t, "desk", clientName(&local, "desk"))
	require.Equal(t, "a_b", clientName(&local, "a\nb"))
	require.Equal(t, "anna@box", clientName(&local, ""))
	require.Equal(t, "laptop", clientName(&joined, "desk"), "an invited client cannot call itself otherwise")
}

func TestGate(t *testing.T) {
	g := newGate(3, 100)
	ctx := t.Context()
	require.NoError(t, g.enter(ctx, 1000), "larger than all, but alone")
	require.False(t, g.tryEnter(1))
	g.leave(1000)
	require.NoError(t, g.enter(ctx, 40))
	require.NoError(t, g.enter(ctx, 60))
	require.False(t, g.tryEnter(1), "bytes used up")
	g.leave(60)
	require.True(t, g.tryEnter(1))
	require.True(t, g.tryEnter(1))
	require.False(t, g.tryEnter(1), "places used up")

	waiting := make(chan error)
	go func() { waiting <- g.enter(ctx, 1) }()
	g.leave(1)
	require.NoError(t, <-waiting)
	ended, cancel := context.WithCancel(ctx)
	cancel()
	require.ErrorIs(t, g.enter(ended, 1), context.Canceled)
}

func TestFeedMergesAndLeavesOwnOut(t *testing.T) {
	f := NewFeed()
	mine, other := newOutq(nil), newOutq(nil)
	f.subscribe(mine, 1)
	f.subscribe(other, 2)
	f.Publish(journal.Applied{LSN: 5, ID: 10, Data: true, Session: 1})
	f.Publish(journal.Applied{LSN: 6, ID: 11, Dir: 2, Name: "a", Session: 1})
	f.Publish(journal.Applied{LSN: 7, ID: 10, Session: 1})
	f.Publish(journal.Applied{LSN: 8, ID: 11, Dir: 2, Name: "b", NewDir: 3, NewName: "c", Session: 1})
	f.unsubscribe(other)
	f.Publish(journal.Applied{LSN: 9, ID: 10, Session: 1})

	b, ok := other.take()
	require.True(t, ok)
	require.Equal(t, []wire.Changed{
		{ID: 10, Change: 7, Data: true},
		{ID: 11, Change: 8},
		{ID: 2, Change: 8, Names: []string{"a", "b"}},
		{ID: 3, Change: 8, Names: []string{"c"}},
	}, b.pushes)
	b, more := mine.tryTake()
	require.True(t, b.empty() && more)
}

func TestMergeOfManyNamesIsAny(t *testing.T) {
	c := wire.Changed{ID: 2, Change: 1, Names: []string{"0"}}
	for i := range maxPushNames + 3 {
		merge(&c, wire.Changed{ID: 2, Change: proto.LSN(i + 2), Names: []string{strconv.Itoa(i)}})
	}
	require.Equal(t, wire.Changed{ID: 2, Change: maxPushNames + 4}, c)
}

func TestOutqOverflowOnce(t *testing.T) {
	n := 0
	q := newOutq(func() { n++ })
	for i := range maxPushes + 10 {
		q.push(wire.Changed{ID: proto.FileID(i + 1)})
	}
	require.Equal(t, 1, n)
}

func TestOutqCloseGivesTheRest(t *testing.T) {
	q := newOutq(nil)
	q.answer(answer{head: []byte("a")})
	q.announceDrain()
	q.close()
	q.answer(answer{head: []byte("late")})
	q.push(wire.Changed{ID: 1})
	b, ok := q.take()
	require.True(t, ok)
	require.Len(t, b.answers, 1)
	require.True(t, b.drain)
	_, ok = q.take()
	require.False(t, ok)
}

func TestFreshFiles(t *testing.T) {
	var f freshFiles
	f.add(5, 100)
	require.False(t, f.take(5, 101), "another user")
	require.True(t, f.take(5, 100))
	require.False(t, f.take(5, 100), "only once")
	for i := range proto.FileID(maxFresh + 1) {
		f.add(1000+i, 1)
	}
	require.False(t, f.take(1000, 1), "the oldest is forgotten")
	require.True(t, f.take(1001, 1))
	require.LessOrEqual(t, len(f.owner), maxFresh)
}

func TestListenFindsARun(t *testing.T) {
	lns, err := listenAll("127.0.0.1:0", 3)
	require.NoError(t, err)
	defer closeAll(lns)
	require.Len(t, lns, 4)
	for i, ln := range lns {
		require.Equal(t, portOf(lns[0])+i, portOf(ln))
	}
	_, err = listenAll("127.0.0.1:"+strconv.Itoa(portOf(lns[2])), 0)
	require.Equal(t, status.Busy, status.Of(err))
	require.ErrorContains(t, err, "in use")
	for _, bad := range []string{"127.0.0.1", "nowhere:x"} {
		_, err = listenAll(bad, 0)
		require.Error(t, err, bad)
	}
	_, err = listenAll("127.0.0.1:0", 1000)
	require.Equal(t, status.Usage, status.Of(err))
	_, err = listenAll("127.0.0.1:65535", 2)
	require.Error(t, err)
}

func TestCheckExports(t *testing.T) {
	dir := t.TempDir()
	sub := filepath.Join(dir, "sub", "deep")
	require.NoError(t, os.MkdirAll(sub, 0o755))
	beside := filepath.Join(dir, "sub-2")
	require.NoError(t, os.Mkdir(beside, 0o755))
	link := filepath.Join(beside, "link")
	require.NoError(t, os.Symlink(sub, link))
	file := filepath.Join(dir, "file")
	require.NoError(t, os.WriteFile(file, nil, 0o644))
	upper := filepath.Join(dir, "sub")
	spare := filepath.Join(dir, "spare")
	require.NoError(t, os.Mkdir(spare, 0o755))
	for name, c := range map[string]struct {
		specs []Spec
		code  status.Code
		text  string
	}{
		"two side by side":            {specs: []Spec{{Name: "a", Dir: upper}, {Name: "b", Dir: beside}}},
		"nested":                      {specs: []Spec{{Name: "a", Dir: upper}, {Name: "b", Dir: sub}}, code: status.Conflict, text: "lies in"},
		"nested, upwards":             {specs: []Spec{{Name: "a", Dir: sub}, {Name: "b", Dir: upper}}, code: status.Conflict, text: "export a: "},
		"nested by a link":            {specs: []Spec{{Name: "a", Dir: upper}, {Name: "b", Dir: link}}, code: status.Conflict, text: "lies in"},
		"the same":                    {specs: []Spec{{Name: "a", Dir: sub}, {Name: "b", Dir: link}}, code: status.Conflict, text: "already exported as a"},
		"same name":                   {specs: []Spec{{Name: "a", Dir: sub}, {Name: "a", Dir: beside}}, code: status.Usage, text: "twice"},
		"missing":                     {specs: []Spec{{Name: "a", Dir: dir + "/none"}}, code: status.NotFound, text: "does not exist"},
		"a file":                      {specs: []Spec{{Name: "a", Dir: file}}, code: status.NotDir, text: "is not a directory"},
		"no name":                     {specs: []Spec{{Dir: sub}}, code: status.Usage},
		"slash in name":               {specs: []Spec{{Name: "a/b", Dir: sub}}, code: status.Usage},
		"at in name":                  {specs: []Spec{{Name: "a@1", Dir: sub}}, code: status.Usage},
		"journal elsewhere":           {specs: []Spec{{Name: "a", Dir: sub, Journal: beside}}},
		"journal in its own export":   {specs: []Spec{{Name: "a", Dir: upper, Journal: sub}}, code: status.Conflict, text: "must not lie in one another"},
		"journal is the export":       {specs: []Spec{{Name: "a", Dir: sub, Journal: link}}, code: status.Conflict, text: "must not lie in one another"},
		"journal in another export":   {specs: []Spec{{Name: "a", Dir: beside, Journal: sub}, {Name: "b", Dir: upper}}, code: status.Conflict, text: "export b"},
		"export in another's journal": {specs: []Spec{{Name: "a", Dir: beside, Journal: upper}, {Name: "b", Dir: sub}}, code: status.Conflict, text: "export b"},
		"one journal for two":         {specs: []Spec{{Name: "a", Dir: sub, Journal: spare}, {Name: "b", Dir: beside, Journal: spare}}, code: status.Conflict, text: "the journal of b"},
		"journal missing":             {specs: []Spec{{Name: "a", Dir: sub, Journal: dir + "/none"}}, code: status.NotFound, text: "cannot be opened"},
		"dots":                        {specs: []Spec{{Name: "..", Dir: sub}}, code: status.Usage},
	} {
		t.Run(name, func(t *testing.T) {
			err := CheckExports(c.specs)
			require.Equal(t, c.code, status.Of(err), "%v", err)
			if err != nil {
				require.ErrorContains(t, err, c.text)
			}
		})
	}
	_, err := os.Stat(dir + "/none")
	require.ErrorIs(t, err, os.ErrNotExist, "a missing directory is not made")
}

func TestEveryRequestHasAHandler(t *testing.T) {
	elsewhere := map[wire.Opcode]bool{
		wire.OpHello: true, wire.OpAttach: true, wire.OpPing: true, wire.OpBye: true, wire.OpExports: true, wire.OpJoin: true, wire.OpAcquire: true,
	}
	for op, spec := range wire.Table {
		if spec.NewRequest == nil || spec.Change != 0 || elsewhere[op] {
			continue
		}
		require.Contains(t, handlers, op, "%s", op)
	}
	for op := range handlers {
		require.NotNil(t, wire.Table[op].NewRequest, "%s", op)
	}
}

func TestHandlersTakeTheirRequests(t *testing.T) {
	for op, f := range handlers {
		require.Panics(t, func() { f(&call{}, &wire.HelloReq{}) }, "%s", op)
	}
}

func TestIdleOfASession(t *testing.T) {
	s := newSession(1, &export{}, &auth.ClientKey{}, "c", 1)
	require.Zero(t, s.idle(), "never connected: being made")
	c := &conn{}
	s.setMain(c)
	s.leave(&conn{})
	require.Same(t, c, s.current(), "another connection's end changes nothing")
	s.leave(c)
	require.Eventually(t, func() bool { return s.idle() > 0 }, time.Second, time.Millisecond)
}

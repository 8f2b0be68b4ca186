package remote

import (
	"bufio"
	"context"
	"fmt"
	"math"
	"net"
	"os"
	"runtime"
	"strconv"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"cagefs.dev/cage/remote/hostile"
	"cagefs.dev/cage/remote/lockset"
	"cagefs.dev/cage/remote/proto"
	"cagefs.dev/cage/remote/simnet"
	"cagefs.dev/cage/remote/status"
	"cagefs.dev/cage/remote/wire"
)

func hostileSeed(t *testing.T) uint64 {
	seed := uint64(time.Now().UnixNano())
	if s := os.Getenv("CAGE_HOSTILE_SEED"); s != "" {
		n, err := strconv.ParseUint(s, 10, 64)
		require.NoError(t, err)
		seed = n
	}
	t.Logf("CAGE_HOSTILE_SEED=%d", seed)
	return seed
}

// believed fails the test for an answer that nobody above could use.
func believed(t *testing.T, a *proto.Attr) {
	if a.ID == 0 || a.ID > proto.MaxFileID || a.Size > math.MaxInt64 {
		t.Errorf("passed on: %+v", a)
	}
}

// ask makes a call, any, and checks what it returns.
func ask(t *testing.T, ctx context.Context, s *Session, g *hostile.Gen) {
	id, h := proto.FileID(2+g.Uint64N(9)), wire.ReqHeader{}
	attr := func(a proto.Attr, err error, want proto.FileID) {
		if err == nil {
			believed(t, &a)
			if want != 0 && a.ID != want {
				t.Errorf("asked for %v, given %v", want, a.ID)
			}
		}
	}
	switch g.IntN(22) {
	case 0:
		a, err := s.Lookup(ctx, h, id, "x")
		attr(a, err, 0)
	case 1:
		a, err := s.GetAttr(ctx, h, id)
		attr(a, err, id)
	case 2:
		cookie := g.Uint64N(5)
		rep, err := s.ReadDir(ctx, h, id, cookie, 100, true)
		if err != nil {
			return
		}
		for _, e := range rep.Entries {
			if wire.CheckName(e.Name) != nil || e.Attr.ID > proto.MaxFileID {
				t.Errorf("passed on: %+v", e)
			}
		}
		if !rep.EOF && (len(rep.Entries) == 0 || rep.Entries[len(rep.Entries)-1].Cookie == cookie) {
			t.Errorf("a listing that does not go on")
		}
	case 3:
		s.Readlink(ctx, h, id)
	case 4, 5:
		p := make([]byte, g.IntN(3<<20))
		n, _, size, err := s.ReadAt(ctx, h, id, p, int64(g.Uint64N(1<<20)))
		if err == nil && (n > len(p) || size > math.MaxInt64) {
			t.Errorf("read %d of %d, size %d", n, len(p), size)
		}
	case 6, 7:
		a, err := s.Open(ctx, h, id, wire.OpenRead, lockset.NoMode)
		attr(a, err, id)
		if err == nil {
			s.Release(id)
		}
	case 8:
		s.StatFS(ctx, h, id)
	case 9:
		s.GetXattr(ctx, h, id, "user.x")
		s.ListXattr(ctx, h, id)
	case 10:
		if off, err := s.Seek(ctx, h, id, 5, true); err == nil && off < 0 {
			t.Errorf("offset %d", off)
		}
	case 11:
		a, err := s.Resolve(ctx, h, "a/b")
		attr(a, err, 0)
	case 12, 13:
		res, err := s.Do(ctx, who, mkdir("d"))
		if err == nil && res.Attr.ID != 0 {
			believed(t, &res.Attr)
		}
	case 14:
		res, err := s.Do(ctx, who, &proto.SetAttr{ID: id, Mask: proto.SetMode})
		if err == nil && res.Attr.ID != 0 && res.Attr.ID != id {
			t.Errorf("changed %v, given %v", id, res.Attr.ID)
		}
	case 15, 16:
		s.Log(ctx, who, write(id, g.IntN(1000), "data"))
	case 17:
		s.Sync(ctx, who)
	case 18:
		n, _, err := s.Copy(ctx, who, proto.Copy{ID: id, Src: id + 1}, 3000)
		if err == nil && n > 3000 {
			t.Errorf("copied %d of 3000", n)
		}
	case 19:
		s.Verify(ctx, true)
	case 20:
		o := LockOwner{ID: id, Num: g.Uint64N(3), Kind: lockset.Kind(g.IntN(3))}
		brief, stop := context.WithTimeout(ctx, 100*time.Millisecond)
		a, err := s.Lock(brief, o, lockset.Whole(g.IntN(2) == 0), g.IntN(2) == 0)
		stop()
		if err == nil && a.ID != 0 {
			attr(a, err, id)
		}
		s.DropLocks(o)
	case 21:
		if l, held, err := s.TestLock(ctx, LockOwner{ID: id}, lockset.Whole(true)); err == nil && held && (l.Start > l.End || l.End > lockset.Max) {
			t.Errorf("a lock from %d to %d", l.Start, l.End)
		}
	}
}

// Whatever a server says: every call ends with its context at the latest, nothing
// that cannot be is passed on, and nothing piles up.
func TestHostileServer(t *testing.T) {
	rounds := 60
	if os.Getenv("CAGE_ACCEPT") != "" {
		rounds = 3000
	}
	seed := hostileSeed(t)
	synctest.Test(t, func(t *testing.T) {
		l := &hostile.Liar{Seed: seed}
		srv := newServer(t, simnet.New(1), 2)
		srv.instead = l.Serve
		o := srv.options()
		o.Patience = 5 * time.Second
		var told atomic.Int64
		o.Changed = func(wire.Changed) { told.Add(1) }
		var s *Session
		for s == nil {
			s, _ = Dial(t.Context(), o)
		}
		var wg sync.WaitGroup
		for i := range 8 {
			g := hostile.New(seed, 1000+uint64(i))
			wg.Go(func() {
				for n := 0; n < rounds || told.Load() == 0 && n < 100*rounds; n++ { // few pushes are whole
					const limit = 20 * time.Second
					ctx, cancel := context.WithTimeout(t.Context(), limit)
					began := time.Now()
					ask(t, ctx, s, g)
					if took := time.Since(began); took > 2*limit+time.Second { // one case asks twice
						t.Errorf("a call took %v", took)
					}
					cancel()
				}
			})
		}
		wg.Wait()
		require.Positive(t, told.Load())
		require.LessOrEqual(t, len(s.ports), maxPorts)
		s.upcalls.mu.Lock()
		require.LessOrEqual(t, s.upcalls.names, maxChangedNames)
		s.upcalls.mu.Unlock()
		var m runtime.MemStats
		runtime.GC()
		runtime.ReadMemStats(&m)
		require.Less(t, m.HeapAlloc, uint64(256<<20))
		t.Logf("%d answers on %d connections, %d pushes told, heap %d KiB", l.Sent.Load(), l.Conns.Load(), told.Load(), m.HeapAlloc>>10)
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		defer cancel()
		s.Close(ctx)
		srv.stop()
	})
}

// What a liar makes of a hello and of offers of ports.
func TestHelloThatCannotBe(t *testing.T) {
	for what, rep := range map[string]wire.HelloRep{
		"root is a file":     {Session: 5, Root: proto.Attr{ID: proto.RootID, Mode: proto.ModeRegular}},
		"root has no number": {Session: 5, Root: proto.Attr{Mode: proto.ModeDir}},
		"no session":         {Root: proto.Attr{ID: proto.RootID, Mode: proto.ModeDir}},
	} {
		synctest.Test(t, func(t *testing.T) {
			srv := newServer(t, simnet.New(1), 0)
			srv.instead = func(c net.Conn) {
				wire.Welcome(c)
				h, _, err := wire.ReadFrame(bufio.NewReader(c), wire.MaxFrame, nil)
				if err == nil {
					rep.Version = wire.Version
					c.Write(wire.AppendFrame(nil, h.Reply(), &rep))
				}
			}
			_, err := Dial(t.Context(), srv.options())
			require.Equal(t, status.BadFrame, status.Of(err), "%s: %v", what, err)
			srv.stop()
		})
	}
}

// A push with many names is worth many.
func TestPushesAreBoundedByNames(t *testing.T) {
	u := newUpcalls(&Options{})
	names := make([]string, wire.MaxEntries)
	for i := range names {
		names[i] = fmt.Sprintf("%0255d", i)
	}
	for i := range 10_000 {
		u.changed(wire.Changed{ID: proto.FileID(i), Names: names})
		require.LessOrEqual(t, u.names, maxChangedNames)
	}
	held := 0
	for _, e := range u.events {
		if e.changed != nil {
			held += len(e.changed.Names)
		}
	}
	require.LessOrEqual(t, held, maxChangedNames)
}

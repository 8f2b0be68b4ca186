package remote

import (
	"bytes"
	"context"
	"fmt"
	"math/rand/v2"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"cagefs.dev/cage/remote/lockset"
	"cagefs.dev/cage/remote/proto"
	"cagefs.dev/cage/remote/simnet"
	"cagefs.dev/cage/remote/status"
	"cagefs.dev/cage/remote/wire"
)

// A bubble ends only when all its goroutines have: every test here checks that
// Close leaves none.

var makeOp = wire.ChangeOpcode(&proto.Make{})
var writeOp = wire.ChangeOpcode(&proto.Write{})

func TestRequests(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		srv := newServer(t, simnet.New(1), 2)
		s := srv.dial(srv.options())
		require.EqualValues(t, 1, s.Hello().Root.ID)

		a, err := s.Lookup(ctx, wire.ReqHeader{}, proto.RootID, "name")
		require.NoError(t, err)
		require.EqualValues(t, 7, a.ID)
		_, err = s.Lookup(ctx, wire.ReqHeader{}, proto.RootID, "missing")
		require.EqualError(t, err, "lookup missing: no such file or directory")
		require.Equal(t, status.NotFound, status.Of(err))
		_, err = s.Lookup(ctx, wire.ReqHeader{}, proto.RootID, string(make([]byte, 300)))
		require.Equal(t, status.NameTooLong, status.Of(err), "not sent")

		names, err := s.Exports(ctx)
		require.NoError(t, err)
		require.Equal(t, []string{"home", "src"}, names)
		_, err = s.Usage(ctx)
		require.NoError(t, err)

		res, err := s.Do(ctx, who, mkdir("d"))
		require.NoError(t, err)
		require.EqualValues(t, 1001, res.LSN)
		_, err = s.Do(ctx, who, mkdir("a/b"))
		require.Equal(t, status.Invalid, status.Of(err), "not logged")
		require.EqualValues(t, 1, s.Applied())
		require.NoError(t, s.Sync(ctx, who))

		seq, err := s.Log(ctx, who, write(5, 0, "hello"))
		require.NoError(t, err)
		require.NoError(t, s.Wait(ctx, seq))
		require.Equal(t, "hello", string(srv.file(5)))
		require.Equal(t, status.Invalid, status.Of(s.Wait(ctx, seq+1)))

		st := s.Status()
		require.Equal(t, Online, st.State)
		require.Zero(t, st.Unapplied)
		require.NoError(t, s.Close(ctx))
		require.NoError(t, s.Close(ctx))
		require.Equal(t, Closed, s.Status().State)
		require.Equal(t, 1, srv.count(wire.OpBye, false))
		_, err = s.Log(ctx, who, write(5, 0, "x"))
		require.Equal(t, status.Unreachable, status.Of(err))
		_, err = s.GetAttr(ctx, wire.ReqHeader{}, 5)
		require.Equal(t, status.Unreachable, status.Of(err))
		require.Len(t, srv.hellos, 1, "no connection after the goodbye")
	})
}

func TestReadAt(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		srv := newServer(t, simnet.New(1), 0)
		s := srv.dial(srv.options())
		content := make([]byte, 2*proto.MaxIO+1000)
		for i := range content {
			content[i] = byte(rand.N(256))
		}
		srv.set(func() { srv.files[5] = content })
		f := s.File(5, who)
		for _, tt := range []struct{ off, len, want int }{
			{0, 10, 10}, {5, 0, 0}, {0, len(content), len(content)}, {0, 4 * proto.MaxIO, len(content)},
			{proto.MaxIO - 3, proto.MaxIO + 7, proto.MaxIO + 7}, {len(content) - 5, 100, 5}, {len(content) + 5, 100, 0},
		} {
			p := make([]byte, tt.len)
			n, change, size, err := f.ReadAt(ctx, p, int64(tt.off))
			require.NoError(t, err)
			require.Equal(t, tt.want, n, "%+v", tt)
			require.EqualValues(t, 5, change)
			require.EqualValues(t, len(content), size)
			require.True(t, bytes.Equal(content[min(tt.off, len(content)):][:n], p[:n]), "%+v", tt)
		}
		_, _, _, err := f.ReadAt(ctx, nil, -1)
		require.Equal(t, status.Invalid, status.Of(err))
	})
}

func TestFileLogSplitsLongWrites(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		srv := newServer(t, simnet.New(1), 0)
		s := srv.dial(srv.options())
		p := bytes.Repeat([]byte("cage"), proto.MaxIO/4*2+3)
		f := s.File(5, who)
		seq, err := f.Log(ctx, p, 0)
		require.NoError(t, err)
		require.NoError(t, f.Wait(ctx, seq))
		require.True(t, bytes.Equal(p, srv.file(5)))
		require.Equal(t, seq, f.Applied())
	})
}

// TestCutsApplyOnce works through connections that break after a random number
// of bytes: every change is applied once, in order, every read is answered.
func TestCutsApplyOnce(t *testing.T) {
	for seed := range uint64(8) {
		t.Run(fmt.Sprint(seed), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) { testCuts(t, seed) })
		})
	}
}

func testCuts(t *testing.T, seed uint64) {
	n := simnet.New(seed)
	n.Delay(5*time.Millisecond, 5*time.Millisecond)
	srv := newServer(t, n, 2)
	o := srv.options()
	var resets atomic.Int32
	o.Reset = func() { resets.Add(1) }
	s := srv.dial(o)
	n.CutAfter(5_000, 60_000)
	n.Cut("client", "server")
	r := rand.New(rand.NewPCG(seed, 2))
	srv.set(func() { srv.files[9] = []byte("constant") })

	var want []byte
	for i := range 120 {
		p := bytes.Repeat([]byte{byte(i + 1)}, 1+r.IntN(3000))
		_, err := s.Log(ctx, who, write(5, len(want), string(p)))
		require.NoError(t, err)
		want = append(want, p...)
		if i%10 == 0 {
			_, err := s.Do(ctx, who, mkdir(fmt.Sprint(i)))
			require.NoError(t, err)
		}
		if i%3 == 0 {
			p := make([]byte, 100)
			k, _, _, err := s.ReadAt(ctx, wire.ReqHeader{}, 9, p, 0)
			require.NoError(t, err)
			require.Equal(t, "constant", string(p[:k]))
		}
	}
	n.CutAfter(0, 0)
	require.NoError(t, s.Sync(ctx, who))
	require.True(t, bytes.Equal(want, srv.file(5)))
	require.NoError(t, s.TakeError(0))
	srv.mu.Lock()
	require.Len(t, srv.sessions, 1)
	dirs := 0
	for _, op := range srv.sessions[101].applied {
		if len(op) > 6 && op[:6] != "write " {
			dirs++
		}
	}
	srv.mu.Unlock()
	require.Equal(t, 12+1, dirs, "each mkdir and the sync, once")
	require.Positive(t, s.Status().Resumes)
	synctest.Wait()
	require.EqualValues(t, s.Status().Resumes, resets.Load())
}

func TestServerRestart(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		srv := newServer(t, simnet.New(1), 0)
		s := srv.dial(srv.options())
		srv.set(func() { srv.hold = holding(writeOp, makeOp) })
		seq, err := s.Log(ctx, who, write(5, 0, "before"))
		require.NoError(t, err)
		done := make(chan error)
		go func() {
			_, err := s.Do(ctx, who, mkdir("d"))
			done <- err
		}()
		synctest.Wait()
		srv.stop()
		synctest.Wait()
		require.Equal(t, Reconnecting, s.Status().State)
		require.Equal(t, 2, s.Status().Unapplied)
		_, err = s.Log(ctx, who, write(5, 6, " during"))
		require.NoError(t, err)
		time.Sleep(time.Minute)
		require.Contains(t, s.Status().LastError, "connection refused: is cageserverd running there?")
		srv.set(func() { srv.hold = nil })
		srv.start()
		start := time.Now()
		require.NoError(t, <-done)
		require.LessOrEqual(t, time.Since(start), maxPause)
		require.NoError(t, s.Wait(ctx, seq+2))
		require.Equal(t, "before during", string(srv.file(5)))
		require.Empty(t, s.Status().LastError)
		require.Equal(t, 1, s.Status().Resumes)
		require.EqualValues(t, 1, srv.hellos[len(srv.hellos)-1].NextSeq)
	})
}

func TestLostSession(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		srv := newServer(t, simnet.New(1), 0)
		o := srv.options()
		type failure struct {
			id  proto.FileID
			seq proto.Seq
		}
		failed := make(chan failure, 10)
		o.Failed = func(id proto.FileID, seq proto.Seq, err error) { failed <- failure{id, seq} }
		s := srv.dial(o)
		_, err := s.Open(ctx, wire.ReqHeader{}, 5, wire.OpenWrite, lockset.NoMode)
		require.NoError(t, err)
		_, err = s.Log(ctx, who, write(5, 0, "applied"))
		require.NoError(t, err)
		require.NoError(t, s.Sync(ctx, who))

		srv.set(func() { srv.hold = holding(writeOp) })
		seq, err := s.Log(ctx, who, write(5, 0, "unknown"))
		require.NoError(t, err)
		synctest.Wait()
		srv.stop()
		srv.forget()
		srv.set(func() { srv.hold = nil })
		srv.start()
		require.Equal(t, status.LostSession, status.Of(s.Wait(ctx, seq)))
		require.Equal(t, failure{5, seq}, <-failed)
		require.Equal(t, status.LostSession, status.Of(s.TakeError(5)))
		require.NoError(t, s.TakeError(5))

		next, err := s.Log(ctx, who, write(5, 0, "new one"))
		require.NoError(t, err)
		require.Equal(t, seq+1, next)
		require.NoError(t, s.Wait(ctx, next))
		require.Equal(t, "new one", string(srv.file(5)))
		srv.set(func() { require.Equal(t, 1, srv.sessions[srv.nextID].opens[5], "opened again") })
	})
}

func TestSessionOfAnotherHistory(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		srv := newServer(t, simnet.New(1), 0)
		s := srv.dial(srv.options())
		srv.set(func() { srv.hold = holding(writeOp) })
		seq, err := s.Log(ctx, who, write(5, 0, "x"))
		require.NoError(t, err)
		synctest.Wait()
		srv.set(func() {
			srv.hold = nil
			srv.sessions[101].applied = make([]string, 7) // of a client that this is not
		})
		srv.net.Cut("client", "server")
		require.Equal(t, status.LostSession, status.Of(s.Wait(ctx, seq)))
		_, err = s.Do(ctx, who, mkdir("d"))
		require.NoError(t, err)
		require.EqualValues(t, 102, s.Status().Session)
		require.Error(t, s.TakeError(0))
	})
}

func TestStickyErrors(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		srv := newServer(t, simnet.New(1), 0)
		srv.fail = func(op proto.Op) error {
			if w, ok := op.(*proto.Write); ok && w.ID == 6 {
				return status.New(status.NoSpace, "write", "fid 6")
			}
			return nil
		}
		s := srv.dial(srv.options())
		seq, err := s.Log(ctx, who, write(6, 0, "x"))
		require.NoError(t, err)
		require.NoError(t, s.Sync(ctx, who))
		require.ErrorIs(t, s.Wait(ctx, seq), status.NoSpace, "known afterwards")
		require.Contains(t, s.Status().LastError, "no space left")
		require.ErrorIs(t, s.TakeError(6), status.NoSpace)
		require.NoError(t, s.TakeError(6))

		_, err = s.Do(ctx, who, write(6, 0, "x"))
		require.ErrorIs(t, err, status.NoSpace)
		require.NoError(t, s.TakeError(6), "who waited was told")

		_, err = s.Log(ctx, who, write(6, 0, "x"))
		require.NoError(t, err)
		require.ErrorIs(t, s.Close(ctx), status.NoSpace, "nobody else was told")
	})
}

func TestBudget(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		srv := newServer(t, simnet.New(1), 0)
		o := srv.options()
		o.Budget = 10_000
		s := srv.dial(o)
		srv.set(func() { srv.hold = holding(writeOp) })
		fill := string(make([]byte, 6000))
		_, err := s.Log(ctx, who, write(5, 0, fill))
		require.NoError(t, err)
		synctest.Wait()

		short, cancel := context.WithTimeout(ctx, time.Second)
		defer cancel()
		_, err = s.Log(short, who, write(5, 6000, fill))
		require.Equal(t, status.Timeout, status.Of(err), "the context's end")
		require.Equal(t, 1, s.Status().Unapplied)

		done := make(chan proto.Seq)
		go func() {
			seq, err := s.Log(ctx, who, write(5, 6000, fill))
			require.NoError(t, err)
			done <- seq
		}()
		time.Sleep(time.Hour)
		select {
		case <-done:
			t.Fatal("the budget is used up")
		default:
		}
		srv.set(func() { srv.hold = nil })
		srv.net.Cut("client", "server") // sent again, and answered now
		seq := <-done
		require.NoError(t, s.Wait(ctx, seq))
		require.Len(t, srv.file(5), 12000)

		_, err = s.Log(ctx, who, write(5, 0, string(make([]byte, 20_000))))
		require.NoError(t, err, "one larger than the budget goes alone")
	})
}

// What programs write leaves room for what the kernel writes back of their mappings, but not the other way round.
func TestBudgetOfMappings(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		srv := newServer(t, simnet.New(1), 0)
		o := srv.options()
		o.Budget = 10_000
		s := srv.dial(o)
		srv.set(func() { srv.hold = holding(writeOp) })
		log := func(off, n int, mapped bool) status.Code {
			short, cancel := context.WithTimeout(ctx, time.Second)
			defer cancel()
			op := write(5, off, string(make([]byte, n)))
			op.Mapped = mapped
			_, err := s.Log(short, who, op)
			return status.Of(err)
		}
		require.Equal(t, status.OK, log(0, 7000, false))
		require.Equal(t, status.Timeout, log(7000, 2000, false), "the rest is kept")
		require.Equal(t, status.OK, log(7000, 2000, true))
		require.Equal(t, status.Timeout, log(9000, 1000, true))
		srv.set(func() { srv.hold = nil })
		srv.net.Cut("client", "server")
		require.NoError(t, s.Sync(ctx, who))
		require.Equal(t, status.OK, log(9000, 7000, false))
	})
}

func TestInFlightIsBounded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		srv := newServer(t, simnet.New(1), 0)
		srv.hold = holding(wire.OpLookup, makeOp)
		s := srv.dial(srv.options())
		for i := range 300 {
			go s.Lookup(ctx, wire.ReqHeader{}, 1, "x")
			go s.Do(ctx, who, mkdir(fmt.Sprint(i)))
		}
		synctest.Wait()
		require.Equal(t, maxCalls, srv.count(wire.OpLookup, false))
		require.Equal(t, maxChanges, srv.count(makeOp, false))
	})
}

func TestOpensAreCounted(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		srv := newServer(t, simnet.New(1), 0)
		s := srv.dial(srv.options())
		opens := func() map[proto.FileID]int {
			synctest.Wait()
			srv.mu.Lock()
			defer srv.mu.Unlock()
			return srv.sessions[101].opens
		}
		for range 2 {
			_, err := s.Open(ctx, wire.ReqHeader{}, 5, wire.OpenRead, lockset.NoMode)
			require.NoError(t, err)
		}
		s.Release(5)
		require.NotEmpty(t, opens())
		s.Release(5)
		require.Empty(t, opens())
		s.Release(5) // one too many does nothing

		_, err := s.Open(ctx, wire.ReqHeader{}, 404, wire.OpenRead, lockset.NoMode)
		require.Equal(t, status.Stale, status.Of(err))
		require.Empty(t, opens())
		require.Equal(t, 1, srv.count(wire.OpRelease, false), "nothing to give back")

		// An Open that nobody waits for any more is given back when its answer comes.
		srv.set(func() { srv.hold = holding(wire.OpOpen) })
		short, cancel := context.WithTimeout(ctx, time.Second)
		defer cancel()
		_, err = s.Open(short, wire.ReqHeader{}, 6, wire.OpenRead, lockset.NoMode)
		require.Equal(t, status.Timeout, status.Of(err))
		_, err = s.GetAttr(ctx, wire.ReqHeader{}, 6)
		require.NoError(t, err)
		require.Len(t, s.opens, 1)
		c := srv.main()
		srv.set(func() {
			srv.hold = nil
			c.sess.opens[6]++
		})
		c.reply(wire.Request(wire.OpOpen, s.main.lastID-1), &wire.AttrRep{}, nil)
		require.Empty(t, opens())
		require.Empty(t, s.opens)

		// A lost connection: the hello tells what is open, a Release on its way is sent again.
		_, err = s.Open(ctx, wire.ReqHeader{}, 5, wire.OpenRead, lockset.NoMode)
		require.NoError(t, err)
		_, err = s.Open(ctx, wire.ReqHeader{}, 7, wire.OpenRead, lockset.NoMode)
		require.NoError(t, err)
		srv.set(func() { srv.hold = holding(wire.OpRelease) })
		s.Release(7)
		synctest.Wait()
		srv.set(func() { srv.hold = nil })
		srv.net.Cut("client", "server")
		_, err = s.GetAttr(ctx, wire.ReqHeader{}, 5)
		require.NoError(t, err)
		require.Equal(t, map[proto.FileID]int{5: 1}, opens())
	})
}

func TestOpenWaitsForRelease(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		srv := newServer(t, simnet.New(1), 0)
		s := srv.dial(srv.options())
		_, err := s.Open(ctx, wire.ReqHeader{}, 5, wire.OpenRead, lockset.NoMode)
		require.NoError(t, err)
		srv.set(func() { srv.hold = holding(wire.OpRelease) })
		s.Release(5)
		done := make(chan error)
		go func() {
			_, err := s.Open(ctx, wire.ReqHeader{}, 5, wire.OpenRead, lockset.NoMode)
			done <- err
		}()
		synctest.Wait()
		require.Equal(t, 1, srv.count(wire.OpOpen, false), "the second waits")
		srv.set(func() { srv.hold = nil })
		srv.net.Cut("client", "server")
		require.NoError(t, <-done)
		srv.set(func() { require.Equal(t, 1, srv.sessions[101].opens[5]) })
	})
}

func TestChangedUpcalls(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		srv := newServer(t, simnet.New(1), 0)
		o := srv.options()
		got := make(chan wire.Changed, 10)
		o.Changed = func(c wire.Changed) { got <- c }
		srv.dial(o)
		c := srv.main()
		for i := range 3 {
			c.push(wire.OpChanged, &wire.Changed{ID: proto.FileID(i), Change: 9, Names: []string{"x"}})
		}
		for i := range 3 {
			require.Equal(t, wire.Changed{ID: proto.FileID(i), Change: 9, Names: []string{"x"}}, <-got)
		}
	})
}

func TestTooManyChangedBecomeAReset(t *testing.T) {
	var order []string
	u := newUpcalls(&Options{
		Changed: func(c wire.Changed) { order = append(order, c.ID.String()) },
		Reset:   func() { order = append(order, "reset") },
	})
	for i := range maxChanged + 3 {
		u.changed(wire.Changed{ID: proto.FileID(i)})
	}
	for _, e := range u.events {
		u.tell(e)
	}
	require.Equal(t, []string{"reset", proto.FileID(maxChanged + 1).String(), proto.FileID(maxChanged + 2).String()}, order)
}

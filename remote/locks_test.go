package remote

import (
	"context"
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

// A lock is given up when everything before is applied, and who wants one
// after that waits until it is.
func TestUnlockComesAfterTheLog(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		srv := newServer(t, simnet.New(1), 0)
		s := srv.dial(srv.options())
		o, l := LockOwner{ID: 5, Num: 1}, lockset.Lock{Start: 3, End: 9, Exclusive: true}
		_, err := s.Lock(ctx, o, l, false)
		require.NoError(t, err)
		other := LockOwner{ID: 6, Num: 1}
		_, err = s.Lock(ctx, other, l, false)
		require.NoError(t, err)
		srv.set(func() { srv.hold = holding(writeOp) })
		_, err = s.Log(ctx, who, write(5, 0, "under it"))
		require.NoError(t, err)
		dropped := s.DropLocks(o)
		require.NotNil(t, dropped)
		next := make(chan error)
		go func() {
			_, err := s.Lock(ctx, LockOwner{ID: 5, Num: 2}, l, false)
			next <- err
		}()
		go func() { // a weaker lock gives something up as well
			_, err := s.Lock(ctx, other, lockset.Lock{Start: 3, End: 9}, false)
			next <- err
		}()
		synctest.Wait()
		require.Zero(t, srv.count(wire.OpUnlock, false))
		require.Equal(t, 2, srv.count(wire.OpLock, false))
		srv.set(func() { srv.hold = nil })
		srv.net.Cut("client", "server")
		<-dropped
		require.NoError(t, <-next)
		require.NoError(t, <-next)
		require.Equal(t, 1, srv.count(wire.OpUnlock, false))
		hello := srv.hellos[len(srv.hellos)-1]
		require.ElementsMatch(t, []wire.Lock{o.wire(l), other.wire(l)}, hello.Locks, "held until then")
		require.Nil(t, s.DropLocks(LockOwner{ID: 5, Num: 3}))
		require.NoError(t, s.Unlock(ctx, LockOwner{ID: 6, Num: 1}, 0, lockset.Max))
	})
}

// A wait that is interrupted ends soon also if the server does not answer, and
// when the lock comes all the same it is given back.
func TestInterruptedWait(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		srv := newServer(t, simnet.New(1), 0)
		s := srv.dial(srv.options())
		var conn *serverConn
		var wait wire.Header
		srv.set(func() {
			srv.hold = func(c *serverConn, h wire.Header) bool {
				if h.Op == wire.OpLock && conn == nil {
					conn, wait = c, h
					return true
				}
				return h.Op == wire.OpUnwait
			}
		})
		o := LockOwner{ID: 5, Num: 1}
		brief, interrupt := context.WithCancel(ctx)
		ended := make(chan error)
		go func() {
			_, err := s.Lock(brief, o, lockset.Whole(true), true)
			ended <- err
		}()
		synctest.Wait()
		conn.reply(wait, &wire.LockRep{Queued: true}, nil)
		synctest.Wait()
		interrupt()
		start := time.Now()
		require.Equal(t, status.Interrupted, status.Of(<-ended))
		require.Equal(t, unwaitTimeout, time.Since(start))
		conn.wmu.Lock()
		conn.tls.Write(wire.AppendFrame(nil, wire.Push(wire.OpLockDone), &wire.LockDone{Wait: 1}))
		conn.wmu.Unlock()
		synctest.Wait()
		require.Equal(t, 1, srv.count(wire.OpUnlock, false))
		require.Nil(t, s.DropLocks(o))

		srv.set(func() { srv.hold = nil })
		_, err := s.Lock(ctx, o, lockset.Whole(true), true)
		require.NoError(t, err)
	})
}

// Who is interrupted and asks again is not answered before it is clear what became of
// the first request: to undo that would take away what the second has got.
func TestLockAfterAnInterruptedOne(t *testing.T) {
	for _, queued := range []bool{false, true} {
		synctest.Test(t, func(t *testing.T) {
			srv := newServer(t, simnet.New(1), 0)
			s := srv.dial(srv.options())
			var conn *serverConn
			var first wire.Header
			srv.set(func() {
				srv.hold = func(c *serverConn, h wire.Header) bool {
					if h.Op == wire.OpLock && conn == nil {
						conn, first = c, h
						return true
					}
					return h.Op == wire.OpUnwait
				}
			})
			o, l := LockOwner{ID: 5, Num: 1, Kind: lockset.Flock}, lockset.Whole(false)
			brief, interrupt := context.WithCancel(ctx)
			ended := make(chan error)
			go func() {
				_, err := s.Lock(brief, o, l, true)
				ended <- err
			}()
			synctest.Wait()
			if queued {
				conn.reply(first, &wire.LockRep{Queued: true}, nil)
				synctest.Wait()
			}
			interrupt()
			require.Equal(t, status.Interrupted, status.Of(<-ended))
			go func() {
				_, err := s.Lock(ctx, o, l, true)
				ended <- err
			}()
			synctest.Wait()
			require.Equal(t, 1, srv.count(wire.OpLock, false), "the first may still be granted")
			if queued {
				conn.wmu.Lock()
				conn.tls.Write(wire.AppendFrame(nil, wire.Push(wire.OpLockDone), &wire.LockDone{Wait: 1}))
				conn.wmu.Unlock()
			} else {
				conn.reply(first, &wire.LockRep{}, nil)
			}
			require.NoError(t, <-ended)
			require.Equal(t, 1, srv.count(wire.OpUnlock, false))
			require.Equal(t, 2, srv.count(wire.OpLock, false))
			require.Len(t, s.locks.list(), 1)
		})
	}
}

func TestLostLocks(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		srv := newServer(t, simnet.New(1), 0)
		o := srv.options()
		lost := make(chan LockOwner, 10)
		o.LostLock = func(o LockOwner) { lost <- o }
		s := srv.dial(o)
		mine := LockOwner{ID: 5, Num: 1}
		_, err := s.Lock(ctx, mine, lockset.Whole(true), false)
		require.NoError(t, err)
		_, err = s.LogIf(ctx, who, write(5, 0, "x"), func() error { return status.LostLock })
		require.ErrorIs(t, err, status.LostLock)

		// The session goes on without the lock.
		srv.set(func() {
			srv.hold = holding(writeOp)
			srv.lostLocks = []uint32{0}
		})
		seq, err := s.Log(ctx, who, write(5, 0, "late"))
		require.NoError(t, err)
		synctest.Wait()
		srv.set(func() { srv.hold = nil })
		srv.net.Cut("client", "server")
		require.Equal(t, status.LostLock, status.Of(s.Wait(ctx, seq)))
		require.Equal(t, mine, <-lost)
		require.Empty(t, srv.file(5))
		require.Equal(t, "late", srv.kept(5))

		// The session is lost.
		srv.set(func() { srv.lostLocks = nil })
		_, err = s.Lock(ctx, mine, lockset.Whole(true), false)
		require.NoError(t, err)
		srv.stop()
		synctest.Wait()
		seq, err = s.Log(ctx, who, write(5, 0, "never sent"))
		require.NoError(t, err)
		srv.forget()
		srv.start()
		require.Equal(t, mine, <-lost)
		require.Equal(t, status.LostLock, status.Of(s.Wait(ctx, seq)))
		require.Empty(t, srv.file(5))
		require.Equal(t, "latenever sent", srv.kept(5))
		require.Nil(t, s.DropLocks(mine))

		var rep wire.HelloRep
		rep.Session, rep.Root, rep.LostLocks = 1, proto.Attr{ID: proto.RootID, Mode: proto.ModeDir}, []uint32{1}
		require.Equal(t, status.BadFrame, status.Of(s.o.believeHello(&rep, 1, 0)))
	})
}

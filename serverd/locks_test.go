package serverd

import (
	"context"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/rs/zerolog"
	"github.com/stretchr/testify/require"

	"cagefs.dev/cage/journal/vfs"
	"cagefs.dev/cage/remote"
	"cagefs.dev/cage/remote/lockset"
	"cagefs.dev/cage/remote/proto"
	"cagefs.dev/cage/remote/status"
	"cagefs.dev/cage/remote/wire"
)

// lockable makes a file and opens it in sessions.
func lockable(t *testing.T, peers ...*peer) proto.FileID {
	t.Helper()
	made, err := peers[0].change(1, newFile("file"))
	require.NoError(t, err)
	for _, p := range peers {
		p.open(made.ID, wire.OpenRead|wire.OpenWrite)
	}
	return made.ID
}

func (p *peer) open(id proto.FileID, flags uint32) {
	p.t.Helper()
	require.NoError(p.t, p.call(wire.OpOpen, &wire.OpenReq{ReqHeader: header(), ID: id, Flags: flags}, &wire.AttrRep{}))
}

func rangeLock(id proto.FileID, owner, start, end uint64, exclusive bool) wire.Lock {
	return wire.Lock{ID: id, Owner: owner, Lock: lockset.Lock{Start: start, End: end, Exclusive: exclusive, PID: 7}}
}

func fileLock(id proto.FileID, owner uint64, exclusive bool) wire.Lock {
	return wire.Lock{ID: id, Owner: owner, Kind: lockset.Flock, Lock: lockset.Whole(exclusive)}
}

func (p *peer) lock(l wire.Lock, wait uint64) (wire.LockRep, error) {
	p.t.Helper()
	var rep wire.LockRep
	err := p.call(wire.OpLock, &wire.LockReq{Lock: l, Wait: wait}, &rep)
	return rep, err
}

// locked takes a lock that must be free.
func (p *peer) locked(l wire.Lock) {
	p.t.Helper()
	rep, err := p.lock(l, 0)
	require.NoError(p.t, err)
	require.False(p.t, rep.Queued || rep.Later)
}

func (p *peer) unlock(l wire.Lock) {
	p.t.Helper()
	require.NoError(p.t, p.call(wire.OpUnlock, &wire.LockReq{Lock: l}, &wire.Empty{}))
}

func (p *peer) busy(l wire.Lock) {
	p.t.Helper()
	_, err := p.lock(l, 0)
	require.Equal(p.t, status.Locked, codeOf(err), "%v", err)
}

func TestLockNeedsTheFileOpenForIt(t *testing.T) {
	p, _ := serve(t, Options{}).on()
	made, err := p.change(1, newFile("file"))
	require.NoError(t, err)
	_, err = p.lock(rangeLock(made.ID, 1, 0, 9, false), 0)
	require.Equal(t, status.Access, codeOf(err))
	require.Equal(t, status.Access, codeOf(p.call(wire.OpTestLock, &wire.LockReq{Lock: rangeLock(made.ID, 1, 0, 9, false)}, &wire.TestLockRep{})))
	p.open(made.ID, wire.OpenRead)
	p.locked(rangeLock(made.ID, 1, 0, 9, false))
	_, err = p.lock(rangeLock(made.ID, 1, 0, 9, true), 0)
	require.Equal(t, status.Access, codeOf(err))
	p.locked(fileLock(made.ID, 1, true))
	bad := fileLock(made.ID, 1, true)
	bad.End--
	for _, l := range []wire.Lock{bad, rangeLock(made.ID, 1, 5, 4, false), rangeLock(made.ID, 1, 0, 1<<63, false), rangeLock(0, 1, 0, 0, false)} {
		for _, op := range []wire.Opcode{wire.OpLock, wire.OpTestLock, wire.OpUnlock} {
			require.Equal(t, status.Invalid, codeOf(p.call(op, &wire.LockReq{Lock: l}, wire.Table[op].NewReply())), "%s %+v", op, l)
		}
	}
}

// A wait takes up nothing but its place: the connection goes on, and the end of
// the wait comes after the news of what was changed before.
func TestWaitForALock(t *testing.T) {
	r := serve(t, Options{})
	p, _ := r.on()
	q, _ := r.on()
	id := lockable(t, p, q)
	rep, err := p.lock(rangeLock(id, 1, 0, 9, true), 0)
	require.NoError(t, err)
	require.Equal(t, id, rep.Attr.ID)
	rep, err = q.lock(rangeLock(id, 1, 5, 5, false), 77)
	require.NoError(t, err)
	require.True(t, rep.Queued)
	var held wire.TestLockRep
	require.NoError(t, q.call(wire.OpTestLock, &wire.LockReq{Lock: rangeLock(id, 1, 0, 0, false)}, &held))
	require.Equal(t, wire.TestLockRep{Held: true, Lock: lockset.Lock{End: 9, Exclusive: true, PID: 7}}, held)
	q.pushes = nil
	written, err := p.change(2, &proto.Write{ID: id, Data: []byte("x")})
	require.NoError(t, err)
	p.unlock(rangeLock(id, 1, 0, 9, false))
	f, err := q.next()
	require.NoError(t, err)
	require.Equal(t, wire.OpChanged, f.head.Op)
	news, err := wire.DecodePush(f.head.Op, f.payload)
	require.NoError(t, err)
	require.Equal(t, written.LSN, news.(*wire.Changed).Change)
	f, err = q.next()
	require.NoError(t, err)
	done, err := wire.DecodePush(f.head.Op, f.payload)
	require.NoError(t, err)
	require.Equal(t, &wire.LockDone{Wait: 77}, done)

	rep, err = p.lock(rangeLock(id, 1, 5, 5, true), 1)
	require.NoError(t, err)
	require.True(t, rep.Queued)
	require.NoError(t, p.call(wire.OpUnwait, &wire.UnwaitReq{Wait: 1}, &wire.Empty{}))
	q.unlock(rangeLock(id, 1, 5, 5, false))
	q.locked(rangeLock(id, 1, 5, 5, true))
}

// Waits end with their connection, locks stay, for a while; with the session all ends.
func TestLocksOfALostConnection(t *testing.T) {
	r := serve(t, Options{Locks: 2 * time.Second})
	p, hello := r.on()
	q, _ := r.on()
	id := lockable(t, p, q)
	other, err := p.change(2, newFile("other"))
	require.NoError(t, err)
	p.open(other.ID, wire.OpenRead)
	q.open(other.ID, wire.OpenRead)
	q.locked(fileLock(other.ID, 1, true))
	p.locked(rangeLock(id, 1, 0, 9, true))
	p.locked(rangeLock(id, 2, 20, 29, true))
	rep, err := p.lock(fileLock(other.ID, 1, true), 5)
	require.NoError(t, err)
	require.True(t, rep.Queued)
	p.tls.NetConn().Close()
	require.Eventually(t, func() bool {
		return r.lookupSession(hello.Session).current() == nil
	}, patience, time.Millisecond)
	q.unlock(fileLock(other.ID, 1, true))
	q.locked(fileLock(other.ID, 1, true))

	back, rep2 := r.again(wire.HelloReq{Session: hello.Session, NextSeq: 3, Opens: []proto.FileID{id}, Locks: []wire.Lock{
		rangeLock(id, 1, 0, 9, true), rangeLock(id, 1, 100, 109, true),
	}})
	require.Equal(t, []uint32{1}, rep2.LostLocks, "one that it never had")
	q.busy(rangeLock(id, 1, 0, 9, true))
	q.locked(rangeLock(id, 1, 20, 29, true)) // what it does not name it has given up
	back.tls.NetConn().Close()
	require.Eventually(t, func() bool {
		_, err := q.lock(rangeLock(id, 1, 0, 9, true), 0)
		return err == nil
	}, patience, 10*time.Millisecond, "nobody came back")
	_, rep2 = r.again(wire.HelloReq{Session: hello.Session, NextSeq: 3, Opens: []proto.FileID{id}, Locks: []wire.Lock{rangeLock(id, 1, 0, 9, true)}})
	require.True(t, rep2.Resumed)
	require.Equal(t, []uint32{0}, rep2.LostLocks)
}

func TestLocksEndWithTheSession(t *testing.T) {
	r := serve(t, Options{})
	p, _ := r.on()
	q, _ := r.on()
	id := lockable(t, p, q)
	p.locked(fileLock(id, 1, true))
	rep, err := q.lock(fileLock(id, 1, true), 1)
	require.NoError(t, err)
	require.True(t, rep.Queued)
	require.NoError(t, p.call(wire.OpBye, &wire.Empty{}, &wire.Empty{}))
	p.tls.Close()
	f, err := q.next()
	require.NoError(t, err)
	require.Equal(t, wire.OpLockDone, f.head.Op)
}

func TestLockLimits(t *testing.T) {
	r := serve(t, Options{})
	p, hello := r.on()
	q, _ := r.on()
	id := lockable(t, p, q)
	p.locked(rangeLock(id, 1, 0, lockset.Max, true))
	x, sess := r.exports["x"].locks, r.lookupSession(hello.Session)
	x.mu.Lock()
	for n := range uint64(wire.MaxLocks - 2) { // as clients do, one by one
		l := rangeLock(id, 1, 2*n+1, 2*n+1, false)
		_, done := x.table.Unlock(sess.lockRequest(&l))
		require.Empty(t, done)
	}
	x.mu.Unlock()
	p.unlock(rangeLock(id, 1, 1<<20, 1<<20, false))
	err := p.call(wire.OpUnlock, &wire.LockReq{Lock: rangeLock(id, 1, 1<<21, 1<<21, false)}, &wire.Empty{})
	require.Equal(t, status.NoLocks, codeOf(err))
	_, err = q.lock(fileLock(id, 1, false), 0)
	require.Equal(t, status.NoLocks, codeOf(err), "the file has too many")
	p.unlock(rangeLock(id, 1, 0, lockset.Max, false))
	p.locked(rangeLock(id, 1, 0, lockset.Max, true))
	err = nil
	n := uint64(1)
	for ; err == nil; n++ {
		_, err = q.lock(rangeLock(id, 1, n, n, false), n)
	}
	require.Equal(t, status.NoLocks, codeOf(err))
	require.EqualValues(t, maxSessionWaits+2, n)
	require.Equal(t, 1, x.count(hello.Session))
	x.end(hello.Session)
	require.Zero(t, x.count(hello.Session))
}

// After a restart nobody gets a lock before those who had some are back, or have
// had their time; who missed a run in which somebody got one gets nothing back.
func TestLocksAfterRestart(t *testing.T) {
	disk := vfs.NewMem(1)
	r, stop := serveDisk(t, disk, Options{})
	p, hello := r.on()
	q, other := r.on()
	id := lockable(t, p, q)
	p.locked(rangeLock(id, 1, 0, 9, true))
	q.locked(rangeLock(id, 1, 20, 29, true))
	p.tls.NetConn().Close()
	q.tls.NetConn().Close()
	stop()

	o := Options{State: r.state, Locks: time.Hour}
	keys := r.keys
	restart := func() {
		q.tls.NetConn().Close()
		p.tls.NetConn().Close()
		stop()
		r, stop = serveDisk(t, disk, o)
		r.keys = keys
	}
	mine := []wire.Lock{rangeLock(id, 1, 0, 9, true)}
	restart()
	q, rep := r.again(wire.HelloReq{Session: other.Session, NextSeq: 1, Opens: []proto.FileID{id}})
	require.True(t, rep.Resumed)
	lock, err := q.lock(rangeLock(id, 1, 50, 59, true), 0)
	require.NoError(t, err)
	require.True(t, lock.Later)
	var test wire.TestLockRep
	require.NoError(t, q.call(wire.OpTestLock, &wire.LockReq{Lock: rangeLock(id, 1, 0, 0, true)}, &test))
	require.True(t, test.Later)
	p, rep = r.again(wire.HelloReq{Session: hello.Session, NextSeq: 2, Opens: []proto.FileID{id}, Locks: mine})
	require.True(t, rep.Resumed)
	require.Empty(t, rep.LostLocks)
	q.busy(rangeLock(id, 1, 0, 0, false))
	q.locked(rangeLock(id, 1, 50, 59, true)) // all are back
	q.locked(rangeLock(id, 1, 20, 29, true)) // which it did not name when it came back

	restart() // a run that nobody sees, and one that the first client does not
	restart()
	q, rep = r.again(wire.HelloReq{Session: other.Session, NextSeq: 1, Opens: []proto.FileID{id},
		Locks: []wire.Lock{rangeLock(id, 1, 20, 29, true)}})
	require.Empty(t, rep.LostLocks)
	lock, err = q.lock(rangeLock(id, 1, 0, 0, false), 0)
	require.NoError(t, err)
	require.True(t, lock.Later)
	restart()
	p, rep = r.again(wire.HelloReq{Session: hello.Session, NextSeq: 2, Opens: []proto.FileID{id}, Locks: mine})
	require.True(t, rep.Resumed)
	require.Empty(t, rep.LostLocks, "nobody got any meanwhile")

	o.Locks = 50 * time.Millisecond
	restart() // the first client does not see this one either, and somebody gets what it had
	q, rep = r.again(wire.HelloReq{Session: other.Session, NextSeq: 1, Opens: []proto.FileID{id}})
	require.Eventually(t, func() bool {
		rep, err := q.lock(rangeLock(id, 1, 0, 9, true), 0)
		require.NoError(t, err)
		return !rep.Later
	}, patience, 10*time.Millisecond, "nobody is waited for for ever")
	q.unlock(rangeLock(id, 1, 0, 9, true))
	o.Locks = time.Hour
	restart()
	p, rep = r.again(wire.HelloReq{Session: hello.Session, NextSeq: 2, Opens: []proto.FileID{id}, Locks: mine})
	require.Equal(t, []uint32{0}, rep.LostLocks)
}

// Clients lock, wait, give up and unlock while their connections are cut: no two
// ever have the same lock, none is lost, and nothing is left in the end.
func TestLocksOverCutConnections(t *testing.T) {
	const clients, owners = 3, 3
	rounds := 60
	if testing.Short() {
		rounds = 10
	}
	r := serve(t, Options{DataPorts: 1})
	var net cutter
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	var id proto.FileID
	var sessions [clients]*remote.Session
	for i := range sessions {
		s, err := remote.Dial(ctx, remote.Options{
			Addr: r.Addr().String(), Export: "x", Keys: r.keys, Patience: 20 * time.Second, Dial: net.dial, Log: zerolog.Nop(),
			LostLock: func(remote.LockOwner) { t.Error("a lock is lost") },
		})
		require.NoError(t, err)
		if i == 0 {
			res, err := s.Do(ctx, self, newFile("f"))
			require.NoError(t, err)
			id = res.ID
		}
		_, err = s.Open(ctx, header(), id, wire.OpenRead|wire.OpenWrite, lockset.NoMode)
		require.NoError(t, err)
		sessions[i] = s
	}
	var inside [2]atomic.Int64 // of each kind: those who share, and 1000 for who does not
	var got, gaveUp atomic.Int64
	var all sync.WaitGroup
	for i := range clients * owners {
		all.Go(func() {
			s, rnd := sessions[i%clients], rand.New(rand.NewPCG(uint64(i), 5))
			for round := range rounds {
				kind := lockset.Ranges
				if i >= clients {
					kind = lockset.Flock
				}
				o := remote.LockOwner{ID: id, Num: uint64(round*100 + i), Kind: kind}
				patience := time.Duration(rnd.IntN(300<<(3*rnd.IntN(3)))) * time.Microsecond
				if rnd.IntN(4) == 0 { // as long as it takes, on the slowest machine
					patience = time.Minute
				}
				brief, stop := context.WithTimeout(ctx, patience)
				l, in := lockset.Whole(rnd.IntN(3) > 0), &inside[0]
				if o.Kind == lockset.Flock {
					in = &inside[1]
				}
				_, err := s.Lock(brief, o, l, rnd.IntN(4) > 0)
				stop()
				switch status.Of(err) {
				case status.OK:
					got.Add(1)
					step := int64(1)
					if l.Exclusive {
						step = 1000
					}
					if n := in.Add(step); n > 1000 || n >= 1000 && !l.Exclusive {
						t.Errorf("%d are in", n)
					}
					in.Add(-step)
					if err := s.Unlock(ctx, o, 0, lockset.Max); err != nil {
						t.Error(err)
					}
				case status.Timeout, status.Interrupted, status.Locked, status.Deadlock:
					gaveUp.Add(1)
				default:
					t.Error(err)
				}
				if rnd.IntN(20) == 0 {
					net.cut()
				}
			}
		})
	}
	all.Wait()
	require.Positive(t, got.Load())
	require.Positive(t, gaveUp.Load())
	x := r.exports["x"].locks
	require.Eventually(t, func() bool {
		x.mu.Lock()
		defer x.mu.Unlock()
		for _, s := range r.sessionList() {
			if x.table.Locks(s.id) > 0 {
				return false
			}
		}
		return true
	}, patience, time.Millisecond, "locks are left")
	for _, s := range sessions {
		require.NoError(t, s.Close(ctx))
	}
}

// Who lost a lock while he was away, to somebody who has it or had it, does not get
// it back because the server starts anew before he comes.
func TestLockLostBeforeARestart(t *testing.T) {
	disk := vfs.NewMem(1)
	o := Options{Locks: 50 * time.Millisecond}
	r, stop := serveDisk(t, disk, o)
	p, hello := r.on()
	q, other := r.on()
	id := lockable(t, p, q)
	mine := rangeLock(id, 1, 0, 9, true)
	p.locked(mine)
	p.tls.NetConn().Close()
	require.Eventually(t, func() bool { _, err := q.lock(mine, 0); return err == nil }, patience, time.Millisecond)
	q.unlock(mine)

	keys := r.keys
	restart := func(locks time.Duration) {
		q.tls.NetConn().Close()
		p.tls.NetConn().Close()
		stop()
		r, stop = serveDisk(t, disk, Options{State: r.state, Locks: locks})
		r.keys = keys
	}
	back := func() wire.HelloRep {
		var rep wire.HelloRep
		p, rep = r.again(wire.HelloReq{Session: hello.Session, NextSeq: 2, Opens: []proto.FileID{id}, Locks: []wire.Lock{mine}})
		require.True(t, rep.Resumed)
		return rep
	}
	restart(time.Hour)
	require.Equal(t, []uint32{0}, back().LostLocks)
	restart(time.Hour) // perhaps it has not heard that
	require.Equal(t, []uint32{0}, back().LostLocks)
	q, _ = r.again(wire.HelloReq{Session: other.Session, NextSeq: 1, Opens: []proto.FileID{id}})
	p.locked(mine)
	restart(time.Hour)
	require.Empty(t, back().LostLocks, "it has it anew")
}

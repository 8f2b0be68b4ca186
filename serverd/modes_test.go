package serverd

import (
	"context"
	"fmt"
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

func modeLock(id proto.FileID, m lockset.Mode) wire.Lock {
	return wire.Lock{ID: id, Kind: lockset.Opens, Lock: m.Lock()}
}

// tryOpen opens a file and returns the code of the answer.
func (p *peer) tryOpen(id proto.FileID, flags uint32) status.Code {
	p.t.Helper()
	return codeOf(p.call(wire.OpOpen, &wire.OpenReq{ReqHeader: header(), ID: id, Flags: flags}, &wire.AttrRep{}))
}

func (p *peer) tryMode(id proto.FileID, m lockset.Mode) status.Code {
	p.t.Helper()
	_, err := p.lock(modeLock(id, m), 0)
	return codeOf(err)
}

// leaves gives all opens of a file back, and its mode, as a client does.
func (p *peer) leaves(id proto.FileID) {
	p.t.Helper()
	p.unlock(wire.Lock{ID: id, Kind: lockset.Opens, Lock: lockset.Whole(true)})
	require.NoError(p.t, p.call(wire.OpRelease, &wire.ReleaseReq{ID: id, N: 1 << 20}, &wire.Empty{}))
}

// having is what a session of the model has of a file.
type having struct {
	reads, writes bool
	mode          lockset.Mode
}

func (h having) open() bool { return h.reads || h.writes }

// forbids says what the modes are for: an open by somebody else.
func (h having) forbids(writes bool) bool {
	return h.mode == lockset.WriteMine || writes && h.mode != lockset.NoMode
}

// against says whether what a session has is in the way of a mode of another.
func (h having) against(m lockset.Mode) bool {
	switch m {
	case lockset.WriteMine:
		return h.open()
	case lockset.WriteShared: // others may read, but not who counts on it that nobody writes
		return h.writes || h.mode != lockset.NoMode
	}
	return h.writes || h.mode == lockset.WriteShared || h.mode == lockset.WriteMine
}

// Three sessions open two files in all ways; each answer is the model's.
func TestModesAgainstModel(t *testing.T) {
	r := serve(t, Options{})
	var ids [2]proto.FileID
	var peers [3]*peer
	for i := range peers {
		peers[i], _ = r.on()
	}
	for i := range ids {
		made, err := peers[0].change(proto.Seq(i+1), newFile(fmt.Sprint(i)))
		require.NoError(t, err)
		ids[i] = made.ID
	}
	rnd := rand.New(rand.NewPCG(7, 7))
	var model [2][3]having
	refused, granted := 0, 0
	for step := range 4000 {
		f, who := rnd.IntN(2), rnd.IntN(3)
		mine, id, p := &model[f][who], ids[f], peers[who]
		name := fmt.Sprintf("step %d: session %d has %+v of %+v", step, who, *mine, model[f])
		others := func(is func(having) bool) bool {
			return is(model[f][(who+1)%3]) || is(model[f][(who+2)%3])
		}
		want := status.OK
		switch what := rnd.IntN(8); {
		case what < 2:
			p.leaves(id)
			*mine = having{}
		case what < 5 || !mine.open():
			writes := rnd.IntN(2) == 0
			flags := uint32(wire.OpenRead)
			if writes {
				flags = wire.OpenWrite
			}
			if others(func(h having) bool { return h.forbids(writes) }) {
				want = status.Busy
			} else {
				mine.reads, mine.writes = mine.reads || !writes, mine.writes || writes
			}
			require.Equal(t, want, p.tryOpen(id, flags), "%s, opens it, to write: %v", name, writes)
		default:
			m := lockset.Mode(1 + rnd.IntN(3))
			switch {
			case m != lockset.ReadShared && !mine.writes:
				want = status.Access
			case m == mine.mode || mine.mode > m: // it has it
			case others(func(h having) bool { return h.against(m) }):
				want = status.Busy
			}
			if want == status.OK {
				mine.mode = max(mine.mode, m)
			}
			require.Equal(t, want, p.tryMode(id, m), "%s, mode %s", name, m)
		}
		if want == status.OK {
			granted++
		} else {
			refused++
		}
	}
	require.Greater(t, refused, 500)
	require.Greater(t, granted, 500)
}

// What a mode forbids besides opens, and what it does not.
func TestModes(t *testing.T) {
	r := serve(t, Options{Locks: 50 * time.Millisecond})
	p, hello := r.on()
	q, _ := r.on()
	made, err := p.change(1, newFile("file"))
	require.NoError(t, err)
	id := made.ID
	p.open(id, wire.OpenRead|wire.OpenWrite)
	_, err = p.lock(modeLock(id, lockset.WriteMine), 5)
	require.Equal(t, status.Invalid, codeOf(err), "nobody waits for a mode")
	bad := modeLock(id, lockset.WriteMine)
	bad.Owner = 1
	_, err = p.lock(bad, 0)
	require.Equal(t, status.Invalid, codeOf(err))
	p.locked(modeLock(id, lockset.WriteMine))
	p.locked(rangeLock(id, 1, 0, 9, true)) // of another kind

	err = q.call(wire.OpOpen, &wire.OpenReq{ReqHeader: header(), ID: id, Flags: wire.OpenRead}, &wire.AttrRep{})
	require.ErrorContains(t, err, " has it open in mode wm")
	_, err = q.change(1, &proto.SetAttr{ID: id, Mask: proto.SetSize, Size: 0})
	require.Equal(t, status.Busy, codeOf(err), "truncate(2)")
	_, err = q.change(2, &proto.SetAttr{ID: id, Mask: proto.SetMode, Mode: 0o600})
	require.NoError(t, err, "who has it is not asked about its attributes")
	_, err = q.change(3, &proto.Rename{Dir: proto.RootID, Name: "file", NewDir: proto.RootID, NewName: "other"})
	require.NoError(t, err, "nor about its name")

	require.NoError(t, p.call(wire.OpRelease, &wire.ReleaseReq{ID: id, N: 1}, &wire.Empty{}))
	require.Equal(t, status.Locked, q.tryOpen(id, wire.OpenRead), "what was written is on its way: ask again")
	p.unlock(wire.Lock{ID: id, Kind: lockset.Opens, Lock: lockset.Whole(true)})
	q.open(id, wire.OpenRead)

	require.Equal(t, status.OK, p.tryOpen(id, wire.OpenWrite))
	require.Equal(t, status.Busy, p.tryMode(id, lockset.WriteMine))
	p.locked(modeLock(id, lockset.WriteShared))
	p.tls.NetConn().Close()
	require.Eventually(t, func() bool { return q.tryOpen(id, wire.OpenWrite) == status.OK }, patience, 10*time.Millisecond,
		"it ends as locks do, when its client stays away")
	_, rep := r.again(wire.HelloReq{Session: hello.Session, NextSeq: 2, Opens: []proto.FileID{id}, Locks: []wire.Lock{modeLock(id, lockset.WriteShared)}})
	require.Equal(t, []uint32{0}, rep.LostLocks)
}

// After a restart nobody opens anything before those who had modes are back, or have had their time.
func TestModesAfterRestart(t *testing.T) {
	disk := vfs.NewMem(1)
	o := Options{Locks: time.Hour}
	r, stop := serveDisk(t, disk, o)
	p, hello := r.on()
	q, other := r.on()
	made, err := p.change(1, newFile("file"))
	require.NoError(t, err)
	id := made.ID
	_, err = q.change(1, newFile("another"))
	require.NoError(t, err)
	p.open(id, wire.OpenRead|wire.OpenWrite)
	p.locked(modeLock(id, lockset.WriteMine))
	keys := r.keys
	restart := func() {
		p.tls.NetConn().Close()
		q.tls.NetConn().Close()
		stop()
		o.State = r.state
		r, stop = serveDisk(t, disk, o)
		r.keys = keys
		q, _ = r.again(wire.HelloReq{Session: other.Session, NextSeq: 2})
	}
	back := func() []uint32 {
		var rep wire.HelloRep
		p, rep = r.again(wire.HelloReq{Session: hello.Session, NextSeq: 2, Opens: []proto.FileID{id}, Locks: []wire.Lock{modeLock(id, lockset.WriteMine)}})
		require.True(t, rep.Resumed)
		return rep.LostLocks
	}
	restart()
	require.Equal(t, status.Locked, q.tryOpen(id, wire.OpenRead))
	require.Empty(t, back())
	require.Equal(t, status.Busy, q.tryOpen(id, wire.OpenRead))

	o.Locks = 50 * time.Millisecond
	restart()
	require.Eventually(t, func() bool { return q.tryOpen(id, wire.OpenRead) == status.OK }, patience, 10*time.Millisecond)
	q.leaves(id)
	o.Locks = time.Hour
	restart()
	require.Equal(t, []uint32{0}, back(), "somebody had it open meanwhile")
	require.Equal(t, status.OK, q.tryOpen(id, wire.OpenRead))
}

// Clients open one file in modes that exclude each other while their connections are cut: no two
// are in at the same time, nobody waits for who has closed it, and nothing is left in the end.
func TestModesOverCutConnections(t *testing.T) {
	const clients = 3
	rounds := 40
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
			Addr: r.Addr().String(), Export: "x", Keys: r.keys, Patience: 20 * time.Second, Dial: net.dial, Log: zerolog.Nop(), Leases: true,
			LostLock: func(remote.LockOwner) { t.Error("a mode is lost") },
		})
		require.NoError(t, err)
		s.Settled(s.Resets())
		if i == 0 {
			res, err := s.Do(ctx, self, newFile("f"))
			require.NoError(t, err)
			id = res.ID
		}
		sessions[i] = s
	}
	var inside, got, refused atomic.Int64 // inside: who read, and 1000 for who does not
	var all sync.WaitGroup
	for i, s := range sessions {
		all.Go(func() {
			rnd := rand.New(rand.NewPCG(uint64(i), 6))
			for range rounds {
				mode, flags, step := lockset.ReadShared, uint32(wire.OpenRead), int64(1)
				if rnd.IntN(2) == 0 {
					mode, flags, step = lockset.WriteMine, wire.OpenRead|wire.OpenWrite, 1000
				}
				brief, stop := context.WithTimeout(ctx, time.Duration(rnd.IntN(1000))*time.Millisecond)
				_, err := s.Open(brief, header(), id, flags, mode)
				stop()
				switch status.Of(err) {
				case status.OK:
					got.Add(1)
					if n := inside.Add(step); n > 1000 || n >= 1000 && step == 1 {
						t.Errorf("%d are in", n)
					}
					if !s.Reserved(id) {
						t.Error("it does not know that it has the mode")
					}
					time.Sleep(time.Duration(rnd.IntN(4)) * time.Millisecond) // so that others come
					inside.Add(-step)
					s.Release(id)
				case status.Busy, status.Timeout, status.Interrupted:
					refused.Add(1)
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
	t.Logf("%d opens, %d were refused", got.Load(), refused.Load())
	x := r.exports["x"].locks
	require.Eventually(t, func() bool {
		for _, s := range r.sessionList() {
			if x.count(s.id) > 0 || s.holds(id) {
				return false
			}
		}
		return true
	}, patience, time.Millisecond, "something is left")
	for _, s := range sessions {
		require.NoError(t, s.Close(ctx))
	}
}

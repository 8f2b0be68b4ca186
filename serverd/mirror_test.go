package serverd

import (
	"syscall"
	"testing"

	"github.com/stretchr/testify/require"

	"cagefs.dev/cage/journal/vfs"
	"cagefs.dev/cage/remote/lockset"
	"cagefs.dev/cage/remote/proto"
	"cagefs.dev/cage/remote/wire"
	"cagefs.dev/cage/serverd/lock"
)

// machine is a file as the server's kernel has it locked, for who shares one lock of all of it.
type machine struct {
	vfs.Locker
	theirs vfs.Hold // of a program
	silent bool     // it has gone when it is asked about
	ours   vfs.Hold // the last that was taken
}

func (m *machine) LockRange(_, _ uint64, how vfs.Hold) error {
	if how == vfs.Exclusive && m.theirs != vfs.Unlocked || how == vfs.Shared && m.theirs == vfs.Exclusive {
		return syscall.EAGAIN
	}
	m.ours = how
	return nil
}

func (m *machine) RangeLocked(_, _ uint64, how vfs.Hold) (vfs.RangeLock, bool, error) {
	held := !m.silent && (how == vfs.Exclusive && m.theirs != vfs.Unlocked || how == vfs.Shared && m.theirs == vfs.Exclusive)
	return vfs.RangeLock{End: lockset.Max, How: m.theirs}, held, nil
}

func (m *machine) Close() error { return nil }

// mirrored gives a file such a kernel.
func (r *rig) mirrored(id proto.FileID) *machine {
	m, l := &machine{}, r.exports["x"].locks
	l.mu.Lock()
	defer l.mu.Unlock()
	l.mirrors[id] = &mirror{file: m, users: 1}
	return m
}

// program is what a program of the server does.
func (r *rig) program(m *machine, how vfs.Hold) {
	x := r.exports["x"].locks
	x.mu.Lock()
	defer x.mu.Unlock()
	m.theirs = how
}

func (r *rig) hush(m *machine) {
	x := r.exports["x"].locks
	x.mu.Lock()
	defer x.mu.Unlock()
	m.silent = true
}

func (r *rig) taken(m *machine) vfs.Hold {
	x := r.exports["x"].locks
	x.mu.Lock()
	defer x.mu.Unlock()
	return m.ours
}

func (r *rig) holds(hello wire.HelloRep, l wire.Lock) lockset.Set {
	x := r.exports["x"].locks
	x.mu.Lock()
	defer x.mu.Unlock()
	return x.table.Held(lock.File{ID: l.ID}, l.Kind, lock.Owner{Session: hello.Session, Num: l.Owner}).Within(l.Start, l.End)
}

// Who waits to have exclusively what he shares keeps that when it is his turn and a program of the server still shares
// it, although somebody waits behind him; and he has it when the program lets go.
func TestMirrorKeepsWhatAWaiterHas(t *testing.T) {
	r := serve(t, Options{})
	p, hello := r.on()
	q, _ := r.on()
	s, _ := r.on()
	id := lockable(t, p, q, s)
	m := r.mirrored(id)
	r.program(m, vfs.Shared)
	p.locked(rangeLock(id, 1, 0, 9, false))
	s.locked(rangeLock(id, 1, 0, 9, false))
	for _, x := range []*peer{p, q} {
		rep, err := x.lock(rangeLock(id, 1, 0, 9, true), 7)
		require.NoError(t, err)
		require.True(t, rep.Queued)
	}
	s.unlock(rangeLock(id, 1, 0, 9, false))
	have := r.holds(hello, rangeLock(id, 1, 0, 9, false))
	require.Len(t, have, 1, "it goes on to share it")
	require.False(t, have[0].Exclusive)
	require.Equal(t, vfs.Shared, r.taken(m))
	s.busy(rangeLock(id, 1, 0, 9, true))

	r.program(m, vfs.Unlocked)
	for {
		f, err := p.next()
		require.NoError(t, err)
		if f.head.Op != wire.OpLockDone {
			continue
		}
		done, err := wire.DecodePush(f.head.Op, f.payload)
		require.NoError(t, err)
		require.Equal(t, &wire.LockDone{Wait: 7}, done)
		break
	}
	require.True(t, r.holds(hello, rangeLock(id, 1, 0, 9, true))[0].Exclusive)
}

// What the kernel refuses nobody gets, also where it cannot say any more what was in the way.
func TestMirrorRefusesWhatTheKernelRefuses(t *testing.T) {
	r := serve(t, Options{})
	p, hello := r.on()
	id := lockable(t, p)
	m := r.mirrored(id)
	r.program(m, vfs.Shared)
	r.hush(m)
	p.busy(rangeLock(id, 1, 0, 9, true))
	require.Empty(t, r.holds(hello, rangeLock(id, 1, 0, 9, true)))
	p.locked(rangeLock(id, 2, 20, 29, false))
	r.program(m, vfs.Unlocked)
	p.locked(rangeLock(id, 1, 0, 9, true))
	require.Equal(t, vfs.Exclusive, r.taken(m))
}

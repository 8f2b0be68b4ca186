package lock

import (
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"cagefs.dev/cage/remote/lockset"
	"cagefs.dev/cage/remote/proto"
)

var roomy = Limits{SessionLocks: 1000, SessionWaits: 1000, FileLocks: 1000, FileWaits: 1000}

func owner(session, num int) Owner { return Owner{proto.SessionID(session), uint64(num)} }

func posix(file int, o Owner, start, end uint64, exclusive bool) Request {
	return Request{File: File{ID: proto.FileID(file)}, Owner: o, Lock: lockset.Lock{Start: start, End: end, Exclusive: exclusive}}
}

func flock(file int, o Owner, exclusive bool) Request {
	return Request{File: File{ID: proto.FileID(file)}, Owner: o, Kind: lockset.Flock, Lock: lockset.Whole(exclusive)}
}

func wait(o Owner, n int) WaitID { return WaitID{o.Session, uint64(n)} }

func lockNow(t *testing.T, x *Table, want Outcome, r Request) {
	t.Helper()
	got, done := x.Lock(r)
	require.Equal(t, want, got)
	require.Empty(t, done)
}

func TestDeadlock(t *testing.T) {
	a, b, c := owner(1, 1), owner(2, 1), owner(2, 2)
	x := New(roomy)
	lockNow(t, x, Granted, posix(1, a, 0, 9, true))
	lockNow(t, x, Granted, posix(2, b, 0, 9, true))
	lockNow(t, x, Granted, posix(2, c, 20, 29, false))
	got, _ := x.Wait(wait(a, 1), posix(2, a, 5, 5, false))
	require.Equal(t, Queued, got)
	got, _ = x.Wait(wait(c, 1), posix(1, c, 0, 0, true))
	require.Equal(t, Queued, got, "nobody waits for c")
	got, _ = x.Wait(wait(b, 2), posix(2, b, 25, lockset.Max, true))
	require.Equal(t, Deadlock, got, "b for c for a for b, over three sessions and two files")
	got, _ = x.Wait(wait(b, 2), posix(2, b, 50, 60, true))
	require.Equal(t, Granted, got, "a wait that was refused is gone")

	_, done := x.Unlock(posix(2, b, 0, lockset.Max, false))
	require.Equal(t, []Done{{wait(a, 1), Granted}}, done)
	_, done = x.Unlock(posix(1, a, 0, 0, false))
	require.Equal(t, []Done{{wait(c, 1), Granted}}, done)
	require.Empty(t, x.Drop(1))
	require.Empty(t, x.Drop(2))
	require.Equal(t, New(roomy), x, "nothing is left")
}

// A wait of flock(2) is in no circle, on any system.
func TestFlockHasNoDeadlock(t *testing.T) {
	a, b := owner(1, 1), owner(2, 1)
	x := New(roomy)
	lockNow(t, x, Granted, flock(1, a, true))
	lockNow(t, x, Granted, flock(2, b, true))
	got, _ := x.Wait(wait(a, 1), flock(2, a, true))
	require.Equal(t, Queued, got)
	got, _ = x.Wait(wait(b, 1), flock(1, b, true))
	require.Equal(t, Queued, got)
}

// Two owners that share a lock and both want it exclusively.
func TestUpgrade(t *testing.T) {
	a, b := owner(1, 1), owner(1, 2)
	x := New(roomy)
	lockNow(t, x, Granted, posix(1, a, 0, 9, false))
	lockNow(t, x, Granted, posix(1, b, 0, 9, false))
	lockNow(t, x, Held, posix(1, a, 0, 9, true))
	got, _ := x.Wait(wait(a, 1), posix(1, a, 0, 9, true))
	require.Equal(t, Queued, got)
	got, _ = x.Wait(wait(b, 2), posix(1, b, 0, 9, true))
	require.Equal(t, Deadlock, got)
	_, done := x.Unlock(posix(1, b, 3, lockset.Max, false))
	require.Empty(t, done)
	_, done = x.Unlock(posix(1, b, 0, 2, false))
	require.Equal(t, []Done{{wait(a, 1), Granted}}, done)
	h, held := x.Test(posix(1, b, 2, 20, false))
	require.True(t, held)
	require.Equal(t, posix(1, a, 0, 9, true), h)
}

// flock(2) gives the old lock up first: who waited gets it, and who asked for
// another may be left with none.
func TestFlockConversion(t *testing.T) {
	a, b, c := owner(1, 1), owner(1, 2), owner(2, 1)
	x := New(roomy)
	lockNow(t, x, Granted, flock(1, a, false))
	lockNow(t, x, Granted, flock(1, b, false))
	lockNow(t, x, Held, flock(1, a, true))
	lockNow(t, x, Granted, flock(1, b, true))
	got, _ := x.Wait(wait(c, 1), flock(1, c, false))
	require.Equal(t, Queued, got)
	got, done := x.Lock(flock(1, b, false))
	require.Equal(t, Granted, got)
	require.Equal(t, []Done{{wait(c, 1), Granted}}, done)
	lockNow(t, x, Granted, posix(1, a, 0, 9, true)) // the other kind does not mind
}

func TestCancelAndDrop(t *testing.T) {
	a, b, c := owner(1, 1), owner(2, 1), owner(3, 1)
	x := New(roomy)
	lockNow(t, x, Granted, flock(1, a, true))
	for _, o := range []Owner{b, c} {
		got, _ := x.Wait(wait(o, 1), flock(1, o, true))
		require.Equal(t, Queued, got)
		got, _ = x.Wait(wait(o, 1), flock(1, o, true))
		require.Equal(t, Queued, got, "asked again over a new connection")
	}
	x.Cancel(wait(b, 1))
	x.Cancel(wait(b, 1))
	require.Equal(t, []Done{{wait(c, 1), Granted}}, x.Drop(1))
	require.Zero(t, x.Locks(1))
	require.Equal(t, 1, x.Locks(3))
}

func TestKeep(t *testing.T) {
	a, b := owner(1, 1), owner(2, 1)
	x := New(roomy)
	lockNow(t, x, Granted, posix(1, a, 0, 99, true))
	lockNow(t, x, Granted, flock(1, a, false))
	lockNow(t, x, Granted, posix(2, a, 0, 9, false))
	lockNow(t, x, Granted, posix(3, b, 0, 9, false))
	lost, done := x.Keep(1, []Request{
		posix(1, a, 10, 19, false), posix(1, a, 90, 100, false), posix(2, a, 0, 9, true), flock(1, a, false), posix(3, a, 0, 9, false),
	})
	require.Empty(t, done)
	require.Equal(t, []int{1, 2, 4}, lost)
	h, held := x.Test(posix(1, b, 0, lockset.Max, false))
	require.True(t, held)
	require.Equal(t, posix(1, a, 10, 19, true), h, "what it has is not made less")
	_, held = x.Test(posix(2, b, 0, 9, true))
	require.False(t, held, "what is not listed, or not as it is, goes")
	require.Equal(t, 2, x.Locks(1))
	require.Equal(t, 1, x.Locks(2))
}

func TestLimits(t *testing.T) {
	x := New(Limits{SessionLocks: 4, SessionWaits: 2, FileLocks: 6, FileWaits: 3})
	a, b, c := owner(1, 1), owner(2, 1), owner(3, 1)
	lockNow(t, x, Granted, posix(1, a, 0, 99, true))
	for i := range uint64(3) {
		got, _ := x.Unlock(posix(1, a, 10*i+5, 10*i+5, false))
		require.Equal(t, Granted, got)
	}
	got, _ := x.Unlock(posix(1, a, 50, 50, false))
	require.Equal(t, NoRoom, got, "a lock in pieces is many")
	_, held := x.Test(posix(1, b, 50, 50, false))
	require.True(t, held, "and stays as it was")
	lockNow(t, x, NoRoom, posix(2, a, 0, 0, true))
	lockNow(t, x, Granted, posix(1, b, 200, 200, true))
	lockNow(t, x, Granted, flock(1, b, false))
	lockNow(t, x, NoRoom, posix(1, c, 300, 300, true))
	lockNow(t, x, Granted, posix(2, c, 300, 300, true))
	for i, want := range []Outcome{Queued, Queued, NoRoom} {
		got, _ := x.Wait(wait(b, i), posix(1, b, 0, uint64(i), true))
		require.Equal(t, want, got)
	}
	got, _ = x.Wait(wait(c, 1), posix(1, c, 0, 0, true))
	require.Equal(t, Queued, got)
	got, _ = x.Wait(wait(a, 1), flock(1, a, true))
	require.Equal(t, NoRoom, got)
	got, _ = x.Unlock(posix(1, a, 0, lockset.Max, false))
	require.Equal(t, Granted, got, "to give all up needs no room")
}

// Random scripts on real files: each open file is an owner, of OFD locks and of
// flock locks, and the kernel answers the same.
func TestAgainstKernel(t *testing.T) {
	const files, opens, most = 2, 3, 12
	dir := t.TempDir()
	for seed := range uint64(150) {
		r := rand.New(rand.NewPCG(seed, 2))
		x := New(roomy)
		var fds [files][opens]int
		for i := range files {
			for j := range opens {
				fd, err := unix.Open(filepath.Join(dir, fmt.Sprint(i)), unix.O_RDWR|unix.O_CREAT|unix.O_CLOEXEC, 0o600)
				require.NoError(t, err)
				fds[i][j] = fd
			}
		}
		for step := range 60 {
			i, j := r.IntN(files), r.IntN(opens)
			fd, o := fds[i][j], owner(j/2, i*opens+j)
			exclusive := r.IntN(2) == 0
			name := fmt.Sprintf("seed %d step %d", seed, step)
			if r.IntN(3) == 0 {
				how := []int{unix.LOCK_SH, unix.LOCK_EX, unix.LOCK_UN}[r.IntN(3)]
				err := unix.Flock(fd, how|unix.LOCK_NB)
				want := Granted
				if err != nil {
					require.ErrorIs(t, err, unix.EAGAIN, name)
					want = Held
				}
				var got Outcome
				if how == unix.LOCK_UN {
					got, _ = x.Unlock(flock(i, o, false))
				} else {
					got, _ = x.Lock(flock(i, o, how == unix.LOCK_EX))
				}
				require.Equal(t, want, got, name)
				continue
			}
			start, n := int64(r.IntN(most)), int64(r.IntN(5)) // 0: to the end
			end := uint64(start + n - 1)
			if n == 0 {
				end = lockset.Max
			}
			typ := int16(unix.F_RDLCK)
			if exclusive {
				typ = unix.F_WRLCK
			}
			req := posix(i, o, uint64(start), end, exclusive)
			switch r.IntN(4) {
			case 0:
				require.NoError(t, unix.FcntlFlock(uintptr(fd), unix.F_OFD_SETLK, &unix.Flock_t{Type: unix.F_UNLCK, Start: start, Len: n}), name)
				x.Unlock(req)
			case 1:
				l := unix.Flock_t{Type: typ, Start: start, Len: n}
				require.NoError(t, unix.FcntlFlock(uintptr(fd), unix.F_OFD_GETLK, &l), name)
				_, held := x.Test(req)
				require.Equal(t, l.Type != unix.F_UNLCK, held, name)
			default:
				err := unix.FcntlFlock(uintptr(fd), unix.F_OFD_SETLK, &unix.Flock_t{Type: typ, Start: start, Len: n})
				got, _ := x.Lock(req)
				require.Equal(t, err != nil, got == Held, "%s: %v", name, err)
			}
		}
		for i := range files {
			for j := range opens {
				require.NoError(t, unix.Close(fds[i][j]))
			}
			require.NoError(t, os.Remove(filepath.Join(dir, fmt.Sprint(i))))
		}
	}
}

// What is found outside of the table is in the way from then on, although it is in the way of what is there; and what was
// granted can be taken back without anybody else getting something.
func TestFoundAndRevert(t *testing.T) {
	a, b, outside := owner(1, 1), owner(2, 1), owner(0, 0)
	x := New(Limits{SessionLocks: 2, SessionWaits: 2, FileLocks: 2, FileWaits: 2})
	lockNow(t, x, Granted, posix(1, a, 0, 9, false))
	lockNow(t, x, Granted, posix(1, a, 20, 29, false))
	x.Found(posix(1, outside, 5, 100, true))
	lockNow(t, x, Held, posix(1, b, 50, 59, false))
	require.Equal(t, lockset.Set{{Start: 0, End: 9}, {Start: 20, End: 29}}, x.Union(File{ID: 1}, lockset.Ranges), "of clients")
	_, done := x.Unlock(posix(1, outside, 0, lockset.Max, false))
	require.Empty(t, done)

	lockNow(t, x, Granted, posix(1, a, 0, 9, true))
	got, _ := x.Wait(wait(b, 1), posix(1, b, 0, 9, false))
	require.Equal(t, Queued, got)
	x.Revert(posix(1, a, 0, 9, true), lockset.Set{{Start: 0, End: 4}})
	require.Equal(t, lockset.Set{{Start: 0, End: 4}, {Start: 20, End: 29}}, x.Held(File{ID: 1}, lockset.Ranges, a))
	require.Empty(t, x.Held(File{ID: 1}, lockset.Ranges, b), "who waits gets it with the next step")
	require.ElementsMatch(t, []File{{ID: 1}}, x.Files(1))
	require.True(t, x.Busy(File{ID: 1}))
	require.Empty(t, x.Drop(2))
	require.Empty(t, x.Drop(1))
	require.False(t, x.Busy(File{ID: 1}))
	require.Zero(t, x.Locks(0)+x.Locks(1)+x.Locks(2))
}

package serverd

import (
	"context"
	"errors"
	"syscall"
	"time"

	"cagefs.dev/cage/journal/vfs"
	"cagefs.dev/cage/remote/lockset"
	"cagefs.dev/cage/serverd/lock"
)

// Programs of the server lock the same files, but with its kernel, not with the table. So what clients have locked of a file is
// locked there as well, through one descriptor for all of them, whose locks are not in each other's way (F_OFD_SETLK, flock(2)):
// before the table gives something, the kernel does. What a program has that is in the way is put into the table as session 0's, for
// clients to wait for, and looked at every mirrorPause: the kernel does not tell when it goes. What the kernel
// cannot do (a file that the server may only read, a file system without locks) holds among clients alone, as modes do.

// mirrorPause is how often it is looked whether programs of the server still have what clients wait for.
const mirrorPause = 20 * time.Millisecond

// mirrorIdle is how often the descriptors are closed of files of which nobody has or wants anything.
const mirrorIdle = time.Second

// mirror is the descriptor of a file. All is guarded by locks.mu.
type mirror struct {
	file   vfs.Locker
	users  int      // calls that are about to lock something
	whole  vfs.Hold // by flock(2)
	theirs [2]bool  // of Ranges and Flock: programs have something that is in the table
}

// asked is a request that waits.
type asked struct {
	r   lock.Request
	had lockset.Set // what its owner had of the range
}

func mirrored(r *lock.Request) bool { return r.File.At == 0 && r.Kind != lockset.Opens }

func theirs(kind lockset.Kind) lock.Owner { return lock.Owner{Num: uint64(kind)} }

func holdOf(exclusive bool) vfs.Hold {
	if exclusive {
		return vfs.Exclusive
	}
	return vfs.Shared
}

// mirror opens a file to lock it, if that can be, until release.
func (l *locks) mirror(r *lock.Request) (release func()) {
	if !mirrored(r) {
		return func() {}
	}
	l.mu.Lock()
	m := l.mirrors[r.File.ID]
	if m == nil {
		l.mu.Unlock()
		file, err := l.journal.LockFile(r.File.ID)
		if err != nil {
			return func() {}
		}
		l.mu.Lock()
		if m = l.mirrors[r.File.ID]; m != nil {
			file.Close()
		} else {
			m = &mirror{file: file}
			l.mirrors[r.File.ID] = m
			l.alignAllLocked([]lock.File{r.File}) // what was locked when it could not be opened
		}
	}
	m.users++
	l.mu.Unlock()
	return func() {
		l.mu.Lock()
		defer l.mu.Unlock()
		m.users--
	}
}

// takeLocked locks with the kernel what the table is to give; false: a program of the server has it.
func (l *locks) takeLocked(r *lock.Request) bool {
	m := l.mirrors[r.File.ID]
	if m == nil || !mirrored(r) {
		return true
	}
	if r.Kind == lockset.Ranges {
		return !errors.Is(m.file.LockRange(r.Start, r.End, holdOf(r.Exclusive)), syscall.EAGAIN)
	}
	return m.flock(max(m.whole, holdOf(r.Exclusive)))
}

// flock changes what the descriptor has by flock(2); false: a program of the server has it, and nothing has changed.
func (m *mirror) flock(how vfs.Hold) bool {
	if how == m.whole {
		return true
	}
	switch err := m.file.LockWhole(how); {
	case errors.Is(err, syscall.EAGAIN):
		if m.whole != vfs.Unlocked && m.file.LockWhole(m.whole) != nil { // flock(2) gave it up
			m.whole = vfs.Unlocked
		}
		return false
	case err == nil:
		m.whole = how
	}
	return true
}

// askLocked is before a request goes to the table: if nothing there is in its way, the kernel is asked, and if
// that has something, it is put into the table.
func (l *locks) askLocked(r *lock.Request) {
	m := l.mirrors[r.File.ID]
	if m == nil || !mirrored(r) {
		return
	}
	if m.theirs[r.Kind] {
		l.lookLocked(r.File, m, r.Kind)
	}
	if _, held := l.table.Test(*r); !held && !l.takeLocked(r) {
		l.foundLocked(m, r)
	}
}

// foundLocked puts into the table what a program of the server has in the way of a request that was refused. Where the
// kernel does not say, or it has gone meanwhile, that is as little as may be in the way, until the next look.
func (l *locks) foundLocked(m *mirror, r *lock.Request) {
	have := lockset.Lock{Start: r.Start, End: r.End, Exclusive: !r.Exclusive} // who wanted to share was refused for one that is exclusive
	if other, held := l.inTheWayLocked(r); held {
		have = other
	}
	m.theirs[r.Kind] = true
	l.table.Found(lock.Request{File: r.File, Owner: theirs(r.Kind), Kind: r.Kind, Lock: have})
	select {
	case l.found <- struct{}{}:
	default:
	}
}

// inTheWayLocked is what a program of the server has in the way of a request, as far as the kernel tells.
func (l *locks) inTheWayLocked(r *lock.Request) (other lockset.Lock, held bool) {
	m := l.mirrors[r.File.ID]
	if m == nil || r.File.At != 0 || r.Kind != lockset.Ranges {
		return other, false
	}
	have, held, err := m.file.RangeLocked(r.Start, r.End, holdOf(r.Exclusive))
	return lockset.Lock{Start: have.Start, End: min(have.End, lockset.Max), Exclusive: have.How == vfs.Exclusive}, held && err == nil
}

// lookLocked takes out of the table what programs of the server have no more.
func (l *locks) lookLocked(f lock.File, m *mirror, kind lockset.Kind) {
	m.theirs[kind] = false
	for _, have := range l.table.Held(f, kind, theirs(kind)) {
		if m.held(kind, have) {
			m.theirs[kind] = true
			continue
		}
		_, done := l.table.Unlock(lock.Request{File: f, Owner: theirs(kind), Kind: kind, Lock: have})
		l.tellLocked(done)
	}
	l.alignLocked(f, kind, 0, lockset.Max)
}

// held reports whether a program of the server has locked something still, in that way. Of flock(2) that cannot
// be asked, but only tried, and not while clients share a lock: a change to an exclusive one that fails gives theirs up
// first. As long as they have it, nobody gets an exclusive one anyway.
func (m *mirror) held(kind lockset.Kind, have lockset.Lock) bool {
	how := holdOf(!have.Exclusive) // what only such a lock is in the way of
	if kind == lockset.Ranges {
		_, held, err := m.file.RangeLocked(have.Start, have.End, how)
		return held && err == nil
	}
	return m.whole != vfs.Unlocked && how > m.whole || !m.flock(max(m.whole, how))
}

// alignLocked makes the kernel's locks of a range those that clients have.
func (l *locks) alignLocked(f lock.File, kind lockset.Kind, start, end uint64) {
	m := l.mirrors[f.ID]
	if m == nil || f.At != 0 || kind == lockset.Opens {
		return
	}
	all := l.table.Union(f, kind)
	if kind == lockset.Flock {
		how := vfs.Unlocked
		if len(all) > 0 {
			how = holdOf(all[0].Exclusive)
		}
		m.flock(how)
	} else {
		for _, x := range all.Within(start, end) {
			m.file.LockRange(x.Start, x.End, holdOf(x.Exclusive))
		}
		for _, gap := range all.Gaps(start, end) {
			m.file.LockRange(gap.Start, gap.End, vfs.Unlocked)
		}
	}
}

// alignAllLocked does that with files of which a session may have lost something.
func (l *locks) alignAllLocked(files []lock.File) {
	for _, f := range files {
		l.alignLocked(f, lockset.Ranges, 0, lockset.Max)
		l.alignLocked(f, lockset.Flock, 0, lockset.Max)
	}
}

// grantedLocked is what the table has given to who waited, if the kernel gives it as well. Otherwise a program of
// the server has it, and he goes on to wait, behind the others: d is what became of that. more are
// those of others that ended with it.
func (l *locks) grantedLocked(d *lock.Done) (more []lock.Done) {
	a, ok := l.asked[d.ID]
	if !ok || l.takeLocked(&a.r) {
		return nil
	}
	l.table.Revert(a.r, a.had)
	l.foundLocked(l.mirrors[a.r.File.ID], &a.r)
	d.Outcome, more = l.table.Wait(d.ID, a.r)
	return more
}

// run looks whether programs of the server still have what clients want, and closes the descriptors of files of which
// nobody has or wants anything, until ctx ends.
func (l *locks) run(ctx context.Context) {
	timer := time.NewTimer(mirrorIdle)
	defer timer.Stop()
	idle, soon := time.Now(), false
	for {
		select {
		case <-l.found:
			if !soon { // else who finds something all the time would put the look off
				soon = true
				timer.Reset(mirrorPause)
			}
			continue
		case <-timer.C:
		case <-ctx.Done():
			l.mu.Lock()
			defer l.mu.Unlock()
			for id, m := range l.mirrors {
				m.file.Close()
				delete(l.mirrors, id)
			}
			return
		}
		closes := time.Since(idle) >= mirrorIdle
		if closes {
			idle = time.Now()
		}
		next := mirrorIdle
		if soon = l.lookAll(closes); soon {
			next = mirrorPause
		}
		timer.Reset(next)
	}
}

// lookAll reports whether programs have something still that clients want.
func (l *locks) lookAll(closes bool) (again bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for id, m := range l.mirrors {
		f := lock.File{ID: id}
		for kind := range m.theirs {
			if m.theirs[kind] {
				l.lookLocked(f, m, lockset.Kind(kind))
			}
			again = again || m.theirs[kind]
		}
		if closes && m.users == 0 && !l.table.Busy(f) {
			m.file.Close()
			delete(l.mirrors, id)
		}
	}
	return again
}

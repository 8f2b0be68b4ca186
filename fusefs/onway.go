package fusefs

import "time"

// What an answer tells the kernel may be recalled before the kernel has taken it in: the process that
// asked does that, some time after the answer was written, of which nobody tells. Most such
// answers the kernel itself takes for void when it was told meanwhile: names but those of listings, by the
// epoch when they were asked for; attributes of files that it has, by their version. What is left is
// waited for before a lease is given back:
//
//	attributes of a file that it does not have yet   until it has it: then the version counts
//	names in a listing                               until the same reader asks for more, or closes, or somebody changes the directory
//	attributes in the answer to a change of ours     nothing: they are taken as they come, so they never may be believed
//
// What is waited for is made already, and takes microseconds to arrive.

// onWay is how long an answer may take to arrive, and a process to go on with a listing; longer it is not waited for.
const onWay = 2 * time.Second

// await returns when something is done, at the latest after so long, or when the mount is gone.
func (s *fileSystem) await(most time.Duration, done func() bool) {
	end := time.Now().Add(most)
	for pause := 20 * time.Microsecond; !done() && time.Now().Before(end) && !s.gone(); pause = min(2*pause, 10*time.Millisecond) {
		s.awaited.Add(1)
		time.Sleep(pause)
	}
}

// unbelieve makes the kernel forget what forget says of a file, with the attributes that are on their way to
// it. Whoever gives it some notes that before he looks whether the lease still counts.
func (s *fileSystem) unbelieve(ino *inode, forget func(*inode) (known bool)) {
	told := ino.told.Swap(false)
	s.await(onWay, func() bool { return forget(ino) || !told || !s.inodes.given(ino) })
}

// dropAttrs makes the kernel forget the attributes of a file, and reports whether it has it.
func (s *fileSystem) dropAttrs(ino *inode) (known bool) { return s.kernel.attrs(ino.node) }

// unname makes the kernel look all names up again, with those of a directory that are on their way to it.
func (s *fileSystem) unname(dir *inode) {
	s.listed(dir)
	s.kernel.epoch()
}

// listed returns when the kernel has the names of a directory that were on their way to it.
func (s *fileSystem) listed(dir *inode) {
	began := s.now()
	s.await(onWay, func() bool { return !dir.awaits(began, s.now()-int64(onWay)) })
}

// awaits reports whether an answer for a listing is on its way that was made after since, and not after until (fileSystem.now).
func (ino *inode) awaits(until, since int64) bool {
	ino.mu.Lock()
	defer ino.mu.Unlock()
	for _, made := range ino.lists {
		if made <= until && made > since {
			return true
		}
	}
	return false
}

// naming notes, before the lease is looked at, that the answer for a listing is going to tell names. Who
// calls it has the turn, as with arrived.
func (s *fileSystem) naming(l *listing) {
	if l.onWay {
		return
	}
	l.onWay = true
	l.ino.mu.Lock()
	defer l.ino.mu.Unlock()
	if l.ino.lists == nil {
		l.ino.lists = make(map[*listing]int64)
	}
	l.ino.lists[l] = s.now()
}

// locked notes that the kernel has a directory locked for a change of it, so that all listings have arrived. Their
// readers ask for no more before it is made, and that may need a lease of others, who wait for ours.
func (ino *inode) locked() {
	ino.mu.Lock()
	defer ino.mu.Unlock()
	clear(ino.lists)
}

// arrived notes that the kernel has taken in what it was answered before.
func (l *listing) arrived() {
	if !l.onWay {
		return
	}
	l.onWay = false
	l.ino.mu.Lock()
	defer l.ino.mu.Unlock()
	delete(l.ino.lists, l)
}

package fusefs

import (
	"context"
	"slices"

	"cagefs.dev/cage/remote/lease"
	"cagefs.dev/cage/remote/proto"
)

// Giving back a lease of a file means that the kernel drops its pages. For that
// it waits for the reads that are on their way, for it holds their pages locked;
// so these must be answered, although the lease is about to go. Others must not
// be: the kernel would keep what they bring. Which is which nobody tells, so:
//
//	the kernel drops its pages of a range   reads in the range are answered, and noted
//	it has dropped them                     reads wait for a new lease
//	were any noted?                         then once more, for their ranges alone
//
// A read outside the range can wait: nothing waits for it. What is read meanwhile
// comes from the server, on which nothing changes before the lease is given back.

// pass is such a drop under way.
type pass struct {
	ranges []bytesRange
	late   []bytesRange // reads that were answered
}

// bytesRange is bytes from off up to end.
type bytesRange struct{ off, end int64 }

func (p *pass) has(r bytesRange) bool {
	return slices.ContainsFunc(p.ranges, func(q bytesRange) bool { return r.off < q.end && q.off < r.end })
}

// everything is all bytes that a file can have.
var everything = bytesRange{0, 1<<63 - 1}

// recalled takes a recall: what is on its way to the kernel is not to be believed.
func (s *fileSystem) recalled(r lease.Recall) {
	s.memory.forget(r.ID)
	if ino := s.inodes.known(r.ID); ino != nil {
		ino.names.Add(1)
		ino.noCaps.Store(0)
		ino.disputed.Store(max(1, s.now()))
	}
	s.notify.put(r.ID, news{recall: &r})
}

// revoke makes cache and kernel forget a file and gives the lease back. It is the
// dispatcher's: requests in the works may wait for it, and it for reads. The
// kernel is told no more than it has to be: whoever gives it something notes that
// before he looks whether the lease still counts, which it does not since recalled.
func (s *fileSystem) revoke(id proto.FileID, r lease.Recall) {
	s.cache.Forget(s.key(id))
	ino := s.inodes.known(id)
	if node, ok := s.inodes.node(id); ok && (ino != nil || s.inodes.mayKnow(id)) {
		s.notified.Add(1)
		switch {
		case ino == nil:
			s.kernel.data(node)
			s.kernel.epoch()
		case ino.isDir() || ino.mode.Load() == 0:
			s.unbelieve(ino, s.dropAttrs)
			s.unname(ino)
		case ino.paged.Load():
			dropped := ino.drop() // before it is noted that there are none: see uncover
			ino.paged.Store(false)
			s.unbelieve(ino, s.dropPages)
			dropped()
		case ino.told.Load():
			s.unbelieve(ino, s.dropAttrs)
		}
	}
	s.session.Return(r)
}

// dropPages makes the kernel forget the attributes and pages of a file, and reports whether it has it.
func (s *fileSystem) dropPages(ino *inode) (known bool) {
	ranges := []bytesRange{everything}
	for len(ranges) > 0 {
		ino.mu.Lock()
		p := &pass{ranges: ranges}
		ino.pass = p
		if ino.began != nil {
			close(ino.began)
			ino.began = nil
		}
		ino.mu.Unlock()
		for _, r := range ranges {
			if r == everything {
				known = s.kernel.data(ino.node)
			} else {
				s.kernel.hole(ino.node, r.off, r.end-r.off)
			}
		}
		ino.mu.Lock()
		ino.pass, ranges = nil, p.late
		ino.mu.Unlock()
	}
	return known
}

// mayRead returns when bytes may be read through a file: when there is a lease,
// or the kernel waits for the read to drop its pages, or what is known may be shown
// although it may be stale. keeps: they are for its pages.
func (s *fileSystem) mayRead(ctx context.Context, f *openFile, off, n int64, keeps bool) (stale bool, err error) {
	if !s.leasing {
		return false, nil
	}
	ino, want := f.ino, bytesRange{off, off + n}
	if keeps {
		ino.paged.Store(true) // before the lease is looked at: see revoke
	}
	for {
		ino.mu.Lock()
		if ino.pass != nil && ino.pass.has(want) {
			ino.pass.late = append(ino.pass.late, want)
			ino.mu.Unlock()
			return false, nil
		}
		if ino.began == nil {
			ino.began = make(chan struct{})
		}
		began := ino.began
		ino.mu.Unlock()
		if n, _ := s.session.Tenure(ino.id); n != 0 {
			s.renew(f, n)
			return false, nil
		}
		if s.session.Stale() {
			return true, nil
		}
		if err := s.acquire(ctx, ino, proto.ReadLease, began); err != nil {
			return false, err
		}
	}
}

// acquire asks for a lease, and returns when it came or the kernel began to drop pages.
func (s *fileSystem) acquire(ctx context.Context, ino *inode, mode proto.LeaseMode, began <-chan struct{}) error {
	ctx, stop := context.WithCancel(ctx)
	defer stop()
	done := make(chan error, 1)
	s.tasks.Go(func() {
		release, err := s.session.Acquire(ctx, []proto.Want{{ID: ino.id, Mode: mode}})
		if err == nil {
			release()
		}
		done <- err
	})
	select {
	case err := <-done:
		return err
	case <-began:
		return nil
	}
}

// mayWrite returns when there is the write lease. Writes do not lock the
// kernel's pages: see opened.
func (s *fileSystem) mayWrite(ctx context.Context, f *openFile) error {
	if !s.leasing || s.session.Holds(f.ino.id, proto.WriteLease) {
		s.renewed(f)
		return nil
	}
	release, err := s.session.Acquire(ctx, []proto.Want{{ID: f.ino.id, Mode: proto.WriteLease}})
	if err != nil {
		return err
	}
	s.renewed(f)
	release()
	return nil
}

// append writes to the end of a file, under the write lease: where that is, the
// kernel need not know, so that the server is asked if it is in doubt.
func (s *fileSystem) append(ctx context.Context, f *openFile, b *backing, data []byte) error {
	for {
		ok, err := f.file.Append(ctx, b, data)
		if ok || err != nil {
			return err
		}
		if err := s.mayWrite(ctx, f); err != nil {
			return err
		}
		if err := s.settled(ctx, f.ino); err != nil {
			return err
		}
		upto := s.session.Applied()
		a, err := s.session.GetAttr(ctx, f.back.header, f.back.id)
		if err != nil {
			return err
		}
		s.inodes.heard(f.ino, &a)
		a.ID = s.key(a.ID)
		f.file.Seen(a, upto)
	}
}

func (s *fileSystem) renewed(f *openFile) {
	if !s.leasing {
		return
	}
	if n, _ := s.session.Tenure(f.ino.id); n != 0 {
		s.renew(f, n)
	}
}

// underLease takes in that a file was opened with attributes by which its cached
// pages were compared: they are good under the lease that came with these, if
// there was no recall since; and if it is no other.
func (s *fileSystem) underLease(f *openFile, a *proto.Attr, news uint64) bool {
	if !s.leasing {
		return true
	}
	n, _ := s.session.Tenure(f.ino.id)
	if f.ino.names.Load() != news {
		f.file.Renew()
		return false
	}
	if a.Lease.Mode != proto.NoLease {
		f.ino.tenure.Store(n)
	}
	return true
}

// renew drops what is cached of a file from before the present tenure of its lease.
func (s *fileSystem) renew(f *openFile, tenure uint64) {
	ino := f.ino
	if ino.tenure.Load() == tenure {
		return
	}
	ino.fresh.Lock()
	defer ino.fresh.Unlock()
	if ino.tenure.Load() != tenure {
		f.file.Renew()
		ino.tenure.Store(tenure)
	}
}

// ordered makes sure that whoever reads a file after an fsync that follows sees
// also what was stored through a mapping, about which nobody was asked.
func (s *fileSystem) ordered(ctx context.Context, id proto.FileID) (release func(), err error) {
	ino := s.inodes.known(id)
	if !s.leasing || ino == nil || !ino.mapped.Swap(false) {
		return func() {}, nil
	}
	release, err = s.session.Acquire(ctx, []proto.Want{{ID: id, Mode: proto.WriteLease}})
	if err != nil {
		ino.mapped.Store(true)
	}
	return release, err
}

package pagecache

import (
	"bytes"
	"context"
	"sync"

	"cagefs.dev/cage/remote/proto"
)

// server is a fake of everything behind Backing: files, one session's operation
// log, and what others do to the files. Logged operations are applied by step or, once
// run was called, by a goroutine.
type server struct {
	mu      sync.Mutex
	cond    *sync.Cond // signalled when anything changes
	files   map[proto.FileID]*served
	lsn     proto.LSN
	log     []*op
	applied proto.Seq
	reads   []extent // ReadAts that were answered or failed

	// Hooks, set before use; called without mu.
	before func(ctx context.Context, e extent) error // a ReadAt has come
	after  func(ctx context.Context, e extent) error // and has taken the bytes
	logged func(ctx context.Context, seq proto.Seq) error
	done   func(o *op, attr proto.Attr) // an operation was answered, in order
}

type served struct {
	data   []byte
	change proto.LSN
}

// op is a logged write (or truncate, where data is nil).
type op struct {
	id   proto.FileID
	seq  proto.Seq
	off  int64
	data []byte
	err  error // what becomes of it
	lsn  proto.LSN
	over bool
}

type extent struct {
	id  proto.FileID
	off int64
	n   int
}

func newServer() *server {
	s := &server{files: make(map[proto.FileID]*served)}
	s.cond = sync.NewCond(&s.mu)
	return s
}

func (s *server) put(id proto.FileID, data []byte) proto.Attr {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.lsn++
	s.files[id] = &served{bytes.Clone(data), s.lsn}
	return s.attrLocked(id)
}

// foreign is a change by somebody else; data nil truncates to off.
func (s *server) foreign(id proto.FileID, off int64, data []byte) proto.Attr {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.changeLocked(id, off, data)
	return s.attrLocked(id)
}

func (s *server) changeLocked(id proto.FileID, off int64, data []byte) {
	f := s.files[id]
	s.lsn++
	f.change = s.lsn
	end := off + int64(len(data))
	if data == nil || end > int64(len(f.data)) {
		grown := make([]byte, end)
		copy(grown, f.data)
		f.data = grown
	}
	copy(f.data[off:], data)
}

func (s *server) attrLocked(id proto.FileID) proto.Attr {
	f := s.files[id]
	return proto.Attr{ID: id, Mode: proto.ModeRegular | 0o644, Size: uint64(len(f.data)), Change: f.change}
}

// attr is a getattr, with what had been applied when it was asked for.
func (s *server) attr(id proto.FileID) (proto.Attr, proto.Seq) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.attrLocked(id), s.applied
}

func (s *server) appendLocked(id proto.FileID, off int64, data []byte) *op {
	o := &op{id: id, seq: proto.Seq(len(s.log) + 1), off: off, data: data}
	s.log = append(s.log, o)
	s.cond.Broadcast()
	return o
}

// step applies the next operation; false if there is none.
func (s *server) step() bool {
	s.mu.Lock()
	if int(s.applied) == len(s.log) {
		s.mu.Unlock()
		return false
	}
	o := s.log[s.applied]
	if o.err == nil {
		s.changeLocked(o.id, o.off, o.data)
		o.lsn = s.lsn
	}
	o.over = true
	s.applied++
	attr := s.attrLocked(o.id)
	s.cond.Broadcast()
	s.mu.Unlock()
	if s.done != nil {
		s.done(o, attr)
	}
	return true
}

func (s *server) drain() {
	for s.step() {
	}
}

// truncate logs a truncate and waits for it, as Session.Do does.
func (s *server) truncate(id proto.FileID, size int64) *op {
	s.mu.Lock()
	defer s.mu.Unlock()
	o := s.appendLocked(id, size, nil)
	for !o.over {
		s.cond.Wait()
	}
	return o
}

func (s *server) content(id proto.FileID) []byte {
	s.mu.Lock()
	defer s.mu.Unlock()
	return bytes.Clone(s.files[id].data)
}

// fetched are the answered reads since the last call.
func (s *server) fetched() []extent {
	s.mu.Lock()
	defer s.mu.Unlock()
	r := s.reads
	s.reads = nil
	return r
}

func (s *server) file(id proto.FileID) Backing { return &backing{s, id} }

type backing struct {
	s  *server
	id proto.FileID
}

func (b *backing) ReadAt(ctx context.Context, p []byte, off int64) (int, proto.LSN, uint64, error) {
	s, e := b.s, extent{b.id, off, len(p)}
	if s.before != nil {
		if err := s.before(ctx, e); err != nil {
			return 0, 0, 0, err
		}
	}
	s.mu.Lock()
	f := s.files[b.id]
	n := 0
	if off < int64(len(f.data)) {
		n = copy(p, f.data[off:])
	}
	change, size := f.change, uint64(len(f.data))
	s.reads = append(s.reads, e)
	s.mu.Unlock()
	if s.after != nil {
		if err := s.after(ctx, e); err != nil {
			return 0, 0, 0, err
		}
	}
	return n, change, size, ctx.Err()
}

func (b *backing) Log(ctx context.Context, p []byte, off int64) (proto.Seq, error) {
	s := b.s
	s.mu.Lock()
	o := s.appendLocked(b.id, off, bytes.Clone(p))
	s.mu.Unlock()
	if s.logged != nil {
		if err := s.logged(ctx, o.seq); err != nil {
			return 0, err
		}
	}
	return o.seq, ctx.Err()
}

func (b *backing) Wait(ctx context.Context, seq proto.Seq) error {
	s := b.s
	stop := context.AfterFunc(ctx, func() {
		s.mu.Lock()
		defer s.mu.Unlock()
		s.cond.Broadcast()
	})
	defer stop()
	s.mu.Lock()
	defer s.mu.Unlock()
	for s.applied < seq && ctx.Err() == nil {
		s.cond.Wait()
	}
	if s.applied < seq {
		return ctx.Err()
	}
	return s.log[seq-1].err
}

func (b *backing) Applied() proto.Seq {
	b.s.mu.Lock()
	defer b.s.mu.Unlock()
	return b.s.applied
}

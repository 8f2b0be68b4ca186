package remote

import (
	"context"
	"errors"
	"math"
	"time"

	"cagefs.dev/cage/remote/lockset"
	"cagefs.dev/cage/remote/proto"
	"cagefs.dev/cage/remote/status"
	"cagefs.dev/cage/remote/wire"
)

// open is a file that the session has open, or whose Release is on its way.
// Guarded by Session.mu.
//
// The server counts opens, but after a lost connection this side cannot know
// what it has counted. So opens are counted here, and given back all at once
// with the last; a further Open waits for the answer to that.
type open struct {
	count     int            // Opens less Releases, with those Opens that may yet succeed
	granted   bool           // the server may count some of them
	h         wire.ReqHeader // of the last Open, for opening it again
	flags     uint32
	releasing chan struct{} // closed when the Release is answered; nil: none is on its way
}

// closing is how long an open that another client's forbids is tried again: of its
// last close that one hears a little later than who closed.
const closing = 250 * time.Millisecond

// Open checks permission and keeps the file reachable until Release; the
// session renews it after a reconnect or restart. Mode is what others may do with the file until
// the session has released all its opens of it; of several, the strongest counts. With one, when Open
// returns all that others wrote is applied. A mode that is lost is a lost lock of the kind
// lockset.Opens. Errors: status.Busy where another client's mode forbids the open, or his open the mode. While
// only what he wrote is on its way it waits, until ctx ends.
func (s *Session) Open(ctx context.Context, h wire.ReqHeader, id proto.FileID, flags uint32, mode lockset.Mode) (a proto.Attr, err error) {
	for began := s.now(); ; {
		if a, err = s.openOnce(ctx, h, id, flags); err == nil && mode != lockset.NoMode {
			err = s.takeMode(ctx, id, mode, &a)
		}
		switch {
		case status.Of(err) == status.Busy && s.now()-began >= closing:
			s.refused(id, err)
			return a, err
		case status.Of(err) != status.Busy && status.Of(err) != status.Locked:
			return a, err
		}
		if err := s.pause(ctx, closing/10); err != nil {
			return a, status.Wrap(err, "open", id.String())
		}
	}
}

// Refused is an open that somebody else's was in the way of.
type Refused struct {
	ID   proto.FileID
	When time.Time
	Why  string // who it was, and how he has it open
}

func (s *Session) refused(id proto.FileID, err error) {
	r := &Refused{ID: id, When: time.Now(), Why: err.Error()}
	var e *status.Error
	if errors.As(err, &e) && e.Err != nil {
		r.Why = e.Err.Error()
	}
	s.o.Log.Info().Stringer("file", id).Str("why", r.Why).Msg("an open was refused")
	s.mu.Lock()
	defer s.mu.Unlock()
	s.lastRefused = r
}

// Reserved reports whether the session has a mode for a file.
func (s *Session) Reserved(id proto.FileID) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return len(s.locks.held[modeOwner(id)]) > 0
}

// takeMode takes a mode for a file that was just opened, or releases it.
func (s *Session) takeMode(ctx context.Context, id proto.FileID, mode lockset.Mode, a *proto.Attr) error {
	later, err := s.Lock(ctx, modeOwner(id), mode.Lock(), false)
	if err == nil && !s.Leasing() {
		if later.ID != 0 {
			*a = later
		}
		return nil
	}
	if err == nil {
		want := proto.Want{ID: id, Mode: proto.ReadLease}
		if mode != lockset.ReadShared {
			want.Mode = proto.WriteLease
		}
		var release func()
		if release, err = s.Acquire(ctx, []proto.Want{want}); err == nil {
			release()
			return nil
		}
	}
	s.Release(id)
	return err
}

// modeOwner is the one owner of a file's mode in a session.
func modeOwner(id proto.FileID) LockOwner { return LockOwner{ID: id, Kind: lockset.Opens} }

func (s *Session) openOnce(ctx context.Context, h wire.ReqHeader, id proto.FileID, flags uint32) (proto.Attr, error) {
	k := newCall(wire.OpOpen, &wire.OpenReq{ReqHeader: h, ID: id, Flags: flags})
	k.forgotten = func(err error) { s.openedLocked(id, err); s.closeLocked(id) }
	began := s.now()
	for {
		releasing := s.tryOpen(k, id, h, flags)
		if releasing == nil {
			break
		}
		if _, err := await(ctx, s, releasing, began, "open", id.String()); err != nil {
			return proto.Attr{}, err
		}
	}
	var rep wire.AttrRep
	if err := s.start(k, id.String()); err != nil {
		s.Release(id)
		return proto.Attr{}, err
	}
	r, err := await(ctx, s, k.reply, k.began, "open", id.String())
	if err != nil {
		s.abandon(k) // its answer, or the loss of the connection, takes the count back
		return proto.Attr{}, err
	}
	if err = wire.DecodeReply(r.h, r.payload, &rep); err == nil {
		err = believeAttr(&rep.Attr, id)
	}
	if err == nil {
		s.granted(&rep.Attr)
	}
	s.recycle(r.payload)
	s.mu.Lock()
	defer s.mu.Unlock()
	s.openedLocked(id, err)
	if err != nil {
		s.closeLocked(id)
	}
	return rep.Attr, err
}

// openedLocked takes note of the server's answer to an Open.
func (s *Session) openedLocked(id proto.FileID, err error) {
	if o := s.opens[id]; o != nil && err == nil {
		o.granted = true
	}
}

// tryOpen counts an open, or returns what is closed when that may be tried again.
func (s *Session) tryOpen(k *call, id proto.FileID, h wire.ReqHeader, flags uint32) <-chan struct{} {
	s.mu.Lock()
	defer s.mu.Unlock()
	o := s.opens[id]
	if o == nil {
		o = &open{}
		s.opens[id] = o
	}
	if o.releasing != nil {
		return o.releasing
	}
	o.count++
	o.h, o.flags = h, o.flags|flags
	return nil
}

// Release takes one Open back. It does not block.
func (s *Session) Release(id proto.FileID) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.closeLocked(id)
}

// closeLocked takes one open back, and the last with all at the server.
func (s *Session) closeLocked(id proto.FileID) {
	o := s.opens[id]
	if o == nil || o.count == 0 {
		return
	}
	o.count--
	if o.count > 0 {
		return
	}
	s.beginUnlockLocked(modeOwner(id), 0, lockset.Max)
	if s.over || !o.granted {
		delete(s.opens, id)
		return
	}
	o.releasing = make(chan struct{})
	s.detachLocked(wire.OpRelease, &wire.ReleaseReq{ID: id, N: math.MaxUint32}, func(error) {
		close(o.releasing)
		delete(s.opens, id)
	})
}

// detachLocked queues a call for whose reply nobody waits.
func (s *Session) detachLocked(op wire.Opcode, req wire.Message, forgotten func(error)) {
	k := newCall(op, req)
	k.detached, k.forgotten = true, forgotten
	s.enqueueLocked(k)
}

// reopenLocked opens again, on a new connection, what the server was not told of
// in the hello, or could not know because the session is a new one.
func (s *Session) reopenLocked(told []proto.FileID, resumed bool) {
	known := map[proto.FileID]bool{}
	if resumed {
		for _, id := range told {
			known[id] = true
		}
	}
	for id, o := range s.opens {
		if o.count == 0 || known[id] {
			continue
		}
		s.detachLocked(wire.OpOpen, &wire.OpenReq{ReqHeader: o.h, ID: id, Flags: o.flags}, func(err error) {
			s.openedLocked(id, err)
			if err != nil {
				s.o.Log.Warn().Err(err).Uint64("fid", uint64(id)).Msg("an open file could not be opened again")
			}
		})
	}
}

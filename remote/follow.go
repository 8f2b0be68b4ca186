package remote

import (
	"context"
	"time"

	"cagefs.dev/cage/remote/proto"
	"cagefs.dev/cage/remote/status"
	"cagefs.dev/cage/remote/wire"
)

// Bounds of how long Follow waits for a change that was pushed to be in the history
// as well: it is there a moment later, one by a program on the server within a second.
const (
	minFollowPause = 5 * time.Millisecond
	maxFollowPause = 200 * time.Millisecond
)

// Follow calls f, one after the other, for the changes that q asks for and that
// are newer than q.After (0: than now), oldest first, as they are made. It learns of them
// by the server's pushes, holds one answer at a time however slow f is, and
// waits for a server that is away. It blocks until ctx ends, f fails, or the history
// does: status.NoHistory where what comes next is not kept any more.
func (s *Session) Follow(ctx context.Context, q wire.LogReq, f func(proto.Entry) error) error {
	q.Before, q.Limit = 0, wire.MaxEntries
	if q.After == 0 {
		now, err := s.Moment(ctx, proto.Moment{Kind: proto.MomentNow})
		if err != nil {
			return err
		}
		q.After = max(now.LSN, 1)
	}
	for pause := minFollowPause; ; pause = min(2*pause, maxFollowPause) {
		seen := s.upcalls.seen()
		rep, err := s.History(ctx, q)
		switch {
		case status.Of(err) == status.Timeout && ctx.Err() == nil:
			continue
		case err != nil:
			return err
		}
		for _, e := range rep.Entries {
			if err := f(e); err != nil {
				return err
			}
		}
		if rep.Upto > q.After {
			q.After, pause = rep.Upto, minFollowPause
		}
		if rep.More {
			continue
		}
		if err := s.awaitNews(ctx, seen, q.After, pause); err != nil {
			return err
		}
	}
}

// awaitNews blocks until something was pushed after seen, or, no longer than a pause, if
// what was pushed before is not in the history up to a record.
func (s *Session) awaitNews(ctx context.Context, seen uint64, upto proto.LSN, pause time.Duration) error {
	fresh, newest := s.upcalls.await(seen)
	var late <-chan time.Time
	if newest > upto {
		late = time.After(pause)
	}
	select {
	case <-fresh:
	case <-late:
	case <-ctx.Done():
		return ctx.Err()
	case <-s.ended:
		return closedError("follow", "")
	}
	return nil
}

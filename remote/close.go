package remote

import (
	"context"
	"fmt"
	"io"
	"time"

	"cagefs.dev/cage/remote/branch"
	"cagefs.dev/cage/remote/proto"
	"cagefs.dev/cage/remote/status"
	"cagefs.dev/cage/remote/wire"
)

// byeTimeout is how long a goodbye may take.
const byeTimeout = 2 * time.Second

// Close takes no more changes, pushes the log until ctx ends, says goodbye and
// closes; what still waits for an answer fails. The error tells what was not
// delivered, or the first failure that nobody has been told of. Idempotent:
// further calls wait for the first and return its error. Not to be called from an upcall.
func (s *Session) Close(ctx context.Context) error {
	s.mu.Lock()
	again := s.closing
	s.closing = true
	s.mu.Unlock()
	if again {
		<-s.closed
		return s.closeErr
	}
	err := s.push(ctx)
	if err == nil {
		s.bye(ctx)
	}
	s.mu.Lock()
	s.over = true
	s.setStateLocked(Closed)
	s.mu.Unlock()
	s.cancel()
	s.wg.Wait()
	s.mu.Lock()
	if err == nil {
		err = status.Wrap(s.log.TakeError(0), "close", s.o.Addr)
	}
	s.closeErr = err
	s.mu.Unlock()
	close(s.closed)
	return err
}

// WriteBranch writes what was acknowledged to programs and not delivered when the session
// was closed, as a branch (package branch), and returns how many writes that are. It
// is for after Close, which drops nothing of it.
func (s *Session) WriteBranch(w io.Writer) (writes int, err error) {
	s.mu.Lock()
	left := s.log.Undelivered()
	h := branch.Head{Session: s.id, Client: s.o.Client, Source: s.o.Addr + ":/" + s.o.Export, Began: now()}
	s.mu.Unlock()
	buf := branch.AppendHead(nil, &h)
	for _, e := range left {
		op := e.Op.(*proto.Write)
		buf = branch.AppendWrite(buf, &branch.Write{
			Seq: e.Seq, Time: h.Began, UID: e.Ident.UID, PID: e.Ident.PID, Comm: e.Ident.Comm,
			ID: op.ID, Off: op.Off, Append: op.Append, Data: op.Data,
		})
		if _, err := w.Write(buf); err != nil {
			return writes, err
		}
		writes, buf = writes+1, buf[:0]
	}
	return writes, nil
}

func now() proto.Time { return proto.Time(time.Now().UnixNano()) }

// push waits until the log is empty, or the server refuses the client.
func (s *Session) push(ctx context.Context) error {
	for {
		s.mu.Lock()
		ops, _ := s.log.Unanswered()
		lighter := s.lighter
		s.mu.Unlock()
		if ops == 0 {
			return nil
		}
		select {
		case <-lighter:
		case <-s.refusal.Load().done:
			return s.undelivered(status.WrongKey)
		case <-ctx.Done():
			return s.undelivered(ctx.Err())
		}
	}
}

// undelivered is the error of a Close that gives up, and why.
func (s *Session) undelivered(reason error) error {
	st := s.Status()
	if st.Unapplied == 0 { // the last answer came together with the end
		return nil
	}
	code, why := status.Of(reason), ""
	if s.State() == Reconnecting {
		why = ": " + st.LastError
		if code != status.WrongKey {
			code = status.Unreachable
		}
	}
	return status.Newf(code, "close", "", "%d %s, %s not delivered to %s%s",
		st.Unapplied, plural(st.Unapplied, "change", "changes"), size(st.Bytes), s.o.Addr, why)
}

// bye ends the session at the server, if there is a connection.
func (s *Session) bye(ctx context.Context) {
	s.mu.Lock()
	up := s.main != nil && !s.main.draining
	if up {
		s.setStateLocked(Closed)
	}
	s.mu.Unlock()
	if !up {
		return
	}
	ctx, cancel := context.WithTimeout(ctx, byeTimeout)
	defer cancel()
	if err := s.roundTrip(ctx, wire.OpBye, &wire.Empty{}, &wire.Empty{}, ""); err != nil {
		s.o.Log.Debug().Err(err).Msg("goodbye")
	}
}

func plural(n int, one, many string) string {
	if n == 1 {
		return one
	}
	return many
}

// size is a number of bytes for people.
func size(n int64) string {
	const unit = 1024
	if n < unit {
		return fmt.Sprintf("%d bytes", n)
	}
	v, i := float64(n)/unit, 0
	for ; v >= unit && i < 3; i++ {
		v /= unit
	}
	return fmt.Sprintf("%.4g %s", v, [...]string{"KiB", "MiB", "GiB", "TiB"}[i])
}

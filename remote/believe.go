package remote

import (
	"math"

	"cagefs.dev/cage/remote/proto"
	"cagefs.dev/cage/remote/status"
	"cagefs.dev/cage/remote/wire"
)

// What a server says is looked at before anybody relies on it: those above take
// sizes for lengths, numbers for keys of tables, and names for names. An answer
// that cannot be is status.BadFrame, the error of its request alone.

// believeAttr checks the attributes of a file; id is the one that was asked for, 0: any.
func believeAttr(a *proto.Attr, id proto.FileID) error {
	switch {
	case a.ID == 0 || a.ID > proto.MaxFileID || id != 0 && a.ID != id:
		return nonsense("number %d of a file", uint64(a.ID))
	case a.Size > math.MaxInt64:
		return nonsense("size %d of a file", a.Size)
	}
	return nil
}

// believeEntries checks a part of a listing that follows a cookie: entries have names,
// and the last leads on.
func believeEntries(rep *wire.ReadDirRep, cookie uint64) error {
	n := len(rep.Entries)
	if !rep.EOF && (n == 0 || rep.Entries[n-1].Cookie == cookie || rep.Entries[n-1].Cookie == 0) {
		return nonsense("a listing that does not go on")
	}
	for i := range rep.Entries {
		e := &rep.Entries[i]
		if err := wire.CheckName(e.Name); err != nil {
			return nonsense("a listing with %w", err)
		}
		if e.Attr.ID == 0 {
			continue // the server could not look it up
		}
		if err := believeAttr(&e.Attr, 0); err != nil {
			return err
		}
	}
	if rep.Parent > proto.MaxFileID {
		return nonsense("number %d of a file", uint64(rep.Parent))
	}
	return nil
}

// believeRead checks the answer to a request for bytes: no more than were asked
// for, nor than the file has.
func believeRead(rep *wire.ReadRep, off uint64, n int) error {
	switch {
	case len(rep.Data) > n:
		return nonsense("more bytes than were asked for")
	case rep.Size > math.MaxInt64, len(rep.Data) > 0 && off+uint64(len(rep.Data)) > rep.Size:
		return nonsense("%d bytes at %d of %d", len(rep.Data), off, rep.Size)
	}
	return nil
}

// believeResult checks the result of a change; what became of a file may be left out.
func believeResult(op wire.Opcode, r *proto.Result) error {
	switch {
	case r.ID > proto.MaxFileID:
		return nonsense("number %d of a file", uint64(r.ID))
	case r.N > math.MaxInt64, op == wire.ChangeOpcode((*proto.Copy)(nil)) && r.N > proto.MaxIO:
		return nonsense("%d bytes", r.N)
	case r.Attr.ID == 0:
		return nil
	}
	return believeAttr(&r.Attr, r.ID)
}

// believeOutcome checks that a result is of the file that a change was for.
func believeOutcome(op proto.Op, r *proto.Result) error {
	var id proto.FileID
	switch op := op.(type) {
	case *proto.Link:
		id = op.ID
	case *proto.SetAttr:
		id = op.ID
	case *proto.Allocate:
		id = op.ID
	}
	if id != 0 && r.Attr.ID != 0 && r.Attr.ID != id {
		return nonsense("number %d of a file", uint64(r.Attr.ID))
	}
	return nil
}

// believeHello checks what a session begins with, or goes on with that has so many locks and claims.
func (o *Options) believeHello(rep *wire.HelloRep, locks, claims int) error {
	if o.Export == "" {
		return nil
	}
	if err := believeAttr(&rep.Root, proto.RootID); err != nil {
		return err
	}
	if !rep.Root.IsDir() || rep.Session == 0 {
		return nonsense("a session without a number or a directory")
	}
	for _, i := range rep.LostLocks {
		if int64(i) >= int64(locks) {
			return nonsense("lock %d of %d is lost", i, locks)
		}
	}
	for _, i := range rep.Lost {
		if int64(i) >= int64(claims) {
			return nonsense("claim %d of %d is lost", i, claims)
		}
	}
	return nil
}

func nonsense(format string, args ...any) error {
	return status.Newf(status.BadFrame, "reply", "", "the server says what cannot be: "+format, args...)
}

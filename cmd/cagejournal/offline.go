package main

import (
	"context"
	"crypto/rand"
	"encoding/binary"
	"errors"
	"io"
	"os"
	"strings"

	"github.com/rs/zerolog"

	"cagefs.dev/cage/cmd/internal/cli"
	"cagefs.dev/cage/journal"
	"cagefs.dev/cage/journal/replay"
	"cagefs.dev/cage/journal/vfs"
	"cagefs.dev/cage/remote/proto"
	"cagefs.dev/cage/remote/status"
	"cagefs.dev/cage/remote/wire"
)

// offline is an export's history on the server's disk. Whoever may read the
// directory is asked for no further permission.
type offline struct {
	closeDisk func() error

	j   *journal.Journal
	seq proto.Seq
	// Session of this process in the journal, 0 until the first change.
	session proto.SessionID
	client  uint32
}

// openHistory opens the journal in a directory: to read, also beside a stopped
// server, or to change, which is status.Busy while a server holds it.
func openHistory(ctx context.Context, dir string, write bool) (*offline, error) {
	o, closeDisk, err := journal.Locate(dir, "")
	if err != nil {
		return nil, status.Wrap(err, "", dir)
	}
	o.ReadOnly, o.Log = !write, zerolog.Nop()
	o.Mount = vfs.MountRun(dir)
	j, _, err := journal.Open(ctx, o)
	if err != nil {
		closeDisk()
		return nil, status.Wrap(err, "", dir)
	}
	return &offline{closeDisk: closeDisk, j: j}, nil
}

// reader is what the present and the past have in common.
type reader interface {
	Lookup(dir proto.FileID, name string) (proto.Attr, error)
	Attr(id proto.FileID) (proto.Attr, error)
	Readlink(id proto.FileID) (string, error)
	ReadAt(id proto.FileID, p []byte, off int64) (int, error)
	ReadDir(dir proto.FileID, after uint64, plus bool, f func(proto.DirEntry) bool) error
}

func (o *offline) at(at proto.LSN) (reader, error) {
	if at == 0 {
		return o.j, nil
	}
	return o.j.At(at)
}

func (o *offline) Log(_ context.Context, q wire.LogReq) (wire.LogRep, error) {
	list, err := o.j.Entries(journal.Query{
		Path: q.Path, LSN: q.LSN, Before: q.Before, After: q.After, Limit: int(q.Limit), Records: q.Records,
	})
	return wire.LogRep{Entries: list.Entries, More: list.More, Oldest: list.Oldest, Upto: list.Upto}, err
}

func (o *offline) Follow(context.Context, wire.LogReq, func(proto.Entry) error) error {
	return cli.Usage("--follow needs a server: nothing changes here while the command has the journal")
}

func (o *offline) Moment(_ context.Context, m proto.Moment) (wire.MomentRep, error) {
	lsn, t, err := o.j.Moment(m)
	return wire.MomentRep{LSN: lsn, Time: t}, err
}

func (o *offline) Resolve(_ context.Context, at proto.LSN, path string) (proto.Attr, error) {
	r, err := o.at(at)
	if err != nil {
		return proto.Attr{}, err
	}
	a, err := r.Attr(proto.RootID)
	for name := range strings.SplitSeq(path, "/") {
		if name == "" {
			continue
		}
		if err != nil {
			return proto.Attr{}, err
		}
		a, err = r.Lookup(a.ID, name)
	}
	return a, err
}

func (o *offline) Readlink(_ context.Context, at proto.LSN, id proto.FileID) (string, error) {
	r, err := o.at(at)
	if err != nil {
		return "", err
	}
	return r.Readlink(id)
}

func (o *offline) ReadAt(_ context.Context, at proto.LSN, id proto.FileID, p []byte, off int64) (int, error) {
	r, err := o.at(at)
	if err != nil {
		return 0, err
	}
	n, err := r.ReadAt(id, p, off)
	if errors.Is(err, io.EOF) {
		err = nil
	}
	return n, err
}

func (o *offline) ReadDir(_ context.Context, at proto.LSN, id proto.FileID, cookie uint64) ([]proto.DirEntry, error) {
	r, err := o.at(at)
	if err != nil {
		return nil, err
	}
	var out []proto.DirEntry
	err = r.ReadDir(id, cookie, true, func(e proto.DirEntry) bool {
		out = append(out, e)
		return len(out) < pageEntries
	})
	return out, err
}

func (o *offline) Attr(_ context.Context, id proto.FileID) (proto.Attr, error) { return o.j.Attr(id) }

func (o *offline) Branches(context.Context) ([]proto.BranchInfo, error) {
	list, err := o.j.Branches()
	var out []proto.BranchInfo
	for i := range list {
		out = append(out, list[i].BranchInfo)
	}
	return out, err
}

func (o *offline) ReadBranch(_ context.Context, branch proto.SessionID, p []byte, off int64) (int, error) {
	n, err := o.j.ReadBranch(branch, p, off)
	if errors.Is(err, io.EOF) {
		err = nil
	}
	return n, err
}

func (o *offline) Session() proto.SessionID { return o.session }

func (o *offline) Change(ctx context.Context, op proto.Op) (proto.Result, error) {
	if err := o.openSession(); err != nil {
		return proto.Result{}, err
	}
	o.seq++
	s := &journal.Submission{
		Change: &proto.Change{Session: o.session, Seq: o.seq, Acked: o.seq - 1, Ident: cli.OwnIdent("cagejournal"), Op: op},
		Client: o.client, Trusted: os.Geteuid() == 0,
	}
	switch op := op.(type) {
	case *proto.Rollback:
		return replay.Rollback(ctx, o.j, s, op)
	case *proto.Undo:
		return replay.Undo(ctx, o.j, s, op)
	case *proto.Branch:
		return replay.Branch(ctx, o.j, s, op)
	case *proto.Write: // to be kept
		if _, err := o.j.Strand(ctx, s, op, false); err != nil {
			return proto.Result{}, err
		}
		return proto.Result{}, status.New(status.LostLock, "", "")
	}
	return o.j.Do(ctx, s)
}

// openSession gives this process a place in the journal, under the name that
// its mounts on this machine would have.
func (o *offline) openSession() error {
	if o.session != 0 {
		return nil
	}
	host, err := os.Hostname()
	if err != nil {
		return err
	}
	if o.client, err = o.j.Client(host); err != nil {
		return err
	}
	var b [8]byte
	rand.Read(b[:])
	id := proto.SessionID(binary.LittleEndian.Uint64(b[:]) | 1)
	if err := o.j.OpenSession(id, o.client, "offline"); err != nil {
		return err
	}
	o.session = id
	return nil
}

func (o *offline) Verify(ctx context.Context, full bool) (wire.VerifyRep, error) {
	r, err := o.j.Verify(ctx, full)
	return wire.VerifyRep{Segments: r.Segments, Frames: r.Frames, Records: r.Records, Bytes: r.Bytes, Problems: r.Problems}, err
}

func (o *offline) Usage(context.Context) (wire.UsageRep, error) {
	u, err := o.j.Usage()
	return wire.UsageRep{
		Oldest: u.Oldest, OldestTime: u.OldestTime, Newest: u.Newest,
		LogBytes: u.LogBytes, GraveBytes: u.GraveBytes, GraveFiles: u.GraveFiles, CapBytes: u.CapBytes,
	}, err
}

func (o *offline) Close(context.Context) error {
	var err error
	if o.session != 0 {
		err = o.j.CloseSession(o.session)
	}
	err = errors.Join(err, o.j.Close())
	return errors.Join(err, o.closeDisk())
}

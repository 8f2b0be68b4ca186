package remote

import (
	"context"
	"math"

	"cagefs.dev/cage/remote/proto"
	"cagefs.dev/cage/remote/status"
	"cagefs.dev/cage/remote/wire"
)

// Reads: h.At is 0 for now. Errors carry status codes. What is not answered when
// a connection is lost is asked again on the next.

// Lookup asks for a name in a directory.
func (s *Session) Lookup(ctx context.Context, h wire.ReqHeader, dir proto.FileID, name string) (proto.Attr, error) {
	if err := wire.CheckName(name); err != nil {
		return proto.Attr{}, err
	}
	return s.attr(ctx, wire.OpLookup, &wire.LookupReq{ReqHeader: h, Dir: dir, Name: name}, name, 0)
}

// GetAttr asks for a file's attributes.
func (s *Session) GetAttr(ctx context.Context, h wire.ReqHeader, id proto.FileID) (proto.Attr, error) {
	return s.attr(ctx, wire.OpGetAttr, &wire.IDReq{ReqHeader: h, ID: id}, id.String(), id)
}

// Resolve asks for the file under a path below the export; symlinks are not followed.
func (s *Session) Resolve(ctx context.Context, h wire.ReqHeader, path string) (proto.Attr, error) {
	if err := wire.CheckPath(path); err != nil {
		return proto.Attr{}, err
	}
	return s.attr(ctx, wire.OpResolve, &wire.ResolveReq{ReqHeader: h, Path: path}, path, 0)
}

func (s *Session) attr(ctx context.Context, op wire.Opcode, req wire.Message, object string, id proto.FileID) (proto.Attr, error) {
	var rep wire.AttrRep
	err := s.roundTrip(ctx, op, req, &rep, object)
	if err == nil {
		err = believeAttr(&rep.Attr, id)
	}
	if err == nil {
		s.granted(&rep.Attr)
	}
	return rep.Attr, err
}

// ReadDir lists a directory after cookie, at most max entries.
func (s *Session) ReadDir(ctx context.Context, h wire.ReqHeader, id proto.FileID, cookie uint64, max int, plus bool) (wire.ReadDirRep, error) {
	var rep wire.ReadDirRep
	req := &wire.ReadDirReq{ReqHeader: h, ID: id, Cookie: cookie, Max: uint32(min(max, wire.MaxEntries)), Plus: plus}
	err := s.roundTrip(ctx, wire.OpReadDir, req, &rep, id.String())
	if err == nil {
		err = believeEntries(&rep, cookie)
	}
	if err == nil && plus {
		s.grantedEntries(rep.Entries)
	}
	return rep, err
}

// Readlink asks for a symlink's target.
func (s *Session) Readlink(ctx context.Context, h wire.ReqHeader, id proto.FileID) (string, error) {
	var rep wire.ReadlinkRep
	err := s.roundTrip(ctx, wire.OpReadlink, &wire.IDReq{ReqHeader: h, ID: id}, &rep, id.String())
	return rep.Target, err
}

// StatFS describes the file system below the export.
func (s *Session) StatFS(ctx context.Context, h wire.ReqHeader, id proto.FileID) (proto.StatFS, error) {
	var rep wire.StatFSRep
	err := s.roundTrip(ctx, wire.OpStatFS, &wire.IDReq{ReqHeader: h, ID: id}, &rep, id.String())
	return rep.StatFS, err
}

// GetXattr asks for an extended attribute.
func (s *Session) GetXattr(ctx context.Context, h wire.ReqHeader, id proto.FileID, name string) ([]byte, error) {
	if name == "" || len(name) > proto.MaxName {
		return nil, status.New(status.Range, "getxattr", id.String())
	}
	var rep wire.BytesRep
	err := s.roundTrip(ctx, wire.OpGetXattr, &wire.XattrReq{ReqHeader: h, ID: id, Name: name}, &rep, id.String())
	return rep.Value, err
}

// ListXattr lists the names of a file's extended attributes.
func (s *Session) ListXattr(ctx context.Context, h wire.ReqHeader, id proto.FileID) ([]string, error) {
	var rep wire.NamesRep
	err := s.roundTrip(ctx, wire.OpListXattr, &wire.IDReq{ReqHeader: h, ID: id}, &rep, id.String())
	return rep.Names, err
}

// Seek asks where at or after an offset of a regular file data begin, or, with
// hole, a hole; the end of the file is one. status.NoDevice where there is none.
func (s *Session) Seek(ctx context.Context, h wire.ReqHeader, id proto.FileID, off int64, hole bool) (int64, error) {
	if off < 0 {
		return 0, status.New(status.NoDevice, "seek", id.String())
	}
	req := &wire.SeekReq{ReqHeader: h, ID: id, Off: uint64(off), Whence: wire.SeekData}
	if hole {
		req.Whence = wire.SeekHole
	}
	var rep wire.SeekRep
	err := s.roundTrip(ctx, wire.OpSeek, req, &rep, id.String())
	if err == nil && rep.Off > math.MaxInt64 {
		err = status.Newf(status.BadFrame, "seek", id.String(), "offset %d", rep.Off)
	}
	return int64(rep.Off), err
}

// ReadAt fills p from a file; n < len(p) only at the end of the file (no error
// then). More than proto.MaxIO bytes are asked for in pieces at the same time.
// change and size are the file's when the bytes were read; if it changed
// between the pieces, change is the oldest piece's.
func (s *Session) ReadAt(ctx context.Context, h wire.ReqHeader, id proto.FileID, p []byte, off int64) (n int, change proto.LSN, size uint64, err error) {
	object := id.String()
	if off < 0 || off > math.MaxInt64-int64(len(p)) {
		return 0, 0, 0, status.New(status.Invalid, "read", object)
	}
	var pieces []*call
	for at := 0; at == 0 || at < len(p); at += proto.MaxIO {
		k := newCall(wire.OpRead, &wire.ReadReq{
			ReqHeader: h, ID: id, Off: uint64(off) + uint64(at), Len: uint32(min(len(p)-at, proto.MaxIO)),
		})
		if err = s.start(k, object); err != nil {
			break
		}
		pieces = append(pieces, k)
	}
	change = math.MaxUint64
	for i, k := range pieces {
		if err != nil || n < i*proto.MaxIO { // failed, or at the end of the file
			s.abandon(k)
			continue
		}
		var rep wire.ReadRep
		err = s.finish(ctx, k, &rep, object, func() error {
			if err := believeRead(&rep, uint64(off)+uint64(n), min(len(p)-n, proto.MaxIO)); err != nil {
				return status.Wrap(err, "read", object)
			}
			n += copy(p[n:], rep.Data)
			return nil
		})
		change, size = min(change, rep.Change), rep.Size
	}
	if err != nil {
		return 0, 0, 0, err
	}
	return n, change, size, nil
}

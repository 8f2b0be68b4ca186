package remote

import (
	"context"

	"cagefs.dev/cage/remote/proto"
	"cagefs.dev/cage/remote/wire"
)

// File is a remote file on behalf of somebody: what a cache of pages fills from
// and writes to. It holds nothing open; see Session.Open.
type File struct {
	s     *Session
	id    proto.FileID
	ident proto.Ident
}

// File binds a file and an identity.
func (s *Session) File(id proto.FileID, ident proto.Ident) *File { return &File{s, id, ident} }

// ReadAt is Session.ReadAt of the present.
func (f *File) ReadAt(ctx context.Context, p []byte, off int64) (n int, change proto.LSN, size uint64, err error) {
	return f.s.ReadAt(ctx, wire.ReqHeader{Ident: f.ident}, f.id, p, off)
}

// Log is Session.Log of a write; one of more than proto.MaxIO bytes becomes
// several, of which it returns the last. After an error the first of them may
// be logged.
func (f *File) Log(ctx context.Context, p []byte, off int64) (seq proto.Seq, err error) {
	for {
		n := min(len(p), proto.MaxIO)
		seq, err = f.s.Log(ctx, f.ident, &proto.Write{ID: f.id, Off: uint64(off), Data: p[:n]})
		if err != nil || n == len(p) {
			return seq, err
		}
		p, off = p[n:], off+int64(n)
	}
}

// Wait is Session.Wait.
func (f *File) Wait(ctx context.Context, seq proto.Seq) error { return f.s.Wait(ctx, seq) }

// Applied is Session.Applied.
func (f *File) Applied() proto.Seq { return f.s.Applied() }

package remote

import (
	"context"

	"cagefs.dev/cage/remote/proto"
	"cagefs.dev/cage/remote/wire"
)

// Exports are the exports that this client may see.
func (s *Session) Exports(ctx context.Context) ([]string, error) {
	var rep wire.ExportsRep
	err := s.roundTrip(ctx, wire.OpExports, &wire.Empty{}, &rep, "")
	return rep.Names, err
}

// History lists changes, newest first.
func (s *Session) History(ctx context.Context, q wire.LogReq) (wire.LogRep, error) {
	q.Limit = min(q.Limit, wire.MaxEntries)
	var rep wire.LogRep
	if err := wire.CheckPath(q.Path); err != nil {
		return rep, err
	}
	err := s.roundTrip(ctx, wire.OpLog, &q, &rep, q.Path)
	return rep, err
}

// Moment turns a moment into the record that it means.
func (s *Session) Moment(ctx context.Context, m proto.Moment) (wire.MomentRep, error) {
	var rep wire.MomentRep
	err := s.roundTrip(ctx, wire.OpMoment, &wire.MomentReq{Moment: m}, &rep, "")
	return rep, err
}

// Branches lists what sessions could not deliver and this client may see, the oldest first.
func (s *Session) Branches(ctx context.Context, id proto.Ident) (out []proto.BranchInfo, err error) {
	req := wire.BranchesReq{Ident: id}
	for {
		var rep wire.BranchesRep
		if err := s.roundTrip(ctx, wire.OpBranches, &req, &rep, ""); err != nil {
			return nil, err
		}
		out = append(out, rep.Branches...)
		if !rep.More || len(rep.Branches) == 0 {
			return out, nil
		}
		req.After = rep.Branches[len(rep.Branches)-1].Session
	}
}

// ReadBranch reads bytes of a branch's file (package branch): at most
// proto.MaxXattr, none at its end.
func (s *Session) ReadBranch(ctx context.Context, id proto.Ident, branch proto.SessionID, p []byte, off int64) (int, error) {
	req := wire.ReadBranchReq{Ident: id, Session: branch, Off: uint64(off), Len: uint32(min(len(p), proto.MaxXattr))}
	var rep wire.BytesRep
	if err := s.roundTrip(ctx, wire.OpReadBranch, &req, &rep, ""); err != nil {
		return 0, err
	}
	return copy(p, rep.Value), nil
}

// Verify has the server check its journal, in full or only what was not checked
// lately.
func (s *Session) Verify(ctx context.Context, full bool) (wire.VerifyRep, error) {
	var rep wire.VerifyRep
	err := s.roundTrip(ctx, wire.OpVerify, &wire.VerifyReq{Full: full}, &rep, "")
	return rep, err
}

// Usage tells what history takes on the server.
func (s *Session) Usage(ctx context.Context) (wire.UsageRep, error) {
	var rep wire.UsageRep
	err := s.roundTrip(ctx, wire.OpUsage, &wire.Empty{}, &rep, "")
	return rep, err
}

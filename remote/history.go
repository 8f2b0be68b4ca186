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

package remote

import (
	"context"
	"errors"

	"cagefs.dev/cage/remote/auth"
	"cagefs.dev/cage/remote/status"
	"cagefs.dev/cage/remote/wire"
)

// Joined is as what, and where, a client was admitted.
type Joined struct {
	wire.JoinRep
	Addr string // HOST:PORT of the code's addresses at which the server answered
}

// Join makes a key for the server of an invitation's code and has it admitted
// there. o needs Keys, into which the key and the server's pin go, and may have
// Software, Client, Dial and Log. The addresses of the code are tried in order,
// each once. Who is interrupted may join again with the same code.
// Errors: status.WrongKey (used, expired or withdrawn, or another server answers
// there), Unreachable, Busy (too many wrong codes), those of the keyring's files.
func Join(ctx context.Context, o Options, code auth.Code) (Joined, error) {
	o = o.withDefaults()
	joining, err := o.Keys.Join(code)
	if err != nil {
		return Joined{}, err
	}
	defer joining.Close()
	o.secure = joining.Client
	var failed error
	for _, addr := range code.Addresses {
		rep, err := o.joinAt(ctx, addr, code)
		switch {
		case err == nil:
			return Joined{rep, addr}, joining.Finish(rep.Name)
		case ctx.Err() != nil:
			return Joined{}, status.Wrap(ctx.Err(), "join", addr)
		case joining.Met() && status.Of(err) == status.WrongKey:
			return Joined{}, errors.Join(err, joining.Forget())
		case joining.Met() && status.Of(err) != status.Unreachable:
			return Joined{}, err
		}
		// That another server answers says more than that none does.
		if failed == nil || status.Of(failed) == status.Unreachable {
			failed = err
		}
	}
	return Joined{}, failed
}

func (o *Options) joinAt(ctx context.Context, addr string, code auth.Code) (rep wire.JoinRep, err error) {
	ctx, cancel := context.WithTimeout(ctx, connectTimeout)
	defer cancel()
	req := &wire.JoinReq{Version: wire.Version, Software: o.Software, Client: o.Client, Secret: code.Secret}
	c, err := o.connect(ctx, addr, wire.OpJoin, req, &rep)
	if c != nil {
		c.raw.Close()
	}
	return rep, err
}

package serverd

import (
	"cagefs.dev/cage/journal"
	"cagefs.dev/cage/remote/proto"
	"cagefs.dev/cage/remote/status"
	"cagefs.dev/cage/remote/wire"
)

// Requests of tools: what was changed, by whom, and what the journal is like.

// history lists entries. Root, and the user as whom the server runs, see all of
// them; anybody else sees the changes made under the own uid.
func history(c *call, m *wire.LogReq) (wire.Message, error) {
	if err := c.lasts(); err != nil {
		return nil, err
	}
	who := c.who(m.Ident)
	all := privileged(who)
	limit := int(min(max(m.Limit, 1), wire.MaxEntries))
	q := journal.Query{Path: m.Path, LSN: m.LSN, Before: m.Before, After: m.After, Limit: limit, Records: m.Records}
	rep, size := &wire.LogRep{}, 0
	for {
		list, err := c.exp.Journal.Entries(q)
		if err != nil {
			return nil, err
		}
		rep.More, rep.Oldest, rep.Upto = list.More, list.Oldest, list.Upto
		for i, e := range list.Entries {
			if !all && e.UID != who.UID {
				continue
			}
			rep.Entries = append(rep.Entries, e)
			size += len(e.Path) + len(e.NewPath)
			if len(rep.Entries) == limit || size > wire.MaxFrame {
				if i+1 < len(list.Entries) {
					rep.More, rep.Upto = true, min(list.Upto, list.Entries[i+1].LSN-1)
				}
				return rep, nil
			}
		}
		if !list.More || len(list.Entries) == 0 {
			return rep, nil
		}
		if err := c.ctx.Err(); err != nil {
			return nil, err
		}
		if q.After != 0 {
			q.After = list.Upto
		} else {
			q.Before = list.Entries[len(list.Entries)-1].LSN
		}
	}
}

func moment(c *call, m *wire.MomentReq) (wire.Message, error) {
	lsn, at, err := c.exp.Journal.Moment(m.Moment)
	if err != nil {
		return nil, err
	}
	return &wire.MomentRep{LSN: lsn, Time: at}, nil
}

// verify checks the journal, for those who may see everything in it.
func verify(c *call, m *wire.VerifyReq) (wire.Message, error) {
	if !c.c.ident.mayService() {
		return nil, status.Newf(status.NotOwner, "verify", c.exp.Name, "only root and the server's own user may")
	}
	if !c.exp.verifying.TryLock() {
		return nil, status.Newf(status.Busy, "verify", c.exp.Name, "it is being verified already")
	}
	defer c.exp.verifying.Unlock()
	r, err := c.exp.Journal.Verify(c.ctx, m.Full)
	if err != nil {
		return nil, err
	}
	return &wire.VerifyRep{Segments: r.Segments, Frames: r.Frames, Records: r.Records, Bytes: r.Bytes, Problems: r.Problems}, nil
}

func usage(c *call, _ *wire.Empty) (wire.Message, error) {
	r, err := c.exp.Journal.Usage()
	if err != nil {
		return nil, err
	}
	return &wire.UsageRep{
		Oldest: r.Oldest, OldestTime: r.OldestTime, Newest: r.Newest,
		LogBytes: r.LogBytes, GraveBytes: r.GraveBytes, GraveFiles: r.GraveFiles, CapBytes: r.CapBytes,
	}, nil
}

// mayRewind says who may roll back, undo and redo: root, and the user as whom
// the server runs. What these do to a file is not asked of its permission bits.
func mayRewind(who *proto.Ident) error {
	if privileged(who) {
		return nil
	}
	return status.Newf(status.NotOwner, "rewind", "", "only root and the server's own user may roll back, undo and redo")
}

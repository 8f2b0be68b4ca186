package journal

import (
	"context"
	"errors"
	"sync"
	"sync/atomic"
	"time"

	"cagefs.dev/cage/journal/record"
	"cagefs.dev/cage/journal/vfs"
	"cagefs.dev/cage/remote/proto"
)

// gapState is what is known of the time before this start.
type gapState struct {
	since   proto.Time // the journal was open at that time; 0: this is its first start
	clean   bool       // and all that happened until then is in it
	started proto.Time // of this start
	open    atomic.Bool
	told    sync.Once
	err     error // of telling; guarded by told
}

// unnoticed bounds how long before its last record a server that was killed may
// have known less than the disk.
const unnoticed = proto.Time(5e9)

// inGap reports whether a change that was found may be from before this start.
func (j *Journal) inGap(info vfs.Info) bool {
	g := &j.local.gap
	if !g.open.Load() || proto.Time(info.Ctime) >= g.started {
		return false
	}
	return j.tellGap() == nil
}

// afterLastRun reports whether an inode changed while no server ran, though
// nobody knows how it looked before. It may be wrong of the last moments before.
func (j *Journal) afterLastRun(info vfs.Info) bool {
	g := &j.local.gap
	return g.open.Load() && proto.Time(info.Ctime) > g.since+lateApply
}

// tellGap records, once, since when nobody knew what processes of the server did.
func (j *Journal) tellGap() error {
	g := &j.local.gap
	g.told.Do(func() {
		r := &record.Record{Kind: record.Gap, Client: record.LocalClient, OldMtime: g.since}
		g.err = j.log.Append(r)
	})
	return g.err
}

// sinceLastRun finds what happened while no server ran.
func (j *Journal) sinceLastRun(ctx context.Context) error {
	g := &j.local.gap
	if g.since == 0 {
		return nil
	}
	c := j.newCompare()
	c.gap = true
	names := proto.Time(0)
	if !g.clean {
		names = g.since - unnoticed
	}
	if err := c.all(ctx, names, 0); err != nil {
		return err
	}
	f := j.takeFound()
	if err := c.found(ctx, f); err != nil {
		j.putBack(f)
		return err
	}
	g.open.Store(false)
	return nil
}

// duringGap makes sure that a directory in which something happens before it was
// compared with what it was when the last server ended is compared nevertheless.
func (j *Journal) duringGap(n *node) {
	if n.typ == proto.ModeDir && j.local.gap.open.Load() {
		j.suspect(n)
	}
}

func (j *Journal) rescan(ctx context.Context, since proto.Time) error {
	files := since
	if !j.opts.Sure { // nothing that others did is hidden behind what a client did since
		files = 0
	}
	return j.newCompare().all(ctx, since, files)
}

func (j *Journal) poll(ctx context.Context) error {
	c := j.newCompare()
	c.gentle = &gentle{began: time.Now()}
	return c.all(ctx, 0, 0)
}

// gentle makes a loop take a tenth of the time. It belongs to one goroutine.
type gentle struct{ began time.Time }

const gentleWork = 5 * time.Millisecond

// step rests when it is time to.
func (g *gentle) step(ctx context.Context) {
	work := time.Since(g.began)
	if work < gentleWork {
		return
	}
	select {
	case <-ctx.Done():
	case <-time.After(9 * work):
	}
	g.began = time.Now()
}

// all compares everything that is known: first names, in the directories whose
// ctime no record explains or is after names, then files, where the time is files.
// 0 is no such time.
func (c *compare) all(ctx context.Context, names, files proto.Time) error {
	j := c.j
	differs := func(n node, since proto.Time) (sure, differs bool) {
		if n.ctime == 0 && !c.gap || len(n.names) == 0 && n.id != proto.RootID {
			return false, false
		}
		if c.gentle != nil {
			c.gentle.step(ctx)
		}
		var info vfs.Info
		err := j.viewed(func() (err error) {
			_, info, err = j.tree.stat(n.id)
			return err
		})
		if err != nil { // its directory tells
			return false, false
		}
		if n.ctime == 0 { // the log knows it, but not how it looked
			is := j.afterLastRun(info)
			return is, is || n.typ == proto.ModeDir
		}
		sure = since != 0 && proto.Time(info.Ctime) >= since
		return sure, sure || info.Ctime != n.ctime
	}
	dirs := map[proto.FileID]int64{} // all, before what is recorded in one hides what happened in another
	err := j.tree.each(func(n node) bool {
		if n.typ == proto.ModeDir {
			if _, is := differs(n, names); is {
				dirs[n.id] = n.ctime
			}
		}
		return ctx.Err() == nil
	})
	if err != nil {
		return err
	}
	if err := c.found(ctx, found{names: j.tree.corrected(), dirs: dirs}); err != nil {
		return err
	}
	each := j.tree.each(func(n node) bool {
		if n.typ != proto.ModeDir {
			if sure, is := differs(n, files); is {
				e := LocalEvent{}
				if sure {
					e.What = LocalContent | LocalSure
				}
				err = c.file(ctx, n.id, e)
			}
		}
		return err == nil && ctx.Err() == nil
	})
	if err == nil {
		err = errors.Join(each, ctx.Err())
	}
	if err == nil {
		err = c.finish(ctx)
	}
	return err
}

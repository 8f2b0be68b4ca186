package main

import (
	"context"
	"fmt"
	"os"
	"path"
	"strings"
	"sync/atomic"

	"cagefs.dev/cage/cmd/internal/cli"
	"cagefs.dev/cage/cmd/internal/control"
	"cagefs.dev/cage/remote/proto"
	"cagefs.dev/cage/remote/status"
)

// What the control socket asks of a running mount.

// Where implements control.Handler.
func (d *daemon) Where(path string) (control.Where, error) {
	s, err := d.sourceOf(path)
	if err != nil {
		return control.Where{}, err
	}
	st := s.session.Status()
	return control.Where{
		Addr: s.Addr(), Export: st.Export, Sub: s.root.sub, Dir: s.Name, At: s.root.at, Session: cli.SessionText(st.Session),
	}, nil
}

// sourceOf is the source that a path in the mount is of.
func (d *daemon) sourceOf(path string) (*source, error) {
	if d.sources[0].Name == "" {
		return d.sources[0], nil
	}
	if path == "" {
		return nil, status.Newf(status.Usage, "", d.spec.mountpoint, "it shows several exports: name a path in one of them (%s)", strings.Join(d.spec.names(), ", "))
	}
	dir, _, _ := strings.Cut(path, "/")
	for _, s := range d.sources {
		if s.Name == dir {
			return s, nil
		}
	}
	return nil, status.Newf(status.NotFound, "", d.spec.mountpoint, "it shows no %s (but %s)", dir, strings.Join(d.spec.names(), ", "))
}

// Status implements control.Handler.
func (d *daemon) Status() control.Status {
	st := control.Status{
		Mountpoint: d.spec.mountpoint, Software: cli.Software("cagefs"), PID: os.Getpid(), Mounted: d.mounted,
	}
	for i, s := range d.sources {
		src := s.status()
		src.Owed, src.MoreOwed = d.owed(i, s)
		src.Refused = d.refused(i, s)
		st.Sources = append(st.Sources, src)
	}
	st.Source = together(st.Sources)
	st.Source.Source = d.spec.device()
	return st
}

// owed names files of a source of which the server has not everything, and says of how many more that is true.
func (d *daemon) owed(i int, s *source) (out []control.Owed, more int) {
	files := s.session.Owing()
	if len(files) > control.MaxOwed {
		files, more = files[:control.MaxOwed], len(files)-control.MaxOwed
	}
	for _, f := range files {
		out = append(out, control.Owed{File: d.named(i, s, f.ID), Bytes: f.Bytes})
	}
	return out, more
}

// refused is the last open of a source that another client's was in the way of, nil if there was none.
func (d *daemon) refused(i int, s *source) *control.Refused {
	r := s.session.Status().Refused
	if r == nil {
		return nil
	}
	return &control.Refused{File: d.named(i, s, r.ID), When: r.When, Why: r.Why}
}

// named is a file of a source, with its path if the mount knows it.
func (d *daemon) named(i int, s *source, id proto.FileID) control.File {
	f := control.File{FID: id}
	if m := d.mount.Load(); m != nil {
		f.Path = m.Path(i, id)
	}
	if f.Path != "" {
		f.Path = path.Join(s.Name, f.Path)
		f.PathB64 = cli.Exact(f.Path)
	}
	return f
}

// together is several sources as one: see control.Status.
func together(all []control.Source) control.Source {
	if len(all) == 1 {
		return all[0]
	}
	sum := control.Source{ReadOnly: true, State: all[0].State, Since: all[0].Since, LastError: all[0].LastError}
	online := true
	for _, s := range all {
		sum.ReadOnly = sum.ReadOnly && s.ReadOnly
		if online && s.State != "online" {
			online = false
			sum.State, sum.Since, sum.LastError = s.State, s.Since, s.LastError
		}
		sum.SilentMS = max(sum.SilentMS, s.SilentMS)
		sum.Unapplied += s.Unapplied
		sum.Bytes += s.Bytes
		named := min(len(s.Owed), control.MaxOwed-len(sum.Owed))
		sum.Owed = append(sum.Owed, s.Owed[:named]...)
		sum.MoreOwed += s.MoreOwed + len(s.Owed) - named
		sum.Leases += s.Leases
		sum.Writing += s.Writing
		sum.DataConns += s.DataConns
		sum.Resumes += s.Resumes
		if s.Refused != nil && (sum.Refused == nil || s.Refused.When.After(sum.Refused.When)) {
			sum.Refused = s.Refused
		}
	}
	sum.Delivered = sum.Unapplied == 0
	return sum
}

// Stats implements control.Handler.
func (d *daemon) Stats() control.Stats {
	c := d.cache.Stats()
	st := control.Stats{
		PageSize: int64(c.PageSize), Policy: c.Policy,
		Pages: c.Pages, Bytes: c.Bytes, Budget: c.Budget, Hits: c.Hits, Misses: c.Misses,
		ReadAheads: c.ReadAheads, Evictions: c.Evictions, Files: c.Files,
		DirtyBudget: int64(d.spec.opts.dirtySize), MemoryLimit: d.spec.memory(),
	}
	if m := d.mount.Load(); m != nil {
		held := m.Stats()
		st.Inodes, st.InodeBudget = int64(held.Inodes), int64(held.Budget)
		st.Known, st.KnownBudget = int64(held.Known), int64(held.Knowable)
	}
	for _, s := range d.sources {
		of := control.SourceStats{Name: s.Name, Dirty: s.session.Status().Bytes}
		st.Sources = append(st.Sources, of)
		st.Dirty += of.Dirty
	}
	return st
}

// Sync implements control.Handler.
func (d *daemon) Sync(ctx context.Context, path string) error {
	if path == "" {
		return d.each(func(_ int, s *source) error { return s.sync(ctx) })
	}
	s, err := d.sourceOf(path)
	if err != nil {
		return err
	}
	return s.named(s.sync(ctx))
}

// Umount implements control.Handler: nothing is unmounted that was not
// delivered. Where all is delivered, a server that does not answer or cannot make
// it durable keeps nobody: staying mounted would mend nothing. What comes after
// the unmounting (Mounted.Wait returns, the sessions end) is not cut short when
// the client goes away.
func (d *daemon) Umount(ctx context.Context) error {
	var owing atomic.Bool
	failed := d.each(func(_ int, s *source) error {
		err := s.sync(ctx)
		if err != nil && s.session.Status().Unapplied > 0 {
			owing.Store(true)
		}
		return err
	})
	if failed != nil && (ctx.Err() != nil || owing.Load()) {
		return fmt.Errorf("still mounted: %w", failed)
	}
	if err := d.mount.Load().Unmount(context.WithoutCancel(ctx)); err != nil {
		return err
	}
	<-d.finished
	if d.result == nil && failed != nil {
		return fmt.Errorf("unmounted, but: %w", failed)
	}
	return d.result
}

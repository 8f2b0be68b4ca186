package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"cagefs.dev/cage/cmd/internal/cli"
	"cagefs.dev/cage/cmd/internal/control"
	"cagefs.dev/cage/fusefs"
	"cagefs.dev/cage/remote"
	"cagefs.dev/cage/remote/auth"
	"cagefs.dev/cage/remote/lease"
	"cagefs.dev/cage/remote/proto"
	"cagefs.dev/cage/remote/status"
	"cagefs.dev/cage/remote/wire"
)

// source is a source of a running mount: the session with its server and what
// of the export is shown. Set when it is connected.
type source struct {
	cli.Source // Name "": it is the mount's root
	session    *remote.Session
	root       root
	readOnly   bool // for whatever reason
}

// root is the directory of an export that a source shows.
type root struct {
	attr proto.Attr
	sub  string    // below the export
	at   proto.LSN // 0: now
}

// connect connects all sources at the same time, or none: the error is that of
// the first that fails.
func (d *daemon) connect(ctx context.Context) error {
	dir, err := auth.DefaultKeyringDir()
	if err != nil {
		return err
	}
	keys := auth.OpenKeyring(dir)
	all, cancel := context.WithCancel(ctx)
	defer cancel()
	var once sync.Once
	var failed error
	d.each(func(i int, s *source) error {
		if err := s.connect(all, d.sessionOptions(i, keys)); err != nil {
			once.Do(func() { failed = s.named(err) })
			cancel()
		}
		return nil
	})
	if failed != nil {
		return errors.Join(failed, d.disconnect(ctx))
	}
	return nil
}

// sessionOptions are those of a source's session. Before the mount works
// nothing is cached that its upcalls could be about.
func (d *daemon) sessionOptions(i int, keys *auth.Keyring) remote.Options {
	s, o := d.sources[i], d.spec.opts
	tell := func(f func(*fusefs.Mounted)) {
		if m := d.mount.Load(); m != nil {
			f(m)
		}
	}
	// Its moment is not part of an export's name, which has no @.
	export, _, _ := strings.Cut(s.Export, "@")
	return remote.Options{
		Addr: s.Addr(), Export: export, ReadOnly: o.readOnly,
		Keys: keys, Software: cli.Software("cagefs"), Patience: o.soft, Budget: int64(o.dirtySize), DataPort: true, Log: d.log,
		Leases:   true,
		Stale:    o.stale,
		Recalled: func(r lease.Recall) { tell(func(m *fusefs.Mounted) { m.Recalled(i, r) }) }, // else it comes again
		Reset:    func() { tell(func(m *fusefs.Mounted) { m.Reset(i) }) },
		Written: func(id proto.FileID, change proto.LSN) {
			tell(func(m *fusefs.Mounted) { m.Written(i, id, change) })
		},
		LostLock: func(o remote.LockOwner) { tell(func(m *fusefs.Mounted) { m.LostLock(i, o) }) },
		Failed: func(id proto.FileID, seq proto.Seq, err error) {
			tell(func(m *fusefs.Mounted) { m.Failed(i, id, seq, err) })
			if err != nil {
				d.log.Error().Err(s.named(err)).Stringer("file", id).Uint64("operation", uint64(seq)).Msg("a change that was accepted failed on the server")
			}
		},
	}
}

// connect opens the session and finds the directory and the moment.
func (s *source) connect(ctx context.Context, o remote.Options) error {
	session, err := remote.Dial(ctx, o)
	if err != nil {
		return err
	}
	s.session = session
	if s.root, err = findRoot(ctx, session, s.Source, time.Now()); err != nil {
		return err
	}
	s.readOnly = o.ReadOnly || s.root.at != 0 || session.Hello().ReadOnly
	return nil
}

// disconnect ends the sessions that there are; what is logged is delivered
// until ctx ends. The error says what was not, and where it is kept.
func (d *daemon) disconnect(ctx context.Context) error {
	return d.each(func(_ int, s *source) error {
		if s.session == nil {
			return nil
		}
		return s.close(ctx, d.spec.mountpoint)
	})
}

// each calls f for all sources at the same time and returns their errors, in
// their order, as one.
func (d *daemon) each(f func(int, *source) error) (all error) {
	errs := make([]error, len(d.sources))
	var wg sync.WaitGroup
	for i, s := range d.sources {
		wg.Go(func() { errs[i] = s.named(f(i, s)) })
	}
	wg.Wait()
	for _, err := range errs {
		switch {
		case err == nil:
		case all == nil:
			all = err
		default:
			all = fmt.Errorf("%w; %w", all, err)
		}
	}
	return all
}

// named says whose error it is where there are several sources.
func (s *source) named(err error) error {
	if err == nil || s.Name == "" {
		return err
	}
	return fmt.Errorf("%s (%s): %w", s.Name, s.Source, err)
}

// findRoot finds what a source names: PATH@MOMENT is a path at a moment, unless
// there is a path of that name.
func findRoot(ctx context.Context, s *remote.Session, src cli.Source, now time.Time) (root, error) {
	h := wire.ReqHeader{Ident: ownIdent()}
	whole := src.Export
	if src.Path != "" {
		whole += "/" + src.Path
	}
	export, sub, _ := strings.Cut(whole, "/")
	if !strings.Contains(export, "@") {
		attr, err := s.Resolve(ctx, h, sub)
		if err == nil && !attr.IsDir() {
			err = status.New(status.NotDir, "", src.String())
		}
		if err == nil || status.Of(err) != status.NotFound {
			return root{attr: attr, sub: sub}, err
		}
	}
	path, moment, ok := proto.SplitMoment(whole, now)
	if !ok {
		return root{}, status.New(status.NotFound, "", src.String())
	}
	rep, err := s.Moment(ctx, moment)
	if err != nil {
		return root{}, status.Wrap(err, "", src.String())
	}
	_, sub, _ = strings.Cut(path, "/")
	h.At = rep.LSN
	attr, err := s.Resolve(ctx, h, sub)
	if err == nil && !attr.IsDir() {
		err = status.New(status.NotDir, "", src.String())
	}
	return root{attr: attr, sub: sub, at: rep.LSN}, err
}

// ownIdent is the identity of this process itself.
func ownIdent() proto.Ident {
	id := proto.Ident{UID: uint32(os.Geteuid()), GID: uint32(os.Getegid()), PID: uint32(os.Getpid()), PGID: uint32(unix.Getpgrp()), Comm: "cagefs"}
	groups, _ := os.Getgroups()
	for _, g := range groups {
		id.Groups = append(id.Groups, uint32(g))
	}
	return id
}

// sync makes everything that was changed so far durable. It also reports a
// failure that no caller has been told of yet.
func (s *source) sync(ctx context.Context) error {
	if err := s.session.Sync(ctx, ownIdent()); err != nil {
		return s.undelivered(err)
	}
	return s.session.TakeError(0)
}

// undelivered says what did not reach the server.
func (s *source) undelivered(err error) error {
	st := s.session.Status()
	if st.Unapplied == 0 {
		return err
	}
	what := "changes are"
	if st.Unapplied == 1 {
		what = "change is"
	}
	return status.Newf(status.Of(err), "", "", "%d %s not delivered (%s of data): %w", st.Unapplied, what, cli.Size(st.Bytes).Short(), err)
}

// status is how the source is.
func (s *source) status() control.Source {
	st := s.session.Status()
	return control.Source{
		Name: s.Name, Source: s.Source.String(), Addr: st.Addr, ReadOnly: s.readOnly, At: s.root.at,
		State: st.State.String(), Since: st.Since, SilentMS: st.Silent.Milliseconds(), LastError: st.LastError,
		Unapplied: st.Unapplied, Bytes: st.Bytes, Delivered: st.Unapplied == 0, Leases: st.Leases, Writing: st.Writing, DataConns: st.DataConns, Resumes: st.Resumes,
	}
}

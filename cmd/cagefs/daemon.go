package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/signal"
	"runtime/debug"
	"strings"
	"sync/atomic"
	"time"

	"github.com/rs/zerolog"
	"golang.org/x/sys/unix"

	"cagefs.dev/cage/cmd/internal/cli"
	"cagefs.dev/cage/cmd/internal/control"
	"cagefs.dev/cage/fusefs"
	"cagefs.dev/cage/pagecache"
	"cagefs.dev/cage/remote"
	"cagefs.dev/cage/remote/auth"
	"cagefs.dev/cage/remote/page"
	"cagefs.dev/cage/remote/proto"
	"cagefs.dev/cage/remote/status"
	"cagefs.dev/cage/remote/wire"
)

// daemon is a running mount: the session with its server, the pages, the mount
// in the kernel and the control socket.
type daemon struct {
	// Set at construction.
	spec    *spec
	root    root
	session *remote.Session
	cache   *pagecache.Cache
	log     zerolog.Logger
	mounted time.Time

	mount atomic.Pointer[fusefs.Mounted] // nil until it works

	finished chan struct{} // closed when the session has ended
	result   error         // what was not delivered; set before finished is closed
}

// root is the directory of the export that a mount shows.
type root struct {
	attr proto.Attr
	sub  string    // below the export
	at   proto.LSN // 0: now
}

// runForeground mounts and stays until the mount is gone.
func runForeground(ctx context.Context, m *spec, std cli.Std) error {
	parent := newAnnouncer()
	if parent.background() {
		signal.Ignore(unix.SIGHUP)
	}
	err := run(ctx, m, std, parent)
	parent.announce(err)
	return err
}

// workingMemory is what a mount's process needs beside pages and logged writes:
// requests of the kernel on their way, inodes, connections. The collector keeps
// to the sum as long as it can, instead of letting garbage double it.
const workingMemory = 128 << 20

func run(ctx context.Context, m *spec, std cli.Std, parent *announcer) error {
	log, err := cli.NewLog(std.Err, m.opts.logLevel)
	if err != nil {
		return err
	}
	if err := cli.PrepareDaemon(); err != nil {
		return err
	}
	debug.SetMemoryLimit(int64(m.opts.cacheSize) + remote.DefaultBudget + workingMemory)
	d, err := start(ctx, m, log)
	if err != nil {
		return err
	}
	socket, err := d.listen()
	if err != nil {
		return errors.Join(err, d.stop(ctx, true))
	}
	defer socket.Close()
	// The directory in which the command was typed is nobody's business any more.
	if parent.background() {
		_ = os.Chdir("/")
	}
	parent.announce(nil)
	log.Info().Str("source", m.source.String()).Str("mountpoint", m.mountpoint).Msg("mounted")
	return d.wait(ctx)
}

// start connects, finds the directory and the moment, and mounts. After an
// error nothing is left of it.
func start(ctx context.Context, m *spec, log zerolog.Logger) (*daemon, error) {
	dir, err := auth.DefaultKeyringDir()
	if err != nil {
		return nil, err
	}
	d := &daemon{spec: m, log: log, mounted: time.Now(), finished: make(chan struct{})}
	// Its moment is not part of an export's name, which has no @.
	export, _, _ := strings.Cut(m.source.Export, "@")
	d.session, err = remote.Dial(ctx, remote.Options{
		Addr: m.source.Addr(), Export: export, ReadOnly: m.opts.readOnly,
		Keys: auth.OpenKeyring(dir), Software: cli.Software("cagefs"), Patience: m.opts.soft, DataPort: true, Log: log,
		Changed: d.changed, Reset: d.reset, Failed: d.failed, Written: d.written,
	})
	if err != nil {
		return nil, err
	}
	d.cache = pagecache.New(pagecache.Options{PageSize: page.Size(m.opts.pageSize), Bytes: int64(m.opts.cacheSize)})
	if err := d.attach(ctx); err != nil {
		d.cache.Close()
		return nil, errors.Join(err, d.session.Close(ctx))
	}
	return d, nil
}

// attach puts the mount into the tree.
func (d *daemon) attach(ctx context.Context) error {
	var err error
	if d.root, err = findRoot(ctx, d.session, d.spec.source, time.Now()); err != nil {
		return err
	}
	mount, err := fusefs.Mount(d.spec.mountpoint, fusefs.Options{
		Sources: []fusefs.Source{{Session: d.session, Root: d.root.attr, At: d.root.at, ReadOnly: d.readOnly()}},
		Cache:   d.cache, Device: d.spec.source.String(), AllowOther: d.spec.opts.allowOther, Debug: d.spec.opts.debug, Log: d.log,
	})
	if err != nil {
		return err
	}
	d.mount.Store(mount)
	return nil
}

// readOnly reports whether the mount refuses changes, for whatever reason.
func (d *daemon) readOnly() bool {
	return d.spec.opts.readOnly || d.root.at != 0 || d.session.Hello().ReadOnly
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

// Upcalls of the session. Before the mount works nothing is cached.

func (d *daemon) changed(c wire.Changed) {
	if m := d.mount.Load(); m != nil {
		m.Changed(0, c)
	}
}

func (d *daemon) reset() {
	if m := d.mount.Load(); m != nil {
		m.Reset(0)
	}
}

func (d *daemon) written(id proto.FileID, change proto.LSN) {
	if m := d.mount.Load(); m != nil {
		m.Written(0, id, change)
	}
}

func (d *daemon) failed(id proto.FileID, seq proto.Seq, err error) {
	if m := d.mount.Load(); m != nil {
		m.Failed(0, id, seq, err)
	}
	d.log.Error().Err(err).Stringer("file", id).Uint64("operation", uint64(seq)).Msg("a change that was accepted failed on the server")
}

// listen opens the control socket.
func (d *daemon) listen() (*control.Server, error) {
	m, err := control.At(d.spec.mountpoint)
	if err != nil {
		return nil, status.Wrap(err, "mount", d.spec.mountpoint)
	}
	return control.Listen(context.Background(), m.Dev, d)
}

// wait stays until the mount is gone: by umount, by umount(8) or by a signal.
// Everything is delivered then, or the error says what is not.
func (d *daemon) wait(ctx context.Context) error {
	gone := make(chan struct{})
	go func() {
		defer close(gone)
		d.mount.Load().Wait()
	}()
	select {
	case <-gone:
		d.log.Info().Msg("unmounted")
		defer d.cache.Close()
		return d.stop(ctx, false)
	case <-ctx.Done():
	}
	d.log.Info().Msg("told to end: unmounting")
	return d.stop(context.Background(), true)
}

// signalPatience is how long a mount that was told to end goes on delivering.
const signalPatience = 30 * time.Second

// stop unmounts where that is still to be done, at once even when it is in use,
// delivers what is left and ends the session. A further signal ends the waiting.
func (d *daemon) stop(ctx context.Context, unmount bool) error {
	ctx, cancel := signal.NotifyContext(ctx, unix.SIGINT, unix.SIGTERM)
	defer cancel()
	if unmount {
		var end context.CancelFunc
		ctx, end = context.WithTimeout(ctx, signalPatience)
		defer end()
		if err := d.mount.Load().Unmount(ctx); err != nil {
			d.log.Warn().Err(err).Msg("detaching the mount instead")
			if err := d.mount.Load().Detach(); err != nil {
				d.log.Error().Err(err).Msg("the mount stays, without anybody who answers")
			}
		}
	}
	if err := d.session.Close(ctx); err != nil {
		d.result = fmt.Errorf("unmounted, but not everything was delivered: %w", err)
	}
	close(d.finished)
	return d.result
}

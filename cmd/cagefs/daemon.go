package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/signal"
	"runtime/debug"
	"sync/atomic"
	"time"

	"github.com/rs/zerolog"
	"golang.org/x/sys/unix"

	"cagefs.dev/cage/cmd/internal/cli"
	"cagefs.dev/cage/cmd/internal/control"
	"cagefs.dev/cage/fusefs"
	"cagefs.dev/cage/pagecache"
	"cagefs.dev/cage/remote/lockset"
	"cagefs.dev/cage/remote/page"
	"cagefs.dev/cage/remote/status"
)

// daemon is a running mount: the sessions with its servers, the pages, the mount
// in the kernel and the control socket.
type daemon struct {
	// Set at construction.
	spec    *spec
	sources []*source
	cache   *pagecache.Cache
	log     zerolog.Logger
	mounted time.Time

	mount atomic.Pointer[fusefs.Mounted] // nil until it works

	finished chan struct{} // closed when the sessions have ended
	result   error         // what was not delivered; set before finished is closed
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

// memory is what the mount's process may take.
func (m *spec) memory() int64 {
	return int64(m.opts.cacheSize) + int64(len(m.sources))*int64(m.opts.dirtySize) + workingMemory
}

func run(ctx context.Context, m *spec, std cli.Std, parent *announcer) error {
	log, err := cli.NewLog(std.Err, m.opts.logLevel)
	if err != nil {
		return err
	}
	if err := cli.PrepareDaemon(); err != nil {
		return err
	}
	debug.SetMemoryLimit(m.memory())
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
	log.Info().Str("source", m.device()).Str("mountpoint", m.mountpoint).Msg("mounted")
	return d.wait(ctx)
}

// start connects and mounts. After an error nothing is left of it.
func start(ctx context.Context, m *spec, log zerolog.Logger) (*daemon, error) {
	d := &daemon{spec: m, log: log, mounted: time.Now(), finished: make(chan struct{})}
	for _, src := range m.sources {
		d.sources = append(d.sources, &source{Source: src})
	}
	if err := d.connect(ctx); err != nil {
		return nil, err
	}
	d.cache = pagecache.New(pagecache.Options{PageSize: page.Size(m.opts.pageSize), Bytes: int64(m.opts.cacheSize), Policy: m.opts.policy})
	if err := d.attach(); err != nil {
		d.cache.Close()
		return nil, errors.Join(err, d.disconnect(ctx))
	}
	return d, nil
}

// maxKnown is how many files and names of each source are remembered for reads while its
// server is gone: a quarter of the working memory.
const maxKnown = 1 << 17

// attach puts the mount into the tree.
func (d *daemon) attach() error {
	o := fusefs.Options{
		Cache: d.cache, Device: d.spec.device(), AllowOther: d.spec.opts.allowOther, ACL: d.spec.opts.acl, Exclusive: lockset.Mode(d.spec.opts.exclusive), Debug: d.spec.opts.debug, Log: d.log,
	}
	if d.spec.opts.stale > 0 {
		o.Known = maxKnown
	}
	for _, s := range d.sources {
		o.Sources = append(o.Sources, fusefs.Source{
			Name: s.Name, Session: s.session, Root: s.root.attr, At: s.root.at, ReadOnly: s.readOnly,
		})
	}
	mount, err := fusefs.Mount(d.spec.mountpoint, o)
	if err != nil {
		return err
	}
	d.mount.Store(mount)
	return nil
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
// delivers what is left and ends the sessions. A further signal ends the waiting.
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
	if err := d.disconnect(ctx); err != nil {
		d.result = fmt.Errorf("unmounted, but not everything was delivered: %w", err)
	}
	close(d.finished)
	return d.result
}

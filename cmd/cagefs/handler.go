package main

import (
	"context"
	"fmt"
	"os"

	"cagefs.dev/cage/cmd/internal/cli"
	"cagefs.dev/cage/cmd/internal/control"
	"cagefs.dev/cage/remote"
	"cagefs.dev/cage/remote/status"
)

// What the control socket asks of a running mount.

// Where implements control.Handler.
func (d *daemon) Where() control.Where {
	return control.Where{Addr: d.spec.source.Addr(), Export: d.session.Status().Export, Sub: d.root.sub, At: d.root.at}
}

// stateNames are the connection's states in words.
var stateNames = map[remote.State]string{remote.Online: "online", remote.Reconnecting: "reconnecting", remote.Closed: "closed"}

// Status implements control.Handler.
func (d *daemon) Status() control.Status {
	s := d.session.Status()
	return control.Status{
		Mountpoint: d.spec.mountpoint, Source: d.spec.source.String(), Addr: s.Addr,
		ReadOnly: d.readOnly(), At: d.root.at,
		Software: cli.Software("cagefs"), PID: os.Getpid(), Mounted: d.mounted,
		State: stateNames[s.State], Since: s.Since, LastError: s.LastError,
		Unapplied: s.Unapplied, Bytes: s.Bytes, DataConns: s.DataConns, Resumes: s.Resumes,
	}
}

// Stats implements control.Handler.
func (d *daemon) Stats() control.Stats {
	c := d.cache.Stats()
	return control.Stats{
		Pages: c.Pages, Bytes: c.Bytes, Budget: c.Budget, Hits: c.Hits, Misses: c.Misses,
		ReadAheads: c.ReadAheads, Evictions: c.Evictions, Files: c.Files,
	}
}

// Sync implements control.Handler. It also reports a failure that no caller
// has been told of yet.
func (d *daemon) Sync(ctx context.Context) error {
	if err := d.session.Sync(ctx, ownIdent()); err != nil {
		return d.undelivered(err)
	}
	return d.session.TakeError(0)
}

// undelivered says what did not reach the server.
func (d *daemon) undelivered(err error) error {
	s := d.session.Status()
	if s.Unapplied == 0 {
		return err
	}
	what := "changes are"
	if s.Unapplied == 1 {
		what = "change is"
	}
	return status.Newf(status.Of(err), "", "", "%d %s not delivered (%s of data): %w", s.Unapplied, what, cli.Size(s.Bytes).Short(), err)
}

// Umount implements control.Handler: nothing is unmounted that was not
// delivered. Where all is delivered, a server that does not answer or cannot make
// it durable keeps nobody: staying mounted would mend nothing. What comes after
// the unmounting (Mounted.Wait returns, the session ends) is not cut short when
// the client goes away.
func (d *daemon) Umount(ctx context.Context) error {
	failed := d.Sync(ctx)
	if failed != nil && (ctx.Err() != nil || d.session.Status().Unapplied > 0) {
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

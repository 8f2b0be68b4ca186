package serverd

import (
	"context"
	"time"

	"github.com/rs/zerolog"

	"cagefs.dev/cage/journal"
	"cagefs.dev/cage/remote/proto"
	"cagefs.dev/cage/remote/status"
	"cagefs.dev/cage/serverd/watch"
)

// Local brings what processes of the server do to an export into its journal.
// It is begun before the journal is opened, so that nothing falls between.
type Local struct {
	// Set at construction.
	log   zerolog.Logger
	w     *watch.Watcher
	ready chan struct{} // closed when journal is set

	journal *journal.Journal // set once, before ready
}

// watchLocal begins to watch an export's directory. Where that is not possible
// at all, changes are noticed when somebody looks.
func watchLocal(dir string, log zerolog.Logger) *Local {
	l := &Local{log: log, ready: make(chan struct{})}
	w, err := watch.Start(watch.Options{Dir: dir, Hidden: journal.DirName, Seen: l.seen, Lost: l.lost, Failed: l.failed})
	if err != nil {
		log.Warn().Err(err).Msg("changes by programs on this machine are noticed only when a client looks")
		return l
	}
	log.Info().Str("by", "fanotify").Msg("watching for changes by programs on this machine")
	l.w = w
	return l
}

// complete reports whether everything is seen that programs do.
func (l *Local) complete() bool { return l.w != nil }

// begin hands the journal over.
func (l *Local) begin(j *journal.Journal) {
	l.journal = j
	close(l.ready)
}

// close returns when nothing touches the journal any more.
func (l *Local) close() {
	if l.w != nil {
		l.w.Close()
	}
}

// await waits for the journal.
func (l *Local) await(ctx context.Context) error {
	select {
	case <-l.ready:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

func (l *Local) seen(ctx context.Context, events []watch.Event) error {
	if err := l.await(ctx); err != nil {
		return err
	}
	list := make([]journal.LocalEvent, len(events))
	for i := range events {
		list[i] = localEvent(&events[i])
	}
	return l.journal.Notice(ctx, list)
}

func (l *Local) lost(ctx context.Context, since time.Time) error {
	if err := l.await(ctx); err != nil {
		return err
	}
	began := time.Now()
	err := l.journal.Rescan(ctx, proto.Time(since.UnixNano()))
	if err == nil {
		l.log.Info().Dur("took", time.Since(began)).Msg("more changes by programs on this machine than could be told: compared everything")
	}
	return err
}

func (l *Local) failed(err error) {
	if status.Of(err) != status.Draining {
		l.log.Warn().Err(err).Msg("watching for changes by programs on this machine")
	}
}

func localEvent(e *watch.Event) journal.LocalEvent {
	out := journal.LocalEvent{LocalPlace: journal.LocalPlace(e.Place), By: journal.Process(e.By)}
	if e.From != nil {
		from := journal.LocalPlace(*e.From)
		out.From = &from
	}
	for _, b := range whatBits {
		if e.What&b.seen != 0 {
			out.What |= b.told
		}
	}
	return out
}

var whatBits = []struct {
	seen watch.What
	told journal.LocalWhat
}{
	{watch.In, journal.LocalIn}, {watch.Out, journal.LocalOut}, {watch.Gone, journal.LocalGone},
	{watch.Content, journal.LocalContent}, {watch.Attr, journal.LocalAttr}, {watch.Sure, journal.LocalSure},
}

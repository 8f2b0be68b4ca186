package serverd

import (
	"context"
	"sync"
	"sync/atomic"
	"time"

	"github.com/rs/zerolog"

	"cagefs.dev/cage/journal"
	"cagefs.dev/cage/remote/proto"
	"cagefs.dev/cage/remote/status"
	"cagefs.dev/cage/serverd/watch"
)

// Local brings what processes of the server do to an export into its journal.
// It is begun before the journal is opened, so that nothing falls between. What
// nobody tells of is polled.
type Local struct {
	// Set at construction.
	log   zerolog.Logger
	w     *watch.Watcher // nil: nothing tells
	ctx   context.Context
	stop  context.CancelFunc
	wg    sync.WaitGroup
	ready chan struct{} // closed when journal is set

	journal *journal.Journal // set once, before ready

	walked atomic.Int32 // what was said of the watches: one of said*
}

// What was said of the watches of an export.
const (
	saidNothing = iota
	saidAll
	saidPart
)

// defaultWatchMemory is Spec.WatchMemory where nothing is said.
const defaultWatchMemory = 16 << 20

// watchLocal begins to watch an export's directory.
func watchLocal(dir string, memory int64, log zerolog.Logger) *Local {
	if memory == 0 {
		memory = defaultWatchMemory
	}
	l := &Local{log: log, ready: make(chan struct{})}
	l.ctx, l.stop = context.WithCancel(context.Background())
	w, err := watch.Start(watch.Options{Dir: dir, Hidden: journal.DirName, MaxDirs: int(memory / watch.DirCost),
		Seen: l.seen, Lost: l.lost, Unwatched: l.unwatched, Walked: l.dirs, Failed: l.failed})
	if err != nil {
		log.Warn().Err(err).Msg("changes by programs on this machine are looked for now and then: nothing tells of them")
		return l
	}
	if l.w = w; w.Sure() {
		log.Info().Str("by", w.By()).Msg("watching for changes by programs on this machine")
	}
	return l
}

// dirs is told how many directories have a watch.
func (l *Local) dirs(n int, all bool) {
	say := int32(saidAll)
	if !all {
		say = saidPart
	}
	if l.walked.Swap(say) == say {
		return
	}
	if all {
		l.log.Info().Str("by", "inotify").Int("directories", n).Msg("watching for changes by programs on this machine; who makes them is not known")
		return
	}
	l.log.Warn().Str("by", "inotify").Int("directories", n).
		Msg("not all directories can be watched (fs.inotify.max_user_watches, --memory): changes by programs on this machine in the others are looked for now and then")
}

// complete reports whether everything is seen at present that programs do.
func (l *Local) complete() bool { return l.w != nil && l.w.Complete() }

// sure reports whether only what programs do is seen, and marked so.
func (l *Local) sure() bool { return l.w != nil && l.w.Sure() }

// begin hands the journal over.
func (l *Local) begin(j *journal.Journal) {
	l.journal = j
	close(l.ready)
	l.wg.Go(l.poll)
}

// close returns when nothing touches the journal any more.
func (l *Local) close() {
	l.stop()
	if l.w != nil {
		l.w.Close()
	}
	l.wg.Wait()
}

// pollEvery is how often it is asked whether there is something to look for,
// and the pause after that was done.
const pollEvery = time.Second

// poll looks for changes, as long as not all is watched.
func (l *Local) poll() {
	tick := time.NewTicker(pollEvery)
	defer tick.Stop()
	for {
		select {
		case <-l.ctx.Done():
			return
		case <-tick.C:
		}
		if l.complete() {
			continue
		}
		if err := l.journal.Poll(l.ctx); err != nil && l.ctx.Err() == nil {
			l.failed(err)
		}
		tick.Reset(pollEvery)
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

// unwatched looks for what happened before the watches were there.
func (l *Local) unwatched(ctx context.Context) error {
	if err := l.await(ctx); err != nil {
		return err
	}
	return l.journal.Poll(ctx)
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
	{watch.Content, journal.LocalContent}, {watch.Attr, journal.LocalAttr}, {watch.Sure, journal.LocalSure}, {watch.Closed, journal.LocalClosed},
}

package serverd

import (
	"context"
	"errors"
	"fmt"

	"github.com/rs/zerolog"

	"cagefs.dev/cage/journal"
	"cagefs.dev/cage/journal/vfs"
	"cagefs.dev/cage/remote/status"
)

// Spec is an export as it is asked for.
type Spec struct {
	Name     string
	Dir      string // must exist
	ReadOnly bool
	Journal  string // absolute path of its journal's directory; "": in Dir
	// HistoryCap is journal.Options.HistoryCap.
	HistoryCap int64
	// TableCache is journal.Options.TableCache.
	TableCache int64
	// WatchMemory is how many bytes knowing the watched directories may take, where each needs a watch; 0: 16 MiB.
	WatchMemory int64
}

// Exports are opened exports with their journals. Close them after Serve.
type Exports struct {
	List    []Export
	Reports []*journal.Report // what recovery did, in the same order
	close   []func() error    // of the file systems
}

// OpenExports checks what is to be exported (see CheckExports), then opens and
// recovers the journals. Errors are those of CheckExports and journal.Open, with
// the export's name; nothing stays open then.
func OpenExports(ctx context.Context, specs []Spec, log zerolog.Logger) (*Exports, error) {
	if err := CheckExports(specs); err != nil {
		return nil, err
	}
	x := &Exports{}
	for _, s := range specs {
		if err := x.open(ctx, s, log); err != nil {
			return nil, errors.Join(status.Wrap(err, "export", s.Name), x.Close())
		}
	}
	return x, nil
}

func (x *Exports) open(ctx context.Context, s Spec, log zerolog.Logger) error {
	o, closeDisk, err := locate(s)
	if err != nil {
		return err
	}
	feed, leases := NewFeed(), NewLeases()
	log = log.With().Str("export", s.Name).Logger()
	local := watchLocal(s.Dir, s.WatchMemory, log)
	o.HistoryCap, o.TableCache, o.Log, o.Changed = s.HistoryCap, s.TableCache, log, func(a journal.Applied) {
		leases.Changed(a)
		feed.Publish(a)
	}
	o.Leases = leases
	o.Told, o.Sure, o.Mount = local.complete, local.sure(), vfs.MountRun(s.Dir)
	j, report, err := journal.Open(ctx, o)
	if err != nil {
		local.close()
		closeDisk()
		return err
	}
	local.begin(j)
	x.close = append(x.close, closeDisk)
	x.Reports = append(x.Reports, report)
	x.List = append(x.List, Export{Name: s.Name, Dir: s.Dir, ReadOnly: s.ReadOnly, Journal: j, Feed: feed, Leases: leases, Local: local})
	return nil
}

// locate opens the directories of an export. Where the journal is elsewhere must be said: a
// link in the export alone is not enough to serve.
func locate(s Spec) (journal.Options, func() error, error) {
	if s.Journal != "" {
		return journal.Locate(s.Dir, s.Journal)
	}
	disk, err := vfs.OS(s.Dir)
	if err != nil {
		return journal.Options{}, nil, err
	}
	return journal.Options{FS: disk}, disk.Close, nil
}

// Close closes the journals, in an orderly stop, and the directories. Idempotent.
func (x *Exports) Close() error {
	var errs []error
	for i, e := range x.List {
		e.Local.close()
		if err := e.Journal.Close(); err != nil {
			errs = append(errs, fmt.Errorf("close export %s: %w", e.Name, err))
		}
		if err := x.close[i](); err != nil {
			errs = append(errs, fmt.Errorf("close export %s: %w", e.Name, err))
		}
	}
	x.List, x.close = nil, nil
	return errors.Join(errs...)
}

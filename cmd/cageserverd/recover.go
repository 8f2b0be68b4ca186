package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"path/filepath"

	"github.com/rs/zerolog"

	"cagefs.dev/cage/cmd/internal/cli"
	"cagefs.dev/cage/journal"
	"cagefs.dev/cage/journal/vfs"
	"cagefs.dev/cage/remote/status"
	"cagefs.dev/cage/serverd"
)

func newRecover() *cli.Command {
	c := cli.New("recover", "[DIR…] [--export NAME=DIR]… [--json]", "bring the files of stopped exports in order after a crash")
	c.Long = `Brings the plain files of exports that no server holds to the state that their
journals know, as serve does when it starts, and tells what was missing or moved.`
	c.Example = "cageserverd recover /srv/data"
	var exports exportFlag
	c.Flags.Var(&exports, "export", "recover DIR; repeatable")
	asJSON := c.Flags.Bool("json", false, "one object a line")
	logLevel := c.Flags.String("log-level", "warn", "debug, info, warn or error")
	c.Run = func(ctx context.Context, args []string, std cli.Std) error {
		for _, dir := range args {
			abs, err := filepath.Abs(dir)
			if err != nil {
				return err
			}
			exports = append(exports, serverd.Spec{Dir: abs})
		}
		if len(exports) == 0 {
			return cli.Usage("recover: no directory given: use recover DIR")
		}
		log, err := cli.NewLog(std.Err, *logLevel)
		if err != nil {
			return err
		}
		if err := cli.PrepareDaemon(); err != nil {
			return err
		}
		var failed error
		for _, e := range exports {
			report, err := recoverExport(ctx, e.Dir, log)
			if err != nil {
				failed = errors.Join(failed, status.Wrap(err, "recover", e.Dir))
				continue
			}
			if *asJSON {
				err = cli.JSON(std.Out, reportJSON(e.Dir, report))
			} else {
				err = printReport(std.Out, e.Dir, report)
			}
			if err != nil {
				return err
			}
		}
		return failed
	}
	return c
}

// recoverExport opens an export's journal, which recovers it, and closes it in order.
func recoverExport(ctx context.Context, dir string, log zerolog.Logger) (*journal.Report, error) {
	o, closeDisk, err := journal.Locate(dir, "")
	if err != nil {
		return nil, err
	}
	defer closeDisk()
	o.Mount = vfs.MountRun(dir)
	o.Log = log.With().Str("dir", dir).Logger()
	j, report, err := journal.Open(ctx, o)
	if err != nil {
		return nil, err
	}
	return report, j.Close()
}

func printReport(w io.Writer, dir string, r *journal.Report) error {
	how := "after a crash"
	if r.Clean {
		how = "the last stop was orderly"
	}
	_, err := fmt.Fprintf(w, "%s: in order (%s): newest change @%d, %d changes applied again, %d names moved, %d files made again\n",
		cli.Printable(dir), how, r.Last, r.Replayed, r.Moved, r.Remade)
	for _, m := range r.Missing {
		if err == nil {
			_, err = fmt.Fprintf(w, "missing  %s: %d bytes at %d that nobody had synced\n", cli.Printable(m.Path), m.Len, m.Off)
		}
	}
	for _, s := range r.Strangers {
		if err == nil {
			_, err = fmt.Fprintf(w, "moved away  %s: something else stood where the journal knows a file\n", cli.Printable(s))
		}
	}
	return err
}

// missingJSON is a range of a report.
type missingJSON struct {
	Path   string `json:"path"`
	Offset uint64 `json:"offset"`
	Bytes  uint64 `json:"bytes"`
}

// recovered is what recover --json prints.
type recovered struct {
	Dir       string        `json:"dir"`
	Clean     bool          `json:"clean"`
	Boot      uint32        `json:"boot"`
	Newest    uint64        `json:"newest_lsn"`
	Replayed  int           `json:"replayed"`
	Moved     int           `json:"moved"`
	Remade    int           `json:"remade"`
	Missing   []missingJSON `json:"missing"`
	Strangers []string      `json:"moved_away"`
}

func reportJSON(dir string, r *journal.Report) recovered {
	out := recovered{
		Dir: dir, Clean: r.Clean, Boot: r.Boot, Newest: uint64(r.Last), Replayed: r.Replayed, Moved: r.Moved, Remade: r.Remade,
		Missing: []missingJSON{}, Strangers: append([]string{}, r.Strangers...),
	}
	for _, m := range r.Missing {
		out.Missing = append(out.Missing, missingJSON{Path: m.Path, Offset: m.Off, Bytes: m.Len})
	}
	return out
}

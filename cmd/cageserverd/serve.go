package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"runtime/debug"
	"time"

	"github.com/rs/zerolog"

	"cagefs.dev/cage/cmd/internal/cli"
	"cagefs.dev/cage/cmd/internal/control"
	"cagefs.dev/cage/journal"
	"cagefs.dev/cage/remote/auth"
	"cagefs.dev/cage/remote/status"
	"cagefs.dev/cage/serverd"
)

// serveFlags are the flags of serve.
type serveFlags struct {
	exports    exportFlag
	journals   journalFlag
	listen     string
	dataPorts  int
	state      string
	historyCap cli.Size
	memory     cli.Size
	idle       time.Duration
	locks      time.Duration
	term       time.Duration
	config     string
	logLevel   string
}

// Memory of a server. The collector keeps to it as long as it can, instead of
// letting garbage double what is in use.
const (
	defaultMemory = 256 << 20
	minMemory     = 64 << 20
)

func newServe() *cli.Command {
	c := cli.New("serve", "--export NAME=DIR[,ro]… [--listen HOST:PORT]", "export directories, in the foreground")
	c.Long = `Exports directories until SIGTERM or SIGINT, then finishes what it was asked
(a second signal ends it at once). Prints one line, "ready HOST:PORT", when
clients can come; the log goes to stderr. The journal of an export lies in
DIR/.cage, or where --journal says; DIR must exist. The user who starts the server can mount at once.`
	c.Example = "cageserverd serve --export data=/srv/data --export pub=/srv/pub,ro"
	var f serveFlags
	c.Flags.Var(&f.exports, "export", "export DIR as NAME, read-only with ,ro; repeatable")
	c.Flags.Var(&f.journals, "journal", "keep the journal of an export in DIR, on the same file system, not in the export; repeatable")
	c.Flags.StringVar(&f.listen, "listen", ":"+cli.DefaultPort, "address of the main port; port 0: any")
	c.Flags.IntVar(&f.dataPorts, "data-ports", 2, "further ports for data, above the main port")
	c.Flags.StringVar(&f.state, "state", "", "keys and clients (default /var/lib/cage for root, else $XDG_STATE_HOME/cage)")
	c.Flags.Var(&f.historyCap, "history-cap", "bytes of history to keep in each export (default a fifth of the file system)")
	f.memory = defaultMemory
	c.Flags.Var(&f.memory, "memory", "what the server's memory is kept to: a quarter of it caches the exports' tables of files")
	c.Flags.DurationVar(&f.idle, "idle-timeout", time.Minute, "drop a client's connection from which nothing came for so long")
	c.Flags.DurationVar(&f.locks, "lock-timeout", 30*time.Second, "give the locks of a client without connection to others after so long")
	c.Flags.DurationVar(&f.term, "lease-term", 20*time.Second, "let others have what a client has leases of that has been silent for so long")
	c.Flags.StringVar(&f.config, "config", "", "file of NAME = VALUE lines, with the names of these flags, which win")
	c.Flags.StringVar(&f.logLevel, "log-level", "info", "debug, info, warn or error")
	c.Run = func(ctx context.Context, args []string, std cli.Std) error {
		if err := c.NArgs(args, 0, 0); err != nil {
			return err
		}
		if f.config != "" {
			if err := cli.ReadConfig(c.Flags, f.config); err != nil {
				return err
			}
		}
		if f.idle < minIdle {
			return cli.Usage("serve: --idle-timeout %v: at least %v, for clients that are alive are silent for as long", f.idle, minIdle)
		}
		if f.locks < minLocks {
			return cli.Usage("serve: --lock-timeout %v: at least %v, for a client needs a moment to come back", f.locks, minLocks)
		}
		if f.term < minTerm {
			return cli.Usage("serve: --lease-term %v: at least %v, for a client needs a moment to come back", f.term, minTerm)
		}
		if f.memory < minMemory {
			return cli.Usage("serve: --memory %s: at least %s", f.memory.Short(), cli.Size(minMemory).Short())
		}
		if len(f.exports) == 0 {
			return cli.Usage("serve: nothing to export: use --export NAME=DIR")
		}
		if err := f.journals.place(f.exports); err != nil {
			return err
		}
		return serve(ctx, &f, std)
	}
	return c
}

// minIdle is the least idle timeout: a client's connection is silent for 15
// seconds before it pings.
const minIdle = 20 * time.Second

// minLocks is the least lock timeout, minTerm the least term of leases.
const (
	minLocks = time.Second
	minTerm  = time.Second
)

func serve(ctx context.Context, f *serveFlags, std cli.Std) (err error) {
	log, err := cli.NewLog(std.Err, f.logLevel)
	if err != nil {
		return err
	}
	if err := cli.PrepareDaemon(); err != nil {
		return err
	}
	// Before the state directory is made, so that a mistyped command leaves nothing.
	if err := serverd.CheckExports(f.exports); err != nil {
		return err
	}
	if err := dropQuotaPrivilege(); err != nil {
		log.Warn().Err(err).Msg("users' disk quotas do not hold: CAP_SYS_RESOURCE cannot be given up")
	}
	dir := f.state
	if dir == "" {
		if dir, err = defaultState(); err != nil {
			return err
		}
	}
	state, err := openState(dir)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, state.Close()) }()
	lock, err := auth.LockState(dir)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, lock.Close()) }()
	debug.SetMemoryLimit(int64(f.memory))
	for i := range f.exports {
		f.exports[i].HistoryCap = int64(f.historyCap)
		f.exports[i].TableCache = int64(f.memory) / 4 / int64(len(f.exports))
		f.exports[i].WatchMemory = int64(f.memory) / 16 / int64(len(f.exports))
	}
	exports, err := serverd.OpenExports(ctx, f.exports, log)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, exports.Close()) }()
	for i, r := range exports.Reports {
		logReport(log, exports.List[i].Name, r)
	}
	srv, err := serverd.Listen(serverd.Options{
		Exports: exports.List, Listen: f.listen, DataPorts: f.dataPorts, State: state, Log: log, Software: cli.Software("cageserverd"),
		Idle: f.idle, Locks: f.locks, Term: f.term,
	})
	if err != nil {
		return err
	}
	socket, err := control.ListenAdmin(ctx, dir, &admin{Server: srv, exports: exports.List, dataPorts: f.dataPorts})
	if err != nil {
		return err
	}
	defer socket.Close()
	if _, err := fmt.Fprintf(std.Out, "ready %s\n", srv.Addr()); err != nil {
		return err
	}
	return srv.Serve(ctx)
}

// openState opens the server's keys and lets in the user who starts it.
func openState(dir string) (*auth.ServerState, error) {
	state, err := auth.OpenServerState(dir)
	if err != nil {
		return nil, status.Wrap(err, "state", dir)
	}
	config, err := auth.DefaultKeyringDir()
	if err != nil {
		return nil, err
	}
	if err := state.AdmitLocal(config, uint32(os.Geteuid())); err != nil {
		return nil, status.Wrap(err, "key of the local user", config)
	}
	return state, nil
}

// logReport tells what recovery did, a line for each thing that somebody may miss.
func logReport(log zerolog.Logger, name string, r *journal.Report) {
	log = log.With().Str("export", name).Logger()
	log.Info().Bool("clean", r.Clean).Uint32("boot", r.Boot).Uint64("newest", uint64(r.Last)).Int("replayed", r.Replayed).
		Int("moved", r.Moved).Int("remade", r.Remade).Msg("opened")
	for _, m := range r.Missing {
		log.Warn().Str("path", m.Path).Uint64("offset", m.Off).Uint64("bytes", m.Len).Msg("bytes that nobody had synced are gone")
	}
	for _, s := range r.Strangers {
		log.Warn().Str("path", s).Msg("something else stood where the journal knows a file: it is kept in the journal's graves")
	}
}

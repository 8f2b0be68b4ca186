package main

import (
	"context"
	"fmt"
	"os"
	"path"
	"path/filepath"
	"strings"
	"time"

	"github.com/spf13/pflag"

	"cagefs.dev/cage/cmd/internal/cli"
	"cagefs.dev/cage/cmd/internal/control"
	"cagefs.dev/cage/remote/proto"
	"cagefs.dev/cage/remote/status"
)

// pageEntries is how many entries are asked for at a time.
const pageEntries = 1000

// place is where the paths of a command line are: the flag that all commands have.
type place struct{ dir string }

func (p *place) register(fs *pflag.FlagSet) {
	fs.StringVar(&p.dir, "dir", "", "offline: the export's directory on this machine; PATH is below it")
}

// target is a path of an export that a command line named.
type target struct {
	history
	path string    // below the export, clean, "" for its root
	at   proto.LSN // moment that the mount of the path shows; 0: now
	key  string    // of the export; two targets with equal keys are in one
	// name is how somebody at this place types a path of the export.
	name func(path string) string
	// hint are the arguments with which the target is named again.
	hint string
}

// open finds the export that an argument means. A mount is first made to
// deliver what it has.
func (p *place) open(ctx context.Context, arg string, write bool) (*target, error) {
	switch {
	case p.dir != "":
		return p.openDir(ctx, arg, write)
	case cli.IsSource(arg):
		return openSource(ctx, arg)
	}
	return openMounted(ctx, arg)
}

func (p *place) openDir(ctx context.Context, arg string, write bool) (*target, error) {
	dir, err := filepath.Abs(p.dir)
	if err != nil {
		return nil, err
	}
	h, err := openHistory(ctx, dir, write)
	if err != nil {
		return nil, err
	}
	below := clean(arg)
	hint := "--dir " + shellQuote(p.dir)
	if below != "" {
		hint = shellQuote(below) + " " + hint
	}
	return &target{
		history: h, path: below, key: dir,
		name: func(path string) string { return path },
		hint: hint,
	}, nil
}

func openSource(ctx context.Context, arg string) (*target, error) {
	src, err := cli.ParseSource(arg)
	if err != nil {
		return nil, err
	}
	h, err := dialHistory(ctx, src.Addr(), src.Export)
	if err != nil {
		return nil, err
	}
	return &target{
		history: h, path: src.Path, key: src.Addr() + "/" + src.Export,
		name: func(path string) string {
			s := src
			s.Path = path
			return s.Typed()
		},
		hint: shellQuote(src.Typed()),
	}, nil
}

func openMounted(ctx context.Context, arg string) (*target, error) {
	p, err := control.Find(arg)
	if err != nil {
		return nil, err
	}
	c, err := control.Dial(ctx, p.Mount)
	if err != nil {
		return nil, err
	}
	defer c.Close()
	where, err := c.Where(ctx, p.Below)
	if err != nil {
		return nil, err
	}
	if err := c.Sync(ctx, p.Below); err != nil {
		return nil, fmt.Errorf("%s: the mount could not deliver its changes: %w", p.Mount.Point, err)
	}
	h, err := dialHistory(ctx, where.Addr, where.Export)
	if err != nil {
		return nil, err
	}
	point, top := shown(p.Mount, where)
	return &target{
		history: h, path: where.Path(p.Below), at: where.At, key: where.Addr + "/" + where.Export,
		name: func(exportPath string) string { return mountedName(point, top, exportPath) },
		hint: shellQuote(arg),
	}, nil
}

// shown is where a mount shows an export, and which path of the export is there:
// at the mountpoint, or in a directory of it where the mount has several sources.
func shown(m control.Mount, where control.Where) (point, top string) {
	root := strings.Trim(m.Root, "/")
	if root == "" {
		return filepath.Join(m.Point, where.Dir), where.Sub
	}
	return m.Point, where.Path(root)
}

// mountedName is the path of a file in a mount of top, relative where it is
// below the current directory.
func mountedName(point, top, exportPath string) string {
	rel, err := filepath.Rel("/"+top, "/"+exportPath)
	if err != nil || rel == ".." || strings.HasPrefix(rel, "../") {
		return "/" + exportPath
	}
	abs := filepath.Join(point, rel)
	wd, err := os.Getwd()
	if err != nil {
		return abs
	}
	if short, err := filepath.Rel(wd, abs); err == nil && short != ".." && !strings.HasPrefix(short, "../") {
		return short
	}
	return abs
}

// clean makes an argument a path below an export.
func clean(p string) string { return strings.TrimPrefix(path.Clean("/"+p), "/") }

// openAt opens PATH@MOMENT: the last @ counts only if what follows is a moment
// and there is no such path. at, if not "", is a moment given by itself.
func (p *place) openAt(ctx context.Context, arg, at string, now time.Time) (*target, moment, error) {
	if at != "" {
		t, err := p.open(ctx, arg, false)
		if err != nil {
			return nil, moment{}, err
		}
		m, err := t.moment(ctx, at, now)
		return closeOn(ctx, t, m, err)
	}
	short, m, ok := proto.SplitMoment(arg, now)
	if !ok {
		t, err := p.open(ctx, arg, false)
		if err != nil {
			return nil, moment{}, err
		}
		return t, moment{lsn: t.at}, nil
	}
	t, err := p.open(ctx, short, false)
	if err != nil {
		return nil, moment{}, err
	}
	if whole, ok := wholePath(t.path, short, arg); ok {
		switch _, err := t.Resolve(ctx, t.at, whole); status.Of(err) {
		case status.OK:
			t.path = whole
			return t, moment{lsn: t.at}, nil
		case status.NotFound, status.NotDir:
		default:
			return closeOn(ctx, t, moment{}, err)
		}
	}
	found, err := t.find(ctx, m)
	return closeOn(ctx, t, found, err)
}

// wholePath is the path of an argument whose end is not taken as a moment,
// given the path of the part before; ok is false where there can be none.
func wholePath(below, short, arg string) (string, bool) {
	rest := arg[len(short):]
	switch {
	case short == "" || strings.HasSuffix(short, "/"):
		return path.Join(below, rest), true
	case below == "":
		return "", false
	}
	return below + rest, true
}

func closeOn(ctx context.Context, t *target, m moment, err error) (*target, moment, error) {
	if err != nil {
		t.Close(ctx)
		return nil, moment{}, err
	}
	return t, m, nil
}

// moment is a moment that the export knows.
type moment struct {
	lsn  proto.LSN // 0: now
	time proto.Time
}

// String is the moment in full.
func (m moment) String() string { return fmt.Sprintf("@%d %s", m.lsn, m.time) }

// moment finds a moment that was typed, with or without @.
func (t *target) moment(ctx context.Context, s string, now time.Time) (moment, error) {
	m, err := parseMoment(s, now)
	if err != nil {
		return moment{}, err
	}
	return t.find(ctx, m)
}

func parseMoment(s string, now time.Time) (proto.Moment, error) {
	m, err := proto.ParseMoment(s, now)
	if err != nil {
		return m, cli.Usage("%s: no moment: use @LSN, @-5m, @14:02, @2026-11-21T14:02:03 or @label:NAME", s)
	}
	return m, nil
}

func (t *target) find(ctx context.Context, m proto.Moment) (moment, error) {
	rep, err := t.Moment(ctx, m)
	return moment{lsn: rep.LSN, time: rep.Time}, err
}

// optional returns the only argument, or the current directory (offline: the
// export's root).
func (p *place) optional(args []string) string {
	switch {
	case len(args) > 0:
		return args[0]
	case p.dir != "":
		return ""
	}
	return "."
}

// shellQuote makes an argument one word for a shell.
func shellQuote(s string) string {
	if s != "" && strings.Trim(s, "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_-./:@%+=,[]") == "" {
		return s
	}
	return "'" + strings.ReplaceAll(s, "'", `'\''`) + "'"
}

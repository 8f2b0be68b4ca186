package main

import (
	"context"
	"os"
	"path/filepath"
	"strings"

	"cagefs.dev/cage/cmd/internal/cli"
	"cagefs.dev/cage/remote/status"
)

func newMount() *cli.Command {
	c := cli.New("mount", "HOST[:PORT]:/EXPORT[/DIR][@MOMENT] MOUNTPOINT [-f] [-o OPTION,OPTION=VALUE…]", "mount an export")
	c.Long = `Mounts an export, or a directory of it, and returns when the mount works; the
mount goes on in the background. With @MOMENT the export is shown, read-only, as
it was: @-5m, @14:02, @2026-11-21T14:02:03, @LSN, @label:NAME.
"mount" may be left out.`
	c.Example = "cagefs mount files.example.org:/data /mnt/data -o cache_size=1GiB"
	o := &options{}
	o.register(c.Flags)
	c.Run = func(ctx context.Context, args []string, std cli.Std) error {
		if len(args) > 2 {
			return cli.Usage("several sources in one mount are not supported yet")
		}
		if err := c.NArgs(args, 2, 2); err != nil {
			return err
		}
		if err := o.finish(c.Flags); err != nil {
			return err
		}
		m, err := newSpec(args[0], args[1], o)
		if err != nil {
			return err
		}
		if o.foreground {
			return runForeground(ctx, m, std)
		}
		return startBackground(ctx, c.Flags, m)
	}
	return c
}

// spec is a mount that was asked for.
type spec struct {
	source     cli.Source
	mountpoint string // absolute
	opts       *options
}

func newSpec(source, mountpoint string, o *options) (*spec, error) {
	src, err := cli.ParseSource(source)
	if err != nil {
		return nil, err
	}
	if src.Name != "" {
		return nil, cli.Usage("%s: named sources are not supported yet: leave out %s=", source, src.Name)
	}
	point, err := filepath.Abs(mountpoint)
	if err != nil {
		return nil, status.Wrap(err, "", mountpoint)
	}
	return &spec{source: src, mountpoint: point, opts: o}, nil
}

// logPath is where the log of a mount in the background goes.
func (m *spec) logPath() (path string, chosen bool, err error) {
	if m.opts.logFile != "" {
		path, err = filepath.Abs(m.opts.logFile)
		return path, true, err
	}
	name := strings.ReplaceAll(strings.Trim(m.mountpoint, "/"), "/", "-") + ".log"
	if dir := os.Getenv("XDG_STATE_HOME"); filepath.IsAbs(dir) {
		return filepath.Join(dir, "cage", name), false, nil
	}
	if os.Geteuid() == 0 {
		return filepath.Join("/var/log/cage", name), false, nil
	}
	home, err := os.UserHomeDir()
	return filepath.Join(home, ".local/state/cage", name), false, err
}

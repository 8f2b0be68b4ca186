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
	c := cli.New("mount", "[NAME=]HOST[:PORT]:/EXPORT[/DIR][@MOMENT]… MOUNTPOINT [-f] [-o OPTION,OPTION=VALUE…]", "mount exports")
	c.Long = `Mounts an export, or a directory of it, and returns when the mount works; the
mount goes on in the background. Several exports, or those with a NAME, become
directories of one mount, called NAME or else as the export. With @MOMENT an
export is shown, read-only, as it was: @-5m, @14:02, @2026-11-21T14:02:03, @LSN,
@label:NAME.
"mount" may be left out.`
	c.Example = "cagefs mount files.example.org:/data /mnt/data -o cache_size=1GiB"
	o := &options{}
	o.register(c.Flags)
	c.Run = func(ctx context.Context, args []string, std cli.Std) error {
		if err := c.NArgs(args, 2, -1); err != nil {
			return err
		}
		if err := o.finish(c.Flags); err != nil {
			return err
		}
		m, err := newSpec(args[:len(args)-1], args[len(args)-1], o)
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
	sources    []cli.Source // all have different names; the only one perhaps none: it is the mount's root
	mountpoint string       // absolute
	opts       *options
}

func newSpec(sources []string, mountpoint string, o *options) (*spec, error) {
	m := &spec{opts: o}
	if cli.IsSource(mountpoint) {
		return nil, cli.Usage("%s is a source: the mountpoint is missing", mountpoint)
	}
	seen := map[string]bool{}
	for _, arg := range sources {
		src, err := cli.ParseSource(arg)
		if err != nil {
			return nil, err
		}
		if src.Name == "" && len(sources) > 1 {
			src.Name, _, _ = strings.Cut(src.Export, "@")
		}
		if seen[src.Name] {
			return nil, cli.Usage("%s: two sources are called %s: give it another name, as other=%s", arg, src.Name, src.Typed())
		}
		seen[src.Name] = true
		m.sources = append(m.sources, src)
	}
	var err error
	if m.mountpoint, err = filepath.Abs(mountpoint); err != nil {
		return nil, status.Wrap(err, "", mountpoint)
	}
	return m, nil
}

// names are those of the directories of a mount of named sources.
func (m *spec) names() (out []string) {
	for _, s := range m.sources {
		out = append(out, s.Name)
	}
	return out
}

// maxDevice is the most bytes of a device's name: the kernel takes a page, and
// people read it.
const maxDevice = 1000

// device is what the kernel lists as the mount's device: HOST:/EXPORT, of
// several sources with commas between, the last ones left out where they are too many.
func (m *spec) device() string {
	var b strings.Builder
	for i, s := range m.sources {
		if i > 0 {
			b.WriteByte(',')
			if b.Len()+len(s.String()) > maxDevice {
				b.WriteString("…")
				break
			}
		}
		b.WriteString(s.String())
	}
	return b.String()
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

package main

import (
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"cagefs.dev/cage/cmd/internal/cli"
	"cagefs.dev/cage/serverd"
)

// exportFlag is --export NAME=DIR[,ro], repeatable.
type exportFlag []serverd.Spec

// Set, String and Type make it a flag.
func (f *exportFlag) Set(s string) error {
	name, dir, ok := strings.Cut(s, "=")
	if !ok || name == "" || dir == "" {
		return fmt.Errorf("not NAME=DIR[,ro]")
	}
	e := serverd.Spec{Name: name, Dir: dir}
	e.Dir, e.ReadOnly = strings.CutSuffix(dir, ",ro")
	var err error
	if e.Dir, err = filepath.Abs(e.Dir); err != nil {
		return err
	}
	*f = append(*f, e)
	return nil
}

// Repeatable marks it for cli.ReadConfig.
func (f *exportFlag) Repeatable() {}

func (f *exportFlag) Type() string { return "NAME=DIR[,ro]" }

func (f *exportFlag) String() string {
	var b strings.Builder
	for i, e := range *f {
		if i > 0 {
			b.WriteByte(' ')
		}
		fmt.Fprintf(&b, "%s=%s", e.Name, e.Dir)
		if e.ReadOnly {
			b.WriteString(",ro")
		}
	}
	return b.String()
}

// journalFlag is --journal NAME=DIR, repeatable.
type journalFlag map[string]string

// Set, String and Type make it a flag.
func (f *journalFlag) Set(s string) error {
	name, dir, ok := strings.Cut(s, "=")
	if !ok || name == "" || dir == "" {
		return fmt.Errorf("not NAME=DIR")
	}
	dir, err := filepath.Abs(dir)
	if err != nil {
		return err
	}
	if _, twice := (*f)[name]; twice {
		return fmt.Errorf("a second journal of %s", name)
	}
	if *f == nil {
		*f = journalFlag{}
	}
	(*f)[name] = dir
	return nil
}

// Repeatable marks it for cli.ReadConfig.
func (f *journalFlag) Repeatable() {}

func (f *journalFlag) Type() string { return "NAME=DIR" }

func (f *journalFlag) String() string {
	var out []string
	for _, name := range slices.Sorted(maps.Keys(*f)) {
		out = append(out, name+"="+(*f)[name])
	}
	return strings.Join(out, " ")
}

// place tells the exports where their journals are.
func (f journalFlag) place(exports exportFlag) error {
	for name, dir := range f {
		i := slices.IndexFunc(exports, func(e serverd.Spec) bool { return e.Name == name })
		if i < 0 {
			return cli.Usage("--journal %s=%s: no export of that name", name, dir)
		}
		exports[i].Journal = dir
	}
	return nil
}

// defaultState is the state directory of a server that was given none.
func defaultState() (string, error) {
	if os.Geteuid() == 0 {
		return "/var/lib/cage", nil
	}
	if dir := os.Getenv("XDG_STATE_HOME"); filepath.IsAbs(dir) {
		return filepath.Join(dir, "cage"), nil
	}
	home, err := os.UserHomeDir()
	if err != nil {
		return "", cli.Usage("neither HOME nor XDG_STATE_HOME is set: use --state DIR")
	}
	return filepath.Join(home, ".local/state/cage"), nil
}

package main

import (
	"fmt"
	"os"
	"path/filepath"
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

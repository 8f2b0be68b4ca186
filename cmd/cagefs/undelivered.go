package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
)

// What a mount's programs had written and what could not be delivered before the
// mount had to end goes to a file of this machine, a branch (package branch) for each source, which
// `cagejournal branch import` hands over to the server.

// undeliveredDir is where these files are.
func undeliveredDir() (string, error) {
	dir := os.Getenv("XDG_STATE_HOME")
	switch {
	case filepath.IsAbs(dir):
		dir = filepath.Join(dir, "cage")
	case os.Geteuid() == 0:
		dir = "/var/lib/cage"
	default:
		home, err := os.UserHomeDir()
		if err != nil {
			return "", err
		}
		dir = filepath.Join(home, ".local/state/cage")
	}
	return filepath.Join(dir, "undelivered"), nil
}

// undeliveredName is how the files of a mount's process begin: with the end of
// the mountpoint, in characters that mean nothing to a shell.
func undeliveredName(mountpoint string, pid int) string {
	name := strings.Map(func(r rune) rune {
		if r >= '0' && r <= '9' || r >= 'A' && r <= 'Z' || r >= 'a' && r <= 'z' || r == '.' || r == '_' {
			return r
		}
		return '-'
	}, strings.Trim(mountpoint, "/"))
	return fmt.Sprintf("%s.%d", name[max(0, len(name)-maxMountName):], pid)
}

const maxMountName = 100

// keep writes what a source has not delivered, whose session is closed. name is "" if that is nothing.
func (s *source) keep(mountpoint string) (name string, err error) {
	dir, err := undeliveredDir()
	if err == nil {
		err = os.MkdirAll(dir, 0o700)
	}
	if err != nil {
		return "", err
	}
	name = filepath.Join(dir, undeliveredName(mountpoint, os.Getpid()))
	if s.Name != "" {
		name += "." + s.Name
	}
	name += ".branch"
	f, err := os.OpenFile(name, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o600)
	if err != nil {
		return "", err
	}
	writes, err := s.session.WriteBranch(f)
	if err == nil {
		err = f.Sync()
	}
	err = errors.Join(err, f.Close())
	if writes == 0 {
		return "", errors.Join(err, os.Remove(name))
	}
	return name, err
}

// keptOf is the files that a mount's process has left, as a command that says what to do with them; "" if it has left none.
func keptOf(mountpoint string, pid int) string {
	dir, err := undeliveredDir()
	if err != nil {
		return ""
	}
	names, _ := filepath.Glob(filepath.Join(dir, undeliveredName(mountpoint, pid)) + "*.branch") // ErrBadPattern: none
	if len(names) == 0 {
		return ""
	}
	return handOver(names...)
}

func handOver(names ...string) string {
	return "kept for: cagejournal branch import " + strings.Join(names, " ; cagejournal branch import ")
}

// close ends a source's session: what is logged is delivered until ctx ends. What could not be is kept, which the error says.
func (s *source) close(ctx context.Context, mountpoint string) error {
	closed := s.session.Close(ctx)
	if closed == nil {
		return nil
	}
	name, err := s.keep(mountpoint)
	switch {
	case err != nil:
		return fmt.Errorf("%w; it is lost: %w", closed, err)
	case name != "":
		return fmt.Errorf("%w; what programs had written is %s", closed, handOver(name))
	}
	return closed
}

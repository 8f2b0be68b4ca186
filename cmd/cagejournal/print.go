package main

import (
	"fmt"
	"io"
	"os/user"
	"strconv"

	"cagefs.dev/cage/cmd/internal/cli"
	"cagefs.dev/cage/remote/proto"
)

// entryPrinter prints entries of a history.
type entryPrinter struct {
	w     io.Writer
	t     *target
	json  bool
	long  bool
	users map[uint32]string
}

func newEntryPrinter(w io.Writer, t *target, json bool) *entryPrinter {
	return &entryPrinter{w: w, t: t, json: json, users: map[uint32]string{}}
}

func (p *entryPrinter) print(e *proto.Entry) error {
	if p.json {
		return cli.EntryJSON(p.w, e)
	}
	_, err := fmt.Fprintf(p.w, "%-8s %s  %-12s %-8s %-12s %-11s %s\n", "@"+strconv.FormatUint(uint64(e.LSN), 10),
		e.Time.Std().Format("2006-01-02T15:04:05.000"), orDash(e.Client), p.user(e.UID), orDash(cli.Printable(e.Comm)), e.Kind, p.what(e))
	if err == nil && p.long {
		_, err = fmt.Fprintf(p.w, "         fid %d, session %016x, uid %d, gid %d, pid %d, process group %d\n",
			uint64(e.ID), uint64(e.Session), e.UID, e.GID, e.PID, e.PGID)
	}
	return err
}

// what is the end of an entry's line: the path and what there is to say of it.
func (p *entryPrinter) what(e *proto.Entry) string {
	s := ""
	if e.Path != "" || e.ID != 0 {
		s = cli.Printable(p.t.name(e.Path))
	}
	if e.NewPath != "" {
		s += " -> " + cli.Printable(p.t.name(e.NewPath))
	}
	switch e.Kind {
	case "write":
		s += fmt.Sprintf("  %d bytes at %d", e.Bytes, e.Off)
	case "truncate":
		s += fmt.Sprintf("  to %d bytes", e.Bytes)
	}
	if e.Detail != "" {
		s += "  " + cli.Printable(e.Detail)
	}
	if e.Records > 0 {
		s += fmt.Sprintf("  (%d records)", e.Records)
	}
	if e.Undone != 0 {
		s += fmt.Sprintf("  [taken back by @%d]", e.Undone)
	}
	return s
}

// user is a user's name on this machine, or the number.
func (p *entryPrinter) user(uid uint32) string {
	name, ok := p.users[uid]
	if !ok {
		name = strconv.FormatUint(uint64(uid), 10)
		if u, err := user.LookupId(name); err == nil {
			name = u.Username
		}
		p.users[uid] = name
	}
	return name
}

func orDash(s string) string {
	if s == "" {
		return "-"
	}
	return s
}

// stepJSON is a line of a plan under --json.
type stepJSON struct {
	Action  string `json:"action"`
	Path    string `json:"path"`
	PathB64 []byte `json:"path_base64,omitempty"`
	From    string `json:"from,omitempty"`
	FromB64 []byte `json:"from_base64,omitempty"`
	Detail  string `json:"detail,omitempty"`
}

// printPlan prints what a rollback or undo does.
func printPlan(w io.Writer, t *target, plan []proto.PlanStep, asJSON bool) error {
	for _, s := range plan {
		var err error
		if asJSON {
			err = cli.JSON(w, stepJSON{Action: s.Action, Path: s.Path, PathB64: cli.Exact(s.Path), From: s.From, FromB64: cli.Exact(s.From), Detail: s.Detail})
		} else {
			line := fmt.Sprintf("%-10s %s", s.Action, cli.Printable(t.name(s.Path)))
			if s.From != "" {
				line += " from " + cli.Printable(t.name(s.From))
			}
			if s.Detail != "" {
				line += "  " + cli.Printable(s.Detail)
			}
			_, err = fmt.Fprintln(w, line)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

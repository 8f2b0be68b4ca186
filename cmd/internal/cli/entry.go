package cli

import (
	"fmt"
	"io"
	"os"
	"time"

	"golang.org/x/sys/unix"

	"cagefs.dev/cage/remote/proto"
)

// entryJSON is an entry of the history under --json. Paths are below the export.
type entryJSON struct {
	LSN     proto.LSN    `json:"lsn"`
	Time    string       `json:"time"`
	Kind    string       `json:"kind"`
	Path    string       `json:"path"`
	PathB64 []byte       `json:"path_base64,omitempty"` // Exact of the path, and so on
	NewPath string       `json:"new_path,omitempty"`
	NewB64  []byte       `json:"new_path_base64,omitempty"`
	FID     proto.FileID `json:"fid,omitempty"`
	Client  string       `json:"client,omitempty"`
	Session string       `json:"session,omitempty"`
	UID     uint32       `json:"uid"`
	GID     uint32       `json:"gid"`
	PID     uint32       `json:"pid,omitempty"`
	PGID    uint32       `json:"pgid,omitempty"`
	Command string       `json:"command,omitempty"`
	Offset  uint64       `json:"offset,omitempty"`
	Bytes   uint64       `json:"bytes,omitempty"`
	Txn     proto.LSN    `json:"transaction,omitempty"`
	Records uint32       `json:"records,omitempty"`
	Detail  string       `json:"detail,omitempty"`
	Undone  proto.LSN    `json:"undone_by,omitempty"`
}

// EntryJSON prints an entry of the history as one line.
func EntryJSON(w io.Writer, e *proto.Entry) error {
	j := entryJSON{
		LSN: e.LSN, Time: JSONTime(e.Time), Kind: e.Kind, FID: e.ID,
		Path: e.Path, PathB64: Exact(e.Path), NewPath: e.NewPath, NewB64: Exact(e.NewPath),
		Client: e.Client, UID: e.UID, GID: e.GID, PID: e.PID, PGID: e.PGID, Command: e.Comm,
		Offset: e.Off, Bytes: e.Bytes, Txn: e.Txn, Records: e.Records, Detail: e.Detail, Undone: e.Undone,
	}
	if e.Session != 0 {
		j.Session = SessionText(e.Session)
	}
	return JSON(w, j)
}

// SessionText is a session's number as commands show it.
func SessionText(id proto.SessionID) string { return fmt.Sprintf("%016x", uint64(id)) }

// JSONTime is a time for programs: UTC, nanoseconds.
func JSONTime(t proto.Time) string { return t.Std().UTC().Format(time.RFC3339Nano) }

// OwnIdent is the identity of this process, which runs a command.
func OwnIdent(comm string) proto.Ident {
	id := proto.Ident{
		UID: uint32(os.Geteuid()), GID: uint32(os.Getegid()),
		PID: uint32(os.Getpid()), PGID: uint32(unix.Getpgrp()), Comm: comm,
	}
	groups, _ := os.Getgroups()
	for _, g := range groups {
		id.Groups = append(id.Groups, uint32(g))
	}
	return id
}

package fusefs

import (
	"bytes"
	"os"
	"strconv"
	"sync"
	"time"

	"github.com/hanwen/go-fuse/v2/fuse"

	"cagefs.dev/cage/remote/proto"
)

// How long what /proc says of a process is believed, and of how many.
const (
	identAge = time.Second
	maxIdent = 1024
)

// idents knows who makes requests. The kernel tells uid, gid and thread; the
// process, its group, its command and its supplementary groups are read from
// /proc. Safe for concurrent use.
type idents struct {
	proc string           // "/proc"; set at construction
	now  func() time.Time // set at construction

	mu    sync.Mutex
	known map[caller]identEntry // guarded by mu; at most maxIdent
}

// caller is a thread with its credentials, so that a changed uid or a reused
// number is not taken for the one that was read.
type caller struct{ tid, uid, gid uint32 }

type identEntry struct {
	ident proto.Ident
	until time.Time
}

func newIdents(proc string, now func() time.Time) *idents {
	return &idents{proc: proc, now: now, known: make(map[caller]identEntry)}
}

// brief is the identity for a request that only reads: what /proc has to say
// matters to the server only where permission may hang on a group.
func (c *idents) brief(h *fuse.InHeader) proto.Ident {
	if h.Uid == 0 {
		return proto.Ident{UID: h.Uid, GID: h.Gid, PID: h.Pid}
	}
	return c.full(h)
}

// full is the identity for a change, as the journal shows it.
func (c *idents) full(h *fuse.InHeader) proto.Ident {
	who := caller{h.Pid, h.Uid, h.Gid}
	if who.tid == 0 { // another process namespace, or the kernel itself
		return proto.Ident{UID: who.uid, GID: who.gid}
	}
	now := c.now()
	c.mu.Lock()
	e, ok := c.known[who]
	c.mu.Unlock()
	if ok && now.Before(e.until) {
		return e.ident
	}
	e = identEntry{c.read(who), now.Add(identAge)}
	c.mu.Lock()
	defer c.mu.Unlock()
	if len(c.known) >= maxIdent {
		c.shrinkLocked(now)
	}
	c.known[who] = e
	return e.ident
}

// shrinkLocked drops what is too old, or everything where nothing is. c.mu is held.
func (c *idents) shrinkLocked(now time.Time) {
	for k, e := range c.known {
		if !now.Before(e.until) {
			delete(c.known, k)
		}
	}
	if len(c.known) >= maxIdent {
		clear(c.known)
	}
}

// read asks /proc. What it does not say, because the process is gone or hidden,
// stays unknown.
func (c *idents) read(who caller) proto.Ident {
	id := proto.Ident{UID: who.uid, GID: who.gid, PID: who.tid}
	if b, err := os.ReadFile(c.path(who.tid, "status")); err == nil {
		st := parseStatus(b)
		id.Groups = st.groups
		if st.tgid != 0 {
			id.PID = st.tgid
		}
	}
	if b, err := os.ReadFile(c.path(id.PID, "stat")); err == nil {
		id.Comm, id.PGID = parseStat(b)
	}
	return id
}

// signals is what /proc says of the signals of a thread.
func (c *idents) signals(tid uint32) (signalSets, error) {
	b, err := os.ReadFile(c.path(tid, "status"))
	if err != nil {
		return signalSets{}, err
	}
	return parseStatus(b).signals, nil
}

func (c *idents) path(pid uint32, file string) string {
	return c.proc + "/" + strconv.FormatUint(uint64(pid), 10) + "/" + file
}

// procStatus is what is used of /proc/PID/status.
type procStatus struct {
	tgid    uint32
	groups  []uint32
	signals signalSets
}

// parseStatus reads /proc/PID/status. Lines it does not understand count as absent.
func parseStatus(b []byte) procStatus {
	var st procStatus
	for line := range bytes.Lines(b) {
		key, value, ok := bytes.Cut(line, []byte(":"))
		if !ok {
			continue
		}
		value = bytes.TrimSpace(value)
		switch string(key) {
		case "Tgid":
			st.tgid = parseUint32(value)
		case "Groups":
			for f := range bytes.FieldsSeq(value) {
				if g, err := strconv.ParseUint(string(f), 10, 32); err == nil && len(st.groups) < proto.MaxGroups {
					st.groups = append(st.groups, uint32(g))
				}
			}
		case "SigPnd":
			st.signals.pending |= parseSet(value)
		case "ShdPnd":
			st.signals.pending |= parseSet(value)
		case "SigBlk":
			st.signals.blocked = parseSet(value)
		case "SigIgn":
			st.signals.ignored = parseSet(value)
		case "SigCgt":
			st.signals.caught = parseSet(value)
		}
	}
	return st
}

// parseStat reads command name and process group from /proc/PID/stat: "PID
// (COMM) STATE PPID PGRP …", where COMM may hold anything, also parentheses.
func parseStat(b []byte) (comm string, pgid uint32) {
	open, end := bytes.IndexByte(b, '('), bytes.LastIndexByte(b, ')')
	if open < 0 || end < open {
		return "", 0
	}
	comm = string(b[open+1 : end])
	if len(comm) > proto.MaxComm {
		comm = comm[:proto.MaxComm]
	}
	if f := bytes.Fields(b[end+1:]); len(f) > 2 {
		pgid = parseUint32(f[2])
	}
	return comm, pgid
}

func parseUint32(b []byte) uint32 {
	n, _ := strconv.ParseUint(string(b), 10, 32)
	return uint32(n)
}

func parseSet(b []byte) uint64 {
	n, _ := strconv.ParseUint(string(b), 16, 64)
	return n
}

package main

import (
	"context"
	"fmt"
	"io"
	"path"
	"time"

	"cagefs.dev/cage/cmd/internal/cli"
	"cagefs.dev/cage/remote/proto"
	"cagefs.dev/cage/remote/status"
)

// The commands that read files of the present or of a moment.

// atFlag is the plain form of PATH@MOMENT.
const atFlag = "the moment, as an alternative to PATH@MOMENT"

// catPiece is how much cat reads at a time.
const catPiece = 1 << 20

func newCat() *cli.Command {
	c := cli.New("cat", "PATH[@MOMENT]", "print a file as it was")
	c.Example = "cagejournal cat /mnt/data/notes.txt@-1h > notes.old"
	var p place
	p.register(c.Flags)
	at := c.Flags.String("at", "", atFlag)
	c.Run = func(ctx context.Context, args []string, std cli.Std) error {
		if err := c.NArgs(args, 1, 1); err != nil {
			return err
		}
		t, m, err := p.openAt(ctx, args[0], *at, time.Now())
		if err != nil {
			return err
		}
		defer t.Close(ctx)
		a, err := t.Resolve(ctx, m.lsn, t.path)
		if err != nil {
			return status.Wrap(err, "", args[0])
		}
		if a.IsDir() {
			return status.New(status.IsDir, "", args[0])
		}
		if !a.IsRegular() {
			return status.Newf(status.Invalid, "", args[0], "not a regular file")
		}
		return status.Wrap(copyFile(ctx, std.Out, t, m.lsn, a.ID), "", args[0])
	}
	return c
}

func copyFile(ctx context.Context, w io.Writer, h history, at proto.LSN, id proto.FileID) error {
	buf := make([]byte, catPiece)
	for off := int64(0); ; {
		n, err := h.ReadAt(ctx, at, id, buf, off)
		if err != nil {
			return err
		}
		if _, err := w.Write(buf[:n]); err != nil {
			return err
		}
		if n < len(buf) {
			return nil
		}
		off += int64(n)
	}
}

func newStat() *cli.Command {
	c := cli.New("stat", "PATH[@MOMENT] [--json]", "show a file's attributes as they were")
	c.Example = "cagejournal stat /mnt/data/notes.txt@14:02"
	var p place
	p.register(c.Flags)
	at := c.Flags.String("at", "", atFlag)
	asJSON := c.Flags.Bool("json", false, "one object on one line")
	c.Run = func(ctx context.Context, args []string, std cli.Std) error {
		if err := c.NArgs(args, 1, 1); err != nil {
			return err
		}
		t, m, err := p.openAt(ctx, args[0], *at, time.Now())
		if err != nil {
			return err
		}
		defer t.Close(ctx)
		a, err := t.Resolve(ctx, m.lsn, t.path)
		if err != nil {
			return status.Wrap(err, "", args[0])
		}
		target := ""
		if a.Type() == proto.ModeSymlink {
			if target, err = t.Readlink(ctx, m.lsn, a.ID); err != nil {
				return status.Wrap(err, "", args[0])
			}
		}
		if *asJSON {
			return cli.JSON(std.Out, attrOf(t.path, target, &a))
		}
		return printAttr(std.Out, t.name(t.path), target, m, &a)
	}
	return c
}

// attrJSON is a file under --json.
type attrJSON struct {
	Path      string       `json:"path"`
	PathB64   []byte       `json:"path_base64,omitempty"`
	Type      string       `json:"type"`
	Mode      string       `json:"mode"` // permissions, octal
	Nlink     uint32       `json:"nlink"`
	UID       uint32       `json:"uid"`
	GID       uint32       `json:"gid"`
	Size      uint64       `json:"size"`
	Atime     string       `json:"atime"`
	Mtime     string       `json:"mtime"`
	Ctime     string       `json:"ctime"`
	Target    string       `json:"target,omitempty"`
	TargetB64 []byte       `json:"target_base64,omitempty"`
	FID       proto.FileID `json:"fid"`
	Change    proto.LSN    `json:"change"`
}

func attrOf(path, target string, a *proto.Attr) attrJSON {
	return attrJSON{
		Path: path, PathB64: cli.Exact(path), Type: typeName(a.Type()), Mode: fmt.Sprintf("%04o", a.Mode&proto.ModePerm), Nlink: a.Nlink, UID: a.UID, GID: a.GID,
		Size: a.Size, Atime: cli.JSONTime(a.Atime), Mtime: cli.JSONTime(a.Mtime), Ctime: cli.JSONTime(a.Ctime),
		Target: target, TargetB64: cli.Exact(target), FID: a.ID, Change: a.Change,
	}
}

func typeName(typ uint32) string {
	switch typ {
	case proto.ModeRegular:
		return "file"
	case proto.ModeDir:
		return "directory"
	case proto.ModeSymlink:
		return "symlink"
	case proto.ModeFIFO:
		return "fifo"
	case proto.ModeSocket:
		return "socket"
	case proto.ModeChar:
		return "character device"
	case proto.ModeBlock:
		return "block device"
	}
	return "unknown"
}

func printAttr(w io.Writer, name, target string, m moment, a *proto.Attr) error {
	if target != "" {
		target = " -> " + cli.Printable(target)
	}
	at := "now"
	if m.lsn != 0 {
		at = m.String()
	}
	_, err := fmt.Fprintf(w, "%s%s\nat       %s\ntype     %s, %d links\nmode     %s (%04o), uid %d, gid %d\nsize     %d\nmodified %s\nchanged  %s by @%d\nfid      %d\n",
		cli.Printable(name), target, at, typeName(a.Type()), a.Nlink, modeString(a.Mode), a.Mode&proto.ModePerm, a.UID, a.GID,
		a.Size, a.Mtime, a.Ctime, a.Change, uint64(a.ID))
	return err
}

// modeString is a mode as ls(1) shows it.
func modeString(mode uint32) string {
	out := []byte("?rwxrwxrwx")
	for typ, c := range map[uint32]byte{
		proto.ModeRegular: '-', proto.ModeDir: 'd', proto.ModeSymlink: 'l', proto.ModeFIFO: 'p',
		proto.ModeSocket: 's', proto.ModeChar: 'c', proto.ModeBlock: 'b',
	} {
		if mode&proto.ModeType == typ {
			out[0] = c
		}
	}
	for i := range 9 {
		if mode&(0o400>>i) == 0 {
			out[1+i] = '-'
		}
	}
	for _, s := range []struct {
		bit   uint32
		at    int
		yes   byte // with the right to execute
		alone byte
	}{{proto.ModeSetuid, 3, 's', 'S'}, {proto.ModeSetgid, 6, 's', 'S'}, {proto.ModeSticky, 9, 't', 'T'}} {
		switch {
		case mode&s.bit == 0:
		case out[s.at] == 'x':
			out[s.at] = s.yes
		default:
			out[s.at] = s.alone
		}
	}
	return string(out)
}

func newLs() *cli.Command {
	c := cli.New("ls", "[PATH][@MOMENT] [--json]", "list a directory as it was")
	c.Example = "cagejournal ls /mnt/data/src@label:before-merge"
	var p place
	p.register(c.Flags)
	at := c.Flags.String("at", "", atFlag)
	asJSON := c.Flags.Bool("json", false, "one object a line")
	c.Run = func(ctx context.Context, args []string, std cli.Std) error {
		if err := c.NArgs(args, 0, 1); err != nil {
			return err
		}
		arg := p.optional(args)
		t, m, err := p.openAt(ctx, arg, *at, time.Now())
		if err != nil {
			return err
		}
		defer t.Close(ctx)
		a, err := t.Resolve(ctx, m.lsn, t.path)
		if err != nil {
			return status.Wrap(err, "", arg)
		}
		if !a.IsDir() {
			return printListed(std.Out, t.path, &proto.DirEntry{Name: path.Base(t.path), Attr: a}, *asJSON)
		}
		for cookie := uint64(0); ; {
			entries, err := t.ReadDir(ctx, m.lsn, a.ID, cookie)
			if err != nil {
				return status.Wrap(err, "", arg)
			}
			if len(entries) == 0 {
				return nil
			}
			for i := range entries {
				e := &entries[i]
				if err := printListed(std.Out, path.Join(t.path, e.Name), e, *asJSON); err != nil {
					return err
				}
				cookie = e.Cookie
			}
		}
	}
	return c
}

func printListed(w io.Writer, path string, e *proto.DirEntry, asJSON bool) error {
	if asJSON {
		return cli.JSON(w, attrOf(path, "", &e.Attr))
	}
	_, err := fmt.Fprintf(w, "%s %3d %5d %5d %10d %s %s\n", modeString(e.Attr.Mode), e.Attr.Nlink, e.Attr.UID, e.Attr.GID, e.Attr.Size,
		e.Attr.Mtime.Std().Format("2006-01-02 15:04:05"), cli.Printable(e.Name))
	return err
}

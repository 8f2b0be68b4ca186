package main

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"

	"cagefs.dev/cage/cmd/internal/cli"
	"cagefs.dev/cage/remote/branch"
	"cagefs.dev/cage/remote/proto"
	"cagefs.dev/cage/remote/status"
)

// openedBranch is a branch and what it has for each file.
type openedBranch struct {
	io.ReaderAt // the branch's file
	info        proto.BranchInfo
	files       []*branch.File
}

func openBranch(ctx context.Context, t *target, name string) (*openedBranch, error) {
	info, err := findBranch(ctx, t, name)
	if err != nil {
		return nil, err
	}
	o := &openedBranch{ReaderAt: branchReader{ctx, t, info.Session}, info: info}
	r, err := branch.NewReader(bufio.NewReaderSize(io.NewSectionReader(o, 0, int64(info.Size)), proto.MaxXattr))
	if err == nil {
		o.files, err = r.Files()
	}
	return o, status.Wrap(err, "", cli.SessionText(info.Session))
}

// branchReader reads a branch's file where it is kept.
type branchReader struct {
	ctx     context.Context
	h       history
	session proto.SessionID
}

// ReadAt implements io.ReaderAt.
func (r branchReader) ReadAt(p []byte, off int64) (done int, err error) {
	for done < len(p) {
		n, err := r.h.ReadBranch(r.ctx, r.session, p[done:], off+int64(done))
		if err != nil {
			return done, err
		}
		if n == 0 {
			return done, io.EOF
		}
		done += n
	}
	return done, nil
}

// write writes a file as it would be with the branch applied.
func (o *openedBranch) write(ctx context.Context, w io.Writer, t *target, f *branch.File) error {
	a, err := t.Attr(ctx, f.ID)
	if err != nil {
		return status.Wrap(err, "", pathOf(f))
	}
	over, size := f.Over(a.Size), a.Size
	for _, e := range over {
		size = max(size, e.Off+e.Len)
	}
	buf := make([]byte, catPiece)
	for off := uint64(0); off < size; off += uint64(len(buf)) {
		buf = buf[:min(uint64(len(buf)), size-off)]
		clear(buf)
		if off < a.Size {
			if _, err := t.ReadAt(ctx, 0, f.ID, buf[:min(uint64(len(buf)), a.Size-off)], int64(off)); err != nil {
				return err
			}
		}
		for _, e := range over {
			from, to := max(e.Off, off), min(e.Off+e.Len, off+uint64(len(buf)))
			if from >= to {
				continue
			}
			if _, err := o.ReadAt(buf[from-off:to-off], e.At+int64(from-e.Off)); err != nil {
				return err
			}
		}
		if _, err := w.Write(buf); err != nil {
			return err
		}
	}
	return nil
}

func catBranch(ctx context.Context, _ *branchCommand, t *target, args []string, std cli.Std) error {
	o, err := openBranch(ctx, t, args[0])
	if err != nil {
		return err
	}
	a, err := t.Resolve(ctx, 0, t.path)
	if err != nil {
		return status.Wrap(err, "", args[1])
	}
	for _, f := range o.files {
		if f.ID == a.ID {
			return o.write(ctx, std.Out, t, f)
		}
	}
	return status.Newf(status.NotFound, "", args[1], "the branch has nothing of it")
}

// diffBranch shows, as diff(1) does, how the files of a branch would change.
func diffBranch(ctx context.Context, _ *branchCommand, t *target, args []string, std cli.Std) error {
	o, err := openBranch(ctx, t, args[0])
	if err != nil {
		return err
	}
	dir, err := os.MkdirTemp("", "cagejournal-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	differ := false
	for _, f := range o.files {
		path := cli.Printable(t.name(pathOf(f)))
		if a, err := t.Attr(ctx, f.ID); status.Of(err) == status.Stale || err == nil && a.Nlink == 0 {
			differ = true
			if _, err := fmt.Fprintf(std.Out, "%s was removed; %d bytes for it\n", path, f.Bytes); err != nil {
				return err
			}
			continue
		}
		now, then := filepath.Join(dir, "now"), filepath.Join(dir, "then")
		err := errors.Join(
			into(now, func(w io.Writer) error { return copyFile(ctx, w, t, 0, f.ID) }),
			into(then, func(w io.Writer) error { return o.write(ctx, w, t, f) }),
		)
		if err != nil {
			return status.Wrap(err, "", path)
		}
		cmd := exec.CommandContext(ctx, "diff", "-u", "--label", path, "--label", path+" (branch)", now, then)
		var stderr bytes.Buffer
		cmd.Stdout, cmd.Stderr = std.Out, &stderr
		var exit *exec.ExitError
		switch err := cmd.Run(); {
		case err == nil:
		case errors.As(err, &exit) && exit.ExitCode() == 1:
			differ = true
		default:
			return fmt.Errorf("diff: %w %s", err, bytes.TrimSpace(stderr.Bytes()))
		}
	}
	if differ {
		return cli.ExitDifferences
	}
	return nil
}

func into(path string, f func(io.Writer) error) error {
	file, err := os.OpenFile(path, os.O_CREATE|os.O_TRUNC|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	return errors.Join(f(file), file.Close())
}

// localBranch is a branch that a mount has left in a file of this machine.
type localBranch struct {
	*branch.Reader
	io.Closer
}

func openBranchFile(name string) (*localBranch, error) {
	f, err := os.Open(name)
	if err != nil {
		return nil, err
	}
	r, err := branch.NewReader(f)
	if err != nil {
		f.Close()
		return nil, status.Wrap(err, "", name)
	}
	return &localBranch{r, f}, nil
}

// importBranch hands a mount's file over to the server, as the branch of this command's session.
func importBranch(ctx context.Context, b *branchCommand, t *target, args []string, std cli.Std) error {
	f, err := openBranchFile(args[0])
	if err != nil {
		return err
	}
	defer f.Close()
	writes := uint32(0)
	for {
		w, err := f.Next()
		if err == io.EOF {
			break
		}
		if err != nil {
			return status.Wrap(err, "", args[0])
		}
		writes++
		op := &proto.Write{ID: w.ID, Off: w.Off, Append: w.Append, Lost: true, Data: w.Data}
		if _, err := t.Change(ctx, op); status.Of(err) != status.LostLock { // which is how it is told that it is kept
			if err == nil {
				err = status.Newf(status.Internal, "", "", "the server has applied it")
			}
			return status.Wrap(err, "", args[0])
		}
	}
	list, err := t.Branches(ctx)
	if err != nil {
		return err
	}
	for i := range list {
		if list[i].Session != t.Session() {
			continue
		}
		if list[i].Writes != writes {
			return status.Newf(status.NoSpace, "", args[0], "the server has kept %d of %d writes", list[i].Writes, writes)
		}
		if b.json {
			return cli.JSON(std.Out, asBranchJSON(&list[i]))
		}
		return printBranch(std.Out, &list[i])
	}
	if writes == 0 {
		return nil
	}
	return status.Newf(status.NoSpace, "", args[0], "the server has kept none of %d writes", writes)
}

package main

import (
	"context"
	"fmt"
	"io"
	"slices"
	"strings"

	"cagefs.dev/cage/cmd/internal/cli"
	"cagefs.dev/cage/remote/branch"
	"cagefs.dev/cage/remote/proto"
	"cagefs.dev/cage/remote/status"
)

// branchVerbs are what `branch` does, with the least and the most arguments behind the verb.
var branchVerbs = map[string]struct {
	least, most int
	run         func(ctx context.Context, b *branchCommand, t *target, args []string, std cli.Std) error
}{
	"list":   {0, 1, listBranches},
	"show":   {1, 2, showBranch},
	"diff":   {1, 2, diffBranch},
	"cat":    {2, 2, catBranch},
	"apply":  {1, 2, applyBranch},
	"drop":   {1, 2, dropBranch},
	"import": {1, 2, importBranch},
}

// branchCommand is the flags of `branch`.
type branchCommand struct {
	changing
	place
	force bool
}

func newBranch() *cli.Command {
	c := cli.New("branch", "list|show|diff|cat|apply|drop|import [BRANCH] [PATH]", "what clients had written and could not deliver")
	c.Long = `A client that was away for too long may have told its programs of writes that cannot
be applied any more, as others have changed the files since, or had to be let go on.
They are kept in a branch: one for each session that has some.

  list [PATH]            the branches of the export of PATH (default: the current directory)
  show BRANCH [PATH]     its files, and which bytes of them
  diff BRANCH [PATH]     how its files would change; exit code 1 if they would
  cat BRANCH FILE        FILE as it would be, on stdout
  apply BRANCH [PATH]    make its writes, all or nothing, in one step that can be undone
  drop BRANCH [PATH]     forget it
  import FILE [PATH]     take over what a mount left in FILE when it had to end undelivered

BRANCH is the beginning of a branch's name that no other has. apply refuses (exit code 4)
where a file is gone or was changed meanwhile, and says by whom; with --force the
branch's bytes go over that, and files that are gone are left out.`
	c.Example = "cagejournal branch apply 8b90 /mnt/data -n"
	var b branchCommand
	b.changing.register(c.Flags)
	b.place.register(c.Flags)
	c.Flags.BoolVar(&b.force, "force", false, "apply: also over what others wrote")
	c.Run = func(ctx context.Context, args []string, std cli.Std) error {
		if err := c.NArgs(args, 1, -1); err != nil {
			return err
		}
		verb, ok := branchVerbs[args[0]]
		if !ok {
			return cli.Usage("branch %s: not one of list, show, diff, cat, apply, drop, import", args[0])
		}
		name := "branch " + args[0]
		if args = args[1:]; len(args) < verb.least || len(args) > verb.most {
			return cli.Usage("%s: %d arguments, it takes %d to %d", name, len(args), verb.least, verb.most)
		}
		asks := name == "branch apply" || name == "branch drop"
		if asks {
			if err := b.allowed(std, name); err != nil {
				return err
			}
		}
		changes := asks && !b.dryRun || name == "branch import"
		where, err := b.where(name, args)
		if err != nil {
			return err
		}
		t, err := b.open(ctx, where, changes)
		if status.Of(err) == status.LostLock { // what a mount had to say of it, once
			fmt.Fprintln(std.Err, err)
			t, err = b.open(ctx, where, changes)
		}
		if err != nil {
			return err
		}
		defer t.Close(ctx)
		return verb.run(ctx, &b, t, args, std)
	}
	return c
}

// where is the path that says which export is meant.
func (b *branchCommand) where(name string, args []string) (string, error) {
	verb := strings.TrimPrefix(name, "branch ")
	rest := args
	if verb != "list" {
		rest = args[1:]
	}
	if verb != "import" || len(rest) > 0 || b.dir != "" {
		return b.optional(rest), nil
	}
	f, err := openBranchFile(args[0])
	if err != nil {
		return "", err
	}
	defer f.Close()
	return f.Head.Source, nil
}

// findBranch finds the branch whose name begins with a text: status.NotFound, Usage if there are several.
func findBranch(ctx context.Context, t *target, name string) (proto.BranchInfo, error) {
	list, err := t.Branches(ctx)
	if err != nil {
		return proto.BranchInfo{}, err
	}
	list = slices.DeleteFunc(list, func(b proto.BranchInfo) bool {
		return !strings.HasPrefix(cli.SessionText(b.Session), name)
	})
	switch len(list) {
	case 0:
		return proto.BranchInfo{}, status.Newf(status.NotFound, "", name, "there is no such branch")
	case 1:
		return list[0], nil
	}
	return proto.BranchInfo{}, cli.Usage("branch %s: %d branches begin so", name, len(list))
}

// branchJSON is a branch under --json.
type branchJSON struct {
	Branch  string `json:"branch"`
	Client  string `json:"client"`
	Began   string `json:"began"`
	Newest  string `json:"newest"`
	Files   uint32 `json:"files"`
	Writes  uint32 `json:"writes"`
	Bytes   uint64 `json:"bytes"`
	Damaged bool   `json:"damaged,omitempty"`
}

func asBranchJSON(b *proto.BranchInfo) branchJSON {
	return branchJSON{cli.SessionText(b.Session), b.Client, cli.JSONTime(b.Began), cli.JSONTime(b.Newest), b.Files, b.Writes, b.Bytes, b.Damaged}
}

func printBranch(w io.Writer, b *proto.BranchInfo) error {
	note := ""
	if b.Damaged {
		note = "  DAMAGED"
	}
	_, err := fmt.Fprintf(w, "%s  %s  %-12s %s in %d files%s\n", cli.SessionText(b.Session), b.Began, cli.Printable(b.Client), cli.Size(b.Bytes).Short(), b.Files, note)
	return err
}

func listBranches(ctx context.Context, b *branchCommand, t *target, _ []string, std cli.Std) error {
	list, err := t.Branches(ctx)
	if err != nil {
		return err
	}
	for i := range list {
		if b.json {
			err = cli.JSON(std.Out, asBranchJSON(&list[i]))
		} else {
			err = printBranch(std.Out, &list[i])
		}
		if err != nil {
			return err
		}
	}
	return nil
}

func showBranch(ctx context.Context, b *branchCommand, t *target, args []string, std cli.Std) error {
	o, err := openBranch(ctx, t, args[0])
	if err != nil {
		return err
	}
	if b.json {
		err = cli.JSON(std.Out, asBranchJSON(&o.info))
	} else {
		err = printBranch(std.Out, &o.info)
	}
	for _, f := range o.files {
		if err != nil {
			return err
		}
		if b.json {
			err = cli.JSON(std.Out, fileOf(f))
			continue
		}
		_, err = fmt.Fprintf(std.Out, "%8s  %s  %s\n", cli.Size(f.Bytes).Short(), cli.Printable(t.name(pathOf(f))), ranges(f))
	}
	return err
}

// branchFileJSON is a file of a branch under --json.
type branchFileJSON struct {
	Path    string      `json:"path"`
	PathB64 []byte      `json:"path_base64,omitempty"`
	FID     uint64      `json:"fid"`
	Base    uint64      `json:"base_lsn,omitempty"` // 0: not known
	Bytes   uint64      `json:"bytes"`
	Ranges  [][2]uint64 `json:"ranges,omitempty"` // offset and length
	Appends uint64      `json:"appended_bytes,omitempty"`
}

func fileOf(f *branch.File) branchFileJSON {
	j := branchFileJSON{Path: f.Path, PathB64: cli.Exact(f.Path), FID: uint64(f.ID), Base: uint64(f.Base), Bytes: f.Bytes}
	for _, e := range f.Extents {
		j.Ranges = append(j.Ranges, [2]uint64{e.Off, e.Len})
	}
	for _, e := range f.Ends {
		j.Appends += e.Len
	}
	return j
}

// maxRanges is how many ranges of a file are listed for people.
const maxRanges = 4

func ranges(f *branch.File) string {
	var out []string
	for i, e := range f.Extents {
		if i == maxRanges {
			out = append(out, fmt.Sprintf("and %d ranges more", len(f.Extents)-i))
			break
		}
		out = append(out, fmt.Sprintf("%d-%d", e.Off, e.Off+e.Len-1))
	}
	if len(f.Ends) > 0 {
		out = append(out, "at the end")
	}
	return strings.Join(out, ", ")
}

func pathOf(f *branch.File) string {
	if f.Path == "" {
		return f.ID.String()
	}
	return f.Path
}

func applyBranch(ctx context.Context, b *branchCommand, t *target, args []string, std cli.Std) error {
	info, err := findBranch(ctx, t, args[0])
	if err != nil {
		return err
	}
	return b.do(ctx, t, std, func(dryRun bool) proto.Op {
		return &proto.Branch{Session: info.Session, Force: b.force, DryRun: dryRun}
	})
}

func dropBranch(ctx context.Context, b *branchCommand, t *target, args []string, std cli.Std) error {
	info, err := findBranch(ctx, t, args[0])
	if err != nil {
		return err
	}
	if err := printBranch(std.Err, &info); err != nil {
		return err
	}
	switch {
	case b.dryRun:
		return nil
	case !b.yes && !std.Ask("forget it?"):
		fmt.Fprintln(std.Err, "nothing was changed")
		return cli.ExitInterrupted
	}
	_, err = t.Change(ctx, &proto.Branch{Session: info.Session, Drop: true})
	return err
}

// Command cagejournal lists, shows and takes back the changes of an export: in a
// live mount, on a server, or offline on the server's disk.
package main

import (
	"context"
	"os"
	"os/signal"

	"golang.org/x/sys/unix"

	"cagefs.dev/cage/cmd/internal/cli"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), unix.SIGINT, unix.SIGTERM)
	context.AfterFunc(ctx, stop)
	os.Exit(int(app().Main(ctx, os.Args[1:], cli.OS())))
}

func app() *cli.App {
	return &cli.App{
		Name: "cagejournal",
		Short: `Lists, shows and takes back the changes of an export. A PATH is a path in a mount
(it need not exist any more), HOST[:PORT]:/EXPORT/PATH, or with --dir DIR a path
below the export in DIR of this machine, offline. A moment is @LSN, @-5m, @14:02,
@2026-11-21T14:02:03, @label:NAME.`,
		Commands: []func() *cli.Command{
			newLog, newShow, newCat, newLs, newStat, newLabel, newRollback, newUndo, newRedo, newBranch, newVerify, newUsage,
		},
	}
}

// Command cageserverd exports directories of this machine to Cage's clients and
// keeps their journals.
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
	// From the first signal on the default holds again: the second ends the process at once.
	context.AfterFunc(ctx, stop)
	os.Exit(int(app().Main(ctx, os.Args[1:], cli.OS())))
}

func app() *cli.App {
	return &cli.App{
		Name:     "cageserverd",
		Short:    "Exports directories to Cage's clients, with a journal of every change.",
		Commands: []func() *cli.Command{newServe, newRecover, newInvite, newClients, newRevoke, newExports, newSessions},
	}
}

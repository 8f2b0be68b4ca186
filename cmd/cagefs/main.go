// Command cagefs mounts exports of Cage servers and looks after the mounts.
//
// A mount is a process of its own: `cagefs mount` starts it in the background
// and returns when it works; the other commands talk to it over its control
// socket.
package main

import (
	"context"
	"os"
	"os/signal"
	"slices"

	"golang.org/x/sys/unix"

	"cagefs.dev/cage/cmd/internal/cli"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), unix.SIGINT, unix.SIGTERM, unix.SIGHUP)
	code := app().Main(ctx, os.Args[1:], cli.OS())
	stop()
	os.Exit(int(code))
}

func app() *cli.App {
	return &cli.App{
		Name:     "cagefs",
		Short:    "Mounts directories of Cage servers as local folders.",
		Commands: []func() *cli.Command{newMount, newUmount, newStatus, newStats, newSync, newWatch, newJoin},
		Implied: func(args []string) string {
			if slices.ContainsFunc(args, cli.IsSource) {
				return "mount"
			}
			return ""
		},
	}
}

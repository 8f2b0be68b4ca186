package main

import (
	"context"
	"fmt"
	"io"
	"net"
	"strings"

	"cagefs.dev/cage/cmd/internal/cli"
	"cagefs.dev/cage/remote"
	"cagefs.dev/cage/remote/auth"
)

func newJoin() *cli.Command {
	c := cli.New("join", "CODE [--json]", "be admitted by a server that has invited this machine")
	c.Long = `Makes a key for the server of the code, has it admitted there, and keeps it with
the server's own key in $XDG_CONFIG_HOME/cage, where mount finds both. A code is
printed by "cageserverd invite", works once, and expires. Where there was a key
for the server, the new one takes its place.`
	c.Example = "cagefs join cage1nfxgk3dpo5xs4ifi…"
	asJSON := c.Flags.Bool("json", false, "one object on one line")
	c.Run = func(ctx context.Context, args []string, std cli.Std) error {
		if err := c.NArgs(args, 1, 1); err != nil {
			return err
		}
		code, err := auth.ParseCode(args[0])
		if err != nil {
			return err
		}
		dir, err := auth.DefaultKeyringDir()
		if err != nil {
			return err
		}
		j, err := remote.Join(ctx, remote.Options{Keys: auth.OpenKeyring(dir), Software: cli.Software("cagefs")}, code)
		if err != nil {
			return err
		}
		if *asJSON {
			return cli.JSON(std.Out, joined{
				Server: code.Server, Addr: j.Addr, Name: j.Name, ReadOnly: j.ReadOnly, TrustIDs: j.Trusted, Exports: append([]string{}, j.Exports...),
			})
		}
		return printJoined(std.Out, j)
	}
	return c
}

// joined is what join --json prints.
type joined struct {
	Server   auth.Fingerprint `json:"server"`
	Addr     string           `json:"addr"`
	Name     string           `json:"name"` // of this client, at the server
	ReadOnly bool             `json:"read_only"`
	TrustIDs bool             `json:"trust_ids"`
	Exports  []string         `json:"exports"`
}

func printJoined(w io.Writer, j remote.Joined) error {
	how := ""
	if j.ReadOnly {
		how = ", read-only"
	}
	_, err := fmt.Fprintf(w, "joined %s as %s%s\nexports  %s\n", j.Addr, cli.Printable(j.Name), how, cli.Printable(strings.Join(j.Exports, " ")))
	if err == nil && len(j.Exports) > 0 {
		_, err = fmt.Fprintf(w, "mount    cagefs mount %s:/%s MOUNTPOINT\n", sourceHost(j.Addr), cli.Printable(j.Exports[0]))
	}
	return err
}

// sourceHost is an address as the first part of a source.
func sourceHost(addr string) string {
	if host, port, err := net.SplitHostPort(addr); err == nil && port == cli.DefaultPort {
		return strings.TrimSuffix(net.JoinHostPort(host, ""), ":")
	}
	return addr
}

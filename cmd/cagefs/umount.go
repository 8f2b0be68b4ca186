package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"cagefs.dev/cage/cmd/internal/cli"
	"cagefs.dev/cage/cmd/internal/control"
	"cagefs.dev/cage/remote/status"
)

func newUmount() *cli.Command {
	c := cli.New("umount", "MOUNTPOINT", "deliver what is left and unmount")
	c.Long = `Delivers all changes to the server, unmounts, and returns when the mount's
process is gone. If something cannot be delivered, or the mount is in use, it
says so and the mount stays. The mount of a process that died is detached.`
	c.Example = "cagefs umount /mnt/data"
	c.Run = func(ctx context.Context, args []string, std cli.Std) error {
		if err := c.NArgs(args, 1, 1); err != nil {
			return err
		}
		return umount(ctx, args[0], std)
	}
	return c
}

func umount(ctx context.Context, mountpoint string, std cli.Std) error {
	m, err := control.At(mountpoint)
	if err != nil {
		return err
	}
	c, err := control.Dial(ctx, m)
	if errors.Is(err, status.Unreachable) && dead(m.Point) {
		if err := detach(m.Point); err != nil {
			return err
		}
		return status.Newf(status.LostSession, "", mountpoint, "the mount's process had died: detached what was left of it; what it had not delivered is lost")
	}
	if err != nil {
		return err
	}
	defer c.Close()
	return c.Umount(ctx)
}

// deadWait is how long a mount has to say that nobody serves it; the kernel
// says so at once.
const deadWait = 2 * time.Second

// dead reports whether the process of a mount is gone. One that merely does not
// answer is not dead: the question is then left behind, to end with this process.
func dead(mountpoint string) bool {
	answer := make(chan error, 1)
	go func() {
		var st unix.Statfs_t
		answer <- unix.Statfs(mountpoint, &st)
	}()
	select {
	case err := <-answer:
		return errors.Is(err, unix.ENOTCONN) || errors.Is(err, unix.ECONNABORTED)
	case <-time.After(deadWait):
		return false
	}
}

// detach takes a mount out of the tree, in use or not.
func detach(mountpoint string) error {
	if os.Geteuid() == 0 {
		return status.Wrap(unix.Unmount(mountpoint, unix.MNT_DETACH|unix.UMOUNT_NOFOLLOW), "detach", mountpoint)
	}
	out, err := exec.Command("fusermount3", "-u", "-z", "--", mountpoint).CombinedOutput()
	if err != nil {
		return fmt.Errorf("detach %s: %s (%w)", mountpoint, strings.TrimSpace(string(out)), err)
	}
	return nil
}

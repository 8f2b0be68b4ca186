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
	c := cli.New("umount", "MOUNTPOINT [--force]", "deliver what is left and unmount")
	c.Long = `Delivers all changes to the server, unmounts, and returns when the mount's
process is gone. If something cannot be delivered, or the mount is in use, it
says so and the mount stays. The mount of a process that died is detached.

With --force the mount ends within 15 seconds whatever stands in its way: a
server that does not answer, a process of the mount that does not, files in use.
What programs had written and could not be delivered by then is left in a file
(exit code 9, and a line that says how to hand it over), and lost only where the
process had to be killed. Programs that use files of the mount get errors.`
	c.Example = "cagefs umount /mnt/data"
	force := c.Flags.Bool("force", false, "end the mount although changes are not delivered, or files are in use")
	c.Run = func(ctx context.Context, args []string, std cli.Std) error {
		if err := c.NArgs(args, 1, 1); err != nil {
			return err
		}
		if *force {
			return forceUmount(ctx, args[0])
		}
		return umount(ctx, args[0])
	}
	return c
}

func umount(ctx context.Context, mountpoint string) error {
	m, err := control.At(mountpoint)
	if err != nil {
		return err
	}
	c, err := control.Dial(ctx, m)
	if errors.Is(err, status.Unreachable) && dead(m.Point) {
		return detachDead(mountpoint, m.Point)
	}
	if err != nil {
		return err
	}
	defer c.Close()
	return c.Umount(ctx)
}

func detachDead(mountpoint, point string) error {
	if err := detach(point); err != nil {
		return err
	}
	return status.Newf(status.LostSession, "", mountpoint, "the mount's process had died: detached what was left of it; what it had not delivered is lost")
}

// Steps of forceUmount, and how long each may take: together less than 15 s.
const (
	forceOrder  = 5 * time.Second // to deliver and unmount in order
	forceStatus = time.Second     // to say what is not delivered
	forceEnd    = 2 * time.Second // to end when told so, twice, and when killed
)

// forceUmount ends a mount in any case: status.LostSession where something was lost with it.
func forceUmount(ctx context.Context, mountpoint string) error {
	m, err := control.At(mountpoint)
	if err != nil {
		return err
	}
	c, err := control.Dial(ctx, m)
	switch {
	case errors.Is(err, status.Unreachable) && dead(m.Point):
		return detachDead(mountpoint, m.Point)
	case errors.Is(err, status.Unreachable):
		if err := detach(m.Point); err != nil {
			return err
		}
		return status.Newf(status.LostSession, "", mountpoint, "detached, but its process cannot be reached, which may not have delivered everything")
	case err != nil:
		return err
	}
	defer c.Close()
	inOrder, cancel := context.WithTimeout(ctx, forceOrder)
	defer cancel()
	if err := c.Umount(inOrder); err == nil || ctx.Err() != nil || !there(m) {
		return err
	}
	owed := owing(ctx, m)
	if err := end(ctx, c); err != nil {
		return err
	}
	if there(m) {
		if err := detach(m.Point); err != nil {
			return err
		}
	}
	kept := keptOf(m.Point, c.PID())
	switch {
	case owed == "" && kept == "":
		return nil
	case kept == "":
		owed = "lost, as it could not be delivered: " + owed
	default:
		owed = "not delivered: " + owed + "; what programs had written is " + kept
	}
	return status.Newf(status.LostSession, "", mountpoint, "unmounted by force: %s", owed)
}

// there reports whether a mount is still in the tree.
func there(m control.Mount) bool {
	now, err := control.At(m.Point)
	return err == nil && now.Dev == m.Dev
}

// owing says what a mount has not delivered, "" if nothing.
func owing(ctx context.Context, m control.Mount) string {
	ctx, cancel := context.WithTimeout(ctx, forceStatus)
	defer cancel()
	var s control.Status
	c, err := control.Dial(ctx, m)
	if err == nil {
		defer c.Close()
		s, err = c.Status(ctx)
	}
	switch {
	case err != nil:
		return "what its process had, which did not answer"
	case s.Unapplied > 0:
		changes := "changes"
		if s.Unapplied == 1 {
			changes = "change"
		}
		return fmt.Sprintf("%d %s, %d bytes of data%s", s.Unapplied, changes, s.Bytes, ofFiles(s.Source))
	}
	return ""
}

// ofFiles names the files whose data are not delivered, "" if there are none.
func ofFiles(s control.Source) string {
	var names []string
	for _, o := range s.Owed {
		names = append(names, fileName(o.File))
	}
	if s.MoreOwed > 0 {
		names = append(names, fmt.Sprintf("%d more files", s.MoreOwed))
	}
	switch last := len(names) - 1; last {
	case -1:
		return ""
	case 0:
		return " of " + names[0]
	default:
		return " of " + strings.Join(names[:last], ", ") + " and " + names[last]
	}
}

// end makes a mount's process end: it detaches the mount and says goodbye to its
// servers when it is told to, does not wait for them when told again, and has no say at last.
func end(ctx context.Context, c *control.Client) (err error) {
	for _, s := range []unix.Signal{unix.SIGTERM, unix.SIGTERM, unix.SIGKILL} {
		if err := c.Signal(s); err != nil {
			return err
		}
		brief, cancel := context.WithTimeout(ctx, forceEnd)
		err = c.Ended(brief)
		cancel()
		if err == nil || ctx.Err() != nil {
			return err
		}
	}
	return err
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

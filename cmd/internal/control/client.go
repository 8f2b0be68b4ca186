package control

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"slices"
	"time"

	"golang.org/x/sys/unix"

	"cagefs.dev/cage/remote/status"
)

// Client talks to a running mount. Not safe for concurrent use.
type Client struct {
	link
	fd int // pidfd of the mount's process, -1 if there is none to be had
}

// link is the client's end of a socket.
type link struct {
	// Set at construction.
	c   *net.UnixConn
	in  *bufio.Scanner
	pid int
}

// maxReply is more than any reply takes: a server's list of sessions is the longest.
const maxReply = 16 << 20

// connect connects to a socket whose process is this user's, or root's, or
// anybody's if this is root.
func connect(ctx context.Context, path string) (link, error) {
	var d net.Dialer
	conn, err := d.DialContext(ctx, "unix", path)
	if err != nil {
		return link{}, err
	}
	c := conn.(*net.UnixConn)
	cred, err := peer(c)
	if err == nil && os.Geteuid() != 0 && cred.Uid != 0 && int(cred.Uid) != os.Geteuid() {
		err = status.New(status.Access, "control socket", path)
	}
	if err != nil {
		c.Close()
		return link{}, err
	}
	in := bufio.NewScanner(c)
	in.Buffer(nil, maxReply)
	return link{c: c, in: in, pid: int(cred.Pid)}, nil
}

// Dial connects to the process of a mount: status.Unreachable if none answers
// (it died, or is another user's), so that the mount is dead for the caller.
func Dial(ctx context.Context, m Mount) (*Client, error) {
	var last error = os.ErrNotExist
	for _, path := range socketPaths(m) {
		l, err := connect(ctx, path)
		if err != nil {
			if !errors.Is(err, os.ErrNotExist) {
				last = err
			}
			continue
		}
		fd, err := unix.PidfdOpen(l.pid, 0)
		if err != nil {
			fd = -1
		}
		return &Client{link: l, fd: fd}, nil
	}
	if errors.Is(last, os.ErrPermission) {
		return nil, status.Newf(status.Access, "", m.Point, "the mount belongs to another user")
	}
	return nil, status.Newf(status.Unreachable, "", m.Point, "the mount's process does not answer: it is gone, or another user's")
}

// PID is the process at the other end.
func (c *link) PID() int { return c.pid }

// Close ends the connection and what is being asked.
func (c *Client) Close() {
	c.c.Close()
	if c.fd >= 0 {
		unix.Close(c.fd)
	}
}

// Where tells what the mount shows at a path: status.Usage for the root of
// several sources, NotFound where there is none.
func (c *Client) Where(ctx context.Context, path string) (Where, error) {
	r, err := c.call(ctx, request{Op: opWhere, Path: path})
	if err != nil {
		return Where{}, err
	}
	if r.Where == nil {
		return Where{}, errNoAnswer
	}
	return *r.Where, nil
}

// Status tells how the mount is.
func (c *Client) Status(ctx context.Context) (Status, error) {
	r, err := c.call(ctx, request{Op: opStatus})
	if err != nil {
		return Status{}, err
	}
	if r.Status == nil {
		return Status{}, errNoAnswer
	}
	return *r.Status, nil
}

// Stats returns counters.
func (c *Client) Stats(ctx context.Context) (Stats, error) {
	r, err := c.call(ctx, request{Op: opStats})
	if err != nil {
		return Stats{}, err
	}
	if r.Stats == nil {
		return Stats{}, errNoAnswer
	}
	return *r.Stats, nil
}

// Sync returns when everything changed so far in the source that a path belongs
// to is durable on its server; "": in all of them.
func (c *Client) Sync(ctx context.Context, path string) error {
	_, err := c.call(ctx, request{Op: opSync, Path: path})
	return err
}

// Umount returns when all is delivered, the mount is gone and so is its
// process. On an error the mount is still there.
func (c *Client) Umount(ctx context.Context) error {
	if _, err := c.call(ctx, request{Op: opUmount}); err != nil {
		return err
	}
	if c.fd < 0 {
		// Without a pidfd the end of the connection is the last that is seen of it.
		c.in.Scan()
		return nil
	}
	return c.Ended(ctx)
}

// Signal sends a signal to the mount's process: status.Unsupported if the kernel
// cannot say for sure which that is.
func (c *Client) Signal(s unix.Signal) error {
	if c.fd < 0 {
		return status.New(status.Unsupported, "signal", fmt.Sprint(c.pid))
	}
	if err := unix.PidfdSendSignal(c.fd, s, nil, 0); err != nil && !errors.Is(err, unix.ESRCH) {
		return status.Wrap(err, "signal", fmt.Sprint(c.pid))
	}
	return nil
}

// Ended returns when the process has ended, or ctx has.
func (c *Client) Ended(ctx context.Context) error {
	for {
		n, err := unix.Poll([]unix.PollFd{{Fd: int32(c.fd), Events: unix.POLLIN}}, 100)
		switch {
		case n > 0:
			return nil
		case ctx.Err() != nil:
			return status.Wrap(ctx.Err(), "wait for the end of process", fmt.Sprint(c.pid))
		case err != nil && !errors.Is(err, unix.EINTR):
			return status.Wrap(err, "wait for the end of process", fmt.Sprint(c.pid))
		}
	}
}

var errNoAnswer = status.Newf(status.Unreachable, "", "", "the process ended before it answered")

func (c *link) call(ctx context.Context, q request) (reply, error) {
	stop := context.AfterFunc(ctx, func() { c.c.SetDeadline(time.Unix(1, 0)) })
	defer stop()
	b, err := json.Marshal(q)
	if err != nil {
		return reply{}, err
	}
	if _, err := c.c.Write(append(b, '\n')); err != nil {
		return reply{}, gone(ctx)
	}
	if !c.in.Scan() {
		return reply{}, gone(ctx)
	}
	var r reply
	if err := json.Unmarshal(c.in.Bytes(), &r); err != nil {
		return reply{}, status.Wrap(err, "control socket", q.Op)
	}
	if r.Error != nil {
		return reply{}, status.Newf(status.Code(r.Error.Code), "", "", "%s", r.Error.Text)
	}
	return r, nil
}

// gone is why a call got no answer.
func gone(ctx context.Context) error {
	if err := ctx.Err(); err != nil {
		return status.Wrap(err, "", "")
	}
	return errNoAnswer
}

// socketPaths are the places at which a mount's socket may be, the caller's own first.
func socketPaths(m Mount) []string {
	var out []string
	for _, dir := range []string{Dir(), dirOf(os.Geteuid()), dirOf(m.uid)} {
		if p := socketPath(dir, m.Dev); !slices.Contains(out, p) {
			out = append(out, p)
		}
	}
	return out
}

func socketPath(dir, dev string) string { return filepath.Join(dir, "mount-"+dev+".sock") }

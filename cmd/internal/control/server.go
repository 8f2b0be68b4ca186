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
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"cagefs.dev/cage/remote/status"
)

// Handler is a mount as its socket shows it. The methods may be called
// concurrently; ctx ends when the client goes away.
type Handler interface {
	// Where tells what is shown at a path below the root of the mount's file system.
	Where(path string) (Where, error)
	Status() Status
	Stats() Stats
	// Sync returns when everything that was changed so far, in the source that a
	// path belongs to or (path "") in all, is durable on the server.
	Sync(ctx context.Context, path string) error
	// Umount delivers everything and unmounts; after nil the process ends soon.
	Umount(ctx context.Context) error
}

// Server is a listening socket.
type Server struct {
	// Set at construction.
	l      *net.UnixListener
	answer func(context.Context, request) reply
	slots  chan struct{} // one for each connection
	cancel context.CancelFunc
	done   sync.WaitGroup
}

// maxConns is how many connections a socket has at a time; further ones wait.
const maxConns = 64

// Dir is where the sockets of this user's mounts are: $XDG_RUNTIME_DIR/cage if
// that is the user's own directory; /run/cage for root; else /run/user/UID/cage
// or a directory of the user's own below that of temporary files.
func Dir() string {
	uid := os.Geteuid()
	if dir := os.Getenv("XDG_RUNTIME_DIR"); filepath.IsAbs(dir) && owned(dir, uid) {
		return filepath.Join(dir, "cage")
	}
	return dirOf(uid)
}

// dirOf is Dir of a user without regard to the environment.
func dirOf(uid int) string {
	if uid == 0 {
		return "/run/cage"
	}
	if dir := fmt.Sprintf("/run/user/%d", uid); owned(dir, uid) {
		return filepath.Join(dir, "cage")
	}
	return filepath.Join(os.TempDir(), fmt.Sprintf("cage-%d", uid))
}

// Listen opens the socket of the mount with a device number and serves it until
// Close. A socket that an earlier mount left there is replaced.
func Listen(ctx context.Context, dev string, h Handler) (*Server, error) {
	dir := Dir()
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, status.Wrap(err, "control socket", dir)
	}
	if !owned(dir, os.Geteuid()) {
		return nil, status.Newf(status.Access, "control socket", dir, "the directory belongs to somebody else or is open to others")
	}
	return listen(ctx, socketPath(dir, dev), func(ctx context.Context, q request) reply { return answerMount(ctx, h, q) })
}

// listen opens a socket and serves it until Close. One that is there is replaced.
func listen(ctx context.Context, path string, answer func(context.Context, request) reply) (*Server, error) {
	if most := len(unix.RawSockaddrUnix{}.Path) - 1; len(path) > most {
		return nil, status.Newf(status.NameTooLong, "control socket", path, "%d bytes, a socket's path has at most %d", len(path), most)
	}
	if err := os.Remove(path); err != nil && !errors.Is(err, os.ErrNotExist) {
		return nil, status.Wrap(err, "control socket", path)
	}
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: path, Net: "unix"})
	if err != nil {
		return nil, status.Wrap(err, "control socket", path)
	}
	if err := os.Chmod(path, 0o600); err != nil {
		l.Close()
		return nil, status.Wrap(err, "control socket", path)
	}
	ctx, cancel := context.WithCancel(ctx)
	s := &Server{l: l, answer: answer, slots: make(chan struct{}, maxConns), cancel: cancel}
	s.done.Go(func() { s.accept(ctx) })
	return s, nil
}

// owned reports whether a directory is a user's own and nobody else writes to it.
func owned(dir string, uid int) bool {
	var st unix.Stat_t
	return unix.Lstat(dir, &st) == nil && st.Mode&unix.S_IFMT == unix.S_IFDIR && st.Mode&0o022 == 0 &&
		int(st.Uid) == uid
}

// Close removes the socket, cancels what runs and waits for its end. It must
// not be called from a Handler's method.
func (s *Server) Close() {
	s.l.Close()
	s.cancel()
	s.done.Wait()
}

func (s *Server) accept(ctx context.Context) {
	for {
		c, err := s.l.AcceptUnix()
		if err != nil {
			return
		}
		select {
		case s.slots <- struct{}{}:
		case <-ctx.Done():
			c.Close()
			return
		}
		s.done.Go(func() {
			defer func() { <-s.slots }()
			defer c.Close()
			if admitted(c) {
				s.serve(ctx, c)
			}
		})
	}
}

// admitted reports whether the peer is this user or root.
func admitted(c *net.UnixConn) bool {
	cred, err := peer(c)
	return err == nil && (cred.Uid == 0 || int(cred.Uid) == os.Geteuid())
}

// peer returns the process at the other end.
func peer(c *net.UnixConn) (*unix.Ucred, error) {
	raw, err := c.SyscallConn()
	if err != nil {
		return nil, err
	}
	var cred *unix.Ucred
	var optErr error
	err = raw.Control(func(fd uintptr) {
		cred, optErr = unix.GetsockoptUcred(int(fd), unix.SOL_SOCKET, unix.SO_PEERCRED)
	})
	return cred, errors.Join(err, optErr)
}

// answerTime is how long a client may take to take an answer.
const answerTime = time.Second

// serve answers a connection's requests one after the other. A goroutine reads
// ahead, so that a client that goes away is noticed while its request runs.
func (s *Server) serve(ctx context.Context, c *net.UnixConn) {
	ctx, cancel := context.WithCancel(ctx)
	requests := make(chan request)
	var reader sync.WaitGroup
	reader.Go(func() {
		defer cancel()
		defer close(requests)
		lines := bufio.NewScanner(c)
		for lines.Scan() {
			var q request
			if json.Unmarshal(lines.Bytes(), &q) != nil {
				return
			}
			select {
			case requests <- q:
			case <-ctx.Done():
				return
			}
		}
	})
	// Close ends the reading only: a request that runs still gets its answer.
	stop := context.AfterFunc(ctx, func() { c.SetReadDeadline(time.Unix(1, 0)) })
	defer func() {
		stop()
		cancel()
		c.Close()
		reader.Wait()
	}()
	out := json.NewEncoder(c)
	for q := range requests {
		r := s.answer(ctx, q)
		c.SetWriteDeadline(time.Now().Add(answerTime))
		if out.Encode(r) != nil {
			return
		}
	}
}

func answerMount(ctx context.Context, h Handler, q request) reply {
	switch q.Op {
	case opWhere:
		w, err := h.Where(q.Path)
		if err != nil {
			return result(err)
		}
		return reply{Where: &w}
	case opStatus:
		st := h.Status()
		return reply{Status: &st}
	case opStats:
		st := h.Stats()
		return reply{Stats: &st}
	case opSync:
		return result(h.Sync(ctx, q.Path))
	case opUmount:
		return result(h.Umount(ctx))
	}
	return unknown(q)
}

func unknown(q request) reply {
	return result(status.Newf(status.Unsupported, "", "", "unknown request %q", q.Op))
}

func result(err error) reply {
	if err == nil {
		return reply{}
	}
	return reply{Error: &failed{Code: uint16(status.Of(err)), Text: err.Error()}}
}

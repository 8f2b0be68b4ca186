package serverd

import (
	"errors"
	"net"
	"strconv"

	"golang.org/x/sys/unix"

	"cagefs.dev/cage/remote/status"
)

// portTries is how often a free run of ports is looked for when the caller leaves the choice.
const portTries = 64

// listenAll binds the main port and n data ports directly above it. Port 0
// means any free run of ports.
func listenAll(addr string, n int) (lns []net.Listener, err error) {
	host, port, err := net.SplitHostPort(addr)
	if err != nil {
		return nil, status.Newf(status.Usage, "listen", addr, "the address is not HOST:PORT: %w", err)
	}
	if _, err := strconv.ParseUint(port, 10, 16); err != nil {
		return nil, status.Newf(status.Usage, "listen", addr, "%q is no port", port)
	}
	if n < 0 || n > maxDataPorts {
		return nil, status.Newf(status.Usage, "listen", addr, "%d data ports; 0 to %d are possible", n, maxDataPorts)
	}
	tries := 1
	if port == "0" {
		tries = portTries
	}
	for range tries {
		if lns, err = listenRun(host, addr, n); err == nil || !errors.Is(err, unix.EADDRINUSE) {
			break
		}
	}
	return lns, err
}

// maxDataPorts is the largest number of data ports.
const maxDataPorts = 64

func listenRun(host, addr string, n int) (lns []net.Listener, err error) {
	defer func() {
		if err != nil {
			closeAll(lns)
			lns = nil
		}
	}()
	for i := range n + 1 {
		at := addr
		if i > 0 {
			port := portOf(lns[0]) + i
			if port > 65535 {
				return lns, status.Newf(status.Usage, "listen", addr, "no room for %d data ports above port %d: %w", n, portOf(lns[0]), unix.EADDRINUSE)
			}
			at = net.JoinHostPort(host, strconv.Itoa(port))
		}
		ln, err := net.Listen("tcp", at)
		if err != nil {
			return lns, listenError(at, i, err)
		}
		lns = append(lns, ln)
	}
	return lns, nil
}

func listenError(at string, i int, err error) error {
	code := status.Of(err)
	what := "the main port"
	if i > 0 {
		what = "data port " + strconv.Itoa(i)
	}
	switch {
	case errors.Is(err, unix.EADDRINUSE):
		return status.Newf(status.Busy, "listen", at, "%s is in use by another program: %w", what, unix.EADDRINUSE)
	case errors.Is(err, unix.EACCES):
		code = status.Access
	}
	return status.Newf(code, "listen", at, "%s: %w", what, err)
}

func portOf(ln net.Listener) int { return ln.Addr().(*net.TCPAddr).Port }

func closeAll(lns []net.Listener) {
	for _, ln := range lns {
		ln.Close()
	}
}

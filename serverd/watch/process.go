package watch

import (
	"bytes"
	"os"
	"strconv"
	"time"

	"golang.org/x/sys/unix"
)

// processes finds out who processes are. It belongs to one goroutine.
type processes struct {
	known map[int32]Process
	at    time.Time // when known was begun
	buf   []byte
}

// Processes are looked at again after procAge, and kept up to maxProcs.
const (
	procAge  = 200 * time.Millisecond
	maxProcs = 1024
)

func newProcesses() *processes {
	return &processes{known: map[int32]Process{}, buf: make([]byte, 8<<10)}
}

// find describes a process as it is now, or was a moment ago.
func (p *processes) find(pid int32) Process {
	if pid <= 0 {
		return Process{}
	}
	if now := time.Now(); now.Sub(p.at) > procAge || len(p.known) >= maxProcs {
		clear(p.known)
		p.at = now
	}
	if q, ok := p.known[pid]; ok {
		return q
	}
	q := Process{PID: uint32(pid)}
	if n, err := p.read("/proc/" + strconv.Itoa(int(pid)) + "/status"); err == nil {
		parseStatus(p.buf[:n], &q)
	}
	p.known[pid] = q
	return q
}

func (p *processes) read(path string) (int, error) {
	fd, err := unix.Open(path, unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return 0, err
	}
	defer unix.Close(fd)
	return unix.Read(fd, p.buf)
}

// parseStatus reads /proc/PID/status.
func parseStatus(b []byte, p *Process) {
	for line := range bytes.Lines(b) {
		key, value, ok := bytes.Cut(line, []byte(":"))
		if !ok {
			continue
		}
		f := bytes.Fields(value)
		num := func(i int) uint32 {
			if i >= len(f) {
				return 0
			}
			n, _ := strconv.ParseUint(string(f[i]), 10, 32)
			return uint32(n)
		}
		switch string(key) {
		case "Name":
			p.Comm = string(bytes.TrimSpace(value))
		case "Uid":
			p.UID = num(1) // effective
		case "Gid":
			p.GID = num(1)
		case "NSpgid":
			p.PGID = num(0)
			return
		}
	}
}

// fdPath is the path of an open directory as this process sees it.
func fdPath(fd int) (string, error) { return os.Readlink("/proc/self/fd/" + strconv.Itoa(fd)) }

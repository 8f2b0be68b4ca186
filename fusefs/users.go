package fusefs

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"cagefs.dev/cage/remote/status"
)

// maxUsers is how many processes a message names.
const maxUsers = 5

// inUse is the error for a mount that cannot be detached: status.Busy, with the processes that are known.
func inUse(point string) error {
	users := usersOf(point)
	if len(users) == 0 {
		return status.Newf(status.Busy, "umount", point, "files of the mount are open, or it is somebody's current directory")
	}
	more := ""
	if len(users) > maxUsers {
		users, more = users[:maxUsers], " and others"
	}
	return status.Newf(status.Busy, "umount", point, "in use by %s%s", strings.Join(users, ", "), more)
}

// usersWait is how long usersOf looks, maxLookers at how many processes at a time: so many may hold it up.
const (
	usersWait  = time.Second
	maxLookers = 16
)

// usersOf names the processes that have a file open or mapped at or below a
// mountpoint, or their current or root directory there; of other users' processes
// only root sees that. It looks at nothing but /proc, so that a mount whose server
// is gone does not delay it. Even /proc waits for a process that is starting a program
// while it closes a file of a mount that nobody serves: who is not seen then is not named.
func usersOf(point string) (names []string) {
	procs, _ := filepath.Glob("/proc/[0-9]*")
	found, next := make(chan string, len(procs)), make(chan string, len(procs))
	for _, p := range procs {
		next <- p
	}
	close(next)
	var lookers sync.WaitGroup
	for range maxLookers {
		lookers.Go(func() {
			for p := range next {
				if uses(p, point) {
					comm, _ := os.ReadFile(p + "/comm")
					found <- fmt.Sprintf("%s (%s)", bytes.TrimSpace(comm), filepath.Base(p))
				}
			}
		})
	}
	go func() {
		lookers.Wait()
		close(found)
	}()
	enough := time.NewTimer(usersWait)
	defer enough.Stop()
	for {
		select {
		case name, ok := <-found:
			if !ok {
				return names
			}
			names = append(names, name)
		case <-enough.C:
			return names
		}
	}
}

func uses(proc, point string) bool {
	links := []string{proc + "/cwd", proc + "/root"}
	fds, _ := os.ReadDir(proc + "/fd")
	for _, fd := range fds {
		links = append(links, proc+"/fd/"+fd.Name())
	}
	for _, l := range links {
		if path, err := os.Readlink(l); err == nil && below(path, point) {
			return true
		}
	}
	maps, _ := os.ReadFile(proc + "/maps")
	for line := range strings.Lines(string(maps)) {
		if i := strings.IndexByte(line, '/'); i >= 0 && below(strings.TrimSuffix(line[i:], "\n"), point) {
			return true
		}
	}
	return false
}

func below(path, dir string) bool {
	rest, ok := strings.CutPrefix(path, dir)
	return ok && (rest == "" || rest[0] == '/' || rest == " (deleted)")
}

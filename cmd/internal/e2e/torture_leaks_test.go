package e2e

import (
	"encoding/json"
	"fmt"
	"maps"
	"os"
	"regexp"
	"slices"
	"strings"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"cagefs.dev/cage/cmd/internal/control"
)

// footprint is what a process has.
type footprint struct{ fds, threads int }

// footprints returns those of the mounts, and of the server.
func (h *torment) footprints() (out []footprint) {
	for _, m := range h.mounts {
		out = append(out, h.footprint(h.mountPID(m)))
	}
	return append(out, h.footprint(h.server.cmd.Process.Pid))
}

// footprint counts all descriptors but those of the export's files: the server keeps some open, as a cache.
func (h *torment) footprint(pid int) (f footprint) {
	dir := fmt.Sprintf("/proc/%d/", pid)
	fds, err := os.ReadDir(dir + "fd")
	require.NoError(h.t, err)
	for _, fd := range fds {
		to, err := os.Readlink(dir + "fd/" + fd.Name())
		if err == nil && !strings.HasPrefix(to, h.export) { // else it is closed
			f.fds++
		}
	}
	threads, err := os.ReadDir(dir + "task")
	require.NoError(h.t, err)
	f.threads = len(threads)
	return f
}

// fewMore is how many descriptors a process may have more than before, and manyMore how many threads or goroutines of a kind.
const (
	fewMore  = 12
	manyMore = 16
)

// nothingLeft checks that nothing has piled up in the mounts and the server, and nothing stays behind in the server.
func (h *torment) nothingLeft(before []footprint) {
	t := h.t
	var now []footprint
	assert.Eventually(t, func() bool {
		now = h.footprints()
		for i, f := range now {
			if f.fds > before[i].fds+fewMore || f.threads > before[i].threads+manyMore {
				return false
			}
		}
		return true
	}, 10*time.Second, 50*time.Millisecond, "there are more descriptors or threads than before")
	t.Logf("descriptors and threads of the mounts and the server: %v, before: %v", now, before)
	h.leasesAgree()

	fresh := h.mount(h.server)
	_, err := os.ReadDir(fresh + "/shared")
	require.NoError(t, err)
	for _, m := range h.mounts[1:] {
		h.umount(m)
	}
	require.Len(t, h.sessions(), 2, "sessions of mounts that are gone")
	worn := h.mounts[0]
	h.noMore("mount", h.quitMount(worn), h.quitMount(fresh))

	old := h.quitServer()
	h.server.start()
	h.noMore("server", old, h.quitServer())
	h.server.start()
	h.server.stop()
	require.NoError(t, h.verify(h.export))
}

func (h *torment) sessions() (out []control.Session) {
	for line := range strings.Lines(h.server.admin("sessions", "--json")) {
		var s control.Session
		require.NoError(h.t, json.Unmarshal([]byte(line), &s))
		out = append(out, s)
	}
	return out
}

// leasesAgree checks that mounts in which nobody does anything have nothing open and no
// locks, and that the server knows of no lease of which they do not.
func (h *torment) leasesAgree() {
	var theirs, ours, open, locks int
	assert.Eventually(h.t, func() bool {
		theirs, ours, open, locks = 0, 0, 0, 0
		for _, s := range h.sessions() {
			theirs, open, locks = theirs+s.Leases, open+s.OpenFiles, locks+s.Locks
		}
		for _, m := range h.mounts {
			var st control.Status
			require.NoError(h.t, json.Unmarshal([]byte(h.run("cagefs", "status", "--json", m)), &st))
			ours += st.Leases
		}
		return theirs == ours && open == 0 && locks == 0
	}, 10*time.Second, 100*time.Millisecond, "the server and its mounts disagree about who has what")
	h.t.Logf("the server has given %d leases, the mounts have %d; %d open files, %d locks", theirs, ours, open, locks)
}

// quitMount ends a mount, and returns its goroutines.
func (h *torment) quitMount(point string) map[string]int {
	pid := h.mountPID(point)
	out := h.quit(pid, point+".log", func() {
		require.Eventually(h.t, func() bool { return unix.Kill(pid, 0) == unix.ESRCH }, 10*time.Second, 10*time.Millisecond)
	})
	require.NoError(h.t, unix.Unmount(point, unix.MNT_DETACH))
	return out
}

// quitServer ends the server, and returns its goroutines.
func (h *torment) quitServer() map[string]int {
	cmd := h.server.cmd
	h.server.cmd = nil
	return h.quit(cmd.Process.Pid, h.server.log, func() { cmd.Wait() })
}

var createdBy = regexp.MustCompile(`(?m)^created by (.*?)( in goroutine \d+)?$`)

// quit ends a process with SIGQUIT, and counts the goroutines that it then tells in its log, by what has started them.
func (h *torment) quit(pid int, log string, ended func()) map[string]int {
	st, err := os.Stat(log)
	require.NoError(h.t, err)
	require.NoError(h.t, unix.Kill(pid, unix.SIGQUIT))
	ended()
	said, err := os.ReadFile(log)
	require.NoError(h.t, err)
	out := map[string]int{}
	for _, m := range createdBy.FindAllStringSubmatch(string(said[st.Size():]), -1) {
		out[m[1]]++
	}
	require.NotEmpty(h.t, out)
	return out
}

// noMore checks that a process had no more goroutines of any kind than one that was just started.
func (h *torment) noMore(what string, worn, fresh map[string]int) {
	sum := func(m map[string]int) (n int) {
		for _, k := range m {
			n += k
		}
		return n
	}
	h.t.Logf("goroutines of a %s: %d, of a new one %d", what, sum(worn), sum(fresh))
	for _, kind := range slices.Sorted(maps.Keys(worn)) {
		if worn[kind] > fresh[kind]+manyMore {
			h.t.Errorf("a %s had %d goroutines of %s, a new one has %d", what, worn[kind], kind, fresh[kind])
		}
	}
}

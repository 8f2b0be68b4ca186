package e2e

import (
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"
)

// verdict compares what is there with what the workers know.
func (h *torment) verdict() {
	t := h.t
	for i := range h.mounts {
		h.back(i)
	}
	unclear, all := 0, 0
	for _, w := range h.workers {
		for _, f := range w.files {
			all++
			if !f.now().certain() {
				unclear++
			}
			f.confirm(len(f.pending)) // all is at the server: nobody sees anything else from now on
		}
	}
	t.Logf("%d names of files, of %d of which what was not synced may be lost", all, unclear)
	for _, dir := range append([]string{h.export}, h.mounts...) {
		for _, w := range h.workers {
			w.compare(t, filepath.Join(dir, w.own), dir != h.export)
		}
		h.linesIn(dir)
		h.sharedIn(filepath.Join(dir, "shared"), dir != h.export)
	}
}

// compare checks a worker's directory. Links can be counted in mounts only: on the server's disk
// history has some as well.
func (w *tortured) compare(t testing.TB, dir string, links bool) {
	names := map[*ownFile]int{}
	for _, f := range w.files {
		names[f]++
	}
	files, dirs, syms := 0, 0, 0
	require.NoError(t, filepath.WalkDir(dir, func(path string, e os.DirEntry, err error) error {
		if err != nil || path == dir {
			return err
		}
		name, _ := filepath.Rel(dir, path)
		info, err := e.Info()
		if err != nil {
			return err
		}
		switch {
		case e.IsDir():
			dirs++
			require.True(t, w.dirs[name], "%s is a directory of %s that is not there", name, w.name)
		case info.Mode()&os.ModeSymlink != 0:
			syms++
			target, err := os.Readlink(path)
			require.NoError(t, err)
			require.Equal(t, w.syms[name], target, "symlink %s of %s", name, w.name)
		default:
			files++
			f := w.files[name]
			require.NotNil(t, f, "%s is a file of %s that is not there", name, w.name)
			require.Equal(t, f.mode, info.Mode().Perm(), "%s of %s", name, w.name)
			if links {
				require.EqualValues(t, names[f], info.Sys().(*syscall.Stat_t).Nlink, "names of %s of %s in %s", name, w.name, dir)
			}
			got, err := os.ReadFile(path)
			require.NoError(t, err)
			if !f.settle(got) {
				t.Errorf("%s of %s in %s has %s, not %s", name, w.name, dir, brief(got), f.now())
			}
		}
		return nil
	}))
	require.Equal(t, []int{len(w.files), len(w.dirs), len(w.syms)}, []int{files, dirs, syms}, "files, directories and symlinks of %s in %s", w.name, dir)
}

// linesIn checks the logs to which the workers, and the processes that were killed, appended.
func (h *torment) linesIn(dir string) {
	t := h.t
	logs := []string{"shared/log"}
	for i := range h.mounts {
		logs = append(logs, victims(i)+"/log")
	}
	times, killed := map[string]int{}, 0
	for _, name := range logs {
		b, err := os.ReadFile(filepath.Join(dir, name))
		require.NoError(t, err)
		for line := range strings.Lines(string(b)) {
			line = strings.TrimSuffix(line, "\n")
			require.True(t, h.shared.certain[line] || h.shared.maybe[line], "%s has %q, which nobody wrote", name, line)
			if times[line]++; times[line] > 1 {
				t.Errorf("%s has %s %d times", name, line, times[line])
			}
			if strings.HasPrefix(line, "victim") {
				killed++
			}
		}
	}
	for line := range h.shared.certain {
		if times[line] != 1 {
			t.Errorf("the log lacks %s, which was synced", line)
		}
	}
	t.Logf("%s: %d lines that were synced; of %d others %d, %d of them of processes that were killed",
		filepath.Base(dir), len(h.shared.certain), len(h.shared.maybe), len(times)-len(h.shared.certain), killed)
}

// sharedIn checks what else all have done.
func (h *torment) sharedIn(dir string, links bool) {
	t := h.t
	b, err := os.ReadFile(filepath.Join(dir, "counter"))
	require.NoError(t, err)
	n, err := strconv.Atoi(strings.TrimSpace(string(b)))
	require.NoError(t, err)
	if sure := len(h.shared.counts); n < sure || n > sure+h.shared.unsure {
		t.Errorf("the counter is %d after %d increments, and %d that failed", n, sure, h.shared.unsure)
	}
	var st unix.Stat_t
	require.NoError(t, unix.Lstat(filepath.Join(dir, "token"), &st))
	if links && !h.shared.vague["token"] {
		require.EqualValues(t, 1+h.shared.links, st.Nlink, "links of the token in %s", dir)
	}
	for name, n := range h.shared.names {
		if h.shared.vague[name] {
			continue
		}
		there := 0
		if unix.Lstat(filepath.Join(dir, name), &st) == nil {
			there = 1
		}
		if n != there {
			t.Errorf("%s was made %d times more than it was removed, and is there %d times, in %s", name, n, there, dir)
		}
	}
	t.Logf("counted to %d, %d failed; %d names that all make and remove; what became of %d is not known", n, h.shared.unsure, len(h.shared.names), len(h.shared.vague))
}

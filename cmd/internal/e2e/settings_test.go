package e2e

import (
	"bytes"
	"encoding/json"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"
)

// TestMemorySettings mounts with little memory of each kind, and holds the mount to it.
func TestMemorySettings(t *testing.T) {
	needRoot(t)
	for _, policy := range []string{"lfu", "lru", "s3fifo"} {
		t.Run(policy, func(t *testing.T) {
			t.Parallel()
			l := newLab(t, "")
			s := l.newServer(l.mkdir("export"))
			s.start()
			m := l.mount(s, "-o", "pages=40,page_size=16K,dirty_size=1M,soft=2s,cache_policy="+policy)
			stats := func() (st struct {
				PageSize    int64  `json:"page_size"`
				Policy      string `json:"policy"`
				Pages       int64  `json:"pages"`
				Bytes       int64  `json:"bytes"`
				Budget      int64  `json:"budget"`
				Evictions   int64  `json:"evictions"`
				Dirty       int64  `json:"dirty_bytes"`
				DirtyBudget int64  `json:"dirty_budget"`
			}) {
				t.Helper()
				require.NoError(t, json.Unmarshal([]byte(l.run("cagefs", "stats", "--json", m)), &st))
				return st
			}
			data := bytes.Repeat([]byte("0123456789abcdef"), 4<<20/16)
			path := filepath.Join(m, "f")
			require.NoError(t, os.WriteFile(path, data, 0o644))
			l.run("cagefs", "sync", m)
			f, err := os.OpenFile(path, os.O_RDWR, 0)
			require.NoError(t, err)
			for range 2 { // what the kernel keeps is not asked for again
				require.NoError(t, unix.Fadvise(int(f.Fd()), 0, 0, unix.FADV_DONTNEED))
				require.Equal(t, string(data), readFile(t, path))
			}
			st := stats()
			// What a read has been given is let go shortly after.
			require.Eventually(t, func() bool { st = stats(); return st.Bytes <= st.Budget }, 5*time.Second, time.Millisecond)
			require.EqualValues(t, 16<<10, st.PageSize)
			require.Equal(t, policy, st.Policy)
			require.EqualValues(t, 40*16<<10, st.Budget)
			require.NotZero(t, st.Pages)
			require.NotZero(t, st.Evictions)
			require.EqualValues(t, 1<<20, st.DirtyBudget)
			require.Zero(t, st.Dirty)

			s.kill()
			written := 0
			for err == nil && written < 4<<20 {
				var n int
				n, err = f.Write(data[:64<<10])
				written += n
			}
			require.ErrorIs(t, err, unix.ETIMEDOUT, "%d bytes were taken", written)
			require.NotZero(t, written)
			require.EqualValues(t, written, stats().Dirty)
			require.LessOrEqual(t, written, 1<<20)
			require.NoError(t, f.Close())
			s.start()
			require.Eventually(t, func() bool { return l.state(m).State == "online" }, 10*time.Second, 10*time.Millisecond)
			l.umount(m)
			require.Equal(t, string(data), readFile(t, l.path("export", "f")))
		})
	}
}

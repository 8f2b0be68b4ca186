package e2e

import (
	"encoding/json"
	"fmt"
	"os"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// TestStatusNamesTheUndelivered: what the server does not have yet is named by the paths that the files have now,
// and everything is on the server only when it is.
func TestStatusNamesTheUndelivered(t *testing.T) {
	needRoot(t)
	t.Parallel()
	l := newLab(t, "")
	s := l.newServer(l.mkdir("export"))
	s.start()
	p := newProxy(t, s.addr)
	m := l.through(s, p)
	require.NoError(t, os.MkdirAll(m+"/old/sub", 0o755))
	const files, named = 12, 10
	var open [files]*os.File
	for i := range open {
		f, err := os.Create(fmt.Sprintf("%s/old/sub/%02d", m, i))
		require.NoError(t, err)
		defer f.Close()
		open[i] = f
	}
	require.NoError(t, os.Rename(m+"/old", m+"/new"))
	require.NoError(t, os.Rename(m+"/new/sub/00", m+"/new/00 \xff"))
	require.NoError(t, open[1].Close())
	f, err := os.OpenFile(m+"/new/sub/01", os.O_WRONLY, 0)
	require.NoError(t, err)
	defer f.Close()
	open[1] = f

	type status struct {
		Delivered bool `json:"everything_on_server"`
		Bytes     int  `json:"unapplied_bytes"`
		Owed      []struct {
			Path  string `json:"path"`
			B64   []byte `json:"path_base64"`
			Bytes int    `json:"bytes"`
		} `json:"undelivered"`
		More int `json:"more_undelivered"`
	}
	ask := func() (st status) {
		require.NoError(t, json.Unmarshal([]byte(l.run("cagefs", "status", "--json", m)), &st))
		return st
	}
	written, once, stop := make(chan error, 1), make(chan struct{}), make(chan struct{})
	go func() { // all the time, so that it keeps the write leases
		written <- func() error {
			for i := 0; ; i++ {
				if i == 1 {
					close(once)
				}
				for _, f := range open {
					if _, err := f.WriteAt([]byte("x"), 0); err != nil {
						return err
					}
				}
				select {
				case <-stop:
					return nil
				case <-time.After(10 * time.Millisecond):
				}
			}
		}()
	}()
	select {
	case <-once:
	case err := <-written:
		require.NoError(t, err)
	}
	p.freeze()
	var st status
	require.Eventually(t, func() bool { st = ask(); return len(st.Owed)+st.More == files }, 10*time.Second, 50*time.Millisecond)
	close(stop)
	require.NoError(t, <-written)
	require.False(t, st.Delivered)
	require.Len(t, st.Owed, named)
	sum, names := 0, map[string]bool{}
	for _, o := range st.Owed {
		require.Positive(t, o.Bytes)
		sum += o.Bytes
		if o.B64 != nil {
			o.Path = string(o.B64)
		}
		names[o.Path] = true
	}
	require.Less(t, sum, st.Bytes, "there are two files more")
	want := []string{"new/00 \xff"}
	for i := 1; i < files; i++ {
		want = append(want, fmt.Sprintf("new/sub/%02d", i))
	}
	for name := range names {
		require.Contains(t, want, name)
	}
	require.Len(t, names, named)

	p.thaw()
	require.Eventually(t, func() bool { return ask().Delivered }, 10*time.Second, 20*time.Millisecond)
	require.Contains(t, l.run("cagefs", "status", m), "everything is on the server: yes\n")
	require.Empty(t, ask().Owed)
}

package serverd

import (
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"cagefs.dev/cage/remote/auth"
	"cagefs.dev/cage/remote/proto"
	"cagefs.dev/cage/remote/status"
	"cagefs.dev/cage/remote/wire"
)

// What one client may make the server keep: results, open files and lists of a directory
// (bytes of heap each, generously), and what the journal keeps in memory of its table, which
// is the same for all clients together.
const (
	resultBytes = 256
	openBytes   = 1024
	entryBytes  = 512
	tableBytes  = 32 << 20
)

func heap() int64 {
	var m runtime.MemStats
	runtime.GC()
	runtime.GC() // what finalizers and pools held for one
	runtime.ReadMemStats(&m)
	return int64(m.HeapAlloc)
}

// A client lists a huge directory many times at once, now and as it was, opens all that is in
// it, and takes no notice of results. While it is there the server keeps what it
// may, afterwards nothing.
func TestHugeDirectoryAndFullTables(t *testing.T) {
	short, long := 20_000, 200_000
	n, _ := storms(t, short, long)
	g := newGround(t, Options{})
	huge := g.at("x/free/huge")
	require.NoError(t, os.Mkdir(huge, 0o755))
	for i := range n {
		require.NoError(t, os.WriteFile(filepath.Join(huge, fmt.Sprint("file-", i)), nil, 0o644))
	}
	moment := g.do(&proto.Label{Name: "full"}).LSN
	dir, err := g.root.resolve("free/huge")
	require.NoError(t, err)
	keys := g.stranger("foe", auth.ClientKey{Exports: []string{"x"}})
	start := func() *peer {
		p, _ := g.with(keys, wire.HelloReq{})
		p.tls.NetConn().SetDeadline(time.Time{})
		return p
	}
	list := func(p *peer, at proto.LSN, each func(proto.DirEntry)) error {
		h := header()
		h.At = at
		for cookie, eof := uint64(0), false; !eof; {
			var rep wire.ReadDirRep
			if err := p.call(wire.OpReadDir, &wire.ReadDirReq{ReqHeader: h, ID: dir, Cookie: cookie, Max: wire.MaxEntries}, &rep); err != nil {
				return err
			}
			for _, e := range rep.Entries {
				each(e)
				cookie = e.Cookie
			}
			eof = rep.EOF
		}
		return nil
	}
	require.NoError(t, list(start(), 0, func(proto.DirEntry) {})) // what the journal learns of the files is its table's
	g.ended(1)
	before, goroutines := heap(), runtime.NumGoroutine()

	p := start()
	for seq := range proto.Seq(8192 + 10) {
		_, err := p.change(seq+1, &proto.Remove{Dir: dir, Name: "none"})
		if seq < 8192 {
			require.Equal(t, status.NotFound, codeOf(err))
		} else {
			require.Equal(t, status.Invalid, codeOf(err), "so many results and no more")
		}
	}
	opens := 0
	require.NoError(t, list(start(), 0, func(e proto.DirEntry) {
		err := p.call(wire.OpOpen, &wire.OpenReq{ReqHeader: header(), ID: e.Attr.ID, Flags: wire.OpenRead}, &wire.AttrRep{})
		if opens == maxOpens {
			require.Equal(t, status.TooManyFiles, codeOf(err))
			return
		}
		require.NoError(t, err)
		opens++
	}))
	require.Equal(t, min(n, maxOpens), opens)
	var wg sync.WaitGroup
	for i := range 16 {
		at := proto.LSN(0)
		if i%4 == 0 {
			at = moment
		}
		p, seen := start(), 0
		wg.Go(func() {
			if err := list(p, at, func(proto.DirEntry) { seen++ }); err != nil || seen != n {
				t.Errorf("%d entries of %d: %v", seen, n, err)
			}
		})
	}
	began := time.Now()
	_, err = g.root.read(g.files["closed/file"], 0, 100)
	require.NoError(t, err)
	t.Logf("an honest read meanwhile took %v", time.Since(began))
	wg.Wait()
	grown, may := heap()-before, int64(8192*resultBytes+opens*openBytes+n*entryBytes+tableBytes)
	t.Logf("%d files: %d KiB more while the client is there, it may be %d KiB", n, grown>>10, may>>10)
	require.Less(t, grown, may)

	g.ended(1)
	for _, sess := range g.sessionList() {
		if sess.key.Name == "foe" {
			g.end(sess, "test", false)
		}
	}
	grown, may = heap()-before, int64(n*entryBytes+tableBytes) // the past state stays for the next who asks
	t.Logf("%d KiB more when it has gone, it may be %d KiB", grown>>10, may>>10)
	require.Less(t, grown, may)
	require.Eventually(t, func() bool { return runtime.NumGoroutine() <= goroutines+2 }, patience, 10*time.Millisecond)
	require.NotContains(t, g.log.String(), `"panic"`)
}

// ended ends all connections but n, those of the honest client.
func (g *ground) ended(n int) {
	g.t.Helper()
	for _, c := range g.connections() {
		if c.key.Name == "foe" {
			c.abort(errTakenOver)
		}
	}
	require.Eventually(g.t, func() bool { return len(g.connections()) <= n }, patience, time.Millisecond)
}

package e2e

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// TestProgramSQLite lets four processes write to one database, each row in a
// transaction with the sum that it belongs to. A writer and the server are killed
// meanwhile. No transaction that sqlite3 said was committed may be missing, none
// may be there by half.
func TestProgramSQLite(t *testing.T) {
	for _, mode := range []string{"delete", "wal"} {
		t.Run(mode, func(t *testing.T) {
			w := newWorkshop(t, map[string]string{"sqlite3": "sqlite3"})
			db := filepath.Join(w.ground, "db")
			sql := func(text string) string {
				t.Helper()
				return strings.TrimSpace(w.ask(task{args: []string{"sqlite3", "-bail", db, "PRAGMA busy_timeout=60000", text}}))
			}
			sql("PRAGMA journal_mode=" + mode + "; CREATE TABLE t(w INTEGER, n INTEGER, b BLOB, PRIMARY KEY(w, n)); CREATE TABLE sum(w INTEGER PRIMARY KEY, n INTEGER);" +
				"INSERT INTO sum VALUES(0,0),(1,0),(2,0),(3,0)")
			rows := full(30, 1000)
			writers := make([]*sqlWriter, 4)
			for i := range writers {
				writers[i] = startSQLWriter(t, db, i, rows)
			}
			reach := func(n int) {
				t.Helper()
				require.Eventually(t, func() bool {
					for _, wr := range writers {
						if int(wr.told.Load()) < n && !wr.over() {
							return false
						}
					}
					return true
				}, limit(), 5*time.Millisecond, "the writers hang")
			}
			reach(rows / 5)
			writers[0].cancel()
			writers[0].wait()
			reach(rows / 3)
			w.srv.kill()
			w.srv.start()
			reach(rows / 2)
			w.srv.kill()
			w.srv.start()

			whole := func() {
				t.Helper()
				require.Equal(t, "60000\nok", sql("PRAGMA integrity_check"))
				for i, wr := range writers {
					var n, sum, least, most, bytes int
					_, err := fmt.Sscanf(strings.NewReplacer("60000\n", "", "|", " ").Replace(
						sql(fmt.Sprintf("SELECT count(*), (SELECT n FROM sum WHERE w=%d), ifnull(min(n), 1), ifnull(max(n), 0), ifnull(sum(length(b)), 0) FROM t WHERE w=%d", i, i))),
						"%d %d %d %d %d", &n, &sum, &least, &most, &bytes)
					require.NoError(t, err)
					told := int(wr.told.Load())
					require.GreaterOrEqual(t, n, told, "writer %d was told of more than there is", i)
					require.LessOrEqual(t, n, told+1, "writer %d", i)
					require.Equal(t, []int{1, n, n * (n + 1) / 2, n * 3000}, []int{least, most, sum, bytes}, "writer %d", i)
					if i > 0 {
						require.Equal(t, rows, n, "writer %d", i)
					}
				}
			}
			for _, wr := range writers[1:] {
				require.NoError(t, wr.wait(), "%s", wr.errs)
			}
			whole()
			w.finish(whole)
		})
	}
}

// sqlWriter is a sqlite3 that writes rows.
type sqlWriter struct {
	told   atomic.Int64 // the last row of which it said that it is committed
	cancel func()       // kills it
	wait   func() error // until it has ended
	over   func() bool
	errs   *strings.Builder // what it said to stderr, when it has ended
}

// startSQLWriter starts a sqlite3 that writes rows 1 to n.
func startSQLWriter(t *testing.T, db string, w, n int) *sqlWriter {
	t.Helper()
	var text strings.Builder
	text.WriteString("PRAGMA busy_timeout=60000; PRAGMA synchronous=full;\n")
	for i := 1; i <= n; i++ {
		fmt.Fprintf(&text, "BEGIN IMMEDIATE; INSERT INTO t VALUES(%d,%d,randomblob(3000)); UPDATE sum SET n=n+%d WHERE w=%d; COMMIT; SELECT 'row', %d;\n", w, i, i, w, i)
	}
	ctx, cancel := context.WithTimeout(context.Background(), limit())
	wr := &sqlWriter{cancel: cancel, errs: &strings.Builder{}}
	cmd := task{args: []string{"stdbuf", "-oL", "sqlite3", "-bail", db}, dir: os.TempDir(), stdin: strings.NewReader(text.String())}.command(ctx)
	cmd.Stderr = wr.errs
	r, pipe := io.Pipe()
	cmd.Stdout = pipe
	require.NoError(t, cmd.Start())
	ended := make(chan struct{})
	var err error
	go func() {
		defer close(ended)
		var read sync.WaitGroup
		read.Go(func() {
			for lines := bufio.NewScanner(r); lines.Scan(); {
				var i int64
				if _, err := fmt.Sscanf(lines.Text(), "row|%d", &i); err == nil {
					wr.told.Store(i)
				}
			}
		})
		err = cmd.Wait()
		pipe.Close()
		read.Wait()
	}()
	wr.wait = func() error { <-ended; return err }
	wr.over = func() bool {
		select {
		case <-ended:
			return true
		default:
			return false
		}
	}
	t.Cleanup(func() { cancel(); wr.wait() })
	return wr
}

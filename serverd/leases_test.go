package serverd

import (
	"context"
	"testing"
	"time"

	"github.com/rs/zerolog"
	"github.com/stretchr/testify/require"

	"cagefs.dev/cage/journal"
	"cagefs.dev/cage/journal/vfs"
	"cagefs.dev/cage/remote/proto"
)

// The journal tells of what programs of the server did with its own lock held, and
// may do so while a server begins to use its leases: neither waits for the other.
func TestLeasesBeginWhileTheJournalTells(t *testing.T) {
	l := NewLeases()
	j, _, err := journal.Open(t.Context(), journal.Options{FS: vfs.NewMem(1), Leases: l, Changed: l.Changed, Log: zerolog.Nop()})
	require.NoError(t, err)
	t.Cleanup(func() { j.Close() })
	done := make(chan struct{})
	s := &journal.Submission{Change: &proto.Change{Op: &proto.Rollback{}}}
	_, err = j.Transact(context.Background(), s, journal.KindRollback, "", true, func(*journal.Tx) error { // holds the journal's lock
		begun := make(chan struct{})
		go func() {
			defer close(begun)
			l.begin(j, time.Second, func(proto.SessionID) {}, zerolog.Nop())
		}()
		for end := time.Now().Add(100 * time.Millisecond); time.Now().Before(end) && l.mu.TryLock(); time.Sleep(time.Millisecond) {
			l.mu.Unlock() // until it has the leases' lock, if it takes that first
		}
		told := make(chan struct{})
		go func() {
			defer close(told)
			l.Changed(journal.Applied{ID: 7})
		}()
		select {
		case <-told:
		case <-time.After(5 * time.Second):
			t.Error("the journal waits for who waits for the journal")
		}
		go func() {
			<-begun
			<-told
			close(done)
		}()
		return nil
	})
	require.NoError(t, err)
	<-done
}

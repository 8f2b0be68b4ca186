package fusefs

import (
	"fmt"
	"sync"
	"testing"
	"testing/synctest"

	"github.com/stretchr/testify/require"

	"cagefs.dev/cage/pagecache"
	"cagefs.dev/cage/remote/lease"
	"cagefs.dev/cage/remote/proto"
)

func TestNewsOfOneFileJoinWhileItIsTold(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		gate := make(chan struct{})
		var mu sync.Mutex
		var told []news
		var running, most int
		d := newDispatcher(func(_ proto.FileID, n news) {
			mu.Lock()
			running++
			most = max(most, running)
			told = append(told, n)
			mu.Unlock()
			<-gate
			mu.Lock()
			running--
			mu.Unlock()
		}, func() {})
		d.put(7, news{data: true})
		synctest.Wait() // it is being told, and blocks
		older, newer := &lease.Recall{UpTo: proto.Gen{Counter: 1}}, &lease.Recall{UpTo: proto.Gen{Counter: 2}}
		d.put(7, news{recall: newer})
		d.put(7, news{failed: true})
		d.put(7, news{recall: older})
		synctest.Wait()
		require.Len(t, told, 1, "one file is told by one goroutine at a time")
		close(gate)
		synctest.Wait()
		d.close()
		require.Equal(t, 1, most)
		require.Equal(t, []news{{data: true}, {failed: true, recall: newer}}, told)
	})
}

func TestOtherFilesDoNotWait(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		gate, told := make(chan struct{}), make(chan proto.FileID, notifiers)
		d := newDispatcher(func(id proto.FileID, _ news) {
			if id == 1 {
				<-gate
			}
			told <- id
		}, func() {})
		d.put(1, news{})
		d.put(2, news{})
		require.Equal(t, proto.FileID(2), <-told)
		close(gate)
		require.Equal(t, proto.FileID(1), <-told)
		d.close()
	})
}

func TestTooMuchNewsInvalidatesEverything(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		gate := make(chan struct{})
		var mu sync.Mutex
		told, all := 0, 0
		d := newDispatcher(func(proto.FileID, news) {
			<-gate
			mu.Lock()
			defer mu.Unlock()
			told++
		}, func() {
			mu.Lock()
			defer mu.Unlock()
			all++
		})
		for id := range proto.FileID(notifiers) {
			d.put(id, news{})
		}
		synctest.Wait() // all goroutines are blocked
		for id := range proto.FileID(maxPending + 1) {
			d.put(1000+id, news{})
		}
		d.put(9999, news{}) // is in everything
		close(gate)
		synctest.Wait()
		d.everything()
		synctest.Wait()
		d.close()
		d.put(1, news{})
		d.everything()
		require.Equal(t, notifiers, told)
		require.Equal(t, 2, all)
	})
}

// fakeKernel writes down what it is told.
type fakeKernel struct{ said []string }

func (k *fakeKernel) attrs(node uint64) bool {
	k.said = append(k.said, fmt.Sprint("attrs ", node))
	return true
}
func (k *fakeKernel) data(node uint64) bool {
	k.said = append(k.said, fmt.Sprint("data ", node))
	return true
}
func (k *fakeKernel) hole(node uint64, off, n int64) {
	k.said = append(k.said, fmt.Sprint("hole ", node, off, n))
}
func (k *fakeKernel) epoch()        { k.said = append(k.said, "epoch") }
func (k *fakeKernel) expires() bool { return true }

func TestTell(t *testing.T) {
	for name, tc := range map[string]struct {
		id   proto.FileID
		news news
		want []string
	}{
		"attributes of a file":             {id: 5, want: []string{"attrs 5"}},
		"pages of a file":                  {id: 5, news: news{data: true}, want: []string{"data 5"}},
		"a failed write":                   {id: 5, news: news{failed: true}, want: []string{"data 5"}},
		"a directory has no pages":         {id: 9, news: news{data: true}, want: []string{"attrs 9"}},
		"the root has a number of its own": {id: 70, want: []string{"attrs 1"}},
		"unknown file":                     {id: 6, want: nil},
	} {
		t.Run(name, func(t *testing.T) {
			k := &fakeKernel{}
			tab, _ := newTestTable(70, 0)
			tab.remember(file(5, 1))
			tab.remember(&proto.Attr{ID: 9, Mode: proto.ModeDir})
			s := &fileSystem{inodes: tab, kernel: k, cache: pagecache.New(pagecache.Options{})}
			defer s.cache.Close()
			s.tell(tc.id, tc.news)
			require.Equal(t, tc.want, k.said)
			if tc.want == nil { // dropped from a full table, the kernel may know it
				tab.evicted.Store(true)
				s.tell(tc.id, tc.news)
				require.Equal(t, []string{"attrs 6"}, k.said)
				s.tell(100, tc.news) // no file of this number was ever seen
				require.Len(t, k.said, 1)
			}
		})
	}
}

package fusefs

import (
	"fmt"
	"sync"
	"testing"
	"testing/synctest"

	"github.com/stretchr/testify/require"

	"cagefs.dev/cage/pagecache"
	"cagefs.dev/cage/remote/proto"
)

func named(change proto.LSN, names ...string) (n news) {
	n.change = change
	for _, name := range names {
		n.add(name)
	}
	return n
}

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
		d.put(7, named(1, "a"))
		synctest.Wait() // it is being told, and blocks
		d.put(7, named(2, "b"))
		d.put(7, news{change: 5, data: true})
		d.put(7, named(4, "b", "c"))
		synctest.Wait()
		require.Len(t, told, 1, "one file is told by one goroutine at a time")
		close(gate)
		synctest.Wait()
		d.close()
		require.Equal(t, 1, most)
		require.Equal(t, []news{named(1, "a"), {change: 5, data: true, names: map[string]struct{}{"b": {}, "c": {}}}}, told)
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

func TestNamesAreBounded(t *testing.T) {
	var n news
	for i := range maxNames {
		n.add(fmt.Sprint(i))
	}
	n.add("0")
	require.False(t, n.allNames)
	n.add("one more")
	require.True(t, n.allNames)
	require.Len(t, n.names, maxNames)
}

// fakeKernel writes down what it is told.
type fakeKernel struct {
	epochs bool
	said   []string
}

func (k *fakeKernel) attrs(node uint64) { k.said = append(k.said, fmt.Sprint("attrs ", node)) }
func (k *fakeKernel) data(node uint64)  { k.said = append(k.said, fmt.Sprint("data ", node)) }
func (k *fakeKernel) hole(node uint64, off, n int64) {
	k.said = append(k.said, fmt.Sprint("hole ", node, off, n))
}
func (k *fakeKernel) entry(node uint64, name string) {
	k.said = append(k.said, fmt.Sprint("entry ", node, " ", name))
}
func (k *fakeKernel) expires() bool { return true }
func (k *fakeKernel) epoch() bool {
	k.said = append(k.said, "epoch")
	return k.epochs
}

func TestTell(t *testing.T) {
	many := make([]string, fewNames+1)
	for i := range many {
		many[i] = fmt.Sprint(i)
	}
	for name, tc := range map[string]struct {
		id     proto.FileID
		news   news
		epochs bool
		want   []string
		count  int // where the order is not fixed
	}{
		"attributes of a file":     {id: 5, news: news{}, want: []string{"attrs 5"}},
		"unknown file":             {id: 6, news: news{}, want: nil},
		"a name":                   {id: 9, news: named(1, "x"), epochs: true, want: []string{"attrs 9", "entry 9 x"}},
		"the root has its own":     {id: 70, news: named(1, "x"), want: []string{"attrs 1", "entry 1 x"}},
		"unknown names":            {id: 9, news: news{allNames: true}, epochs: true, want: []string{"attrs 9", "epoch"}},
		"many names":               {id: 9, news: named(1, many...), epochs: true, want: []string{"attrs 9", "epoch"}},
		"many names, older kernel": {id: 9, news: named(1, many...), count: 2 + len(many)},
	} {
		t.Run(name, func(t *testing.T) {
			k := &fakeKernel{epochs: tc.epochs}
			tab, _ := newTestTable(70, 0)
			tab.remember(file(5, 1))
			tab.remember(&proto.Attr{ID: 9, Mode: proto.ModeDir})
			s := &fileSystem{inodes: tab, kernel: k, cache: pagecache.New(pagecache.Options{})}
			defer s.cache.Close()
			s.tell(tc.id, tc.news)
			if name == "unknown file" { // dropped from a full table, the kernel may know it
				tab.evicted.Store(true)
				s.tell(tc.id, tc.news)
				require.Equal(t, []string{"attrs 6"}, k.said)
				s.tell(100, tc.news) // no file of this number was ever seen
				k.said = k.said[:0]
				s.tell(tc.id, news{data: true, names: map[string]struct{}{"x": {}}})
				require.Equal(t, []string{"data 6", "entry 6 x"}, k.said)
				return
			}
			if tc.count != 0 {
				require.Len(t, k.said, tc.count)
				return
			}
			require.Equal(t, tc.want, k.said)
		})
	}
}

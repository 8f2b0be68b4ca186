package serverd

import (
	"sync"

	"cagefs.dev/cage/journal"
	"cagefs.dev/cage/remote/proto"
	"cagefs.dev/cage/remote/wire"
)

// Feed carries what a journal applied to the sessions that want to hear of it.
// Its Publish is the journal's Options.Changed.
type Feed struct {
	mu   sync.RWMutex
	subs map[*outq]proto.SessionID // guarded by mu
	own  func(journal.Applied)     // guarded by mu; nil: of nobody
}

// NewFeed makes a feed that nobody listens to yet.
func NewFeed() *Feed { return &Feed{subs: make(map[*outq]proto.SessionID)} }

// Publish hands a change to all sessions but the one that made it. It does not
// block: a queue that is full ends its connection instead.
func (f *Feed) Publish(a journal.Applied) {
	f.mu.RLock()
	defer f.mu.RUnlock()
	if f.own != nil {
		f.own(a)
	}
	for q, id := range f.subs {
		if id == a.Session && id != 0 {
			continue
		}
		for _, c := range changesOf(a) {
			q.push(c)
		}
	}
}

// tap makes the server itself hear of changes, as well.
func (f *Feed) tap(own func(journal.Applied)) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.own = own
}

// subscribe makes the queue of a session's connection hear of changes by others.
func (f *Feed) subscribe(q *outq, id proto.SessionID) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.subs[q] = id
}

// unsubscribe returns when no Publish touches the queue any more.
func (f *Feed) unsubscribe(q *outq) {
	f.mu.Lock()
	defer f.mu.Unlock()
	delete(f.subs, q)
}

// changesOf tells a change file by file, as the wire does.
func changesOf(a journal.Applied) []wire.Changed {
	out := make([]wire.Changed, 0, 3)
	if a.ID != 0 && !a.Made {
		out = append(out, wire.Changed{ID: a.ID, Change: a.LSN, Data: a.Data})
	}
	if a.Dir != 0 {
		out = append(out, wire.Changed{ID: a.Dir, Change: a.LSN, Names: nameList(a.Name)})
	}
	if a.NewDir != 0 {
		out = append(out, wire.Changed{ID: a.NewDir, Change: a.LSN, Names: nameList(a.NewName)})
	}
	return out
}

func nameList(name string) []string {
	if name == "" {
		return nil
	}
	return []string{name}
}

// maxPushNames is how many names of a directory one push tells; more are told
// as "unknown which".
const maxPushNames = 64

// merge adds a later change of the same file to one that is not sent yet. An
// empty list of names means any, so it swallows the others; but a change of a
// directory's attributes alone (no names, from its own ID) also says "any",
// which costs its listeners a lookup too many and never one too few.
func merge(old *wire.Changed, c wire.Changed) {
	old.Change = max(old.Change, c.Change)
	old.Data = old.Data || c.Data
	if len(old.Names) == 0 || len(c.Names) == 0 || len(old.Names)+len(c.Names) > maxPushNames {
		old.Names = nil
		return
	}
	old.Names = append(old.Names, c.Names...)
}

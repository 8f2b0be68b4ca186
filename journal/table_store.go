package journal

import (
	"encoding/binary"

	"github.com/rs/zerolog"

	"cagefs.dev/cage/journal/runs"
	"cagefs.dev/cage/remote/proto"
	"cagefs.dev/cage/remote/status"
)

// open gives the table its runs and what has changed since them. With spill,
// changes go to disk when they take more than limit; close ends that.
func (t *table) open(store *runs.Store, since *changes, limit int64, spill bool, log zerolog.Logger) {
	t.store, t.dirty, t.limit = store, since, limit
	if spill {
		t.spiller.Go(func() { t.spill(log) })
	} else {
		t.limit = 1 << 62
	}
}

// close ends the writing of runs and closes them. Nothing else is running.
func (t *table) close() {
	if t.store == nil {
		return
	}
	t.mu.Lock()
	t.stopped = true
	t.wake.Broadcast()
	t.mu.Unlock()
	t.spiller.Wait()
	t.store.Close()
}

// fail notes why the table is not to be believed any more.
func (t *table) fail(err error) {
	err = status.Wrap(err, "read", "table of files")
	t.failed.CompareAndSwap(nil, &err)
}

// failure is why the table has failed, nil while it is sound.
func (t *table) failure() error {
	if err := t.failed.Load(); err != nil {
		return *err
	}
	return nil
}

// missing is the error for a file that was not found.
func (t *table) missing(id proto.FileID) error {
	if err := t.failure(); err != nil {
		return err
	}
	return stale(id)
}

// stored reads a node from the runs.
func (t *table) stored(v *runs.View, id proto.FileID) (node, bool) {
	b, ok, err := v.Get(nodeKey(id))
	var n node
	if err == nil && ok {
		n, err = decodeNode(id, b)
	}
	if err != nil {
		t.fail(err)
		return node{}, false
	}
	return n, ok
}

// link reads from the runs what file something leads to.
func (t *table) link(v *runs.View, key []byte) proto.FileID {
	b, ok, err := v.Get(key)
	if err == nil && ok {
		if id, n := binary.Uvarint(b); n == len(b) {
			return proto.FileID(id)
		}
		err = status.New(status.Damaged, "", "")
	}
	if err != nil {
		t.fail(err)
	}
	return 0
}

// warm reads what a change of these files needs, so that it need not wait for
// the disk while it holds mu.
func (t *table) warm(ids ...proto.FileID) {
	for _, id := range ids {
		if id != 0 {
			t.get(id)
		}
	}
}

// What is in memory. known is false where only the runs can tell.

func (t *table) changedLocked(id proto.FileID) (n *node, known bool) {
	if n, known = t.dirty.nodes[id]; !known && t.frozen != nil {
		n, known = t.frozen.nodes[id]
	}
	return n, known
}

func (t *table) kidChangedLocked(at place) (id proto.FileID, known bool) {
	if id, known = t.dirty.kids[at.dir][at.name]; !known && t.frozen != nil {
		id, known = t.frozen.kids[at.dir][at.name]
	}
	return id, known
}

func (t *table) inodeChangedLocked(ino uint64) (id proto.FileID, known bool) {
	if id, known = t.dirty.inodes[ino]; !known && t.frozen != nil {
		id, known = t.frozen.inodes[ino]
	}
	return id, known
}

// peekLocked returns a node that is not to be changed, nil if there is none.
func (t *table) peekLocked(id proto.FileID) *node {
	if n, known := t.changedLocked(id); known || id == 0 {
		return n
	}
	v := t.store.View()
	defer v.Release()
	if n, ok := t.stored(v, id); ok {
		return &n
	}
	return nil
}

// editLocked returns a node to be changed, which must exist.
func (t *table) editLocked(id proto.FileID) *node {
	if n := t.dirty.nodes[id]; n != nil {
		return n
	}
	n := &node{id: id}
	if old := t.peekLocked(id); old != nil { // nil only in a table that has just failed
		c := old.copy()
		n = &c
	}
	t.dirty.setNode(id, n)
	return n
}

func (t *table) kidLocked(at place) proto.FileID {
	if id, known := t.kidChangedLocked(at); known {
		return id
	}
	v := t.store.View()
	defer v.Release()
	return t.link(v, nameKey(at))
}

func (t *table) inodeLocked(ino uint64) proto.FileID {
	if id, known := t.inodeChangedLocked(ino); known {
		return id
	}
	v := t.store.View()
	defer v.Release()
	return t.link(v, key(keyInode, ino))
}

// kidOf is a name of a directory with its file.
type kidOf struct {
	at place
	id proto.FileID
}

// kidsLocked lists the names of a directory. Only of one that history gives up:
// it is read under mu.
func (t *table) kidsLocked(dir proto.FileID) (out []kidOf) {
	v := t.store.View()
	defer v.Release()
	newer := []runs.Sorted{t.dirty.kidsOf(dir)}
	if t.frozen != nil {
		newer = append(newer, t.frozen.kidsOf(dir))
	}
	err := v.Scan(key(keyName, uint64(dir)), key(keyName, uint64(dir)+1), func(e runs.Entry) bool {
		id, _ := binary.Uvarint(e.Value)
		out = append(out, kidOf{place{dir, string(e.Key[9:])}, proto.FileID(id)})
		return true
	}, newer...)
	if err != nil {
		t.fail(err)
	}
	return out
}

// scan calls f for the entries of one kind up to a number, in order, as they are
// now, until it returns false. No lock is held meanwhile.
func (t *table) scan(kind byte, below uint64, f func(number uint64, value []byte) bool) error {
	t.mu.RLock()
	newer := []runs.Sorted{t.dirty.entriesOf(kind)}
	if t.frozen != nil {
		newer = append(newer, t.frozen.entriesOf(kind))
	}
	v := t.store.View()
	t.mu.RUnlock()
	defer v.Release()
	err := v.Scan(key(kind, 0), key(kind, below), func(e runs.Entry) bool {
		return f(binary.BigEndian.Uint64(e.Key[1:]), e.Value)
	}, newer...)
	if err != nil {
		t.fail(err)
	}
	return t.failure()
}

// each calls f for all nodes as they are now, ascending, until it returns false.
// It takes memory for a few blocks of the disk, however many there are, and
// holds no lock while f runs. An error is that of a table which has failed.
func (t *table) each(f func(node) bool) error {
	return t.scan(keyNode, 1<<64-1, func(id uint64, value []byte) bool {
		n, err := decodeNode(proto.FileID(id), value)
		if err != nil {
			t.fail(err)
			return false
		}
		return f(n)
	})
}

// graveOf is a grave with the file that it holds.
type graveOf struct {
	lsn proto.LSN
	id  proto.FileID
}

// gravesBelow lists the graves of records below one.
func (t *table) gravesBelow(lsn proto.LSN) (out []graveOf, err error) {
	err = t.scan(keyGrave, uint64(lsn), func(g uint64, value []byte) bool {
		id, _ := binary.Uvarint(value)
		out = append(out, graveOf{proto.LSN(g), proto.FileID(id)})
		return true
	})
	return out, err
}

// snapshot is the table as it is now: runs, which the caller releases, and what
// has changed since them.
func (t *table) snapshot() (*runs.View, runs.Sorted) {
	t.mu.RLock()
	defer t.mu.RUnlock()
	since := t.dirty.entries()
	if t.frozen != nil { // they may be in the newest run by now, which does no harm
		since = runs.Overlay(since, t.frozen.entries())
	}
	return t.store.View(), since
}

// unlock ends a change. When the changes in memory take more than their limit
// they are frozen and go to disk as a run.
func (t *table) unlock() {
	t.freezeLocked()
	t.mu.Unlock()
}

func (t *table) freezeLocked() {
	if t.dirty.size >= t.limit && t.frozen == nil {
		t.frozen, t.dirty = t.dirty, newChanges()
		t.wake.Broadcast()
	}
}

// spill writes frozen changes as runs until the table is closed. It needs no
// lock but mu, so that whoever waits for it may hold all others.
func (t *table) spill(log zerolog.Logger) {
	t.mu.Lock()
	defer t.mu.Unlock()
	for {
		for !t.stopped && (t.frozen == nil || t.full || t.failure() != nil) {
			t.wake.Wait()
		}
		if t.stopped {
			return
		}
		c := t.frozen
		t.mu.Unlock()
		err := t.store.Add(c.entries())
		t.mu.Lock()
		switch {
		case err == nil:
			t.frozen = nil
			t.freezeLocked()
		case status.Full(err):
			t.full = true
			log.Warn().Err(err).Msg("no space for the table of files: no more files can be looked at that were never looked at before")
		default:
			t.fail(err)
		}
		t.wake.Broadcast()
	}
}

// retry writes what did not fit before: there may be space now.
func (t *table) retry() {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.full = false
	t.wake.Broadcast()
}

// room waits until the table can take in a new file: status.NoSpace when what
// is in memory is at its limit and does not fit on the disk.
func (t *table) room() error {
	t.mu.RLock()
	tight := t.tightLocked()
	t.mu.RUnlock()
	if !tight {
		return t.failure()
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	for t.tightLocked() && !t.full && !t.stopped && t.failure() == nil {
		t.wake.Wait()
	}
	if t.tightLocked() && t.full {
		return status.Newf(status.NoSpace, "", "", "the table of files does not fit on the disk")
	}
	return t.failure()
}

// lacking is the disk space in bytes that is missing for what did not fit.
func (t *table) lacking() int64 {
	t.mu.RLock()
	defer t.mu.RUnlock()
	if !t.full || t.frozen == nil {
		return 0
	}
	return int64(t.frozen.size + t.dirty.size)
}

func (t *table) tightLocked() bool { return t.frozen != nil && t.dirty.size >= 2*t.limit }

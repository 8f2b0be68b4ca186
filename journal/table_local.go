package journal

import (
	"slices"

	"cagefs.dev/cage/journal/record"
	"cagefs.dev/cage/remote/proto"
)

// What the table keeps for changes by processes of the server. Readers correct
// the table as soon as they see that a name leads elsewhere, so that they find
// what they look for; they cannot record it, as the record's place in the order
// is the planners' business. Until it is recorded, found says what records left there.

// correctingLocked is called before a reader corrects a name.
func (t *table) correctingLocked(at place) {
	if _, ok := t.found[at]; !ok {
		t.found[at] = t.kidLocked(at)
	}
}

// corrected lists the names that readers corrected.
func (t *table) corrected() []place {
	t.mu.RLock()
	defer t.mu.RUnlock()
	if len(t.found) == 0 {
		return nil
	}
	out := make([]place, 0, len(t.found))
	for at := range t.found {
		out = append(out, at)
	}
	return out
}

// isCorrected reports whether a reader has corrected a name.
func (t *table) isCorrected(at place) bool {
	t.mu.RLock()
	defer t.mu.RUnlock()
	_, ok := t.found[at]
	return ok
}

// settle makes a name lead to a file, 0 for none, as records left it and the disk
// has it: what readers corrected meanwhile is over.
func (t *table) settle(at place, id proto.FileID) {
	if !t.isCorrected(at) {
		return
	}
	t.warm(id, at.dir)
	t.mu.Lock()
	defer t.unlock()
	delete(t.found, at)
	if kid := t.kidLocked(at); kid != 0 && kid != id {
		t.unnameLocked(kid, at)
	}
	if t.peekLocked(id) != nil {
		t.nameLocked(id, at)
	}
}

// recorded returns the file that records left under a name, 0 for none that is known.
func (t *table) recorded(at place) proto.FileID {
	t.mu.RLock()
	id, ok := t.found[at]
	t.mu.RUnlock()
	if ok {
		return id
	}
	return t.kid(at)
}

// recordedNames lists the names that records left a file.
func (t *table) recordedNames(id proto.FileID) (out []place) {
	n, _ := t.get(id)
	for _, at := range n.names {
		if t.recorded(at) == id {
			out = append(out, at)
		}
	}
	t.mu.RLock()
	defer t.mu.RUnlock()
	for at, was := range t.found {
		if was == id && !slices.Contains(out, at) {
			out = append(out, at)
		}
	}
	return out
}

// children lists the names of a directory that records left and that have numbers.
func (t *table) children(dir proto.FileID) map[string]proto.FileID {
	t.mu.Lock()
	defer t.unlock()
	out := map[string]proto.FileID{}
	for _, k := range t.kidsLocked(dir) {
		out[k.at.name] = k.id
	}
	for at, id := range t.found {
		if at.dir != dir {
			continue
		}
		if delete(out, at.name); id != 0 {
			out[at.name] = id
		}
	}
	return out
}

// forgetGone forgets the files without name or grave, which processes of the
// server removed, that no record from oldest on concerns.
func (t *table) forgetGone(oldest proto.LSN) error {
	var gone []proto.FileID
	err := t.each(func(n node) bool {
		if len(n.names) == 0 && len(n.graves) == 0 && n.id != proto.RootID && n.change < oldest {
			gone = append(gone, n.id)
		}
		return true
	})
	for _, id := range gone {
		t.warm(id)
		t.mu.Lock()
		t.forgetLocked(id)
		t.unlock()
	}
	return err
}

// local reports whether a record says what a process of the server did.
func local(r *record.Record) bool { return r.Kind == record.Local || r.Flag&record.FlagLocal != 0 }

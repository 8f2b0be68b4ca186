package journal

import (
	"maps"
	"math"
	"slices"
	"sync"

	"cagefs.dev/cage/journal/record"
	"cagefs.dev/cage/journal/wal"
	"cagefs.dev/cage/remote/proto"
	"cagefs.dev/cage/remote/status"
)

// history is the index of the records that the log keeps: which of them concern
// a file or a directory. It holds numbers only; what a record says is read from
// the log. Records come in nearly in their order.
//
// Lists are never changed in place but at their end, so that what a reader was
// given stays as it is.
type history struct {
	log *wal.Log // set at construction

	mu     sync.Mutex // a leaf lock; guards all below
	files  map[proto.FileID]*fileHistory
	dirs   map[proto.FileID][]proto.LSN // that changed a directory's entries
	theirs map[proto.FileID]proto.LSN   // newest of what processes of the server did to a file or its entries
	labels map[string]label
	marks  map[uint32]int         // how many labels a user has
	dead   map[proto.LSN]struct{} // cancelled
	txns   map[proto.LSN]*txn     // by their Begin records; complete ones, and one that is coming in
	undos  []*txn                 // the undo and redo transactions among them, ascending
}

// fileHistory is what happened to a file, ascending.
type fileHistory struct {
	made  proto.LSN   // 0: before what is kept, or not by a record
	names []proto.LSN // that gave or took a name
	data  []proto.LSN // that changed content or attributes, with Local ones
	ours  proto.LSN   // newest of the makings and changes that no process of the server did
}

func newHistory(log *wal.Log) *history {
	return &history{log: log, files: map[proto.FileID]*fileHistory{}, dirs: map[proto.FileID][]proto.LSN{}, theirs: map[proto.FileID]proto.LSN{},
		labels: map[string]label{}, marks: map[uint32]int{}, dead: map[proto.LSN]struct{}{}, txns: map[proto.LSN]*txn{}}
}

// add enters a record that happened. Of a transaction, all come one after another.
func (h *history) add(r *record.Record) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if local(r) {
		for _, id := range []proto.FileID{r.ID, r.Victim, r.Dir, r.NewDir} {
			if id != 0 {
				h.theirs[id] = max(h.theirs[id], r.LSN)
			}
		}
	}
	switch r.Kind {
	case record.Make, record.Link, record.Restore, record.Remove, record.Rename:
		h.addNameLocked(r)
	case record.SetAttr, record.Truncate, record.Write, record.Allocate, record.SetXattr, record.Local:
		f := h.fileLocked(r.ID)
		f.data = insertLSN(f.data, r.LSN)
		f.note(r)
	case record.Label:
		h.dropLabelLocked(r.Name)
		h.labels[r.Name] = label{r.LSN, r.UID}
		h.marks[r.UID]++
	case record.Begin:
		h.txns[r.LSN] = newTxn(r)
	case record.Commit:
		h.commitLocked(r)
	}
}

func (h *history) addNameLocked(r *record.Record) {
	if r.Flag&record.FlagRecovered != 0 { // a stranger's name, which was never in the journal's tree
		return
	}
	for _, id := range []proto.FileID{r.ID, r.Victim} {
		if id != 0 {
			f := h.fileLocked(id)
			f.names = insertLSN(f.names, r.LSN)
		}
	}
	if r.Dir != 0 {
		h.dirs[r.Dir] = insertLSN(h.dirs[r.Dir], r.LSN)
	}
	if r.Kind == record.Rename && r.NewDir != r.Dir {
		h.dirs[r.NewDir] = insertLSN(h.dirs[r.NewDir], r.LSN)
	}
	if r.Kind == record.Make {
		f := h.fileLocked(r.ID)
		f.made = r.LSN
		f.note(r)
	}
}

func (f *fileHistory) note(r *record.Record) {
	if !local(r) {
		f.ours = max(f.ours, r.LSN)
	}
}

func (h *history) fileLocked(id proto.FileID) *fileHistory {
	f := h.files[id]
	if f == nil {
		f = &fileHistory{}
		h.files[id] = f
	}
	return f
}

func insertLSN(list []proto.LSN, lsn proto.LSN) []proto.LSN {
	if n := len(list); n == 0 || list[n-1] < lsn {
		return append(list, lsn)
	}
	i, ok := slices.BinarySearch(list, lsn)
	if ok {
		return list
	}
	return slices.Concat(list[:i], []proto.LSN{lsn}, list[i:])
}

// cancel takes a record back that never happened.
func (h *history) cancel(lsn proto.LSN) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.dead[lsn] = struct{}{}
	for name, l := range h.labels {
		if l.lsn == lsn {
			h.dropLabelLocked(name)
		}
	}
}

// cancelled reports whether a record was taken back.
func (h *history) cancelled(lsn proto.LSN) bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	_, dead := h.dead[lsn]
	return dead
}

// forget drops everything below a record, which the log has dropped.
func (h *history) forget(below proto.LSN) {
	h.mu.Lock()
	defer h.mu.Unlock()
	rest := func(list []proto.LSN) []proto.LSN {
		if len(list) == 0 || list[0] >= below {
			return list
		}
		return slices.Clone(after(list, below-1))
	}
	for id, f := range h.files {
		f.names, f.data = rest(f.names), rest(f.data)
		if f.made < below {
			f.made = 0
		}
		if len(f.names) == 0 && len(f.data) == 0 {
			delete(h.files, id)
		}
	}
	for id, list := range h.dirs {
		if list = rest(list); len(list) == 0 {
			delete(h.dirs, id)
		} else {
			h.dirs[id] = list
		}
	}
	maps.DeleteFunc(h.theirs, func(_ proto.FileID, lsn proto.LSN) bool { return lsn < below })
	for name, l := range h.labels {
		if l.lsn < below {
			h.dropLabelLocked(name)
		}
	}
	for lsn := range h.dead {
		if lsn < below {
			delete(h.dead, lsn)
		}
	}
	for lsn := range h.txns {
		if lsn < below {
			delete(h.txns, lsn)
		}
	}
	h.undos = slices.DeleteFunc(slices.Clone(h.undos), func(t *txn) bool { return t.begin < below })
}

// label returns the record of a label.
func (h *history) label(name string) (proto.LSN, bool) {
	h.mu.Lock()
	defer h.mu.Unlock()
	l, ok := h.labels[name]
	return l.lsn, ok
}

// label is a named moment, and the user whose it is.
type label struct {
	lsn proto.LSN
	uid uint32
}

// maxLabels is how many labels a user, but root, may have in the history that is
// kept: anybody may set some, whatever else he may not.
const maxLabels = 1024

// mayLabel reports whether a user has fewer labels than he may have.
func (h *history) mayLabel(uid uint32) bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	return uid == 0 || h.marks[uid] < maxLabels
}

func (h *history) dropLabelLocked(name string) {
	l, ok := h.labels[name]
	if !ok {
		return
	}
	delete(h.labels, name)
	if h.marks[l.uid]--; h.marks[l.uid] == 0 {
		delete(h.marks, l.uid)
	}
}

// after is the part of an ascending list above lsn.
func after(list []proto.LSN, lsn proto.LSN) []proto.LSN {
	i, _ := slices.BinarySearch(list, lsn+1)
	return list[i:]
}

// names, data and entries are the records above lsn that concern a file's names,
// its content and attributes, a directory's entries.
func (h *history) names(id proto.FileID, lsn proto.LSN) []proto.LSN {
	h.mu.Lock()
	defer h.mu.Unlock()
	if f := h.files[id]; f != nil {
		return after(f.names, lsn)
	}
	return nil
}

func (h *history) data(id proto.FileID, lsn proto.LSN) []proto.LSN {
	h.mu.Lock()
	defer h.mu.Unlock()
	if f := h.files[id]; f != nil {
		return after(f.data, lsn)
	}
	return nil
}

func (h *history) entries(dir proto.FileID, lsn proto.LSN) []proto.LSN {
	h.mu.Lock()
	defer h.mu.Unlock()
	return after(h.dirs[dir], lsn)
}

// made returns the record that made a file, 0 if none is kept.
func (h *history) made(id proto.FileID) proto.LSN {
	h.mu.Lock()
	defer h.mu.Unlock()
	if f := h.files[id]; f != nil {
		return f.made
	}
	return 0
}

// changed lists the files and directories that records above lsn concern.
func (h *history) changed(lsn proto.LSN) (files, dirs []proto.FileID) {
	h.mu.Lock()
	defer h.mu.Unlock()
	above := func(list []proto.LSN) bool { return len(list) > 0 && list[len(list)-1] > lsn }
	for id, f := range h.files {
		if above(f.names) || above(f.data) {
			files = append(files, id)
		}
	}
	for id, list := range h.dirs {
		if above(list) {
			dirs = append(dirs, id)
		}
	}
	slices.Sort(files)
	slices.Sort(dirs)
	return files, dirs
}

// ours returns the newest record that made or changed a file for somebody else than
// a process of the server, 0 if none is kept.
func (h *history) ours(id proto.FileID) proto.LSN {
	h.mu.Lock()
	defer h.mu.Unlock()
	if f := h.files[id]; f != nil {
		return f.ours
	}
	return 0
}

// byProcess reports whether the newest record that concerns a file or its entries is of a process of the server.
func (h *history) byProcess(id proto.FileID) bool {
	newest := h.newest(id, math.MaxUint64-1)
	h.mu.Lock()
	defer h.mu.Unlock()
	lsn, ok := h.theirs[id]
	return ok && lsn >= newest
}

// newest returns the newest record up to lsn that concerns a file or its entries, 0 if none is kept.
func (h *history) newest(id proto.FileID, lsn proto.LSN) (out proto.LSN) {
	h.mu.Lock()
	defer h.mu.Unlock()
	lists := [][]proto.LSN{h.dirs[id]}
	if f := h.files[id]; f != nil {
		lists = append(lists, f.names, f.data)
	}
	for _, list := range lists {
		if i, _ := slices.BinarySearch(list, lsn+1); i > 0 {
			out = max(out, list[i-1])
		}
	}
	return out
}

// read returns the skeleton of a record, nil if it never happened or is not committed yet.
func (h *history) read(lsn proto.LSN) (*record.Record, error) {
	if h.cancelled(lsn) {
		return nil, nil
	}
	r, err := h.log.Read(lsn, false)
	if status.Of(err) == status.NotFound {
		return nil, nil
	}
	return r, err
}

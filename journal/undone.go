package journal

import (
	"fmt"
	"slices"
	"strings"

	"cagefs.dev/cage/journal/record"
	"cagefs.dev/cage/remote/proto"
)

// Kinds of transactions.
const (
	KindRollback = "rollback"
	KindUndo     = "undo"
	KindRedo     = "redo"
	KindBranch   = "branch"
)

// txn is a transaction of the history. Guarded by history.mu until it is complete, then
// immutable but for off.
type txn struct {
	begin, end proto.LSN // its Begin and Commit records; end 0: not complete
	kind       string
	count      uint64 // of records between them
	targets    []lsnRange
	off        bool // an undo or redo that was itself taken back; guarded by history.mu
}

// lsnRange is records from..to that an undo takes back, or a transaction by its Begin record.
type lsnRange struct{ from, to proto.LSN }

func newTxn(r *record.Record) *txn {
	t := &txn{begin: r.LSN, kind: r.Name}
	if t.takesBack() {
		t.targets = parseTargets(string(r.Value))
	}
	return t
}

func (t *txn) takesBack() bool { return t.kind == KindUndo || t.kind == KindRedo }

// FormatTargets is the form in which the arguments of an undo or redo name what
// it takes back: "@12 @15..@20", ascending, where a transaction is named by its Begin
// record and a range leaves out no change that could be undone.
func FormatTargets(ranges [][2]proto.LSN) string {
	var b strings.Builder
	for i, r := range ranges {
		if i > 0 {
			b.WriteByte(' ')
		}
		fmt.Fprintf(&b, "@%d", uint64(r[0]))
		if r[1] != r[0] {
			fmt.Fprintf(&b, "..@%d", uint64(r[1]))
		}
	}
	return b.String()
}

// parseTargets reads what FormatTargets wrote, and ends where it does not understand it.
func parseTargets(s string) (out []lsnRange) {
	for _, word := range strings.Fields(s) {
		var r lsnRange
		if _, err := fmt.Sscanf(word, "@%d..@%d", &r.from, &r.to); err != nil {
			if _, err := fmt.Sscanf(word, "@%d", &r.from); err != nil {
				return out
			}
			r.to = r.from
		}
		out = append(out, r)
	}
	return out
}

// contains reports whether a transaction takes a record back.
func (t *txn) contains(lsn proto.LSN) bool {
	i, ok := slices.BinarySearchFunc(t.targets, lsn, func(r lsnRange, lsn proto.LSN) int {
		switch {
		case r.to < lsn:
			return -1
		case r.from > lsn:
			return 1
		}
		return 0
	})
	return ok && i < len(t.targets)
}

// commitLocked completes a transaction. Whether older undos are still in force
// is settled anew: what takes an undo back is always newer than it.
func (h *history) commitLocked(r *record.Record) {
	t := h.txns[r.Txn]
	if t == nil {
		return
	}
	t.end, t.count = r.LSN, r.Count
	if !t.takesBack() {
		return
	}
	h.undos = append(h.undos, t)
	gone := map[proto.LSN]bool{}
	for _, u := range slices.Backward(h.undos) {
		if u.off = gone[u.begin]; u.off {
			continue
		}
		for _, r := range u.targets {
			if r.from == r.to {
				gone[r.from] = true
			}
		}
	}
}

// undone returns the transaction that took a record (of transaction in, 0: none) back, 0 if it stands.
func (h *history) undone(lsn, in proto.LSN) proto.LSN {
	h.mu.Lock()
	defer h.mu.Unlock()
	for _, u := range slices.Backward(h.undos) {
		if u.begin < lsn {
			break
		}
		if !u.off && (u.contains(lsn) || in != 0 && u.contains(in)) {
			return u.begin
		}
	}
	return 0
}

// transaction returns a complete transaction by its Begin record.
func (h *history) transaction(begin proto.LSN) (txn, bool) {
	h.mu.Lock()
	defer h.mu.Unlock()
	t := h.txns[begin]
	if t == nil || t.end == 0 {
		return txn{}, false
	}
	return *t, true
}

// around returns the complete transaction between whose ends a record is.
func (h *history) around(lsn proto.LSN) (txn, bool) {
	h.mu.Lock()
	defer h.mu.Unlock()
	for _, t := range h.txns {
		if t.begin <= lsn && lsn < t.end {
			return *t, true
		}
	}
	return txn{}, false
}

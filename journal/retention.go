package journal

import (
	"slices"
	"strconv"
	"time"

	"cagefs.dev/cage/journal/record"
	"cagefs.dev/cage/journal/vfs"
	"cagefs.dev/cage/remote/proto"
)

// minFree is the part of the file system that history leaves free: 1/minFree.
const minFree = 20

// pruneStep is how many graves history gives up at a time.
const pruneStep = 64

// graveCount is how long a count of the graves' bytes serves; in between it is kept up to date about.
const graveCount = 10 * time.Minute

// oldest is the oldest record that history goes back to: states before it, less
// one, are gone.
func (j *Journal) oldest() proto.LSN {
	return max(j.log.Oldest(), proto.LSN(j.horizon.Load()))
}

// prune gives up the oldest history while it takes more than its cap or the file
// system is nearly full: graves oldest first, segments when all their records
// are given up. Records after needed, the newest checkpoint's, stay; so do files
// in graves that a session holds open, see hold.go.
func (j *Journal) prune(needed proto.LSN) error {
	var graves []proto.LSN // ascending; nil: not looked at
	gave := false
	for {
		full, err := j.overfull()
		if err == nil && !full && gave { // files that processes of the server removed
			return j.tree.forgetGone(j.oldest())
		}
		if err != nil || !full {
			return err
		}
		if graves == nil {
			if graves, err = j.graveList(); err != nil {
				return err
			}
		}
		upto := j.nextToGo(graves, needed)
		if upto == 0 {
			return nil
		}
		i, _ := slices.BinarySearch(graves, upto)
		if err := j.giveUp(upto, graves[:i]); err != nil {
			return err
		}
		graves, gave = graves[i:], true
	}
}

// overfull reports whether history has to give something up.
func (j *Journal) overfull() (bool, error) {
	st, err := j.opts.FS.StatFS()
	if err != nil {
		return false, err
	}
	if st.BlocksAvail < st.Blocks/minFree {
		return true, nil
	}
	if j.awaiting() { // graves stay, and to lose history without need is worse than to have too much
		return false, nil
	}
	if time.Since(j.graves.at) >= graveCount {
		var u UsageReport
		if err := u.addGraves(j.tree.grave); err != nil {
			return false, err
		}
		j.graves.bytes.Store(int64(u.GraveBytes))
		j.graves.at = time.Now()
	}
	return j.logBytes()+j.graves.bytes.Load() > j.cap, nil
}

// nextToGo is the record below which history is given up next, 0 if nothing can go.
func (j *Journal) nextToGo(graves []proto.LSN, needed proto.LSN) proto.LSN {
	var upto proto.LSN
	if segs := j.log.Segments(); len(segs) > 1 && segs[1].First <= needed {
		upto = segs[1].First
	}
	if n := min(pruneStep, len(graves)); n > 0 && graves[n-1] < needed {
		if g := graves[n-1] + 1; upto == 0 || g < upto {
			upto = g
		}
	}
	return upto
}

// giveUp ends history at a record, on record, then removes what only it needed.
// A transaction, which plans with graves, holds planMu to its end.
func (j *Journal) giveUp(upto proto.LSN, graves []proto.LSN) error {
	j.planMu.Lock()
	defer j.planMu.Unlock()
	if upto > j.oldest() { // not only what a session held open before
		if err := j.log.AppendReserved(&record.Record{Kind: record.Prune, Upto: upto}); err != nil {
			return err
		}
		if err := j.log.Commit(); err != nil {
			return err
		}
		j.horizon.Store(uint64(upto))
		j.hist.forget(upto)
	}
	for _, lsn := range graves {
		if err := j.emptyGrave(graveName(lsn), lsn); err != nil {
			return err
		}
	}
	j.opts.Log.Info().Uint64("oldest", uint64(upto)).Int("graves", len(graves)).Msg("history is full: gave up the oldest")
	return j.log.Drop(upto)
}

// graveList is what the graves are named, in order.
func (j *Journal) graveList() ([]proto.LSN, error) {
	graves := []proto.LSN{}
	err := j.tree.grave.ReadDir(0, func(name string, _ uint64, _ uint32, _ uint64) bool {
		if lsn, err := strconv.ParseUint(name, 10, 64); err == nil {
			graves = append(graves, proto.LSN(lsn))
		}
		return true
	})
	slices.Sort(graves)
	return graves, err
}

// emptyGrave removes a grave, unless a session holds the file open.
func (j *Journal) emptyGrave(name string, lsn proto.LSN) error {
	j.viewMu.Lock()
	defer j.viewMu.Unlock()
	info, err := j.tree.grave.Stat(name)
	if notThere(err) { // a process of the server was there before
		return nil
	}
	if err != nil {
		return err
	}
	id := j.tree.holder(info.Ident)
	if id != 0 && j.held(id) {
		return nil
	}
	if err := removeTree(j.tree.grave, name, info, j.unlinked); err != nil {
		return err
	}
	j.graves.bytes.Add(-int64(info.Blocks) * 512)
	if id != 0 {
		j.tree.dropHandles(j.tree.dropGrave(id, lsn))
	}
	return nil
}

// unlinked is called when a file has lost a link that no record is about; info is from
// before. That has moved its ctime, which is nobody's change. The caller holds viewMu.
func (j *Journal) unlinked(info vfs.Info) {
	if info.Nlink < 2 {
		return
	}
	n, now, err := j.tree.stat(j.tree.holder(info.Ident))
	if err != nil {
		return
	}
	if n.ctime != info.Ctime {
		j.noticeLocal(&n, info)
	}
	j.tree.seen(n.id, now.Ctime, n.change)
}

// removeTree removes what is under a name for good, directories with their entries.
// It calls unlinked, if not nil, after each link to something else.
func removeTree(d vfs.Dir, name string, info vfs.Info, unlinked func(vfs.Info)) error {
	if info.Mode&proto.ModeType != proto.ModeDir {
		err := d.Remove(name)
		if err == nil && unlinked != nil {
			unlinked(info)
		}
		return err
	}
	sub, err := d.OpenDir(name)
	if err != nil {
		return err
	}
	defer sub.Close()
	var kids []string
	err = sub.ReadDir(0, func(kid string, _ uint64, _ uint32, _ uint64) bool {
		kids = append(kids, kid)
		return true
	})
	for _, kid := range kids {
		if err != nil {
			return err
		}
		var ki vfs.Info
		if ki, err = sub.Stat(kid); err == nil {
			err = removeTree(sub, kid, ki, unlinked)
		}
	}
	if err != nil {
		return err
	}
	return d.RemoveDir(name)
}

package journal

import (
	"strconv"

	"cagefs.dev/cage/journal/vfs"
	"cagefs.dev/cage/remote/proto"
)

// minFree is the part of the file system that history leaves free: 1/minFree.
const minFree = 20

// prune drops the oldest history, a segment and its graves at a time, while the
// log is above the cap or the file system nearly full. Records after needed, the
// newest checkpoint's, stay. A start does not prune: clients first have to say
// which removed files they hold open.
func (j *Journal) prune(needed proto.LSN) error {
	for {
		segs := j.log.Segments()
		if len(segs) < 2 || segs[1].First > needed {
			return nil
		}
		st, err := j.opts.FS.StatFS()
		if err != nil {
			return err
		}
		if j.logBytes() <= j.cap && st.BlocksAvail >= st.Blocks/minFree {
			return nil
		}
		oldest := segs[1].First
		if err := j.log.Drop(oldest); err != nil {
			return err
		}
		j.hist.forget(oldest)
		if err := j.emptyGraves(oldest); err != nil {
			return err
		}
		j.opts.Log.Info().Uint64("oldest", uint64(oldest)).Msg("history is full: dropped the oldest segment")
	}
}

// emptyGraves removes the graves of records below oldest, but for files that a session holds.
func (j *Journal) emptyGraves(oldest proto.LSN) error {
	var names []string
	err := j.tree.grave.ReadDir(0, func(name string, _ uint64, _ uint32, _ uint64) bool {
		if lsn, err := strconv.ParseUint(name, 10, 64); err == nil && proto.LSN(lsn) < oldest {
			names = append(names, name)
		}
		return true
	})
	if err != nil {
		return err
	}
	for _, name := range names {
		lsn, _ := strconv.ParseUint(name, 10, 64)
		if err := j.emptyGrave(name, proto.LSN(lsn)); err != nil {
			return err
		}
	}
	return nil
}

func (j *Journal) emptyGrave(name string, lsn proto.LSN) error {
	j.viewMu.Lock()
	defer j.viewMu.Unlock()
	info, err := j.tree.grave.Stat(name)
	if err != nil {
		return err
	}
	j.tree.mu.RLock()
	id := j.tree.byIno[info.Ino]
	j.tree.mu.RUnlock()
	j.holdMu.Lock()
	held := id != 0 && j.holds[id] > 0
	j.holdMu.Unlock()
	if held {
		return nil
	}
	if err := removeTree(j.tree.grave, name, info); err != nil {
		return err
	}
	if id != 0 {
		j.tree.dropGrave(id, lsn)
	}
	return nil
}

// removeTree removes what is under a name for good, directories with their entries.
func removeTree(d vfs.Dir, name string, info vfs.Info) error {
	if info.Mode&proto.ModeType != proto.ModeDir {
		return d.Remove(name)
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
			err = removeTree(sub, kid, ki)
		}
	}
	if err != nil {
		return err
	}
	return d.RemoveDir(name)
}

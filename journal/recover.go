package journal

import (
	"context"

	"cagefs.dev/cage/journal/record"
	"cagefs.dev/cage/journal/vfs"
	"cagefs.dev/cage/remote/proto"
	"cagefs.dev/cage/remote/status"
)

// Recovery never replays names. It computes from checkpoint and log where each
// inode belongs and what it contains, finds it by identity wherever the cut has left it, and
// brings it there. Doing that again after a cut in the middle of it does no harm.
// docs/journal.md numbers the steps; the comments here use its numbers.

// recovery is the state of one run.
type recovery struct {
	j      *Journal
	report *Report
	ck     *checkpointData
	last   proto.LSN // newest record when it began
	dead   map[proto.LSN]bool
	made   map[proto.FileID]proto.LSN       // Make records
	places map[vfs.Ident]map[place]bool     // where an inode may be found
	want   map[vfs.Ident]map[place]bool     // where it belongs
	owner  map[vfs.Ident]proto.FileID       // 0: bytes that a truncation or a hole took away
	moved  map[proto.FileID]bool            // files whose names changed
	dirs   map[proto.FileID]map[string]bool // names to look at in each directory
	opened map[proto.FileID]vfs.Dir         // directories that were found, by number; nil: not on disk
	parked map[vfs.Ident][]string           // names in the stage of inodes taken from wrong places
	staged map[place]bool                   // names that were in the stage at the start
	number int                              // of the next parked name
	found  map[proto.FileID]proto.LSN       // Make records of what processes of the server made
	placed map[proto.FileID]bool            // files that recovery moved, and directories in which it did
	remade map[proto.FileID]bool            // files whose inodes recovery made again

	mount    string     // that the newest start was in
	sameRun  bool       // it is this one, and has not been down since
	lastTime proto.Time // of the newest record, 0 if there is none
}

// The journal's own directories, as directories of places. They have no file numbers.
const (
	graveDir = proto.MaxFileID - 1
	stageDir = proto.MaxFileID - 2
)

// recover brings table, tree and sessions to the end of the log.
func (j *Journal) recover(ctx context.Context, ck *checkpointData) (*Report, error) {
	r := &recovery{j: j, ck: ck, report: &Report{}, dead: map[proto.LSN]bool{}, made: map[proto.FileID]proto.LSN{},
		places: map[vfs.Ident]map[place]bool{}, want: map[vfs.Ident]map[place]bool{}, owner: map[vfs.Ident]proto.FileID{},
		moved: map[proto.FileID]bool{}, dirs: map[proto.FileID]map[string]bool{}, opened: map[proto.FileID]vfs.Dir{},
		parked: map[vfs.Ident][]string{}, found: map[proto.FileID]proto.LSN{}, placed: map[proto.FileID]bool{}, remade: map[proto.FileID]bool{}}
	defer r.closeDirs()
	r.loadState()
	if err := r.readLog(); err != nil {
		return nil, err
	}
	if err := r.forgetPruned(); err != nil {
		return nil, err
	}
	r.report.Last = j.log.Last()
	r.report.Clean = (ck.clean || j.log.Last() == 0) && r.report.Replayed == 0
	r.report.Boot = ck.boot + 1
	j.boot = r.report.Boot
	if j.opts.ReadOnly {
		if err := r.replay(j.tree.apply); err != nil {
			return nil, err
		}
		if err := j.tree.failure(); err != nil {
			return nil, err
		}
		j.applied = j.log.Durable()
		return r.report, nil
	}
	if err := r.lastRun(); err != nil {
		return nil, err
	}
	if err := r.restoreTree(ctx); err != nil {
		return nil, status.Wrap(err, "recover", "")
	}
	return r.report, r.finish()
}

// loadState takes over what the checkpoint holds (step 1).
func (r *recovery) loadState() {
	j := r.j
	j.nextID, j.idLimit = r.ck.nextID, r.ck.nextID
	j.sessions = r.ck.sessions
	if j.sessions == nil {
		j.sessions = map[proto.SessionID]*session{}
	}
	for id, spans := range r.ck.lost {
		j.lost[id] = spans
	}
	for n, name := range r.ck.clients {
		j.setClient(n, name)
	}
}

// forgetPruned drops the graves that went with old history after the checkpoint.
func (r *recovery) forgetPruned() error {
	t, oldest := r.j.tree, r.j.oldest()
	r.j.hist.forget(oldest)
	graves, err := t.gravesBelow(oldest)
	if err != nil {
		return err
	}
	for _, g := range graves {
		if _, err := t.grave.Stat(graveName(g.lsn)); notThere(err) {
			t.dropGrave(g.id, g.lsn)
		} else if err != nil {
			return err
		}
	}
	return nil
}

// readLog scans what history is kept: all of it for the index, what is after the
// checkpoint for the state of sessions. Which records were cancelled is known at
// its end: then replay can go through those after the checkpoint (steps 2 and 3).
func (r *recovery) readLog() error {
	j := r.j
	r.last = j.log.Durable()
	err := r.committed(j.log.Oldest(), func(rec *record.Record) {
		if rec.LSN > r.ck.lsn {
			r.state(rec)
		}
		switch rec.Kind {
		case record.Boot:
			r.mount = string(rec.Value)
		case record.Prune:
			j.horizon.Store(uint64(rec.Upto))
		case record.Cancel:
			r.dead[rec.Upto] = true
			j.hist.cancel(rec.Upto)
		}
	}, j.hist.add)
	if err != nil {
		return err
	}
	return r.replay(func(rec *record.Record) {
		if local(rec) {
			return
		}
		switch rec.Kind {
		case record.Adopt, record.Gap, record.Checkpoint, record.Boot, record.IDs, record.Client, record.Session, record.Locks, record.Leases:
		default:
			r.report.Replayed++
		}
	})
}

// replay calls f for the records after the checkpoint that happened, in the
// order in which they were applied. They are read from the log each time: there
// may be too many to keep them all.
func (r *recovery) replay(f func(*record.Record)) error {
	return r.committed(r.ck.lsn+1, nil, func(rec *record.Record) {
		if rec.LSN > r.ck.lsn && !r.dead[rec.LSN] {
			f(rec)
		}
	})
}

// committed goes through the log from a record on up to where it ended when
// recovery began. It calls all, if not nil, for each record, and done for those
// that count: a transaction's when its end is there, other records meanwhile
// before that; cancelled ones are among them.
func (r *recovery) committed(from proto.LSN, all, done func(*record.Record)) error {
	var txn []*record.Record
	return r.j.log.Scan(from, false, func(rec *record.Record) error {
		if rec.LSN > r.last { // recovery's own
			return nil
		}
		if all != nil {
			all(rec)
		}
		switch {
		case rec.Kind == record.Cancel:
		case rec.Kind == record.Begin:
			txn = []*record.Record{rec}
		case rec.Txn == 0:
			done(rec)
		case len(txn) == 0 || txn[0].LSN != rec.Txn:
		case rec.Kind == record.Commit:
			for _, t := range append(txn, rec) {
				done(t)
			}
			txn = nil
		default:
			txn = append(txn, rec)
		}
		return nil
	})
}

// state follows sessions, clients and file numbers.
func (r *recovery) state(rec *record.Record) {
	j := r.j
	switch rec.Kind {
	case record.Client:
		j.setClient(uint32(rec.Count), rec.Name)
	case record.IDs:
		j.idLimit = max(j.idLimit, proto.FileID(rec.Upto))
		j.nextID = j.idLimit
	case record.Boot:
		r.ck.boot = max(r.ck.boot, uint32(rec.Count))
	}
	j.sessionReplay(rec)
}

// restoreTree brings the tree to where table and log say it is (steps 4 to 10).
func (r *recovery) restoreTree(ctx context.Context) error {
	if err := r.collect(); err != nil {
		return err
	}
	if err := r.open(); err != nil {
		return err
	}
	if err := r.find(); err != nil {
		return err
	}
	if err := r.clearWrong(); err != nil {
		return err
	}
	if err := r.remakeMissing(); err != nil {
		return err
	}
	if err := r.fill(); err != nil {
		return err
	}
	if err := r.cleanStage(); err != nil {
		return err
	}
	if err := r.restoreContents(ctx); err != nil {
		return err
	}
	return r.j.tree.failure()
}

// finish makes the recovered state the new beginning (step 11).
func (r *recovery) finish() error {
	j := r.j
	j.applied = j.log.Last()
	r.beginGap()
	boot := &record.Record{Kind: record.Boot, Count: uint64(j.boot), Value: []byte(j.opts.Mount)}
	if err := j.log.Append(boot); err != nil {
		return err
	}
	if err := j.log.Commit(); err != nil {
		return err
	}
	j.applied = boot.LSN
	j.appended = boot.LSN
	j.lost.forget(j.sessions, j.tree.table)
	if err := j.checkpoint(false); err != nil {
		return err
	}
	return r.ended()
}

func (r *recovery) closeDirs() {
	for _, d := range r.opened {
		if d != nil && d != r.j.tree.root && d != r.j.tree.grave && d != r.j.tree.stage {
			d.Close()
		}
	}
}

// collect goes through the records, moves the table forward, and notes for each
// inode that a name record concerns where it was on its way and where it belongs
// (step 4). An adoption moves nothing, and there may be very many.
func (r *recovery) collect() error {
	t := r.j.tree
	touch := func(id proto.FileID) {
		n, ok := t.get(id)
		if !ok || id == proto.RootID {
			return
		}
		r.moved[id] = true
		for _, p := range n.names {
			r.mayBe(n.ident, p)
		}
		for _, g := range n.graves {
			r.mayBe(n.ident, place{graveDir, graveName(g)})
		}
	}
	err := r.replay(func(rec *record.Record) {
		if local(rec) {
			r.collectLocal(rec, touch)
			return
		}
		r.adoptLocal(rec, touch)
		switch rec.Kind {
		case record.Adopt:
			if rec.Flag&record.FlagRecovered == 0 {
				t.apply(rec)
				return
			}
		case record.Make:
			r.made[rec.ID] = rec.LSN
			r.mayBe(vfs.Ident(rec.Inode), place{stageDir, stageName(rec.ID)})
		case record.Remove:
			r.mayBe(vfs.Ident(rec.Inode), place{graveDir, graveName(rec.LSN)})
		case record.Rename: // on its way through the grave
			r.mayBe(vfs.Ident(rec.Inode), place{graveDir, graveName(rec.LSN)})
		case record.Truncate, record.Write:
			if rec.Flag&record.FlagGraveImage != 0 {
				img, at := vfs.Ident(rec.Inode), place{graveDir, graveName(rec.LSN)}
				r.mayBe(img, at)
				r.mayBe(img, place{stageDir, imageName(uint64(rec.Grave))})
				r.want[img] = map[place]bool{at: true}
				r.owner[img] = 0
			}
		}
		touch(rec.ID)
		touch(rec.Victim)
		t.apply(rec)
		touch(rec.ID)
		touch(rec.Victim)
	})
	if err != nil {
		return err
	}
	for id := range r.moved {
		n, ok := t.get(id)
		if !ok {
			continue
		}
		w := map[place]bool{}
		for _, p := range n.names {
			w[p] = true
		}
		for _, g := range n.graves {
			w[place{graveDir, graveName(g)}] = true
		}
		if len(w) == 0 { // a process of the server removed it
			continue
		}
		r.want[n.ident], r.owner[n.ident] = w, id
	}
	return t.failure()
}

func (r *recovery) mayBe(i vfs.Ident, p place) {
	if r.places[i] == nil {
		r.places[i] = map[place]bool{}
	}
	r.places[i][p] = true
	if r.dirs[p.dir] == nil {
		r.dirs[p.dir] = map[string]bool{}
	}
	r.dirs[p.dir][p.name] = true
}

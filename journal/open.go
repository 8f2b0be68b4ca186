package journal

import (
	"container/list"
	"context"
	"errors"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"cagefs.dev/cage/journal/record"
	"cagefs.dev/cage/journal/runs"
	"cagefs.dev/cage/journal/vfs"
	"cagefs.dev/cage/journal/wal"
	"cagefs.dev/cage/remote/proto"
	"cagefs.dev/cage/remote/status"
)

// core is a journal's state. Lock order: planMu, adoptMu, viewMu, queueMu,
// holdMu, table.mu, tree.hmu; the log's own lock and the history's are below
// them all. The commit loop takes viewMu for writing and never planMu inside it.
type core struct {
	// Set at construction.
	opts Options
	log  *wal.Log
	tree *tree
	hist *history
	boot uint32
	cap  int64

	inlineCut int64 // maxInlineCut; less in tests

	// planMu makes plans one after another: who holds it sees a file system and a
	// table of unapplied records that do not contradict each other.
	planMu   sync.Mutex
	busy     busy
	loose    map[proto.FileID]*loose
	images   map[proto.FileID]preparedImage
	sessions map[proto.SessionID]*session
	lost     lost
	clients  map[uint32]string
	clientNo map[string]uint32

	// viewMu: writers are applied records, readers are reads.
	viewMu sync.RWMutex

	// queueMu guards what is between the plans and the commit loop.
	queueMu   sync.Mutex
	queueCond *sync.Cond
	queue     []*pending
	queued    int
	appended  proto.LSN // newest record of a change
	applied   proto.LSN // newest applied record of a change
	failure   error     // why no more changes are taken
	stopped   bool

	acls aclCache

	holdMu sync.Mutex
	holds  holds

	horizon    atomic.Uint64 // LSN below which history was given up
	looseBytes atomic.Int64  // that became loose since the last checkpoint
	imageNo    atomic.Uint64 // names of prepared images

	adoptMu sync.Mutex   // held while a number is given to a file
	nextID  proto.FileID // guarded by adoptMu
	idLimit proto.FileID // numbers below it are promised durably; guarded by adoptMu

	// Owned by the commit loop.
	ckpt   checkpointState
	graves struct {
		bytes atomic.Int64 // what they take, about
		at    time.Time    // of the last count; owned by the checkpoint on its way
	}
	written   int64        // log bytes committed since the start
	roomShort atomic.Int64 // bytes that the room for the next checkpoint lacks

	local    localState
	branches branches

	wake     chan struct{}
	stop     chan struct{}
	loopDone chan struct{}
	closing  sync.Once
}

// minSegment holds the largest record and more.
const minSegment = 2 * wal.MaxRecord

// idBlock is how many file numbers are reserved at a time.
const idBlock = 16384

func open(ctx context.Context, o Options) (*Journal, *Report, error) {
	if o.Now == nil {
		o.Now = func() proto.Time { return proto.Time(time.Now().UnixNano()) }
	}
	if o.Grace == 0 {
		o.Grace = 10 * time.Minute
	}
	j := &Journal{core{
		opts: o, busy: newBusy(), loose: map[proto.FileID]*loose{}, images: map[proto.FileID]preparedImage{},
		sessions: map[proto.SessionID]*session{}, lost: lost{}, clients: map[uint32]string{}, clientNo: map[string]uint32{},
		holds: holds{files: map[proto.FileID]int{}, absent: map[proto.SessionID]struct{}{}}, inlineCut: maxInlineCut,
		wake: make(chan struct{}, 1), stop: make(chan struct{}), loopDone: make(chan struct{}),
		local: newLocalState(),
	}}
	j.queueCond = sync.NewCond(&j.queueMu)
	report, err := j.start(ctx)
	if err != nil {
		j.release()
		return nil, nil, err
	}
	j.awaitSessions()
	if o.ReadOnly {
		close(j.loopDone)
		close(j.local.done)
	} else {
		go j.commitLoop()
		live, stop := context.WithCancel(context.WithoutCancel(ctx))
		go func() {
			<-j.stop
			stop()
		}()
		go j.localLoop(live)
	}
	return j, report, nil
}

// start opens the directories, the checkpoint and the log, and recovers.
func (j *Journal) start(ctx context.Context) (*Report, error) {
	if err := j.openRoots(); err != nil {
		return nil, err
	}
	ck, err := j.loadCheckpoint()
	if err != nil {
		return nil, err
	}
	if err := j.openTree(); err != nil {
		return nil, err
	}
	if err := j.openTable(ck); err != nil {
		return nil, err
	}
	st, err := j.opts.FS.StatFS()
	if err != nil {
		return nil, err
	}
	size := int64(st.Blocks) * int64(st.BlockSize)
	seg := j.opts.SegmentSize
	if seg == 0 {
		seg = min(64<<20, max(minSegment, size/64)&^0xfff)
	}
	j.cap = j.opts.HistoryCap
	if j.cap == 0 {
		j.cap = size / 5
	}
	dir, err := j.tree.cage.OpenDir("wal")
	if err != nil {
		return nil, err
	}
	j.ckpt.walDir = dir
	j.log, err = wal.Open(wal.Options{Dir: dir, SegmentSize: seg, Now: j.opts.Now, Log: j.opts.Log,
		ReadOnly: j.opts.ReadOnly, Floor: ck.lsn})
	if err != nil {
		return nil, err
	}
	if oldest := j.log.Oldest(); ck.lsn+1 < oldest {
		return nil, status.Newf(status.Damaged, "open journal", DirName, "the checkpoint is of record %d, the log begins with %d: what is between is missing", ck.lsn, oldest)
	}
	j.hist = newHistory(j.log)
	return j.recover(ctx, ck)
}

// openRoots opens the export and the journal's directory, and locks it.
func (j *Journal) openRoots() error {
	root, err := j.opts.FS.Root()
	if err != nil {
		return err
	}
	t := &tree{table: newTable(), root: root, handles: map[handleKey]*list.Element{}}
	j.tree = t
	if t.cage, err = j.openHome(root); err != nil {
		return status.Wrap(err, "open journal", DirName)
	}
	if !j.opts.ReadOnly {
		if err := t.cage.Lock(); errors.Is(err, syscall.EWOULDBLOCK) {
			return status.Newf(status.Busy, "open journal", DirName, "another server has this export")
		} else if err != nil {
			return status.Wrap(err, "lock", DirName)
		}
	}
	return nil
}

// openTree opens what is in the journal's directory, which is this export's,
// making it on first use.
func (j *Journal) openTree() (err error) {
	t, root := j.tree, j.tree.root
	if !j.opts.ReadOnly {
		if err := j.linkHome(); err != nil {
			return status.Wrap(err, "open journal", DirName)
		}
	}
	for name, d := range map[string]*vfs.Dir{"grave": &t.grave, "stage": &t.stage} {
		if *d, err = subdir(t.cage, name, j.opts.ReadOnly); err != nil {
			return status.Wrap(err, "open journal", name)
		}
	}
	w, err := subdir(t.cage, "wal", j.opts.ReadOnly)
	if err != nil {
		return status.Wrap(err, "open journal", "wal")
	}
	w.Close()
	info, err := root.StatSelf()
	if err != nil {
		return err
	}
	if info.Btime == 0 {
		return status.Newf(status.Unsupported, "", "", "the file system knows no birth times; a journal needs them to tell files apart")
	}
	if j.opts.ReadOnly {
		return nil
	}
	return j.probe()
}

// The table's part of memory, where Options do not say.
const (
	defaultTableCache   = 64 << 20
	defaultTableChanges = 4 << 20
	minTableChanges     = 64 << 10
)

// openTable opens the table of files as a checkpoint says it is.
func (j *Journal) openTable(ck *checkpointData) (err error) {
	t := j.tree
	if t.runs, err = subdir(t.cage, "table", j.opts.ReadOnly); err != nil {
		return status.Wrap(err, "open journal", "table")
	}
	cache, limit := j.opts.TableCache, j.opts.TableChanges
	if cache == 0 {
		cache = defaultTableCache
	}
	if limit == 0 {
		st, err := j.opts.FS.StatFS()
		if err != nil {
			return err
		}
		limit = min(defaultTableChanges, max(minTableChanges, int64(st.Blocks)*int64(st.BlockSize)/512))
	}
	since := newChanges()
	for _, e := range ck.since {
		if err := since.add(e); err != nil {
			return status.Wrap(err, "read", "checkpoint")
		}
	}
	store, err := runs.Open(runs.Options{Dir: t.runs, Names: ck.runs, Cache: runs.NewCache(cache),
		ReadOnly: j.opts.ReadOnly, Log: j.opts.Log, Failed: t.fail})
	if err != nil {
		return status.Wrap(err, "open journal", "table")
	}
	t.open(store, since, limit, !j.opts.ReadOnly, j.opts.Log)
	root, err := t.root.StatSelf()
	if err != nil {
		return err
	}
	t.setRoot(root.Ident)
	return t.failure()
}

// subdir opens a directory, making it 0700 if it is not there.
func subdir(d vfs.Dir, name string, readOnly bool) (vfs.Dir, error) {
	sub, err := d.OpenDir(name)
	if !errors.Is(err, syscall.ENOENT) || readOnly {
		return sub, err
	}
	if err := d.Mkdir(name, 0o700); err != nil {
		return nil, err
	}
	if err := d.Sync(); err != nil {
		return nil, err
	}
	return d.OpenDir(name)
}

// probe checks that the file system can rename as the journal needs: without
// replacing, and exchanging two names.
func (j *Journal) probe() error {
	st := j.tree.stage
	names := [2]string{"probe-a", "probe-b"}
	for _, n := range names {
		_ = st.Remove(n) // left by an earlier start
		f, err := st.Create(n, 0o600)
		if err != nil {
			return status.Wrap(err, "probe", n)
		}
		f.Close()
	}
	err := st.Rename(names[0], st, names[1], vfs.RenameExchange)
	for _, n := range names {
		if e := st.Remove(n); err == nil {
			err = e
		}
	}
	if err != nil {
		return status.Newf(status.Unsupported, "", "", "the file system cannot exchange names (renameat2): %w", err)
	}
	return nil
}

// newID gives a file number. The caller holds adoptMu.
func (j *Journal) newID() (proto.FileID, error) {
	if j.nextID+idBlock/4 >= j.idLimit && !j.opts.ReadOnly {
		limit := j.idLimit + idBlock
		if err := j.log.Append(&record.Record{Kind: record.IDs, Upto: proto.LSN(limit)}); err != nil {
			return 0, err
		}
		if err := j.log.Commit(); err != nil {
			return 0, err
		}
		j.idLimit = limit
	}
	if j.nextID >= proto.MaxFileID {
		return 0, status.Newf(status.NoSpace, "", "", "file numbers are used up")
	}
	j.nextID++
	return j.nextID - 1, nil
}

func (j *Journal) close() (err error) {
	j.closing.Do(func() {
		j.queueMu.Lock()
		j.stopped = true
		j.queueCond.Broadcast()
		j.queueMu.Unlock()
		close(j.stop)
		<-j.local.done
		<-j.loopDone
		if !j.opts.ReadOnly && j.failedErr() == nil {
			j.leaveSuspects()
			err = j.checkpoint(true)
		}
		if e := j.release(); err == nil {
			err = e
		}
	})
	return err
}

// release closes what start opened.
func (j *Journal) release() (err error) {
	if j.log != nil {
		err = j.log.Close()
	}
	if j.ckpt.walDir != nil {
		j.ckpt.walDir.Close()
	}
	t := j.tree
	if t == nil {
		return err
	}
	t.closeHandles()
	t.table.close()
	for _, d := range []vfs.Dir{j.branches.dir, t.runs, t.stage, t.grave, t.cage, t.root} {
		if d != nil {
			d.Close()
		}
	}
	return err
}

package journal

import (
	"encoding/binary"
	"errors"
	"hash/crc32"
	"maps"
	"sync/atomic"
	"syscall"
	"time"

	"cagefs.dev/cage/journal/record"
	"cagefs.dev/cage/journal/runs"
	"cagefs.dev/cage/journal/vfs"
	"cagefs.dev/cage/remote/proto"
	"cagefs.dev/cage/remote/status"
)

// A checkpoint says that everything up to a record is applied and durable in
// the tree, and holds what recovery would otherwise need the whole log for: the
// runs that the table of files lies in and what has changed since, the sessions
// with their results, the clients, the next file number. docs/journal.md has its layout.

// Checkpoints come after so many log bytes, so many loose bytes, or so long.
const (
	checkpointLog      = 128 << 20
	checkpointInterval = 30 * time.Second
)

// checkpointState is owned by the commit loop.
type checkpointState struct {
	walDir vfs.Dir
	lsn    atomic.Uint64 // of the newest checkpoint; anybody may read it
	seen   proto.LSN     // Last when the interval began
	at     time.Time
	bytes  int64 // log bytes then
}

// checkpointDue reports whether enough has happened since the last one.
func (j *Journal) checkpointDue() bool {
	if j.failedErr() != nil {
		return false
	}
	every := j.opts.CheckpointBytes
	if every == 0 {
		every = checkpointLog
	}
	if j.looseBytes.Load() >= maxLoose || j.written-j.ckpt.bytes >= every {
		return true
	}
	return time.Since(j.ckpt.at) >= checkpointInterval && j.log.Durable() > j.ckpt.seen
}

// shortOfSpace reports whether a checkpoint is due so that history can give way.
func (j *Journal) shortOfSpace() bool {
	if j.failedErr() != nil || j.log.Durable() <= j.ckpt.seen {
		return false
	}
	st, err := j.opts.FS.StatFS()
	return err == nil && st.BlocksAvail < st.Blocks/minFree
}

func (j *Journal) logBytes() (n int64) {
	for _, s := range j.log.Segments() {
		n += s.Bytes
	}
	return n
}

// checkpoint makes one and waits for it. For start and close: nothing is
// applied meanwhile.
func (j *Journal) checkpoint(clean bool) error {
	c, err := j.beginCheckpoint(clean)
	if err == nil {
		err = j.endCheckpoint(c)
	}
	if err == nil {
		j.checkpointed(c)
	}
	return err
}

// unfinished is a checkpoint whose state is noted and not yet durable.
type unfinished struct {
	*checkpointData
	loose map[proto.FileID]*loose // being synced
	bytes int64                   // log bytes when it began
}

// beginCheckpoint notes what is applied. Only the commit loop calls it, between
// two records, so that the table is that of one LSN.
func (j *Journal) beginCheckpoint(clean bool) (*unfinished, error) {
	if err := j.log.Commit(); err != nil {
		return nil, err
	}
	j.planMu.Lock()
	defer j.planMu.Unlock()
	c := &unfinished{loose: j.loosenLocked(), checkpointData: j.snapshotLocked(), bytes: j.written}
	c.clean = clean
	j.looseBytes.Store(0)
	return c, nil
}

// endCheckpoint makes the tree durable and writes the checkpoint. Changes go on
// meanwhile: what is applied after the beginning is replayed if need be.
func (j *Journal) endCheckpoint(c *unfinished) error {
	err := j.opts.FS.SyncFS()
	named := false
	defer func() {
		if !named {
			c.view.Release()
		}
	}()
	j.planMu.Lock()
	for id, l := range c.loose {
		close(l.done)
		l.done, l.syncing = nil, nil
		if len(l.spans) == 0 {
			delete(j.loose, id)
		}
	}
	j.planMu.Unlock()
	if err != nil {
		return status.Newf(status.IO, "sync", "export", "%w", err)
	}
	if err := j.writeCheckpoint(c.checkpointData); err != nil {
		return err
	}
	named = true
	j.tree.store.Keep(c.view)
	if err := j.log.Append(&record.Record{Kind: record.Checkpoint, Upto: c.lsn}); err != nil {
		if !status.Full(err) {
			return err
		}
	} else if err := j.log.Commit(); err != nil {
		return err
	}
	return nil
}

// checkpointed notes a finished checkpoint. Only the commit loop calls it.
func (j *Journal) checkpointed(c *unfinished) {
	j.ckpt.lsn.Store(uint64(c.lsn))
	j.ckpt.at, j.ckpt.bytes = time.Now(), c.bytes
	j.ckpt.seen = j.log.Last()
	j.tree.retry()
}

// loosenLocked marks the loose bytes of files without unapplied records as being
// synced: the checkpoint's sync of the file system covers them.
func (j *Journal) loosenLocked() map[proto.FileID]*loose {
	out := map[proto.FileID]*loose{}
	for id, l := range j.loose {
		if _, ok := j.busy.files[id]; ok || l.done != nil {
			continue
		}
		l.syncing, l.spans, l.done = l.spans, nil, make(chan struct{})
		out[id] = l
	}
	return out
}

// checkpointData is the content of a checkpoint.
type checkpointData struct {
	lsn      proto.LSN // everything up to it is applied
	boot     uint32
	clean    bool
	fs       uint64    // id of the file system
	cage     vfs.Ident // of the journal's directory: a copy has another
	root     vfs.Ident // of the export
	nextID   proto.FileID
	clients  map[uint32]string
	sessions map[proto.SessionID]*session
	lost     lost
	runs     []runs.Name // of the table of files
	since    runs.Sorted // what has changed in it since them
	view     *runs.View  // of these runs; not when it was read
}

// snapshotLocked copies the state up to the newest applied record. Records that
// are appended and not yet applied are above it and will be replayed.
//
// A reader that adopts a file holds adoptMu from its record to the table, so that
// of an adoption up to the checkpoint's LSN the table has the number:
//
//	a reader                            a checkpoint, without adoptMu
//	Append(adopt) = 7
//	                                    lsn = 7, table without the file
//	table has it                        after a cut 7 is not replayed: it is lost
func (j *Journal) snapshotLocked() *checkpointData {
	j.adoptMu.Lock()
	defer j.adoptMu.Unlock()
	j.queueMu.Lock()
	lsn := j.applied
	if len(j.queue) == 0 { // no change is on its way: records without effect count as applied
		lsn = j.log.Durable()
	}
	j.queueMu.Unlock()
	ck := &checkpointData{lsn: lsn, boot: j.boot, clients: map[uint32]string{}, sessions: map[proto.SessionID]*session{}}
	for n, name := range j.clients {
		ck.clients[n] = name
	}
	for id, s := range j.sessions {
		c := newSession(s.client, s.key)
		c.leased, c.since, c.void, c.locks = s.leased, s.since, maps.Clone(s.void), s.locks
		for seq, r := range s.results {
			if r.lsn <= lsn {
				c.results[seq] = r
				c.last = max(c.last, seq)
			}
		}
		if len(s.pending) == 0 {
			c.last = s.last
		}
		ck.sessions[id] = c
	}
	ck.lost = j.lost.clone()
	ck.nextID = j.idLimit
	ck.view, ck.since = j.tree.snapshot()
	ck.runs = ck.view.Names()
	return ck
}

const (
	checkpointName    = "checkpoint"
	checkpointTemp    = "checkpoint.new"
	checkpointMagic   = "CAGECKP\n"
	checkpointVersion = 6
	checkpointHeader  = len(checkpointMagic) + 8
)

// writeCheckpoint replaces the checkpoint file: it writes over the one before,
// under the name of the new one, syncs, exchanges the names, syncs. That file is
// as long as keepRoom has made it, whatever is in it, so that this works on a
// full disk: only after a checkpoint can history give way there.
func (j *Journal) writeCheckpoint(ck *checkpointData) error {
	st, err := j.opts.FS.StatFS()
	if err != nil {
		return err
	}
	self, err := j.tree.cage.StatSelf()
	if err != nil {
		return err
	}
	root, err := j.tree.root.StatSelf()
	if err != nil {
		return err
	}
	ck.fs, ck.cage, ck.root = st.ID, self.Ident, root.Ident
	f, err := j.tree.cage.Open(checkpointTemp, true)
	if errors.Is(err, syscall.ENOENT) {
		f, err = j.tree.cage.Create(checkpointTemp, 0o600)
	}
	if err != nil {
		return status.Wrap(err, "write", "checkpoint")
	}
	b := encodeCheckpoint(ck)
	_, err = f.WriteAt(b, 0)
	if err == nil {
		err = f.Sync()
	}
	if e := f.Close(); err == nil {
		err = e
	}
	if err == nil {
		err = j.tree.cage.Rename(checkpointTemp, j.tree.cage, checkpointName, vfs.RenameExchange)
		if errors.Is(err, syscall.ENOENT) { // the first one
			err = j.tree.cage.Rename(checkpointTemp, j.tree.cage, checkpointName, vfs.RenameNoReplace)
		}
	}
	if err == nil {
		err = j.tree.cage.Sync()
	}
	if err != nil {
		return errors.Join(status.Wrap(err, "write", "checkpoint"), j.dropRoom())
	}
	return j.keepRoom(int64(len(b)) + 3*j.tree.limit + minRoom)
}

// minRoom is what the next checkpoint may be larger, besides changes of the
// table, which are at most three times their limit: frozen ones, and others until
// table.room lets no more in.
const minRoom = 64 << 10

// keepRoom makes the file that the next checkpoint is written over so long,
// while there is space. It may be longer. What is missing is noted for StatFS.
func (j *Journal) keepRoom(size int64) error {
	short := int64(0)
	f, err := j.tree.cage.Open(checkpointTemp, true)
	if errors.Is(err, syscall.ENOENT) {
		f, err = j.tree.cage.Create(checkpointTemp, 0o600)
	}
	if err == nil {
		err = lengthen(f, size)
		if info, e := f.Stat(); e == nil {
			short = max(0, size-info.Size)
		}
		if e := f.Close(); err == nil {
			err = e
		}
	}
	if status.Full(err) { // what there was stays
		err = nil
	}
	j.roomShort.Store(short)
	return status.Wrap(err, "keep room for", "checkpoint")
}

// lengthen writes zeros behind the end of a file.
func lengthen(f vfs.File, size int64) error {
	info, err := f.Stat()
	if err != nil {
		return err
	}
	zeros := make([]byte, 64<<10)
	for at := info.Size; at < size && err == nil; at += int64(len(zeros)) {
		_, err = f.WriteAt(zeros[:min(int64(len(zeros)), size-at)], at)
	}
	return err
}

// dropRoom removes what may be half written.
func (j *Journal) dropRoom() error {
	if err := j.tree.cage.Remove(checkpointTemp); !errors.Is(err, syscall.ENOENT) {
		return status.Wrap(err, "remove", checkpointTemp)
	}
	return nil
}

func encodeCheckpoint(ck *checkpointData) []byte {
	b := append([]byte(checkpointMagic), make([]byte, 8)...)
	num := func(vs ...uint64) {
		for _, v := range vs {
			b = binary.AppendUvarint(b, v)
		}
	}
	str := func(s string) {
		num(uint64(len(s)))
		b = append(b, s...)
	}
	num(checkpointVersion, uint64(ck.lsn), uint64(ck.boot), bit(ck.clean), ck.fs, ck.cage.Ino, uint64(ck.cage.Btime), ck.root.Ino, uint64(ck.root.Btime), uint64(ck.nextID))
	num(uint64(len(ck.clients)))
	for n, name := range ck.clients {
		num(uint64(n))
		str(name)
	}
	num(uint64(len(ck.sessions)))
	for id, s := range ck.sessions {
		num(uint64(id), uint64(s.client), uint64(s.last), bit(s.leased), uint64(s.since), bit(s.locks.Lost), bit(s.locks.Modes), uint64(len(s.void)))
		for id, v := range s.void {
			num(uint64(id), uint64(v.upTo.Boot), v.upTo.Counter, uint64(v.since))
		}
		num(uint64(len(s.results)))
		str(s.key)
		for seq, r := range s.results {
			num(uint64(seq), uint64(r.code), uint64(r.lsn), uint64(r.id), r.n)
		}
	}
	num(uint64(len(ck.runs)))
	for _, r := range ck.runs {
		num(r.Number, uint64(r.Sum))
	}
	num(uint64(len(ck.since)))
	for _, e := range ck.since {
		num(uint64(len(e.Key)))
		b = append(b, e.Key...)
		num(bit(e.Value != nil), uint64(len(e.Value)))
		b = append(b, e.Value...)
	}
	num(uint64(len(ck.lost)))
	for id, spans := range ck.lost {
		num(uint64(id), uint64(len(spans)))
		for _, s := range spans {
			num(uint64(s.from), uint64(s.to), uint64(s.session), uint64(s.seq))
		}
	}
	binary.LittleEndian.PutUint64(b[len(checkpointMagic):], uint64(len(b)+4))
	return binary.LittleEndian.AppendUint32(b, crc32.Checksum(b, castagnoli))
}

func bit(b bool) uint64 {
	if b {
		return 1
	}
	return 0
}

// loadCheckpoint reads the checkpoint. A journal without one is new, or was cut
// before its first.
func (j *Journal) loadCheckpoint() (*checkpointData, error) {
	f, err := j.tree.cage.Open(checkpointName, false)
	if errors.Is(err, syscall.ENOENT) {
		return &checkpointData{nextID: proto.RootID + 1}, nil
	}
	if err != nil {
		return nil, status.Wrap(err, "open", "checkpoint")
	}
	defer f.Close()
	b, err := readCheckpoint(f)
	if err != nil {
		return nil, status.Wrap(err, "read", "checkpoint")
	}
	ck, err := decodeCheckpoint(b)
	if err != nil {
		return nil, status.Wrap(err, "read", "checkpoint")
	}
	return ck, j.checkHome(ck)
}

// readCheckpoint reads a checkpoint without the room behind it.
func readCheckpoint(f vfs.File) ([]byte, error) {
	info, err := f.Stat()
	if err != nil {
		return nil, err
	}
	n := int64(checkpointHeader)
	if info.Size < n {
		return nil, status.New(status.Damaged, "", "")
	}
	head, err := readFull(f, 0, n)
	if err != nil {
		return nil, err
	}
	if size := binary.LittleEndian.Uint64(head[len(checkpointMagic):]); string(head[:len(checkpointMagic)]) == checkpointMagic && size <= uint64(info.Size) {
		n = int64(size)
	}
	return readFull(f, 0, n)
}

// checkHome refuses a journal that was copied: its table names inodes of another tree.
func (j *Journal) checkHome(ck *checkpointData) error {
	self, err := j.tree.cage.StatSelf()
	if err != nil {
		return err
	}
	st, err := j.opts.FS.StatFS()
	if err != nil {
		return err
	}
	if self.Ident != ck.cage || st.ID != ck.fs {
		return status.Newf(status.Conflict, "open journal", DirName, "this journal was copied from another place; move %s away to begin a new one", DirName)
	}
	root, err := j.tree.root.StatSelf()
	if err != nil {
		return err
	}
	if root.Ident != ck.root {
		return status.Newf(status.Conflict, "open journal", DirName, "this is the journal of another directory")
	}
	return nil
}

func decodeCheckpoint(b []byte) (*checkpointData, error) {
	damaged := status.New(status.Damaged, "", "")
	if len(b) < checkpointHeader+4 || string(b[:len(checkpointMagic)]) != checkpointMagic {
		return nil, damaged
	}
	body := b[:len(b)-4]
	if crc32.Checksum(body, castagnoli) != binary.LittleEndian.Uint32(b[len(b)-4:]) {
		return nil, damaged
	}
	d := decoder{b: body[checkpointHeader:]}
	if v := d.num(); v != checkpointVersion {
		return nil, status.Newf(status.Version, "", "", "it is of version %d, this program reads %d", v, checkpointVersion)
	}
	ck := &checkpointData{lsn: proto.LSN(d.num()), boot: uint32(d.num()), clean: d.num() == 1, fs: d.num(),
		cage: vfs.Ident{Ino: d.num(), Btime: int64(d.num())}, root: vfs.Ident{Ino: d.num(), Btime: int64(d.num())}, nextID: proto.FileID(d.num()),
		clients: map[uint32]string{}, sessions: map[proto.SessionID]*session{}, lost: lost{}}
	for range d.count() {
		n := uint32(d.num())
		ck.clients[n] = d.str()
	}
	for range d.count() {
		id := proto.SessionID(d.num())
		s := newSession(uint32(d.num()), "")
		s.recorded, s.last = true, proto.Seq(d.num())
		s.leased, s.since, s.locks = d.num() == 1, proto.LSN(d.num()), LockState{Lost: d.num() == 1, Modes: d.num() == 1}
		for range d.count() {
			s.voidLease(proto.FileID(d.num()), void{proto.Gen{Boot: uint32(d.num()), Counter: d.num()}, proto.LSN(d.num())})
		}
		results := d.count()
		s.key = d.str()
		for range results {
			seq := proto.Seq(d.num())
			s.results[seq] = result{status.Code(d.num()), proto.LSN(d.num()), proto.FileID(d.num()), d.num()}
		}
		ck.sessions[id] = s
	}
	for range d.count() {
		ck.runs = append(ck.runs, runs.Name{Number: d.num(), Sum: uint32(d.num())})
	}
	for range d.count() {
		e := runs.Entry{Key: d.bytes()}
		there := d.num() == 1
		if value := d.bytes(); there {
			e.Value = value
		}
		ck.since = append(ck.since, e)
	}
	for range d.count() {
		id := proto.FileID(d.num())
		for range d.count() {
			ck.lost[id] = append(ck.lost[id], lostSpan{span: span{int64(d.num()), int64(d.num())},
				session: proto.SessionID(d.num()), seq: proto.Seq(d.num())})
		}
	}
	if d.failed || len(d.b) > 0 {
		return nil, damaged
	}
	return ck, nil
}

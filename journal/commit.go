package journal

import (
	"context"
	"errors"
	"time"

	"cagefs.dev/cage/journal/record"
	"cagefs.dev/cage/remote/proto"
	"cagefs.dev/cage/remote/status"
)

// Limits of what is submitted and not yet applied.
const (
	maxQueued      = 4096
	maxQueuedBytes = 64 << 20
)

// Ticket is a submitted change.
type Ticket struct {
	done chan struct{} // closed when res and err are set
	res  proto.Result
	err  error
}

func (t *Ticket) wait(ctx context.Context) (proto.Result, error) {
	select {
	case <-t.done:
		return t.res, t.err
	case <-ctx.Done():
		return proto.Result{}, ctx.Err()
	}
}

func answered(res proto.Result, err error) *Ticket {
	t := &Ticket{done: make(chan struct{}), res: res, err: err}
	close(t.done)
	return t
}

// pending is a change between its plan and its answer.
type pending struct {
	*Ticket
	sub   *Submission
	recs  []*record.Record // of this change; what answers is the last one's
	order proto.LSN        // of its last record when it was queued: a later plan does not change its turn
	id    proto.FileID     // whose attributes answer
	ctime int64            // of ID at the plan, where bytes are destroyed; 0: not compared
	data  []byte           // Write, Copy: all of its bytes
	n     uint64           // result's N
	// append: data go to the end of the file, wherever that is.
	append bool
	files  []proto.FileID // admitted: see Leases
}

func (p *pending) last() *record.Record { return p.recs[len(p.recs)-1] }

// waitFor tells the planner that it depends on a record that is not applied yet.
type waitFor struct{ lsn proto.LSN }

func (waitFor) Error() string { return "depends on a change that is not applied yet" }

// busy is the table of what records that are appended and not yet applied
// change. A plan that touches any of it waits: so every plan is made against the
// file system alone. Guarded by planMu.
type busy struct {
	files   map[proto.FileID]proto.LSN
	names   map[place]proto.LSN
	dirs    map[proto.FileID]busyDir // whose entries change
	dirMove proto.LSN                // newest move of a directory between directories
	label   proto.LSN                // newest label
}

type busyDir struct {
	lsn   proto.LSN
	mtime proto.Time // after that record
}

func newBusy() busy {
	return busy{files: map[proto.FileID]proto.LSN{}, names: map[place]proto.LSN{}, dirs: map[proto.FileID]busyDir{}}
}

func (b *busy) file(id proto.FileID) error {
	if lsn, ok := b.files[id]; ok {
		return waitFor{lsn}
	}
	return nil
}

func (b *busy) name(p place) error {
	if lsn, ok := b.names[p]; ok {
		return waitFor{lsn}
	}
	return nil
}

func (b *busy) entries(dir proto.FileID) error {
	if d, ok := b.dirs[dir]; ok {
		return waitFor{d.lsn}
	}
	return nil
}

// add notes what an appended record changes.
func (b *busy) add(r *record.Record) {
	switch r.Kind {
	case record.Make, record.Link, record.Remove, record.Restore, record.Rename:
		b.files[r.ID] = r.LSN
		if r.Name == "" { // made without a name
			return
		}
		b.names[place{r.Dir, r.Name}] = r.LSN
		b.dirs[r.Dir] = busyDir{r.LSN, r.Time}
		if r.Kind == record.Rename {
			b.names[place{r.NewDir, r.NewName}] = r.LSN
			b.dirs[r.NewDir] = busyDir{r.LSN, r.Time}
			if r.Victim != 0 {
				b.files[r.Victim] = r.LSN
			}
			if r.Flag&record.FlagDir != 0 && r.Dir != r.NewDir {
				b.dirMove = r.LSN
			}
		}
	case record.SetAttr, record.Truncate, record.Write, record.Data, record.Allocate, record.SetXattr:
		b.files[r.ID] = r.LSN
	case record.Label:
		b.label = r.LSN
	}
}

// drop forgets an applied record.
func (b *busy) drop(r *record.Record) {
	for _, id := range []proto.FileID{r.ID, r.Victim} {
		if b.files[id] == r.LSN {
			delete(b.files, id)
		}
	}
	for _, p := range []place{{r.Dir, r.Name}, {r.NewDir, r.NewName}} {
		if b.names[p] == r.LSN {
			delete(b.names, p)
		}
		if b.dirs[p.dir].lsn == r.LSN {
			delete(b.dirs, p.dir)
		}
	}
	if b.dirMove == r.LSN {
		b.dirMove = 0
	}
	if b.label == r.LSN {
		b.label = 0
	}
}

// submit plans, appends and queues a change; see Submit.
func (j *Journal) submit(ctx context.Context, s *Submission) (*Ticket, error) {
	if op, ok := s.Op.(*proto.Sync); ok {
		return j.submitSync(ctx, s, op)
	}
	for {
		if err := j.room(ctx); err != nil {
			return nil, err
		}
		t, err := j.trySubmit(s)
		if err == nil {
			return t, nil
		}
		var w waitFor
		var sync needSync
		var image needImage
		switch {
		case errors.As(err, &w):
			err = j.waitApplied(ctx, w.lsn)
		case errors.As(err, &sync):
			err = j.syncFile(ctx, sync.id)
		case errors.As(err, &image):
			err = j.prepareImage(image)
		}
		if err != nil {
			return nil, err
		}
	}
}

// trySubmit is one attempt under planMu.
func (j *Journal) trySubmit(s *Submission) (*Ticket, error) {
	j.planMu.Lock()
	defer j.planMu.Unlock()
	if err := j.usable(); err != nil {
		return nil, err
	}
	if t, ok, err := j.repeatedLocked(s); ok || err != nil {
		return t, err
	}
	if s.Guard != nil {
		if err := s.Guard(); err != nil {
			return nil, err
		}
	}
	p := &pending{Ticket: &Ticket{done: make(chan struct{})}, sub: s}
	err := j.planLocked(p)
	if internal(err) {
		return nil, err
	}
	if refused := j.admitLocked(p, err); refused != nil {
		j.unstage(p.recs)
		return nil, refused
	}
	if err != nil || len(p.recs) == 0 {
		return j.withoutEffect(p, err), nil
	}
	if err := j.appendLocked(p); err != nil {
		j.unstage(p.recs)
		j.admittedLocked(p)
		return nil, err
	}
	return p.Ticket, nil
}

// internal reports whether an error of a plan asks for something to be done
// first, rather than being the operation's answer.
func internal(err error) bool {
	var w waitFor
	var s needSync
	var i needImage
	return errors.As(err, &w) || errors.As(err, &s) || errors.As(err, &i)
}

// appendLocked gives the records of a plan their numbers and queues it.
func (j *Journal) appendLocked(p *pending) error {
	for _, r := range p.recs {
		who(r, p.sub)
	}
	if err := j.appendFor(p.sub, p.recs...); err != nil {
		return err
	}
	for _, r := range p.recs {
		j.busy.add(r)
		j.looseAdd(r)
	}
	j.sessionPending(p)
	j.queueMu.Lock()
	j.queue = append(j.queue, p)
	j.queued += len(p.data) + 256
	p.order = p.last().LSN
	j.appended = p.order
	j.queueMu.Unlock()
	j.kick()
	return nil
}

// who writes into a record on whose behalf it is made.
func who(r *record.Record, s *Submission) {
	r.Session, r.Seq, r.Client = s.Session, s.Seq, s.Client
	r.UID, r.GID, r.PID, r.PGID, r.Comm = s.Ident.UID, s.Ident.GID, s.Ident.PID, s.Ident.PGID, s.Ident.Comm
}

// room waits until the queue has room for one more change.
func (j *Journal) room(ctx context.Context) error {
	return j.await(ctx, func() bool { return len(j.queue) < maxQueued && j.queued < maxQueuedBytes })
}

// waitApplied waits until everything up to lsn is applied.
func (j *Journal) waitApplied(ctx context.Context, lsn proto.LSN) error {
	return j.await(ctx, func() bool { return j.applied >= lsn })
}

// await waits for a condition on what queueMu guards; the commit loop broadcasts.
func (j *Journal) await(ctx context.Context, ok func() bool) error {
	stop := context.AfterFunc(ctx, func() {
		j.queueMu.Lock()
		defer j.queueMu.Unlock()
		j.queueCond.Broadcast()
	})
	defer stop()
	j.queueMu.Lock()
	defer j.queueMu.Unlock()
	for !ok() {
		if err := ctx.Err(); err != nil {
			return err
		}
		if err := j.failureLocked(); err != nil {
			return err
		}
		if j.stopped {
			return status.New(status.Draining, "", "journal")
		}
		j.queueCond.Wait()
	}
	return nil
}

func (j *Journal) kick() {
	select {
	case j.wake <- struct{}{}:
	default:
	}
}

// tick is how long a record that nobody waits for (an adoption) may stay in memory.
const tick = time.Second

// commitLoop makes batches durable and applies them, one after another.
func (j *Journal) commitLoop() {
	defer close(j.loopDone)
	timer := time.NewTicker(tick)
	defer timer.Stop()
	var running *unfinished // a checkpoint on its way
	ended := make(chan error, 1)
	short := false
	end := func(err error) {
		switch {
		case err == nil:
			j.checkpointed(running)
		case status.Full(err): // the one before still holds
			j.ckpt.at = time.Now()
			j.opts.Log.Warn().Err(err).Msg("no checkpoint: the log grows, and history cannot give way")
		default:
			j.fail(err)
		}
		running = nil
	}
	for {
		select {
		case <-j.wake:
		case <-timer.C:
			short = j.shortOfSpace()
		case err := <-ended:
			end(err)
			continue
		case <-j.stop:
			j.commitBatch()
			if running != nil {
				end(<-ended)
			}
			return
		}
		j.commitBatch()
		if running == nil && (j.checkpointDue() || short) {
			short = false
			c, err := j.beginCheckpoint(false)
			if err != nil {
				j.fail(err)
				continue
			}
			running = c
			go func() {
				err := j.endCheckpoint(c)
				if err == nil {
					if err := j.prune(c.lsn); err != nil { // nothing promised hangs on it
						j.opts.Log.Warn().Err(err).Msg("old history could not be given up")
					}
				}
				ended <- err
			}()
		}
	}
}

// commitBatch commits and applies what is queued now.
func (j *Journal) commitBatch() {
	for {
		j.queueMu.Lock()
		batch := j.queue
		j.queue, j.queued = nil, 0
		failure := j.failureLocked()
		j.queueMu.Unlock()
		if failure == nil && (len(batch) > 0 || j.log.Pending() > 0) {
			j.written += int64(j.log.Pending())
			if err := j.log.Commit(); err != nil {
				failure = status.Newf(status.IO, "commit", "journal", "%w", err)
				j.fail(failure)
			}
		}
		if len(batch) == 0 {
			return
		}
		for _, p := range batch {
			if failure != nil {
				p.err = failure
				j.planMu.Lock()
				j.admittedLocked(p)
				j.planMu.Unlock()
				close(p.done)
				continue
			}
			j.finish(p)
		}
		j.settled(batch)
	}
}

// settled counts the records of later plans as applied, which have passed the
// queue by, as far as nothing before them is still to come.
func (j *Journal) settled(batch []*pending) {
	j.queueMu.Lock()
	defer j.queueMu.Unlock()
	var newest proto.LSN
	for _, p := range batch {
		newest = max(newest, p.last().LSN)
	}
	if len(j.queue) > 0 {
		newest = min(newest, j.queue[0].recs[0].LSN-1)
	}
	j.applied = max(j.applied, newest)
	j.localAppliedLocked()
	j.queueCond.Broadcast()
}

// finish applies a committed change and answers it.
func (j *Journal) finish(p *pending) {
	for try := 0; ; try++ {
		err := j.applyPending(p)
		if err == nil {
			break
		}
		if at := new(movedTo); errors.As(err, at) {
			if err = j.moved(p, int64(*at)); err == nil {
				break
			}
		}
		if errors.Is(err, errChanged) && try < maxReplans {
			if err = j.replan(p); err == nil {
				continue
			}
		}
		if errors.Is(err, errChanged) && p.insist() {
			continue
		}
		j.cancel(p, err)
		return
	}
	p.res = proto.Result{LSN: p.last().LSN, ID: p.id, N: p.n}
	if a, err := j.attr(p.id); err == nil {
		p.res.Attr = a
	}
	j.holdNameless(p.sub, p.id)
	j.done(p)
}

// cancel records that a committed change could not be applied, durably before
// its answer, so that no redo and no history takes it for done.
func (j *Journal) cancel(p *pending, cause error) {
	name, ok := j.tree.path(p.id)
	if !ok {
		name = p.id.String()
	}
	p.err = status.Wrap(cause, kindName(p.last()), name)
	recs := j.cancelRecords(p, status.Of(cause))
	if err := j.log.AppendReserved(recs...); err != nil {
		j.fail(err)
	} else if err := j.log.Commit(); err != nil {
		j.fail(err)
	}
	j.unstage(p.recs)
	j.planMu.Lock()
	for _, r := range p.recs {
		j.looseCancel(r)
	}
	j.planMu.Unlock()
	j.done(p)
}

func (j *Journal) cancelRecords(p *pending, code status.Code) []*record.Record {
	var out []*record.Record
	for _, r := range p.recs {
		c := &record.Record{Kind: record.Cancel, Upto: r.LSN, Status: uint16(code)}
		who(c, p.sub)
		out = append(out, c)
	}
	return out
}

// replan plans a change anew after a process of the server has changed the file
// between plan and apply: what it wrote is the before-image then. Later changes
// of the same files wait in their plans, so the order stays.
func (j *Journal) replan(p *pending) error {
	for {
		err := j.tryReplan(p)
		var image needImage
		switch {
		case errors.As(err, &image):
			if err := j.prepareImage(image); err != nil {
				return err
			}
		case internal(err): // to wait here would be to wait for itself
			return status.Again
		default:
			return err
		}
	}
}

func (j *Journal) tryReplan(p *pending) error {
	j.planMu.Lock()
	defer j.planMu.Unlock()
	for _, r := range p.recs {
		j.busy.drop(r)
		j.looseCancel(r)
	}
	fresh := &pending{Ticket: p.Ticket, sub: p.sub, order: p.order, files: p.files}
	j.local.replanning = true
	err := j.planLocked(fresh)
	j.local.replanning = false
	if err != nil {
		for _, r := range p.recs { // its turn is not over
			j.busy.add(r)
		}
		return err
	}
	if len(fresh.recs) == 0 { // nothing has to change any more: that is its result
		fresh.recs = []*record.Record{{Kind: record.Result}}
	}
	for _, r := range fresh.recs {
		who(r, p.sub)
	}
	if err := j.log.Append(append(j.cancelRecords(p, status.Again), fresh.recs...)...); err != nil {
		return err
	}
	for _, r := range fresh.recs {
		j.busy.add(r)
		j.looseAdd(r)
	}
	*p = *fresh
	return j.log.Commit()
}

// done publishes a result: the session keeps it for repetitions, waiting plans
// go on, the submitter gets its answer.
func (j *Journal) done(p *pending) {
	j.planMu.Lock()
	for _, r := range p.recs {
		j.busy.drop(r)
	}
	j.admittedLocked(p)
	j.lost.applied(p)
	j.sessionDone(p)
	j.planMu.Unlock()
	j.queueMu.Lock()
	j.applied = max(j.applied, p.order)
	j.localAppliedLocked()
	j.queueCond.Broadcast()
	j.queueMu.Unlock()
	close(p.done)
}

// fail makes the export read-only: after a failed write or sync of the log or of the
// file system nobody knows what is durable, and recovery has to find out.
func (j *Journal) fail(err error) {
	j.queueMu.Lock()
	defer j.queueMu.Unlock()
	j.failLocked(err)
}

func (j *Journal) failLocked(err error) {
	if j.failure == nil {
		j.failure = status.Newf(status.IO, "", "journal", "export is read-only since: %w", err)
		j.opts.Log.Error().Err(err).Msg("journal failed; the export is read-only until the server is started again")
	}
	j.queueCond.Broadcast()
}

func (j *Journal) failedErr() error {
	j.queueMu.Lock()
	defer j.queueMu.Unlock()
	return j.failureLocked()
}

// failureLocked also takes notice of a table that has failed. queueMu is held.
func (j *Journal) failureLocked() error {
	if err := j.tree.failure(); err != nil {
		j.failLocked(err)
	}
	return j.failure
}

func (j *Journal) usable() error {
	j.queueMu.Lock()
	defer j.queueMu.Unlock()
	switch {
	case j.failureLocked() != nil:
		return j.failure
	case j.stopped:
		return status.New(status.Draining, "", "journal")
	case j.opts.ReadOnly:
		return status.New(status.ReadOnly, "", "journal")
	}
	return nil
}

func (j *Journal) appliedLSN() proto.LSN {
	j.queueMu.Lock()
	defer j.queueMu.Unlock()
	return j.applied
}

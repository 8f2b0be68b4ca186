package wal

import (
	"sync"
	"time"

	"github.com/rs/zerolog"

	"cagefs.dev/cage/journal/record"
	"cagefs.dev/cage/journal/vfs"
	"cagefs.dev/cage/remote/proto"
	"cagefs.dev/cage/remote/status"
)

// Options of a log.
type Options struct {
	Dir         vfs.Dir // holds the segments and nothing else; stays the caller's
	SegmentSize int64   // bytes of a new segment; 0: 64 MiB. Every segment says its own.
	Now         func() proto.Time
	Log         zerolog.Logger

	// Floor is the newest LSN that the caller knows to have been durable, 0 if it
	// knows none. A log that ends before it, or begins after the next, is Damaged.
	Floor proto.LSN
	// ReadOnly changes nothing on disk: a torn tail just ends the log, there may
	// be no log at all, and Append is status.ReadOnly.
	ReadOnly bool
}

// Sizes.
const (
	// MaxRecord bounds a record with its images.
	MaxRecord = 4 << 20

	defaultSegment = 64 << 20
	minSegment     = 4 * record.SegmentHeaderSize
	maxSegment     = 1 << 31
	maxFrame       = 8 << 20 // bytes of a frame of more than one record

	// Of the allocated space 1/reservePart of a segment is kept for AppendReserved.
	reservePart = 64
	minReserve  = 1 << 10

	slowSync = time.Second
)

// Log is an open log. Safe for concurrent use.
//
// Lock order: mu, then index.mu.
type Log struct {
	// Set at construction.
	o     Options
	index *index
	cache *cache
	stop  chan struct{} // closed by Close: preparation ends

	out writer // owned by the call that set committing

	dropping sync.Mutex     // held by Drop
	prepares sync.WaitGroup // preparation goroutines

	mu      sync.Mutex
	changed sync.Cond // on mu: a commit or a preparation has ended, or the log was closed

	// Guarded by mu.
	last       proto.LSN  // newest appended
	time       proto.Time // its time
	durable    proto.LSN
	layout     layout     // where the next record goes
	batches    []*batch   // appended, not yet taken by a commit
	planned    []*segment // prepared segments that the layout uses and the writer has not reached
	pending    int        // bytes of frames appended and not durable
	committing bool
	prep       preparation
	skeletons  []byte // scratch of Append
	ends       []int  // scratch of Append
	failed     error  // the first failed write or sync
	closed     bool
	closeErr   error // result of Close
}

// Durable is the newest LSN that is durable.
func (l *Log) Durable() proto.LSN {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.durable
}

// Last is the newest LSN that was appended.
func (l *Log) Last() proto.LSN {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.last
}

// Oldest is the oldest LSN that is kept; when there is none, the one that the
// next commit begins with.
func (l *Log) Oldest() proto.LSN { return l.index.oldest() }

// Pending is the number of bytes appended and not yet committed.
func (l *Log) Pending() int {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.pending
}

// Failed returns the write or sync that failed, after which the log takes
// nothing more; nil while it is sound.
func (l *Log) Failed() error {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.failed
}

// usableLocked returns why nothing can be appended. l.mu is held.
func (l *Log) usableLocked(op string) error {
	switch {
	case l.failed != nil:
		return l.failed
	case l.closed:
		return status.Newf(status.Draining, op, "log", "closed")
	case l.o.ReadOnly:
		return status.New(status.ReadOnly, op, "log")
	}
	return nil
}

// Segment describes a segment file.
type Segment struct {
	Name  string
	First proto.LSN
	Last  proto.LSN // 0: the segment in use
	Bytes int64
}

// Segments lists the segments, oldest first.
func (l *Log) Segments() []Segment { return l.index.segments() }

// Drop forgets the oldest segments as long as all their records are below lsn;
// never the segment in use. A failed sync of the directory fails the log.
func (l *Log) Drop(lsn proto.LSN) error {
	l.dropping.Lock()
	defer l.dropping.Unlock()
	l.mu.Lock()
	err := l.usableLocked("drop")
	l.mu.Unlock()
	for err == nil {
		seg := l.index.dropOldest(lsn)
		if seg == nil {
			return nil
		}
		// One after the other, so that a cut leaves no hole.
		if err = l.o.Dir.Remove(seg.name); err != nil {
			l.index.putBack(seg)
			return status.Wrap(err, "drop", seg.name)
		}
		l.index.release(seg)
		if err = l.o.Dir.Sync(); err != nil {
			err = l.fail(status.Wrap(err, "drop", seg.name))
		}
		l.mu.Lock()
		l.prep.retryAt = time.Time{} // there is space now
		l.mu.Unlock()
	}
	return err
}

// fail makes the log fail for good and returns the failure that did.
func (l *Log) fail(err error) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.failed == nil {
		l.failed = err
		l.o.Log.Error().Err(err).Msg("log failed: nothing more is appended")
	}
	l.changed.Broadcast()
	return l.failed
}

// Close writes and syncs what is pending and marks the log as ended in order.
// Calls that read at the time still end well. Closing again gives the same result.
func (l *Log) Close() error {
	l.mu.Lock()
	if l.closed {
		defer l.mu.Unlock()
		for l.stop != nil {
			l.changed.Wait()
		}
		return l.closeErr
	}
	l.closed = true
	close(l.stop)
	l.changed.Broadcast()
	l.mu.Unlock()

	l.prepares.Wait()
	err := l.Commit()
	if err == nil && !l.o.ReadOnly {
		if err = l.out.close(); err != nil {
			err = l.fail(err)
		}
	}
	l.index.close()

	l.mu.Lock()
	defer l.mu.Unlock()
	for _, seg := range append(l.planned, l.layout.free...) {
		seg.file.Close()
	}
	l.closeErr = err
	l.stop = nil
	l.changed.Broadcast()
	return err
}

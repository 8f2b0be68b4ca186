// Package wal keeps an export's log: segment files of frames, appended and made
// durable in groups, read by LSN, scanned from any place.
//
// It promises that a record is durable when Commit has returned for it, that
// what it reads back is what was appended or an error, and that opening after a
// cut at any byte yields a prefix of what was appended that contains everything
// committed. It must not know what records mean.
package wal

import (
	"github.com/rs/zerolog"

	"cagefs.dev/cage/journal/record"
	"cagefs.dev/cage/journal/vfs"
	"cagefs.dev/cage/remote/proto"
)

// Options of a log.
type Options struct {
	Dir         vfs.Dir // holds the segments and nothing else; stays the caller's
	SegmentSize int64   // bytes of a segment; 0: 64 MiB. Every segment says its own.
	Now         func() proto.Time
	Log         zerolog.Logger
}

// Log is an open log. Safe for concurrent use.
type Log struct{ unfinished struct{} }

// Open opens or creates the log in a directory. A torn tail is kept beside the
// segment (NAME.torn) and cut off durably; damage in the middle is
// status.Damaged with the place, and nothing is changed.
func Open(o Options) (*Log, error) { panic("wal: being written") }

// Append gives the records their LSNs and times, in order and without gaps, and
// puts them into the open batch. They are durable only after Commit. It does
// not block on the disk. Images are referenced until they are written: the
// caller must not change them any more. A record over MaxRecord bytes is
// status.Invalid; after a failed write or sync every call returns that failure.
func (l *Log) Append(recs ...*record.Record) error { panic("wal: being written") }

// MaxRecord bounds a record with its images.
const MaxRecord = 4 << 20

// Commit writes all appended records and makes them durable (one fdatasync,
// more only when a segment ends). One call at a time does the work, others wait
// for one that began after their Append.
func (l *Log) Commit() error { panic("wal: being written") }

// Durable is the newest LSN that is durable; Last the newest appended; Oldest
// the oldest that is kept, or Last+1 when there is none.
func (l *Log) Durable() proto.LSN { panic("wal: being written") }

// Last is the newest LSN that was appended.
func (l *Log) Last() proto.LSN { panic("wal: being written") }

// Oldest is the oldest LSN that is kept, Last+1 when there is none.
func (l *Log) Oldest() proto.LSN { panic("wal: being written") }

// Pending is the number of bytes appended and not yet committed.
func (l *Log) Pending() int { panic("wal: being written") }

// Scan calls f for each committed record with LSN >= from in order, until f
// fails. The record is f's to keep.
func (l *Log) Scan(from proto.LSN, images bool, f func(*record.Record) error) error {
	panic("wal: being written")
}

// Read returns a committed record: status.NoHistory if it is no longer kept,
// status.NotFound if it does not exist yet.
func (l *Log) Read(lsn proto.LSN, images bool) (*record.Record, error) { panic("wal: being written") }

// AtTime returns the newest committed LSN whose time is not after t, 0 if there is none.
func (l *Log) AtTime(t proto.Time) proto.LSN { panic("wal: being written") }

// Drop forgets the oldest segments as long as all their records are below lsn;
// never the segment in use.
func (l *Log) Drop(lsn proto.LSN) error { panic("wal: being written") }

// Segment describes a segment file.
type Segment struct {
	Name  string
	First proto.LSN
	Last  proto.LSN // 0: the segment in use
	Bytes int64
}

// Segments lists the segments, oldest first.
func (l *Log) Segments() []Segment { panic("wal: being written") }

// Report is what Verify found.
type Report struct {
	Segments, Frames, Records, Bytes uint64
	Problems                         []string
}

// Verify reads everything that is committed: frames, both chains, order, and with full also
// every record and image. It goes on after damage as far as it can.
func (l *Log) Verify(full bool) (Report, error) { panic("wal: being written") }

// Close writes and syncs what is pending and marks the log as ended in order.
func (l *Log) Close() error { panic("wal: being written") }

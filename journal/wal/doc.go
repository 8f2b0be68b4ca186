// Package wal keeps an export's log: segment files of frames, appended and made
// durable in groups, read by LSN, scanned from any place.
//
// It promises that a record is durable when Commit has returned for it, that
// what it reads back is what was appended or an error, and that opening after a
// cut at any byte yields a prefix of what was appended that contains everything
// committed. It must not know what records mean.
//
// # Files
//
//	NNNNNNNNNNNNNNNNNNNN.wal   a segment, named by its first LSN (package record has the bytes)
//	NNNN.wal.torn[.N]          what a torn tail was before it was cut off; never read
//	N.free                     a prepared segment: zeros, durable, not in use
//	N.tmp                      one being prepared; removed when the log is opened
//
// # Crash argument
//
// The disk is assumed to keep what a successful fdatasync, fsync or directory
// sync covered, to lose or keep anything else in pieces and in any order, and
// not to harm bytes of a sector that are written again with what they were.
//
// Commit writes frames behind the last one, then one fdatasync: the records are
// committed when it returns. A cut before that leaves any part of them. Segments
// have their size from the start, so no size has to become durable.
//
// A segment ends in this order: end mark, fdatasync; header of the prepared
// segment, fdatasync; its rename to its name; sync of the directory; then its
// first frame. So a segment with a name has a whole header, and a segment with a
// successor was durable to its end mark before that got its name. A cut between
// these steps leaves an ended last segment, or an empty one, and perhaps a
// prepared one.
//
// A frame says up to which LSN all was durable when it was built (synced). Let x
// be where the last segment has its first place that is no good frame, and n the
// LSN missing there. A frame behind x with synced >= n, or a caller who knows that
// n was durable (Options.Floor), proves that x was damaged after it was durable:
// status.Damaged, and nothing is touched. Otherwise nobody was ever told that n
// is durable, except of the very last commit, which has no witness behind it: it
// is the caller's floor and the mark of an orderly Close that guard it.
// A bad frame in any other segment is damage.
//
// # Recovery
//
//  1. The segments, in order of their names, follow each other without gap: names,
//     headers, end marks and chains agree.
//  2. x is found and judged as above.
//  3. Bytes from x to the last that are not zeros are copied to NAME.torn, which
//     is made durable; then they are zeroed. What is before x and has no witness
//     of being durable is written again. The segment and the directory are synced.
//     Only then is anything appended: no old frame can be behind a new one.
//  4. Leftovers of preparation are taken over or removed.
package wal

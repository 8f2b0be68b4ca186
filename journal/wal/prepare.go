package wal

import (
	"fmt"
	"strings"
	"time"

	"cagefs.dev/cage/journal/vfs"
	"cagefs.dev/cage/remote/status"
)

const (
	freeSuffix = ".free"
	tmpSuffix  = ".tmp"

	zeroChunk = 1 << 20

	// prepareAgain is how long a failed preparation is not tried again: it may
	// write a whole segment before it finds the disk full.
	prepareAgain = time.Second
)

// preparation is the state of making segments ready. Guarded by Log.mu.
type preparation struct {
	running bool
	no      uint64    // of the last prepared file
	err     error     // of the last attempt
	retryAt time.Time // not before, when there is an err
}

// prepareLocked starts the preparation of a segment, unless one is running or has
// just failed. l.mu is held.
func (l *Log) prepareLocked() {
	if l.prep.running || l.closed || l.prep.err != nil && time.Now().Before(l.prep.retryAt) {
		return
	}
	l.prep.running = true
	l.prep.no++
	no, stop := l.prep.no, l.stop
	l.prepares.Go(func() {
		seg, err := prepare(l.o.Dir, no, l.o.SegmentSize, stop)
		l.mu.Lock()
		defer l.mu.Unlock()
		l.prep.running = false
		l.prep.err = err
		if err == nil {
			l.layout.free = append(l.layout.free, seg)
		} else {
			l.prep.retryAt = time.Now().Add(prepareAgain)
			l.o.Log.Warn().Err(err).Msg("next segment of the log cannot be prepared")
		}
		l.changed.Broadcast()
	})
}

// Lacking is the disk space in bytes that the log takes next: a segment, until
// one is prepared in full.
func (l *Log) Lacking() int64 {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.o.ReadOnly || len(l.layout.free) > 0 {
		return 0
	}
	return l.o.SegmentSize
}

// awaitSegmentLocked waits until one more segment is prepared, or returns why it
// is not. l.mu is held, but not while waiting.
func (l *Log) awaitSegmentLocked() error {
	l.prepareLocked()
	if !l.prep.running {
		return l.prep.err // closed is for the caller to see
	}
	for l.prep.running {
		l.changed.Wait()
	}
	return l.prep.err
}

// prepare writes a segment of zeros and makes it durable. After a failure nothing
// is left of it.
func prepare(dir vfs.Dir, no uint64, size int64, stop <-chan struct{}) (*segment, error) {
	tmp, name := fmt.Sprintf("%d%s", no, tmpSuffix), fmt.Sprintf("%d%s", no, freeSuffix)
	file, err := dir.Create(tmp, 0o600)
	if err != nil {
		return nil, status.Wrap(err, "prepare", "segment")
	}
	if err = fill(file, size, stop); err == nil {
		// Not synced: whoever takes it into use syncs the directory.
		err = dir.Rename(tmp, dir, name, vfs.RenameNoReplace)
	}
	if err != nil {
		file.Close()
		if rm := dir.Remove(tmp); rm != nil {
			err = fmt.Errorf("%w (and it cannot be removed: %v)", err, rm)
		}
		return nil, status.Wrap(err, "prepare", "segment")
	}
	return &segment{file: file, name: name, size: size, refs: 1}, nil
}

// fill writes zeros: blocks that were only allocated cost every commit the
// update of the file's extents.
func fill(file vfs.File, size int64, stop <-chan struct{}) error {
	zeros := make([]byte, min(size, zeroChunk))
	for off := int64(0); off < size; off += int64(len(zeros)) {
		select {
		case <-stop:
			return status.Draining
		default:
		}
		if _, err := file.WriteAt(zeros[:min(int64(len(zeros)), size-off)], off); err != nil {
			return err
		}
	}
	return file.Sync()
}

// adopt takes over what an earlier life of the log had prepared, and removes the rest.
func adopt(o Options, names []string) (free []*segment, no uint64, err error) {
	for _, name := range names {
		var n uint64
		if _, err := fmt.Sscanf(name, "%d", &n); err == nil {
			no = max(no, n)
		}
		if strings.HasSuffix(name, freeSuffix) {
			file, err := o.Dir.Open(name, true)
			if err != nil {
				return free, no, status.Wrap(err, "open", name)
			}
			info, err := file.Stat()
			if err != nil {
				file.Close()
				return free, no, status.Wrap(err, "stat", name)
			}
			if info.Size == o.SegmentSize {
				free = append(free, &segment{file: file, name: name, size: info.Size, refs: 1})
				continue
			}
			file.Close()
		}
		if err := o.Dir.Remove(name); err != nil {
			return free, no, status.Wrap(err, "remove", name)
		}
	}
	return free, no, nil
}

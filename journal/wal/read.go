package wal

import (
	"sync"

	"cagefs.dev/cage/journal/record"
	"cagefs.dev/cage/remote/proto"
)

// Scan calls f for each record with LSN >= from that is committed when Scan
// begins, in order, from the oldest that is kept, until f fails. The record is
// f's to keep. A segment that is dropped before Scan comes to it is
// status.NoHistory.
func (l *Log) Scan(from proto.LSN, images bool, f func(*record.Record) error) error {
	end := l.Durable()
	for lsn := max(from, l.Oldest()); lsn <= end; {
		next, err := l.scanFrame(lsn, images, f)
		if err != nil {
			return err
		}
		lsn = next
	}
	return nil
}

// scanFrame calls f for the records from lsn on in its frame and returns the LSN
// after them.
func (l *Log) scanFrame(lsn proto.LSN, images bool, f func(*record.Record) error) (proto.LSN, error) {
	seg, e, err := l.index.find("scan", lsn)
	if err != nil {
		return 0, err
	}
	defer l.index.release(seg)
	d, err := seg.decode(e)
	if err != nil {
		return 0, err
	}
	for i, r := range d.recs {
		if r.LSN < lsn {
			continue
		}
		if images {
			if err := seg.readImages(r, d.images[i]); err != nil {
				return 0, err
			}
		}
		if err := f(r); err != nil {
			return 0, err
		}
	}
	return e.first + proto.LSN(len(d.recs)), nil
}

// Read returns a committed record, which is the caller's: status.NoHistory if it
// is no longer kept, status.NotFound if it does not exist yet.
func (l *Log) Read(lsn proto.LSN, images bool) (*record.Record, error) {
	seg, e, err := l.index.find("read", lsn)
	if err != nil {
		return nil, err
	}
	defer l.index.release(seg)
	d, err := l.cache.decode(seg, e)
	if err != nil {
		return nil, err
	}
	i := lsn - e.first
	r := d.recs[i].Clone()
	if images {
		if err := seg.readImages(r, d.images[i]); err != nil {
			return nil, err
		}
	}
	return r, nil
}

// AtTime returns the newest committed LSN whose time is not after t, 0 if there
// is none that is kept. It may have to read a frame.
func (l *Log) AtTime(t proto.Time) (proto.LSN, error) {
	first := l.index.atTime(t)
	if first == 0 {
		return 0, nil
	}
	seg, e, err := l.index.find("find time in", first)
	if err != nil {
		return 0, err
	}
	defer l.index.release(seg)
	d, err := l.cache.decode(seg, e)
	if err != nil {
		return 0, err
	}
	n := 0
	for n < len(d.recs) && d.recs[n].Time <= t {
		n++
	}
	return e.first + proto.LSN(n) - 1, nil
}

// decoded is a frame's records without images.
type decoded struct {
	recs   []*record.Record
	images []int64 // where each one's images begin in the segment
	cost   int     // bytes of the skeleton section
}

// decode reads and decodes a committed frame.
func (s *segment) decode(e entry) (*decoded, error) {
	f, _, err := s.readFrame(int64(e.off), int(e.skeletons), nil)
	if err == nil && f.First != e.first {
		err = record.ErrRot
	}
	var recs []*record.Record
	if err == nil {
		recs, err = f.Decode()
	}
	if err != nil {
		if isBad(err) {
			err = damaged("read", s.name, int64(e.off), err)
		}
		return nil, err
	}
	d := &decoded{recs: recs, images: make([]int64, len(recs)), cost: int(e.skeletons)}
	off := imagesAt(int64(e.off), f)
	for i, r := range recs {
		d.images[i] = off
		off += int64(r.ImageLen)
	}
	return d, nil
}

// Bounds of the cache.
const (
	cacheFrames = 64
	cacheBytes  = 4 << 20 // of skeleton sections
)

// cache keeps the frames that were read last.
type cache struct {
	mu     sync.Mutex
	frames []cached // the last used one at the end; guarded by mu
	bytes  int      // guarded by mu
}

type cached struct {
	first proto.LSN
	*decoded
}

// decode is segment.decode through the cache. The result is shared.
func (c *cache) decode(seg *segment, e entry) (*decoded, error) {
	if d := c.get(e.first); d != nil {
		return d, nil
	}
	d, err := seg.decode(e)
	if err != nil {
		return nil, err
	}
	c.put(e.first, d)
	return d, nil
}

func (c *cache) get(first proto.LSN) *decoded {
	c.mu.Lock()
	defer c.mu.Unlock()
	for i, f := range c.frames {
		if f.first == first {
			copy(c.frames[i:], c.frames[i+1:])
			c.frames[len(c.frames)-1] = f
			return f.decoded
		}
	}
	return nil
}

// put adds a frame. Two readers that missed it at the same time add it twice; the
// copies leave one after the other.
func (c *cache) put(first proto.LSN, d *decoded) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.frames = append(c.frames, cached{first, d})
	c.bytes += d.cost
	for len(c.frames) > cacheFrames || c.bytes > cacheBytes && len(c.frames) > 1 {
		c.bytes -= c.frames[0].cost
		c.frames[0] = cached{}
		c.frames = c.frames[1:]
	}
}

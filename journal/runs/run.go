package runs

import (
	"encoding/binary"
	"io"
	"sort"
	"strconv"
	"sync/atomic"

	"cagefs.dev/cage/journal/vfs"
	"cagefs.dev/cage/remote/status"
)

// Name is a run as who uses it remembers it.
type Name struct {
	Number uint64
	Sum    uint32 // of all that is in it
}

func (n Name) file() string { return strconv.FormatUint(n.Number, 10) }

// run is an open run.
type run struct {
	Name
	f     vfs.File
	size  int64
	index []indexEntry
	cache *Cache
	refs  atomic.Int32 // views that have it
}

// openRun reads the index of a run. It takes f over, also when it fails.
func openRun(f vfs.File, number uint64, cache *Cache) (r *run, err error) {
	r = &run{Name: Name{Number: number}, f: f, cache: cache}
	if err = r.readIndex(); err != nil {
		f.Close()
		return nil, status.Wrap(err, "open", "table/"+r.file())
	}
	return r, nil
}

func (r *run) readIndex() error {
	info, err := r.f.Stat()
	if err != nil {
		return err
	}
	r.size = info.Size
	if r.size < headerSize+footerSize {
		return damaged("the file is too short")
	}
	head, err := r.read(0, headerSize)
	if err != nil {
		return err
	}
	if string(head[:len(magic)]) != magic {
		return damaged("the file is none of Cage's tables")
	}
	if v := binary.LittleEndian.Uint32(head[len(magic):]); v != version {
		return status.Newf(status.Version, "", "", "it is of version %d, this program reads %d", v, version)
	}
	foot, err := r.read(r.size-footerSize, footerSize)
	if err != nil {
		return err
	}
	r.Sum = binary.LittleEndian.Uint32(foot[20:])
	at, n := binary.LittleEndian.Uint64(foot), binary.LittleEndian.Uint32(foot[8:])
	if checksum(foot[:20]) != r.Sum || at < headerSize || at+uint64(n)+footerSize != uint64(r.size) {
		return damaged("the file's end is not what was written")
	}
	index, err := r.read(int64(at), int(n))
	if err != nil {
		return err
	}
	if checksum(index) != binary.LittleEndian.Uint32(foot[12:]) {
		return damaged("the index is not what was written")
	}
	r.index, err = decodeIndex(index, int64(at))
	return err
}

func (r *run) read(off int64, n int) ([]byte, error) {
	b := make([]byte, n)
	if m, err := r.f.ReadAt(b, off); m < n {
		if err == nil || err == io.EOF {
			err = io.ErrUnexpectedEOF
		}
		return nil, err
	}
	return b, nil
}

// load reads a block from the file.
func (r *run) load(i int) (block, error) {
	x := &r.index[i]
	b, err := r.read(x.off, int(x.len))
	if err == nil && checksum(b) != x.sum {
		err = damaged("a block is not what was written")
	}
	var out block
	if err == nil {
		out, err = openBlock(b)
	}
	return out, status.Wrap(err, "read", "table/"+r.file())
}

// cached is load through the cache.
func (r *run) cached(i int) (block, error) {
	k := blockKey{r, i}
	if b, ok := r.cache.get(k); ok {
		return b, nil
	}
	b, err := r.load(i)
	if err == nil {
		r.cache.put(k, b, int(r.index[i].len))
	}
	return b, err
}

// find returns the index of the block that may have a key.
func (r *run) find(key []byte) int {
	return sort.Search(len(r.index), func(i int) bool { return r.index[i].first > string(key) }) - 1
}

// get looks a key up. The value is shared.
func (r *run) get(key []byte) (e Entry, ok bool, err error) {
	i := r.find(key)
	if i < 0 {
		return e, false, nil
	}
	b, err := r.cached(i)
	if err != nil {
		return e, false, err
	}
	j, err := b.seek(key)
	if err != nil || j == b.len() {
		return e, false, err
	}
	e, err = b.at(j)
	return e, err == nil && string(e.Key) == string(key), err
}

// cursor goes through a run, past the cache.
type cursor struct {
	r     *run
	block block
	next  int // block
	i     int // entry of block
}

// from makes a cursor that begins with the first key not below key.
func (r *run) from(key []byte) (*cursor, error) {
	c := &cursor{r: r, next: max(r.find(key), 0)}
	if c.next == len(r.index) {
		return c, nil
	}
	b, err := r.load(c.next)
	if err != nil {
		return nil, err
	}
	c.block, c.next = b, c.next+1
	c.i, err = b.seek(key)
	return c, err
}

// Next implements Source.
func (c *cursor) Next() (Entry, bool, error) {
	for c.i == c.block.len() {
		if c.next == len(c.r.index) {
			return Entry{}, false, nil
		}
		b, err := c.r.load(c.next)
		if err != nil {
			return Entry{}, false, err
		}
		c.block, c.next, c.i = b, c.next+1, 0
	}
	e, err := c.block.at(c.i)
	c.i++
	return e, err == nil, err
}

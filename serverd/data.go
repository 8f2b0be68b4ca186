package serverd

import (
	"errors"
	"io"
	"math"

	"cagefs.dev/cage/remote/proto"
	"cagefs.dev/cage/remote/status"
	"cagefs.dev/cage/remote/wire"
)

// Requests about open files and their bytes.

func open(c *call, m *wire.OpenReq) (wire.Message, error) {
	if m.Flags&^(wire.OpenRead|wire.OpenWrite) != 0 {
		return nil, status.Invalid
	}
	v, err := c.view(m.At)
	if err != nil {
		return nil, err
	}
	who := c.who(m.Ident)
	a, err := c.at(v, m.At, m.ID, who)
	if err != nil {
		return nil, err
	}
	if err := c.mayOpen(v, m.At, &a, who, m.Flags); err != nil {
		return nil, err
	}
	if m.At != 0 {
		// The past needs no hold and grants nothing in the present; the open is
		// counted, for its release will be.
		if err := c.sess.open(m.ID, 0, 0); err != nil {
			return nil, err
		}
		return &wire.AttrRep{Attr: a}, nil
	}
	if err := c.exp.Journal.Hold(m.ID); err != nil {
		return nil, err
	}
	if err := c.enter(m.ID, m.Flags); err != nil {
		c.exp.Journal.Unhold(m.ID, 1)
		return nil, err
	}
	c.counted() // what follows may wait for others
	mode := proto.ReadLease
	if m.Flags&wire.OpenWrite != 0 {
		mode = proto.WriteLease
	}
	if a, err = c.leasedAttr(v, m.At, m.ID, mode); err != nil {
		c.sess.release(m.ID, 1)
		return nil, err
	}
	return &wire.AttrRep{Attr: a}, nil
}

func release(c *call, m *wire.ReleaseReq) (wire.Message, error) {
	c.c.opening.Lock()
	defer c.c.opening.Unlock()
	c.sess.release(m.ID, m.N)
	return &wire.Empty{}, nil
}

// readTries is how often a read is begun again because the file shrank meanwhile.
const readTries = 3

// read answers with bytes, and with size and change number from before they
// were read: a page that is newer than its number is fetched again once too
// often, one that is older than its number would be stale for ever.
func read(c *call, m *wire.ReadReq) (wire.Message, error) {
	if m.Off > math.MaxInt64-proto.MaxIO {
		return nil, status.Invalid
	}
	v, err := c.view(m.At)
	if err != nil {
		return nil, err
	}
	if err := c.look(m.At, m.ID); err != nil {
		return nil, err
	}
	who := c.who(m.Ident)
	var buf []byte
	for range readTries {
		a, err := c.readable(v, m.At, m.ID, who)
		if err != nil {
			return nil, err
		}
		want := wantedOf(m, a.Size)
		if uint64(cap(buf)) < want {
			buf = make([]byte, want)
		}
		n, err := readFull(v, m, buf[:want])
		if err != nil {
			return nil, err
		}
		if uint64(n) == want {
			return &wire.ReadRep{Change: a.Change, Size: a.Size, Data: buf[:n]}, nil
		}
	}
	return nil, status.Newf(status.Again, "read", m.ID.String(), "the file is being cut again and again")
}

// readable returns the attributes of a regular file whose bytes may be read.
func (c *call) readable(v view, at proto.LSN, id proto.FileID, who *proto.Ident) (proto.Attr, error) {
	a, err := c.regular(v, at, id, who)
	if err != nil {
		return a, err
	}
	return a, c.mayRead(v, at, &a, who)
}

// regular returns the attributes of a file that must be a regular one.
func (c *call) regular(v view, at proto.LSN, id proto.FileID, who *proto.Ident) (proto.Attr, error) {
	a, err := c.at(v, at, id, who)
	switch {
	case err != nil:
		return a, err
	case a.IsDir():
		return a, status.IsDir
	case !a.IsRegular():
		return a, status.Invalid
	}
	return a, nil
}

// seek tells where data or a hole begins, to those who have the file open, also
// for writing only, or may read it.
func seek(c *call, m *wire.SeekReq) (wire.Message, error) {
	if m.Off > math.MaxInt64 || m.Whence != wire.SeekData && m.Whence != wire.SeekHole {
		return nil, status.Invalid
	}
	v, err := c.view(m.At)
	if err != nil {
		return nil, err
	}
	if err := c.look(m.At, m.ID); err != nil {
		return nil, err
	}
	who := c.who(m.Ident)
	a, err := c.regular(v, m.At, m.ID, who)
	if err == nil && (m.At != 0 || c.sess.openFlags(a.ID) == 0) {
		err = c.mayRead(v, m.At, &a, who)
	}
	if err != nil {
		return nil, err
	}
	off, err := v.Seek(m.ID, int64(m.Off), m.Whence == wire.SeekHole)
	if err != nil {
		return nil, err
	}
	return &wire.SeekRep{Off: uint64(off)}, nil
}

// wantedOf is how many of the bytes that are asked for a file of that size has.
func wantedOf(m *wire.ReadReq, size uint64) uint64 {
	if m.Off >= size {
		return 0
	}
	return min(uint64(m.Len), proto.MaxIO, size-m.Off)
}

func readFull(v view, m *wire.ReadReq, buf []byte) (int, error) {
	if len(buf) == 0 {
		return 0, nil
	}
	n, err := v.ReadAt(m.ID, buf, int64(m.Off))
	if errors.Is(err, io.EOF) {
		err = nil
	}
	return n, err
}

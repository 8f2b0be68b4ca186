package replay

import (
	"bytes"
	"fmt"
	"io"
	"slices"
	"strings"

	"cagefs.dev/cage/journal/record"
	"cagefs.dev/cage/remote/proto"
	"cagefs.dev/cage/remote/status"
)

const block = record.BlockSize

// restoreFiles brings contents and attributes back, directories last: their
// times change with their entries.
func (e *engine) restoreFiles() error {
	var dirs []proto.FileID
	for _, id := range e.files {
		if err := e.ctx.Err(); err != nil {
			return err
		}
		a, err := e.past.Attr(id)
		if status.Of(err) == status.Stale {
			continue
		}
		if err != nil {
			return err
		}
		if a.IsDir() {
			dirs = append(dirs, id)
			continue
		}
		if err := e.restoreFile(id, &a); err != nil {
			return err
		}
	}
	for n := proto.MaxFileID + 1; n <= proto.MaxFileID+proto.FileID(len(e.copyOf)); n++ {
		if err := e.fillCopy(e.copyOf[n], e.made[n]); err != nil {
			return err
		}
	}
	for id := range e.touched {
		if e.past.Existed(id) && e.timed(id) {
			dirs = append(dirs, id)
		}
	}
	slices.Sort(dirs)
	for _, id := range slices.Compact(dirs) {
		a, err := e.past.Attr(id)
		if err != nil {
			return err
		}
		if err := e.restoreAttrs(id, &a, false); err != nil {
			return err
		}
	}
	return nil
}

// restoreFile brings back one file that is no directory.
func (e *engine) restoreFile(id proto.FileID, then *proto.Attr) error {
	changed := false
	if then.Type() == proto.ModeRegular {
		var err error
		if changed, err = e.restoreContent(id, then); err != nil {
			return err
		}
	}
	return e.restoreAttrs(id, then, changed)
}

// leaks refuses to change a file that has a name outside of the scope as well.
func (e *engine) leaks(id proto.FileID, path string) error {
	for _, q := range e.j.Places(id) {
		if e.placeIs(q) == outside {
			e.step(proto.PlanStep{Action: "conflict", Path: path, From: e.pathNow(q),
				Detail: fmt.Sprintf("%s is the same file and would change as well", e.pathNow(q))})
			return e.conflict()
		}
	}
	return nil
}

// filePath is a path of a file as it will be.
func (e *engine) filePath(id proto.FileID) string {
	if id == proto.RootID {
		return ""
	}
	places, err := e.past.Places(id)
	if err != nil || len(places) == 0 {
		return id.String()
	}
	return e.pathThen(places[0], map[proto.FileID]string{})
}

// restoreAttrs brings mode, owner, time of modification and extended attributes back.
func (e *engine) restoreAttrs(id proto.FileID, then *proto.Attr, quiet bool) error {
	old, err := e.tx.Attrs(id)
	if err != nil {
		return err
	}
	upd := old
	upd.Mode, upd.UID, upd.GID = then.Mode, then.UID, then.GID
	if !e.keepTime[id] {
		upd.Mtime = then.Mtime
	}
	xattrs, err := e.restoreXattrs(id)
	if err != nil {
		return err
	}
	var what []string
	if old.Mode != upd.Mode {
		what = append(what, fmt.Sprintf("mode %04o, now %04o", upd.Mode&proto.ModePerm, old.Mode&proto.ModePerm))
	}
	if old.UID != upd.UID || old.GID != upd.GID {
		what = append(what, fmt.Sprintf("owner %d:%d, now %d:%d", upd.UID, upd.GID, old.UID, old.GID))
	}
	what = append(what, xattrs...)
	if old.Mtime != upd.Mtime && len(what) == 0 && !quiet && !then.IsDir() {
		what = append(what, "time "+upd.Mtime.String())
	}
	if len(what) > 0 {
		path := e.filePath(id)
		if err := e.leaks(id, path); err != nil {
			return err
		}
		e.step(proto.PlanStep{Action: "attributes", Path: path, Detail: strings.Join(what, "; ")})
	}
	e.tx.SetAttr(id, old, upd)
	return nil
}

// restoreXattrs brings the extended attributes of a file back and names those that differed.
func (e *engine) restoreXattrs(id proto.FileID) (what []string, err error) {
	then, err := e.past.ListXattr(id)
	if err != nil {
		return nil, err
	}
	now, err := e.j.ListXattr(id)
	if err != nil {
		return nil, err
	}
	names := append(slices.Clone(then), now...)
	slices.Sort(names)
	for _, name := range slices.Compact(names) {
		had, has := slices.Contains(now, name), slices.Contains(then, name)
		var old, value []byte
		if had {
			if old, err = e.j.GetXattr(id, name); err != nil {
				return nil, err
			}
		}
		if has {
			if value, err = e.past.GetXattr(id, name); err != nil {
				return nil, err
			}
		}
		if had == has && bytes.Equal(old, value) {
			continue
		}
		e.tx.SetXattr(id, name, old, had, value, has)
		what = append(what, name)
	}
	return what, nil
}

// content is a file's content being brought back.
type content struct {
	e     *engine
	id    proto.FileID
	size  uint64 // in the course of the transaction
	moved uint64 // bytes written or punched
	do    action // of the run that is being collected
	from  int64
	run   []byte
}

type action uint8

const (
	keepBlock action = iota
	writeBlock
	punchBlock
)

// add takes in the next block.
func (c *content) add(do action, off int64, b []byte) {
	if do != c.do || off != c.from+int64(len(c.run)) || len(c.run)+len(b) > proto.MaxIO {
		c.flush()
		c.do, c.from = do, off
	}
	if do != keepBlock {
		c.run = append(c.run, b...)
	} else {
		c.from = off + int64(len(b))
	}
}

// flush writes the run.
func (c *content) flush() {
	if len(c.run) == 0 {
		return
	}
	n := uint64(len(c.run))
	if c.do == punchBlock {
		c.e.tx.Punch(c.id, c.size, uint64(c.from), n)
	} else {
		c.e.tx.Write(c.id, c.size, uint64(c.from), bytes.Clone(c.run))
		c.size = max(c.size, uint64(c.from)+n)
	}
	c.moved += n
	c.run = c.run[:0]
}

// restoreContent brings size and bytes of a file back, where they differ.
func (e *engine) restoreContent(id proto.FileID, then *proto.Attr) (bool, error) {
	now, err := e.j.Attr(id)
	if err != nil {
		return false, err
	}
	ranges, err := e.past.Touched(id)
	if err != nil {
		return false, err
	}
	c := &content{e: e, id: id, size: now.Size}
	if then.Size < c.size {
		e.tx.Truncate(id, c.size, then.Size)
		c.size = then.Size
	}
	next := int64(0)
	for _, r := range ranges {
		from, to := max(next, r.From/block*block), min((r.To+block-1)/block*block, int64(then.Size))
		for ; from < to; from += proto.MaxIO {
			if err := e.ctx.Err(); err != nil {
				return false, err
			}
			if from, err = e.skipHoles(id, from, to); err != nil {
				return false, err
			}
			if from == to {
				break
			}
			if err := c.compare(from, min(from+proto.MaxIO, to), int64(min(now.Size, then.Size))); err != nil {
				return false, err
			}
		}
		next = max(next, to)
	}
	c.flush()
	if c.size < then.Size {
		e.tx.Truncate(id, c.size, then.Size)
	}
	if c.moved == 0 && now.Size == then.Size {
		return false, nil
	}
	path := e.filePath(id)
	if err := e.leaks(id, path); err != nil {
		return false, err
	}
	e.step(proto.PlanStep{Action: "content", Path: path,
		Detail: fmt.Sprintf("%d bytes; size %d, now %d", c.moved, then.Size, now.Size)})
	return true, nil
}

// skipHoles returns where at or after pos, the beginning of a block, the first
// block begins in which a file has or had data; to where there is none before it.
func (e *engine) skipHoles(id proto.FileID, pos, to int64) (int64, error) {
	then, _, was, err := e.past.NextData(id, pos)
	if err != nil {
		return 0, err
	}
	now, _, is, err := e.j.NextData(id, pos)
	if err != nil {
		return 0, err
	}
	next := to
	if was {
		next = min(next, then/block*block)
	}
	if is {
		next = min(next, now/block*block)
	}
	return next, nil
}

// compare brings a range back that begins with a block. Up to size the file has bytes now.
func (c *content) compare(from, to, size int64) error {
	then := make([]byte, to-from)
	if err := readFull(c.e.past, c.id, then, from); err != nil {
		return err
	}
	now := make([]byte, to-from)
	if from < size {
		if err := readFull(c.e.j, c.id, now[:min(to, size)-from], from); err != nil {
			return err
		}
	}
	for off := from; off < to; off += block {
		end := min(off+block, to)
		a, b := then[off-from:end-from], now[off-from:end-from]
		switch {
		case bytes.Equal(a, b): // beyond the end as well: what comes there is zeros
			c.add(keepBlock, off, a)
		case allZero(a) && end <= size:
			c.add(punchBlock, off, a)
		default:
			c.add(writeBlock, off, a)
		}
	}
	return nil
}

type readerAt interface {
	ReadAt(proto.FileID, []byte, int64) (int, error)
}

// readFull reads a range; what a process of the server has cut off is zeros.
func readFull(r readerAt, id proto.FileID, b []byte, off int64) error {
	_, err := r.ReadAt(id, b, off)
	if err == io.EOF {
		return nil
	}
	return err
}

func allZero(b []byte) bool {
	for _, c := range b {
		if c != 0 {
			return false
		}
	}
	return true
}

// fillCopy gives a copy the content and attributes that the original had then.
func (e *engine) fillCopy(orig, id proto.FileID) error {
	a, err := e.past.Attr(orig)
	if err != nil {
		return err
	}
	if a.Type() == proto.ModeRegular {
		c := &content{e: e, id: id}
		buf := make([]byte, min(proto.MaxIO, a.Size))
		for off := int64(0); off < int64(a.Size); off += int64(len(buf)) {
			if err := e.ctx.Err(); err != nil {
				return err
			}
			next, _, ok, err := e.past.NextData(orig, off)
			if err != nil {
				return err
			}
			if !ok {
				break
			}
			off = next / block * block
			b := buf[:min(int64(len(buf)), int64(a.Size)-off)]
			if err := readFull(e.past, orig, b, off); err != nil {
				return err
			}
			for i := 0; i < len(b); i += block {
				part := b[i:min(i+block, len(b))]
				do := writeBlock
				if allZero(part) {
					do = keepBlock
				}
				c.add(do, off+int64(i), part)
			}
		}
		c.flush()
		if c.size < a.Size {
			e.tx.Truncate(id, c.size, a.Size)
		}
	}
	names, err := e.past.ListXattr(orig)
	if err != nil {
		return err
	}
	for _, name := range names {
		v, err := e.past.GetXattr(orig, name)
		if err != nil {
			return err
		}
		e.tx.SetXattr(id, name, nil, false, v, true)
	}
	old, err := e.tx.Attrs(id)
	if err != nil {
		return err
	}
	upd := old
	upd.Mtime = a.Mtime
	e.tx.SetAttr(id, old, upd)
	return nil
}

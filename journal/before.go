package journal

import (
	"cagefs.dev/cage/journal/record"
	"cagefs.dev/cage/remote/proto"
)

// before is a range of a file's content as it was before a record: where its bytes are.
type before struct {
	from, to int64
	kind     beforeKind
	lsn      proto.LSN
	img      int64 // beforeImage: where its bytes begin in the record's images
}

type beforeKind uint8

const (
	beforeZero  beforeKind = iota // it was a hole, or beyond the end
	beforeImage                   // the record has the bytes
	beforeGrave                   // the file grave/<lsn> has them, at their place
)

// clip is the part of b in [from, to), which lies in it.
func (b before) clip(from, to int64) before {
	b.img += from - b.from
	b.from, b.to = from, to
	return b
}

// rangesBefore lists what a record of a change of content destroyed, ascending.
func rangesBefore(r *record.Record) (out []before) {
	switch r.Kind {
	case record.Truncate:
		if r.NewSize >= r.OldSize {
			return nil
		}
		b := before{from: int64(r.NewSize), to: int64(r.OldSize), lsn: r.LSN}
		switch {
		case r.Flag&record.FlagGraveImage != 0:
			b.kind = beforeGrave
		case r.ImageLen > 0:
			b.kind = beforeImage
		}
		return []before{b}
	case record.Write:
		if r.Flag&record.FlagGraveImage != 0 {
			return []before{{from: int64(r.Off), to: int64(r.Off + r.Len), lsn: r.LSN, kind: beforeGrave}}
		}
		pos := int64(0)
		for _, p := range r.Pieces {
			b := before{from: int64(p.Off), to: int64(p.Off + p.Len), lsn: r.LSN}
			switch p.Kind {
			case record.PieceOver:
				b.kind, b.img = beforeImage, pos
				pos += int64(p.Len)
				if r.Flag&record.FlagHole == 0 {
					pos += int64(p.Len)
				}
			case record.PieceInline:
				pos += int64(p.Len)
			}
			out = append(out, b)
		}
	}
	return out
}

// mergeBefore lays ascending ranges side by side; where two meet, first's counts.
func mergeBefore(first, later []before) []before {
	if len(first) == 0 {
		return later
	}
	out := make([]before, 0, len(first)+len(later))
	for len(later) > 0 {
		l := later[0]
		later = later[1:]
		for l.from < l.to {
			for len(first) > 0 && first[0].to <= l.from {
				out, first = append(out, first[0]), first[1:]
			}
			if len(first) == 0 || l.to <= first[0].from {
				out = append(out, l)
				break
			}
			if f := first[0]; l.from < f.from {
				out = append(out, l.clip(l.from, f.from))
			}
			if l.to <= first[0].to {
				break
			}
			l = l.clip(first[0].to, l.to)
		}
	}
	return append(out, first...)
}

// allBefore merges what ascending records destroyed: the oldest counts.
func allBefore(parts [][]before) []before {
	switch len(parts) {
	case 0:
		return nil
	case 1:
		return parts[0]
	}
	return mergeBefore(allBefore(parts[:len(parts)/2]), allBefore(parts[len(parts)/2:]))
}

// fileBefore is what a file was before some records, as far as they changed it.
type fileBefore struct {
	id     proto.FileID
	read   progress
	attrs  record.Attrs
	has    attrMask  // which of attrs count
	timed  proto.LSN // the record that attrs.Mtime is of
	size   uint64
	sized  bool
	first  *record.Record // of content, before the gap
	gap    bool           // a process of the server changed the content: what is not in ranges nobody knows
	xattrs map[string]xattrBefore
	ranges []before // ascending, apart
}

type attrMask uint8

const (
	hasMode attrMask = 1 << iota
	hasUID
	hasGID
	hasAtime
	hasMtime
)

type xattrBefore struct {
	has   bool
	value []byte
}

// progress tells how far an ascending list of records has been followed.
type progress struct {
	n    int
	last proto.LSN
}

// rest returns what is new in a list, or ok false when it changed before its end.
func (p *progress) rest(list []proto.LSN) (part []proto.LSN, ok bool) {
	if len(list) < p.n || p.n > 0 && list[p.n-1] != p.last {
		return nil, false
	}
	part = list[p.n:]
	if p.n = len(list); p.n > 0 {
		p.last = list[p.n-1]
	}
	return part, true
}

// follow takes records in that are newer than all before.
func (b *fileBefore) follow(recs []*record.Record) {
	var parts [][]before
	for _, r := range recs {
		switch r.Kind {
		case record.SetAttr:
			b.setAttr(r)
		case record.SetXattr:
			if _, ok := b.xattrs[r.Name]; !ok {
				if b.xattrs == nil {
					b.xattrs = map[string]xattrBefore{}
				}
				b.xattrs[r.Name] = xattrBefore{r.HasOld, r.OldValue}
			}
		case record.Local:
			b.local(r)
		case record.Write, record.Truncate, record.Allocate:
			if b.gap { // what it preserved is from after the gap
				continue
			}
			if b.first == nil {
				b.first = r
			}
			b.once(hasMtime, true, func() { b.attrs.Mtime, b.timed = r.OldMtime, r.LSN })
			if !b.sized && r.OldSize != r.NewSize {
				b.size, b.sized = r.OldSize, true
			}
			if p := rangesBefore(r); len(p) > 0 {
				parts = append(parts, p)
			}
		}
	}
	b.ranges = mergeBefore(b.ranges, allBefore(parts))
}

// local takes in what a process of the server did, of which nobody kept what was there.
func (b *fileBefore) local(r *record.Record) {
	if r.OldMtime != 0 { // about: it was last looked at then
		b.once(hasMtime, true, func() { b.attrs.Mtime, b.timed = r.OldMtime, r.LSN })
	}
	if !r.HasNew || b.gap {
		return
	}
	b.gap = true
	if b.first != nil {
		b.size, b.sized = b.first.OldSize, true
	}
}

func (b *fileBefore) setAttr(r *record.Record) {
	b.once(hasMode, r.Old.Mode != r.New.Mode, func() { b.attrs.Mode = r.Old.Mode })
	b.once(hasUID, r.Old.UID != r.New.UID, func() { b.attrs.UID = r.Old.UID })
	b.once(hasGID, r.Old.GID != r.New.GID, func() { b.attrs.GID = r.Old.GID })
	b.once(hasAtime, r.Old.Atime != r.New.Atime, func() { b.attrs.Atime = r.Old.Atime })
	b.once(hasMtime, r.Old.Mtime != r.New.Mtime, func() { b.attrs.Mtime, b.timed = r.Old.Mtime, r.LSN })
}

func (b *fileBefore) once(m attrMask, changed bool, set func()) {
	if changed && b.has&m == 0 {
		b.has |= m
		set()
	}
}

// dirBefore is what a directory was before some records.
type dirBefore struct {
	read    progress
	names   map[string]proto.FileID // that they changed: what was there, 0 for nothing
	mtime   proto.Time
	timed   proto.LSN // the record that mtime is of, 0: none
	subdirs int       // that they added, less those that they took away
}

func (b *dirBefore) follow(dir proto.FileID, recs []*record.Record, isDir func(proto.FileID) bool) {
	for _, r := range recs {
		if b.timed == 0 {
			b.timed = r.LSN
			if b.mtime = r.OldMtime; r.Dir != dir {
				b.mtime = r.OldNewMtime
			}
		}
		for _, c := range nameChanges(r) {
			if c.at.dir != dir {
				continue
			}
			if _, ok := b.names[c.at.name]; !ok {
				b.names[c.at.name] = c.before
			}
			if isDir(c.after) {
				b.subdirs++
			}
			if isDir(c.before) {
				b.subdirs--
			}
		}
	}
}

// nameChange is what a record does to a name: which file it leads to before and
// after, 0 for none.
type nameChange struct {
	at            place
	before, after proto.FileID
}

// nameChanges lists what a record does to names.
func nameChanges(r *record.Record) []nameChange {
	at := place{r.Dir, r.Name}
	switch r.Kind {
	case record.Make, record.Link, record.Restore:
		if r.Name == "" {
			return nil
		}
		return []nameChange{{at, 0, r.ID}}
	case record.Remove:
		return []nameChange{{at, r.ID, 0}}
	case record.Rename:
		left := proto.FileID(0)
		if r.Flag&record.FlagExchange != 0 {
			left = r.Victim
		}
		return []nameChange{{at, r.ID, left}, {place{r.NewDir, r.NewName}, r.Victim, r.ID}}
	}
	return nil
}

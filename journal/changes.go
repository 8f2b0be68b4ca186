package journal

import (
	"encoding/binary"
	"maps"
	"slices"

	"cagefs.dev/cage/journal/runs"
	"cagefs.dev/cage/journal/vfs"
	"cagefs.dev/cage/remote/proto"
	"cagefs.dev/cage/remote/status"
)

// changes are what has changed in the table since a run: the new states of
// nodes, names, inodes and graves.
type changes struct {
	nodes  map[proto.FileID]*node                   // nil: forgotten
	kids   map[proto.FileID]map[string]proto.FileID // by directory; 0: the name leads nowhere
	inodes map[uint64]proto.FileID                  // 0: nobody's
	graves map[proto.LSN]proto.FileID               // 0: nobody's
	size   int64                                    // of their entries, about
}

func newChanges() *changes {
	return &changes{nodes: map[proto.FileID]*node{}, kids: map[proto.FileID]map[string]proto.FileID{},
		inodes: map[uint64]proto.FileID{}, graves: map[proto.LSN]proto.FileID{}}
}

// What an entry takes in a run, about, beside the bytes of its names.
const (
	nodeCost = 64
	linkCost = 24
)

func (c *changes) setNode(id proto.FileID, n *node) {
	if _, ok := c.nodes[id]; !ok {
		c.size += nodeCost
	}
	c.nodes[id] = n
	if n != nil {
		for _, p := range n.names {
			c.size += int64(len(p.name))
		}
	}
}

func (c *changes) setKid(at place, id proto.FileID) {
	m := c.kids[at.dir]
	if m == nil {
		m = map[string]proto.FileID{}
		c.kids[at.dir] = m
	}
	if _, ok := m[at.name]; !ok {
		c.size += linkCost + int64(len(at.name))
	}
	m[at.name] = id
}

func (c *changes) setInode(ino uint64, id proto.FileID) {
	if _, ok := c.inodes[ino]; !ok {
		c.size += linkCost
	}
	c.inodes[ino] = id
}

func (c *changes) setGrave(lsn proto.LSN, id proto.FileID) {
	if _, ok := c.graves[lsn]; !ok {
		c.size += linkCost
	}
	c.graves[lsn] = id
}

// The keys of the table's runs begin with what they are of. Numbers in keys are
// big endian, so that the order of keys is theirs.
const (
	keyName  = 'E' // directory, name → file
	keyGrave = 'G' // record → file
	keyInode = 'I' // inode number → file
	keyNode  = 'N' // file → node
)

func key(kind byte, n uint64) []byte { return binary.BigEndian.AppendUint64([]byte{kind}, n) }

func nodeKey(id proto.FileID) []byte { return key(keyNode, uint64(id)) }

func nameKey(at place) []byte { return append(key(keyName, uint64(at.dir)), at.name...) }

// entriesOf are the changes of one kind, in order.
func (c *changes) entriesOf(kind byte) (out runs.Sorted) {
	add := func(k []byte, id proto.FileID) {
		e := runs.Entry{Key: k}
		if id != 0 {
			e.Value = binary.AppendUvarint(nil, uint64(id))
		}
		out = append(out, e)
	}
	switch kind {
	case keyName:
		for _, dir := range sortedIDs(c.kids) {
			out = append(out, c.kidsOf(dir)...)
		}
	case keyGrave:
		for _, lsn := range slices.Sorted(maps.Keys(c.graves)) {
			add(key(keyGrave, uint64(lsn)), c.graves[lsn])
		}
	case keyInode:
		for _, ino := range slices.Sorted(maps.Keys(c.inodes)) {
			add(key(keyInode, ino), c.inodes[ino])
		}
	case keyNode:
		for _, id := range sortedIDs(c.nodes) {
			e := runs.Entry{Key: nodeKey(id)}
			if n := c.nodes[id]; n != nil {
				e.Value = n.encode()
			}
			out = append(out, e)
		}
	}
	return out
}

// kidsOf are the changed names of a directory, in order.
func (c *changes) kidsOf(dir proto.FileID) (out runs.Sorted) {
	m := c.kids[dir]
	for _, name := range slices.Sorted(maps.Keys(m)) {
		e := runs.Entry{Key: nameKey(place{dir, name})}
		if id := m[name]; id != 0 {
			e.Value = binary.AppendUvarint(nil, uint64(id))
		}
		out = append(out, e)
	}
	return out
}

// entries are all changes, in order.
func (c *changes) entries() runs.Sorted {
	return slices.Concat(c.entriesOf(keyName), c.entriesOf(keyGrave), c.entriesOf(keyInode), c.entriesOf(keyNode))
}

// add takes an entry back in: status.Damaged if it is none of the table's.
func (c *changes) add(e runs.Entry) error {
	bad := status.New(status.Damaged, "", "")
	if len(e.Key) < 9 {
		return bad
	}
	n, name := binary.BigEndian.Uint64(e.Key[1:]), string(e.Key[9:])
	if e.Key[0] != keyName && name != "" {
		return bad
	}
	id := proto.FileID(n)
	if e.Key[0] != keyNode && e.Value != nil {
		v, used := binary.Uvarint(e.Value)
		if used != len(e.Value) {
			return bad
		}
		id = proto.FileID(v)
	} else if e.Value == nil {
		id = 0
	}
	switch e.Key[0] {
	case keyName:
		c.setKid(place{proto.FileID(n), name}, id)
	case keyGrave:
		c.setGrave(proto.LSN(n), id)
	case keyInode:
		c.setInode(n, id)
	case keyNode:
		if e.Value == nil {
			c.setNode(proto.FileID(n), nil)
			break
		}
		x, err := decodeNode(proto.FileID(n), e.Value)
		if err != nil {
			return err
		}
		c.setNode(x.id, &x)
	default:
		return bad
	}
	return nil
}

// encode is the value of a node.
func (n *node) encode() []byte {
	b := make([]byte, 0, nodeCost)
	num := func(vs ...uint64) {
		for _, v := range vs {
			b = binary.AppendUvarint(b, v)
		}
	}
	num(n.ident.Ino, uint64(n.ident.Btime), uint64(n.typ), uint64(n.change), uint64(n.ctime), uint64(len(n.names)))
	for _, p := range n.names {
		num(uint64(p.dir), uint64(len(p.name)))
		b = append(b, p.name...)
	}
	num(uint64(len(n.graves)))
	for _, g := range n.graves {
		num(uint64(g))
	}
	return b
}

// decodeNode is the reverse. Nothing of b is kept.
func decodeNode(id proto.FileID, b []byte) (node, error) {
	d := decoder{b: b}
	n := node{id: id, ident: vfs.Ident{Ino: d.num(), Btime: int64(d.num())},
		typ: uint32(d.num()), change: proto.LSN(d.num()), ctime: int64(d.num())}
	for range d.count() {
		dir := proto.FileID(d.num())
		n.names = append(n.names, place{dir, d.str()})
	}
	for range d.count() {
		n.graves = append(n.graves, proto.LSN(d.num()))
	}
	if d.failed || len(d.b) > 0 {
		return node{}, status.Newf(status.Damaged, "", id.String(), "its entry in the table of files is not what was written")
	}
	return n, nil
}

// decoder takes numbers and strings apart. It fails once and stays failed.
type decoder struct {
	b      []byte
	failed bool
}

func (d *decoder) num() uint64 {
	v, n := binary.Uvarint(d.b)
	if n <= 0 {
		d.failed, d.b = true, nil
		return 0
	}
	d.b = d.b[n:]
	return v
}

// count is a number of things of at least a byte each.
func (d *decoder) count() uint64 {
	v := d.num()
	if v > uint64(len(d.b)) {
		d.failed, d.b = true, nil
		return 0
	}
	return v
}

// bytes shares memory with what is decoded.
func (d *decoder) bytes() []byte {
	n := d.count()
	s := d.b[:n:n]
	d.b = d.b[n:]
	return s
}

func (d *decoder) str() string { return string(d.bytes()) }

package vfs

import (
	"encoding/binary"
	"maps"
	"math/rand/v2"
	"slices"
	"syscall"
	"time"
)

// Crash returns what the machine would find after a power cut now: an
// independent disk on which all is durable. m goes on undisturbed. The result is
// a function of m's seed, the calls made on m, and rng.
//
// This is what we take ext4, xfs and btrfs to promise, and nothing beyond it:
//
//   - Names, modes, owners, xattrs, times that were set, creations, removals,
//     links and renames survive as a prefix of the order in which they were
//     made, each whole or not at all. Dir.Sync and SyncFS make all durable that
//     were made before; File.Sync those up to the last that changed the file's
//     inode, Datasync those up to the file's creation.
//   - Sync, Datasync and SyncFS make a file's content and size durable.
//   - Of content that was not synced, each sector of 512 bytes is the old or the
//     new one, whatever became of others; a sector that was not yet in the file
//     when it was synced may also be garbage.
//   - Growth by writes that was not synced survives wholly, in part or not at all,
//     independently of names; zeros where data did not arrive.
//   - Truncations and holes take their place in the order of names. What one of
//     them cut off does not come back if it survived; what was written into
//     that place later is not there if it did not.
//   - A file that lost its last name is gone, even if it was open.
//
// Modification times that come from writing alone may be older than the content.
func (m *Mem) Crash(rng *rand.Rand) *Mem {
	c := m.Clone()
	kept := amount(rng, len(c.pending))
	survived := c.seq - uint64(len(c.pending)-kept) // the newest txn that did
	for _, t := range c.pending[:kept] {
		c.disk.apply(t)
	}
	c.pending = nil
	data := make(map[nodeID]*filedata, len(c.data))
	for _, id := range slices.Sorted(maps.Keys(c.disk.nodes)) {
		n := c.disk.nodes[id]
		if n.Nlink == 0 {
			delete(c.disk.nodes, id)
			continue
		}
		if n.Mode&syscall.S_IFMT != syscall.S_IFREG {
			continue
		}
		d := c.data[id]
		if len(d.epochs) > 0 || len(d.lost) > 0 {
			found := d.crash(survived, rng)
			d = &filedata{owner: c.owner, cur: found, stable: found.copy(), created: d.created, changed: d.changed}
			d.cur.owner = new(token) // shares its pages with stable now
		}
		data[id] = d
	}
	c.data = data
	c.live = c.disk.share()
	c.countInos()
	c.clock += int64(time.Second)
	return c
}

// Clone returns an independent disk on which nothing is lost, as after kill -9:
// what was not synced still is not, only files that are open without a name are
// gone. OnSync is not taken over.
func (m *Mem) Clone() *Mem {
	m.mu.Lock()
	defer m.mu.Unlock()
	c := &Mem{
		seed: m.seed, live: m.live.share(), disk: m.disk.share(),
		pending: slices.Clone(m.pending), seq: m.seq,
		data: maps.Clone(m.data), owner: new(token), refs: make(map[nodeID]int),
		lastID: m.lastID, nextIno: m.nextIno, freeInos: slices.Clone(m.freeInos), clock: m.clock,
	}
	m.owner = new(token)
	for _, id := range slices.Sorted(maps.Keys(m.refs)) {
		if n := c.live.nodes[id]; n.Nlink == 0 {
			ch := c.beginLocked()
			ch.free(id, n.Ino)
			ch.commit()
		}
	}
	return c
}

// countInos finds the free inode numbers.
func (m *Mem) countInos() {
	var used []uint64
	for _, n := range m.live.nodes {
		used = append(used, n.Ino)
	}
	slices.Sort(used)
	m.nextIno, m.freeInos = firstIno, nil
	for _, ino := range used {
		for ; m.nextIno < ino; m.nextIno++ {
			m.freeInos = append(m.freeInos, m.nextIno)
		}
		m.nextIno = max(m.nextIno, ino+1)
	}
}

// amount chooses from 0 to n, the ends more often.
func amount(rng *rand.Rand, n int) int {
	switch rng.IntN(4) {
	case 0:
		return 0
	case 1:
		return n
	}
	return rng.IntN(n + 1)
}

// crash chooses a content that may be found after a crash that the txns up to
// survived got through.
func (d *filedata) crash(survived uint64, rng *rand.Rand) content {
	c := d.stable.copy()
	arrival := [...]int{0, 1, 8, 15, 16}[rng.IntN(5)] // of 16 sectors, so many arrived
	rot := rng.IntN(4) == 0                           // garbage may be found
	var lostCuts []cut
	for i, e := range d.epochs {
		final := &e.final
		if i == len(d.epochs)-1 {
			final = &d.cur
		}
		if e.seq > survived {
			lostCuts = append(lostCuts, e.cut)
		} else if e.seq != 0 {
			e.cut.apply(&c)
		}
		size := c.size
		if growth := final.size - size; growth > 0 && lostCuts == nil {
			c.size += int64(amount(rng, int(growth)))
		}
		e.dirty.each(func(off int64) {
			had := off < size && c.peek(off) != nil
			switch {
			case off >= c.size:
			case lostCuts != nil && !(had && spared(lostCuts, off)):
			case !had && rot && rng.IntN(16) == 0:
				var garbage [sectorSize]byte
				for i := 0; i < sectorSize; i += 8 {
					binary.NativeEndian.PutUint64(garbage[i:], rng.Uint64())
				}
				c.write(garbage[:min(sectorSize, c.size-off)], off)
			case rng.IntN(16) < arrival:
				var arrived [sectorSize]byte
				final.read(arrived[:], off)
				c.write(arrived[:min(sectorSize, c.size-off)], off)
			}
		})
	}
	return c
}

// spared tells whether a sector was overwritten where it lay although cuts
// before that did not survive: because they did not concern it.
func spared(cuts []cut, off int64) bool {
	end := off + sectorSize
	return !slices.ContainsFunc(cuts, func(t cut) bool {
		if t.size >= 0 {
			return end > t.size
		}
		return off < t.end && end > t.off
	})
}

package pagecache

import (
	"context"
	"encoding/binary"
	"math/rand/v2"
	"runtime"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"cagefs.dev/cage/remote/proto"
)

// The model: every cell of a file is a register. A change stamps the cells that it
// covers with its number; a truncate makes those beyond the size zero. When all
// is over, each change has its place in the server's order. A read is right if
// for each cell it shows a change that had begun when the read ended, and none
// that a later one, visible before the read began, had replaced.
//
// A change of this client is visible when WriteAt returned, or Own was told of a
// truncate; one by others when Changed, or after missed ones Reset, returned.

const (
	cell       = 512
	modelFiles = 3
	modelCells = 16 * ps / cell
)

type change struct {
	stamp    uint64
	file     proto.FileID
	from, to int   // cells; a truncate covers all from its size on
	zero     bool  // a truncate
	begin    int64 // clock
	visible  int64 // clock; 0: never
	undone   int64 // clock: it failed, and Forget has returned; 0: it did not fail

	lsn    proto.LSN
	failed bool
}

type look struct {
	file       proto.FileID
	from       int // cell
	cells      []uint64
	begin, end int64
}

type model struct {
	*testing.T
	s     *server
	c     *Cache
	files map[proto.FileID]*File
	clock atomic.Int64
	stop  atomic.Bool // for the workers
	over  atomic.Bool // for those who apply what they have logged

	still sync.RWMutex                   // held for reading over getattr and Open, for writing over Reset
	size  map[proto.FileID]*sync.RWMutex // held for writing over truncates, as the kernel does

	mu      sync.Mutex
	changes map[uint64]*change // by stamp
	bySeq   map[proto.Seq]*change
	looks   []look
	deaf    bool          // pushes are lost
	missed  []*change     // then
	pushes  chan *change  // otherwise
	applied chan struct{} // closed when the applier is done
}

func stamped(n uint64, cells int) []byte {
	p := make([]byte, cells*cell)
	for i := 0; i < len(p); i += 8 {
		binary.LittleEndian.PutUint64(p[i:], n)
	}
	return p
}

func (m *model) now() int64 { return m.clock.Add(1) }

func (m *model) newChange(file proto.FileID, from, to int, zero bool) *change {
	m.mu.Lock()
	defer m.mu.Unlock()
	ch := &change{stamp: uint64(len(m.changes) + 1), file: file, from: from, to: to, zero: zero, begin: m.now()}
	m.changes[ch.stamp] = ch
	return ch
}

// Log notes which operation is which change; the stamp is in the data.
type modelBacking struct {
	Backing
	m *model
}

func (b modelBacking) Log(ctx context.Context, p []byte, off int64) (proto.Seq, error) {
	b.m.mu.Lock()
	defer b.m.mu.Unlock()
	ch := b.m.changes[binary.LittleEndian.Uint64(p)]
	seq, err := b.Backing.Log(ctx, p, off)
	b.m.bySeq[seq] = ch
	return seq, err
}

func (m *model) backing(file proto.FileID) Backing { return modelBacking{m.s.file(file), m} }

func (m *model) write(r *rand.Rand, file proto.FileID) {
	m.size[file].RLock()
	defer m.size[file].RUnlock()
	from := r.IntN(modelCells)
	n := 1 + r.IntN(3)
	if r.IntN(3) == 0 {
		n = 1 + r.IntN(4*ps/cell)
	}
	ch := m.newChange(file, from, from+n, false)
	err := m.files[file].WriteAt(ctx, m.backing(file), stamped(ch.stamp, n), int64(from)*cell)
	if err != nil {
		m.Error(err)
	}
	m.mu.Lock()
	ch.visible = m.now()
	m.mu.Unlock()
}

func (m *model) truncate(r *rand.Rand, file proto.FileID) {
	m.size[file].Lock()
	defer m.size[file].Unlock()
	f := m.files[file]
	ch := m.newChange(file, r.IntN(modelCells), 1<<30, true)
	upto := f.Logged()
	o := m.s.truncate(file, int64(ch.from)*cell)
	attr, _ := m.s.attr(file)
	m.mu.Lock()
	ch.lsn = o.lsn
	m.mu.Unlock()
	// What came back with the operation, as Session.Do returns it.
	if attr.Change == o.lsn {
		f.Own(attr, upto)
	} else {
		f.Own(proto.Attr{ID: file, Size: uint64(ch.from) * cell, Change: o.lsn}, upto)
	}
	m.mu.Lock()
	ch.visible = m.now()
	m.mu.Unlock()
}

func (m *model) read(r *rand.Rand, file proto.FileID, at *int) {
	from := *at
	if r.IntN(2) == 0 {
		from = r.IntN(modelCells)
	}
	n := 1 + r.IntN(6*ps/cell)
	*at = (from + n) % modelCells
	c, cancel := context.WithCancel(ctx)
	defer cancel()
	if r.IntN(20) == 0 {
		go func() { runtime.Gosched(); cancel() }()
	}
	l := look{file: file, from: from, begin: m.now()}
	v, err := m.files[file].Read(c, nil, int64(from)*cell, n*cell)
	l.end = m.now()
	if err != nil {
		if c.Err() == nil {
			m.Error(err)
		}
		return
	}
	first := gather(v)
	for range r.IntN(3) {
		runtime.Gosched()
	}
	equal(m, first, gather(v), "a view stays")
	v.Release()
	if len(first)%cell != 0 {
		m.Errorf("a read of %d bytes", len(first))
	}
	l.cells = make([]uint64, n) // what is beyond the end is zero
	for i := range len(first) / cell {
		p := first[i*cell : (i+1)*cell]
		l.cells[i] = binary.LittleEndian.Uint64(p)
		equal(m, stamped(l.cells[i], 1), p, "a cell is of one change")
	}
	m.mu.Lock()
	m.looks = append(m.looks, l)
	m.mu.Unlock()
}

// foreign changes the file at the server. The push comes later, or is lost.
func (m *model) foreign(r *rand.Rand, file proto.FileID) {
	from, n := r.IntN(modelCells), 1+r.IntN(2*ps/cell)
	zero := r.IntN(4) == 0
	ch := m.newChange(file, from, from+n, zero)
	m.mu.Lock()
	defer m.mu.Unlock()
	var data []byte
	if zero {
		ch.to = 1 << 30
	} else {
		data = stamped(ch.stamp, n)
	}
	ch.lsn = m.s.foreign(file, int64(from)*cell, data).Change
	if m.deaf {
		m.missed = append(m.missed, ch)
	} else {
		m.pushes <- ch
	}
}

func (m *model) push() {
	for ch := range m.pushes {
		m.c.Changed(ch.file, ch.lsn)
		m.mu.Lock()
		ch.visible = m.now()
		m.mu.Unlock()
		runtime.Gosched()
	}
}

// reset is the end of a time without pushes.
func (m *model) reset() {
	m.mu.Lock()
	m.deaf = true
	m.mu.Unlock()
	for range 20 {
		runtime.Gosched()
	}
	m.still.Lock()
	defer m.still.Unlock()
	m.mu.Lock()
	defer m.mu.Unlock()
	m.deaf = false
	m.c.Reset(0)
	for _, ch := range m.missed {
		ch.visible = m.now()
	}
	m.missed = nil
}

func (m *model) open(r *rand.Rand, file proto.FileID) {
	m.still.RLock()
	defer m.still.RUnlock()
	attr, upto := m.s.attr(file)
	for range r.IntN(10) {
		runtime.Gosched()
	}
	if r.IntN(2) == 0 {
		m.files[file].Seen(attr, upto)
		return
	}
	f, _ := m.c.Open(m.backing(file), attr, upto)
	f.Close()
}

// apply answers the log's operations until the test is over.
func (m *model) apply(r *rand.Rand) {
	defer close(m.applied)
	m.s.done = func(o *op, attr proto.Attr) {
		m.mu.Lock()
		ch := m.bySeq[o.seq]
		if ch != nil {
			ch.lsn, ch.failed = o.lsn, o.err != nil
		}
		m.mu.Unlock()
		switch {
		case o.err != nil:
			m.c.Forget(o.id)
			m.mu.Lock()
			ch.undone = m.now()
			m.mu.Unlock()
		case ch != nil && r.IntN(2) == 0:
			m.files[o.id].Own(attr, o.seq)
		}
	}
	for !m.over.Load() {
		m.s.mu.Lock()
		if int(m.s.applied) < len(m.s.log) {
			if o := m.s.log[m.s.applied]; o.data != nil && r.IntN(50) == 0 {
				o.err = errNoSpace
			}
		}
		m.s.mu.Unlock()
		m.s.step()
		for range r.IntN(30) {
			runtime.Gosched()
		}
	}
	m.s.drain()
}

// judge checks a read. It is called when all is over.
func (m *model) judge(l look, byCell map[place][]*change) {
	for i, stamp := range l.cells {
		at := l.from + i
		changes := byCell[place{l.file, at}]
		var newest proto.LSN // of the changes that the read has to know of
		for _, ch := range changes {
			if !ch.failed && ch.visible != 0 && ch.visible < l.begin {
				newest = max(newest, ch.lsn)
			}
		}
		ok := stamp == 0 && newest == 0
		for _, ch := range changes {
			ok = ok || ch.shows(stamp) && ch.begin < l.end &&
				(!ch.failed && ch.lsn >= newest || ch.failed && (ch.undone == 0 || ch.undone > l.begin))
		}
		if ok {
			continue
		}
		for _, ch := range changes {
			if ch.begin < l.end && ch.lsn+10 > newest {
				m.Logf("%+v", *ch)
			}
		}
		m.Fatalf("%v cell %d: the read from %d to %d shows %d, must know of record %d", l.file, at, l.begin, l.end, stamp, newest)
	}
}

// place is a cell of a file.
type place struct {
	file proto.FileID
	cell int
}

// shows reports whether a cell that holds stamp may have it from the change.
func (ch *change) shows(stamp uint64) bool { return ch.stamp == stamp || ch.zero && stamp == 0 }

func (m *model) byCell() map[place][]*change {
	by := make(map[place][]*change)
	for stamp := range uint64(len(m.changes)) {
		ch := m.changes[stamp+1]
		for cell := ch.from; cell < min(ch.to, 3*modelCells); cell++ {
			by[place{ch.file, cell}] = append(by[place{ch.file, cell}], ch)
		}
	}
	return by
}

func TestModel(t *testing.T) {
	for seed := range uint64(3) {
		runModel(t, seed, 500*time.Millisecond)
	}
}

func runModel(t *testing.T, seed uint64, length time.Duration) {
	m := &model{
		T: t, s: newServer(),
		// A little more than half of the files fits.
		c:       New(Options{PageSize: ps, Bytes: 28 * ps, ReadAhead: 3, Policy: Policies[seed%uint64(len(Policies))]}),
		files:   make(map[proto.FileID]*File),
		size:    make(map[proto.FileID]*sync.RWMutex),
		changes: make(map[uint64]*change),
		bySeq:   make(map[proto.Seq]*change),
		pushes:  make(chan *change, 1000),
		applied: make(chan struct{}),
	}
	pause := rand.New(rand.NewPCG(seed, 99))
	var pauses sync.Mutex
	m.s.before = func(context.Context, extent) error {
		pauses.Lock()
		n := pause.IntN(20)
		pauses.Unlock()
		for range n {
			runtime.Gosched()
		}
		return nil
	}
	m.s.after = m.s.before
	for i := range proto.FileID(modelFiles) {
		id := i + 1
		m.size[id] = new(sync.RWMutex)
		m.files[id], _ = m.c.Open(m.backing(id), m.s.put(id, nil), 0)
	}

	var workers sync.WaitGroup
	worker := func(n uint64, rare int, do func(r *rand.Rand, file proto.FileID)) {
		r := rand.New(rand.NewPCG(seed, n))
		workers.Go(func() {
			for !m.stop.Load() {
				do(r, proto.FileID(1+r.IntN(modelFiles)))
				for range r.IntN(rare) {
					runtime.Gosched()
				}
			}
		})
	}
	for n := range uint64(3) {
		at := 0
		worker(10+n, 5, func(r *rand.Rand, file proto.FileID) { m.read(r, file, &at) })
		worker(20+n, 150, m.write)
	}
	worker(30, 1000, m.truncate)
	worker(40, 800, m.foreign)
	worker(50, 500, m.open)
	worker(60, 5000, func(*rand.Rand, proto.FileID) { m.reset() })
	go m.apply(rand.New(rand.NewPCG(seed, 70)))
	var pushing sync.WaitGroup
	pushing.Go(m.push)

	time.Sleep(length) // how long the test runs; nothing waits for it
	m.stop.Store(true)
	workers.Wait()
	m.over.Store(true)
	<-m.applied
	close(m.pushes)
	pushing.Wait()

	byCell := m.byCell()
	for _, l := range m.looks {
		m.judge(l, byCell)
	}
	for id, f := range m.files {
		attr, upto := m.s.attr(id)
		f.Seen(attr, upto)
		want := m.s.content(id)
		require.EqualValues(t, len(want), f.Size(), "seed %d", seed)
		v, err := f.Read(ctx, nil, 0, 1<<20)
		require.NoError(t, err)
		equal(t, want, gather(v), "in the end", seed)
		v.Release()
	}
	m.c.Close()
	m.c.check(t)
	s := m.c.Stats()
	t.Logf("seed %d: %d changes, %d reads, %+v", seed, len(m.changes), len(m.looks), s)
	for what, n := range map[string]int64{"hits": s.Hits, "misses": s.Misses, "evictions": s.Evictions, "reads": int64(len(m.looks))} {
		require.NotZero(t, n, what)
	}
}

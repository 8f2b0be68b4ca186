package wal

import (
	"bytes"
	"encoding/binary"
	"flag"
	"hash/crc32"
	"math/rand/v2"
	"reflect"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/stretchr/testify/require"

	"cagefs.dev/cage/journal/record"
	"cagefs.dev/cage/journal/vfs"
	"cagefs.dev/cage/remote/proto"
	"cagefs.dev/cage/remote/status"
)

// exhaustive makes the tests that try places of a log try all of them (minutes).
var exhaustive = flag.Bool("exhaustive", false, "try every place")

func flip(t testing.TB, dir vfs.Dir, name string, off int64, mask byte) {
	t.Helper()
	f, err := dir.Open(name, true)
	require.NoError(t, err)
	defer f.Close()
	b := make([]byte, 1)
	_, err = f.ReadAt(b, off)
	require.NoError(t, err)
	b[0] ^= mask
	_, err = f.WriteAt(b, off)
	require.NoError(t, err)
}

func readFile(t testing.TB, dir vfs.Dir, name string) []byte {
	t.Helper()
	f, err := dir.Open(name, false)
	require.NoError(t, err)
	defer f.Close()
	info, err := f.Stat()
	require.NoError(t, err)
	b := make([]byte, info.Size)
	_, err = readFull(f, b, 0)
	require.NoError(t, err)
	return b
}

func writeAt(t testing.TB, dir vfs.Dir, name string, b []byte, off int64) {
	t.Helper()
	f, err := dir.Open(name, true)
	require.NoError(t, err)
	defer f.Close()
	_, err = f.WriteAt(b, off)
	require.NoError(t, err)
}

func exists(t testing.TB, dir vfs.Dir, name string) bool {
	_, err := dir.Stat(name)
	if err != nil {
		require.Equal(t, status.NotFound, status.Of(err))
	}
	return err == nil
}

// writtenLog is a segment of frames that nobody closed.
type writtenLog struct {
	fs     *vfs.Mem
	commit []int // for each frame, the commit that it belongs to
	frames []entry
	ends   []int64
	last   []int // for each frame, its last LSN
}

// write makes a log with the given number of records in each commit's frames.
func write(t testing.TB, commits [][]int) *writtenLog {
	w := &writtenLog{fs: vfs.NewMem(1)}
	o := options(t, w.fs)
	o.SegmentSize = 1 << 16
	l, err := Open(o)
	require.NoError(t, err)
	n := 0
	for i, frames := range commits {
		for _, records := range frames {
			require.NoError(t, l.Append(numbered(n+1, records)...))
			l.mu.Lock()
			l.layout.endFrame()
			l.mu.Unlock()
			n += records
			w.commit, w.last = append(w.commit, i), append(w.last, n)
		}
		require.NoError(t, l.Commit())
	}
	w.frames = slices.Clone(l.index.segs[0].frames)
	for _, f := range w.frames[1:] {
		w.ends = append(w.ends, int64(f.off))
	}
	w.ends = append(w.ends, l.layout.off)
	w.fs = w.fs.Clone()
	require.NoError(t, l.Close())
	return w
}

// From some byte of any frame on, the rest of that frame, of its commit or of the
// log is gone.
func TestCuts(t *testing.T) {
	w := write(t, [][]int{{2}, {1, 3, 2}, {3}, {1, 2}})
	name := segmentName(1)
	lastCommit := w.commit[len(w.commit)-1]
	whole := readFile(t, options(t, w.fs).Dir, name)
	for i, e := range w.frames {
		for cut := int64(e.off); cut < w.ends[i]; cut++ {
			for _, upto := range []int64{w.ends[i], w.ends[len(w.ends)-1]} {
				if !*exhaustive && (cut+int64(i))%11 != 0 {
					continue
				}
				if !nonzero(whole[cut:w.ends[i]]) {
					continue // nothing is lost
				}
				fs := w.fs.Clone()
				dir := options(t, fs).Dir
				writeAt(t, dir, name, make([]byte, upto-cut), cut)
				torn := readFile(t, dir, name)
				l, err := Open(options(t, fs))
				witness := upto == w.ends[i] && w.commit[i] != lastCommit
				if witness {
					require.ErrorIs(t, err, status.Damaged, "frame %d cut at %d", i, cut)
					require.ErrorContains(t, err, name)
					require.Equal(t, torn, readFile(t, dir, name), "nothing was changed")
					require.False(t, exists(t, dir, name+tornSuffix))
					continue
				}
				require.NoError(t, err, "frame %d cut at %d to %d", i, cut, upto)
				last := 0
				if i > 0 {
					last = w.last[i-1]
				}
				require.EqualValues(t, last, l.Durable())
				rest := torn[e.off:]
				require.Equal(t, nonzero(rest), exists(t, dir, name+tornSuffix))
				if nonzero(rest) {
					require.Equal(t, bytes.TrimRight(rest, "\x00"), bytes.TrimRight(readFile(t, dir, name+tornSuffix), "\x00"))
				}
				require.False(t, nonzero(readFile(t, dir, name)[e.off:]), "no old frame can be behind a new one")
				if cut%16 == 0 {
					check(t, l, 1, last)
					commit(t, l, last+1, 2)
					check(t, l, 1, last+2)
					verify(t, l)
				}
				require.NoError(t, l.Close())
			}
		}
	}
}

func nonzero(b []byte) bool { return len(bytes.TrimRight(b, "\x00")) > 0 }

// Bytes of a log that was closed in order have a bit flipped.
func TestFlipsAreFound(t *testing.T) {
	fs := vfs.NewMem(1)
	l := open(t, fs)
	n := 0
	for len(l.Segments()) < 3 {
		commit(t, l, n+1, 9)
		n += 9
	}
	type place struct {
		name string
		used int64
	}
	var places []place
	for _, seg := range l.index.segs {
		last := seg.frames[len(seg.frames)-1]
		f, _, err := seg.readFrame(int64(last.off), 0, nil)
		require.NoError(t, err)
		places = append(places, place{seg.name, int64(last.off) + f.Size()})
	}
	for i := range places[:2] {
		places[i].used += record.HeaderSize // the end mark
	}
	require.NoError(t, l.Close())
	rng := rand.New(rand.NewPCG(1, 1))
	for _, p := range places {
		for off := int64(0); off < p.used; off++ {
			if !*exhaustive && rng.IntN(60) > 0 {
				continue
			}
			if off >= 80 && off < record.SegmentHeaderSize-8 && off%64 != 0 {
				continue // zeros of the header, all alike
			}
			c := fs.Clone()
			dir := options(t, c).Dir
			flip(t, dir, p.name, off, 1<<rng.IntN(8))
			offline, err := VerifyDir(dir, true)
			require.NoError(t, err)
			require.NotEmpty(t, offline.Problems, "%s offset %d", p.name, off)
			o := options(t, c)
			o.ReadOnly = true
			l, err := Open(o)
			if err != nil {
				require.ErrorIs(t, err, status.Damaged, "%s offset %d", p.name, off)
				continue
			}
			report, err := l.Verify(true)
			require.NoError(t, err)
			require.NotEmpty(t, report.Problems, "%s offset %d", p.name, off)
			next := 1
			err = l.Scan(0, true, func(r *record.Record) error { // never read as data
				want := numbered(next, 1)[0]
				require.NoError(t, want.Seal())
				want.LSN, want.Time = r.LSN, r.Time
				if !reflect.DeepEqual(want, r) {
					require.Equal(t, want, r)
				}
				next++
				return nil
			})
			if err == nil {
				require.Equal(t, n+1, next)
			} else {
				require.ErrorIs(t, err, status.Damaged)
			}
			require.NoError(t, l.Close())
		}
	}
}

func TestMissingSegments(t *testing.T) {
	fs := vfs.NewMem(1)
	l := open(t, fs)
	n := 0
	for len(l.Segments()) < 4 {
		commit(t, l, n+1, 9)
		n += 9
	}
	segs := l.Segments()
	require.NoError(t, l.Close())
	for i, want := range []error{nil, status.Damaged, status.Damaged, nil} {
		c := fs.Clone()
		o := options(t, c)
		require.NoError(t, o.Dir.Remove(segs[i].Name))
		l, err := Open(o)
		if want != nil {
			require.ErrorIs(t, err, want, "segment %d", i)
			require.ErrorContains(t, err, segs[i+1].Name)
			continue
		}
		require.NoError(t, err)
		require.NoError(t, l.Close())
	}
	// The newest one is missed only by who knows that it was there.
	for i, floor := range []proto.LSN{segs[0].First, 0, 0, segs[3].First} {
		if floor == 0 {
			continue
		}
		o := options(t, fs.Clone())
		require.NoError(t, o.Dir.Remove(segs[i].Name))
		if i == 0 {
			o.Floor = floor
		} else {
			o.Floor = segs[3].First
		}
		_, err := Open(o)
		require.ErrorIs(t, err, status.Damaged)
	}
	o := options(t, fs.Clone())
	require.NoError(t, o.Dir.Remove(segs[0].Name))
	o.Floor = segs[0].Last // what comes after it is there
	l, err := Open(o)
	require.NoError(t, err)
	require.NoError(t, l.Close())
}

// A segment of another log with the same numbers is no part of this one.
func TestForeignSegment(t *testing.T) {
	var disks [2]*vfs.Mem
	var segs []Segment
	for i := range disks {
		disks[i] = vfs.NewMem(uint64(i))
		l := open(t, disks[i])
		recs := numbered(1, 400)
		recs[0].UID = uint32(i + 1) // the only difference
		require.NoError(t, l.Append(recs...))
		require.NoError(t, l.Commit())
		segs = l.Segments()
		require.NoError(t, l.Close())
	}
	from, to := options(t, disks[0]).Dir, options(t, disks[1]).Dir
	writeAt(t, to, segs[1].Name, readFile(t, from, segs[1].Name), 0)
	_, err := Open(options(t, disks[1]))
	require.ErrorIs(t, err, status.Damaged)
	require.ErrorContains(t, err, segs[1].Name)
}

// A segment is whole and durable before it is offered, its header before it has
// its name.
func TestSegmentsAreReadyBeforeUse(t *testing.T) {
	var mu sync.Mutex
	var ops []string
	fs := vfs.Inject(vfs.NewMem(1), func(op vfs.Op) error {
		mu.Lock()
		defer mu.Unlock()
		if op.Kind == "sync" || op.Kind == "datasync" || op.Kind == "rename" {
			ops = append(ops, strings.TrimSpace(op.Kind+" "+op.Path))
		}
		return nil
	})
	require.NoError(t, open(t, fs).Close()) // the names are those that the files were opened by
	require.Equal(t, []string{"sync 1.tmp", "rename 1.tmp", "datasync 1.tmp", "rename 1.free", "sync"}, ops[:5])
}

func TestFloor(t *testing.T) {
	w := write(t, [][]int{{2}, {3}})
	name := segmentName(1)
	dir := options(t, w.fs).Dir
	flip(t, dir, name, int64(w.frames[1].off)+10, 1)
	before := readFile(t, dir, name)
	o := options(t, w.fs)
	o.Floor = 3
	_, err := Open(o)
	require.ErrorIs(t, err, status.Damaged)
	require.Equal(t, before, readFile(t, dir, name))
	o.Floor = 2
	l, err := Open(o)
	require.NoError(t, err)
	check(t, l, 1, 2)
	require.NoError(t, l.Close())

	o = options(t, vfs.NewMem(2))
	o.Floor = 1
	_, err = Open(o)
	require.ErrorIs(t, err, status.Damaged, "a log that is gone")
}

func TestReadOnly(t *testing.T) {
	w := write(t, [][]int{{2}, {3}})
	name := segmentName(1)
	flip(t, options(t, w.fs).Dir, name, int64(w.frames[1].off)+10, 1)
	fs := vfs.Inject(w.fs, func(op vfs.Op) error {
		switch op.Kind {
		case "root", "open", "readdir", "readat", "stat":
			return nil
		}
		t.Errorf("%s %s", op.Kind, op.Path)
		return nil
	})
	o := options(t, fs)
	o.ReadOnly = true
	l, err := Open(o)
	require.NoError(t, err)
	check(t, l, 1, 2)
	require.ErrorIs(t, l.Append(numbered(3, 1)...), status.ReadOnly)
	require.ErrorIs(t, l.Drop(2), status.ReadOnly)
	require.NoError(t, l.Commit())
	require.NoError(t, l.Close())

	o = options(t, vfs.NewMem(2))
	o.ReadOnly = true
	l, err = Open(o)
	require.NoError(t, err)
	check(t, l, 1, 0)
	verify(t, l)
	require.NoError(t, l.Close())
}

func TestNewerVersion(t *testing.T) {
	w := write(t, [][]int{{2}, {3}})
	dir := options(t, w.fs).Dir
	name := segmentName(1)
	head, err := record.DecodeSegmentHeader(readFile(t, dir, name))
	require.NoError(t, err)
	// A frame of the next version at the end, as its own program would have made it.
	h := record.Header{Flags: record.FlagClosed, Segment: head.ID, First: 6, Synced: 5}
	raw := record.AppendFrame(nil, &h, record.Heads{}, nil, nil)
	raw[8] = record.Version + 1
	binary.LittleEndian.PutUint32(raw[4:], crc32.Checksum(raw[8:], crc32.MakeTable(crc32.Castagnoli)))
	writeAt(t, dir, name, raw, w.ends[1])
	before := readFile(t, dir, name)
	_, err = Open(options(t, w.fs))
	require.Equal(t, status.Version, status.Of(err))
	require.Equal(t, before, readFile(t, dir, name))
}

func TestLeftovers(t *testing.T) {
	w := write(t, [][]int{{2}, {3}})
	dir := options(t, w.fs).Dir
	for name, size := range map[string]int64{"7.tmp": small, "8.free": small, "9.free": 100, "12.free": small} {
		f, err := dir.Create(name, 0o600)
		require.NoError(t, err)
		require.NoError(t, f.Truncate(size))
		require.NoError(t, f.Close())
	}
	l := open(t, w.fs)
	check(t, l, 1, 5)
	for name, want := range map[string]bool{"7.tmp": false, "8.free": true, "9.free": false, "12.free": true} {
		require.Equal(t, want, exists(t, dir, name), name)
	}
	commit(t, l, 6, 2000)
	check(t, l, 1, 2005)
	require.False(t, exists(t, dir, "8.free"))
	require.NoError(t, l.Close())
}

func TestTornTailsAreAllKept(t *testing.T) {
	w := write(t, [][]int{{2}})
	dir := options(t, w.fs).Dir
	name := segmentName(1)
	for i, kept := range []string{tornSuffix, tornSuffix + ".2", tornSuffix + ".3"} {
		tail := []byte{byte(i + 1), 2, 3, 0, 0, 0, 0, 0}
		writeAt(t, dir, name, tail, w.ends[0]+160)
		l := open(t, w.fs)
		check(t, l, 1, 2)
		require.NoError(t, l.index.segs[0].file.Close()) // as if killed
		require.Equal(t, append(make([]byte, 160), tail...), readFile(t, dir, name+kept))
	}
}

// history is what a run on a disk has been told, for the crashes within it.
type history struct {
	mu                  sync.Mutex
	appended, committed int
	dropped             int // everything before may be gone
}

func (h *history) get() (appended, committed, dropped int) {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.appended, h.committed, h.dropped
}

// run does random things with a log until it has done enough; hook is called
// between them.
func (h *history) run(t *testing.T, o Options, rng *rand.Rand, steps int, hook func()) {
	l, err := Open(o)
	require.NoError(t, err)
	for range steps {
		appended, _, _ := h.get()
		switch k := rng.IntN(20); {
		case k < 10:
			n := 1 + rng.IntN(12)
			h.mu.Lock() // before: a commit may already write them
			h.appended += n
			h.mu.Unlock()
			require.NoError(t, l.Append(numbered(appended+1, n)...))
		case k < 18:
			require.NoError(t, l.Commit())
			h.mu.Lock()
			h.committed = h.appended
			h.mu.Unlock()
		case k == 18:
			_, committed, _ := h.get()
			upto := rng.IntN(committed + 1)
			h.mu.Lock()
			h.dropped = max(h.dropped, upto)
			h.mu.Unlock()
			require.NoError(t, l.Drop(proto.LSN(upto)))
		default:
			require.NoError(t, l.Close())
			h.mu.Lock()
			h.committed = h.appended
			h.mu.Unlock()
			l, err = Open(o)
			require.NoError(t, err)
		}
		hook()
	}
	require.NoError(t, l.Close())
}

// The machine loses power at every sync and at random places between; what is
// found is a prefix with everything committed, and can be written on. It also
// loses power while it recovers.
func TestCrashes(t *testing.T) {
	seeds := 5
	if *exhaustive {
		seeds = 200
	}
	var crashes int
	for seed := range uint64(seeds) {
		rng := rand.New(rand.NewPCG(seed, 7))
		mem := vfs.NewMem(seed)
		h := &history{}
		type crash struct {
			fs                           *vfs.Mem
			appended, committed, dropped int
		}
		var mu sync.Mutex // the preparation syncs, too
		var found []crash
		take := func() {
			mu.Lock()
			defer mu.Unlock()
			_, committed, _ := h.get() // before the disk's state
			fs := mem.Crash(rng)
			appended, _, dropped := h.get()
			found = append(found, crash{fs, appended, committed, dropped})
		}
		mem.OnSync = func(int) { take(); take() }
		h.run(t, options(t, mem), rand.New(rand.NewPCG(seed, 8)), 40, take)
		for _, c := range found {
			crashes += checkCrash(t, c.fs, rng, c.appended, c.committed, c.dropped, 0)
		}
	}
	t.Log(crashes, "crashes")
}

// checkCrash opens a disk after a crash and returns the number of crashes seen,
// with those in its recovery.
func checkCrash(t *testing.T, fs *vfs.Mem, rng *rand.Rand, appended, committed, dropped, depth int) int {
	var within []*vfs.Mem
	if depth < 2 && rng.IntN(4) == 0 {
		fs.OnSync = func(int) { within = append(within, fs.Crash(rng)) }
	}
	o := options(t, fs)
	o.Floor = proto.LSN(committed)
	l, err := Open(o)
	require.NoError(t, err)
	last := int(l.Durable())
	require.GreaterOrEqual(t, last, committed)
	require.LessOrEqual(t, last, appended)
	require.LessOrEqual(t, int(l.Oldest()), dropped+1)
	check(t, l, int(l.Oldest()), last)
	fs.OnSync = nil
	commit(t, l, last+1, 3)
	again := fs.Crash(rng)
	verify(t, l)
	require.NoError(t, l.Close())
	l = open(t, again)
	check(t, l, int(l.Oldest()), last+3)
	verify(t, l)
	require.NoError(t, l.Close())
	count := 2
	for _, c := range within {
		count += checkCrash(t, c, rng, appended, committed, dropped, depth+1)
	}
	return count
}

// A process is killed, then the machine loses power: what the process that came
// after it believed must hold.
func TestKillThenPowerCut(t *testing.T) {
	for seed := range uint64(3) {
		rng := rand.New(rand.NewPCG(seed, 3))
		mem := vfs.NewMem(seed)
		var killed []*vfs.Mem
		armed := false
		mem.OnSync = func(int) {
			if armed {
				killed = append(killed, mem.Clone())
			}
		}
		l := open(t, mem)
		armed = true
		n := 0
		for range 16 {
			require.NoError(t, l.Append(numbered(n+1, 30)...))
			n += 30
			l.prepares.Wait() // its syncs do not meet ours
			require.NoError(t, l.Commit())
		}
		armed = false
		require.Greater(t, len(l.Segments()), 2)
		require.NoError(t, l.Close())
		for _, fs := range killed {
			l := open(t, fs)
			last := int(l.Durable())
			idle := open(t, fs.Crash(rng))
			check(t, idle, 1, last)
			require.NoError(t, idle.Close())
			commit(t, l, last+1, 1)
			busy := open(t, fs.Crash(rng))
			check(t, busy, 1, last+1)
			require.NoError(t, busy.Close())
			require.NoError(t, l.Close())
		}
	}
}

func TestVerifyGoesOn(t *testing.T) {
	w := write(t, [][]int{{2}, {3}, {3}, {2}, {4}})
	name := segmentName(1)
	o := options(t, w.fs)
	o.ReadOnly = true
	l, err := Open(o)
	require.NoError(t, err)
	flip(t, o.Dir, name, int64(w.frames[1].off)+10, 1)   // a header
	flip(t, o.Dir, name, int64(w.ends[3])-2, 1)          // images or their padding
	flip(t, o.Dir, name, int64(w.frames[4].off)+100, 16) // a skeleton
	report, err := l.Verify(true)
	require.NoError(t, err)
	require.Len(t, slices.DeleteFunc(slices.Clone(report.Problems), func(s string) bool {
		return !strings.Contains(s, "at offset")
	}), len(report.Problems)-1)
	require.GreaterOrEqual(t, len(report.Problems), 3)
	require.EqualValues(t, 3, report.Frames)
	require.EqualValues(t, 2+3+2, report.Records)
	require.NoError(t, l.Close())
}

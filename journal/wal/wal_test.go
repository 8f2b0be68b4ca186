package wal

import (
	"fmt"
	"io"
	"math/rand/v2"
	"reflect"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"cagefs.dev/cage/journal/record"
	"cagefs.dev/cage/journal/vfs"
	"cagefs.dev/cage/remote/proto"
	"cagefs.dev/cage/remote/status"
)

const small = minSegment // a segment of 12 KiB for frames

// options of a log in the root of fs. The clock stands still.
func options(t testing.TB, fs vfs.FS) Options {
	dir, err := fs.Root()
	require.NoError(t, err)
	return Options{Dir: dir, SegmentSize: small, Now: func() proto.Time { return 1000 }}
}

func open(t testing.TB, fs vfs.FS) *Log {
	t.Helper()
	l, err := Open(options(t, fs))
	require.NoError(t, err)
	return l
}

// numbered makes records that tell their place in the order of appends by Seq.
// Every third has images.
func numbered(from, n int) []*record.Record {
	recs := make([]*record.Record, n)
	for i := range recs {
		k := from + i
		r := &record.Record{Kind: record.Make, Seq: proto.Seq(k), Dir: 1, Name: fmt.Sprint("name", k)}
		if k%3 == 0 {
			r.Kind = record.Truncate
			r.Images = []byte(strings.Repeat(fmt.Sprint(k, ","), k%50+1))
		}
		recs[i] = r
	}
	return recs
}

func commit(t testing.TB, l *Log, from, n int) {
	t.Helper()
	require.NoError(t, l.Append(numbered(from, n)...))
	require.NoError(t, l.Commit())
}

// check reads the whole log and requires that it is the numbered records from
// oldest to last.
func check(t testing.TB, l *Log, oldest, last int) {
	t.Helper()
	require.EqualValues(t, last, l.Durable())
	require.EqualValues(t, oldest, l.Oldest())
	next, before := oldest, proto.Time(0)
	require.NoError(t, l.Scan(0, true, func(r *record.Record) error {
		want := numbered(next, 1)[0]
		require.NoError(t, want.Seal())
		want.LSN, want.Time = proto.LSN(next), r.Time
		if !reflect.DeepEqual(want, r) || r.Time <= before { // cheaper than require
			require.Equal(t, want, r)
			require.Greater(t, r.Time, before)
		}
		next, before = next+1, r.Time
		return nil
	}))
	require.Equal(t, last+1, next)
}

func verify(t testing.TB, l *Log) Report {
	t.Helper()
	report, err := l.Verify(true)
	require.NoError(t, err)
	require.Empty(t, report.Problems)
	return report
}

func TestAppendCommitReopen(t *testing.T) {
	fs := vfs.NewMem(1)
	l := open(t, fs)
	check(t, l, 1, 0)
	commit(t, l, 1, 1)
	commit(t, l, 2, 9)
	check(t, l, 1, 10)
	require.NoError(t, l.Close())
	require.NoError(t, l.Close())
	require.Equal(t, status.Draining, status.Of(l.Append(numbered(11, 1)...)))
	_, err := l.Read(1, false)
	require.Equal(t, status.Draining, status.Of(err))

	for range 3 { // closing again and again leaves one mark each time at most
		l = open(t, fs)
		check(t, l, 1, 10)
		require.NoError(t, l.Close())
	}
	l = open(t, fs)
	require.EqualValues(t, 2+1, verify(t, l).Frames+1)
	commit(t, l, 11, 5)
	check(t, l, 1, 15)
	require.EqualValues(t, 15, verify(t, l).Records)
	require.NoError(t, l.Close())
}

func TestRead(t *testing.T) {
	fs := vfs.NewMem(1)
	l := open(t, fs)
	for i := 1; i <= 200; i += 4 {
		commit(t, l, i, 4)
	}
	rng := rand.New(rand.NewPCG(1, 2))
	for range 500 {
		k := rng.IntN(200) + 1
		images := rng.IntN(2) == 0
		r, err := l.Read(proto.LSN(k), images)
		require.NoError(t, err)
		want := numbered(k, 1)[0]
		require.NoError(t, want.Seal())
		want.LSN, want.Time = proto.LSN(k), r.Time
		if !images {
			want.Images = nil
		}
		require.Equal(t, want, r)
		r.Name = "scribbled" // it is ours
	}
	_, err := l.Read(201, false)
	require.ErrorIs(t, err, status.NotFound)
	_, err = l.Read(0, false)
	require.ErrorIs(t, err, status.NoHistory)
	require.NoError(t, l.Close())
}

func TestTimes(t *testing.T) {
	fs := vfs.NewMem(1)
	o := options(t, fs)
	clock := []proto.Time{100, 200, 150, 150, 300} // it steps back
	o.Now = func() proto.Time { return clock[0] }
	l, err := Open(o)
	require.NoError(t, err)
	for i := range clock {
		commit(t, l, 2*i+1, 2)
		if len(clock) > 1 {
			clock = clock[1:]
		}
	}
	var times []proto.Time
	require.NoError(t, l.Scan(1, false, func(r *record.Record) error { times = append(times, r.Time); return nil }))
	require.Equal(t, []proto.Time{100, 101, 200, 201, 202, 203, 204, 205, 300, 301}, times)
	for at, want := range map[proto.Time]proto.LSN{99: 0, 100: 1, 101: 2, 150: 2, 200: 3, 203: 6, 299: 8, 300: 9, 1 << 60: 10} {
		got, err := l.AtTime(at)
		require.NoError(t, err)
		require.Equal(t, want, got, "at %d", at)
	}
	require.NoError(t, l.Close())

	o.Now = func() proto.Time { return 1 }
	l, err = Open(o)
	require.NoError(t, err)
	r := numbered(11, 1)
	require.NoError(t, l.Append(r...))
	require.EqualValues(t, 302, r[0].Time)
	require.NoError(t, l.Close())
}

func TestPendingIsInvisible(t *testing.T) {
	l := open(t, vfs.NewMem(1))
	commit(t, l, 1, 3)
	recs := numbered(4, 2)
	require.NoError(t, l.Append(recs...))
	require.EqualValues(t, 5, recs[1].LSN)
	require.EqualValues(t, 5, l.Last())
	require.Positive(t, l.Pending())
	check(t, l, 1, 3)
	_, err := l.Read(4, false)
	require.ErrorIs(t, err, status.NotFound)
	at, err := l.AtTime(1 << 62)
	require.NoError(t, err)
	require.EqualValues(t, 3, at)
	require.NoError(t, l.Commit())
	require.Zero(t, l.Pending())
	check(t, l, 1, 5)
	require.NoError(t, l.Close())
}

func TestCloseCommits(t *testing.T) {
	fs := vfs.NewMem(1)
	l := open(t, fs)
	require.NoError(t, l.Append(numbered(1, 3)...))
	require.NoError(t, l.Close())
	l = open(t, fs.Crash(rand.New(rand.NewPCG(1, 1))))
	check(t, l, 1, 3)
	require.NoError(t, l.Close())
}

func TestSegments(t *testing.T) {
	fs := vfs.NewMem(1)
	l := open(t, fs)
	n := 0
	for len(l.Segments()) < 5 {
		commit(t, l, n+1, 7)
		n += 7
	}
	segs := l.Segments()
	for i, s := range segs {
		require.Equal(t, fmt.Sprintf("%020d.wal", uint64(s.First)), s.Name)
		require.EqualValues(t, small, s.Bytes)
		if i < len(segs)-1 {
			require.Equal(t, segs[i+1].First-1, s.Last)
		}
	}
	require.Zero(t, segs[4].Last)
	check(t, l, 1, n)
	report := verify(t, l)
	require.EqualValues(t, n, report.Records)
	require.EqualValues(t, 5, report.Segments)
	require.NoError(t, l.Close())
	l = open(t, fs)
	require.Equal(t, segs, l.Segments())
	check(t, l, 1, n)
	require.Equal(t, report, verify(t, l))
	commit(t, l, n+1, 300) // one commit over several segments
	check(t, l, 1, n+300)
	verify(t, l)
	require.NoError(t, l.Close())
	offline, err := VerifyDir(options(t, fs).Dir, true)
	require.NoError(t, err)
	require.Empty(t, offline.Problems)
	require.EqualValues(t, n+300, offline.Records)
}

func TestLargeRecords(t *testing.T) {
	fs := vfs.NewMem(1)
	o := options(t, fs)
	o.SegmentSize = 0 // 64 MiB
	l, err := Open(o)
	require.NoError(t, err)
	var recs []*record.Record
	for i := range 5 { // more than a frame
		recs = append(recs, &record.Record{Kind: record.Truncate, Images: make([]byte, MaxRecord-record.MaxSkeleton)})
		recs[i].Images[i] = byte(i)
	}
	require.NoError(t, l.Append(recs...))
	require.NoError(t, l.Commit())
	require.EqualValues(t, 5, verify(t, l).Frames+2, "two to a frame")
	for i := range recs {
		r, err := l.Read(proto.LSN(i+1), true)
		require.NoError(t, err)
		require.Equal(t, recs[i].Images, r.Images)
	}
	require.NoError(t, l.Close())
}

func TestAppendRefuses(t *testing.T) {
	l := open(t, vfs.NewMem(1))
	good := numbered(1, 1)[0]
	for name, bad := range map[string]*record.Record{
		"no kind":        {},
		"too large":      {Kind: record.Write, Images: make([]byte, MaxRecord)},
		"over a segment": {Kind: record.Write, Images: make([]byte, small)},
	} {
		require.ErrorIs(t, l.Append(good, bad), status.Invalid, name)
		require.Zero(t, l.Last(), "all or none")
	}
	require.NoError(t, l.Failed())
	commit(t, l, 1, 1)
	check(t, l, 1, 1)
	require.NoError(t, l.Close())
	_, err := Open(Options{SegmentSize: 5000})
	require.ErrorIs(t, err, status.Invalid)
}

func TestDrop(t *testing.T) {
	fs := vfs.NewMem(1)
	l := open(t, fs)
	n := 0
	for len(l.Segments()) < 5 {
		commit(t, l, n+1, 5)
		n += 5
	}
	segs := l.Segments()
	require.NoError(t, l.Drop(segs[1].Last))
	require.Equal(t, segs[1:], l.Segments(), "a segment goes when all its records are below")
	check(t, l, int(segs[1].First), n)
	_, err := l.Read(segs[0].Last, false)
	require.ErrorIs(t, err, status.NoHistory)

	// A scan on its way keeps what it reads open, and finds out about the rest.
	var seen proto.LSN
	err = l.Scan(0, true, func(r *record.Record) error {
		seen = r.LSN
		if r.LSN == segs[1].First {
			return l.Drop(1 << 60)
		}
		return nil
	})
	require.ErrorIs(t, err, status.NoHistory)
	require.Less(t, seen, segs[1].Last)
	require.Equal(t, segs[4:], l.Segments(), "never the one in use")
	check(t, l, int(segs[4].First), n)
	verify(t, l)
	require.NoError(t, l.Close())

	l = open(t, fs)
	check(t, l, int(segs[4].First), n)
	commit(t, l, n+1, 100)
	verify(t, l)
	require.NoError(t, l.Close())
}

func TestDropOfAllThatIsDurable(t *testing.T) {
	fs := vfs.NewMem(1)
	l := open(t, fs)
	n := 0
	for len(l.Segments()) < 2 {
		commit(t, l, n+1, 1)
		n++
	}
	require.NoError(t, l.Drop(1<<60))
	require.NoError(t, l.Close())
	o := options(t, fs)
	o.Now = func() proto.Time { return 0 }
	l, err := Open(o)
	require.NoError(t, err)
	commit(t, l, n+1, 1)
	check(t, l, n, n+1) // the times of the dropped ones are remembered
	require.NoError(t, l.Close())
}

// The first sync lasts until all others have appended: the second covers them.
func TestGroupCommit(t *testing.T) {
	const writers = 20
	var syncs atomic.Int64
	var appended sync.WaitGroup
	var armed atomic.Bool
	mem := vfs.NewMem(1)
	fs := vfs.Inject(mem, func(op vfs.Op) error {
		if op.Kind == "datasync" && armed.Load() && syncs.Add(1) == 1 {
			appended.Wait()
		}
		return nil
	})
	o := options(t, fs)
	o.SegmentSize = 1 << 20
	l, err := Open(o)
	require.NoError(t, err)
	armed.Store(true)
	appended.Add(writers)
	var wg sync.WaitGroup
	for i := range writers {
		wg.Go(func() {
			r := numbered(i+1, 1)[0]
			require.NoError(t, l.Append(r))
			appended.Done()
			require.NoError(t, l.Commit())
			require.GreaterOrEqual(t, l.Durable(), r.LSN)
		})
	}
	wg.Wait()
	require.EqualValues(t, 2, syncs.Load())
	again := open(t, mem.Crash(rand.New(rand.NewPCG(1, 1))))
	require.EqualValues(t, writers, again.Durable())
	require.NoError(t, again.Close())
	require.NoError(t, l.Close())
}

func TestConcurrentUse(t *testing.T) {
	l := open(t, vfs.NewMem(1))
	var wg sync.WaitGroup
	stop := make(chan struct{})
	for range 2 {
		wg.Go(func() {
			for {
				select {
				case <-stop:
					return
				default:
				}
				next := l.Oldest()
				err := l.Scan(next, true, func(r *record.Record) error { return nil })
				if err != nil {
					require.ErrorIs(t, err, status.NoHistory)
				}
				if last := l.Durable(); last > 0 {
					_, err := l.Read(last, true)
					require.NoError(t, err)
				}
				verify(t, l)
			}
		})
	}
	var writers sync.WaitGroup
	for range 4 {
		writers.Go(func() {
			for i := range 100 {
				require.NoError(t, l.Append(numbered(i, 2)...))
				require.NoError(t, l.Commit())
				if i%30 == 29 {
					require.NoError(t, l.Drop(l.Durable()))
				}
			}
		})
	}
	writers.Wait()
	close(stop)
	wg.Wait()
	require.EqualValues(t, 800, l.Durable())
	require.NoError(t, l.Close())
}

func TestNoSpace(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var full atomic.Bool
		full.Store(true)
		mem := vfs.NewMem(1)
		attempts := 0
		fs := vfs.Inject(mem, func(op vfs.Op) error {
			if op.Kind == "writeat" && strings.HasSuffix(op.Path, tmpSuffix) && op.Path != "1.tmp" && full.Load() {
				attempts++
				return vfs.Short(4096, syscall.ENOSPC)
			}
			return nil
		})
		l := open(t, fs)
		n := 0
		var err error
		for err == nil {
			if err = l.Append(numbered(n+1, 1)...); err == nil {
				n++
			}
		}
		require.ErrorIs(t, err, status.NoSpace)
		require.NoError(t, l.Failed())
		require.EqualValues(t, n, l.Last(), "a refused record has no number")
		require.NoError(t, l.Commit(), "what was taken has its place")
		check(t, l, 1, n)

		tried := attempts
		require.ErrorIs(t, l.Append(numbered(n+1, 1)...), status.NoSpace)
		require.Equal(t, tried, attempts, "not tried again at once")
		require.NoError(t, l.AppendReserved(numbered(n+1, 1)...))
		n++
		require.NoError(t, l.Commit())

		time.Sleep(prepareAgain)
		require.ErrorIs(t, l.Append(numbered(n+1, 1)...), status.NoSpace)
		require.Greater(t, attempts, tried)

		full.Store(false)
		time.Sleep(prepareAgain)
		commit(t, l, n+1, 100)
		n += 100
		check(t, l, 1, n)
		verify(t, l)
		require.NoError(t, l.Close())
		names, err := listDir(options(t, mem))
		require.NoError(t, err)
		for _, name := range names.leftovers {
			require.NotContains(t, name, tmpSuffix)
		}
	})
}

// Appending faster than segments can be prepared waits for them.
func TestAppendOutrunsPreparation(t *testing.T) {
	l := open(t, vfs.NewMem(1))
	require.NoError(t, l.Append(numbered(1, 1000)...))
	require.NoError(t, l.Append(numbered(1001, 1000)...))
	require.NoError(t, l.Commit())
	check(t, l, 1, 2000)
	require.NoError(t, l.Close())
}

func TestFailedSyncIsForGood(t *testing.T) {
	for _, kind := range []string{"datasync", "writeat"} {
		t.Run(kind, func(t *testing.T) {
			var fail atomic.Bool
			mem := vfs.NewMem(1)
			fs := vfs.Inject(mem, func(op vfs.Op) error {
				switch {
				case op.Kind != kind || !fail.Swap(false):
					return nil
				case kind == "writeat":
					return vfs.Short(10, syscall.EIO)
				}
				return vfs.LoseUnsynced(syscall.EIO)
			})
			l := open(t, fs)
			commit(t, l, 1, 5)
			fail.Store(true)
			require.NoError(t, l.Append(numbered(6, 2)...))
			err := l.Commit()
			require.ErrorIs(t, err, syscall.EIO)
			require.Equal(t, status.IO, status.Of(err))
			require.Equal(t, err, l.Failed())
			require.Equal(t, err, l.Append(numbered(8, 1)...), "the disk is sound again, the log is not")
			require.Equal(t, err, l.Commit())
			require.Equal(t, err, l.Drop(3))
			check(t, l, 1, 5)
			require.Equal(t, err, l.Close())

			// What the kernel's memory still shows is taken, but made durable first.
			l = open(t, mem)
			last := int(l.Durable())
			require.GreaterOrEqual(t, last, 5)
			check(t, l, 1, last)
			again := open(t, mem.Crash(rand.New(rand.NewPCG(1, 1))))
			check(t, again, 1, last)
			require.NoError(t, again.Close())
			require.NoError(t, l.Close())
		})
	}
}

// Every call on the disk fails in turn.
func TestEachFailure(t *testing.T) {
	for k := 1; ; k++ {
		mem := vfs.NewMem(1)
		var n atomic.Int64
		fs := vfs.Inject(mem, func(op vfs.Op) error {
			if n.Add(1) == int64(k) {
				return vfs.LoseUnsynced(syscall.EIO)
			}
			return nil
		})
		committed, appended := 0, 0
		dir, err := fs.Root()
		if err == nil {
			var l *Log
			if l, err = Open(Options{Dir: dir, SegmentSize: small, Now: func() proto.Time { return 1 }}); err == nil {
				for appended < 200 && err == nil {
					if err = l.Append(numbered(appended+1, 7)...); err == nil {
						appended += 7
						if err = l.Commit(); err == nil {
							committed = appended
						}
					}
				}
				l.Close()
			}
		}
		l := open(t, mem.Crash(rand.New(rand.NewPCG(uint64(k), 1))))
		last := int(l.Durable())
		require.GreaterOrEqual(t, last, committed, "call %d", k)
		require.LessOrEqual(t, last, appended, "call %d", k)
		check(t, l, 1, last)
		verify(t, l)
		require.NoError(t, l.Close())
		if n.Load() < int64(k) {
			require.NoError(t, err)
			return
		}
	}
}

func TestDump(t *testing.T) {
	fs := vfs.NewMem(1)
	l := open(t, fs)
	commit(t, l, 1, 3)
	commit(t, l, 4, 1)
	require.NoError(t, l.Close())
	dir := options(t, fs).Dir
	name := segmentName(1)
	var whole, cut strings.Builder
	require.NoError(t, Dump(dir, name, &whole))
	for _, want := range []string{"segment " + name, "frame first 1 records 3", `name "name2"`, "frame first 4 records 1", "flags 2"} {
		require.Contains(t, whole.String(), want)
	}
	flip(t, dir, name, record.SegmentHeaderSize+100, 1)
	require.NoError(t, Dump(dir, name, &cut))
	require.Contains(t, cut.String(), "bad: damaged")
	require.Contains(t, cut.String(), "frame first 4 records 1")
	require.ErrorIs(t, Dump(dir, name, failing{}), io.ErrClosedPipe)
}

type failing struct{}

func (failing) Write([]byte) (int, error) { return 0, io.ErrClosedPipe }

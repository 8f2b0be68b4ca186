package replay

import (
	"bytes"
	"context"
	"fmt"
	"hash/crc32"
	"io"
	"math/rand/v2"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/rs/zerolog"
	"github.com/stretchr/testify/require"

	"cagefs.dev/cage/journal"
	"cagefs.dev/cage/journal/vfs"
	"cagefs.dev/cage/remote/proto"
	"cagefs.dev/cage/remote/status"
)

const testSession = proto.SessionID(5)

// export is a journal on a disk in memory with a session.
type export struct {
	*journal.Journal
	t      testing.TB
	disk   *vfs.Mem
	seq    proto.Seq
	client uint32
	ident  proto.Ident
	now    *atomic.Int64 // the clock
}

func openExport(t testing.TB, disk *vfs.Mem) *export {
	t.Helper()
	e := &export{t: t, disk: disk, now: new(atomic.Int64), ident: proto.Ident{PGID: 1}}
	e.now.Store(1_000_000_000_000_000_000)
	j, _, err := journal.Open(context.Background(), journal.Options{FS: disk, SegmentSize: 4 << 20, CheckpointBytes: 256 << 10, TableChanges: 4 << 10,
		HistoryCap: 1 << 40, Now: func() proto.Time { return proto.Time(e.now.Load()) }, Log: zerolog.Nop()})
	require.NoError(t, err)
	e.Journal = j
	e.client, err = j.Client("test")
	require.NoError(t, err)
	if seq, err := j.ResumeSession(testSession, "key"); err == nil {
		e.seq = seq
	} else {
		require.NoError(t, j.OpenSession(testSession, e.client, "key"))
	}
	t.Cleanup(func() { require.NoError(t, j.Close()) })
	return e
}

func (e *export) sub(op proto.Op) *journal.Submission {
	e.seq++
	e.now.Add(1000)
	return &journal.Submission{Client: e.client, Trusted: true,
		Change: &proto.Change{Session: testSession, Seq: e.seq, Acked: e.seq - 1, Ident: e.ident, Op: op}}
}

func (e *export) do(op proto.Op) (proto.Result, error) {
	s := e.sub(op)
	switch op := op.(type) {
	case *proto.Rollback:
		return Rollback(context.Background(), e.Journal, s, op)
	case *proto.Undo:
		return Undo(context.Background(), e.Journal, s, op)
	}
	return e.Do(context.Background(), s)
}

func (e *export) must(op proto.Op) proto.Result {
	e.t.Helper()
	r, err := e.do(op)
	require.NoError(e.t, err, "%T %+v: %v", op, op, r.Plan)
	return r
}

// later lets time pass, so that what follows is a group of its own.
func (e *export) later() { e.now.Add(10_000_000_000) }

// find returns the file at a path.
func (e *export) find(path string) proto.Attr {
	e.t.Helper()
	a, err := e.stat(path)
	require.NoError(e.t, err, path)
	return a
}

func (e *export) stat(path string) (proto.Attr, error) {
	a, err := e.Attr(proto.RootID)
	for _, name := range strings.Split(path, "/") {
		if err == nil && name != "" {
			a, err = e.Lookup(a.ID, name)
		}
	}
	return a, err
}

func split(path string) (dir, name string) {
	i := strings.LastIndexByte(path, '/')
	return path[:max(i, 0)], path[i+1:]
}

func (e *export) mkdir(path string) proto.FileID {
	e.t.Helper()
	dir, name := split(path)
	return e.must(&proto.Make{Dir: e.find(dir).ID, Name: name, Mode: proto.ModeDir | 0o755}).ID
}

func (e *export) write(path, content string) proto.FileID {
	e.t.Helper()
	dir, name := split(path)
	a, err := e.stat(path)
	if err != nil {
		a.ID = e.must(&proto.Make{Dir: e.find(dir).ID, Name: name, Mode: proto.ModeRegular | 0o644}).ID
	}
	e.must(&proto.Write{ID: a.ID, Data: []byte(content)})
	return a.ID
}

func (e *export) rm(path string) proto.LSN {
	e.t.Helper()
	dir, name := split(path)
	return e.must(&proto.Remove{Dir: e.find(dir).ID, Name: name, IsDir: ptr(e.find(path)).IsDir()}).LSN
}

func (e *export) mv(from, to string) proto.LSN {
	e.t.Helper()
	d1, n1 := split(from)
	d2, n2 := split(to)
	return e.must(&proto.Rename{Dir: e.find(d1).ID, Name: n1, NewDir: e.find(d2).ID, NewName: n2}).LSN
}

func (e *export) ln(from, to string) proto.LSN {
	e.t.Helper()
	dir, name := split(to)
	return e.must(&proto.Link{ID: e.find(from).ID, Dir: e.find(dir).ID, Name: name}).LSN
}

func ptr[T any](v T) *T { return &v }

func (e *export) content(path string) string {
	e.t.Helper()
	a := e.find(path)
	b := make([]byte, a.Size)
	_, err := e.ReadAt(a.ID, b, 0)
	require.NoError(e.t, err)
	return string(b)
}

func (e *export) crash() *export { return openExport(e.t, e.disk.Clone()) }

type state map[string]string

// look walks the present: path to all that is to be the same.
func (e *export) look() state {
	e.t.Helper()
	out := state{}
	var walk func(proto.FileID, string)
	walk = func(id proto.FileID, path string) {
		a, err := e.Attr(id)
		require.NoError(e.t, err, path)
		out[path+"/"] = e.line(path, a)
		require.NoError(e.t, e.ReadDir(id, 0, true, func(d proto.DirEntry) bool {
			p := path + "/" + d.Name
			if d.Attr.IsDir() {
				walk(d.Attr.ID, p)
			} else {
				out[p] = e.line(p, d.Attr)
			}
			return true
		}))
	}
	walk(proto.RootID, "")
	return out
}

func (e *export) line(path string, a proto.Attr) string {
	line := fmt.Sprintf("%d %o %d:%d nlink %d", a.ID, a.Mode, a.UID, a.GID, a.Nlink)
	switch a.Type() {
	case proto.ModeSymlink:
		target, err := e.Readlink(a.ID)
		require.NoError(e.t, err, path)
		return line + " -> " + target
	case proto.ModeRegular:
		b := make([]byte, a.Size+10)
		n, err := e.ReadAt(a.ID, b, 0)
		require.ErrorIs(e.t, err, io.EOF, path)
		require.Equal(e.t, int(a.Size), n, path)
		line += fmt.Sprintf(" size %d content %x", a.Size, crc32.ChecksumIEEE(b[:n]))
	}
	line += fmt.Sprintf(" mtime %d", a.Mtime)
	names, err := e.ListXattr(a.ID)
	require.NoError(e.t, err, path)
	slices.Sort(names)
	for _, n := range names {
		v, err := e.GetXattr(a.ID, n)
		require.NoError(e.t, err, path)
		line += fmt.Sprintf(" %s=%s", n, v)
	}
	return line
}

// storm makes random changes.
type storm struct {
	*export
	rng *rand.Rand
}

func (s *storm) name() string { return "n" + strconv.Itoa(s.rng.IntN(6)) }

// dir is a random directory, at most three deep.
func (s *storm) dir() proto.FileID {
	id := proto.RootID
	for range s.rng.IntN(4) {
		if a, err := s.Lookup(id, s.name()); err == nil && a.IsDir() {
			id = a.ID
		}
	}
	return id
}

func (s *storm) any() proto.FileID {
	for range 10 {
		if a, err := s.Lookup(s.dir(), s.name()); err == nil {
			return a.ID
		}
	}
	return proto.RootID
}

func (s *storm) step() {
	r := s.rng
	var op proto.Op
	switch r.IntN(14) {
	case 0, 1:
		op = &proto.Make{Dir: s.dir(), Name: s.name(), Mode: proto.ModeRegular | uint32(r.IntN(0o1000))}
	case 2:
		op = &proto.Make{Dir: s.dir(), Name: s.name(), Mode: proto.ModeDir | 0o700}
	case 3:
		op = &proto.Make{Dir: s.dir(), Name: s.name(), Mode: proto.ModeSymlink, Target: s.name()}
	case 4, 5:
		data := bytes.Repeat([]byte{byte(r.IntN(256)), byte(r.IntN(256))}, 1+r.IntN([]int{20, 3000, 9000}[r.IntN(3)]))
		op = &proto.Write{ID: s.any(), Off: uint64(r.IntN(12000)), Data: data}
	case 6:
		op = &proto.SetAttr{ID: s.any(), Mask: proto.SetSize, Size: uint64(r.IntN(15000))}
	case 7, 8:
		op = &proto.Rename{Dir: s.dir(), Name: s.name(), NewDir: s.dir(), NewName: s.name(), Flags: uint32([]int{0, 0, 0, 2}[r.IntN(4)])}
	case 9:
		op = &proto.Remove{Dir: s.dir(), Name: s.name(), IsDir: r.IntN(3) == 0}
	case 10:
		op = &proto.Link{ID: s.any(), Dir: s.dir(), Name: s.name()}
	case 11:
		if r.IntN(2) == 0 {
			op = &proto.SetXattr{ID: s.any(), Name: "user." + s.name(), Value: []byte(s.name())}
		} else {
			op = &proto.SetAttr{ID: s.any(), Mask: proto.SetMode | proto.SetMtime | proto.SetUID, Mode: uint32(r.IntN(0o1000)),
				Mtime: proto.Time(r.IntN(1 << 40)), UID: uint32(r.IntN(3))}
		}
	case 12, 13:
		modes := []uint32{0, proto.AllocKeepSize, proto.AllocPunchHole | proto.AllocKeepSize, proto.AllocZeroRange}
		op = &proto.Allocate{ID: s.any(), Mode: modes[r.IntN(4)], Off: uint64(r.IntN(12000)), Len: uint64(1 + r.IntN(9000))}
	}
	_, err := s.do(op)
	switch status.Of(err) {
	case status.IO, status.Internal, status.Damaged:
		require.NoError(s.t, err, "%T %+v", op, op)
	}
}

func seeds(t *testing.T, n int) []uint64 {
	if v := os.Getenv("CAGE_SEED"); v != "" {
		s, err := strconv.ParseUint(v, 10, 64)
		require.NoError(t, err)
		return []uint64{s}
	}
	if v := os.Getenv("CAGE_REPLAY_RUNS"); v != "" {
		runs, err := strconv.Atoi(v)
		require.NoError(t, err)
		n = runs
	}
	out := make([]uint64, n)
	for i := range out {
		out[i] = uint64(i + 1)
	}
	return out
}

// TestModel rolls a storm of changes back to random moments, undoes that, and
// undoes the undo: each time the export is what it was then. Repeat with CAGE_SEED=n.
func TestModel(t *testing.T) {
	for _, seed := range seeds(t, 4) {
		t.Run(fmt.Sprintf("seed=%d", seed), func(t *testing.T) {
			rng := rand.New(rand.NewPCG(seed, 11))
			e := openExport(t, vfs.NewMem(seed))
			s := &storm{e, rng}
			was := map[proto.LSN]state{}
			var moments []proto.LSN
			for round := range 6 {
				for range 40 {
					s.step()
					was[e.Last()] = e.look()
					moments = append(moments, e.Last())
				}
				if round == 3 {
					e = e.crash()
					s.export = e
				}
				before := e.look()
				to := moments[rng.IntN(len(moments))]
				res, err := e.do(&proto.Rollback{Paths: []string{""}, To: to})
				require.NoError(t, err, "to %d: %v", to, res.Plan)
				require.Equal(t, was[to], e.look(), "round %d, rolled back to %d: %v", round, to, res.Plan)
				if res.LSN == 0 {
					continue
				}
				require.Equal(t, was[to], e.crash().look(), "round %d, rolled back to %d, after a crash", round, to)
				undo, err := e.do(&proto.Undo{LSNs: []proto.LSN{res.LSN}})
				require.NoError(t, err, "%v", undo.Plan)
				require.Equal(t, before, e.look(), "round %d, undone: %v", round, undo.Plan)
				redo, err := e.do(&proto.Undo{Redo: true})
				require.NoError(t, err, "%v", redo.Plan)
				require.Equal(t, was[to], e.look(), "round %d, redone", round)
				if round%2 == 0 {
					again, err := e.do(&proto.Undo{})
					require.NoError(t, err, "%v", again.Plan)
					require.Equal(t, before, e.look(), "round %d, undone again", round)
				}
				require.Equal(t, e.look(), e.crash().look(), "round %d, after a crash", round)
				was[e.Last()] = e.look()
				moments = append(moments, e.Last())
			}
			rep, err := e.Verify(context.Background(), true)
			require.NoError(t, err)
			require.Empty(t, rep.Problems)
		})
	}
}

// below is the part of a state at a path, without numbers of files and links,
// which copies do not share.
func (s state) below(path string) map[string]string {
	out := map[string]string{}
	for p, line := range s {
		if p == "/"+path || strings.HasPrefix(p, "/"+path+"/") {
			words := strings.Fields(line)
			out[p] = strings.Join(append(words[1:3:3], words[5:]...), " ")
		}
	}
	return out
}

// unlinked is a line without the number of links: they may come and go elsewhere.
func unlinked(line string) string {
	before, rest, _ := strings.Cut(line, " nlink ")
	_, rest, _ = strings.Cut(rest, " ")
	return before + " " + rest
}

// TestModelOfScopes rolls parts of a tree back: they are what they were, the
// rest is as it is, undo brings everything back. Repeat with CAGE_SEED=n.
func TestModelOfScopes(t *testing.T) {
	for _, seed := range seeds(t, 4) {
		t.Run(fmt.Sprintf("seed=%d", seed), func(t *testing.T) {
			rng := rand.New(rand.NewPCG(seed, 13))
			e := openExport(t, vfs.NewMem(seed))
			s := &storm{e, rng}
			was := map[proto.LSN]state{}
			var moments []proto.LSN
			for round := range 12 {
				for range 20 {
					s.step()
					was[e.Last()] = e.look()
					moments = append(moments, e.Last())
				}
				before := e.look()
				to := moments[rng.IntN(len(moments))]
				path := s.name()
				if rng.IntN(2) == 0 {
					path += "/" + s.name()
				}
				keep := proto.NewFiles(rng.IntN(2))
				op := &proto.Rollback{Paths: []string{path}, To: to, New: keep}
				res, err := e.do(op)
				about := fmt.Sprintf("round %d, %s back to %d, keep %d: %v", round, path, to, keep, res.Plan)
				switch status.Of(err) {
				case status.NotFound, status.Conflict:
					require.Equal(t, before, e.look(), about)
					continue
				}
				require.NoError(t, err, about)
				after := e.look()
				want, got := was[to].below(path), after.below(path)
				if keep == proto.NewKeep {
					for p := range got {
						if _, ok := want[p]; !ok {
							delete(got, p)
						}
					}
				}
				require.Equal(t, want, got, about)
				for p, line := range before {
					in := p == "/"+path || strings.HasPrefix(p, "/"+path+"/")
					above := strings.HasPrefix("/"+path, p)
					if !in && !above {
						require.Equal(t, unlinked(line), unlinked(after[p]), "%s: %s", p, about)
					}
				}
				require.Equal(t, e.look(), e.crash().look(), about)
				if res.LSN != 0 {
					undo, err := e.do(&proto.Undo{LSNs: []proto.LSN{res.LSN}})
					require.NoError(t, err, "%s\n%v", about, undo.Plan)
					require.Equal(t, before, e.look(), "undone: %s\n%v", about, undo.Plan)
				}
				was[e.Last()] = e.look()
			}
			rep, err := e.Verify(context.Background(), true)
			require.NoError(t, err)
			require.Empty(t, rep.Problems)
		})
	}
}

// TestModelOfUndo takes random records back, some at a time: it is a conflict
// and changes nothing, or taking it back again restores what was.
func TestModelOfUndo(t *testing.T) {
	for _, seed := range seeds(t, 4) {
		t.Run(fmt.Sprintf("seed=%d", seed), func(t *testing.T) {
			rng := rand.New(rand.NewPCG(seed, 17))
			e := openExport(t, vfs.NewMem(seed))
			s := &storm{e, rng}
			done := 0
			for range 40 {
				for range 8 {
					s.step()
				}
				if e.Last() < 30 {
					continue
				}
				before := e.look()
				var lsns []proto.LSN
				for back := range proto.LSN(25) {
					r, err := e.Record(e.Last()-back, false)
					require.NoError(t, err)
					if changes(r) && r.Txn == 0 && rng.IntN(4) == 0 {
						lsns = append(lsns, r.LSN)
					}
				}
				if len(lsns) == 0 {
					continue
				}
				res, err := e.do(&proto.Undo{LSNs: lsns})
				switch status.Of(err) {
				case status.Conflict, status.Invalid, status.NotFound:
					require.Equal(t, before, e.look(), "%v: %v", lsns, err)
					continue
				}
				require.NoError(t, err, "%v: %v", lsns, res.Plan)
				if res.LSN == 0 {
					continue
				}
				done++
				require.Equal(t, e.look(), e.crash().look(), "%v: %v", lsns, res.Plan)
				redo, err := e.do(&proto.Undo{Redo: true})
				require.NoError(t, err, "%v: %v", lsns, redo.Plan)
				require.Equal(t, before, e.look(), "%v: %v, taken back: %v", lsns, res.Plan, redo.Plan)
			}
			require.NotZero(t, done)
		})
	}
}

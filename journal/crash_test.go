package journal

import (
	"bytes"
	"context"
	"fmt"
	"maps"
	"math/rand/v2"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"

	"github.com/stretchr/testify/require"

	"cagefs.dev/cage/journal/vfs"
	"cagefs.dev/cage/remote/proto"
	"cagefs.dev/cage/remote/status"
)

// shot is all that clients can see of an export: path to attributes, and file contents.
type shot struct {
	attrs    map[string]string
	contents map[string][]byte
	ids      map[string]proto.FileID
	table    string // what the table of files says
}

// snapshot walks an export through its journal.
func snapshot(t testing.TB, j *Journal) shot {
	t.Helper()
	s := shot{map[string]string{}, map[string][]byte{}, map[string]proto.FileID{}, ""}
	var walk func(id proto.FileID, path string)
	walk = func(id proto.FileID, path string) {
		require.NoError(t, j.ReadDir(id, 0, true, func(e proto.DirEntry) bool {
			a, p := e.Attr, path+"/"+e.Name
			require.NotZero(t, a.ID, p)
			line := fmt.Sprintf("fid %d %o nlink %d %d:%d", a.ID, a.Mode, a.Nlink, a.UID, a.GID)
			if a.IsDir() {
				line = fmt.Sprintf("fid %d %o %d:%d", a.ID, a.Mode, a.UID, a.GID)
			}
			if a.Type() != proto.ModeSymlink {
				line += fmt.Sprintf(" mtime %d", a.Mtime)
			}
			names, err := j.ListXattr(a.ID)
			require.NoError(t, err)
			slices.Sort(names)
			for _, n := range names {
				v, err := j.GetXattr(a.ID, n)
				require.NoError(t, err)
				line += fmt.Sprintf(" %s=%x", n, v)
			}
			s.ids[p] = a.ID
			switch a.Type() {
			case proto.ModeSymlink:
				target, err := j.Readlink(a.ID)
				require.NoError(t, err)
				line += " -> " + target
			case proto.ModeRegular:
				b := make([]byte, a.Size)
				n, err := j.ReadAt(a.ID, b, 0)
				require.NoError(t, err)
				require.Equal(t, len(b), n)
				s.contents[p] = b
			case proto.ModeDir:
				defer walk(a.ID, p)
			}
			s.attrs[p] = line
			return true
		}))
	}
	walk(proto.RootID, "")
	s.table = dumpTable(t, j.tree.table)
	return s
}

// diff tells how got differs from want, bytes in missing ranges aside.
func (want shot) diff(got shot, missing []Missing) string {
	var out strings.Builder
	lost := map[proto.FileID][]Missing{}
	for _, m := range missing {
		lost[m.ID] = append(lost[m.ID], m)
	}
	for _, p := range slices.Sorted(maps.Keys(want.attrs)) {
		if g, ok := got.attrs[p]; !ok {
			fmt.Fprintf(&out, "%s is missing\n", p)
		} else if g != want.attrs[p] {
			fmt.Fprintf(&out, "%s is %q, want %q\n", p, g, want.attrs[p])
		}
		a, b := bytes.Clone(want.contents[p]), bytes.Clone(got.contents[p])
		for _, m := range lost[want.ids[p]] {
			end := min(m.Off+m.Len, uint64(len(a)))
			if end >= uint64(len(a)) && uint64(len(b)) < uint64(len(a)) { // cut off
				b = append(b, make([]byte, uint64(len(a))-uint64(len(b)))...)
			}
			if m.Off < end && end <= uint64(len(b)) {
				clear(a[m.Off:end])
				clear(b[m.Off:end])
			}
		}
		if !bytes.Equal(a, b) {
			i := 0
			for i < len(a) && i < len(b) && a[i] == b[i] {
				i++
			}
			fmt.Fprintf(&out, "%s: %d bytes, want %d; differs from byte %d; missing %v\n", p, len(b), len(a), i, lost[want.ids[p]])
		}
	}
	for _, p := range slices.Sorted(maps.Keys(got.attrs)) {
		if _, ok := want.attrs[p]; !ok {
			fmt.Fprintf(&out, "%s should not be there\n", p)
		}
	}
	if want.table != got.table {
		fmt.Fprintf(&out, "the table is\n%s, want\n%s", got.table, want.table)
	}
	return out.String()
}

// storm makes random changes of an export, as one session.
type storm struct {
	*testExport
	rng     *rand.Rand
	dirs    []proto.FileID
	names   []string
	locals  bool                    // processes of the server make changes as well
	byLocal bool                    // the last step was a local process's
	fresh   map[proto.FileID][]span // bytes written since the file's last sync
	bare    []proto.FileID          // files without a name
}

func newStorm(e *testExport, rng *rand.Rand) *storm {
	s := &storm{testExport: e, rng: rng, dirs: []proto.FileID{proto.RootID}, fresh: map[proto.FileID][]span{}}
	for i := range 8 {
		s.names = append(s.names, "n"+strconv.Itoa(i))
	}
	return s
}

func (s *storm) name() string { return s.names[s.rng.IntN(len(s.names))] }

func (s *storm) dir() proto.FileID { return s.dirs[s.rng.IntN(len(s.dirs))] }

func (s *storm) any() (proto.Attr, bool) {
	a, err := s.Lookup(s.dir(), s.name())
	return a, err == nil
}

func (s *storm) regular() (proto.Attr, bool) {
	for range 20 {
		if a, ok := s.any(); ok && a.IsRegular() {
			return a, true
		}
	}
	return proto.Attr{}, false
}

// step is one random operation; failures of the operation itself are part of it.
func (s *storm) step() error {
	err := s.try()
	switch status.Of(err) {
	case status.IO, status.Internal, status.Damaged:
		return err
	}
	return nil
}

func (s *storm) try() error {
	r := s.rng
	s.who = proto.Ident{}
	if r.IntN(4) == 0 {
		s.who.UID = uint32(r.IntN(3))
	}
	switch r.IntN(24) {
	case 0, 1, 2:
		res, err := s.do(&proto.Make{Dir: s.dir(), Name: s.name(), Mode: proto.ModeRegular | uint32(r.IntN(0o10000))})
		if err == nil {
			return s.write(res.Attr)
		}
		return err
	case 3:
		res, err := s.do(&proto.Make{Dir: s.dir(), Name: s.name(), Mode: proto.ModeDir | 0o700})
		if err == nil && r.IntN(3) == 0 {
			_, err = s.do(&proto.SetXattr{ID: res.ID, Name: aclDefault, Value: someACL.bytes()})
		}
		if err == nil && len(s.dirs) < 12 {
			s.dirs = append(s.dirs, res.ID)
		}
		return err
	case 4:
		_, err := s.do(&proto.Make{Dir: s.dir(), Name: s.name(), Mode: proto.ModeSymlink, Target: "to/" + s.name()})
		return err
	case 5, 6, 7, 8:
		if a, ok := s.regular(); ok {
			return s.write(a)
		}
	case 9:
		if a, ok := s.regular(); ok {
			_, err := s.do(&proto.SetAttr{ID: a.ID, Mask: proto.SetSize, Size: uint64(r.IntN(int(a.Size) + 9000))})
			return err
		}
	case 10, 11:
		_, err := s.do(&proto.Rename{Dir: s.dir(), Name: s.name(), NewDir: s.dir(), NewName: s.name(), Flags: uint32([]int{0, 0, 0, 1, 2}[r.IntN(5)])})
		return err
	case 12:
		_, err := s.do(&proto.Remove{Dir: s.dir(), Name: s.name(), IsDir: r.IntN(3) == 0})
		return err
	case 13:
		if a, ok := s.any(); ok {
			_, err := s.do(&proto.Link{ID: a.ID, Dir: s.dir(), Name: s.name()})
			return err
		}
	case 14:
		if a, ok := s.any(); ok {
			if r.IntN(2) == 0 {
				if r.IntN(4) == 0 && a.Type() != proto.ModeSymlink {
					_, err := s.do(&proto.SetXattr{ID: a.ID, Name: aclAccess, Value: someACL.bytes()})
					return err
				}
				_, err := s.do(&proto.SetXattr{ID: a.ID, Name: "user." + s.name(), Value: []byte(s.name())})
				return err
			}
			_, err := s.do(&proto.SetAttr{ID: a.ID, Mask: proto.SetMode | proto.SetMtime | proto.SetUID, Mode: uint32(r.IntN(0o1000)),
				Mtime: proto.Time(r.IntN(1 << 40)), UID: uint32(r.IntN(3))})
			return err
		}
	case 22, 23:
		if s.locals {
			return s.local()
		}
	case 15:
		if a, ok := s.regular(); ok {
			_, err := s.do(&proto.Sync{ID: a.ID})
			if err == nil {
				delete(s.fresh, a.ID)
			}
			return err
		}
	case 16:
		res, err := s.do(&proto.Make{Dir: s.dir(), Mode: proto.ModeRegular | 0o600})
		if err != nil {
			return err
		}
		s.bare = append(s.bare, res.ID)
		return s.write(res.Attr)
	case 17:
		if len(s.bare) > 0 {
			id := s.bare[0]
			_, err := s.do(&proto.Link{ID: id, Dir: s.dir(), Name: s.name()})
			if err == nil { // what is linked is durable
				s.bare = s.bare[1:]
				delete(s.fresh, id)
			}
			return err
		}
	case 20:
		if a, ok := s.regular(); ok {
			data := make([]byte, 1+r.IntN(9000))
			for i := range data {
				data[i] = byte(r.Uint32())
			}
			s.fresh[a.ID] = addSpan(s.fresh[a.ID], span{int64(a.Size), int64(a.Size) + int64(len(data))})
			_, err := s.do(&proto.Write{ID: a.ID, Append: true, Data: data})
			return err
		}
	case 21:
		src, ok := s.regular()
		if dst, _ := s.regular(); ok {
			op := &proto.Copy{ID: dst.ID, Off: uint64(r.IntN(int(dst.Size) + 5000)), Src: src.ID,
				SrcOff: uint64(r.IntN(int(src.Size) + 1)), Len: uint32(1 + r.IntN(20000))}
			s.fresh[dst.ID] = addSpan(s.fresh[dst.ID], span{int64(op.Off), int64(op.Off) + int64(op.Len)})
			_, err := s.do(op)
			return err
		}
	case 18, 19:
		if a, ok := s.regular(); ok {
			return s.allocate(a)
		}
	}
	return nil
}

// local is a change by a process of the server, that is synced by it and noticed.
// A cut before its record is durable leaves the change, but not the numbers that
// the record gives: it is not looked at.
func (s *storm) local() error {
	root, err := s.fs.Root()
	if err != nil {
		return err
	}
	defer root.Close()
	top, err := root.StatSelf()
	if err != nil {
		return err
	}
	dir, in, name, to := root, top, s.name(), s.name()
	if sub, err := root.OpenDir(s.name()); err == nil {
		defer sub.Close()
		dir = sub
		if in, err = sub.StatSelf(); err != nil {
			return err
		}
	}
	// Each may fail, as what the clients do: the name is taken, or nothing is there.
	switch s.rng.IntN(4) {
	case 0:
		if f, err := dir.Create(name, 0o600); err == nil {
			_, err = f.WriteAt([]byte(name), 0)
			if err == nil { // times that come from writing alone are not kept
				err = f.Utimes(vfs.OmitTime, int64(s.rng.IntN(1<<40)))
			}
			f.Close()
			if err != nil {
				return err
			}
		}
	case 1:
		_ = dir.Mkdir(name, 0o700)
	case 2:
		_ = dir.Remove(name)
	case 3:
		_ = dir.Rename(name, root, to, 0)
	}
	if err := s.fs.SyncFS(); err != nil {
		return err
	}
	err = s.Notice(context.Background(), []LocalEvent{
		{LocalPlace: LocalPlace{Dir: in.Ident, Name: name}, What: LocalIn | LocalOut | LocalSure, By: vi},
		{LocalPlace: LocalPlace{Dir: top.Ident, Name: to}, What: LocalIn | LocalOut | LocalSure, By: vi},
	})
	if err == nil {
		err = s.log.Commit()
	}
	s.byLocal = true
	s.did()
	return err
}

func (s *storm) allocate(a proto.Attr) error {
	r := s.rng
	modes := []uint32{0, proto.AllocKeepSize, proto.AllocPunchHole | proto.AllocKeepSize, proto.AllocPunchHole | proto.AllocKeepSize,
		proto.AllocZeroRange, proto.AllocZeroRange | proto.AllocKeepSize}
	op := &proto.Allocate{ID: a.ID, Mode: modes[r.IntN(len(modes))], Off: uint64(r.IntN(int(a.Size) + 5000)), Len: 1 + uint64(r.IntN(12000))}
	if r.IntN(2) == 0 {
		op.Off, op.Len = op.Off/4096*4096, (op.Len+4095)/4096*4096
	}
	_, err := s.do(op)
	return err
}

func (s *storm) write(a proto.Attr) error {
	r := s.rng
	off := r.IntN(int(a.Size) + 5000)
	if r.IntN(2) == 0 {
		off = off / 4096 * 4096
	}
	data := make([]byte, 1+r.IntN([]int{100, 5000, 20000}[r.IntN(3)]))
	for i := range data {
		data[i] = byte(r.Uint32())
	}
	s.fresh[a.ID] = addSpan(s.fresh[a.ID], span{int64(off), int64(off + len(data))})
	_, err := s.do(&proto.Write{ID: a.ID, Off: uint64(off), Data: data})
	return err
}

// crashRuns is how many storms a test makes, seed how they are repeated.
func crashRuns(t *testing.T, short int) (runs int, seed uint64) {
	runs, seed = short, 1
	if v := os.Getenv("CAGE_CRASH_RUNS"); v != "" {
		n, err := strconv.Atoi(v)
		require.NoError(t, err)
		runs = n
	}
	if v := os.Getenv("CAGE_SEED"); v != "" {
		n, err := strconv.ParseUint(v, 10, 64)
		require.NoError(t, err)
		runs, seed = 1, n
	}
	return runs, seed
}

// TestCrashAtEverySync cuts the power before every sync that a storm of
// operations causes, and at random points between operations: what recovery finds is
// the state after all answered operations, or with the one under way, less
// bytes that nobody had synced, which it lists. Repeat with CAGE_SEED=n.
func TestCrashAtEverySync(t *testing.T) {
	runs, first := crashRuns(t, 12)
	cuts := 0
	for i := range runs {
		cuts += crashStorm(t, first+uint64(i), 60)
	}
	t.Logf("%d cuts", cuts)
	require.Greater(t, cuts, runs*60)
}

type cut struct {
	disk  *vfs.Mem
	fresh map[proto.FileID][]span
	after int // operations that were answered
	idle  bool
	what  string
}

func crashStorm(t *testing.T, seed uint64, steps int) (n int) {
	rng := rand.New(rand.NewPCG(seed, 1))
	cutRng := rand.New(rand.NewPCG(seed, 2))
	disk := vfs.NewMem(seed)
	if seed%3 == 0 {
		parted(t, disk)
	}
	var mu sync.Mutex // checkpoints sync beside the operations
	var cuts []cut
	var states []shot // after each operation
	disk.OnSync = func(n int) {
		mu.Lock()
		defer mu.Unlock()
		if len(states) > 0 {
			cuts = append(cuts, cut{disk: disk.Crash(cutRng), after: len(states) - 1, what: fmt.Sprintf("sync %d", n)})
		}
	}
	e, _ := openOn(t, disk)
	if seed%2 == 0 {
		e.inlineCut = 5000 // graves for what truncations and holes take away
	}
	first := snapshot(t, e.Journal)
	mu.Lock()
	states = []shot{first}
	mu.Unlock()
	s := newStorm(e, rng)
	s.locals = true
	s.did = func() {
		after := snapshot(t, e.Journal)
		mu.Lock()
		defer mu.Unlock()
		states = append(states, after)
		cuts = append(cuts, cut{disk: disk.Crash(cutRng), after: len(states) - 1, idle: true, what: "after the answer"})
	}
	for step := range steps {
		mu.Lock()
		cuts, states = nil, states[len(states)-1:]
		mu.Unlock()
		fresh := maps.Clone(s.fresh)
		s.byLocal = false
		require.NoError(t, s.step(), "seed %d step %d", seed, step)
		for id, f := range s.fresh {
			fresh[id] = f
		}
		mu.Lock()
		made := cuts
		mu.Unlock()
		for _, c := range made {
			if s.byLocal && !c.idle {
				continue
			}
			n++
			if c.fresh = fresh; c.idle && c.after == len(states)-1 {
				c.fresh = s.fresh
			}
			right := states[c.after:min(c.after+2, len(states))]
			if c.idle {
				right = right[:1]
			}
			if problem := checkCut(t, c, right); problem != "" {
				t.Fatalf("CAGE_SEED=%d step %d, cut at %s:\n%s", seed, step, c.what, problem)
			}
		}
	}
	require.NoError(t, e.Close())
	return n
}

// checkCut recovers a cut disk, twice, and compares it with the states that it may be in.
func checkCut(t *testing.T, c cut, states []shot) string {
	again := c.disk.Clone()
	var problem string
	j, rep, err := Open(context.Background(), optionsOn(c.disk, Options{SegmentSize: 256 << 10, HistoryCap: 1 << 40, TableChanges: 1 << 9}))
	if err != nil {
		return err.Error()
	}
	got := snapshot(t, j)
	for _, m := range rep.Missing {
		if !within(c.fresh[m.ID], m) {
			problem += fmt.Sprintf("missing bytes that were synced: %+v, fresh are %v\n", m, c.fresh[m.ID])
		}
	}
	ok := false
	for _, want := range states {
		d := want.diff(got, rep.Missing)
		if d == "" {
			ok = true
			break
		}
		problem += "compared with a state that would be right:\n" + d
	}
	if ok {
		problem = ""
	}
	if err := j.Close(); err != nil {
		return err.Error()
	}
	if problem != "" {
		return problem
	}
	return checkInterruptedRecovery(t, again, got, rep)
}

// within reports whether missing bytes lie in spans, rounded to blocks.
func within(fresh []span, m Missing) bool {
	for b := int64(m.Off) / block * block; b < int64(m.Off+m.Len); b += block {
		ok := false
		for _, s := range fresh {
			ok = ok || s.from < b+block && s.to > b
		}
		if !ok {
			return false
		}
	}
	return true
}

// checkInterruptedRecovery cuts recovery itself at one of its syncs and recovers again.
func checkInterruptedRecovery(t *testing.T, disk *vfs.Mem, want shot, rep *Report) string {
	rng := rand.New(rand.NewPCG(uint64(rep.Last), 3))
	at, opened := 1+rng.IntN(4), false
	var mu sync.Mutex
	var second *vfs.Mem
	disk.OnSync = func(n int) {
		mu.Lock()
		defer mu.Unlock()
		if n == at && !opened {
			second = disk.Crash(rng)
		}
	}
	j, _, err := Open(context.Background(), optionsOn(disk, Options{SegmentSize: 256 << 10, HistoryCap: 1 << 40, TableChanges: 1 << 9}))
	if err != nil {
		return err.Error()
	}
	mu.Lock()
	opened = true
	mu.Unlock()
	if err := j.Close(); err != nil || second == nil {
		return ""
	}
	j, rep2, err := Open(context.Background(), optionsOn(second, Options{SegmentSize: 256 << 10, HistoryCap: 1 << 40, TableChanges: 1 << 9}))
	if err != nil {
		return "after a cut in recovery: " + err.Error()
	}
	defer j.Close()
	if d := want.diff(snapshot(t, j), append(rep.Missing, rep2.Missing...)); d != "" {
		return "after a cut in recovery:\n" + d
	}
	return ""
}

// TestRecoveryWithoutItsDirectory: while no server ran, somebody removed a
// directory that the log has just put files into.
func TestRecoveryWithoutItsDirectory(t *testing.T) {
	disk := vfs.NewMem(1)
	e, _ := openOn(t, disk)
	d := e.make(proto.RootID, "d", proto.ModeDir|0o755)
	require.NoError(t, e.Close()) // d is in the checkpoint
	e, _ = openOn(t, disk)
	f := e.file(d, "f", "content")
	other := e.file(proto.RootID, "g", "g")
	killed := disk.Clone()
	require.NoError(t, e.Close())

	root, err := killed.Root()
	require.NoError(t, err)
	sub, err := root.OpenDir("d")
	require.NoError(t, err)
	require.NoError(t, sub.Remove("f"))
	require.NoError(t, sub.Close())
	require.NoError(t, root.RemoveDir("d"))
	require.NoError(t, root.Close())

	e, rep := openOn(t, killed)
	require.NotEmpty(t, rep.Strangers)
	require.Equal(t, "g", e.content(other))
	_, err = e.Lookup(proto.RootID, "d")
	require.Equal(t, status.NotFound, status.Of(err))
	require.Equal(t, "content", e.content(f), "what the log knows is in a grave")
	require.NoError(t, e.Close())
}

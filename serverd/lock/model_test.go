package lock

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"testing"

	"github.com/stretchr/testify/require"

	"cagefs.dev/cage/remote/lockset"
	"cagefs.dev/cage/remote/proto"
)

const (
	modelFiles, modelOwners, modelBytes = 2, 6, 8
)

// model is the same thing in the simplest way: what each owner has of each byte
// (0 nothing, 1 shared, 2 exclusive), and a list of waits.
type model struct {
	has   [modelFiles][2][modelOwners][modelBytes]int
	waits []modelWait
}

type modelWait struct {
	id, file, kind, owner int
	r                     Request
}

// blockers are the owners in the way of a request.
func (m *model) blockers(file, kind, o int, r *Request) (out []int) {
	for other := range modelOwners {
		for b := range modelBytes {
			had := m.has[file][kind][other][b]
			if other != o && r.Overlaps(uint64(b), uint64(b)) && had > 0 && (had == 2 || r.Exclusive) {
				out = append(out, other)
				break
			}
		}
	}
	return out
}

func (m *model) put(file, kind, o int, r *Request, what int) {
	for b := range modelBytes {
		if r.Overlaps(uint64(b), uint64(b)) {
			m.has[file][kind][o][b] = what
		}
	}
}

func mode(r *Request) int {
	if r.Exclusive {
		return 2
	}
	return 1
}

// circle says whether o, who wants r, would wait for itself.
func (m *model) circle(file, o int, r *Request) bool {
	var edge [modelOwners][modelOwners]bool
	for _, w := range m.waits {
		if w.kind == 0 {
			for _, b := range m.blockers(w.file, 0, w.owner, &w.r) {
				edge[w.owner][b] = true
			}
		}
	}
	for k := range modelOwners {
		for i := range modelOwners {
			for j := range modelOwners {
				edge[i][j] = edge[i][j] || edge[i][k] && edge[k][j]
			}
		}
	}
	return slices.ContainsFunc(m.blockers(file, 0, o, r), func(b int) bool { return edge[b][o] })
}

// settle lets waits end, in their order, until none can.
func (m *model) settle(file int) (done []Done) {
	for again := true; again; {
		again = false
		for _, w := range slices.Clone(m.waits) {
			if w.file != file {
				continue
			}
			out := Granted
			if len(m.blockers(w.file, w.kind, w.owner, &w.r)) > 0 {
				if w.kind == 1 || !m.circle(w.file, w.owner, &w.r) {
					continue
				}
				out = Deadlock
			} else {
				m.put(w.file, w.kind, w.owner, &w.r, mode(&w.r))
			}
			m.waits = slices.DeleteFunc(m.waits, func(x modelWait) bool { return x.id == w.id })
			done = append(done, Done{WaitID{w.r.Owner.Session, uint64(w.id)}, out})
			again = true
		}
	}
	return done
}

// step makes one random request of both and compares.
func (m *model) step(t *testing.T, x *Table, r *rand.Rand, id int, name string) {
	file, kind, o := r.IntN(modelFiles), r.IntN(2), r.IntN(modelOwners)
	a, b := r.IntN(modelBytes), r.IntN(modelBytes)
	req := posix(file, owner(o%3, o), uint64(min(a, b)), uint64(max(a, b)), r.IntN(2) == 0)
	if kind == 1 {
		req = flock(file, req.Owner, req.Exclusive)
	}
	what := r.IntN(10)
	if what == 0 && len(m.waits) > 0 {
		i := r.IntN(len(m.waits))
		w := m.waits[i]
		m.waits = slices.Delete(m.waits, i, i+1)
		x.Cancel(WaitID{w.r.Owner.Session, uint64(w.id)})
		return
	}
	if what == 1 && r.IntN(4) == 0 {
		m.drop(t, x, o%3, name)
		return
	}
	if what < 4 {
		m.put(file, kind, o, &req, 0)
		_, done := x.Unlock(req)
		require.Equal(t, m.settle(file), done, name)
		return
	}
	if kind == 1 && m.has[file][1][o][0] != mode(&req) {
		m.put(file, 1, o, &req, 0)
	}
	blocked := len(m.blockers(file, kind, o, &req)) > 0
	want := Granted
	if !blocked {
		m.put(file, kind, o, &req, mode(&req))
	}
	if what < 7 {
		if blocked {
			want = Held
		}
		got, done := x.Lock(req)
		require.Equal(t, want, got, name)
		require.Equal(t, m.settle(file), done, name)
		return
	}
	wantDone := m.settle(file)
	if blocked {
		want = Queued
		if kind == 0 && m.circle(file, o, &req) {
			want = Deadlock
		}
	}
	got, done := x.Wait(WaitID{req.Owner.Session, uint64(id)}, req)
	require.Equal(t, want, got, name)
	require.Equal(t, wantDone, done, name)
	if want == Queued {
		m.waits = append(m.waits, modelWait{id, file, kind, o, req})
	}
}

func (m *model) drop(t *testing.T, x *Table, session int, name string) {
	m.waits = slices.DeleteFunc(m.waits, func(w modelWait) bool { return w.owner%3 == session })
	all := Request{Lock: lockset.Whole(false)}
	for file := range modelFiles {
		for o := session; o < modelOwners; o += 3 {
			m.put(file, 0, o, &all, 0)
			m.put(file, 1, o, &all, 0)
		}
	}
	var want []Done
	for file := range modelFiles {
		want = append(want, m.settle(file)...)
	}
	require.ElementsMatch(t, want, x.Drop(proto.SessionID(session)), name)
}

// compare looks at each byte.
func (m *model) compare(t *testing.T, x *Table, name string) {
	for file := range modelFiles {
		for kind := range 2 {
			for b := range modelBytes {
				shared, all := 0, 0
				for o := range modelOwners {
					switch m.has[file][kind][o][b] {
					case 2:
						shared++
						all++
					case 1:
						all++
					}
				}
				for exclusive, want := range map[bool]int{false: shared, true: all} {
					ask := Request{File: File{ID: proto.FileID(file)}, Owner: owner(9, 9), Kind: lockset.Kind(kind), Lock: lockset.Lock{Start: uint64(b), End: uint64(b), Exclusive: exclusive}}
					_, held := x.Test(ask)
					require.Equal(t, want > 0, held, "%s: file %d kind %d byte %d exclusive %v", name, file, kind, b, exclusive)
				}
			}
		}
	}
}

func script(t *testing.T, r *rand.Rand, steps int, name string) {
	x, m := New(roomy), &model{}
	for i := range steps {
		where := fmt.Sprintf("%s step %d", name, i)
		m.step(t, x, r, i, where)
		m.compare(t, x, where)
	}
	for session := range 3 {
		m.drop(t, x, session, name)
	}
	require.Equal(t, New(roomy), x, "nothing is left")
}

// Random scripts of locks, waits, unlocks and ends of sessions, against a model
// that looks at single bytes and at all owners.
func TestAgainstModel(t *testing.T) {
	for seed := range uint64(400) {
		script(t, rand.New(rand.NewPCG(seed, 3)), 80, fmt.Sprintf("seed %d", seed))
	}
}

func FuzzTable(f *testing.F) {
	f.Add(uint64(1), uint64(2))
	f.Fuzz(func(t *testing.T, a, b uint64) { script(t, rand.New(rand.NewPCG(a, b)), 200, "fuzz") })
}

package e2e

import (
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// TestPowerCut cuts the power of the server's disk at random moments under
// load. What each cut leaves is recovered and compared with what the workers of
// a mount were told: it is, for each of them, the state after some number of its
// steps, at least those that were answered before the cut, those bytes excepted
// that nobody had synced and that recovery lists as missing.
func TestPowerCut(t *testing.T) {
	t.Parallel()
	cuts := 10
	if accept {
		cuts = 100
	}
	r := newCutRun(t, "")
	bad := r.run(cuts)
	t.Logf("%d cuts, %d operations, %d files with missing bytes: %d cuts with violations", cuts, r.load.done(), r.missing, bad)
	r.finish()
}

// TestPowerCutUnsynced runs the same against a server that syncs nothing: if
// that is not found out, TestPowerCut proves nothing.
func TestPowerCutUnsynced(t *testing.T) {
	t.Parallel()
	cuts := 3
	if accept {
		cuts = 20
	}
	r := newCutRun(t, "cage_nosync")
	r.expect = true
	bad := r.run(cuts)
	t.Logf("without syncs: %d cuts, %d operations: %d cuts with violations", cuts, r.load.done(), bad)
	require.Positive(t, bad, "a server that syncs nothing was not found out")
}

// cutRun is a server on a disk, with a mount under load.
type cutRun struct {
	t         testing.TB
	rng       *rand.Rand
	lab       *lab
	disk      *disk
	srv       *server
	point     string
	load      *load
	verifiers []*verifier
	expect    bool // that there are violations
	missing   int  // files that recovery listed
}

func newCutRun(t testing.TB, tags string) *cutRun {
	seed := seed(t)
	r := &cutRun{t: t, rng: rand.New(rand.NewPCG(seed, 2)), lab: newLab(t, tags)}
	r.disk = r.lab.newDisk(1 << 30)
	export := filepath.Join(r.disk.mnt, "export")
	require.NoError(t, os.Mkdir(export, 0o755))
	r.disk.sync()
	r.srv = r.lab.newServer(export)
	r.srv.start()
	r.point = r.lab.mount(r.srv)
	r.load = newLoad(t, seed, 4, r.point)
	for range r.load.workers {
		r.verifiers = append(r.verifiers, &verifier{model: newModel()})
	}
	t.Cleanup(func() { r.load.stop() })
	return r
}

// run cuts the power a number of times and returns how often something was wrong.
func (r *cutRun) run(cuts int) (bad int) {
	r.t.Helper()
	r.load.start()
	for range cuts {
		time.Sleep(time.Duration(r.rng.Int64N(int64(300 * time.Millisecond))))
		acked := make([]int, len(r.load.workers))
		for i, w := range r.load.workers {
			_, acked[i] = w.now()
		}
		c := r.disk.cut()
		begun := make([][]step, len(r.load.workers))
		for i, w := range r.load.workers {
			begun[i], _ = w.now()
		}
		violations := r.check(c, acked, begun)
		if len(violations) > 0 {
			bad++
			if !r.expect {
				c.keep(fmt.Sprintf("cut%d.img", r.disk.cuts))
				r.t.Errorf("cut %d:\n%s", r.disk.cuts, strings.Join(violations, "\n"))
			}
		}
		c.remove()
		if r.load.stopping.Load() {
			break
		}
	}
	require.NoError(r.t, r.load.stop())
	return bad
}

// check recovers what a cut has left and returns what is wrong with it.
func (r *cutRun) check(c *image, acked []int, begun [][]step) (violations []string) {
	c.mount()
	defer c.umount()
	export := filepath.Join(c.mnt, "export")
	out, err := r.lab.try("cageserverd", "recover", "--json", export)
	if err != nil {
		return []string{err.Error()}
	}
	var report struct {
		Missing []struct {
			Path          string
			Offset, Bytes int64
		}
		MovedAway []string `json:"moved_away"`
	}
	require.NoError(r.t, json.Unmarshal([]byte(out), &report), "%s", out)
	for _, s := range report.MovedAway {
		violations = append(violations, "a stranger: "+s)
	}
	r.missing += len(report.Missing)
	for i, w := range r.load.workers {
		missing := map[string][]span{}
		for _, m := range report.Missing {
			if p, ok := strings.CutPrefix(strings.TrimPrefix(m.Path, "/"), w.name+"/"); ok {
				missing[p] = append(missing[p], span{m.Offset, m.Offset + m.Bytes})
			}
		}
		got, err := readTree(filepath.Join(export, w.name))
		if err != nil {
			violations = append(violations, err.Error())
			continue
		}
		for _, line := range r.verifiers[i].check(got, missing, begun[i], acked[i]) {
			violations = append(violations, w.name+": "+line)
		}
	}
	if err := r.lab.verify(export); err != nil {
		violations = append(violations, err.Error())
	}
	return violations
}

// finish ends the run in order; then everything is there.
func (r *cutRun) finish() {
	r.t.Helper()
	r.lab.umount(r.point)
	r.srv.stop()
	for _, w := range r.load.workers {
		w.requireEqual(r.t, filepath.Join(r.disk.mnt, "export", w.name))
	}
	require.NoError(r.t, r.lab.verify(filepath.Join(r.disk.mnt, "export")))
}

// verifier knows the states that a worker's directory went through.
type verifier struct {
	model *model // after at steps, answered all
	at    int
}

// check compares what was found after a cut with all states that are right:
// those after the first k of the steps that had begun when it was over. k is at
// least the number that was answered before it (acked), but for writes at the
// end of these: their write(2) has returned, the server may not have them. Of the
// last write there may be a first part.
func (v *verifier) check(got map[string]*found, missing map[string][]span, begun []step, acked int) []string {
	least := acked
	for least > v.at && !begun[least-1].ordered() {
		least--
	}
	for ; v.at < least; v.at++ {
		v.model.apply(begun[v.at], true)
	}
	var best []string
	m := v.model.clone()
	for k := v.at; ; k++ {
		lines := m.differences(got, missing)
		if len(lines) == 0 {
			return nil
		}
		if best == nil || len(lines) < len(best) {
			best = append(lines, fmt.Sprintf("(that is the best of the states after %d to %d steps: after %d; answered before the cut: %d)", v.at, len(begun), k, acked))
		}
		if k == len(begun) {
			h := history{steps: begun, done: acked}
			return append(best, h.story())
		}
		s := begun[k]
		if part := m.part(s, got); part > 0 {
			p := m.clone()
			p.write(s, part)
			if len(p.differences(got, missing)) == 0 {
				return nil
			}
		}
		m.apply(s, k < acked)
	}
}

// part returns how many of the bytes of a write are there, from its first on.
func (m *model) part(s step, got map[string]*found) (part int64) {
	if s.kind != write && s.kind != appendTo {
		return 0
	}
	n, g := m.target(s), got[s.path]
	if g == nil || m.tree[s.path] != n {
		return 0
	}
	off := m.offset(s)
	for _, b := range s.data() {
		if at := off + part; at >= int64(len(g.data)) || g.data[at] != b {
			break
		}
		part++
	}
	return part
}

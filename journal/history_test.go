package journal

import (
	"fmt"
	"io"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"cagefs.dev/cage/journal/vfs"
	"cagefs.dev/cage/remote/proto"
)

// reader is what the present and the past have in common.
type reader interface {
	Attr(proto.FileID) (proto.Attr, error)
	ReadDir(proto.FileID, uint64, bool, func(proto.DirEntry) bool) error
	Readlink(proto.FileID) (string, error)
	ReadAt(proto.FileID, []byte, int64) (int, error)
	Seek(proto.FileID, int64, bool) (int64, error)
	GetXattr(proto.FileID, string) ([]byte, error)
	ListXattr(proto.FileID) ([]string, error)
}

// look walks a state: path to all that is to be the same.
func look(t testing.TB, r reader) map[string]string {
	t.Helper()
	out := map[string]string{}
	var walk func(proto.FileID, string)
	walk = func(id proto.FileID, path string) {
		a, err := r.Attr(id)
		require.NoError(t, err, path)
		out[path+"/"] = lookAt(t, r, path, a)
		require.NoError(t, r.ReadDir(id, 0, true, func(e proto.DirEntry) bool {
			p := path + "/" + e.Name
			if e.Attr.IsDir() {
				walk(e.Attr.ID, p)
			} else {
				out[p] = lookAt(t, r, p, e.Attr)
			}
			return true
		}))
	}
	walk(proto.RootID, "")
	return out
}

func lookAt(t testing.TB, r reader, path string, a proto.Attr) string {
	line := fmt.Sprintf("%d %o %d:%d nlink %d", a.ID, a.Mode, a.UID, a.GID, a.Nlink)
	switch a.Type() {
	case proto.ModeSymlink:
		target, err := r.Readlink(a.ID)
		require.NoError(t, err, path)
		return line + " -> " + target
	case proto.ModeRegular:
		b := make([]byte, a.Size+10)
		n, err := r.ReadAt(a.ID, b, 0)
		require.ErrorIs(t, err, io.EOF, path)
		require.Equal(t, int(a.Size), n, path)
		requireHoles(t, r, a.ID, b[:n])
		line += fmt.Sprintf(" size %d content %x", a.Size, sum(b[:n]))
	}
	line += fmt.Sprintf(" mtime %d", a.Mtime)
	names, err := r.ListXattr(a.ID)
	require.NoError(t, err, path)
	slices.Sort(names)
	for _, n := range names {
		v, err := r.GetXattr(a.ID, n)
		require.NoError(t, err, path)
		line += fmt.Sprintf(" %s=%s", n, v)
	}
	return line
}

// TestPastIsWhatWas compares past states with what was seen when they were
// present, while the present lives on and after a crash. Repeat with CAGE_SEED=n.
func TestPastIsWhatWas(t *testing.T) {
	runs, first := crashRuns(t, 6)
	for i := range runs {
		seed := first + uint64(i)
		t.Run(fmt.Sprintf("seed=%d", seed), func(t *testing.T) {
			disk := vfs.NewMem(seed)
			e, _ := openOn(t, disk)
			e.ack = true
			if seed%2 == 0 {
				e.inlineCut = 5000
			}
			s := newStorm(e, rand.New(rand.NewPCG(seed, 7)))
			was := map[proto.LSN]map[string]string{}
			early := map[proto.LSN]*Past{} // used from the beginning: they follow new records
			for step := range 120 {
				require.NoError(t, s.step())
				was[e.Last()] = look(t, e)
				if step%10 == 0 {
					p, err := e.At(e.Last())
					require.NoError(t, err)
					early[e.Last()] = p
				}
				for lsn, p := range early {
					if step%7 == 0 {
						require.Equal(t, was[lsn], look(t, p), "state %d", lsn)
					}
				}
			}
			for lsn, want := range was {
				p, err := e.At(lsn)
				require.NoError(t, err)
				require.Equal(t, want, look(t, p), "state %d", lsn)
			}
			crashed, _ := openOn(t, disk.Clone())
			for lsn, want := range was {
				p, err := crashed.At(lsn)
				require.NoError(t, err)
				require.Equal(t, want, look(t, p), "state %d after a crash", lsn)
			}
			require.NoError(t, crashed.Close())
			require.NoError(t, e.Close())
		})
	}
}

func sum(b []byte) uint64 {
	h := uint64(14695981039346656037)
	for _, c := range b {
		h = (h ^ uint64(c)) * 1099511628211
	}
	return h
}

// What a state of the past keeps in memory is bounded by its parts, not by the number of
// files: a file that was written in a thousand places has a thousand.
func TestPastForgetsWhatIsTooMuch(t *testing.T) {
	e, _ := openOn(t, vfs.NewMem(1))
	const files, writes = 4, 600
	var ids []proto.FileID
	for i := range files {
		ids = append(ids, e.file(proto.RootID, fmt.Sprint(i), strings.Repeat("a", 2*writes)))
	}
	p, err := e.At(0)
	require.NoError(t, err)
	for _, id := range ids {
		for i := range writes {
			e.must(&proto.Write{ID: id, Off: uint64(2 * i), Data: []byte("b")})
		}
	}
	p.parts = 2 * writes
	for range 2 {
		for _, id := range ids {
			b := make([]byte, 2*writes)
			_, err := p.ReadAt(id, b, 0)
			require.NoError(t, err)
			require.Equal(t, strings.Repeat("a", 2*writes), string(b))
			kept := 0
			for _, f := range p.files {
				kept += len(f.ranges)
			}
			require.LessOrEqual(t, kept, 2*writes)
			require.Equal(t, kept, p.weight)
			require.NotZero(t, kept)
		}
	}
	require.NoError(t, e.Close())
}

package e2e

import (
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"
)

// sight is something to be seen in a directory, and what changes it.
type sight struct {
	name string

	// make makes it, through mount a, and what is needed to look at it through
	// mount b. All may be kept until the end of the test.
	make func(t *testing.T, a, b string) view
}

// view is a sight that was made.
type view struct {
	// Through mount a, the first and the second half of the rounds alternate.
	// Each returns what is to be seen then.
	change [2]func(round int) (string, error)

	// Through mount b, by one system call where its name does not say more.
	look func() (string, error)
}

// sighting is what was found of one half of a sight.
type sighting struct {
	rounds, stale int
	neither       int             // of the stale: what was there neither before nor after
	seen          []time.Duration // from the acknowledgement of a change until it was seen
}

func (s sighting) and(o sighting) sighting {
	return sighting{s.rounds + o.rounds, s.stale + o.stale, s.neither + o.neither, slices.Concat(s.seen, o.seen)}
}

// TestStaleness changes something through one mount and looks at it through
// another, which has looked at it before, so that its caches are warm. What was acknowledged
// to the one is what the next system call on the other sees. CAGE_STALE_ROUNDS says how many rounds.
func TestStaleness(t *testing.T) {
	rounds := setting(t, "CAGE_STALE_ROUNDS", full(10*len(sights), 100_000))
	if rounds < 1000 { // else it also measures
		t.Parallel()
	}
	l := newLab(t, "")
	s := l.newServer(l.mkdir("export"))
	s.start()
	a, b := l.mount(s), l.mount(s)
	names, views := make([]string, len(sights)), make([]view, len(sights))
	for i, sg := range sights {
		dirs := [2]string{filepath.Join(a, fmt.Sprint(i)), filepath.Join(b, fmt.Sprint(i))}
		require.NoError(t, os.Mkdir(dirs[0], 0o755))
		l.run("cagefs", "sync", a)
		awaitSight(t, func() (string, error) { _, err := os.Lstat(dirs[1]); return "", err }, "")
		names[i], views[i] = sg.name, sg.make(t, dirs[0], dirs[1])
	}
	trip := bareTrip(t, a, b)
	found := make([][2]sighting, len(sights))
	want := make([]string, len(sights)) // what there is to be seen of each
	random := rand.New(rand.NewPCG(seed(t), 0))
	var trips []time.Duration
	for round := range rounds {
		trips = append(trips, trip())
		i := random.IntN(len(sights))
		half := found[i][0].rounds - found[i][1].rounds
		f := &found[i][half]
		if f.rounds > 0 || half > 0 {
			awaitSight(t, views[i].look, want[i])
		}
		now, err := views[i].change[half](round)
		acknowledged := time.Now()
		require.NoError(t, err, names[i])
		got, err := views[i].look()
		require.NoError(t, err, names[i])
		if f.rounds++; got != now {
			if f.stale++; got != want[i] && f.rounds > 1 {
				f.neither++
			}
			awaitSight(t, views[i].look, now)
		}
		f.seen = append(f.seen, time.Since(acknowledged))
		want[i] = now
	}
	require.Zero(t, tellSightings(t, names, found, trips), "stale answers of %d", rounds)
}

// setting returns a number from the environment.
func setting(t testing.TB, name string, n int) int {
	if s := os.Getenv(name); s != "" {
		var err error
		n, err = strconv.Atoi(s)
		require.NoError(t, err, name)
	}
	return n
}

// awaitSight looks until something is seen. It must be within 10 seconds.
func awaitSight(t *testing.T, look func() (string, error), want string) {
	t.Helper()
	for end := time.Now().Add(10 * time.Second); ; time.Sleep(200 * time.Microsecond) {
		got, err := look()
		if err == nil && got == want {
			return
		}
		require.True(t, time.Now().Before(end), "still %q (%v), not %q", got, err, want)
	}
}

// bareTrip returns what takes the time of one call that the server answers and
// nobody else can: whether a lock is free.
func bareTrip(t *testing.T, a, b string) func() time.Duration {
	require.NoError(t, os.WriteFile(a+"/trip", nil, 0o644))
	var f *os.File
	awaitSight(t, func() (_ string, err error) { f, err = os.Open(b + "/trip"); return "", err }, "")
	t.Cleanup(func() { f.Close() })
	return func() time.Duration {
		start := time.Now()
		k := unix.Flock_t{Type: unix.F_RDLCK}
		require.NoError(t, unix.FcntlFlock(f.Fd(), unix.F_GETLK, &k))
		return time.Since(start)
	}
}

// tellSightings prints a table and returns how many answers were stale.
func tellSightings(t *testing.T, names []string, found [][2]sighting, trips []time.Duration) (stale int) {
	ms := func(d []time.Duration, q float64) float64 {
		if len(d) == 0 {
			return 0
		}
		slices.Sort(d)
		return float64(d[int(q*float64(len(d)-1))]) / 1e6
	}
	line := func(name string, f sighting) {
		t.Logf("%-46s %7d %7d %7d %9.2f %9.2f %9.2f", name, f.rounds, f.stale, f.neither, ms(f.seen, 0.5), ms(f.seen, 0.99), ms(f.seen, 1))
	}
	t.Logf("%-46s %7s %7s %7s %9s %9s %9s", "", "rounds", "stale", "neither", "median ms", "p99 ms", "most ms")
	var all sighting
	for i, halves := range found {
		both := halves[0].and(halves[1])
		line(names[i], both)
		all = all.and(both)
	}
	line("all", all)
	line("a bare round trip", sighting{rounds: len(trips), seen: trips})
	return all.stale
}

// TestOwnChangeOnItsWay: what another mount sees of a change of attributes while the answer to it is on its
// way, every process of the mount that makes it sees as well.
func TestOwnChangeOnItsWay(t *testing.T) {
	t.Parallel()
	l := newLab(t, "")
	s := l.newServer(l.mkdir("export"))
	s.start()
	p := newProxy(t, s.addr)
	far, near := l.through(s, p), l.mount(s)
	require.NoError(t, os.WriteFile(far+"/f", nil, 0o600))
	mode := func(m string) os.FileMode {
		t.Helper()
		info, err := os.Lstat(m + "/f")
		require.NoError(t, err)
		return info.Mode().Perm()
	}
	p.slow(100 * time.Millisecond)
	mode(far) // so that its kernel knows
	const want = os.FileMode(0o640)
	done := make(chan error, 1)
	go func() { done <- os.Chmod(far+"/f", want) }()
	awaitSight(t, func() (string, error) { return mode(near).String(), nil }, want.String())
	require.Equal(t, want, mode(far))
	require.NoError(t, <-done)
}

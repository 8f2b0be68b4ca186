package differ

import (
	"math/rand/v2"
	"slices"
	"strings"
)

// Scenario is what a program may ask for beside ordinary steps.
type Scenario struct {
	Steps    int      // how many
	Mounts   int      // see Program
	ACL      bool     // see Program
	Controls []string // steps of Nobody that may occur
	Every    int      // one of so many steps is one of these
}

// generator makes steps.
type generator struct {
	*rand.Rand
	sc    Scenario
	proc  int
	files []string // paths from the root that probably exist
	dirs  []string
	state []state // of processes
	then  func()  // what is so if the step that is being made succeeds, or nil
}

// state is what is known of a process.
type state struct {
	away bool        // the working directory is not the root
	open [Slots]kind // of each slot
}

// kind is what a path or slot is wanted to be.
type kind int

const (
	whatever kind = iota // also nothing
	file
	dir
)

// Generate makes the program of a seed and a scenario. try does a step on an
// ordinary directory and tells whether it succeeded, so that most steps find
// something to work on; with the same answers the program is always the same.
func Generate(seed uint64, sc Scenario, try func(*Step) (bool, error)) (*Program, error) {
	g := &generator{Rand: rand.New(rand.NewPCG(seed, 0)), sc: sc, state: make([]state, len(Users))}
	p := &Program{Seed: seed, Mounts: max(sc.Mounts, 1), ACL: sc.ACL}
	for _, make := range g.setting() {
		if err := g.add(p, make, try); err != nil {
			return nil, err
		}
	}
	for len(p.Steps) < sc.Steps {
		if len(sc.Controls) > 0 && g.IntN(sc.Every) == 0 {
			p.Steps = append(p.Steps, Step{Proc: Nobody, Op: pick(g, sc.Controls)})
			continue
		}
		g.turn()
		if err := g.add(p, g.choose(), try); err != nil {
			return nil, err
		}
	}
	return p, nil
}

// turn chooses whose step comes next: often the same process goes on for a while.
func (g *generator) turn() {
	if g.IntN(3) > 0 {
		return
	}
	g.proc = 1 + g.IntN(len(Users)-1)
	if g.IntN(5) == 0 {
		g.proc = 0
	}
}

// setting are the first steps: the root directory and some that all may use.
func (g *generator) setting() (makers []func(*generator) Step) {
	by := func(proc int, s Step) {
		makers = append(makers, func(g *generator) Step {
			g.proc = proc
			return s
		})
	}
	by(0, Step{Op: "chmod", Path: ".", Mode: pick(g, []uint32{0o777, 0o777, 0o1777, 0o2777, 0o3777, 0o775})})
	if g.IntN(3) == 0 {
		by(0, Step{Op: "chown", Path: ".", UID: g.uid(), GID: g.gid()})
	}
	for proc := 1; proc < len(Users); proc++ {
		if g.IntN(2) == 0 {
			by(proc, Step{Op: "umask", Mode: g.mask()})
		}
	}
	for range 2 {
		makers = append(makers, func(g *generator) Step {
			g.proc = g.IntN(len(Users))
			return g.mkdirStep()
		})
	}
	return makers
}

// add makes a step, tries it and adds it.
func (g *generator) add(p *Program, make func(*generator) Step, try func(*Step) (bool, error)) error {
	g.then = nil
	s := make(g)
	s.Proc = g.proc
	p.Steps = append(p.Steps, s)
	ok, err := try(&s)
	if ok && g.then != nil {
		g.then()
	}
	return err
}

func pick[T any](g *generator, of []T) T { return of[g.IntN(len(of))] }

// choice is a kind of step with how often it comes, and what the process should have open for it.
type choice struct {
	weight int
	needs  kind
	make   func(*generator) Step
}

var choices = []choice{
	{14, whatever, (*generator).openStep}, {3, file, (*generator).closeStep}, {2, file, (*generator).dupStep},
	{9, file, (*generator).readStep}, {14, file, (*generator).writeStep}, {5, file, (*generator).seekStep},
	{8, file, (*generator).sizeStep}, {3, file, (*generator).copyStep}, {3, file, (*generator).mmapStep}, {3, file, (*generator).syncStep},
	{10, whatever, (*generator).renameStep}, {6, whatever, (*generator).linkStep}, {8, whatever, (*generator).removeStep},
	{5, whatever, (*generator).mkdirStep}, {2, whatever, (*generator).mknodStep}, {4, whatever, (*generator).symlinkStep}, {2, whatever, (*generator).readlinkStep},
	{8, whatever, (*generator).statStep}, {2, dir, (*generator).listStep}, {3, whatever, (*generator).accessStep}, {3, whatever, (*generator).cwdStep},
	{6, whatever, (*generator).chmodStep}, {5, whatever, (*generator).chownStep}, {5, whatever, (*generator).timesStep}, {8, whatever, (*generator).xattrStep},
	{3, file, (*generator).lockStep}, {1, whatever, (*generator).umaskStep},
}

func (g *generator) choose() func(*generator) Step {
	sum := 0
	for _, c := range choices {
		sum += c.weight
	}
	n := g.IntN(sum)
	for _, c := range choices {
		if n -= c.weight; n >= 0 {
			continue
		}
		if c.needs != whatever && !slices.Contains(g.state[g.proc].open[:], c.needs) && g.IntN(10) > 0 {
			return (*generator).openStep
		}
		return c.make
	}
	panic("the weights have no sum")
}

// Names are few, so that steps meet; some serve for files and directories.
var (
	fileNames = []string{"a", "b", "c"}
	dirNames  = []string{"d", "e"}
)

// newPath is the path of what is to be made: free or not.
func (g *generator) newPath(k kind) string {
	var parts []string
	switch n := g.IntN(20); {
	case n == 0:
		parts = []string{pick(g, dirNames), pick(g, dirNames)}
	case n < 10 && len(g.dirs) > 0:
		parts = []string{pick(g, g.dirs)}
	}
	leaf := pick(g, fileNames)
	if (k == dir) != (g.IntN(12) == 0) {
		leaf = pick(g, dirNames)
	}
	path := strings.Join(append(parts, leaf), "/")
	g.then = func() { g.note(k, path) }
	return g.odd(path)
}

// note notes that a path exists.
func (g *generator) note(k kind, path string) {
	list := &g.files
	if k == dir {
		list = &g.dirs
	}
	if !slices.Contains(*list, path) {
		*list = append(*list, path)
	}
	if len(*list) > 10 {
		*list = (*list)[1:]
	}
}

// gone notes that a path does not exist.
func (g *generator) gone(path string) {
	path = strings.Trim(path, "/")
	is := func(p string) bool { return p == path || strings.HasPrefix(p, path+"/") }
	g.files, g.dirs = slices.DeleteFunc(g.files, is), slices.DeleteFunc(g.dirs, is)
}

// path is a path that probably exists and is of a kind.
func (g *generator) path(k kind) string {
	list := g.files
	if k == dir || k == whatever && g.IntN(3) == 0 {
		list = g.dirs
	}
	if len(list) == 0 || g.IntN(12) == 0 {
		return g.odd(pick(g, []string{"a", "b", "c", "d", "e", "d/a", "d/e", "e/b", "d/d/c"}))
	}
	return g.odd(pick(g, list))
}

// odd writes a path in another way, now and then, or makes it one that nobody expects.
func (g *generator) odd(path string) string {
	switch g.IntN(150) {
	case 0:
		return path + "/"
	case 1:
		return path + "/."
	case 2:
		return path + "/.."
	case 3:
		return ""
	case 4:
		return "."
	case 5:
		return strings.Repeat("n", 255)
	case 6:
		return strings.Repeat("n", 256)
	case 7:
		return "\u00c4\x01 \""
	case 8:
		return "./d/../" + path
	}
	if g.state[g.proc].away && g.IntN(6) > 0 || g.IntN(40) == 0 {
		return "/" + path
	}
	return path
}

// dirSlot is a slot for a path to be relative to, mostly none.
func (g *generator) dirSlot() int {
	if g.IntN(12) > 0 {
		return 0
	}
	return g.held(dir)
}

func (g *generator) slot() int { return 1 + g.IntN(Slots) }

// held is a slot that probably has something of a kind open.
func (g *generator) held(k kind) int {
	var good []int
	for i, o := range g.state[g.proc].open {
		if o == k || k == whatever && o != whatever {
			good = append(good, i+1)
		}
	}
	if len(good) == 0 || g.IntN(25) == 0 {
		return g.slot()
	}
	return pick(g, good)
}

func (g *generator) fileMode() uint32 {
	if g.IntN(2) == 0 {
		return 0o666
	}
	return pick(g, []uint32{0o644, 0o600, 0o640, 0o660, 0o444, 0o755, 0o777, 0o000, 0o222, 0o1644, 0o4755, 0o2755, 0o6777, 0o2644})
}

func (g *generator) dirMode() uint32 {
	if g.IntN(2) == 0 {
		return 0o777
	}
	return pick(g, []uint32{0o755, 0o700, 0o775, 0o1777, 0o2775, 0o2777, 0o3777, 0o555, 0o711, 0o733})
}

func (g *generator) mask() uint32 { return pick(g, []uint32{0, 0, 0o002, 0o022, 0o027, 0o077}) }
func (g *generator) uid() int     { return pick(g, []int{-1, -1, 0, 61001, 61002, 61003}) }
func (g *generator) gid() int     { return pick(g, []int{-1, -1, 0, 62001, 62002, 62003}) }

// offset is a place in a file, small or at the edges of blocks and pages.
func (g *generator) offset() int64 {
	switch g.IntN(8) {
	case 0, 1, 2:
		return int64(g.IntN(64))
	case 3:
		return int64(g.IntN(40)) * 4096
	case 4:
		return int64(g.IntN(3))*(128<<10) + int64(g.IntN(64)) - 32 + 64
	case 5:
		return int64(g.IntN(300 << 10))
	case 6:
		return 0
	}
	return int64(g.IntN(10 << 10))
}

func (g *generator) length() int64 {
	switch g.IntN(8) {
	case 0:
		return int64(g.IntN(3))
	case 1:
		return int64(1+g.IntN(6)) * 4096
	case 2:
		return int64(g.IntN(200 << 10))
	}
	return int64(g.IntN(9000))
}

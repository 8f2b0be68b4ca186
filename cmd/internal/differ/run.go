package differ

import (
	"fmt"
	"regexp"
	"slices"
	"strings"
)

// Side is where programs are run: a directory, seen through one or more mounts.
type Side struct {
	Name string

	// Fresh makes an empty directory for a program, which belongs to root, mode
	// 0755, and returns its path in each mount that the program wants. Its
	// processes are spread over them by their numbers.
	Fresh func(*Program) (paths []string, err error)

	// Control does a step of Nobody, nil where there is nothing to do.
	Control func(op string) error

	// Switch is called before a step on another mount than that of the one
	// before, nil where a change is seen everywhere at once.
	Switch func(from, to int) error

	// Behind returns the path of the directory that the mounts show, where the
	// same tree must be at the end, but for the numbers of links: names that were
	// removed may be kept elsewhere. May be nil.
	Behind func() (path string, err error)
}

// Difference is where two sides did not do the same.
type Difference struct {
	Step int    // index of the step, or the number of steps: at the end
	What string // the step, or what was looked at
	A, B string // what the sides said
	Side [2]string
}

func (d *Difference) String() string {
	return fmt.Sprintf("step %d, %s\n\t%s: %s\n\t%s: %s", d.Step, d.What, d.Side[0], d.A, d.Side[1], d.B)
}

// runner is a side with the processes of one program.
type runner struct {
	*Side
	paths []string
	procs []*process
	last  int // mount of the last step
}

func (s *Side) begin(p *Program) (*runner, error) {
	paths, err := s.Fresh(p)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", s.Name, err)
	}
	return &runner{Side: s, paths: paths, procs: make([]*process, len(Users))}, nil
}

func (r *runner) end() {
	for _, p := range r.procs {
		if p != nil {
			p.stop()
		}
	}
}

func (r *runner) do(s *Step) (outcome, error) {
	if s.Proc == Nobody {
		if r.Control == nil {
			return outcome{}, nil
		}
		return outcome{}, r.Control(s.Op)
	}
	mount := s.Proc % len(r.paths)
	if mount != r.last && r.Switch != nil {
		if err := r.Switch(r.last, mount); err != nil {
			return outcome{}, err
		}
	}
	r.last = mount
	if r.procs[s.Proc] == nil {
		p, err := start(Users[s.Proc], r.paths[mount])
		if err != nil {
			return outcome{}, err
		}
		r.procs[s.Proc] = p
	}
	return r.procs[s.Proc].do(s)
}

// Make makes a program with the help of a side, see Generate.
func Make(seed uint64, sc Scenario, s *Side) (*Program, error) {
	r, err := s.begin(&Program{Mounts: 1, ACL: sc.ACL})
	if err != nil {
		return nil, err
	}
	defer r.end()
	return Generate(seed, sc, func(s *Step) (bool, error) {
		o, err := r.do(s)
		return o.Err == "", err
	})
}

// Run runs a program on two sides and returns the first difference, nil if
// there is none. An error says that it could not be run to its end.
func Run(p *Program, a, b *Side) (*Difference, error) {
	ra, err := a.begin(p)
	if err != nil {
		return nil, err
	}
	defer ra.end()
	rb, err := b.begin(p)
	if err != nil {
		return nil, err
	}
	defer rb.end()
	steps := slices.Clone(p.Steps)
	for proc := range Users {
		if slices.ContainsFunc(p.Steps, func(s Step) bool { return s.Proc == proc }) {
			steps = append(steps, Step{Proc: proc, Op: "held"})
		}
	}
	for i := range steps {
		s := &steps[i]
		oa, err := ra.do(s)
		if err != nil {
			return nil, fmt.Errorf("%s, step %d: %w", a.Name, i, err)
		}
		ob, err := rb.do(s)
		if err != nil {
			return nil, fmt.Errorf("%s, step %d: %w", b.Name, i, err)
		}
		if oa != ob {
			return &Difference{i, s.String(), oa.String(), ob.String(), [2]string{a.Name, b.Name}}, nil
		}
	}
	return compareTrees(ra, rb, len(steps))
}

// compareTrees compares what the sides' trees have become, with the processes
// still holding what they hold.
func compareTrees(a, b *runner, step int) (*Difference, error) {
	want, err := survey(a.paths[0])
	if err != nil {
		return nil, fmt.Errorf("%s, at the end: %w", a.Name, err)
	}
	paths := b.paths
	if b.Switch != nil && len(paths) > 1 {
		if err := b.Switch(b.last, len(paths)); err != nil {
			return nil, err
		}
	}
	for _, path := range paths {
		if d, err := compareTree(a, b, want, path, step); d != nil || err != nil {
			return d, err
		}
	}
	if b.Behind == nil {
		return nil, nil
	}
	path, err := b.Behind()
	if err != nil {
		return nil, err
	}
	return compareTree(a, b, withoutLinks(want), path, step)
}

var links = regexp.MustCompile(` links=\d+`)

func withoutLinks(lines []string) (out []string) {
	for _, l := range lines {
		out = append(out, links.ReplaceAllString(l, ""))
	}
	return out
}

// compareTree compares what lies at a path with what there should be, the
// numbers of links only if these are told.
func compareTree(a, b *runner, want []string, path string, step int) (*Difference, error) {
	got, err := survey(path)
	if err != nil {
		return nil, fmt.Errorf("%s, at the end: %w", path, err)
	}
	if !links.MatchString(want[0]) {
		got = withoutLinks(got)
	}
	if slices.Equal(want, got) {
		return nil, nil
	}
	only := func(in, other []string) string {
		in = slices.DeleteFunc(slices.Clone(in), func(l string) bool { return slices.Contains(other, l) })
		return strings.Join(in, "\n\t\t")
	}
	return &Difference{step, "the tree at " + path, only(want, got), only(got, want), [2]string{a.Name, b.Name}}, nil
}

// Shrink returns a shorter program that shows a difference as well, and that.
// It runs the program again and again, until run says that it is enough.
func Shrink(p *Program, d *Difference, run func(*Program) (*Difference, error), more func() bool) (*Program, *Difference) {
	best := *p
	best.Steps = p.Steps[:min(d.Step+1, len(p.Steps))]
	for size := len(best.Steps) / 2; size > 0; {
		removed := false
		for from := 0; from < len(best.Steps) && more(); {
			try := best
			try.Steps = slices.Concat(best.Steps[:from], best.Steps[min(from+size, len(best.Steps)):])
			got, err := run(&try)
			if err != nil || got == nil {
				from += size
				continue
			}
			removed = true
			best, d = try, got
			best.Steps = best.Steps[:min(d.Step+1, len(best.Steps))]
		}
		if !removed || size > 1 {
			size /= 2
		}
		size = min(size, len(best.Steps))
	}
	return &best, d
}

package differ

import (
	"bufio"
	"fmt"
	"reflect"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// User is who a process is.
type User struct {
	UID, GID int
	Groups   []int
}

// Users are those of the processes of every program, by the number of the
// process. Their groups overlap; 1 and 4 are the same user.
var Users = []User{
	{0, 0, nil},
	{61001, 62001, []int{62002}},
	{61002, 62002, []int{62003}},
	{61003, 62003, []int{62001, 62002}},
	{61001, 62001, []int{62002}},
}

// Slots is how many descriptors a process can hold, numbered from 1.
const Slots = 3

// Nobody is the process of steps that are done to a side from outside: see Side.Control.
const Nobody = -1

// Program is steps that begin in an empty directory which belongs to root.
type Program struct {
	Seed   uint64 // it was made from this; 0: written by hand
	Mounts int    // mounts that the processes are spread over, where a side has them; at least 1
	ACL    bool   // access control lists are wanted
	Steps  []Step
}

// Step is one call. A field that is zero is not in its text. Paths are those of
// the process, whose root is the side's directory.
type Step struct {
	Proc int // index in Users, or Nobody
	Op   string

	Slot   int    // of the descriptor that is used, or made
	ToSlot int    // second descriptor
	At     int    // slot of a directory that Path is relative to; 0: the working directory
	Path   string // text of a symlink as well
	ToAt   int
	To     string
	Flags  int
	Mode   uint32 `text:"octal"`
	Off    int64
	ToOff  int64
	Len    int64
	Fill   int // what the bytes of a write are
	UID    int
	GID    int
	Rdev   int
	Name   string // of an extended attribute
	Value  string
	Atime  string // "now", "omit", or seconds.nanoseconds
	Mtime  string
}

type flagName struct {
	name string
	bit  int
}

var xattrFlags = []flagName{{"CREATE", unix.XATTR_CREATE}, {"REPLACE", unix.XATTR_REPLACE}}

// flagNames are the names of an operation's flags; under "" those of all others.
var flagNames = map[string][]flagName{
	"open": {
		{"WRONLY", unix.O_WRONLY}, {"RDWR", unix.O_RDWR}, {"CREAT", unix.O_CREAT}, {"EXCL", unix.O_EXCL}, {"TRUNC", unix.O_TRUNC},
		{"APPEND", unix.O_APPEND}, {"SYNC", unix.O_SYNC}, {"DSYNC", unix.O_DSYNC}, {"TMPFILE", unix.O_TMPFILE}, {"DIRECTORY", unix.O_DIRECTORY},
		{"NOFOLLOW", unix.O_NOFOLLOW}, {"PATH", unix.O_PATH},
	},
	"rename": {{"NOREPLACE", unix.RENAME_NOREPLACE}, {"EXCHANGE", unix.RENAME_EXCHANGE}},
	"link":   {{"FOLLOW", unix.AT_SYMLINK_FOLLOW}, {"EMPTY", unix.AT_EMPTY_PATH}},
	"fallocate": {
		{"KEEP_SIZE", unix.FALLOC_FL_KEEP_SIZE}, {"PUNCH_HOLE", unix.FALLOC_FL_PUNCH_HOLE}, {"ZERO_RANGE", unix.FALLOC_FL_ZERO_RANGE},
	},
	"setxattr": xattrFlags, "lsetxattr": xattrFlags, "fsetxattr": xattrFlags,
	"flock": {{"SH", unix.LOCK_SH}, {"EX", unix.LOCK_EX}, {"UN", unix.LOCK_UN}},
	"":      {{"NOFOLLOW", unix.AT_SYMLINK_NOFOLLOW}, {"EACCESS", unix.AT_EACCESS}},
}

// flagsText writes flags with their names, as far as they have some.
func flagsText(op string, flags int) string {
	names, ok := flagNames[op]
	if !ok {
		names = flagNames[""]
	}
	var parts []string
	for _, f := range names {
		if flags&f.bit == f.bit {
			parts = append(parts, f.name)
			flags &^= f.bit
		}
	}
	if flags != 0 {
		parts = append(parts, fmt.Sprintf("%#x", flags))
	}
	return strings.Join(parts, "|")
}

func parseFlags(op, text string) (flags int, err error) {
	names, ok := flagNames[op]
	if !ok {
		names = flagNames[""]
	}
next:
	for part := range strings.SplitSeq(text, "|") {
		for _, f := range names {
			if f.name == part {
				flags |= f.bit
				continue next
			}
		}
		n, err := strconv.ParseInt(part, 0, 64)
		if err != nil {
			return 0, fmt.Errorf("no flag of %s: %q", op, part)
		}
		flags |= int(n)
	}
	return flags, nil
}

// String is the step as a line of a program's text.
func (s Step) String() string {
	var out strings.Builder
	if s.Proc == Nobody {
		fmt.Fprintf(&out, "- %s", s.Op)
	} else {
		fmt.Fprintf(&out, "%d %s", s.Proc, s.Op)
	}
	v := reflect.ValueOf(s)
	for i := 2; i < v.NumField(); i++ {
		f, field := v.Type().Field(i), v.Field(i)
		if field.IsZero() {
			continue
		}
		out.WriteString(" " + strings.ToLower(f.Name) + "=")
		switch {
		case f.Name == "Flags":
			out.WriteString(flagsText(s.Op, s.Flags))
		case f.Tag.Get("text") == "octal":
			fmt.Fprintf(&out, "%04o", field.Uint())
		case field.Kind() == reflect.String:
			out.WriteString(strconv.Quote(field.String()))
		default:
			fmt.Fprint(&out, field.Interface())
		}
	}
	return out.String()
}

// parseStep reads what String has written.
func parseStep(line string) (s Step, err error) {
	who, rest, _ := strings.Cut(line, " ")
	op, rest, _ := strings.Cut(rest, " ")
	s.Op = op
	if s.Proc = Nobody; who != "-" {
		if s.Proc, err = strconv.Atoi(who); err != nil || s.Proc < 0 || s.Proc >= len(Users) {
			return s, fmt.Errorf("there is no process %q", who)
		}
	}
	if s.Proc != Nobody && calls[op] == nil {
		return s, fmt.Errorf("there is no call %q", op)
	}
	v := reflect.ValueOf(&s).Elem()
	for rest = strings.TrimSpace(rest); rest != ""; rest = strings.TrimSpace(rest) {
		key, value, ok := strings.Cut(rest, "=")
		if !ok {
			return s, fmt.Errorf("no value in %q", rest)
		}
		if strings.HasPrefix(value, `"`) {
			quoted, err := strconv.QuotedPrefix(value)
			if err != nil {
				return s, fmt.Errorf("%q: %w", value, err)
			}
			rest = value[len(quoted):]
			value, _ = strconv.Unquote(quoted)
		} else {
			value, rest, _ = strings.Cut(value, " ")
		}
		if err := setField(v, &s, key, value); err != nil {
			return s, err
		}
	}
	return s, nil
}

func setField(v reflect.Value, s *Step, key, value string) (err error) {
	f, ok := v.Type().FieldByNameFunc(func(name string) bool { return strings.ToLower(name) == key })
	if !ok || key == "proc" || key == "op" {
		return fmt.Errorf("a step has no %q", key)
	}
	field := v.FieldByIndex(f.Index)
	switch {
	case key == "flags":
		s.Flags, err = parseFlags(s.Op, value)
	case field.Kind() == reflect.String:
		field.SetString(value)
	case field.Kind() == reflect.Uint32:
		var n uint64
		n, err = strconv.ParseUint(value, 8, 32)
		field.SetUint(n)
	default:
		var n int64
		n, err = strconv.ParseInt(value, 10, 64)
		field.SetInt(n)
	}
	if err != nil {
		return fmt.Errorf("%s=%s: %w", key, value, err)
	}
	return nil
}

// String is the program as text: a line for each step.
func (p *Program) String() string {
	var out strings.Builder
	fmt.Fprintf(&out, "program seed=%d mounts=%d acl=%t\n", p.Seed, p.Mounts, p.ACL)
	for _, s := range p.Steps {
		out.WriteString(s.String() + "\n")
	}
	return out.String()
}

// Parse reads a program that String has written. Empty lines and those that
// begin with # are passed over.
func Parse(text string) (*Program, error) {
	p, head := &Program{}, false
	lines := bufio.NewScanner(strings.NewReader(text))
	lines.Buffer(nil, 1<<20)
	for n := 1; lines.Scan(); n++ {
		line := strings.TrimSpace(lines.Text())
		if line == "" || line[0] == '#' {
			continue
		}
		if !head {
			if _, err := fmt.Sscanf(line, "program seed=%d mounts=%d acl=%t", &p.Seed, &p.Mounts, &p.ACL); err != nil {
				return nil, fmt.Errorf("line %d: not the head of a program: %w", n, err)
			}
			head = true
			continue
		}
		s, err := parseStep(line)
		if err != nil {
			return nil, fmt.Errorf("line %d: %w", n, err)
		}
		p.Steps = append(p.Steps, s)
	}
	if !head || p.Mounts < 1 {
		return nil, fmt.Errorf("no program")
	}
	return p, lines.Err()
}

package cli

import (
	"fmt"
	"math"
	"strconv"
	"strings"
	"unicode/utf8"
)

// Size is a number of bytes as a flag: 64KiB, 1MiB, 10G, 4096. K, M, G, T and
// KiB, MiB, GiB, TiB are powers of 1024; KB, MB, GB, TB powers of 1000.
type Size int64

var sizeUnits = map[string]float64{
	"": 1, "b": 1,
	"k": 1 << 10, "kib": 1 << 10, "kb": 1e3,
	"m": 1 << 20, "mib": 1 << 20, "mb": 1e6,
	"g": 1 << 30, "gib": 1 << 30, "gb": 1e9,
	"t": 1 << 40, "tib": 1 << 40, "tb": 1e12,
}

// ParseSize reads a size.
func ParseSize(s string) (Size, error) {
	digits := s[:len(s)-len(strings.TrimLeft(s, "0123456789."))]
	unit, ok := sizeUnits[strings.ToLower(s[len(digits):])]
	if digits != "" && !ok {
		return 0, fmt.Errorf("no unit of size: use KiB, MiB, GiB, TiB or K, M, G, T")
	}
	f, err := strconv.ParseFloat(digits, 64)
	if err != nil || f*unit >= math.MaxInt64 {
		return 0, fmt.Errorf("no size, as 64KiB or 10G")
	}
	if n, err := strconv.ParseInt(digits, 10, 64); err == nil {
		return Size(n) * Size(unit), nil
	}
	return Size(f * unit), nil
}

// Set, String and Type make it a flag.
func (z *Size) Set(s string) (err error) { *z, err = ParseSize(s); return err }
func (z *Size) Type() string             { return "SIZE" }
func (z *Size) String() string           { return z.Short() }

// Short is the size for people, to one decimal: 5B, 4KiB, 1.5MiB.
func (z Size) Short() string {
	f, unit := float64(z), "B"
	for _, u := range []string{"KiB", "MiB", "GiB", "TiB"} {
		if f < 1024 {
			break
		}
		f, unit = f/1024, u
	}
	return strings.TrimSuffix(strconv.FormatFloat(f, 'f', 1, 64), ".0") + unit
}

// NArgs checks the number of arguments: at least min, at most max (-1: any).
func (c *Command) NArgs(args []string, min, max int) error {
	switch {
	case len(args) < min:
		return Usage("%s: missing argument: use %s", c.Name, strings.TrimSpace(c.Name+" "+c.Args))
	case max >= 0 && len(args) > max:
		return Usage("%s: too many arguments: use %s", c.Name, strings.TrimSpace(c.Name+" "+c.Args))
	}
	return nil
}

// Exact is a name for a field of JSON in base64 beside one that holds it as text:
// nil where that says it all, because the name is UTF-8.
func Exact(name string) []byte {
	if utf8.ValidString(name) {
		return nil
	}
	return []byte(name)
}

// Printable is a name for people: quoted if it has anything in it that a
// terminal would not show as it is.
func Printable(name string) string {
	for _, r := range name {
		if !strconv.IsPrint(r) || r == '\uFFFD' {
			return strconv.Quote(name)
		}
	}
	return name
}

package cli

import (
	"bufio"
	"os"
	"strings"

	"github.com/spf13/pflag"

	"cagefs.dev/cage/remote/status"
)

// ReadConfig gives flags that neither the command line nor the environment has
// set their values from a file. Each line is NAME = VALUE with the name of a
// flag; one that may be repeated has a line for each value. Empty lines, and
// those that begin with #, say nothing. Errors are usage errors with file and
// line, else those of the file.
func ReadConfig(fs *pflag.FlagSet, file string) error {
	f, err := os.Open(file)
	if err != nil {
		return status.Wrap(err, "config", file)
	}
	defer f.Close()
	given := map[string]bool{}
	fs.Visit(func(f *pflag.Flag) { given[f.Name] = true })
	seen := map[string]bool{}
	lines := bufio.NewScanner(f)
	for n := 1; lines.Scan(); n++ {
		line := strings.TrimSpace(lines.Text())
		if line == "" || strings.HasPrefix(line, "#") {
			continue
		}
		name, value, ok := strings.Cut(line, "=")
		name, value = strings.TrimSpace(name), strings.TrimSpace(value)
		flag := fs.Lookup(name)
		switch {
		case !ok:
			return Usage("%s:%d: not NAME = VALUE", file, n)
		case flag == nil || name == "config":
			return Usage("%s:%d: no setting named %q", file, n, name)
		case seen[flag.Name] && !repeatable(flag):
			return Usage("%s:%d: %s is set twice", file, n, name)
		}
		seen[flag.Name] = true
		if given[flag.Name] {
			continue
		}
		if err := fs.Set(name, value); err != nil {
			return Usage("%s:%d: %s", file, n, flagError(err))
		}
	}
	return status.Wrap(lines.Err(), "config", file)
}

// repeatable reports whether a flag takes further values beside the first: its
// type says so by a method, or by its name among those of pflag.
func repeatable(f *pflag.Flag) bool {
	if _, ok := f.Value.(interface{ Repeatable() }); ok {
		return true
	}
	return strings.HasSuffix(f.Value.Type(), "Array")
}

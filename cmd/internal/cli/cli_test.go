package cli

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"regexp"
	"strconv"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"cagefs.dev/cage/remote/status"
)

// testApp has one command that fails as its argument says.
func testApp() *App {
	return &App{
		Name: "cagetest", Short: "Tests.",
		Commands: []func() *Command{func() *Command {
			c := New("do", "[WHAT]", "does something")
			c.Example = "cagetest do it"
			var size Size
			c.Flags.Var(&size, "cache-size", "a size")
			c.Flags.BoolP("yes", "y", false, "a bool")
			c.Run = func(_ context.Context, args []string, std Std) error {
				if err := c.NArgs(args, 0, 1); err != nil {
					return err
				}
				if len(args) == 1 {
					switch args[0] {
					case "conflict":
						return status.New(status.Conflict, "undo", "@7")
					case "silent":
						return ExitDamage
					case "lines":
						return errors.New("one\ntwo")
					case "escapes":
						return errors.New("one\u009b2J\u202etwo\x1b[31m")
					}
				}
				_, err := fmt.Fprintln(std.Out, int64(size))
				return err
			}
			return c
		}},
		Implied: func(args []string) string {
			if args[0] == "implied" {
				return "do"
			}
			return ""
		},
	}
}

func TestMainOutput(t *testing.T) {
	tests := []struct {
		name     string
		args     []string
		code     Exit
		out, err string
	}{
		{"runs", []string{"do", "--cache-size", "1MiB"}, 0, "1048576\n", ""},
		{"underscore", []string{"do", "--cache_size=2K"}, 0, "2048\n", ""},
		{"implied", []string{"implied"}, 0, "0\n", ""},
		{"version", []string{"--version"}, 0, "cagetest " + Version + "\n", ""},
		{"nothing", nil, ExitUsage, "", "cagetest: no command given (see cagetest --help)\n"},
		{"unknown command", []string{"dance"}, ExitUsage, "", "cagetest: unknown command dance (see cagetest --help)\n"},
		{"unknown flag first", []string{"--x=1"}, ExitUsage, "", "cagetest: unknown flag --x (see cagetest --help)\n"},
		{"unknown flag", []string{"do", "--x"}, ExitUsage, "", "cagetest: unknown flag --x (see cagetest do --help)\n"},
		{"unknown short flag", []string{"do", "-yx"}, ExitUsage, "", "cagetest: unknown flag -x (see cagetest do --help)\n"},
		{"value missing", []string{"do", "--cache-size"}, ExitUsage, "", "cagetest: flag --cache-size needs a value (see cagetest do --help)\n"},
		{"value wrong", []string{"do", "--cache-size", "1Q"}, ExitUsage, "", "cagetest: --cache-size 1Q: no unit of size: use KiB, MiB, GiB, TiB or K, M, G, T (see cagetest do --help)\n"},
		{"too many", []string{"do", "a", "b"}, ExitUsage, "", "cagetest: do: too many arguments: use do [WHAT]\n"},
		{"failure", []string{"do", "conflict"}, ExitConflict, "", "cagetest: undo @7: conflict\n"},
		{"silent", []string{"do", "silent"}, ExitDamage, "", ""},
		{"one line", []string{"do", "lines"}, ExitFailed, "", "cagetest: one two\n"},
		{"what a peer says drives no terminal", []string{"do", "escapes"}, ExitFailed, "", "cagetest: one 2J two [31m\n"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			var out, errs bytes.Buffer
			code := testApp().Main(t.Context(), tt.args, Std{In: strings.NewReader(""), Out: &out, Err: &errs})
			require.Equal(t, tt.code, code)
			require.Equal(t, tt.out, out.String())
			require.Equal(t, tt.err, errs.String())
		})
	}
}

func TestHelp(t *testing.T) {
	for _, args := range [][]string{{"do", "--help"}, {"do", "-h"}, {"help", "do"}} {
		var out, errs bytes.Buffer
		require.Equal(t, ExitOK, testApp().Main(t.Context(), args, Std{Out: &out, Err: &errs}))
		require.Empty(t, errs.String())
		require.Contains(t, out.String(), "usage: cagetest do [WHAT]\n")
		require.Contains(t, out.String(), "--cache-size SIZE")
		require.Contains(t, out.String(), "Example:\n  cagetest do it\n")
	}
	var out bytes.Buffer
	require.Equal(t, ExitOK, testApp().Main(t.Context(), []string{"--help"}, Std{Out: &out}))
	require.Contains(t, out.String(), "do         does something\n")
	require.Contains(t, out.String(), "10  server unreachable")
}

func TestEnvironmentGivesDefaults(t *testing.T) {
	t.Setenv("CAGE_CACHE_SIZE", "3K")
	var out bytes.Buffer
	require.Equal(t, ExitOK, testApp().Main(t.Context(), []string{"do"}, Std{Out: &out}))
	require.Equal(t, "3072\n", out.String())

	out.Reset()
	require.Equal(t, ExitOK, testApp().Main(t.Context(), []string{"do", "--cache-size=1"}, Std{Out: &out}))
	require.Equal(t, "1\n", out.String(), "the command line goes before the environment")

	t.Setenv("CAGE_CACHE_SIZE", "much")
	var errs bytes.Buffer
	require.Equal(t, ExitUsage, testApp().Main(t.Context(), []string{"do"}, Std{Err: &errs}))
	require.Contains(t, errs.String(), "CAGE_CACHE_SIZE=much")
}

func TestEveryStatusHasAnExit(t *testing.T) {
	for _, c := range status.Codes() {
		_, ok := exits[c]
		require.True(t, ok, "status %d (%v) has no exit code", c, c)
		require.Equal(t, exits[c], ExitOf(status.Wrap(c, "op", "object")))
	}
	require.Len(t, exits, len(status.Codes()))
	require.Equal(t, ExitOK, ExitOf(nil))
	require.Equal(t, ExitFailed, ExitOf(errors.New("unforeseen")))
	require.Equal(t, ExitInterrupted, ExitOf(context.Canceled))
}

// The manual and the constants say the same.
func TestExitCodesInManual(t *testing.T) {
	b, err := os.ReadFile("../../../docs/commands.md")
	require.NoError(t, err)
	got := map[int]string{}
	for _, m := range regexp.MustCompile(`(?m)^\| (\d+) \| (.*?) \|$`).FindAllStringSubmatch(string(b), -1) {
		n, err := strconv.Atoi(m[1])
		require.NoError(t, err)
		got[n] = m[2]
	}
	want := map[int]string{}
	for _, e := range Exits {
		want[int(e.Code)] = e.Meaning
	}
	require.Equal(t, want, got)
}

func TestParseSize(t *testing.T) {
	tests := []struct {
		in   string
		want Size
		ok   bool
	}{
		{"0", 0, true}, {"4096", 4096, true}, {"4096B", 4096, true},
		{"64KiB", 64 << 10, true}, {"64k", 64 << 10, true}, {"1MiB", 1 << 20, true}, {"10G", 10 << 30, true},
		{"1.5MiB", 3 << 19, true}, {"2T", 2 << 40, true}, {"5MB", 5_000_000, true},
		{"", 0, false}, {"G", 0, false}, {"-1", 0, false}, {"+1", 0, false}, {"1 G", 0, false}, {"1Q", 0, false},
		{"9000000000T", 0, false}, {"1e3", 0, false}, {"0x10", 0, false}, {"NaN", 0, false}, {"1_000", 0, false},
	}
	for _, tt := range tests {
		t.Run(tt.in, func(t *testing.T) {
			got, err := ParseSize(tt.in)
			require.Equal(t, tt.ok, err == nil, "error: %v", err)
			require.Equal(t, tt.want, got)
		})
	}
}

func TestSizeShort(t *testing.T) {
	for z, want := range map[Size]string{0: "0B", 1023: "1023B", 1024: "1KiB", 3 << 19: "1.5MiB", 10 << 30: "10GiB", 1 << 50: "1024TiB"} {
		require.Equal(t, want, z.Short())
	}
}

func TestJSON(t *testing.T) {
	var b bytes.Buffer
	require.NoError(t, JSON(&b, struct {
		A string `json:"a"`
	}{"x\ny"}))
	require.NoError(t, JSON(&b, struct{}{}))
	require.Equal(t, "{\"schema\":1,\"a\":\"x\\ny\"}\n{\"schema\":1}\n", b.String())
	require.Error(t, JSON(&b, []int{1}))
}

func TestPrintable(t *testing.T) {
	require.Equal(t, "für alle.txt", Printable("für alle.txt"))
	require.Equal(t, `"a\nb"`, Printable("a\nb"))
	require.Equal(t, `"\x1b[31m"`, Printable("\x1b[31m"))
	require.Equal(t, `"\xff"`, Printable("\xff"))
}

func TestAsk(t *testing.T) {
	for in, want := range map[string]bool{"y\n": true, "YES\n": true, "n\n": false, "\n": false, "": false, "yo\n": false} {
		var errs bytes.Buffer
		require.Equal(t, want, Std{In: strings.NewReader(in), Err: &errs}.Ask("go on?"), "%q", in)
		require.Equal(t, "go on? [y/N] ", errs.String())
	}
	require.False(t, Std{In: strings.NewReader("")}.Interactive())
}

package cli

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"unicode"

	"github.com/spf13/pflag"
)

// Std is where a command reads and writes.
type Std struct {
	In  io.Reader
	Out io.Writer // data
	Err io.Writer // messages
}

// OS is the process's own.
func OS() Std { return Std{In: os.Stdin, Out: os.Stdout, Err: os.Stderr} }

// Command is one subcommand. Its constructor registers the flags; Run is called
// once, with the arguments that are left.
type Command struct {
	Name    string
	Args    string // as in a line of use: "SOURCE MOUNTPOINT"
	Short   string // what it does, for the list of commands
	Long    string // what it does, in full; may be empty
	Example string // one real example
	Flags   *pflag.FlagSet
	Run     func(ctx context.Context, args []string, std Std) error
}

// New makes a command without flags.
func New(name, args, short string) *Command {
	fs := pflag.NewFlagSet(name, pflag.ContinueOnError)
	fs.SetOutput(io.Discard)
	fs.SortFlags = false
	fs.SetNormalizeFunc(func(_ *pflag.FlagSet, name string) pflag.NormalizedName {
		return pflag.NormalizedName(strings.ReplaceAll(name, "_", "-"))
	})
	return &Command{Name: name, Args: args, Short: short, Flags: fs}
}

// App is a program: a table of commands.
type App struct {
	Name     string
	Short    string
	Commands []func() *Command
	// Implied names the command that arguments mean when the first of them names
	// none, or "". May be nil.
	Implied func(args []string) string
}

// Main runs the command that args (without the program's name) ask for and
// returns the process's exit code, having written the error.
func (a *App) Main(ctx context.Context, args []string, std Std) Exit {
	err := a.run(ctx, args, std)
	if err == nil {
		return ExitOK
	}
	var silent Exit
	if !errors.As(err, &silent) {
		fmt.Fprintf(std.Err, "%s: %s\n", a.Name, oneLine(err.Error()))
	}
	return ExitOf(err)
}

func (a *App) run(ctx context.Context, args []string, std Std) error {
	if len(args) == 0 {
		return Usage("no command given (see %s --help)", a.Name)
	}
	switch args[0] {
	case "--help", "-h":
		return a.help(std.Out)
	case "help":
		if len(args) == 1 {
			return a.help(std.Out)
		}
		c := a.command(args[1])
		if c == nil {
			return a.unknown(args[1])
		}
		return a.commandHelp(std.Out, c)
	case "--version", "version":
		_, err := fmt.Fprintln(std.Out, Software(a.Name))
		return err
	}
	c := a.command(args[0])
	if c != nil {
		args = args[1:]
	} else {
		implied := ""
		if a.Implied != nil {
			implied = a.Implied(args)
		}
		if c = a.command(implied); c == nil {
			return a.unknown(args[0])
		}
	}
	return a.runCommand(ctx, c, args, std)
}

func (a *App) runCommand(ctx context.Context, c *Command, args []string, std Std) error {
	if err := c.Flags.Parse(args); err != nil {
		if errors.Is(err, pflag.ErrHelp) {
			return a.commandHelp(std.Out, c)
		}
		return Usage("%s (see %s %s --help)", flagError(err), a.Name, c.Name)
	}
	if err := fromEnvironment(c.Flags); err != nil {
		return err
	}
	return c.Run(ctx, c.Flags.Args(), std)
}

// fromEnvironment gives flags that the command line leaves out the value of
// CAGE_NAME, if there is one.
func fromEnvironment(fs *pflag.FlagSet) error {
	var first error
	fs.VisitAll(func(f *pflag.Flag) {
		name := "CAGE_" + strings.ToUpper(strings.ReplaceAll(f.Name, "-", "_"))
		v, ok := os.LookupEnv(name)
		if !ok || f.Changed || first != nil {
			return
		}
		if err := fs.Set(f.Name, v); err != nil {
			first = Usage("%s=%s in the environment: %s", name, v, flagError(err))
		}
	})
	return first
}

func (a *App) command(name string) *Command {
	for _, construct := range a.Commands {
		if c := construct(); c.Name == name {
			return c
		}
	}
	return nil
}

func (a *App) unknown(arg string) error {
	kind := "command"
	if strings.HasPrefix(arg, "-") {
		kind, arg = "flag", strings.SplitN(arg, "=", 2)[0]
	}
	return Usage("unknown %s %s (see %s --help)", kind, arg, a.Name)
}

// flagError is pflag's error in our words.
func flagError(err error) string {
	var (
		unknown *pflag.NotExistError
		missing *pflag.ValueRequiredError
		invalid *pflag.InvalidValueError
	)
	switch {
	case errors.As(err, &unknown):
		if unknown.GetSpecifiedShortnames() != "" {
			return "unknown flag -" + unknown.GetSpecifiedName()[:1]
		}
		return "unknown flag --" + unknown.GetSpecifiedName()
	case errors.As(err, &missing):
		return "flag --" + missing.GetFlag().Name + " needs a value"
	case errors.As(err, &invalid):
		return fmt.Sprintf("--%s %s: %v", invalid.GetFlag().Name, invalid.GetValue(), invalid.Unwrap())
	}
	return err.Error()
}

func (a *App) help(w io.Writer) error {
	var b strings.Builder
	fmt.Fprintf(&b, "usage: %s COMMAND [FLAG…] [ARGUMENT…]\n\n%s\n\nCommands:\n", a.Name, a.Short)
	for _, construct := range a.Commands {
		c := construct()
		fmt.Fprintf(&b, "  %-10s %s\n", c.Name, c.Short)
	}
	fmt.Fprintf(&b, "\n%s COMMAND --help tells more, %s --version the version.\n\nExit codes:\n", a.Name, a.Name)
	for _, e := range Exits {
		fmt.Fprintf(&b, "  %2d  %s\n", e.Code, e.Meaning)
	}
	_, err := io.WriteString(w, b.String())
	return err
}

func (a *App) commandHelp(w io.Writer, c *Command) error {
	var b strings.Builder
	fmt.Fprintf(&b, "usage: %s\n\n", strings.TrimSpace(a.Name+" "+c.Name+" "+c.Args))
	what := c.Long
	if what == "" {
		what = c.Short + "."
	}
	fmt.Fprintf(&b, "%s\n", what)
	if flags := c.Flags.FlagUsages(); flags != "" {
		fmt.Fprintf(&b, "\nFlags:\n%s", flags)
	}
	fmt.Fprintf(&b, "\nExample:\n  %s\n", c.Example)
	_, err := io.WriteString(w, b.String())
	return err
}

// Check finds contradictions in the table of commands, for tests: a name given
// twice, a command without example, an example whose flags are unknown.
func (a *App) Check() error {
	seen := map[string]bool{}
	for _, construct := range a.Commands {
		c := construct()
		words := strings.Fields(c.Example)
		switch {
		case seen[c.Name]:
			return fmt.Errorf("%s: two commands of this name", c.Name)
		case len(words) < 2 || words[0] != a.Name || words[1] != c.Name:
			return fmt.Errorf("%s: no example of it: %q", c.Name, c.Example)
		}
		seen[c.Name] = true
		if err := c.Flags.Parse(words[2:]); err != nil {
			return fmt.Errorf("%s: its example %q: %w", c.Name, c.Example, err)
		}
	}
	return nil
}

// oneLine keeps an error to one line, whatever a peer or a file name put into it.
func oneLine(s string) string {
	return strings.Map(func(r rune) rune {
		if !unicode.IsPrint(r) {
			return ' '
		}
		return r
	}, strings.TrimSpace(s))
}

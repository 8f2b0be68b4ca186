package cli

import (
	"bufio"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"strings"

	"golang.org/x/sys/unix"
)

// Schema is the version of what --json prints: fields are added without a new
// number, never renamed or given another meaning.
const Schema = 1

// JSON writes an object as one line that begins with "schema".
func JSON(w io.Writer, object any) error {
	b, err := json.Marshal(object)
	if err != nil {
		return err
	}
	if len(b) < 2 || b[0] != '{' {
		return fmt.Errorf("--json prints objects, not %s", b)
	}
	sep := ","
	if b[1] == '}' {
		sep = ""
	}
	_, err = fmt.Fprintf(w, `{"schema":%d%s%s`+"\n", Schema, sep, b[1:])
	return err
}

// Interactive reports whether somebody is there to be asked: input and messages
// are a terminal.
func (s Std) Interactive() bool { return isTerminal(s.In) && isTerminal(s.Err) }

func isTerminal(v any) bool {
	f, ok := v.(*os.File)
	if !ok {
		return false
	}
	_, err := unix.IoctlGetTermios(int(f.Fd()), unix.TCGETS)
	return err == nil
}

// Ask puts a question and reports whether the answer was yes.
func (s Std) Ask(question string) bool {
	fmt.Fprintf(s.Err, "%s [y/N] ", question)
	line, _ := bufio.NewReader(s.In).ReadString('\n')
	switch strings.ToLower(strings.TrimSpace(line)) {
	case "y", "yes":
		return true
	}
	return false
}

package cli

import (
	"errors"
	"fmt"

	"cagefs.dev/cage/remote/status"
)

// Exit is the exit code of a command. Scripts rely on the numbers: they are
// never given another meaning, retired ones stay unused. As an error it means
// that the command has already said what there is to say.
type Exit int

// The exit codes of all commands.
const (
	ExitOK          Exit = 0  // done
	ExitDifferences Exit = 1  // differences found
	ExitUsage       Exit = 2  // wrong flag or argument; nothing was done
	ExitNotFound    Exit = 3  // not found, or no longer in history
	ExitConflict    Exit = 4  // conflict; nothing was changed
	ExitDamage      Exit = 5  // damage found
	ExitGap         Exit = 6  // history has a gap there
	ExitBusy        Exit = 7  // busy: in use, or held by another process
	ExitDenied      Exit = 8  // no space or no permission
	ExitInterrupted Exit = 9  // interrupted; can be resumed or repeated
	ExitUnreachable Exit = 10 // server unreachable, or it did not answer in time
	ExitFailed      Exit = 11 // anything else: an input/output error, an unsupported version
)

// Exits lists the codes with their meaning, for help and for the test of docs/commands.md.
var Exits = []struct {
	Code    Exit
	Meaning string
}{
	{ExitOK, "done"},
	{ExitDifferences, "differences found"},
	{ExitUsage, "wrong flag or argument; nothing was done"},
	{ExitNotFound, "not found, or no longer in history"},
	{ExitConflict, "conflict; nothing was changed"},
	{ExitDamage, "damage found"},
	{ExitGap, "history has a gap there"},
	{ExitBusy, "busy: in use, or held by another process"},
	{ExitDenied, "no space or no permission"},
	{ExitInterrupted, "interrupted; can be resumed or repeated"},
	{ExitUnreachable, "server unreachable, or it did not answer in time"},
	{ExitFailed, "anything else: an input/output error, an unsupported version"},
}

// Error lets a command end with a code and without a message.
func (e Exit) Error() string { return fmt.Sprintf("exit code %d", int(e)) }

// exits turns what went wrong into the code of the process.
var exits = map[status.Code]Exit{
	status.OK:            ExitOK,
	status.Internal:      ExitFailed,
	status.NotFound:      ExitNotFound,
	status.Exists:        ExitConflict,
	status.NotDir:        ExitNotFound,
	status.IsDir:         ExitUsage,
	status.NotEmpty:      ExitConflict,
	status.Access:        ExitDenied,
	status.NotOwner:      ExitDenied,
	status.ReadOnly:      ExitDenied,
	status.NoSpace:       ExitDenied,
	status.Quota:         ExitDenied,
	status.TooLarge:      ExitDenied,
	status.NameTooLong:   ExitUsage,
	status.CrossDevice:   ExitUsage,
	status.TooManyLinks:  ExitDenied,
	status.Invalid:       ExitUsage,
	status.Stale:         ExitNotFound,
	status.Busy:          ExitBusy,
	status.NoAttr:        ExitNotFound,
	status.Range:         ExitFailed,
	status.Unsupported:   ExitFailed,
	status.IO:            ExitFailed,
	status.Timeout:       ExitUnreachable,
	status.Interrupted:   ExitInterrupted,
	status.Unreachable:   ExitUnreachable,
	status.Loop:          ExitUsage,
	status.NoDevice:      ExitFailed,
	status.Again:         ExitInterrupted,
	status.Conflict:      ExitConflict,
	status.Damaged:       ExitDamage,
	status.Gap:           ExitGap,
	status.NoHistory:     ExitNotFound,
	status.Version:       ExitFailed,
	status.BadFrame:      ExitFailed,
	status.UnknownExport: ExitNotFound,
	status.WrongKey:      ExitDenied,
	status.Draining:      ExitUnreachable,
	status.LostSession:   ExitInterrupted,
	status.TextBusy:      ExitBusy,
	status.TooBig:        ExitUsage,
	status.TooManyFiles:  ExitFailed,
	status.Usage:         ExitUsage,
	status.NoMoment:      ExitNotFound,
	status.Locked:        ExitBusy,
	status.Deadlock:      ExitConflict,
	status.NoLocks:       ExitDenied,
	status.LostLock:      ExitFailed,
}

// ExitOf returns the exit code that an error means.
func ExitOf(err error) Exit {
	var e Exit
	if errors.As(err, &e) {
		return e
	}
	if e, ok := exits[status.Of(err)]; ok {
		return e
	}
	return ExitFailed
}

// Usage makes the error of a wrong flag or argument.
func Usage(format string, args ...any) error {
	return status.Newf(status.Usage, "", "", format, args...)
}

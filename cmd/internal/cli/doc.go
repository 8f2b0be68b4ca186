// Package cli is what the commands of Cage have in common: the table of
// subcommands, flags and their errors, exit codes, sizes, --json and questions
// on a terminal.
//
// It promises that an error is one line on stderr that a person understands,
// that stdout carries data only, and that exit codes are those of docs/commands.md.
// It must not know what a command does.
package cli

// Version of all commands; also what peers and logs are told.
const Version = "0.1"

// Software is how a command calls itself to its peers, as in "cagefs 0.1".
func Software(command string) string { return command + " " + Version }

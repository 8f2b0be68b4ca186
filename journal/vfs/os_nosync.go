//go:build cage_nosync

package vfs

// A program built with the tag cage_nosync makes nothing durable: a power cut
// loses what it promised. It exists for the test of the power cut test
// (cmd/internal/e2e), which has to find that out.
func fdatasync(int) error { return nil }
func fsync(int) error     { return nil }
func syncfs(int) error    { return nil }

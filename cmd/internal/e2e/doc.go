// Package e2e holds the tests that drive the real commands: servers that are
// killed, disks that lose power, mounts in the kernel, and on these the programs
// that people run (`make programs`). It imports nothing of Cage
// but cmd/internal/cli, and cmd/internal/differ and cmd/internal/history, which know nothing of it. All of it needs /dev/fuse; what more a test needs it says
// when it is skipped. Short runs are part of `make test`; CAGE_ACCEPT=1 (`make
// accept`) runs the full numbers. The hours are in `make linear`, that all mounts show one
// truth, and in `make torture`, that none of it depends on the network or the server going well.
package e2e

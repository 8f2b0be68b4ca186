package vfs

import (
	"os"
	"strings"
)

// MachineRun names the run of this machine, from its start to its end; "" where
// that is not known. While it is the same, nothing that was written is lost.
func MachineRun() string {
	b, _ := os.ReadFile("/proc/sys/kernel/random/boot_id")
	return strings.TrimSpace(string(b))
}

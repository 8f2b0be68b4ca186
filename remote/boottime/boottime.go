// Package boottime is the clock of the leases: it goes on while the machine
// sleeps, and no setting of the time moves it.
package boottime

import (
	"time"

	"golang.org/x/sys/unix"
)

// Now is the time since the machine started (CLOCK_BOOTTIME).
func Now() time.Duration {
	var ts unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_BOOTTIME, &ts); err != nil {
		panic(err) // since Linux 2.6.39 it is there
	}
	return time.Duration(ts.Nano())
}

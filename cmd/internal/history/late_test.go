package history

import (
	"testing"

	"github.com/stretchr/testify/require"
)

func TestCheckLate(t *testing.T) {
	const writes = "0 10-11 write 1; 0 20-21 write 2; 0 30-31 write 1; 0 40-41 write 3; "
	for _, tt := range []struct{ read, wrong string }{
		{"1 12-13 read = 1", ""},
		{"1 15-16 read = 0", ""}, // five late
		{"1 17-18 read = 0", "what was there neither then nor 5ns before"},
		{"1 26-27 read = 1", ""}, // the end of the first write of it
		{"1 27-28 read = 1", "neither"},
		{"1 27-30 read = 1", ""}, // the beginning of the second
		{"1 35-36 read = 2", ""},
		{"1 37-38 read = 2", "neither"},
		{"1 38-39 read = 3", "neither"}, // early
		{"1 90-91 read = 3", ""},
		{"1 90-91 read = 9", "neither"},
		{"1 17-? read = 0", ""},
		{"1 50-51 write 9", "not one after another"},
		{"0 40-41 write 9", "not one after another"},
		{"0 40-41 append 9", "only registers can be late"},
	} {
		err := CheckLate(parse(t, Register, writes+tt.read), 5)
		if tt.wrong == "" {
			require.NoError(t, err, tt.read)
		} else {
			require.ErrorContains(t, err, tt.wrong, tt.read)
		}
	}
	require.NoError(t, CheckLate(parse(t, Register, "1 0-1 read = 0"), 5))
	require.Error(t, CheckLate(parse(t, Register, "1 0-1 read = 1"), 5))
}
